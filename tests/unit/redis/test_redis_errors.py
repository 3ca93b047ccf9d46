"""The error table against the driver's own classes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis.exceptions as native

from mqkit.backends.redis.errors import ERRORS, translate
from mqkit.errors import ConfigError, Denied, Lost, MqkitError, NotFound, Unavailable


def classes() -> Iterator[type[Exception]]:
    for value in vars(native).values():
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == native.__name__:
            yield value


def test_every_exception_of_the_driver_stands_in_the_table_itself() -> None:
    known = {kind for kind, _, _ in ERRORS}
    deliberate = {native.LockNotOwnedError}  # as its base
    assert [kind.__name__ for kind in classes() if kind not in known | deliberate] == []


def test_no_line_of_the_table_is_hidden_by_an_earlier_one() -> None:
    kinds = [kind for kind, _, _ in ERRORS]
    hidden = [
        (later.__name__, earlier.__name__)
        for place, later in enumerate(kinds)
        for earlier in kinds[:place]
        if issubclass(later, earlier)
    ]
    # These mean the same as their base.
    assert hidden == [("MasterDownError", "ClusterDownError")] or hidden == []


@pytest.mark.parametrize(
    ("exc", "kind", "retryable"),
    [
        (native.ConnectionError("Connection refused"), Unavailable, True),
        (native.TimeoutError("Timeout reading from socket"), Lost, True),
        (native.AuthenticationError("invalid username-password pair"), Denied, False),
        (native.NoPermissionError("this user has no permissions"), Denied, False),
        (native.ResponseError("The user executing the script can't run this command"), Denied, False),
        (native.ConnectionError("CERTIFICATE_VERIFY_FAILED"), Denied, False),
        (native.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), Unavailable, True),
        (native.ReadOnlyError("You can't write against a read only replica."), Unavailable, True),
        (native.ResponseError("MISCONF Redis is configured to save RDB snapshots"), Unavailable, True),
        (native.ResponseError("NOREPLICAS Not enough good replicas to write."), Unavailable, True),
        (native.ResponseError("BUSY Redis is busy running a script."), Unavailable, True),
        (native.NoScriptError("No matching script."), Unavailable, True),
        (native.BusyLoadingError("Redis is loading the dataset in memory"), Unavailable, True),
        (native.ResponseError("WRONGTYPE Operation against a key"), ConfigError, False),
        (native.ResponseError("UNBLOCKED the stream key no longer exists"), Lost, True),
        (native.ResponseError("NOGROUP No such key"), Lost, True),
        (native.ResponseError("NOSTREAM q:emails"), NotFound, False),
        (native.ResponseError("DB index is out of range"), ConfigError, False),
        (native.ConnectionError("max number of clients reached"), Unavailable, True),
        (native.InvalidResponse("Protocol error"), ConfigError, False),
    ],
)
def test_what_a_server_says_has_one_meaning(exc: Exception, kind: type[MqkitError], retryable: bool) -> None:
    error = translate(exc, "host:6379")
    assert isinstance(error, kind)
    assert error.retryable is retryable
    assert "host:6379" in str(error)
