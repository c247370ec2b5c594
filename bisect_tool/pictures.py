"""What the error of a tensor looks like, small enough to be kept in a report: a map of cells and a histogram.

A map shows at a glance what numbers hide: error along the border (padding), on a grid (resizing), in one row of tokens.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import kind_of
from bisect_tool.records import Comparison, ErrorMetrics, ErrorPicture, StageRef, StageRow, Verdict
from bisect_tool.tolerances import DEFAULT_REL_L2

Array = NDArray[Any]

CELLS = 64
"""Rows and columns that a map has at most, and bins of a histogram."""

DECADES = 8.0
"""Powers of ten below the largest difference that map and histogram tell apart; what is smaller counts as that small."""

TOP = 254
"""Byte of the largest value; 255 stands for what is not finite."""

LEAST, LARGEST = 16, 1 << 22
"""Elements that a tensor must have, and may have: fewer show nothing, and more cost a pass each."""

KEPT = 4
"""Pictures in a report."""

_EARLY = 4
_STEP = 1.5
_SMALL = 0.01
_BLOCK = 1 << 18


def picture_of(expected: Array, actual: Array, of: Literal["local", "total"]) -> ErrorPicture | None:
    """The picture of ``actual - expected``; ``None`` where there is nothing to show, or too much to look at."""
    if expected.shape != actual.shape or not LEAST <= expected.size <= LARGEST:
        return None
    if kind_of(expected.dtype) not in ("float", "integer") or kind_of(actual.dtype) != kind_of(expected.dtype):
        return None
    reference, difference = _difference(expected, actual)
    finite = np.isfinite(difference)
    high = float(difference[finite].max(initial=0.0))
    axes = tuple(axis for axis, size in enumerate(expected.shape) if size > 1)[-2:]
    cells = _cells(difference, axes, np.maximum)
    means = _means(reference, axes)
    shown = means[np.isfinite(means)]
    low, top = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    return ErrorPicture(
        of=of,
        axes=axes,
        rows=cells.shape[0],
        columns=cells.shape[1],
        high=high,
        error=_packed(_error_bytes(cells, high)),
        expected_low=low,
        expected_high=top,
        expected=_packed(_linear_bytes(means, low, top)),
        histogram=_histogram(difference, high),
        equal=int(np.count_nonzero(difference == 0)),
        nonfinite=int(difference.size - np.count_nonzero(finite)),
    )


def error_at(byte: int, high: float) -> float:
    """The difference that a byte of the map stands for."""
    return 0.0 if byte == 0 else high * 10 ** (-DECADES * (TOP - byte) / (TOP - 1)) if byte <= TOP else math.inf


def bin_edge(number: int, high: float) -> float:
    """The lower edge of a bin of the histogram; that of bin ``CELLS`` is the largest difference."""
    return high * 10 ** (-DECADES * (CELLS - number) / CELLS)


def unpacked(text: str, rows: int, columns: int) -> NDArray[np.uint8] | None:
    """The bytes of a map; ``None`` if the text is not one of this size, as in a report that was edited."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return np.frombuffer(data, np.uint8).reshape(rows, columns) if len(data) == rows * columns else None


def _difference(expected: Array, actual: Array) -> tuple[Array, Array]:
    """The reference and the absolute difference, as floats; infinite where only one side is finite, or NaN."""
    wide = np.float64 if expected.dtype.itemsize >= 8 else np.float32
    reference: NDArray[Any] = np.asarray(expected, wide)
    other: NDArray[Any] = np.asarray(actual, wide)
    with np.errstate(all="ignore"):
        difference: NDArray[Any] = np.abs(np.subtract(other, reference))
    odd = ~np.isfinite(difference)
    if odd.any():
        same = (other == reference) | (np.isnan(other) & np.isnan(reference))
        difference = np.where(odd, np.where(same, 0.0, np.inf), difference)
    return reference, difference


def _cells(values: Array, axes: tuple[int, ...], reduce: np.ufunc) -> Array:
    """Two axes, all others reduced; an axis that is longer than a map has cells is reduced in blocks."""
    others = tuple(axis for axis in range(values.ndim) if axis not in axes)
    flat = np.asarray(reduce.reduce(values, axis=others) if others else values)
    flat = flat.reshape((1,) * (2 - flat.ndim) + flat.shape)
    for axis in (0, 1):
        starts = _starts(flat.shape[axis])
        flat = flat if starts is None else reduce.reduceat(flat, starts, axis=axis)
    return flat


def _starts(size: int) -> NDArray[np.int64] | None:
    return None if size <= CELLS else np.arange(CELLS, dtype=np.int64) * size // CELLS


def _means(values: Array, axes: tuple[int, ...]) -> Array:
    with np.errstate(all="ignore"):
        sums = _cells(values, axes, np.add)
        # Blocks of one axis may differ in length by one.
        counts = _cells(np.ones([size if axis in axes else 1 for axis, size in enumerate(values.shape)]), axes, np.add)
        others = math.prod(size for axis, size in enumerate(values.shape) if axis not in axes)
        means: NDArray[Any] = np.divide(sums, counts * others)
        return means


