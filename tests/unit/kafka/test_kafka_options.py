"""What a URL of Kafka may say, as far as no cluster is needed to know."""

from __future__ import annotations

import pytest
from kafka import codec

from mqkit._url import Url
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.errors import ExtraMissing


@pytest.mark.parametrize(
    ("compression", "library"), [("snappy", "python-snappy"), ("lz4", "lz4"), ("zstd", "zstandard")]
)
def test_a_compression_whose_library_is_not_installed_names_it(
    monkeypatch: pytest.MonkeyPatch, compression: str, library: str
) -> None:
    monkeypatch.setattr(codec, f"has_{compression}", lambda: False)

    with pytest.raises(ExtraMissing, match=f"pip install {library}"):
        Cluster.of(Url.parse("kafka://localhost"), KafkaOptions(compression=compression))  # type: ignore[arg-type]
