"""Who runs handlers: a pool of threads for `def`, a loop for `async def`. A pump sees only `start` and `stop`."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Protocol

from mqkit._call import Call, Interrupted, Outcome
from mqkit.errors import TimedOut

log = logging.getLogger("mqkit")

LOOK = 0.002  # seconds between two thoughts about another thread
QUICK = (
    3000  # pieces of work a second: a thread that does so many does not wait for anything, so another would not help
)


class Crew(Protocol):
    """Runs pieces of work (a delivery or a batch), at most `size` at once."""

    def start(self, work: Any) -> None:
        """By the pump: queue it."""
        ...

    def turn_end(self) -> bool:
        """By the pump, once per turn. True: work waits and more hands could be had, come back soon."""
        ...

    def stuck(self) -> int:
        """How many run longer than their timeout and cannot be stopped."""
        ...

    def cancel(self) -> None:
        """Interrupt what can be interrupted; its outcome is `Interrupted`."""
        ...

    def stop(self) -> None:
        """No more work comes. Does not wait for what runs."""
        ...


Begin = Callable[[Any], Any]  # what is still to be run of a piece of work; falsy for nothing
Conclude = Callable[[Any, Outcome], None]


class Threads:
    """
    `def` handlers. Threads are added while work waits and those there are do not race through it: handlers that wait
    for something get up to `size` within milliseconds, handlers that only compute do not fight for the interpreter.

    A thread cannot be stopped: past its timeout it is reported stuck, and its piece of work keeps its place until it ends.
    """

    def __init__(
        self, call: Call, begin: Begin, conclude: Conclude, *, size: int, timeout: float | None, name: str
    ) -> None:
        assert call.run is not None
        self._run = call.run
        self._begin = begin
        self._conclude = conclude
        self._size = size
        self._timeout = timeout
        self._name = name
        self._todo: SimpleQueue[Any] = SimpleQueue()
        self._threads = 0
        self._done = [0] * (size + 1)  # pieces of work finished, by thread number
        self._measured = (0.0, 0)  # when growth was last thought about, and how many were finished then
        self._running: dict[int, float] = {}  # thread number to deadline; only with a timeout
        self._stopped = False

    def start(self, work: Any) -> None:
        self._todo.put(work)

    def turn_end(self) -> bool:
        if self._threads >= self._size or self._todo.empty():
            return False
        now, done = time.monotonic(), sum(self._done)
        before, done_before = self._measured
        if self._threads and now - before < LOOK:
            return True
        self._measured = (now, done)
        if not self._threads or (done - done_before) / (now - before) / self._threads < QUICK:
            self._grow()
        return self._threads < self._size

    def stuck(self) -> int:
        now = time.monotonic()
        return sum(deadline < now for deadline in list(self._running.values()))

    def cancel(self) -> None:
        """Nothing: see the class."""

    def stop(self) -> None:
        self._stopped = True
        for _ in range(self._threads):
            self._todo.put(None)

    def _grow(self) -> None:
        self._threads += 1
        threading.Thread(
            target=self._serve, args=(self._threads,), name=f"mqkit-{self._name}-{self._threads}", daemon=True
        ).start()

    def _serve(self, number: int) -> None:
        get, begin, run, conclude = self._todo.get, self._begin, self._run, self._conclude
        while (work := get()) is not None:
            if self._stopped:
                continue
            work = begin(work)
            if not work:
                continue
            if self._timeout is not None:
                self._running[number] = time.monotonic() + self._timeout
            outcome = run(work)
            if self._timeout is not None and time.monotonic() > self._running.pop(number):
                outcome = too_long(self._timeout)
            conclude(work, outcome)
            self._done[number] += 1


class LoopTasks:
    """`async def` handlers, as tasks of one event loop. Past their timeout they are cancelled."""

    def __init__(
        self,
        call: Call,
        begin: Begin,
        conclude: Conclude,
        *,
        size: int,
        timeout: float | None,
        name: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        assert call.arun is not None
        self._arun: Callable[[Any], Awaitable[Outcome]] = call.arun
        self._begin = begin
        self._conclude = conclude
        self._size = size
        self._timeout = timeout
        self._name = f"mqkit-{name}"
        self._loop = loop
        self._context = contextvars.copy_context()  # of who starts the worker: its values reach every handler
        self._fresh: list[Any] = []
        self._todo: deque[Any] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self, work: Any) -> None:
        self._fresh.append(work)

    def turn_end(self) -> bool:
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            self._on_loop(lambda: self._spawn(fresh))
        return False

    def stuck(self) -> int:
        return 0

    def cancel(self) -> None:
        self._on_loop(lambda: [task.cancel() for task in self._tasks])

    def stop(self) -> None:
        self._stopped = True

    def _on_loop(self, act: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # the loop is closed: nothing runs on it any more
            log.debug("loop.closed", extra={"source": self._name})

    def _spawn(self, fresh: list[Any]) -> None:
        self._todo.extend(fresh)
        self._fill()

    def _fill(self) -> None:
        while self._todo and len(self._tasks) < self._size and not self._stopped:
            work = self._begin(self._todo.popleft())
            if work:
                # A task, and with it a context, of its own: what one handler sets, the next must not see.
                task = self._loop.create_task(self._perform(work), name=self._name, context=self._context.copy())
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fill()

    async def _perform(self, work: Any) -> None:
        outcome = await (self._arun(work) if self._timeout is None else self._limited(work, self._timeout))
        if outcome is not None and isinstance(outcome, asyncio.CancelledError) and _asked_to_end():
            outcome = Interrupted()
        self._conclude(work, outcome)

    async def _limited(self, work: Any, timeout: float) -> Outcome:
        async with asyncio.timeout(timeout) as limit:
            outcome = await self._arun(work)
        return too_long(timeout) if limit.expired() else outcome


def _asked_to_end() -> bool:
    """Was this task cancelled, and not only something it waited for?"""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def too_long(timeout: float) -> Exception:
    return TimedOut(f"the handler took longer than timeout={timeout:g} s")
