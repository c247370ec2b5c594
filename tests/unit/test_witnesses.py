"""``witnesses`` and ``testimony``: whether the graph is off or the runtime, and when there is no answer."""

from __future__ import annotations

import html
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import report_samples
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, inspect_case, make_tolerance
from bisect_tool.backends import runners, testimony
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.ort_runner import OrtGraph, OrtRunner
from bisect_tool.records import NumericConfig, Report, Witness
from bisect_tool.reporters.html import html_text
from bisect_tool.reporters.terminal import print_report
from bisect_tool.store import report_from_json, report_text
from bisect_tool.witnesses import apart, heard

Array = NDArray[Any]
A = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
OFF = A * np.float32(1.01)
FLOOR = 1e-6


def said(expected: Array, actual: Array, value: Array, floor: float | None = FLOOR, dtype: str = "float32") -> Witness:
    return heard("own", "1", expected, actual, value, dtype, floor)


# -- what a value says -------------------------------------------------------------------------------------------------


def test_the_judged_runners_value_means_the_graph() -> None:
    """Within three floors of the judged runner, and far from PyTorch."""
    witness = said(A, OFF, OFF * np.float32(1 + 2.5e-6))
    assert ("export", None) == (witness.says, witness.reason)
    assert 0.0099 == pytest.approx(witness.against_expected_rel_l2, rel=0.05)
    assert 2.5e-6 == pytest.approx(witness.against_actual_rel_l2, rel=0.05)


def test_pytorchs_value_means_the_runtime() -> None:
    """The same the other way round."""
    assert "runtime" == said(A, OFF, A * np.float32(1 + 2.5e-6)).says


@pytest.mark.parametrize(("factor", "says"), [(2.9, "export"), (3.1, "neither")])
def test_near_is_three_floors(factor: float, says: str) -> None:
    """The limit is the stage's own: here a floor of 1e-4."""
    assert says == said(A, OFF, OFF * np.float32(1 + factor * 1e-4), floor=1e-4).says


def test_two_runners_of_a_graph_in_half_precision_differ_by_that() -> None:
    """The graph is narrower than PyTorch: that is what is off, whichever way its runners round."""
    half, other = (A * np.float32(1 + error) for error in (4e-4, -3e-4))
    assert "neither" == said(A, half, other).says
    assert "export" == heard("own", "1", A, half, other, "float32", FLOOR, rounding=9.8e-4).says
    assert "runtime" == heard("own", "1", A, OFF, A, "float32", FLOOR, rounding=9.8e-4).says


def test_without_a_floor_only_what_needs_none_counts() -> None:
    """Equal up to a few roundings is an answer; anything else is none."""
    assert "export" == said(A, OFF, OFF, floor=None).says
    witness = said(A, OFF, OFF * np.float32(1.001), floor=None)
    assert "unknown" == witness.says
    assert witness.reason is not None and "floor is not known" in witness.reason


def test_both_within_rounding() -> None:
    """Where rounding may decide, the far nearer one is an answer, and else there is none."""
    near = A * np.float32(1 + 4e-4)
    assert "export" == said(A, near, near * np.float32(1 + 1e-5), floor=1e-3).says
    assert "runtime" == said(A, near, A * np.float32(1 + 1e-5), floor=1e-3).says
    witness = said(A, near, A * np.float32(1 + 2e-4), floor=1e-3)
    assert "unknown" == witness.says
    assert witness.reason is not None and "within rounding" in witness.reason


def test_nan_and_shapes() -> None:
    """The same NaN in the same places is no difference; other places, and other shapes, are the largest there is."""
    hole, other = A.copy(), A.copy()
    hole[0, 0] = other[1, 1] = np.nan
    assert 0 == apart(hole, hole.copy())
    assert np.inf == apart(hole, other) == apart(A, hole) == apart(A, A[:, :10])
    assert 0 == apart(A, A.reshape(-1))
    assert "export" == said(A, hole, hole.copy()).says
    assert "neither" == said(A, hole, other).says


def test_an_error_that_a_norm_does_not_show() -> None:
    """Beside a mask's filling the numbers that are left count by themselves."""
    masked = np.where(np.arange(50) % 2 == 0, A, np.float32(-1e9))
    faulty = np.where(np.arange(50) % 2 == 0, OFF, np.float32(-1e9))
    assert "export" == said(masked, faulty, faulty.copy()).says
    assert "runtime" == said(masked, faulty, masked.copy()).says


