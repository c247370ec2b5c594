"""Two arrays → :class:`ErrorMetrics`, in one chunked pass.

The arrays are read once, in chunks that fit a core's cache, so that the cost is that of reading memory; sums over chunks
are kept in float64. Order of judgement: shape, dtype kind, non-finite positions, values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.records import ErrorMetrics, Judgement, Tolerance

Array = NDArray[Any]
_T = TypeVar("_T")

CHUNK = 1 << 16
"""Elements a chunk: float32 operands, difference and one temporary (1 MiB) stay in a core's level-2 cache."""

THREADED_ABOVE = 1 << 20
"""Elements from which the pass is shared between threads; below, starting them costs more than it saves."""

SAMPLE = 1 << 14
"""Elements that order statistics (99th percentile, units in the last place) are taken from."""

_NAN = float("nan")
_NARROW_FLOATS = {
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz),
}

_pool: ThreadPoolExecutor | None = None


def kind_of(dtype: np.dtype[Any]) -> str:
    """``float`` | ``complex`` | ``integer`` (booleans too) | ``other``."""
    if dtype in _NARROW_FLOATS or dtype.kind == "f":
        return "float"
    if dtype.kind == "c":
        return "complex"
    if dtype.kind in "iub":
        return "integer"
    return "other"


def kind_of_name(dtype: str) -> str:
    """The same for a dtype's short name, ``bfloat16``."""
    if "float" in dtype:
        return "float"
    if "complex" in dtype:
        return "complex"
    return "integer" if "int" in dtype or dtype == "bool" else "other"


@dataclass(slots=True)
class _Sums:
    """Running sums of one pass; ``add`` joins two of them, in the order of their places in the array."""

    difference2: float = 0.0
    expected2: float = 0.0
    actual2: float = 0.0
    product: float = 0.0
    absolute: float = 0.0
    worst: float = -1.0
    worst_at: int = 0
    max_rel: float = 0.0
    differing: int = 0
    nonfinite_expected: int = 0
    nonfinite_actual: int = 0
    nonfinite_mismatch: int = 0
    first_mismatch: int | None = None
    beyond: int = 0

    def add(self, other: _Sums) -> None:
        self.difference2 += other.difference2
        self.expected2 += other.expected2
        self.actual2 += other.actual2
        self.product += other.product
        self.absolute += other.absolute
        if other.worst > self.worst:
            self.worst, self.worst_at = other.worst, other.worst_at
        self.max_rel = max(self.max_rel, other.max_rel)
        self.differing += other.differing
        self.nonfinite_expected += other.nonfinite_expected
        self.nonfinite_actual += other.nonfinite_actual
        self.nonfinite_mismatch += other.nonfinite_mismatch
        if self.first_mismatch is None:
            self.first_mismatch = other.first_mismatch
        self.beyond += other.beyond


def measure(expected: Array, actual: Array | None) -> ErrorMetrics:
    """Measures how far ``actual`` lies from ``expected``.

    Args:
        expected: reference, any shape; floats (float16, bfloat16, float8, float32, float64), complex, integers, booleans.
        actual: the same shape. Another shape, even one that would broadcast, or another kind of dtype is a ``problem``
            and never a number. ``None`` (the runtime gave nothing) is a problem too.

    Returns:
        The metrics; see :class:`ErrorMetrics` for units and for the rules at zero.
    """
    return _measure(expected, actual, None)[0]


def judge(expected: Array, actual: Array | None, tolerance: Tolerance) -> tuple[ErrorMetrics, Judgement]:
    """Measures, and says whether the difference is allowed.

    Integers and booleans must be equal unless the user gave ``max_abs`` or ``atol``/``rtol``. A problem, or NaN and
    infinities in other places, always fails.
    """
    metrics, beyond = _measure(expected, actual, tolerance if tolerance.atol is not None else None)
    return metrics, _judgement(metrics, expected.dtype, tolerance, beyond)


def _judgement(metrics: ErrorMetrics, dtype: np.dtype[Any], tolerance: Tolerance, beyond: int) -> Judgement:
    if metrics.problem is not None or metrics.nonfinite_mismatch:
        return "fail"
    if metrics.count == 0:
        # Nothing compared never reads as agreement.
        return "not compared"
    if tolerance.max_abs is not None:
        return "pass" if metrics.max_abs <= tolerance.max_abs else "fail"
    if tolerance.atol is not None:
        return "pass" if beyond == 0 else "fail"
    if kind_of(dtype) == "integer":
        return "pass" if metrics.differing == 0 else "fail"
    return "pass" if metrics.rel_l2 <= relative_limit(dtype.name, tolerance) else "fail"


