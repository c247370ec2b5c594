"""Pairs by structure: a fresh export of the model, whose values are known, laid beside a graph that is broken somewhere.

Asked only where values and names have left a question open: the given graph has stages whose value is wrong on the right
inputs, and around these are stages without a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

from bisect_tool.align.counterparts import Outline, counterparts
from bisect_tool.align.matches import AMBIGUOUS, FORCED_VALUE, STRUCTURE, VALUE_LIMIT, Match
from bisect_tool.align.neighbours import Neighbours
from bisect_tool.align.surroundings import has_unpaired_before
from bisect_tool.records import Alignment, OnnxGraph, TorchTrace
from bisect_tool.signatures import Signature

_BY_NAME = frozenset(["scope", "weights", "body"])


def is_open(
    trace: TorchTrace,
    matches: Mapping[int, Match],
    nodes_between: Callable[[str, Set[str]], tuple[str, ...]],
    *,
    nameless: bool,
) -> bool:
    """Whether structure could tell more: a stage is broken, and what it is made of holds more than its own node.

    Args:
        trace: of PyTorch's run.
        matches: all pairs.
        nodes_between: nodes that compute a value from the nearest of some others.
        nameless: names tell nothing; then the pair of the broken stage itself may be another.
    """
    staged = {stage.value for stage in trace.stages}
    names = {match.onnx for match in matches.values()}
    for value in (value for value, match in matches.items() if not match.confirmed):
        several = len(nodes_between(matches[value].onnx, names)) > 1
        unpaired = has_unpaired_before(value, trace, matches, staged)
        if (several or unpaired) if nameless else (several and unpaired):
            return True
    return False


def is_shifted(trace: TorchTrace, matches: Mapping[int, Match]) -> bool:
    """Whether a step may have been taken for another: order chose among values, and stages are left.

    Behind a broken step of an iteration all others may have the values of the next one, and every pair looks right.
    """
    left = any(stage.value not in matches for stage in trace.stages)
    return left and any("order" in match.evidence for match in matches.values())


def with_twins(trace: TorchTrace, matches: Mapping[int, Match], signatures: Mapping[int, Signature]) -> frozenset[int]:
    """Values that another stage has too, or that agreed only on what such pairs handed over."""
    own = {stage.value: signatures[stage.value] for stage in trace.stages if stage.value in signatures}
    there = Neighbours(own.items())
    twins = {value for value, signature in own.items() if len(there.near(signature, VALUE_LIMIT)) > 1}
    return frozenset(twins | {value for value, match in matches.items() if FORCED_VALUE in match.evidence})


def is_certain(match: Match) -> bool:
    """Whether a pair rests on values, and not on a choice among several."""
    return match.confirmed and AMBIGUOUS not in match.evidence and "order" not in match.evidence


@dataclass(frozen=True, slots=True)
class Placed:
    """What structure tells.

    Attributes:
        pairs: by PyTorch value: new ones, and others than there were.
        instead: those of ``pairs`` that stand for another of a look-alike's, though the numbers are not PyTorch's.
        missing: where nothing stands in the place of a value, what is there instead.
    """

    pairs: Mapping[int, Match]
    instead: Mapping[int, Match]
    missing: Mapping[int, str]


NOTHING_PLACED = Placed({}, {}, {})


def placed_by_structure(
    fresh: Outline,
    given: Outline,
    fresh_matches: Mapping[int, Match],
    matches: Mapping[int, Match],
    inputs: Mapping[str, str],
    agrees: Callable[[int, str], bool],
    *,
    narrow: bool,
    doubted: Set[int] = frozenset(),
) -> Placed:
    """Pairs that the counterparts of a fresh export's values make.

    Args:
        fresh, given: both graphs.
        fresh_matches: pairs of the fresh graph; where an exporter itself is off they rest on its names.
        matches: pairs of the given graph so far.
        inputs: of the given graph, by those of the fresh one.
        agrees: whether a value of PyTorch's has the numbers of one of the given graph's.
        narrow: the given graph's constants may be rounded to half precision.
        doubted: values whose pairs are not relied on, though they agree.
    """
    known = dict(inputs)
    for value, match in matches.items():
        own = fresh_matches.get(value)
        certain = (is_certain(match) and value not in doubted) or "graph output" in match.evidence
        if own is not None and certain and own.permutation == match.permutation:
            known[own.onnx] = match.onnx
    doubtful = contradicted(fresh.graph, given.graph, known)
    laid = counterparts(fresh, given, {n: o for n, o in known.items() if n not in doubtful}, narrow=narrow)
    back = {other: name for name, other in laid.pairs.items()}
    found: dict[int, Match] = {}
    instead: dict[int, Match] = {}
    for value, own in fresh_matches.items():
        name = laid.pairs.get(own.onnx)
        before = matches.get(value)
        if name is None or AMBIGUOUS in own.evidence or (before is not None and before.onnx == name):
            continue
        if before is None or not before.confirmed:
            found[value] = Match(value, name, (STRUCTURE,), False, own.permutation)
        elif (certain := is_certain(before)) and value not in doubted and own.onnx not in doubtful:
            continue
        elif (stands_for := back.get(before.onnx, own.onnx)) == own.onnx and certain:
            # Nobody else's value: something was put behind, and belongs to the stage.
            continue
        elif agrees(value, name):
            # Of values that are handed on unchanged order took another.
            kept = tuple(line for line in before.evidence if line not in ("order", AMBIGUOUS))
            found[value] = Match(value, name, (*kept, STRUCTURE), True, own.permutation)
        elif stands_for != own.onnx:
            # Steps that come to rest have equal values: where one is broken another one's was taken for it.
            found[value] = instead[value] = Match(value, name, (STRUCTURE,), False, own.permutation)
    # What PyTorch computes twice and the graph once has one pair.
    held = {match.onnx: value for value, match in matches.items()}
    twice = {v for v, m in found.items() if m.confirmed and held.get(m.onnx, v) not in {v, *found}}
    found = {value: match for value, match in found.items() if value not in twice}
    missing = {
        value: "nothing stands in its place in the graph: {} reads {} directly".format(*laid.left_out[own.onnx])
        for value, own in fresh_matches.items()
        if value not in matches and own.onnx in laid.left_out
    }
    return Placed(found, instead, missing)


def contradicted(fresh: OnnxGraph, given: OnnxGraph, known: Mapping[str, str]) -> frozenset[str]:
    """Pairs whose two nodes have a single operand, of which one is known to stand for something else than the other."""
    back = {other: name for name, other in known.items()}
    reads, read = _operands(fresh), _operands(given)
    found = set()
    for name, other in known.items():
        first, second = reads.get(name), read.get(other)
        if first is None or second is None:
            continue
        if known.get(first, second) != second or back.get(second, first) != first:
            found.add(name)
    return frozenset(found)


def _operands(graph: OnnxGraph) -> dict[str, str]:
    """The operand of each node that has a single one, by its result."""
    return {node.outputs[0]: node.inputs[0] for node in graph.nodes if len(node.inputs) == len(node.outputs) == 1}


def with_missing(alignment: Alignment, trace: TorchTrace, missing: Mapping[int, str]) -> Alignment:
    """The alignment with what is there instead of stages that the graph leaves out."""
    values = {stage.ref: stage.value for stage in trace.stages}
    unaligned = (replace(item, reason=missing.get(values[item.ref], item.reason)) for item in alignment.unaligned)
    return replace(alignment, unaligned=tuple(unaligned)) if missing else alignment
