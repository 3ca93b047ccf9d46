"""
The calls that carry messages, made of botocore's parts and without most of what it does for each of them.

How they have to look is asked of botocore, once. Where its answer is new to us, its own client makes them.

Private names of botocore used here: `_endpoint` of a client and its `http_session`, `_request_signer` and its
`get_auth_instance`; those in `_WRAPPED` are only looked at.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import time
import types
import uuid
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from botocore import UNSIGNED, auth, awsrequest, parsers
from botocore.client import BaseClient, ClientCreator
from botocore.credentials import Credentials
from botocore.endpoint import Endpoint
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from mqkit.backends.sqs import replies

log = logging.getLogger("mqkit")

REQUEST_ID = "x-amzn-requestid"  # a header of every answer of SQS and SNS, and of no proxy

_QUEUE = "https://queue.invalid/1/queue"
_SAMPLES: dict[str, dict[str, Any]] = {
    "send_message_batch": {
        "QueueUrl": _QUEUE,
        "Entries": [
            {
                "Id": "0",
                "MessageBody": 'a "b" <c> \u00e4 \U0001f600',
                "MessageAttributes": {"d": {"DataType": "String", "StringValue": "e"}},
                "DelaySeconds": 1,
                "MessageGroupId": "f",
                "MessageDeduplicationId": "g",
            }
        ],
    },
    "receive_message": {
        "QueueUrl": _QUEUE,
        "MaxNumberOfMessages": 10,
        "WaitTimeSeconds": 20,
        "VisibilityTimeout": 30,
        "MessageSystemAttributeNames": ["SentTimestamp"],
        "MessageAttributeNames": ["All"],
    },
    "delete_message_batch": {"QueueUrl": _QUEUE, "Entries": [{"Id": "0", "ReceiptHandle": "a"}]},
    "change_message_visibility_batch": {
        "QueueUrl": _QUEUE,
        "Entries": [{"Id": "0", "ReceiptHandle": "a", "VisibilityTimeout": 0}],
    },
}

# What botocore's requests have, signed and not. Another one may differ from call to call.
_SIGNED = ("X-Amz-Target", "Content-Type", "x-amzn-query-mode")
_UNSIGNED = ("User-Agent", "amz-sdk-request")
_ANEW = ("amz-sdk-invocation-id", "Content-Length")

# By which tracers see calls: OpenTelemetry, X-Ray, Datadog, Elastic, New Relic and Sentry wrap one or two of these.
_WRAPPED: tuple[tuple[type[Any], str], ...] = (
    (BaseClient, "__init__"),
    (BaseClient, "_make_api_call"),
    (ClientCreator, "_create_api_method"),
    (Endpoint, "make_request"),
    (Endpoint, "prepare_request"),
)

_NOBODY = Credentials("key", "secret", "token").get_frozen_credentials()

encode = msgspec.json.Encoder().encode


class Form(NamedTuple):
    """What is the same in all calls of one operation."""

    url: str
    path: str
    headers: Mapping[str, str]
    signed: Mapping[str, str]  # those under the signature, in lower case
    region: str
    service: str

    @property
    def operation(self) -> str:
        """As AWS names it."""
        return self.headers["X-Amz-Target"].rpartition(".")[2]

    def request(self, credentials: Any, body: bytes, stamp: str) -> Any:
        """
        What the HTTP session of botocore sends.

        Args:
            credentials: Frozen ones.
            stamp: The moment, as `20260131T235959Z`.
        """
        headers = {**self.headers, "X-Amz-Date": stamp}
        if credentials.token:
            headers["X-Amz-Security-Token"] = credentials.token
        headers["Authorization"] = self._authorization(credentials, body, stamp)
        headers["amz-sdk-invocation-id"] = str(uuid.uuid4())
        headers["Content-Length"] = str(len(body))
        return awsrequest.AWSPreparedRequest("POST", self.url, headers, body, stream_output=False)

    def _authorization(self, credentials: Any, body: bytes, stamp: str) -> str:
        """Source: AWS General Reference, Signature Version 4."""
        covered = {**self.signed, "x-amz-date": stamp}
        if credentials.token:
            covered["x-amz-security-token"] = credentials.token
        order = sorted(covered)
        lines, names = "".join(f"{name}:{covered[name]}\n" for name in order), ";".join(order)
        request = f"POST\n{self.path}\n\n{lines}\n{names}\n{sha256(body).hexdigest()}"
        scope = f"{stamp[:8]}/{self.region}/{self.service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        key = f"AWS4{credentials.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        return f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"


class Direct:
    """One operation of one client, answered as the client's own method. Any thread."""

    def __init__(self, native: Any, operation: str, form: Form) -> None:
        self._native = native
        self._operation = operation
        self._form = form
        self._signer = native._request_signer
        self._session = native._endpoint.http_session
        self._refusals = parsers.create_parser("json")

    def check(self) -> None:
        """Raises where a part of botocore that a call needs is missing."""
        for part in (self._signer.get_auth_instance, self._session.send, self._refusals.parse):
            if not callable(part):
                raise TypeError(f"{part!r} is no method")

    def __call__(self, body: bytes) -> dict[str, Any]:
        """With arguments as `encode` makes them. Raises what is in `errors.RAISED`."""
        form = self._form
        credentials = self._signer.get_auth_instance(form.service, form.region, "v4").credentials
        if credentials is None:
            raise NoCredentialsError
        answer = self._session.send(form.request(credentials, body, _stamp()))
        if answer.status_code >= 300:
            raise self._refusal(answer)
        reply: dict[str, Any] = {}
        if REQUEST_ID in answer.headers:
            try:
                reply = replies.read(self._operation, answer.content or b"{}")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                raise parsers.ResponseParserError(f"the answer cannot be read: {exc}") from exc
        reply["ResponseMetadata"] = {"HTTPHeaders": answer.headers}
        return reply

    def _refusal(self, answer: Any) -> ClientError:
        whole = {"status_code": answer.status_code, "headers": answer.headers, "body": answer.content}
        parsed = self._refusals.parse(whole, None)
        error = parsed.get("Error", {})
        kind: type[ClientError] = self._native.exceptions.from_code(error.get("QueryErrorCode") or error.get("Code"))
        return kind(parsed, self._form.operation)


