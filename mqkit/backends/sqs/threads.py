"""Threads for calls that block: boto3 has no others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Job = Callable[[], None]


class Workers:
    """At most so many threads, started when there is work for them. They do not keep a process from ending."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0

    def run(self, job: Job) -> None:
        """Soon, on one of them; here where no thread can be started any more."""
        with self._lock:
            start = self._idle == 0 and self._threads < self._most
            if start:
                self._threads += 1
            elif self._idle:
                self._idle -= 1
        if start:
            try:
                threading.Thread(target=self._work, args=(job,), name=self._name, daemon=True).start()
            except RuntimeError:  # the interpreter is ending
                with self._lock:
                    self._threads -= 1
                job()
        else:
            self._jobs.put(job)

    def each(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The results of all, in order; the first of them runs here. Raises what one of them raises."""
        if len(jobs) == 1:
            return [jobs[0]()]
        done = threading.Semaphore(0)
        results: dict[int, T] = {}
        failures: list[Exception] = []

        def run(number: int, job: Callable[[], T]) -> None:
            try:
                results[number] = job()
            except Exception as exc:  # noqa: BLE001  raised below
                failures.append(exc)
            finally:
                done.release()

        for number, job in enumerate(jobs[1:], start=1):
            self.run(lambda number=number, job=job: run(number, job))  # type: ignore[misc]
        results[0] = jobs[0]()
        for _ in jobs[1:]:
            done.acquire()
        if failures:
            raise failures[0]
        return [results[number] for number in range(len(jobs))]

    def close(self) -> None:
        """They end when they have done what they were given."""
        with self._lock:
            for _ in range(self._threads):
                self._jobs.put(None)

    def _work(self, job: Job | None) -> None:
        try:
            while job is not None:
                job()
                with self._lock:
                    self._idle += 1
                job = self._jobs.get()
        finally:  # also of one that was killed by a job
            with self._lock:
                self._threads -= 1
