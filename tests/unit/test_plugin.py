"""The pytest plugin: what a test suite of an application, or of a backend, gets from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mqkit.testing.conformance import report

pytest_plugins = ["pytester"]

CASES = """
import pytest
from mqkit.testing.conformance import Harness
from mqkit.testing.conformance.cases import case

@pytest.fixture
def harness():
    harness = Harness("memory://")
    yield harness
    harness.close()

class TestCases:
    @case("A.01")
    def test_it_holds(self, harness):
        harness.bus()

    @case("A.02")
    def test_it_does_not(self, harness):
        assert harness.url == "another"

    @pytest.mark.parametrize("number", [1, 2])
    @case("B.01", needs=("delay",))
    def test_one_of_two_fails(self, harness, number):
        assert number == 1

    @case("C.01", needs=("delay", "survives_process"))
    def test_it_is_not_asked(self, harness):
        raise AssertionError

    @case("C.02", needs=("restart",))
    def test_it_needs_a_hook(self, harness):
        raise AssertionError

def test_of_something_else():
    pass
"""


def test_the_bus_of_a_test_is_on_each_backend_that_was_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from mqkit import Queue
        from mqkit.testing import run_until_idle

        def test_each_number_is_seen(mqkit_bus):
            numbers, seen = Queue("numbers", int), []
            mqkit_bus.on(numbers)(seen.append)
            mqkit_bus.publish(numbers, 7)
            run_until_idle(mqkit_bus)
            assert seen == [7]
    """)

    by_default = run(pytester)
    on_two = run(pytester, "--mqkit-backends=memory, sqlite", "-v")

    by_default.assert_outcomes(passed=1)
    on_two.assert_outcomes(passed=2)
    on_two.stdout.fnmatch_lines(["*test_each_number_is_seen?memory?*", "*test_each_number_is_seen?sqlite?*"])


def test_no_test_sees_messages_of_another(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        from mqkit import Queue

        @pytest.mark.parametrize("turn", [1, 2])
        def test_the_queue_is_new(mqkit_bus, turn):
            with mqkit_bus.subscription(Queue("numbers", int)) as messages:
                assert messages.receive(timeout=0.1) == []
            mqkit_bus.publish(Queue("numbers", int), turn)
    """)

    run(pytester, "--mqkit-backends=memory,sqlite").assert_outcomes(passed=4)


def test_buses_on_the_url_of_a_test_meet(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from mqkit import Bus, Queue

        def test_another_bus_receives(mqkit_bus, mqkit_url):
            mqkit_bus.publish(Queue("numbers", int), 7)
            with Bus(mqkit_url) as other, other.subscription(Queue("numbers", int)) as messages:
                [delivery] = messages.receive(timeout=10.0)
                assert delivery.payload == 7
    """)

    run(pytester, "--mqkit-backends=memory,sqlite").assert_outcomes(passed=2)


def test_a_test_that_needs_what_a_backend_lacks_is_skipped_and_says_what(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.mqkit_needs("delay", "survives_process")
        def test_it(mqkit_url):
            assert mqkit_url.startswith("sqlite")
    """)

    result = run(pytester, "--mqkit-backends=memory,sqlite", "-rs")

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*needs survives_process, which memory does not have*"])


def test_a_need_that_is_no_capability_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.mqkit_needs("teleportation")
        def test_it(mqkit_url):
            pass
    """)

    result = run(pytester)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*teleportation*there is no such capability*"])


def test_a_backend_that_the_plugin_does_not_know_is_refused_by_name(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--mqkit-backends=memory,postgres")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'postgres' is none of memory, sqlite, rabbitmq, redis*"])


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two processes"])
def test_what_became_of_each_case_is_written_down(pytester: pytest.Pytester, processes: list[str]) -> None:
    pytester.makepyfile(test_cases=CASES)

    run(pytester, "--mqkit-results=results.jsonl", *processes).assert_outcomes(passed=3, failed=2, skipped=2)

    first, *lines = [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]
    assert (first["backend"], first["capabilities"]["delay"]) == ("memory", "any")
    outcomes = sorted((line["case"], line["title"], line["backend"], line["outcome"]) for line in lines)
    assert outcomes == [
        ("A.01", "it holds", "memory", "passed"),
        ("A.02", "it does not", "memory", "failed"),
        ("B.01", "one of two fails", "memory", "failed"),
        ("B.01", "one of two fails", "memory", "passed"),
        ("C.01", "it is not asked", "memory", "skipped"),
        ("C.02", "it needs a hook", "memory", "skipped"),
    ]
    reasons = {line["case"]: line["reason"] for line in lines if line["outcome"] == "skipped"}
    assert reasons == {
        "C.01": "C.01 needs survives_process, which memory does not have",
        "C.02": "C.02 needs restart, which memory does not have",
    }


def test_the_report_has_a_row_for_each_case_and_the_worst_of_its_outcomes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_cases=CASES)
    run(pytester, "--mqkit-results=results.jsonl")

    page = report.page(report.read(Path("results.jsonl").read_text().splitlines()))

    assert "| A.01 | it holds | yes |" in page
    assert "| A.02 | it does not | **no** |" in page
    assert "| B.01 | one of two fails | **no** |" in page
    assert "| C.01 | it is not asked | - |" in page
    assert "- C.02 needs restart, which memory does not have" in page
    assert "| `survives_process` | no |" in page


def test_the_report_has_a_column_for_each_version_in_the_order_of_their_names() -> None:
    lines = [
        {"backend": "redis 8.0.2", "capabilities": {"name": "redis", "delay": "any"}},
        {"backend": "redis 8.0.2", "case": "A.01", "title": "it holds", "outcome": "passed", "reason": ""},
        {"backend": "redis 7.0.15", "capabilities": {"name": "redis", "delay": 0}},
        {"backend": "redis 7.0.15", "case": "A.01", "title": "it holds", "outcome": "failed", "reason": "no"},
    ]

    page = report.page(report.read(map(json.dumps, lines)))

    assert "| capability | redis 7.0.15 | redis 8.0.2 |" in page
    assert "| `delay` | 0 | any |" in page
    assert "| A.01 | it holds | **no** | yes |" in page


def test_a_case_cannot_need_what_does_not_exist() -> None:
    from mqkit.testing.conformance.cases import case

    with pytest.raises(ValueError, match="teleportation"):
        case("A.01", needs=("teleportation",))


def test_a_test_run_that_does_not_use_mqkit_loads_nothing_of_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys, threading

        def test_it(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("mqkit")
            assert {"mqkit", "msgspec", "sqlite3"} & {name.partition(".")[0] for name in sys.modules} == set()
            assert threading.active_count() == 1
    """)

    run(pytester, "-p", "no:timeout").assert_outcomes(passed=1)


def test_a_file_for_results_that_cannot_be_written_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--mqkit-results=/nope/results.jsonl")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--mqkit-results: /nope/results.jsonl cannot be written: No such file or directory*"])


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
