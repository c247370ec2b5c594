"""Pairs the outputs of both sides."""

from __future__ import annotations

from bisect_tool.align.board import Board
from bisect_tool.align.matches import Match, Permuted
from bisect_tool.outputs import bind_outputs, exchanged
from bisect_tool.signatures import distance


def match_outputs(board: Board, permuted: Permuted) -> None:
    """Outputs of the model with those of the graph, by name, in order, or by value where they have changed places."""
    outputs = [(key, value) for key, value in board.trace.outputs if value in board.first_stage]
    names = [name for name in board.graph.outputs if name in board.place]
    if len(board.trace.outputs) != len(board.graph.outputs):
        by_name = dict(zip(board.graph.outputs, board.graph.outputs, strict=True))
        pairs = [(value, by_name[str(key)]) for key, value in outputs if str(key) in by_name]
    else:
        known = {value for _, value in outputs}
        values = [value for _, value in board.trace.outputs]

        def alike(place: int, name: str) -> bool:
            # A constant has no stage, and a value that no node makes is none of its; they stay where they are.
            if values[place] not in known or name not in names:
                return board.graph.outputs[place] == name
            return board.agrees(values[place], name)

        bound = bind_outputs([key for key, _ in board.trace.outputs], board.graph.outputs, alike).names
        swapped = exchanged(bound, alike)
        pairs = [
            (values[place], name)
            for place, name in enumerate(bound)
            # That outputs have changed places is no fault of the stages that make them: these go by value.
            if values[place] in known and name in names and place not in swapped
        ]
    for value, name in pairs:
        if value in board.matches or name in board.taken:
            continue
        if board.fits(value, name):
            agrees = board.agrees(value, name)
            evidence = ("graph output", board.value_evidence) if agrees else ("graph output",)
            board.take(Match(value, name, evidence, agrees))
        elif (order := _order_of(board, value, name, permuted)) is not None:
            board.take(Match(value, name, ("graph output", board.value_evidence, "permuted"), True, order))


def _order_of(board: Board, value: int, name: str, permuted: Permuted) -> tuple[int, ...] | None:
    """The order of axes in which a name holds a value."""
    other = board.onnx.get(name)
    if other is None or other.shape == board.first_stage[value].shape or value not in board.torch:
        return None
    for order, signature in permuted(value, None).items():
        if signature.shape == other.shape and distance(signature, other) <= board.limit(value):
            return order
    return None
