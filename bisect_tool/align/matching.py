"""Pairs the values of both sides, with one kind of evidence after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bisect_tool.align.board import Board
from bisect_tool.align.by_axes import match_permuted
from bisect_tool.align.by_node import match_by_node, match_by_operand
from bisect_tool.align.by_output import match_outputs
from bisect_tool.align.by_scope import match_by_scope, match_placed
from bisect_tool.align.by_value import ByValue
from bisect_tool.align.matches import STRUCTURE, Hints, Match, Sides
from bisect_tool.records import TorchTrace

_NO_HINTS = Hints()


def match_values(sides: Sides, hints: Hints = _NO_HINTS) -> dict[int, Match]:
    """Pairs PyTorch values with ONNX values.

    Returns:
        All pairs, the known ones included, by PyTorch value.
    """
    board = Board(sides, hints)
    for match in hints.known.values():
        board.take(match)
    for match in hints.instead.values():
        _take_instead(board, match)
    match_outputs(board, sides.permuted)
    ByValue(board, hints.second).match()
    match_by_node(board)
    match_by_operand(board)
    match_permuted(board, sides.permuted)
    match_placed(board, hints.placed)
    match_by_scope(board, sides.permuted)
    return board.matches


def _take_instead(board: Board, match: Match) -> None:
    if match.value in board.matches or match.onnx in board.taken:
        return
    agrees = board.agrees(match.value, match.onnx)
    evidence = (*match.evidence, board.value_evidence) if agrees else match.evidence
    board.take(replace(match, evidence=evidence, confirmed=agrees))


def trusted(trace: TorchTrace, matches: Mapping[int, Match]) -> dict[int, Match]:
    """Pairs at which a forced run may hand over PyTorch's values: all but operations by name alone behind broken ones.

    A wrong pair, once it is fed, hides the place where the graph has the value. So an operation without a confirmed pair,
    and a module that only structure tells, is fed when what it reads is right, and what is behind it gets another chance
    first.
    """
    operations = {stage.value for stage in trace.stages if "#" in stage.ref.stage}
    doubtful = {
        v for v, match in matches.items() if not match.confirmed and (v in operations or match.evidence == (STRUCTURE,))
    }
    behind: set[int] = set()
    for value in sorted(trace.parents):
        if any(p in behind or p in doubtful for p in trace.parents[value]) and not (
            value in matches and matches[value].confirmed
        ):
            behind.add(value)
    found = {v: match for v, match in matches.items() if v not in doubtful or v not in behind}
    return found if len(found) > sum(m.confirmed for m in matches.values()) else dict(matches)
