"""Plots of a command are drawn in a process of its own, which imports matplotlib while the model is loaded and exported,
and draws while table and page are written.

Importing matplotlib and drawing take about a second, and exporting uses one core. Whatever goes wrong with that
process, the plots are drawn here instead.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bisect_tool.records import Report

Files = dict[str, bytes | str]

_PROGRAM = "import sys; sys.path[:] = {path!r}; from bisect_tool.reporters.drawing import serve; serve()"

_helper: subprocess.Popen[bytes] | None = None


def prepare() -> None:
    """Starts the process, where there is a core for it; for a process that is all one command.

    It ends with the pipe that this one holds: also where this one is killed.
    """
    global _helper
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _helper is not None or "matplotlib" in sys.modules or cores < 2:
        return
    with contextlib.suppress(OSError):  # no processes left, or no memory
        _helper = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What goes wrong there goes wrong here once more, and is told then.
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for this process, which ends the other.
            start_new_session=True,
        )
        atexit.register(end)


def end() -> None:
    """Ends the process, if there is one."""
    global _helper
    helper, _helper = _helper, None
    if helper is not None:
        helper.kill()
        for pipe in (helper.stdin, helper.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        helper.wait()


def begin(report: Report, formats: tuple[str, ...]) -> Callable[[], Files]:
    """Begins to draw a report's plots; what it returns waits for the files, by name."""
    sent = False
    if _helper is not None and formats:
        assert _helper.stdin is not None
        try:
            pickle.dump((report, formats), _helper.stdin)
            _helper.stdin.flush()
            sent = True
        except Exception:  # a report of somebody's own making may hold what cannot be sent
            end()

    def files() -> Files:
        found = _received() if sent else None
        if found is None:
            from bisect_tool.reporters.plot_files import plot_files

            found = plot_files(report, formats)
        return found

    return files


def _received() -> Files | None:
    if _helper is None:
        return None
    assert _helper.stdout is not None
    try:
        found: Files = pickle.load(_helper.stdout)
    except Exception:  # it has ended, for whatever reason
        end()
        return None
    return found


def serve() -> None:
    """The process: draws what comes in on stdin until that ends, and writes the files to stdout."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Nothing that is printed may get between the files.
    os.dup2(2, 1)
    import_all()
    from bisect_tool.reporters.plot_files import plot_files

    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            wanted: Any = pickle.load(source)
            pickle.dump(plot_files(*wanted), target)
            target.flush()
    # Taking matplotlib apart again is of no use to anybody.
    os._exit(0)


def import_all() -> None:
    """What drawing imports at its first use."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
