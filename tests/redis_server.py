"""A redis-server of the tests' own, on a free port, with its files in a temporary folder."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis


class RedisServer:
    """
    Started when made; `stop` it.

    Args:
        folder: For its files; kept over restarts.
        options: Settings as on the command line of redis-server.
    """

    def __init__(self, folder: Path, *options: str, port: int | None = None, aof: bool = True) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed: apt-get install redis-server"
        self.folder = folder
        self.port = port or free_port()
        durable = ("--appendonly", "yes", "--appendfsync", "always") if aof else ("--appendonly", "no")
        listen = () if "--tls-port" in options else ("--port", str(self.port))
        self._command = [
            program, *listen, "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *durable,
            "--logfile", str(folder / "redis.log"), *options,
        ]  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis(port=self.port, **options)  # type: ignore[arg-type]

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)
        deadline = time.monotonic() + 20
        while not self._listens():
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        """Listens, and has loaded what it had stored."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as sock:
                if "--tls-port" in self._command:
                    return True
                sock.sendall(b"PING\r\n")
                return not sock.recv(64).startswith(b"-LOADING")
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
