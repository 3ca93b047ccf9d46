"""What must exist on the server for a declaration, as a list of steps; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mqkit.backends.base import Address, Declaration
from mqkit.backends.rabbitmq import names
from mqkit.errors import ConfigError
from mqkit.native import RabbitQueue, RabbitTopic

NO_LIMIT = 2**31 - 1  # hand-outs; without an argument RabbitMQ 4 drops a message after 20 returns
NOTES_LIVE = 24 * 3600  # seconds


class Exchange(NamedTuple):
    name: str
    kind: str = "topic"
    arguments: Mapping[str, Any] | None = None


class Queue(NamedTuple):
    name: str
    arguments: Mapping[str, Any]


class Bind(NamedTuple):
    """A queue to an exchange."""

    queue: str
    exchange: str
    key: str
    arguments: Mapping[str, Any] | None = None


class BindExchange(NamedTuple):
    """What `source` gets with such a key, `target` gets too."""

    target: str
    source: str
    key: str


Step = Exchange | Queue | Bind | BindExchange


class Route(NamedTuple):
    """How a topic is published: to which exchange, and which header holds the routing key, if any."""

    exchange: str
    kind: str = "topic"
    subject: str = ""


def route_of(declaration: Declaration) -> Route:
    native = topic_options(declaration)
    return Route(native.exchange or names.exchange_of(declaration.address), native.type, native.subject)


def topic_options(declaration: Declaration) -> RabbitTopic:
    return declaration.native if isinstance(declaration.native, RabbitTopic) else RabbitTopic()


def queue_options(declaration: Declaration) -> RabbitQueue:
    native = declaration.native
    if isinstance(native, RabbitTopic):
        return native.queues
    return native if isinstance(native, RabbitQueue) else RabbitQueue()


def ordered(declaration: Declaration) -> bool:
    """Whoever does not consume has no say in the order; what they make is for a consumer with the default order."""
    return declaration.order == "key" or (
        declaration.order is None and declaration.keyed and not declaration.priorities
    )


def counts(declaration: Declaration) -> bool:
    """Does the server count its hand-outs? Those of dead letters are looks at them, which nobody cares about."""
    return not declaration.address.dead and not declaration.priorities and queue_options(declaration).type != "classic"


def steps(declaration: Declaration) -> Iterator[Step]:
    """
    In the order in which they can be made.

    Raises:
        ConfigError: The declaration asks for what does not go together on RabbitMQ.
    """
    address = declaration.address
    if address.kind == "broadcast":
        yield Exchange(names.exchange_of(address))
        return
    if address.kind == "topic" and not address.dead:
        yield from _topic(declaration)
        if not address.group:
            return
    yield from _sources(declaration)


def with_other_order(declaration: Declaration, step: Step) -> Step | None:
    """The same queue, had a consumer decided its order differently; None where there is no choice or it is made."""
    undecided = declaration.order is None and declaration.keyed and not declaration.priorities
    if not undecided or not isinstance(step, Queue) or step.name.endswith(names.DEAD):
        return None
    arguments = dict(step.arguments)
    if arguments.pop("x-single-active-consumer", None) is None:
        arguments["x-single-active-consumer"] = True
    return Queue(step.name, arguments)


def ladder() -> Iterator[Step]:
    """The waiting rooms of every delay, shared by all destinations of a vhost."""
    yield from _way_out()
    for level in range(names.RUNGS):
        exchange, below = names.rung(level), names.rung(level - 1) if level else names.DELIVER
        stars = "*." * (names.RUNGS - 1 - level)  # the word behind them is the bit of this level
        yield Exchange(exchange)
        yield Queue(exchange, _rung(level, below))
        yield Bind(exchange, exchange, f"{stars}1.#")
        yield BindExchange(below, exchange, f"{stars}0.#")


def notes(address: Address) -> Queue:
    """See `notes.py`."""
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT, "x-message-ttl": NOTES_LIVE * 1000}
    return Queue(names.notes_of(address), arguments)


def _topic(declaration: Declaration) -> Iterator[Step]:
    address = declaration.address
    options = topic_options(declaration)
    route = route_of(declaration)
    if declaration.partitions > 1 and (options.subject or options.type not in ("topic", "direct")):
        raise ConfigError(
            f"{address}: partitions={declaration.partitions} needs the routing key of a topic or direct exchange, "
            f"so RabbitTopic(type={options.type!r}, subject={options.subject!r}) goes with partitions=1 only"
        )
    if options.type == "headers" and options.subject:
        raise ConfigError(f"{address}: RabbitTopic(type='headers') has no subject; its bindings match headers")
    yield Exchange(route.exchange, options.type)
    yield from _way_out()
    yield BindExchange(route.exchange, names.DELIVER, names.ANY_DELAY + names.way_to_topic(route.exchange, "#"))


def _sources(declaration: Declaration) -> Iterator[Step]:
    address = declaration.address
    if not address.dead:
        if declaration.order == "key" and declaration.priorities:
            raise ConfigError(f"{address}: order='key' and priorities do not go together")
        yield from _way_out()
        for partition, name in enumerate(names.queues_of(address, declaration.partitions)):
            yield Queue(name, _arguments(declaration))
            yield Bind(name, names.DELIVER, names.ANY_DELAY + names.way_to_queue(name))
            if address.group:
                yield from _bindings(declaration, name, partition)
    dead = names.queue_of(address.dead_letters)
    # One reader at a time, so that two who look at the dead letters do not each see half of them.
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT, "x-single-active-consumer": True}
    yield Queue(dead, arguments | _kept_name(address))
    yield from _way_out()
    yield Bind(dead, names.DELIVER, names.ANY_DELAY + names.way_to_queue(dead))


def _bindings(declaration: Declaration, queue: str, partition: int) -> Iterator[Step]:
    options, exchange = topic_options(declaration), route_of(declaration).exchange
    own = options.bindings.get(declaration.address.group)
    if own is None:
        if options.type == "direct":
            own = (str(partition),)
        else:
            own = ("#",) if declaration.partitions == 1 else (f"#.{partition}",)
        if options.type == "headers":
            yield Bind(queue, exchange, "", {"x-match": "all"})
            return
    if isinstance(own, Mapping):
        yield Bind(queue, exchange, "", dict(own))
        return
    for pattern in (own,) if isinstance(own, str) else own:
        yield Bind(queue, exchange, pattern)
        if options.type == "topic" and not pattern.startswith("#"):  # what comes out of the ladder has a longer key
            yield Bind(queue, exchange, names.ANY_DELAY + names.way_to_topic(exchange, pattern))


def _arguments(declaration: Declaration) -> dict[str, Any]:
    native = queue_options(declaration)
    own = dict(native.arguments)
    if declaration.priorities:
        if native.type == "quorum":
            raise ConfigError(f"{declaration.address}: a quorum queue has no priorities; leave RabbitQueue(type=) out")
        arguments: dict[str, Any] = {"x-queue-type": "classic", "x-max-priority": declaration.priorities - 1 or 1}
    elif native.type == "classic":
        arguments = {"x-queue-type": "classic"}
    else:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
    if ordered(declaration):
        arguments["x-single-active-consumer"] = True
    for name in ("x-max-length", "x-max-length-bytes"):
        if name in own:
            # A full queue refuses what comes out of the ladder, which then stops for everybody.
            raise ConfigError(
                f"{declaration.address}: {name} in RabbitQueue(arguments=) would block delays and retries"
            )
    return arguments | own | _kept_name(declaration.address)


def _kept_name(address: Address) -> dict[str, Any]:
    full = names.full_name(address)
    return {} if full is None else {names.ADDRESS: full}


def _way_out() -> Iterator[Step]:
    """Where the ladder ends. What has nowhere to go leaves it all the same, or it would stop the ladder for everybody."""
    yield Exchange(names.UNDELIVERABLE, "fanout")
    yield Queue(names.UNDELIVERABLE, {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT})
    yield Bind(names.UNDELIVERABLE, names.UNDELIVERABLE, "")
    yield Exchange(names.DELIVER, "topic", {"alternate-exchange": names.UNDELIVERABLE})


def _rung(level: int, below: str) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": NO_LIMIT,
        "x-message-ttl": int(names.UNIT * 1000) * 2**level,
        "x-dead-letter-exchange": below,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
