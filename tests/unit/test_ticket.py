"""The future of a publish behaves like the one it inherits from, whoever is first."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import FIRST_COMPLETED, wait

import pytest

from mqkit._ticket import Ticket, claim
from mqkit.backends.base import Address, Outgoing
from mqkit.envelope import Envelope


def ticket() -> Ticket:
    return Ticket(Outgoing(Address("queue", "emails"), "id-1", b"", None, {}, Envelope()))


def test_a_resolved_ticket_gives_the_message_id():
    one = ticket()
    one.resolve(None)
    assert (one.done(), one.result(0), one.exception(0)) == (True, "id-1", None)


def test_a_failed_ticket_raises_what_went_wrong():
    one = ticket()
    one.resolve(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        one.result(0)


def test_a_waiter_and_the_pump_never_miss_each_other():
    for _ in range(500):
        one = ticket()
        claim([one])
        pump = threading.Thread(target=one.resolve, args=(None,))
        pump.start()
        assert one.result(5) == "id-1"
        pump.join()


def test_a_callback_is_called_once_whether_added_before_or_after():
    called: list[str] = []
    early, late = ticket(), ticket()
    early.add_done_callback(lambda _: called.append("early"))
    early.resolve(None)
    late.resolve(None)
    late.add_done_callback(lambda _: called.append("late"))
    assert called == ["early", "late"]


def test_many_tickets_can_be_waited_for_together():
    tickets = [ticket() for _ in range(20)]
    threading.Timer(0.01, lambda: [one.resolve(None) for one in tickets]).start()
    done, late = wait(tickets, 5)
    assert (len(done), len(late)) == (20, 0)


def test_who_waits_for_all_of_many_waits_for_the_last_also_while_they_are_resolved():
    interval, tickets = sys.getswitchinterval(), [ticket()]
    start = threading.Barrier(2)

    def resolve() -> None:
        while start.wait() is not None and tickets:
            for one in claim(tickets):
                one.resolve(None)

    pump = threading.Thread(target=resolve)
    pump.start()
    sys.setswitchinterval(1e-6)
    late: set[Ticket] = set()
    try:
        for _ in range(2000):
            tickets[:] = [ticket() for _ in range(20)]
            start.wait()
            late |= wait(list(tickets), 30).not_done
    finally:
        sys.setswitchinterval(interval)
        tickets.clear()
        start.wait()
        pump.join()
    assert not late


def test_a_withdrawn_ticket_is_not_claimed_and_a_claimed_one_not_withdrawn():
    withdrawn, taken = ticket(), ticket()
    assert withdrawn.cancel()
    assert claim([withdrawn, taken]) == [taken]
    assert not taken.cancel()
    assert withdrawn.cancelled()


def test_of_a_claim_and_a_withdrawal_at_once_exactly_one_wins():
    for _ in range(300):
        one = ticket()
        claimed: list[Ticket] = []
        pump = threading.Thread(target=lambda one=one, claimed=claimed: claimed.extend(claim([one])))
        pump.start()
        withdrawn = one.cancel()
        pump.join()
        assert withdrawn != bool(claimed)


def test_a_withdrawal_is_told_to_whoever_waits():
    one, other = ticket(), ticket()
    threading.Timer(0.01, one.cancel).start()
    done, _ = wait([one, other], 5, return_when=FIRST_COMPLETED)
    assert done == {one}


def test_who_waits_alone_for_a_ticket_learns_that_it_was_withdrawn():
    one = ticket()
    threading.Timer(0.01, one.cancel).start()
    assert one.wait(5)
    assert one.cancelled()


def test_a_ticket_withdrawn_twice_calls_back_once():
    called: list[object] = []
    one = ticket()
    one.add_done_callback(called.append)
    assert one.cancel()
    assert one.cancel()
    assert called == [one]
