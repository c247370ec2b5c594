"""``--stages`` narrows what is judged; what lies outside is not taken for healthy."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import Report
from bisect_tool.tolerances import make_tolerance


def judged(tmp_path: Path, faulty: str | None, *stages: str, max_abs: float | None = None) -> Report:
    """Some stages of a chain of layers, one of whose weights is wrong in the graph."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6)).eval()
    x = torch.randn(5, 6)
    path = tmp_path / "model.onnx"
    export_onnx(module, (x,), {}, path, ExportSettings("torchscript"))
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.name == faulty:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, faulty))
    onnx.save(model, path)
    options = Options(make_tolerance(max_abs, None, None), onnx=path, stages=stages)
    return bisect(LoadedCase("chain", module, (x,), {}), options)


def test_the_whole_model_goes_by_the_name_that_is_printed(tmp_path: Path) -> None:
    """``(model)`` stands in the table for the path of the model itself, which is empty."""
    report = judged(tmp_path, "2.weight", "(model)")
    assert [str(row.ref) for row in report.stages] == ["(model)"]
    assert [str(origin.ref) for origin in report.verdict.origins] == ["(model)"]


@pytest.mark.parametrize("max_abs", [None, 1e-3])
def test_an_error_from_before_the_selection_is_called_so(tmp_path: Path, max_abs: float | None) -> None:
    """It is neither rounding that grew nor made in the first selected stage."""
    report = judged(tmp_path, "0.weight", "2", "3", max_abs=max_abs)
    assert report.verdict.status == "diverges"
    assert report.verdict.origins == ()
    assert "comes into the selection from before 2: widen --stages" in report.verdict.summary[1]


def test_an_error_inside_the_selection_is_found(tmp_path: Path) -> None:
    """The stage before the selection is healthy, and says so by its error."""
    report = judged(tmp_path, "2.weight", "2", "3")
    assert [origin.stage for origin in report.verdict.origins] == ["2"]
    assert report.verdict.origins[0].onnx_ops == ("Gemm",)
    assert report.verdict.origins[0].onnx_weights == ("2.weight", "2.bias")
    assert "into the selection" not in " ".join(report.verdict.summary)


def test_a_healthy_selection_agrees(tmp_path: Path) -> None:
    """The control: rounding comes in from outside."""
    report = judged(tmp_path, None, "2", "3")
    assert report.verdict.status == "agrees"
    first, second = report.stages
    assert first.results["ort-cpu-off"].outside_error is not None
    assert second.results["ort-cpu-off"].outside_error is None