def _error_bytes(cells: Array, high: float) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        steps = (TOP - 1) * (1 + np.log10(np.asarray(cells, np.float64) / (high or 1.0)) / DECADES)
    # A bound for all that is in a cell; the logarithm of a step itself may lie a little above it.
    place = 1 + np.ceil(steps - 1e-6)
    place = np.where(cells == 0, 0, np.clip(np.nan_to_num(place, nan=1.0), 1, TOP))
    return np.where(np.isfinite(cells), place, TOP + 1).astype(np.uint8)


def _linear_bytes(values: Array, low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        place = np.rint(TOP * ((values - low) / (high - low))) if high > low else np.full(values.shape, TOP // 2)
    return np.where(np.isfinite(values), np.nan_to_num(place), TOP + 1).astype(np.uint8)


def _packed(data: NDArray[np.uint8]) -> str:
    return base64.b64encode(data.tobytes()).decode("ascii")


def _histogram(difference: Array, high: float) -> tuple[int, ...]:
    """Elements by the logarithm of their difference; those without one are not counted."""
    counts = np.zeros(CELLS, np.int64)
    flat = difference.ravel()
    for start in range(0, flat.size if high > 0 else 0, _BLOCK):
        block = flat[start : start + _BLOCK]
        block = block[(block > 0) & np.isfinite(block)].astype(np.float64)
        place = np.floor(CELLS * (1 + np.log10(block / high) / DECADES))
        counts += np.bincount(np.clip(place, 0, CELLS - 1).astype(np.int64), minlength=CELLS)
    return tuple(int(count) for count in counts)


class Camera:
    """Chooses, while tensors come and go, of which a picture is kept: of each run the first ones, and then ever worse ones.

    How many there will be is not known before the end, so that a few too many are taken; :func:`with_few` drops them.
    """

    def __init__(self) -> None:
        self._taken: Counter[tuple[str, str]] = Counter()
        self._worst: dict[tuple[str, str], float] = {}

    def take(
        self, run: str, of: Literal["local", "total"], expected: Array, actual: Array, metrics: ErrorMetrics
    ) -> ErrorPicture | None:
        """A picture, or ``None`` where enough like it were taken, or rounding is all that it would show."""
        limit = DEFAULT_REL_L2.get(expected.dtype.name, 0.0)
        error = _badness(metrics.rel_l2)
        if metrics.problem is not None or not error > _SMALL * limit:
            return None
        known = (run, of)
        if self._taken[known] >= _EARLY and not error > _STEP * self._worst[known]:
            return None
        picture = picture_of(expected, actual, of)
        if picture is not None:
            self._taken[known] += 1
            self._worst[known] = max(error, self._worst.get(known, 0.0))
        return picture


def with_few(rows: Sequence[StageRow], verdict: Verdict, limit: int = KEPT) -> list[StageRow]:
    """The rows with the pictures that are worth keeping: of the first diverging stage, of origins, of what is worst."""
    pictured = {(row.ref, name) for row in rows for name, result in row.results.items() if result.picture is not None}
    wanted = dict.fromkeys(
        found for found in _wanted(rows, verdict) if found in pictured
    )  # a dictionary, for it keeps the order
    kept = set(list(wanted)[:limit])

    def pruned(row: StageRow) -> StageRow:
        if not any(result.picture is not None and (row.ref, name) not in kept for name, result in row.results.items()):
            return row
        results = {
            name: result if (row.ref, name) in kept else replace(result, picture=None)
            for name, result in row.results.items()
        }
        return replace(row, results=results)

    return [pruned(row) for row in rows]


def _wanted(rows: Sequence[StageRow], verdict: Verdict) -> Iterable[tuple[StageRef, str]]:
    """Stages and configurations, what matters most first."""
    first = verdict.first_over_tolerance
    if first is not None:
        yield first.ref, first.config
    strongest = max(verdict.origins, key=lambda origin: _badness(origin.local_rel_l2), default=None)
    if strongest is not None:
        yield strongest.ref, strongest.config
    judged = [row for row in rows if row.role != "group"]
    for name in dict.fromkeys(name for row in judged for name in row.results):
        yield from _worst(judged, name, lambda result: result.judgement == "fail")
    for origin in verdict.origins:
        yield origin.ref, origin.config


def _worst(
    rows: Sequence[StageRow], config: str, wanted: Callable[[Comparison], bool]
) -> Iterable[tuple[StageRef, str]]:
    """The stage with the largest total error of those that have a picture."""
    results = [(row.ref, row.results[config]) for row in rows if config in row.results]
    shown = [(ref, result) for ref, result in results if result.picture is not None and wanted(result)]
    if shown:
        yield max(shown, key=lambda item: _badness(item[1].total.rel_l2))[0], config


def _badness(error: float) -> float:
    return math.inf if math.isnan(error) else error