def is_wrapped() -> bool:
    """Has somebody put himself between botocore and its callers? His are all calls then."""
    return not all(_is_own(*method) for method in _WRAPPED)


def _is_own(kind: type[Any], name: str) -> bool:
    method = kind.__dict__.get(name)
    # botocore decorates some itself. What wraps one may have taken over its name and module, or even pretend to be a function.
    return type(method) is types.FunctionType and method.__globals__["__name__"].startswith("botocore.")


def forms(native: Any) -> dict[str, Form]:
    """
    By operation, as botocore would make its calls; empty where they have to go its own way.

    Args:
        native: A client of SQS that nobody uses yet.
    """
    # Lambda finds loops by a header that botocore makes anew for each call.
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ or is_wrapped():
        return {}
    try:
        found = {operation: _form(native, operation) for operation in _SAMPLES}
    except BotoCoreError:
        return {}  # its own way says what is wrong
    except Exception as exc:  # noqa: BLE001  whatever it stumbled over, a way is left
        log.warning("driver.changed", extra={"driver": "botocore", "error": repr(exc)})
        return {}
    return {operation: form for operation, form in found.items() if form is not None}


def _form(native: Any, operation: str) -> Form | None:
    """
    None: it is signed in another way or not at all, or somebody listens.

    Raises:
        Exception: What is made here would not be what botocore makes, or a part of it is missing.
    """
    sample = _SAMPLES[operation]
    name = native.meta.method_to_api_mapping[operation]
    theirs, signing = _asked(native, operation, name, sample)
    # Whoever listens for what is about to be sent may stand in for AWS.
    if signing["signature_version"] != "v4" or native.meta.events.emit(_sending(name), request=theirs):
        return None
    if unknown := {str(header) for header in theirs.headers} - {*_SIGNED, *_UNSIGNED, *_ANEW}:
        raise ValueError(f"{name} has headers that are not known here: {sorted(unknown)}")
    parts = urlsplit(theirs.url)
    if theirs.method != "POST" or parts.query or parts.hostname == urlsplit(_QUEUE).hostname:
        raise ValueError(f"{name} goes another way: {theirs.method} {parts.hostname}")
    if json.loads(theirs.body) != json.loads(encode(sample)):
        raise ValueError(f"{name} has another body")

    headers = {header: _text(theirs.headers[header]) for header in (*_SIGNED, *_UNSIGNED)}
    request = awsrequest.AWSRequest("POST", theirs.url, {header: headers[header] for header in _SIGNED}, theirs.body)
    signer = auth.SigV4Auth(_NOBODY, signing["signing_name"], signing["region_name"])
    signed = dict(signer.headers_to_sign(request).items())
    form = Form(theirs.url, parts.path or "/", headers, signed, signing["region_name"], signing["signing_name"])
    signer.add_auth(request)
    ours = form.request(_NOBODY, theirs.body, request.headers["X-Amz-Date"])
    if ours.headers["Authorization"] != request.headers["Authorization"]:
        raise ValueError(f"{name} has another signature")
    Direct(native, operation, form).check()
    return form


class _Made(Exception):
    """Ends a call before anything is sent."""

    def __init__(self, request: Any) -> None:
        self.request = request


def _asked(native: Any, operation: str, name: str, sample: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The request that botocore makes, without a signature, which might ask the network for credentials, and how it signs."""
    events, signing = native.meta.events, dict[str, Any]()
    choosing = f"choose-signer.sqs.{name}"

    def choose(event_name: str, **given: Any) -> Any:
        events.unregister(choosing, choose)
        _, chosen = events.emit_until_response(event_name, **given)
        signing.update(given, signature_version=chosen or given["signature_version"])
        return UNSIGNED

    def stop(request: Any, **_: Any) -> None:
        raise _Made(request)

    events.register_first(choosing, choose)
    events.register_first(_sending(name), stop)
    try:
        getattr(native, operation)(**sample)
    except _Made as made:
        return made.request, signing
    finally:
        events.unregister(choosing, choose)
        events.unregister(_sending(name), stop)
    raise ValueError(f"{name} is sent in another way")


def _sending(name: str) -> str:
    return f"before-send.sqs.{name}"


def _stamp() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
