"""Quantised graphs: what is seen of them, what a stage costs, and how that is judged and ranked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from report_samples import comparison, config_run, diverging, metrics, row

from bisect_tool.backends.integer_values import SUFFIX, has_integer_operators, with_floats
from bisect_tool.errors import BisectError
from bisect_tool.judging import makes_error
from bisect_tool.metrics import judge
from bisect_tool.quantised import (
    STAGE_SQNR,
    Scales,
    costs,
    counts_text,
    explained,
    is_quantised,
    judge_quantised,
    quantisation_of,
    quantised_stage,
    scales_of,
    sqnr_db,
    summary_lines,
)
from bisect_tool.records import NumericConfig, OnnxGraph, OnnxNode, QuantisedStage, Stage, StageRef
from bisect_tool.reporters.wording import tolerance_text
from bisect_tool.tolerances import make_tolerance, sqnr_tolerance


def node(op_type: str, inputs: str, outputs: str) -> OnnxNode:
    return OnnxNode(
        f"{op_type}_{outputs}", op_type, "", tuple(inputs.split()), tuple(outputs.split()), (), None, None, None
    )


def graph(*nodes: OnnxNode, outputs: str = "y") -> OnnxGraph:
    return OnnxGraph(("x",), tuple(outputs.split()), nodes, frozenset({"s", "z", "w_q"}), {}, {}, "dynamo")


CONV = node("Conv", "x", "c")


def weights_of(given: OnnxGraph) -> OnnxGraph:
    """The graph with ``w_q`` as an initialiser."""
    return replace(given, initializers=frozenset(["w_q", "s", "z", "v"]))


Q, DQ = node("QuantizeLinear", "c s z", "c_q"), node("DequantizeLinear", "c_q s z", "c_d")
RELU = node("Relu", "c_d", "y")


def test_a_pair_of_nodes_is_found() -> None:
    """A value that is quantised and turned back before anything reads it, with its scale and its nodes."""
    found = quantisation_of(graph(CONV, Q, DQ, RELU))
    (pair,) = found.pairs.values()
    assert ("c", "c_d", "s", "z", ("s", "z")) == (pair.given, pair.end, pair.scale, pair.zero_point, pair.back)
    assert ("QuantizeLinear_c_q", "DequantizeLinear_c_d") == pair.nodes
    assert {"c_d": "c"} == found.back
    assert "1 QuantizeLinear node" == counts_text(graph(CONV, Q, DQ, RELU))


@pytest.mark.parametrize(
    "nodes",
    [
        (CONV, Q, DQ, RELU, node("Tanh", "c", "t")),  # somebody reads what was not quantised
        (CONV, Q, DQ, node("DequantizeLinear", "c_q s z", "c_e"), RELU),  # turned back twice
        (node("QuantizeLinear", "w_q s z", "c_q"), DQ, RELU),  # a weight
    ],
)
def test_what_is_no_pair(nodes: tuple[OnnxNode, ...]) -> None:
    """What else reads the value, or a constant: no single value behind stands for it."""
    assert {} == quantisation_of(graph(*nodes)).pairs


def test_the_number_of_a_byte() -> None:
    """What an integer operator makes is a number behind the node that turns it into one."""
    found = quantisation_of(graph(node("QLinearConv", "x s z", "c_q"), DQ, RELU))
    assert {} == found.pairs and {"c_d": "c_q"} == found.back


def test_a_model_with_fake_quantisation_is_as_quantised() -> None:
    """A graph is called quantised beside a float model only."""
    stage = Stage(StageRef("fc", 0, 0), "leaf", "Linear", None, (1,), "float32", 1, (0,), 1)
    weight = node("DequantizeLinear", "w_q s z", "w")
    quantised = graph(weight, node("Conv", "x w", "c"), Q, DQ, RELU)
    assert is_quantised(quantised, [stage])
    assert not is_quantised(graph(CONV, RELU), [stage])
    assert not is_quantised(quantised, [stage, replace(stage, type="FakeQuantize")])


def test_weights_alone_may_be_quantised() -> None:
    """They are turned back where they are read, and nothing else is."""
    stage = Stage(StageRef("fc", 0, 0), "leaf", "Linear", None, (1,), "float32", 1, (0,), 1)
    weight = node("DequantizeLinear", "w_q s z", "w")
    assert is_quantised(weights_of(graph(weight, node("MatMul", "x w", "c"), RELU)), [stage])
    others = [node("MatMul", f"{name} v", f"m{n}") for n, name in enumerate("cd")]
    assert not is_quantised(weights_of(graph(weight, node("MatMul", "x w", "c"), *others)), [stage]), "most are not"


def test_one_pair_does_not_make_a_graph_quantised() -> None:
    """It is a fault of its stage: the rest computes in float, and is judged so."""
    stage = Stage(StageRef("fc", 0, 0), "leaf", "Linear", None, (1,), "float32", 1, (0,), 1)
    products = [node("MatMul", f"{name} w_q", f"m{i}") for i, name in enumerate(("x", "c_d", "m1"))]
    assert not is_quantised(graph(CONV, Q, DQ, *products), [stage])
    assert not is_quantised(graph(CONV, Q, DQ, RELU), [stage]), "no product reads it"
    assert is_quantised(graph(node("QLinearConv", "x s z", "c_q"), DQ, RELU), [stage])


INT8 = Scales(0.1, 0, -128, 127, 0.1, 0)


def test_what_a_stage_costs() -> None:
    """Its SQNR, what the pair of nodes makes of it, and what a scale that fits would."""
    x = np.random.default_rng(0).uniform(-12.7, 12.7, 5000).astype(np.float32)
    made = (np.clip(np.rint(x / 0.1), -128, 127) * 0.1).astype(np.float32)
    quality = quantised_stage(x, made, float(np.linalg.norm(x)), INT8)
    assert quality.local_sqnr_db == pytest.approx(48.1, abs=0.3)
    assert quality.pair_sqnr_db == pytest.approx(quality.local_sqnr_db, abs=0.01)
    assert quality.best_sqnr_db == pytest.approx(48.1, abs=0.3)
    assert (0.0, False, STAGE_SQNR) == (quality.clipped, quality.hidden, quality.limit_db)
    clipping = quantised_stage(x, made, 1.0, replace(INT8, scale=0.05, back_scale=0.05))
    assert clipping.clipped == pytest.approx(0.5, abs=0.02)
    assert clipping.pair_sqnr_db is not None and clipping.pair_sqnr_db < 12 < 45 < (clipping.best_sqnr_db or 0)
    shifted = quantised_stage(x, made, 1.0, replace(INT8, back_zero_point=20))
    assert shifted.pair_sqnr_db is not None and shifted.pair_sqnr_db < 12
    assert quantised_stage(x, made, 1.0, None).pair_sqnr_db is None


def test_numbers_beside_a_mask() -> None:
    """-1e4 added to some scores takes every level of the scale; the other scores are what the next stage reads."""
    source = np.random.default_rng(0)
    x = source.normal(size=(8, 16)).astype(np.float32)
    x[:, 8:] -= 1e4
    made = (np.rint(x / 39.2) * 39.2).astype(np.float32)
    quality = quantised_stage(x, made, float(np.linalg.norm(x)), None)
    assert quality.hidden and quality.local_sqnr_db < 1 < 40 < sqnr_db(
        float(np.linalg.norm(made - x) / np.linalg.norm(x))
    )
    # The same with one number for all of the mask, which the test for fillings sees.
    x[:, 8:] = -1e4
    made = (np.rint(x / 39.2) * 39.2).astype(np.float32)
    assert quantised_stage(x, made, float(np.linalg.norm(x)), None).hidden
    # A tail of small numbers is nothing of that kind: they are as accurate as the largest ones.
    y = source.normal(size=4000).astype(np.float32)
    assert not quantised_stage(y, np.rint(y / 0.03).astype(np.float32) * np.float32(0.03), 1.0, None).hidden


def test_scales_of_channels_and_computed_ones_are_left_alone() -> None:
    """Only the numbers of a tensor as a whole are read."""
    (pair,) = quantisation_of(graph(CONV, Q, DQ, RELU)).pairs.values()
    one = {"s": np.float32(0.5).reshape(()), "z": np.uint8(3).reshape(())}
    assert Scales(0.5, 3, 0, 255, 0.5, 3) == scales_of(pair, one)
    assert scales_of(pair, {**one, "s": np.ones(4, np.float32)}) is None
    assert scales_of(pair, {**one, "s": None}) is None


# Judging


def quality(local: float, pair: float | None = None, best: float | None = None, clipped: float = 0.0) -> QuantisedStage:
    return QuantisedStage(STAGE_SQNR, local, False, pair, best, clipped if pair is not None else None)


def test_a_stage_is_judged_by_its_own_sqnr() -> None:
    """Neither a noise floor nor the default limit says anything about a quantised stage."""
    result = replace(comparison(3e-2, 2e-2), quantised=quality(34.0))
    assert makes_error(row(0, "fc", "Linear", {}), replace(result, quantised=None))
    assert not makes_error(row(0, "fc", "Linear", {}), result)
    assert makes_error(row(0, "fc", "Linear", {}), replace(result, quantised=quality(19.9)))
    assert makes_error(row(0, "fc", "Linear", {}), replace(result, quantised=quality(math.nan)))


def test_what_errors_add_up_to_counts_at_the_outputs() -> None:
    """A value on the way may be far off where the outputs are good enough; a stage that fails by itself may not."""
    tolerance = sqnr_tolerance(10.0, "quantised")
    far = replace(comparison(0.5, 1e-2, judgement="fail"), quantised=quality(40.0))
    good = replace(comparison(0.1, 1e-2, judgement="pass"), quantised=quality(40.0))
    bad = replace(comparison(0.2, 0.2, judgement="pass"), quantised=quality(14.0))
    rows = [
        row(0, "a", "Linear", {"off": far}),
        row(1, "b", "Linear", {"off": bad}),
        row(2, "c", "Linear", {"off": good}),
    ]
    outputs = {StageRef("c", 0, 0)}

    def judgements(wanted: object) -> list[str]:
        return [each.results["off"].judgement for each in judge_quantised(rows, "off", wanted, outputs)]  # type: ignore[arg-type]

    assert ["pass", "fail", "pass"] == judgements(tolerance)
    assert ["fail", "pass", "pass"] == judgements(make_tolerance(None, None, None, 30.0))
    rows[2] = replace(rows[2], results={"off": replace(good, judgement="fail")})
    assert ["fail", "fail", "fail"] == judgements(tolerance)
    rows[0] = replace(rows[0], results={"off": replace(far, total=metrics(0.5, problem="shape"))})
    rows[2] = replace(rows[2], results={"off": good})
    assert ["fail", "fail", "pass"] == judgements(tolerance)


def test_a_tolerance_in_decibels() -> None:
    """--min-sqnr is the relative L2 error in another unit, holds for whole numbers too, and excludes other tolerances."""
    tolerance = make_tolerance(None, None, None, 20.0)
    assert ("user", 20.0) == (tolerance.source, tolerance.min_sqnr)
    assert "SQNR: at least 20 dB, given by the user" == tolerance_text(tolerance)
    x = np.ones(100, np.float32)
    assert ["pass", "fail"] == [judge(x, x * np.float32(f), tolerance)[1] for f in (1.09, 1.11)]
    numbers = np.full(100, 10)
    changed = [np.where(np.arange(100) < count, 15, 10) for count in (1, 25)]
    assert ["pass", "fail"] == [judge(numbers, other, tolerance)[1] for other in changed]
    for given in ((0.1, None, None, 20.0), (None, 0.1, 0.1, 20.0), (None, None, None, math.nan)):
        with pytest.raises(BisectError, match="--min-sqnr"):
            make_tolerance(*given)


def test_costs_are_ranked_by_their_share() -> None:
    """The dearest stage first; what makes next to nothing is left out, unless it fails."""
    results = [
        replace(comparison(0.1, 0.01), quantised=quality(40.0), share=0.1),
        replace(comparison(0.1, 0.01), quantised=quality(12.0, 12.1, 44.0, 0.2), share=0.8),
        replace(comparison(0.1, 0.01), quantised=quality(45.0), share=0.0),
        replace(comparison(0.1, 0.01), quantised=quality(5.0), share=0.0),
    ]
    rows = [row(number, f"s{number}", "Linear", {"off": result}) for number, result in enumerate(results)]
    found = costs(rows, "off")
    assert ["s1", "s0", "s3"] == [each.ref.stage for each in found]
    assert [44.0, None, None] == [each.fitting_db for each in found]


def test_an_origin_says_why_it_costs_so_much() -> None:
    """A scale that does not fit leaves the pair of nodes alone to blame; else it is what lies before."""
    (pair,) = quantisation_of(graph(CONV, Q, DQ, RELU)).pairs.values()
    origin = replace(diverging().verdict.origins[0], onnx_nodes=("Conv_c", *pair.nodes), evidence=())
    found = explained(origin, quality(12.0, 12.1, 44.0, 0.2), pair)
    assert pair.nodes == found.onnx_nodes
    assert (
        "quantising its value costs 12.1 dB, 20 % of the values are out of range; a scale that fits"
        in found.evidence[0]
    )
    before = explained(origin, quality(3.0, 40.0, 41.0), pair)
    assert ("Conv_c",) == before.onnx_nodes
    assert any("weights" in line for line in before.evidence)
    assert origin == explained(origin, None, pair)


def test_integer_kernels_that_cost_more() -> None:
    """Where the optimised run has 3 dB less than the plain one, its kernels are named; a tolerance of the user's too."""
    plain = config_run("off", replace(NumericConfig("onnxruntime"), optimization="off"), 0.02)
    fused = config_run("all", replace(NumericConfig("onnxruntime"), optimization="all"), 0.2)
    verdict = replace(diverging().verdict, costs=())
    quantised = graph(CONV, Q, DQ, RELU)
    tolerance = sqnr_tolerance(10.0, "quantised")
    lines = summary_lines(verdict, quantised, tolerance, [plain, fused])
    assert lines[0].startswith("judged by SQNR: the graph is quantised (1 QuantizeLinear node)")
    assert "all: its outputs have 14.0 dB, without optimisation 34.0 dB" in lines[-1]
    assert 1 == len(summary_lines(verdict, quantised, tolerance, [plain, replace(plain, name="all")]))
    (by,) = summary_lines(verdict, quantised, make_tolerance(0.1, None, None), [plain])
    assert "judged by your tolerance" in by


