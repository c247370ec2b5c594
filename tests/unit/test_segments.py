"""``onnx_program``, ``ort_runner`` and ``stream``: graphs cut, exposed and forced, and run piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bisect_tool.backends import onnx_program
from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram, ValueType
from bisect_tool.backends.ort_runner import Reuse, SegmentedRun, UntouchedRun
from bisect_tool.backends.stream import Lane, run_lanes
from bisect_tool.errors import BisectError
from bisect_tool.records import NumericConfig

Array = NDArray[Any]
Give = Callable[[str, "ValueType | None"], Array]

OFF = NumericConfig("onnxruntime", optimization="off", threads=2)
BUDGETS = {"whole": None, "several": 3000, "one node each": 1}


def drive(
    program: OnnxProgram,
    feeds: Mapping[str, Array],
    budget: int | None = None,
    *,
    exposed: Set[str] | None = None,
    forced: Set[str] | None = None,
    give: Give | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Runs all segments: exposed values, chained and forced."""
    every = values_of(program)
    segments = program.segments(budget, forced or frozenset())
    run = SegmentedRun(program, OFF, segments, every if exposed is None else exposed, forced, feeds)
    chained: dict[str, Array] = {}
    given: dict[str, Array] = {}

    def refuse(name: str, kind: ValueType | None) -> Array:
        raise AssertionError(f"{name} was asked for")

    while not run.done:
        first, second = run.step(give or refuse)
        for target, found in ((chained, first), (given, second)):
            for name, array in found.items():
                assert array is not None
                target[name] = array
    return chained, given


def values_of(program: OnnxProgram) -> set[str]:
    """All values that nodes make at run time."""
    return {n for segment in program.segments(None) for n in segment.makes}


def same(first: Array, second: Array) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def assert_same(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not same(found[name], wanted[name])] == []


# -- exported networks ------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Branches, a residual sum, attention over pixels, and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = self.left(x) + self.right(x) + x
        tokens = x.flatten(2).transpose(1, 2)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2) / 3, -1)
        scores = self.head(weights @ tokens)
        return scores, scores.argmax(-1)


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network as each exporter writes it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    export_onnx(Small().eval(), (torch.randn(2, 3, 6, 6),), {}, path, ExportSettings(request.param))
    return path


@pytest.fixture
def program(exported: Path) -> OnnxProgram:
    return opened(exported)


