"""What a declaration has with a server that answers that it cannot just now, as clients of AWS have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mqkit._chance import chance
from mqkit.backends.sqs.errors import may_pass
from mqkit.errors import MqkitError

LONGEST = 3.0  # seconds of one declaration for attempts that fail and their pauses; publishes may be waiting for it
PAUSES = (0.1, 0.8)  # seconds before a step is tried again, at most: the first, which is doubled, and the longest

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """It is used up by what fails."""

    def __init__(self) -> None:
        self._left = LONGEST

    def __call__(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Args:
            step: Only looks, or makes what may be there already, or looks before it writes: an attempt that failed may have had
                its effect, and others may have written since.
        """
        pause, longest = PAUSES
        while True:
            began = time.monotonic()
            try:
                return step(*args, **kwargs)
            except MqkitError as exc:
                self._left -= time.monotonic() - began + pause
                if not may_pass(exc) or self._left < 0:
                    raise
            time.sleep(pause * (1 + chance()) / 2)  # those that were throttled together come apart
            pause = min(2 * pause, longest)
