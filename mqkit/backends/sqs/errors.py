"""Exceptions of botocore, and error codes of SQS and SNS, as errors of mqkit."""

from __future__ import annotations

from botocore import exceptions as native
from botocore.parsers import ResponseParserError

from mqkit.errors import (
    ConfigError,
    Denied,
    LeaseLost,
    Lost,
    MessageTooLarge,
    MqkitError,
    NotFound,
    PublishFailed,
    PublishUnknown,
    TopologyMismatch,
    Unavailable,
    Unencodable,
)

# What botocore raises, and what it stumbles with over an answer that is none of AWS, or over the user's configuration.
RAISED = (
    native.BotoCoreError,
    native.ClientError,
    ResponseParserError,
    OSError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

# `Unavailable`: the call had no effect. `Lost`: nobody knows. The first match counts, so subclasses stand above their bases.
ERRORS: tuple[tuple[type[BaseException], type[MqkitError], str], ...] = (
    (native.EndpointConnectionError, Unavailable, "cannot be reached"),
    (native.ConnectTimeoutError, Unavailable, "cannot be reached"),
    (native.ProxyConnectionError, Unavailable, "cannot be reached through the proxy"),
    (native.SSLError, Denied, "is not trusted, or does not trust us"),
    (native.ReadTimeoutError, Lost, "has not answered in time"),
    (native.ConnectionClosedError, Lost, "closed the connection"),
    (native.HTTPClientError, Lost, "broke the connection"),
    (native.ConnectionError, Lost, "broke the connection"),
    (
        native.NoCredentialsError,
        ConfigError,
        "needs credentials: write sqs://key:secret@..., or configure AWS's own chain",
    ),
    (native.PartialCredentialsError, ConfigError, "needs a key and a secret; only one of them is configured"),
    (native.CredentialRetrievalError, Unavailable, "cannot be asked: the credentials could not be fetched"),
    (native.TokenRetrievalError, Denied, "cannot be asked: the login has run out"),
    (native.ProfileNotFound, ConfigError, "cannot be asked: AWS_PROFILE names no profile"),
    (native.NoRegionError, ConfigError, "needs a region: write sqs://?region=..., or set AWS_DEFAULT_REGION"),
    (native.InvalidRegionError, ConfigError, "knows no such region"),
    (native.ParamValidationError, ConfigError, "takes no such arguments"),
    (native.BotoCoreError, Lost, "has a problem"),
    (ResponseParserError, Lost, "answered with something that is no answer of AWS"),
    (OSError, Lost, "broke the connection"),
)

# Raised where credentials are looked for, and said above.
_CREDENTIALS = (
    native.CredentialRetrievalError,
    native.NoCredentialsError,
    native.PartialCredentialsError,
    native.ProfileNotFound,
    native.TokenRetrievalError,
)
_THROTTLED = {
    "KMSThrottling",
    "KmsThrottled",
    "RequestThrottled",
    "Throttled",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
}
# Beside answers of 500 and more. The last two come from services that give credentials. Source: AWS STS API,
# AssumeRoleWithWebIdentity
_PASSING = {*_THROTTLED, "IDPCommunicationError", "TooManyRequestsException"}

# Error codes, as they are or behind a prefix with dots.
CODES: dict[str, tuple[type[MqkitError], str]] = {
    "NonExistentQueue": (NotFound, "does not have this queue in this region and account"),
    "QueueDoesNotExist": (NotFound, "does not have this queue in this region and account"),
    "NotFound": (NotFound, "does not have this topic or subscription in this region and account"),
    "NotFoundException": (NotFound, "does not have this topic or subscription in this region and account"),
    "ResourceNotFoundException": (NotFound, "does not have this in this region and account"),
    "QueueAlreadyExists": (TopologyMismatch, "has this queue with other attributes"),
    "QueueNameExists": (TopologyMismatch, "has this queue with other attributes"),
    "QueueDeletedRecently": (Unavailable, "deleted this queue less than a minute ago; it can be made again after that"),
    "AccessDenied": (Denied, "does not give these credentials the right"),
    "AccessDeniedException": (Denied, "does not give these credentials the right"),
    "AuthorizationError": (Denied, "does not give these credentials the right"),
    "AuthorizationErrorException": (Denied, "does not give these credentials the right"),
    "InvalidClientTokenId": (Denied, "does not know the access key"),
    "UnrecognizedClientException": (Denied, "does not know the access key"),
    "InvalidAccessKeyId": (Denied, "does not know the access key"),
    "InvalidSecurity": (Denied, "refuses the signature"),
    "MissingAuthenticationToken": (Denied, "wants a signature"),
    "OptInRequired": (Denied, "is not enabled for this account"),
    "ExpiredToken": (Denied, "says that the credentials have run out"),
    "ExpiredTokenException": (Denied, "says that the credentials have run out"),
    "SignatureDoesNotMatch": (Denied, "refuses the signature: the secret is wrong, or the clock of this machine"),
    "RequestExpired": (Denied, "refuses the signature: the clock of this machine is wrong"),
    # SNS and SQS spell these each in its own way.
    **dict.fromkeys(("KMSAccessDenied", "KmsAccessDenied"), (Denied, "may not use the key of this queue or topic")),
    **dict.fromkeys(("KMSDisabled", "KmsDisabled"), (Denied, "encrypts this with a key that is disabled")),
    **dict.fromkeys(("KMSNotFound", "KmsNotFound"), (Denied, "encrypts this with a key that is gone")),
    **dict.fromkeys(("KMSInvalidState", "KmsInvalidState"), (Denied, "encrypts this with a key that cannot be used")),
    **dict.fromkeys(
        ("KMSOptInRequired", "KmsOptInRequired"), (Denied, "wants this account to be given the use of keys")
    ),
    **dict.fromkeys(_THROTTLED, (Unavailable, "is asked too often")),
    "OverLimit": (Unavailable, "has as many messages in hand as it allows; settle some"),
    "ServiceUnavailable": (Lost, "is not available"),
    "InternalError": (Lost, "has a problem"),
    "InternalErrorException": (Lost, "has a problem"),
    "InternalFailure": (Lost, "has a problem"),
    "ReceiptHandleIsInvalid": (LeaseLost, "has given the message to another consumer, or removed it"),
    "MessageNotInflight": (LeaseLost, "has the message in nobody's hands"),
    "BatchRequestTooLong": (MessageTooLarge, "takes no batch so large"),
    "InvalidMessageContents": (Unencodable, "takes no such characters"),
    "InvalidParameter": (ConfigError, "takes no such value"),
    "InvalidParameterValue": (ConfigError, "takes no such value"),
    "InvalidAttributeName": (ConfigError, "knows no such attribute"),
    "InvalidAttributeValue": (ConfigError, "takes no such value of an attribute"),
    "UnsupportedOperation": (ConfigError, "cannot do this"),
    "SubscriptionLimitExceeded": (ConfigError, "has as many subscriptions of this topic as it allows"),
    "FilterPolicyLimitExceeded": (ConfigError, "has as many filter policies as it allows"),
}


# What AWS says by a general code about a receipt that is good for nothing any more: too old, of a message that others have
# deleted, or held for twelve hours.
STALE = (
    "receipt handle has expired",
    "does not exist or is not available for visibility timeout change",
    "Total VisibilityTimeout for the message is beyond the limit",
)


def translate(exc: BaseException, endpoint: object, what: str) -> MqkitError:
    """The typed error for what a call of the driver raised. `what`: was tried, and on what."""
    if isinstance(exc, native.ClientError):
        error = exc.response.get("Error", {})
        return of_code(str(error.get("Code", "")), str(error.get("Message", "")), endpoint, what, status=_status(exc))
    for kind, ours, words in ERRORS:
        if isinstance(exc, kind):
            return ours(f"{endpoint} {words} ({what}: {_text(exc)})")
    return Lost(f"{endpoint} is answered by something that is not understood ({what}: {type(exc).__name__}: {exc})")


def without_credentials(exc: BaseException, endpoint: object, what: str) -> MqkitError:
    """
    The typed error for what fetching credentials raised; nothing was sent. Some service of AWS's may have been asked for
    them, and its answer is none of SQS: there `NotFound` or `Lost` would say something about a queue.
    """
    if isinstance(exc, native.ClientError):
        if not _passes(exc):
            return Denied(
                f"{endpoint} cannot be asked: {exc.operation_name} refuses credentials ({what}: {_text(exc)})"
            )
    elif isinstance(exc, _CREDENTIALS):
        return translate(exc, endpoint, what)
    return Unavailable(
        f"{endpoint} cannot be asked: the credentials could not be fetched ({what}: {type(exc).__name__}: {exc})"
    )


def of_code(code: str, text: str, endpoint: object, what: str, *, status: int = 0) -> MqkitError:
    """
    Args:
        status: Of the HTTP answer; 0 for one entry of a batch.
    """
    short = code.rpartition(".")[2]
    if any(words in text for words in STALE):
        short = "ReceiptHandleIsInvalid"
    shown = f"{what}: {code or status}{': ' + text if text else ''}"
    if short in CODES:
        kind, words = CODES[short]
        return kind(f"{endpoint} {words} ({shown})")
    if status >= 500:
        return Lost(f"{endpoint} has a problem ({shown})")
    if status in (401, 403):
        return Denied(f"{endpoint} does not give these credentials the right ({shown})")
    if status == 404 or not code:
        return Lost(f"{endpoint} is not answered by SQS; is there a proxy in between? ({shown})")
    return ConfigError(f"{endpoint} refuses a call ({shown})")


def may_pass(error: MqkitError) -> bool:
    """Has AWS answered, for itself or about credentials, that it cannot just now? What does not answer had its time."""
    return isinstance(error.__cause__, native.ClientError) and _passes(error.__cause__)


def publish_error(error: MqkitError) -> MqkitError:
    """What an error means to the publish it answers."""
    if isinstance(error, Lost):
        return PublishUnknown(f"sent or not, nobody knows: {error}; publish again with the same id")
    if isinstance(error, Unavailable):
        return PublishFailed(str(error))
    return error


def _passes(exc: native.ClientError) -> bool:
    return _status(exc) >= 500 or _code(exc) in _PASSING


def _status(exc: native.ClientError) -> int:
    """Of the HTTP answer; 0 where none is known."""
    status: int = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _code(exc: native.ClientError) -> str:
    """Without what may stand before its last dot."""
    return str(exc.response.get("Error", {}).get("Code", "")).rpartition(".")[2]


def _text(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
