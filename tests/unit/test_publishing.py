"""What a publisher can rely on when things go wrong: every accepted message is answered once, truthfully and in order."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import resource
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from mqkit import Bus, Message, PublishFailed, PublishUnknown, Queue, TimedOut, _publish
from mqkit._spill import Spill
from mqkit._ticket import Ticket
from mqkit.backends.base import Address, Outgoing
from mqkit.backends.memory import MemoryAdmin, MemoryBackend, MemoryPublisher
from mqkit.envelope import Envelope
from mqkit.errors import BlockingCall, BufferFull, Closed, ConfigError, Denied, Lost, MqkitError, NotFound, Unencodable
from mqkit.native import SqliteTransaction

numbers = Queue("numbers", int)
others = Queue("others", int)


@contextmanager
def silence(bus: Bus) -> Iterator[None]:
    """Nothing that is published to a memory broker gets an answer meanwhile."""
    bus.open()
    with bus.link.backend._broker.lock:  # type: ignore[attr-defined]
        yield


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Another program holds the write lock of a SQLite file."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def stored(bus: Bus, queue: Queue[int] = numbers) -> list[int]:
    """What is in the queue of an open bus, in order."""
    admin = bus.link.backend.admin()
    try:
        found = admin.browse(queue.address, limit=100_000)
    finally:
        admin.close()
    return [int(one.body) for one in found]


def failure(future: Future[str]) -> type[BaseException] | None:
    error = future.exception(10.0)
    return type(error) if error is not None else None


def all_done(futures: list[Future[str]]) -> bool:
    return all(future.done() for future in futures)


# -- spilling ----------------------------------------------------------------------------------------------------------


def test_what_spills_is_neither_lost_nor_overtaken():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(25):
            bus = Bus("memory://", overflow="spill", buffer=5)
            bus.declare(numbers)
            for number in range(1500):
                bus.publish_soon(numbers, number)
            bus.flush(timeout=10.0)
            assert stored(bus) == list(range(1500))
            bus.close()
    finally:
        sys.setswitchinterval(interval)


def test_a_spill_that_cannot_grow_refuses_the_new_message_and_keeps_the_others():
    bus = Bus("memory://", overflow="spill", buffer=5)
    text = Queue("text", str)
    bus.declare(text)
    accepted: list[Future[str]] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with silence(bus):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(BufferFull) as refused:
                while True:
                    accepted.append(bus.publish_soon(text, "x" * 900))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(refused.value.__cause__, OSError)
        accepted.append(bus.publish_soon(text, "there is room again"))

    bus.flush(timeout=10.0)

    assert [failure(future) for future in accepted] == [None] * len(accepted)
    bus.close()


def test_what_is_spilled_when_the_bus_closes_is_answered_and_not_sent():
    bus = Bus("memory://", overflow="spill", buffer=5)
    bus.declare(numbers)
    with silence(bus):
        bus.publish_soon(numbers, -1)
        until(lambda: bus.publish_pump._inflight)
        futures = [bus.publish_soon(numbers, number) for number in range(50)]
        with pytest.raises(TimedOut, match=r"51 accepted messages undelivered \(50 not sent; 1 with the broker"):
            bus.close(timeout=0.05)
        assert [failure(future) for future in futures] == [Closed] * 50
    bus.open()
    until(lambda: stored(bus) == [-1])  # it was with the broker, which can go on now
    bus.close()


def test_a_spill_takes_as_much_room_as_what_waits_in_it():
    def put() -> None:
        message = Outgoing(Address("queue", "q"), "id", b"x" * 1000, None, {}, Envelope())
        spill.put(Ticket(message), message)

    spill = Spill()
    for _ in range(100):
        put()
    for _ in range(1000):  # it is never empty
        put()
        [ticket] = spill.take(1)
        assert ticket.outgoing is not None

    assert spill.count == 100
    assert spill._halves is not None
    assert sum(os.fstat(half._file.fileno()).st_size for half in spill._halves) < 300_000
    spill.clear()


# -- a publisher that fails --------------------------------------------------------------------------------------------


def test_a_submit_that_raises_leaves_nobody_without_an_answer(monkeypatch: pytest.MonkeyPatch):
    submit = MemoryPublisher.submit

    def broken(self: MemoryPublisher, batch: Any) -> None:
        monkeypatch.setattr(MemoryPublisher, "submit", submit)
        submit(self, batch[:1])
        raise TypeError("a bug of the driver")

    bus = Bus("memory://")
    bus.declare(numbers)
    monkeypatch.setattr(MemoryPublisher, "submit", broken)
    first, second, third = bus.publish_pump.send_many([bus.prepare(numbers, number, {}) for number in range(3)])

    assert [failure(ticket) for ticket in (first, second, third)] == [None, PublishUnknown, PublishUnknown]
    assert not bus.publish_pump.pending
    bus.publish(numbers, 3)
    assert stored(bus) == [0, 3]
    bus.close()


def test_a_declaration_that_raises_fails_the_messages_that_need_it_and_no_others(monkeypatch: pytest.MonkeyPatch):
    declare = MemoryAdmin.declare

    def broken(self: MemoryAdmin, declarations: Any) -> None:
        if any(one.address == others.address for one in declarations):
            raise OSError("too many open files")
        declare(self, declarations)

    monkeypatch.setattr(MemoryAdmin, "declare", broken)
    bus = Bus("memory://")
    messages = [bus.prepare(to, 1, {}) for to in (numbers, others, numbers)]
    tickets = bus.publish_pump.send_many(messages)

    assert [failure(ticket) for ticket in tickets] == [None, PublishFailed, None]
    bus.close()


def test_a_publisher_never_has_more_than_its_backend_says(monkeypatch: pytest.MonkeyPatch):
    bus = Bus("memory://")
    backend = bus.link.backend
    backend.capabilities = dataclasses.replace(backend.capabilities, max_inflight=3)
    submit, collect = MemoryPublisher.submit, MemoryPublisher.collect
    has, seen = 0, list[int]()

    def submitted(self: MemoryPublisher, batch: Any) -> None:
        nonlocal has
        has += len(batch)
        seen.append(has)
        submit(self, batch)

    def collected(self: MemoryPublisher, timeout: float) -> Any:
        nonlocal has
        outcomes = collect(self, timeout)
        has -= len(outcomes)
        return outcomes

    monkeypatch.setattr(MemoryPublisher, "submit", submitted)
    monkeypatch.setattr(MemoryPublisher, "collect", collected)
    bus.publish_many(numbers, range(50))

    assert max(seen) == 3
    assert stored(bus) == list(range(50))
    bus.close()


@pytest.mark.parametrize("error", [OSError(24, "too many open files"), TypeError("a bug of the driver")])
def test_a_connection_that_fails_in_any_way_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception):
    publisher = MemoryBackend.publisher

    def broken(self: MemoryBackend) -> MemoryPublisher:
        monkeypatch.setattr(MemoryBackend, "publisher", publisher)
        raise error

    monkeypatch.setattr(MemoryBackend, "publisher", broken)
    bus = Bus("memory://")

    bus.publish(numbers, 1)

    assert bus.health().ready
    bus.close()


@pytest.mark.parametrize("method", ["close", "abandon"])
def test_a_lost_connection_that_cannot_be_let_go_of_is_replaced(monkeypatch: pytest.MonkeyPatch, method: str):
    bus = Bus("memory://")
    bus.publish(numbers, 1)
    collect, lost = MemoryPublisher.collect, threading.Event()

    def lose(self: MemoryPublisher, timeout: float) -> Any:
        if lost.is_set():
            return collect(self, timeout)
        lost.set()
        raise Lost("the connection broke")

    def broken(self: MemoryPublisher) -> Any:
        monkeypatch.undo()
        raise OSError("already closed")

    monkeypatch.setattr(MemoryPublisher, method, broken)
    monkeypatch.setattr(MemoryPublisher, "collect", lose)
    bus.publish_pump._wake()
    until(lost.is_set)

    bus.publish(numbers, 2)

    assert stored(bus) == [1, 2]
    bus.close()


def test_a_burst_to_a_destination_that_was_lost_keeps_its_order():
    bus = Bus("memory://")
    bus.publish(numbers, -1)
    bus.link.backend.admin().delete(numbers.address)

    outcomes = bus.publish_many(numbers, range(2500))

    assert all(isinstance(outcome, str) for outcome in outcomes)
    assert stored(bus) == list(range(2500))
    bus.close()


def test_what_comes_later_waits_behind_what_a_lost_destination_refused(monkeypatch: pytest.MonkeyPatch):
    """The answers of one window come one by one, and new messages between them."""
    collect = MemoryPublisher.collect

    def one_by_one(self: MemoryPublisher, timeout: float) -> Any:
        outcomes = [*collect(self, 0.0 if self._outcomes else timeout)]
        self._outcomes = [*outcomes[1:], *self._outcomes]
        if outcomes and isinstance(outcomes[0][1], NotFound):
            bus.publish_soon(numbers, 100 + len(self._outcomes))
        return outcomes[:1]

    bus = Bus("memory://")
    bus.publish(numbers, -1)
    bus.link.backend.admin().delete(numbers.address)
    monkeypatch.setattr(MemoryPublisher, "collect", one_by_one)

    bus.publish_many(numbers, range(5))
    bus.flush()

    assert stored(bus) == [0, 1, 2, 3, 4, 104, 103, 102, 101, 100]
    bus.close()


# -- closing -----------------------------------------------------------------------------------------------------------


def test_what_meets_the_end_of_the_bus_is_refused_and_counted_nowhere(monkeypatch: pytest.MonkeyPatch):
    with Bus("memory://") as bus:
        bus.declare(numbers)
        with silence(bus):
            bus.publish_soon(numbers, 1)  # its thread waits for the broker, so that the refusal comes first
            until(lambda: not bus.publish_pump._queue)
            monkeypatch.setattr(bus.publish_pump, "_closing", True)
            with pytest.raises(Closed):
                bus.publish_soon(numbers, 2)
            monkeypatch.setattr(bus.publish_pump, "_closing", False)
            waiting = [ticket.claimed for ticket in bus.publish_pump._buffered]
        bus.flush(timeout=10.0)
        assert waiting == [True]
        assert stored(bus) == [1]


def test_what_close_calls_undelivered_is_never_sent(tmp_path: Path):
    url, path = f"sqlite:///{tmp_path}/a.db?busy=30", tmp_path / "a.db"
    bus = Bus(url)
    bus.publish(numbers, 0)
    with write_lock(path):
        futures = [bus.publish_soon(numbers, number) for number in range(1, 6)]
        with pytest.raises(TimedOut, match=r"5 accepted messages undelivered \(5 not sent; 0 with the broker"):
            bus.close(timeout=0.2)
        assert all(issubclass(failure(future) or int, (PublishFailed, Closed)) for future in futures)
        assert PublishUnknown not in map(failure, futures)

    again = Bus(url)
    again.publish(numbers, 6)
    assert stored(again) == [0, 6]
    again.close()


def test_of_many_messages_each_outcome_says_what_became_of_it_when_the_bus_closes_meanwhile():
    bus = Bus("memory://")
    bus.declare(numbers)
    outcomes: list[str | PublishFailed] = []
    with silence(bus):
        publisher = threading.Thread(target=lambda: outcomes.extend(bus.publish_many(numbers, range(5000))))
        publisher.start()
        until(lambda: bus.publish_pump._inflight)
        bus.close(timeout=0.05)
    publisher.join(30.0)

    bus.open()
    sent = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert len(outcomes) == 5000
    assert 0 < len(sent) < 5000
    assert stored(bus) == sent
    assert {type(outcome) for outcome in outcomes} == {str, PublishFailed}
    bus.close()


def test_no_future_is_left_open_by_threads_that_publish_while_the_bus_closes():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            bus = Bus("memory://")
            bus.publish(numbers, 0)
            futures: list[Future[str]] = []

            def publish(bus: Bus = bus, futures: list[Future[str]] = futures) -> None:
                with pytest.raises(Closed):
                    while True:
                        futures.append(bus.publish_soon(numbers, 1))

            threads = [threading.Thread(target=publish) for _ in range(3)]
            for thread in threads:
                thread.start()
            until(lambda futures=futures: len(futures) > 100)
            bus.close(timeout=10.0)
            for thread in threads:
                thread.join(10.0)
            until(lambda futures=futures: all_done(futures), within=5.0)
    finally:
        sys.setswitchinterval(interval)


def test_a_message_queued_at_the_moment_of_closing_is_refused(monkeypatch: pytest.MonkeyPatch):
    bus = Bus("memory://")
    bus.publish(numbers, 0)
    pump = bus.publish_pump
    queue = pump._queue

    class Late:
        """The thread that publishes is held up until the pump has ended."""

        def append(self, ticket: Ticket) -> None:
            with pytest.raises(TimedOut):
                bus.close(timeout=0.01)
            assert not pump.alive
            queue.append(ticket)

        def __getattr__(self, name: str) -> Any:
            return getattr(queue, name)

        def __len__(self) -> int:
            return len(queue)

    monkeypatch.setattr(pump, "_queue", Late())

    with pytest.raises(Closed):
        bus.publish_soon(numbers, 1)


def test_who_waits_for_room_when_the_bus_closes_is_told_that_it_is_closed():
    bus = Bus("memory://", buffer=3)
    bus.declare(numbers)
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            for number in range(10):
                bus.publish_soon(numbers, number)
        except MqkitError as exc:
            raised.append(exc)

    with silence(bus):
        publisher = threading.Thread(target=publish)
        publisher.start()
        until(lambda: bus.publish_pump._unconfirmed.watchers)
        with pytest.raises(TimedOut):
            bus.close(timeout=0.05)
        publisher.join(10.0)

    assert [type(error) for error in raised] == [Closed]


def test_flush_and_forward_of_a_closed_bus_raise_closed():
    bus = Bus("memory://")
    bus.flush()  # nothing to wait for
    bus.open()
    bus.close()
    for use in (bus.flush, lambda: bus.forward(numbers, Message(id="a", body=b"1"))):
        with pytest.raises(Closed):
            use()


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_a_cancelled_future_releases_a_flush_that_waits_for_it(tmp_path: Path):
    bus = Bus(f"sqlite:///{tmp_path}/a.db?busy=30")
    bus.publish(numbers, 0)
    flushed = threading.Event()

    def flush() -> None:
        bus.flush(timeout=60.0)
        flushed.set()

    with write_lock(tmp_path / "a.db"):
        sent = bus.publish_soon(numbers, 1)
        until(lambda: sent.running())
        waiting = bus.publish_soon(numbers, 2)
        flusher = threading.Thread(target=flush)
        flusher.start()
        until(lambda: bus.publish_pump._unconfirmed.watchers)
        assert waiting.cancel()

    assert flushed.wait(20.0)
    assert stored(bus) == [0, 1]
    bus.close()


def test_a_failure_is_noted_before_anybody_can_see_that_it_is_there(monkeypatch: pytest.MonkeyPatch):
    bus = Bus("memory://", declare="never")
    bus.open()
    seen: list[bool] = []
    pump = bus.publish_pump
    note = pump._on_resolved

    def watched(ticket: Ticket, error: BaseException | None) -> None:
        seen.append(ticket.done())
        note(ticket, error)

    monkeypatch.setattr(pump, "_on_resolved", watched)
    bus.publish_soon(numbers, 1)

    with pytest.raises(NotFound):
        bus.flush()
    assert seen == [False]
    bus.close()


def test_flush_counts_every_failure():
    bus = Bus("memory://", declare="never", buffer=100_000)
    for number in range(3000):
        bus.publish_soon(numbers, number)
    with pytest.raises(PublishFailed, match="3000 messages were not confirmed"):
        bus.flush()
    bus.close()


@pytest.mark.parametrize("verb", ["publish", "publish_many", "forward", "flush", "open", "close", "declare"])
def test_a_verb_that_would_wait_for_the_thread_of_a_done_callback_is_refused_there(verb: str):
    bus = Bus("memory://")
    bus.declare(numbers)
    calls: dict[str, Callable[[], object]] = {
        "publish": lambda: bus.publish(numbers, 2),
        "publish_many": lambda: bus.publish_many(numbers, [2]),
        "forward": lambda: bus.forward(numbers, Message(id="a", body=b"2")),
        "flush": bus.flush,
        "open": bus.open,
        "close": bus.close,
        "declare": lambda: bus.declare(others),
    }
    raised: list[BaseException] = []
    called = threading.Event()

    def callback(_: object) -> None:
        try:
            calls[verb]()
        except MqkitError as exc:
            raised.append(exc)
        called.set()

    with silence(bus):
        bus.publish_soon(numbers, 1).add_done_callback(callback)

    assert called.wait(5.0)
    assert [type(error) for error in raised] == [BlockingCall]
    assert verb in str(raised[0])
    bus.close()


def test_publish_soon_in_a_done_callback_does_not_wait_for_room_that_only_its_thread_makes():
    bus = Bus("memory://", buffer=2)
    bus.declare(numbers)
    raised: list[BaseException] = []
    called = threading.Event()

    def callback(_: object) -> None:
        try:
            for number in range(10):
                bus.publish_soon(numbers, number)
        except MqkitError as exc:
            raised.append(exc)
        called.set()

    with silence(bus):
        bus.publish_soon(numbers, 1).add_done_callback(callback)

    assert called.wait(5.0)
    assert [type(error) for error in raised] == [BlockingCall]
    bus.close()


def test_tasks_of_several_loops_share_a_small_buffer(tmp_path: Path):
    bus = Bus(f"sqlite:///{tmp_path}/a.db", buffer=4)
    bus.declare(numbers)
    errors: list[BaseException] = []

    async def publish() -> None:
        for number in range(60):
            try:
                await bus.aio.publish_soon(numbers, number)
            except MqkitError as exc:
                errors.append(exc)

    threads = [threading.Thread(target=lambda: asyncio.run(publish())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    bus.flush()

    assert errors == []
    assert sorted(stored(bus)) == sorted([*range(60)] * 6)
    bus.close()


# -- dropping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [2, 10, 200])
def test_drop_oldest_holds_no_more_than_the_buffer_and_the_newest(tmp_path: Path, buffer: int):
    bus = Bus(f"sqlite:///{tmp_path}/a.db?busy=30", buffer=buffer, overflow="drop_oldest")
    bus.publish(numbers, -1)
    futures: list[Future[str]] = []
    with write_lock(tmp_path / "a.db"):
        for number in range(3 * buffer):
            futures.append(bus.publish_soon(numbers, number))
            until(lambda: bus.publish_pump._inflight)
        assert sum(not future.done() for future in futures) == buffer
    with pytest.raises(PublishFailed):
        bus.flush()

    kept = [number for number, future in enumerate(futures) if future.exception() is None]
    assert len(kept) == buffer
    assert kept[-1] == 3 * buffer - 1
    assert stored(bus) == [-1, *kept]
    bus.close()


def test_drop_oldest_drops_only_what_was_published_soon(tmp_path: Path):
    bus = Bus(f"sqlite:///{tmp_path}/a.db?busy=30", buffer=4, overflow="drop_oldest")
    bus.publish(numbers, -1)
    with write_lock(tmp_path / "a.db"):
        first = bus.publish_soon(numbers, 0)
        until(first.running)
        publisher = threading.Thread(target=bus.publish, args=(numbers, 100))
        publisher.start()
        until(lambda: bus.publish_pump._queue)
        for number in range(1, 20):
            bus.publish_soon(numbers, number)
    publisher.join(20.0)
    with pytest.raises(PublishFailed, match="dropped"):
        bus.flush()

    assert stored(bus) == [-1, 0, 100, 17, 18, 19]
    bus.close()


# -- what is refused before anything is queued --------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, float("inf"), float("nan"), -1.0, "5", 1e10, True])
def test_a_timeout_that_nobody_can_wait_for_is_refused_before_anything_is_queued(timeout: Any):
    bus = Bus("memory://")
    message = Message(id="a", body=b"1")
    bus.declare(numbers)
    messages = bus.subscription(numbers)
    verbs: dict[str, Callable[[], object]] = {
        "publish": lambda: bus.publish(numbers, 1, timeout=timeout),
        "publish_many": lambda: bus.publish_many(numbers, [1], timeout=timeout),
        "forward": lambda: bus.forward(numbers, message, timeout=timeout),
        "flush": lambda: bus.flush(timeout=timeout),
        "open": lambda: bus.open(timeout=timeout),
        "close": lambda: bus.close(timeout=timeout),
        "receive": lambda: messages.receive(timeout=timeout),
    }
    for verb, call in verbs.items():
        with pytest.raises(ConfigError, match=rf"{verb}\(timeout="):
            call()

    async def main() -> None:
        for verb, call in {
            "publish": lambda: bus.aio.publish(numbers, 1, timeout=timeout),
            "publish_many": lambda: bus.aio.publish_many(numbers, [1], timeout=timeout),
            "forward": lambda: bus.aio.forward(numbers, message, timeout=timeout),
            "flush": lambda: bus.aio.flush(timeout=timeout),
            "open": lambda: bus.aio.open(timeout=timeout),
            "close": lambda: bus.aio.close(timeout=timeout),
            "receive": lambda: bus.aio.subscription(numbers).receive(timeout=timeout),
        }.items():
            with pytest.raises(ConfigError, match=rf"{verb}\(timeout="):
                await call()

    asyncio.run(main())
    bus.flush()
    assert stored(bus) == []
    bus.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": "\ud800"},
        {"key": 2**70},
        {"key": "\ud800"},
        {"headers": {"n": 1}},
        {"headers": {"n": "\ud800"}},
        {"headers": [("a", "b")]},
        {"body": ["x"]},
        {"type": "\udcff"},
        {"content_type": 5},
        {"correlation_id": "a\0b"},
        {"causation_id": None},
        {"sent_at": "yesterday"},
        {"sent_at": 1_700_000_000_000.0},  # milliseconds
        {"sent_at": float("nan")},
    ],
)
def test_a_message_that_no_broker_can_carry_is_not_forwarded(wrong: dict[str, Any]):
    bus = Bus("memory://")
    with pytest.raises(Unencodable):
        bus.forward(numbers, Message(**{"id": "a", "body": b"1", **wrong}))
    assert bus.forward(numbers, Message(id="b", body=b"2", key="k", headers={"a": "b"}, type="T")) == "b"
    assert stored(bus) == [2]
    bus.close()


def test_what_is_no_message_is_not_forwarded():
    with pytest.raises(ConfigError, match="forward takes a Message"):
        Bus("memory://").forward(numbers, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", [[("a", "b")], [], "a=b", 5])
def test_headers_that_are_no_mapping_are_refused(headers: Any):
    with pytest.raises(Unencodable, match="not a mapping"):
        Bus("memory://").publish(numbers, 1, headers=headers)


def test_a_priority_that_is_true_or_false_is_refused():
    urgent = Queue("urgent", int, priorities=3)
    with pytest.raises(ConfigError, match="priority=True"):
        Bus("memory://").publish(urgent, 1, priority=True)


def test_many_messages_go_into_a_transaction_of_ones_own(tmp_path: Path):
    bus = Bus(f"sqlite:///{tmp_path}/a.db")
    bus.declare(numbers)
    db = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    for ending in ("ROLLBACK", "COMMIT"):
        db.execute("BEGIN IMMEDIATE")
        ids = bus.publish_many(numbers, [1, 2], native=SqliteTransaction(db))
        assert len(set(ids)) == 2
        db.execute(ending)
    db.close()

    assert stored(bus) == [1, 2]
    with pytest.raises(ConfigError, match=r"bus\.publish_many"):
        asyncio.run(bus.aio.publish_many(numbers, [1], native="connection"))
    bus.close()


def test_destinations_made_for_one_message_do_not_stay():
    bus = Bus("memory://")
    kept = []
    for number in range(50):
        queue = Queue("numbers", int)
        bus.publish(queue, number)
        kept.append(weakref.ref(queue))
        del queue
    gc.collect()

    assert sum(one() is not None for one in kept) <= 1  # the first one is what others are compared with
    with pytest.raises(ConfigError, match="partitions"):
        bus.publish(Queue("numbers", int, partitions=2), 1)
    bus.close()


def test_a_refusal_of_the_store_keeps_its_kind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_publish, "REFUSED", 0.01)

    def refused(self: MemoryBackend) -> MemoryPublisher:
        raise Denied("wrong password")

    monkeypatch.setattr(MemoryBackend, "publisher", refused)
    bus = Bus("memory://")
    with pytest.raises(Denied, match="password"):
        bus.publish(numbers, 1)
    monkeypatch.undo()
    until(lambda: bus.health().ready)
    bus.publish(numbers, 2)
    bus.close()
