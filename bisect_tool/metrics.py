"""Two arrays → :class:`ErrorMetrics`, in one chunked pass.

The arrays are read once, in chunks that fit a core's cache, so that the cost is that of reading memory. Chunks lie at the
same places whatever the number of threads, and their sums, of float32 as BLAS adds them, are added in float64 in the order
of the array: the numbers do not depend on threads, and sums are good to five digits.

Order of judgement: shape, dtype kind, non-finite positions, values.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.records import ErrorMetrics, Judgement, Tolerance

Array = NDArray[Any]
_T = TypeVar("_T")

CHUNK = 1 << 15
"""Elements of float32 in a chunk, twice as many as of float64: operands, difference and one temporary (512 KiB) stay in a
core's level-2 cache."""

SHARED_CHUNK = 1 << 17
"""The same where threads share the pass. Smaller chunks are slower then: between two numpy calls a thread must get the
interpreter's lock back, which costs some microseconds each time."""

THREADED_ABOVE = 1 << 20
"""Elements from which the pass is shared between threads; below, starting them costs more than it saves."""

BLAS_STRETCH = 1 << 13
"""Elements of float64 to multiply at a time: from 10,000 on OpenBLAS wakes threads of its own, which wait for busy cores,
and keep cores busy when they are done."""

SAMPLE = 1 << 14
"""Elements that order statistics (99th percentile, units in the last place) are taken from."""

RUN = 16
"""Elements of such a sample that lie side by side: a cache line of float32."""

_GOLDEN = (math.sqrt(5) - 1) / 2

_FEW = 512
"""Numbers up to which sorting them is faster than selecting one."""

_NAN = float("nan")
_NARROW_FLOATS = {
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz),
}
_LOOKED_UP = _NARROW_FLOATS - {np.dtype(ml_dtypes.bfloat16)}
"""Dtypes that numpy converts to float32 one by one."""

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_BITS = {n: (np.dtype(f"i{n}"), np.dtype(f"u{n}")) for n in (1, 2, 4, 8)}
"""Integers of as many bytes."""
_SMALLEST_SQUARE = {_FLOAT32: 1e-30, _FLOAT64: 1e-290}
"""Sums of squares below may have lost some to underflow."""
_GREATEST_FLOAT32 = float(np.finfo(np.float32).max)

_pool: ThreadPoolExecutor | None = None


@lru_cache(maxsize=64)
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


class _Totals(NamedTuple):
    """Sums over all elements; long doubles where float64 has not the range."""

    difference2: float
    expected2: float
    actual2: float
    product: float
    absolute: float


@dataclass(slots=True)
class _Sums:
    """What one pass, or one thread's share of it, finds.

    Attributes:
        chunks: of each chunk its place and the sums of :class:`_Totals`, which are added in the order of places.
        worst, worst_at: greatest absolute difference, and its first place.
        first_mismatch: first place where the two sides do not hold the same NaN or infinity.
        beyond: elements beyond ``atol + rtol * |expected|``.
    """

    chunks: list[tuple[int, float, float, float, float, float]] = field(default_factory=list)
    worst: float = -1.0
    worst_at: int = 0
    max_rel: float = 0.0
    differing: int = 0
    nonfinite_expected: int = 0
    nonfinite_actual: int = 0
    nonfinite_mismatch: int = 0
    first_mismatch: int | None = None
    beyond: int = 0

    def see(self, worst: float, place: int) -> None:
        """Of equal differences the first counts, whichever thread comes first."""
        if worst > self.worst or (worst == self.worst and place < self.worst_at):
            self.worst, self.worst_at = worst, place

    def add(self, other: _Sums) -> None:
        """Another thread's share."""
        self.chunks += other.chunks
        self.see(other.worst, other.worst_at)
        self.max_rel = max(self.max_rel, other.max_rel)
        self.differing += other.differing
        self.nonfinite_expected += other.nonfinite_expected
        self.nonfinite_actual += other.nonfinite_actual
        self.nonfinite_mismatch += other.nonfinite_mismatch
        firsts = [first for first in (self.first_mismatch, other.first_mismatch) if first is not None]
        self.first_mismatch = min(firsts, default=None)
        self.beyond += other.beyond

    def totals(self) -> _Totals:
        """The chunks' sums, added up."""
        if len(self.chunks) == 1:
            return _Totals(*self.chunks[0][1:])
        self.chunks.sort()
        return _Totals(*(sum((chunk[i] for chunk in self.chunks), 0.0) for i in range(1, 6)))


