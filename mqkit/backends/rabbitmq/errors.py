"""pika's exceptions and the server's refusals as errors of mqkit."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from pika import exceptions as amqp
from pika.adapters.utils import connection_workflow as flow

from mqkit.errors import (
    ConfigError,
    Denied,
    Lost,
    MessageTooLarge,
    MqkitError,
    NotFound,
    PublishFailed,
    TopologyMismatch,
    Unavailable,
    Unencodable,
    Unroutable,
)

INTERNAL = 541  # a server's error of its own

Row = tuple[type[MqkitError], str]

# Looked up along the class's own bases, so that a subclass which has a row of its own wins.
ERRORS: dict[type[BaseException], Row] = {
    amqp.AMQPError: (Unavailable, "failed"),
    amqp.AMQPConnectionError: (Unavailable, "does not accept a connection"),
    amqp.ConnectionOpenAborted: (Unavailable, "broke off while connecting"),
    amqp.StreamLostError: (Lost, "closed the connection"),
    amqp.IncompatibleProtocolError: (Unavailable, "does not speak AMQP there, or is still starting"),
    amqp.AuthenticationError: (Denied, "refuses these credentials; check user and password"),
    amqp.ProbableAuthenticationError: (Denied, "refuses these credentials; check user and password"),
    amqp.ProbableAccessDeniedError: (Denied, "does not let this user into this vhost"),
    amqp.NoFreeChannels: (Unavailable, "has no free channel on this connection"),
    amqp.ConnectionWrongStateError: (Lost, "has no connection to us any more"),
    amqp.ConnectionClosed: (Lost, "closed the connection"),
    amqp.ConnectionClosedByBroker: (Lost, "closed the connection"),
    amqp.ConnectionClosedByClient: (Lost, "has no connection to us any more"),
    amqp.ConnectionBlockedTimeout: (Lost, "blocked us for too long"),
    amqp.AMQPHeartbeatTimeout: (Lost, "is silent; it sent no heartbeat"),
    amqp.AMQPChannelError: (Lost, "refused something on a channel"),
    amqp.ChannelWrongStateError: (Lost, "has closed the channel"),
    amqp.ChannelClosed: (Lost, "closed the channel"),
    amqp.ChannelClosedByBroker: (Lost, "closed the channel"),
    amqp.ChannelClosedByClient: (Lost, "has no channel to us any more"),
    amqp.DuplicateConsumerTag: (Lost, "already knows this consumer"),
    amqp.ConsumerCancelled: (Lost, "cancelled the consumer"),
    amqp.UnroutableError: (Unroutable, "has nobody who would receive it"),
    amqp.NackError: (PublishFailed, "refused a message"),
    amqp.InvalidChannelNumber: (Lost, "was asked for a channel that cannot be"),
    amqp.ProtocolSyntaxError: (Lost, "sent what is no AMQP"),
    amqp.UnexpectedFrameError: (Lost, "sent what is no AMQP"),
    amqp.ProtocolVersionMismatch: (ConfigError, "speaks another version of AMQP; mqkit needs 0-9-1"),
    amqp.BodyTooLongError: (Lost, "sent more than it had announced"),
    amqp.InvalidFrameError: (Lost, "sent what is no AMQP"),
    amqp.InvalidFieldTypeException: (Lost, "sent a header of an unknown type"),
    amqp.UnsupportedAMQPFieldException: (Unencodable, "cannot be sent a value of this type"),
    amqp.MethodNotImplemented: (Lost, "sent a method that pika does not know"),
    amqp.ChannelError: (Lost, "has closed the channel"),
    amqp.ReentrancyError: (Lost, "was asked within its own answer"),
    amqp.ShortStringTooLong: (Unencodable, "takes at most 255 bytes of a name or routing key"),
    amqp.DuplicateGetOkCallback: (Lost, "was asked twice at once"),
    flow.AMQPConnectorException: (Unavailable, "does not accept a connection"),
    flow.AMQPConnectorStackTimeout: (Unavailable, "did not answer in time; is it RabbitMQ that listens there?"),
    flow.AMQPConnectorAborted: (Unavailable, "did not answer in time"),
    flow.AMQPConnectorPhaseErrorBase: (Unavailable, "does not accept a connection"),
    flow.AMQPConnectorSocketConnectError: (Unavailable, "is not reachable"),
    flow.AMQPConnectorTransportSetupError: (Unavailable, "does not complete the TLS handshake"),
    flow.AMQPConnectorAMQPHandshakeError: (Unavailable, "does not complete the AMQP handshake"),
    flow.AMQPConnectionWorkflowAborted: (Unavailable, "did not answer in time"),
    flow.AMQPConnectionWorkflowFailed: (Unavailable, "does not accept a connection"),
    flow.AMQPConnectorWrongState: (Unavailable, "does not accept a connection"),
    flow.AMQPConnectionWorkflowWrongState: (Unavailable, "does not accept a connection"),
    socket.gaierror: (Unavailable, "has a host name that cannot be resolved"),
    ssl.SSLCertVerificationError: (Denied, "has a certificate that we do not trust; check ca= and the host name"),
    ssl.SSLError: (Unavailable, "broke off the TLS handshake"),
    TimeoutError: (Unavailable, "did not answer in time"),
    OSError: (Unavailable, "is not reachable"),
}

# Reply codes that close a channel or the connection, see rabbitmq.com/docs/channels#error-handling
CODES: dict[int, Row] = {
    311: (MessageTooLarge, "does not take a body of this size"),
    403: (Denied, "does not permit this"),
    404: (NotFound, "does not have this"),
    405: (Unavailable, "keeps this for another connection"),
    406: (TopologyMismatch, "has this with other options"),
    501: (Unencodable, "cannot read what we sent; headers may be too large"),
    530: (Denied, "does not let this user into this vhost"),
    540: (ConfigError, "has no such feature"),
}

# Texts of OpenSSL inside of other errors, whose classes are too general to tell these apart.
TLS_TEXTS: dict[str, Row] = {
    "CERTIFICATE_VERIFY_FAILED": ERRORS[ssl.SSLCertVerificationError],
    "WRONG_VERSION_NUMBER": (ConfigError, "answers without TLS there; write amqp:// or the port of its TLS listener"),
    "CERTIFICATE_REQUIRED": (Denied, "asks for a client certificate; give cert= and key="),
    "UNKNOWN_CA": (Denied, "does not trust our client certificate"),
    "BAD_CERTIFICATE": (Denied, "does not trust our client certificate"),
    "HANDSHAKE_FAILURE": (Denied, "accepts none of our TLS settings; it may ask for a client certificate"),
}


_GUESSES = (amqp.ProbableAuthenticationError, amqp.ProbableAccessDeniedError)


def translate(exc: BaseException, server: object) -> MqkitError:
    """
    The typed error for what pika raised or reported.

    Args:
        server: Named in the text.
    """
    every = list(nested(exc))
    found = [_row(one) for one in every]
    texts = " ".join(f"{type(one).__name__} {one}" for one in every)
    for text, row in TLS_TEXTS.items():
        if text in texts.upper():
            return _error(row, server, every)
    if any(isinstance(one, amqp.ProbableAccessDeniedError) for one in every) and "not found" in texts:
        return _error((NotFound, "does not have this vhost; create it first"), server, every)
    # pika guesses these from any end of a connection that comes at this point; a server that refuses says so, with a code.
    if any(isinstance(one, _GUESSES) for one in every) and (
        "connection limit" in texts or not any(code in texts for code in ("(403)", "(530)"))
    ):
        return _error((Unavailable, "broke off while letting us in"), server, every)
    reset = "ConnectionResetError" in texts or "reset by peer" in texts
    if reset and any(isinstance(one, amqp.IncompatibleProtocolError) for one in every):
        # Before a word is said. A load balancer does so while nothing is up behind it, hence no ConfigError.
        words = (
            "closes connections at once: it may be down behind a load balancer, or this its TLS port (write amqps://)"
        )
        return _error((Unavailable, words), server, every)
    final = [row for row in found if row is not None and not row[0].retryable and row[0] is not MqkitError]
    known = [row for row in found if row is not None]
    return _error((final or known or [(Unavailable, "failed")])[0], server, every)


def too_large(exc: BaseException) -> int | None:
    """The limit in bytes that one message of a channel was over, where that is why the server closed it (406)."""
    found = re.search(r"larger than (?:configured )?max size (\d+)", str(getattr(exc, "reply_text", "")))
    return int(found[1]) if found else None


def refusal(exc: BaseException, what: str) -> MqkitError:
    """The typed error for a channel that the server closed because of one request; `what` names that."""
    limit = too_large(exc)
    if limit is not None:
        return MessageTooLarge(f"{what}: one message was larger than the {limit} bytes that RabbitMQ takes")
    code = getattr(exc, "reply_code", 0)
    if isinstance(exc, amqp.ChannelClosedByBroker) and code in CODES:
        kind, words = CODES[code]
        return kind(f"{what}: RabbitMQ {words} ({exc.reply_text})")
    return translate(exc, what)


def is_internal(exc: BaseException) -> bool:
    """Has the server ended a connection for an error of its own?"""
    return any(isinstance(one, amqp.ConnectionClosed) and one.reply_code == INTERNAL for one in nested(exc))


def nested(exc: BaseException) -> Iterator[BaseException]:
    """An exception and everything inside of it: pika puts causes into attributes and arguments."""
    seen: set[int] = set()
    waiting: list[object] = [exc]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [*getattr(one, "exceptions", ()), getattr(one, "exception", None), *one.args, one.__cause__]


def _row(exc: BaseException) -> Row | None:
    if isinstance(exc, amqp.ConnectionClosed | amqp.ChannelClosed) and exc.reply_code in CODES:
        return CODES[exc.reply_code]
    return next((ERRORS[cls] for cls in type(exc).__mro__ if cls in ERRORS), None)


def _error(row: Row, server: object, every: list[BaseException]) -> MqkitError:
    kind, words = row
    detail = str(every[-1]) or type(every[-1]).__name__
    error = kind(f"{server} {words} ({detail})")
    error.__cause__ = every[0]
    return error