def relative_limit(dtype: str, tolerance: Tolerance) -> float:
    """The default limit on ``rel_l2`` for a dtype (short name); the one for float32 where it is not in the table."""
    assert tolerance.rel_l2 is not None
    return tolerance.rel_l2.get(dtype, tolerance.rel_l2["float32"])


def relative_difference(reference: Array, other: Array) -> float:
    """``||other - reference|| / ||reference||``; 0 when both are zero, ``inf`` when only the reference is."""
    return measure(reference, other).rel_l2


def difference_norms(reference: Array, first: Array, second: Array) -> tuple[float, float]:
    """``(||first - second||, ||reference||)`` over all elements; three arrays of one shape, sums in float64."""
    arrays = [np.ascontiguousarray(a).reshape(-1) for a in (reference, first, second)]
    work = np.result_type(*(_work_dtype(a.dtype, a.dtype) for a in arrays))

    def over(start: int, stop: int) -> tuple[float, float]:
        squares, total = 0.0, 0.0
        difference = np.empty(min(CHUNK, max(stop - start, 1)), work)
        with np.errstate(all="ignore"):
            for at in range(start, stop, CHUNK):
                r, a, b = (array[at : min(at + CHUNK, stop)].astype(work, copy=False) for array in arrays)
                d = np.subtract(a, b, out=difference[: r.size])
                part, whole = _dot(d, d), _dot(r, r)
                if not 1e-30 < part < math.inf or not 1e-30 < whole < math.inf:
                    # Out of float32's range for squares; zero may be an underflow too.
                    d, r = d.astype(np.float64), r.astype(np.float64)
                    part, whole = _dot(d, d), _dot(r, r)
                squares, total = squares + part, total + whole
        return squares, total

    parts = _in_threads(over, arrays[0].size)
    return math.sqrt(sum(p[0] for p in parts)), math.sqrt(sum(p[1] for p in parts))


def _measure(expected: Array, actual: Array | None, allclose: Tolerance | None) -> tuple[ErrorMetrics, int]:
    problem = _problem(expected, actual)
    if problem is not None:
        return _unusable(expected.size, problem), expected.size
    assert actual is not None
    flat_expected = np.ascontiguousarray(expected).reshape(-1)
    flat_actual = np.ascontiguousarray(actual).reshape(-1)
    exact = kind_of(expected.dtype) == "integer"
    if flat_expected.dtype.kind == "c":
        # Real and imaginary parts side by side: a complex number is as wrong as its parts.
        real = flat_expected.real.dtype
        flat_expected, flat_actual = flat_expected.view(real), flat_actual.astype(expected.dtype).view(real)
    work = _work_dtype(flat_expected.dtype, flat_actual.dtype)
    sums = _pass(flat_expected, flat_actual, work, allclose)
    if exact:
        _count_exactly(sums, flat_expected, flat_actual)
    return _finish(sums, expected, flat_expected, flat_actual, exact), sums.beyond


def _count_exactly(sums: _Sums, a: Array, b: Array) -> None:
    """Integers beyond 2**53 that differ may be one float64; what is not equal differs by one at least."""
    different = a != b
    sums.differing = int(np.count_nonzero(different))
    if sums.differing and sums.worst < 1:
        sums.worst, sums.worst_at = 1.0, int(different.argmax())
        sums.absolute = max(sums.absolute, 1.0)
        sums.difference2 = max(sums.difference2, 1.0)


def _problem(expected: Array, actual: Array | None) -> str | None:
    if actual is None:
        return "missing: the runtime returned nothing for this value"
    if expected.shape != actual.shape:
        return f"shape: expected {tuple(expected.shape)}, actual {tuple(actual.shape)}"
    wanted, given = kind_of(expected.dtype), kind_of(actual.dtype)
    if wanted == "other" or wanted != given:
        return f"dtype: expected {expected.dtype}, actual {actual.dtype}"
    return None


def _unusable(count: int, problem: str) -> ErrorMetrics:
    return ErrorMetrics(
        count=count,
        max_abs=_NAN,
        mean_abs=_NAN,
        rel_l2=_NAN,
        max_rel=_NAN,
        cosine=_NAN,
        sqnr_db=_NAN,
        max_ulp=None,
        p99_abs=_NAN,
        nonfinite_expected=0,
        nonfinite_actual=0,
        nonfinite_mismatch=0,
        differing=count,
        worst_index=None,
        worst_expected=None,
        worst_actual=None,
        problem=problem,
    )


def _work_dtype(first: np.dtype[Any], second: np.dtype[Any]) -> np.dtype[Any]:
    """float32 where it holds both sides' values exactly; integers go to float64, differences of int64 never wrap."""
    narrow = _NARROW_FLOATS | {np.dtype(np.float32)}
    return np.dtype(np.float32) if first in narrow and second in narrow else np.dtype(np.float64)


