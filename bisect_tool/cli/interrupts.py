"""Ctrl-C ends the command with its own exit code wherever it comes, without a traceback and without half a report.

KeyboardInterrupt alone does not do: imports and exporters catch it and go on, or raise something else in its place.
So it is written down as well, and looked up at the boundaries: when a step begins, before anything is written, and
before an error or a result is told. While the libraries are imported there is nothing to clean up; then the process
ends at once, since an import that is broken off in the middle leaves modules that nobody can use.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

from bisect_tool.errors import EXIT_INTERRUPTED

_stderr: int | None = None
"""A copy of stderr's descriptor: while exporting, the descriptor itself leads to a log."""
_requests = 0
_at_once: int | None = None
"""Exit code with which a Ctrl-C ends the process there and then; ``None`` while there is something to clean up."""
_written: list[str] = []


def install() -> None:
    """Takes Ctrl-C over, for a process that is all this command; call it before anything heavy is imported.

    Where the process was started with Ctrl-C ignored, as in the background of a shell script, it stays so.
    """
    global _stderr, _at_once
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    with contextlib.suppress(OSError):  # a process without stderr has nobody to tell
        _stderr = os.dup(2)
    _at_once = EXIT_INTERRUPTED
    signal.signal(signal.SIGINT, on_signal)


def on_signal(signum: int, frame: FrameType | None) -> None:
    """The handler: the first Ctrl-C unwinds the command, a second one does not wait for that, a third for nothing."""
    global _requests
    _requests += 1
    if _at_once is None and _requests == 1:
        raise KeyboardInterrupt
    if _at_once is None and _requests == 2:
        _tell()
        # Temporary folders and processes of pairs: that is quick, unlike what the first Ctrl-C may be waiting for.
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
    elif _at_once == EXIT_INTERRUPTED:
        _tell()
    os._exit(EXIT_INTERRUPTED if _at_once is None else _at_once)


def _tell() -> None:
    if _stderr is not None:
        with contextlib.suppress(OSError):
            os.write(_stderr, f"{text()}\n".encode())


def work_begins() -> None:
    """From here on Ctrl-C unwinds: there are temporary files to remove."""
    global _at_once
    _at_once = None


def work_is_done(code: int) -> None:
    """From here on Ctrl-C only spares the wait for the end of the process, whose answer stands."""
    global _at_once
    _at_once = code


def check() -> None:
    """Raises KeyboardInterrupt if there was a Ctrl-C, whatever became of its exception."""
    if _requests:
        raise KeyboardInterrupt


def wrote(folder: Path) -> None:
    """Remembers a report that is complete, so that nobody is told that there is none."""
    _written.append(str(folder))


def text() -> str:
    """What the user is told."""
    written = [path for path in _written if os.path.exists(path)]
    return f"interrupted; written before: {', '.join(written)}" if written else "interrupted; no report was written"
