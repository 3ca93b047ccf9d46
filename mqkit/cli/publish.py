"""`mqkit publish`: one message, or one for each line."""

from __future__ import annotations

import base64
import binascii
import io
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mqkit._outgoing import check_envelope
from mqkit._ticket import wait_for_ticket
from mqkit.backends.base import Declaration, Outgoing
from mqkit.bus import Bus
from mqkit.cli import _exit
from mqkit.cli._output import console
from mqkit.cli._session import Session, admin_of, exists, require
from mqkit.cli._target import destination_of, value_of
from mqkit.codecs import JSON, RAW, TEXT
from mqkit.destinations import Destination
from mqkit.errors import ConfigError, MqkitError, Unencodable

CHUNK = 500  # messages with the broker at once
TIMEOUT = 30.0  # seconds until a chunk must be confirmed
SHOWN = 10  # failures told one by one


class Options(msgspec.Struct, kw_only=True):
    """What goes with a body."""

    id: str | None = None
    key: str | None = None
    headers: dict[str, str] = {}
    type: str = ""
    content_type: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    sent_at: float = 0.0
    delay: float = 0.0
    ttl: float | None = None


class Line(Options):
    """A message as `tail --json` prints it."""

    body: str
    encoding: Literal["utf-8", "base64"] = "utf-8"

    def content(self) -> bytes:
        if self.encoding == "utf-8":
            return self.body.encode()
        try:
            return base64.b64decode(self.body, validate=True)
        except binascii.Error as exc:
            raise Unencodable(f"a body with encoding base64 is none: {exc}") from exc


class Draft(NamedTuple):
    """A message about to be sent."""

    body: bytes
    options: Options


