"""Tries what was proposed for an origin, and says which change mends it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Edit, Widened
from bisect_tool.diagnose.otherwise import Change
from bisect_tool.diagnose.rules.facts import Clue
from bisect_tool.diagnose.trial import Fit, Trial
from bisect_tool.metrics import relative_error

Array = NDArray[Any]

MAX_TRIALS = 160
"""Runs for one origin at most."""

MAX_SECONDS = 10.0
"""Time for one origin; what runs then is finished."""

CONTRIBUTES = 3.0
"""A change that leaves less than this part of the error, but not only rounding, is told as one of several causes."""

MOST_LEFT = 0.3
"""Relative L2 above which a change mends nothing, whatever the floor is."""

MAX_HINTS = 6
"""Numbers of PyTorch's calls that are tried as they are for one number of the graph."""

_STEPS = 5
_NEAR = 0.02


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial that was run.

    Attributes:
        trial: what was changed.
        error: relative L2 of the stage's local error with the change; ``None``: ONNX Runtime did not run it.
        mends: whether that is rounding.
    """

    trial: Trial
    error: float | None
    mends: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What trying showed for one origin.

    Attributes:
        before: relative L2 of the local error as the graph is.
        cause: the trial that mends it; ``None`` if none does.
        partly: the trial that removed most of the error, where none mends it; ``None`` if that is little.
        tried: all of them, in order.
        complete: every proposal was tried; else time or number of runs ended it, or the cause was found.
        otherwise: where nothing mends it, the change of PyTorch's own call that gives ONNX's value, and how far from it.
        clues: what rules saw, for and against causes that have a sign of their own.
        calls: keys of PyTorch's calls in the stage.
        cost: of the change that mends it, in words, as measured; ``None``: not measured.
        shapes: the result's as the graph is, and PyTorch's, where they are of different sizes.
    """

    before: float
    cause: Tried | None
    partly: Tried | None
    tried: tuple[Tried, ...]
    complete: bool
    otherwise: tuple[Change, float] | None = None
    clues: tuple[Clue, ...] = ()
    calls: frozenset[int] = frozenset()
    cost: str | None = None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None


def try_all(
    proposals: Iterable[Trial | Fit],
    run: Callable[[Edit | Widened | None], Array | None],
    expected: Array,
    right: Callable[[Array], bool],
    seconds: float = MAX_SECONDS,
) -> Outcome:
    """Runs proposals one after the other until one mends the stage.

    Args:
        proposals: the most convincing first.
        run: the stage's result on PyTorch's inputs with an edit, or without one; ``None`` where it does not run.
        expected: PyTorch's result.
        right: whether a result in the form of ``expected`` differs from it by rounding only.
        seconds: to spend at most.
    """
    end = time.perf_counter() + seconds
    tried: list[Tried] = []

    def result_of(edit: Edit | Widened | None) -> Array | None:
        made = run(edit)
        return None if made is None or made.size != expected.size else made.reshape(expected.shape)

    def attempt(trial: Trial) -> Tried:
        made = result_of(trial.edit)
        error = None if made is None else relative_error(expected, made)
        # A floor as high as the values themselves would call anything right.
        found = Tried(trial, error, error is not None and made is not None and error <= MOST_LEFT and right(made))
        tried.append(found)
        return found

    raw = run(None)
    shapes = None if raw is None or raw.size == expected.size else (raw.shape, expected.shape)
    original = None if raw is None or shapes is not None else raw.reshape(expected.shape)
    before = math.inf if original is None else relative_error(expected, original)
    if original is not None and before <= MOST_LEFT and right(original):
        # Nothing of it is to be mended, so no change would prove anything.
        return Outcome(before, None, None, (), True, shapes=shapes)
    complete = True
    # Numbers that mend and that no call of PyTorch's has: which of them is meant, the others tell.
    fitted: list[tuple[int, Tried]] = []
    for proposal in proposals:
        if fitted and not isinstance(proposal, Fit):
            continue
        if len(tried) >= MAX_TRIALS or time.perf_counter() > end:
            complete = False
            break
        for value, found in _attempts(proposal, attempt, result_of, expected, original):
            if found.mends and value is None:
                return Outcome(before, found, None, tuple(tried), False, shapes=shapes)
            if found.mends and value is not None:
                fitted.append((_digits(value), found))
    if fitted:
        best_fit = min(fitted, key=lambda each: each[0])[1]
        return Outcome(before, best_fit, None, tuple(tried), False, shapes=shapes)
    measured = [each for each in tried if each.error is not None and math.isfinite(each.error)]
    best = min(measured, key=lambda each: each.error or 0.0, default=None)
    enough = before if math.isfinite(before) else 1.0
    partly = best if best is not None and best.error is not None and best.error * CONTRIBUTES <= enough else None
    return Outcome(before, None, partly, tuple(tried), complete, shapes=shapes)


