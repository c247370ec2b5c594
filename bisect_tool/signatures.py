"""Small fingerprints of tensors, by which stages and ONNX values find each other without being kept in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """

    shape: tuple[int, ...]
    kind: str
    sample: NDArray[np.float64]
    norm: float
    total: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def signature_of(array: NDArray[Any], kind: str) -> Signature:
    """Fingerprint of an array of any shape; ``kind`` as in :func:`bisect_tool.metrics.kind_of`."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    step = max(1, -(-flat.size // SAMPLE))
    sample = flat[::step][:SAMPLE].astype(np.float64)
    finite = sample[np.isfinite(sample)]
    with np.errstate(all="ignore"):
        if flat.dtype in (np.float32, np.float64):
            total = math.sqrt(abs(float(np.dot(flat, flat)))) if flat.size else 0.0
        elif flat.size:
            total = float(np.linalg.norm(flat.astype(np.float32)))
        else:
            total = 0.0
        norm = float(np.linalg.norm(finite)) if finite.size else 0.0
    return Signature(tuple(array.shape), kind, sample, norm, total)


PERMUTATIONS: Mapping[int, tuple[tuple[int, ...], ...]] = {
    2: ((1, 0),),
    3: ((1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)),
    4: ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3), (1, 0, 2, 3), (0, 1, 3, 2), (2, 0, 1, 3), (0, 3, 2, 1)),
}
"""Orders of axes that exporters use, by rank: time-major recurrences, channels last, heads split and joined."""


def permuted_signatures(array: NDArray[Any], kind: str) -> dict[tuple[int, ...], Signature]:
    """Fingerprints of the array with its axes permuted, without permuting it."""
    found = {}
    plain = signature_of(array, kind)
    for order in PERMUTATIONS.get(array.ndim, ()):
        shape = tuple(array.shape[axis] for axis in order)
        moved = [axis for axis in order if array.shape[axis] != 1]
        if moved == sorted(moved) or array.size == 0:
            continue
        step = max(1, -(-array.size // SAMPLE))
        places = np.unravel_index(np.arange(0, array.size, step)[:SAMPLE], shape)
        index: list[Any] = [None] * array.ndim
        for axis, place in zip(order, places, strict=True):
            index[axis] = place
        picked = array[tuple(index)]
        if picked.dtype.kind == "c":
            continue
        sample = picked.astype(np.float64)
        finite = sample[np.isfinite(sample)]
        norm = float(np.linalg.norm(finite)) if finite.size else 0.0
        found[order] = Signature(shape, kind, sample, norm, plain.total)
    return found


def distance(reference: Signature, other: Signature) -> float:
    """Estimate of the relative L2 difference; ``inf`` if the two can't be the same tensor, even reshaped.

    Where the samples agree perfectly, whole-tensor norms have a say: a sample may miss the few places that differ.
    """
    if reference.kind != other.kind or reference.size != other.size:
        return math.inf
    a, b = reference.sample, other.sample
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    if not finite_a.all() or not finite_b.all():
        same = (finite_a == finite_b) & (finite_a | (a == b) | (np.isnan(a) & np.isnan(b)))
        if not same.all():
            return math.inf
        a, b = a[finite_a], b[finite_b]
    difference = float(np.linalg.norm(b - a))
    norm = reference.norm
    from_sample = 0.0 if difference == 0 else (difference / norm if norm else math.inf)
    if math.isfinite(reference.total) and math.isfinite(other.total):
        gap = abs(reference.total - other.total)
        # float32 sums of norms are good to about 1e-4; a smaller gap says nothing.
        from_norm = gap / reference.total if reference.total else (0.0 if gap == 0 else math.inf)
        if from_norm > 1e-3:
            return max(from_sample, from_norm)
    return from_sample
