"""K: topology, configuration, errors."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqkit import Batch, Broadcast, Bus, Delivery, Queue, Reject, Retry, Topic, errors, exponential, fixed
from mqkit.errors import CapabilityMissing, ConfigError, Denied, ExtraMissing, MqkitError, NotFound, TopologyMismatch
from mqkit.subscription import Subscription
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import drain
from mqkit.testing.conformance.harness import Harness

SECRET = "hunter2"


class TestConfiguration:
    """K. Topology, configuration, errors."""

    @case("K.01")
    def test_declaring_again_and_ten_times_at_once_is_harmless(self, harness: Harness) -> None:
        queue, topic = Queue(harness.unique("q"), str), Topic(harness.unique("t"), str, groups=["a", "b"])
        buses, start = [harness.bus() for _ in range(10)], threading.Barrier(10)
        failed: list[BaseException] = []

        def declare(bus: Bus) -> None:
            start.wait(20.0)
            try:
                bus.declare(queue, topic)
                bus.declare(queue, topic)
            except MqkitError as exc:
                failed.append(exc)

        threads = [threading.Thread(target=declare, args=(bus,)) for bus in buses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)

        assert failed == []
        assert buses[0].publish(queue, "after")
        assert buses[0].publish(topic, "after")

    @pytest.mark.slow
    @case("K.01", needs=("processes",))
    def test_ten_processes_that_start_at_once_declare_the_same_things_twice(
        self, harness: Harness, tmp_path: Path
    ) -> None:
        stem, go = harness.unique("together"), tmp_path / "go"

        processes = [harness.consumer("declare_everything", stem, str(go)) for _ in range(10)]
        for process in processes:
            process.wait_line("ready", within=60.0)
        go.touch()

        assert [process.wait(60.0) for process in processes] == [0] * 10
        assert [process.lines() for process in processes] == [["ready", "declared", "declared"]] * 10
        addresses = [str(depth.address) for depth in harness.describe() if depth.address.name.startswith(stem)]
        assert sorted(addresses) == sorted(
            [f"{stem}-{name}{dead}" for name in ("q", "k", "t/a", "t/b") for dead in ("", " (dead letters)")]
        )

    @case("K.02")
    def test_what_does_not_exist_is_not_found_at_its_use(self, harness: Harness) -> None:
        missing, topic = Queue(harness.unique("missing"), str), Topic(harness.unique("topic"), str)
        harness.bus().declare(topic)
        bus = harness.bus(declare="check")
        bus.on(missing)(print)

        with pytest.raises(NotFound, match=missing.name):
            bus.publish(missing, "lost")
        with pytest.raises(NotFound, match=missing.name):
            bus.dead_letters(missing).list()
        with pytest.raises(NotFound, match=missing.name):
            enter_worker(bus)
        with pytest.raises(NotFound, match="nobody"), bus.subscription(topic, group="nobody"):
            pass

    @case("K.03")
    def test_a_bus_that_may_not_create_creates_nothing(self, harness: Harness) -> None:
        missing, foreign = Queue(harness.unique("missing"), str), Queue(harness.unique("foreign"), str, declare=False)
        topic = Topic(harness.unique("topic"), str, groups=["one"])

        for destination in (missing, topic, foreign):
            for bus in (harness.bus(declare="check"), harness.bus(declare="never")):
                with pytest.raises(NotFound, match=destination.name):
                    bus.publish(destination, "lost")
        with pytest.raises(NotFound, match=foreign.name):
            harness.bus().publish(foreign, "lost")

        names = {depth.address.name for depth in harness.describe()}
        assert names.isdisjoint({missing.name, foreign.name, topic.name})

    @case("K.03", needs=("order_by_key",))
    def test_a_consumer_that_may_not_create_takes_from_what_others_declared(self, harness: Harness) -> None:
        orders, sender = Queue(harness.unique("orders"), str, key=lambda order: order), harness.bus()
        bus, seen = harness.bus(declare="check"), list[str]()
        bus.on(orders)(seen.append)
        sender.declare(orders)

        with bus.worker():
            sender.publish_many(orders, ["a", "b", "a"])
            harness.wait(lambda: sorted(seen) == ["a", "a", "b"], within=20.0)

    @case("K.04", needs=("order_by_key",))
    def test_what_exists_with_other_options_is_refused_and_the_option_named(self, harness: Harness) -> None:
        name = harness.unique("queue")
        harness.bus().declare(Queue(name, str, key=lambda word: word))

        with pytest.raises(TopologyMismatch, match=rf"{name}.*key"):
            harness.bus().declare(Queue(name, str))

    @case("K.05")
    def test_the_first_publish_to_a_new_destination_succeeds(self, harness: Harness) -> None:
        bus = harness.bus()
        fresh = [Queue(harness.unique("fresh"), int) for _ in range(20)]

        for queue in fresh:
            bus.publish(queue, 1)

        assert [harness.depth(queue).ready for queue in fresh] == [1] * 20

    @case("K.06")
    def test_any_legal_name_is_a_destination_of_its_own_and_others_are_refused(self, harness: Harness) -> None:
        bus, stem = harness.bus(), harness.unique("n")
        endings = ["a", "A", ".x", " b", "ü☃", "#", "*", "%2F", ":", "?&=", "'\"`", "--", "__"]
        names = [stem + ending for ending in endings] + [stem.ljust(197, "x")]

        for name in names:
            bus.publish(Queue(name, str), name)

        for name in names:
            with bus.subscription(Queue(name, str)) as messages:
                [delivery] = harness.take_only(messages, 1)
                assert delivery.payload == name
                delivery.ack()
        for illegal in ("", "a/b", "a\0", "line\n", " a", "a ", "x" * 198, "topic:a", "\ud800"):
            with pytest.raises(ConfigError):
                Queue(illegal, str)

    @case("K.07")
    def test_a_mistake_in_the_configuration_is_found_at_the_start_with_a_hint(
        self, harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        queue = Queue(harness.unique("queue"), str)
        mistakes: list[tuple[Callable[[], Any], str]] = [
            (lambda: Bus(f"x{harness.url}").open(), "has no backend"),
            (lambda: Bus(harness.url_with(strange=1)).open(), "strange"),
            (lambda: Bus(harness.url, overflow="blok"), "blok"),  # type: ignore[arg-type]
            (lambda: Retry(attempts=0), "at least 1"),
            (lambda: exponential(base=-1.0), "-1"),
            (lambda: Batch(size=0, age=1.0), "size=0"),
            (lambda: Bus(harness.url).on(queue, concurrency=0), "concurrency=0"),
            (lambda: Bus(harness.url).on("queue"), "not destinations"),  # type: ignore[call-overload]
            (lambda: Bus(harness.url).on(Topic("topic")), "group="),  # type: ignore[call-overload]
            (lambda: Bus(harness.url).on(queue, order="key"), "key="),
            (lambda: harness.bus().publish(queue, "x", dela=1.0), "dela"),  # type: ignore[call-arg]
            (lambda: harness.bus().publish(queue, "x", priority=1), "priorities"),
            (lambda: enter_worker(harness.bus()), "no handlers"),
        ]

        for make, hint in mistakes:
            with pytest.raises(ConfigError) as found:
                make()
            assert hint in str(found.value)

        for text, hint in {
            "[bus.default]\nurk = 1": "did you mean 'url'",
            f'[bus.default.on."{queue.name}"]\nconcurency = 2': "did you mean 'concurrency'",
            f'[bus.default.on."{queue.name}".retry]\nattempts = 0': "at least 1",
            '[bus.default.on."other"]\nconcurrency = 2': "other",
        }.items():
            (tmp_path / "mqkit.toml").write_text(text)
            bus = harness.bus()
            bus.on(queue)(print)
            with pytest.raises(ConfigError) as found:
                bus.open()
            assert hint in str(found.value)

    @case("K.08")
    def test_what_the_backend_cannot_do_is_refused_at_the_start_and_what_it_claims_starts(
        self, harness: Harness
    ) -> None:
        can = harness.capabilities
        keyed, graded = Queue(harness.unique("k"), str, key=lambda word: word), Queue(harness.unique("p"), priorities=3)
        plain, live = Queue(harness.unique("q"), str), Broadcast(harness.unique("b"), str)
        asked: list[tuple[bool, Callable[[Bus], Any]]] = [
            (can.order_by_key, lambda bus: bus.on(keyed, order="key")(print)),
            (can.priorities >= 3, lambda bus: bus.on(graded)(print)),
            (can.atomic, lambda bus: bus.on(plain, promise="exactly_once")(print)),
            (can.broadcast, lambda bus: bus.on(live)(print)),
        ]

        for able, register in asked:
            bus = harness.bus()
            register(bus)
            if able:
                enter_worker(bus)
            else:
                with pytest.raises(CapabilityMissing, match=can.name):
                    enter_worker(bus)

    @case("K.09")
    def test_one_application_does_the_same_everywhere(self, harness: Harness) -> None:
        orders = Topic(harness.unique("orders"), dict[str, int], groups=["billing"])
        mails, bus = Queue(harness.unique("mails"), str), harness.bus()
        log: list[str] = []

        @bus.on(orders, group="billing", concurrency=1, retry=Retry(attempts=2, backoff=fixed(0.3)))
        def bill(order: dict[str, int], delivery: Delivery[dict[str, int]]) -> None:
            log.append(f"bill {order['id']}, attempt {delivery.attempt}")
            delivery.publish(mails, f"order {order['id']} costs {order['price']}")
            if order["price"] > 100:
                raise Reject("too much")
            if order["id"] == 2:
                raise ConnectionError("the bank is closed")

        @bus.on(mails)
        async def send(mail: str, delivery: Delivery[str]) -> None:
            cause = delivery.message.causation_id
            log.append(f"mail {mail}, because of {ids.index(cause)}")

        ids = [
            bus.publish(orders, {"id": id, "price": price}) for id, price in enumerate((10, 1000, 20, 30))
        ]  # fmt: skip

        drain(harness, bus)
        letters = bus.dead_letters(orders, group="billing").list()

        assert sorted(log) == [
            "bill 0, attempt 1",
            "bill 1, attempt 1",
            "bill 2, attempt 1",
            "bill 2, attempt 2",
            "bill 3, attempt 1",
            "mail order 0 costs 10, because of 0",
            "mail order 3 costs 30, because of 3",
        ]
        assert [(letter.message.body, letter.reason) for letter in letters] == [
            (b'{"id":1,"price":1000}', "too much"),
            (b'{"id":2,"price":20}', "ConnectionError after 2 attempts: the bank is closed"),
        ]

    @case("K.10", needs=("transaction",))
    def test_a_publish_in_the_users_own_transaction_is_sent_when_that_commits_and_never_when_it_does_not(
        self, harness: Harness
    ) -> None:
        words, orders = Queue(harness.unique("words"), str), Topic(harness.unique("orders"), str, groups=["billing"])
        bus = harness.bus()
        bus.open()
        bus.declare(words, orders)

        with harness.transaction() as native:
            id = bus.publish(words, "committed", headers={"colour": "red"}, native=native)
            bus.publish(orders, "committed", native=native)
            before = harness.depth(words).ready, harness.depth(orders, "billing").ready
        with pytest.raises(KeyError), harness.transaction() as native:
            bus.publish(words, "rolled back", native=native)
            raise KeyError

        assert before == (0, 0)
        with bus.subscription(words) as messages, bus.subscription(orders, group="billing") as group:
            [word], [order] = harness.take(messages, 1), harness.take(group, 1)
            assert messages.receive(timeout=0.2) == []
        assert (word.id, word.payload, word.headers) == (id, "committed", {"colour": "red"})
        assert order.payload == "committed"

    @case("K.10", needs=("find_native",))
    def test_a_delivery_leads_a_native_client_to_its_message(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        for number in range(5):
            bus.publish(words, f"word {number}")

        with bus.subscription(words) as messages:
            waiting = {delivery.payload: delivery.message.native for delivery in harness.take(messages, 5)}

        found = {word: harness.find_native(words, native) for word, native in waiting.items()}
        assert found == {f"word {number}": f'"word {number}"'.encode() for number in range(5)}

    @case("K.10")
    def test_a_native_option_of_another_system_is_refused_and_nothing_is_sent(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        bus.open()
        bus.declare(words)

        with pytest.raises(CapabilityMissing, match=harness.capabilities.name):
            bus.publish(words, "no", native=object())
        with pytest.raises(ConfigError, match="native"):
            Queue(harness.unique("words"), str, native=object())

        assert harness.depth(words).ready == 0

    @case("K.11")
    def test_errors_have_the_same_class_and_the_same_advice_everywhere(self, harness: Harness) -> None:
        queue, words, closed = Queue(harness.unique("queue"), str), Queue(harness.unique("w"), str), harness.bus()
        bus = harness.bus()
        closed.publish(queue, "before")
        closed.close()
        too_long = "x" * harness.capabilities.max_body
        tried: list[tuple[type[MqkitError], Callable[[], Any]]] = [
            (errors.Closed, lambda: closed.publish(queue, "after")),
            (errors.MessageTooLarge, lambda: bus.publish(queue, too_long)),
            (errors.Unencodable, lambda: bus.publish(queue, 7)),  # type: ignore[misc]
            (errors.Unencodable, lambda: bus.publish(queue, "x", headers={"mq-x": "reserved"})),
            (errors.Unencodable, lambda: bus.publish(queue, "x", key="\0")),
            (errors.NotFound, lambda: harness.bus(declare="check").publish(words, "x")),
            (errors.ConfigError, lambda: bus.publish(queue, "x", delay=float("nan"))),
        ]

        for expected, act in tried:
            with pytest.raises(MqkitError) as found:
                act()
            assert type(found.value) is expected
            assert found.value.retryable is False

        assert harness.depth(queue).ready == 1

    @case("K.12", needs=("denied_url",))
    def test_a_client_that_is_refused_is_told_so_at_once_and_does_not_try_for_ever(self, harness: Harness) -> None:
        self.refused(harness.bus(harness.denied_url()), Queue(harness.unique("words"), str))

    @case("K.12", needs=("untrusted_url",))
    def test_a_server_that_cannot_be_trusted_is_refused_and_no_message_goes_there(self, harness: Harness) -> None:
        self.refused(harness.bus(harness.untrusted_url()), Queue(harness.unique("words"), str))

    def refused(self, bus: Bus, words: Queue[str]) -> None:
        """Every verb of this bus says `Denied`, long before its time is over."""
        bus.on(words)(print)
        verbs: list[Callable[[], object]] = [
            lambda: bus.open(timeout=60.0),
            lambda: bus.publish(words, "no", timeout=60.0),
            lambda: bus.publish_soon(words, "no").result(60.0),
            lambda: enter_worker(bus),
            lambda: bus.dead_letters(words).list(),
        ]

        began = time.monotonic()
        for verb in verbs:
            with pytest.raises(Denied) as found:
                verb()
            assert not found.value.retryable
        took = time.monotonic() - began
        health = bus.health()

        assert took < 20.0
        assert (health.ready, bool(health.reasons)) == (False, True)

    @case("K.13", needs=("broadcast",))
    def test_a_listener_chooses_keys_by_pattern(self, harness: Harness) -> None:
        ticks, bus = Broadcast(harness.unique("ticks"), int), harness.bus()
        patterns = {"eu.*.gold": [1], "eu.#": [1, 2, 4], "#.gold": [1, 3, 5], "us.paris.gold": [3], "*": [4, 5], "#": [1, 2, 3, 4, 5]}  # fmt: skip
        listeners = {pattern: bus.subscription(ticks, match=pattern) for pattern in patterns}
        for listener in listeners.values():
            listener.open()

        for number, key in enumerate(("eu.rome.gold", "eu.rome.oil", "us.paris.gold", "eu", "gold"), start=1):
            bus.publish(ticks, number, key=key)

        heard = {pattern: hear(harness, listener, len(patterns[pattern])) for pattern, listener in listeners.items()}
        assert heard == patterns

    @case("K.14")
    def test_a_backend_whose_driver_is_not_installed_says_what_to_install(
        self, harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scheme = harness.unique("absent")
        package = scheme.replace("-", "_")
        (tmp_path / f"{package}.py").write_text("import a_driver_nobody_has")
        (tmp_path / f"{package}-1.0.dist-info").mkdir()
        (tmp_path / f"{package}-1.0.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n")
        (tmp_path / f"{package}-1.0.dist-info" / "entry_points.txt").write_text(
            f"[mqkit.backends]\n{scheme} = {package}:Backend [driver]\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        bus = harness.bus(f"{scheme}://host")

        for act in (bus.open, lambda: bus.publish(Queue("words", str), "no"), lambda: bus.declare(Queue("words", str))):
            with pytest.raises(ExtraMissing) as found:
                act()
            assert re.search(rf"'a_driver_nobody_has'.*pip install '{package}\[driver\]'", str(found.value))
            assert isinstance(found.value.__cause__, ModuleNotFoundError)

    @case("K.14", needs=("driver",))
    def test_without_its_driver_this_backend_names_the_extra(self, harness: Harness) -> None:
        module, extra = harness.driver()

        process = harness.consumer("open_without", module)

        assert process.wait() == 0
        [said] = process.lines()
        assert re.search(rf"^ExtraMissing .*{module}.*pip install '[\w.-]+\[{extra}\]'", said)

    @case("K.15")
    def test_a_secret_in_the_url_is_never_shown(self, harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        caplog.set_level(logging.DEBUG, logger="mqkit")
        scheme, _, rest = harness.url.partition("://")
        urls = [
            harness.url_with(password=SECRET),
            f"{scheme}://someone:{SECRET}@{rest}",
            f"{scheme}x://u:{SECRET}@host",
        ]
        urls += [f"{scheme}://u:{SECRET}@host:notaport/", f"{scheme}://u:{SECRET}#x@host/"]
        shown: list[str] = []

        for url in urls:
            bus = Bus(url)
            shown.append(repr(bus) + repr(bus.aio) + str(bus.health()))
            try:
                bus.open(timeout=1.0)
            except MqkitError as exc:
                shown.append(everything_said(exc))
            finally:
                bus.close()

        assert SECRET not in " ".join(shown)
        assert SECRET not in caplog.text


def enter_worker(bus: Bus) -> None:
    """Start to consume, and stop."""
    with bus.worker():
        pass


def hear(harness: Harness, listener: Subscription[int], count: int) -> list[int]:
    """What a listener was told, which should be so much and nothing else."""
    with listener:
        return [delivery.payload for delivery in harness.take_only(listener, count, quiet=0.5)]


def everything_said(error: BaseException | None) -> str:
    """An error's text with those of its causes, as a traceback shows them."""
    said = ""
    while error is not None:
        said += f"{error!r} {error}\n"
        error = error.__cause__ or error.__context__
    return said
