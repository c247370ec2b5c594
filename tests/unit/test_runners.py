"""``runners``: both implementations compute the same, through the same few calls, and say what they can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bisect_tool.backends import reference_runner
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_runner import PartRuns, SegmentedRun
from bisect_tool.backends.reference_runner import expected_seconds
from bisect_tool.backends.runners import RUNNERS, Runner, runner_of, untouched_run
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.records import NumericConfig

Array = NDArray[Any]

ORT = NumericConfig("onnxruntime", optimization="off", threads=1)
REFERENCE = NumericConfig("onnx-reference", optimization="off")
BOTH = pytest.mark.parametrize("config", [ORT, REFERENCE], ids=lambda config: config.backend)

X = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((512, 3, 1, 1)).astype(np.float32)


def tensor(name: str, shape: tuple[int, ...] = (), kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def program(
    folder: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array] | None = None,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    opset: int = 17,
    **more: Any,
) -> OnnxProgram:
    """A graph from ``x`` to ``y``, as it is read from a file."""
    shapes = {"x": X.shape, "y": X.shape, **(shapes or {})}
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", [tensor("x", shapes["x"])], [tensor("y", shapes["y"])], initializers)
    domains = {node.domain for node in nodes} - {""}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8, **more), path)
    found = OnnxProgram(load_onnx(path), path)
    found.assume_shapes({"x": shapes["x"]})
    return found


def chain(folder: Path) -> OnnxProgram:
    """A convolution whose weights stay in the file, an activation, and a mean."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Tanh", ["c"], ["t"], name="tanh"),
        helper.make_node("ReduceMean", ["t"], ["y"], name="mean", axes=[1]),
    ]
    return program(folder, nodes, {"w": KERNEL}, shapes={"y": (2, 1, 6, 6)})


def test_every_backend_has_a_runner_of_its_name() -> None:
    """The table's names are those that runners have, and each tells its version."""
    for name, make in RUNNERS.items():
        runner: Runner = make()
        assert name == runner.name
        assert runner.version[0].isdigit()


def test_an_unknown_runner_is_refused() -> None:
    """The error lists the runners that there are."""
    with pytest.raises(BisectError, match="no runner 'torch'") as caught:
        runner_of(NumericConfig("torch"))
    assert "onnx-reference" in (caught.value.hint or "")


@BOTH
def test_a_whole_graph(config: NumericConfig, tmp_path: Path) -> None:
    """Both give what numpy gives; weights are read from where they lie in the file."""
    run = untouched_run(chain(tmp_path), config)
    wanted = np.tanh(np.einsum("nchw,oc->nohw", X, KERNEL[:, :, 0, 0])).mean(axis=1, keepdims=True)
    result = run.run({"x": X})["y"]
    assert result is not None
    np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-6)
    assert not run.nodes_left_behind()
    assert run.effective


@BOTH
@pytest.mark.parametrize("budget", [None, 1])
def test_segments_chained_and_forced(config: NumericConfig, budget: int | None, tmp_path: Path) -> None:
    """Segments need no more of a runner than the protocol has."""
    graph = chain(tmp_path)
    segments = graph.segments(budget, {"c"})
    run = SegmentedRun(graph, config, segments, {"c", "t", "y"}, {"c"}, {"x": X})
    given = np.full((2, 512, 6, 6), 0.5, np.float32)
    chained: dict[str, Array | None] = {}
    forced: dict[str, Array | None] = {}
    while not run.done:
        one, other = run.step(lambda name, kind: given)
        chained |= one
        forced |= other
    assert {"c", "t", "y"} == chained.keys() == forced.keys()
    assert chained["t"] is not None and forced["t"] is not None
    np.testing.assert_allclose(chained["t"], np.tanh(np.asarray(chained["c"])), atol=1e-6)
    np.testing.assert_allclose(forced["t"], np.tanh(given), atol=1e-6)


def test_a_part_takes_any_runner(tmp_path: Path) -> None:
    """Whatever has the few methods of the protocol can compute a part."""

    class Graph:
        output_names = ("t",)

        def run(self, outputs: Any, feeds: Any, types: Any = None, buffers: Any = None) -> list[Array | None]:
            return [feeds["c"] + 1 for _ in outputs]

    class Own:
        name = title = "own"
        version = "1"

        def load(self, model: bytes, config: NumericConfig, weights_folder: str) -> Graph:
            return Graph()

    graph = chain(tmp_path)
    part = PartRuns(graph, ORT, graph.part(["tanh"]), {"c": X}, {}, Own())
    result = part.run({}, ["t"])["t"]
    assert result is not None
    np.testing.assert_array_equal(result, X + 1)


