"""``ort_options``: what is asked for arrives, what is misspelt does not, and the session is asked what it really has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bisect_tool.backends import ort_options
from bisect_tool.backends.ort_options import (
    CPU,
    CUDA,
    TENSORRT,
    PlacedNode,
    captured_log,
    changing_passes,
    configure,
    confirm,
    cpu_nodes_of_cuda_session,
    dtype_in_effect,
    explain_log,
    floating_nodes,
    known_passes,
    op_changes,
    op_counts,
    placed_nodes,
    placed_nodes_of_profile,
    providers,
    read_back,
    require_provider,
    session_log,
)
from bisect_tool.errors import EXIT_INCONCLUSIVE, BisectError, InconclusiveError
from bisect_tool.numerics import code_for
from bisect_tool.records import NumericConfig, OnnxGraph, OnnxNode
from bisect_tool.switches import ONNXRUNTIME, PASSES, REQUIRED_PASSES, Value

FLOAT, HALF, INT8, INT64, BOOL = (getattr(TensorProto, n) for n in ("FLOAT", "FLOAT16", "INT8", "INT64", "BOOL"))
Array = NDArray[Any]
RNG = np.random.default_rng(0)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def model(
    nodes: list[Any],
    inputs: Mapping[str, list[Any]],
    outputs: Mapping[str, list[Any]],
    constants: Mapping[str, Any] | None = None,
    types: Mapping[str, int] | None = None,
    opset: int = 17,
) -> bytes:
    types = types or {}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, types.get(n, FLOAT), s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, types.get(n, FLOAT), s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def random(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


CONV = [node("Conv", "x w b", "c", kernel_shape=[3, 3])]
CONV_WEIGHTS = {"w": random(4, 3, 3, 3), "b": random(4)}
NORM_WEIGHTS = {"s": random(4), "o": random(4), "m": random(4), "v": abs(random(4)) + 0.1}
X, Y, XY = {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]}, {"x": [2, 3]}
OUT = {"y": [2, 3]}


def gelu(opset: int = 17) -> bytes:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Div", "a root", "b"),
        node("Erf", "b", "c"),
        node("Add", "c one", "d"),
        node("Mul", "a d", "e"),
        node("Mul", "e half", "y"),
    ]
    constants = {"w": random(64, 32), "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    return model(nodes, {"x": [4, 64]}, {"y": [4, 32]}, constants, opset=opset)


GELU, GELU_20 = gelu(), gelu(20)
CONV_NORM = model([*CONV, node("BatchNormalization", "c s o m v", "y")], X, Y, {**CONV_WEIGHTS, **NORM_WEIGHTS})
MATMUL = model([node("MatMul", "x w", "y")], {"x": [7, 333]}, {"y": [7, 129]}, {"w": random(333, 129)})


class Made:
    """A session under a configuration, with its optimised graph."""

    def __init__(self, graph: bytes, folder: Path, placement: bool = False, **fields: Any):
        self.config = NumericConfig("onnxruntime", **{"threads": 1, **fields})
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self.optimized = folder / "optimized.onnx"
        options.optimized_model_filepath = str(self.optimized)
        chosen = configure(options, self.config, placement=placement)
        self.session = ort.InferenceSession(graph, options, providers=chosen, enable_fallback=0)
        self.counts = op_counts(self.optimized)

    def run(self, **inputs: Array) -> Array:
        found: Array = self.session.run(None, inputs)[0]
        return found


def difference(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(a))


# Passes


def test_known_passes_are_those_of_the_table() -> None:
    """The installed version has no pass that the table lacks; what it lacks itself is known."""
    assert len(known_passes()) > 60
    assert set() == known_passes() - {p.name for p in PASSES}
    assert not known_passes() & REQUIRED_PASSES


def test_every_disabled_transformer_is_gone() -> None:
    """Each name that is accepted takes its pass out of the session; each required pass stays."""
    plain = Counter(name for name, _ in ort_options._transformers(session_log(SMALL, [(CPU, {})])))
    assert set(plain) >= REQUIRED_PASSES
    for name in sorted(set(plain) - REQUIRED_PASSES):
        options = {"optimization.disable_specified_optimizers": name}
        left = {other for other, _ in ort_options._transformers(session_log(SMALL, [(CPU, {})], options))}
        assert set(plain) - {name} == left, name


SMALL = ort_options._small_model()
SIGMOID = node("Sigmoid", "b", "y")
RELU = node("Relu", "x", "a")
QUANT = {"s": np.float32(0.1), "z": np.int8(-128)}
RULES: dict[str, bytes] = {
    "ConvBNFusion": CONV_NORM,
    "ConvAddFusion": model([*CONV, node("Add", "c k", "y")], X, Y, {**CONV_WEIGHTS, "k": random(4, 1, 1)}),
    "ConvMulFusion": model([*CONV, node("Mul", "c k", "y")], X, Y, {**CONV_WEIGHTS, "k": random(4, 1, 1)}),
    "Pad_Fusion": model(
        [node("Pad", "x p", "q"), node("Conv", "q w b", "y", kernel_shape=[3, 3])],
        X,
        {"y": [1, 4, 8, 8]},
        {**CONV_WEIGHTS, "p": whole(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "EliminateIdentity": model([RELU, node("Identity", "a", "b"), SIGMOID], XY, OUT),
    "EliminateSlice": model(
        [RELU, node("Slice", "a p q", "b"), SIGMOID], XY, OUT, {"p": whole(0, 0), "q": whole(2**63 - 1, 2**63 - 1)}
    ),
    "EliminateDropout": model([RELU, node("Dropout", "a", "b"), SIGMOID], XY, OUT),
    "ExpandElimination": model([RELU, node("Expand", "a p", "b"), SIGMOID], XY, OUT, {"p": whole(2, 3)}),
    "CastElimination": model([RELU, node("Cast", "a", "b", to=FLOAT), SIGMOID], XY, OUT),
    "NoopElimination": model([RELU, node("Add", "a p", "b"), SIGMOID], XY, OUT, {"p": np.float32(0)}),
    "DivMulFusion": model(
        [node("Div", "p x", "a"), node("Mul", "a k", "y")], {**XY, "k": [2, 3]}, OUT, {"p": np.float32(1)}
    ),
    "FuseReluClip": model([RELU, node("Clip", "a p q", "y")], XY, OUT, {"p": np.float32(-1), "q": np.float32(1)}),
    "GemmSumFusion": model(
        [node("Gemm", "x w", "a"), node("Sum", "a k", "y")], {**XY, "k": [2, 4]}, {"y": [2, 4]}, {"w": random(3, 4)}
    ),
    "GemmTransposeFusion": model(
        [node("Gemm", "x w", "a"), node("Transpose", "a", "y", perm=[1, 0])], XY, {"y": [4, 2]}, {"w": random(3, 4)}
    ),
    "NotWhereFusion": model(
        [node("Not", "c", "n"), node("Where", "n x k", "y")], {**XY, "k": [2, 3], "c": [2, 3]}, OUT, types={"c": BOOL}
    ),
    "MatMul_BatchNormalization_Fusion": model(
        [node("MatMul", "x w", "a"), node("BatchNormalization", "a s o m v", "y")],
        XY,
        {"y": [2, 4]},
        {"w": random(3, 4), **NORM_WEIGHTS},
    ),
    "PreShapeNodeElimination": model(
        [RELU, node("Cast", "a", "b", to=HALF), node("Shape", "b", "y")],
        {"x": ["n", 3]},
        {"y": [2]},
        types={"y": INT64},
    ),
    "ReluQuantRewrite": model([RELU, node("QuantizeLinear", "a s z", "y")], XY, OUT, QUANT, types={"y": INT8}),
}
UNTRIED_RULES = {"UnsqueezeElimination", "ClipQuantRewrite", "LabelEncoderFusion", "CastChainElimination"}


def needs(name: str) -> None:
    """Skips what the installed version does not do yet with the pattern of a test."""
    since = {"NotWhereFusion": (1, 25), "optimization.enable_cast_chain_elimination": (1, 23)}.get(name, (1, 0))
    if ort_options._version(ort.__version__) < since:
        pytest.skip(f"onnxruntime {ort.__version__} is older than {since}")


@pytest.mark.parametrize("name", RULES)
def test_disabled_rule_leaves_the_graph_alone(name: str, tmp_path: Path) -> None:
    """A rule rewrites its pattern, and does not once it is disabled; the log names it among others."""
    needs(name)
    plain = Made(RULES[name], tmp_path, optimization="extended").counts
    kept = Made(RULES[name], tmp_path, optimization="extended", switches={"disabled_passes": name}).counts
    assert op_changes(kept, plain)
    assert name in changing_passes(session_log(RULES[name], [(CPU, {})]))


def test_every_rule_is_tried() -> None:
    """What the table calls a rule is tried here, but for those that are listed."""
    assert {p.name for p in PASSES if p.rule} == set(RULES) | UNTRIED_RULES


def test_several_passes_are_disabled_together(tmp_path: Path) -> None:
    """The separator is the one that ONNX Runtime understands."""
    switches: dict[str, Value] = {"disabled_passes": "GeluFusionL2;ConvBNFusion"}
    assert {"BatchNormalization": 1, "Conv": 1} == Made(
        CONV_NORM, tmp_path, optimization="extended", switches=switches
    ).counts
    assert "Erf" in Made(GELU, tmp_path, switches=switches).counts


def test_pass_that_the_installed_version_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name of another version is refused: it would do nothing here."""
    monkeypatch.setattr(ort_options, "known_passes", lambda: frozenset(["ConvBNFusion"]))
    monkeypatch.setattr(ort_options, "_seen", set())
    with pytest.raises(BisectError, match="no optimiser pass 'GeluFusionL2'"):
        Made(CONV_NORM, tmp_path, switches={"disabled_passes": "GeluFusionL2"})


