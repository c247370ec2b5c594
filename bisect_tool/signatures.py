"""Small fingerprints of tensors, by which stages and ONNX values find each other without being kept in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.layouts import before_order, same_data_order
from bisect_tool.metrics import BLAS_STRETCH

SAMPLE = 1024
"""Elements a signature keeps: the odds that two different activations agree on all of them are nil."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Fingerprint of one tensor.

    Attributes:
        shape: of the tensor.
        kind: ``float`` | ``complex`` | ``integer``.
        sample: at most ``SAMPLE`` evenly spaced elements in row-major order, as float64; equal positions for all tensors
            with equally many elements, so that reshaped tensors can be compared as well.
        norm: L2 norm of the sample's finite elements.
        total: L2 norm of the whole tensor (float32 precision); ``inf`` if it overflows, NaN with NaN inside.
        beside: of the sample, what lies beside a mask's filling and is lost in its norm; ``None`` if nothing is.
    """

    shape: tuple[int, ...]
    kind: str
    sample: NDArray[np.float64]
    norm: float
    total: float
    beside: NDArray[np.bool_] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def signature_of(array: NDArray[Any], kind: str) -> Signature:
    """Fingerprint of an array of any shape; ``kind`` as in :func:`bisect_tool.metrics.kind_of`."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    step = -(-flat.size // SAMPLE) or 1
    sample = flat[::step].astype(np.float64)
    with np.errstate(all="ignore"):
        return Signature(tuple(array.shape), kind, sample, _finite_norm(sample), _norm(flat), _beside_filling(sample))


def sampled_norm(array: NDArray[Any]) -> float:
    """The ``norm`` that the array's signature will have, without reading or copying the rest of the array."""
    return _finite_norm(array[_spread_places(tuple(array.shape))].astype(np.float64))


