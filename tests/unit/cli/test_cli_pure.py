"""Decisions of the command line that need no broker."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from mqkit.backends.base import Address, Depth
from mqkit.cli import _exit
from mqkit.cli._output import printable
from mqkit.cli._probe import answer
from mqkit.cli._reload import changed
from mqkit.cli._supervisor import restart_delay
from mqkit.cli._target import address_of, dead_source_of, destination_of, nearest
from mqkit.cli.app import common_first
from mqkit.cli.doctor import origin
from mqkit.cli.stats import rows_of
from mqkit.cli.tail import PREFIX, WHOLE_MACHINE, abandoned, place
from mqkit.errors import CapabilityMissing, ConfigError, Denied, NotFound, PublishFailed, PublishUnknown, Unavailable
from mqkit.health import Health

NAMES = {
    "emails": Address("queue", "emails"),
    "orders/billing": Address("topic", "orders", "billing"),
    "topic:orders": Address("topic", "orders"),
    "broadcast:ticks": Address("broadcast", "ticks"),
}


@pytest.mark.parametrize(("name", "address"), NAMES.items())
def test_a_name_leads_to_its_address_and_back(name: str, address: Address):
    assert address_of(name) == address
    assert str(address) == name


@pytest.mark.parametrize(
    "name", ["", "/", "orders/", "/billing", "a/b/c", "topic:", "topic:orders/billing", " emails", "a\nb"]
)
def test_what_is_no_name_is_refused(name: str):
    with pytest.raises(ConfigError):
        address_of(name)


def test_a_group_is_nothing_to_publish_to():
    with pytest.raises(ConfigError, match="topic:orders"):
        destination_of("orders/billing")


@pytest.mark.parametrize("name", ["topic:orders", "broadcast:ticks"])
def test_only_queues_and_groups_have_dead_letters(name: str):
    with pytest.raises(ConfigError):
        dead_source_of(name)


def test_a_missing_name_is_taken_for_the_topic_of_that_name_or_one_spelled_alike():
    existing = [NAMES["emails"], NAMES["orders/billing"]]
    assert nearest(Address("queue", "orders"), existing) == "topic:orders"
    assert nearest(Address("queue", "email"), existing) == "emails"
    assert nearest(Address("queue", "zzz"), existing) is None


def test_common_options_may_stand_anywhere_before_two_dashes():
    assert common_first(["stats", "--json", "--url", "u", "a"]) == ["--json", "--url", "u", "stats", "a"]
    assert common_first(["publish", "q", "--name=x", "--", "--json"]) == ["--name=x", "publish", "q", "--", "--json"]


def test_errors_have_documented_exit_codes():
    errors = [NotFound, PublishUnknown, ConfigError, CapabilityMissing, Denied, Unavailable, PublishFailed]
    assert [_exit.code_of(error("x")) for error in errors] == [3, 5, 2, 2, 1, 1, 1]


def test_text_of_strangers_cannot_speak_to_the_terminal():
    assert printable("a\x1b[31m\nb\u202eü\x9b") == "a\\x1b[31m\\nb\\u202eü\\x9b"


def test_restarts_wait_longer_and_longer_within_bounds():
    assert [restart_delay(n, lambda: 1.0) for n in (1, 2, 3, 10, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert restart_delay(2, lambda: 0.0) == 0.5


def test_changed_files_are_those_that_came_went_or_were_written():
    assert changed({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "d": 1}) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("path", "health", "status"),
    [
        ("/live", Health(True, False), 200),
        ("/ready", Health(True, False), 503),
        ("/ready", Health(True, True), 200),
        ("/live", Health(False, True), 503),
        ("/", Health(True, True), 404),
    ],
)
def test_a_probe_is_answered_by_status(path: str, health: Health, status: int):
    assert answer(path, health)[0] == status


def test_dead_letters_are_a_column_of_their_source():
    emails, billing = NAMES["emails"], NAMES["orders/billing"]
    depths = [Depth(emails.dead_letters, 4, 0, 0), Depth(emails, 1, 2, 3), Depth(billing, 0, 0, 0)]
    assert rows_of(depths, [emails]) == [
        {"source": "emails", "kind": "queue", "ready": 1, "inflight": 2, "delayed": 3, "dead": 4}
    ]
    assert [row["source"] for row in rows_of(depths, [NAMES["topic:orders"]])] == ["orders/billing"]


def test_only_groups_of_a_tail_on_this_machine_that_has_ended_are_abandoned():
    mine = f"{PREFIX}{place()}-"
    assert abandoned(f"{mine}999999999-abc")
    assert not abandoned(f"{mine}{os.getpid()}-abc")
    assert not abandoned(f"{PREFIX}elsewhere-999999999-abc")
    assert not abandoned("billing")
    for nonsense in ("\u00b2", "9" * 30, "-1", ""):
        assert not abandoned(f"{mine}{nonsense}-abc")


def test_a_tail_in_another_container_of_the_same_host_name_is_not_judged(monkeypatch: pytest.MonkeyPatch):
    groups = []
    for namespace in (1, 2, WHOLE_MACHINE):
        monkeypatch.setattr(os, "stat", lambda _, one=namespace: SimpleNamespace(st_ino=one))
        groups.append(f"{PREFIX}{place()}-999999999-abc")
        assert [abandoned(group) for group in groups] == [False] * (len(groups) - 1) + [True]


def test_the_origin_of_a_url_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MQKIT_URL", raising=False)
    (tmp_path / "mqkit.toml").write_text('[bus.default]\nurl = "memory://"\n')
    assert origin("default", "memory://") == "--url"
    assert "mqkit.toml" in origin("default", None)
    monkeypatch.setenv("MQKIT_URL", "memory://")
    assert origin("default", None) == "MQKIT_URL"