# Switches with an effect on the graph


def test_gelu_approximation(tmp_path: Path) -> None:
    """GELU of older opsets becomes the one by tanh, with other numbers; the operator of opset 20 stays."""
    on: dict[str, Value] = {"optimization.enable_gelu_approximation": True}
    x = random(4, 64)
    plain, approximate = Made(GELU, tmp_path), Made(GELU, tmp_path, switches=on)
    assert {"com.microsoft.Gelu": (1, 0), "com.microsoft.FastGelu": (0, 1)} == op_changes(
        plain.counts, approximate.counts
    )
    assert 1e-6 < difference(plain.run(x=x), approximate.run(x=x)) < 1e-3
    newer = Made(GELU_20, tmp_path, switches=on).counts
    assert "Gelu" in newer
    assert {} == op_changes(Made(GELU_20, tmp_path).counts, newer)


def qdq(first: str, second: str) -> list[Any]:
    return [node("QuantizeLinear", first, "q"), node("DequantizeLinear", second, "d")]


STEPS = {"s": np.float32(0.05), "t": np.float32(0.02), "z": np.uint8(128)}
GRAPH_SWITCHES: list[Any] = [
    (
        "session.enable_quant_qdq_cleanup",
        model(
            [RELU, node("QuantizeLinear", "a s z", "q"), node("DequantizeLinear", "q s z", "b"), SIGMOID],
            XY,
            OUT,
            STEPS,
        ),
        {"QuantizeLinear": (1, 0), "DequantizeLinear": (1, 0)},
    ),
    (
        "session.disable_double_qdq_remover",
        model(
            [
                RELU,
                node("QuantizeLinear", "a s z", "q"),
                node("DequantizeLinear", "q s z", "c"),
                node("QuantizeLinear", "c t z", "r"),
                node("DequantizeLinear", "r t z", "b"),
                SIGMOID,
            ],
            XY,
            OUT,
            STEPS,
        ),
        {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)},
    ),
    (
        "optimization.enable_cast_chain_elimination",
        model([RELU, node("Cast", "a", "c", to=HALF), node("Cast", "c", "b", to=FLOAT), SIGMOID], XY, OUT),
        {"Cast": (2, 0)},
    ),
    (
        "session.disable_quant_qdq",
        model(
            [
                node("DequantizeLinear", "x s z", "c"),
                node("DequantizeLinear", "w s z", "d"),
                node("MatMul", "c d", "e"),
                node("QuantizeLinear", "e t z", "y"),
            ],
            XY,
            {"y": [2, 4]},
            {**STEPS, "w": RNG.integers(0, 255, (3, 4)).astype(np.uint8)},
            types={"x": TensorProto.UINT8, "y": TensorProto.UINT8},
        ),
        {"QLinearMatMul": (1, 0), "MatMul": (0, 1), "DequantizeLinear": (0, 1), "QuantizeLinear": (0, 1)},
    ),
]


