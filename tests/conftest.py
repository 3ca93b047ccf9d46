"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# On a busy machine it says nothing how long an example takes.
settings.register_profile("untimed", parent=settings(), deadline=None)
settings.load_profile("untimed")
