"""Pairs places of numbers, such as an order has them, that no value tells.

Which of equal numbers come first in an order is nobody's rule: the numbers agree then, and their places do not. So places go
by the other result of their operation, or by what is ordered.
"""

from __future__ import annotations

from collections import defaultdict

from bisect_tool.align.board import Board
from bisect_tool.align.families import SHAPING
from bisect_tool.align.matches import Match

SAME_NODE = "same node"
"""Evidence of a pair beside which another result of the same operation has one."""

SAME_OPERAND = "same operand"
"""Evidence of the only pair that orders the numbers of one pair."""

_ORDERING_STAGES = frozenset(["argmax", "argmin", "argsort", "sort", "topk"])
_ORDERING_NODES = frozenset(["ArgMax", "ArgMin", "TopK"])

_INPUT = ""
"""Stands for all inputs: which of the model's is which of the graph's is settled elsewhere."""


def match_by_node(board: Board) -> None:
    """Results without a pair, beside one whose node has as many."""
    results: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for value, stage in board.first_stage.items():
        # Modules with several results, as recurrent ones, lay them out otherwise than their node: the scope tells those.
        if "#" in stage.ref.stage and value in board.torch and isinstance(stage.ref.output, int):
            results[stage.ref.stage, stage.ref.call].setdefault(stage.ref.output, value)
    for values in results.values():
        left = {number: value for number, value in values.items() if value not in board.matches}
        if not left or len(left) == len(values):
            continue
        made = {n: _made_by(board, board.matches[v].onnx) for n, v in values.items() if n not in left}
        nodes = {node for node, _ in made.values()}
        # Of a node whose results stand in another order nothing is known.
        if len(nodes) != 1 or any(number != place for number, (_, place) in made.items()):
            continue
        names = board.graph.nodes[nodes.pop()].outputs
        for number, value in left.items():
            name = names[number] if number < len(names) else ""
            if name and name not in board.taken and name in board.onnx and board.fits(value, name):
                board.take(Match(value, name, (SAME_NODE,), False))


def _made_by(board: Board, name: str) -> tuple[int, int]:
    """Place of the node that computes a value, and which of its results that is; views hand it on."""
    while True:
        place = board.place[name]
        node = board.graph.nodes[place]
        if node.op_type not in SHAPING or node.inputs[0] not in board.place:
            return place, node.outputs.index(name)
        name = node.inputs[0]


def match_by_operand(board: Board) -> None:
    """Places without a pair, where one stage and one node alone order the numbers of a pair, or of an input."""
    given = {value for _, value in board.trace.inputs}
    stages: dict[str, list[int]] = defaultdict(list)
    for value, stage in board.first_stage.items():
        parents = set(board.trace.parents.get(value, ()))
        if (
            stage.type in _ORDERING_STAGES
            and stage.dtype.startswith("int")
            and value in board.torch
            and len(parents) == 1
        ):
            parent = parents.pop()
            operand = board.matches.get(parent)
            if parent in given:
                stages[_INPUT].append(value)
            elif operand is not None and operand.confirmed:
                stages[_shaped(board, operand.onnx)].append(value)
    if not any(value not in board.matches for values in stages.values() for value in values):
        return
    nodes: dict[str, list[str]] = defaultdict(list)
    for node in board.graph.nodes:
        if node.op_type in _ORDERING_NODES:
            source = _shaped(board, node.inputs[0])
            nodes[_INPUT if source in board.graph.inputs else source].append(node.outputs[-1])
    for source, values in stages.items():
        if len(values) == len(nodes[source]) == 1 and values[0] not in board.matches:
            value, name = values[0], nodes[source][0]
            if name and name not in board.taken and name in board.onnx and board.fits(value, name):
                board.take(Match(value, name, (SAME_OPERAND,), False))


def _shaped(board: Board, name: str) -> str:
    """The value that views hand on under a name."""
    while name in board.place:
        node = board.graph.nodes[board.place[name]]
        if node.op_type not in SHAPING:
            break
        name = node.inputs[0]
    return name
