"""Inside an origin: the fewest nodes that certainly hold its fault.

Two kinds of evidence, both by values and neither by names. A value inside the stage that equals one of PyTorch's is right,
so that the fault lies behind it. And where handing one of PyTorch's inner values over to the graph makes the stage's result
right, everything behind that place is, so that the fault lies before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from bisect_tool.align.families import family
from bisect_tool.judging import is_step, makes_error
from bisect_tool.metrics import kind_of
from bisect_tool.records import OnnxGraph, OnnxNode, Origin, StageRef, StageRow

Array = NDArray[Any]


def first_mending(count: int, error_of: Callable[[int], float]) -> tuple[int, float, float] | None:
    """Hand-over bisection: the first of ``count`` places after which handing PyTorch's values over mends the outputs.

    Args:
        count: places, in a topological order.
        error_of: error of the final outputs with the values up to and including a place handed over; -1: none of them.

    Returns:
        The place and the errors with the hand-over just before it and at it; ``None`` where no single place mends them:
        there is no error, or handing everything over does not remove most of it.
    """
    low, high = -1, count - 1
    before, after = error_of(low), error_of(high) if count else math.inf
    if not before > LEAST_DROP * after or math.isnan(after):
        return None
    # Between the two levels there is one step if there is one fault.
    limit = math.sqrt(before * after) if after and math.isfinite(before) else before / LEAST_DROP
    limit = limit if math.isfinite(limit) else 1.0
    while high - low > 1:
        middle = (low + high) // 2
        error = error_of(middle)
        if error <= limit:
            high, after = middle, error
        else:
            low, before = middle, error
    return high, before, after


LEAST_DROP = 10.0
"""How much smaller the outputs' error must become for a hand-over to count as mending them."""


SHARED = "one fault would explain them all"
"""How what :func:`note_shared` says ends."""


def note_shared(origins: Sequence[Origin]) -> tuple[Origin, ...]:
    """Says where several origins name the same nodes: a wrong value that PyTorch does not have shows in all its readers."""
    found = []
    for origin in origins:
        others = [
            other
            for other in origins
            if other is not origin
            and other.config == origin.config
            and not set(origin.onnx_nodes).isdisjoint(other.onnx_nodes)
        ]
        shared = [name for name in origin.onnx_nodes if all(name in other.onnx_nodes for other in others)]
        if others and shared:
            readers = ", ".join(dict.fromkeys(str(other.ref) for other in others))
            text = f"{', '.join(shared[:3])} may be what is wrong in {readers} too: {SHARED}"
            origin = replace(origin, evidence=(*origin.evidence, text))
        found.append(origin)
    return tuple(found)


def proven_right(origin: Origin, rows: Sequence[StageRow], graph: OnnxGraph) -> dict[str, StageRef]:
    """Nodes of an origin whose results another stage reads too, and is right with; and that stage.

    What is wrong in the origin is then that it reads them, and not what they make. All results that the origin uses must be
    used there, and as a whole: queries and keys that were picked from one product say nothing about the values in it. A stage
    that turns numbers into steps may not feel a difference.

    Args:
        origin: with all nodes of its stage, or the fewest that hold its fault.
        rows: the stage table.
        graph: all nodes.
    """
    row = next((row for row in rows if row.ref == origin.ref), None)
    if row is None:
        return {}
    nodes = {node.name: node for node in graph.nodes}
    own = set(row.onnx_nodes)
    found: dict[str, StageRef] = {}
    for other in rows:
        result = other.results.get(origin.config)
        shared = own.intersection(other.onnx_nodes)
        if not shared or result is None or other.ref == origin.ref or other.role == "group" or is_step(other):
            continue
        if result.local is None or result.judgement != "pass" or makes_error(other, result):
            continue
        whole = _read_as_a_whole(nodes, other)
        for name in shared - found.keys():
            used = _used(nodes, name, row)
            if used and used <= whole:
                found[name] = other.ref
    return found


def _used(nodes: Mapping[str, OnnxNode], name: str, row: StageRow) -> set[str]:
    """Results of a node that a stage's other nodes read."""
    made = set(nodes[name].outputs) if name in nodes else set()
    return {read for other in row.onnx_nodes if other in nodes for read in nodes[other].inputs if read in made}


def _read_as_a_whole(nodes: Mapping[str, OnnxNode], row: StageRow) -> set[str]:
    """Values of which every number has a part in a stage's."""
    found = {row.onnx_value} if row.onnx_value is not None else set()
    for name in reversed(row.onnx_nodes):
        node = nodes.get(name)
        if node is not None and node.op_type in _FEELING and not found.isdisjoint(node.outputs):
            found.update(node.inputs)
    return found


def without_proven(origin: Origin, stage_nodes: Sequence[str], proven: Mapping[str, StageRef]) -> Origin:
    """The origin without nodes that are right; as it is where nothing would be left.

    Args:
        origin: with the fewest nodes that hold its fault.
        stage_nodes: all of its stage's.
        proven: of :func:`proven_right`.
    """
    named = [name for name in origin.onnx_nodes if name in proven]
    left = tuple(name for name in origin.onnx_nodes if name not in proven)
    left = left or tuple(name for name in stage_nodes if name not in proven)
    if not named or not left:
        return origin
    text = f"{', '.join(named[:3])} {'are' if len(named) > 1 else 'is'} read by {proven[named[0]]} too, which is right"
    return replace(origin, onnx_nodes=left, evidence=(*origin.evidence, text))


