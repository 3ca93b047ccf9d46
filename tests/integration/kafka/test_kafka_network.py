"""The driver's clients, where the cluster falls silent while one is made."""

from __future__ import annotations

import gc
import logging
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

from mqkit._url import Url, parse_options
from mqkit.backends.kafka import consumer, control, producer
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.errors import Unavailable
from mqkit.testing.brokers import KafkaProcess
from mqkit.testing.chaos import FaultProxy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kafka"), pytest.mark.timeout(60)]


@pytest.fixture
def cluster(kafka: KafkaProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Says nothing, which is not noticed before a client is made."""
    for module in (consumer, control, producer):
        monkeypatch.setattr(module, "probe", lambda _: None)  # it has answered a moment ago
    with FaultProxy("127.0.0.1", kafka.start().proxied_port, at=kafka.proxy_port) as proxy:
        proxy.freeze()
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
    make: Callable[[Cluster], object], cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="kafka")  # what is logged holds on to what it tells of
    gc.collect()  # what others have left
    before = set(threading.enumerate())

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(Unavailable):
            make(cluster)
        gc.collect()

    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("kafka")]
    assert [str(warning.message) for warning in warned if issubclass(warning.category, ResourceWarning)] == []
