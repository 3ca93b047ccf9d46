"""Chance for jitter, not drawn from the program's own: a seed it set, or a test that replays, must not be disturbed by our threads."""

from __future__ import annotations

import random

chance = random.SystemRandom().random  # from 0 to 1; keeps no state, so a forked child does not repeat its parent
