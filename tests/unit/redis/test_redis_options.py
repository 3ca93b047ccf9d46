"""What a URL may say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mqkit._clock import SystemClock
from mqkit._registry import backend_for
from mqkit._url import Url
from mqkit.errors import ConfigError

GOOD = [
    "redis://",
    "redis://user:secret@host:6380/3?lease=5&wait_replicas=1&client_name=shop",
    "redis://host?prefix=%7Bshop%7D%3A",
    "rediss://host?ca=/a.pem&cert=/c.pem&key=/k.pem",
    "redis+sentinel://host?service=mymaster&sentinels=b:26379,c:26380&tls=true",
]
BAD = [
    ("redis://host?prefix=shop", "tag"),
    ("redis://host?prefix=%7Ba%7D%7Bb%7D", "tag"),
    ("redis://host?lease=0.1", "lease"),
    ("redis://host?lease=2678401", "at most 2678400 seconds"),
    ("redis://host?timeout=0", "timeout"),
    ("redis://host?max_body=100", "max_body"),
    ("redis://host?wait_replicas=-1", "wait_replicas"),
    ("redis://host?evict=perhaps", "evict"),
    ("redis://host?leese=5", "lease"),
    ("redis://host/name", "database"),
    ("redis://host?ca=/a.pem", "rediss"),
    ("rediss://host?cert=/c.pem", "together"),
    ("redis://host?tls=true", "rediss"),
    ("redis://host?service=mymaster", "sentinel"),
    ("redis://host?sentinel_password=p", "sentinel"),
    ("redis+sentinel://host?service=m&sentinel_username=u", "sentinel_password"),
    ("redis+sentinel://host", "service"),
    ("redis+sentinel://host?service=m&sentinels=b", "host:port"),
]


@pytest.mark.parametrize("text", GOOD)
def test_a_url_that_makes_sense_connects_to_nothing(text: str) -> None:
    assert backend_for(Url.parse(text), SystemClock()).capabilities.name == "redis"


@pytest.mark.parametrize(("text", "word"), BAD)
def test_one_that_does_not_says_what_to_change(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        backend_for(Url.parse(text), SystemClock())


def test_a_password_is_in_no_repr() -> None:
    backend = backend_for(Url.parse("redis://user:hidden@host"), SystemClock())
    assert "hidden" not in repr(vars(backend))


def test_the_driver_is_not_imported_before_its_url_is_used() -> None:
    program = (
        "import sys, mqkit\n"
        "mqkit.Bus('redis://host')\n"
        "import mqkit.native\n"
        "assert 'redis' not in sys.modules and 'hiredis' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
