"""What this server may lose, as far as it tells us."""

from __future__ import annotations

from collections.abc import Iterator

from mqkit.backends.redis.connection import Broken, Connection
from mqkit.backends.redis.options import RedisOptions
from mqkit.backends.redis.wire import Argument
from mqkit.errors import ConfigError, MqkitError

OLDEST = (7, 0)  # scripts that may run when memory is full, and the lag of groups


def refuse_unfit(connection: Connection, options: RedisOptions) -> None:
    """
    Refuse a server that is too old, or that deletes streams when its memory is full.

    Raises:
        ConfigError: With what to change.
    """
    version = _info(connection, "server").get("redis_version", "")
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ConfigError(f"Redis {version} is too old; mqkit needs 7.0 or newer")
    memory = _info(connection, "memory")
    policy = memory.get("maxmemory_policy", "")
    if policy.startswith("allkeys-") and memory.get("maxmemory", "0") != "0" and options.evict == "refuse":
        raise ConfigError(
            f"this Redis server deletes any key when its memory is full (maxmemory-policy {policy}), messages too; "
            "set it to noeviction, or accept the loss with evict=allow"
        )


def warnings_of(connection: Connection, options: RedisOptions) -> list[str]:
    return [*_of_disk(connection), *_of_memory(connection), *_of_replicas(connection, options)]


def _of_disk(connection: Connection) -> Iterator[str]:
    persistence = _info(connection, "persistence")
    if not persistence:
        yield "Redis does not tell this user (INFO) whether it writes to disk; a crash of the server may lose messages"
    elif persistence.get("aof_enabled") != "1":
        yield (
            "Redis writes no append-only file (appendonly no): a crash or restart of the server loses messages whose "
            "publish returned"
        )
    else:
        policy = _setting(connection, "appendfsync")
        if policy != "always":
            yield (
                f"Redis syncs its append-only file by appendfsync={policy or 'not known'}: a loss of power may take back "
                "about the last two seconds; `always` does not"
            )


def _of_memory(connection: Connection) -> Iterator[str]:
    memory = _info(connection, "memory")
    policy = memory.get("maxmemory_policy", "")
    if not policy:
        yield "Redis does not tell this user (INFO) whether it deletes keys when its memory is full"
    elif policy.startswith("allkeys-"):
        yield f"Redis deletes any key when its memory is full (maxmemory-policy {policy}), messages too"
    elif policy.startswith("volatile-"):
        yield f"Redis forgets ids of published messages early when its memory is full (maxmemory-policy {policy})"


def _of_replicas(connection: Connection, options: RedisOptions) -> Iterator[str]:
    replication = _info(connection, "replication")
    if not replication or replication.get("connected_slaves", "0") != "0" or options.service or options.wait_replicas:
        yield (
            "Redis replication is asynchronous. After a fail-over, messages that were acknowledged may be gone and settled "
            "ones may come back, also with wait_replicas (it lowers the probability only)"
        )


def _info(connection: Connection, section: str) -> dict[str, str]:
    """Nothing where this user may not ask."""
    reply = _asked(connection, "INFO", section)
    lines = reply.decode(errors="replace").splitlines() if isinstance(reply, bytes) else []
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _setting(connection: Connection, name: str) -> str:
    reply = _asked(connection, "CONFIG", "GET", name)
    return reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else ""


def _asked(connection: Connection, *command: Argument) -> object:
    try:
        return connection.call(*command)
    except Broken:
        raise
    except MqkitError:  # no right to ask, or a server that does not know the question: said as "not known"
        return None