def _chunk_of(dtype: np.dtype[Any], size: int) -> int:
    """Elements in a chunk of an array of ``size`` elements, whatever the number of threads."""
    most = SHARED_CHUNK if size >= THREADED_ABOVE else CHUNK
    return most if dtype == _FLOAT32 else most // 2


def _scratch(count: int, dtype: np.dtype[Any], place: int) -> Array:
    """An array that begins at a cache line, ``place`` of eight in a page of memory.

    Big arrays of numpy and of other libraries all begin at one place in a page. A processor takes a load for one that
    waits for a store where the two are at the same place of two pages: subtracting takes half as long again.
    """
    page, line = 4096, 512 * place
    room = np.empty(count * dtype.itemsize + 2 * page, np.uint8)
    start = -room.ctypes.data % page + line
    return room[start : start + count * dtype.itemsize].view(dtype)


class _Scratch(NamedTuple):
    """Arrays of one chunk: the difference, a temporary, and the two sides where they need another form."""

    difference: Array
    scratch: Array
    a: Array
    b: Array


class _Workspace(threading.local):
    """A thread's scratch arrays, kept: fresh ones of this size would be mapped, and zeroed, at every call."""

    def __init__(self) -> None:
        self.scratch: dict[np.dtype[Any], _Scratch] = {}
        self.mask = np.empty(SHARED_CHUNK, np.bool_)
        self.allowed = np.empty(SHARED_CHUNK, _FLOAT64)

    def of(self, dtype: np.dtype[Any]) -> _Scratch:
        """The arrays of one dtype; memory that is never written to is never taken."""
        if dtype not in self.scratch:
            count = SHARED_CHUNK if dtype == _FLOAT32 else SHARED_CHUNK // 2
            self.scratch[dtype] = _Scratch(*(_scratch(count, dtype, place) for place in (2, 4, 6, 7)))
        return self.scratch[dtype]


_workspace = _Workspace()


@lru_cache(maxsize=2)
def _ones(dtype: np.dtype[Any]) -> Array:
    ones = _scratch(SHARED_CHUNK if dtype == _FLOAT32 else SHARED_CHUNK // 2, dtype, 1)
    ones.fill(1)
    return ones


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


def measure_with_norm(expected: Array, actual: Array | None) -> tuple[ErrorMetrics, float]:
    """:func:`measure`, and ``||expected||``, which :func:`difference_norms` then need not read once more.

    The norm is NaN where ``expected`` holds NaN or infinities, and where there is a ``problem``.
    """
    metrics, _, norm = _measure(expected, actual, None)
    return metrics, math.nan if metrics.nonfinite_expected else norm


def judge(expected: Array, actual: Array | None, tolerance: Tolerance) -> tuple[ErrorMetrics, Judgement]:
    """Measures, and says whether the difference is allowed.

    Integers and booleans must be equal unless the user gave ``max_abs`` or ``atol``/``rtol``, or SQNR decides. A
    problem, or NaN and infinities in other places, always fails.
    """
    metrics, beyond, _ = _measure(expected, actual, tolerance if tolerance.atol is not None else None)
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
    if kind_of(dtype) == "integer" and tolerance.min_sqnr is None:
        return "pass" if metrics.differing == 0 else "fail"
    return "pass" if metrics.rel_l2 <= relative_limit(_name_of(dtype), tolerance) else "fail"


@lru_cache(maxsize=64)
def _name_of(dtype: np.dtype[Any]) -> str:
    """numpy puts the name together anew at every call."""
    return dtype.name


def relative_limit(dtype: str, tolerance: Tolerance) -> float:
    """The default limit on ``rel_l2`` for a dtype (short name); the one for float32 where it is not in the table."""
    assert tolerance.rel_l2 is not None
    return tolerance.rel_l2.get(dtype, tolerance.rel_l2["float32"])


def relative_difference(reference: Array, other: Array) -> float:
    """``||other - reference|| / ||reference||``; 0 when both are zero, ``inf`` when only the reference is."""
    return measure(reference, other).rel_l2


def relative_error(reference: Array, other: Array) -> float:
    """``||other - reference|| / ||reference||`` for numbers of any kind, where only how far counts.

    Elements that are equal, or NaN in both, are no difference; any other NaN or infinity is as far apart as can be, and so
    are arrays of different sizes. The norm is that of the reference's finite numbers; where it is 0, the error is 0 or
    infinite.
    """
    if reference.size != other.size:
        return math.inf
    one, two = (np.asarray(each).reshape(-1).astype(np.float64) for each in (reference, other))
    with np.errstate(all="ignore"):
        apart = float(np.linalg.norm(np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, two - one)))
        norm = float(np.linalg.norm(one[np.isfinite(one)]))
    if not math.isfinite(apart):
        return math.inf
    return apart / norm if norm else (0.0 if apart == 0 else math.inf)