@pytest.mark.parametrize(("name", "graph", "changes"), GRAPH_SWITCHES, ids=[name for name, _, _ in GRAPH_SWITCHES])
def test_switch_changes_the_graph(
    name: str, graph: bytes, changes: Mapping[str, tuple[int, int]], tmp_path: Path
) -> None:
    """The optimised graph tells that the switch took effect, and the read-back says by what."""
    needs(name)
    plain, switched = Made(graph, tmp_path), Made(graph, tmp_path, switches={name: True})
    assert changes == op_changes(plain.counts, switched.counts)
    given = tmp_path / "given.onnx"
    given.write_bytes(graph)
    found = read_back(switched.session, switched.config, optimized=switched.optimized, given=given)
    assert "1" == found["switches"][name]
    assert switched.counts == found["nodes"]


def test_functions_are_inlined_late(tmp_path: Path) -> None:
    """The first passes do not see into functions that are inlined late."""
    made = onnx.load_from_string(model([], X, Y, {"w": CONV_WEIGHTS["w"], **NORM_WEIGHTS}))
    inner = [
        node("Conv", "x w", "c", kernel_shape=[3, 3]),
        node("BatchNormalization", "c s o m v", "y"),
    ]
    opset = helper.make_opsetid("", 17)
    made.functions.append(helper.make_function("own", "Block", list("xwsomv"), ["y"], inner, [opset]))
    made.graph.node.append(node("Block", "x w s o m v", "y", domain="own"))
    made.opset_import.append(helper.make_opsetid("own", 1))
    graph = made.SerializeToString()
    late: dict[str, Value] = {"session.disable_aot_function_inlining": True}
    assert Made(graph, tmp_path).counts != Made(graph, tmp_path, switches=late).counts


