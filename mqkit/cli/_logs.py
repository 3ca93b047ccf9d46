"""mqkit's log as lines on stderr: time, level, event, then what belongs to it."""

from __future__ import annotations

import logging

from mqkit.cli._output import printable
from mqkit.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        line = f"{self.formatTime(record)} {record.levelname.lower():7} {record.getMessage()}{fields}"
        text = printable(line)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def log_to_stderr(level: str) -> None:
    """A program that sets up logging of its own gets both; it can take the handler off again."""
    if level not in LEVELS:
        raise ConfigError(f"--log-level {level!r} must be one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    log = logging.getLogger("mqkit")
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(level.upper())
