"""Apache Kafka as a process of our own: one node that is its own controller (KRaft), from the jars of its release."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mqkit.testing.brokers.certificates import Certificates
from mqkit.testing.brokers.errors import BrokerAbsent, BrokerFailed
from mqkit.testing.brokers.process import HOST, BrokerProcess, ClientCertificates, ask, free_ports

VERSION = "4.3.0"
HOME = "MQKIT_TEST_KAFKA_HOME"
FORMAT = 60.0  # seconds that the format of its storage may take; it takes 0.6
PLAIN, SCRAM = "PLAIN", "SCRAM-SHA-256"
SCRAM_ROUNDS = 4096  # the fewest that Kafka takes

KafkaMechanism = Literal["PLAIN", "SCRAM-SHA-256"]

# A length, then: request 18 in version 0, its number, and no name of a client.
API_VERSIONS = struct.pack(">ihh4sh", 10, 18, 0, b"mqki", -1)
API_VERSIONS_ANSWER = b"mqki\0\0"  # after a length: the number of the request, and no error

_FETCHED = Path(__file__).parents[3] / "build" / "brokers"  # in a checkout of mqkit
_JAR = re.compile(r"kafka_2\.\d+-(\d+(?:\.\d+)+)\.jar")
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")  # a quick start, not a fast broker

# What one node needs to serve alone, and what would take seconds or a hundred files if left as it is.
# Source: https://kafka.apache.org/documentation/#brokerconfigs
ONE_NODE: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    # How long after a SIGKILL the controller refuses the same broker. With half of it, one that got no CPU was shut out now and then.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
}

# Kafka 4 logs through Log4j 2, Kafka 3 through its predecessor; each reads its own file. Without the 300 lines of all
# settings at each start, by the class that prints them in 4 and the one in 3.
_LOGGING = {
    "log4j2.properties": """
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %m (%c)%n
rootLogger = INFO, console
logger.settings.name = org.apache.kafka.common.config.AbstractConfig
logger.settings.level = WARN
""",
    "log4j.properties": """