# -- asked in a run ----------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.act = nn.Tanh()
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.act(self.first(x)))
        return out


def compared(module: nn.Module, *inputs: Tensor, onnx_file: Path | None = None, **options: Any) -> Report:
    """A run without optimisation, of a file or of the older exporter's export, which is the quicker one."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    more = {"optimizations": ("off",), "export": ExportSettings("torchscript"), **options}
    return bisect(
        LoadedCase("case", module.eval(), inputs, {}),
        Options(make_tolerance(None, None, None), onnx=onnx_file, **more),
    )


def exported(module: nn.Module, *inputs: Tensor, folder: Path) -> tuple[onnx.ModelProto, Path]:
    path = folder / "model.onnx"
    export_onnx(module.eval(), inputs, {}, path, ExportSettings("torchscript"))
    return onnx.load(path), path


@pytest.fixture
def lying_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ONNX Runtime, but for Tanh, which it computes as Softsign."""

    class Lying(OrtRunner):
        def load(self, model: bytes, config: NumericConfig, weights_folder: str) -> OrtGraph:
            proto = onnx.ModelProto.FromString(model)
            for node in proto.graph.node:
                node.op_type = {"Tanh": "Softsign"}.get(node.op_type, node.op_type)
            return super().load(proto.SerializeToString(), config, weights_folder)

    monkeypatch.setitem(runners.RUNNERS, "onnxruntime", Lying)
    yield


@pytest.mark.usefixtures("lying_runtime")
def test_a_runtime_that_computes_something_else_is_named() -> None:
    """A faulty runner behind the protocol: the graph is right, and the witness gives PyTorch's value."""
    torch.manual_seed(0)
    report = compared(Small(), torch.randn(3, 8))
    (origin,) = report.verdict.origins
    assert ("act", "actual") == (origin.stage, origin.side)
    assert origin.witness is not None
    assert ("onnx-reference", "runtime", None) == (origin.witness.runner, origin.witness.says, origin.witness.reason)
    assert origin.witness.against_expected_rel_l2 is not None
    assert origin.witness.against_expected_rel_l2 < 1e-6 < 1e-2 < (origin.witness.against_actual_rel_l2 or 0)


@pytest.mark.usefixtures("lying_runtime")
def test_inspecting_judges_nothing() -> None:
    """The same alignment as a run's, whatever the numbers are; from Python as on the command line."""
    torch.manual_seed(0)
    case = LoadedCase("case", Small(), (torch.randn(3, 8),), {})
    options = Options(make_tolerance(None, None, None), export=ExportSettings("torchscript"))
    found = inspect_case(case, options)
    assert bisect(case, options).alignment == found.alignment
    assert found.enough
    assert all(not row.results for row in found.stages)


def test_a_graph_that_says_something_else_is_named(tmp_path: Path) -> None:
    """The same fault in the graph: now the witness gives ONNX Runtime's value."""
    torch.manual_seed(0)
    module, x = Small(), torch.randn(3, 8)
    model, path = exported(module, x, folder=tmp_path)
    (node,) = (node for node in model.graph.node if node.op_type == "Tanh")
    node.op_type = "Softsign"
    onnx.save(model, path)
    (origin,) = compared(module, x, onnx_file=path).verdict.origins
    assert "act" == origin.stage
    assert origin.witness is not None and "export" == origin.witness.says


class LargestLogarithm(nn.Module):
    """NaN for negative numbers, which the maximum hands on in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(torch.amax(torch.log(x), dim=1), nan=7.0)


def test_onnxruntimes_maximum_passes_over_nan() -> None:
    """A real one: ReduceMax leaves NaN out in ONNX Runtime, and hands it on in PyTorch and in ONNX's evaluator."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    if np.isnan(session.run(None, {"x": np.array([1, np.nan], np.float32)})[0]):
        pytest.skip("this onnxruntime hands NaN on")
    torch.manual_seed(0)
    report = compared(LargestLogarithm(), torch.randn(4, 6, 5))
    (origin,) = report.verdict.origins
    assert ("ReduceMax",) == origin.onnx_ops
    assert origin.witness is not None
    assert ("runtime", 0.0) == (origin.witness.says, origin.witness.against_expected_rel_l2)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


