"""Where messages go: Queue, Topic, Broadcast. Values, declared once and shared between services; they open nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, overload

from mqkit._numbers import whole
from mqkit._schema import Schema
from mqkit.backends.base import Address, Kind
from mqkit.codecs import JSON, Codec
from mqkit.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import TypeForm


T = TypeVar("T")  # invariant, so that publish(orders, "oops") is refused by type checkers

Key = Callable[[T], "str | None"]

MAX_NAME = 197  # bytes: what RabbitMQ leaves for a name that delays can lead to
_FORBIDDEN = re.compile(r"[/\x00-\x1f\x7f]|^(topic|broadcast):|^\s|\s$")


class Destination(Generic[T]):
    """What the three kinds share. Use one of them."""

    kind: ClassVar[Kind]

    __slots__ = (
        "__weakref__",
        "address",
        "codec",
        "declare",
        "groups",
        "key",
        "name",
        "native",
        "partitions",
        "priorities",
        "schema",
        "type",
    )

    def __init__(
        self,
        name: str,
        type: Any,
        *,
        key: Key[T] | None = None,
        partitions: int = 1,
        priorities: int = 0,
        groups: Sequence[str] = (),
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None:
        self.name = check_name(name, "destination")
        self.address = Address(self.kind, name)
        self.type = type
        self.key = key
        self.partitions = partitions
        self.priorities = priorities
        if isinstance(groups, str):
            raise ConfigError(f"{self!r}: groups={groups!r} must be a list of names, such as [{groups!r}]")
        self.groups = tuple(check_name(group, "group") for group in groups)
        self.codec = codec
        self.declare = declare
        self.native: tuple[Any, ...] = tuple(native) if isinstance(native, (tuple, list)) else (native,)
        for option in self.native:
            check_native(self, option)
        if key is not None and not callable(key):
            raise ConfigError(f"{self!r}: key={key!r} must be a function from payload to key")
        if not all(hasattr(codec, name) for name in ("content_type", "encoder", "decoder")):
            raise ConfigError(f"{self!r}: codec={codec!r} is no codec; pass one of mqkit.codecs, such as JSON")
        if not isinstance(declare, bool):
            raise ConfigError(f"{self!r}: declare={declare!r} must be True or False")
        if not whole(partitions, 1, 10_000):
            raise ConfigError(f"{self!r}: partitions={partitions!r} must be a whole number from 1 to 10000")
        if not whole(priorities, 0, 255):
            raise ConfigError(f"{self!r}: priorities={priorities!r} must be a whole number from 0 to 255")
        self.schema = Schema(name, type, codec)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name!r})"

    def options(self) -> dict[str, object]:
        """What two declarations of one name on a bus must agree in."""
        return {
            "kind": self.kind,
            "key": self.key is not None,
            "partitions": self.partitions,
            "priorities": self.priorities,
            "native": self.native,
        }


class Queue(Destination[T]):
    """
    Work: each message is handled by one worker, and kept until then, also while no worker exists.

    Args:
        name: At most 197 bytes, without "/" and control characters.
        type: Payload type: a class, union, TypedDict or builtin. Left out: any JSON value.
        key: Payload to ordering key; messages of one key are handled one at a time, in publish order.
        partitions: Where order needs partitions (RabbitMQ, Kafka); ignored elsewhere.
        priorities: Number of priority levels, 0 for none; `publish(priority=)` from 0 to priorities - 1, high first.
        codec: One of `mqkit.codecs`; JSON if left out.
        declare: False where somebody else creates it.
        native: Options object of `mqkit.native`, or several.
    """

    kind = "queue"
    __slots__ = ()

    @overload
    def __init__(
        self: Queue[Any],
        name: str,
        *,
        key: Key[Any] | None = None,
        partitions: int = 1,
        priorities: int = 0,
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        type: type[T],
        *,
        key: Key[T] | None = None,
        partitions: int = 1,
        priorities: int = 0,
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        type: TypeForm[T],
        *,
        key: Key[T] | None = None,
        partitions: int = 1,
        priorities: int = 0,
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None: ...
    def __init__(
        self,
        name: str,
        type: Any = Any,
        *,
        key: Key[Any] | None = None,
        partitions: int = 1,
        priorities: int = 0,
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None:
        super().__init__(
            name,
            type,
            key=key,
            partitions=partitions,
            priorities=priorities,
            codec=codec,
            declare=declare,
            native=native,
        )
        if key is not None and priorities:
            raise ConfigError(
                f"{self!r}: key= and priorities= exclude each other; order by key leaves nothing to prefer"
            )


class Topic(Destination[T]):
    """
    Events: every group gets each message published after the group's declaration; consumers of a group share the work.

    Args:
        groups: Groups declared together with the topic, so that they miss nothing from the first publish on.

    The other arguments are those of `Queue`.
    """

    kind = "topic"
    __slots__ = ()

    @overload
    def __init__(
        self: Topic[Any],
        name: str,
        *,
        key: Key[Any] | None = None,
        partitions: int = 1,
        groups: Sequence[str] = (),
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        type: type[T],
        *,
        key: Key[T] | None = None,
        partitions: int = 1,
        groups: Sequence[str] = (),
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        type: TypeForm[T],
        *,
        key: Key[T] | None = None,
        partitions: int = 1,
        groups: Sequence[str] = (),
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None: ...
    def __init__(
        self,
        name: str,
        type: Any = Any,
        *,
        key: Key[Any] | None = None,
        partitions: int = 1,
        groups: Sequence[str] = (),
        codec: Codec = JSON,
        declare: bool = True,
        native: object = (),
    ) -> None:
        super().__init__(
            name, type, key=key, partitions=partitions, groups=groups, codec=codec, declare=declare, native=native
        )


class Broadcast(Destination[T]):
    """Live: whoever listens now gets it, at most once; nothing is kept and no publisher ever waits for a listener."""

    kind = "broadcast"
    __slots__ = ()

    @overload
    def __init__(self: Broadcast[Any], name: str, *, codec: Codec = JSON) -> None: ...
    @overload
    def __init__(self, name: str, type: type[T], *, codec: Codec = JSON) -> None: ...
    @overload
    def __init__(self, name: str, type: TypeForm[T], *, codec: Codec = JSON) -> None: ...
    def __init__(self, name: str, type: Any = Any, *, codec: Codec = JSON) -> None:
        super().__init__(name, type, codec=codec)


def check_native(destination: Destination[Any], option: Any) -> None:
    """`ConfigError` for what is no options object, or one of another kind of destination."""
    if not hasattr(option, "backend") or getattr(option, "kind", None) not in get_args(Kind):
        raise ConfigError(f"{destination!r}: native={option!r} is not an options object of mqkit.native")
    if option.kind != destination.kind:
        raise ConfigError(f"{destination!r}: native={option!r} is for a {option.kind}, not for a {destination.kind}")


def check_name(name: str, what: str) -> str:
    """The name itself, or a `ConfigError` that says what is wrong with it."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a {what} name must be a text that is not empty, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} name {name!r} is not valid Unicode") from exc
    if size > MAX_NAME:
        raise ConfigError(f"{what} name {name[:20]!r}... has {size} bytes; at most {MAX_NAME} fit every broker")
    if _FORBIDDEN.search(name):
        raise ConfigError(
            f"{what} name {name!r}: no '/', no control characters, no white space at the ends, no 'topic:' in front"
        )
    return name
