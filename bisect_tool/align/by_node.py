"""Pairs results of an operation that gives several, where one of them has a pair.

Which of equal numbers come first in an order is nobody's rule: the numbers agree then, and their places do not.
"""

from __future__ import annotations

from collections import defaultdict

from bisect_tool.align.board import Board
from bisect_tool.align.families import SHAPING
from bisect_tool.align.matches import Match

SAME_NODE = "same node"
"""Evidence of such a pair."""


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