# Switches that show in values only


def test_prepacking_changes_the_sum(tmp_path: Path) -> None:
    """Without packing another kernel multiplies; the difference is that of rounding."""
    x = random(7, 333)
    packed = Made(MATMUL, tmp_path).run(x=x)
    plain = Made(MATMUL, tmp_path, switches={"session.disable_prepacking": True}).run(x=x)
    assert difference(packed, plain) < 1e-5


DENORMALS = """
import sys, numpy as np, onnx, onnxruntime as ort
from bisect_tool.backends.ort_options import configure, _small_model
from bisect_tool.records import NumericConfig
values = []
for word in sys.argv[1:]:
    options = ort.SessionOptions()
    switches = {} if word == "unset" else {"session.set_denormal_as_zero": word == "true"}
    chosen = configure(options, NumericConfig("onnxruntime", threads=1, switches=switches))
    session = ort.InferenceSession(_small_model(), options, providers=chosen)
    session.run(None, {"x": np.full((2, 3), 1e-39, np.float32)})
    values.append(float(np.float32(1e-39) * np.float32(1)) != 0)
print(*values)
"""


@pytest.mark.parametrize(
    ("words", "kept"), [("true unset", "False False"), ("unset true", "True True"), ("false", "True")]
)
def test_first_session_decides_on_denormals(words: str, kept: str) -> None:
    """What the first session of a process says holds for its thread, numpy's numbers included: hence a process each."""
    done = subprocess.run(
        [sys.executable, "-c", DENORMALS, *words.split()], capture_output=True, text=True, check=True, timeout=60
    )
    assert kept == done.stdout.strip()


# Configuring, confirming, reading back


def test_everything_arrives(tmp_path: Path) -> None:
    """Level, threads, properties and keys are those that were asked for, and the read-back says so."""
    switches: dict[str, Value] = {
        "use_deterministic_compute": True,
        "session.disable_prepacking": True,
        "session.disable_quant_qdq": False,
        "disabled_passes": "ConvBNFusion",
        "keep_stages": True,
    }
    made = Made(CONV_NORM, tmp_path, placement=True, optimization="basic", threads=2, switches=switches)
    confirm(made.session, made.config)
    given = tmp_path / "given.onnx"
    given.write_bytes(CONV_NORM)
    found = read_back(made.session, made.config, optimized=made.optimized, given=given)
    assert {
        "providers": [CPU],
        "provider_options": {},
        "optimization": "basic",
        "threads": 2,
        "switches": {
            "use_deterministic_compute": True,
            "session.disable_prepacking": "1",
            "session.disable_quant_qdq": "0",
            "disabled_passes": "ConvBNFusion",
        },
        "unconfirmed": [],
        "nodes": {"BatchNormalization": 1, "Conv": 1},
        "changed": {},
    } == {key: value for key, value in found.items() if key != "placement"}
    assert found.get("placement", {CPU: 2}) == {CPU: 2}