@pytest.mark.parametrize("setting", ["clip", "sequence_lens"])
def test_a_witness_that_does_not_know_a_setting_is_not_believed(setting: str, tmp_path: Path) -> None:
    """The evaluator passes over LSTM's ``clip`` and lengths, and would absolve a graph in which they are wrong."""
    torch.manual_seed(0)
    module, x = Recurrent(), torch.randn(7, 2, 4)
    model, path = exported(module, x, folder=tmp_path)
    (node,) = (node for node in model.graph.node if node.op_type == "LSTM")
    if setting == "clip":
        node.attribute.append(helper.make_attribute("clip", 0.1))
    else:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3, 4], np.int32), "lengths"))
        node.input[4] = "lengths"
    onnx.save(model, path)
    origin = compared(module, x, onnx_file=path).verdict.origins[0]
    assert origin.witness is not None
    assert origin.witness.says != "runtime"
    if origin.witness.says == "unknown":  # an evaluator that learns it may say "export"
        assert origin.witness.reason is not None and "without it both runners give one value" in origin.witness.reason


@pytest.mark.usefixtures("lying_runtime")
def test_what_would_take_too_long_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the node."""
    monkeypatch.setattr(testimony, "MOST_SECONDS", 0.0)
    torch.manual_seed(0)
    (origin,) = compared(Small(), torch.randn(3, 8)).verdict.origins
    assert origin.witness is not None
    assert ("unknown", None) == (origin.witness.says, origin.witness.against_actual_rel_l2)
    assert origin.witness.reason is not None and "/act/Tanh (Tanh)" in origin.witness.reason


@pytest.mark.usefixtures("lying_runtime")
def test_an_evaluator_that_fails_costs_only_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the witness is its reason; the verdict stands."""
    from onnx.reference.ops.op_tanh import Tanh

    def fail(*_: object, **__: object) -> None:
        raise ValueError("out of order")

    monkeypatch.setattr(Tanh, "_run", fail)
    torch.manual_seed(0)
    report = compared(Small(), torch.randn(3, 8))
    (origin,) = report.verdict.origins
    assert "diverges" == report.verdict.status
    assert origin.witness is not None and "unknown" == origin.witness.says
    assert origin.witness.reason is not None and "ValueError: out of order" in origin.witness.reason


def test_the_judged_runner_is_not_its_own_witness(tmp_path: Path) -> None:
    """Where the evaluator itself is judged nobody is asked."""
    torch.manual_seed(0)
    module, x = Small(), torch.randn(3, 8)
    model, path = exported(module, x, folder=tmp_path)
    (node,) = (node for node in model.graph.node if node.op_type == "Tanh")
    node.op_type = "Softsign"
    onnx.save(model, path)
    report = compared(module, x, onnx_file=path, runner="onnx-reference")
    assert ["onnx-reference"] == [run.name for run in report.configs]
    (origin,) = report.verdict.origins
    assert ("act", None) == (origin.stage, origin.witness)


# -- in words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("witness", "text"),
    [
        (
            Witness("onnx-reference", "1.23.2", 0.013, 8.3e-8, "export"),
            "ONNX's reference evaluator gives ONNX Runtime's value (relative L2 8.3e-08; 1.3e-02 from PyTorch's): "
            "the graph is off",
        ),
        (
            Witness("onnx-reference", "1.23.2", 0.0, np.inf, "runtime"),
            "ONNX's reference evaluator gives PyTorch's value (relative L2 0; inf from ONNX Runtime's): "
            "ONNX Runtime is off",
        ),
        (
            Witness("own", "1", 0.1, 0.2, "neither"),
            "own gives neither value: relative L2 1.0e-01 from PyTorch's, 2.0e-01 from ONNX Runtime's",
        ),
        (
            Witness("onnx-reference", "1.23.2", None, None, "unknown", "it failed at <b>"),
            "ONNX's reference evaluator gave no answer: it failed at <b>",
        ),
    ],
    ids=lambda value: value.says if isinstance(value, Witness) else "",
)
def test_both_reporters_say_it(witness: Witness, text: str) -> None:
    """The terminal and the page have the same words, and the page no markup of others."""
    report = report_samples.diverging()
    origins = tuple(replace(origin, witness=witness) for origin in report.verdict.origins)
    report = replace(report, verdict=replace(report.verdict, origins=origins))
    out = io.StringIO()
    print_report(report, file=out, width=80)
    assert f"third witness: {text}" in " ".join(out.getvalue().split())
    page = html_text(report)
    assert "<b>" not in page
    assert f"<dt>third witness</dt><dd>{text}</dd>" in html.unescape(page)
    assert report == report_from_json(json.loads(report_text(report)))
