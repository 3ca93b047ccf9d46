"""
Faults seeded into our own code, one at a time, to show that the torture would notice.

Each is a function that spoils one thing in the process that calls it. A mutant that the torture lets live is a hole in the
torture, not in mqkit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mqkit._consume import ConsumePump
from mqkit._ending import Endings
from mqkit._publish import PublishPump
from mqkit.backends.base import Done
from mqkit.errors import PublishUnknown

EMBEDDED, NETWORK = "sqlite", "redis rabbitmq kafka sqs"
UNSURE = "redis rabbitmq sqs"  # Kafka's driver sends again what was not answered, without doubling it, for 40 s
KAFKA, SQS = "kafka", "sqs"


@dataclass(frozen=True)
class Mutant:
    """
    Attributes:
        backends: Where the spoilt code runs, or where what it spoils can happen.
    """

    infect: Callable[[], None]
    backends: frozenset[str]


MUTANTS: dict[str, Mutant] = {}


def infect(name: str) -> None:
    """Spoil this process; nothing for the empty name."""
    if name:
        MUTANTS[name].infect()


def mutant(*backends: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def enter(infect: Callable[[], None]) -> Callable[[], None]:
        MUTANTS[infect.__name__] = Mutant(infect, frozenset(" ".join(backends).split()))
        return infect

    return enter


def instead(cls: type, method: str, act: Callable[..., Any]) -> None:
    """`act(original, self, *args)` runs in place of a method."""
    original = getattr(cls, method)
    setattr(cls, method, lambda self, *args, **named: act(original, self, *args, **named))


# -- consuming ---------------------------------------------------------------------------------------------------------


@mutant(EMBEDDED, "redis rabbitmq kafka")  # SQS waits for others to delete along, longer than most handlers take
def acknowledges_before_the_handler() -> None:
    def admit(original: Any, self: ConsumePump, receiver: Any, deliveries: Any) -> None:
        original(self, receiver, deliveries)
        receiver.settle([Done(received) for received in deliveries])

    instead(ConsumePump, "_admit", admit)


@mutant(EMBEDDED, NETWORK)
def acknowledges_what_failed() -> None:
    instead(Endings, "_failed", lambda original, self, delivery, error: (Done(delivery._received),))


@mutant(EMBEDDED, NETWORK)
def acknowledges_what_it_gives_back_at_a_stop() -> None:
    def give_back(original: Any, self: ConsumePump, *args: Any, **named: Any) -> Any:
        return [Done(each.delivery) for each in original(self, *args, **named)]

    instead(ConsumePump, "_give_back", give_back)


@mutant(EMBEDDED, NETWORK)
def acknowledges_all_that_came_before() -> None:
    def drain(original: Any, self: ConsumePump) -> Any:
        before = [delivery._received for delivery in self._hand.inflight.values()]
        settlements = original(self)
        if not settlements:
            return settlements
        latest = settlements[-1].delivery
        older = before[: before.index(latest)] if latest in before else []
        named = {id(each.delivery) for each in settlements}
        return [*settlements, *(Done(received) for received in older if id(received) not in named)]

    instead(ConsumePump, "_drain", drain)


@mutant(EMBEDDED, NETWORK)
def swallows_one_delivery_in_a_hundred() -> None:
    count = 0

    def admit(original: Any, self: ConsumePump, receiver: Any, deliveries: Any) -> None:
        nonlocal count
        kept = []
        for received in deliveries:
            count += 1
            if count % 100:
                kept.append(received)
        original(self, receiver, kept)

    instead(ConsumePump, "_admit", admit)


@mutant(EMBEDDED, NETWORK)
def forgets_what_a_handler_staged() -> None:
    def complete(original: Any, self: Endings, delivery: Any, ending: Any) -> Any:
        return original(self, delivery, type(ending)((), ending.outcome, ending.error))

    instead(Endings, "_complete", complete)


@mutant(EMBEDDED, NETWORK)
def hides_that_a_message_was_handed_out_before() -> None:
    def admit(original: Any, self: ConsumePump, receiver: Any, deliveries: Any) -> None:
        for received in deliveries:
            received.deliveries = 1
        original(self, receiver, deliveries)

    instead(ConsumePump, "_admit", admit)


# -- publishing --------------------------------------------------------------------------------------------------------


@mutant(EMBEDDED, NETWORK)
def confirms_what_is_only_on_its_way() -> None:
    def submit(original: Any, self: PublishPump, publisher: Any, batch: Any) -> None:
        original(self, publisher, batch)
        for ticket in batch:
            if not ticket.done():
                ticket.resolve(None)

    def answer(original: Any, self: PublishPump, outcomes: Any) -> None:
        self._inflight -= len(outcomes)

    instead(PublishPump, "_submit", submit)
    instead(PublishPump, "_answer", answer)


@mutant(UNSURE)
def takes_unknown_for_stored() -> None:
    def answer(original: Any, self: PublishPump, outcomes: Any) -> None:
        original(self, [(ticket, None if isinstance(error, PublishUnknown) else error) for ticket, error in outcomes])

    instead(PublishPump, "_answer", answer)


@mutant(UNSURE)
def sends_unknown_messages_again_in_silence() -> None:
    def answer(original: Any, self: PublishPump, outcomes: Any) -> None:
        known = []
        for ticket, error in outcomes:
            if isinstance(error, PublishUnknown) and not ticket.done():
                self._inflight -= 1
                ticket.requeue()
                self._queue.append(ticket)
            else:
                known.append((ticket, error))
        original(self, known)

    instead(PublishPump, "_answer", answer)


@mutant(EMBEDDED, NETWORK)
def publishes_one_message_in_twenty_twice() -> None:
    count = 0

    def submit(original: Any, self: PublishPump, publisher: Any, batch: Any) -> None:
        nonlocal count
        original(self, publisher, batch)
        extra = []
        for ticket in batch:  # messages are counted, not batches, of which a publisher may not live to see a hundred
            count += 1
            if count % 20 == 0 and ticket.outgoing is not None:
                extra.append(ticket.outgoing)
        if extra:
            self._inflight += len(extra)
            publisher.submit(extra)

    instead(PublishPump, "_submit", submit)


# -- Kafka, whose driver is imported only where it is spoilt -----------------------------------------------------------


@mutant(KAFKA)
def commits_one_record_too_far() -> None:
    from mqkit.backends.kafka.ledger import Ledger

    Ledger.base = property(lambda self: self._base + 1)  # type: ignore[assignment, method-assign]


@mutant(KAFKA)
def leaves_out_what_is_done_above_the_commit() -> None:
    from mqkit.backends.kafka.ledger import Ledger

    def runs(original: Any, self: Ledger, given_back: bool) -> Any:
        return (run for run in original(self, given_back) if run.held)

    instead(Ledger, "_runs", runs)


@mutant(KAFKA)
def counts_no_deaths() -> None:
    from mqkit.backends.kafka.ledger import Ledger

    def take(original: Any, self: Ledger, offset: int) -> Any:
        held = original(self, offset)
        return held if held is None else held._replace(lost=0)

    instead(Ledger, "take", take)


@mutant(KAFKA)
def leaves_the_last_copy_out_of_a_transaction() -> None:
    from mqkit.backends.kafka.producer import Transactions

    def carry_out(original: Any, self: Transactions, records: Any, offsets: Any, group: Any) -> None:
        original(self, records[:-1], offsets, group)

    instead(Transactions, "carry_out", carry_out)


@mutant(KAFKA)
def confirms_what_the_driver_has_not_sent() -> None:
    from mqkit.backends.kafka.publisher import KafkaPublisher

    def submit(original: Any, self: KafkaPublisher, batch: Any) -> None:
        original(self, batch)
        lines, self._lines = self._lines, {}
        self._outcomes += [(message.token, None) for line in lines.values() for _, message in line]

    instead(KafkaPublisher, "submit", submit)


# -- SQS, whose driver is imported only where it is spoilt -------------------------------------------------------------


@mutant(SQS)
def removes_what_it_receives() -> None:
    from mqkit.backends.sqs.desk import Desk

    def poll(original: Any, self: Desk, most: int, wait: int) -> Any:
        arrivals = original(self, most, wait)
        if arrivals:
            self.delete([arrival.raw["ReceiptHandle"] for arrival in arrivals])
        return arrivals

    instead(Desk, "poll", poll)


@mutant(SQS)
def removes_what_it_gives_back() -> None:
    from mqkit.backends.sqs.desk import Desk

    def hide(original: Any, self: Desk, held: Any, seconds: int) -> Any:
        return original(self, held, seconds) if seconds else self.delete([each.receipt for each in held])

    instead(Desk, "hide", hide)


@mutant(SQS)
def lets_the_driver_repeat_what_was_not_answered() -> None:
    from mqkit.backends.sqs.sender import Sender
    from mqkit.errors import Lost

    def send(original: Any, self: Sender, letters: Any) -> Any:
        for _ in range(3):
            try:
                return original(self, letters)
            except Lost:
                continue
        return original(self, letters)

    instead(Sender, "send", send)


@mutant(SQS)
def leaves_the_last_of_ten_behind() -> None:
    from mqkit.backends.sqs.sender import Sender

    def send(original: Any, self: Sender, letters: Any) -> Any:
        return [*original(self, letters[:9]), *[None for _ in letters[9:]]]

    instead(Sender, "send", send)
