"""What is counted and measured of two columns or arrays, piece by piece: a :class:`Tally`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.data.records import Cell, ItemResult, Limits, SideStats

Array = NDArray[Any]


@dataclass
class _Side:
    """Sums over one side's pieces; mean and squares are merged piece by piece, so that large means cost no digits."""

    count: int = 0
    missing: int = 0
    zeros: int = 0
    infinite: int = 0
    numbers: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    dtypes: list[str] = field(default_factory=list)

    def add(self, values: Array, missing: Array, dtype: str) -> None:
        self.count += values.size
        self.missing += int(missing.sum())
        if dtype not in self.dtypes:
            self.dtypes.append(dtype)
        if values.dtype == object:
            return
        if values.dtype.kind not in "fiubc":  # bfloat16 and its like
            values = values.astype(np.float32)
        self.zeros += int(np.count_nonzero(values == 0))
        finite = np.isfinite(values)
        self.infinite += int(values.size - np.count_nonzero(finite) - np.count_nonzero(missing & ~finite))
        numbers = values[finite & ~missing]
        if not numbers.size:
            return
        if numbers.dtype.kind == "c":
            numbers = np.abs(numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            least, greatest = float(numbers.min()), float(numbers.max())
            self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)
            wide = numbers.astype(np.float64)
            mean = float(wide.mean())
            squares = float(np.square(wide - mean).sum())
            total, shift = self.numbers + wide.size, mean - self.mean
            self.squares += squares + shift * shift * self.numbers * wide.size / total
            self.mean += shift * wide.size / total
            self.numbers = total

    def stats(self, shape: tuple[int, ...]) -> SideStats:
        dtype = next((d for d in self.dtypes if d == "text"), None) or "/".join(self.dtypes) or "none"
        if not self.numbers:
            return SideStats(dtype, shape, self.count, self.missing, self.zeros, self.infinite, None, None, None, None)
        return SideStats(
            dtype,
            shape,
            self.count,
            self.missing,
            self.zeros,
            self.infinite,
            self.mean,
            math.sqrt(max(self.squares, 0.0) / self.numbers),
            self.least,
            self.greatest,
        )


@dataclass
class Tally:
    """Counts and differences of one column or array, piece by piece."""

    name: str
    limits: Limits
    expected: _Side = field(default_factory=_Side)
    actual: _Side = field(default_factory=_Side)
    compared: int = 0
    differing: int = 0
    beyond: int = 0
    missing: list[int] = field(default_factory=lambda: [0, 0])
    zero: list[int] = field(default_factory=lambda: [0, 0])
    measured: int = 0
    total: float = 0.0
    worst: float = -1.0
    worst_at: tuple[int, str, str] | None = None
    relative: float = 0.0
    steps: float | None = None
    first_at: tuple[int, str, str] | None = None

    def add(self, expected: Array, actual: Array, at: int) -> None:
        """A piece of both sides, flat and of one length; ``at``: the place of its first element."""
        a, b = _plain(expected), _plain(actual)
        a_missing, b_missing = missing_of(a), missing_of(b)
        self.alone(0, a, a_missing)
        self.alone(1, b, b_missing)
        self.compared += a.size
        texts = a.dtype == object or b.dtype == object
        a_numbers, b_numbers = (numbers_of(a), numbers_of(b)) if texts else (a, b)
        with np.errstate(all="ignore"):
            same = a_numbers == b_numbers
            if texts:
                same |= _texts(a) == _texts(b)
        either = a_missing | b_missing
        differs = ~np.asarray(same, np.bool_) & ~(a_missing & b_missing) | (a_missing != b_missing)
        self.missing[0] += int(np.count_nonzero(a_missing & ~b_missing))
        self.missing[1] += int(np.count_nonzero(b_missing & ~a_missing))
        finite = np.isfinite(a_numbers) & np.isfinite(b_numbers) & ~either
        self.measured += int(np.count_nonzero(finite))
        places = np.flatnonzero(differs)
        if not places.size:
            if self.steps is None and _both_float(a, b):
                self.steps = 0.0
            return
        self.differing += places.size
        self._values(a, b, a_numbers[places], b_numbers[places], finite[places], places, at)

    def alone(self, side: int, values: Array, missing: Array | None = None) -> None:
        """A piece that only one side has."""
        values = _plain(values)
        missing = missing_of(values) if missing is None else missing
        into = (self.expected, self.actual)[side]
        dtype = "text" if values.dtype == object and not bool(missing.all()) else short_dtype(values.dtype)
        if values.dtype == object:
            if bool(missing.all()):
                into.add(values, missing, "empty")
                return
            # Numbers among texts still have zeros and a mean.
            into.add(numbers_of(values), missing | np.isnan(numbers_of(values)), dtype)
            into.missing += int(missing.sum()) - int((missing | np.isnan(numbers_of(values))).sum())
            return
        into.add(values, missing, dtype)

    def _values(self, a: Array, b: Array, x: Array, y: Array, finite: Array, places: Array, at: int) -> None:
        """What only differing cells are asked: ``x`` and ``y`` are their numbers, NaN for texts."""
        self.zero[0] += int(np.count_nonzero((x == 0) & (y != 0) & ~np.isnan(y)))
        self.zero[1] += int(np.count_nonzero((y == 0) & (x != 0) & ~np.isnan(x)))
        distance = np.full(places.size, np.inf)
        wide = (
            np.longdouble
            if _needs_wide(x, y)
            else (np.complex128 if "c" in (x.dtype.kind, y.dtype.kind) else np.float64)
        )
        p, q = x[finite].astype(wide), y[finite].astype(wide)
        with np.errstate(all="ignore"):
            gap: Array = np.abs(np.subtract(p, q))
            larger = np.maximum(np.abs(p), np.abs(q))
            distance[finite] = gap.astype(np.float64)
            self.total += float(gap.sum())
            if gap.size:
                self.relative = max(self.relative, float(np.max(gap / np.where(larger == 0, 1, larger))))
                if _both_float(a, b):
                    steps = float(np.max(gap / _step(larger, _coarser(a.dtype, b.dtype))))
                    self.steps = max(self.steps or 0.0, steps)
            allowed = np.zeros(places.size)
            if self.limits.max_abs is not None:
                allowed[finite] = self.limits.max_abs
            elif self.limits.atol is not None:
                allowed[finite] = self.limits.atol + (self.limits.rtol or 0.0) * np.abs(p).astype(np.float64)
        beyond = np.ones(places.size, np.bool_) if self.limits.exact else ~(finite & (distance <= allowed))
        self.beyond += int(np.count_nonzero(beyond))
        if self.first_at is None and beyond.any():
            self.first_at = _at(a, b, int(places[np.argmax(beyond)]), at)
        if finite.any():
            greatest = int(np.argmax(np.where(finite, distance, -1.0)))
            if distance[greatest] > self.worst:
                self.worst = float(distance[greatest])
                self.worst_at = _at(a, b, int(places[greatest]), at)

    def result(
        self, shapes: tuple[tuple[int, ...], tuple[int, ...]], line: int | None = None, note: str | None = None
    ) -> ItemResult:
        """What was found. ``line``: that of the first row, where rows are lines."""

        def cell(found: tuple[int, str, str] | None) -> Cell | None:
            if found is None:
                return None
            place, expected, actual = found
            index = tuple(int(i) for i in np.unravel_index(place, shapes[0])) if shapes[0] else ()
            return Cell(self.name, index, None if line is None else place + line, expected, actual)

        numeric = self.measured > 0
        return ItemResult(
            name=self.name,
            expected=self.expected.stats(shapes[0]),
            actual=self.actual.stats(shapes[1]),
            compared=self.compared,
            differing=self.differing,
            beyond=self.beyond,
            only_expected_missing=self.missing[0],
            only_actual_missing=self.missing[1],
            only_expected_zero=self.zero[0],
            only_actual_zero=self.zero[1],
            max_abs=max(self.worst, 0.0) if numeric else None,
            mean_abs=self.total / self.measured if numeric else None,
            max_rel=self.relative if numeric else None,
            max_ulp=self.steps if numeric else None,
            first=cell(self.first_at),
            worst=cell(self.worst_at),
            note=note,
        )


