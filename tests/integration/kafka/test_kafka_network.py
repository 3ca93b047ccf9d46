"""The driver's clients, in a cluster that falls silent while one is made."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

from mqkit._url import Url, parse_options
from mqkit.backends.kafka import consumer, control, producer
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.backends.kafka.probe import probe
from mqkit.errors import Unavailable
from mqkit.testing.brokers import KafkaProcess
from mqkit.testing.chaos import FaultProxy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kafka"), pytest.mark.timeout(60)]


@pytest.fixture
def cluster(kafka: KafkaProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Answers until it has been found there, and nothing afterwards."""
    with FaultProxy("127.0.0.1", kafka.start().proxied_port, at=kafka.proxy_port) as proxy:

        def last_answers(cluster: Cluster) -> None:
            probe(cluster)
            proxy.freeze()

        for module in (consumer, control, producer):
            monkeypatch.setattr(module, "probe", last_answers)
        url = Url.parse(f"{proxy.through(kafka.url)}?patience=1")
        yield Cluster.of(url, parse_options(KafkaOptions, url))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda cluster: consumer.Consumer(cluster, fetch_bytes=1 << 20), id="consumer"),
        pytest.param(control.Control, id="control"),
        pytest.param(producer.Producer, id="producer"),
    ],
)
def test_a_client_that_cannot_be_made_leaves_neither_threads_nor_sockets(
    make: Callable[[Cluster], object], cluster: Cluster
) -> None:
    before = set(threading.enumerate())

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(Unavailable):
            make(cluster)
        gc.collect()

    assert set(threading.enumerate()) <= before
    assert [str(warning.message) for warning in warned if issubclass(warning.category, ResourceWarning)] == []