# Graphs of integer operators


def test_floats_beside_bytes_change_nothing() -> None:
    """Behind a byte that is handed on a pair with its own scale is put in; the given model stays as it is."""
    scale, zero = (ir.val(name, const_value=ir.tensor(value, name=name)) for name, value in (("s", [0.5]), ("z", [3])))
    x = ir.val("x")
    first = ir.Node("com.microsoft", "QLinearSigmoid", [x, scale, zero, scale, zero], name="a", num_outputs=1)
    moved = ir.Node("", "Transpose", [first.outputs[0]], name="b", num_outputs=1)
    second = ir.Node(
        "com.microsoft", "QLinearSigmoid", [moved.outputs[0], scale, zero, scale, zero], name="c", num_outputs=1
    )
    last = ir.Node("", "DequantizeLinear", [second.outputs[0], scale, zero], name="d", num_outputs=1)
    for each in (first, moved, second, last):
        each.outputs[0].name = f"{each.name}_out"
    inner = ir.Graph([x], [last.outputs[0]], nodes=[first, moved, second, last], initializers=[scale, zero])
    model = ir.Model(inner, ir_version=10)
    assert has_integer_operators(model)
    changed, added = with_floats(model)
    kinds = [each.op_type for each in changed.graph]
    pair = ["DequantizeLinear", "QuantizeLinear"]
    assert ["QLinearSigmoid", *pair, "Transpose", *pair, "QLinearSigmoid", "DequantizeLinear"] == kinds
    assert 4 == len(added) and {f"a_out{SUFFIX}", f"b_out{SUFFIX}"} <= {
        v.name for n in changed.graph for v in n.outputs
    }
    assert ["a", "b", "c", "d"] == [each.name for each in model.graph]