log4j.rootLogger = INFO, console
log4j.logger.kafka.server.KafkaConfig = WARN
log4j.appender.console = org.apache.log4j.ConsoleAppender
log4j.appender.console.layout = org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern = %d %p %m (%c)%n
""",
}


class KafkaProcess(BrokerProcess):
    """
    Starts in 2 to 3 s, after a kill in 3 to 4; an orderly stop takes 0.5 s. Topics are not made by being used.

    The jars are those of the folder that the variable MQKIT_TEST_KAFKA_HOME names, an unpacked release, or what
    `tools/fetch-kafka` has put into the checkout.

    Args:
        version: Of the jars. If not said, what MQKIT_TEST_KAFKA_HOME has, or 4.3.0.
        users: Passwords by account; opens a listener for logins by SASL, see `url_of`.
        tls: Opens a listener with the server's certificate, see `tls_url`; with `users` a third one that has both.
        client_certificates: Whether clients of the listeners with TLS must show one.
        proxied: Opens a listener at `proxied_port` of which clients are told that it is at `proxy_port`: a `FaultProxy`
            between the two sees all of their connections, where otherwise they would go past it.
        config: Further keys of server.properties, which win over ours.
        start_timeout: Seconds.

    Raises:
        BrokerAbsent: Java is not installed, or the jars are not here.
    """

    kind = "kafka"

    def __init__(
        self,
        *,
        version: str = "",
        users: Mapping[str, str] | None = None,
        tls: Certificates | None = None,
        client_certificates: ClientCertificates = "optional",
        proxied: bool = False,
        config: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        java = shutil.which("java", path=_java_path())
        if java is None:
            raise BrokerAbsent("java is not installed (Debian: apt-get install default-jre-headless)")
        self.version, self.jars = _jars(version)
        self._java = java
        self._users = dict(users or {})
        self._tls = tls
        self._client_certificates = client_certificates
        self._proxied = proxied
        self._config = dict(config or {})
        super().__init__(start_timeout=start_timeout)

    def _take_ports(self) -> None:
        self.port, self.tls_port, self.sasl_port, self.sasl_tls_port, self._controller_port = free_ports(5)
        self.proxied_port, self.proxy_port = free_ports(2)

    @property
    def url(self) -> str:
        return f"kafka://{HOST}:{self.port}"

    @property
    def tls_url(self) -> str:
        """Of the listener with TLS; trust `tls.authority`."""
        return f"kafka+ssl://localhost:{self.tls_port}"

    def url_of(self, user: str, *, mechanism: KafkaMechanism = "SCRAM-SHA-256") -> str:
        """The listener for logins, as this user."""
        return f"kafka://{self._login(user)}@{HOST}:{self.sasl_port}?sasl_mechanism={mechanism}"

    def tls_url_of(self, user: str, *, mechanism: KafkaMechanism = "SCRAM-SHA-256") -> str:
        """The listener for logins over TLS, as this user; trust `tls.authority`."""
        return f"kafka+ssl://{self._login(user)}@localhost:{self.sasl_tls_port}?sasl_mechanism={mechanism}"

    def _login(self, user: str) -> str:
        return f"{quote(user, safe='')}:{quote(self._users[user], safe='')}"

    # -- how it starts -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for name, text in _LOGGING.items():
            (self.folder / name).write_text(text)
        config = self.folder / "server.properties"
        config.write_text(properties(self._settings()))
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(config)
        self._spawn([*self._command(), "kafka.Kafka", str(config)])

    def _command(self) -> list[str]:
        return [
            self._java,
            *_JVM,
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            f"-Dlog4j.configuration=file:{self.folder / 'log4j.properties'}",
            "-cp",
            f"{self.jars}/*",
        ]

    def _format(self, config: Path) -> None:
        """Give the storage its id and the accounts for SCRAM, which live in it; those for PLAIN are in the settings."""
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # Not as an argument of its own: one id of 64 begins with a hyphen.
        command = [
            *self._command(),
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster}",
            f"--config={config}",
        ]
        for user, password in self._users.items():
            command += ["--add-scram", f"{SCRAM}=[{scram_account(user, password, secrets.token_bytes(16))}]"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FORMAT, cwd=self.folder
            )
        except subprocess.TimeoutExpired as exc:
            raise BrokerFailed(f"kafka did not format its storage within {FORMAT:g} s") from exc
        if done.returncode != 0:
            raise BrokerFailed(
                f"kafka ended with status {done.returncode} while it formatted its storage\n"
                f"{done.stdout}{done.stderr}".rstrip()
            )

    def _settings(self) -> dict[str, str]:
        listeners = self._listeners()
        at = {name: f"{name}://{HOST}:{port}" for name, (_, _, port) in listeners.items()}
        told = {name: f"{name}://{host}:{port}" for name, (_, host, port) in listeners.items() if name != "CONTROLLER"}
        if self._proxied:
            told["PROXIED"] = f"PROXIED://{HOST}:{self.proxy_port}"
        settings = {
            **ONE_NODE,
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
            "inter.broker.listener.name": "OPEN",
            "listeners": ",".join(at.values()),
            "advertised.listeners": ",".join(told.values()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, (protocol, _, _) in listeners.items()
            ),
            "log.dirs": str(self.folder / "data"),
            "log.cleaner.dedupe.buffer.size": str(2 * 2**20),  # of 128 MiB
        }
        for name, (protocol, _, _) in listeners.items():
            if "SASL" in protocol:
                settings |= _under(f"listener.name.{name.lower()}", login_settings(self._users))
            if "SSL" in protocol and self._tls is not None:
                settings |= _under(f"listener.name.{name.lower()}", self._tls_settings(self._tls))
        return settings | self._config

    def _listeners(self) -> dict[str, tuple[str, str, int]]:
        """Protocol, host as clients are told, and port, by name."""
        listeners = {
            "CONTROLLER": ("PLAINTEXT", HOST, self._controller_port),
            "OPEN": ("PLAINTEXT", HOST, self.port),
        }
        if self._proxied:
            listeners["PROXIED"] = ("PLAINTEXT", HOST, self.proxied_port)
        if self._tls is not None:
            listeners["TLS"] = ("SSL", "localhost", self.tls_port)
        if self._users:
            listeners["LOGIN"] = ("SASL_PLAINTEXT", HOST, self.sasl_port)
        if self._tls is not None and self._users:
            listeners["TLS_LOGIN"] = ("SASL_SSL", "localhost", self.sasl_tls_port)
        return listeners

    def _tls_settings(self, tls: Certificates) -> dict[str, str]:
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": tls.server.read_text(),
            "ssl.keystore.key": tls.server_key.read_text(),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": tls.authority.read_text(),
            "ssl.client.auth": {"optional": "requested", "required": "required"}[self._client_certificates],
        }

    def _ready(self) -> bool:
        return kafka_answers(HOST, self.port)


def kafka_answers(host: str, port: int) -> bool:
    """
    Whether ApiVersions, the first request of every client, is answered; it may be asked before a login.

    Source: https://kafka.apache.org/protocol#The_Messages_ApiVersions
    """
    return API_VERSIONS_ANSWER in ask(host, port, API_VERSIONS)[:10]


def login_settings(users: Mapping[str, str]) -> dict[str, str]:
    """
    Of a listener with both mechanisms.

    Source: https://kafka.apache.org/documentation/#security_sasl
    """
    modules = "org.apache.kafka.common.security"
    accounts = " ".join(f"{_quoted(f'user_{name}')}={_quoted(password)}" for name, password in users.items())
    return {
        "sasl.enabled.mechanisms": f"{PLAIN},{SCRAM}",
        f"{PLAIN.lower()}.sasl.jaas.config": f"{modules}.plain.PlainLoginModule required {accounts};",
        f"{SCRAM.lower()}.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
    }


def scram_account(name: str, password: str, salt: bytes) -> str:
    """
    As StorageTool takes it: the hash, for what it reads of a password ends at a comma.

    Source: RFC 5802, section 3 (SaltedPassword); https://kafka.apache.org/documentation/#security_sasl_scram_credentials
    """
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ROUNDS)
    encoded = {"salt": base64.b64encode(salt).decode(), "saltedpassword": base64.b64encode(salted).decode()}
    return f'name="{name}",iterations={SCRAM_ROUNDS},' + ",".join(f'{key}="{value}"' for key, value in encoded.items())


def properties(settings: Mapping[str, str]) -> str:
    """As java.util.Properties reads it: its escapes are those of JSON."""
    return "".join(f"{name}={json.dumps(value)[1:-1]}\n" for name, value in settings.items())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _under(prefix: str, settings: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{name}": value for name, value in settings.items()}


def _java_path() -> str | None:
    """Where programs are looked for: as Java's own scripts do it, JAVA_HOME first."""
    home = os.environ.get("JAVA_HOME")
    return f"{home}/bin" if home else None


def _jars(version: str) -> tuple[str, Path]:
    """The version and the folder of the first jars that are here, of this version if one is asked for."""
    places = [Path(os.environ[HOME]).absolute()] if os.environ.get(HOME) else []
    for place in [*places, _FETCHED / f"kafka-{version or VERSION}"]:
        folder = place / "libs"
        for jar in folder.glob("kafka_2.*.jar"):
            found = _JAR.fullmatch(jar.name)
            if found and version in {"", found[1]}:
                return found[1], folder
    raise BrokerAbsent(
        f"the jars of Kafka {version or VERSION} are not here (tools/fetch-kafka of mqkit's repository fetches them; "
        f"{HOME} names an unpacked release)"
    )