@pytest.fixture
def feeds(program: OnnxProgram) -> dict[str, Array]:
    (name,) = program.graph.inputs
    return {name: np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_segments_give_the_bits_of_the_whole_graph(
    program: OnnxProgram, feeds: dict[str, Array], budget: int | None, exported: Path
) -> None:
    """Chained over one, several or one-node segments: outputs are those of the file itself."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])
    wanted = dict(zip(program.graph.outputs, session.run(None, feeds), strict=True))
    chained, _ = drive(program, feeds, budget, exposed=set(program.graph.outputs))
    assert_same(chained, wanted)


def test_every_value_is_the_same_in_every_cut(program: OnnxProgram, feeds: dict[str, Array]) -> None:
    """Not the outputs alone."""
    whole, _ = drive(program, feeds)
    assert whole.keys() == values_of(program)
    for budget in (3000, 1):
        assert_same(drive(program, feeds, budget)[0], whole)


def test_segments_cover_the_graph_once_and_in_order(program: OnnxProgram) -> None:
    """Every node that is no constant is in one segment; a segment reads what earlier ones make."""
    nodes = program.graph.nodes
    for budget in BUDGETS.values():
        segments = program.segments(budget)
        covered = [i for segment in segments for i in segment.nodes]
        assert covered == [i for i, node in enumerate(nodes) if node.op_type != "Constant"]
        made = set(program.graph.inputs)
        for number, segment in enumerate(segments):
            assert segment.index == number
            assert set(segment.reads) <= made
            made |= segment.makes
    assert len(program.segments(None)) == 1
    assert 1 < len(program.segments(3000)) < len(program.segments(1))


def test_segments_keep_to_the_budget(program: OnnxProgram) -> None:
    """More than one node only while what they make fits."""
    several = [segment for segment in program.segments(3000) if len(segment.nodes) > 1]
    assert several
    for segment in several:
        assert sum(program.bytes_of(name) for name in segment.makes) <= 3000


def test_segments_have_a_limited_number_of_forced_inputs(
    program: OnnxProgram, monkeypatch: pytest.MonkeyPatch, feeds: dict[str, Array]
) -> None:
    """Cut for them too; the numbers stay."""
    whole, _ = drive(program, feeds)
    monkeypatch.setattr(onnx_program, "MAX_FORCED_INPUTS", 3)
    forced = values_of(program)
    segments = program.segments(None, forced)
    assert len(segments) > 1
    for segment in segments:
        read = [n for i in segment.nodes for n in program.graph.nodes[i].inputs if n in forced]
        assert len(read) <= 3 or len(segment.nodes) == 1
    _, given = drive(program, feeds, forced=forced, give=lambda name, _: whole[name])
    assert_same(given, whole)


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_forcing_own_values_changes_no_bit(program: OnnxProgram, feeds: dict[str, Array], budget: int | None) -> None:
    """Every value forced with what the run itself computed."""
    whole, _ = drive(program, feeds)
    chained, given = drive(program, feeds, budget, forced=values_of(program), give=lambda name, _: whole[name])
    assert_same(chained, whole)
    assert_same(given, whole)


@pytest.mark.parametrize("budget", [None, 3000], ids=["whole", "several"])
def test_a_value_forced_with_other_data_changes_its_consumers(
    program: OnnxProgram, feeds: dict[str, Array], budget: int | None
) -> None:
    """And nothing else, the value itself included: all others are forced too."""
    whole, _ = drive(program, feeds)
    graph = program.graph
    changed = [n for n in sorted(whole) if whole[n].dtype == np.float32 and whole[n].ndim and n not in graph.outputs]
    assert changed
    for name in changed[:: max(1, len(changed) // 6)]:

        def give(wanted: str, _: object, name: str = name) -> Array:
            return np.asarray(whole[wanted] * 1.5 + 0.7, np.float32) if wanted == name else whole[wanted]

        chained, given = drive(program, feeds, budget, forced=values_of(program), give=give)
        assert_same(chained, whole)
        consumers = {o for node in graph.nodes if name in node.inputs for o in node.outputs if o}
        # The shape of a value is no matter of its numbers.
        blind = {o for node in graph.nodes if node.op_type == "Shape" for o in node.outputs}
        assert {n for n in whole if not same(given[n], whole[n])} == consumers - blind


def test_unforced_values_follow_from_forced_ones(program: OnnxProgram, feeds: dict[str, Array]) -> None:
    """With one value forced, everything behind it goes on with the given data, across segments."""
    whole, _ = drive(program, feeds)
    (maker,) = (node for node in program.graph.nodes if node.op_type == "Softmax")
    (name,) = maker.outputs
    other = np.full_like(whole[name], 1 / 36)
    results = [drive(program, feeds, budget, forced={name}, give=lambda _, __: other)[1] for budget in BUDGETS.values()]
    scores = program.graph.outputs[0]
    assert np.ptp(results[0][scores], axis=1).max() < 1e-5
    assert same(results[0][name], whole[name])
    for result in results[1:]:
        assert_same(result, results[0])


def test_known_values_are_not_computed_again(program: OnnxProgram, feeds: dict[str, Array]) -> None:
    """With ``computed`` the chained lane hands out what it was given."""
    whole, _ = drive(program, feeds)
    marked = {name: array + np.ones((), array.dtype) for name, array in whole.items() if array.dtype != np.bool_}
    segments = program.segments(3000)
    run = SegmentedRun(program, OFF, segments, set(marked), None, feeds, Reuse(marked))
    found: dict[str, Array | None] = {}
    while not run.done:
        found.update(run.step(lambda *_: np.zeros(0))[0])
    assert found.keys() == marked.keys()
    assert all(found[name] is marked[name] for name in marked)


def test_the_untouched_run_gives_the_outputs_alone(program: OnnxProgram, feeds: dict[str, Array]) -> None:
    """At optimisation off the same bits as the exposed run; optimised the same numbers."""
    whole, _ = drive(program, feeds)
    outputs = UntouchedRun(program, OFF).run(feeds)
    assert tuple(outputs) == program.graph.outputs
    assert all(same(array, whole[name]) for name, array in outputs.items() if array is not None)
    optimised = UntouchedRun(program, NumericConfig("onnxruntime", optimization="all")).run(feeds)
    scores = program.graph.outputs[0]
    assert np.allclose(np.asarray(optimised[scores]), whole[scores], atol=1e-5)


def test_nodes_between_are_those_of_one_stage(program: OnnxProgram) -> None:
    """From a value back to the nearest cuts, none beyond them."""
    nodes = {node.op_type: node for node in program.graph.nodes}
    softmax = nodes["Softmax"]
    assert program.nodes_between(softmax.outputs[0], {softmax.inputs[0]}) == (softmax.name,)
    everything = program.nodes_between(program.graph.outputs[0], set())
    assert softmax.name in everything and nodes["Conv"].name in everything
    assert not {program.graph.nodes[i].name for i in program._constant} & set(everything)


# -- hand-made graphs -------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, tuple[int, ...]]],
    outputs: Mapping[str, tuple[int, tuple[int, ...]]],
    weights: Mapping[str, Array] | None = None,
    **options: Any,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(n, *kind) for n, kind in inputs.items()],
        [helper.make_tensor_value_info(n, *kind) for n, kind in outputs.items()],
        [numpy_helper.from_array(array, n) for n, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "made.onnx"
    onnx.save_model(model, str(path), **options)
    return path


def opened(path: Path) -> OnnxProgram:
    return OnnxProgram(load_onnx(path), path)


FLOAT = TensorProto.FLOAT


def conditional(folder: Path) -> Path:
    """``-(if sum(x) > 0 then relu(x) + w else relu(x) * w)``: the branches capture relu(x) and w."""
    branches = {
        key: helper.make_graph(
            [helper.make_node(op, ["outer", "w"], [f"{key}_out"])],
            key,
            [],
            [helper.make_tensor_value_info(f"{key}_out", FLOAT, (2, 3))],
        )
        for key, op in (("then_branch", "Add"), ("else_branch", "Mul"))
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["outer"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], **branches),
        helper.make_node("Neg", ["chosen"], ["y"]),
    ]
    weights = {"w": np.array([1, 2, 3], np.float32), "zero": np.zeros((), np.float32)}
    return write(folder, nodes, {"x": (FLOAT, (2, 3))}, {"y": (FLOAT, (2, 3))}, weights)


@pytest.mark.parametrize("budget", [None, 1], ids=["whole", "one node each"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_graph_is_cut_around_an_if(tmp_path: Path, budget: int | None, sign: int) -> None:
    """What its branches capture crosses the cut."""
    x = np.array([[1, -2, 3], [4, 5, -1]], np.float32) * sign
    relu, w = np.maximum(x, 0), np.array([1, 2, 3], np.float32)
    program = opened(conditional(tmp_path))
    chained, _ = drive(program, {"x": x}, budget)
    assert len(program.segments(1)) == 5
    assert np.array_equal(chained["y"], -(relu + w if x.sum() > 0 else relu * w))
    assert np.array_equal(chained["outer"], relu)


@pytest.mark.parametrize("budget", [None, 1], ids=["whole", "one node each"])
def test_a_value_that_a_branch_captures_can_be_forced(tmp_path: Path, budget: int | None) -> None:
    """The branch reads the given tensor, and so does a branch's condition."""
    x = np.array([[1, -2, 3], [4, 5, -1]], np.float32)
    other = np.full((2, 3), 10, np.float32)
    w = np.array([1, 2, 3], np.float32)
    program = opened(conditional(tmp_path))
    chained, given = drive(program, {"x": x}, budget, forced={"outer"}, give=lambda *_: other)
    assert np.array_equal(chained["y"], -(np.maximum(x, 0) + w))
    assert np.array_equal(given["y"], -(other + w))
    assert np.array_equal(given["outer"], np.maximum(x, 0))
    values = {"outer": other, "positive": np.array(False)}
    _, given = drive(program, {"x": x}, budget, forced=set(values), give=lambda name, _: values[name])
    assert np.array_equal(given["y"], -(other * w))


def nested(folder: Path) -> Path:
    """An If inside an If; the inner branches capture a value of the outermost graph."""

    def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, FLOAT, (3,))])

    inner = helper.make_node(
        "If",
        ["positive"],
        ["inner_out"],
        then_branch=branch("deep_then", [helper.make_node("Exp", ["outer"], ["deep_then_out"])], "deep_then_out"),
        else_branch=branch("deep_else", [helper.make_node("Neg", ["outer"], ["deep_else_out"])], "deep_else_out"),
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["outer"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            then_branch=branch("then", [inner], "inner_out"),
            else_branch=branch("else", [helper.make_node("Identity", ["x"], ["else_out"])], "else_out"),
        ),
    ]
    return write(folder, nodes, {"x": (FLOAT, (3,))}, {"y": (FLOAT, (3,))}, {"zero": np.zeros((), np.float32)})


