"""Names of topics, there and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqkit.backends.base import Address
from mqkit.backends.kafka.names import LANES, LONGEST, Names, lane_for

names = Names("shop.")
text = st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"]) | st.sampled_from("_aF5.-"),
    min_size=1,
    max_size=12,
)
addresses = st.one_of(
    st.builds(lambda name, dead: Address("queue", name, "", dead), text, st.booleans()),
    st.builds(lambda name, group, dead: Address("topic", name, group, dead), text, text, st.booleans()),
    st.builds(lambda name: Address("broadcast", name), text),
)


@given(addresses)
def test_every_name_is_one_that_kafka_takes_and_leads_back(address: Address) -> None:
    topic = names.topic(address)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", topic)
    assert len(topic) <= LONGEST
    assert "__x" in topic or names.address(topic) == address


@given(addresses, addresses)
def test_two_addresses_have_two_topics(one: Address, other: Address) -> None:
    assert (names.topic(one) == names.topic(other)) == (one == other)


def test_usual_names_stay_as_they_are() -> None:
    assert names.topic(Address("queue", "order_mails")) == "shop.order_mails__queue"
    assert names.topic(Address("topic", "orders", "billing")) == "shop.orders__retry.billing"
    assert names.topic(Address("topic", "orders", "billing", True)) == "shop.orders__dead.billing"
    assert names.sources(Address("topic", "orders", "billing")) == ["shop.orders", "shop.orders__retry.billing"]
    assert names.group(Address("topic", "orders", "billing")) == "shop.orders/billing"


def test_a_name_that_is_too_long_is_shortened_and_stays_one_of_a_kind() -> None:
    long = [names.topic(Address("queue", "a" * 300 + end)) for end in "xy"]
    assert len(set(long)) == 2
    assert {len(topic) for topic in long} == {LONGEST}
    assert [names.address(topic) for topic in long] == [None, None]


@pytest.mark.parametrize("topic", ["other.emails", "shop.mqkit__delay.0.1s", "__consumer_offsets"])
def test_what_is_not_ours_has_no_address(topic: str) -> None:
    assert names.address(topic) is None


@given(st.floats(0.001, 1e9))
def test_a_lane_is_never_longer_than_what_is_left_unless_it_is_the_shortest(delay: float) -> None:
    assert lane_for(delay) == LANES[0] or lane_for(delay) <= delay
