"""Stages whose value the graph has in another size: no value fits, and yet their place is known.

Where a node does what PyTorch's operation does, and reads just what that reads, it is that operation, though its result has
another size: pads, strides, axes or bounds are not PyTorch's. Asked only where the final outputs are wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from bisect_tool.align.families import family
from bisect_tool.align.matches import Match
from bisect_tool.align.scopes import Scopes
from bisect_tool.align.surroundings import children_of, is_passed_by
from bisect_tool.records import OnnxGraph, OnnxNode, Stage, TorchTrace
from bisect_tool.rows import first_stage_by_value
from bisect_tool.signatures import Signature

OTHER_SIZE = "other size"
"""Evidence of such a pair."""

_SPLITS = {"split_with_sizes", "split", "chunk", "unsafe_split", "tensor_split"}
_POOLS = {"avgpool": "pool", "maxpool": "pool", "avg_pool3d": "pool", "max_pool3d": "pool"}
_POOLS |= {"globalaveragepool": "pool", "globalmaxpool": "pool", "_adaptive_avg_pool2d": "pool"}
_VIEWS = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split", "Expand"}
"""What is no stage of PyTorch's, and no step of the graph's either."""
_KEEP_SIZE = {"cast", "flatten", "identity", "reshape", "squeeze", "transpose", "unsqueeze"}
"""Kinds whose result is as large as what they read, which has a pair here: one of another size is another operation's."""


def of_other_size(
    trace: TorchTrace,
    graph: OnnxGraph,
    matches: Mapping[int, Match],
    signatures: Mapping[str, Signature],
    operations: Mapping[int, tuple[str, int]],
    chained: Mapping[str, Signature],
    torch: Mapping[int, Signature],
) -> dict[int, Match]:
    """Pairs of PyTorch's values and of values that have another size, none of them confirmed.

    Args:
        trace, graph: structure of both sides.
        matches: pairs that are known.
        signatures: of the graph's values, by name; of a run on PyTorch's values where there was one.
        operations: name and number of the result, by PyTorch value.
        chained: signatures of the graph's own run.
        torch: signatures of PyTorch's values.
    """
    first, children = first_stage_by_value(trace), children_of(trace)
    scopes = Scopes(graph, trace, {})
    side = _GraphSide(graph, {match.onnx for match in matches.values()}, signatures)
    norms = {
        parents[0]: value
        for value, parents in trace.parents.items()
        if len(parents) == 1 and value in first and _kind(operations.get(value, ("", 0))[0]) == "batchnorm"
    }
    normalised = {name for node in side.by_kind["batchnorm"] for name in node.inputs}
    found: dict[int, Match] = {}
    for wanted, values in _wanted(trace, first, matches, operations, scoped=scopes.any).items():
        # What comes out right without a value does not need it.
        values = [v for v in values if not is_passed_by(v, trace, children, matches, torch, chained)]
        fitting = side.fitting(wanted, {math.prod(first[value].shape) for value in values})
        given = {match.onnx for match in found.values()}
        fitting = [n for n in fitting if n not in given and scopes.path_of(n) in (None, wanted.path)]
        # Both sides have as many: in their order.
        if len(fitting) == len(values):
            for value, name in zip(values, fitting, strict=True):
                norm = norms.get(value)
                # A normalisation that the graph has no node for was folded into the node: its value is what comes out.
                folded = norm is not None and norm not in matches and name not in normalised
                own = norm if norm is not None and folded else value
                found[own] = Match(own, name, (OTHER_SIZE,), False)
    return found


def _path_of(stage: Stage) -> str:
    """The module that a stage is, or that it is an operation of."""
    path, operation, _ = stage.ref.stage.rpartition("/")
    return path if operation and "#" in stage.ref.stage else stage.ref.stage


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An operation by what it does and reads: its kind, the number of the result, values with a pair, and inputs.

    ``path``: of its module; ``None`` in a graph whose nodes carry none.
    """

    kind: str
    number: int
    reads: frozenset[str]
    fed: bool
    path: str | None


def _wanted(
    trace: TorchTrace,
    first: Mapping[int, Stage],
    matches: Mapping[int, Match],
    operations: Mapping[int, tuple[str, int]],
    *,
    scoped: bool,
) -> dict[_Wanted, list[int]]:
    """PyTorch's values without a pair, in the order of computation, by what the graph's would have to be."""
    wanted: dict[_Wanted, list[int]] = defaultdict(list)
    for value, stage in sorted(first.items(), key=lambda item: item[1].order):
        if value in matches or value not in operations or not stage.shape:
            continue
        made_of = _made_of(value, trace, first, matches)
        if made_of:
            reads = frozenset(matches[each].onnx for each in made_of if each in matches)
            operation, number = operations[value]
            if _kind(operation) in _KEEP_SIZE:
                continue
            fed = any(each not in matches for each in made_of)
            path = _path_of(stage) if scoped else None
            wanted[_Wanted(_kind(operation), number, reads, fed, path)].append(value)
    return wanted


def _made_of(
    value: int, trace: TorchTrace, first: Mapping[int, Stage], matches: Mapping[int, Match]
) -> frozenset[int] | None:
    """PyTorch's inputs and values with a pair that a value is made of; ``None``: it is made of others too."""
    inputs = {given for _, given in trace.inputs}
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


class _GraphSide:
    """What the nodes of a graph do, and which of its values have no pair. ``taken``: those that have one."""

    def __init__(self, graph: OnnxGraph, taken: Set[str], signatures: Mapping[str, Signature]):
        self.by_kind: dict[str, list[OnnxNode]] = defaultdict(list)
        for node in graph.nodes:
            self.by_kind[_kind(node.op_type)].append(node)
        self._inputs = set(graph.inputs)
        self._makers = {name: node for node in graph.nodes for name in node.outputs if name}
        self._computed = _computed(graph)
        self._taken = taken
        self._signatures = signatures

    def fitting(self, wanted: _Wanted, sizes: Set[int]) -> list[str]:
        """Values of nodes that do and read what is wanted, and have none of some sizes; in the order of the graph."""
        found = []
        for node in self.by_kind[wanted.kind]:
            name = node.outputs[wanted.number] if wanted.number < len(node.outputs) else ""
            signature = self._signatures.get(name)
            if not name or name in self._taken or signature is None or signature.size in sizes:
                continue
            read = self._sources(node.inputs)
            given = read & self._inputs
            if read - given == wanted.reads and bool(given) == wanted.fed:
                found.append(name)
        return found

    def _sources(self, names: Iterable[str]) -> frozenset[str]:
        """Inputs of the graph and values with a pair that some names are, or are views of."""
        found: set[str] = set()
        seen: set[str] = set()
        stack = [name for name in names if name in self._computed]
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self._taken or name not in self._makers or self._makers[name].op_type not in _VIEWS:
                found.add(name)
            else:
                stack += [other for other in self._makers[name].inputs if other in self._computed]
        return frozenset(found)


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
