"""Dead letters of a queue or group: look at them, hand them to the group that failed again, or remove them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from mqkit._numbers import finite, whole
from mqkit.backends.base import Address, Admin, Outgoing, Received
from mqkit.destinations import Destination, Topic
from mqkit.envelope import Dead
from mqkit.errors import ConfigError, Unroutable
from mqkit.message import DeadLetter, message_of

T = TypeVar("T")
PAGE = 100
BREATH = 0.1  # seconds: what a rate allows within them goes at once

Filter = Callable[[DeadLetter[Any]], bool]


class Access(Protocol):
    """What dead letters need of a bus."""

    def blocking(self, verb: str) -> None:
        """Raises `BlockingCall` on a thread whose loop runs."""
        ...

    def declare(self, *destinations: Destination[Any]) -> None:
        """Makes sure that these exist."""
        ...

    def admin_of(self, address: Address) -> Admin:
        """An admin, after what `address` needs was declared."""
        ...


class DeadLetters(Generic[T]):
    """
    Got by `bus.dead_letters(of, group=)`. Every verb blocks for its round trips to the broker.

    Args:
        access: The bus.
        source: The queue or group whose dead letters these are.
        partitions: Of that queue, or of the group's topic.
    """

    def __init__(self, access: Access, source: Address, partitions: int = 1) -> None:
        self._access = access
        self._source = source
        self._partitions = partitions
        self._address = source.dead_letters

    def list(self, *, limit: int = 100, where: Filter | None = None) -> list[DeadLetter[T]]:
        """The oldest ones, without consuming them or changing any count."""
        self._access.blocking("dead_letters(...).list")
        if not whole(limit, 1, sys.maxsize):
            raise ConfigError(f"list(limit={limit!r}): a whole number, 1 or more")
        found: list[DeadLetter[T]] = []
        admin = self._access.admin_of(self._source)
        try:
            for received in self._pages(admin):
                letter = letter_of(received)
                if where is None or where(letter):
                    found.append(letter)
                    if len(found) >= limit:
                        break
        finally:
            admin.close()
        return found

    def get(self, id: str) -> DeadLetter[T] | None:
        """The one of this message id, or None."""
        found = self.list(limit=1, where=lambda letter: letter.id == id)
        return found[0] if found else None

    def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Filter | None = None,
        to: Any = None,
        rate: float | None = None,
    ) -> int:
        """
        Hand dead letters out again, oldest first, to the queue or group that gave them up and to nobody else.

        Message id, key, body, headers and priority stay, attempts begin anew. Interrupted half-way nothing is lost; where the
        backend is not atomic a message may be there twice, with the same id.

        Args:
            ids: Message ids; all if left out.
            where: Of those, which.
            to: Another Queue or Topic instead.
            rate: At most so many a second.

        Returns:
            How many were replayed.

        Raises:
            Unroutable: `to` is a topic without a group, which would keep nothing of them.
        """
        self._access.blocking("dead_letters(...).replay")
        if rate is not None and not (finite(rate) and rate > 0):
            raise ConfigError(f"replay(rate={rate!r}): messages a second, above 0")
        if to is not None and not (isinstance(to, Destination) and to.kind != "broadcast"):
            raise ConfigError(f"replay(to={to!r}): must be a Queue or Topic; nothing else keeps messages")
        target = to.address if to is not None else self._source
        if to is not None:
            self._access.declare(to)
            if isinstance(to, Topic) and not to.groups:  # those it names exist by now
                self._refuse_nobody(target)

        def copy(received: Received) -> Sequence[Outgoing]:
            dead, envelope = (
                received.envelope.dead,
                msgspec.structs.replace(received.envelope, attempt=1, since=0.0, dead=None),
            )
            priority = dead.priority if dead is not None else 0
            if to is not None:
                priority = min(priority, max(0, to.priorities - 1))
            message = Outgoing(target, received.id, received.body, received.key, received.headers, envelope)
            message.priority, message.partitions = priority, self._partitions if to is None else to.partitions
            return [message]

        return self._replace(ids, where, copy, rate)

    def purge(self, ids: Iterable[str] | None = None, *, where: Filter | None = None) -> int:
        """Remove dead letters for good: these, those that `where` takes, or all. How many went."""
        self._access.blocking("dead_letters(...).purge")
        if ids is None and where is None:
            admin = self._access.admin_of(self._source)
            try:
                return admin.purge(self._address)
            finally:
                admin.close()
        return self._replace(ids, where, lambda _: (), None)

    def _refuse_nobody(self, target: Address) -> None:
        admin = self._access.admin_of(target)
        try:
            groups = [depth.address for depth in admin.describe() if depth.address.group]
        finally:
            admin.close()
        if not any(group.name == target.name for group in groups):
            raise Unroutable(f"replay(to={target}): it has no group, so nobody would get what is replayed")

    def _replace(
        self,
        ids: Iterable[str] | None,
        where: Filter | None,
        copy: Callable[[Received], Sequence[Outgoing]],
        rate: float | None,
    ) -> int:
        wanted = None if ids is None else set([ids] if isinstance(ids, str) else ids)
        done = 0
        admin = self._access.admin_of(self._source)
        try:
            # What dies again while we replay comes behind what is there now, and waits for the next call.
            left = admin.count(self._address)
            after: str | None = None
            while left > 0 and (page := admin.browse(self._address, limit=min(PAGE, left), after=after)):
                left -= len(page)
                chosen: dict[str, Sequence[Outgoing]] = {}
                for received in page:
                    if (wanted is None or received.id in wanted) and (where is None or where(letter_of(received))):
                        chosen[received.id] = copy(received)
                    else:
                        after = received.id
                done += self._carry_out(admin, chosen, rate)
        finally:
            admin.close()
        return done

    def _carry_out(self, admin: Admin, chosen: dict[str, Sequence[Outgoing]], rate: float | None) -> int:
        if rate is None:
            return admin.replace(self._address, chosen)
        ids, done, at_once = list(chosen), 0, max(1, int(rate * BREATH))
        for first in range(0, len(ids), at_once):
            some = ids[first : first + at_once]
            done += admin.replace(self._address, {id: chosen[id] for id in some})
            time.sleep(len(some) / rate)
        return done

    def _pages(self, admin: Admin) -> Iterator[Received]:
        after: str | None = None
        while True:
            page = admin.browse(self._address, limit=PAGE, after=after)
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].id


def letter_of(received: Received) -> DeadLetter[Any]:
    """The public view of a stored dead letter."""
    dead = received.envelope.dead or Dead(reason="unknown: put here by somebody else")
    return DeadLetter(
        message=message_of(received),
        reason=dead.reason,
        error_type=dead.error_type,
        attempts=dead.attempts,
        group=received.address.group or None,
        died_at=dead.died_at,
    )
