"""Declaring, describing and changing what is in Redis."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from mqkit.backends.base import Address, Declaration, Depth, Outgoing, Received
from mqkit.backends.redis import scripts, wire
from mqkit.backends.redis.clock import ServerClock
from mqkit.backends.redis.connection import Connection
from mqkit.backends.redis.errors import publish_error
from mqkit.backends.redis.keyed import keys_of, layout_of
from mqkit.backends.redis.keys import PARKED, Keys, Unit, address_of, field_of
from mqkit.backends.redis.source import (
    Registered,
    Source,
    compare,
    decode_registered,
    encode_registered,
    registered_of,
    source_of,
)
from mqkit.backends.redis.wire import Argument
from mqkit.errors import MqkitError, NotFound, PublishFailed

_PAGE = 500  # entries per look
_AT_ONCE, _BYTES_AT_ONCE = 100, 1 << 20  # messages replaced by one script, which blocks the server for all

_Position = tuple[int, int, int]  # milliseconds, number within them, number of the stream
_Place = tuple[str, str]  # stream and entry, or set and member, as `replace` wants it


class RedisAdmin:
    """See `base.Admin`."""

    def __init__(
        self, connection: Connection, keys: Keys, clock: ServerClock, declared: dict[Address, Registered]
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._clock = clock
        self._declared = declared
        self._last_browsed: tuple[Address, str, _Position] | None = None
        self._seen_in: Address | None = None  # where the last look was, if it saw all and entries stay where they are
        self._seen_at: dict[str, list[_Place]] = {}  # ... and where it saw each id

    def declare(self, declarations: Sequence[Declaration]) -> None:
        for each in declarations:
            self._declare(each)
            self._remember(each)

    def check(self, declarations: Sequence[Declaration]) -> None:
        for each in declarations:
            have = _registered(self._connection, self._keys, each.address)
            if have is None:
                raise NotFound(f"{each.address} does not exist on this Redis server")
            compare(each, have)
            self._remember(each)

    def describe(self) -> Sequence[Depth]:
        table = self._connection.call("HGETALL", self._keys.registry)
        addresses = sorted(address_of(field.decode()) for field in table[::2])
        with_groups = {address.name for address in addresses if address.group and not address.dead}
        return [
            depth
            for depth in self._depths(addresses)
            if _is_source(depth.address) or depth.address.name not in with_groups or depth.ready or depth.delayed
        ]

    def count(self, address: Address) -> int:
        open_source(self._connection, self._keys, Declaration(address, order=None))
        [depth] = self._depths([address])
        return depth.ready + depth.delayed

    def browse(self, address: Address, *, limit: int, after: str | None = None) -> Sequence[Received]:
        source = open_source(self._connection, self._keys, Declaration(address, order=None))
        start: _Position = (0, 0, 0)
        whole = after is None and source.unit.topic is None
        if after is not None and self._last_browsed is not None and self._last_browsed[:2] == (address, after):
            start, after = self._last_browsed[2], None
        found: list[Received] = []
        self._seen_in, self._seen_at = address if whole else None, {}
        for position, place, delivery in self._waiting_in(source, start):
            if after is not None:
                after = None if delivery.id == after else after
                continue
            if len(found) == limit:
                self._seen_in = None
                break
            found.append(delivery)
            self._seen_at.setdefault(delivery.id, []).append(place)
            self._last_browsed = (address, delivery.id, position)
        return found

    def replace(self, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
        if not replacements:
            return 0
        source = open_source(self._connection, self._keys, Declaration(address, order=None))
        if self._seen_in == address and self._seen_at.keys() >= replacements.keys():
            return self._replace(source, replacements, {id: self._seen_at[id] for id in replacements})
        self._materialise(source)
        places: dict[str, list[_Place]] = {}
        for _, place, delivery in self._waiting_in(source, (0, 0, 0)):
            if delivery.id in replacements:
                places.setdefault(delivery.id, []).append(place)
        return self._replace(source, replacements, places)

    def purge(self, address: Address) -> int:
        source = open_source(self._connection, self._keys, Declaration(address, order=None))
        total = 0
        while removed := self._run(scripts.PURGE, source.unit, list(source.unit.waiting)):
            total += int(removed)
        return total

    def delete(self, address: Address) -> None:
        keys, fields = self._keys, []
        doomed: list[Argument] = []
        table = self._connection.call("HGETALL", keys.registry)
        for field in [field.decode() for field in table[::2]]:
            found = address_of(field)
            if _belongs(found, address):
                fields.append(field)
                if found.kind == "broadcast" or (found.kind == "topic" and not found.group):
                    doomed += [keys.of(found), *keys.waiting(found)]
                    continue
                unit = keys.unit(found)
                doomed += unit.everything()
                if unit.topic is None:
                    doomed.append(unit.main)
                else:
                    self._destroy_group(unit)
        if doomed:
            self._connection.call("DEL", *doomed)
        if fields:
            self._connection.call("HDEL", keys.registry, *fields)
        if address.group and not address.dead:
            self._forget_unread_topic(address._replace(group=""))

    def close(self) -> None:
        self._connection.close()

    # -- declaring -----------------------------------------------------------------------------------------------------

    def _declare(self, declaration: Declaration) -> None:
        address = declaration.address
        if address.group and not address.dead:
            self._declare(msgspec.structs.replace(declaration, address=address._replace(group="")))
        wanted = registered_of(declaration)
        have = self._create(declaration, wanted)
        if have is not None:
            compare(declaration, have)
            if have.order is None and wanted.order is not None:
                decide(self._connection, self._keys, declaration, have)
        if (address.kind == "queue" or address.group) and not address.dead:
            self._declare(Declaration(address.dead_letters))

    def _create(self, declaration: Declaration, wanted: Registered) -> Registered | None:
        """What was there before, if anything."""
        arguments = [field_of(declaration.address), encode_registered(wanted), *self._parts(declaration, wanted)]
        known = self._connection.run(scripts.DECLARE, [self._keys.registry], arguments)
        return decode_registered(known) if known else None

    def _parts(self, declaration: Declaration, wanted: Registered) -> list[Argument]:
        """The streams and groups it needs."""
        address, keys = declaration.address, self._keys
        if address.kind == "broadcast":
            return []
        if address.kind == "topic" and not address.group:
            return ["S", keys.of(address)] if wanted.retain else []
        unit = keys.unit(address)
        parts: list[Argument] = []
        start = "0"
        if unit.topic is not None:
            parts += ["M", *keys.waiting(address._replace(group="")), unit.topic]
            start = "0" if declaration.start == "earliest" else "$"
        parts += ["G", unit.main, unit.group, start, "G", unit.side, unit.group, "0"]
        about = unit.about_messages()
        parts += ["F", unit.main, unit.side, len(about), *about]
        if wanted.order == "key":
            parts += ["G", unit.main, unit.wake_group, "$", "G", unit.side, unit.wake_group, "$"]
        return parts

    def _remember(self, declaration: Declaration) -> None:
        wanted = registered_of(declaration)
        if wanted.dedupe or wanted.retain:
            self._declared[declaration.address] = wanted

    # -- describing ----------------------------------------------------------------------------------------------------

    def _depths(self, addresses: Sequence[Address]) -> list[Depth]:
        arguments: list[Argument] = []
        for address in addresses:
            unit = self._keys.unit(address)
            main, side = (unit.main, unit.side) if _is_source(address) else ("", "")
            arguments += (main, side, unit.group, int(unit.topic is not None), unit.waiting[0], unit.parked, unit.notes)
        answers = self._connection.run(scripts.DEPTHS, [self._keys.owners], arguments) if arguments else []
        depths = []
        for address, counts in zip(addresses, answers, strict=True):
            unread, pending, parked, later, due, delayed = counts
            if isinstance(unread, bytes):
                unread = self._unread(address, unread.decode())
            later = min(later, parked)  # a note stays with a message that is in hand again
            ready = max(0, unread + due + parked - later)
            depths.append(Depth(address, ready, max(0, pending - parked), delayed + later))
        return depths

    def _unread(self, address: Address, read: str) -> int:
        """Counted one by one: the server has lost count, after an entry was deleted."""
        unit = self._keys.unit(address)
        [side] = self._asked(("XLEN", unit.side))
        [pending] = self._asked(("XPENDING", unit.side, unit.group))
        ahead = (side or 0) - (pending[0] if pending else 0)
        return ahead + sum(1 for _ in self._pages(unit.main, "(" + read))

    def _asked(self, *commands: Sequence[Argument]) -> list[Any]:
        """Replies in one round trip; None for what does not exist."""
        self._connection.send(b"".join(wire.pack(*command) for command in commands))
        replies = [self._connection.reply() for _ in commands]
        for reply in replies:
            if isinstance(reply, MqkitError) and not _is_missing(reply):
                raise reply
        return [None if isinstance(reply, MqkitError) else reply for reply in replies]

    # -- browsing ------------------------------------------------------------------------------------------------------

    def _waiting_in(self, source: Source, start: _Position) -> Iterator[tuple[_Position, _Place, Received]]:
        """What waits, oldest first, then what is delayed; where each is."""
        streams = (self._waiting_entries(source, number, start) for number in (1, 2))
        yield from heapq.merge(*streams, key=lambda one: one[0])
        yield from self._delayed(source, start)

    def _waiting_entries(
        self, source: Source, number: int, start: _Position
    ) -> Iterator[tuple[_Position, _Place, Received]]:
        unit = source.unit
        stream = unit.main if number == 1 else unit.side
        holders = self._holders(stream, unit.group)
        first = f"{start[0]}-{start[1]}"
        if stream == unit.topic:
            for place in sorted((place for place, holder in holders.items() if holder == PARKED), key=_id):
                entries = self._connection.call("XRANGE", stream, place, place) if _id(place) >= start[:2] else []
                for id, fields in entries:
                    yield from self._browsed(source, number, stream, id, fields, start)
            [groups] = self._asked(("XINFO", "GROUPS", stream))
            names = {group["name"].decode(): group["last-delivered-id"].decode() for group in map(_table, groups or ())}
            read = names.get(unit.group, "0-0")
            first = "(" + read if _id(read) >= start[:2] else first
            holders = {}
        for id, fields in self._pages(stream, first):
            if holders.get(id.decode(), PARKED) == PARKED:
                yield from self._browsed(source, number, stream, id, fields, start)

    def _browsed(
        self, source: Source, number: int, stream: str, id: bytes, fields: Sequence[bytes], start: _Position
    ) -> Iterator[tuple[_Position, _Place, Received]]:
        position = (*_id(id.decode()), number)
        if position > start:
            text = id.decode()
            [note] = self._asked(("HGET", source.unit.notes, f"{number}{text}")) if source.ordered else [None]
            yield position, (str(number), text), wire.received(source.address, stream, id, fields, 0, note=note or b"")

    def _delayed(self, source: Source, start: _Position) -> Iterator[tuple[_Position, _Place, Received]]:
        zset, hash = source.unit.waiting
        members = self._connection.call("ZRANGE", zset, 0, -1)
        for first in range(0, len(members), _PAGE):
            page = members[first : first + _PAGE]
            for place, (member, packed) in enumerate(
                zip(page, self._connection.call("HMGET", hash, *page), strict=True), start=first
            ):
                position = (1 << 62, place, 3)  # after everything that is in a stream
                if packed and position > start:
                    id, key, head, body = wire.unpacked(packed)
                    fields = [b"id", id, b"key", key, b"h", head, b"body", body]
                    delivery = wire.received(source.address, zset, member, fields, 0)
                    yield position, ("z", member.decode()), delivery

    def _holders(self, stream: str, group: str) -> dict[str, str]:
        holders: dict[str, str] = {}
        first = "-"
        while True:
            [page] = self._asked(("XPENDING", stream, group, first, "+", _PAGE))
            holders.update((id.decode(), name.decode()) for id, name, _, _ in page or ())
            if len(page or ()) < _PAGE:
                return holders
            first = "(" + page[-1][0].decode()

    def _pages(self, stream: str, first: str) -> Iterator[tuple[bytes, list[bytes]]]:
        while page := self._connection.call("XRANGE", stream, first, "+", "COUNT", _PAGE):
            yield from page
            first = "(" + page[-1][0].decode()

    # -- replacing -----------------------------------------------------------------------------------------------------

    def _materialise(self, source: Source) -> None:
        unit = source.unit
        if unit.topic is not None:
            while self._run(scripts.MATERIALISE, unit, [int(source.ordered)], streams=[unit.main, unit.side]):
                pass

    def _replace(
        self,
        source: Source,
        replacements: Mapping[str, Sequence[Outgoing]],
        places: Mapping[str, Sequence[_Place]],
    ) -> int:
        gone: set[str] = set()
        ids: list[str] = []
        arguments: list[Argument] = []
        size, now = 0, self._clock.now()

        def carry_out() -> None:
            for id, result in zip(ids, self._run(scripts.REPLACE, source.unit, arguments), strict=True):
                if isinstance(result, bytes):
                    raise _refused(result.decode(errors="replace"))
                if result:
                    gone.add(id)
            ids.clear()
            arguments.clear()

        for id, found in places.items():
            for number, place in enumerate(found):
                copies = replacements[id] if number == 0 else ()  # two of one id are two copies of one message
                arguments += (*place, *source.unit.waiting, len(copies))
                for copy in copies:
                    arguments += wire.copy_of(copy, self._keys, now)
                    size += len(copy.body)
                ids.append(id)
            if len(ids) >= _AT_ONCE or size > _BYTES_AT_ONCE:
                carry_out()
                size = 0
        if ids:
            carry_out()
        return len(gone)

    def _run(
        self, script: scripts.Script, unit: Unit, arguments: Sequence[Argument], *, streams: Sequence[str] | None = None
    ) -> Any:
        streams = streams or [unit.main, unit.side]
        keys = keys_of(unit, self._keys.owners)
        nobody: list[Argument] = ["", ""]  # these scripts have no fence, and so no consumer
        try:
            layout = layout_of(unit, streams)
            return self._connection.run(script, keys, [*nobody, *layout, *arguments])
        except MqkitError as exc:
            raise publish_error(exc) from exc

    def _destroy_group(self, unit: Unit) -> None:
        for group in (unit.group, unit.wake_group):
            self._asked(("XGROUP", "DESTROY", unit.main, group))

    def _forget_unread_topic(self, topic: Address) -> None:
        """A topic that retains nothing has a stream for its groups only."""
        stream = self._keys.of(topic)
        [groups] = self._asked(("XINFO", "GROUPS", stream))
        have = _registered(self._connection, self._keys, topic)
        if not groups and not (have is not None and have.retain):
            self._connection.call("DEL", stream)


def open_source(connection: Connection, keys: Keys, declaration: Declaration) -> Source:
    """Raises `NotFound`, or `TopologyMismatch` where the source was declared with another order."""
    address = declaration.address
    have = _registered(connection, keys, address)
    if have is None:
        raise NotFound(f"{address} does not exist on this Redis server; declare it first")
    if declaration.order is not None:
        compare(declaration, have)
        if have.order is None:
            decide(connection, keys, declaration, have)
            have = _registered(connection, keys, address) or have
    retain = 0.0
    if address.group and not address.dead:
        topic = _registered(connection, keys, address._replace(group=""))
        retain = topic.retain if topic is not None else 0.0
    return source_of(address, keys, have, retain)


def decide(connection: Connection, keys: Keys, declaration: Declaration, have: Registered) -> None:
    """The first consumer says whether keys keep their order. Nothing was handed out before."""
    decided = msgspec.structs.replace(have, order=declaration.order)
    arguments: list[Argument] = [field_of(declaration.address), encode_registered(have), encode_registered(decided)]
    if declaration.order == "key":
        unit = keys.unit(declaration.address)
        arguments += [unit.main, unit.wake_group, unit.side, unit.wake_group]
    if not connection.run(scripts.DECIDE, [keys.registry], arguments):
        now = _registered(connection, keys, declaration.address)
        if now is not None:  # somebody else was first
            compare(declaration, now)


def _registered(connection: Connection, keys: Keys, address: Address) -> Registered | None:
    text = connection.call("HGET", keys.registry, field_of(address))
    return decode_registered(text) if text else None


def _belongs(found: Address, to: Address) -> bool:
    """Does it go when `to` is deleted?"""
    if to.dead:
        return found == to
    return found.kind == to.kind and found.name == to.name and (not to.group or found.group == to.group)


def _is_source(address: Address) -> bool:
    """Can one receive from it, other than live?"""
    return address.kind == "queue" or bool(address.group)


def _id(text: str) -> tuple[int, int]:
    time, _, number = text.partition("-")
    return int(time), int(number or 0)


def _table(flat: Sequence[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _is_missing(error: MqkitError) -> bool:
    return "NOGROUP" in str(error) or "no such key" in str(error)


def _refused(text: str) -> MqkitError:
    if text.startswith("NOSTREAM"):
        return NotFound(f"{text.partition(' ')[2]} does not exist on this Redis server; declare it")
    return PublishFailed(f"Redis refuses a copy: {text}")