def test_graph_is_read_back(tmp_path: Path) -> None:
    """The dtype of its weights, whatever single constants are in, and whether sizes of its inputs are open."""
    inputs = {"x": ["rows", 3]}
    switches: dict[str, Value] = {"dynamic_shapes": True}
    for shapes, dynamic in ((inputs, True), (XY, False)):
        made = Made(model([node("Relu", "x", "y")], shapes, {"y": shapes["x"]}), tmp_path, switches=switches)
        assert {"dynamic_shapes": dynamic} == read_back(made.session, made.config)["switches"]
    dtypes = {"w": "float16", "scale": "float32", "index": "int64", "x": "float32"}
    shapes = {"w": (4, 4), "scale": (), "index": (100,)}
    graph = OnnxGraph(("x",), ("y",), (), frozenset(["w", "scale", "index"]), shapes, dtypes, "dynamo")
    assert "float16" == read_back(made.session, made.config, graph=graph)["dtype"]
    assert "float32" == dtype_in_effect(replace(graph, initializers=frozenset(["index"])))
    assert dtype_in_effect(replace(graph, initializers=frozenset(["index"]), inputs=("index",))) is None


@pytest.mark.parametrize("level", ["off", "basic", "extended", "all"])
def test_levels(level: str, tmp_path: Path) -> None:
    """Each level is read back under our name."""
    made = Made(CONV_NORM, tmp_path, optimization=level)
    assert level == read_back(made.session, made.config)["optimization"]


def test_level_that_this_version_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """onnxruntime 1.22 has no level of its own for layouts."""
    levels = SimpleNamespace(ORT_ENABLE_ALL=ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    monkeypatch.setattr(ort, "GraphOptimizationLevel", levels)
    with pytest.raises(InconclusiveError, match="has no optimisation level layout"):
        Made(CONV_NORM, tmp_path, optimization="layout")


def test_switch_that_this_version_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key that an older version would ignore is inconclusive, with the version that has it."""
    monkeypatch.setattr(ort, "__version__", "1.22.1")
    with pytest.raises(InconclusiveError, match=r"needs onnxruntime 1\.23, and this is 1\.22\.1") as caught:
        Made(CONV_NORM, tmp_path, switches={"optimization.enable_cast_chain_elimination": True})
    assert EXIT_INCONCLUSIVE == caught.value.exit_code


@pytest.mark.parametrize(
    "switches",
    [{"session.disable_prepackin": True}, {"session.disable_prepacking": "1"}, {"disabled_passes": "ConvBnFusion"}],
)
def test_misspelt_is_refused(switches: dict[str, Value], tmp_path: Path) -> None:
    """ONNX Runtime takes all of these; no session is made."""
    with pytest.raises(BisectError):
        Made(CONV_NORM, tmp_path, switches=switches)
    assert not list(tmp_path.iterdir())


def test_variable_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are for the process to start with; a session cannot set them."""
    monkeypatch.setattr(ort_options, "require_provider", lambda provider: None)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    config = NumericConfig("onnxruntime", device="cuda", switches={"NVIDIA_TF32_OVERRIDE": "0"})
    with pytest.raises(InconclusiveError, match="NVIDIA_TF32_OVERRIDE=0 is not in this process"):
        configure(ort.SessionOptions(), config)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    configure(ort.SessionOptions(), config)


@pytest.mark.skipif(os.uname().machine in ("aarch64", "arm64"), reason="this is Arm")
def test_key_of_another_processor(tmp_path: Path) -> None:
    """What only Arm has is not accepted in silence elsewhere."""
    with pytest.raises(InconclusiveError, match="64-bit Arm only"):
        Made(CONV_NORM, tmp_path, switches={"mlas.enable_gemm_fastmath_arm64_bfloat16": True})


@pytest.mark.parametrize("name", [s.name for s in ONNXRUNTIME if s.home == "session" and s.values.kind == "flag"])
def test_line_of_code_sets_the_key(name: str) -> None:
    """What a report tells users to write does what this tool does."""
    options = ort.SessionOptions()
    exec(code_for("onnxruntime", name, True), {"options": options})
    assert "1" == options.get_session_config_entry(name)


def test_providers_with_options() -> None:
    """Options go to their provider, in the library's spelling, and the CPU comes last."""
    switches: dict[str, Value] = {"use_tf32": False, "cudnn_conv_algo_search": "HEURISTIC", "sdpa_kernel": 16}
    cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "sdpa_kernel": "16"}
    config = NumericConfig("onnxruntime", device="cuda", switches=switches)
    assert [(CUDA, cuda), (CPU, {})] == providers(config)
    both = NumericConfig(
        "onnxruntime", device="cuda", switches={**switches, "provider": "tensorrt", "trt_fp16_enable": True}
    )
    assert [(TENSORRT, {"trt_fp16_enable": "1"}), (CUDA, cuda), (CPU, {})] == providers(both)
    assert [(CPU, {})] == providers(NumericConfig("onnxruntime"))


