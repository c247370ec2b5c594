"""Plants one fault into an ONNX file, at a place that belongs to one stage alone, and shows that it moves a value."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "zoo"))

from truth import relative, value_of

HALF_NODES = ("planted_to_half", "planted_to_float")

# Which input is the weight, and which of its axes counts the output channels.
WEIGHTS = {"Conv": (1, 0), "ConvTranspose": (1, 1), "MatMul": (1, -1), "Gemm": (1, 1), "LSTM": (1, 1), "GRU": (1, 1)}

# An activation, and what stands in its place.
SWAPS = {
    "Relu": "Tanh",
    "Clip": "Relu",
    "Gelu": "Relu",
    "Erf": "Tanh",
    "Tanh": "Sigmoid",
    "Softmax": "LogSoftmax",
    "LSTM": "Relu",
    "GRU": "Relu",
}

# Nodes of numbers that come out of arithmetic; shapes and masks are left alone.
ARITHMETIC = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Relu", "Clip", "Gelu", "Add", "Mul", "LayerNormalization"}


@dataclass(frozen=True)
class Fault:
    """A model with a fault.

    Attributes:
        model: the faulty graph.
        kind: of the fault.
        place: name of the node it was planted at.
        nodes: names of the nodes of the faulty graph that hold the fault.
        before: value of the healthy graph that the fault moves.
        after: the same value in the faulty graph.
    """

    model: ModelProto
    kind: str
    place: str
    nodes: frozenset[str]
    before: str
    after: str


def owners(report: Mapping[str, Any]) -> dict[str, set[tuple[str, int]]]:
    """Node → the stages, each with its call, between whose cut points it lies; from a report."""
    found: dict[str, set[tuple[str, int]]] = {}
    for row in report["stages"]:
        if row["role"] != "group":
            for node in row["onnx_nodes"]:
                found.setdefault(node, set()).add((row["stage"], row["call"]))
    return found


def plant(model: ModelProto, kind: str, report: Mapping[str, Any], feeds: Mapping[str, Any], seed: str) -> Fault:
    """A fault of a kind, at the first place in a frozen random order where it moves its value.

    Args:
        model: healthy; it is not changed.
        kind: ``weight``, ``activation``, ``half rewired`` or ``half renamed``.
        report: of the healthy model, which says what nodes belong to one stage alone.
        feeds: the graph's inputs.
        seed: decides the order.
    """
    owner = owners(report)
    own = [node for node in model.graph.node if len(owner.get(node.name, ())) == 1]
    order = random.Random(seed)
    order.shuffle(own)
    # A kind of operator that is rare in the graph is as likely as one that is common.
    kinds = sorted({node.op_type for node in own})
    order.shuffle(kinds)
    own.sort(key=lambda node: kinds.index(node.op_type))
    for node in own:
        fault = _planted(model, kind, node, owner, order)
        if fault is not None and min(moves(model, fault, feeds, report)) > _LEAST_MOVE[kind]:
            return fault
    raise LookupError(f"no place for a fault of the kind {kind}")


# Half precision keeps three digits, so that it moves a tensor by 1e-4 or somewhat more of its norm.
_LEAST_MOVE = {"weight": 1e-2, "activation": 1e-2, "half rewired": 1.2e-4, "half renamed": 1.2e-4}


def moves(model: ModelProto, fault: Fault, feeds: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[float]:
    """How far a fault moves its value, and for half precision also the stage behind it: a sum may hide it there."""
    yield moved_by(model, fault, feeds)
    if fault.kind in ("half rewired", "half renamed"):
        rewired = fault.kind == "half rewired"
        holder = next(
            n.name for n in model.graph.node if (fault.before in n.input if rewired else n.name == fault.place)
        )
        (value, *_) = [
            row["onnx_value"] for row in report["stages"] if row["role"] != "group" and holder in row["onnx_nodes"]
        ]
        yield relative(value_of(model, value, feeds), value_of(fault.model, value, feeds))


def moved_by(model: ModelProto, fault: Fault, feeds: Mapping[str, Any]) -> float:
    """How far the fault moves its value: relative L2 in plain ONNX Runtime with optimisation off; inf for NaN."""
    return relative(value_of(model, fault.before, feeds), value_of(fault.model, fault.after, feeds))


def feeds_of(folder: Path, model: ModelProto) -> dict[str, Any]:
    """The sample of an example for the inputs of its graph, in the graph's order where the sample has no names."""
    import torch

    (file,) = folder.glob("sample.*")
    sample: Any = np.load(file) if file.suffix in (".npy", ".npz") else torch.load(file)
    names = [value.name for value in model.graph.input]
    if isinstance(sample, tuple):
        sample = dict(zip(names, sample, strict=True))
    elif isinstance(sample, np.ndarray):
        sample = {names[0]: sample}
    return {name: np.asarray(sample[name]) for name in names}


