from __future__ import annotations

from pathlib import Path

import pytest

from mqkit import Bus, Queue, Retry, exponential, fixed
from mqkit.config import Overrides, load
from mqkit.errors import ConfigError


def write(folder: Path, text: str, name: str = "mqkit.toml") -> None:
    (folder / name).write_text(text)


def test_the_argument_goes_before_the_environment_and_that_before_the_file(tmp_path: Path):
    write(tmp_path, '[bus.default]\nurl = "memory://file"')
    environ = {"MQKIT_URL": "memory://environment"}
    assert load("default", "memory://argument", environ=environ, folder=tmp_path).url == "memory://argument"
    assert load("default", None, environ=environ, folder=tmp_path).url == "memory://environment"
    assert load("default", None, environ={}, folder=tmp_path).url == "memory://file"


def test_a_named_bus_has_its_own_variable(tmp_path: Path):
    environ = {"MQKIT_URL": "memory://other", "MQKIT_AUDIT_LOG_URL": "memory://audit"}
    assert load("audit-log", None, environ=environ, folder=tmp_path).url == "memory://audit"


def test_settings_may_live_in_pyproject(tmp_path: Path):
    write(tmp_path, '[tool.mqkit.bus.default]\nurl = "memory://project"', "pyproject.toml")
    assert load("default", None, environ={}, folder=tmp_path).url == "memory://project"


def test_a_profile_goes_before_the_plain_table(tmp_path: Path):
    write(tmp_path, '[bus.default]\nurl = "memory://plain"\n[profile.ci.bus.default]\nurl = "memory://ci"')
    assert load("default", None, environ={"MQKIT_PROFILE": "ci"}, folder=tmp_path).url == "memory://ci"


def test_without_any_url_the_error_shows_the_ways(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load("audit", None, environ={}, folder=tmp_path)
    for way in ("Bus(", "MQKIT_AUDIT_URL", "[bus.audit]", "mqkit.toml"):
        assert way in str(caught.value)


def test_a_missing_url_is_an_error_of_the_first_use_and_never_a_memory_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MQKIT_URL", raising=False)
    bus = Bus()
    with pytest.raises(ConfigError, match="has no URL"):
        bus.publish(Queue("emails", str), "hello")


def test_handlers_are_overridden_per_environment(tmp_path: Path):
    write(
        tmp_path,
        """
        [bus.default]
        url = "memory://"
        [bus.default.on."orders/billing"]
        concurrency = 2
        timeout = 1.5
        retry = { attempts = 7, backoff = { kind = "fixed", seconds = 0.1 } }
        """,
    )
    overrides = load("default", None, environ={}, folder=tmp_path).on["orders/billing"]
    assert (overrides.concurrency, overrides.timeout) == (2, 1.5)
    assert overrides.apply_retry(Retry(within=3.0)) == Retry(attempts=7, within=3.0, backoff=fixed(0.1))


def test_an_override_reaches_the_consumer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, '[bus.default]\nurl = "memory://"\n[bus.default.on.emails]\nconcurrency = 3')
    monkeypatch.chdir(tmp_path)
    bus = Bus()
    bus.on(Queue("emails", str))(_ignore)
    with bus.worker() as worker:
        assert [consumer.settings.concurrency for consumer in worker.consumers] == [3]
    bus.close()


