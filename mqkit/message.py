"""Message: what was sent. Delivery: a message in your hands, not yet settled. DeadLetter: one that was given up."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypedDict, TypeVar

import msgspec

from mqkit.errors import ConfigError
from mqkit.verdicts import Ack, Reject, RetryLater

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mqkit.backends.base import Outgoing, Received
    from mqkit.destinations import Destination

T = TypeVar("T")
P = TypeVar("P")


class PublishOptions(TypedDict, total=False):
    """
    What every publishing verb takes by keyword.

    `key` orders messages (overrides the destination's) · `headers` text to text · `id` stable over resends · `delay`
    seconds · `ttl` seconds from the moment it is due, checked before the handler · `priority` high wins · `native` a transaction
    of yours, or an options object of `mqkit.native` for one message.
    """

    key: str | None
    headers: Mapping[str, str] | None
    id: str | None
    delay: float
    ttl: float | None
    priority: int
    native: Any


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender sent. `sent_at` is the sender's wall clock, epoch seconds; `expires_at` the backend's clock or None."""

    id: str
    body: bytes
    key: str | None = None
    headers: Mapping[str, str] = {}
    type: str = ""
    content_type: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    sent_at: float = 0.0
    expires_at: float | None = None
    native: Any = None


def message_of(received: Received) -> Message:
    """The public view of what a backend handed over."""
    envelope = received.envelope
    return Message(
        id=received.id,
        body=received.body,
        key=received.key,
        headers=dict(received.headers),  # what a handler does to them must not reach a retry or a dead letter
        type=envelope.type,
        content_type=envelope.content_type,
        correlation_id=envelope.correlation_id,
        causation_id=envelope.causation_id,
        sent_at=envelope.sent_at,
        expires_at=received.expires_at,
        native=received.native,
    )


class Holder(Protocol):
    """Who handed a delivery out and takes its outcome back."""

    destination: Destination[Any]
    group: str | None
    explicit: bool  # may the user settle by hand (settle="manual", or a pull loop)?
    by_member: bool  # may members of a batch fail one by one?

    def finish(self, delivery: Delivery[Any], outcome: BaseException | None) -> None: ...

    def stage(
        self, delivery: Delivery[Any], to: Destination[Any], payload: Any, via: Any, options: PublishOptions
    ) -> Outgoing:
        """Encode a message and add it to what is sent with this delivery. From any thread."""
        ...


class Delivery(Generic[T]):
    """
    A message in your hands. Nothing here blocks; every method may be called from any thread.

    `attempt` is 1 plus the failed tries before this one; `deliveries` counts hand-outs, or is None where the system does
    not count them; `deadline` is the value of `time.monotonic()` at which the handler's `timeout` passes, or None.
    """

    __slots__ = ("_holder", "_message", "_received", "_settled", "_staged", "deadline", "payload")

    payload: T

    def __init__(self, received: Received, holder: Holder) -> None:
        self._received = received
        self._holder = holder
        self._message: Message | None = None
        self._staged: list[tuple[Any, Outgoing]] | None = None  # (another bus or None, message), in order of the calls
        self._settled = False
        self.deadline: float | None = None

    def __repr__(self) -> str:
        return f"<Delivery {self.id} of {self._received.address}, attempt {self.attempt}>"

    @property
    def message(self) -> Message:
        if self._message is None:
            self._message = message_of(self._received)
        return self._message

    @property
    def id(self) -> str:
        return self._received.id

    @property
    def key(self) -> str | None:
        return self._received.key

    @property
    def headers(self) -> Mapping[str, str]:
        return self.message.headers

    @property
    def destination(self) -> Destination[Any]:
        return self._holder.destination

    @property
    def group(self) -> str | None:
        return self._holder.group

    @property
    def attempt(self) -> int:
        return self._received.attempt

    @property
    def deliveries(self) -> int | None:
        return self._received.deliveries

    def publish(
        self, to: Destination[P], payload: P, *, via: object | None = None, **options: Unpack[PublishOptions]
    ) -> str:
        """
        Stage a message: sent after this delivery succeeds, in order, and confirmed before it is acknowledged.

        The payload is encoded and checked now. A retry or reject sends nothing. After a crash in between it is sent
        again with the same id, which derives from this delivery, its group and the position of the call; give `id=` if
        the order of your calls varies.

        Args:
            via: Another `Bus` to send through; not together with `promise="exactly_once"`.

        Returns:
            The message id.

        Raises:
            Unencodable, MessageTooLarge, ConfigError: As `Bus.publish`; the handler should let them pass.
        """
        if self._settled:
            raise ConfigError(f"{self!r} is settled already: publish before settling, or use bus.publish")
        return self._holder.stage(self, to, payload, via, options).id

    def ack(self) -> None:
        """Settle as done. Only with `settle="manual"` or in a pull loop; the first settlement wins."""
        self._settle(None)

    def retry(self, *, after: float) -> None:
        """Hand out again in `after` seconds; counts as an attempt. Only where settling is manual."""
        self._settle(RetryLater(after=after))

    def reject(self, reason: str) -> None:
        """Move to the dead letters now. Only where settling is manual."""
        self._settle(Reject(reason))

    def fail(self, error: Exception) -> None:
        """Let the retry policy judge this one. In a batch handler, or where settling is manual."""
        if not isinstance(error, BaseException):
            raise ConfigError(f"fail({error!r}): takes the exception for the retry policy to judge")
        if self._holder.by_member and not self._holder.explicit:
            if not self._settled:
                self._settled = True
                self._holder.finish(self, error)
            return
        self._settle(error)

    def _settle(self, outcome: BaseException | None) -> None:
        if not self._holder.explicit:
            raise ConfigError(
                f'{self!r} is settled by its handler\'s end: return, or raise Ack, RetryLater or Reject; register with settle="manual" '
                "to settle by hand"
            )
        if not self._settled:
            self._settled = True
            self._holder.finish(self, None if isinstance(outcome, Ack) else outcome)


class DeadLetter(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """
    A message that was rejected or ran out of attempts; body, headers and id as they were published.

    `error_type` is the exception's class name ("" where none was raised), `died_at` epoch seconds.
    """

    message: Message
    reason: str
    error_type: str
    attempts: int
    group: str | None
    died_at: float

    @property
    def id(self) -> str:
        return self.message.id


# The delivery whose handler runs now: what it publishes is stamped with its ids.
current: contextvars.ContextVar[Delivery[Any] | None] = contextvars.ContextVar("mqkit_delivery", default=None)
