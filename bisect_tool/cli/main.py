"""Entry points, and the one place where errors become exit codes. Light, so that Ctrl-C is taken over early."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from bisect_tool.cli import interrupts, streams
from bisect_tool.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    BisectError,
)
from bisect_tool.temporary import remove_lasting_files

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
    # Before any file is opened, as that one's descriptor could be stdout's.
    streams.make_usable()
    # Before all that takes a while, as imports do.
    interrupts.install()
    from bisect_tool.cli.process import end_without_collection, let_idle_threads_sleep

    let_idle_threads_sleep()
    # NaN and infinities are this tool's daily bread; what a user's own code warns of is shown.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"bisect_tool\.")
    code = execute(_command(name), name, sys.argv[1:])
    if code not in (EXIT_INTERRUPTED, EXIT_TERMINATED):
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
        print_usage_error(error)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        # What was broken off is no failed export.
        remove_lasting_files()
        click.echo(interrupts.text(), err=True)
        return interrupts.exit_code()
    except BrokenPipeError:
        streams.give_up_stdout()
        return EXIT_BROKEN_PIPE
    except SystemExit as leave:
        # Its number would read as a verdict.
        print_error(_left(leave))
        return EXIT_USAGE
    except OSError as error:
        if streams.is_of_stdout(error):
            streams.give_up_stdout()
            print_error(BisectError(f"the answer cannot be written to stdout: {error.strerror}"))
            return EXIT_USAGE
        if error.filename is None or error.errno not in _REFUSED:
            return _internal()
        # Of a place that was named, wherever it was first looked at.
        print_error(BisectError(f"{_short(error.filename)}: {error.strerror}", hint="check the path"))
        return EXIT_USAGE
    except Exception:
        return _internal()


_REFUSED = frozenset([errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EROFS, errno.ELOOP])


def _short(path: object) -> str:
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-40:]}"


def _internal() -> int:
    """Tells of the exception that is being handled."""
    import click

    traceback.print_exc()
    click.echo("internal error: this is a fault of the tool, not of your model; please report it", err=True)
    return EXIT_INTERNAL


def _left(leave: SystemExit) -> BisectError:
    frame = traceback.extract_tb(leave.__traceback__)[-1]
    return BisectError(
        f"sys.exit({leave.code!r}) was called at {frame.filename}:{frame.lineno}: nothing was compared",
        hint="let it return or raise instead",
    )


def _invoke(command: click.Command, name: str, arguments: Sequence[str]) -> int:
    """Runs a command; Ctrl-C is told before any result and any error, for the error may be all that came of it."""
    from bisect_tool.cli.progress import close_all

    try:
        # Not command.main(): it turns a closed pipe into exit code 1 by itself.
        with command.make_context(name, list(arguments)) as context:
            code = command.invoke(context)
        sys.stdout.flush()
    except Exception:
        interrupts.check()
        raise
    finally:
        # Before anything is told: it would stand behind the line that shows the progress.
        close_all()
    interrupts.check()
    return code if isinstance(code, int) else 0


def print_error(error: BisectError) -> None:
    """What is wrong, and the remedy, on stderr."""
    import click

    for label, color, text in (("error", "red", error.message), ("help", "cyan", error.hint)):
        if text:
            folded = folded_text(text, len(label) + 2)
            click.echo(f"{click.style(label, fg=color, bold=True)}: {folded}", err=True, color=wants_color())


def wants_color() -> bool | None:
    """``False`` where the user wants none; ``None`` leaves it to the terminal."""
    return False if os.environ.get("NO_COLOR") else None


def print_usage_error(error: click.ClickException) -> None:
    """What click says of a command line that it cannot read, folded as other errors are."""
    import click

    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(context.get_usage(), err=True)
        click.echo(f"Try '{context.command_path} -h' for help.\n", err=True)
    click.echo(f"Error: {folded_text(error.format_message(), len('Error: '))}", err=True)


def folded_text(text: str, beginning: int) -> str:
    """A message as it stands behind a label: between words at the width of a terminal, and as it is anywhere else.

    Args:
        text: of one or more lines.
        beginning: cells that the label takes; later lines are indented by two.
    """
    import shutil
    import textwrap

    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed, or none at all
        terminal = False
    if not terminal:
        return text
    width = max(shutil.get_terminal_size().columns, 20)
    lines: list[str] = []
    for number, line in enumerate(text.splitlines() or [""]):
        lead = " " * beginning if number == 0 else ""
        wrapped = textwrap.wrap(
            lead + line,
            width,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        lines += wrapped or [""]
    lines[0] = lines[0][beginning:]
    return "\n".join(lines)
