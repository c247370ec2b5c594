"""Looks inside an origin: its nodes run on PyTorch's inputs, beside PyTorch's operations; what is right is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from bisect_tool.align.forks import FORKED
from bisect_tool.align.matches import Match
from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.inner import inner_values
from bisect_tool.backends.onnx_program import OnnxProgram, ValueType
from bisect_tool.backends.ort_runner import PartRuns
from bisect_tool.backends.replay import CannotReplayError
from bisect_tool.backends.stream import in_onnx_form
from bisect_tool.drilldown import Inside, narrow
from bisect_tool.layouts import in_order
from bisect_tool.metrics import largest_difference
from bisect_tool.noise import BEYOND, epsilon, is_settled
from bisect_tool.recorder import Trace
from bisect_tool.records import NumericConfig, Origin, Stage
from bisect_tool.rows import from_here

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Both sides of a run that was compared.

    Attributes:
        program: the graph.
        tape: of PyTorch's plain run.
        activations: its tensors.
        matches: ONNX values by PyTorch value.
        types: of inner ONNX values.
        feeds: the graph's own inputs.
        budget: bytes that may be held.
        rounded: inputs of the graph as the sample has them, where the graph takes a narrower type.
        holding: the value of the graph's own run that holds a tensor, anywhere in it; ``None``: there is none.
    """

    program: OnnxProgram
    tape: Trace
    activations: ActivationStore
    matches: Mapping[int, Match]
    types: Mapping[str, ValueType]
    feeds: Mapping[str, Array]
    budget: int
    rounded: Mapping[str, Array] = field(default_factory=dict)
    holding: Callable[[Array], str | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Opened:
    """A stage of the graph with what it takes to run it on PyTorch's inputs.

    Attributes:
        nodes: between the nearest known values and the stage's own.
        output: the stage's ONNX value.
        known: PyTorch values that it starts from.
        cuts: their pairs, by ONNX name.
        feeds: what the nodes read, by name: PyTorch's tensors, and inputs of the graph.
        expected: PyTorch's value of the stage, its axes in the graph's order.
        made: the stage's local error, relative, where it is largest.
        floor: its noise floor, relative; ``None`` if not measured.
    """

    nodes: tuple[str, ...]
    output: str
    known: Set[int]
    cuts: Mapping[str, Match]
    feeds: Mapping[str, Array]
    expected: Array
    made: float
    floor: float | None

    def close(self, first: Array, second: Array) -> bool:
        """Whether two tensors of one shape differ by rounding only."""
        apart = largest_difference(first, second.astype(first.dtype, copy=False))
        # A fault may shrink on its way, under a mask for one, and grow again: right is what is far closer than the result.
        near = apart <= max(self.made / 10, 2 * epsilon(str(first.dtype)))
        settled = is_settled(apart, str(first.dtype))
        return near and (settled or (self.floor is not None and apart <= BEYOND * self.floor))


def open_stage(around: Surroundings, origin: Origin, stage: Stage, known: Set[int], floor: float | None) -> Opened:
    """The stage of an origin, ready to run.

    Args:
        around: the run.
        origin: with all nodes of its stage.
        stage: the origin's.
        known: values that the forced run was cut at; the stage starts from the nearest of them.
        floor: the stage's noise floor, relative; ``None`` if not measured.

    Raises:
        CannotReplayError: the graph reads what has no value there.
    """
    program, own = around.program, around.matches[stage.value]
    known = known - {stage.value}
    cuts = {around.matches[value].onnx: around.matches[value] for value in known if value in around.matches}
    nodes = program.nodes_between(own.onnx, cuts.keys(), moving=True) if program.moving else origin.onnx_nodes
    while turned := {name for name in program.part(nodes).reads if name in cuts and _is_turned(cuts[name])}:
        # Axes in another order may be the exporter's choice or the very fault: the values before them say which.
        known -= {cuts[name].value for name in turned}
        cuts = {name: match for name, match in cuts.items() if name not in turned}
        nodes = program.nodes_between(own.onnx, cuts.keys(), moving=True)
    feeds = _feeds(around, program.part(nodes).reads, cuts)
    expected = around.activations.fetch(stage.value)
    if own.permutation is not None:
        kind = around.types.get(own.onnx)
        expected = in_order(expected, own.permutation, None if kind is None else kind.shape)
    # The error where it is largest: beside a mask's filling, or a huge channel, every other is small.
    made = max(origin.local_rel_l2, (origin.noise_ratio or 0.0) * (floor or 0.0))
    return Opened(nodes, own.onnx, known, cuts, feeds, expected, made, floor)


def _is_turned(match: Match) -> bool:
    return bool(match.permutation) and FORKED not in match.evidence


def look_inside(around: Surroundings, opened: Opened, origin: Origin, stage: Stage, config: NumericConfig) -> Origin:
    """The origin with the fewest nodes that certainly hold its fault.

    Args:
        around, opened: the run and the stage.
        origin: with all nodes of its stage.
        stage: the origin's.
        config: of ONNX Runtime's side.

    Raises:
        CannotReplayError: PyTorch's side can't be computed again.
        InconclusiveError: ONNX Runtime refuses the stage on its own.
    """
    if len(opened.nodes) < 2:
        return origin
    program, nodes, cuts, feeds = around.program, opened.nodes, opened.cuts, opened.feeds
    inside = Inside(
        nodes=tuple(node for node in program.graph.nodes if node.name in set(nodes)),
        output=opened.output,
        given=tuple(feeds.values()),
        run=PartRuns(program, config, program.part(nodes), feeds, around.types).run,
        between=lambda name, right: program.nodes_between(name, cuts.keys() | right, moving=True),
    )
    inner = inner_values(around.tape, stage.value, opened.known, around.activations.tensor, around.budget)
    narrowed = narrow(inside, opened.expected, inner, opened.close)
    found = tuple(name for name in narrowed.nodes if name not in program.moving)
    wider = not set(nodes) - program.moving <= set(origin.onnx_nodes)
    # What was looked at beyond the stage was no use if all of the stage is left.
    if not found or (wider and (not narrowed.evidence or {*origin.onnx_nodes} <= {*found})):
        return origin
    text = None
    if narrowed.operation is not None:
        source = from_here(narrowed.operation.source)
        text = f"{narrowed.operation.name} at {source}" if source else narrowed.operation.name
    return replace(origin, onnx_nodes=found, evidence=narrowed.evidence, operation=text)


def _feeds(around: Surroundings, names: tuple[str, ...], cuts: Mapping[str, Match]) -> dict[str, Array]:
    """What the stage's nodes read: PyTorch's tensors, and inputs of the graph."""
    feeds: dict[str, Array] = {}
    for name in names:
        if name in cuts:
            array = around.activations.fetch(cuts[name].value)
            feeds[name] = in_onnx_form(array, cuts[name].permutation, around.types.get(name))
        elif name in around.feeds:
            feeds[name] = around.feeds[name]
        else:
            raise CannotReplayError(f"the graph reads {name}, which has no value here")
    return feeds
