"""Redis as a process of our own."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from mqkit.testing.brokers.certificates import Certificates
from mqkit.testing.brokers.errors import BrokerAbsent
from mqkit.testing.brokers.process import HOST, BrokerProcess, ClientCertificates, ask, free_ports

PROGRAM = "redis-server"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RedisUser:
    """An account of the access control list, for example `RedisUser(password="pw", rules="~app:* &app:* +@all")`."""

    password: str = dataclasses.field(repr=False)
    rules: str


class RedisProcess(BrokerProcess):
    """
    Starts in 0.05 s.

    Args:
        password: What everybody must give; the URL holds it.
        users: Further accounts by name; `url_of` has their URLs.
        tls: Opens a second listener with the server's certificate, see `tls_url`.
        client_certificates: Whether clients of that listener must show one.
        appendonly: Keep data over `kill`: each write is on disk before it is answered (`appendfsync always`).
        maxmemory: As Redis writes it (`"16mb"`); what happens at the limit is `config={"maxmemory-policy": ...}`.
        config: Further directives of redis.conf, which win over ours.
        program: The redis-server of another version than the installed one.
        start_timeout: Seconds.

    Raises:
        BrokerAbsent: redis-server is not installed, or there is no `program`.
    """

    kind = "redis"

    def __init__(
        self,
        *,
        password: str = "",
        users: Mapping[str, RedisUser] | None = None,
        tls: Certificates | None = None,
        client_certificates: ClientCertificates = "optional",
        appendonly: bool = False,
        maxmemory: str = "",
        config: Mapping[str, str] | None = None,
        program: Path | None = None,
        start_timeout: float = 20.0,
    ) -> None:
        found = shutil.which(program or PROGRAM)
        if found is None and program is not None:
            raise BrokerAbsent(f"there is no program {program}")
        if found is None:
            raise BrokerAbsent(f"{PROGRAM} is not installed (Debian: apt-get install redis-server)")
        self._program = os.path.abspath(found)  # it starts in a folder of its own
        self._password = password
        self._users = dict(users or {})
        self._tls = tls
        self._client_certificates = client_certificates
        self._directives = {"appendonly": "yes", "appendfsync": "always"} if appendonly else {"appendonly": "no"}
        if maxmemory:
            self._directives["maxmemory"] = maxmemory
        self._directives |= config or {}
        super().__init__(start_timeout=start_timeout)

    def _take_ports(self) -> None:
        self.port, self.tls_port = free_ports(2)

    @property
    def url(self) -> str:
        return f"redis://{_credentials('', self._password)}{HOST}:{self.port}/0"

    @property
    def tls_url(self) -> str:
        """Of the TLS listener; trust `tls.authority`."""
        return f"rediss://{_credentials('', self._password)}localhost:{self.tls_port}/0"

    def url_of(self, user: str) -> str:
        """The plain listener, as this user."""
        return f"redis://{_credentials(user, self._users[user].password)}{HOST}:{self.port}/0"

    def _start(self) -> None:
        directives = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.folder),
            "daemonize": "no",
            "save": '""',
            "logfile": '""',
        }
        if self._password:
            directives["requirepass"] = self._password
        if self._tls is not None:
            directives |= {
                "tls-port": str(self.tls_port),
                "tls-cert-file": str(self._tls.server),
                "tls-key-file": str(self._tls.server_key),
                "tls-ca-cert-file": str(self._tls.authority),
                "tls-auth-clients": {"optional": "optional", "required": "yes"}[self._client_certificates],
            }
        lines = [f"{name} {value}" for name, value in (directives | self._directives).items()]
        # Not an `aclfile`: with one, Redis leaves `requirepass` out of account.
        lines += [f"user {name} on >{user.password} {user.rules}" for name, user in self._users.items()]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        self._spawn([self._program, str(config)])

    def _ready(self) -> bool:
        return redis_answers(HOST, self.port)


def redis_answers(host: str, port: int) -> bool:
    """Whether commands are taken; one that asks for a password first answers too, one that loads its data does not."""
    return ask(host, port, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))


def _credentials(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