def relative_errors(references: Array, other: Array) -> Array:
    """:func:`relative_error` of one short array against many references, all at once.

    Args:
        references: ``[n, k]``, a reference in each row.
        other: ``[k]``.

    Returns:
        ``[n]``; the last digits may be others than that function's.
    """
    one, two = references.astype(np.float64), other.astype(np.float64)
    with np.errstate(all="ignore"):
        difference = two - one
        # Where all is finite, what is equal differs by 0 as it is.
        if not np.isfinite(difference).all():
            difference = np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, difference)
            one = np.where(np.isfinite(one), one, 0.0)
        apart = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        norm = np.sqrt(np.einsum("ij,ij->i", one, one))
        errors = np.where(norm > 0, apart / norm, np.where(apart == 0, 0.0, math.inf))
    return np.where(np.isfinite(apart), errors, math.inf)


FILL = 1e4
"""Least size of a number that serves as minus infinity in masks: -1e4, -65504, -1e9, the lowest float32."""

HIDING = 30.0
"""Root mean square of everything over that of some numbers, from which on a norm over everything does not see them."""

_SPREAD = 100.0
_LEAST_IN_CHANNEL = 4


def hidden_groups(reference: Array, other: Array, norm: float) -> Iterator[NDArray[np.bool_]]:
    """Where two tensors hold numbers that a norm over everything does not see.

    A mask's -1e9, alike on both sides, makes every error small, and so does a channel with activations a thousand times
    larger than those of the others. Small numbers as such are not meant: an activation's tail is as accurate as its
    largest values. A sample is looked at first; usually there is nothing to hide, and nothing else is done.

    Args:
        reference, other: of one shape.
        norm: L2 norm of the reference.
    """
    if reference.dtype.kind in "iub" or reference.size < 2 or reference.shape != other.shape:
        return
    # An odd step: channels that lie last in memory often are a power of two.
    sample = np.abs(_flat(reference)[:: reference.size // 2048 | 1]).astype(np.float64)
    sample = sample[np.isfinite(sample) & (sample > 0)]
    whole = norm / math.sqrt(reference.size)
    if not sample.size or whole <= HIDING * _rms(sample[sample <= _SPREAD * np.quantile(sample, 0.1)]):
        return
    filled = _beside_fill(reference, other)
    if filled is not None:
        yield filled
    for axis in sorted({reference.ndim - 1, 1}):
        if axis < reference.ndim and reference.size // max(1, reference.shape[axis]) >= _LEAST_IN_CHANNEL:
            yield from _quiet_channels(reference, axis, whole)


def _beside_fill(reference: Array, other: Array) -> NDArray[np.bool_] | None:
    sizes = np.abs(reference)
    largest = float(sizes.max())
    if not FILL <= largest < math.inf:
        return None
    rest: NDArray[np.bool_] = sizes != sizes.max()
    if not rest.any() or float(sizes[rest].max()) * _SPREAD > largest or (reference[~rest] != other[~rest]).any():
        return None
    return rest


def _quiet_channels(reference: Array, axis: int, whole: float) -> Iterator[NDArray[np.bool_]]:
    """Channels of like size, one group after the other, until what is left is heard in the whole."""
    others = tuple(i for i in range(reference.ndim) if i != axis)
    with np.errstate(all="ignore"):
        squares = np.mean(np.square(np.abs(reference), dtype=np.float64), axis=others)
    sizes = np.sqrt(np.where(np.isfinite(squares), squares, math.inf))
    left = sizes > 0
    while left.any():
        group = left & (sizes <= _SPREAD * np.quantile(sizes[left], 0.1, method="lower"))
        if not group.any() or whole <= HIDING * _rms(sizes[group]):
            return
        shape = [1] * reference.ndim
        shape[axis] = -1
        yield np.broadcast_to(group.reshape(shape), reference.shape)
        left &= ~group


def _rms(array: Array) -> float:
    return math.sqrt(float(np.mean(np.square(array))))


def largest_difference(reference: Array, other: Array) -> float:
    """Relative L2 of everything, or of the group that differs most; see :func:`hidden_groups`."""
    whole = relative_difference(reference, other)
    if reference.shape != other.shape or not math.isfinite(whole):
        return whole
    norm = _norm(_work_dtype(reference.dtype, reference.dtype), _flat(reference), None)
    groups = hidden_groups(reference, other, norm)
    return max([whole, *(relative_difference(reference[where], other[where]) for where in groups)])


def difference_norms(
    reference: Array, first: Array, second: Array, reference_norm: float | None = None
) -> tuple[float, float]:
    """``(||first - second||, ||reference||)`` over all elements; three arrays of one shape, sums in float64.

    ``reference_norm`` is ``||reference||`` where it is known already.
    """
    a, b = _flat(first), _flat(second)
    error = _norm(_work_dtype(a.dtype, b.dtype), a, b)
    if reference_norm is None:
        whole = _flat(reference)
        reference_norm = _norm(_work_dtype(whole.dtype, whole.dtype), whole, None)
    return error, reference_norm


def _norm(work: np.dtype[Any], first: Array, second: Array | None) -> float:
    """``||first - second||``, or ``||first||``; NaN and infinities are not left out."""
    length = _chunk_of(work, first.size)

    def over(starts: Iterator[int]) -> list[tuple[int, float]]:
        space = _workspace.of(work)
        found = []
        for at in starts:
            d = _widened(first[at : at + length], space.a)
            if second is not None:
                d = np.subtract(d, _widened(second[at : at + length], space.b), out=space.difference[: d.size])
            part = _dot(d, d)
            if not _SMALLEST_SQUARE[work] < part < math.inf:
                # Out of the range for squares; zero may be an underflow too.
                d = d.astype(_FLOAT64)
                part = _dot(d, d)
            found.append((at, part))
        return found

    with np.errstate(all="ignore"):
        shares = _in_threads(over, range(0, first.size, length))
    squares = sorted(square for share in shares for square in share)
    return math.sqrt(sum((square for _, square in squares), 0.0))


def _flat(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1)


def _widened(chunk: Array, buffer: Array) -> Array:
    """The chunk in the buffer's dtype: itself, or a copy in the buffer."""
    if chunk.dtype == buffer.dtype:
        return chunk
    buffer = buffer[: chunk.size]
    if chunk.dtype in _LOOKED_UP and chunk.size >= 1 << 14 and buffer.dtype == _FLOAT32:
        np.take(_table(chunk.dtype), chunk.view(_BITS[chunk.dtype.itemsize][1]), out=buffer, mode="clip")
    else:
        np.copyto(buffer, chunk, casting="unsafe")
    return buffer


@lru_cache(maxsize=len(_LOOKED_UP))
def _table(dtype: np.dtype[Any]) -> Array:
    """Every number of a dtype of one or two bytes, by its bits: two to six times faster than converting them."""
    width = dtype.itemsize
    return np.arange(1 << 8 * width, dtype=_BITS[width][1]).view(dtype).astype(_FLOAT32)


def _measure(expected: Array, actual: Array | None, allclose: Tolerance | None) -> tuple[ErrorMetrics, int, float]:
    """Also how many elements are beyond ``atol`` and ``rtol``, and the norm of the reference."""
    problem = _problem(expected, actual)
    if problem is not None:
        return _unusable(expected.size, problem), expected.size, _NAN
    assert actual is not None
    exact = kind_of(expected.dtype) == "integer"
    with np.errstate(all="ignore"):
        a, b = _flat(expected), _flat(actual)
        if a.dtype.kind == "c":
            # Real and imaginary parts side by side: a complex number is as wrong as its parts.
            real = a.real.dtype
            a, b = a.view(real), b.astype(a.dtype, copy=False).view(real)
        sums = _pass(a, b, _work_dtype(a.dtype, b.dtype), allclose)
        totals = sums.totals()
        if exact:
            totals = _count_exactly(sums, totals, a, b, allclose)
        metrics, norm = _finish(sums, totals, expected, a, b, exact)
    return metrics, sums.beyond, norm


def _count_exactly(sums: _Sums, totals: _Totals, a: Array, b: Array, allclose: Tolerance | None) -> _Totals:
    """Integers beyond 2**53 that differ may be one float64: then what differs is measured as it is."""
    if max(totals.expected2, totals.actual2) < 2.0**100:
        # Not one is beyond 2**50, and the pass was exact.
        return totals
    sums.differing, sums.beyond, sums.max_rel, sums.worst = 0, 0, 0.0, -1.0
    absolute = difference2 = 0.0
    for at in range(0, a.size, CHUNK):
        reference, apart = a[at : at + CHUNK], integer_distances(a[at : at + CHUNK], b[at : at + CHUNK])
        largest = int(apart.argmax())
        sums.see(float(apart[largest]), at + largest)
        sums.differing += int(np.count_nonzero(apart))
        absolute, difference2 = absolute + float(apart.sum()), difference2 + _dot(apart, apart)
        sizes = np.abs(reference.astype(np.float64))
        # 0/0 is NaN and means no error.
        sums.max_rel = max(sums.max_rel, float(np.fmax.reduce(apart / sizes)))
        if allclose is not None:
            sums.beyond += int(np.count_nonzero(apart > (allclose.atol or 0.0) + (allclose.rtol or 0.0) * sizes))
    return totals._replace(absolute=absolute, difference2=difference2)


def integer_distances(first: Array, second: Array) -> NDArray[np.float64]:
    """How far integers lie apart, in float64 and exact but for that: beyond 2**53 two of them may be one float64."""
    first, second = (each.astype(np.uint8) if each.dtype.kind == "b" else each for each in (first, second))
    if first.dtype.kind == second.dtype.kind:
        first, second = (each.astype(f"{each.dtype.kind}8", copy=False) for each in (first, second))
        # Of any two int64 the distance is a uint64, and the difference of their bits is that.
        low, high = np.minimum(first, second), np.maximum(first, second)
        return (high.view(np.uint64) - low.view(np.uint64)).astype(np.float64)
    signed, unsigned = (first, second) if first.dtype.kind == "i" else (second, first)
    signed, unsigned = signed.astype(np.int64), unsigned.astype(np.uint64)
    near = integer_distances(signed.view(np.uint64), unsigned)
    return np.where(signed < 0, unsigned.astype(np.float64) - signed.astype(np.float64), near)


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


@lru_cache(maxsize=64)
def _work_dtype(first: np.dtype[Any], second: np.dtype[Any]) -> np.dtype[Any]:
    """float32 where it holds both sides' values exactly; integers go to float64, differences of int64 never wrap."""
    narrow = _NARROW_FLOATS | {_FLOAT32}
    return _FLOAT32 if first in narrow and second in narrow else _FLOAT64


def _pass(expected: Array, actual: Array, work: np.dtype[Any], allclose: Tolerance | None) -> _Sums:
    starts = range(0, expected.size, _chunk_of(work, expected.size))
    total, *others = _in_threads(lambda own: _pass_over(own, expected, actual, work, allclose), starts)
    for other in others:
        total.add(other)
    return total


def _in_threads(over: Callable[[Iterator[int]], _T], starts: range) -> list[_T]:
    """What ``over`` makes of the places where chunks start, each of them given to one thread, in ascending order."""
    threads = min(os.cpu_count() or 1, 8) if starts.stop >= THREADED_ABOVE else 1
    if threads == 1:
        return [over(iter(starts))]
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="metrics")
    # Taken one by one and not dealt out: a thread whose core is busy with something else is not waited for.
    left = list(reversed(starts))
    helpers = [_pool.submit(_quietly, over, left) for _ in range(threads - 1)]
    shares = [over(_taken(left))]
    # Whoever has not begun by now has nothing to do.
    return shares + [helper.result() for helper in helpers if not helper.cancel()]


def _quietly(over: Callable[[Iterator[int]], _T], left: list[int]) -> _T:
    """What numpy is to warn of is each thread's own setting."""
    with np.errstate(all="ignore"):
        return over(_taken(left))


def _taken(left: list[int]) -> Iterator[int]:
    """Takes from the end of a list that threads share; ``pop`` gives each element to one of them."""
    while True:
        try:
            yield left.pop()
        except IndexError:
            return


def _pass_over(
    starts: Iterator[int], expected: Array, actual: Array, work: np.dtype[Any], allclose: Tolerance | None
) -> _Sums:
    sums = _Sums()
    space, length = _workspace.of(work), _chunk_of(work, expected.size)
    for at in starts:
        a, b = _widened(expected[at : at + length], space.a), _widened(actual[at : at + length], space.b)
        if not _chunk(sums, a, b, at, allclose):
            _careful_chunk(sums, a, b, at, allclose)
    return sums


def _dot(a: Array, b: Array) -> float:
    if a.dtype == _FLOAT32 or a.size <= BLAS_STRETCH:
        return float(a.dot(b))
    stretches = range(0, a.size, BLAS_STRETCH)
    return sum((float(a[at : at + BLAS_STRETCH].dot(b[at : at + BLAS_STRETCH])) for at in stretches), 0.0)


def _chunk(sums: _Sums, a: Array, b: Array, at: int, allclose: Tolerance | None) -> bool:
    """Adds one ordinary chunk; false, and nothing is added, where it holds NaN, infinities or squares out of range."""
    space, smallest, n = _workspace.of(a.dtype), _SMALLEST_SQUARE[a.dtype], a.size
    d, scratch, ones = space.difference[:n], space.scratch[:n], _ones(a.dtype)[:n]
    np.subtract(b, a, out=d)
    np.abs(d, out=d)
    # The place of the first NaN, if there is one.
    place = int(d.argmax())
    worst = float(d[place])
    if not worst < math.inf:
        return False
    expected2 = _dot(a, a)
    if worst == 0:
        # Equal throughout. Zeros alone have no squares that could get lost.
        zeros = expected2 == 0 and not np.maximum.reduce(np.abs(a, out=scratch))
        if not zeros and not smallest <= expected2 < math.inf:
            return False
        sums.chunks.append((at, 0.0, expected2, expected2, expected2, 0.0))
        sums.see(0.0, at)
        return True
    difference2, actual2 = _dot(d, d), _dot(b, b)
    if min(difference2, expected2, actual2) < smallest or difference2 + expected2 + actual2 == math.inf:
        return False
    if difference2 < (expected2 + actual2) / 8:
        # The law of cosines saves a pass. Of near vectors it also gives the better cosine, for the errors of float32 in
        # the two squares nearly cancel; of others it does not.
        product = (expected2 + actual2 - difference2) / 2
    else:
        product = _dot(a, b)
    # A dot product with ones is several times faster than a sum.
    sums.chunks.append((at, difference2, expected2, actual2, product, _dot(d, ones)))
    sums.see(worst, at + place)
    # Counting integers is fast, counting floats is not; nothing here is -0.
    sums.differing += int(np.count_nonzero(d.view(_BITS[d.itemsize][0])))
    if allclose is not None and not worst <= (allclose.atol or 0.0):
        sums.beyond += _count_beyond(d, np.abs(a, out=scratch), allclose)
    np.divide(d, a, out=scratch)
    # 0/0 is NaN and means no error; fmax and fmin pass over it.
    sums.max_rel = max(sums.max_rel, float(np.fmax.reduce(scratch)), -float(np.fmin.reduce(scratch)))
    return True


def _count_beyond(difference: Array, magnitude: Array, allclose: Tolerance) -> int:
    assert allclose.atol is not None and allclose.rtol is not None
    n = difference.size
    allowed = _workspace.allowed[:n]
    np.multiply(magnitude, allclose.rtol, out=allowed, dtype=_FLOAT64)
    np.add(allowed, allclose.atol, out=allowed)
    return int(np.count_nonzero(np.greater(difference, allowed, out=_workspace.mask[:n])))


def _careful_chunk(sums: _Sums, a: Array, b: Array, at: int, allclose: Tolerance | None) -> None:
    """Adds a chunk with NaN or infinities, or whose squares leave the range of its dtype."""
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    both = finite_a & finite_b
    if not both.all():
        sums.nonfinite_expected += int(a.size - np.count_nonzero(finite_a))
        sums.nonfinite_actual += int(b.size - np.count_nonzero(finite_b))
        # Elements that are the same infinity or both NaN differ by nothing; mismatches are counted, not averaged.
        mismatch = ~(both | (np.isnan(a) & np.isnan(b)) | (a == b))
        mismatches = int(np.count_nonzero(mismatch))
        sums.nonfinite_mismatch += mismatches
        sums.differing += mismatches
        if mismatches and sums.first_mismatch is None:
            sums.first_mismatch = at + int(mismatch.argmax())
        if allclose is not None:
            sums.beyond += mismatches
        a, b = _zeroed(a, b, both)
        if _chunk(sums, a, b, at, allclose):
            return
    space, length = _workspace.of(_FLOAT64), _chunk_of(_FLOAT64, a.size)
    for start in range(0, a.size, length):
        wide_a, wide_b = _widened(a[start : start + length], space.a), _widened(b[start : start + length], space.b)
        if not _chunk(sums, wide_a, wide_b, at + start, allclose):
            _longest_chunk(sums, wide_a, wide_b, at + start, allclose)


def _longest_chunk(sums: _Sums, a: Array, b: Array, at: int, allclose: Tolerance | None) -> None:
    """Adds a chunk whose squares leave float64; long double has the range (where the platform has it)."""
    a, b = a.astype(np.longdouble), b.astype(np.longdouble)
    d = b - a
    difference2, expected2, actual2, product = np.dot(d, d), np.dot(a, a), np.dot(b, b), np.dot(a, b)
    np.abs(d, out=d)
    place = int(d.argmax())
    sums.chunks.append((at, difference2, expected2, actual2, product, float(d.sum())))
    sums.see(float(d[place]), at + place)
    sums.differing += int(np.count_nonzero(d))
    magnitude = np.abs(a)
    if allclose is not None:
        sums.beyond += _count_beyond(d, magnitude, allclose)
    sums.max_rel = max(sums.max_rel, float(np.fmax.reduce(d / magnitude, initial=0.0)))


def _zeroed(a: Array, b: Array, kept: Array) -> tuple[Array, Array]:
    """Both sides with 0 wherever they are not to be kept, in the thread's buffers."""
    space, (bits, _) = _workspace.of(a.dtype), _BITS[a.dtype.itemsize]
    # All bits or none: an infinity times 0 would be NaN, and choosing one by one is ten times slower.
    mask = space.scratch.view(bits)[: a.size]
    np.copyto(mask, kept)
    np.negative(mask, out=mask)
    for side, buffer in ((a, space.a), (b, space.b)):
        np.bitwise_and(side.view(bits), mask, out=buffer.view(bits)[: a.size])
    return space.a[: a.size], space.b[: a.size]


def _root(square: float) -> float:
    """Of a sum that may be a long double, beyond float64's range."""
    return math.sqrt(square) if isinstance(square, float) else float(np.sqrt(square))


def _finish(
    sums: _Sums, totals: _Totals, expected: Array, flat_expected: Array, flat_actual: Array, exact: bool
) -> tuple[ErrorMetrics, float]:
    """Also the norm of the reference."""
    count = expected.size
    difference, reference, other = _root(totals.difference2), _root(totals.expected2), _root(totals.actual2)
    rel_l2 = (difference / reference) if reference else (0.0 if difference == 0 else math.inf)
    max_abs, mean_abs = max(sums.worst, 0.0), totals.absolute / flat_expected.size if count else 0.0
    if reference and other:
        # Divided by one after the other: the product of the norms may leave float64.
        cosine = float(totals.product / max(reference, other) / min(reference, other))
        cosine = max(-1.0, min(1.0, cosine))
    else:
        cosine = 1.0 if reference == other else 0.0
    worst_at: int | None = sums.worst_at if count else None
    if sums.nonfinite_mismatch:
        # A NaN on one side is further off than any number.
        rel_l2 = max_abs = mean_abs = math.inf
        worst_at = sums.first_mismatch
    p99, ulp = _order_statistics(flat_expected, flat_actual, exact, worst_at, sums)
    index: tuple[int, ...] | None = None
    if worst_at is not None:
        index = _index(worst_at // 2 if expected.dtype.kind == "c" else worst_at, expected.shape)
    metrics = ErrorMetrics(
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
        worst_expected=_number(flat_expected[worst_at]) if worst_at is not None else None,
        worst_actual=_number(flat_actual[worst_at]) if worst_at is not None else None,
    )
    return metrics, reference


def _number(element: Any) -> float:
    """As a float, unless it is a whole number that float64 has not."""
    number = float(element)
    return int(element) if abs(number) >= 2.0**53 and element.dtype.kind in "iu" else number


def _index(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where an element lies that has the given place in row-major order."""
    index = []
    for length in reversed(shape):
        place, at = divmod(place, length)
        index.append(at)
    return tuple(reversed(index))


def _order_statistics(a: Array, b: Array, exact: bool, worst_at: int | None, sums: _Sums) -> tuple[float, float | None]:
    """99th percentile of the absolute difference, and the greatest distance in units of the last place."""
    finite = not sums.nonfinite_expected and not sums.nonfinite_actual
    if worst_at is None or (sums.differing == 0 and finite):
        return 0.0, None if exact else 0.0
    count = a.size
    if count > SAMPLE:
        # The worst element comes last.
        a, b = _sampled(a, worst_at), _sampled(b, worst_at)
        count = a.size - 1
    # No difference leaves float32 if the greatest does not.
    in_float32 = finite and sums.worst <= _GREATEST_FLOAT32 and _work_dtype(a.dtype, b.dtype) == _FLOAT32
    wide = _FLOAT32 if in_float32 else _FLOAT64
    if exact:
        d = integer_distances(a[:count], b[:count])
    else:
        d = np.subtract(b[:count], a[:count], dtype=wide)
        np.abs(d, out=d)
    if not finite:
        d = d[np.isfinite(d)]
    p99 = _percentile_99(d) if d.size else 0.0
    return p99, None if exact else _ulps(a, b, finite)


def _sampled(flat: Array, last: int) -> Array:
    """``SAMPLE`` of more elements, and one more.

    They lie in short runs, for single ones would touch about as many cache lines as reading all of a tensor does.
    """
    sample = np.empty(SAMPLE + 1, flat.dtype)
    flat.take(_sampled_places(flat.size), out=sample[:-1], mode="clip")
    sample[-1] = flat[last]
    return sample


@lru_cache(maxsize=16)
def _sampled_places(size: int) -> NDArray[np.intp]:
    """One run in each of equally long stretches, at ever another place of it: rows and channels all have their turn."""
    count = SAMPLE // RUN
    numbers = np.arange(count)
    starts = numbers * size // count
    room = (numbers + 1) * size // count - starts - RUN
    # Multiples of the golden ratio are spread evenly, and repeat themselves with no row.
    starts += (room * (numbers * _GOLDEN % 1.0)).astype(np.intp)
    places = (starts[:, None] + np.arange(RUN)).reshape(-1)
    places.setflags(write=False)
    return places


def _percentile_99(d: Array) -> float:
    """The number at place 99 % among numbers that are not negative, NaN left out; the same as sorting them gives."""
    rank = int(0.99 * (d.size - 1))
    if d.size > _FEW:
        # Few numbers are above a pivot near 95 % of some of them: the rest need no sorting.
        some = np.sort(d[:: d.size // 256])
        pivot = some[int(0.95 * (some.size - 1))]
        top, wanted = d[d > pivot], d.size - rank
        if top.size >= wanted:
            d, rank = top, top.size - wanted
        elif np.count_nonzero(d >= pivot) >= wanted:
            # Many are equal to the pivot.
            return float(pivot)
    if d.size <= _FEW:
        return float(np.sort(d)[rank])
    # Also naming the last place keeps numpy 2 from its vectorised selection, which is slow on many equal numbers.
    return float(np.partition(d, (rank, d.size - 1))[rank])


def _ulps(a: Array, b: Array, finite: bool) -> float:
    """Greatest number of representable values between the two sides, in the dtype of ``a``."""
    if a.dtype != b.dtype:
        # A narrower dtype may overflow.
        b, finite = b.astype(a.dtype), False
    if not finite:
        places = np.isfinite(a) & np.isfinite(b)
        a, b = a[places], b[places]
        if not a.size:
            return 0.0
    signed, unsigned = _BITS[a.dtype.itemsize]
    first, second = a.view(signed), b.view(signed)
    if _lowest(first ^ second) >= 0:
        # Equal signs: floats lie apart as their bits do.
        return float(_greatest(np.abs(first - second)))
    # Floats sort like their bits, once the negative ones are mirrored below zero.
    low = np.iinfo(signed).min
    first, second = (np.where(bits < 0, low - bits, bits) for bits in (first, second))
    # Values of opposite signs may lie further apart than a signed integer reaches, but never than an unsigned one.
    return float(_greatest(np.subtract(np.maximum(first, second), np.minimum(first, second)).view(unsigned)))


def _greatest(x: Array) -> Any:
    """``x.max()``, in a fraction of its fixed cost."""
    return x[x.argmax()]


def _lowest(x: Array) -> Any:
    return x[x.argmin()]
