"""Stages whose value the graph has in another size: no value fits, and yet their place is known.

Where a node does what PyTorch's operation does, and reads just what that reads, it is that operation, though its result has
another size: pads, strides, axes or bounds are not PyTorch's. Asked only where the final outputs are wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from bisect_tool.align import Match, family
from bisect_tool.records import OnnxGraph, OnnxNode, TorchTrace
from bisect_tool.rows import first_stage_by_value
from bisect_tool.signatures import Signature

OTHER_SIZE = "other size"
"""Evidence of such a pair."""

_SPLITS = {"split_with_sizes", "split", "chunk", "unsafe_split", "tensor_split"}
_POOLS = {"avgpool": "pool", "maxpool": "pool", "avg_pool3d": "pool", "max_pool3d": "pool"}
_POOLS |= {"globalaveragepool": "pool", "globalmaxpool": "pool", "_adaptive_avg_pool2d": "pool"}
_HANDING_ON = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


def of_other_size(
    trace: TorchTrace,
    graph: OnnxGraph,
    matches: Mapping[int, Match],
    signatures: Mapping[str, Signature],
    operations: Mapping[int, tuple[str, int]],
) -> dict[int, Match]:
    """Pairs of PyTorch's values and of values that have another size, none of them confirmed.

    Args:
        trace, graph: structure of both sides.
        matches: pairs that are known.
        signatures: of the graph's values, by name; of a run on PyTorch's values where there was one.
        operations: name and number of the result, by PyTorch value.
    """
    taken = {match.onnx for match in matches.values()}
    constants = graph.initializers
    inputs = {value for _, value in trace.inputs}
    makers = {name: node for node in graph.nodes for name in node.outputs if name}
    computed = _computed(graph)
    by_kind: dict[str, list[OnnxNode]] = defaultdict(list)
    for node in graph.nodes:
        by_kind[_kind(node.op_type)].append(node)

    def source(name: str) -> str:
        # What hands a value on is the value.
        while name not in taken and name in makers and makers[name].op_type in _HANDING_ON:
            name = makers[name].inputs[0]
        return name

    found: dict[int, Match] = {}
    stages = sorted(first_stage_by_value(trace).items(), key=lambda item: item[1].order)
    for value, stage in stages:
        if value in matches or value not in operations or not stage.shape:
            continue
        parents = trace.parents.get(value, ())
        if not parents or not all(parent in matches or parent in inputs for parent in parents):
            continue
        reads = {matches[parent].onnx for parent in parents if parent in matches}
        fed = any(parent not in matches for parent in parents)
        operation, number = operations[value]
        fitting = []
        for node in by_kind[_kind(operation)]:
            name = node.outputs[number] if number < len(node.outputs) else ""
            signature = signatures.get(name)
            if not name or name in taken or signature is None or signature.size == math.prod(stage.shape):
                continue
            own = {source(each) for each in node.inputs if each in computed and each not in constants}
            given = own & set(graph.inputs)
            if own - given == reads and bool(given) == fed:
                fitting.append(name)
        if len(fitting) == 1:
            found[value] = Match(value, fitting[0], (OTHER_SIZE,), False)
            taken.add(fitting[0])
    return found


def _kind(name: str) -> str:
    if name in _SPLITS:
        return "split"
    kind = family(name.removesuffix("_"))
    return _POOLS.get(kind, kind)


def _computed(graph: OnnxGraph) -> set[str]:
    """Values that depend on an input of the graph."""
    found = set(graph.inputs) - set(graph.initializers)
    for node in graph.nodes:
        if any(name in found for name in node.inputs):
            found.update(name for name in node.outputs if name)
    return found


def called_so(matches: Mapping[int, Match], others: Mapping[int, Match]) -> dict[int, Match]:
    """The pairs, with those of another size called so."""
    return {value: others[value] if _same(match, others.get(value)) else match for value, match in matches.items()}


def _same(match: Match, other: Match | None) -> bool:
    return other is not None and not match.confirmed and match.onnx == other.onnx
