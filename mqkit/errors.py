"""Every error mqkit raises, and the advice each one carries.

    MqkitError                      retryable: may the same call succeed later, unchanged?
    ├── ConfigError                 the program or its settings are wrong; nothing was sent
    │   ├── CapabilityMissing       the backend cannot do this; names those that can
    │   ├── ExtraMissing            a driver or library is not installed; prints the command
    │   └── TopologyMismatch        exists on the broker with other options; names the difference
    ├── Unencodable                 payload, header, key or id cannot be put on the wire
    │   └── MessageTooLarge         body and headers are over the backend's limit
    ├── Undecodable                 a received body does not fit its destination's type
    ├── PublishFailed               not sent: no copy reached the broker
    │   ├── Unroutable              nothing would have received it
    │   ├── BufferFull              the publish buffer was full and its policy refuses or drops
    │   └── PublishUnknown          sent or not, nobody knows; publish again with the same id
    ├── TimedOut                    a bound passed; for a publish it was withdrawn in time: not sent
    ├── NotFound                    destination, group or message does not exist
    ├── Denied                      credentials or permissions
    ├── Unavailable                 the broker does not answer now
    │   └── Lost                    a connection broke; deliveries it carried may be void
    ├── StoreDamaged                the file or store is corrupt; nothing is repaired silently
    ├── LeaseLost                   a delivery went to another consumer meanwhile
    ├── Closed                      used after close() or in the wrong process
    └── BlockingCall                a blocking verb on a thread whose event loop runs, or that must not wait

The verdicts (`RetryLater`, `Reject`, `Ack`) and `RemoteError` are no errors of mqkit and stand outside the tree.
"""

from __future__ import annotations


class MqkitError(Exception):
    """Base of everything mqkit raises. `retryable` says whether the same call may succeed later, unchanged."""

    retryable: bool = False


class ConfigError(MqkitError):
    """The program or its settings are wrong. Nothing was sent or received."""


class CapabilityMissing(ConfigError):
    """The backend of this bus cannot do what was asked for."""


class ExtraMissing(ConfigError):
    """A driver or library is not installed; the message holds the install command."""


class TopologyMismatch(ConfigError):
    """A destination or group exists on the broker with other options than the program declares."""


class Unencodable(MqkitError):
    """A payload, header, key or id cannot be put on the wire. Nothing was sent."""


class MessageTooLarge(Unencodable):
    """Body and headers together are over what the backend takes. Nothing was sent."""


class Undecodable(MqkitError):
    """A received body does not fit the type of its destination; the message goes to the dead letters."""


class PublishFailed(MqkitError):
    """Not sent: no copy of the message reached the broker, so publishing again is safe."""

    retryable = True


class Unroutable(PublishFailed):
    """The broker has nobody who would receive the message."""

    retryable = False


class BufferFull(PublishFailed):
    """The publish buffer was full; the message was refused, or dropped as `overflow` says."""


class PublishUnknown(PublishFailed):
    """Nobody knows whether the broker has the message. Publish again with the same `id` to let receivers deduplicate."""


class TimedOut(MqkitError):
    """A bound passed. A publish that raises this was withdrawn in time and is not sent."""

    retryable = True


class NotFound(MqkitError):
    """A destination, group or message does not exist on the broker."""


class Denied(MqkitError):
    """The broker or the file system refuses these credentials or permissions."""


class Unavailable(MqkitError):
    """The broker does not answer now; the call had no effect."""

    retryable = True


class Lost(Unavailable):
    """A connection broke. The core opens another; deliveries bound to the old one are void."""


class StoreDamaged(MqkitError):
    """A store is corrupt, replaced or of a newer format. mqkit stops using it and repairs nothing by itself."""


class LeaseLost(MqkitError):
    """A delivery was offered to another consumer meanwhile; settling it here has no effect."""


class Closed(MqkitError):
    """The bus was closed, or belongs to the parent of this forked process."""


class BlockingCall(MqkitError):
    """
    A blocking verb was called on a thread whose event loop runs, and the message names its awaitable twin; or in a
    done-callback of `publish_soon`.
    """
