"""The two-sided noise floor: how far each side lies from a stage computed in float64, in units of what rounding can do.

``reference`` is the stage in float64 on PyTorch's own inputs, ``expected`` what PyTorch's run made of them, ``actual`` what
ONNX Runtime made of them (the forced run), ``strict`` a plain float32 computation on the CPU. The floor is
``max(||strict - reference||, EPSILONS * eps * ||reference||)``, and where that does not clear a stage, what made-up
rounding does to it as well. Each side is judged alone: PyTorch in TF32 or half precision never sets its own floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import integer_distances, kind_of
from bisect_tool.records import Noise, Side

Array = NDArray[Any]

CHEAP_BOUND = 16.0
"""Units of the dtype's eps; a local error below it is rounding, and nothing is replayed. docs/noise-floor.md."""

HALF_BOUND = 2.0
"""The same for dtypes with eps above 1e-4, where one rounding of the result is most of the error."""

EPSILONS = 1.0
"""Least floor, in units of eps: a few elements may come out right by luck, and float32's own error is no yardstick then."""

BEYOND = 3.0
"""A side that lies further off than this many floors makes error of its own."""

DRAWS = 3
"""Samples of made-up rounding that a stage is given before a side is blamed."""

LEANING = 8.0
"""Units in the last place by which the operand of a step is moved, to see what rounding can carry over its edge."""

STEADY = 64.0
"""Units of eps, of an element or of the root mean square, up to which an element does not depend on any step."""

UNSEEN = 8
"""Of so many elements that were seen to jump one more may do so unseen; chance has its share in few."""

MOST_UNSEEN = 0.01
"""Share of the elements that depend on no step, as far as was seen, from which on they do not."""

_CHUNK = 1 << 20

_SMALLEST, _GREATEST = 1e-130, 1e130
"""Norms between which no square that counts leaves the range of float64."""


SETTLED = Noise(settled=True)


def side_of(noise: Noise) -> Side | None:
    """The side that makes error of its own; where both do, the one that is further off."""
    if noise.ratio is None or not noise.ratio > BEYOND:
        return None
    assert noise.expected is not None and noise.actual is not None
    return "expected" if noise.expected > noise.actual else "actual"


def epsilon(dtype: str) -> float:
    """Distance from 1 to the next number of a dtype, 0 for integers and booleans."""
    real = {"complex64": "float32", "complex128": "float64", "complex32": "float16"}.get(dtype, dtype)
    if not real.startswith(("float", "bfloat")):
        return 0.0
    return float(ml_dtypes.finfo(real).eps)


def is_settled(local_rel_l2: float, dtype: str) -> bool:
    """The cheap bound: whether a local error is so small that no fault worth naming can be in it."""
    eps = epsilon(dtype)
    bound = HALF_BOUND if eps > 1e-4 else CHEAP_BOUND
    # Wider than float32 is what one side alone may have been computed in.
    return local_rel_l2 <= bound * max(eps, epsilon("float32") if eps else 0.0)


def assess(
    reference: Array,
    expected: Array,
    actual: Array,
    dtype: str,
    strict: Array | None,
    draws: Iterable[Array] = (),
    leaning: Iterable[Array] = (),
) -> Noise:
    """Holds both sides against the floor.

    A step (``floor``, a comparison) that rounding carries over its edge excuses what depends on it, and nothing else: where
    no made-up rounding makes any difference, both sides are held against what rounding does there.

    Args:
        reference: the stage in float64.
        expected, actual, strict: both sides and the plain float32 computation, all in the reference's shape.
        dtype: the stage is declared in, a short name.
        strict: ``None`` where the expected side is just that.
        draws: the stage with made-up rounding; asked for only if the stage is not cleared without.
        leaning: for a stage with steps, the stage with their operands moved up and down; asked for only where an error
            beyond rounding would be excused.
    """
    norm, scale = _norm(reference), 1.0
    if not _SMALLEST < norm < _GREATEST:
        scale = _scale_of(reference)
        norm = _norm(reference, scale)
    apart = [_apart(reference, side, scale) for side in (expected, actual)]
    own = apart[0] if strict is None else _apart(reference, strict, scale)
    eps = max(epsilon(dtype), epsilon("float32") if epsilon(dtype) else 0.0)
    floor = max(own, EPSILONS * eps * norm)
    ratios = [_ratio(error, floor) for error in apart]
    drawn = [] if strict is None else [strict]
    draws = iter(draws)
    if max(apart) > BEYOND * floor:
        turned = 0
        for draw in draws:
            drawn.append(draw)
            # One that overflowed where the stage does not says nothing about rounding.
            if math.isfinite(apart_by := _apart(reference, draw, scale)):
                floor = max(floor, apart_by)
                turned = max(turned, 0 if eps else _differing(reference, draw))
        ratios = [_ratio(error, floor) for error in apart]
        if turned:
            sides = (_differing(reference, side) for side in (expected, actual))
            ratios = [max(ratio, count / _most_turned(turned)) for ratio, count in zip(ratios, sides, strict=True)]
    if eps and max(ratios) <= BEYOND and max(apart) > BEYOND * STEADY * eps * norm:
        moved = [*drawn, *leaning]
        if len(moved) > len(drawn):
            moved += draws
            beside = [_beside_steps(reference, side, moved, eps) for side in (expected, actual)]
            ratios = [max(pair) for pair in zip(ratios, beside, strict=True)]
    return Noise(floor / norm if norm else floor, ratios[0], ratios[1])