def _pass(expected: Array, actual: Array, work: np.dtype[Any], allclose: Tolerance | None) -> _Sums:
    total = _Sums()
    for part in _in_threads(lambda a, b: _pass_range(expected, actual, a, b, work, allclose), expected.size):
        total.add(part)
    return total


def _in_threads(over: Callable[[int, int], _T], size: int) -> list[_T]:
    """``over(start, stop)`` for stretches of whole chunks, in the order of the array."""
    threads = min(os.cpu_count() or 1, 8) if size >= THREADED_ABOVE else 1
    if threads == 1:
        return [over(0, size)]
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(threads, thread_name_prefix="metrics")
    bounds = [size * i // threads // CHUNK * CHUNK for i in range(threads)] + [size]
    return list(_pool.map(over, bounds[:-1], bounds[1:]))


def _pass_range(
    expected: Array, actual: Array, start: int, stop: int, work: np.dtype[Any], allclose: Tolerance | None
) -> _Sums:
    total = _Sums()
    length = min(CHUNK, max(stop - start, 1))
    difference, scratch, ones = np.empty(length, work), np.empty(length, work), np.ones(length, work)
    with np.errstate(all="ignore"):
        for at in range(start, stop, CHUNK):
            end = min(at + CHUNK, stop)
            a, b = expected[at:end].astype(work, copy=False), actual[at:end].astype(work, copy=False)
            n = end - at
            total.add(_chunk(a, b, difference[:n], scratch[:n], ones[:n], at, allclose))
    return total


def _dot(a: Array, b: Array) -> float:
    return float(np.dot(a, b))


def _chunk(a: Array, b: Array, d: Array, scratch: Array, ones: Array, at: int, allclose: Tolerance | None) -> _Sums:
    np.subtract(b, a, out=d)
    sums = _Sums(_dot(d, d), _dot(a, a), _dot(b, b), _dot(a, b))
    np.abs(d, out=d)
    worst = float(d.max())
    if not math.isfinite(sums.difference2 + sums.expected2 + sums.actual2) or _underflown(sums, worst):
        return _careful_chunk(a, b, at, allclose)
    sums.worst, sums.worst_at = worst, at
    if worst > 0:
        sums.worst_at += int(d.argmax())
        sums.absolute = _dot(d, ones)
        sums.differing = int(np.count_nonzero(d != 0))
        np.abs(a, out=scratch)
        if allclose is not None:
            sums.beyond = _count_beyond(d, scratch, allclose)
        np.divide(d, scratch, out=scratch)
        # 0/0 is NaN and means no error; fmax passes over it.
        sums.max_rel = max(0.0, float(np.fmax.reduce(scratch)))
    return sums


def _underflown(sums: _Sums, worst: float) -> bool:
    tiny = 1e-30
    return (worst > 0 and sums.difference2 < tiny) or sums.expected2 < tiny or sums.actual2 < tiny


def _count_beyond(difference: Array, magnitude: Array, allclose: Tolerance) -> int:
    assert allclose.atol is not None and allclose.rtol is not None
    allowed = allclose.atol + allclose.rtol * magnitude.astype(np.float64)
    return int(np.count_nonzero(difference > allowed))


def _careful_chunk(a: Array, b: Array, at: int, allclose: Tolerance | None) -> _Sums:
    """A chunk with NaN or infinities, or whose squares leave the range of float32."""
    sums = _Sums()
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    sums.nonfinite_expected = int(a.size - np.count_nonzero(finite_a))
    sums.nonfinite_actual = int(b.size - np.count_nonzero(finite_b))
    same = (finite_a & finite_b) | (np.isnan(a) & np.isnan(b)) | (~finite_a & ~finite_b & (a == b))
    mismatch = ~same
    sums.nonfinite_mismatch = int(np.count_nonzero(mismatch))
    if sums.nonfinite_mismatch:
        sums.first_mismatch = at + int(mismatch.argmax())
    both = finite_a & finite_b
    # Elements that are the same infinity or both NaN differ by nothing; mismatches are counted, not averaged.
    # Squares of float64 values may leave float64; long double has the range (where the platform has it).
    wide = np.longdouble if a.dtype == np.float64 else np.float64
    wide_a: Array = np.where(both, a, 0).astype(wide)
    wide_b: Array = np.where(both, b, 0).astype(wide)
    d = wide_b - wide_a
    sums.difference2, sums.expected2 = np.dot(d, d), np.dot(wide_a, wide_a)
    sums.actual2, sums.product = np.dot(wide_b, wide_b), np.dot(wide_a, wide_b)
    np.abs(d, out=d)
    place = int(d.argmax())
    sums.worst, sums.worst_at, sums.absolute = float(d[place]), at + place, float(d.sum())
    sums.differing = int(np.count_nonzero(d)) + sums.nonfinite_mismatch
    magnitude = np.abs(wide_a)
    if allclose is not None:
        sums.beyond = _count_beyond(d, magnitude, allclose) + sums.nonfinite_mismatch
    ratio = d / magnitude
    sums.max_rel = float(np.fmax.reduce(ratio, initial=0.0))
    return sums


def _finish(sums: _Sums, expected: Array, flat_expected: Array, flat_actual: Array, exact: bool) -> ErrorMetrics:
    count = expected.size
    difference, reference, other = (
        float(np.sqrt(np.longdouble(s))) for s in (sums.difference2, sums.expected2, sums.actual2)
    )
    rel_l2 = (difference / reference) if reference else (0.0 if difference == 0 else math.inf)
    max_abs, mean_abs = max(sums.worst, 0.0), sums.absolute / flat_expected.size if count else 0.0
    if reference and other:
        norms = np.longdouble(reference) * np.longdouble(other)
        cosine = max(-1.0, min(1.0, float(sums.product / norms)))
    else:
        cosine = 1.0 if reference == other else 0.0
    worst_at: int | None = sums.worst_at if count else None
    if sums.nonfinite_mismatch:
        # A NaN on one side is further off than any number.
        rel_l2 = max_abs = mean_abs = math.inf
        worst_at = sums.first_mismatch
    p99, ulp = _order_statistics(flat_expected, flat_actual, exact, worst_at)
    index: tuple[int, ...] | None = None
    if worst_at is not None:
        place = worst_at // 2 if expected.dtype.kind == "c" else worst_at
        index = tuple(int(i) for i in np.unravel_index(place, expected.shape))
    return ErrorMetrics(
        count=count,
        max_abs=max_abs,
        mean_abs=mean_abs,
        rel_l2=rel_l2,
        max_rel=math.inf if sums.nonfinite_mismatch else sums.max_rel,
        cosine=cosine,
        sqnr_db=math.inf if rel_l2 == 0 else -20 * math.log10(rel_l2) if math.isfinite(rel_l2) else -math.inf,
        max_ulp=ulp,
        p99_abs=p99,
        nonfinite_expected=sums.nonfinite_expected,
        nonfinite_actual=sums.nonfinite_actual,
        nonfinite_mismatch=sums.nonfinite_mismatch,
        differing=sums.differing,
        worst_index=index,
        worst_expected=float(flat_expected[worst_at]) if worst_at is not None else None,
        worst_actual=float(flat_actual[worst_at]) if worst_at is not None else None,
    )


def _order_statistics(a: Array, b: Array, exact: bool, worst_at: int | None) -> tuple[float, float | None]:
    """99th percentile of the absolute difference, and the greatest distance in units of the last place."""
    if worst_at is None:
        return 0.0, None if exact else 0.0
    step = max(1, -(-a.size // SAMPLE))
    picks = slice(None, None, step)
    wide_a, wide_b = a[picks].astype(np.float64), b[picks].astype(np.float64)
    with np.errstate(all="ignore"):
        d = np.abs(wide_b - wide_a)
    d = d[np.isfinite(d)]
    p99 = float(np.partition(d, k := int(0.99 * (d.size - 1)))[k]) if d.size else 0.0
    if exact:
        return p99, None
    worst = slice(worst_at, worst_at + 1)
    return p99, max(_ulps(a[picks], b[picks]), _ulps(a[worst], b[worst]))


def _ulps(a: Array, b: Array) -> float:
    """Greatest number of representable values between the two sides, in the dtype of ``a``."""
    if a.dtype != b.dtype or a.dtype.itemsize > 8:
        b = b.astype(a.dtype)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.any():
        return 0.0
    bits = np.dtype(f"i{a.dtype.itemsize}")
    low = np.iinfo(bits).min

    def ordinal(x: Array) -> NDArray[np.int64]:
        raw = np.ascontiguousarray(x[finite]).view(bits).astype(np.int64)
        # Floats sort like their bits, once the negative ones are mirrored below zero.
        ordered: NDArray[np.int64] = np.where(raw < 0, int(low) - raw, raw)
        return ordered

    first, second = ordinal(a), ordinal(b)
    if bits.itemsize == 8:
        # Values of opposite signs may lie further apart than int64 reaches.
        same_sign = (first < 0) == (second < 0)
        near = np.abs(np.subtract(first, second, where=same_sign, out=np.zeros_like(first)))
        far = np.abs(first[~same_sign].astype(np.float64) - second[~same_sign].astype(np.float64))
        return float(max(near.max(initial=0), far.max(initial=0)))
    return float(np.abs(first - second).max())
