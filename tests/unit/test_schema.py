"""Payload types to bytes and back, and what is refused in between."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest

from mqkit._schema import Schema, is_wider
from mqkit.codecs import JSON, MSGPACK, RAW, TEXT
from mqkit.envelope import Envelope
from mqkit.errors import ConfigError, Undecodable, Unencodable


@dataclasses.dataclass
class Placed:
    id: str
    amount: int = 0


@dataclasses.dataclass
class Cancelled:
    id: str


class Tagged(msgspec.Struct, tag="tagged.v1"):
    id: int


class Row(TypedDict):
    id: int


class Model(pydantic.BaseModel):
    id: int


class Base(msgspec.Struct):
    id: int


class Derived(Base):
    more: int = 0


class Leaf(Derived):
    pass


class Other:
    pass


def round_trip(type: Any, payload: Any, codec: Any = JSON) -> Any:
    schema = Schema("orders", type, codec)
    wire, body = schema.encode(payload)
    return schema.decode(body, Envelope(wire, codec.content_type))


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
@pytest.mark.parametrize(
    ("type", "payload"),
    [
        (Placed, Placed("1", 5)),
        (Placed | Cancelled, Cancelled("1")),
        (Placed | Tagged | Model, Tagged(3)),
        (Placed | Model, Model(id=4)),
        (Tagged, Tagged(1)),
        (Model, Model(id=1)),
        (Row, {"id": 1}),
        (dict, {"a": [1, None, "x"]}),
        (dict[str, int], {"a": 1}),
        (list[Placed], [Placed("1")]),
        (list[Model], [Model(id=1)]),
        (str, "grün"),
        (int | str, 5),
        (bytes, b"\x00\xff"),
        (float, 3),
        (int | bool, True),
        (Annotated[int, msgspec.Meta(ge=0)], 3),
        (Base | Derived, Derived(1, 2)),
        (Derived | Base, Base(1)),
        (Placed | None, None),
        (Any, {"anything": [1]}),
    ],
)
def test_a_payload_comes_back_as_it_was(type: Any, payload: Any, codec: Any):
    assert round_trip(type, payload, codec) == payload


def test_raw_and_text_leave_the_body_alone():
    assert Schema("x", bytes, RAW).encode(bytes(range(256))) == ("", bytes(range(256)))
    assert Schema("x", str, TEXT).encode("grün")[1] == "grün".encode()
    assert round_trip(str, "grün", TEXT) == "grün"


def test_the_wire_names_the_class_or_its_tag():
    schema = Schema("orders", Placed | Tagged, JSON)
    assert schema.encode(Placed("1"))[0] == "Placed"
    assert schema.encode(Tagged(1))[0] == "tagged.v1"


@pytest.mark.parametrize(
    ("type", "payload"),
    [
        (Placed, "oops"),
        (Placed | Cancelled, Other()),
        (str, 5),
        (dict, [1]),
        (int, 1.5),
        (int, True),
        (Annotated[int, msgspec.Meta(ge=0)], "3"),
    ],
)
def test_a_payload_of_another_type_is_refused_before_anything_is_sent(type: Any, payload: Any):
    with pytest.raises(Unencodable, match="orders"):
        Schema("orders", type, JSON).encode(payload)


def test_an_instance_of_no_member_is_the_nearest_class_it_derives_from():
    assert Schema("x", Base | Derived, JSON).encode(Leaf(1, 2))[0] == "Derived"


def test_a_payload_that_cannot_be_serialised_is_refused():
    with pytest.raises(Unencodable, match="Other"):
        Schema("orders", dict, JSON).encode({"a": Other()})


@pytest.mark.parametrize(
    ("body", "wire"),
    [(b"{", "Placed"), (b"[]", "Placed"), (b'{"id": 1}', "Placed"), (b"{}", "Shipped"), (b"\xff", "Placed")],
)
def test_a_body_that_does_not_fit_is_undecodable(body: bytes, wire: str):
    with pytest.raises(Undecodable):
        Schema("orders", Placed, JSON).decode(body, Envelope(wire, JSON.content_type))


def test_a_foreign_body_without_a_type_name_is_tried_as_the_only_type():
    assert Schema("orders", Placed, JSON).decode(b'{"id": "1"}', Envelope()) == Placed("1")


def test_a_foreign_body_that_could_be_either_type_is_undecodable():
    with pytest.raises(Undecodable, match="type name"):
        Schema("orders", Placed | Cancelled, JSON).decode(b'{"id": "1"}', Envelope())


def test_a_body_in_the_other_structured_codec_is_read_by_its_content_type():
    wire, body = Schema("orders", Placed | Cancelled, MSGPACK).encode(Cancelled("1"))
    decoded = Schema("orders", Placed | Cancelled, JSON).decode(body, Envelope(wire, MSGPACK.content_type))
    assert decoded == Cancelled("1")


def test_a_type_that_no_codec_carries_is_refused_at_declaration():
    with pytest.raises(ConfigError):
        Schema("orders", Placed, RAW)


def test_two_types_with_one_wire_name_are_refused():
    class Tagged2(msgspec.Struct, tag="tagged.v1"):
        id: int

    with pytest.raises(ConfigError, match="share a name"):
        Schema("orders", Tagged | Tagged2, JSON)


@pytest.mark.parametrize(
    ("annotation", "payload", "wider"),
    [
        (Placed, Placed, True),
        (Placed | Cancelled, Placed, True),
        (Placed, Placed | Cancelled, False),
        (object, Placed, True),
        (Any, Placed | None, True),
        (str, Placed, False),
        (dict, Row, True),
        (dict, dict[str, int], True),
        (pydantic.BaseModel, Model, True),
        (int, Annotated[int, msgspec.Meta(ge=0)], True),
        (str, Annotated[int, msgspec.Meta(ge=0)], False),
        (list[int], list[Annotated[int, msgspec.Meta(ge=0)]], True),
    ],
)
def test_a_handler_may_take_more_than_is_sent_and_never_less(annotation: Any, payload: Any, wider: bool):
    assert is_wider(annotation, payload) is wider
