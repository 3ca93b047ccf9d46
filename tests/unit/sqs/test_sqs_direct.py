"""What mqkit sends to SQS by itself beside what botocore would send, and when it leaves it to botocore; nothing is sent."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import botocore.client
import botocore.endpoint
import pytest
from botocore import UNSIGNED, auth, parsers
from botocore.config import Config
from botocore.session import Session

from mqkit import Bus
from mqkit._url import Url, parse_options
from mqkit.backends.sqs import direct
from mqkit.backends.sqs.clients import Clients
from mqkit.backends.sqs.direct import Form, forms, is_wrapped
from mqkit.backends.sqs.options import Endpoint, SqsOptions
from mqkit.errors import ConfigError, Unavailable

QUEUE = "https://sqs.eu-central-1.amazonaws.com/123456789012/words"
CALLS: dict[str, dict[str, Any]] = {
    "send_message_batch": {
        "QueueUrl": QUEUE,
        "Entries": [
            {"Id": str(number), "MessageBody": body, "MessageAttributes": {}, "DelaySeconds": number}
            for number, body in enumerate(["plain", 'quoted "\\" \t\r\n', "\u00e4 \u2028 \U0001f600 <&>", "x" * 5000])
        ],
    },
    "receive_message": {"QueueUrl": QUEUE, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]},
    "delete_message_batch": {"QueueUrl": QUEUE, "Entries": [{"Id": "0", "ReceiptHandle": "a+/="}]},
    "change_message_visibility_batch": {
        "QueueUrl": QUEUE,
        "Entries": [{"Id": "0", "ReceiptHandle": "a+/=", "VisibilityTimeout": 0}],
    },
}


class Caught(Exception):
    def __init__(self, request: Any) -> None:
        self.request = request


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS", "AWS_LAMBDA_FUNCTION_NAME"):
        monkeypatch.delenv(name, raising=False)


def client(region: str = "eu-central-1", **arguments: Any) -> Any:
    config = Config(retries={"mode": "standard", "total_max_attempts": 1})
    return Session().create_client("sqs", region_name=region, **{"config": config, **arguments})


def sent_by_botocore(native: Any, operation: str) -> Any:
    """The signed request of a call that is stopped before the network."""
    event = f"before-send.sqs.{native.meta.method_to_api_mapping[operation]}"

    def stop(request: Any, **_: Any) -> None:
        raise Caught(request)

    native.meta.events.register(event, stop)
    try:
        with pytest.raises(Caught) as caught:
            getattr(native, operation)(**CALLS[operation])
    finally:
        native.meta.events.unregister(event, stop)
    return caught.value.request


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize(
    ("region", "environment"),
    [
        ("eu-central-1", {}),
        ("cn-north-1", {}),
        ("us-gov-west-1", {"AWS_USE_FIPS_ENDPOINT": "true"}),
        ("us-east-1", {"AWS_USE_DUALSTACK_ENDPOINT": "true"}),
        ("eu-central-1", {"AWS_ENDPOINT_URL": "http://localhost:4566"}),
        ("eu-central-1", {"AWS_ENDPOINT_URL_SQS": "https://[::1]:443/below/this"}),
        ("eu-central-1", {"AWS_SESSION_TOKEN": "a/session+token=="}),
    ],
)
def test_requests_are_those_of_botocore(
    monkeypatch: pytest.MonkeyPatch, region: str, environment: dict[str, str], operation: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    native = client(region)
    form = forms(native)[operation]

    theirs = sent_by_botocore(native, operation)
    headers = {
        str(name): value.decode() if isinstance(value, bytes) else value for name, value in theirs.headers.items()
    }
    frozen = native._request_signer._credentials.get_frozen_credentials()
    ours = form.request(frozen, theirs.body, headers["X-Amz-Date"])

    assert (ours.method, ours.url, ours.body) == (theirs.method, theirs.url, theirs.body)
    for anew in ("amz-sdk-invocation-id", "User-Agent"):  # the latter names what the client has been used for so far
        assert len(ours.headers.pop(anew)) > 30
        assert headers.pop(anew)
    assert ours.headers == headers
    assert ("X-Amz-Security-Token" in ours.headers) == ("AWS_SESSION_TOKEN" in environment)


@pytest.mark.parametrize("operation", CALLS)
def test_bodies_say_what_those_of_botocore_say(operation: str) -> None:
    assert json.loads(direct.encode(CALLS[operation])) == json.loads(sent_by_botocore(client(), operation).body)


def test_asking_botocore_needs_no_credentials_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    native = client()
    before = sent_by_botocore(native, "receive_message").headers.keys()
    monkeypatch.setattr(type(native._request_signer), "get_auth_instance", pytest.fail)

    assert forms(native).keys() == CALLS.keys()

    monkeypatch.undo()
    credentials_of = native._request_signer._credentials
    assert credentials_of.access_key
    assert sent_by_botocore(native, "receive_message").headers.keys() == before


def _in_lambda(monkeypatch: pytest.MonkeyPatch, native: Any) -> Any:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "function")
    return native


def _listened_to(monkeypatch: pytest.MonkeyPatch, native: Any) -> Any:
    native.meta.events.register("before-send", lambda **_: None)
    return native


def _unsigned(monkeypatch: pytest.MonkeyPatch, native: Any) -> Any:
    return client(config=Config(signature_version=UNSIGNED))


@pytest.mark.parametrize("chosen", [_in_lambda, _listened_to, _unsigned])
def test_where_a_user_has_chosen_otherwise_calls_are_left_to_botocore_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chosen: Callable[..., Any]
) -> None:
    native = chosen(monkeypatch, client())

    with caplog.at_level(logging.INFO, "mqkit"):
        assert forms(native) == {}
    assert "driver.changed" not in [record.message for record in caplog.records]


WRAPPED = [
    (botocore.client.BaseClient, "__init__"),  # Sentry
    (botocore.client.BaseClient, "_make_api_call"),  # OpenTelemetry, Datadog, X-Ray, Elastic
    (botocore.client.ClientCreator, "_create_api_method"),  # New Relic
    (botocore.endpoint.Endpoint, "make_request"),
    (botocore.endpoint.Endpoint, "prepare_request"),  # OpenTelemetry, X-Ray
]


def wrap(monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str, seen: list[str]) -> None:
    """As tracers do, who take over names and documentation of what they wrap."""
    original = kind.__dict__[name]

    @functools.wraps(original)
    def traced(self: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(name)
        if name != "__init__":
            return original(self, *arguments, **named)
        original(self, *arguments, **named)
        self.meta.events.register("request-created", lambda **_: seen.append("request"))
        return None

    monkeypatch.setattr(kind, name, traced)


class Pretender:
    """Says of itself what the function says that it wraps, as proxies of wrapt do."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_wrapped"), name)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return functools.partial(self, instance)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return object.__getattribute__(self, "_wrapped")(*arguments, **named)


