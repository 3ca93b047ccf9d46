"""A broker as a process of our own: free loopback ports, everything else in a temporary folder, ended with the test run."""

from __future__ import annotations

import abc
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from mqkit.testing.brokers.errors import BrokerFailed
from mqkit.testing.brokers.watchdog import Watchdog

HOST = "127.0.0.1"
POLL = 0.03  # seconds between two looks at whether it is ready
TRIES = 200  # ports tried
STOP = 20.0  # seconds an orderly stop may take; RabbitMQ's takes 6

ClientCertificates = Literal["optional", "required"]


class BrokerProcess(abc.ABC):
    """
    One broker of this kind. `with RedisProcess() as redis:` starts it, and ends it with its data.

    No state of the machine is read or changed: neither its configuration nor its data, ports or running brokers.

    Args:
        start_timeout: Seconds a start may take.
    """

    kind: str

    def __init__(self, *, start_timeout: float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"mqkit-{self.kind}-"))
        self.start_timeout = start_timeout
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog = Watchdog(["rm", "-rf", "--", str(self.folder)])
        self._started_once = False
        self._take_ports()

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Of its plain listener, with an account that may do everything."""
        ...

    @property
    def management_url(self) -> str | None:
        """Of an HTTP API beside it; None where there is none."""
        return None

    @property
    def running(self) -> bool:
        """Frozen counts as running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that was started; its children are in the same process group."""
        if self._process is None:
            raise BrokerFailed(f"{self.kind} does not run; call start()")
        return self._process.pid

    def start(self) -> Self:
        """
        Start, and return when it answers clients. On a broker that runs nothing happens.

        After `stop` or `kill` it comes back on the same ports with the same data.

        Raises:
            BrokerFailed: It ended, or did not answer within `start_timeout`; the message ends with its log.
        """
        if self.running:
            return self
        try:
            self._start()
        except BrokerFailed:
            # The ports were free when they were chosen; somebody may have been quicker. Nobody knows the URL yet.
            if self._started_once or not _address_in_use(self.log_tail()):
                raise
            self._take_ports()
            self._start()
        self._started_once = True
        return self

    def stop(self) -> None:
        """SIGTERM: it may save and say goodbye. Killed if that takes more than 20 s."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, to all of its processes."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop in good order and start again, on the same ports with the same data."""
        self.stop()
        return self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, the system accepts new ones, and nothing is answered until `thaw`."""
        self._signal(signal.SIGSTOP)
        # Its threads go on until the one that was chosen to take the signal has had its turn.
        deadline = time.monotonic() + STOP
        while any(state != "T" for state in _states(self.pid)) and time.monotonic() < deadline:
            time.sleep(POLL)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of what it printed since its last start."""
        try:
            with self._log.open(errors="replace") as log:
                return "".join(deque(log, maxlen=lines)).rstrip("\n")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Kill it and delete its data. Safe to call twice."""
        self.kill()
        self._watchdog.close()  # whose last work is to remove the folder
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- what a kind of broker says ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _take_ports(self) -> None:
        """Choose new ports; called before the first start."""
        ...

    @abc.abstractmethod
    def _start(self) -> None:
        """Write the configuration and call `_spawn`."""
        ...

    @abc.abstractmethod
    def _ready(self) -> bool:
        """Whether it answers clients; takes at most a second or two."""
        ...

    # -- processes -----------------------------------------------------------------------------------------------------

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        deadline = time.monotonic() + self.start_timeout
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        self._process = process
        self._watchdog.watch(process.pid)
        while not self._ready():
            if _ended(process, POLL):
                self.kill()
                raise BrokerFailed(
                    f"{self.kind} ended with status {process.returncode} while it started\n{self._report()}"
                )
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerFailed(f"{self.kind} did not answer within {self.start_timeout:g} s\n{self._report()}")

    def _signal(self, number: signal.Signals) -> None:
        if not self.running:
            raise BrokerFailed(f"{self.kind} does not run and cannot get {number.name}\n{self._report()}")
        os.killpg(self.pid, number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)  # a frozen process hears SIGTERM only after this
            if not _ended(process, STOP):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(STOP)
            _wait_for_group(process.pid)
        self._watchdog.forget(process.pid)

    def _report(self) -> str:
        return f"its log ends with:\n{self.log_tail(100) or '(nothing)'}"


def free_ports(count: int) -> list[int]:
    """
    Ports of 127.0.0.1 that nobody uses now; all are held until the last one is chosen, so they differ.

    Where the system leaves some, none is of those that it gives to outgoing connections: one of them would sooner or later
    sit on the port of a broker that is about to start, or to come back.
    """
    chance, ports = random.SystemRandom(), range(*_ports_for_servers())
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(TRIES):
            if len(chosen) == count:
                return chosen
            one = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind((HOST, chance.choice(ports)))
                chosen.append(one.getsockname()[1])
    raise BrokerFailed(f"no {count} free ports of {HOST} among {ports[0]} to {ports[-1]} after {TRIES} tries")


def _ports_for_servers() -> tuple[int, int]:
    """The wider of the two ranges beside that of outgoing connections."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        low, high = 49_152, 65_535  # as on other systems: IANA's dynamic ports, RFC 6335
    below, above = (10_240, low), (high + 1, 65_536)
    widest = max(below, above, key=lambda ports: ports[1] - ports[0])
    return widest if widest[1] - widest[0] > 1000 else (10_240, 65_536)


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 0.5).close()
    except OSError:
        return False
    return True


def ask(host: str, port: int, question: bytes) -> bytes:
    """The first bytes of the answer, or none if there is no answer within a second."""
    try:
        with socket.create_connection((host, port), 0.5) as connection:
            connection.settimeout(1.0)
            connection.sendall(question)
            return connection.recv(64)
    except OSError:
        return b""


def _ended(process: subprocess.Popen[bytes], within: float) -> bool:
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


def _wait_for_group(group: int) -> None:
    """RabbitMQ's node is a child of the script that was started, and may need a moment longer to die."""
    deadline = time.monotonic() + STOP
    while _runs(group) and time.monotonic() < deadline:
        time.sleep(POLL)


def _runs(group: int) -> bool:
    """Whether a process of it is alive; a dead one that nobody has read yet is not."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return bool(_states(group)) or not Path("/proc/self/stat").exists()


def _states(group: int) -> list[str]:
    """Of its processes that are alive, as proc(5) writes them; none where there is no /proc."""
    states = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # pid (name) state parent group ...; a name may hold anything
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                states.append(state)
    return states


def _address_in_use(log: str) -> bool:
    said = log.lower()
    return "eaddrinuse" in said or "address already in use" in said or "port_already_used" in said
