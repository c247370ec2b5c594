"""Stages whose value the graph has in another size: no value fits, and yet their place is known.

Where a node does what PyTorch's operation does, and reads just what that reads, it is that operation, though its result has
another size: pads, strides, axes or bounds are not PyTorch's. Asked only where the final outputs are wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from bisect_tool.align.families import family
from bisect_tool.align.matches import Match
from bisect_tool.records import OnnxGraph, OnnxNode, TorchTrace
from bisect_tool.rows import first_stage_by_value
from bisect_tool.signatures import Signature

OTHER_SIZE = "other size"
"""Evidence of such a pair."""

_SPLITS = {"split_with_sizes", "split", "chunk", "unsafe_split", "tensor_split"}
_POOLS = {"avgpool": "pool", "maxpool": "pool", "avg_pool3d": "pool", "max_pool3d": "pool"}
_POOLS |= {"globalaveragepool": "pool", "globalmaxpool": "pool", "_adaptive_avg_pool2d": "pool"}
_VIEWS = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split", "Expand"}
"""What is no stage of PyTorch's, and no step of the graph's either."""


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
    inputs = {value for _, value in trace.inputs}
    makers = {name: node for node in graph.nodes for name in node.outputs if name}
    computed = _computed(graph)
    by_kind: dict[str, list[OnnxNode]] = defaultdict(list)
    for node in graph.nodes:
        by_kind[_kind(node.op_type)].append(node)

    first = first_stage_by_value(trace)

    def sources(names: Iterable[str]) -> frozenset[str]:
        """Inputs of the graph and values with a pair that some names are, or are views of."""
        found: set[str] = set()
        seen: set[str] = set()
        stack = [name for name in names if name in computed]
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in taken or name not in makers or makers[name].op_type not in _VIEWS:
                found.add(name)
            else:
                stack += [other for other in makers[name].inputs if other in computed]
        return frozenset(found)

    def origins(value: int) -> frozenset[int] | None:
        """PyTorch's inputs and values with a pair that a value is made of; ``None``: it is made of others too."""
        found: set[int] = set()
        seen: set[int] = set()
        stack = list(trace.parents.get(value, ()))
        while stack:
            parent = stack.pop()
            if parent in seen:
                continue
            seen.add(parent)
            if parent in matches or parent in inputs:
                found.add(parent)
            elif parent in first:
                return None
            else:
                stack += trace.parents.get(parent, ())
        return frozenset(found)

    wanted: dict[tuple[str, int, frozenset[str], bool], list[int]] = defaultdict(list)
    for value, stage in sorted(first.items(), key=lambda item: item[1].order):
        if value in matches or value not in operations or not stage.shape or not (made_of := origins(value)):
            continue
        reads = frozenset(matches[each].onnx for each in made_of if each in matches)
        operation, number = operations[value]
        wanted[_kind(operation), number, reads, any(each not in matches for each in made_of)].append(value)
    norms = {
        parents[0]: value
        for value, parents in trace.parents.items()
        if len(parents) == 1 and value in first and _kind(operations.get(value, ("", 0))[0]) == "batchnorm"
    }
    normalised = {name for node in by_kind["batchnorm"] for name in node.inputs}
    found: dict[int, Match] = {}
    for (kind, number, reads, fed), values in wanted.items():
        sizes = {math.prod(first[value].shape) for value in values}
        fitting = []
        for node in by_kind[kind]:
            name = node.outputs[number] if number < len(node.outputs) else ""
            signature = signatures.get(name)
            if not name or name in taken or signature is None or signature.size in sizes:
                continue
            read = sources(node.inputs)
            given = read & set(graph.inputs)
            if read - given == reads and bool(given) == fed:
                fitting.append(name)
        # Both sides have as many: in their order.
        if len(fitting) == len(values):
            for value, name in zip(values, fitting, strict=True):
                norm = norms.get(value)
                # A normalisation that the graph has no node for was folded into the node: its value is what comes out.
                folded = norm is not None and norm not in matches and name not in normalised
                own = norm if norm is not None and folded else value
                found[own] = Match(own, name, (OTHER_SIZE,), False)
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
