"""The driver's log, without what nobody may read there."""

from __future__ import annotations

import logging
from typing import Any

WRITES_LOGINS = ("kafka.net.connection", "kafka.protocol.parser", "kafka.admin.client")
PASSWORD = "sasl_plain_password"


class WithoutLogins(logging.Filter):
    """At DEBUG the driver writes down each request, and those of a login hold the password, as do a client's settings."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown, record.args))
        elif record.args and PASSWORD in record.args:  # logging makes a lone mapping the arguments themselves
            record.args = {**record.args, PASSWORD: "..."}
        return True


def quieten() -> None:
    """What the driver warns of reaches the user as an error of ours; who wants its log sets its level."""
    driver = logging.getLogger("kafka")
    if driver.level == logging.NOTSET:
        driver.setLevel(logging.CRITICAL)
    for name in WRITES_LOGINS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, WithoutLogins) for one in logger.filters):
            logger.addFilter(WithoutLogins())


def _shown(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    return type(value).__name__ if type(value).__name__.startswith("Sasl") else value
