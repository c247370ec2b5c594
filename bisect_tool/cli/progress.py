"""What stderr shows while a command works: one line on a terminal, rewritten in place, and nothing anywhere else.

The line has the step, stages done of all, the time left, and the memory of this process. It is gone when the command
ends, so that the report begins on an empty line. ``--verbose`` has each step in a line of its own, also in a log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from typing import TextIO

import click

from bisect_tool.cli import interrupts

REFRESH = 0.25
"""Seconds between two looks at the clock."""
PATIENCE = 2.0
"""Seconds before anything is said about the time left: the first ones of a step say little."""


@dataclass(slots=True)
class State:
    """What the line tells; ``began``: of the step, in seconds of the monotonic clock."""

    text: str = ""
    began: float = 0.0
    done: int = 0
    total: int = 0
    outer: str = ""


def status_line(state: State, now: float, memory: int | None, width: int) -> str:
    """The line, no wider than the terminal: ``[2/8] comparing stage by stage  37/83 stages  0:12 left  1.4 GB``.

    Args:
        state: of the command.
        now: on the clock of ``state.began``.
        memory: bytes of this process, if known.
        width: of the terminal.
    """
    spent = max(now - state.began, 0.0)
    facts = []
    if state.total:
        facts.append(f"{state.done}/{state.total} stages")
    elif state.done:
        facts.append(f"{state.done} tensors")
    if state.total and state.done and spent >= PATIENCE:
        facts.append(f"{clock(spent / state.done * (state.total - state.done))} left")
    elif spent >= PATIENCE:
        facts.append(clock(spent))
    if memory is not None:
        facts.append(f"{memory / 1e9:.1f} GB" if memory >= 1e9 else f"{memory / 1e6:.0f} MB")
    tail = "  ".join(facts)
    text = " ".join(part for part in (state.outer, state.text) if part)
    room = width - 3 - (len(tail) + 2 if tail else 0)
    if room < 8:
        return f"· {text}"[: width - 1]
    short = text if len(text) <= room else text[: room - 2] + ".."
    return f"· {short}" + (f"  {tail}" if tail else "")


def clock(seconds: float) -> str:
    """``0:12``, ``3:05``, ``1:02:03``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Tells each step, and looks whether somebody wants it to end.

    Args:
        quiet: tell nothing.
        verbose: tell each step in a line of its own, wherever stderr leads.
    """

    def __init__(self, quiet: bool, verbose: bool = False):
        self._quiet = quiet
        self._lines = verbose and not quiet
        self._state = State()
        self._stream: TextIO | None = None
        self._live = not quiet and not verbose and _is_terminal()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        """A step begins."""
        # Libraries may have caught a Ctrl-C in the step before.
        interrupts.check()
        if self._lines:
            _echo(text)
        if not self._live:
            return
        with self._lock:
            self._state.text = " ".join(text.split())
            self._state.began, self._state.done, self._state.total = time.monotonic(), 0, 0
        self._start()
        self._draw()

    def count(self, done: int, total: int) -> None:
        """How far the step is; ``total`` is 0 where nobody knows."""
        # No lock: a line that is a moment old does no harm, and this is called for each tensor.
        self._state.done, self._state.total = done, total

    def within(self, number: int, count: int) -> None:
        """Steps from here on belong to the ``number``-th (from 0) of several samples."""
        self._state.outer = f"[{number + 1}/{count}]"

    def note(self, text: str) -> None:
        """Something to know beyond the step; it stays."""
        if self._quiet:
            return
        with self._lock:
            self._write("\r\x1b[2K")
            _echo(text)

    def close(self) -> None:
        """Takes the line away; the next step brings it back."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(1.0)  # a terminal that is stopped must not stop the command
            self._thread = None
            self._write("\r\x1b[2K")
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def _start(self) -> None:
        if self._thread is not None:
            return
        try:
            # A descriptor of its own: while exporting, stderr's leads to a log.
            self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="replace")
        except (OSError, ValueError, AttributeError):
            self._live = False
            return
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(REFRESH):
            self._draw()

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns
        with self._lock:
            line = status_line(self._state, time.monotonic(), memory_used(), width)
        self._write(f"\r\x1b[2K{line}")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        # A terminal that went away is no reason to end.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def _echo(text: str) -> None:
    click.echo(click.style(f"· {text}", dim=True), err=True, color=False if os.environ.get("NO_COLOR") else None)


def _is_terminal() -> bool:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return False


def memory_used() -> int | None:
    """Bytes of memory that this process has now; ``None`` where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


_made: list[Progress] = []


def progress(quiet: bool, verbose: bool = False) -> Progress:
    """The progress of a command; :func:`close_all` takes it away, however the command ends."""
    made = Progress(quiet, verbose)
    _made.append(made)
    return made


def close_all() -> None:
    """Takes away every line that is still there."""
    while _made:
        _made.pop().close()
