"""What only a process of its own may decide: how idle threads wait, and when Python looks for cyclic garbage.

A run makes half a million objects that stay to its end: the libraries' own, and what the exporter caches. Looking
through them over and over finds nothing, and took a fifth of a short run. Whatever is made between loading and
reporting, tensors among it, is collected as ever.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_WRITTEN = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
"""What ``open()`` gives for writing, and keeps some of what is written for later."""


def let_idle_threads_sleep() -> None:
    """Has OpenMP's threads sleep while they wait, unless the user wants it otherwise; call it before torch loads.

    By default they wait in a loop. Where another process wants one of the cores, that loop takes turns with the very
    thread that is waited for, and torch gets ten times slower. Where none does, waking up makes large layers a quarter
    slower and small ones two thirds, in a model that runs a few times only.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_libraries() -> None:
    """Imports what every run needs, and leaves it out of all later collections."""
    if not is_all_of_process():
        # What is there may well become garbage.
        return
    with no_collection():
        importlib.import_module("bisect_tool.pipeline")
        importlib.import_module("bisect_tool.backends.versions").require_shared_memory()
        gc.freeze()


def is_all_of_process() -> bool:
    """Whether no other work was done in this process yet; to be asked before the libraries are imported."""
    return "bisect_tool.pipeline" not in sys.modules


@contextmanager
def no_collection() -> Iterator[None]:
    """For code that makes many small objects and drops few."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def end_without_collection() -> None:
    """Leaves the memory to the system; call it when nothing is left to do but to exit.

    Exit handlers still run. Objects in cycles are not taken apart any more, which Python does not promise at exit. The
    globals of a model's module are in such a cycle, so that what was written to files there is flushed here.
    """
    for thing in gc.get_objects():
        if type(thing) in _WRITTEN:
            with suppress(OSError, ValueError):  # a full disk, a closed file
                thing.flush()
    gc.disable()
    gc.freeze()
