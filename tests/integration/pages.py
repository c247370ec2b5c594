"""What a page of the documentation shows: its commands, their exit codes, what they print, and the files of its blocks."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CUT = "[...]"


@dataclass
class Command:
    """A command of a console block, what the page shows of its output, and its exit code, where the page has one."""

    line: str
    shown: list[str] = field(default_factory=list)
    code: int | None = None


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def files_of(text: str) -> dict[str, str]:
    """What blocks that begin with ``# name`` hold, by name."""
    found = {}
    for block in [*blocks(text, "python"), *blocks(text, "toml")]:
        name = re.match(r"# ([\w./-]+\.(?:py|toml))\n", block)
        if name is not None:
            found[name[1]] = block
    return found


def commands_of(text: str) -> list[Command]:
    """The commands of all console blocks, in the order of the page."""
    found: list[Command] = []
    asked = False
    for line in "".join(blocks(text, "console")).replace("\\\n", " ").splitlines():
        if asked:
            found[-1].code, asked = int(line), False
        elif line == "$ echo $?":
            asked = True
        elif line.startswith("$ "):
            found.append(Command(line[2:]))
        elif found:
            found[-1].shown.append(line)
    return found


def listed_commands(text: str) -> list[str]:
    """The commands of shell blocks, which show no output."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def without_numbers(line: str, *, shapes: bool = True) -> str:
    """A line with its numbers and the width of its columns left open; names stay, and shapes unless told otherwise."""
    if not shapes:
        line = re.sub(r"(?<=\s)\d+(x\d+)+(?=\s|$)", "#", line)
    # A slow machine says seconds where another says milliseconds.
    line = re.sub(r"(?<=\d) (ms|s|min)(?!\w)", " TIME", line)
    return " ".join(re.sub(r"(?<![\w.@-])-?\d+(\.\d+)?(e[+-]\d+)?(?![\w.]*\w)", "#", line).split())


def missing(command: Command, out: str, *, shapes: bool = True) -> Iterator[str]:
    """Lines that the page shows and the command does not print, in the order of the page."""
    printed = iter([without_numbers(line, shapes=shapes) for line in out.splitlines()])
    for line in command.shown:
        # Which stage is the worst of a healthy model is chance.
        if CUT in line or "worst relative L2" in line:
            continue
        if without_numbers(line, shapes=shapes) not in printed:
            yield line
            return


def execute_line(line: str) -> tuple[int, str]:
    """Runs one command of a page in this process: exit code and stdout."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.run import run
    from bisect_tool.cli.tool import tool

    program, *arguments = shlex.split(line)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        if program == "python":
            with pytest.MonkeyPatch.context() as patch:
                # A script reads its own arguments, not those of the tests, and imports what lies beside it.
                patch.setattr("sys.argv", arguments)
                beside = str(Path(arguments[0]).resolve().parent)
                sys.path.insert(0, beside)
                importlib.invalidate_caches()
                try:
                    runpy.run_path(arguments[0], run_name="__main__")
                except SystemExit as ended:
                    return int(ended.code or 0), out.getvalue()
                finally:
                    # What libraries have put there meanwhile stays: they import from it later.
                    sys.path.remove(beside)
            return 0, out.getvalue()
        command = {"bisect-divergence": run, "bisect-tool": tool}[program]
        return execute(command, program, arguments), out.getvalue()
