"""Pairs by structure: a fresh export of the model, whose values are known, laid beside a graph that is broken somewhere.

Asked only where values and names have left a question open: the given graph has stages whose value is wrong on the right
inputs, and around these are stages without a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import replace

from bisect_tool.align.counterparts import Outline, counterparts
from bisect_tool.align.matches import AMBIGUOUS, STRUCTURE, Match
from bisect_tool.align.surroundings import has_unpaired_before
from bisect_tool.records import Alignment, TorchTrace

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


def is_certain(match: Match) -> bool:
    """Whether a pair rests on values, and not on a choice among several."""
    return match.confirmed and AMBIGUOUS not in match.evidence and "order" not in match.evidence


def placed_by_structure(
    fresh: Outline,
    given: Outline,
    fresh_matches: Mapping[int, Match],
    matches: Mapping[int, Match],
    inputs: Mapping[str, str],
    agrees: Callable[[int, str], bool],
    *,
    narrow: bool,
) -> tuple[dict[int, Match], dict[int, str]]:
    """Pairs that the counterparts of a fresh export's values make, by PyTorch value: new ones, and others than there were.

    And where nothing stands in the place of a value, what is there instead.

    Args:
        fresh, given: both graphs.
        fresh_matches: pairs of the fresh graph; where an exporter itself is off they rest on its names.
        matches: pairs of the given graph so far.
        inputs: of the given graph, by those of the fresh one.
        agrees: whether a value of PyTorch's has the numbers of one of the given graph's.
        narrow: the given graph's constants may be rounded to half precision.
    """
    known = dict(inputs)
    for value, match in matches.items():
        own = fresh_matches.get(value)
        certain = is_certain(match) or "graph output" in match.evidence
        if own is not None and certain and own.permutation == match.permutation:
            known[own.onnx] = match.onnx
    laid = counterparts(fresh, given, known, narrow=narrow)
    there = laid.pairs
    found: dict[int, Match] = {}
    for value, own in fresh_matches.items():
        name = there.get(own.onnx)
        before = matches.get(value)
        if name is None or AMBIGUOUS in own.evidence or (before is not None and before.onnx == name):
            continue
        if before is None or not before.confirmed:
            found[value] = Match(value, name, (STRUCTURE,), False, own.permutation)
        elif not is_certain(before) and agrees(value, name):
            # Of values that are handed on unchanged order took another.
            kept = tuple(line for line in before.evidence if line not in ("order", AMBIGUOUS))
            found[value] = Match(value, name, (*kept, STRUCTURE), True, own.permutation)
    missing = {
        value: "nothing stands in its place in the graph: {} reads {} directly".format(*laid.left_out[own.onnx])
        for value, own in fresh_matches.items()
        if value not in matches and own.onnx in laid.left_out
    }
    return found, missing


def with_missing(alignment: Alignment, trace: TorchTrace, missing: Mapping[int, str]) -> Alignment:
    """The alignment with what is there instead of stages that the graph leaves out."""
    values = {stage.ref: stage.value for stage in trace.stages}
    unaligned = (replace(item, reason=missing.get(values[item.ref], item.reason)) for item in alignment.unaligned)
    return replace(alignment, unaligned=tuple(unaligned)) if missing else alignment