def _attempts(
    proposal: Trial | Fit,
    attempt: Callable[[Trial], Tried],
    result_of: Callable[[Edit | Widened | None], Array | None],
    expected: Array,
    original: Array | None,
) -> Iterator[tuple[float | None, Tried]]:
    """Trials with what came of them; a number that was fitted beside its trial."""
    if isinstance(proposal, Trial):
        yield None, attempt(proposal)
        return
    # What PyTorch's calls have needs no search, and may be too far or too near for one to find it.
    for text, number in proposal.hints[:MAX_HINTS]:
        if abs(number - proposal.start) > 1e-6 * abs(number):
            yield None, attempt(proposal.trial(number, text))
    fitted = None if original is None else _fit(proposal, result_of, expected, original)
    if fitted is None:
        return
    # A number that PyTorch's call has is the value; one that was fitted is only near it.
    for text, number in proposal.hints[MAX_HINTS:]:
        if abs(fitted - number) <= _NEAR * max(abs(number), abs(fitted)):
            yield None, attempt(proposal.trial(number, text))
    # Two numbers may make up for each other, as in n / (n - 1); people write short ones.
    short = _shortest(fitted)
    if short != fitted:
        tried = attempt(proposal.trial(short, None))
        yield short, tried
        if tried.mends:
            return
    yield fitted, attempt(proposal.trial(fitted, None))


def _shortest(value: float) -> float:
    """The number with the fewest digits within a part in 10⁵."""
    for digits in range(1, 8):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= 1e-5 * abs(value):
            return short
    return value


def _digits(value: float) -> int:
    """Significant digits of a number as short as single precision allows."""
    return len(f"{value:.7g}".partition("e")[0].replace(".", "").replace("-", "").strip("0"))


def _fit(
    fit: Fit, result_of: Callable[[Edit | Widened | None], Array | None], expected: Array, original: Array
) -> float | None:
    """The number that brings the result nearest to what is expected: Gauss-Newton with a secant for the derivative."""
    wanted = expected.astype(np.float64)
    value, residual = fit.start, original.astype(np.float64) - wanted
    if not np.isfinite(residual).all() or not residual.any():
        return None
    step = 0.05 * abs(value) or 0.05
    best, least = value, float(np.linalg.norm(residual))
    for _ in range(_STEPS):
        made = result_of(fit.trial(value + step, None).edit)
        if made is None:
            break
        other = made.astype(np.float64) - wanted
        slope = (other - residual) / step
        square = float((slope * slope).sum())
        if not math.isfinite(square) or square == 0:
            break
        size = float(np.linalg.norm(other))
        if size < least:
            best, least = value + step, size
        # From the better of both points.
        value, residual = (value + step, other) if size < float(np.linalg.norm(residual)) else (value, residual)
        move = -float((slope * residual).sum()) / square
        if abs(move) <= 1e-7 * max(abs(value), 1e-30):
            best = value + move
            break
        step = move
    else:
        best = value + step
    return best if best != fit.start and math.isfinite(best) else None
