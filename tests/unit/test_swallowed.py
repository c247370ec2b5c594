"""NaN that one side hands on and the other loses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Call, Node, Operand
from bisect_tool.diagnose.causes import NONFINITE
from bisect_tool.diagnose.rules.facts import Clue, Facts
from bisect_tool.diagnose.rules.swallowed import look

Array = NDArray[Any]
NAN = float("nan")
X = np.array([[1, NAN, 3], [4, 5, 6]], np.float32)


def node(op: str, result: Array, *inputs: Array, name: str = "") -> Node:
    names = tuple(f"x{i}" for i in range(len(inputs)))
    values = {**dict(zip(names, inputs, strict=True)), "y": result}
    floats = {key: array for key, array in values.items() if array.dtype.kind == "f"}
    others = {key: array for key, array in values.items() if array.dtype.kind != "f"}
    shapes = {key: array.shape for key, array in values.items()}
    return Node(name or f"the_{op}", op, {}, names, {}, ("y",), floats, shapes, others)


def call(name: str, result: Array, operand: Array = X) -> Call:
    return Call(name, {"self": Operand(operand, False)}, result)


def clues(nodes: list[Node], calls: list[Call], expected: Array, actual: Array) -> list[Clue]:
    return [each for each in look(Facts(nodes, nodes, calls, expected, actual, lambda: None)) if isinstance(each, Clue)]


def test_a_node_that_loses_what_its_call_hands_on() -> None:
    """Beside PyTorch's call of the same operation, whatever becomes of it further on."""
    made, wanted = np.array([3, 6], np.float32), np.array([NAN, 6], np.float32)
    end = np.zeros(2, np.float32)
    (clue,) = clues([node("ReduceMax", made, X)], [call("amax", wanted)], end, end)
    assert (NONFINITE, "the_ReduceMax") == (clue.code, clue.node)
    assert "ReduceMax the_ReduceMax reads NaN: PyTorch's amax gives 1 NaN, the graph 0" == clue.text[0]


def test_nan_at_another_place() -> None:
    """Sorting has no place for it that both sides agree on."""
    wanted = np.array([[NAN, 3, 1], [6, 5, 4]], np.float32)
    made = np.array([[3, 1, NAN], [6, 5, 4]], np.float32)
    (clue,) = clues([node("TopK", made, X)], [call("topk", wanted)], wanted, made)
    assert clue.text[0].endswith("the graph 1 at other places")


def test_a_comparison_loses_it_on_the_way_to_the_result() -> None:
    """No call of PyTorch's is a comparison: the result's NaN is missed, and the first node that loses one named."""
    flags = np.nan_to_num(X) > 2
    nodes = [node("IsNaN", np.isnan(X), X), node("Greater", flags, X), node("Where", np.where(flags, 1.0, 0.0), flags)]
    (clue,) = clues(nodes, [call("hardshrink", X)], X, np.where(flags, X, 0).astype(np.float32))
    assert "1 of 6 numbers of PyTorch's result are NaN where the graph's are not, the first at (0, 1)" in clue.text[0]
    assert "Greater the_Greater reads NaN and gives none" in clue.text[0]


def test_a_call_that_drops_what_the_graph_hands_on() -> None:
    """The other way round."""
    (clue,) = clues([node("Mul", X, X)], [call("sign", np.sign(np.nan_to_num(X)))], np.sign(np.nan_to_num(X)), X)
    assert "PyTorch's sign reads NaN and gives none, which the graph hands on" in clue.text[0]


def test_a_where_that_passes_over_nan_is_no_loss() -> None:
    """What a condition leaves out is meant to go; one that takes NaN does not lose it either."""
    flags = ~np.isnan(X)
    clean = np.where(flags, X, 0).astype(np.float32)
    nodes = [node("Where", clean, flags, X, np.zeros(1, np.float32)), node("MaxPool", clean, X)]
    (clue,) = clues(nodes, [call("relu", X)], X, clean)
    assert "the_MaxPool" == clue.node


def test_nothing_is_said_without_nan() -> None:
    """Or where both sides have it at the same places."""
    plain = np.ones((2, 3), np.float32)
    assert [] == clues([node("ReduceMax", plain, plain)], [call("amax", plain, plain)], plain, plain * 2)
    assert [] == clues([node("Relu", X, X)], [call("relu", X)], X, X * 2)
