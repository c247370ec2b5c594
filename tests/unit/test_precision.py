"""``precision``: what the verdict says of a graph that computes in another precision than PyTorch."""

from __future__ import annotations

import pytest

from bisect_tool.precision import OPENINGS, precision_lines
from bisect_tool.records import OnnxGraph, OnnxNode, Stage, StageRef


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
