"""Outputs as their users read them: do both sides choose the same classes?

An error of 1e-3 in a score says nothing to whoever takes the best class; that another class won does. Along the axis of the
classes the best one of both sides is compared, and the best few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import kind_of
from bisect_tool.records import Agreement

Array = NDArray[Any]

DEFAULT_K = 5
"""Best classes that are compared where nobody says how many."""

_CHUNK = 1 << 20
"""Numbers that are looked at at a time."""


def usual_axis(shape: Sequence[int]) -> int | None:
    """The axis that holds the classes by custom: the last one, but channels of images and volumes come second.

    ``None`` where there is nothing to choose from.
    """
    if not shape:
        return None
    axis = 1 if len(shape) in (4, 5) else len(shape) - 1
    return axis if shape[axis] > 1 else None


def agreement(expected: Array, actual: Array, k: int = DEFAULT_K, axis: int | None = None) -> Agreement | None:
    """How far two outputs choose the same classes.

    Args:
        expected, actual: of one shape, of any dtype; scores of classes, or whole numbers that are classes themselves.
        k: how many of the best classes are compared.
        axis: of the classes; ``None``: the usual one.

    Returns:
        ``None`` where there is nothing to compare: other shapes, no elements, one class only, or complex numbers.
    """
    if expected.shape != actual.shape or not expected.size:
        return None
    kind = kind_of(expected.dtype)
    if kind == "integer" and axis is None:
        return Agreement(None, 0, expected.size, float(np.mean(expected == actual)), 0, None, None)
    if kind not in ("float", "integer") or kind_of(actual.dtype) not in ("float", "integer"):
        return None
    axis = usual_axis(expected.shape) if axis is None else axis % expected.ndim
    if axis is None or expected.shape[axis] < 2:
        return None
    classes = expected.shape[axis]
    sides = [np.moveaxis(side, axis, -1).reshape(-1, classes) for side in (expected, actual)]
    positions, few = len(sides[0]), k < classes
    same, common, lead = 0, 0.0, 0.0
    step = max(_CHUNK // classes, 1)
    for start in range(0, positions, step):
        one, other = (side[start : start + step].astype(np.float64) for side in sides)
        agree, widest = _best(one, other)
        same += int(np.count_nonzero(agree))
        lead = max(lead, widest)
        if few:
            common += float(np.sum(_in_common(one, other, k)))
    return Agreement(axis, classes, positions, same / positions, k, common / positions if few else None, lead)


def _best(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> tuple[NDArray[np.bool_], float]:
    """Where both sides choose the same class, and the widest lead of a class that was not chosen again."""
    broken = np.any(np.isnan(expected) != np.isnan(actual), axis=1)
    # A NaN on both sides is no score that could win.
    one, other = (np.where(np.isnan(side), -np.inf, side) for side in (expected, actual))
    first, second = one.argmax(axis=1), other.argmax(axis=1)
    agree = (first == second) & ~broken
    rows = np.flatnonzero(~agree)
    if not rows.size:
        return agree, 0.0
    with np.errstate(invalid="ignore"):
        leads = one[rows, first[rows]] - one[rows, second[rows]]
    # Two infinities are equally good.
    return agree, float(np.max(np.where(np.isnan(leads), 0.0, leads)))


def _in_common(expected: NDArray[np.float64], actual: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Share of the ``k`` best classes that both sides have in common, by position."""
    chosen = np.zeros(expected.shape, dtype=bool)
    again = np.zeros(expected.shape, dtype=bool)
    for side, marks in ((expected, chosen), (actual, again)):
        scores = np.where(np.isnan(side), -np.inf, side)
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        np.put_along_axis(marks, best, True, axis=1)
    return np.asarray((chosen & again).sum(axis=1) / k)
