"""Values that nothing tells but the stage that reads them: a broken operation without names between two known layers.

What the next layer's node reads stands in the place of what PyTorch's layer reads. That is only supposed: a factor may have
moved into the layer's weights. So whoever asks tries it: given PyTorch's value there, the layer's own has to come out right.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from bisect_tool.align.counterparts import constant_values
from bisect_tool.align.families import SHAPING
from bisect_tool.align.matches import Match
from bisect_tool.layouts import same_data_order
from bisect_tool.records import OnnxGraph, OnnxNode, TorchTrace

OPERAND = "operand"
"""Evidence of a pair that the stage behind it reads, and is right with."""

_LAYERS = frozenset(
    ["MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "FusedGemm", "FusedConv", "LayerNormalization"]
    + ["BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"]
    + ["SkipLayerNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"]
)
"""Operators with one input that is computed; the others are weights."""

_MOST_STEPS = 6


@dataclass(frozen=True, slots=True)
class Supposed:
    """A pair, and the PyTorch value of the stage that reads it."""

    match: Match
    reader: int


def read_by_layers(trace: TorchTrace, graph: OnnxGraph, matches: Mapping[int, Match]) -> list[Supposed]:
    """Stages without a pair that a layer with one reads, and the value that its node reads there."""
    makers = {name: node for node in graph.nodes for name in node.outputs if name}
    constants = constant_values(graph, graph.initializers)
    taken = {match.onnx for match in matches.values()}
    floating = (stage for stage in reversed(trace.stages) if stage.dtype.startswith(("float", "bfloat")))
    shapes = {stage.value: stage.shape for stage in floating}
    found: dict[int, Supposed] = {}
    for reader, match in matches.items():
        if match.confirmed:
            continue  # nothing before it is broken that has no pair
        value = _read_by(reader, trace, shapes.keys())
        if value is None or value in matches or value in found or value not in shapes:
            continue
        node = _layer(match.onnx, makers, constants)
        name = None if node is None else _computed(node, constants)
        for _ in range(_MOST_STEPS):
            if name is None or name not in makers or name in taken:
                break
            if same_data_order(shapes[value], graph.shapes.get(name, shapes[value])):
                found[value] = Supposed(Match(value, name, (OPERAND,), False), reader)
                taken.add(name)
                break
            name = makers[name].inputs[0] if makers[name].op_type in SHAPING else None
    return [*found.values()]


def _read_by(value: int, trace: TorchTrace, staged: Container[int]) -> int | None:
    """The one stage's value that another is made from, views left out."""
    at = value
    for _ in range(_MOST_STEPS):
        parents = set(trace.parents.get(at, ()))
        if len(parents) != 1:
            return None
        at = parents.pop()
        if at in staged:
            return at
    return None


def _layer(name: str, makers: Mapping[str, OnnxNode], constants: frozenset[str]) -> OnnxNode | None:
    """The layer's own node, a bias and a change of shape behind it left out."""
    for _ in range(_MOST_STEPS):
        node = makers.get(name)
        if node is None or node.op_type in _LAYERS:
            return node
        computed = [each for each in node.inputs if each and each not in constants]
        if node.op_type not in SHAPING | {"Add"} or len(computed) != 1:
            return None
        name = computed[0]
    return None


def _computed(node: OnnxNode, constants: frozenset[str]) -> str | None:
    read = [name for name in node.inputs if name and name not in constants]
    return read[0] if len(read) == 1 else None