@pytest.mark.parametrize(("kind", "name"), WRAPPED)
def test_what_pretends_to_be_a_method_of_botocore_is_none(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str
) -> None:
    original = kind.__dict__[name]
    assert isinstance(Pretender(original), type(original))
    assert not is_wrapped()

    monkeypatch.setattr(kind, name, Pretender(original))

    assert is_wrapped()
    assert clients().make("sqs", connections=1)._direct == {}


def clients() -> Clients:
    url = Url.parse("sqs://key:secret@127.0.0.1:9/?region=eu-central-1&tls=false&timeout=1")
    options = parse_options(SqsOptions, url)
    return Clients(Endpoint.of(url, options), options)


@pytest.mark.parametrize(("kind", "name"), WRAPPED)
def test_who_wraps_calls_of_botocore_sees_them_all_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[Any], name: str
) -> None:
    seen: list[str] = []
    wrap(monkeypatch, kind, name, seen)
    with caplog.at_level(logging.INFO, "mqkit"):
        made = clients().make("sqs", connections=1)
    assert "request" not in seen
    assert "driver.changed" not in [record.message for record in caplog.records]

    seen.clear()
    with pytest.raises(Unavailable):
        made.call("receive_message", "", QueueUrl=QUEUE)
    assert seen or name == "_create_api_method"  # which is called when a client is made
    assert not made._direct


@pytest.mark.parametrize("name", ["_make_api_call", "make_request", "prepare_request"])
def test_who_wraps_them_later_does_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    [kind] = [kind for kind, method in WRAPPED if method == name]
    made = clients().make("sqs", connections=1)
    assert made._direct.keys() == CALLS.keys()
    seen: list[str] = []
    wrap(monkeypatch, kind, name, seen)

    with pytest.raises(Unavailable):
        made.call("receive_message", "", QueueUrl=QUEUE)
    assert seen == [name]


def test_what_we_do_wrong_is_no_answer_of_aws() -> None:
    made = clients().make("sqs", connections=1)
    with pytest.raises(TypeError):
        made.call("send_message_batch", "", QueueUrl=QUEUE, Entries=[{"Id": "0", "DelaySeconds": object()}])
    with pytest.raises(AttributeError):
        made.call("send_mesage_batch", "", QueueUrl=QUEUE, Entries=[])


def _without_its_session(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    del native._endpoint.http_session


def _without_its_signer(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    monkeypatch.delattr(type(native._request_signer), "get_auth_instance")


def _without_parsers(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    monkeypatch.delattr(parsers, "create_parser")


def _without_the_algorithm(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    monkeypatch.delattr(auth, "SigV4Auth")


def _with_another_header(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    native.meta.events.register("before-call.sqs", lambda params, **_: params["headers"].update({"X-New": "1"}))


def _with_another_signature(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    monkeypatch.setattr(Form, "_authorization", lambda *_: "AWS4-HMAC-SHA256 Signature=of another kind")


def _with_another_body(monkeypatch: pytest.MonkeyPatch, native: Any) -> None:
    native.meta.events.register("before-parameter-build.sqs", lambda params, **_: params.update(QueueUrl="another"))


@pytest.mark.parametrize(
    "change",
    [
        _without_its_session,
        _without_its_signer,
        _without_parsers,
        _without_the_algorithm,
        _with_another_header,
        _with_another_signature,
        _with_another_body,
    ],
)
def test_where_botocore_has_changed_calls_are_left_to_it_and_that_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Callable[..., None]
) -> None:
    native = client()
    change(monkeypatch, native)

    with caplog.at_level(logging.INFO, "mqkit"):
        assert forms(native) == {}

    [record] = [record for record in caplog.records if record.message == "driver.changed"]
    assert record.levelname == "WARNING"
    assert "wJalr" not in str(vars(record))


def test_an_address_of_the_environment_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "nonsense")
    bus = Bus("sqs://?region=eu-central-1")

    with pytest.raises(ConfigError, match="Invalid endpoint: nonsense; see what the environment"):
        bus.open(timeout=30.0)
