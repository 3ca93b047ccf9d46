"""The bus on memory://, where it is about the bus and not about a broker."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import until

from mqkit import Bus, Delivery, Message, Queue, TimedOut, Topic
from mqkit.errors import BlockingCall, BufferFull, Closed, ConfigError, MessageTooLarge, Unencodable
from mqkit.testing import VirtualClock, run_until_idle

emails = Queue("emails", str)


def block(bus: Bus) -> threading.Lock:
    """Hold the memory broker, so that nothing that is published gets an answer. Release it to let it go on."""
    bus.open()
    lock: threading.Lock = bus.link.backend._broker.lock  # type: ignore[attr-defined]
    lock.acquire()
    return lock


def bodies(bus: Bus) -> list[str]:
    """What waits in the queue, taken until nothing is left."""
    found: list[str] = []
    with bus.subscription(emails) as messages:

        def nothing_left() -> bool:
            for delivery in messages.receive(max=1000, timeout=0.01):
                found.append(delivery.payload)
                delivery.ack()
            return all(depth.ready + depth.inflight == 0 for depth in bus.link.backend.admin().describe())

        until(nothing_left)
    return found


@pytest.mark.parametrize("clock", [5, VirtualClock])
def test_what_is_no_clock_is_refused(clock: object):
    with pytest.raises(ConfigError, match="is no clock"):
        Bus("memory://", clock=clock)  # type: ignore[arg-type]


def test_making_a_bus_reads_nothing_and_starts_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MQKIT_URL", raising=False)
    before = set(threading.enumerate())
    Bus()
    assert set(threading.enumerate()) <= before


def test_a_closed_bus_refuses_and_an_open_one_goes_on():
    bus = Bus("memory://")
    bus.publish(emails, "one")
    bus.close()
    bus.close()
    for use in (lambda: bus.publish(emails, "x"), lambda: bus.publish_soon(emails, "x"), lambda: bus.declare(emails)):
        with pytest.raises(Closed):
            use()
    bus.open()
    bus.publish(emails, "two")
    assert bodies(bus) == ["one", "two"]
    bus.close()


def test_a_blocking_verb_on_a_running_loop_names_its_twin():
    bus = Bus("memory://")

    async def main() -> None:
        for verb, call in {
            "publish": lambda: bus.publish(emails, "x"),
            "publish_many": lambda: bus.publish_many(emails, ["x"]),
            "flush": bus.flush,
            "open": bus.open,
            "declare": lambda: bus.declare(emails),
            "dead_letters": lambda: bus.dead_letters(emails).list(),
            "subscription": lambda: bus.subscription(emails).receive(),
        }.items():
            with pytest.raises(BlockingCall, match=verb):
                call()

    asyncio.run(main())


def test_a_publish_that_times_out_before_it_was_handed_over_is_not_sent():
    bus = Bus("memory://")
    bus.declare(emails)
    lock = block(bus)
    try:
        bus.publish_soon(emails, "first")  # the pump is stuck with this one
        until(lambda: bus.publish_pump._inflight)
        with pytest.raises(TimedOut, match="not sent"):
            bus.publish(emails, "second", timeout=0.05)
    finally:
        lock.release()
    bus.flush()
    assert bodies(bus) == ["first"]


def test_flush_says_how_many_are_late():
    bus = Bus("memory://")
    lock = block(bus)
    try:
        bus.publish_soon(emails, "x")
        with pytest.raises(TimedOut, match="1 messages"):
            bus.flush(timeout=0.05)
    finally:
        lock.release()
    bus.flush()


def test_close_counts_what_it_could_not_deliver():
    bus = Bus("memory://")
    lock = block(bus)
    try:
        for _ in range(3):
            bus.publish_soon(emails, "x")
        with pytest.raises(TimedOut, match="undelivered"):
            bus.close(timeout=0.05)
    finally:
        lock.release()


def overflowing(overflow: str) -> tuple[Bus, threading.Lock]:
    bus = Bus("memory://", buffer=5, overflow=overflow)  # type: ignore[arg-type]
    bus.declare(emails)
    lock = block(bus)
    bus.publish_soon(emails, "0")
    until(lambda: bus.publish_pump._inflight)
    for number in range(1, 5):
        bus.publish_soon(emails, str(number))
    return bus, lock


def test_overflow_reject_refuses_the_new_message():
    bus, lock = overflowing("reject")
    try:
        with pytest.raises(BufferFull, match="5 messages"):
            bus.publish_soon(emails, "new")
    finally:
        lock.release()
    bus.flush()
    assert bodies(bus) == list("01234")


def test_overflow_drop_newest_keeps_what_is_there_and_tells():
    bus, lock = overflowing("drop_newest")
    future = bus.publish_soon(emails, "new")
    lock.release()
    with pytest.raises(BufferFull):
        future.result(5)
    with pytest.raises(BufferFull):
        bus.flush()
    assert bodies(bus) == list("01234")


def test_overflow_drop_oldest_makes_room_and_tells():
    bus, lock = overflowing("drop_oldest")
    future = bus.publish_soon(emails, "new")
    lock.release()
    assert future.result(5)
    with pytest.raises(BufferFull):
        bus.flush()
    assert bodies(bus) == ["0", "2", "3", "4", "new"]


def test_overflow_spill_keeps_everything_in_order():
    bus, lock = overflowing("spill")
    futures = [bus.publish_soon(emails, str(number)) for number in range(5, 500)]
    lock.release()
    bus.flush()
    assert all(future.done() for future in futures)
    assert bodies(bus) == [str(number) for number in range(500)]
    bus.close()


def test_overflow_block_waits_for_room():
    bus, lock = overflowing("block")
    blocked = threading.Thread(target=bus.publish_soon, args=(emails, "5"))
    blocked.start()
    blocked.join(0.1)
    assert blocked.is_alive()
    lock.release()
    blocked.join(5)
    bus.flush()
    assert bodies(bus) == list("012345")


def test_a_full_buffer_never_blocks_an_event_loop():
    bus, lock = overflowing("block")

    async def main() -> None:
        with pytest.raises(BlockingCall, match="aio"):
            bus.publish_soon(emails, "x")
        waiting = asyncio.ensure_future(bus.aio.publish_soon(emails, "5"))
        await asyncio.sleep(0)
        lock.release()
        await (await waiting)

    asyncio.run(main())
    assert bodies(bus) == list("012345")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"headers": {"a": 1}}, Unencodable),
        ({"headers": {1: "a"}}, Unencodable),
        ({"headers": {"": "a"}}, Unencodable),
        ({"headers": {"mq-type": "a"}}, Unencodable),
        ({"headers": {"a": "\ud800"}}, Unencodable),
        ({"headers": {"a": "x" * 70_000}}, MessageTooLarge),
        ({"key": 5}, Unencodable),
        ({"key": "a\0b"}, Unencodable),
        ({"id": ""}, Unencodable),
        ({"id": "x" * 201}, Unencodable),
        ({"delay": -1}, ConfigError),
        ({"delay": "soon"}, ConfigError),
        ({"ttl": float("nan")}, ConfigError),
        ({"priority": 3}, ConfigError),
        ({"prioritty": 3}, ConfigError),
    ],
)
def test_a_wrong_publish_option_is_refused_before_anything_is_sent(options: dict, error: type[Exception]):
    bus = Bus("memory://")
    bus.declare(emails)
    with pytest.raises(error):
        bus.publish(emails, "x", **options)
    assert bodies(bus) == []


def test_a_body_over_the_limit_is_refused_and_one_at_the_limit_passes():
    bus = Bus("memory://?max_body=8192")
    bus.publish(emails, "x" * (4096 - 2))
    with pytest.raises(MessageTooLarge, match="4,096"):
        bus.publish(emails, "x" * (4096 - 1))


def test_publish_many_reports_each_message():
    bus = Bus("memory://")
    results = bus.publish_many(emails, ["a", "b", "c"])
    assert len({result for result in results if isinstance(result, str)}) == 3
    with pytest.raises(Unencodable):
        bus.publish_many(emails, ["a", 5])  # type: ignore[list-item]
    assert bodies(bus) == ["a", "b", "c"]


def test_a_name_declared_twice_with_other_options_is_refused():
    bus = Bus("memory://")
    bus.publish(emails, "x")
    with pytest.raises(ConfigError, match="kind"):
        bus.publish(Topic("emails", str), "x")
    with pytest.raises(ConfigError, match="priorities"):
        bus.publish(Queue("emails", str, priorities=3), "x")
    bus.publish(Queue("emails", object), "a wider view is fine")


def test_a_text_is_not_a_destination():
    with pytest.raises(ConfigError, match="not a destination"):
        Bus("memory://").publish("emails", "x")  # type: ignore[arg-type]


def test_a_message_is_forwarded_untouched():
    bus, archive = Bus("memory://"), Queue("archive", dict)
    bus.forward(
        archive, Message(id="m-1", body=b'{"a": 1}', key="k", headers={"h": "v"}, content_type="application/json")
    )
    with bus.subscription(archive) as messages:
        [delivery] = messages.receive()
        assert (delivery.id, delivery.message.body, delivery.key, delivery.headers) == (
            "m-1",
            b'{"a": 1}',
            "k",
            {"h": "v"},
        )
        delivery.ack()


def test_a_staged_message_through_another_bus_is_confirmed_before_the_acknowledgement():
    here, there = Bus("memory://"), Bus("memory://")

    @here.on(emails)
    def handle(text: str, delivery: Delivery[str]) -> None:
        delivery.publish(emails, text.upper(), via=there)

    here.publish(emails, "hello")
    run_until_idle(here).raise_first()
    assert bodies(there) == ["HELLO"]


def test_a_bus_cannot_be_pickled():
    with pytest.raises(TypeError, match="URL"):
        pickle.dumps(Bus("memory://"))


def test_health_speaks_of_a_bus_that_is_not_open_and_of_one_that_is():
    bus = Bus("memory://")
    assert not bus.health().ready
    with bus:
        assert (bus.health().live, bus.health().ready, list(bus.health().reasons)) == (True, True, [])
    assert list(bus.health().reasons) == ["closed"]


def test_a_stuck_def_handler_is_reported_and_fails_when_it_ends():
    bus, release, started = Bus("memory://"), threading.Event(), threading.Event()

    @bus.on(emails, timeout=0.05)
    def handle(text: str) -> None:
        started.set()
        release.wait(10)

    bus.publish(emails, "x")
    with bus.worker() as worker:
        assert started.wait(5)
        until(lambda: any("past their timeout" in reason for reason in bus.health().reasons))
        release.set()
        until(lambda: worker.consumers[0].counts.retried)
    bus.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_opens_its_own_bus_and_the_parent_goes_on():
    program = Path(__file__).with_name("fork_program.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["child:Closed", "child:ok", "parent:ok"]), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_forked_while_a_named_memory_broker_is_looked_up_has_its_own():
    program = """
import os, signal
from mqkit import Bus
from mqkit.backends import memory
with memory._naming:
    child = os.fork()
    if not child:
        signal.alarm(20)
        Bus("memory://shared").open()
        os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0\n", done.stderr


def test_run_stops_gracefully_on_sigterm():
    program = Path(__file__).with_name("run_program.py")
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "finished\n"
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(20) == 0
