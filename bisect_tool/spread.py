"""Where in a tensor the difference lies: everywhere, or in one channel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import integer_distances, kind_of, relative_limit
from bisect_tool.records import ErrorMetrics, Spread, Tolerance

Array = NDArray[Any]

CONCENTRATED = 0.9
"""Share of the squared error in one index of an axis, from which on that index is named."""

LARGEST = 1 << 22
"""Elements up to which it is looked at; a second pass over larger tensors costs more than it tells."""

_BLOCK = 1 << 18


def spread_of(expected: Array, actual: Array, metrics: ErrorMetrics, tolerance: Tolerance) -> Spread | None:
    """Where two tensors differ; ``None`` where values can't be compared, are not finite, or are too many."""
    unfit = metrics.problem is not None or metrics.nonfinite_expected or metrics.nonfinite_actual
    if unfit or not 0 < expected.size <= LARGEST or kind_of(expected.dtype) not in ("float", "integer"):
        return None
    limit, rtol = _limit(expected, tolerance)
    whole = kind_of(expected.dtype) == kind_of(actual.dtype) == "integer"
    beyond = 0
    sums = [np.zeros(size) for size in expected.shape]
    for start in _blocks(expected.shape):
        wanted = np.asarray(expected[start], np.float64)
        if whole:
            difference = integer_distances(np.asarray(expected[start]), np.asarray(actual[start]))
        else:
            difference = np.abs(np.asarray(actual[start], np.float64) - wanted)
        beyond += int(np.count_nonzero(difference > limit + rtol * np.abs(wanted)))
        difference = difference * difference  # not in place: of a scalar numpy gives no array
        offset = len(start)
        for axis, place in enumerate(start):
            sums[axis][place] += difference.sum()
        for axis in range(difference.ndim):
            others = tuple(other for other in range(difference.ndim) if other != axis)
            sums[offset + axis] += difference.sum(axis=others)
    return Spread(limit if not rtol else None, beyond, *_concentration(sums))


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Indices of leading axes that leave blocks of a bounded size, unless there would be very many."""
    lead = 0
    while lead < len(shape) and math.prod(shape[lead:]) > _BLOCK and math.prod(shape[: lead + 1]) <= 1024:
        lead += 1
    yield from np.ndindex(*shape[:lead])


def _limit(expected: Array, tolerance: Tolerance) -> tuple[float, float]:
    if tolerance.max_abs is not None:
        return tolerance.max_abs, 0.0
    if tolerance.atol is not None:
        return tolerance.atol, tolerance.rtol or 0.0
    if kind_of(expected.dtype) == "integer":
        return 0.0, 0.0
    flat = expected.astype(np.float64).ravel()
    return relative_limit(expected.dtype.name, tolerance) * math.sqrt(float(flat.dot(flat)) / flat.size), 0.0


def _concentration(sums: list[NDArray[np.float64]]) -> tuple[int | None, int | None, float | None]:
    """The axis with the smallest part that holds nearly all: of equal shares the longest axis says most."""
    found = []
    for axis, squares in enumerate(sums):
        total = float(squares.sum())
        if squares.size > 1 and 0 < total < math.inf:
            share = float(squares.max()) / total
            if share >= CONCENTRATED:
                found.append((squares.size, axis, int(squares.argmax()), share))
    if not found:
        return None, None, None
    _, axis, index, share = max(found)
    return axis, index, share