def fake(
    present: list[str], options: Mapping[str, Mapping[str, str]] | None = None, keys: Mapping[str, str] | None = None
) -> Any:
    """What a session says about itself."""

    def entry(key: str) -> str:
        if key not in (keys or {}):
            raise RuntimeError(f"SessionOptions does not have configuration with key: {key}")
        return (keys or {})[key]

    settings = SimpleNamespace(
        get_session_config_entry=entry,
        use_deterministic_compute=False,
        graph_optimization_level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        intra_op_num_threads=0,
    )
    return SimpleNamespace(
        get_providers=lambda: present,
        get_provider_options=lambda: options or {},
        get_session_options=lambda: settings,
    )


def test_session_that_fell_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA session that runs on the CPU never passes."""
    monkeypatch.setattr(ort_options, "_problem", lambda provider: None)
    with pytest.raises(InconclusiveError, match=f"was to run on {CUDA} and runs on {CPU}"):
        confirm(fake([CPU]), NumericConfig("onnxruntime", device="cuda"))


@pytest.mark.parametrize(
    ("found", "message"), [({"use_tf32": "1"}, "the session has '1'"), ({}, "the session has nothing")]
)
def test_value_that_did_not_arrive_is_refused(found: Mapping[str, str], message: str) -> None:
    """Each value is compared with what the session has."""
    config = NumericConfig("onnxruntime", device="cuda", switches={"use_tf32": False})
    with pytest.raises(InconclusiveError, match=f"use_tf32 was set to 0, and {message}"):
        confirm(fake([CUDA, CPU], {CUDA: found}), config)
    confirm(fake([CUDA, CPU], {CUDA: {"use_tf32": "0"}}), config)


def test_properties_and_keys_are_confirmed_too() -> None:
    """A property that stayed false and a key that is not there are seen."""
    deterministic = NumericConfig("onnxruntime", switches={"use_deterministic_compute": True})
    with pytest.raises(InconclusiveError, match="use_deterministic_compute was set to 1"):
        confirm(fake([CPU]), deterministic)
    unpacked = NumericConfig("onnxruntime", switches={"session.disable_prepacking": True})
    with pytest.raises(InconclusiveError, match="session has nothing"):
        confirm(fake([CPU]), unpacked)
    confirm(fake([CPU], keys={"session.disable_prepacking": "1"}), unpacked)


# CUDA that is not there


@pytest.mark.parametrize(
    ("log", "message", "hint"),
    [
        (
            "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] [ONNXRuntimeError] : 1 : FAIL : Failed to"
            " load library /x/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object"
            " file: No such file or directory\n[W:onnxruntime:Default] Failed to create CUDAExecutionProvider.",
            "CUDA provider cannot be loaded: libcublasLt.so.13 is missing",
            "onnxruntime-gpu[cuda,cudnn]",
        ),
        (
            "Failed to load library /x/cuda.so with error: libcuda.so.1: cannot open shared object file: No such file",
            "finds no NVIDIA driver (libcuda.so.1)",
            "nvidia-smi",
        ),
        (
            "Failed to load library /x/cuda.so with error: /lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found",
            "cannot be loaded: /lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found",
            "",
        ),
        (
            "RuntimeError: CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=a",
            "finds no usable GPU: CUDA failure 100: no CUDA-capable device is detected",
            "CUDA_VISIBLE_DEVICES",
        ),
        (
            "Fail: CUDA driver version is insufficient for CUDA runtime version",
            "finds no usable GPU: driver version is insufficient",
            "nvidia-smi",
        ),
        ("RuntimeError: something new", "does not start on CUDA: RuntimeError: something new", ""),
        ("", "does not start on CUDA: it gives no reason", ""),
    ],
)
def test_reason_why_cuda_cannot_be_had(log: str, message: str, hint: str) -> None:
    """Build, library, driver and device are told apart; anything else is quoted."""
    found, remedy = explain_log(log)
    assert message in found
    assert hint in remedy


def test_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain package says that it is one, and which to take."""
    ort_options._problem.cache_clear()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    try:
        with pytest.raises(InconclusiveError, match="is a build without CUDA") as caught:
            require_provider(CUDA)
    finally:
        ort_options._problem.cache_clear()
    assert "bisect-divergence[gpu]" in str(caught.value.hint)


