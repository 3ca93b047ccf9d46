"""For tests of applications and of backends: a virtual clock, running until idle, the conformance suite."""

from mqkit._trace import Attempt
from mqkit.testing.clock import VirtualClock
from mqkit.testing.idle import Trace, run_until_idle

__all__ = ["Attempt", "Trace", "VirtualClock", "run_until_idle"]
