"""Pieces of work that can run anywhere: what each one is, what came of it, and the call that turns one into the other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bisect_tool import __version__
from bisect_tool.errors import BisectError
from bisect_tool.hardware import Hardware, hardware_facts, hardware_of, this_hardware

_ALONE = threading.RLock()
"""Threads, TF32, determinism and the like are switches of the whole process: two tasks at once would turn each other's.
Workers of a cluster may have several threads. A task may run tasks of its own."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes:
        key: says what it does, the same in every process and on every day (:func:`task_key`). Work of one key is done
            and counted once.
        arguments: for the function; they must be possible to pickle.
    """

    key: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a task.

    Attributes:
        key: the task's.
        value: what the function returned, as JSON gives it back (tuples are lists); ``None`` if it failed.
        error: why it failed, in one line; ``None`` if it did not.
        trace: the traceback of what nobody expected, for whoever looks into it.
        hardware: where it ran; ``None`` if the process was lost.
        seconds: how long it took there.
        resumed: it was done by an earlier run, and read from the journal.
    """

    key: str
    value: Any
    error: str | None
    trace: str | None
    hardware: Hardware | None
    seconds: float
    resumed: bool = False


def task_key(*facts: Any) -> str:
    """A key from what a task does: plain JSON values such as digests of files, names of variations and seeds.

    Raises:
        TypeError: something that JSON does not hold; its text might be another one tomorrow.
    """
    return digest_of(list(facts), size=16)


def digest_of(value: Any, *, size: int = 8) -> str:
    """A digest of a JSON value that depends neither on the order of keys nor on the process, in hexadecimal."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=size).hexdigest()


def canonical(value: Any) -> str:
    """A JSON value in one line of ASCII, always the same; numbers that are not finite are kept as Python writes them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def perform(function: Callable[..., Any], arguments: tuple[Any, ...], version: str) -> str:
    """``function(*arguments)`` wherever this is called, and what came of it, as text that any process can read.

    Args:
        function: of a module; it returns JSON values.
        arguments: for it.
        version: of the tool that asks; another one here fails the task, since it may measure otherwise.
    """
    value, error, trace = None, None, None
    with _ALONE:
        began = time.perf_counter()
        try:
            if version != __version__:
                raise BisectError(f"the worker has version {__version__} of bisect-divergence, and not {version}")
            # What a model prints is not the answer of whoever asks.
            with contextlib.redirect_stdout(sys.stderr):
                value = function(*arguments)
            canonical(value)
        except BisectError as refusal:
            value, error = None, refusal.message
        except (Exception, SystemExit) as fault:  # a model may raise anything, and exit
            value, error, trace = None, _line(fault), traceback.format_exc()
        seconds = time.perf_counter() - began
    return canonical(
        {
            "value": value,
            "error": error,
            "trace": trace,
            "hardware": hardware_facts(this_hardware()),
            "seconds": seconds,
        }
    )


def result_of(key: str, text: str) -> Result:
    """The result from what :func:`perform` wrote."""
    done = json.loads(text)
    return Result(
        key=key,
        value=done["value"],
        error=done["error"],
        trace=done["trace"],
        hardware=hardware_of(done["hardware"]),
        seconds=done["seconds"],
    )


def lost(key: str, reason: str) -> Result:
    """Of a task whose process ended without an answer, each time."""
    return Result(key=key, value=None, error=reason, trace=None, hardware=None, seconds=0.0)


def _line(fault: BaseException) -> str:
    first = next(iter(str(fault).strip().splitlines()), "")
    return f"{type(fault).__name__}: {first}" if first else type(fault).__name__
