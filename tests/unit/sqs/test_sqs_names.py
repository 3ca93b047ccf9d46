"""Names of queues and topics."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqkit.backends.base import Address
from mqkit.backends.sqs.names import FIFO, Names, fifo_id, is_cut, restored, tags_of, whole

texts = st.text(st.sampled_from("ax41-_.é: hdely"), min_size=1, max_size=9)
addresses = st.one_of(
    st.builds(lambda name, dead: Address("queue", name, dead=dead), texts, st.booleans()),
    st.builds(lambda name, group, dead: Address("topic", name, group, dead), texts, texts, st.booleans()),
)
names = Names("shop-")


@given(addresses)
@example(Address("topic", "a", "x41"))
@example(Address("queue", "a--x41"))
@example(Address("queue", "a---dead"))
@example(Address("topic", "a", "-"))
def test_a_name_leads_back_to_its_address(address: Address) -> None:
    native = names.queue(address, fifo=False)

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", native)
    assert is_cut(native) or names.address(native) == (address, "dead" if address.dead else "")


@given(addresses, addresses)
def test_no_two_addresses_meet(one: Address, other: Address) -> None:
    assert (names.queue(one, fifo=True) == names.queue(other, fifo=True)) == (one == other)


@pytest.mark.parametrize("fifo", [False, True])
def test_a_name_that_is_too_long_is_cut_and_kept_in_tags(fifo: bool) -> None:
    address = Address("topic", "n" * 197, "g" * 197)

    native = names.queue(address, fifo=fifo)
    long = restored(native, tags_of(address, native), "shop-")

    assert len(native) == 80
    assert native.endswith(FIFO) == fifo
    assert whole(long.removeprefix("shop-").removesuffix(FIFO)) == (address, "")


def test_dead_letters_are_never_fifo() -> None:
    assert names.queue(Address("queue", "orders", dead=True), fifo=True) == "shop-orders---dead"


def test_what_waits_for_a_topic_and_for_a_queue_of_its_name_is_kept_apart() -> None:
    assert names.delay(Address("topic", "orders")) != names.delay(Address("queue", "orders"))


@pytest.mark.parametrize("text", ["order-7", "!" * 128, "~"])
def test_an_id_that_aws_takes_stays_as_it_is(text: str) -> None:
    assert fifo_id(text) == text


@pytest.mark.parametrize("text", ["", "two words", "ä", "a\n", "x" * 129, "mq:order"])
def test_any_other_becomes_a_digest(text: str) -> None:
    assert re.fullmatch(r"mq:[0-9a-f]{64}", fifo_id(text))
