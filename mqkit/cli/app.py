"""The commands put together, their common options, and how an error ends."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from mqkit.cli import _exit
from mqkit.cli._output import Output
from mqkit.cli._session import Session
from mqkit.cli.capabilities import capabilities
from mqkit.cli.dead import dead
from mqkit.cli.doctor import doctor
from mqkit.cli.publish import publish
from mqkit.cli.run import run
from mqkit.cli.stats import stats
from mqkit.cli.tail import tail
from mqkit.errors import MqkitError

COMMON = {"--url": True, "--name": True, "--json": False, "--debug": False}  # takes a value?

app = typer.Typer(
    name="mqkit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="The options above may also stand behind the command. Names: emails (queue), topic:orders, orders/billing "
    "(group of a topic), broadcast:ticks.",
)
for command in (run, publish, tail, stats, doctor, capabilities):
    app.command()(command)
app.add_typer(dead, name="dead")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mqkit {version('mqkit')}")
        raise typer.Exit()


@app.callback()
def common(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="Of the broker; or env:NAME, file:PATH. Left out: as for Bus().", metavar="URL")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the bus whose settings are meant.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Run, look into and repair messaging on any broker."""
    context.obj = Session(url, name, Output(json, debug))


def execute(argv: Sequence[str]) -> int:
    """One command line; the exit code. Errors of mqkit are one line on stderr."""
    arguments = common_first(argv)
    output = Output(debug="--debug" in arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal in another encoding: messages have any characters
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="mqkit")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else _exit.OK if exc.code is None else _exit.FAILED
    except MqkitError as exc:
        return _failed(exc, _exit.code_of(exc), output)
    except BrokenPipeError:
        # Nobody reads any more. The interpreter flushes stdout once more at its end, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _exit.BROKEN_PIPE
    except KeyboardInterrupt:
        return _exit.INTERRUPTED
    return _exit.OK


def common_first(argv: Sequence[str]) -> list[str]:
    """The common options moved to the front, so that they may stand behind the command too; all after `--` stays."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        if word in COMMON:
            front.append(word)
            if COMMON[word] and (value := next(words, None)) is not None:
                front.append(value)
        elif word.partition("=")[0] in COMMON:
            front.append(word)
        else:
            rest.append(word)
    return [*front, *rest]


def _failed(error: MqkitError, code: int, output: Output) -> int:
    if output.debug:
        traceback.print_exception(error)
    else:
        output.note(_exit.line_of(error))
    return code
