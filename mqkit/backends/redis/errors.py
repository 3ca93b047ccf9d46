"""Exceptions of redis-py, and error replies of the server, as errors of mqkit."""

from __future__ import annotations

import redis.exceptions as native

from mqkit.errors import ConfigError, Denied, Lost, MqkitError, NotFound, PublishFailed, Unavailable


class ScriptMissing(Unavailable):
    """The server forgot a script: it was restarted, or somebody flushed them. Load it and repeat."""


# The first match counts, so subclasses stand above their bases.
ERRORS: tuple[tuple[type[Exception], type[MqkitError], str], ...] = (
    (native.AuthenticationError, Denied, "refuses the user name or password"),
    (native.AuthorizationError, Denied, "refuses this user"),
    (native.ExternalAuthProviderError, Denied, "refuses the credentials"),
    (native.BusyLoadingError, Unavailable, "is still loading its data"),
    (native.MaxConnectionsError, Unavailable, "has no connection left"),
    (native.ConnectionError, Unavailable, "cannot be reached"),
    (native.TimeoutError, Lost, "has not answered in time"),
    (native.InvalidResponse, ConfigError, "does not speak the protocol of Redis; is this its address?"),
    (native.NoScriptError, ScriptMissing, "has forgotten a script"),
    (native.OutOfMemoryError, Unavailable, "is out of memory and takes nothing new; consume, or raise maxmemory"),
    (native.ReadOnlyError, Unavailable, "is a replica and takes no writes"),
    (native.NoPermissionError, Denied, "does not give this user the right"),
    (native.AuthenticationWrongNumberOfArgsError, Denied, "refuses the user name or password"),
    (native.MovedError, Unavailable, "has handed these keys to another node"),
    (native.AskError, Unavailable, "is handing these keys to another node"),
    (native.TryAgainError, Unavailable, "is handing these keys to another node"),
    (native.MasterDownError, Unavailable, "is a replica that has lost its primary"),
    (native.ClusterDownError, Unavailable, "belongs to a cluster that is down"),
    (native.ClusterCrossSlotError, ConfigError, "keeps these keys on several nodes; the prefix needs one {tag}"),
    (native.ClusterError, Unavailable, "belongs to a cluster with a problem"),
    (native.SlotNotCoveredError, Unavailable, "belongs to a cluster in which no node has these keys"),
    (native.CrossSlotTransactionError, ConfigError, "keeps these keys on several nodes; the prefix needs one {tag}"),
    (native.InvalidPipelineStack, Lost, "answered out of step"),
    (native.RedisClusterException, Unavailable, "belongs to a cluster with a problem"),
    (native.ExecAbortError, Unavailable, "has given up a transaction"),
    (native.ModuleError, ConfigError, "has a problem with a module"),
    (native.NoSuchFieldsetError, ConfigError, "does not know a set of fields"),
    (native.ResponseError, ConfigError, "refuses a command"),
    (native.DataError, ConfigError, "cannot be sent this"),
    (native.PubSubError, Lost, "has ended the subscription"),
    (native.WatchError, Unavailable, "has given up a transaction"),
    (native.LockError, Unavailable, "has given a lock to somebody else"),
    (native.ChildDeadlockedError, Lost, "is blocked by a forked process"),
    (native.IncorrectPolicyType, ConfigError, "is used with a wrong policy"),
    (native.RedisError, Unavailable, "has a problem"),
)

# Error replies that share one class of the driver, told apart by how their text begins.
REPLIES: tuple[tuple[str, type[MqkitError], str], ...] = (
    ("NOGROUP", Lost, "has lost a stream or its group"),
    ("UNBLOCKED", Lost, "has lost a stream or its group"),
    ("no such key", Lost, "has lost a stream or its group"),
    ("NOSTREAM", NotFound, "does not have it"),
    ("MISCONF", Unavailable, "cannot write to its disk and takes nothing"),
    ("NOREPLICAS", Unavailable, "has too few replicas and takes nothing"),
    ("BUSY", Unavailable, "is busy with a script"),
    ("LOADING", Unavailable, "is still loading its data"),
    ("OOM", Unavailable, "is out of memory and takes nothing new; consume, or raise maxmemory"),
    ("READONLY", Unavailable, "is a replica and takes no writes"),
    ("NOPERM", Denied, "does not give this user the right"),
    ("The user executing the script can't", Denied, "does not give this user the right"),
    ("ACL failure in script", Denied, "does not give this user the right"),
    ("WRONGTYPE", ConfigError, "has something else under one of our keys; choose another prefix"),
    ("DB index is out of range", ConfigError, "has no database of this number"),
    ("SELECT is not allowed in cluster mode", ConfigError, "is a cluster, which has database 0 only"),
    ("max number of clients reached", Unavailable, "has no connection left"),
)


def translate(exc: Exception, server: str) -> MqkitError:
    """The typed error for what the driver raised or the server answered."""
    text = str(exc)
    if "CERTIFICATE" in text.upper():
        return Denied(f"Redis server {server} is not trusted, or does not trust us: {text}; see ca, cert and key")
    kind, words = _meaning(exc, text)
    hint = ""
    if isinstance(exc, native.ConnectionError) and ("EOF occurred" in text or "reset by peer" in text):
        hint = "; does one side speak TLS and the other not?"
    return kind(f"Redis server {server} {words} ({text}){hint}")


def _meaning(exc: Exception, text: str) -> tuple[type[MqkitError], str]:
    if type(exc) in (native.ResponseError, native.ConnectionError):
        # A script that fails puts the reply of the command that failed behind words of its own.
        for beginning, kind, words in REPLIES:
            if text.startswith(beginning) or f": {beginning}" in text:
                return kind, words
    for native_kind, kind, words in ERRORS:
        if isinstance(exc, native_kind):
            return kind, words
    return Unavailable, "has a problem"


def publish_error(error: MqkitError) -> MqkitError:
    """What an error reply means to the publish it answers: one that may be tried again is a failed publish."""
    if isinstance(error, (Lost, NotFound)):
        return NotFound(str(error))
    return PublishFailed(str(error)) if isinstance(error, Unavailable) else error
