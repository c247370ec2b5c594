"""Stages that the graph computes inside a node's body (If, Loop, Scan), which hands out its result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from bisect_tool.align.matches import Match
from bisect_tool.records import Alignment, StageRef, Unaligned

_OPERATORS = {"cond": "If", "while_loop": "Loop", "map_impl": "Scan", "scan": "Scan"}


def match_bodies(
    matches: Mapping[int, Match],
    bodies: Sequence[tuple[str, Sequence[str]]],
    calls: Sequence[tuple[str, Sequence[int]]],
    values: Set[int],
) -> dict[int, Match]:
    """All pairs, and those of what bodies hand out and no value fits: call by call, in the order of both sides.

    Args:
        matches: pairs found otherwise.
        bodies: operator and outputs of each node of the graph that has a body, in the graph's order.
        calls: PyTorch's operators with bodies and the values that they handed out, in order of execution.
        values: that have a stage.
    """
    found = dict(matches)
    taken = {match.onnx for match in matches.values()}
    for kind in sorted(set(_OPERATORS.values())):
        nodes = [outputs for operator, outputs in bodies if operator == kind]
        results = [made for name, made in calls if _OPERATORS.get(name) == kind]
        if len(nodes) != len(results):
            continue
        for names, made in zip(nodes, results, strict=True):
            pairs = zip(made, names, strict=True) if len(made) == len(names) else ()
            for value, name in pairs:
                if value in values and value not in found and name and name not in taken:
                    found[value] = Match(value, name, ("body",), False)
    return found


def leave_out_bodies(alignment: Alignment, inside: Set[StageRef], operators: Set[str]) -> Alignment:
    """The alignment in which stages inside bodies say so, and do not count against coverage.

    Args:
        alignment: as summarised.
        inside: stages that PyTorch computed in a body.
        operators: of the graph's nodes that have bodies; with none of them nothing changes.
    """
    if not operators:
        return alignment
    reason = f"computed inside a body of the graph ({', '.join(sorted(operators))}), which hands out its result alone"
    unaligned = tuple(
        Unaligned(left.ref, reason, False) if left.ref in inside else left for left in alignment.unaligned
    )
    in_graph = alignment.aligned + sum(left.in_graph for left in unaligned)
    coverage = alignment.aligned / in_graph if in_graph else None
    return replace(alignment, unaligned=unaligned, coverage=coverage)
