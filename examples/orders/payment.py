"""Payment: charges orders through a bank that is sometimes away, and refuses what a person should look at."""

from __future__ import annotations

from examples.orders.contracts import Order, approved, orders, receipt, receipts
from examples.orders.service import run
from mqkit import Bus, Delivery, Reject, Retry, fixed

BANK_FAILS_EVERY = 50  # orders; each once, so that the same run can be repeated
REVIEW_ABOVE = 200_00  # cents

bus = Bus()


class BankAway(ConnectionError):
    """The bank did not answer; asking again is safe."""


def refusal(order: Order) -> str | None:
    """Why this order is not charged without a person's consent; None if it is."""
    if order.cents == 0:
        return "free order needs approval"
    if order.cents > REVIEW_ABOVE:
        return "manual review above 200 dollars"
    return None


def charge(order: Order, attempt: int) -> None:
    if order.number % BANK_FAILS_EVERY == 0 and attempt == 1:
        raise BankAway(f"no answer for order {order.number}")


@bus.on(orders, group="payment", retry=Retry(attempts=3, backoff=fixed(0.2), on=(BankAway,)))
def pay(order: Order, delivery: Delivery[Order]) -> None:
    if reason := refusal(order):
        raise Reject(reason)
    charge(order, delivery.attempt)
    delivery.publish(receipts, receipt("payment", order, delivery.attempt))


@bus.on(approved, retry=Retry(attempts=3, backoff=fixed(0.2), on=(BankAway,)))
def pay_approved(order: Order, delivery: Delivery[Order]) -> None:
    charge(order, delivery.attempt)
    delivery.publish(receipts, receipt("payment", order, delivery.attempt))


if __name__ == "__main__":
    run(bus)
