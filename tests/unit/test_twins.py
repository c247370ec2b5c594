"""``twins``: what PyTorch computes twice and the graph once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bisect_tool.align.matches import Match
from bisect_tool.align.twins import computed_before, merge_twins
from bisect_tool.records import OnnxGraph, OnnxNode, Stage, StageRef, TorchTrace
from bisect_tool.signatures import Signature, signature_of


def stage(path: str, value: int, inputs: tuple[int, ...], kind: str) -> Stage:
    return Stage(StageRef(path, 0, 0), "leaf", kind, None, (4, 5), "float32", value, inputs, value, None)


def node(op: str, inputs: str, output: str) -> OnnxNode:
    return OnnxNode(f"n_{output}", op, "", tuple(inputs.split()), (output,), (), None, None, None)


STAGES = (
    stage("/mul#0", 1, (0,), "mul"),
    stage("/sum#0", 2, (1,), "sum"),
    stage("/mul#1", 3, (0,), "mul"),
    stage("/mul#2", 4, (3, 0), "mul"),
)
TRACE = TorchTrace(STAGES, {1: (0,), 2: (1,), 3: (0,), 4: (3, 0)}, ((0, 0),), ((0, 4), (1, 3)), {})
MERGED = OnnxGraph(
    ("x",),
    ("square",),
    (node("Mul", "x w", "product"), node("ReduceSum", "product", "sum"), node("Mul", "product x", "square")),
    frozenset({"w"}),
    {},
    {},
    "dynamo",
)
MATCHES = {v: Match(v, name, ("value",), True) for v, name in ((1, "product"), (2, "sum"), (4, "square"))}


def signatures(*, equal: bool = True) -> dict[int, Signature]:
    made = {v: np.random.default_rng(v).normal(size=(4, 5)).astype(np.float32) for v in (1, 2, 3, 4)}
    if equal:
        made[3] = made[1]
    return {v: signature_of(array, "float") for v, array in made.items()}


def test_the_second_is_another_name_of_the_first() -> None:
    """What reads it, and the model's outputs, go by the first one's value."""
    merged = merge_twins(TRACE, MERGED, MATCHES, signatures())
    twin = merged.stages[2]
    assert (1, StageRef("/mul#0", 0, 0)) == (twin.value, twin.alias_of)
    assert (1, 0) == merged.stages[3].inputs == merged.parents[4]
    assert ((0, 4), (1, 1)) == merged.outputs
    assert 3 not in merged.parents


def test_a_graph_that_computes_both_keeps_them_apart() -> None:
    """The second has a node of its own, and no pair since that is broken: nothing reads the first one's value for it."""
    nodes = (
        node("Mul", "x w", "product"),
        node("ReduceSum", "product", "sum"),
        node("Mul", "x w", "again"),
        node("Mul", "again x", "square"),
    )
    graph = OnnxGraph(("x",), ("square",), nodes, frozenset({"w"}), {}, {}, "dynamo")
    assert merge_twins(TRACE, graph, MATCHES, signatures()) is TRACE


def test_other_numbers_are_no_twins() -> None:
    """Two modules of one kind on one input have other weights."""
    assert merge_twins(TRACE, MERGED, MATCHES, signatures(equal=False)) is TRACE


def test_views_do_not_hide_that_something_is_done_again() -> None:
    """Values without a stage are views; what is made of several values, as often as that comes, is none."""
    stages = (stage("/mul#0", 10, (0,), "mul"), stage("/mul#1", 20, (0,), "mul"), stage("/mul#2", 30, (0,), "mul"))
    parents = {5: (0,), 10: (5,), 15: (0,), 20: (15,), 25: (0, 0), 30: (25,)}
    parents |= {value: (value - 1, value - 1) for value in range(31, 99)}
    same = {value: signatures()[1] for value in (10, 20, 30)}
    trace = replace(TRACE, stages=stages, parents=parents)
    assert computed_before(trace, same) == {20: 10}
    assert computed_before(trace, {**same, 20: signatures()[2]}) == {}
