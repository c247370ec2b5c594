"""Segments of a graph that run in a thread, ahead of whoever takes what they make.

The graph's own run needs nothing of PyTorch's. Its segments are computed outside of the interpreter's lock, while PyTorch's
side is recorded inside of it, so that the two share the cores instead of waiting for each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")


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
class _Made(Generic[T]):
    values: Mapping[str, tuple[Array, T]]
    carried: Set[str]
    last: bool
    seconds: float


class Ahead(Generic[T]):
    """Segments, as seen by whoever takes them one after the other.

    Args:
        steps: the segments; nobody else runs them from now on.
        look: what is to be known of each value; it is called where the segment runs.
        most: so many of them run in a thread before they are asked for; 0: each is run when it is, and there are never two
            in memory.

    Attributes:
        done: the last segment was taken.
        carried: values made so far, by the segments that were taken, that later ones read.
        seconds: that the segments which were taken have run.
    """

    def __init__(self, steps: Steps, look: Callable[[Array], T], *, most: int):
        self._steps = steps
        self._look = look
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segments") if most else None
        self._coming: deque[Future[_Made[T] | None]] = deque()
        self._failed = False
        self.done = steps.done
        self.carried: Set[str] = frozenset(steps.carried)
        self.seconds = 0.0
        for _ in range(most):
            self._start()

    @property
    def ready(self) -> bool:
        """Whether there is nothing to wait for: the next segment has run, or it runs when it is asked for."""
        return not self._coming or self._coming[0].done()

    def advance(self) -> Mapping[str, tuple[Array, T]]:
        """What the next segment has made, and what is known of it.

        Raises:
            InconclusiveError: it did not run. No other one will.
        """
        made = self._coming.popleft().result() if self._coming else self._run()
        assert made is not None
        self.done, self.carried = made.last, made.carried
        self.seconds += made.seconds
        self._start()
        return made.values

    def close(self) -> None:
        """Ends the thread, when the segment that it is at is finished."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()

    def _start(self) -> None:
        if self._pool is not None and not self.done:
            self._coming.append(self._pool.submit(self._run))

    def _run(self) -> _Made[T] | None:
        """Runs the next segment, if there is one."""
        if self._failed or self._steps.done:
            return None
        began = time.perf_counter()
        self._failed = True
        arrays = self._steps.advance()
        values = {name: (array, self._look(array)) for name, array in arrays.items() if array is not None}
        self._failed = False
        # What is carried changes with the next segment, which runs before these are looked at.
        return _Made(values, frozenset(self._steps.carried), self._steps.done, time.perf_counter() - began)