def _beside_steps(reference: Array, side: Array, moved: Sequence[Array], eps: float) -> float:
    """Error in units of rounding, of the elements that no made-up rounding changes; 0 where there are none."""
    if any(each.shape != reference.shape for each in moved):
        # How many numbers there are is what jumps.
        return 0.0
    exact, other = _wide(reference), _wide(side)
    with np.errstate(all="ignore"):
        size = np.abs(exact)
        typical = math.sqrt(float(np.mean(np.square(size[np.isfinite(size)])))) if np.isfinite(size).any() else 0.0
        allowed = STEADY * eps * np.maximum(size, typical)
        steady = np.isfinite(exact) & np.isfinite(other)
        for each in moved:
            steady &= np.abs(_wide(each) - exact) <= allowed
        excess = (np.abs(other - exact) / np.where(allowed > 0, allowed, 1.0))[steady]
    off = int(np.count_nonzero(excess > BEYOND))
    seen = exact.size - excess.size
    chance = seen / UNSEEN + 5 * (math.sqrt(seen) + 1) / BEYOND
    if off <= max(chance, MOST_UNSEEN * excess.size) or not typical:
        return 0.0
    return float(np.sqrt(np.mean(np.square(excess))))


def _wide(array: Array) -> Array:
    """In a row, complex numbers as their parts."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return (flat.view(flat.real.dtype) if flat.dtype.kind == "c" else flat).astype(np.float64)


def _differing(reference: Array, other: Array) -> int:
    if other.shape != reference.shape:
        return int(reference.size)
    if kind_of(reference.dtype) == kind_of(other.dtype) == "integer":
        return int(np.count_nonzero(reference != other))
    return sum(int(np.count_nonzero(first != second)) for first, second in _chunks([reference, other]))


def _most_turned(turned: int) -> float:
    """So many whole numbers may be others for one floor, if rounding turns ``turned`` of them: chance has its share in few.

    Their norm tells little: two that changed places at a tie are as far off as a whole row in another order.
    """
    return turned + 5 * (math.sqrt(turned) + 1) / BEYOND


def _ratio(error: float, unit: float) -> float:
    if error == unit or error == 0:
        return 1.0 if error else 0.0
    return error / unit if unit else math.inf


def _scale_of(array: Array) -> float:
    """A power of two that brings the greatest finite number near 1: squares of float64 may leave its range."""
    peak = max(
        (float(np.abs(chunk[np.isfinite(chunk)]).max(initial=0.0)) for (chunk,) in _chunks([array])), default=0.0
    )
    return math.ldexp(1.0, min(-math.frexp(peak)[1], 1000)) if peak else 1.0


def _norm(array: Array, scale: float = 1.0) -> float:
    total = 0.0
    for (chunk,) in _chunks([array], scale):
        total += float(np.sum(np.square(chunk[np.isfinite(chunk)])))
    return math.sqrt(total)


def _apart(reference: Array, other: Array, scale: float = 1.0) -> float:
    """Norm of the difference, times ``scale``; infinite where one has a NaN or an infinity that the other has not."""
    if other.shape != reference.shape:
        return math.inf
    if kind_of(reference.dtype) == kind_of(other.dtype) == "integer":
        return _integers_apart(reference.reshape(-1), other.reshape(-1), scale)
    total = 0.0
    for first, second in _chunks([reference, other], scale):
        difference = second - first
        if not np.isfinite(difference).all():
            same = (first == second) | (np.isnan(first) & np.isnan(second))
            difference = np.where(same, 0.0, difference)
            if not np.isfinite(difference).all():
                return math.inf
        total += float(np.dot(difference, difference))
    return math.sqrt(total)


def _integers_apart(reference: Array, other: Array, scale: float) -> float:
    """The same for whole numbers: beyond 2**53 two of them may be one float64."""
    total = 0.0
    for at in range(0, reference.size, _CHUNK):
        apart = integer_distances(reference[at : at + _CHUNK], other[at : at + _CHUNK]) * scale
        total += float(apart.dot(apart))
    return math.sqrt(total)


def _chunks(arrays: Sequence[Array], scale: float = 1.0) -> Iterable[list[Array]]:
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    flat = [a.view(a.real.dtype) if a.dtype.kind == "c" else a for a in flat]
    with np.errstate(all="ignore"):
        for start in range(0, flat[0].size, _CHUNK):
            wide = [a[start : start + _CHUNK].astype(np.float64) for a in flat]
            yield wide if scale == 1.0 else [a * scale for a in wide]
