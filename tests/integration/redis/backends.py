"""A backend without a bus, for what only it can say."""

from __future__ import annotations

from mqkit._clock import SystemClock
from mqkit._registry import backend_for
from mqkit._url import Url
from mqkit.backends.base import Backend


def backend_of(url: str) -> Backend:
    return backend_for(Url.parse(url), SystemClock())
