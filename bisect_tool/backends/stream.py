"""Joins a running PyTorch model with ONNX segments: each segment runs as soon as PyTorch's tensors for it are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.backends.onnx_program import ValueType
from bisect_tool.backends.ort_runner import SegmentedRun

Array = NDArray[Any]
OnPair = Callable[[str, int, Array, "Array | None", "Array | None"], None]


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


class Stream:
    """Advances lanes while PyTorch's values arrive, hands out compared pairs, and says when a value is done with.

    Args:
        lanes: what runs. Order matters only within a lane.
        fetch: a PyTorch value that has arrived, as a numpy array in PyTorch's shape.
        release: called once a value is not needed any more.
        on_pair: called as ``on_pair(lane, value, expected, chained, forced)``, all in PyTorch's shape; ``forced`` is
            ``None`` where the lane has no forced run.
        after_step: called after each segment, when its tensors are free.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        fetch: Callable[[int], Array],
        release: Callable[[int], None],
        on_pair: OnPair,
        after_step: Callable[[], None] = lambda: None,
    ):
        self._lanes = lanes
        self._fetch = fetch
        self._release = release
        self._on_pair = on_pair
        self._after_step = after_step
        self._arrived: set[int] = set()
        self._made = [
            [[name for name in sorted(segment.makes) if name in lane.pairs] for segment in lane.run.segments]
            for lane in lanes
        ]
        self._required = [[self._values_of(lane, i) for i in range(len(lane.run.segments))] for lane in lanes]
        self._uses = Counter(value for lane in self._required for values in lane for value in values)

    @staticmethod
    def _values_of(lane: Lane, index: int) -> frozenset[int]:
        makes = lane.run.segments[index].makes
        compared = {lane.pairs[name] for name in makes & lane.pairs.keys()}
        return frozenset(compared | {lane.pairs[name] for name in lane.run.needs(index)})

    def wants(self, value: int) -> bool:
        """Whether a value, now or later, is compared or forced."""
        return self._uses[value] > 0

    def arrive(self, value: int) -> None:
        """Says that a value can be fetched; runs every segment that waited for it alone."""
        self._arrived.add(value)
        self.advance()

    def mark(self, value: int) -> None:
        """Says that a value can be fetched, without running anything yet."""
        self._arrived.add(value)

    def advance(self) -> None:
        for lane, required, made in zip(self._lanes, self._required, self._made, strict=True):
            while not lane.run.done and required[lane.run.next] <= self._arrived:
                values = required[lane.run.next]
                self._step(lane, made[lane.run.next])
                for value in values:
                    self._uses[value] -= 1
                    if not self._uses[value]:
                        self._release(value)
                self._after_step()

    def finish(self) -> list[str]:
        """Runs what is left without waiting: names of lanes whose PyTorch values never came are returned."""
        self.advance()
        return [lane.name for lane in self._lanes if not lane.run.done]

    def _step(self, lane: Lane, made: Sequence[str]) -> None:
        def give(name: str, kind: ValueType | None) -> Array:
            array = self._fetch(lane.pairs[name])
            if name in lane.permutations:
                array = array.transpose(lane.permutations[name])
            if kind is None:
                return array
            wanted = np.dtype(kind.dtype.numpy())
            array = array if array.dtype == wanted else array.astype(wanted)
            return array if array.shape == kind.shape else np.ascontiguousarray(array).reshape(kind.shape)

        chained, forced = lane.run.step(give)
        if lane.on_values is not None:
            lane.on_values(chained, forced)
        for name in made:
            value = lane.pairs[name]
            expected = self._fetch(value)
            order = lane.permutations.get(name)
            first, second = (_in_shape(arrays.pop(name, None), expected, order) for arrays in (chained, forced))
            self._on_pair(lane.name, value, expected, first, second)


def _in_shape(array: Array | None, like: Array, order: tuple[int, ...] | None) -> Array | None:
    """ONNX's data in PyTorch's shape; exporters merge, split and permute axes. Another size stays as it is, and fails."""
    if array is None or array.size != like.size:
        return array
    if order is not None:
        shape = tuple(like.shape[axis] for axis in order)
        array = array.reshape(shape).transpose(np.argsort(order))
    return array if array.shape == like.shape else array.reshape(like.shape)
