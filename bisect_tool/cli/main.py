"""Entry points, and the one place where errors become exit codes. Light, so that Ctrl-C is taken over early."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from bisect_tool.cli import interrupts
from bisect_tool.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    BisectError,
)

if TYPE_CHECKING:
    import click


def bisect_divergence() -> None:
    """Console script ``bisect-divergence``."""
    _process("bisect-divergence")


def bisect_tool() -> None:
    """Console script ``bisect-tool``."""
    _process("bisect-tool")


def _process(name: str) -> NoReturn:
    """A command as a whole process, from its start to its end."""
    # First of all: what is imported below takes a while already.
    interrupts.install()
    from bisect_tool.cli.process import end_without_collection, let_idle_threads_sleep

    let_idle_threads_sleep()
    code = execute(_command(name), name, sys.argv[1:])
    if code != EXIT_INTERRUPTED:
        interrupts.work_is_done(code)
    end_without_collection()
    sys.exit(code)


def _command(name: str) -> click.Command:
    from bisect_tool.cli.run import run

    if name == "bisect-divergence":
        return run
    from bisect_tool.cli.tool import tool

    return tool


def execute(command: click.Command, name: str, arguments: Sequence[str]) -> int:
    """Runs a command and returns the process' exit code.

    click exits 1 on Ctrl-C and on a closed pipe, and Python exits 1 on an uncaught exception; all three would read as
    "divergence", so that none of them is left to click.
    """
    import click

    try:
        return _invoke(command, name, arguments)
    except BisectError as error:
        print_error(error)
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        click.echo(interrupts.text(), err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception:
        traceback.print_exc()
        click.echo("internal error: this is a fault of the tool, not of your model; please report it", err=True)
        return EXIT_INTERNAL


def _invoke(command: click.Command, name: str, arguments: Sequence[str]) -> int:
    """Runs a command; Ctrl-C is told before any result and any error, for the error may be all that came of it."""
    try:
        # Not command.main(): it turns a closed pipe into exit code 1 by itself.
        with command.make_context(name, list(arguments)) as context:
            code = command.invoke(context)
        sys.stdout.flush()
    except Exception:
        interrupts.check()
        raise
    interrupts.check()
    return code if isinstance(code, int) else 0


def print_error(error: BisectError) -> None:
    """What is wrong, and the remedy, on stderr."""
    import click

    click.echo(f"{click.style('error', fg='red', bold=True)}: {_folded(error.message, 7)}", err=True)
    if error.hint:
        click.echo(f"{click.style('help', fg='cyan', bold=True)}: {_folded(error.hint, 6)}", err=True)


def _folded(text: str, before: int) -> str:
    """Between words at the width of a terminal; elsewhere as it is, for whoever searches in it.

    Args:
        text: of one line or several.
        before: width of what stands before the first one.
    """
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    folded = []
    for number, line in enumerate(text.splitlines()):
        body = line.lstrip(" ")
        indent = " " * (len(line) - len(body))
        first = " " * before if not number else indent
        lines = textwrap.wrap(
            body, width, initial_indent=first, subsequent_indent=(indent or "") + "    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        folded.append("\n".join(lines)[0 if number else before :])
    return "\n".join(folded)