def test_a_float_that_is_there_is_the_one_beside_the_byte() -> None:
    """All that read the byte then read what is made of that float, and so a value given there reaches them."""
    scale, zero = (ir.val(name, const_value=ir.tensor(value, name=name)) for name, value in (("s", [0.5]), ("z", [3])))
    x = ir.val("x")
    first = ir.Node("com.microsoft", "QLinearSigmoid", [x, scale, zero, scale, zero], name="a", num_outputs=1)
    second = ir.Node(
        "com.microsoft", "QLinearSigmoid", [first.outputs[0], scale, zero, scale, zero], name="b", num_outputs=1
    )
    back = ir.Node("", "DequantizeLinear", [first.outputs[0], scale, zero], name="c", num_outputs=1)
    for each in (first, second, back):
        each.outputs[0].name = f"{each.name}_out"
    ends = [second.outputs[0], back.outputs[0]]
    graph = ir.Graph([x], ends, nodes=[first, second, back], initializers=[scale, zero])
    changed, added = with_floats(ir.Model(graph, ir_version=10))
    made = {each.name: each for each in changed.graph}
    assert ["a", "c", *added, "b"] == [each.name for each in changed.graph]
    (again,) = added
    assert "QuantizeLinear" == made[again].op_type
    assert "c_out" == made[again].inputs[0].name  # type: ignore[union-attr]
    assert made["b"].inputs[0] is made[again].outputs[0]
