"""Segments of a graph that run in a thread, one ahead of whoever takes what they make.

The graph's own run needs nothing of PyTorch's. Its segments are computed outside of the interpreter's lock, while PyTorch's
side is recorded inside of it, so that the two share the cores instead of waiting for each other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class Steps(Protocol):
    """Segments of a graph: see :class:`bisect_tool.backends.ort_runner.SegmentedRun`."""

    @property
    def done(self) -> bool: ...

    @property
    def carried(self) -> Set[str]:
        """Values made so far that segments to come read."""
        ...

    def advance(self) -> Mapping[str, Array | None]: ...


@dataclass(frozen=True, slots=True)
class _Made:
    values: Mapping[str, Array | None]
    carried: Set[str]
    last: bool
    seconds: float


class Ahead:
    """Segments, as seen by whoever takes them one after the other.

    Args:
        steps: the segments; nobody else runs them from now on.
        eager: run them in a thread, each while the one before it is looked at; else each is run when it is asked for,
            and there are never two of them in memory.

    Attributes:
        done: the last segment was taken.
        carried: values made so far, by the segments that were taken, that later ones read.
        seconds: that the segments which were taken have run.
    """

    def __init__(self, steps: Steps, *, eager: bool):
        self._steps = steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segments") if eager else None
        self._coming: Future[_Made] | None = None
        self.done = steps.done
        self.carried: Set[str] = frozenset(steps.carried)
        self.seconds = 0.0
        self._start()

    def advance(self) -> Mapping[str, Array | None]:
        """What the next segment has made.

        Raises:
            InconclusiveError: it did not run. No other one will.
        """
        coming, self._coming = self._coming, None
        made = self._run() if coming is None else coming.result()
        self.done, self.carried = made.last, made.carried
        self.seconds += made.seconds
        self._start()
        return made.values

    def close(self) -> None:
        """Ends the thread, when what it is at is finished."""
        self._coming = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        if self._pool is not None and not self.done:
            self._coming = self._pool.submit(self._run)

    def _run(self) -> _Made:
        began = time.perf_counter()
        values = self._steps.advance()
        # What is carried changes with the next segment, which runs before these are looked at.
        return _Made(values, frozenset(self._steps.carried), self._steps.done, time.perf_counter() - began)
