"""The translation between messages and entries, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqkit.backends.base import Address, Outgoing
from mqkit.backends.redis import wire
from mqkit.backends.redis.keys import Keys, address_of, field_of
from mqkit.envelope import Dead, Envelope

EMAILS, KEYS = Address("queue", "emails"), Keys("{mqkit}:")

texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)


def outgoing(**options: object) -> Outgoing:
    values: dict[str, object] = {
        "address": EMAILS, "id": "the-id", "body": b"\x00\xff", "key": None, "headers": {}, "envelope": Envelope(),
    }  # fmt: skip
    return Outgoing(**(values | options))  # type: ignore[arg-type]


def fields_of(message: Outgoing) -> list[bytes]:
    id, key, head, body = wire.copy_of(message, KEYS, 1000.0)[6:10]
    assert isinstance(id, str)
    assert isinstance(key, str)
    assert isinstance(head, bytes)
    assert isinstance(body, bytes)
    return [b"id", id.encode(), b"key", key.encode(), b"h", head, b"body", body]


@given(st.binary(max_size=100), texts, st.dictionaries(texts, texts), texts)
def test_what_goes_out_comes_back(body: bytes, id: str, headers: dict[str, str], key: str) -> None:
    envelope = Envelope(type="T", sent_at=1.5, dead=Dead("why", attempts=3))
    sent = outgoing(body=body, id=id, headers=headers, key=key or None, envelope=envelope)

    got = wire.received(EMAILS, "stream", b"5-0", fields_of(sent))

    assert (got.body, got.id, got.headers, got.key, got.envelope) == (body, id, headers, key or None, envelope)
    assert (got.attempt, got.deliveries, got.lost, got.solo, got.expires_at) == (1, 1, 0, 0, None)
    assert got.native == ("stream", "5-0")


def test_handles_differ_also_for_one_entry() -> None:
    fields = fields_of(outgoing())
    assert len({wire.received(EMAILS, "stream", b"5-0", fields).handle for _ in range(3)}) == 3


def test_a_time_to_live_counts_from_when_the_message_is_due() -> None:
    got = wire.received(EMAILS, "stream", b"5-0", fields_of(outgoing(ttl=5.0, delay=60.0)))
    assert got.expires_at == 1065.0


def test_a_release_that_counts_nothing_keeps_all_counts() -> None:
    first = wire.received(EMAILS, "stream", b"5-0", fields_of(outgoing()), count=3, died_alone=1)
    copy = wire.released(first, "side", "", 0.0, None, None)
    again = wire.received(EMAILS, "side", b"6-0", [b"id", b"x", b"key", b"", b"h", copy[8], b"body", copy[9]])  # type: ignore[list-item]
    assert (first.attempt, first.deliveries, first.lost, first.solo) == (1, 3, 2, 1)
    assert (again.attempt, again.deliveries, again.lost, again.solo) == (1, 4, 2, 1)


def test_a_failed_attempt_begins_its_counts_anew_but_for_the_hand_outs() -> None:
    first = wire.received(EMAILS, "stream", b"5-0", fields_of(outgoing()), count=3, died_alone=1)
    copy = wire.released(first, "z", "zh", 1.5, 2, 1000.0)
    again = wire.received(EMAILS, "side", b"6-0", [b"id", b"x", b"key", b"", b"h", copy[8], b"body", copy[9]])  # type: ignore[list-item]
    assert copy[4] == 1500
    assert (again.attempt, again.since, again.deliveries, again.lost, again.solo) == (2, 1000.0, 4, 0, 0)


def test_a_note_keeps_the_counts_of_what_was_released_in_its_place() -> None:
    fields = fields_of(outgoing(key="k"))
    first = wire.received(EMAILS, "stream", b"5-0", fields, count=3)
    note = wire.note_of(first, first.lost, 7.25, None, None)
    again = wire.received(EMAILS, "stream", b"5-0", fields, count=first.lost + 1, note=note)
    assert note.startswith(b"7250 ")
    assert (again.attempt, again.deliveries, again.lost) == (1, 4, 2)


@pytest.mark.parametrize(
    ("fields", "body", "headers"),
    [
        ([b"body", b"b", b"colour", b"red"], b"b", {"colour": "red"}),
        ([b"payload", b"p", b"colour", b"red"], b"p", {"colour": "red"}),
        ([b"anything", b"x"], b"x", {}),
        ([b"a", b"1", b"b", b"2"], b'{"a":"1","b":"2"}', {}),
        ([b"id", b"i", b"key", b"", b"h", b"no json", b"body", b"b"], b"b", {"h": "no json"}),
    ],
)
def test_entries_of_other_clients_are_read_as_well_as_can_be(
    fields: list[bytes], body: bytes, headers: dict[str, str]
) -> None:
    got = wire.received(EMAILS, "stream", b"5-0", fields)
    assert (got.body, got.headers) == (body, headers)


def test_a_broadcast_is_a_line_of_json_and_the_body_as_it_is() -> None:
    ticks = Address("broadcast", "ticks")
    payload = wire.to_live(outgoing(address=ticks, key="k", headers={"a": "b"}, body=b"line\nline"), 0.0)

    got, foreign = wire.from_live(ticks, payload, 1), wire.from_live(ticks, b"hello", 2)

    assert payload.endswith(b"\nline\nline")
    assert (got.id, got.key, got.headers, got.body) == ("the-id", "k", {"a": "b"}, b"line\nline")
    assert foreign.body == b"hello"


def test_commands_are_packed_as_the_protocol_says() -> None:
    assert wire.pack("SET", b"\xff", 12) == b"*3\r\n$3\r\nSET\r\n$1\r\n\xff\r\n$2\r\n12\r\n"
    packed = wire.pack_adding("s")(outgoing(key="k"), b"{}")
    assert packed == wire.pack(
        "XADD", "s", "NOMKSTREAM", "*", "id", "the-id", "key", "k", "h", "{}", "body", b"\x00\xff"
    )


def test_a_delayed_message_is_unpacked_whatever_its_size() -> None:
    strings = [b"a", b"x" * 200, b"y" * 70_000]
    packed = b"\x93\xa1a" + b"\xd9\xc8" + strings[1] + b"\xdb" + (70_000).to_bytes(4, "big") + strings[2]
    assert wire.unpacked(packed) == strings


@pytest.mark.parametrize(
    "address",
    [
        EMAILS,
        EMAILS.dead_letters,
        Address("topic", "orders"),
        Address("topic", "orders", "billing"),
        Address("topic", "orders", "dead"),
        Address("topic", "orders", "dead", dead=True),
        Address("queue", "a:r"),
        Address("broadcast", "ticks"),
    ],
)
def test_names_of_addresses_can_be_undone(address: Address) -> None:
    assert address_of(field_of(address)) == address


def test_no_two_sources_share_a_key() -> None:
    names = ["a", "dead", "r", "z", "a:r"]
    addresses = [Address("queue", name) for name in names]
    addresses += [Address("topic", name, group) for name in names for group in names]
    addresses += [address.dead_letters for address in addresses]
    keys = [key for address in addresses for key in {*KEYS.unit(address).everything()}]
    keys += [KEYS.of(address) for address in addresses if not address.group or address.dead]
    keys += [KEYS.of(Address("topic", name)) for name in names]
    keys += [key for name in names for key in KEYS.waiting(Address("topic", name))]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("head", [b'{"more":%b}' % (b"[" * 3000 + b"]" * 3000), b'{"deliveries":%b}' % (b"9" * 400)])
def test_a_head_that_nobody_could_have_written_is_a_foreign_one(head: bytes) -> None:
    fields = fields_of(outgoing())
    fields[5] = head
    ticks = Address("broadcast", "ticks")

    assert wire.received(EMAILS, "stream", b"5-0", fields).body == fields[7]
    assert wire.from_live(ticks, b'{"mq":1,"id":"x",' + head[1:] + b"\nbody", 1).body


def test_an_entry_of_our_layout_whose_id_or_key_is_no_text_stops_nobody() -> None:
    for at in (1, 3):
        fields = fields_of(outgoing())
        fields[at] = b"\xff\xfe"

        got = wire.received(EMAILS, "stream", b"5-0", fields)

        assert got.body == fields[7]
        assert got.id
