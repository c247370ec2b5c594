"""Quantised graphs: what in them says so, and where a quantised value is a number again.

In a graph with pairs of ``QuantizeLinear`` and ``DequantizeLinear`` a value is rounded to few bits and turned into a float
again before it is read. What a stage hands on is then the dequantised value: its error has all that the stage's own numbers,
scales and zero points cost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from bisect_tool.records import OnnxGraph, OnnxNode

_MARKS = ("Quantize", "QLinear", "MatMulInteger", "ConvInteger", "QGemm", "QAttention", "MatMulNBits")


def is_quantised_node(node: OnnxNode) -> bool:
    """Whether a node reads or makes quantised numbers."""
    return any(mark in node.op_type for mark in _MARKS)


def quantised_counts(graph: OnnxGraph) -> Counter[str]:
    """How many nodes of each quantised kind a graph has; empty for a float graph."""
    return Counter(node.op_type for node in graph.nodes if is_quantised_node(node))


def counts_text(graph: OnnxGraph) -> str:
    """``17 QuantizeLinear nodes``: the kind that tells most."""
    counts = quantised_counts(graph)
    for kind in ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"):
        if counts[kind]:
            break
    else:
        kind = counts.most_common(1)[0][0]
    return f"{counts[kind]} {kind} {'node' if counts[kind] == 1 else 'nodes'}"


@dataclass(frozen=True, slots=True)
class QuantisedValue:
    """A value that is quantised and dequantised before anything reads it.

    Attributes:
        given: name of the value before.
        end: name of the value after, which all its readers read.
        scale, zero_point: names of the quantising node's inputs; the zero point may be missing.
        nodes: names of both nodes.
    """

    given: str
    end: str
    scale: str
    zero_point: str | None
    nodes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What the aligner has to know of a quantised graph.

    Attributes:
        pairs: by the name of the value before.
        back: name of the value before, by that of the value after.
    """

    pairs: dict[str, QuantisedValue] = field(default_factory=dict)
    back: dict[str, str] = field(default_factory=dict)


def quantisation_of(graph: OnnxGraph) -> Quantisation:
    """The values of a graph that pass a pair of nodes which quantise and dequantise, and that nothing reads elsewhere."""
    readers: dict[str, list[OnnxNode]] = defaultdict(list)
    for node in graph.nodes:
        for name in dict.fromkeys(node.inputs):
            if name:
                readers[name].append(node)
    found = Quantisation()
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or not node.outputs or node.inputs[0] in graph.initializers:
            continue
        given = node.inputs[0]
        after = readers[node.outputs[0]]
        if len(after) != 1 or after[0].op_type != "DequantizeLinear" or len(readers[given]) != 1:
            continue
        if given in graph.outputs or node.outputs[0] in graph.outputs:
            continue
        zero_point = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
        end = after[0].outputs[0]
        found.pairs[given] = QuantisedValue(given, end, node.inputs[1], zero_point, (node.name, after[0].name))
        found.back[end] = given
    return found
