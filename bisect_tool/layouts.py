"""Orders of axes that converters change between: channels first and last, batch and time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import relative_difference

Array = NDArray[Any]

LAYOUTS: dict[int, dict[tuple[int, ...], str]] = {
    2: {(1, 0): "transposed"},
    3: {(0, 2, 1): "channels last or first", (1, 0, 2): "the first two axes exchanged"},
    4: {(0, 2, 3, 1): "channels last", (0, 3, 1, 2): "channels first", (1, 0, 2, 3): "the first two axes exchanged"},
    5: {(0, 2, 3, 4, 1): "channels last", (0, 4, 1, 2, 3): "channels first"},
}
"""By rank, the likeliest first."""


def layout_change(shape: Sequence[int], dims: Sequence[int | str]) -> tuple[int, ...] | None:
    """The order of a tensor's axes that gives the wanted shape; ``None`` if there is none, or only an unusual one of several.

    Args:
        shape: of the tensor.
        dims: sizes, and names or "?" where any size will do.
    """
    return next(layout_changes(shape, dims), None)


def layout_changes(shape: Sequence[int], dims: Sequence[int | str]) -> Iterator[tuple[int, ...]]:
    """All orders of a tensor's axes that may be meant by the wanted shape, the likeliest first."""
    if len(shape) != len(dims):
        return
    usual = LAYOUTS.get(len(shape), {})
    for order in usual:
        if all(not isinstance(dim, int) or dim == shape[axis] for axis, dim in zip(order, dims, strict=True)):
            yield order
    # With a wildcard among them, sizes say too little for an order that nobody uses.
    sizes = [dim for dim in dims if isinstance(dim, int)]
    if len(sizes) == len(dims):
        only = axis_order(shape, sizes)
        if only is not None and only not in usual and len(set(shape)) == len(shape):
            yield only


def layout_of(expected: Array, actual: Array) -> tuple[int, ...] | None:
    """The order of the expected tensor's axes that the actual one has, by shape, and where that leaves several by value.

    ``None`` if both have one shape, or no order explains the other.
    """
    if expected.shape == actual.shape or expected.size != actual.size:
        return None
    orders = list(layout_changes(expected.shape, actual.shape))
    if len(orders) < 2:
        return orders[0] if orders else None
    return min(orders, key=lambda order: _or_infinite(relative_difference(expected.transpose(order), actual)))


def _or_infinite(error: float) -> float:
    return math.inf if math.isnan(error) else error


def in_layout(array: Array | None, shape: Sequence[int], order: tuple[int, ...]) -> Array | None:
    """Back from ``order`` to the order in which a tensor of ``shape`` has its axes; what does not fit stays as it is."""
    if array is None or tuple(array.shape) != tuple(shape[axis] for axis in order):
        return array
    return array.transpose(np.argsort(order))


def describe_order(order: tuple[int, ...]) -> str:
    """``(0, 2, 3, 1), channels last``."""
    name = LAYOUTS.get(len(order), {}).get(order)
    return f"({', '.join(map(str, order))})" + (f", {name}" if name else "")


def in_order(array: Array, order: tuple[int, ...], shape: Sequence[int] | None) -> Array:
    """A tensor with its axes in another order; where that has another number of axes, split or merged to the wanted shape.

    Args:
        array: of any shape.
        order: of the axes that the result has.
        shape: of the result; it matters only where the numbers of axes differ.
    """
    if len(order) != array.ndim and shape is not None:
        array = np.ascontiguousarray(array).reshape(before_order(order, shape))
    return array.transpose(order)


def before_order(order: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """The shape that putting axes in this order makes another one of."""
    return tuple(int(shape[place]) for place in np.argsort(order))


def same_data_order(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether one shape comes from the other by merging neighbouring axes, axes of length 1 left out.

    ``(2, 4, 8, 8)`` and ``(8, 64)`` do; ``(2, 24, 64)`` and ``(24, 2, 64)`` don't: there the data is permuted.
    """

    def ends(shape: Sequence[int]) -> set[int]:
        return set(itertools.accumulate((d for d in shape if d != 1), lambda a, b: a * b))

    if math.prod(first) != math.prod(second):
        return False
    return ends(first) <= ends(second) or ends(second) <= ends(first)


def axis_order(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...] | None:
    """The only order of ``first``'s axes that gives ``second``, axes of length 1 left out; ``None`` if there are several."""
    kept, wanted = [d for d in first if d != 1], [d for d in second if d != 1]
    if sorted(kept) != sorted(wanted) or len(set(kept)) != len(kept):
        return None
    ones = [axis for axis, d in enumerate(first) if d == 1]
    return (*ones, *(list(first).index(d) for d in wanted))
