"""Whose weights a graph's initialisers are, by what they hold: for graphs that have lost all names.

Exporters and converters swap axes, round to half precision, and fold a BatchNorm or a scale into the layer before it.
Sums over a whole tensor don't see swapped axes; shapes of rows, each by its own norm, don't see factors either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.align.bias_elsewhere import BIAS_AT

Array = NDArray[Any]

_HALF = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_SAME = 1e-9
_ROUNDED = 1e-5
_FOLDED = 1e-4
_CHUNK = 1 << 20
_NO_SUMS = np.full(5, np.nan)


def weight_owners(
    initializers: Mapping[str, Callable[[], Array]],
    sizes: Mapping[str, int],
    parameters: Mapping[str, Callable[[], Array]],
    parameter_sizes: Mapping[str, int],
    scales: Sequence[Array] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Parameters that hold what an initialiser holds; several where weights are shared, none where nothing fits.

    Args:
        initializers: how to get each, by name.
        sizes: number of elements, by name.
        parameters: how to get each, by dotted name.
        parameter_sizes: number of elements, by name.
        scales: factors by output channel that may have been folded in, those of BatchNorms; ``None``: any. What has
            another factor folded in makes another value than the parameter's module does.

    Tensors of one number all over (fresh norms and biases) and single numbers tell nothing and are left out.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, size in parameter_sizes.items():
        if size > 1:
            by_size[size].append(name)
    sums: dict[tuple[int, str], Array] = {}
    rows: dict[str, list[tuple[Array, Array]]] = {}

    def sums_of(size: int, dtype: np.dtype[Any]) -> Array:
        """Of all parameters of one size, a row each; NaN, which nothing is near to, where there are none."""
        half = dtype.name if dtype.name in _HALF else ""
        if (size, half) not in sums:
            arrays = (parameters[parameter]() for parameter in by_size[size])
            found = [_sums(array.astype(dtype) if half else array) for array in arrays]
            sums[size, half] = np.array([_NO_SUMS if own is None else own for own in found])
        return sums[size, half]

    def rows_of(parameter: str) -> list[tuple[Array, Array]]:
        if parameter not in rows:
            rows[parameter] = _rows(parameters[parameter]())
        return rows[parameter]

    found: dict[str, tuple[str, ...]] = {}
    for name, get in initializers.items():
        options = by_size.get(sizes[name], [])
        if not options:
            continue
        array = get()
        own = _sums(array)
        if own is None:
            continue
        limit = _ROUNDED if array.dtype.name in _HALF else _SAME
        near = _near(own, sums_of(sizes[name], array.dtype), limit)
        equal = [options[place] for place in np.flatnonzero(near)]
        if not equal and array.ndim > 1:
            shapes = _rows(array)
            limit = 1e-2 if array.dtype.name in _HALF else _FOLDED
            equal = [p for p in options if any(_scaled(a, b, scales, limit) for a in shapes for b in rows_of(p))]
        if equal:
            found[name] = tuple(equal)
    return found


def _sums(array: Array) -> Array | None:
    """Sums that no order of elements changes; ``None`` for one number all over, and for what is not finite."""
    flat = np.asarray(array).reshape(-1)
    total = np.zeros(3)
    low, high = np.inf, -np.inf
    with np.errstate(all="ignore"):
        for at in range(0, flat.size, _CHUNK):
            part = flat[at : at + _CHUNK].astype(np.float64)
            total += (part.sum(), np.abs(part).sum(), np.dot(part, part))
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    if low == high or not np.isfinite(total).all():
        return None
    return np.array([*total, low, high])


def _near(one: Array, others: Array, limit: float) -> Array:
    """Which of the others, a row each, are near."""
    # The sum of numbers that cancel is only as good as the sum of their sizes.
    near: Array = (np.abs(one - others) <= limit * np.array([one[1], *np.abs(one[1:])])).all(axis=1)
    return near


def _rows(array: Array) -> list[tuple[Array, Array]]:
    """By output channel the sum of sizes over the norm, and the norm, whichever of the first two axes that is."""
    found = []
    work = np.abs(np.asarray(array).astype(np.float32))
    for axis in range(min(array.ndim, 2)):
        flat = np.moveaxis(work, axis, 0).reshape(work.shape[axis], -1)
        if min(flat.shape) < 2:
            continue
        norms = np.sqrt(np.einsum("ij,ij->i", flat, flat))
        found.append((np.divide(flat.sum(1), norms, out=np.zeros_like(norms), where=norms > 0), norms))
    return found


def _scaled(one: tuple[Array, Array], other: tuple[Array, Array], scales: Sequence[Array] | None, limit: float) -> bool:
    """Whether channels of two weights differ by factors alone, and by factors that may be."""
    if not _alike(one[0], other[0], limit):
        return False
    if scales is None:
        return True
    factors = np.divide(one[1], other[1], out=np.ones_like(one[1]), where=other[1] > 0)
    known = [np.ones_like(factors), *(np.abs(scale) for scale in scales if scale.shape == factors.shape)]
    return any(_alike(scale.astype(np.float32), factors, 10 * limit) for scale in known)


def _alike(one: Array, other: Array, limit: float) -> bool:
    return one.shape == other.shape and bool((np.abs(one - other) <= limit * np.abs(one)).all()) and bool(one.any())


def places_by_weights(
    nodes: Sequence[tuple[str, str, Sequence[str], Sequence[str]]],
    owners: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    outputs: Iterable[str],
) -> dict[str, str]:
    """Module path by node: that of the weights it reads, and of the weight before it where its own is nobody's.

    A sum with a bias that is not the model's is still the layer's: a faulty bias is no reason to look for it elsewhere.

    Args:
        nodes: name, type, inputs and outputs of each, in a topological order.
        owners: from :func:`weight_owners`.
        sizes: elements of the floating initialisers, by name.
        outputs: of the graph.
    """
    held: dict[str, set[str]] = {}
    for name, parameters in owners.items():
        held[name] = {parameter.rpartition(".")[0] for parameter in parameters}
    readers: dict[str, list[int]] = defaultdict(list)
    for index, (_, op, inputs, made) in enumerate(nodes):
        for name in inputs:
            readers[name].append(index)
        # Weights may be turned or cast before they are read.
        if op in _TURNING and inputs and inputs[0] in held and made:
            held[made[0]] = held[inputs[0]]
    found: dict[str, str] = {}
    for name, op, inputs, _ in nodes:
        if op in _TURNING:
            continue
        # The bias of the product before a fused node says nothing about that.
        own = [read for place, read in enumerate(inputs) if place != BIAS_AT.get(op)]
        paths = [held[read] for read in own if read in held]
        common = set.intersection(*paths) if paths else set()
        if len(common) == 1:
            found[name] = common.pop()
    final = set(outputs)
    for name, _, _, made in nodes:
        if name not in found:
            continue
        # Converters write the norm behind a convolution with channels last.
        while made and made[0] not in final and len(set(readers[made[0]])) == 1:
            following, op, inputs, made = nodes[readers[made[0]][0]]
            if op not in _TURNING:
                break
        else:
            continue
        weights = [read for read in inputs if sizes.get(read, 0) > 1]
        if (
            op in ("Add", "Mul", "Sub", "Div")
            and following not in found
            and weights
            and not any(read in held for read in weights)
        ):
            found[following] = found[name]
    return found


_TURNING = {"Transpose", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