def test_cuda_here(capfd: pytest.CaptureFixture[str]) -> None:
    """Where CUDA cannot be had, asking for it is inconclusive and prints nothing."""
    config = NumericConfig("onnxruntime", device="cuda")
    ort_options._problem.cache_clear()
    if ort_options._problem(CUDA) is None:
        pytest.skip("CUDA can be had here")
    ort_options._problem.cache_clear()
    with pytest.raises(InconclusiveError) as caught:
        configure(ort.SessionOptions(), config)
    assert EXIT_INCONCLUSIVE == caught.value.exit_code
    assert caught.value.hint
    assert ("", "") == capfd.readouterr()


@pytest.mark.gpu
def test_cuda_session(tmp_path: Path) -> None:
    """On a machine with CUDA the options arrive, and no node of a convolution sits on the CPU."""
    if ort_options._problem(CUDA) is not None:
        pytest.skip(f"no CUDA: {ort_options._problem(CUDA)}")
    switches: dict[str, Value] = {"use_tf32": False, "cudnn_conv_algo_search": "DEFAULT", "prefer_nhwc": False}
    made = Made(CONV_NORM, tmp_path, placement=True, device="cuda", switches=switches)
    confirm(made.session, made.config)
    assert () == cpu_nodes_of_cuda_session(placed_nodes(made.session) or ())


# Placement


