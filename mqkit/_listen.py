"""Broadcast subscriptions of a bus: one native listener per destination, however many subscribe; they share by memory."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

from mqkit._chance import chance
from mqkit._link import Link
from mqkit._mailbox import Mailbox
from mqkit._topology import declaration_of
from mqkit.backends.base import Address, Received
from mqkit.destinations import Broadcast
from mqkit.errors import ConfigError, MqkitError, Unavailable

log = logging.getLogger("mqkit")

READY = 10.0  # seconds a subscriber waits for the native listener
ROOM = 1000


class Listening:
    """The native listeners of one link; each starts with its first subscriber and ends with its last."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._listeners: dict[str, Listener] = {}

    def add(self, destination: Broadcast[Any], ear: Ear) -> Listener:
        with self._lock:
            listener = self._listeners.get(destination.name)
            if listener is None or not listener.alive:
                listener = self._listeners[destination.name] = Listener(self._link, destination)
            listener.ears.add(ear)
        try:
            listener.wait_ready()
        except BaseException:
            self.remove(listener, ear)
            raise
        return listener

    def remove(self, listener: Listener, ear: Ear) -> None:
        with self._lock:
            listener.ears.discard(ear)
            last = not listener.ears
            if last and self._listeners.get(listener.destination.name) is listener:
                del self._listeners[listener.destination.name]
        if last:
            listener.close()


def listening_of(link: Link) -> Listening:
    """The one of this link, made at its first use."""
    with link.lock:
        if link.listening is None:
            link.listening = Listening(link)
        listening: Listening = link.listening
        return listening


class Ear:
    """One subscriber: a bounded mailbox behind a pattern."""

    def __init__(self, match: str | None, buffer: int, overflow: str) -> None:
        if not isinstance(buffer, int) or buffer < 1:
            raise ConfigError(f"subscription(buffer={buffer!r}): a whole number, 1 or more")
        if overflow not in ("drop_oldest", "drop_newest"):
            raise ConfigError(f'subscription(overflow={overflow!r}) must be "drop_oldest" or "drop_newest"')
        self.mailbox = Mailbox(buffer, overflow)
        self._pattern = pattern(match) if match is not None else None

    def hear(self, received: Received) -> None:
        if self._pattern is None or (received.key is not None and self._pattern.fullmatch(received.key)):
            self.mailbox.put(received)


class Listener:
    """Owns the receiver of one broadcast and hands each message to every ear. A lost connection is a gap, no more."""

    def __init__(self, link: Link, destination: Broadcast[Any]) -> None:
        self.destination = destination
        self.ears: set[Ear] = set()
        self._link = link
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._error: MqkitError | None = None
        self._receiver: Any = None
        self._thread = threading.Thread(target=self._run, name=f"mqkit-listen-{destination.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping.is_set()

    def wait_ready(self) -> None:
        if not self._ready.wait(READY):
            raise self._error or Unavailable(f"listening to {self.destination!r} did not begin within {READY:g} s")
        if self._error is not None and not self._error.retryable:
            raise self._error

    def close(self) -> None:
        self._stopping.set()
        receiver = self._receiver
        if receiver is not None:
            receiver.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    def _run(self) -> None:
        wait = 0.1
        while not self._stopping.is_set():
            try:
                self._listen()
            except MqkitError as exc:
                self._error = exc
                log.warning("listener.lost", extra={"destination": self.destination.name, "error": str(exc)})
                if not exc.retryable:
                    self._ready.set()
            except Exception:
                log.exception("listener.failed", extra={"destination": self.destination.name})
            self._stopping.wait(wait * (0.5 + chance() / 2))
            wait = min(10.0, wait * 2)

    def _listen(self) -> None:
        backend = self._link.backend
        declaration = declaration_of(self.destination, None, backend.capabilities.name)
        self._link.topology.ensure(backend, [Address("broadcast", self.destination.name)])
        receiver = self._receiver = backend.receiver(declaration, ROOM)
        try:
            self._error = None
            self._ready.set()
            while not self._stopping.is_set():
                for received in receiver.receive(ROOM, 1.0).deliveries:
                    for ear in list(self.ears):
                        ear.hear(received)
        finally:
            self._receiver = None
            receiver.close()


def pattern(match: str) -> re.Pattern[str]:
    """
    Words between dots; `*` stands for exactly one word, `#` for any number of them, none included (as on RabbitMQ).

    Raises:
        ConfigError: Not a text, or empty.
    """
    if not isinstance(match, str) or not match:
        raise ConfigError(f"match={match!r} must be a pattern such as orders.* or orders.#")
    expression = ""
    words = match.split(".")
    for place, word in enumerate(words):
        dot = r"\." if place else ""
        if word == "#":
            # "#" takes the dot before it along, so that "a.#" matches "a", and at the front the one behind it.
            expression += r"(?:\.[^.]*)*" if place else r"(?:[^.]*(?:\.[^.]*)*)" if len(words) == 1 else r"(?:[^.]*\.)*"
        else:
            dot = "" if place and words[place - 1] == "#" and place == 1 else dot
            expression += dot + (r"[^.]*" if word == "*" else re.escape(word))
    return re.compile(expression)
