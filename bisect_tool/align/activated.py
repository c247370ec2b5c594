"""Products of ONNX Runtime's that an activation was fused into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from bisect_tool.align.board import Board
from bisect_tool.align.families import SHAPING, family
from bisect_tool.align.matches import Match
from bisect_tool.records import OnnxNode

ACTIVATED = frozenset(["FusedConv", "FusedGemm", "FusedMatMulActivation"])
"""Products of ONNX Runtime's that an activation belongs to, whatever the module does after them."""
_ACTIVATIONS = frozenset(
    [
        "relu",
        "leakyrelu",
        "leaky_relu",
        "clip",
        "relu6",
        "hardtanh",
        "sigmoid",
        "tanh",
        "hardsigmoid",
        "hardswish",
        "silu",
        "elu",
        "selu",
        "celu",
        "softplus",
        "softsign",
        "threshold",
        "thresholdedrelu",
    ]
)
"""Families of the operations that are fused into them, and of the modules that do them."""


def match_activated(board: Board) -> set[str]:
    """Products that an activation was fused into: their node has the value behind that, under the product's name.

    Returns:
        Paths of the modules between, which have no value in the graph.
    """
    between: set[str] = set()
    nodes: dict[str, list[OnnxNode]] = defaultdict(list)
    for node in board.graph.nodes:
        path = board.scopes.path_of(node.outputs[0]) if node.op_type in ACTIVATED else None
        if path:
            nodes[path].append(node)
    values: dict[str, list[int]] = defaultdict(list)
    for value, stage in sorted(board.first_stage.items(), key=lambda item: item[1].order):
        if stage.ref.stage in nodes:
            values[stage.ref.stage].append(value)
    for value, node in _called(board, values, nodes):
        name = node.outputs[0]
        passed = [value]
        while (found := _only_stage_after(board, passed[-1])) is not None and _is_passed_over(board, found, node):
            passed.append(found)
        if found is None or family(board.first_stage[found].type) not in _ACTIVATIONS:
            continue
        own = board.matches.get(found)
        apart = own is not None and own.onnx != name and not _hands_on(board, own.onnx, name)
        if apart or _has_nodes(board, found):
            continue
        between.update(board.first_stage[v].ref.stage for v in passed if v not in board.matches)
        if own is None and name not in board.taken and board.fits(found, name) and board.lies_right(found, name):
            agrees = board.agrees(found, name) and not board.circular(found, name)
            named = board.named(name)
            board.take(Match(found, name, (named, board.value_evidence) if agrees else (named,), agrees))
    return between


def _called(
    board: Board, values: Mapping[str, list[int]], nodes: Mapping[str, list[OnnxNode]]
) -> Iterator[tuple[int, OnnxNode]]:
    """Calls of modules and their nodes: of as many each, by their shapes, and in their order where those are one."""
    for path, own in nodes.items():
        left = list(values[path])
        for node in own if len(own) == len(left) else ():
            fitting = [value for value in left if board.fits(value, node.outputs[0])]
            if fitting:
                left.remove(fitting[0])
                yield fitting[0], node


def _hands_on(board: Board, later: str, earlier: str) -> bool:
    """Whether a value is another one in another shape."""
    while later in board.place and (node := board.graph.nodes[board.place[later]]).op_type in SHAPING:
        later = node.inputs[0]
        if later == earlier:
            return True
    return False


def _has_nodes(board: Board, value: int) -> bool:
    """Whether a stage has nodes of its own."""
    stage = board.first_stage[value]
    path, separator, _ = stage.ref.stage.rpartition("/")
    if separator and "#" in stage.ref.stage:
        return bool(board.scopes.calls(path, family(stage.type)))
    return bool(board.scopes.by_path.get(stage.ref.stage))


def _only_stage_after(board: Board, value: int) -> int | None:
    after = {stage.value for stage in board.stages_after(value)}
    return after.pop() if len(after) == 1 else None


def _is_passed_over(board: Board, value: int, node: OnnxNode) -> bool:
    """Whether a product's node computes a stage too: a BatchNorm that is in its weights, a sum with a fourth input."""
    stage = board.first_stage[value]
    if "BatchNorm" in stage.type:
        return not board.scopes.by_path.get(stage.ref.stage)
    return family(stage.type) == "add" and len(node.inputs) > 3