def short_dtype(dtype: np.dtype[Any]) -> str:
    """``float32``; ``text`` for objects."""
    return "text" if dtype.kind in "OUS" else str(dtype.name)


def missing_of(values: Array) -> Array:
    """Where nothing, or NaN, stands."""
    if values.dtype == object:
        return np.fromiter((v is None or v != v for v in values), np.bool_, values.size)
    if values.dtype.kind == "c" or _is_float(values.dtype):
        return np.asarray(np.isnan(values), np.bool_)
    return np.zeros(values.shape, np.bool_)


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Also bfloat16 and its like, which are no floats to numpy."""
    return "float" in dtype.name


def _both_float(a: Array, b: Array) -> bool:
    return _is_float(a.dtype) and _is_float(b.dtype)


def _plain(values: Array) -> Array:
    """Flat; texts as objects; dtypes that numpy itself lacks as float32, booleans as they are."""
    values = values.reshape(-1)
    return values.astype(object) if values.dtype.kind in "USMm" else values


def numbers_of(values: Array) -> Array:
    """Each value as a float, NaN where it is none."""
    if values.dtype != object:
        return values
    return np.fromiter((_number(value) for value in values), np.float64, values.size)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _texts(values: Array) -> Array:
    return values if values.dtype == object else values.astype(object)


def _needs_wide(x: Array, y: Array) -> bool:
    """Integers of 64 bits have more digits than float64."""
    return any(v.dtype.kind in "iu" and v.dtype.itemsize == 8 for v in (x, y)) and "c" not in (
        x.dtype.kind,
        y.dtype.kind,
    )


def _coarser(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    return max((a, b), key=lambda dtype: float(ml_dtypes.finfo(dtype).eps))


def _step(magnitude: Array, dtype: np.dtype[Any]) -> Array:
    """Distance to the next number of the dtype."""
    info = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(magnitude.astype(np.float64))
    smallest = float(info.smallest_subnormal)
    least = smallest or float(info.tiny) * float(info.eps)
    return np.asarray(np.maximum(np.ldexp(float(info.eps), exponent - 1), least))


def _at(a: Array, b: Array, place: int, at: int) -> tuple[int, str, str]:
    return place + at, value_text(a[place]), value_text(b[place])


def value_text(value: Any) -> str:
    """A value with all its digits."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, (float, np.floating)):
        return "missing" if math.isnan(value) else str(value)
    return str(value)
