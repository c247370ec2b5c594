"""What really moved, by plain ONNX Runtime with optimisation off: nothing here knows the tool that is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, helper

Array = NDArray[Any]

LEAST_MOVE = 2e-5
"""Relative L2 by which a fault must move its own value to count; rounding moves a healthy float32 value by 1e-7 to 1e-6."""


@dataclass(frozen=True)
class Healthy:
    """A graph as exported, the inputs to run it with, and every value that it computes from them."""

    model: ModelProto
    feeds: Mapping[str, Array]
    values: Mapping[str, Array]


def healthy(model: ModelProto, feeds: Mapping[str, Array]) -> Healthy:
    """Runs a graph with all its values exposed."""
    names = [name for node in model.graph.node for name in node.output if name]
    return Healthy(model, feeds, {**feeds, **values_of(model, names, feeds)})


def feeds_of(model: ModelProto, arrays: Iterable[Any]) -> dict[str, Array]:
    """The positional inputs of a PyTorch model for its graph, whose inputs stand in the same order."""
    return {v.name: np.asarray(array) for v, array in zip(model.graph.input, arrays, strict=True)}


def values_of(model: ModelProto, names: Iterable[str], feeds: Mapping[str, Any]) -> dict[str, Array]:
    """Values of a graph by their names; what is no tensor is left out."""
    shown = ModelProto()
    shown.CopyFrom(model)
    there = {value.name for value in shown.graph.output}
    wanted = list(dict.fromkeys(names))
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in there)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run(wanted, dict(feeds))
    return {name: np.asarray(array) for name, array in zip(wanted, arrays, strict=True) if hasattr(array, "dtype")}


def value_of(model: ModelProto, name: str, feeds: Mapping[str, Any]) -> Array:
    """One value of a graph, in float64."""
    return values_of(model, [name], feeds)[name].astype(np.float64)


def relative(healthy: Array, faulty: Array) -> float:
    """Relative L2 difference; inf where it is no number, or where the shapes differ."""
    if healthy.shape != faulty.shape:
        return float("inf")
    # What is not finite on both sides alike (a mask's -inf) is no difference.
    before, after = (np.asarray(array, dtype=np.float64).ravel() for array in (healthy, faulty))
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    if same.all():
        return 0.0
    finite = np.isfinite(before)
    if not np.isfinite(after[finite]).all() or not same[~finite].all():
        return float("inf")
    moved = np.linalg.norm((after - before)[finite]) / np.linalg.norm(before[finite])
    return float(moved) if np.isfinite(moved) else float("inf")


def moved_by(model: Healthy, faulty: ModelProto, before: str, after: str) -> float:
    """How far a fault moves its own value. Upstream of it nothing differs, so the node has the same inputs."""
    return relative(model.values[before], value_of(faulty, after, model.feeds))


def outputs_moved(model: Healthy, faulty: ModelProto) -> float:
    """How far a fault moves the final outputs: the greatest of them. What dies on the way is no less a fault."""
    names = [value.name for value in faulty.graph.output]
    found = values_of(faulty, names, model.feeds)
    return max(relative(model.values[name], found[name]) for name in names)


def can_run(model: ModelProto, feeds: Mapping[str, Any]) -> bool:
    """Whether ONNX Runtime takes a graph at all."""
    try:
        values_of(model, [value.name for value in model.graph.output], feeds)
    except Exception:  # ONNX Runtime has many kinds of no
        return False
    return True
