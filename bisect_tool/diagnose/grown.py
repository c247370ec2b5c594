"""Stages over the tolerance that no fault put there: rounding that grows (``BD503``), or that crosses a step (``BD112``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.causes import GROWN, JUMP, TITLES
from bisect_tool.judging import STEPS, makes_error
from bisect_tool.metrics import kind_of_name
from bisect_tool.records import Comparison, Diagnosis, StageRow

Array = NDArray[Any]

MOST_JUMPS = 3
"""Stages that are told one by one."""

_LARGE = 4.0
"""Growth in one stage from which it is named."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A stage's result on both sides, and what it read.

    Attributes:
        expected, actual: the result in PyTorch's run and in the graph's.
        given: of the stage's first input, both sides.
        same: whether PyTorch's stage gives the graph's result on the graph's inputs; ``None``: not tried.
    """

    expected: Array
    actual: Array
    given: tuple[Array, Array] | None
    same: bool | None


def grown(
    rows: Sequence[StageRow], config: str, crossing: Callable[[StageRow], Crossing | None]
) -> tuple[Diagnosis, ...]:
    """Why stages are over the tolerance although none makes more error than rounding.

    Args:
        rows: judged stages, in causal order; no origin among them.
        config: of the pair, with local errors.
        crossing: both sides of a stage, if they are at hand.
    """
    over = [(row, row.results[config]) for row in rows if _is_over(row, config)]
    if not over or any(makes_error(row, result) for row, result in _all(rows, config)):
        return ()
    if any(result.local is None and not _hands_on(result) for _, result in over):
        return ()
    over = [(row, result) for row, result in over if result.local is not None]
    if not over:
        return ()
    if any(_comes_in(result) for _, result in over):
        return ()
    jumps = [(row, result) for row, result in over if _is_step(row)]
    found = [_jump(row, result, crossing(row)) for row, result in jumps[:MOST_JUMPS]]
    # What lies behind a jump differs by it.
    first, result = over[0]
    if not jumps or first.index < jumps[0][0].index:
        found.insert(0, _growth(first, result, rows, config))
    return tuple(found)


def _all(rows: Sequence[StageRow], config: str) -> list[tuple[StageRow, Comparison]]:
    return [(row, row.results[config]) for row in rows if config in row.results and row.role != "group"]


def _is_over(row: StageRow, config: str) -> bool:
    result = row.results.get(config)
    return result is not None and row.role != "group" and row.alias_of is None and result.judgement == "fail"


def _hands_on(result: Comparison) -> bool:
    """Whether a stage without a local error has the very error of its inputs: dropout in evaluation makes none."""
    return result.input_error is not None and math.isclose(result.input_error, result.total.rel_l2, rel_tol=1e-9)


def _comes_in(result: Comparison) -> bool:
    """Whether a stage's error may be that of inputs that no stage of the report stands for: who made it is not known."""
    return result.outside_error is not None and not result.outside_error < result.total.rel_l2 / _LARGE


def _is_step(row: StageRow) -> bool:
    return kind_of_name(row.dtype) == "integer" or row.type in STEPS


def _growth(row: StageRow, result: Comparison, rows: Sequence[StageRow], config: str) -> Diagnosis:
    assert result.local is not None
    evidence = [
        f"{row.ref} is over the tolerance with {result.total.rel_l2:.1e} relative L2 (max abs {result.total.max_abs:.1e}); "
        f"on PyTorch's inputs it makes {result.local.rel_l2:.1e} itself"
    ]
    noises = [r.noise_ratio for _, r in _all(rows, config) if r.noise_ratio is not None]
    floors = f", at most {max(noises):.2g} times its noise floor" if noises else ""
    evidence.append(f"no stage makes more error than rounding{floors}")
    steps = [(r.amplification, each) for each, r in _all(rows, config) if r.amplification is not None]
    steps = [item for item in steps if math.isfinite(item[0] or 0.0)]
    if steps:
        most, where = max(steps, key=lambda item: item[0] or 0.0)
        if most is not None and most >= _LARGE:
            evidence.append(f"it grows most in {where.ref}: {most:.2g} times what it reads")
    return Diagnosis(
        code=GROWN,
        title=TITLES[GROWN],
        evidence=tuple(evidence),
        remedy="nothing is wrong with the file: give a tolerance that this model can keep, or none (noise floors judge "
        "then), or compute differences of nearly equal numbers otherwise",
        remedy_verified=None,
        cost=None,
        origin=row.ref,
    )


def _jump(row: StageRow, result: Comparison, sides: Crossing | None) -> Diagnosis:
    count = f"{result.total.differing} of {result.total.count} results of {row.ref} ({row.type}) differ"
    error = "" if result.input_error is None else f"; what it reads differs by {result.input_error:.1e}"
    evidence = [f"{count}{error}; on the same inputs both sides give the same"]
    if sides is not None:
        evidence += list(tied(sides))
        if sides.same is not None:
            evidence.append(
                "PyTorch's own stage, given the graph's inputs, gives the graph's result"
                if sides.same
                else "PyTorch's own stage, given the graph's inputs, does not give the graph's result"
            )
    return Diagnosis(
        code=JUMP,
        title=TITLES[JUMP],
        evidence=tuple(evidence),
        remedy="no fault of the file: compare what is selected or counted rather than indices, or judge without a "
        "tolerance for this stage",
        remedy_verified=None,
        cost=None,
        origin=row.ref,
    )


def tied(sides: Crossing) -> tuple[str, ...]:
    """The first element that differs, with the numbers that were on the edge."""
    one, other = sides.expected, sides.actual
    if one.shape != other.shape or sides.given is None:
        return ()
    apart = np.argwhere(one != other)
    if not len(apart):
        return ()
    place = tuple(int(n) for n in apart[0])
    ours, theirs = sides.given
    head = f"the first at {place}" if place else "it"
    if ours.shape == one.shape and not _are_indices(one, ours, place):
        return (
            f"{head}: {_n(ours[place])} gives {_n(one[place])} in PyTorch, {_n(theirs[place])} gives {_n(other[place])} "
            "in the graph",
        )
    axis = _axis(one.shape, ours.shape)
    if axis is None or one.dtype.kind not in "iu":
        return ()
    row = tuple(place[:axis]) + (slice(None),) + tuple(place[axis + (one.ndim == ours.ndim) :])
    values, size = ours[row], ours.shape[axis]
    a, b = int(one[place]), int(other[place])
    if not (0 <= a < size and 0 <= b < size):
        return ()
    return (f"{head}: index {a} in PyTorch, {b} in the graph; PyTorch has {_n(values[a])} and {_n(values[b])} there",)


def _are_indices(result: Array, given: Array, place: tuple[int, ...]) -> bool:
    """A sort of a whole axis has its input's shape, and its indices are no rounded values."""
    whole = result.dtype.kind in "iu" and given.dtype.kind == "f"
    return whole and abs(float(result[place]) - float(given[place])) > 1


def _axis(result: tuple[int, ...], given: tuple[int, ...]) -> int | None:
    """The axis that indices go along: it is gone, or of another length."""
    if len(result) == len(given):
        other = [axis for axis, (a, b) in enumerate(zip(result, given, strict=True)) if a != b]
        return other[0] if len(other) == 1 else (len(given) - 1 if not other else None)
    if len(result) == len(given) - 1:
        fits = [axis for axis in range(len(given)) if given[:axis] + given[axis + 1 :] == result]
        return fits[-1] if fits else None
    return None


def _n(value: Any) -> str:
    return f"{float(value):.8g}" if np.asarray(value).dtype.kind == "f" else str(value)
