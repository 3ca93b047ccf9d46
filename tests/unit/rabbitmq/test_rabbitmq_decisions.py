"""What the RabbitMQ backend decides without a server: names, tags, places, steps, headers, errors, options."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pika
import pika.frame
import pika.spec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pika import exceptions as amqp
from pika.adapters.utils import connection_workflow as flow

from mqkit._url import Url, parse_options
from mqkit.backends.base import Address, Declaration, Outgoing, Received
from mqkit.backends.parked import Parked, Waiting
from mqkit.backends.rabbitmq import deliveries, frames, names, topology, wire
from mqkit.backends.rabbitmq.errors import CODES, ERRORS, nested, refusal, translate
from mqkit.backends.rabbitmq.options import RabbitOptions, Server
from mqkit.backends.rabbitmq.stream import decoded_frame
from mqkit.backends.rabbitmq.tags import Tags
from mqkit.envelope import Dead, Envelope
from mqkit.errors import (
    ConfigError,
    Denied,
    MessageTooLarge,
    MqkitError,
    NotFound,
    TopologyMismatch,
    Unavailable,
    Unencodable,
)
from mqkit.native import RabbitQueue, RabbitTopic

text = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=40)
FRAME = 131_072


def server(url: str) -> Server:
    parsed = Url.parse(url)
    return Server.of(parsed, parse_options(RabbitOptions, parsed))


class TestNames:
    @given(name=text, group=text, dead=st.booleans(), partition=st.integers(0, 9999) | st.none())
    def test_every_queue_leads_back_to_its_address(
        self, name: str, group: str, dead: bool, partition: int | None
    ) -> None:
        for address in (Address("queue", name, dead=dead), Address("topic", name, group, dead)):
            queue = names.queue_of(address)
            if partition is not None and not dead:
                queue = names.partition_queue(queue, partition)
            assert names.address_of_queue(queue, names.full_name(address)) == address

    @given(name=text, kind=st.sampled_from(["topic", "broadcast"]))
    def test_every_exchange_leads_back_to_its_address(self, name: str, kind: str) -> None:
        address = Address(kind, name)  # type: ignore[arg-type]
        assert names.address_of_exchange(names.exchange_of(address)) == address

    @given(one=text, other=text)
    def test_two_names_never_share_a_way_through_the_ladder(self, one: str, other: str) -> None:
        ways = {names.way_to_queue(one), names.way_to_queue(other), names.way_to_topic(one, 0)}
        assert len(ways) == (2 if one == other else 3)
        assert not any(set("*#") & set(way) for way in ways)

    @given(one=text, other=text, partition=st.integers(0, 9), subject=text)
    def test_what_waits_for_one_topic_is_bound_to_no_other(
        self, one: str, other: str, partition: int, subject: str
    ) -> None:
        assume(one != other)
        pattern = names.way_to_topic(one, "#").split(".")
        for rest in (partition, f"{partition}.{subject}", subject):
            for name, fits in ((one, True), (other, False), (f"{one}.{other}", False)):
                words = names.way_to_topic(name, rest).split(".")
                assert (words[: len(pattern) - 1] == pattern[:-1]) is fits

    def test_names_of_the_server_and_of_the_backend_are_out_of_reach(self) -> None:
        for name in ("amq.topic", "mqkit.deliver", "mqkit.delay.3"):
            assert names.queue_of(Address("queue", name)) != name
            assert names.exchange_of(Address("topic", name)) != name

    @pytest.mark.parametrize("address", [Address("queue", "x" * 197), Address("topic", "ü" * 98, "y" * 197)])
    def test_the_longest_names_fit_with_all_that_is_added_to_them(self, address: Address) -> None:
        queue = names.partition_queue(names.queue_of(address), 9999)
        for name in (queue, names.queue_of(address.dead_letters), names.notes_of(address)):
            assert len(name.encode()) <= 255
        assert len(names.delayed_key(1, names.way_to_queue(names.queue_of(address))).encode()) <= 255

    @given(st.floats(0.001, names.LONGEST_DELAY))
    def test_a_delay_is_never_shortened_and_enters_at_its_highest_bit(self, delay: float) -> None:
        units = names.units_of(delay)
        bits = names.delayed_key(units, "q.a").split(".")[: names.RUNGS]

        assert units * names.UNIT >= delay - 1e-6 * names.UNIT
        assert sum(2**level for level, bit in enumerate(reversed(bits)) if bit == "1") == units
        assert names.entrance(units) == names.rung(names.RUNGS - 1 - bits.index("1"))


class TestTags:
    @given(st.data())
    def test_acknowledgements_settle_exactly_what_is_done(self, data: st.DataObject) -> None:
        tags, unsettled, acknowledged, done = Tags(), set[int](), set[int](), set[int]()
        for tag in range(1, data.draw(st.integers(1, 30)) + 1):
            tags.came(tag)
            unsettled.add(tag)
        for _ in range(4):
            open_ = sorted(unsettled - done)
            for tag in data.draw(st.lists(st.sampled_from(open_), unique=True)) if open_ else []:
                tags.done(tag)
                done.add(tag)
            for tag, multiple in tags.acknowledgements():
                assert tag in unsettled, "the server closes the channel"
                covered = {one for one in unsettled if one <= tag} if multiple else {tag}
                assert covered <= done
                unsettled -= covered
                acknowledged |= covered
            assert acknowledged == done
            back = data.draw(st.lists(st.sampled_from(sorted(unsettled)), unique=True)) if unsettled else []
            for tag, multiple in tags.returned(back):
                covered = {one for one in unsettled if one <= tag} if multiple else {tag}
                assert covered <= set(back)
                unsettled -= covered


def message(key: str | None, id: str = "id") -> Received:
    return Received(0, Address("queue", "q"), id, b"", key, {}, Envelope())


class TestManyTags:
    def test_what_is_settled_behind_one_that_is_not_is_forgotten(self) -> None:
        tags = Tags()
        for tag in range(1, 100_001):
            tags.came(tag)
            if tag > 1:
                tags.done(tag)
            assert [*tags.acknowledgements()] == ([(tag, False)] if tag > 1 else [])

        assert len(tags._order) + len(tags._over) < 5000
        tags.done(1)
        assert [*tags.acknowledgements()] == [(1, False)]


class TestParked:
    def test_a_key_waits_for_its_first_and_others_do_not(self) -> None:
        parked = Parked()
        for waiting in (Waiting(3, message("a")), Waiting(1, message("a"), due=5.0), Waiting(2, message("b"), due=1.0)):
            parked.put(waiting)

        assert [one.tag for one in parked.take(10, now=2.0)] == [2]
        assert parked.holds(message("a"))
        assert not parked.holds(message("b"))
        assert parked.next_due() == 5.0
        assert [one.tag for one in parked.take(10, now=5.0)] == [1, 3]
        assert len(parked) == 0

    def test_what_does_not_fit_keeps_its_place(self) -> None:
        parked = Parked()
        for tag in (1, 2, 3):
            parked.put(Waiting(tag, message("a")))

        assert [one.tag for one in parked.take(2, now=0.0)] == [1, 2]
        parked.put(Waiting(1, message("a"), due=1.0))
        assert parked.take(9, now=0.5) == []
        assert [one.tag for one in parked.take(9, now=1.0)] == [1, 3]

    def test_messages_without_a_key_wait_for_nobody(self) -> None:
        parked = Parked()
        parked.put(Waiting(1, message(None), due=9.0))
        parked.put(Waiting(2, message(None)))

        assert [one.tag for one in parked.take(9, now=0.0)] == [2]


class TestTopology:
    def test_everything_is_made_before_it_is_used(self) -> None:
        source = Declaration(Address("topic", "orders", "billing"), keyed=True, partitions=3, order="key")
        there: set[str] = set()
        for step in [*topology.steps(source), *topology.ladder()]:
            if isinstance(step, topology.Exchange | topology.Queue):
                there.add(step.name)
            elif isinstance(step, topology.Bind):
                assert {step.queue, step.exchange} <= there
            else:
                assert {step.target, step.source} <= there

    def test_no_quorum_queue_has_a_limit_of_hand_outs_that_could_drop_a_message(self) -> None:
        source = Declaration(Address("queue", "emails"))
        queues = [one for one in [*topology.steps(source), *topology.ladder()] if isinstance(one, topology.Queue)]
        assert len(queues) > 28
        assert {one.arguments["x-delivery-limit"] for one in queues} == {2**31 - 1}

    @pytest.mark.parametrize(
        ("declaration", "words"),
        [
            (Declaration(Address("queue", "q"), keyed=True, priorities=3, order="key"), "priorities"),
            (Declaration(Address("queue", "q"), priorities=3, native=RabbitQueue(type="quorum")), "quorum"),
            (Declaration(Address("queue", "q"), native=RabbitQueue(arguments={"x-max-length": 3})), "x-max-length"),
            (Declaration(Address("topic", "t"), partitions=3, native=RabbitTopic(subject="s")), "partitions"),
        ],
    )
    def test_what_does_not_go_together_is_refused_by_name(self, declaration: Declaration, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            list(topology.steps(declaration))

    def test_groups_get_what_their_patterns_or_headers_match(self) -> None:
        options = RabbitTopic(subject="subject", bindings={"eu": ["order.eu.*"], "all": "#"})
        for group, expected in (("eu", "order.eu.*"), ("all", "#"), ("other", "#")):
            source = Declaration(Address("topic", "orders", group), native=options)
            keys = [
                one.key for one in topology.steps(source) if isinstance(one, topology.Bind) and one.exchange == "orders"
            ]
            assert keys[0] == expected


class TestWire:
    @given(
        id=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=200),
        key=text | st.none(),
        headers=st.dictionaries(
            text.filter(lambda name: name[:3].lower() != "mq-" and name[:2] != "x-"), text, max_size=4
        ),
        priority=st.integers(0, 9),
    )
    def test_a_message_comes_back_as_it_was_published(
        self, id: str, key: str | None, headers: dict[str, str], priority: int
    ) -> None:
        envelope = Envelope(
            "Order", "application/json", "c" * 300, "cause", "reply", 1.5, 2, 7.25, Dead("no", "E", 2, "q", 3.0)
        )
        sent = Outgoing(
            Address("queue", "q"), id, b"body", key, headers, envelope, delay=1.0, ttl=2.0, priority=priority
        )
        encoded = b"".join(wire.properties(sent, now=100.0).encode())
        decoded = pika.BasicProperties()
        decoded.decode(encoded)

        got = wire.received(sent.address, 1, _Method(), decoded, b"body", counted=True)

        assert (got.id, got.key, got.headers, got.envelope) == (id, key, headers, envelope)
        assert (got.attempt, got.since, got.priority, got.expires_at) == (2, 7.25, priority, 103.0)

    @pytest.mark.parametrize("text", ["nan", "inf", "-inf", "soon"])
    def test_an_expiry_that_is_none_is_not_there(self, text: str) -> None:
        properties = pika.BasicProperties(headers={"mq-expires": text})

        assert wire.received(Address("queue", "q"), 1, _Method(), properties, b"", counted=True).expires_at is None

    def test_headers_that_would_close_the_connection_are_refused_before(self) -> None:
        for headers, error in (({"h" * 300: "v"}, Unencodable), ({"h": "☃" * 60_000}, MessageTooLarge)):
            sent = Outgoing(Address("queue", "q"), "id", b"", None, headers, Envelope())
            assert isinstance(wire.refused(sent, wire.properties(sent, 0.0), FRAME), error)

    def test_what_the_server_added_is_not_taken_for_headers_of_the_user(self) -> None:
        properties = pika.BasicProperties(headers={"x-delivery-count": 3, "x-death": [{}], "colour": "red", "n": 5})
        got = wire.received(Address("queue", "q"), 1, _Method(), properties, b"", counted=True)

        assert (got.headers, got.lost) == ({"colour": "red", "n": "5"}, 3)
        assert got.id


class TestFrames:
    @given(
        id=st.text(min_size=1, max_size=60),
        headers=st.dictionaries(text, text, max_size=3),
        priority=st.integers(0, 200),
        size=st.integers(0, 70),
    )
    def test_frames_are_those_of_pika(self, id: str, headers: dict[str, str], priority: int, size: int) -> None:
        try:
            id.encode()
        except UnicodeEncodeError:
            return
        sent = Outgoing(
            Address("queue", "q"), id, bytes(size), None, headers, Envelope("T", "c", "x"), priority=priority
        )
        properties = wire.properties(sent, 0.0)

        encoded = frames.publish(3, "e", "k", True, properties, sent.body, 20)

        theirs = pika.frame.Method(3, pika.spec.Basic.Publish(exchange="e", routing_key="k", mandatory=True)).marshal()
        theirs += pika.frame.Header(3, size, properties).marshal()
        theirs += b"".join(pika.frame.Body(3, sent.body[at : at + 20]).marshal() for at in range(0, size, 20))
        assert encoded == theirs
        assert frames.SOUND


DELIVER = pika.spec.Basic.Deliver("a consumer", 1 << 40, True, "exchange", "kéy")


def delivered(properties: pika.BasicProperties, body: bytes, largest: int) -> bytes:
    """The frames of a delivery, as pika writes them."""
    written: bytes = pika.frame.Method(3, DELIVER).marshal() + pika.frame.Header(3, len(body), properties).marshal()
    pieces = range(0, len(body), largest)
    return written + b"".join(pika.frame.Body(3, body[at : at + largest]).marshal() for at in pieces)


class TestDeliveries:
    @given(
        id=st.text(max_size=60),
        headers=st.none() | st.dictionaries(text, text | st.integers(-(1 << 63), (1 << 63) - 1), max_size=3),
        priority=st.none() | st.integers(0, 200),
        body=st.binary(max_size=70),
        before=st.binary(max_size=9),
        after=st.binary(max_size=9),
    )
    def test_deliveries_are_decoded_as_pika_does(
        self,
        id: str,
        headers: dict[str, str | int] | None,
        priority: int | None,
        body: bytes,
        before: bytes,
        after: bytes,
    ) -> None:
        try:
            properties = pika.BasicProperties(headers=headers, priority=priority, message_id=id, delivery_mode=2)
            written = delivered(properties, body, 100)
        except (UnicodeEncodeError, amqp.ShortStringTooLong):
            return
        read = deliveries.read(before + written + after, len(before))

        end = len(before) + len(written)
        assert read == deliveries.Delivery(3, DELIVER, properties, body, end)
        assert deliveries.SOUND

    def test_headers_that_pika_cannot_read_are_left_out(self) -> None:
        properties = pika.BasicProperties("a", "b", headers={"when": 1_700_000_000_000}, priority=2, message_id="m")
        written = (
            pika.frame.Header(3, 5, properties).marshal().replace(b"\x04whenl", b"\x04whenT")
        )  # a time in milliseconds
        with pytest.raises(ValueError, match="year"):
            pika.frame.decode_frame(written)

        header = decoded_frame(b"before" + written, 6, len(written))

        assert (header.channel_number, header.body_size) == (3, 5)
        assert header.properties == pika.BasicProperties("a", "b", priority=2, message_id="m")

    def test_half_a_delivery_is_incomplete(self) -> None:
        properties = pika.BasicProperties("json", headers={"a": "b"}, priority=1, message_id="1", type="t")
        written = delivered(properties, b"hello", 100)
        for length in range(len(written)):
            with pytest.raises(deliveries.Incomplete):
                deliveries.read(written[:length], 0)

    @pytest.mark.parametrize(
        "written",
        [
            pika.frame.Heartbeat().marshal(),
            pika.frame.Method(3, pika.spec.Basic.QosOk()).marshal(),
            delivered(pika.BasicProperties(), b"too long for one frame", 8),
            delivered(pika.BasicProperties(user_id="u"), b"", 8),
            delivered(pika.BasicProperties(headers={"list": [1]}), b"", 8),
            delivered(pika.BasicProperties(headers={"bytes": b"\xff"}), b"", 8),
            delivered(pika.BasicProperties(message_id=b"\xff"), b"", 8),
            delivered(pika.BasicProperties(headers={b"\xff": "name"}), b"", 8),
            delivered(pika.BasicProperties(), b"body", 8)[:-1] + b"\x00",
            pika.frame.Method(3, DELIVER).marshal() + pika.frame.Heartbeat().marshal() + bytes(40),
        ],
        ids=["heartbeat", "method", "long", "property", "list", "bytes", "id", "name", "end", "between"],
    )
    def test_anything_else_is_left_to_pika(self, written: bytes) -> None:
        assert deliveries.read(written + bytes(30), 0) is None


class _Method:
    exchange, routing_key = "", "q"


def exception_classes() -> Iterator[type[BaseException]]:
    for module in (amqp, flow):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.__name__:
                yield value


class TestErrors:
    @pytest.mark.parametrize("cls", list(exception_classes()), ids=lambda cls: cls.__name__)
    def test_every_exception_of_pika_has_a_row(self, cls: type[BaseException]) -> None:
        assert cls in ERRORS

    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            (amqp.StreamLostError("Stream connection lost: EOF"), Unavailable),
            (amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED - broker forced connection closure"), Unavailable),
            (amqp.ConnectionClosedByBroker(530, "NOT_ALLOWED - connection limit (5) is reached"), Unavailable),
            (amqp.ConnectionClosedByBroker(403, "ACCESS_REFUSED - Login was refused"), Denied),
            (amqp.ConnectionClosedByBroker(530, "NOT_ALLOWED - access to vhost 'a' refused"), Denied),
        ],
    )
    @pytest.mark.parametrize("guess", [amqp.ProbableAuthenticationError, amqp.ProbableAccessDeniedError])
    def test_an_end_during_the_handshake_is_a_refusal_where_the_server_says_so(
        self, guess: type[amqp.AMQPError], reason: amqp.AMQPError, kind: type[MqkitError]
    ) -> None:
        hidden = flow.AMQPConnectionWorkflowFailed([flow.AMQPConnectorAMQPHandshakeError(guess(repr(reason)))])

        assert type(translate(hidden, "RabbitMQ")) is kind

    def test_a_cause_is_found_wherever_pika_hides_it(self) -> None:
        cause = ssl.SSLCertVerificationError("certificate verify failed: CERTIFICATE_VERIFY_FAILED")
        hidden = flow.AMQPConnectionWorkflowFailed([flow.AMQPConnectorTransportSetupError(cause)])

        error = translate(hidden, "RabbitMQ")

        assert cause in list(nested(hidden))
        assert isinstance(error, Denied)
        assert error.__cause__ is hidden

    @pytest.mark.parametrize(("code", "kind"), [(403, Denied), (404, NotFound), (406, TopologyMismatch)])
    def test_a_refusal_says_what_was_asked_and_what_the_server_said(self, code: int, kind: type[MqkitError]) -> None:
        error = refusal(amqp.ChannelClosedByBroker(code, "its words"), "declaring x")

        assert code in CODES
        assert isinstance(error, kind)
        assert "declaring x" in str(error)
        assert "its words" in str(error)


class TestUrl:
    def test_a_password_is_nowhere_to_be_seen(self) -> None:
        one = server("amqp://me:s3cret@host/vhost")
        for shown in (str(one), repr(one), repr(one.parameters()), repr(one.parameters()[0].credentials)):
            assert "s3cret" not in shown

    @pytest.mark.parametrize(
        ("url", "vhost"), [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2F", "/"), ("amqp://h/a%2Fb", "a/b")]
    )
    def test_a_vhost_is_the_path(self, url: str, vhost: str) -> None:
        assert server(url).vhost == vhost

    def test_more_hosts_are_tried_in_any_order(self) -> None:
        one = server("amqps://a?hosts=b:5000,c")
        assert {(each.host, each.port) for each in one.parameters()} == {("a", 5671), ("b", 5000), ("c", 5671)}

    @pytest.mark.parametrize(
        "url",
        [
            "amqp://",
            "amqp://h?lease=0",
            "amqp://h?ca=x.pem",
            "amqps://h?cert=x.pem",
            "amqps://h?auth=external",
            "amqp://h?hosts=b:x",
            "amqp://h?leese=3",
            "amqps://h?ca=/nowhere.pem",
            "amqp://h?max_body=5",
        ],
    )
    def test_a_wrong_url_is_refused_before_anything_connects(self, url: str) -> None:
        with pytest.raises(ConfigError):
            server(url)
