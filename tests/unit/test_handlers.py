"""What is wrong with a registration is said when it is made, or at the latest when the bus starts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from mqkit import Ack, AsyncBus, Batch, Broadcast, Bus, Delivery, Handlers, Queue, Reject, Retry, RetryLater, Topic
from mqkit.errors import CapabilityMissing, ConfigError
from mqkit.testing import VirtualClock, run_until_idle

emails = Queue("emails", str)
orders = Topic("orders", dict, groups=["billing"])
keyed = Queue("keyed", str, key=lambda text: text)
ticks = Broadcast("ticks", int)


def bus() -> Bus:
    return Bus("memory://", clock=VirtualClock())


def take(text: str) -> None: ...


def payload_by_name(*, text: str) -> None: ...


def not_decorated(delivery: Delivery) -> Iterator[None]:
    yield


async def no_manager(delivery: Delivery) -> None: ...


@pytest.mark.parametrize(
    ("register", "text"),
    [
        (lambda h: h.on("emails"), "texts are not destinations"),
        (lambda h: h.on(orders), "needs group="),
        (lambda h: h.on(emails, group="g"), "is for topics"),
        (lambda h: h.on(orders, group="a/b"), "'/'"),
        (lambda h: h.on(emails, concurrency=0), "concurrency=0"),
        (lambda h: h.on(emails, timeout=0), "timeout=0"),
        (lambda h: h.on(emails, order="key"), "declares key="),
        (lambda h: h.on(emails, order="fifo"), "order='fifo'"),
        (lambda h: h.on(emails, promise="always"), "promise='always'"),
        (lambda h: h.on(emails, promise="at_most_once", retry=Retry()), "never retries"),
        (lambda h: h.on(emails, promise="at_most_once", settle="manual"), "no meaning"),
        (lambda h: h.on(keyed, promise="at_most_once"), 'say order="none"'),
        (lambda h: h.on(keyed, promise="at_most_once", order="key"), 'say order="none"'),
        (lambda h: h.on(emails, settle="later"), "settle='later'"),
        (lambda h: h.on(emails, retry=5), "retry=5"),
        (lambda h: h.on(emails, batch=5), "batch=5"),
        (lambda h: h.on(emails, where="x"), "where='x'"),
        (lambda h: h.wrap(5), "wrap"),
        (lambda h: h.wrap(not_decorated), "decorate it with contextlib.contextmanager"),
        (lambda h: h.wrap(no_manager), "an async def returns no context manager"),
        (lambda h: h.on(emails)(payload_by_name), "keyword-only"),
        (lambda h: h.on(ticks, retry=Retry()), "broadcast"),
        (lambda h: h.on(orders, group="g", start="middle"), "start='middle'"),
        (lambda h: h.provide(int, 5), "cannot be called"),
        (lambda h: h.include("x"), "takes Handlers"),
        (lambda h: h.include(h), "include each other"),
        (lambda h: Batch(size=0, age=1.0), "size=0"),
        (lambda h: Batch(size=1, age=-1.0), "age=-1"),
    ],
)
def test_a_registration_that_cannot_work_is_refused_at_once(register, text: str):
    with pytest.raises(ConfigError, match=text):
        register(Handlers())


def test_a_handler_that_returns_something_is_refused():
    def answer(text: str) -> str:
        return text

    with pytest.raises(ConfigError, match="annotate None"):
        Handlers().on(emails)(answer)


def test_a_handler_with_a_narrower_payload_type_is_refused():
    def narrow(number: int) -> None: ...

    with pytest.raises(ConfigError, match="cannot take every payload"):
        Handlers().on(emails)(narrow)


def test_a_generator_and_a_handler_without_parameters_are_refused():
    def generate(text: str):
        yield text

    for broken in (generate, lambda: None):
        with pytest.raises(ConfigError):
            Handlers().on(emails)(broken)


def test_a_handler_is_given_back_unchanged():
    assert Handlers().on(emails)(take) is take


class Cards:
    pass


def test_a_parameter_that_nothing_provides_stops_the_worker():
    one = bus()

    @one.on(emails)
    def charge(text: str, cards: Cards) -> None: ...

    with pytest.raises(ConfigError, match=r"'cards'.*provide"), one.worker():
        pass


def test_an_async_provider_behind_a_def_stops_the_worker():
    one = bus()

    async def cards() -> Cards:
        return Cards()

    one.provide(Cards, cards)

    @one.on(emails)
    def charge(text: str, cards: Cards) -> None: ...

    with pytest.raises(ConfigError, match="cannot wait"), one.worker():
        pass


def test_an_async_middleware_around_a_def_stops_the_worker():
    one = bus()

    @contextlib.asynccontextmanager
    async def around(delivery: Delivery) -> AsyncIterator[None]:
        yield

    one.wrap(around)
    one.on(emails)(take)
    with pytest.raises(ConfigError, match="asynchronous"), one.worker():
        pass


class Asynchronous:
    def __init__(self, delivery: Delivery) -> None: ...

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


def nothing(delivery: Delivery) -> None: ...


@pytest.mark.parametrize(("middleware", "text"), [(Asynchronous, "asynchronous"), (nothing, "no context manager")])
def test_a_middleware_that_cannot_be_entered_stops_the_worker(middleware, text: str):
    one = bus()
    one.wrap(middleware)
    one.on(emails)(take)

    with pytest.raises(ConfigError, match=text), one.worker():
        pass


def test_a_class_may_be_the_middleware():
    one, seen = bus(), []

    class Around(Asynchronous):
        async def __aenter__(self) -> None:
            seen.append("entered")

    @one.on(emails)
    async def handle(text: str) -> None:
        seen.append(text)

    one.wrap(Around)
    one.publish(emails, "x")
    run_until_idle(one).raise_first()

    assert seen == ["entered", "x"]


FIRST = Delivery.__new__(Delivery)


def second_by_default(text: str, dry_run: bool = False, delivery: Delivery[str] = FIRST) -> None:
    seen.append((dry_run, delivery.payload))


def by_name_only(text: str, dry_run: bool = False, *, delivery: Delivery[str]) -> None:
    seen.append((dry_run, delivery.payload))


def optional(text: str, dry_run: bool = False, delivery: Delivery[str] | None = None) -> None:
    seen.append((dry_run, delivery and delivery.payload))


def by_position_only(text: str, delivery: Delivery[str], /, dry_run: bool = False) -> None:
    seen.append((dry_run, delivery.payload))


async def by_position_only_async(text: str, delivery: Delivery[str], /, dry_run: bool = False) -> None:
    seen.append((dry_run, delivery.payload))


seen: list[tuple[bool, object]] = []


@pytest.mark.parametrize(
    "handler", [second_by_default, by_name_only, optional, by_position_only, by_position_only_async]
)
def test_a_delivery_goes_to_the_parameter_that_asks_for_it_wherever_it_stands(handler):
    one = bus()
    seen.clear()
    one.on(emails)(handler)
    one.publish(emails, "x")

    run_until_idle(one).raise_first()

    assert seen == [(False, "x")]


def test_a_positional_parameter_behind_one_that_nothing_fills_stops_the_worker():
    one = bus()

    @one.on(emails)
    def handle(text: str, dry_run: bool = False, delivery: Delivery[str] = FIRST, /) -> None: ...

    with pytest.raises(ConfigError, match="remove the /"), one.worker():
        pass


def test_two_handlers_of_one_queue_are_refused():
    one = bus()
    one.on(emails)(take)
    one.on(emails)(take)
    with pytest.raises(ConfigError, match="two handlers"), one.worker():
        pass


def test_a_worker_without_handlers_names_the_usual_cause():
    with pytest.raises(ConfigError, match="__main__"), bus().worker():
        pass


def test_registration_ends_when_a_worker_starts():
    one = bus()
    one.on(emails)(take)
    with one.worker(), pytest.raises(ConfigError, match="before its worker starts"):
        one.on(keyed)(take)


def test_earliest_needs_a_topic_that_retains():
    one = bus()

    @one.on(orders, group="audit", start="earliest")
    def audit(order: dict) -> None: ...

    with pytest.raises(ConfigError, match="keeps nothing"):
        one.open()


def test_priorities_the_backend_has_not_are_refused_when_the_bus_starts():
    assert Bus("memory://").open() is None
    with pytest.raises(ConfigError, match="256"):
        Queue("urgent", str, priorities=256)
    assert issubclass(CapabilityMissing, ConfigError)


def test_values_are_provided_by_annotation_once_per_delivery_and_left_before_the_verdict():
    one, log = bus(), []

    class Session:
        pass

    class Repository:
        def __init__(self, session: Session) -> None:
            self.session = session

    def session() -> Iterator[Session]:
        log.append("enter")
        yield Session()
        log.append("exit")

    one.provide(Session, session)
    one.provide(Repository, lambda session: Repository(session))

    Session.__module__ = Repository.__module__ = __name__
    globals().update(Session=Session, Repository=Repository)

    def repository(session: Session) -> Repository:
        return Repository(session)

    one.provide(Repository, repository)

    @one.on(emails)
    def handle(
        text: str, session: Session, repository: Repository, bus: Bus, aio: AsyncBus, delivery: Delivery[str]
    ) -> None:
        log.append((text, repository.session is session, bus is one, aio is one.aio, delivery.payload))

    one.publish(emails, "hello")
    run_until_idle(one).raise_first()
    assert log == ["enter", ("hello", True, True, True, "hello"), "exit"]


def test_a_provider_that_fails_at_its_exit_fails_the_attempt():
    one = bus()

    def cards() -> Iterator[Cards]:
        yield Cards()
        raise ValueError("commit failed")

    one.provide(Cards, cards)

    @one.on(emails, retry=Retry(attempts=1))
    def charge(text: str, cards: Cards) -> None: ...

    one.publish(emails, "hello")
    assert [attempt.outcome for attempt in run_until_idle(one)] == ["dead"]


def test_a_worker_provider_is_made_once_and_left_at_the_end():
    one, log = bus(), []

    def cards() -> Iterator[Cards]:
        log.append("made")
        yield Cards()
        log.append("left")

    one.provide(Cards, cards, per="worker")

    @one.on(emails)
    async def charge(text: str, cards: Cards) -> None:
        log.append(text)

    for text in "abc":
        one.publish(emails, text)
    run_until_idle(one).raise_first()
    assert (log[0], sorted(log[1:4]), log[4:]) == ("made", ["a", "b", "c"], ["left"])


class Wallet:
    def __init__(self, cards: Cards) -> None:
        self.cards = cards


@pytest.mark.parametrize("per", ["delivery", "worker"])
def test_providers_may_be_registered_before_what_they_need(per):
    one, made = bus(), []
    one.provide(Wallet, lambda cards: Wallet(cards), per=per)  # replaced below: a lambda has no annotations

    def wallet(cards: Cards) -> Wallet:
        return Wallet(cards)

    one.provide(Wallet, wallet, per=per)
    one.provide(Cards, Cards, per=per)

    @one.on(emails)
    def pay(text: str, wallet: Wallet, cards: Cards) -> None:
        made.append(wallet.cards is cards)

    one.publish(emails, "x")
    run_until_idle(one).raise_first()

    assert made == [True]


def wallet_of_a_delivery(delivery: Delivery) -> Wallet: ...


def wallet_of_cards(cards: Cards) -> Wallet: ...


@pytest.mark.parametrize(("factory", "needed"), [(wallet_of_a_delivery, "Delivery"), (wallet_of_cards, "Cards")])
def test_what_is_made_once_per_worker_cannot_need_what_each_delivery_has(factory, needed: str):
    one = bus()
    one.provide(Cards, Cards)
    one.provide(Wallet, factory, per="worker")

    @one.on(emails)
    def pay(text: str, wallet: Wallet) -> None: ...

    with pytest.raises(ConfigError, match=f"needs {needed}, which is there for each delivery only"), one.worker():
        pass


def test_the_including_side_overrides_what_is_provided():
    inner, outer, seen = Handlers(), bus(), []
    inner.provide(str, lambda: "inner")

    @inner.on(keyed)
    def handle(text: str, who: str) -> None:
        seen.append(who)

    outer.include(inner)
    outer.provide(str, lambda: "outer")
    outer.publish(keyed, "x")
    run_until_idle(outer).raise_first()
    assert seen == ["outer"]


def test_middleware_stands_around_the_handler_outermost_first_and_cannot_swallow_a_failure():
    inner, outer, log = Handlers(), bus(), []

    def named(name: str):
        @contextlib.contextmanager
        def around(delivery: Delivery) -> Iterator[None]:
            log.append(name)
            with contextlib.suppress(ValueError):
                yield

        return around

    inner.wrap(named("inner"))
    outer.wrap(named("outer"))
    outer.include(inner)

    @inner.on(emails, retry=Retry(attempts=1))
    def handle(text: str) -> None:
        raise ValueError(text)

    outer.publish(emails, "x")
    assert [attempt.outcome for attempt in run_until_idle(outer)] == ["dead"]
    assert log == ["outer", "inner"]


@pytest.mark.parametrize(
    ("verdict", "outcomes"),
    [(Ack(), ["done"]), (Reject("no"), ["dead"]), (RetryLater(after=5.0), ["retry", "retry", "dead"])],
)
@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_raised_verdict_decides(verdict: Exception, outcomes: list[str], colour: str):
    one = bus()

    def plain(text: str) -> None:
        raise verdict

    async def asynchronous(text: str) -> None:
        raise verdict

    one.on(emails, retry=Retry(attempts=3))(plain if colour == "def" else asynchronous)
    one.publish(emails, "x")
    assert [attempt.outcome for attempt in run_until_idle(one)] == outcomes


def test_a_delivery_settled_by_its_handler_cannot_be_settled_by_hand():
    one = bus()

    @one.on(emails, retry=Retry(attempts=1))
    def handle(text: str, delivery: Delivery[str]) -> None:
        delivery.ack()

    one.publish(emails, "x")
    [attempt] = run_until_idle(one)
    assert isinstance(attempt.error, ConfigError)
