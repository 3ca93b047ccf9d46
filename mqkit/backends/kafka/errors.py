"""Exceptions of kafka-python, and error codes of brokers, as errors of mqkit."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence

from kafka import errors as native

from mqkit.errors import (
    ConfigError,
    Denied,
    Lost,
    MessageTooLarge,
    MqkitError,
    NotFound,
    PublishFailed,
    PublishUnknown,
    TopologyMismatch,
    Unavailable,
)


class GivenUp(native.KafkaError):  # type: ignore[misc]
    """By the driver, because of something else: whether it was written nobody knows."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"given up because of another one: {type(cause).__name__}: {cause}")
        self.cause = cause


# The first match counts, so subclasses stand above their bases.
ERRORS: tuple[tuple[type[BaseException], type[MqkitError], str], ...] = (
    (native.SaslAuthenticationFailedError, Denied, "refuses the user name or password"),
    (native.UnsupportedSaslMechanismError, ConfigError, "does not offer this way to log in; see sasl_mechanism="),
    (native.IllegalSaslStateError, ConfigError, "wants no login here; leave user and password out"),
    (native.AuthorizationError, Denied, "does not give this user the right"),
    (native.SecurityDisabledError, Denied, "has no rights to give"),
    (ssl.SSLCertVerificationError, Denied, "is not trusted; see ca="),
    (native.UnknownTopicOrPartitionError, NotFound, "does not have it"),
    (native.GroupIdNotFoundError, NotFound, "does not have this consumer group"),
    (native.TopicAlreadyExistsError, TopologyMismatch, "has it already, with other options"),
    (native.InvalidTopicError, ConfigError, "takes no such name: a topic whose name differs in . and _ only may exist"),
    (native.InvalidPartitionsError, ConfigError, "takes no such number of partitions"),
    (native.InvalidReplicationFactorError, ConfigError, "has too few brokers for this replication"),
    (native.PolicyViolationError, ConfigError, "has a policy against it"),
    (native.InvalidConfigurationError, ConfigError, "takes no such configuration"),
    (native.MessageSizeTooLargeError, MessageTooLarge, "takes no message so large; see max.message.bytes of the topic"),
    (native.RecordListTooLargeError, MessageTooLarge, "takes no batch so large"),
    (native.UnsupportedCodecError, ConfigError, "cannot compress like this here; is the library installed?"),
    (native.UnsupportedCompressionTypeError, ConfigError, "cannot compress like this"),
    (native.UnsupportedVersionError, ConfigError, "is too old"),
    (native.KafkaConfigurationError, ConfigError, "cannot be used like this"),
    (native.InvalidReceiveError, ConfigError, "does not speak the protocol of Kafka; is this a port for TLS?"),
    (native.InconsistentGroupProtocolError, TopologyMismatch, "has consumers of this group with another order"),
    (native.CommitFailedError, Lost, "has given our partitions to others"),
    (native.ProducerFencedError, Lost, "has a newer producer of this name"),
    (native.InvalidProducerEpochError, Lost, "has a newer producer of this name"),
    (native.FencedInstanceIdError, ConfigError, "has another process with this instance="),
    (native.InvalidSessionTimeoutError, ConfigError, "does not allow this lease=; see group.min.session.timeout.ms"),
    (native.NotEnoughReplicasError, Unavailable, "has too few replicas in step and takes nothing"),
    (native.KafkaTimeoutError, Unavailable, "has not answered in time"),
    (native.KafkaConnectionError, Unavailable, "cannot be reached"),
    (native.KafkaError, Unavailable, "has a problem"),
    (OSError, Unavailable, "cannot be reached"),
)

_UNKNOWN = (GivenUp, native.RetriableError, native.UnknownProducerIdError, native.OutOfOrderSequenceNumberError)
# About the cluster or about who sends, and not about what is sent: a new producer will be let do it.
_PASSING = (
    native.RetriableError,
    native.BrokerNotAvailableError,
    native.IllegalStateError,
    native.InvalidProducerIdMappingError,
    native.InvalidTxnStateError,
    native.OutOfOrderSequenceNumberError,
    native.TransactionAbortedError,
    native.TransactionCoordinatorFencedError,
    native.UnknownBrokerIdError,
    native.UnknownProducerIdError,
)
_COMMIT_REFUSED = re.compile(r"OffsetMetadataTooLarge|InvalidCommitOffsetSize|InvalidGroupId")
_CERTIFICATE_WANTED = re.compile(r"alert (bad certificate|certificate|unknown ca)|ALERT_CERTIFICATE_REQUIRED", re.I)


def translate(exc: BaseException, cluster: object) -> MqkitError:
    """The typed error for what the driver raised, or what its cause was."""
    for cause in (exc.__cause__, exc.__context__):
        if isinstance(cause, ssl.SSLCertVerificationError):
            exc = cause
    if isinstance(exc, native.KafkaConnectionError) and _CERTIFICATE_WANTED.search(str(exc)):
        return Denied(f"{cluster} wants to see a certificate that it trusts; see cert= and key= ({_text(exc)})")
    for kind, ours, words in ERRORS:
        if isinstance(exc, kind):
            return ours(f"{cluster} {words} ({_text(exc)})")
    return Unavailable(f"{cluster} has a problem ({_text(exc)})")


def publish_error(exc: BaseException, cluster: object) -> MqkitError:
    """
    What became of a publish that failed.

    Kafka may have it whenever an answer is missing; then the driver has tried again, without doubling it, as long as it may.
    Why the last try failed says nothing of the earlier ones.
    """
    error = translate(exc, cluster)
    if isinstance(error, Unavailable) and isinstance(exc, _UNKNOWN):
        return PublishUnknown(f"sent or not, nobody knows: {error}; publish again with the same id")
    if isinstance(error, Unavailable):
        return PublishFailed(str(error))
    return error


def transaction_error(failures: Sequence[BaseException], cluster: object) -> MqkitError:
    """
    Why a transaction was refused, in which nothing happened.

    Args:
        failures: At least one, the most likely first. When the cluster refuses one record, the driver gives up all the others.

    Returns:
        PublishFailed: It takes one of the records neither now nor later.
        Unavailable: It may take them later.
    """
    blamed = next((exc for exc in failures if not _passes(exc)), failures[0])
    error = translate(blamed, cluster)
    if type(error) is Unavailable and not _passes(blamed):
        return PublishFailed(str(error))
    return error


def reason_of(exc: BaseException, noted: Sequence[BaseException], cluster: object) -> BaseException:
    """
    What to say of a transaction that was given up, in which nothing happened.

    Args:
        exc: What ended it.
        noted: What the driver knows of it besides. That our own time was up says less than that.
    """
    if isinstance(exc, MqkitError):
        return transaction_error(noted, cluster) if type(exc) is Unavailable and noted else exc
    return transaction_error([exc, *noted], cluster) if isinstance(exc, Exception) else exc


def _passes(exc: BaseException) -> bool:
    if type(exc) is native.KafkaError:  # that something has failed before, or what the driver did not expect
        return _COMMIT_REFUSED.search(str(exc)) is None
    return isinstance(exc, _PASSING)


def _text(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
