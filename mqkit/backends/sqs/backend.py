"""SQS and SNS: a queue per queue, a topic with one queue per group, and leases that are renewed here."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from botocore.exceptions import ClientError

from mqkit._clock import Clock
from mqkit._url import Url, parse_options
from mqkit.backends.base import Admin, Capabilities, Declaration, Outgoing, Publisher, Receiver
from mqkit.backends.sqs.admin import SqsAdmin
from mqkit.backends.sqs.clients import Clients
from mqkit.backends.sqs.declare import queue_options
from mqkit.backends.sqs.desk import Desk
from mqkit.backends.sqs.listener import SqsListener, new_queue, sweep
from mqkit.backends.sqs.names import Names
from mqkit.backends.sqs.options import Endpoint, SqsOptions
from mqkit.backends.sqs.places import Places, Route
from mqkit.backends.sqs.publisher import SqsPublisher
from mqkit.backends.sqs.receiver import SqsReceiver
from mqkit.backends.sqs.relay import Relay
from mqkit.backends.sqs.sender import Sender
from mqkit.errors import CapabilityMissing, ConfigError, Denied, NotFound

HOLD = 39_600.0  # seconds: 12 hours after its receive SQS hides a message no longer, and a handler needs some of them
RELAYED = 30  # seconds for which the relay hides what it sends on
TOO_FEW = 11  # receives after which AWS itself may move a message away before its crashes are counted here
FEW = 100  # ... before it was given back often enough
ASKED = "mqkit-asks"  # a queue that nobody has, by which credentials are tried


class SqsBackend:
    """See `base.Backend`. `sqs://`, which is AWS itself without a host."""

    virtual_clock: ClassVar[bool] = False

    def __init__(self, url: Url, clock: Clock) -> None:
        self._options = options = parse_options(SqsOptions, url)
        self._clients = Clients(Endpoint.of(url, options), options)
        self._places = Places(self._clients, Names(options.prefix))
        self._now = clock.now
        self._lock = threading.Lock()
        self._warned: dict[str, str] = {}
        self.capabilities = Capabilities(
            name="sqs",
            durable="yes",
            survives_process=True,
            processes=True,
            atomic=False,
            order_by_key=True,
            delay=math.inf,
            release=0.0,
            delay_resolution=1.0,
            ttl=True,
            priorities=0,
            replay=False,
            broadcast=True,
            counts_deliveries=False,
            in_order=False,
            lost="at_most",
            lease=float(options.visibility),
            wake=1.0,
            max_body=options.max_body,
            hold=HOLD,
            settles_at_once=True,
        )

    def publisher(self) -> Publisher:
        self._ask()
        return SqsPublisher(
            self._sender(self._options.connections),
            self._places,
            self._now,
            connections=self._options.connections,
            hop=self._options.hop,
        )

    def receiver(self, source: Declaration, window: int) -> Receiver:
        del window  # polls never ask for more than the room they are given
        address, options = source.address, self._options
        if address.kind == "broadcast":
            topic = self._places.find(address)
            sweep(self._places, topic, self._now())
            queue = new_queue(self._places, self._now())
            desk = self._desk(queue, RELAYED)
            return SqsListener(self._places, topic, queue, desk, self._sender(1), address, options, self._now)
        route = self._places.find(address)
        ordered = source.order == "key" and not address.dead
        if ordered and not route.fifo:
            raise ConfigError(
                f'{address}: order="key" needs a FIFO queue, and {route.native!r} is none; declare it with key='
            )
        self._look_at_redrive(route)
        return SqsReceiver(
            self._desk(route, options.visibility),
            address,
            self._relays(source, route),
            options,
            self._now,
            ordered=ordered,
            pause=queue_options(source).pause,
        )

    def admin(self) -> Admin:
        return SqsAdmin(self._places, self._desk, lambda: self._sender(1), self._now, hop=self._options.hop)

    def publish_within(self, native: Any, batch: Sequence[Outgoing]) -> None:
        raise CapabilityMissing(f"native={native!r}: sqs takes part in no transaction of yours")

    def warnings(self) -> Iterable[str]:
        self._ask()
        for native, url in self._places.queues(self._places.names.prefix):
            if 0 < (count := self._max_receives(Route("queue", url, native))) < FEW:
                yield (
                    f"queue {native!r} has a redrive policy of its own with maxReceiveCount={count}: AWS counts what is given "
                    f"back too, so it may move messages away that never failed; raise it to {FEW}, or remove it"
                )

    def close(self) -> None:
        """Publishers and receivers have clients of their own."""
        self._places.close()

    def after_fork(self) -> None:
        self._clients.after_fork()
        self._places.after_fork()

    # -- what it is made of --------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Is it there, and does it know us? SQS denies access to one queue where the credentials are good."""
        try:
            self._places.exists(self._places.names.prefix + ASKED)
        except Denied as exc:
            cause = exc.__cause__
            of_sqs = isinstance(cause, ClientError) and cause.operation_name == "GetQueueUrl"
            if not of_sqs or "AccessDenied" not in str(exc):
                raise

    def _sender(self, connections: int) -> Sender:
        make = self._clients.make
        return Sender(make("sqs", connections=connections), lambda: make("sns", connections=connections))

    def _desk(self, route: Route, visibility: int) -> Desk:
        options = self._options
        make, connections = (
            self._clients.make,
            options.connections + options.polls + 1,
        )  # settling, sending on, the owner
        sqs = make("sqs", connections=connections)
        fetch = make("sqs", connections=options.polls, wait=float(options.wait))
        return Desk(route, fetch, sqs, Sender(sqs, lambda: make("sns", connections=options.polls)), visibility)

    def _relays(self, source: Declaration, route: Route) -> list[Relay]:
        """For what is delayed for the topic of a group, and for what a FIFO queue cannot delay itself."""
        address = source.address
        targets = [address._replace(group="")] if address.group and not address.dead else []
        if route.fifo:
            targets.append(address)
        relays = []
        for target in targets:
            try:
                queue = self._places.delay(target)
            except NotFound:
                continue  # nobody declared it, so nothing can have been delayed
            relays.append(Relay(self._desk(queue, RELAYED), target, self._places, self._options, self._now))
        return relays

    def _look_at_redrive(self, route: Route) -> None:
        if 0 < (count := self._max_receives(route)) <= TOO_FEW:
            raise ConfigError(
                f"queue {route.native!r} has a redrive policy of its own with maxReceiveCount={count}, by which AWS would "
                f"move messages away before they had their attempts here; raise it to {FEW}, or remove it"
            )

    def _max_receives(self, route: Route) -> int:
        """Of the queue's own redrive policy; 0 without one."""
        what = f"looking at the redrive policy of {route.native!r}"
        reply = self._places.sqs.call(
            "get_queue_attributes", what, QueueUrl=route.target, AttributeNames=["RedrivePolicy"]
        )
        policy = reply.get("Attributes", {}).get("RedrivePolicy")
        return int(json.loads(policy).get("maxReceiveCount", 0)) if policy else 0
