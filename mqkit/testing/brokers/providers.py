"""Providers: who can supply a broker, tried in order; and the one that answers is what tests use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from mqkit._url import Url
from mqkit.errors import ConfigError
from mqkit.testing.brokers.broker import Broker, Running
from mqkit.testing.brokers.container import BrokerContainer
from mqkit.testing.brokers.errors import BrokerAbsent, BrokerFailed
from mqkit.testing.brokers.kinds import KINDS, Kind
from mqkit.testing.brokers.process import BrokerProcess

ANSWER = 15.0  # seconds a broker of the environment may take until it answers
POLL = 0.1


def provide(kind: str, provider: str = "auto") -> Running:
    """
    A broker of this kind: from the environment, a container or a process, whichever is there first.

    Args:
        kind: A name in `KINDS`.
        provider: `env`, `container` or `native` for one of them only, `auto` for all in this order.

    Raises:
        BrokerAbsent: None of them has it. Says what was tried and what would enable it.
        BrokerFailed: One has it, and it does not work. The next is not tried, which would hide that.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no kind of broker, of {', '.join(KINDS)}")
    reasons = []
    for name in ORDER[provider]:
        try:
            return PROVIDERS[name](KINDS[kind])
        except BrokerAbsent as exc:
            reasons.append(str(exc))
    raise BrokerAbsent(f"{kind}: {'; '.join(reasons)}")


class _OfEnvironment:
    """Somebody else's: it is not ended by us, and nobody shows us its log."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def log_tail(self, lines: int = 30) -> str:
        return ""

    def close(self) -> None:
        pass


class _OfProcess:
    def __init__(self, process: BrokerProcess, broker: Broker) -> None:
        self.broker = broker
        self._process = process

    def log_tail(self, lines: int = 30) -> str:
        return self._process.log_tail(lines)

    def close(self) -> None:
        self._process.close()


def from_environment(kind: Kind, environment: Mapping[str, str] = os.environ) -> Running:
    """The broker that `MQKIT_TEST_..._URL` names."""
    url = environment.get(kind.url_variable, "")
    if not url:
        raise BrokerAbsent(f"{kind.url_variable} is not set")
    parsed = Url.parse(url)  # shown in its place: without the password
    tls = (
        parsed.scheme == kind.tls_scheme and parsed.query.get("tls") != "false"
    )  # as a URL of SQS says that it is plain
    host, port = parsed.host or "localhost", parsed.port or (kind.tls_port if tls else kind.port)
    began = time.monotonic()
    # A service that is just starting is given a moment. Over TLS its certificate is the test's affair, not ours.
    while not tls and not kind.answers(host, port):
        if time.monotonic() - began > ANSWER:
            raise BrokerFailed(f"{kind.name}: {parsed} ({kind.url_variable}) does not answer within {ANSWER:g} s")
        time.sleep(POLL)
    return _OfEnvironment(
        Broker(
            kind=kind.name,
            url=_with_port(url, port),
            management_url=environment.get(kind.management_variable) or _management_beside(url, kind),
            provider=kind.url_variable,
            seconds=time.monotonic() - began,
        )
    )


def from_container(kind: Kind, environment: Mapping[str, str] = os.environ) -> Running:
    """A container of the official image, or of the one that `MQKIT_TEST_..._IMAGE` names."""
    return BrokerContainer(kind, environment.get(kind.image_variable) or kind.image)


def from_process(kind: Kind) -> Running:
    """A process of the program that is installed."""
    began = time.monotonic()
    try:
        process = kind.process()
    except BrokerAbsent as exc:
        raise BrokerAbsent(f"no process: {exc}") from exc
    try:
        process.start()
    except BaseException:
        process.close()
        raise
    broker = Broker(
        kind=kind.name,
        url=process.url,
        management_url=process.management_url,
        provider="process",
        seconds=time.monotonic() - began,
    )
    return _OfProcess(process, broker)


PROVIDERS: Mapping[str, Callable[[Kind], Running]] = {
    "env": from_environment,
    "container": from_container,
    "native": from_process,
}
ORDER: Mapping[str, tuple[str, ...]] = {
    "auto": ("env", "container", "native"),
    "env": ("env",),
    "container": ("container",),
    "native": ("native",),
}


def _with_port(url: str, port: int) -> str:
    """The URL with a port in it, which a proxy has to replace."""
    parts = urlsplit(url)
    return url if parts.port is not None else parts._replace(netloc=f"{parts.netloc}:{port}").geturl()


def _management_beside(url: str, kind: Kind) -> str | None:
    """Where the management API is unless somebody says otherwise: on the same host, with the same account."""
    if kind.management_port is None:
        return None
    credentials, at, _ = urlsplit(url).netloc.rpartition("@")
    return f"http://{credentials}{at}{urlsplit(url).hostname}:{kind.management_port}"
