"""Is it a number one can count or wait with? True and False are none, and neither is NaN or infinity."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def whole(number: Any, least: int, most: int) -> TypeGuard[int]:
    """A whole number in these bounds."""
    return isinstance(number, int) and not isinstance(number, bool) and least <= number <= most


def finite(number: Any) -> TypeGuard[float]:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
