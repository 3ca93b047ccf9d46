"""Places: a part of a shared broker that belongs to one test, and is empty when the test begins."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

from mqkit.errors import ExtraMissing
from mqkit.testing.brokers.broker import Broker
from mqkit.testing.brokers.errors import BrokerFailed

API_TIMEOUT = 10.0  # seconds for one call of the HTTP API


@contextmanager
def vhost(broker: Broker, name: str) -> Iterator[str]:
    """
    A vhost of RabbitMQ, deleted with everything in it; costs about 35 ms.

    Queues and exchanges have fixed names in mqkit, so nothing less than a vhost keeps two tests apart.

    Raises:
        BrokerFailed: There is no management API, or it refuses.
    """
    if broker.management_url is None:
        raise BrokerFailed(
            f"{broker.kind} from {broker.provider} has no management API, and each test needs a vhost of its own: "
            "enable the plugin rabbitmq_management and set MQKIT_TEST_RABBITMQ_MANAGEMENT_URL"
        )
    user = unquote(urlsplit(broker.url).username or "guest")
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    _management(broker, "PUT", f"/api/vhosts/{quote(name, safe='')}", {})
    try:
        _management(broker, "PUT", f"/api/permissions/{quote(name, safe='')}/{quote(user, safe='')}", everything)
        parts = urlsplit(broker.management_url)
        api = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        yield _with_option(
            urlunsplit(urlsplit(broker.url)._replace(path=f"/{quote(name, safe='')}")), "management", api
        )
    finally:
        _management(broker, "DELETE", f"/api/vhosts/{quote(name, safe='')}")


@contextmanager
def key_prefix(broker: Broker, name: str) -> Iterator[str]:
    """
    A prefix for every key in Redis; its keys are deleted at the end.

    It stands in braces, so that a cluster keeps the keys of one test on one node.

    Raises:
        ExtraMissing: redis-py is not installed.
    """
    try:
        import redis
    except ModuleNotFoundError as exc:
        raise ExtraMissing("tests on Redis need its driver: pip install 'mqkit[redis]'") from exc
    yield _with_option(broker.url, "prefix", f"{{{name}}}:")
    try:
        with redis.Redis.from_url(broker.url, socket_timeout=10.0, socket_connect_timeout=10.0) as client:
            # The name is unique, so it may stand anywhere in a key.
            for key in client.scan_iter(match=f"*{name}*", count=1000):
                client.unlink(key)
    except redis.RedisError as exc:
        raise BrokerFailed(f"the keys {name}:* could not be deleted from redis ({broker.provider}): {exc}") from exc


def _with_option(url: str, name: str, value: str) -> str:
    parts = urlsplit(url)
    option = urlencode({name: value})
    return urlunsplit(parts._replace(query=f"{parts.query}&{option}" if parts.query else option))


def _management(broker: Broker, verb: str, path: str, body: Mapping[str, object] | None = None) -> None:
    assert broker.management_url is not None
    parts = urlsplit(broker.management_url)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    request = urllib.request.Request(
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}{path}",
        method=verb,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode(),
            "Content-Type": "application/json",
        },
    )
    began = time.monotonic()
    try:
        urllib.request.urlopen(request, timeout=API_TIMEOUT).close()
    except urllib.error.HTTPError as exc:
        exc.close()
        raise BrokerFailed(f"the management API of rabbitmq answers {exc.code} to {verb} {path} as {user!r}") from exc
    except OSError as exc:
        took = time.monotonic() - began
        raise BrokerFailed(
            f"the management API of rabbitmq at {parts.hostname}:{parts.port} does not answer {verb} {path} "
            f"({exc}, after {took:.1f} s); is the plugin rabbitmq_management enabled?"
        ) from exc
