"""The inputs of a graph in other orders (``BD404``): two of one shape exchanged, channels turned; and its branches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.causes import INPUTS, OPERANDS, TITLES, UNKNOWN
from bisect_tool.records import Diagnosis

Array = NDArray[Any]

CHANNELS = (3,)
"""Lengths of an axis that may be colours."""

MOST = 16
"""Orders that are tried."""

CLEARLY = 10
"""How much smaller the outputs' error has to be in another order."""


@dataclass(frozen=True, slots=True)
class Order:
    """The inputs otherwise; ``text``: how, in words."""

    text: str
    feeds: Mapping[str, Array]


def other_orders(feeds: Mapping[str, Array]) -> Iterator[Order]:
    """Orders that change something, the likeliest first; at most :data:`MOST`."""
    yield from itertools.islice(_orders(feeds), MOST)


def _orders(feeds: Mapping[str, Array]) -> Iterator[Order]:
    for one, other in itertools.combinations(feeds, 2):
        a, b = feeds[one], feeds[other]
        if a.shape == b.shape and a.dtype == b.dtype and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            yield Order(f"inputs {one} and {other} exchanged", {**feeds, one: b, other: a})
    for name, array in feeds.items():
        for axis in _channel_axes(array):
            size = array.shape[axis]
            orders = sorted(itertools.permutations(range(size)), key=lambda order: order != tuple(range(size))[::-1])
            for order in orders:
                turned = np.take(array, order, axis)
                if not np.array_equal(turned, array):
                    reverse = " (RGB and BGR)" if order == tuple(range(size))[::-1] and size == 3 else ""
                    text = f"the channels of input {name} (axis {axis}) as {', '.join(map(str, order))}{reverse}"
                    yield Order(text, {**feeds, name: np.ascontiguousarray(turned)})
    for name, array in feeds.items():
        if array.ndim >= 2 and array.shape[-1] == array.shape[-2] > 1:
            turned = np.swapaxes(array, -1, -2)
            if not np.array_equal(turned, array):
                yield Order(f"the last two axes of input {name} exchanged", {**feeds, name: turned.copy()})


def _channel_axes(array: Array) -> list[int]:
    """Axes that may be channels: the second one, or the last."""
    if array.ndim < 3 or array.dtype.kind not in "fu":
        return []
    axes = [1, array.ndim - 1] if array.ndim > 3 else [0, array.ndim - 1]
    return [axis for axis in dict.fromkeys(axes) if array.shape[axis] in CHANNELS]


def order_diagnosis(order: Order, before: float, after: float, tried: int, config: str) -> Diagnosis:
    """What it means that the outputs agree under another order; errors are those of the worst output."""
    others = f"; {tried - 1} other order{'s' if tried > 2 else ''} did not" if tried > 1 else ""
    return Diagnosis(
        code=INPUTS,
        title=TITLES[INPUTS],
        evidence=(
            f"with {order.text} the graph gives PyTorch's outputs",
            f"tried under {config}: the error of the outputs falls from {before:.1e} to {after:.1e}{others}",
        ),
        remedy="feed the graph in that order, or export it from the model with the preprocessing that is meant",
        remedy_verified=True,
        cost=None,
        error_before=before,
        error_after=after,
    )


def branches_diagnosis(node: str, before: float, after: float, config: str) -> Diagnosis:
    """What it means that the outputs agree with the branches of an ``If`` exchanged; errors are those of the worst output."""
    return Diagnosis(
        code=OPERANDS,
        title=TITLES[OPERANDS],
        evidence=(
            f"If {node} takes the branch that PyTorch does not: with its two branches exchanged the graph gives PyTorch's "
            "outputs",
            f"tried under {config}: the error of the outputs falls from {before:.1e} to {after:.1e}",
        ),
        remedy=f"exchange the branches of {node}, or negate its condition",
        remedy_verified=True,
        cost=None,
        error_before=before,
        error_after=after,
    )


def with_branches(found: Sequence[Diagnosis], branches: Diagnosis | None) -> list[Diagnosis]:
    """Where the outputs agree with other branches, what mends a node inside the branch that runs is no cause."""
    if branches is None:
        return list(found)
    return [branches, *(each for each in found if each.origin is None and each.code != UNKNOWN)]