def test_bodies_and_functions_in_the_evaluator(tmp_path: Path) -> None:
    """What lies in ``If`` and in local functions is computed by the same evaluator, with its weights."""
    imports = [helper.make_opsetid("", 17)]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], imports)
    branches = {
        name: helper.make_graph([helper.make_node(op, ["d"], ["o"])], name, [], [tensor("o", X.shape)])
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("Twice", ["x"], ["d"], domain="own", name="twice"),
        helper.make_node("If", ["cond"], ["y"], name="if", **branches),
    ]
    graph = program(tmp_path, nodes, {"cond": np.array(False)}, functions=[twice])
    result = untouched_run(graph, REFERENCE).run({"x": X})["y"]
    assert result is not None
    np.testing.assert_array_equal(result, -2 * X)


def test_results_do_not_share_memory_with_what_was_fed(tmp_path: Path) -> None:
    """What is fed may be overwritten afterwards."""
    graph = program(tmp_path, [helper.make_node("Identity", ["x"], ["y"], name="same")])
    fed = X.copy()
    result = untouched_run(graph, REFERENCE).run({"x": fed})["y"]
    fed[...] = 0
    assert result is not None
    np.testing.assert_array_equal(result, X)


# -- what the evaluator can't ------------------------------------------------------------------------------------------


def test_operators_of_runtimes_are_refused(tmp_path: Path) -> None:
    """The operator is named, and who runs it."""
    nodes = [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft", name="gelu")]
    with pytest.raises(InconclusiveError, match="reference evaluator cannot load the graph.*Gelu") as caught:
        untouched_run(program(tmp_path, nodes), REFERENCE)
    assert "--runner onnxruntime" in (caught.value.hint or "")


def test_a_failing_node_is_named(tmp_path: Path) -> None:
    """The evaluator's own message rarely says which node it was."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="/head/Reshape")]
    graph = program(tmp_path, nodes, {"shape": np.array([5, 5])}, shapes={"y": (5, 5)})
    with pytest.raises(InconclusiveError, match=r"failed at /head/Reshape \(Reshape\): ValueError"):
        untouched_run(graph, REFERENCE).run({"x": X})


@pytest.mark.parametrize(("axis", "opset", "known"), [(1, 12, False), (-1, 12, True), (1, 13, True)])
def test_what_meant_something_else_in_older_opsets_is_refused(
    axis: int, opset: int, known: bool, tmp_path: Path
) -> None:
    """Before opset 13 Softmax works on everything from its axis on: a silent mistake of the evaluator."""
    graph = program(tmp_path, [helper.make_node("Softmax", ["x"], ["y"], name="softmax", axis=axis)], opset=opset)
    if known:
        first, second = (untouched_run(graph, config).run({"x": X})["y"] for config in (ORT, REFERENCE))
        assert first is not None and second is not None
        np.testing.assert_allclose(first, second, atol=1e-6)
    else:
        with pytest.raises(InconclusiveError, match="Softmax as of opset 13 only"):
            untouched_run(graph, REFERENCE)


def test_what_would_take_too_long_is_refused_beforehand(tmp_path: Path) -> None:
    """By the number of elements and the operator; the slowest node is named."""
    nodes = [helper.make_node("MaxPool", ["x"], ["y"], name="/pool", kernel_shape=[2, 2])]
    shape = (64, 64, 200, 201)
    graph = program(tmp_path, nodes, shapes={"x": shape, "y": (64, 64, 199, 200)})
    with pytest.raises(InconclusiveError, match=r"about 16 minutes.*/pool \(MaxPool\)"):
        untouched_run(graph, REFERENCE)


def test_expected_seconds_add_up(tmp_path: Path) -> None:
    """Loops in Python count for more than what numpy does at once."""
    nodes = chain(tmp_path).graph.nodes
    seconds, slowest = expected_seconds(nodes, lambda name: 1_000_000)
    assert 1.5 == pytest.approx(seconds)
    assert slowest in {"conv (Conv)", "tanh (Tanh)", "mean (ReduceMean)"}
    assert reference_runner.LONGEST_RUN > seconds