@lru_cache(maxsize=64)
def _spread_places(shape: tuple[int, ...]) -> tuple[NDArray[np.intp], ...]:
    """Where the elements of a signature's sample lie, an array for each axis: the same for all tensors of a shape."""
    size = math.prod(shape)
    return tuple(np.unravel_index(np.arange(0, size, -(-size // SAMPLE) or 1), shape))


def _beside_filling(sample: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Where a sample lies beside a mask's filling, such as attention's scores beside -1e9, and is far smaller than that."""
    sizes = np.abs(sample)
    top = float(sizes.max(initial=0.0))
    if not _LEAST_FILLING <= top < math.inf:
        return None
    small = sizes < _FAR_BELOW * top
    filling = np.count_nonzero(sizes >= _NEARLY * top)
    # Nothing lies in between.
    if filling < _OFTEN * sizes.size or filling + np.count_nonzero(small) < sizes.size or not sizes[small].any():
        return None
    return small


_FAR_BELOW = 1e-3
_NEARLY = 0.9
_OFTEN = 0.03
_LEAST_FILLING = 10.0
"""Swin masks with -100. Probabilities are no filling, however sharp they are."""


def _finite_norm(sample: NDArray[np.float64]) -> float:
    """L2 norm of the elements that are neither NaN nor infinite."""
    square = float(sample.dot(sample))
    if not math.isfinite(square):
        sample = sample[np.isfinite(sample)]
        square = float(sample.dot(sample))
    return math.sqrt(square)


def _norm(flat: NDArray[Any]) -> float:
    """L2 norm, in float32's precision at least."""
    if flat.dtype == np.float32:
        return math.sqrt(float(flat.dot(flat)))
    # numpy is faster from float16 and int64 to float64 than to float32.
    work = np.float32 if flat.dtype == ml_dtypes.bfloat16 else np.float64
    square = 0.0
    # A copy of the whole tensor may be eight times its size.
    for at in range(0, flat.size, BLAS_STRETCH):
        part = flat[at : at + BLAS_STRETCH].astype(work, copy=False)
        square += float(part.dot(part))
    return math.sqrt(square)


PERMUTATIONS: Mapping[int, tuple[tuple[int, ...], ...]] = {
    2: ((1, 0),),
    3: ((1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)),
    4: ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3), (1, 0, 2, 3), (0, 1, 3, 2), (2, 0, 1, 3), (0, 3, 2, 1), (1, 2, 0, 3)),
    5: ((0, 2, 3, 4, 1), (0, 4, 1, 2, 3), (2, 0, 3, 1, 4), (0, 2, 1, 3, 4), (1, 0, 2, 3, 4), (0, 1, 3, 2, 4)),
}
"""Orders of axes that exporters use, by rank: time-major recurrences, channels last, heads split and joined."""


def permuted_signatures(
    array: NDArray[Any], kind: str, plain: Signature | None = None
) -> dict[tuple[int, ...], Signature]:
    """Fingerprints of the array with its axes permuted, without permuting it.

    ``plain`` is the array's own signature where it is there already: its norm takes reading the whole array.
    """
    if array.size == 0 or array.dtype.kind == "c":
        return {}
    orders, places = _sampled_places(tuple(array.shape))
    if not orders:
        return {}
    # Flattening another layout would copy all of it.
    picked = (
        array.reshape(-1).take(places) if array.flags.c_contiguous else array[np.unravel_index(places, array.shape)]
    )
    samples = picked.astype(np.float64)
    found = {}
    with np.errstate(all="ignore"):
        total = _norm(np.ascontiguousarray(array).reshape(-1)) if plain is None else plain.total
        for order, sample in zip(orders, samples, strict=True):
            shape = tuple(array.shape[axis] for axis in order)
            found[order] = Signature(shape, kind, sample, _finite_norm(sample), total, _beside_filling(sample))
    return found


def split_signatures(
    array: NDArray[Any], kind: str, shape: Sequence[int], plain: Signature | None = None
) -> dict[tuple[int, ...], Signature]:
    """Fingerprints of the array with other axes than it has, and these in other orders, as far as they give a shape.

    A projection (2, 16, 24) whose heads another graph makes at once, as (2, 3, 16, 8), is such.
    """
    found: dict[tuple[int, ...], Signature] = {}
    if len(shape) == array.ndim or math.prod(shape) != array.size:
        return found
    for order in PERMUTATIONS.get(len(shape), ()):
        parts = before_order(order, shape)
        if same_data_order(array.shape, parts):
            signatures = permuted_signatures(np.ascontiguousarray(array).reshape(parts), kind, plain)
            if order in signatures:
                found[order] = signatures[order]
    return found


@lru_cache(maxsize=64)
def _sampled_places(shape: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], NDArray[np.intp]]:
    """Orders of axes that are worth trying, and for each where a permuted tensor's sample lies in the unpermuted one.

    Kept for the few shapes that most of a model's tensors have: at most 56 KiB each.
    """
    orders = []
    for order in PERMUTATIONS.get(len(shape), ()):
        moved = [axis for axis in order if shape[axis] != 1]
        # Where only axes of length one move, the permuted tensor is a reshaped one.
        if moved != sorted(moved):
            orders.append(order)
    size = math.prod(shape)
    sampled = np.arange(0, size, -(-size // SAMPLE), dtype=np.intp)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = np.zeros((len(orders), sampled.size), np.intp)
    for row, order in zip(places, orders, strict=True):
        rest = sampled
        for axis in reversed(order):
            rest, index = np.divmod(rest, shape[axis])
            row += index * strides[axis]
    places.setflags(write=False)
    return tuple(orders), places


def mark_of(signature: Signature) -> Hashable:
    """The same for signatures that are equal, and for no others."""
    # As bytes: NaN is not equal to itself.
    numbers = signature.sample.tobytes() + np.float64(signature.total).tobytes()
    return signature.kind, signature.shape, hashlib.blake2b(numbers, digest_size=16).digest()


_WORTH_A_LOOK = 0.5
"""Relative difference up to which what is beside a mask's filling may decide."""


def distance(reference: Signature, other: Signature) -> float:
    """Estimate of the relative L2 difference; ``inf`` if the two can't be the same tensor, even reshaped.

    Where the samples agree perfectly, whole-tensor norms have a say: a sample may miss the few places that differ.
    """
    if reference.kind != other.kind or (reference.shape != other.shape and reference.size != other.size):
        return math.inf
    a, b = reference.sample, other.sample
    with np.errstate(all="ignore"):
        apart = b - a
        square = float(apart.dot(apart))
        if not math.isfinite(square):
            # NaN and infinities on one side at least, or a square beyond float64.
            finite_a, finite_b = np.isfinite(a), np.isfinite(b)
            same = (finite_a == finite_b) & (finite_a | (a == b) | (np.isnan(a) & np.isnan(b)))
            if not same.all():
                return math.inf
            apart = b[finite_a] - a[finite_a]
            square = float(apart.dot(apart))
    difference = math.sqrt(square)
    norm = reference.norm
    from_sample = 0.0 if difference == 0 else (difference / norm if norm else math.inf)
    if reference.beside is not None and 0 < from_sample <= _WORTH_A_LOOK:
        own = a[reference.beside]
        beside = float(np.linalg.norm(b[reference.beside] - own) / np.linalg.norm(own))
        from_sample = max(from_sample, beside) if math.isfinite(beside) else math.inf
    if math.isfinite(reference.total) and math.isfinite(other.total):
        gap = abs(reference.total - other.total)
        # float32 sums of norms are good to about 1e-4; a smaller gap says nothing.
        from_norm = gap / reference.total if reference.total else (0.0 if gap == 0 else math.inf)
        if from_norm > 1e-3:
            return max(from_sample, from_norm)
    return from_sample
