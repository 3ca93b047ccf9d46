"""`mqkit dead`: look at dead letters, hand them out again, remove them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from mqkit.backends.base import Address
from mqkit.bus import Bus
from mqkit.cli import _exit
from mqkit.cli._output import body_text, record_of
from mqkit.cli._session import Session, admin_of, require
from mqkit.cli._target import dead_source_of, destination_of, value_of
from mqkit.errors import ConfigError, NotFound
from mqkit.message import DeadLetter
from mqkit.patterns.dead_letter import DeadLetters

dead = typer.Typer(no_args_is_help=True, help="Dead letters of a queue or of a group.")

Source = Annotated[str, typer.Argument(help="emails or orders/billing.", metavar="SOURCE")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Message id; may be repeated.")]
ErrorType = Annotated[str, typer.Option(help="Only those whose exception had this class name.")]
Reason = Annotated[str, typer.Option(help="Only those whose reason contains this.")]
Limit = Annotated[int | None, typer.Option(help="At most so many, oldest first.", min=1)]
Rate = Annotated[float | None, typer.Option(help="At most so many a second.", min=0.001)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters are meant."""

    ids: Sequence[str] = ()
    error_type: str = ""
    reason: str = ""
    limit: int | None = None

    @property
    def everything(self) -> bool:
        return self == Choice()

    def takes(self, letter: DeadLetter[Any]) -> bool:
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.error_type or letter.error_type == self.error_type)
            and self.reason in letter.reason
        )


@dead.command("list")
def list_(
    context: typer.Context,
    source: Source,
    id: Ids = None,
    error_type: ErrorType = "",
    reason: Reason = "",
    limit: Annotated[int, typer.Option(help="At most so many, oldest first.", min=1)] = 100,
) -> None:
    """Show dead letters, oldest first. With --json one a line."""
    session: Session = context.obj
    choice = Choice(id or (), error_type, reason)
    with session.bus() as bus:
        letters = _letters(bus, dead_source_of(source)).list(limit=limit, where=choice.takes)
    if session.out.json:
        for letter in letters:
            session.out.document(record(letter, source))
    elif letters:
        columns = ("id", "died", "attempts", "error", "reason")
        session.out.table(columns, [[x.id, _when(x.died_at), x.attempts, x.error_type, x.reason] for x in letters])
    if not letters:
        raise _nothing(session, source)


@dead.command()
def show(
    context: typer.Context,
    source: Source,
    id: Annotated[str, typer.Argument(help="Message id.", metavar="ID")],
) -> None:
    """Show one dead letter with its headers and body."""
    session: Session = context.obj
    with session.bus() as bus:
        letter = _letters(bus, dead_source_of(source)).get(id)
    if letter is None:
        raise NotFound(f"no dead letter {id!r} in {source}")
    if session.out.json:
        session.out.document(record(letter, source))
        return
    message = letter.message
    fields = {
        "id": letter.id,
        "reason": letter.reason,
        "error": letter.error_type,
        "attempts": letter.attempts,
        "died": _when(letter.died_at),
        "sent": _when(message.sent_at),
        "key": message.key,
        "type": message.type,
        "content": message.content_type,
        **{f"header {name}": value for name, value in message.headers.items()},
    }
    for name, value in fields.items():
        if value not in (None, ""):
            session.out.say(f"{name}: {value}")
    session.out.say(f"body: {body_text(message.body)}")


@dead.command()
def replay(
    context: typer.Context,
    source: Source,
    id: Ids = None,
    error_type: ErrorType = "",
    reason: Reason = "",
    limit: Limit = None,
    rate: Rate = None,
    yes: Yes = False,
) -> None:
    """Hand dead letters out again, to the queue or group that gave them up; attempts begin anew."""
    choice = Choice(id or (), error_type, reason, limit)
    _carry_out(
        context.obj, source, "replay", "replayed", choice, yes, lambda letters, ids: letters.replay(ids, rate=rate)
    )


