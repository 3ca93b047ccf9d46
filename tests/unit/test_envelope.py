"""The envelope as text headers, of which a foreign sender may have written some."""

from __future__ import annotations

import pytest

from mqkit.envelope import Dead, Envelope, from_headers, to_headers

FULL = Envelope(
    "Order", "application/json", "c1", "m0", "answers", 12.5, 3, 7.25, Dead("failed", "KeyError", 2, "queue/a", 9.5, 4)
)


@pytest.mark.parametrize("envelope", [Envelope(), FULL])
def test_what_goes_out_comes_back(envelope: Envelope) -> None:
    assert from_headers(to_headers(envelope) | {"colour": "red"}) == (envelope, {"colour": "red"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mq-attempt", "many"),
        ("mq-attempt", "0"),
        ("mq-dead-priority", "256"),
        ("mq-dead-priority", "-1"),
        ("mq-attempt", "9" * 400),
        ("mq-attempt", "9" * 5000),
        ("mq-attempt", "-" + "9" * 400),
        ("mq-since", "nan"),
        ("mq-since", "-inf"),
        ("mq-sent-at", "1e300"),
        ("mq-dead-died-at", "1e12"),
        ("mq-dead-attempts", "1e3"),
        ("mq-unheard-of", "x"),
    ],
    ids=lambda text: text[:20],
)
def test_what_could_not_be_counted_on_or_shown_is_not_there(name: str, text: str) -> None:
    assert (
        from_headers(to_headers(FULL) | {name: text})[0]
        == from_headers({header: value for header, value in to_headers(FULL).items() if header != name})[0]
    )
