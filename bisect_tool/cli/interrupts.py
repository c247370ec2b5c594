"""Ctrl-C ends the command with its own exit code wherever it comes, without a traceback and without half a report.

So does SIGTERM, by which ``timeout``, containers and schedulers of jobs end a process, with a code of its own: by itself
Python leaves what lies in temporary folders then, and those may hold a model's weights.

KeyboardInterrupt alone does not do: imports and exporters catch it and go on, or raise something else in its place.
So it is written down as well, and looked up at the boundaries: when a step begins, before anything is written, and
before an error or a result is told. While the libraries are imported there is nothing to clean up; then the process
ends at once, since an import that is broken off in the middle leaves modules that nobody can use.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from bisect_tool.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from bisect_tool.temporary import remove_what_is_left

GRACE = 5.0
"""Seconds that SIGTERM leaves the command to unwind. Python hears of a signal when the library that it is inside of returns,
which a run that hangs never does."""

AT_ONCE = 1.0
"""Seconds within which a second SIGTERM is the first one again: ``timeout`` sends it to the process and to its group."""

_stderr: int | None = None
"""A copy of stderr's descriptor: while exporting, the descriptor itself leads to a log."""
_requests = 0
_first = -math.inf
"""When the first signal was handled."""
_code = EXIT_INTERRUPTED
"""Of whichever came first."""
_importing = True
_done: int | None = None
"""Exit code of a command whose answer stands."""
_written: list[str] = []


def install() -> None:
    """Takes both signals over, for a process that is all this command; call it before anything heavy is imported.

    Where the process was started with Ctrl-C ignored, as in the background of a shell script, it stays so.
    """
    global _stderr
    with contextlib.suppress(OSError):  # a process without stderr has nobody to tell
        _stderr = os.dup(2)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, on_signal)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, on_signal)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_give_back)
            _watch()


def _give_back() -> None:
    """A copy of the process, as a data loader's workers are, ends by SIGTERM without a word."""
    if signal.getsignal(signal.SIGTERM) is on_signal:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watch() -> None:
    """Ends the process some time after SIGTERM, should it still be there: a thread hears of signals at once."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_after, args=(reading,), name="signals", daemon=True).start()


def _end_after(reading: int) -> None:
    with contextlib.suppress(OSError):
        while signal.SIGTERM not in os.read(reading, 1):
            pass
        time.sleep(GRACE)
        if _done is None:
            _tell(EXIT_TERMINATED)
            with contextlib.suppress(BaseException):
                remove_what_is_left()
        os._exit(EXIT_TERMINATED if _done is None else _done)


def on_signal(signum: int, frame: FrameType | None) -> None:
    """The handler: the first signal unwinds the command, a second one does not wait for that, a third for nothing."""
    global _requests, _first, _code
    terminated, now = signum == signal.SIGTERM, time.monotonic()
    if terminated and _requests and _code == EXIT_TERMINATED and now - _first < AT_ONCE:
        return
    _requests += 1
    if _requests == 1:
        _first, _code = now, EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
    if _done is not None:
        os._exit(_done)
    if not _importing and _requests == 1:
        raise KeyboardInterrupt
    if _importing or _requests == 2:
        _tell(_code)
    if not _importing and _requests == 2:
        # Temporary folders and processes of pairs: that is quick, unlike what the first signal may be waiting for.
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
    os._exit(_code)


def exit_code() -> int:
    """Of a command that was ended by a signal."""
    return _code


def _tell(code: int) -> None:
    if _stderr is not None:
        with contextlib.suppress(OSError):
            os.write(_stderr, f"{text(code)}\n".encode())


def work_begins() -> None:
    """From here on a signal unwinds: there are temporary files to remove."""
    global _importing
    _importing = False


def work_is_done(code: int) -> None:
    """From here on a signal only spares the wait for the end of the process, whose answer stands."""
    global _done
    _done = code


def check() -> None:
    """Raises KeyboardInterrupt if there was a signal, whatever became of its exception."""
    if _requests:
        raise KeyboardInterrupt


def wrote(folder: Path) -> None:
    """Remembers a report that is complete, so that nobody is told that there is none."""
    _written.append(str(folder))


def text(code: int | None = None) -> str:
    """What the user is told, by the exit code; ``None``: the one of the signal that came."""
    what = "terminated" if (_code if code is None else code) == EXIT_TERMINATED else "interrupted"
    written = [path for path in _written if os.path.exists(path)]
    return f"{what}; written before: {', '.join(written)}" if written else f"{what}; no report was written"
