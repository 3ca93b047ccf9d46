"""Text of what users raise or give as a reason, whatever its `__str__` does."""

from __future__ import annotations


def text_of(value: object) -> str:
    """`str(value)`, or the name of its class where that raises."""
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001  a mistake in an exception class must not hide the failure it stands for
        return f"{type(value).__name__}, whose text cannot be had: {type(exc).__name__}"
