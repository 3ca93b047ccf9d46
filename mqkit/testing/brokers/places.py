"""Places: a part of a shared broker that belongs to one test, and is empty when the test begins."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

from mqkit._url import Url
from mqkit.errors import ExtraMissing
from mqkit.testing.brokers.aws import aws_client
from mqkit.testing.brokers.broker import Broker
from mqkit.testing.brokers.errors import BrokerFailed
from mqkit.testing.brokers.process import listens

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


@contextmanager
def topics_and_groups(broker: Broker, name: str) -> Iterator[str]:
    """
    A prefix for the names of all topics and groups of Kafka; those that begin with it are deleted at the end, which
    costs about 50 ms. Members that a group still has then, such as those of a process that was killed, are removed.

    Raises:
        ExtraMissing: kafka-python is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # its import warns, and a suite that makes warnings errors must not fail on that
        try:
            import kafka
            import kafka.errors
        except ModuleNotFoundError as exc:
            raise ExtraMissing("tests on Kafka need its driver: pip install 'mqkit[kafka]'") from exc
    prefix, url = f"{name}.", Url.parse(broker.url)
    yield _with_option(broker.url, "prefix", prefix)
    if not listens(url.host, url.port or 0):  # where the driver would try for long, and leave a thread behind
        raise BrokerFailed(f"kafka ({broker.provider}) is gone; the topics and groups {prefix}* are not deleted")
    try:
        with closing(kafka.KafkaAdminClient(**kafka_connection(url))) as admin:
            if topics := [topic for topic in admin.list_topics() if topic.startswith(prefix)]:
                admin.delete_topics(topics)
            _delete_groups(admin, prefix)
    except kafka.errors.KafkaError as exc:
        raise BrokerFailed(
            f"the topics and groups {prefix}* could not be deleted from kafka ({broker.provider}): {exc}"
        ) from exc


def _delete_groups(admin: Any, prefix: str) -> None:
    # Pyright brings stubs of kafka-python 2, which has no such name.
    from kafka.admin import MemberToRemove  # pyright: ignore[reportAttributeAccessIssue]

    groups = [group["group_id"] for group in admin.list_groups() if group["group_id"].startswith(prefix)]
    if not groups:
        return
    for group, described in admin.describe_groups(groups).items():
        admin.remove_group_members(group, [MemberToRemove(member["member_id"]) for member in described["members"]])
    # kafka-python 3.0.12 answers with the names of its error classes.
    outcomes = admin.delete_groups(groups)
    refused = {group: said for group, said in outcomes.items() if said not in {"OK", "GroupIdNotFoundError"}}
    if refused:
        raise BrokerFailed(f"groups could not be deleted from kafka: {refused}")


def kafka_connection(url: Url) -> dict[str, Any]:
    """What kafka-python calls the parts of a URL, with the options `sasl_mechanism`, `ca`, `cert` and `key`."""
    tls, login = url.scheme == "kafka+ssl", bool(url.username)
    milliseconds = int(API_TIMEOUT * 1000)
    return {
        "bootstrap_servers": f"{url.host}:{url.port}",
        "bootstrap_timeout_ms": milliseconds,
        "request_timeout_ms": milliseconds,
        "security_protocol": {
            (False, False): "PLAINTEXT",
            (True, False): "SSL",
            (False, True): "SASL_PLAINTEXT",
            (True, True): "SASL_SSL",
        }[tls, login],
        "sasl_mechanism": url.query.get("sasl_mechanism", "PLAIN") if login else None,
        "sasl_plain_username": url.username or None,
        "sasl_plain_password": url.password or None,
        "ssl_cafile": url.query.get("ca"),
        "ssl_certfile": url.query.get("cert"),
        "ssl_keyfile": url.query.get("key"),
    }


@contextmanager
def queues_and_topics(broker: Broker, name: str) -> Iterator[str]:
    """
    A prefix for the names of queues and topics in SQS and SNS; they are deleted at the end, with their subscriptions.

    Raises:
        ExtraMissing: boto3 is not installed.
    """
    sqs, sns = aws_client("sqs", broker.url), aws_client("sns", broker.url)
    from botocore.exceptions import BotoCoreError, ClientError

    prefix = f"{name}-"
    yield _with_option(broker.url, "prefix", prefix)
    try:
        # All pages first: what is deleted meanwhile could move others from one page to another.
        for page in list(sns.get_paginator("list_topics").paginate()):
            for topic in page.get("Topics", []):
                if topic["TopicArn"].rpartition(":")[2].startswith(prefix):
                    _delete_topic(sns, topic["TopicArn"])
        # Without a size of the page AWS lists a thousand and does not say that there are more.
        pages = sqs.get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 1000})
        for page in list(pages):
            for queue in page.get("QueueUrls", []):
                sqs.delete_queue(QueueUrl=queue)
    except (BotoCoreError, ClientError) as exc:
        raise BrokerFailed(f"{prefix}* could not be deleted from sqs and sns ({broker.provider}): {exc}") from exc
    finally:
        sqs.close()
        sns.close()


def _delete_topic(sns: Any, arn: str) -> None:
    """With its subscriptions, which AWS deletes too and LocalStack keeps."""
    for page in list(sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=arn)):
        for subscription in page.get("Subscriptions", []):
            if subscription["SubscriptionArn"].startswith("arn:"):  # one that waits to be confirmed has none
                sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
    sns.delete_topic(TopicArn=arn)


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
