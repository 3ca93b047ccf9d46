"""RabbitMQ as a process of our own, with its own epmd."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from mqkit.testing.brokers.certificates import Certificates
from mqkit.testing.brokers.errors import BrokerAbsent, BrokerFailed
from mqkit.testing.brokers.process import HOST, BrokerProcess, ClientCertificates, ask, free_ports, listens

# Where Debian's and Red Hat's packages have it. What they put into /usr/sbin insists on the user rabbitmq.
PACKAGED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
MANAGEMENT = "rabbitmq_management"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RabbitUser:
    """An account with its rights in the vhost /; without a password it can log in by certificate only."""

    password: str = dataclasses.field(default="", repr=False)
    configure: str = ".*"
    write: str = ".*"
    read: str = ".*"
    tags: Sequence[str] = ()


class RabbitProcess(BrokerProcess):
    """
    Starts in 4 to 6 s; an orderly stop takes 6 s, a kill nothing.

    Args:
        management: With the HTTP API, see `management_url`; costs less than a second.
        users: Further accounts beside guest, by name; `url_of` has their URLs.
        tls: Opens a second listener with the server's certificate, see `tls_url`.
        client_certificates: Whether clients of that listener must show one.
        external: Who shows a certificate is logged in (EXTERNAL) as the user that its common name names.
        plugins: More plugins to enable.
        config: Further keys of rabbitmq.conf, which win over ours.
        program: The rabbitmq-server of another version than the installed one, with rabbitmqctl beside it.
        start_timeout: Seconds.

    Raises:
        BrokerAbsent: rabbitmq-server is not installed, or there is no `program`.
    """

    kind = "rabbitmq"

    def __init__(
        self,
        *,
        management: bool = True,
        users: Mapping[str, RabbitUser] | None = None,
        tls: Certificates | None = None,
        client_certificates: ClientCertificates = "optional",
        external: bool = False,
        plugins: Sequence[str] = (),
        config: Mapping[str, str] | None = None,
        program: Path | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        installed = str(PACKAGED) if PACKAGED.exists() else "rabbitmq-server"
        found = shutil.which(program or installed)
        if found is None and program is not None:
            raise BrokerAbsent(f"there is no program {program}")
        if found is None:
            raise BrokerAbsent("rabbitmq-server is not installed (Debian: apt-get install rabbitmq-server)")
        self._program = Path(found).absolute()  # it starts in a folder of its own
        self._management = management
        self._users = {"guest": RabbitUser(password="guest", tags=["administrator"]), **(users or {})}
        self._tls = tls
        self._client_certificates = client_certificates
        self._external = external
        enabled = [(MANAGEMENT, management), ("rabbitmq_auth_mechanism_ssl", external)]
        self._plugins = [name for name, wanted in enabled if wanted] + list(plugins)
        self._config = dict(config or {})
        self._epmd: subprocess.Popen[bytes] | None = None
        super().__init__(start_timeout=start_timeout)

    def _take_ports(self) -> None:
        self._end_epmd()
        self.port, self.tls_port, self.management_port, self._distribution_port, self._epmd_port = free_ports(5)

    @property
    def url(self) -> str:
        return self.url_of("guest")

    @property
    def tls_url(self) -> str:
        """Of the TLS listener, as guest; trust `tls.authority`."""
        return f"amqps://guest:guest@localhost:{self.tls_port}/"

    @property
    def management_url(self) -> str | None:
        """Of the HTTP API, as guest; None without it."""
        return f"http://guest:guest@{HOST}:{self.management_port}" if self._management else None

    def url_of(self, user: str) -> str:
        """The plain listener, as this user."""
        password = self._users[user].password
        return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{HOST}:{self.port}/"

    def ctl(self, *arguments: str, timeout: float = 30.0) -> str:
        """
        What `rabbitmqctl` prints. A call takes 0.4 to 0.8 s, one of the HTTP API a hundredth of that.

        Raises:
            BrokerFailed: It ended with an error, or not within `timeout` seconds.
        """
        command = [str(self._program.with_name("rabbitmqctl")), "--quiet", "--node", self._node, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as exc:
            raise BrokerFailed(f"rabbitmqctl {' '.join(arguments)} took more than {timeout:g} s") from exc
        if done.returncode != 0:
            raise BrokerFailed(f"rabbitmqctl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def close(self) -> None:
        self.kill()
        self._end_epmd()
        super().close()

    # -- how it starts -------------------------------------------------------------------------------------------------

    @property
    def _node(self) -> str:
        return f"mqkit{self.port}@localhost"

    def _start(self) -> None:
        lines = [f"{key} = {value}" for key, value in self._settings().items()]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        (self.folder / "definitions.json").write_text(json.dumps(definitions(self._users)))
        (self.folder / "advanced.config").write_text("[].\n")
        (self.folder / "env.conf").write_text("")
        self._start_epmd()
        self._spawn([str(self._program)], self._environment())

    def _settings(self) -> dict[str, str]:
        settings = {
            "listeners.tcp.1": f"{HOST}:{self.port}",
            "load_definitions": str(self.folder / "definitions.json"),
            "log.console": "true",
            "log.file": "false",
            "disk_free_limit.absolute": "64MB",  # else a full disk blocks publishers and looks like a hang
            "collect_statistics_interval": "1000",
        }
        if self._management:
            settings |= {"management.tcp.ip": HOST, "management.tcp.port": str(self.management_port)}
        if self._tls is not None:
            settings |= {
                "listeners.ssl.1": f"{HOST}:{self.tls_port}",
                "ssl_options.cacertfile": str(self._tls.authority),
                "ssl_options.certfile": str(self._tls.server),
                "ssl_options.keyfile": str(self._tls.server_key),
                "ssl_options.verify": "verify_peer",
                "ssl_options.fail_if_no_peer_cert": "true" if self._client_certificates == "required" else "false",
            }
        if self._external:
            settings |= {
                "auth_mechanisms.1": "PLAIN",
                "auth_mechanisms.2": "AMQPLAIN",
                "auth_mechanisms.3": "EXTERNAL",
                "ssl_cert_login_from": "common_name",
            }
        return settings | self._config

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return inherited | {
            "HOME": str(self.folder),  # a private .erlang.cookie
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),  # keeps /etc/rabbitmq out
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self.folder / "feature_flags"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _ready(self) -> bool:
        if not rabbitmq_answers(HOST, self.port):
            return False
        return not self._management or management_answers(HOST, self.management_port)

    # A node without epmd starts one as a daemon that outlives it, and would share it with the machine's other nodes.
    def _start_epmd(self) -> None:
        if self._epmd is not None:
            return  # a node that comes back keeps it
        self._epmd = subprocess.Popen(
            ["epmd", "-port", str(self._epmd_port), "-address", HOST],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._watchdog.watch(self._epmd.pid)
        deadline = time.monotonic() + 10.0
        while not listens(HOST, self._epmd_port):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._epmd.wait(0.02)
                raise BrokerFailed(f"epmd ended with status {self._epmd.returncode} on port {self._epmd_port}")
            if time.monotonic() > deadline:
                raise BrokerFailed(f"epmd does not listen on port {self._epmd_port} after 10 s")

    def _end_epmd(self) -> None:
        if self._epmd is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._epmd.pid, signal.SIGKILL)
            self._epmd.wait(10.0)
            self._watchdog.forget(self._epmd.pid)
            self._epmd = None


def rabbitmq_answers(host: str, port: int) -> bool:
    """Whether a protocol header is answered with Connection.Start; its port is open some time before that."""
    return ask(host, port, b"AMQP\x00\x00\x09\x01").startswith(b"\x01\x00\x00")


def management_answers(host: str, port: int) -> bool:
    """Whether the HTTP API asks who is there."""
    try:
        urllib.request.urlopen(f"http://{host}:{port}/api/overview", timeout=1.0).close()
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code == 401
    except OSError:
        return False
    return True


def definitions(users: Mapping[str, RabbitUser]) -> dict[str, object]:
    """
    The accounts, as RabbitMQ imports them at start; it makes no default account or vhost then.

    Source: https://www.rabbitmq.com/docs/definitions
    """
    return {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": name,
                "password_hash": password_hash(user.password, secrets.token_bytes(4)) if user.password else "",
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": list(user.tags),
            }
            for name, user in users.items()
        ],
        "permissions": [
            {"user": name, "vhost": "/", "configure": user.configure, "write": user.write, "read": user.read}
            for name, user in users.items()
        ],
    }


def password_hash(password: str, salt: bytes) -> str:
    """
    As RabbitMQ stores it: base64 of a salt of 4 bytes and the SHA-256 of salt and password.

    Source: https://www.rabbitmq.com/docs/passwords#computing-password-hash
    """
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
