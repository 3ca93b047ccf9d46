"""Kafka: one topic per queue or topic, one consumer group per group, and a ledger beside each commit."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from mqkit._clock import Clock
from mqkit._url import Url, parse_options
from mqkit.backends.base import Admin, Capabilities, Declaration, Outgoing, Publisher, Receiver
from mqkit.backends.kafka import log
from mqkit.backends.kafka.admin import KafkaAdmin
from mqkit.backends.kafka.consumer import Consumer
from mqkit.backends.kafka.control import Control
from mqkit.backends.kafka.listener import KafkaListener
from mqkit.backends.kafka.member import Member
from mqkit.backends.kafka.names import LANES, Names
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.backends.kafka.producer import Producer, Transactions
from mqkit.backends.kafka.publisher import KafkaPublisher
from mqkit.backends.kafka.receiver import KafkaReceiver
from mqkit.backends.kafka.relay import Relay
from mqkit.backends.kafka.trim import Trimmer
from mqkit.errors import CapabilityMissing

REFUSED = 0.3  # seconds in which a group says no to a member; a yes may take longer, and nothing is missed meanwhile
GRACE = 5.0  # seconds in which a rebalance waits for handlers that run


class KafkaBackend:
    """See `base.Backend`. `kafka://`, and `kafka+ssl://` with TLS."""

    virtual_clock: ClassVar[bool] = False

    def __init__(self, url: Url, clock: Clock) -> None:
        options = parse_options(KafkaOptions, url)
        log.quieten()
        self._cluster = Cluster.of(url, options)
        self._names = Names(options.prefix)
        self._now = clock.now
        self._trimmer = Trimmer(lambda: Control(self._cluster).driver)
        self._relay = Relay(self._join_relay, self._transactions(), self._trimmer, self._names, self._now)
        self.capabilities = Capabilities(
            name="kafka",
            durable="yes",
            survives_process=True,
            processes=True,
            atomic=True,
            order_by_key=True,
            delay=math.inf,
            release=0.0,
            delay_resolution=LANES[0],
            ttl=True,
            priorities=0,
            replay=True,
            broadcast=True,
            counts_deliveries=False,
            lost="at_most",
            lease=options.lease,
            wake=0.1,
            max_body=options.max_body,
            max_inflight=2000,  # the driver sends one batch of a partition at a time: the next one fills up meanwhile
            retains=True,
            in_order=False,
            shares=False,
        )

    def publisher(self) -> Publisher:
        return KafkaPublisher(Producer(self._cluster), self._names, self._now)

    def receiver(self, source: Declaration, window: int) -> Receiver:
        names, cluster = self._names, self._cluster
        if source.address.kind == "broadcast":
            consumer = Consumer(cluster, fetch_bytes=1 << 20, group_id=None)
            try:
                return KafkaListener(consumer, source.address, names.topic(source.address), self._now)
            except BaseException:
                consumer.close()
                raise
        group = names.group(source.address)
        ordered = source.order == "key"
        topics = names.sources(source.address)
        member = Member(cluster, group, topics, grace=GRACE, fetch_bytes=window * 4096, ordered=ordered)
        try:
            member.join(REFUSED)
        except BaseException:
            member.close()
            raise
        return KafkaReceiver(member, self._transactions(), self._relay, self._trimmer, names, source, window, self._now)

    def admin(self) -> Admin:
        return KafkaAdmin(self._cluster, self._names, self._transactions(), self._now)

    def publish_within(self, native: Any, batch: Sequence[Outgoing]) -> None:
        raise CapabilityMissing(f"native={native!r}: kafka takes part in no transaction of yours")

    def warnings(self) -> Iterable[str]:
        return ()

    def close(self) -> None:
        """The other connections belong to publishers, receivers and admins."""
        self._trimmer.close()

    def after_fork(self) -> None:
        """The other connections look at the process before each use."""
        self._trimmer.after_fork()

    def _join_relay(self) -> Member:
        lanes = list(self._names.lanes)
        return Member(self._cluster, self._names.relay, lanes, grace=GRACE, fetch_bytes=1 << 20)

    def _transactions(self) -> Transactions:
        return Transactions(self._cluster, f"{self._cluster.options.prefix}mqkit-{uuid.uuid4()}")
