"""Polls: long polls of one queue, each on a thread, while there is room for what they may bring."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from mqkit.backends.sqs.options import MOST
from mqkit.errors import MqkitError

Poll = Callable[[int, int], Sequence[Any]]  # most messages, seconds to wait

SHORT = 0.05  # seconds between two polls that do not wait, where the lease is too short for one that does


class Polls:
    """
    A poll that runs cannot be ended: the server goes on with it, and what it finds then is hidden for a whole lease. So a
    poll is waited for, however long its owner is gone, and what it brings is given back.

    One poll runs where little comes; another begins while they come back full. Each that brings nothing makes the next
    one longer, so that a source that is busy, or has just begun, is quickly left.

    Args:
        poll: Asks once. On a thread of its own; raises errors of mqkit.
        most: Polls at a time.
        longest: Seconds of one wait.
        pause: Seconds to wait after a poll that brought some, so that the next one brings more.
        arrived: Is told that there is something to take, or trouble.
    """

    def __init__(
        self, poll: Poll, name: str, *, most: int, longest: int, pause: float, arrived: Callable[[], None]
    ) -> None:
        self._poll = poll
        self._name = name
        self._most = most
        self._longest = longest
        self._pause = pause
        self._arrived = arrived
        self._lock = threading.Lock()
        self._inbox: deque[Any] = deque()
        self._room = 0  # messages that may be asked for, those asked for already included
        self._asked = 0
        self._wait = min(1, longest)
        self._threads: set[threading.Thread] = set()
        self._stopped = threading.Event()
        self._trouble: MqkitError | None = None

    def allow(self, room: int) -> None:
        """So many may be here or on their way."""
        with self._lock:
            self._room = room - len(self._inbox)
            start = not self._threads and self._hungry()
            if start:
                self._start()

    def take(self) -> list[Any]:
        """
        What has come.

        Raises:
            MqkitError: Polling failed, and begins again with the next `allow`.
        """
        with self._lock:
            taken = list(self._inbox)
            self._inbox.clear()
            if not taken and self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise trouble
        return taken

    def stop(self) -> None:
        """No poll begins any more."""
        self._stopped.set()

    def join(self, timeout: float) -> bool:
        """Wait for those that run. True: all are over."""
        until = time.monotonic() + timeout
        for thread in list(self._threads):
            thread.join(max(0.0, until - time.monotonic()))
        return not self._threads

    # -- on the threads ------------------------------------------------------------------------------------------------

    def _hungry(self) -> bool:
        return self._room > self._asked and self._trouble is None and not self._stopped.is_set()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            self._threads.discard(thread)

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._lock:
                if not self._hungry():
                    self._threads.discard(me)
                    return
                want, wait = min(MOST, self._room - self._asked), self._wait
                self._asked += want
            came: Sequence[Any] = ()
            trouble: MqkitError | None = None
            try:
                came = self._poll(want, wait)
            except MqkitError as exc:
                trouble = exc
            except Exception as exc:  # noqa: BLE001  handed to the consumer, whose thread reports it
                trouble = MqkitError(f"polling failed: {type(exc).__name__}: {exc}")
                trouble.__cause__ = exc
            with self._lock:
                self._asked -= want
                self._room -= len(came)
                self._inbox.extend(came)
                self._trouble = trouble or self._trouble
                self._wait = min(1, self._longest) if came else min(self._longest, max(1, self._wait * 2))
                if not came and len(self._threads) > 1:
                    self._threads.discard(me)
                    surplus = True
                else:
                    surplus = False
                    if len(came) == want and len(self._threads) < self._most and self._hungry():
                        self._start()
            if came or trouble:
                self._arrived()
            if surplus:
                return
            if came and len(came) < want and self._pause:
                self._stopped.wait(self._pause)
            elif not came and not self._longest:
                self._stopped.wait(SHORT)
