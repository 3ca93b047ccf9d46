"""What the conformance suite computes by itself, where no backend of this package asks for it yet."""

from __future__ import annotations

import pytest

from mqkit.testing.conformance.ordering import murmur2


# Source: org.apache.kafka.common.utils.UtilsTest.testMurmur2, Apache Kafka 4.
@pytest.mark.parametrize(
    ("key", "hash"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_are_hashed_as_kafkas_own_clients_do(key: bytes, hash: int) -> None:
    assert murmur2(key) == hash & 0x7FFFFFFF
