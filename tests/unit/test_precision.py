"""``precision``: what the verdict says of a graph that computes in another precision than PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from bisect_tool.precision import (
    OPENINGS,
    half_precision,
    held_values,
    precision_lines,
    saturated,
    saturated_fills,
    tolerance_for,
)
from bisect_tool.records import OnnxGraph, OnnxNode, Stage, StageRef
from bisect_tool.reporters.wording import tolerance_text
from bisect_tool.tolerances import make_tolerance


def node(op: str, inputs: str, outputs: str) -> OnnxNode:
    return OnnxNode(
        f"n_{outputs.split()[0]}", op, "", tuple(inputs.split()), tuple(outputs.split()), (), None, None, None
    )


def stage(value: int, dtype: str, kind: str = "Linear") -> Stage:
    return Stage(StageRef(f"s{value}", 0, 0), "leaf", kind, None, (2, 2), dtype, value, (), value, None)


def lines(nodes: list[OnnxNode], dtypes: dict[str, str], stages: list[Stage]) -> tuple[str, ...]:
    """Of a graph whose values ``v0``, ``v1`` are those of the stages."""
    graph = OnnxGraph(("x",), (nodes[-1].outputs[0],), tuple(nodes), frozenset(), {}, dtypes, "dynamo")
    return precision_lines(graph, dtypes, stages, {each.value: f"v{each.value}" for each in stages})


CHAIN = [node("Cast", "x", "h"), node("Gemm", "h", "v0"), node("Relu", "v0", "v1"), node("Cast", "v1", "y")]
FLOAT = [stage(0, "float32"), stage(1, "float32")]


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_a_narrow_graph(narrow: str) -> None:
    """Casts are counted on neither side."""
    dtypes = {"x": "float32", "h": narrow, "v0": narrow, "v1": "float32", "y": "float32"}
    assert (f"the graph computes in {narrow} in 1 of 2 nodes (n_v0), PyTorch in float32",) == lines(
        CHAIN, dtypes, FLOAT
    )


def test_a_graph_that_only_rounds() -> None:
    """A pair of casts with nothing in between."""
    nodes = [node("Gemm", "x", "v0"), node("Cast", "v0", "h"), node("Cast", "h", "v1")]
    dtypes = dict.fromkeys(("x", "v0", "v1"), "float32") | {"h": "float16"}
    expected = ("the graph rounds to float16 and back in 1 place (n_h), PyTorch stays in float32",)
    assert expected == lines(nodes, dtypes, FLOAT)


def test_equal_precision_is_nothing_to_tell() -> None:
    """Both in float32, both in float16, and both in the same mixture."""
    half = dict.fromkeys(("x", "h", "v0", "v1", "y"), "float16")
    assert () == lines(CHAIN, dict.fromkeys(half, "float32"), FLOAT)
    assert () == lines(CHAIN, half, [stage(0, "float16"), stage(1, "float16")])
    mixed = half | {"v1": "float32"}
    assert () == lines(CHAIN, mixed, [stage(0, "float16"), stage(1, "float32")])
    assert () == lines(CHAIN, half, [stage(0, "int64")])


def test_a_mixture_that_is_another_is_told() -> None:
    """PyTorch has float16 too, and a stage of it in float32 is narrow in the graph."""
    half = dict.fromkeys(("x", "h", "v0", "v1", "y"), "float16")
    stages = [stage(0, "float16"), stage(1, "float32"), stage(2, "float32")]
    assert ("the graph computes in float16 in 2 of 2 nodes (n_v0, n_v1), PyTorch in float32",) == lines(
        CHAIN, half, stages
    )


def test_a_quantised_graph() -> None:
    """The integers, and the operators that say so; a model that is quantised itself is none of it."""
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), node("MatMulInteger", "q w z", "i"), node("Cast", "i", "v0")]
    dtypes = {"x": "float32", "q": "uint8", "z": "uint8", "s": "float32", "w": "int8", "i": "int32", "v0": "float32"}
    (line,) = lines(nodes, dtypes, FLOAT)
    assert (
        "the graph computes in int8 and uint8: it is quantised (1 DynamicQuantizeLinear, 1 MatMulInteger), "
        "PyTorch in float32" == line
    )
    assert line.startswith(OPENINGS)
    assert () == lines(nodes, dtypes, [*FLOAT, stage(2, "float32", "fake_quantize_per_tensor_affine")])


def graph_of(nodes: list[OnnxNode]) -> OnnxGraph:
    return OnnxGraph(("x",), (nodes[-1].outputs[0],), tuple(nodes), frozenset(), {}, {}, "unknown")


def test_a_graph_is_in_half_precision_as_a_whole_or_not_at_all() -> None:
    """One of three nodes is something to find; PyTorch in half precision itself leaves nothing to allow."""
    graph = graph_of(
        [node("Gemm", "x", "v0"), node("Relu", "v0", "v1"), node("Cast", "v1", "c"), node("Gemm", "c", "y")]
    )
    most = {"v0": "float16", "v1": "float16", "c": "float32", "y": "float32"}
    assert "float16" == half_precision(graph, most, "float32")
    assert half_precision(graph, most, "float16") is None
    assert half_precision(graph, {**most, "v0": "float32"}, "float32") is None
    assert half_precision(graph, {}, "float32") is None


def test_what_reads_rounded_values_is_held_to_them() -> None:
    """A stage kept in float32 between casts reads float16; one between float32 values does not."""
    nodes = [
        node("Gemm", "x", "v0"),
        node("Cast", "v0", "wide"),
        node("Resize", "wide", "v1"),
        node("Gemm", "v1", "v2"),
    ]
    dtypes = {"x": "float32", "v0": "float16", "wide": "float32", "v1": "float32", "v2": "float32"}
    assert frozenset({0, 1}) == held_values(graph_of(nodes), dtypes, {0: "v0", 1: "v1", 2: "v2"}, "float16")


def test_limits_are_those_of_half_precision() -> None:
    """For all dtypes, and only where the user has none of their own."""
    half = tolerance_for(make_tolerance(None, None, None), "float16")
    assert half.rel_l2 is not None and {2e-2} == set(half.rel_l2.values())
    assert "relative L2 2.0e-02 (half precision, as in the graph)" in tolerance_text(half, ["float32"])
    assert "2.0e-02 (float16)" in tolerance_text(make_tolerance(None, None, None), ["float16"])
    own = make_tolerance(0.1, None, None)
    assert own is tolerance_for(own, "float16")


def test_what_half_precision_cannot_hold_is_its_largest_number() -> None:
    """A mask's -1e9; infinities and NaN stay what they are, and whole numbers too."""
    array = np.array([-1e9, 1.0, np.inf, np.nan], dtype=np.float32)
    np.testing.assert_array_equal(saturated(array, "float16"), np.array([-65504.0, 1.0, np.inf, np.nan], np.float32))
    small = np.array([1.0, -2.0], dtype=np.float32)
    assert saturated(small, "float16") is small
    whole = np.array([10**6])
    assert saturated(whole, "float16") is whole


@pytest.mark.parametrize(
    ("numbers", "fills"),
    [
        ([0.0, -1e9, 3.0, -1e9 - 64], True),
        ([-3.4e38, -3.4e38], True),
        ([-1e9, -2e9, 4.0, np.inf], True),
        ([0.0, -1e6, -1e6, np.nan], True),
        ([241192.6, 176307.8, -84130.5, 12.0], False),
        ([1e5, 1.2e5, 1.5e5, 2e5], False),
        ([80000.0, 60000.0], False),
        ([-1e5, 2000.0], False),
    ],
)
def test_only_what_fills_masked_places_is_saturated(numbers: list[float], fills: bool) -> None:
    """A mask's number may be the largest of the type; an activation that the type cannot hold stays what it is."""
    array = np.array(numbers, np.float32)
    expected = saturated(array, "float16") if fills else array
    np.testing.assert_array_equal(saturated_fills(array, "float16"), expected)
