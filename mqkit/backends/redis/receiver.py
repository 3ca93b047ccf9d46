"""
Receiving from a queue, a group or dead letters.

Two connections. `rd` has at most one XREADGROUP outstanding, which blocks at the server over many turns; while it does,
everything else goes over `ctl`. When it does not, settlements travel in front of the next read in one write.

One name stands for everything a receiver holds; its row in the set of owners is the lease of it all, and the fence of every
script. A receiver whose connections break keeps its name, connects again and goes on with what it holds.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from mqkit.backends.base import Address, Done, Outgoing, Received, Release, Settlement, Turn
from mqkit.backends.redis import scripts, wire
from mqkit.backends.redis.clock import ServerClock
from mqkit.backends.redis.connection import Bell, Broken, Connection, run, wait
from mqkit.backends.redis.errors import ScriptMissing
from mqkit.backends.redis.keys import Keys, Unit
from mqkit.backends.redis.source import PLAIN, TRIM, Registered, Source
from mqkit.backends.redis.wire import Argument, Entry, pack
from mqkit.errors import LeaseLost, MqkitError, NotFound, PublishFailed, Unavailable

BLOCK = 5.0  # seconds one XREADGROUP waits at the server
_MARGIN = 2.0  # seconds after which a server that should have answered it counts as hung
_TICK = 0.25  # seconds between two looks at what is due
_LOOK = 2.0  # most seconds between two looks for dead consumers
_IDS = 500  # entries settled by one operation of a script
_WAYS = 1024  # connections told apart by the fraction of a lease: a sum of milliseconds since 1970 has room for 10 bits more
_CALL_BYTES = 1 << 20  # copies carried out by one call of a script, which blocks the server for all

Connect = Callable[[], Connection]
Answer = Callable[[Any], None]


class RedisReceiver:
    """See `base.Receiver`. What it holds is renewed as a whole by every script of its own."""

    loaded: ClassVar[tuple[scripts.Script, ...]] = scripts.OF_RECEIVERS
    # Seconds after which a read of a connection that broke, which no script guards, brings nothing more.
    look_again_after: ClassVar[float] = BLOCK + _MARGIN

    def __init__(
        self,
        connection: Connection,
        connect: Connect,
        keys: Keys,
        source: Source,
        clock: ServerClock,
        lease: float,
        declared: Mapping[Address, Registered],
    ) -> None:
        self._connect = connect
        self._keys = keys
        self._source = source
        self._address: Address = source.address
        self._unit: Unit = source.unit
        self._clock = clock
        self._lease = lease
        self._declared = declared  # destinations that remember ids
        self._name = ""
        self._way = 0  # how often it has connected anew
        self._bell = Bell()
        self._staged: list[Settlement] = []
        self._again = False  # the staged may have been carried out already: the answer never came
        self._held: dict[object, Received] = {}
        self._ahead: deque[Received] = deque()  # ours, and more than there was room for
        self._ran_alone: set[object] = set()  # handles
        self._revoked: list[Received] = []
        self._refused: list[tuple[Received, MqkitError]] = []
        self._reading_since: float | None = None
        self._read_is_void = False
        self._both_busy = False  # did the last read bring messages of both streams?
        self._second = False  # which of them is next, if there is room for one message only
        self._tick_at = self._look_at = self._trim_at = 0.0
        self._recover_at = float("inf")
        self._closed = False
        self._ctl: Connection | None = None
        self._rd: Connection | None = None
        self._rd_id = 0
        self._use(connection)

    # -- what the core calls -------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> None:
        held = self._held
        for each in settlements:
            delivery = each.delivery
            if held.pop(delivery.handle, None) is None:
                self._refused.append((delivery, LeaseLost(f"{self._address}: the delivery is not in hand any more")))
            else:
                self._staged.append(each)

    def receive(self, room: int, timeout: float) -> Turn:
        deadline = time.monotonic() + timeout
        try:
            if self._ctl is None:
                self._reconnect()
            if room == 0:
                self._give_back_surplus()
            while True:
                self._serve(room)
                deliveries = self._hand_out(room)
                if deliveries or self._revoked or self._refused or self._bell.answered():
                    break
                now = time.monotonic()
                if now >= deadline:
                    break
                if self._reading_since is not None or room == 0:  # else a read was ended, or was only a look
                    # Without a read under way nothing comes there but its end, which would end every wait.
                    reading = self._rd if self._reading_since is not None else None
                    wait(self._bell, reading, min(deadline, self._tick_at) - now)
        except Broken as exc:
            self._disconnect()
            raise Unavailable(f"{exc}; connecting again") from exc
        revoked, self._revoked = self._revoked, []
        refused, self._refused = self._refused, []
        return Turn(deliveries, revoked, refused)

    def isolate(self, delivery: Received) -> None:
        ctl = self._need()
        field = f"{self._number(delivery.native)}{delivery.native.id}"
        self._ran_alone.add(delivery.handle)  # first: an answer may be lost
        try:
            ctl.run(scripts.WRITE, [self._unit.alone], ["HSET", field, delivery.solo + 1])
        except Broken as exc:
            self._disconnect()
            raise Unavailable(str(exc)) from exc

    def flush(self, timeout: float) -> Turn:
        deadline = time.monotonic() + timeout
        turn = self.receive(0, 0.0)
        while self._staged and time.monotonic() < deadline:  # a script had to be loaded first
            more = self.receive(0, 0.0)
            turn = Turn((), [*turn.revoked, *more.revoked], [*turn.refused, *more.refused])
        if self._staged:
            self._revoked, self._refused = [*turn.revoked, *self._revoked], [*turn.refused, *self._refused]
            raise Unavailable(f"{self._address}: {len(self._staged)} settlements are not carried out yet; call again")
        return turn

    def wake(self) -> None:
        self._bell.ring()

    def now(self) -> float:
        return self._clock.now()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(MqkitError):  # else the lease runs out
            try:
                if self._ctl is not None:
                    self._leave()
            except Broken:
                self._disconnect()
            if self._ctl is None and self._ran_alone:  # whoever has it next must know that it has killed nobody
                self._reconnect()
                self._leave()
        self._disconnect()
        self._bell.close()

    # -- connections ---------------------------------------------------------------------------------------------------

    def _use(self, connection: Connection) -> None:
        """Take this one as `ctl`, and open another for reading."""
        connection.load(self.loaded)
        rd = self._connect()
        try:
            # Settlements that travel in front of a read need the scripts, which one connection loads for all.
            self._rd_id = rd.call("CLIENT", "ID")
            if not self._name:
                self._register(connection)
        except BaseException:
            rd.close()
            raise
        self._ctl, self._rd = connection, rd
        self._reading_since, self._read_is_void = None, False

    def _reconnect(self) -> None:
        connection = self._connect()
        self._way = min(self._way + 1, _WAYS - 1)
        if self._way == _WAYS - 1 and not (self._held or self._staged or self._ahead):
            self._name, self._way = "", 0
        try:
            self._use(connection)
            self._ahead += self._unheard_of()
            # A read of the old connection may still wait at the server, or on its way there, and bring us something.
            self._recover_at = time.monotonic() + self.look_again_after
        except BaseException:
            self._disconnect()
            connection.close()
            raise

    def _disconnect(self) -> None:
        self._again = self._again or bool(self._staged)
        for connection in (self._rd, self._ctl):
            if connection is not None:
                connection.close()
        self._ctl = self._rd = None
        self._reading_since = None

    def _need(self) -> Connection:
        if self._ctl is None:
            raise Unavailable(f"{self._address}: the connection to Redis is broken")
        if self._ctl.elsewhere or (self._rd is not None and self._rd.elsewhere):
            raise Broken("Redis server does not take writes for these keys any more; looking for the one that does")
        return self._ctl

    def _register(self, connection: Connection) -> None:
        self._name = secrets.token_hex(8)
        until = round((self._clock.now() + self._lease) * 1000)
        connection.run(scripts.WRITE, [self._keys.owners], ["ZADD", until, self._name])

    def _unheard_of(self) -> list[Received]:
        """What the server says we hold and we have not heard of: it was in an answer that never came."""
        arguments = [*self._me(), self._unit.group, self._unit.alone, self._unit.notes, *self._streams()]
        reply = self._need().run(scripts.MINE, [self._keys.owners], arguments)
        if reply[0] == b"stale":
            self._stale()
            return []
        known = {delivery.native for delivery in self._held.values()}
        known |= {delivery.native for delivery in self._ahead}
        known |= {each.delivery.native for each in self._staged}
        return [each for each in self._taken(reply[1]) if each.native not in known]

    # -- one turn ------------------------------------------------------------------------------------------------------

    def _serve(self, room: int) -> None:
        """Carry out what is staged, let time pass, and see that a read is under way where there is room."""
        self._need()
        if self._reading_since is not None:
            self._look_at_reply()
        again = time.monotonic() >= self._recover_at
        if self._reading_since is not None and (room == 0 or self._read_is_void or again):
            self._stop_reading()
        if again:
            self._ahead += self._unheard_of()
            self._recover_at = float("inf")
        self._work(room - len(self._ahead))
        self._trim()

    def _work(self, want: int) -> None:
        if want > 0 and self._reading_since is None:
            self._settle_and_read(want)
        else:
            self._over_ctl(*self._due_commands(max(0, want)))

    def _settle_and_read(self, want: int) -> None:
        rd = self._rd
        assert rd is not None
        commands, answers = self._due_commands(want)
        rd.send(b"".join([*commands, self._reading(want)]))
        self._reading_since = time.monotonic()
        self._answered(rd, answers)
        self._look_at_reply()

    def _reading(self, want: int) -> bytes:
        """The read for so many: its COUNT is for each stream, so with messages in both it is halved, or one has its turn."""
        streams: Sequence[str] = self._streams()
        block: tuple[Argument, ...] = ("BLOCK", round(BLOCK * 1000))
        if self._both_busy and want == 1:
            self._second = not self._second
            streams, block = [streams[self._second]], ()
        elif self._both_busy:
            want //= 2
        group = ("XREADGROUP", "GROUP", self._unit.group, self._name, "COUNT", want)
        return pack(*group, *block, "STREAMS", *streams, *[">"] * len(streams))

    def _over_ctl(self, commands: Sequence[bytes], answers: Sequence[Answer]) -> None:
        if commands:
            ctl = self._need()
            ctl.send(b"".join(commands))
            self._answered(ctl, answers)

    def _due_commands(self, room: int) -> tuple[list[bytes], list[Answer]]:
        commands, answers = self._settling()
        now = time.monotonic()
        if now >= self._tick_at:
            look = now >= self._look_at
            if look:
                self._look_at = now + min(self._lease / 6, _LOOK)
            self._tick_at = now + _TICK
            commands.append(self._ticking(room, look))
            answers.append(self._ticked)
        return commands, answers

    def _answered(self, connection: Connection, answers: Sequence[Answer]) -> None:
        """Read all replies before any is judged: one that raises must not leave others in the line."""
        replies = [connection.reply() for _ in answers]
        failed: MqkitError | None = None
        for answer, reply in zip(answers, replies, strict=True):
            if isinstance(reply, ScriptMissing):
                self._need().load(self.loaded)  # what it was for is still staged, or comes again by itself
                self._tick_at = 0.0
            elif isinstance(reply, MqkitError):
                failed = failed or reply
            elif reply[0] == b"stale":
                self._stale()
                break
            else:
                answer(reply)
        if failed is not None:
            raise failed

    def _hand_out(self, room: int) -> list[Received]:
        ahead = self._ahead
        deliveries = [ahead.popleft() for _ in range(min(room, len(ahead)))]
        self._held.update((delivery.handle, delivery) for delivery in deliveries)
        return deliveries

    def _give_back_surplus(self) -> None:
        """The core's hands are full, so others should have what came beyond its room."""
        self._give_back_unseen(self._ahead)
        self._ahead.clear()

    def _give_back_unseen(self, deliveries: Iterable[Received]) -> None:
        """They were handed to nobody here."""
        for delivery in deliveries:
            delivery.deliveries = (delivery.deliveries or 1) - 1
            self._staged.append(Release(delivery))

    def _stale(self) -> None:
        """We were silent for too long, and others have what we held. Go on under another name."""
        lost = [each.delivery for each in self._staged]
        self._refused += [(delivery, self._lost()) for delivery in lost]
        self._revoked += self._held.values()
        self._staged.clear()
        self._held.clear()
        self._ahead.clear()
        self._ran_alone.clear()
        self._again = False
        self._read_is_void = self._reading_since is not None
        old, ctl = self._name, self._need()
        # Whatever a read may still bring under the old name goes to others at once, not after a lease.
        ctl.run(scripts.WRITE, [self._keys.owners], ["ZADD", -round(self._clock.now() * 1000), old])
        self._register(ctl)

    def _lost(self) -> LeaseLost:
        return LeaseLost(
            f"{self._address}: the delivery belongs to another consumer by now; the settlement has no effect"
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def _look_at_reply(self) -> None:
        rd = self._rd
        assert rd is not None
        assert self._reading_since is not None
        if rd.readable():
            self._read_answered(rd.reply())
        elif time.monotonic() - self._reading_since > BLOCK + _MARGIN:
            raise Broken(f"Redis server has not answered a read for {BLOCK + _MARGIN:g} s")

    def _read_answered(self, reply: Any) -> None:
        self._reading_since = None
        void, self._read_is_void = self._read_is_void, False
        if isinstance(reply, MqkitError):
            raise reply
        if void:
            return
        self._both_busy = len(reply or ()) == 2 or (self._both_busy and bool(reply))
        for stream, entries in reply or ():
            name, address = stream.decode(), self._address
            self._ahead.extend(wire.received(address, name, id, fields) for id, fields in entries if fields)

    def _stop_reading(self) -> None:
        """End the outstanding read. What it brings at the last moment is ours all the same."""
        rd = self._rd
        assert rd is not None
        ctl, give_up = self._need(), time.monotonic() + _MARGIN
        # The two connections overtake each other: the read may not have reached the server yet, and then nothing is ended.
        while not rd.readable() and not ctl.call("CLIENT", "UNBLOCK", self._rd_id):
            if time.monotonic() > give_up:
                raise Broken("Redis server does not end a read")
            wait(self._bell, rd, 0.001)
        self._read_answered(rd.reply())

    # -- settling ------------------------------------------------------------------------------------------------------

    def _settling(self) -> tuple[list[bytes], list[Answer]]:
        """Calls of the script for what is staged, each bounded in size, and what to do with their answers."""
        if not self._staged:
            return [], []
        commands: list[bytes] = []
        answers: list[Answer] = []
        for part in _parts(self._staged):
            arguments, meanings = self._operations(part)
            commands.append(self._run_settle(arguments))
            answers.append(functools.partial(self._settled, part, meanings))
        return commands, answers

    def _run_settle(self, arguments: Sequence[Argument]) -> bytes:
        return run(scripts.SETTLE, [self._keys.owners], [*self._me(), *arguments])

    def _operations(self, part: Sequence[Settlement]) -> tuple[list[Argument], list[Settlement | None]]:
        """The script's arguments, and for each of its answers the settlement it is about; None: about many."""
        in_main: list[str] = []
        in_side: list[str] = []
        arguments: list[Argument] = []
        meanings: list[Settlement | None] = []
        unit, main, ran_alone = self._unit, self._unit.main, self._ran_alone
        for each in part:
            delivery = each.delivery
            entry: Entry = delivery.native
            noted = delivery.solo > 0 or (bool(ran_alone) and delivery.handle in ran_alone)
            if isinstance(each, Done) and not each.copies and not noted:
                (in_main if entry[0] == main else in_side).append(entry[1])
                continue
            copies = [self._copy(each)] if isinstance(each, Release) else [self._outgoing(one) for one in each.copies]
            number = self._number(entry)
            alone: tuple[str, str] = (unit.alone, f"{number}{entry.id}") if noted else ("", "")
            arguments += ("C", entry.stream, unit.group, self._deletes(entry), entry.id, *alone, len(copies))
            for copy in copies:
                arguments += copy
            meanings.append(each)
        for stream, ids in ((main, in_main), (unit.side, in_side)):
            deletes = "0" if stream == unit.topic else "1"
            for first in range(0, len(ids), _IDS):
                some = ids[first : first + _IDS]
                arguments += ("A", stream, unit.group, deletes, len(some), *some)
                meanings.append(None)
        return arguments, meanings

    def _settled(self, part: Sequence[Settlement], meanings: Sequence[Settlement | None], reply: Any) -> None:
        for each, result in zip(meanings, reply[1:], strict=True):
            if each is not None:
                self._judge(each, result)
        if len(part) == len(self._staged):
            self._staged = []
        else:
            done = {id(each) for each in part}
            self._staged = [each for each in self._staged if id(each) not in done]
        if not self._staged:
            self._again = False

    def _judge(self, each: Settlement, result: Any) -> None:
        delivery = each.delivery
        if result == 1:
            self._ran_alone.discard(delivery.handle)
        elif result == 0:
            self._ran_alone.discard(delivery.handle)
            if not self._again:  # else it was carried out before the connection broke, as far as anyone can know
                self._refused.append((delivery, self._lost()))
        else:
            self._held[delivery.handle] = delivery
            self._refused.append((delivery, _copy_error(delivery, result.decode(errors="replace"))))

    def _outgoing(self, message: Outgoing) -> list[Argument]:
        dedupe = self._declared.get(message.address, PLAIN).dedupe
        return wire.copy_of(message, self._keys, self._clock.now(), dedupe)

    def _copy(self, each: Release) -> list[Argument]:
        where, hash = (self._unit.side, "") if each.after <= 0 else self._unit.waiting
        if each.after > 0:
            self._tick_at = min(self._tick_at, time.monotonic() + each.after)
        return wire.released(each.delivery, where, hash, each.after, each.attempt, each.since)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _ticking(self, room: int, look: bool) -> bytes:
        unit = self._unit
        streams = self._streams() if look else []
        arguments = [*self._me(), unit.group, unit.alone, room, int(look), len(streams), *streams, *self._moves()]
        return run(scripts.TICK, [self._keys.owners], arguments)

    def _ticked(self, reply: Any) -> None:
        _, due, taken = reply
        if due >= 0:
            self._tick_at = min(self._tick_at, time.monotonic() + due / 1000)
        self._ahead += self._taken(taken)

    def _taken(self, entries: Sequence[Any]) -> list[Received]:
        streams = self._streams()
        return [
            wire.received(self._address, streams[number - 1], id, fields, count, alone, *note)
            for number, id, count, fields, alone, *note in entries
        ]

    def _moves(self) -> list[str]:
        """Sets of delayed messages, and where they go when they are due."""
        moves = [*self._unit.waiting, self._unit.side]
        if self._unit.topic is not None:
            moves += [f"{self._unit.topic}/z", f"{self._unit.topic}/zh", self._unit.topic]
        return moves

    def _trim(self) -> None:
        now = time.monotonic()
        if self._unit.topic is not None and now >= self._trim_at:
            self._trim_at = now + TRIM
            ctl = self._need()
            ctl.run(scripts.TRIM, [self._unit.topic], [round(self._source.retain * 1000)])

    # -- names ---------------------------------------------------------------------------------------------------------

    def _me(self) -> tuple[Argument, ...]:
        return self._name, round(self._lease * 1000) + self._way / _WAYS

    def _streams(self) -> list[str]:
        return [self._unit.main, self._unit.side]

    def _number(self, entry: Entry) -> int:
        return 1 if entry.stream == self._unit.main else 2

    def _deletes(self, entry: Entry) -> str:
        return "0" if entry.stream == self._unit.topic else "1"

    # -- leaving -------------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Give back what is in hand, and go without a trace."""
        if self._reading_since is not None:
            self._stop_reading()
        self._give_back_surplus()
        self._staged += [Release(delivery) for delivery in self._held.values()]
        self._held.clear()
        self._tick_at = float("inf")
        self._over_ctl(*self._due_commands(0))
        self._need().run(scripts.LEAVE, [self._keys.owners], [*self._me(), self._unit.group, *self._streams()])


def _parts(staged: Sequence[Settlement]) -> Sequence[Sequence[Settlement]]:
    """In pieces that carry no more copies than one call of a script should."""
    weights = [_weight(each) for each in staged]
    if sum(weights) <= _CALL_BYTES:
        return [staged]
    parts: list[list[Settlement]] = [[]]
    size = 0
    for each, weight in zip(staged, weights, strict=True):
        if parts[-1] and size + weight > _CALL_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(each)
        size += weight
    return parts


def _weight(each: Settlement) -> int:
    """Bytes it carries, roughly."""
    if isinstance(each, Release):
        return len(each.delivery.body) + 512
    return sum(len(copy.body) + 512 for copy in each.copies) if each.copies else 40


def _copy_error(delivery: Received, text: str) -> MqkitError:
    if text.startswith("NOSTREAM"):
        return NotFound(f"a copy of message {delivery.id} has nowhere to go: {text.partition(' ')[2]} does not exist")
    return PublishFailed(f"a copy of message {delivery.id} was refused by Redis: {text}")
