"""BrokerPool: each kind of broker is started once, on first use, and shared by every process of a test run."""

from __future__ import annotations

import contextlib
import secrets
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener

from mqkit.errors import MqkitError
from mqkit.testing.brokers.broker import Broker, Running
from mqkit.testing.brokers.errors import BrokerFailed
from mqkit.testing.brokers.providers import provide

ANSWER = 900.0  # seconds the pool may take to answer; it may have to pull an image first
Address = tuple[str, int]


class BrokerPool:
    """
    Owns the brokers of a run. It lives in the process that outlasts the others: pytest itself, or the controller of xdist.

    Args:
        provider: For `provide`.
    """

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._listener: Listener | None = None
        self._key = secrets.token_bytes(16)

    def get(self, kind: str) -> Broker:
        """
        Start it if this is the first time, then the same one for all.

        Raises:
            BrokerAbsent: As `provide`; the second time without trying again.
            BrokerFailed: Likewise.
        """
        with self._lock:
            slot = self._slots.setdefault(kind, _Slot())
        return slot.get(kind, self._provider)

    def log_tail(self, kind: str) -> str:
        """Of a broker that was started; empty if there is none or its log is out of reach."""
        slot = self._slots.get(kind)
        return slot.running.log_tail() if slot and slot.running else ""

    def outcomes(self) -> dict[str, Broker | MqkitError]:
        """What became of each kind that was asked for."""
        return {kind: slot.outcome for kind, slot in self._slots.items() if slot.outcome is not None}

    def serve(self) -> tuple[Address, bytes]:
        """Answer other processes too; the address and the key are for their `RemotePool`."""
        if self._listener is None:
            self._listener = Listener(("127.0.0.1", 0), backlog=64, authkey=self._key)
            threading.Thread(target=self._accept, args=(self._listener,), name="mqkit-broker-pool", daemon=True).start()
        host, port = self._listener.address
        return (str(host), int(port)), self._key

    def close(self) -> None:
        """End every broker that was started."""
        if self._listener is not None:
            self._listener.close()
        for slot in self._slots.values():
            slot.close()

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except (AuthenticationError, EOFError):
                continue  # a stranger, who does not have the key
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=(connection,), name="mqkit-broker-pool", daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with connection, contextlib.suppress(EOFError, OSError):  # a process that ended meanwhile
            verb, kind = connection.recv()
            answer: object
            try:
                answer = self.get(kind) if verb == "get" else self.log_tail(kind)
            except Exception as exc:  # noqa: BLE001  it is raised where it was asked for
                answer = exc
            connection.send(answer)


class RemotePool:
    """The pool of another process: the same `get` and `log_tail`."""

    def __init__(self, address: Address, key: bytes) -> None:
        self._address, self._key = address, key

    def get(self, kind: str) -> Broker:
        answer = self._ask("get", kind)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Broker)
        return answer

    def log_tail(self, kind: str) -> str:
        return str(self._ask("log_tail", kind))

    def _ask(self, verb: str, kind: str) -> object:
        with Client(self._address, authkey=self._key) as connection:
            connection.send((verb, kind))
            if not connection.poll(ANSWER):
                raise BrokerFailed(f"{kind}: the process that starts brokers did not answer within {ANSWER:g} s")
            return connection.recv()


class _Slot:
    """One kind of broker: not asked for yet, running, or an error to repeat."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running: Running | None = None
        self.outcome: Broker | MqkitError | None = None

    def get(self, kind: str, provider: str) -> Broker:
        with self._lock:
            if self.outcome is None:
                try:
                    self.running = provide(kind, provider)
                    self.outcome = self.running.broker
                except MqkitError as exc:
                    self.outcome = exc
        if isinstance(self.outcome, MqkitError):
            raise type(self.outcome)(str(self.outcome)) from self.outcome
        return self.outcome

    def close(self) -> None:
        with self._lock:
            if self.running is not None:
                self.running.close()
                self.running = None