def _planted(
    model: ModelProto, kind: str, node: NodeProto, owner: Mapping[str, set[Any]], order: random.Random
) -> Fault | None:
    """The fault at a node; None where it has no place there."""
    faulty = copy.deepcopy(model)
    (place,) = [n for n in faulty.graph.node if n.name == node.name]
    value = node.output[0]
    if kind == "weight":
        if not _scale_channel(faulty, place, order):
            return None
    elif kind == "activation":
        if not _swap(place):
            return None
    else:
        readers = [n for n in faulty.graph.node if value in n.input]
        outputs = {v.name for v in faulty.graph.output}
        alone = len(readers) == 1 and len(owner.get(readers[0].name, ())) == 1
        rewired = kind == "half rewired"
        if node.op_type not in ARITHMETIC or (rewired and (value in outputs or not alone)):
            return None
        after = _through_half(faulty, place, rewired)
        return Fault(faulty, kind, node.name, frozenset(HALF_NODES), value, after)
    return Fault(faulty, kind, node.name, frozenset({node.name}), value, value)


def _scale_channel(model: ModelProto, node: NodeProto, order: random.Random) -> bool:
    """Multiplies one output channel of a node's weight by 1.5; the weight becomes the node's own."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if node.op_type not in WEIGHTS or node.input[WEIGHTS[node.op_type][0]] not in weights:
        return False
    index, axis = WEIGHTS[node.op_type]
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        axis = 0
    array = numpy_helper.to_array(weights[node.input[index]]).copy()
    channel = order.randrange(array.shape[axis])
    np.moveaxis(array, axis, 0)[channel] *= 1.5
    node.input[index] += "_planted"
    model.graph.initializer.append(numpy_helper.from_array(array, node.input[index]))
    return True


def _swap(node: NodeProto) -> bool:
    """Puts another activation in place of a node's own."""
    if node.op_type not in SWAPS:
        return False
    other = SWAPS[node.op_type]
    if node.op_type in ("LSTM", "GRU"):
        directions = 2 if any(a.name == "direction" and a.s == b"bidirectional" for a in node.attribute) else 1
        gates = ["Sigmoid", other] if node.op_type == "GRU" else ["Sigmoid", "Tanh", other]
        kept = [a for a in node.attribute if a.name != "activations"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("activations", gates * directions)])
        return True
    if node.op_type != "Softmax":
        del node.attribute[:]
    node.op_type = other
    del node.input[1:]
    return True


def _through_half(model: ModelProto, node: NodeProto, rewired: bool) -> str:
    """Sends a node's first output through float16 and back; returns the name of what comes out.

    Args:
        rewired: the value keeps its name, and its readers read the cast's output; else the producer's output is
            renamed, and the cast's output takes the old name.
    """
    graph = model.graph
    old = node.output[0]
    source, target = (old, f"{old}_planted") if rewired else (f"{old}_planted", old)
    for user in graph.node if rewired else ():
        for place, name in enumerate(user.input):
            if name == old:
                user.input[place] = target
    node.output[0] = source
    to_half, to_float = HALF_NODES
    casts = [
        helper.make_node("Cast", [source], [f"{old}_half"], name=to_half, to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{old}_half"], [target], name=to_float, to=onnx.TensorProto.FLOAT),
    ]
    position = next(i for i, n in enumerate(graph.node) if n.name == node.name) + 1
    for cast in reversed(casts):
        graph.node.insert(position, cast)
    return target


def judged(report: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Rows that count for the verdict, each with its result in the unoptimised configuration."""
    for row in report["stages"]:
        if row["role"] != "group" and "ort-cpu-off" in row["results"]:
            yield row, row["results"]["ort-cpu-off"]


def number(value: Any) -> float:
    """A number of the report; NaN counts as infinitely far off."""
    found = float(value)
    return float("inf") if np.isnan(found) else found


def holds(nodes: Iterable[str], fault: Fault) -> bool:
    """Whether one of these nodes is where the fault lies."""
    return not fault.nodes.isdisjoint(nodes)
