"""``counterparts``: values of two graphs of one structure, one of which has lost its names and has a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bisect_tool.align.counterparts import Laid, Outline, constant_values, counterparts, likeness
from bisect_tool.records import OnnxGraph, OnnxNode
from bisect_tool.signatures import Signature, signature_of

Step = tuple[str, Sequence[str], str] | tuple[str, Sequence[str], str, str]
"""Operator, inputs, output and, where there are any, attributes."""

WEIGHTS = {name: np.random.default_rng(i).standard_normal(64) for i, name in enumerate(("w1", "w2", "w3", "w4"))}
WEIGHTS["two"] = np.float64(2.0).reshape(())
WEIGHTS["near"] = np.float64(2.002).reshape(())


def outlined(steps: Sequence[Step], prefix: str = "", weights: Mapping[str, Any] = WEIGHTS) -> Outline:
    """A graph from ``x``, whose values are called with a prefix; what is not a weight is computed."""

    def named(name: str) -> str:
        return name if name in weights or not name else prefix + name

    nodes = [
        OnnxNode(f"n{i}", step[0], "", tuple(map(named, step[1])), (named(step[2]),), (), None, None, None)
        for i, step in enumerate(steps)
    ]
    graph = OnnxGraph((named("x"),), (nodes[-1].outputs[0],), tuple(nodes), frozenset(weights), {}, {}, "")
    values = {name: signature_of(np.asarray(array), "float") for name, array in weights.items()}

    def signature(name: str) -> Signature | None:
        return values.get(name) or signature_of(np.ones((4, 16)), "float")

    return Outline(
        graph, [step[3] if len(step) > 3 else "" for step in steps], signature, constant_values(graph, weights.keys())
    )


BLOCK: tuple[Step, ...] = (
    ("MatMul", ["x", "w1"], "a"),
    ("Relu", ["a"], "b"),
    ("MatMul", ["b", "w2"], "c"),
    ("Add", ["x", "c"], "d"),
    ("LayerNormalization", ["d", "w3"], "e"),
    ("MatMul", ["e", "w4"], "y"),
)


def laid(fresh: Sequence[Step], given: Sequence[Step], known: Mapping[str, str]) -> Laid:
    return counterparts(outlined(fresh), outlined(given, "g."), {name: f"g.{other}" for name, other in known.items()})


def told(fresh: Sequence[Step], given: Sequence[Step], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """What is told from the ends alone, or from what is known; names of the given graph without their prefix."""
    start = {"x": "x", "y": "y"} if known is None else known
    found = laid(fresh, given, start)
    return {name: other.removeprefix("g.") for name, other in found.pairs.items()}


def with_step(place: int, *steps: Step) -> list[Step]:
    """The block with other nodes in the place of one."""
    return [*BLOCK[:place], *steps, *BLOCK[place + 1 :]]


def test_every_value_of_the_same_graph_is_told() -> None:
    assert told(BLOCK, BLOCK) == {name: name for name in "xabcdey"}


@pytest.mark.parametrize("place", range(6))
def test_a_node_that_became_another_keeps_its_place(place: int) -> None:
    """Whatever node it is: a sum that hands on one operand, a product with another weight."""
    step = BLOCK[place]
    given = with_step(place, ("Sigmoid", [step[1][0]], step[2]))
    found = told(BLOCK, given)
    assert found == {name: name for name in "xabcdey"}


def test_a_residual_that_was_dropped_is_told_behind_another_fault() -> None:
    """The branch is dead then, and the stem is unknown."""
    fresh = [("Exp", ["x"], "s"), *[(op, ["s" if n == "x" else n for n in read], out) for op, read, out in BLOCK]]  # type: ignore[misc]
    given = [("Tanh", ["x"], "s"), *fresh[1:4], ("Identity", ["s"], "d"), *fresh[5:]]
    found = told(fresh, given)
    assert found.items() <= {name: name for name in "xsabcdey"}.items()
    assert found["d"] == "d"


def test_what_was_put_behind_a_node_is_no_value_of_the_model() -> None:
    given = with_step(2, BLOCK[2], ("Mul", ["c", "near"], "planted"))
    given[4] = ("Add", ["x", "planted"], "d")
    assert told(BLOCK, given) == {name: name for name in "xabcdey"}


def test_a_second_node_of_the_same_kind_is_none_of_the_model() -> None:
    given = with_step(1, BLOCK[1], ("Relu", ["b"], "planted"))
    given[3] = ("MatMul", ["planted", "w2"], "c")
    found = told(BLOCK, given)
    assert found == {name: name for name in "xacdey"}, "either of the two may be the one that was put in"


def test_a_node_that_was_left_out_has_no_place() -> None:
    """Its reader reads what it read; that is the value of another stage."""
    given = [step if step[0] != "MatMul" or step[2] != "c" else ("MatMul", ["a", "w2"], "c") for step in BLOCK]
    del given[1]
    found = told(BLOCK, given)
    assert "b" not in found
    assert {name: found[name] for name in "acdey"} == {name: name for name in "acdey"}
    assert laid(BLOCK, given, {"x": "x", "y": "y"}).left_out == {"b": ("n1", "g.a")}


def test_a_sum_that_was_left_out() -> None:
    """What read it reads one of its operands, and the branch of the other is dead."""
    given: list[Step] = [("LayerNormalization", ["x", "w3"], "e"), BLOCK[5]]
    assert laid(BLOCK, given, {"x": "x", "y": "y"}).left_out == {"d": ("n0", "g.x")}
    assert told(BLOCK, given) == {name: name for name in "xey"}


def test_nothing_is_left_out_of_the_same_graph() -> None:
    assert laid(BLOCK, BLOCK, {"x": "x", "y": "y"}).left_out == {}
    assert laid(BLOCK, with_step(3, ("Identity", ["c"], "d")), {"x": "x", "y": "y"}).left_out == {}


def test_a_factor_before_another_is_not_taken_for_it() -> None:
    """2.002 and 2 are as alike as numbers can be, and are not the same constant."""
    fresh = [("Mul", ["x", "two"], "a"), ("MatMul", ["a", "w1"], "y")]
    given = [("Mul", ["x", "near"], "planted"), ("Mul", ["planted", "two"], "a"), ("MatMul", ["a", "w1"], "y")]
    assert told(fresh, given)["a"] == "a"
    assert "planted" not in told(fresh, given, {"y": "y"}).values()


@pytest.mark.parametrize("op", ["Sub", "Concat"])
def test_exchanged_operands_are_not_paired_by_their_place(op: str) -> None:
    fresh: list[Step] = [("Relu", ["s"], "a"), ("Exp", ["s"], "b"), (op, ["a", "b"], "c"), ("MatMul", ["c", "w1"], "y")]
    given = [*fresh[:2], (op, ["b", "a"], "c"), fresh[3]]
    found = told(fresh, given, {"y": "y"})
    assert found.get("a", "a") == "a"
    assert found.get("b", "b") == "b"
    assert found["c"] == "c"


def test_an_operand_that_became_like_the_other_keeps_its_place() -> None:
    """The mean beside a maximum becomes a maximum too."""
    fresh: list[Step] = [
        ("ReduceMean", ["x"], "a"),
        ("ReduceMax", ["x"], "b"),
        ("Concat", ["a", "b"], "c"),
        ("MatMul", ["c", "w1"], "y"),
    ]
    given: list[Step] = [("ReduceMax", ["x"], "a"), *fresh[1:]]
    assert told(fresh, given) == {name: name for name in "xabcy"}


def test_operands_of_a_sum_may_stand_in_either_order() -> None:
    given = with_step(3, ("Add", ["c", "x"], "d"))
    assert told(BLOCK, given) == {name: name for name in "xabcdey"}


def test_sums_in_another_order_have_no_common_partial_sum() -> None:
    """(a + b) + c is a + (b + c), and what stands in their midst is not one value."""
    parts: list[Step] = [("Relu", ["x"], "a"), ("Exp", ["x"], "b"), ("Tanh", ["x"], "c")]
    fresh: list[Step] = [*parts, ("Add", ["a", "b"], "s"), ("Add", ["s", "c"], "d"), ("MatMul", ["d", "w1"], "y")]
    given: list[Step] = [*parts, ("Add", ["b", "c"], "t"), ("Add", ["a", "t"], "d"), ("MatMul", ["d", "w1"], "y")]
    assert told(fresh, given) == {name: name for name in "xabcdy"}
    assert told(fresh, given, {name: name for name in "xabcdy"}) == {name: name for name in "xabcdy"}


def test_operands_that_nothing_tells_apart_are_left_open() -> None:
    fresh: list[Step] = [
        ("Relu", ["s"], "a"),
        ("Relu", ["t"], "b"),
        ("Add", ["a", "b"], "c"),
        ("MatMul", ["c", "w1"], "y"),
    ]
    found = told(fresh, fresh, {"y": "y"})
    assert found == {"y": "y", "c": "c"}


def test_between_two_faults_a_weight_tells() -> None:
    given = with_step(1, ("Sigmoid", ["a"], "b"))
    given[4] = ("Softmax", ["d"], "e")
    assert told(BLOCK, given, {}) == {name: name for name in "abcdey"}


def test_two_ways_to_two_places_leave_none() -> None:
    """Here the value is read as it is, there behind another node, and neither is its own."""
    fresh: list[Step] = [
        ("Relu", ["x"], "a"),
        ("MatMul", ["a", "w1"], "b"),
        ("MatMul", ["a", "w2"], "c"),
    ]
    given: list[Step] = [
        ("Exp", ["x"], "p"),
        ("Tanh", ["x"], "q"),
        ("MatMul", ["p", "w1"], "b"),
        ("MatMul", ["q", "w2"], "c"),
    ]
    assert "a" not in told(fresh, given, {"x": "x"})


def test_another_shape_is_no_counterpart() -> None:
    given = outlined(BLOCK, "g.")
    wide = Outline(
        given.graph,
        given.attributes,
        lambda name: signature_of(np.ones((2, 2)), "float") if name == "g.c" else given.signature(name),
        given.constants,
    )
    found = counterparts(outlined(BLOCK), wide, {"x": "g.x", "y": "g.y"})
    assert "c" not in found.pairs


def test_likeness_counts_what_nodes_do() -> None:
    whole, other = outlined(BLOCK), outlined(with_step(1, ("Sigmoid", ["a"], "b")))
    assert likeness(whole, outlined(BLOCK, "g.")) == (1, 0)
    assert likeness(whole, other) == (pytest.approx(5 / 7), 2)
    assert likeness(whole, outlined([("Exp", ["x"], "y")])) == (0, 7)


STEP: tuple[Step, ...] = (
    ("Exp", ["x"], "decay"),
    ("Tanh", ["x"], "put"),
    ("Sigmoid", ["x"], "read"),
    ("Add", ["decay", "put"], "state"),
    ("MatMul", ["state", "read"], "y"),
    ("Mul", ["state", "x"], "next"),
)


def test_the_only_reader_of_a_value_is_its_reader() -> None:
    """Between two known values another operator stands; what reads the second one tells that it is the state."""
    given = tuple(("Sub", step[1], step[2]) if step[2] == "state" else step for step in STEP)
    assert laid(STEP, given, {"x": "x"}).pairs["state"] == "g.state"
    twice = (*given, ("MatMul", ["put", "read"], "z"))
    assert "state" not in laid(STEP, twice, {"x": "x"}).pairs, "two read it there"