def test_an_override_for_a_handler_nobody_registered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, '[bus.default]\nurl = "memory://"\n[bus.default.on.email]\nconcurrency = 3')
    monkeypatch.chdir(tmp_path)
    bus = Bus()
    bus.on(Queue("emails", str))(_ignore)
    with pytest.raises(ConfigError, match=r"email.*not registered"):
        bus.open()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[bus.default]\nurll = "x"', "did you mean 'url'"),
        ("[buss.default]\n", "did you mean 'bus'"),
        ('[bus.default]\nurl = "memory://"\n[bus.default.on.q]\nconcurency = 1', "did you mean 'concurrency'"),
        ('[bus.default]\nurl = "memory://"\n[bus.default.on.q]\nconcurrency = 0', "concurrency=0"),
        ('[bus.default]\nurl = "memory://"\n[bus.default.on.q]\nretry = { attempts = 0 }', "attempts=0"),
        (
            '[bus.default]\nurl = "memory://"\n[bus.default.on.q]\nretry = { backoff = { kind = "slow" } }',
            "exponential",
        ),
        ("[bus.default\n", "cannot be read"),
        ("[bus.default]\nurl = 5", "must be a text"),
        ('[bus.default]\nurl = ""', "is empty"),
        ("bus = 5", "mqkit.toml: bus must be a table, not 5"),
        ('[bus]\ndefault = "memory://"', "default must be a table"),
        ("profile = 5", "mqkit.toml: profile must be a table"),
        ("[bus.default]\non = 5", "on must be a table, not 5"),
        ('[bus.default]\nurl = "memory://"\non = { q = 5 }', "must be a table, not 5"),
        ('[bus.default]\nurl = "memory://"\n[bus.default.on.q]\ntimeout = nan', "timeout=nan"),
        ('[bus.default]\nurl = "memory://"\n[bus.default.on.q]\ntimeout = true', "timeout=True"),
        ('[bus.default]\nurl = "memory://"\n[bus.default.on.q]\nconcurrency = 1000000000', "concurrency=1000000000"),
        ('[bus.defualt]\nurl = "memory://"', "no bus 'default'; did you mean 'defualt'"),
        ("[bus.defualt.on.q]\nconcurrency = 1", "no bus 'default'; did you mean 'defualt'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str, named: str):
    write(tmp_path, text)
    with pytest.raises(ConfigError, match=named):
        load("default", None, environ={}, folder=tmp_path)


def test_an_unknown_profile_is_refused(tmp_path: Path):
    write(tmp_path, '[bus.default]\nurl = "memory://"')
    with pytest.raises(ConfigError, match="profile 'prod'"):
        load("default", None, environ={"MQKIT_PROFILE": "prod"}, folder=tmp_path)


@pytest.mark.parametrize("text", ["profile = 5", "[profile]\nci = 5", "[profile.ci]\nbus = 5"])
def test_a_profile_that_is_no_table_is_refused(tmp_path: Path, text: str):
    write(tmp_path, text)
    with pytest.raises(ConfigError, match="must be a table, not 5"):
        load("default", None, environ={"MQKIT_PROFILE": "ci"}, folder=tmp_path)


@pytest.mark.parametrize("text", ["tool = 5", "[tool]\nmqkit = 5"])
def test_a_tool_that_is_no_table_is_refused(tmp_path: Path, text: str):
    write(tmp_path, text, "pyproject.toml")
    with pytest.raises(ConfigError, match=r"pyproject.toml.* must be a table, not 5"):
        load("default", None, environ={}, folder=tmp_path)


def test_a_bus_has_no_table_and_another_program_has_one(tmp_path: Path):
    write(tmp_path, "[bus.reports.on.q]\nconcurrency = 1")
    assert load("default", "memory://", environ={}, folder=tmp_path).on == {}


def test_two_buses_with_names_alike_have_a_table_each(tmp_path: Path):
    write(tmp_path, "[bus.orders-eu.on.q]\nconcurrency = 1\n[bus.orders-us]")
    assert load("orders-us", "memory://", environ={}, folder=tmp_path).on == {}


@pytest.mark.parametrize(("url", "text"), [("", "is empty"), (5, "must be a text, not int")])
def test_an_empty_url_is_not_looked_up_elsewhere(tmp_path: Path, url: object, text: str):
    environ = {"MQKIT_URL": "memory://environment"}
    with pytest.raises(ConfigError, match=text):
        load("default", url, environ=environ, folder=tmp_path)  # type: ignore[arg-type]


def test_no_override_changes_nothing():
    assert Overrides().apply_retry(Retry(backoff=exponential(base=9.0))) == Retry(backoff=exponential(base=9.0))


def _ignore(text: str) -> None: ...
