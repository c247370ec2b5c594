"""Whole graphs as they are deployed: passes that change them, what the optimiser left, values that are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.optimised import OptimisedRuns
from bisect_tool.backends.passes import distance, same_bits
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import NumericConfig

RNG = np.random.default_rng(0)
FEEDS = {"x": RNG.standard_normal((2, 3, 8, 8), np.float32)}


@pytest.fixture
def runs(tmp_path: Path) -> OptimisedRuns:
    """Conv, Relu, Identity, Softmax."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Identity", ["r"], ["i"], "identity"),
        helper.make_node("Softmax", ["i"], ["y"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 6, 6])],
        [numpy_helper.from_array(RNG.standard_normal((4, 3, 3, 3), np.float32), "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    program = OnnxProgram(load_onnx(path), path)
    return OptimisedRuns(program, NumericConfig("onnxruntime", optimization="all", threads=1), FEEDS)


def test_passes_that_change_the_graph(runs: OptimisedRuns) -> None:
    """The log names them; rules stand for their group; what is left out already does not come back."""
    passes = dict(runs.changing("extended"))
    assert "extended" == passes["ConvActivationFusion"]
    assert "basic" == passes["EliminateIdentity"]
    assert "GeluFusionL2" not in passes
    again = dict(runs.changing("extended", ["ConvActivationFusion"]))
    assert "ConvActivationFusion" not in again
    assert [] == runs.changing("off")


def test_what_a_pass_changed_is_seen(runs: OptimisedRuns) -> None:
    """Two sessions of one configuration have the same graph; without a pass it is another; a name without work is idle."""
    _, whole = runs.run_and_look("extended")
    _, same = runs.run_and_look("extended", ["GeluFusionL2"])
    _, other = runs.run_and_look("extended", ["ConvActivationFusion"])
    assert whole is not None and same is not None and other is not None
    assert 0 == whole.changed(same)
    assert 3 == whole.changed(other) == other.changed(whole)
    assert ["FusedConv", "Softmax"] == [node.op_type for node in whole.graph.nodes]


def test_values_that_are_looked_at(runs: OptimisedRuns) -> None:
    """They come out beside the final outputs; an end of a fused group changes nothing, its inside undoes it."""
    plain = runs.run("extended")
    seen = runs.run("extended", (), ("r",))
    assert {"y", "r"} == set(seen)
    assert same_bits(plain["y"], seen["y"])
    inside = runs.run("off", (), ("c", "r"))
    assert distance(inside["r"], seen["r"]) < 1e-6


def test_a_node_that_was_left_alone_is_told_from_one_that_was_not(runs: OptimisedRuns) -> None:
    whole = runs.look("extended")
    assert whole is not None
    kept = [node for node in runs._program.graph.nodes if node.name == "conv"]
    (key,) = runs.keys_of(kept)
    assert 0 == whole.keys[key]
    off = runs.look("off")
    assert off is not None
    assert 1 == off.keys[key]


def test_passes_of_the_pair_itself_stay_out(runs: OptimisedRuns) -> None:
    """What a configuration leaves out already is left out in every run, and is no candidate."""
    own = NumericConfig("onnxruntime", optimization="all", switches={"disabled_passes": "ConvActivationFusion"})
    other = OptimisedRuns(runs._program, own, FEEDS)
    assert (
        "ConvActivationFusion;EliminateIdentity"
        == other.config("all", ["EliminateIdentity"]).switches["disabled_passes"]
    )
    assert "ConvActivationFusion" not in dict(other.changing("extended"))


def test_what_does_not_exist_cannot_be_looked_at(runs: OptimisedRuns) -> None:
    with pytest.raises(InconclusiveError):
        runs.run("extended", (), ("nothing",))


@pytest.mark.parametrize(
    ("expected", "actual", "apart"),
    [
        (np.ones(4, np.float32), np.ones(4, np.float32), 0.0),
        (np.ones(4, np.float32), 2 * np.ones(4, np.float32), 1.0),
        (np.ones(4, np.float32), np.ones((4, 1), np.float32), np.inf),
        (np.ones(4, np.float32), np.ones(4, np.float64), np.inf),
        (np.ones(4, np.float32), np.full(4, np.nan, np.float32), np.inf),
        (np.ones(4, np.float32), None, np.inf),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), 0.0),
    ],
)
def test_distance(expected: np.ndarray, actual: np.ndarray | None, apart: float) -> None:
    """What can't be compared is infinitely far."""
    assert apart == distance(expected, actual)


def test_bits() -> None:
    """NaN is the same as itself, and zeros of either sign are not."""
    nan = np.array([np.nan, 1.0], np.float32)
    assert same_bits(nan, nan.copy())
    assert not same_bits(np.array([0.0], np.float32), np.array([-0.0], np.float32))
    assert not same_bits(nan, None)
    assert same_bits(None, None)