@pytest.mark.parametrize("budget", [None, 1], ids=["whole", "one node each"])
def test_branches_inside_branches_capture_too(tmp_path: Path, budget: int | None) -> None:
    """Through two levels, forced or not."""
    x, other = np.array([1, -1, 2], np.float32), np.array([0, 0, 1], np.float32)
    program = opened(nested(tmp_path))
    chained, given = drive(program, {"x": x}, budget, forced={"outer"}, give=lambda *_: other)
    assert np.allclose(chained["y"], np.exp(np.maximum(x, 0)))
    assert np.allclose(given["y"], np.exp(other))


def matmul(folder: Path, **options: Any) -> Path:
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal((40, 40)).astype(np.float32) for n in ("w1", "w2")}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    return write(folder, nodes, {"x": (FLOAT, (2, 40))}, {"y": (FLOAT, (2, 40))}, weights, **options)


def test_models_whose_weights_are_external(tmp_path: Path) -> None:
    """Segments read the data file beside the model, and write none of their own."""
    plain, apart = tmp_path / "plain", tmp_path / "apart"
    plain.mkdir()
    apart.mkdir()
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    program = opened(matmul(plain))
    wanted, _ = drive(program, {"x": x})
    path = matmul(apart, save_as_external_data=True, location="data.bin", size_threshold=0)
    program = opened(path)
    assert program.weights_folder == apart.resolve()
    for budget in (None, 1):
        chained, given = drive(program, {"x": x}, budget, forced={"a"}, give=lambda *_: wanted["a"])
        assert_same(chained, wanted)
        assert_same(given, wanted)
    assert same(np.asarray(UntouchedRun(program, OFF).run({"x": x})["y"]), wanted["y"])
    assert sorted(p.name for p in apart.iterdir()) == ["data.bin", "made.onnx"]


