"""How a service of the shop is started: until SIGTERM or SIGINT, on the broker that `MQKIT_URL` names."""

from __future__ import annotations

import logging

from mqkit import Bus


def run(bus: Bus) -> None:
    quiet()
    bus.run()


def quiet() -> None:
    """Refusals are everyday business here and stand in the final table; only what is broken is logged."""
    logging.getLogger("mqkit").setLevel(logging.ERROR)
