"""Receiving where the messages of a key are handed to one process at a time: a script reads, and locks keys as it does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from mqkit.backends.base import Done, Release, Settlement
from mqkit.backends.redis import scripts, wire
from mqkit.backends.redis.connection import run
from mqkit.backends.redis.keys import Unit
from mqkit.backends.redis.receiver import BLOCK, Answer, RedisReceiver
from mqkit.backends.redis.wire import Argument, Entry, pack
from mqkit.errors import MqkitError

_MOST_PARKED = 10_000  # messages behind locked keys, beyond which nothing more is read


class KeyedReceiver(RedisReceiver):
    """
    See `base.Receiver`.

    What `rd` waits for is no message but a sign that there are some: a second group of the same stream, of which exactly
    one waiting process gets each.
    """

    loaded = scripts.OF_KEYED_RECEIVERS
    look_again_after = float("inf")  # only scripts bring it messages
    _promising = True  # may a script find messages that the last one did not?

    def _work(self, want: int) -> None:
        self._hold_back()
        settled = bool(self._staged)
        commands, answers = self._due_commands(0)
        if want > 0 and (self._promising or settled or commands):
            commands.append(self._run(scripts.KEYED_TAKE, [want, _MOST_PARKED]))
            answers.append(self._took)
        self._over_ctl(commands, answers)
        if want > 0 and not self._ahead and self._reading_since is None:
            self._wait_for_a_sign()

    def _hold_back(self) -> None:
        """
        What stands behind a message that is given back goes back too. The core does so with what it knows of; this here was
        in an answer that was lost, or there was no room for it.
        """
        keys = {each.delivery.key for each in self._staged if isinstance(each, Release)} - {None}
        if keys and self._ahead:
            self._give_back_unseen(delivery for delivery in self._ahead if delivery.key in keys)
            self._ahead = deque(delivery for delivery in self._ahead if delivery.key not in keys)

    def _took(self, reply: Any) -> None:
        _, due, taken = reply
        if due >= 0:
            self._tick_at = min(self._tick_at, time.monotonic() + due / 1000)
        self._ahead += self._taken(taken)
        self._promising = bool(taken)

    def _wait_for_a_sign(self) -> None:
        rd, streams = self._rd, self._streams()
        assert rd is not None
        rd.send(
            pack(
                "XREADGROUP", "GROUP", self._unit.wake_group, self._name, "COUNT", 1, "BLOCK", round(BLOCK * 1000), "NOACK",
                "STREAMS", *streams, *[">"] * len(streams),
            )
        )  # fmt: skip
        self._reading_since = time.monotonic()

    def _read_answered(self, reply: Any) -> None:
        self._reading_since, self._read_is_void = None, False
        if isinstance(reply, MqkitError):
            raise reply
        self._promising = True

    # -- settling ------------------------------------------------------------------------------------------------------

    def _run_settle(self, arguments: Sequence[Argument]) -> bytes:
        return self._run(scripts.KEYED_SETTLE, arguments)

    def _operations(self, part: Sequence[Settlement]) -> tuple[list[Argument], list[Settlement | None]]:
        arguments: list[Argument] = []
        for each in part:
            delivery = each.delivery
            entry: Entry = delivery.native
            alone = int(delivery.solo > 0 or delivery.handle in self._ran_alone)
            verb = "A" if isinstance(each, Done) else "R"
            arguments += (verb, self._number(entry), entry.id, delivery.key or "", alone)
            if isinstance(each, Done):
                arguments.append(len(each.copies))
                for copy in each.copies:
                    arguments += self._outgoing(copy)
            else:
                # The group counts one more at the next hand-out, so this is what has been lost until then.
                count = 0 if each.attempt is not None else delivery.lost
                due = self._clock.now() + each.after if each.after > 0 else 0.0
                arguments += (count, wire.note_of(delivery, count, due, each.attempt, each.since))
        return arguments, list(part)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _due_commands(self, room: int) -> tuple[list[bytes], list[Answer]]:
        look_at = self._look_at
        commands, answers = super()._due_commands(room)
        if self._look_at != look_at:
            commands.append(self._run(scripts.KEYED_REAP, []))
            answers.append(_nothing)
        return commands, answers

    def _ticking(self, room: int, look: bool) -> bytes:
        del room, look  # who is dead is another script's matter here
        arguments = [*self._me(), self._unit.group, self._unit.alone, 0, 0, 0, *self._moves()]
        return run(scripts.TICK, [self._keys.owners], arguments)

    def _moves(self) -> list[str]:
        moves = super()._moves()
        moves[2] = self._streams()[-1]  # a delayed message takes its place among the others when it is due
        return moves

    # -- names ---------------------------------------------------------------------------------------------------------

    def _streams(self) -> list[str]:
        return streams_of(self._unit)

    def _run(self, script: scripts.Script, arguments: Sequence[Argument]) -> bytes:
        return run(script, keys_of(self._unit, self._keys.owners), [*self._me(), *layout_of(self._unit), *arguments])

    def _leave(self) -> None:
        name = self._name
        super()._leave()
        for stream in self._streams():
            self._need().call("XGROUP", "DELCONSUMER", stream, self._unit.wake_group, name)


def streams_of(unit: Unit) -> list[str]:
    """Where an ordered source reads. Its released messages keep their place, so only a topic's groups need a second one."""
    return [unit.main] if unit.topic is None else [unit.main, unit.side]


def keys_of(unit: Unit, owners: str) -> list[str]:
    """KEYS of the scripts that know about locks."""
    return [owners, unit.locks, unit.parked, unit.ready, unit.notes, unit.alone]


def layout_of(unit: Unit, streams: Sequence[str] | None = None) -> list[Argument]:
    """Their arguments after the first two."""
    streams = streams_of(unit) if streams is None else streams
    return [unit.group, "0" if unit.topic is not None else "1", len(streams), *streams]


def _nothing(reply: Any) -> None:
    """Of a script that only does."""
