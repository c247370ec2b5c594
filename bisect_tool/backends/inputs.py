"""Which sample tensor feeds which ONNX input: by name, then by dtype and shape, then by order.

Files of other people's making have other names, dynamic axes, narrower types and other layouts. What is not plainly found
by its name is noted; what can't be told is an error that lists both sides.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.exporting import positional_names
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.errors import BisectError
from bisect_tool.layouts import describe_order, layout_change
from bisect_tool.recorder import flatten_tensors
from bisect_tool.records import OnnxGraph

Array = NDArray[Any]

_MOST_GROUPS, _MOST_ORDERS = 3, 24
"""Inputs that look alike are tried in other orders up to here."""


@dataclass(frozen=True, slots=True)
class BoundInputs:
    """What each ONNX input is given.

    Attributes:
        feeds: array by ONNX input, as the graph wants it.
        notes: one for each input that was not plainly found by its name, or that was converted.
        orders: ONNX inputs that are given the sample's tensor with its axes in another order.
        alike: groups of ONNX inputs that only their order told apart.
        sources: ONNX input name → name and dtype of the sample's tensor.
        rounded: floating numbers as they were, by ONNX input, where a narrower type took something from them.
    """

    feeds: Mapping[str, Array]
    notes: tuple[str, ...]
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    alike: tuple[tuple[str, ...], ...] = ()
    sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    rounded: Mapping[str, Array] = field(default_factory=dict)

    def exchanges(self) -> Iterator[tuple[tuple[str, ...], dict[str, Array]]]:
        """Other ways to give the inputs that only their order told apart: which inputs, and all feeds."""
        for group in self.alike if len(self.alike) <= _MOST_GROUPS else ():
            for order in itertools.islice(itertools.permutations(group), 1, _MOST_ORDERS):
                given = {name: self.feeds[other] for name, other in zip(group, order, strict=True)}
                if all(given[name].dtype == self.feeds[name].dtype for name in group):
                    yield group, {**self.feeds, **given}


def sample_tensors(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, torch.Tensor]]:
    """The sample's tensors, in the exporters' order, under the names that ``forward`` gives them."""
    names = positional_names(module, len(args)) or [f"input_{i}" for i in range(len(args))]
    found: list[tuple[str, torch.Tensor]] = []
    for name, value in [*zip(names, args, strict=True), *_in_forward_order(module, kwargs)]:
        for key, tensor in flatten_tensors(value):
            bare = isinstance(value, torch.Tensor)
            found.append((name if bare else f"{name}.{key}", tensor))
    return found


def _in_forward_order(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    try:
        order = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        order = []
    known = [name for name in order if name in kwargs]
    return [(name, kwargs[name]) for name in [*known, *(k for k in kwargs if k not in known)]]


def bind_inputs(graph: OnnxGraph, tensors: Sequence[tuple[str, torch.Tensor]]) -> BoundInputs:
    """Finds each ONNX input's tensor.

    Raises:
        BisectError: counts, shapes or kinds of dtype differ, or nothing tells which is which; both sides are listed.
    """
    binding = _Binding(graph, {name: to_numpy(tensor) for name, tensor in tensors})
    binding.by_name()
    binding.by_fit(binding.fits, "by order and shape")
    binding.by_fit(lambda wanted, name: binding.order_of(wanted, name) is not None, "by shape, in another layout")
    if len(binding.chosen) != len(graph.inputs):
        raise binding.mismatch()
    return binding.result()


class _Binding:
    """Which inputs are bound so far."""

    def __init__(self, graph: OnnxGraph, arrays: Mapping[str, Array]):
        self.graph = graph
        self.arrays = arrays
        self.chosen: dict[str, str] = {}
        self.orders: dict[str, tuple[int, ...]] = {}
        self.alike: list[tuple[str, ...]] = []
        self.notes: list[str] = []

    @property
    def open(self) -> list[str]:
        return [name for name in self.graph.inputs if name not in self.chosen]

    @property
    def left(self) -> list[str]:
        taken = set(self.chosen.values())
        return [name for name in self.arrays if name not in taken]

    def fits(self, wanted: str, name: str) -> bool:
        return self._same_kind(wanted, name) and _fits(self._dims(wanted), self.arrays[name].shape)

    def order_of(self, wanted: str, name: str) -> tuple[int, ...] | None:
        """The order of axes in which a tensor fits, where it does not as it is."""
        dims = self._dims(wanted)
        if dims is None or not self._same_kind(wanted, name) or _fits(dims, self.arrays[name].shape):
            return None
        return layout_change(self.arrays[name].shape, dims)

    def _dims(self, wanted: str) -> tuple[int | str, ...] | None:
        return self.graph.shapes.get(wanted) or self.graph.input_dims.get(wanted)

    def _same_kind(self, wanted: str, name: str) -> bool:
        dtype = self.graph.dtypes.get(wanted)
        return dtype is None or _kind(dtype) == _kind(self.arrays[name].dtype.name)

    def by_name(self) -> None:
        for wanted in self.graph.inputs:
            name = _by_name(wanted, self.left)
            if name is not None and (self.fits(wanted, name) or self.order_of(wanted, name) is not None):
                self._choose(wanted, name)

    def by_fit(self, fits: Callable[[str, str], bool], how: str) -> None:
        """Binds what only one tensor fits; then what several fit, in order, where as many inputs want them."""
        while True:
            options = {wanted: tuple(name for name in self.left if fits(wanted, name)) for wanted in self.open}
            groups: dict[tuple[str, ...], list[str]] = {}
            for wanted, names in options.items():
                groups.setdefault(names, []).append(wanted)
            # Those of one tensor first: what they take, the others need not be told from.
            equal = [(names, inputs) for names, inputs in groups.items() if names and len(names) == len(inputs)]
            if not equal:
                return
            names, inputs = min(equal, key=lambda group: len(group[0]))
            if len(inputs) > 1:
                self.alike.append(tuple(inputs))
            for wanted, name in zip(inputs, names, strict=True):
                others = [other for other in names if other != name]
                if len(self.graph.inputs) > 1:
                    also = f"; {' and '.join(others)} would fit too" if others else ""
                    self.notes.append(f"ONNX input {wanted} was given the sample's {name}, {how}{also}")
                self._choose(wanted, name)

    def _choose(self, wanted: str, name: str) -> None:
        self.chosen[wanted] = name
        order = self.order_of(wanted, name)
        if order is not None:
            self.orders[wanted] = order
            shape = list(self.arrays[name].shape)
            self.notes.append(
                f"ONNX input {wanted} is {list(self._dims(wanted) or ())}, the sample's {name} {shape}: "
                f"given with its axes in the order {describe_order(order)}"
            )

    def result(self) -> BoundInputs:
        notes = self.notes
        notes += [
            f"the sample's {n} is not an input of the ONNX graph: the exporter found it unused" for n in self.left
        ]
        notes += self._sizes()
        feeds = {}
        rounded = {}
        for wanted in self.graph.inputs:
            if wanted in self.chosen:
                array = self.arrays[self.chosen[wanted]]
                if wanted in self.orders:
                    array = np.ascontiguousarray(array.transpose(self.orders[wanted]))
                given = feeds[wanted] = _cast(self.graph, wanted, array, notes)
                if given is not array and array.dtype.kind == "f" and not np.array_equal(given, array, equal_nan=True):
                    rounded[wanted] = array
        sources = {wanted: (name, self.arrays[name].dtype.name) for wanted, name in self.chosen.items()}
        return BoundInputs(feeds, tuple(notes), self.orders, tuple(self.alike), sources, rounded)

    def _sizes(self) -> list[str]:
        """Notes on dynamic axes of one name whose sizes differ from input to input: nobody else checks that."""
        sizes: dict[str, dict[int, str]] = {}
        for wanted, name in self.chosen.items():
            shape = self.arrays[name].shape
            order = self.orders.get(wanted, range(len(shape)))
            for dim, axis in zip(self._dims(wanted) or (), order, strict=False):
                if isinstance(dim, str) and dim != "?":
                    sizes.setdefault(dim, {}).setdefault(shape[axis], wanted)
        return [
            f"the ONNX file has one size {dim} for axes that have several in this sample: "
            + ", ".join(f"{size} in {wanted}" for size, wanted in found.items())
            for dim, found in sizes.items()
            if len(found) > 1
        ]

    def mismatch(self) -> BisectError:
        wants = ", ".join(_line(n, self.graph.dtypes.get(n), self._dims(n)) for n in self.graph.inputs)
        has = ", ".join(_line(n, a.dtype.name, a.shape) for n, a in self.arrays.items())
        options = {w: [n for n in self.left if self.fits(w, n)] for w in self.open}
        unclear = next((w for w, names in options.items() if len(names) > 1), None)
        missing = [w for w, names in options.items() if not names]
        if unclear is not None and not missing:
            equal = " and ".join(options[unclear])
            hint = f"{equal} fit {unclear} equally: rename the file's inputs after forward's arguments"
        else:
            hint = (
                "give the sample that the file was exported with, or export without --onnx; "
                "a file that prepares its input itself wants a model that does the same"
            )
        reason = f" (nothing for {', '.join(missing)})" if missing else ""
        return BisectError(
            f"the ONNX inputs and the sample do not fit together{reason}\n  ONNX wants: {wants}\n  sample has: {has}",
            hint=hint,
        )


def _by_name(wanted: str, names: Sequence[str]) -> str | None:
    if wanted in names:
        return wanted
    # TorchScript calls any input "input.1" that has no name; the numbered ones here are made up as well.
    plain = {_plain(name): name for name in names if not _NUMBERED.fullmatch(name)}
    return plain.get(_plain(wanted))


_NUMBERED = re.compile(r"input_\d+")
"""Names of :func:`sample_tensors` for what forward takes as ``*args``."""


def _plain(name: str) -> str:
    return name.lower().replace(".", "_").replace("-", "_")


def _fits(dims: Sequence[int | str] | None, shape: Sequence[int]) -> bool:
    """Whether a shape is one of those that an input takes; a name stands for one size wherever it occurs."""
    if dims is None:
        return True
    if len(dims) != len(shape):
        return False
    sizes: dict[str, int] = {}
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(dim, int) or dim == "?":
            if dim != "?" and dim != size:
                return False
        elif sizes.setdefault(dim, size) != size:
            return False
    return True


def _kind(dtype: str) -> str:
    return "float" if "float" in dtype else "bool" if dtype == "bool" else "integer"


def _cast(graph: OnnxGraph, wanted: str, array: Array, notes: list[str]) -> Array:
    dtype = graph.dtypes.get(wanted)
    if dtype is None or dtype == array.dtype.name:
        return array
    try:
        target = np.dtype(dtype)
    except TypeError:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(target)
    notes.append(f"ONNX input {wanted} is {dtype}; the sample's {array.dtype.name} was converted{_lost(array, found)}")
    return found


def _lost(before: Array, after: Array) -> str:
    """What a conversion did to values that the narrower type does not hold."""
    if before.dtype.kind in "iub":
        lost = int((before != after.astype(before.dtype)).sum())
        return f": {lost} values do not fit into it" if lost else ""
    with np.errstate(over="ignore"):
        lost = int((np.isfinite(before) & ~np.isfinite(after)).sum())
    return f": {lost} values are too large for it" if lost else ""


def _line(name: str, dtype: str | None, dims: Sequence[int | str] | None) -> str:
    text = "dynamic" if dims is None else ", ".join(map(str, dims))
    return f"{name} {dtype or '?'}[{text}]"