@pytest.mark.skipif(not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"), reason="needs 1.24")
def test_nodes_are_placed(tmp_path: Path) -> None:
    """The session says which provider took which node, if it was told to remember."""
    made = Made(CONV_NORM, tmp_path, placement=True, optimization="off")
    assert (PlacedNode("", "Conv", CPU), PlacedNode("", "BatchNormalization", CPU)) == placed_nodes(made.session)
    assert placed_nodes(Made(CONV_NORM, tmp_path).session) is None


def test_placement_from_a_profile(tmp_path: Path) -> None:
    """Every version can tell from a profile."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(CONV_NORM, options, providers=configure(options, NumericConfig("onnxruntime")))
    session.run(None, {"x": random(1, 3, 8, 8)})
    found = placed_nodes_of_profile(session.end_profiling()) or ()
    assert "Conv" in {node.op_type for node in found}
    assert {CPU} == {node.provider for node in found}
    assert all(node.floating for node in found)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cat": "Node"}', '[{"cat": "Node", "name": "a_kernel_time"}]'])
def test_profile_that_tells_nothing(text: str, tmp_path: Path) -> None:
    """Nothing known is not the same as no node on the CPU."""
    (tmp_path / "profile.json").write_text(text)
    assert placed_nodes_of_profile(tmp_path / "profile.json") is None
    assert placed_nodes_of_profile(tmp_path / "missing.json") is None


def test_profile_knows_floating_outputs(tmp_path: Path) -> None:
    """What a node put out tells a computation from one of shapes, also where the optimiser renamed it."""

    def event(name: str, *kinds: str) -> dict[str, Any]:
        args = {"op_name": "Gather", "provider": CPU, "output_type_shape": [{kind: [2]} for kind in kinds]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": args}

    conv = {"cat": "Node", "name": "c_kernel_time", "args": {"op_name": "Conv", "provider": CUDA}}
    events = [conv, event("i", "int64"), event("f", "float"), event("h", "int64", "float16"), event("d", "double")]
    (tmp_path / "profile.json").write_text(json.dumps(events))
    found = placed_nodes_of_profile(tmp_path / "profile.json") or ()
    assert ["f", "h", "d"] == [node.name for node in cpu_nodes_of_cuda_session(found)]


def test_nodes_left_on_the_cpu() -> None:
    """Shape computations belong there; all else, and floating numbers, do not."""
    nodes = (
        PlacedNode("conv", "Conv", CUDA),
        PlacedNode("topk", "TopK", CPU),
        PlacedNode("shape", "Shape", CPU),
        PlacedNode("gather", "Gather", CPU),
        PlacedNode("", "GridSample", CPU),
    )
    assert ["topk (TopK)", "GridSample"] == [str(n) for n in cpu_nodes_of_cuda_session(nodes)]
    assert ["topk (TopK)", "gather (Gather)", "GridSample"] == [
        str(n) for n in cpu_nodes_of_cuda_session(nodes, {"gather", "conv"})
    ]


def test_nothing_but_shapes_on_the_cpu() -> None:
    """Where no node is on CUDA, even nodes that belong on the CPU show that nothing ran there."""
    nodes = (PlacedNode("gather", "Gather", CPU), PlacedNode("add", "Add", CPU))
    assert nodes == cpu_nodes_of_cuda_session(nodes)
    assert () == cpu_nodes_of_cuda_session((*nodes, PlacedNode("conv", "Conv", CUDA)))


def test_floating_nodes() -> None:
    """Types in the file tell which nodes compute with floating numbers."""

    def make(name: str, output: str) -> OnnxNode:
        return OnnxNode(name, "Gather", "", ("x",), (output,), (), None, None, None)

    dtypes = {"a": "float16", "b": "int64", "c": "bfloat16"}
    nodes = tuple(make(f"n{output}", output) for output in "abcd")
    graph = OnnxGraph((), (), nodes, frozenset(), {}, dtypes, "dynamo")
    assert {"na", "nc"} == floating_nodes(graph)


# Graphs and logs


def test_nodes_inside_subgraphs_are_counted(tmp_path: Path) -> None:
    """Branches count too, and foreign operators carry their domain."""

    def branch(op: str) -> Any:
        return helper.make_graph([node(op, "x", "r")], op, [], [helper.make_tensor_value_info("r", FLOAT, [2, 3])])

    nodes = [
        node("If", "c", "b", then_branch=branch("Relu"), else_branch=branch("Sigmoid")),
        node("Gelu", "b", "y", domain="com.microsoft"),
    ]
    made = onnx.load_from_string(model(nodes, {**XY, "c": []}, OUT, types={"c": BOOL}))
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    assert {"If": 1, "Relu": 1, "Sigmoid": 1, "com.microsoft.Gelu": 1} == op_counts(path)


def test_changing_passes_of_a_session() -> None:
    """The log names the passes that did something, groups of rules by all their members."""
    names = changing_passes(session_log(GELU, [(CPU, {})]))
    assert "GeluFusionL2" in names
    assert "ConvActivationFusion" not in names
    assert not set(names) & REQUIRED_PASSES
    assert () == changing_passes("")


def test_captured_log_gives_stderr_back(capfd: pytest.CaptureFixture[str]) -> None:
    """What is written inside is caught, also when the block raises; afterwards stderr is the process' own again."""
    with captured_log() as log:
        os.write(2, b"inside")
    assert "inside" == log.getvalue()
    with pytest.raises(ZeroDivisionError), captured_log() as log:
        os.write(2, b"before the fall")
        raise ZeroDivisionError
    assert "before the fall" == log.getvalue()
    os.write(2, b"outside")
    assert "outside" == capfd.readouterr().err


def branches(path: Path, order: Sequence[int], *, channels: int = 24) -> Path:
    """A graph as the optimiser leaves it: convolutions of a layout of its own, each with a node that leads out of it."""
    nodes: list[Any] = []
    for number in order:
        size = channels if number == 2 else 8 * (number + 1)
        attributes = {"channels_last": 0, "channels": size} if number % 2 else {"channels": size, "channels_last": 0}
        nodes.append(onnx.helper.make_node("Conv", ["x", "w"], [f"r{number}"], domain="com.microsoft.nchwc"))
        nodes.append(
            onnx.helper.make_node(
                "ReorderOutput", [f"r{number}"], [f"y{number}"], domain="com.microsoft.nchwc", **attributes
            )
        )
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "branches", [], [])), path)
    return path


def test_order_of_nodes_is_no_effect(tmp_path: Path) -> None:
    """Branches stand in the file in another order from session to session; other attributes are a difference."""
    first = ort_options._form(branches(tmp_path / "a.onnx", [0, 1, 2, 3]))
    assert first == ort_options._form(branches(tmp_path / "b.onnx", [2, 0, 3, 1]))
    assert first != ort_options._form(branches(tmp_path / "c.onnx", [0, 1, 2, 3], channels=32))
    assert first != ort_options._form(branches(tmp_path / "d.onnx", [0, 1, 2]))