@dead.command()
def purge(
    context: typer.Context,
    source: Source,
    id: Ids = None,
    error_type: ErrorType = "",
    reason: Reason = "",
    limit: Limit = None,
    yes: Yes = False,
) -> None:
    """Remove dead letters for good."""
    choice = Choice(id or (), error_type, reason, limit)
    _carry_out(context.obj, source, "purge", "purged", choice, yes, lambda letters, ids: letters.purge(ids))


@dead.command()
def move(
    context: typer.Context,
    source: Source,
    to: Annotated[str, typer.Argument(help="Queue or topic:NAME.", metavar="TO")],
    id: Ids = None,
    error_type: ErrorType = "",
    reason: Reason = "",
    limit: Limit = None,
    rate: Rate = None,
    yes: Yes = False,
) -> None:
    """Hand dead letters to another queue or topic instead."""
    target = destination_of(to)
    if target.kind == "broadcast":
        raise ConfigError(f"{to!r} is a broadcast, which keeps nothing; choose a queue or a topic")
    choice = Choice(id or (), error_type, reason, limit)
    _carry_out(
        context.obj,
        source,
        "move",
        "moved",
        choice,
        yes,
        lambda letters, ids: letters.replay(ids, to=value_of(target), rate=rate),
        target,
    )


def record(letter: DeadLetter[Any], source: str) -> dict[str, Any]:
    return {
        **record_of(letter.message),
        "source": source,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "attempts": letter.attempts,
        "died_at": letter.died_at,
    }


def _carry_out(
    session: Session,
    source: str,
    verb: str,
    done: str,
    choice: Choice,
    yes: bool,
    act: Callable[[DeadLetters[Any], Sequence[str] | None], int],
    target: Address | None = None,
) -> None:
    address = dead_source_of(source)
    with session.bus() as bus:
        letters = _letters(bus, address)
        if target is not None:
            with admin_of(bus) as admin:
                require(admin, target)
        ids = None if choice.everything else chosen(letters, choice)
        count = _count(bus, address) if ids is None else len(ids)
        if missing := [id for id in choice.ids if ids is not None and id not in ids]:
            raise NotFound(f"no such dead letter in {source}: {', '.join(missing)}; nothing was {done}")
        if not count:
            raise _nothing(session, source)
        if not choice.ids and not yes:
            _confirm(session, f"{verb} {count} dead letter{'s' if count > 1 else ''} of {source}?")
        number = act(letters, ids)
    if session.out.json:
        session.out.document({"source": source, done: number})
    else:
        session.out.say(f"{done} {number}")


def chosen(letters: DeadLetters[Any], choice: Choice) -> list[str]:
    """Their ids. Bodies are looked at one page at a time and not kept."""
    ids: list[str] = []

    def enough(letter: DeadLetter[Any]) -> bool:
        if choice.takes(letter):
            ids.append(letter.id)
        return len(ids) == choice.limit

    letters.list(limit=1, where=enough)
    return ids


def _letters(bus: Bus, address: Address) -> DeadLetters[Any]:
    with admin_of(bus) as admin:
        require(admin, address)
    source = value_of(address)
    return bus.dead_letters(source, group=address.group) if address.group else bus.dead_letters(source)


def _count(bus: Bus, address: Address) -> int:
    with admin_of(bus) as admin:
        return admin.count(address.dead_letters)


def _confirm(session: Session, question: str) -> None:
    if not sys.stdin.isatty():
        session.out.note(f"{question} Nobody is there to answer; --yes does it")
        raise typer.Exit(_exit.NOTHING)
    if not typer.confirm(question, err=True):
        session.out.note("nothing was changed")
        raise typer.Exit(_exit.NOTHING)


def _nothing(session: Session, source: str) -> typer.Exit:
    session.out.note(f"{source} has no such dead letters")
    return typer.Exit(_exit.NOTHING)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds") if seconds else ""
