"""One connection to the server, used by the thread that owns it: packed commands out, replies in."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterable
from typing import Any

import redis.exceptions as native
from redis.backoff import NoBackoff
from redis.connection import Connection as PlainConnection
from redis.connection import SSLConnection
from redis.retry import Retry

from mqkit.backends.redis.clock import ServerClock, ticks
from mqkit.backends.redis.errors import ScriptMissing, translate
from mqkit.backends.redis.options import RedisOptions, Server
from mqkit.backends.redis.scripts import Script
from mqkit.backends.redis.wire import Argument, pack
from mqkit.errors import Closed, Denied, Lost, MqkitError, Unavailable

HOPS = 5  # redirections followed before a cluster is called confused
ELSEWHERE = (native.MovedError, native.AskError, native.ReadOnlyError, native.MasterDownError, native.ClusterDownError)


class Broken(Lost):
    """The connection is gone; what was sent and not answered may have happened."""


class Connection:
    """
    Connects when made.

    `elsewhere` is true once the server said that it is not the one to talk to any more: connect again.

    Raises:
        Unavailable, Denied, ConfigError: As the driver's exception means.
    """

    def __init__(self, server: Server, options: RedisOptions, clock: ServerClock, probe: str) -> None:
        self.server = server
        self.elsewhere = False
        self._options = options
        self._pid = os.getpid()
        self._closed = False
        host, port = _primary(server, options) if server.sentinels else (server.host, server.port)
        for _ in range(HOPS):
            self._name = f"{host}:{port}"
            self._driver = _driver(host, port, server.tls, options, _login(server, options))
            try:
                moved = self._greet(clock, probe)
            except Broken as exc:
                # Nothing was under way: not a broken connection, but none at all.
                cause = exc.__cause__
                if isinstance(cause, Exception):
                    raise unreachable(cause, self._name) from cause
                raise
            except BaseException:
                self._driver.disconnect()
                raise
            if moved is None:
                return
            self._driver.disconnect()
            host, port = moved
        raise Unavailable(f"Redis server {server} sends us from node to node; is the cluster being changed?")

    def _greet(self, clock: ServerClock, probe: str) -> tuple[str, int] | None:
        """Where to go instead, if that is what a cluster says."""
        try:
            self._driver.connect()
        except Exception as exc:
            raise unreachable(exc, self._name) from exc
        before = ticks()
        self.send(pack("TIME") + pack("EXISTS", probe) + (pack("ROLE") if self.server.sentinels else b""))
        told, found = self.reply(), self.reply()
        if isinstance(told, MqkitError):
            raise told
        clock.read(int(told[0]) + int(told[1]) / 1e6, before, ticks())
        if self.server.sentinels:
            role = self.reply()
            if not isinstance(role, MqkitError) and role[0] != b"master":
                raise Unavailable(
                    f"Redis server {self._name} is no primary, though the sentinels say so; a fail-over runs"
                )
        cause = found.__cause__ if isinstance(found, MqkitError) else None
        if isinstance(cause, native.MovedError):
            return cause.host, cause.port
        if isinstance(found, MqkitError):
            raise found
        self.elsewhere = False
        return None

    def load(self, scripts: Iterable[Script]) -> None:
        scripts = tuple(scripts)
        self.send(b"".join(pack("SCRIPT", "LOAD", script.text) for script in scripts))
        for reply in [self.reply() for _ in scripts]:
            if isinstance(reply, MqkitError):
                raise reply

    def send(self, data: bytes) -> None:
        """Raises `Broken`."""
        self._check_usable()
        try:
            self._driver.send_packed_command([data], check_health=False)
        except (native.RedisError, OSError) as exc:
            raise self._broken(exc) from exc

    def reply(self) -> Any:
        """The next reply, waited for; an error reply as a typed error, not raised. Raises `Broken`."""
        self._check_usable()
        try:
            return self._driver.read_response()
        except native.ResponseError as exc:
            self.elsewhere = self.elsewhere or isinstance(exc, ELSEWHERE)
            error = translate(exc, self._name)
            error.__cause__ = exc
            return error
        except (native.RedisError, OSError, AttributeError) as exc:
            raise self._broken(exc) from exc

    def call(self, *arguments: Argument) -> Any:
        """One command and its reply. Raises what an error reply means."""
        self.send(pack(*arguments))
        reply = self.reply()
        if isinstance(reply, MqkitError):
            raise reply
        return reply

    def run(self, script: Script, keys: Iterable[str], arguments: Iterable[Argument]) -> Any:
        """A script and its answer; loaded first if the server does not have it."""
        command = run(script, keys, arguments)
        for attempt in (1, 2):
            self.send(command)
            reply = self.reply()
            if isinstance(reply, ScriptMissing) and attempt == 1:
                self.load([script])
            elif isinstance(reply, MqkitError):
                raise reply
            else:
                break
        return reply

    def readable(self) -> bool:
        """Is at least the beginning of a reply here? Never blocks. Raises `Broken`."""
        self._check_usable()
        try:
            # Asks the parser too, which may hold replies already while the socket is silent.
            return bool(self._driver.can_read(0))
        except (native.RedisError, OSError) as exc:
            raise self._broken(exc) from exc

    def fileno(self) -> int:
        sock = getattr(self._driver, "_sock", None)  # the driver has no public door to it, and select needs one
        if sock is None:
            raise Broken(f"Redis server {self._name} closed the connection")
        number: int = sock.fileno()
        return number

    def close(self) -> None:
        self._closed = True
        if os.getpid() == self._pid:
            with contextlib.suppress(Exception):
                self._driver.disconnect()

    def _broken(self, exc: BaseException) -> Broken:
        self.close()
        return Broken(f"Redis server {self._name}: the connection broke ({exc})")

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise Closed("this connection to Redis belongs to the parent of this forked process")
        if self._closed:  # the driver would connect again by itself
            raise Broken(f"Redis server {self._name}: the connection is closed")


def unreachable(exc: Exception, server: str) -> MqkitError:
    """What an exception means when it came before anything was asked for."""
    error = translate(exc, server)
    return Unavailable(str(error)) if isinstance(error, Lost) else error


def run(script: Script, keys: Iterable[str], arguments: Iterable[Argument]) -> bytes:
    """The command that runs a script."""
    keys = tuple(keys)
    return pack("EVALSHA", script.sha, len(keys), *keys, *arguments)


def _login(server: Server, options: RedisOptions) -> dict[str, Any]:
    return {
        "username": server.username or None,
        "password": server.password or None,
        "db": server.db,
        "client_name": options.client_name or None,
    }


def _sentinel_login(options: RedisOptions) -> dict[str, Any]:
    return {"username": options.sentinel_username or None, "password": options.sentinel_password or None}


def _driver(host: str, port: int, tls: bool, options: RedisOptions, login: dict[str, Any]) -> Any:
    """Typed as anything, because much of the driver is not typed."""
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        # The driver would send a command again when its answer is late, and so store a message twice.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # the same shape of replies on every server, and no right to HELLO needed
        "driver_info": None,
        "socket_read_size": 1 << 17,  # a full read has hundreds of messages; each system call lets other threads in
        **login,
    }
    if not tls:
        make: Any = PlainConnection
        return make(**settings)
    make = SSLConnection
    return make(
        ssl_ca_certs=options.ca or None,
        ssl_certfile=options.cert or None,
        ssl_keyfile=options.key or None,
        **settings,
    )


def _primary(server: Server, options: RedisOptions) -> tuple[str, int]:
    """Who the sentinels say is the primary; the first that answers is believed."""
    refused: list[str] = []
    denied: Denied | None = None
    for host, port in server.sentinels:
        driver = _driver(host, port, server.tls, options, _sentinel_login(options))
        try:
            driver.connect()
            driver.send_packed_command(
                [pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", options.service)], check_health=False
            )
            found: Any = driver.read_response()
        except (native.RedisError, OSError) as exc:
            error = unreachable(exc, f"{host}:{port}, a sentinel,")
            if isinstance(error, Denied):
                denied = error
                denied.__cause__ = exc
            refused.append(f"{host}:{port} ({exc})")
            continue
        finally:
            driver.disconnect()
        if found:
            return found[0].decode(), int(found[1])
        refused.append(f"{host}:{port} (knows no service {options.service!r})")
    if denied is not None:
        raise Denied(
            f"{denied}; the login of sentinels is sentinel_username and sentinel_password"
        ) from denied.__cause__
    raise Unavailable(f"no sentinel names a primary for {options.service!r}: {'; '.join(refused)}")


class Bell:
    """Wakes a thread that waits for a connection. Latched: rung twice is rung once, and not forgotten."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._rung = False

    def ring(self) -> None:
        """From any thread."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # full, which rings as well; or closed
                self._far.send(b"!")

    def answered(self) -> bool:
        """Was it rung? Then it is not any more."""
        if not self._rung:
            return False
        self._rung = False  # before the byte is taken: who rings from now on sends another
        self._drain()
        return True

    def settle_down(self) -> None:
        """After a wait: a byte that came later than its ring was answered would end every further wait."""
        if not self._rung:
            self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            self._near.recv(64)

    def fileno(self) -> int:
        return self._near.fileno()

    def close(self) -> None:
        self._near.close()
        self._far.close()


def wait(bell: Bell, connection: Connection | None, timeout: float) -> None:
    """Until the bell rings, something can be read, or the time is over."""
    poll = select.poll()
    poll.register(bell.fileno(), select.POLLIN)
    if connection is not None:
        poll.register(connection.fileno(), select.POLLIN)
    ready = poll.poll(max(0.0, timeout * 1000))
    if any(fd == bell.fileno() for fd, _ in ready):
        bell.settle_down()
