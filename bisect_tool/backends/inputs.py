"""Which sample tensor feeds which ONNX input: by name, then by order."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.exporting import positional_names
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.errors import BisectError
from bisect_tool.recorder import flatten_tensors
from bisect_tool.records import OnnxGraph

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class BoundInputs:
    """ONNX input name → array, and a note for each input that was not plainly found by its name.

    ``sources``: ONNX input name → name and dtype of the sample's tensor.
    """

    feeds: Mapping[str, Array]
    notes: tuple[str, ...]
    sources: Mapping[str, tuple[str, str]]


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
        BisectError: counts, shapes or kinds of dtype differ; both sides are listed.
    """
    arrays = {name: to_numpy(tensor) for name, tensor in tensors}
    notes: list[str] = []
    chosen: dict[str, str] = {}
    for wanted in graph.inputs:
        name = _by_name(wanted, [n for n in arrays if n not in chosen.values()])
        if name is not None and _fits(graph, wanted, arrays[name]):
            chosen[wanted] = name
    left = [n for n in arrays if n not in chosen.values()]
    open_inputs = [n for n in graph.inputs if n not in chosen]
    # Order alone is only good enough where nothing else could be meant.
    for wanted in open_inputs:
        fitting = [n for n in left if _fits(graph, wanted, arrays[n])]
        if len(left) != len(open_inputs) and len(fitting) != 1:
            continue
        if not fitting:
            continue
        chosen[wanted] = fitting[0]
        left.remove(fitting[0])
        if len(graph.inputs) > 1:
            notes.append(f"ONNX input {wanted} was given the sample's {fitting[0]}, by order and shape")
    if len(chosen) != len(graph.inputs):
        raise _mismatch(graph, arrays)
    notes += [f"the sample's {n} is not an input of the ONNX graph: the exporter found it unused" for n in left]
    feeds = {wanted: _cast(graph, wanted, arrays[name], notes) for wanted, name in chosen.items()}
    sources = {wanted: (name, arrays[name].dtype.name) for wanted, name in chosen.items()}
    return BoundInputs(feeds, tuple(notes), sources)


def _by_name(wanted: str, names: Sequence[str]) -> str | None:
    if wanted in names:
        return wanted
    plain = {_plain(name): name for name in names}
    return plain.get(_plain(wanted))


def _plain(name: str) -> str:
    return name.lower().replace(".", "_").replace("-", "_")


def _fits(graph: OnnxGraph, wanted: str, array: Array) -> bool:
    shape = graph.shapes.get(wanted)
    dtype = graph.dtypes.get(wanted)
    same_kind = dtype is None or _kind(dtype) == _kind(array.dtype.name)
    return same_kind and (shape is None or shape == array.shape)


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
    notes.append(f"ONNX input {wanted} is {dtype}; the sample's {array.dtype.name} was converted")
    return array.astype(target)


def _mismatch(graph: OnnxGraph, arrays: Mapping[str, Array]) -> BisectError:
    def line(name: str, dtype: str | None, shape: Sequence[int] | None) -> str:
        return f"{name} {dtype or '?'}{list(shape) if shape is not None else '[dynamic]'}"

    wants = ", ".join(line(n, graph.dtypes.get(n), graph.shapes.get(n)) for n in graph.inputs)
    has = ", ".join(line(n, a.dtype.name, a.shape) for n, a in arrays.items())
    return BisectError(
        f"the ONNX inputs and the sample do not fit together\n  ONNX wants: {wants}\n  sample has: {has}",
        hint="give the sample that the file was exported with, or export without --onnx",
    )