def publish(
    context: typer.Context,
    dest: Annotated[str, typer.Argument(help="emails, topic:orders or broadcast:ticks.", metavar="DEST")],
    body: Annotated[str | None, typer.Argument(help="Left out or -: read from stdin.", metavar="[BODY]")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the body from here.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a body.")] = False,
    messages: Annotated[
        bool, typer.Option("--messages", help="Each line is a message as `tail --json` prints it.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The body is bytes, not JSON.")] = False,
    text: Annotated[bool, typer.Option("--text", help="The body is text, not JSON.")] = False,
    key: Annotated[str | None, typer.Option(help="Ordering key.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    delay: Annotated[float, typer.Option(help="Seconds until it is due.", min=0)] = 0.0,
    ttl: Annotated[float | None, typer.Option(help="Seconds until it expires, once due.", min=0)] = None,
    id: Annotated[str | None, typer.Option(help="Message id; the same one makes sending again safe.")] = None,
    type: Annotated[str, typer.Option(help="Name of the payload's type.")] = "",
    create: Annotated[bool, typer.Option("--create", help="Create a plain destination if it is missing.")] = False,
) -> None:
    """Publish a JSON body, untouched, to a destination that exists."""
    session: Session = context.obj
    address = destination_of(dest)
    many = lines or messages
    _refuse(("--lines", lines), ("--messages", messages), ("--id", id is not None and many))
    _refuse(("--raw", raw), ("--text", text), ("--messages", messages))
    _refuse(
        ("BODY", body not in (None, "-")),
        ("--file", file is not None),
        ("--lines or --messages", many and file is None),
    )
    common = Options(
        id=id,
        key=key,
        headers=headers_of(header or ()),
        type=type,
        content_type=(RAW if raw else TEXT if text else JSON).content_type,
        delay=delay,
        ttl=ttl,
    )
    with session.bus() as bus, _source(body, file) as source:
        drafts = (
            (decoded(line, common) for line in _lines(source))
            if messages
            else (checked(line, common) for line in (_lines(source) if lines else [source.read()]))
        )
        first = None if many else next(drafts)  # a wrong body is told before the broker is asked
        with admin_of(bus) as admin:
            if create and not exists(admin, address):
                admin.declare([Declaration(address)])
            require(admin, address, hint="; --create makes a plain one")
        destination = value_of(address)
        if first is not None:
            sent = _send_all(bus, [prepared(bus, destination, first)])[0]
            if isinstance(sent, MqkitError):
                raise sent
            session.out.document({"id": sent, "destination": dest}) if session.out.json else session.out.say(sent)
            return
        code = _publish_lines(session, bus, destination, dest, drafts)
    if code:
        raise typer.Exit(code)


def headers_of(texts: Iterable[str]) -> dict[str, str]:
    headers = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--header {text!r}: write NAME=VALUE")
        headers[name] = value
    return headers


def checked(body: bytes, common: Options) -> Draft:
    """A body with the options of the command line. Raises `Unencodable` where it is not what they say."""
    if common.content_type == JSON.content_type:
        try:
            msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise Unencodable(f"the body is not JSON: {exc}; --text or --raw sends anything else") from exc
    elif common.content_type == TEXT.content_type:
        try:
            body.decode()
        except UnicodeDecodeError as exc:
            raise Unencodable(f"the body is not UTF-8: {exc}; --raw sends any bytes") from exc
    return Draft(body, common)


def decoded(line: bytes, common: Options) -> Draft:
    """A line of `tail --json`; what the command line says goes first."""
    try:
        read = msgspec.json.decode(line, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Unencodable(f"the line is no message: {exc}") from exc
    changes: dict[str, Any] = {"delay": common.delay, "ttl": common.ttl, "headers": {**read.headers, **common.headers}}
    for name in ("key", "type"):
        if value := getattr(common, name):
            changes[name] = value
    return Draft(read.content(), msgspec.structs.replace(read, **changes))


def prepared(bus: Bus, destination: Destination[Any], draft: Draft) -> Outgoing:
    given = draft.options
    options: dict[str, Any] = {"key": given.key, "headers": given.headers, "id": given.id, "ttl": given.ttl}
    message = bus.prepare(destination, draft.body, {**options, "delay": given.delay})
    envelope = message.envelope
    envelope.type, envelope.content_type = given.type, given.content_type
    envelope.correlation_id, envelope.causation_id = given.correlation_id, given.causation_id
    if given.sent_at:
        envelope.sent_at = given.sent_at
    check_envelope(envelope)
    return message


def _publish_lines(
    session: Session, bus: Bus, destination: Destination[Any], dest: str, drafts: Iterator[Draft]
) -> int:
    """Chunk by chunk. A line that can never be sent ends it, after those before it."""
    sent = failed = 0
    wrong: MqkitError | None = None
    with _progress() as progress:
        task = progress.add_task("publishing", total=None)
        while wrong is None:
            chunk: list[Outgoing] = []
            try:
                for draft in islice(drafts, CHUNK):
                    chunk.append(prepared(bus, destination, draft))
            except MqkitError as exc:
                wrong = exc
            if not chunk:
                break
            for outcome in _send_all(bus, chunk):
                if isinstance(outcome, MqkitError):
                    failed += 1
                    if failed <= SHOWN:
                        session.out.note(f"message {sent + failed}: {_exit.line_of(outcome)}")
                else:
                    sent += 1
                progress.update(task, completed=sent + failed)
    if wrong is not None:
        session.out.note(f"message {sent + failed + 1}: {_exit.line_of(wrong)}")
    if session.out.json:
        session.out.document({"destination": dest, "sent": sent, "failed": failed})
    else:
        session.out.say(f"sent {sent}" + (f", failed {failed}" if failed else ""))
    if wrong is not None:
        return _exit.code_of(wrong)
    return _exit.FAILED if failed else _exit.OK if sent else _exit.NOTHING


def _send_all(bus: Bus, messages: list[Outgoing]) -> list[str | MqkitError]:
    deadline = time.monotonic() + TIMEOUT
    pump = bus.publish_pump
    outcomes: list[str | MqkitError] = []
    for ticket in pump.send_many(messages):
        try:
            outcomes.append(wait_for_ticket(ticket, max(0.0, deadline - time.monotonic()), pump.trouble))
        except MqkitError as exc:
            outcomes.append(exc)
    return outcomes


@contextmanager
def _source(body: str | None, file: Path | None) -> Iterator[BinaryIO]:
    if file is not None:
        try:
            opened = file.open("rb")
        except OSError as exc:
            raise ConfigError(f"--file {file} cannot be read: {exc.strerror}") from exc
        with opened:
            yield opened
    elif body not in (None, "-"):
        yield io.BytesIO(body.encode("utf-8", "surrogateescape") if body else b"")
    elif sys.stdin.isatty():
        raise ConfigError("no body: give it as an argument, with --file, or on stdin")
    else:
        yield sys.stdin.buffer


def _lines(source: BinaryIO) -> Iterator[bytes]:
    return (stripped for line in source if (stripped := line.rstrip(b"\r\n")))


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _refuse(*options: tuple[str, bool]) -> None:
    given = [name for name, used in options if used]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together")
