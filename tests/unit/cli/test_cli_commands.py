"""The commands that look at and change what is there."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mqkit import Bus, Queue, Retry, Topic
from mqkit.testing import run_until_idle

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Mqkit

emails = Queue("emails", dict)
orders = Topic("orders", dict, key=lambda order: order["customer"], groups=["billing"])


@pytest.fixture
def letters(bus: Bus) -> list[str]:
    """Three dead letters of `emails` and one of `orders/billing`; the ids of the former."""

    @bus.on(emails, retry=Retry(attempts=1))
    def send(email: dict) -> None:
        raise (KeyError if email["n"] == 2 else ValueError)(f"no \x1b[31m{email['n']}")

    @bus.on(orders, group="billing", retry=Retry(attempts=1))
    def bill(order: dict) -> None:
        raise ValueError("declined")

    ids = [bus.publish(emails, {"n": n}, key=f"k{n}", headers={"h": "1"}) for n in range(3)]
    bus.publish(orders, {"customer": "c"})
    run_until_idle(bus)
    return ids


# -- publish ----------------------------------------------------------------------------------------------------------


def test_a_published_body_arrives_untouched_with_its_options(mqkit: Mqkit, bus: Bus):
    bus.declare(emails)
    options = ["--key", "k", "--header", "a=b=c", "--id", "mine", "--type", "Mail"]

    ran = mqkit("publish", "emails", '{ "a":  1 }', *options)

    assert (ran.code, ran.out) == (0, "mine\n")
    [message] = mqkit("tail", "emails", "--no-follow", "--json").lines
    assert message["body"] == '{ "a":  1 }'
    assert [message[name] for name in ("id", "key", "headers", "type")] == ["mine", "k", {"a": "b=c"}, "Mail"]
    assert message["content_type"] == "application/json"


def test_a_type_that_is_not_text_is_refused_before_anything_is_sent(mqkit: Mqkit, bus: Bus):
    bus.declare(emails)
    ran = mqkit("publish", "emails", "1", "--type", "\udcff")
    assert (ran.code, ran.out) == (2, "")
    assert "type" in ran.err
    assert mqkit("tail", "emails", "--no-follow", "--json").lines == []


def test_a_body_that_is_not_json_is_refused_before_the_broker_is_asked(mqkit: Mqkit):
    ran = mqkit("publish", "nowhere", "{oops")
    assert ran.code == 2
    assert "not JSON" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("flag", "content"), [("--text", "text/plain; charset=utf-8"), ("--raw", "application/octet-stream")]
)
def test_other_bodies_say_what_they_are(mqkit: Mqkit, bus: Bus, flag: str, content: str):
    bus.declare(emails)
    assert mqkit("publish", "emails", flag, stdin=b"{oops\n").code == 0
    [message] = mqkit("tail", "emails", "--no-follow", "--json").lines
    assert (message["body"], message["content_type"]) == ("{oops\n", content)


def test_bytes_travel_from_a_file(mqkit: Mqkit, bus: Bus, tmp_path: Path):
    bus.declare(emails)
    (tmp_path / "body").write_bytes(b"\xff\x00")
    assert mqkit("publish", "emails", "--raw", "--file", "body").code == 0
    [message] = mqkit("tail", "emails", "--no-follow", "--json").lines
    assert (message["body"], message["encoding"]) == ("/wA=", "base64")


def test_a_missing_destination_is_not_created_unless_asked_for(mqkit: Mqkit, bus: Bus):
    bus.declare(orders)

    missing = mqkit("publish", "orders", "{}")

    assert missing.code == 3
    assert "topic:orders" in missing.err
    assert "--create" in missing.err
    assert mqkit("stats", "orders").code == 3
    assert mqkit("publish", "orders2", "{}", "--create").code == 0
    assert mqkit("stats", "orders2", "--json").json["sources"][0]["ready"] == 1


def test_a_keyed_topic_takes_messages_though_its_options_are_not_known(mqkit: Mqkit, bus: Bus):
    bus.declare(orders)
    assert mqkit("publish", "topic:orders", "{}", "--key", "c", "--create").code == 0
    assert mqkit("stats", "orders/billing", "--json").json["sources"][0]["ready"] == 1


def test_lines_are_published_until_one_is_wrong(mqkit: Mqkit, bus: Bus):
    bus.declare(emails)
    assert mqkit("publish", "emails", "--lines", "--json", stdin=b"1\n\n2\n").json == {
        "destination": "emails",
        "sent": 2,
        "failed": 0,
    }

    wrong = mqkit("publish", "emails", "--lines", "--json", stdin=b"3\nx\n4\n")

    assert (wrong.code, wrong.json["sent"]) == (2, 1)
    assert "message 2" in wrong.err
    assert mqkit("publish", "emails", "--lines").code == 4


def test_a_queue_is_copied_by_a_pipe_with_ids_keys_headers_and_bytes(mqkit: Mqkit, bus: Bus):
    raw = Queue("emails")
    bus.publish(raw, {"a": 1}, key="k", headers={"h": "ü"}, id="one")
    mqkit("publish", "emails", "--raw", "--id", "two", stdin=b"\xff")
    first = mqkit("tail", "emails", "--no-follow", "--json")

    copied = mqkit("publish", "copy", "--create", "--messages", stdin=first.out.encode())

    assert copied.out == "sent 2\n"
    second = mqkit("tail", "copy", "--no-follow", "--json")
    assert [{**line, "source": ""} for line in second.lines] == [{**line, "source": ""} for line in first.lines]


@pytest.mark.parametrize(
    "words", [["--raw", "--text"], ["--lines", "--id", "x"], ["--header", "novalue"], ["--file", "none"]]
)
def test_options_that_make_no_sense_are_usage_errors(mqkit: Mqkit, words: list[str]):
    assert mqkit("publish", "emails", *words, stdin=b"1").code == 2


def test_a_delayed_message_is_counted_as_such(mqkit: Mqkit):
    assert mqkit("publish", "emails", "1", "--create", "--delay", "60").code == 0
    assert mqkit("stats", "--json").json["sources"][0]["delayed"] == 1


# -- tail, stats ------------------------------------------------------------------------------------------------------


def test_looking_at_a_queue_takes_nothing_and_says_so(mqkit: Mqkit, bus: Bus):
    for n in range(3):
        bus.publish(emails, {"n": n})

    ran = mqkit("tail", "emails", "--limit", "2")

    assert (ran.code, len(ran.out.splitlines())) == (0, 2)
    assert "without consuming" in ran.err
    assert mqkit("stats", "emails", "--json").json["sources"][0]["ready"] == 3


def test_a_topic_is_read_through_a_group_that_is_gone_afterwards(mqkit: Mqkit, bus: Bus):
    bus.declare(orders)
    assert mqkit("tail", "topic:orders", "--no-follow").code == 4
    assert [row["source"] for row in mqkit("stats", "--json").json["sources"]] == ["orders/billing"]


def test_nothing_to_show_has_a_code_of_its_own(mqkit: Mqkit, bus: Bus):
    bus.open()
    assert mqkit("stats").code == 4
    bus.declare(emails)
    assert mqkit("tail", "emails", "--no-follow").code == 4
    assert mqkit("tail", "topic:emails", "--no-follow").code == 3


@pytest.mark.parametrize(
    "words",
    [["stats"], ["tail", "emails", "--no-follow"], ["dead", "list", "emails"], ["publish", "emails", "1"], ["doctor"]],
)
def test_a_file_that_is_not_there_is_said_and_not_made(mqkit: Mqkit, tmp_path: Path, words: list[str]):
    ran = mqkit(*words)
    assert ran.code == (1 if words == ["doctor"] else 3)
    assert "mq.db does not exist" in ran.out + ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_row_per_source(mqkit: Mqkit, letters: list[str]):
    rows = [line.split() for line in mqkit("stats").out.splitlines()]
    assert rows[0] == ["source", "ready", "inflight", "delayed", "dead"]
    assert rows[1:] == [["emails", "0", "0", "0", "3"], ["orders/billing", "0", "0", "0", "1"]]


# -- dead -------------------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_with_why(mqkit: Mqkit, letters: list[str]):
    listed = mqkit("dead", "list", "emails", "--json").lines
    assert [letter["id"] for letter in listed] == letters
    assert {"reason", "error_type", "attempts", "died_at", "source", "body", "key", "headers"} <= set(listed[0])
    assert [
        letter["id"] for letter in mqkit("dead", "list", "emails", "--error-type", "KeyError", "--json").lines
    ] == letters[2:]
    assert len(mqkit("dead", "list", "emails", "--limit", "2", "--json").lines) == 2
    assert "\x1b" not in mqkit("dead", "list", "emails").out
    assert mqkit("dead", "list", "emails", "--reason", "nothing like it").code == 4


def test_one_dead_letter_is_shown_with_its_body(mqkit: Mqkit, letters: list[str]):
    shown = mqkit("dead", "show", "emails", letters[1])
    assert 'body: {"n":1}' in shown.out
    assert "key: k1" in shown.out
    assert "\x1b" not in shown.out
    assert mqkit("dead", "show", "emails", letters[1], "--json").json["error_type"] == "ValueError"
    assert mqkit("dead", "show", "emails", "nope").code == 3


def test_replayed_dead_letters_wait_at_their_source_again(mqkit: Mqkit, letters: list[str]):
    ran = mqkit("dead", "replay", "emails", "--id", letters[0], "--json")
    assert (ran.code, ran.json) == (0, {"source": "emails", "replayed": 1})
    assert (
        mqkit("dead", "replay", "emails", "--error-type", "ValueError", "--yes", "--rate", "1000").out == "replayed 1\n"
    )
    [row] = mqkit("stats", "emails", "--json").json["sources"]
    assert (row["ready"], row["dead"]) == (2, 1)


def test_a_limit_takes_the_oldest(mqkit: Mqkit, letters: list[str]):
    assert mqkit("dead", "purge", "emails", "--limit", "1", "--yes").out == "purged 1\n"
    assert [letter["id"] for letter in mqkit("dead", "list", "emails", "--json").lines] == letters[1:]


def test_dead_letters_of_a_group_move_elsewhere(mqkit: Mqkit, letters: list[str]):
    assert mqkit("dead", "move", "orders/billing", "nowhere", "--yes").code == 3
    assert mqkit("dead", "move", "orders/billing", "emails", "--yes", "--json").json["moved"] == 1
    rows = {row["source"]: row for row in mqkit("stats", "--json").json["sources"]}
    assert (rows["orders/billing"]["dead"], rows["emails"]["ready"]) == (0, 1)


@pytest.mark.parametrize("words", [["purge", "emails"], ["replay", "emails"], ["move", "emails", "emails"]])
def test_without_anybody_to_ask_nothing_is_changed(mqkit: Mqkit, letters: list[str], words: list[str]):
    ran = mqkit("dead", *words)
    assert ran.code == 4
    assert "--yes" in ran.err
    assert len(mqkit("dead", "list", "emails", "--json").lines) == 3


def test_an_unknown_id_stops_everything(mqkit: Mqkit, letters: list[str]):
    ran = mqkit("dead", "purge", "emails", "--id", letters[0], "--id", "nope")
    assert ran.code == 3
    assert len(mqkit("dead", "list", "emails", "--json").lines) == 3
    assert mqkit("dead", "purge", "orders/billing", "--yes").code == 0
    assert mqkit("dead", "purge", "orders/billing", "--yes").code == 4


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 4, 3), ("y\n", 0, 0)])
def test_a_purge_on_a_terminal_asks(url: str, letters: list[str], mqkit: Mqkit, answer: str, code: int, left: int):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mqkit.cli", "--url", url, "dead", "purge", "emails"]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(ours, answer.encode())
    _, err = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code
    assert "purge 3 dead letters of emails?" in err
    assert len(mqkit("dead", "list", "emails", "--json").lines) == left


# -- doctor, capabilities ---------------------------------------------------------------------------------------------


def test_the_doctor_makes_a_round_trip_and_leaves_nothing_behind(mqkit: Mqkit, bus: Bus):
    bus.open()
    ran = mqkit("doctor", "--json")
    checks = {check["check"]: check for check in ran.json["checks"]}
    assert (ran.code, ran.json["ok"]) == (0, True)
    assert checks["round trip"]["seconds"] > 0
    assert checks["url"]["detail"].endswith("from --url")
    assert ran.json["capabilities"]["durable"] == "yes"
    assert mqkit("stats").code == 4


def test_the_doctor_warns_of_what_is_not_durable(mqkit: Mqkit):
    ran = mqkit("doctor", url="memory://")
    assert ran.code == 0
    assert "warning" in ran.out


def test_the_doctor_says_what_failed(mqkit: Mqkit, tmp_path: Path):
    ran = mqkit("doctor", url=f"sqlite:///{tmp_path}/no/such/folder/mq.db")
    assert ran.code == 1
    assert "failed" in ran.out
    assert "Traceback" not in ran.out + ran.err


def test_secrets_are_not_shown(mqkit: Mqkit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HIDDEN", "memory://user:canary@here")
    for words in (["doctor"], ["doctor", "--json"], ["stats"]):
        ran = mqkit(*words, url="env:HIDDEN")
        assert "canary" not in ran.out + ran.err


def test_every_backend_has_a_column(mqkit: Mqkit):
    found = mqkit("capabilities", "--json", url=None).json["backends"]
    assert found["sqlite"]["atomic"] is True
    assert found["memory"]["delay"] == "any"
    assert mqkit("capabilities", "memory", url=None).out.splitlines()[0].split() == ["capability", "memory"]
    assert mqkit("capabilities", "sqlit", url=None).code == 2


# -- all of them ------------------------------------------------------------------------------------------------------


def test_without_a_url_the_ways_to_give_one_are_shown(mqkit: Mqkit):
    ran = mqkit("stats", url=None)
    assert ran.code == 2
    assert "MQKIT_URL" in ran.err


def test_the_url_of_a_named_bus_is_found_in_the_environment(mqkit: Mqkit, url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MQKIT_SHOP_URL", url)
    assert mqkit("publish", "emails", "1", "--create", "--name", "shop", url=None).code == 0


def test_a_url_is_read_from_a_file(mqkit: Mqkit, url: str, tmp_path: Path):
    (tmp_path / "secret").write_text(f"{url}\n")
    assert mqkit("publish", "emails", "1", "--create", url="file:secret").code == 0
    assert mqkit("stats", url="file:missing").code == 2
    assert mqkit("stats", url="env:MISSING").code == 2


def test_debug_shows_the_traceback(mqkit: Mqkit):
    assert "Traceback" in mqkit("stats", "nowhere", "--debug").err
    assert "Traceback" not in mqkit("stats", "nowhere").err


@pytest.mark.parametrize("words", [["nosuch"], ["stats", "--nosuch"], ["publish"], ["dead", "show", "emails"]])
def test_a_wrong_command_line_is_a_usage_error(mqkit: Mqkit, words: list[str]):
    assert mqkit(*words).code == 2


@pytest.mark.parametrize(
    "line", [b"{}", b"x", b'{"body": "?", "encoding": "base64"}', b'{"body": "", "encoding": "rot13"}']
)
def test_a_line_that_is_no_message_is_refused(mqkit: Mqkit, bus: Bus, line: bytes):
    bus.declare(emails)
    assert mqkit("publish", "emails", "--messages", stdin=line).code == 2
    assert mqkit("stats", "emails", "--json").json["sources"][0]["ready"] == 0
