"""
The conformance suite: what every backend of mqkit must do, as test classes.

In a test module of a backend's author, who then runs pytest on it:

    from mqkit.testing.conformance import *

    @pytest.fixture
    def harness():
        harness = Harness("mysystem://localhost")
        yield harness
        harness.close()
"""

from mqkit.testing.conformance.acknowledging import TestAcknowledging
from mqkit.testing.conformance.batches import TestBatches
from mqkit.testing.conformance.chaos import TestChaos
from mqkit.testing.conformance.concurrency import TestConcurrency
from mqkit.testing.conformance.configuration import TestConfiguration
from mqkit.testing.conformance.failures import TestFailures
from mqkit.testing.conformance.groups import TestGroups
from mqkit.testing.conformance.harness import Harness, Process
from mqkit.testing.conformance.lifecycle import TestLifecycle
from mqkit.testing.conformance.ordering import TestOrdering
from mqkit.testing.conformance.publishing import TestPublishing
from mqkit.testing.conformance.timing import TestTiming

__all__ = [
    "Harness",
    "Process",
    "TestAcknowledging",
    "TestBatches",
    "TestChaos",
    "TestConcurrency",
    "TestConfiguration",
    "TestFailures",
    "TestGroups",
    "TestLifecycle",
    "TestOrdering",
    "TestPublishing",
    "TestTiming",
]
