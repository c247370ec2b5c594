"""Runs ONNX segments beside PyTorch's activations: what a segment makes is compared and freed before the next one runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bisect_tool.backends.onnx_program import ValueType
from bisect_tool.backends.ort_runner import SegmentedRun
from bisect_tool.layouts import in_order
from bisect_tool.precision import HALF, saturated

Array = NDArray[Any]
OnPair = Callable[[str, int, Array, "Array | None", "Array | None"], None]


class Activations(Protocol):
    """PyTorch's side, by value id, in PyTorch's shapes; see :class:`bisect_tool.backends.activations.ActivationStore`."""

    def fetch(self, value: int) -> Array: ...

    def prefetch(self, values: Collection[int]) -> None:
        """Says that these values will be fetched soon."""

    def retain(self, values: Collection[int]) -> None:
        """Says that only these fetched values are still in use."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One configuration's segments, and which PyTorch value each exposed ONNX value is compared with.

    Attributes:
        name: passed on to the callback.
        run: the segments.
        pairs: ONNX value → PyTorch value; a PyTorch value may stand here more than once.
        permutations: ONNX value → order of the PyTorch tensor's axes in it, where that differs.
        on_values: sees everything exposed of each segment, chained and forced, before the pairs are handed out.
    """

    name: str
    run: SegmentedRun
    pairs: Mapping[str, int]
    permutations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    on_values: Callable[[Mapping[str, Array | None], Mapping[str, Array | None]], None] | None = None


def run_lanes(
    lanes: Sequence[Lane],
    activations: Activations,
    on_pair: OnPair,
    after_step: Callable[[], None] = lambda: None,
    *,
    prefetch: bool = False,
) -> None:
    """Runs every lane, segment by segment, and hands out each pair as soon as both sides are there.

    Args:
        lanes: what runs, one after the other: two chains at once would add up.
        activations: PyTorch's side.
        on_pair: called as ``on_pair(lane, value, expected, chained, forced)``, all in PyTorch's shape; ``forced`` is
            ``None`` where the lane has no forced run. The arrays are not valid afterwards.
        after_step: called after each segment, when its tensors are free.
        prefetch: whether to say what of PyTorch's side comes next; it is there earlier then, and longer.
    """
    for lane in lanes:
        while not lane.run.done:
            _step(lane, activations, on_pair, prefetch=prefetch)
            after_step()
        activations.retain(())


def _step(lane: Lane, activations: Activations, on_pair: OnPair, *, prefetch: bool) -> None:
    def give(name: str, kind: ValueType | None) -> Array:
        return in_onnx_form(activations.fetch(lane.pairs[name]), lane.permutations.get(name), kind)

    index = lane.run.next
    made = [name for name in sorted(lane.run.segments[index].makes) if name in lane.pairs]
    is_last = index + 1 == len(lane.run.segments)
    following = set() if is_last else {lane.pairs[name] for name in lane.run.needs(index + 1)}
    if prefetch:
        # While the segment runs; what it reads itself comes first.
        for names in (sorted(lane.run.needs(index)), made):
            activations.prefetch([lane.pairs[name] for name in names])
        activations.prefetch(sorted(following))
    chained, forced = lane.run.step(give)
    activations.retain({lane.pairs[name] for name in made} | following)
    if lane.on_values is not None:
        lane.on_values(chained, forced)
    for name in made:
        value = lane.pairs[name]
        expected = activations.fetch(value)
        order = lane.permutations.get(name)
        first, second = (_in_shape(arrays.pop(name, None), expected, order) for arrays in (chained, forced))
        on_pair(lane.name, value, expected, first, second)
    activations.retain(following)


def in_onnx_form(array: Array, order: tuple[int, ...] | None, kind: ValueType | None) -> Array:
    """PyTorch's tensor with its axes in ``order``, in the shape and dtype that the ONNX value has."""
    if order is not None:
        array = in_order(array, order, None if kind is None else kind.shape)
    if kind is None:
        return array
    wanted = np.dtype(kind.dtype.numpy())
    if array.dtype != wanted:
        # A graph in half precision has the largest number where PyTorch has a mask's -1e9.
        if wanted.name in HALF:
            array = saturated(array, wanted.name)
        array = array.astype(wanted)
    if array.shape == kind.shape or array.size != math.prod(kind.shape):
        # A graph whose own value has another size reads PyTorch's as it is.
        return array
    return np.ascontiguousarray(array).reshape(kind.shape)


def _in_shape(array: Array | None, like: Array, order: tuple[int, ...] | None) -> Array | None:
    """ONNX's data in PyTorch's shape; exporters merge, split and permute axes. Another size stays as it is, and fails."""
    if array is None or array.size != like.size:
        return array
    if order is not None:
        if len(order) == like.ndim:
            array = array.reshape(tuple(like.shape[axis] for axis in order))
        array = array.transpose(np.argsort(order))
    return array if array.shape == like.shape else array.reshape(like.shape)
