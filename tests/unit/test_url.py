from __future__ import annotations

import dataclasses

import pytest

from mqkit import Bus
from mqkit._url import Url, parse_options
from mqkit.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    block: float = 1.0
    size: int = 5
    strict: bool = False
    api_token: str | None = None


def test_a_url_is_taken_apart():
    url = Url.parse("redis://me:p%40ss@Host:6380/3?block=2")
    assert (url.scheme, url.username, url.password, url.host, url.port, url.path) == (
        "redis", "me", "p@ss", "host", 6380, "/3",
    )  # fmt: skip


def test_a_password_is_never_shown():
    url = Url.parse("redis://me:hunter2@host/?api_token=hunter2")
    for shown in (str(url), repr(url), f"{url}", repr(Bus("redis://me:hunter2@host/?api_token=hunter2"))):
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    "name", ["pwd", "pass", "Password", "passwd", "key", "api_key", "auth", "credentials", "secret"]
)
def test_an_option_that_speaks_of_a_secret_is_not_shown(name: str):
    assert str(Url.parse(f"redis://host/?{name}=hunter2&block=1")) == f"redis://host/?{name}=***&block=1"


@pytest.mark.parametrize("text", ["app.db", "redis://me:p#hunter2@host", "redis://host:hunter2x/", "redis://[hunter2/"])
def test_a_broken_url_is_refused_without_quoting_what_may_be_a_password(text: str):
    with pytest.raises(ConfigError) as caught:
        Url.parse(text)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__context__ or "")


def test_options_are_read_by_the_types_of_their_fields():
    options = parse_options(Options, Url.parse("x://?block=2.5&size=7&strict=yes&api_token=t"))
    assert options == Options(block=2.5, size=7, strict=True, api_token="t")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("blok=1", "did you mean 'block'"),
        ("size=many", "size='many'"),
        ("strict=perhaps", "strict"),
        ("size=1&size=2", "more than once"),
    ],
)
def test_a_wrong_option_is_refused_by_name(query: str, text: str):
    with pytest.raises(ConfigError, match=text):
        parse_options(Options, Url.parse(f"x://?{query}"))


def test_an_unknown_scheme_names_the_nearest_backend():
    with pytest.raises(ConfigError, match="did you mean 'sqlite'"):
        Bus("sqlight:///app.db").open()