def test_weights_stay_in_the_model_file(tmp_path: Path) -> None:
    """What is given to ONNX Runtime refers to them; nothing is written, and the numbers stay."""
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    path = matmul(tmp_path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    program = opened(path)
    assert len(program.untouched()) < 40 * 40 * 4
    assert same(np.asarray(UntouchedRun(program, OFF).run({"x": x})["y"]), wanted)
    for budget in (None, 1):
        assert same(np.asarray(drive(program, {"x": x}, budget)[0]["y"]), wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["made.onnx"]


def test_a_model_behind_a_symbolic_link(tmp_path: Path) -> None:
    """ONNX Runtime refuses linked data files; the real file is used."""
    real = tmp_path / "real"
    real.mkdir()
    path = matmul(real)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    wanted = UntouchedRun(opened(path), OFF).run({"x": x})["y"]
    assert same(np.asarray(UntouchedRun(opened(link), OFF).run({"x": x})["y"]), np.asarray(wanted))


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    """Before anything runs."""
    path = matmul(tmp_path, save_as_external_data=True, location="data.bin", size_threshold=0)
    (tmp_path / "data.bin").unlink()
    with pytest.raises(BisectError, match=r"data\.bin is missing"):
        load_onnx(path)


def test_a_cut_off_data_file_is_named(tmp_path: Path) -> None:
    """It holds less than the weights want."""
    path = matmul(tmp_path, save_as_external_data=True, location="data.bin", size_threshold=0)
    (tmp_path / "data.bin").write_bytes(b"\0" * 100)
    with pytest.raises(BisectError, match="ends at"):
        load_onnx(path)


@pytest.mark.parametrize("budget", [None, 1], ids=["whole", "one node each"])
@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16"])
def test_half_precision_values_come_out_and_go_in(tmp_path: Path, dtype: str, budget: int | None) -> None:
    """As arrays of that dtype, bit for bit, through cuts and forced."""
    kind = np.dtype(np.float16 if dtype == "FLOAT16" else ml_dtypes.bfloat16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=getattr(TensorProto, dtype)),
        helper.make_node("Cast", ["half"], ["y"], to=FLOAT),
    ]
    path = write(tmp_path, nodes, {"x": (FLOAT, (3, 5))}, {"y": (FLOAT, (3, 5))})
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    other = (x * 3).astype(kind)
    program = opened(path)
    chained, given = drive(program, {"x": x}, budget, forced={"half"}, give=lambda *_: other)
    assert same(chained["half"], x.astype(kind))
    assert same(chained["y"], x.astype(kind).astype(np.float32))
    assert same(given["y"], other.astype(np.float32))


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16"])
def test_half_precision_inputs_and_outputs(tmp_path: Path, dtype: str) -> None:
    """Of the graph itself."""
    kind = np.dtype(np.float16 if dtype == "FLOAT16" else ml_dtypes.bfloat16)
    number = getattr(TensorProto, dtype)
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Identity", ["t"], ["y"])]
    path = write(tmp_path, nodes, {"x": (number, (2, 3))}, {"y": (number, (3, 2))})
    x = np.arange(6).reshape(2, 3).astype(kind)
    program = opened(path)
    assert same(np.asarray(UntouchedRun(program, OFF).run({"x": x})["y"]), np.ascontiguousarray(x.T))


@pytest.mark.parametrize("budget", [None, 1], ids=["whole", "one node each"])
def test_scalars_keep_their_shape(tmp_path: Path, budget: int | None) -> None:
    """0-d tensors come out, cross cuts, and are forced without becoming vectors."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    path = write(tmp_path, nodes, {"x": (FLOAT, (4,))}, {"y": (FLOAT, (4,))})
    x = np.array([1, 2, 3, 6], np.float32)
    program = opened(path)
    chained, given = drive(program, {"x": x}, budget, forced={"mean"}, give=lambda *_: np.array(1, np.float32))
    assert chained["mean"].shape == () and chained["mean"] == 3
    assert np.array_equal(chained["y"], x - 3)
    assert np.array_equal(given["y"], x - 1)


@pytest.mark.parametrize("budget", [None, 1], ids=["whole", "one node each"])
def test_empty_tensors_come_out(tmp_path: Path, budget: int | None) -> None:
    """Nothing found: no elements, and a shape."""
    nodes = [helper.make_node("NonZero", ["x"], ["where"]), helper.make_node("Cast", ["where"], ["y"], to=FLOAT)]
    path = write(tmp_path, nodes, {"x": (FLOAT, (2, 3))}, {"y": (FLOAT, (2, 0))})
    program = opened(path)
    chained, given = drive(
        program, {"x": np.zeros((2, 3), np.float32)}, budget,
        forced={"where"}, give=lambda *_: np.zeros((2, 0), np.int64),
    )  # fmt: skip
    assert chained["where"].shape == chained["y"].shape == given["y"].shape == (2, 0)


def test_nodes_with_several_outputs_and_none_of_some(tmp_path: Path) -> None:
    """A split whose halves go different ways, and an optional output that is not there."""
    nodes = [
        helper.make_node("Split", ["x"], ["left", "right"], axis=1),
        helper.make_node("Unique", ["left"], ["unique", "", "places"]),
        helper.make_node("Relu", ["right"], ["y"]),
    ]
    path = write(
        tmp_path, nodes, {"x": (FLOAT, (2, 4))}, {"y": (FLOAT, (2, 2)), "places": (TensorProto.INT64, (4,))}
    )  # fmt: skip
    x = np.array([[1, 2, -3, 4], [5, 2, 3, -2]], np.float32)
    program = opened(path)
    for budget in (None, 1):
        chained, _ = drive(program, {"x": x}, budget)
        assert chained.keys() == {"left", "right", "unique", "places", "y"}
        assert chained["unique"].tolist() == [1, 2, 5]
        assert chained["places"].tolist() == [0, 1, 2, 1]
        assert np.array_equal(chained["y"], np.maximum(x[:, 2:], 0))


def test_a_node_without_a_name_gets_a_stable_one(tmp_path: Path) -> None:
    """Operator and place in the file."""
    path = matmul(tmp_path)
    first, second = opened(path), opened(path)
    assert [n.name for n in first.graph.nodes] == [n.name for n in second.graph.nodes]
    assert [n.name for n in first.graph.nodes] == ["MatMul_0", "Relu_1", "MatMul_2"]


# -- lanes ------------------------------------------------------------------------------------------------------------


class Kept:
    """PyTorch's side, with a list of what was asked for and what stayed in use."""

    def __init__(self, values: Mapping[int, Array]):
        self.values = values
        self.fetched: list[int] = []
        self.prefetched: list[int] = []
        self.retained: list[set[int]] = []

    def fetch(self, value: int) -> Array:
        self.fetched.append(value)
        return self.values[value]

    def prefetch(self, values: Collection[int]) -> None:
        self.prefetched += values

    def retain(self, values: Collection[int]) -> None:
        self.retained.append(set(values))


def test_each_pair_is_handed_out_after_its_segment(tmp_path: Path) -> None:
    """Chained on its own values, forced on PyTorch's; of these only what the next segment reads stays in use."""
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    program = opened(matmul(tmp_path))
    own, _ = drive(program, {"x": x})
    kept = Kept({1: own["a"], 2: own["b"] * 2, 3: own["y"]})
    pairs = {"a": 1, "b": 2, "y": 3}
    run = SegmentedRun(program, OFF, program.segments(1), set(pairs), set(pairs), {"x": x})
    seen: list[int] = []
    steps: list[int] = []

    def on_pair(lane: str, value: int, wanted: Array, chained: Array | None, forced: Array | None) -> None:
        assert lane == "main" and chained is not None and forced is not None
        assert same(chained, own[{1: "a", 2: "b", 3: "y"}[value]])
        # Twice the input gives twice the product: only y reads the doubled value.
        assert np.allclose(forced, own["y"] * 2 if value == 3 else chained, rtol=1e-5, atol=1e-5)
        assert wanted is kept.values[value]
        assert run.next == value
        seen.append(value)

    run_lanes([Lane("main", run, pairs)], kept, on_pair, lambda: steps.append(run.next))
    assert seen == [1, 2, 3]
    assert steps == [1, 2, 3]
    assert kept.retained == [{1}, {1}, {2}, {2}, {3}, set(), set()]


def test_what_comes_next_is_told_before_it_is_wanted(tmp_path: Path) -> None:
    """What a segment reads first, then what it makes, then what the next one reads; nothing where that is not wished."""
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    program = opened(matmul(tmp_path))
    own, _ = drive(program, {"x": x})
    pairs = {"a": 1, "b": 2, "y": 3}

    def told(*, prefetch: bool) -> list[int]:
        kept = Kept({value: own[name] for name, value in pairs.items()})
        run = SegmentedRun(program, OFF, program.segments(1), set(pairs), {"b"}, {"x": x})
        run_lanes([Lane("main", run, pairs)], kept, lambda *_: None, prefetch=prefetch)
        assert set(kept.prefetched) <= set(kept.fetched)
        return kept.prefetched

    assert [1, 2, 2, 2, 3] == told(prefetch=True)
    assert [] == told(prefetch=False)


@pytest.mark.parametrize("shape", [(2, 40), (40, 2), (80,), (2, 4, 10)])
def test_pairs_are_handed_out_in_pytorch_s_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Merged, split and permuted axes go both ways: into the forced run and out of both."""
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    permuted = shape == (40, 2)
    program = opened(matmul(tmp_path))
    own, _ = drive(program, {"x": x})
    held = own["b"].T if permuted else own["b"].reshape(shape)
    run = SegmentedRun(program, OFF, program.segments(1), {"b", "y"}, {"b"}, {"x": x})
    orders = {"b": (1, 0)} if permuted else {}
    found: dict[int, tuple[Array | None, Array | None]] = {}

    def on_pair(lane: str, value: int, wanted: Array, chained: Array | None, forced: Array | None) -> None:
        found[value] = chained, forced

    run_lanes([Lane("main", run, {"b": 2, "y": 3}, orders)], Kept({2: held, 3: own["y"]}), on_pair)
    assert found[2][0] is not None and np.array_equal(found[2][0], held)
    assert found[3][1] is not None and same(found[3][1], own["y"])


def test_big_outputs_go_where_earlier_ones_were(tmp_path: Path) -> None:
    """Bit for bit the same as in ONNX Runtime's own memory; a wrong guess of a shape changes nothing but the place."""
    nodes = [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    path = write(tmp_path, nodes, {"x": (FLOAT, (1 << 20,))}, {"y": (FLOAT, (1 << 20,))})
    x = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    program = opened(path)
    wanted, _ = drive(program, {"x": x})
    buffers = BufferPool()
    for shape in ((1 << 20,), (1 << 10, 1 << 10)):
        types = {"a": ValueType(ir.DataType.FLOAT, shape)}
        segments = program.segments(1)
        run = SegmentedRun(program, OFF, segments, {"a", "y"}, None, {"x": x}, Reuse(types=types, buffers=buffers))
        places = []
        while not run.done:
            for name, array in run.step(lambda *_: x)[0].items():
                assert array is not None and same(array, wanted[name])
                places.append(array.ctypes.data)
    assert len(set(places)) <= 2


def test_weights_that_are_read_are_no_shapes(tmp_path: Path) -> None:
    """Sizes and axes stand only where nothing else does; whole numbers that are data stay."""
    whole = {"size": np.array([2, 4]), "axes": np.array([0]), "row": np.array([1])}
    nodes = [
        helper.make_node("Reshape", ["x", "size"], ["a"], name="reshape"),
        helper.make_node("MatMul", ["a", "weight"], ["b"], name="matmul"),
        helper.make_node("Gather", ["b", "row"], ["c"], name="gather"),
        helper.make_node("Unsqueeze", ["c", "axes"], ["y"], name="unsqueeze"),
    ]
    weights = {**whole, "weight": np.ones((4, 3), np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    program = OnnxProgram(load_onnx(path), path)
    assert (("Reshape", "MatMul"), ("weight",)) == program.reads(["reshape", "matmul"])
    assert ("weight", "row") == program.reads([node.name for node in nodes])[1]
    assert ("size", "axes") == program.reads(["reshape", "unsqueeze"])[1]