_FEELING = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Tanh",
        "Sigmoid",
        "Erf",
        "Gelu",
        "Softmax",
        "LogSoftmax",
        "Sin",
        "Cos",
        "Pow",
        "Abs",
        "MatMul",
        "Gemm",
        "Conv",
        "ConvTranspose",
        "ReduceMean",
        "ReduceSum",
        "ReduceL2",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "BatchNormalization",
        "AveragePool",
        "GlobalAveragePool",
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Concat",
    ]
)
"""Operators whose result changes with every number that they read."""

_PICKING = {
    family(name)
    for name in [
        "slice",
        "gather",
        "split",
        "transpose",
        "gathernd",
        "gatherelements",
        "squeeze",
        "unsqueeze",
        "reshape",
        "flatten",
        "expand",
        "identity",
    ]
}
"""Operations that only pick and place numbers: their results may equal several of PyTorch's values."""

MAX_TRIALS = 96
"""Hand-overs that are tried in one stage."""


@dataclass(frozen=True, slots=True)
class Inner:
    """A value that PyTorch computed inside a stage: operation, ``file:line`` that called it if known, and the tensor."""

    name: str
    source: str | None
    array: Array


@dataclass(frozen=True, slots=True)
class Inside:
    """A stage of the graph as it can be run here.

    Attributes:
        nodes: in topological order.
        output: the stage's value.
        given: the stage's inputs.
        run: computes values of the stage from PyTorch's inputs, with some inner values given: ``run(given, wanted)``.
        between: nodes that make a value from the nearest of some values (and from the stage's inputs).
    """

    nodes: tuple[OnnxNode, ...]
    output: str
    given: tuple[Array, ...]
    run: Callable[[Mapping[str, Array], Sequence[str]], Mapping[str, Array | None]]
    between: Callable[[str, Set[str]], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Narrowed:
    """The nodes left, what showed it, and PyTorch's operation behind them (``None`` if that is the whole stage)."""

    nodes: tuple[str, ...]
    evidence: tuple[str, ...]
    operation: Inner | None


def narrow(inside: Inside, expected: Array, inner: Sequence[Inner], close: Callable[[Array, Array], bool]) -> Narrowed:
    """Drops nodes from a faulty stage as long as values prove them right.

    Args:
        inside: the stage in the graph.
        expected: PyTorch's value of the stage, in any shape of the same data.
        inner: what PyTorch computed on the way, in order of execution.
        close: whether two tensors of one shape differ by rounding only.
    """
    nodes = tuple(node.name for node in inside.nodes)
    made_by = {name: node for node in inside.nodes for name in node.outputs if name}
    names = [name for name in made_by if name != inside.output]
    if not names or not inner:
        return Narrowed(nodes, (), None)
    values = {name: array for name, array in inside.run({}, names).items() if array is not None}
    good = _right(inside, {name: made_by[name] for name in names if name in values}, values, inner, close)
    evidence: list[str] = []
    left = inside.between(inside.output, good.keys())
    if len(left) < len(nodes):
        edge = [name for name in good if made_by[name].name not in left]
        if edge:
            evidence.append(f"{edge[-1]} equals PyTorch's {good[edge[-1]].name}: right up to there")
    makers = {node.name: node for node in inside.nodes}
    # A value that mends the stage in place of another operation's result is a coincidence, such as a norm's in its input.
    trials = 0
    for node in left:
        for name in makers[node].outputs:
            made = values.get(name)
            if made is None or name == inside.output or name in good:
                continue
            for candidate in inner:
                if not _same(candidate, makers[node], made) or trials >= MAX_TRIALS:
                    continue
                trials += 1
                given = candidate.array.reshape(made.shape).astype(made.dtype, copy=False)
                result = inside.run({name: given}, [inside.output]).get(inside.output)
                if (
                    result is None
                    or result.size != expected.size
                    or not close(expected, result.reshape(expected.shape))
                ):
                    continue
                before = inside.between(name, good.keys())
                if len(before) < len(left):
                    evidence.append(f"with PyTorch's {candidate.name} in place of {name} the stage's result is right")
                    return Narrowed(before, tuple(evidence), candidate)
    return Narrowed(left, tuple(evidence), None)


def _right(
    inside: Inside,
    makers: Mapping[str, OnnxNode],
    values: Mapping[str, Array],
    inner: Sequence[Inner],
    close: Callable[[Array, Array], bool],
) -> dict[str, Inner]:
    """Values of the stage that are what they should be.

    A fault may turn one value into another of PyTorch's: a division upside down into the root before it, a sum without
    one operand into the other, one slice into the next. So the operation must be the same, each of PyTorch's values serves
    once and in its order, none counts that only hands an input of the stage on, and slices only if there is but one.
    """
    found: dict[str, Inner] = {}
    start = 0
    for name, node in makers.items():
        array = values[name]
        if family(node.op_type) in _PICKING and sum(_same(part, node, array) for part in inner) > 1:
            continue
        if any(_alike(known, array) and close(known, array.reshape(known.shape)) for known in inside.given):
            continue
        for place in range(start, len(inner)):
            candidate = inner[place]
            if _same(candidate, node, array) and close(candidate.array, array.reshape(candidate.array.shape)):
                found[name] = candidate
                start = place + 1
                break
    return found


def _same(candidate: Inner, node: OnnxNode, array: Array) -> bool:
    """Whether a value of PyTorch's may be a node's: made by the same operation, of the same size."""
    return family(candidate.name) == family(node.op_type) and _alike(candidate.array, array)


def _alike(first: Array, second: Array) -> bool:
    return first.size == second.size and first.size > 0 and kind_of(first.dtype) == kind_of(second.dtype) == "float"
