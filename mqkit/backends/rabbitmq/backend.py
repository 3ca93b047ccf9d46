"""RabbitMQ: a connection for publishing, one per source for receiving, short ones for looking and declaring."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from mqkit._clock import Clock
from mqkit._url import Url, parse_options
from mqkit.backends.base import Address, Admin, Capabilities, Declaration, Outgoing, Publisher, Receiver
from mqkit.backends.rabbitmq import names
from mqkit.backends.rabbitmq.admin import RabbitAdmin
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.backends.rabbitmq.listener import RabbitListener
from mqkit.backends.rabbitmq.note import Note
from mqkit.backends.rabbitmq.options import RabbitOptions, Server
from mqkit.backends.rabbitmq.publisher import RabbitPublisher
from mqkit.backends.rabbitmq.receiver import RabbitReceiver
from mqkit.backends.rabbitmq.topology import Route
from mqkit.errors import CapabilityMissing, NotFound

_SPREADS = (4, 0)
_pika_log = logging.getLogger("pika")


# Seconds. A channel with a message that is unsettled for 30 minutes is closed, unless the server's `consumer_timeout` says
# otherwise; it is looked at once a minute. Source: www.rabbitmq.com/docs/consumers#acknowledgement-timeout
HOLD = 1500.0


class RabbitBackend:
    """See `base.Backend`."""

    virtual_clock: ClassVar[bool] = False

    def __init__(self, url: Url, clock: Clock) -> None:
        options = parse_options(RabbitOptions, url)
        if _pika_log.level == logging.NOTSET:  # whatever it warns of reaches the user as an error of ours
            _pika_log.setLevel(logging.CRITICAL)
        self._server = Server.of(url, options)
        self._now = clock.now
        self._routes: dict[Address, Route] = {}  # of topics, learned from their declarations
        self._unsaid: defaultdict[Address, list[Note]] = defaultdict(list)  # see `Notes`
        self.capabilities = Capabilities(
            name="rabbitmq",
            durable="yes",
            survives_process=True,
            processes=True,
            atomic=False,
            order_by_key=True,
            delay=names.LONGEST_DELAY,
            release=0.0,
            delay_resolution=names.UNIT,
            ttl=True,
            priorities=255,
            replay=False,
            broadcast=True,
            counts_deliveries=False,
            lost="at_most",
            lease=2.0 * options.heartbeat,
            wake=0.05,
            max_body=options.max_body,
            hold=HOLD,
        )

    def publisher(self) -> Publisher:
        return RabbitPublisher(Connection(self._server), self._routes, self._now)

    def receiver(self, source: Declaration, window: int) -> Receiver:
        connection = Connection(self._server)
        try:
            if source.address.kind == "broadcast":
                return RabbitListener(connection, source.address, self._now)
            return RabbitReceiver(connection, source, window, self._now, self._unsaid[source.address])
        except BaseException:
            connection.close()
            raise

    def admin(self) -> Admin:
        return RabbitAdmin(self._server, self._routes, self._now)

    def publish_within(self, native: Any, batch: Sequence[Outgoing]) -> None:
        raise CapabilityMissing(f"native={native!r}: rabbitmq takes part in no transaction of yours")

    def warnings(self) -> Iterable[str]:
        connection = Connection(self._server)
        try:
            if connection.version and connection.version < _SPREADS:
                shown = ".".join(map(str, connection.version))
                yield (
                    f"{self._server} has version {shown}: before 4.0 it does not spread the partitions of an ordered source "
                    "over processes; one of them may do all the work while the others stand by"
                )
            try:
                stranded = Declarer(connection).count(names.UNDELIVERABLE)[0]
            except NotFound:
                stranded = 0
            if stranded:
                yield (
                    f"{self._server}: {stranded} delayed messages are in queue {names.UNDELIVERABLE!r} because their "
                    "destination was deleted before they were due"
                )
        finally:
            connection.close()

    def close(self) -> None:
        """Every connection belongs to its publisher, receiver or admin."""

    def after_fork(self) -> None:
        """Connections know the process that opened them and do nothing in another one."""
