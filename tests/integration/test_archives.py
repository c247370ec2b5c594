"""Models whose classes are gone: archives and exported programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool import bisect


@pytest.mark.parametrize("form", ["script", "trace", "program"])
def test_a_folded_norm_of_an_archive_is_known_by_its_tensors(form: str, tmp_path: Path) -> None:
    """Its class is another one there; every folded weight was called another checkpoint's (BD201)."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 9, 9)
    torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=False)
    made: Any
    if form == "program":
        made = torch.export.unflatten(torch.export.export(module, (x,)))
    else:
        made = torch.jit.script(module) if form == "script" else torch.jit.trace(module, x)
        torch.jit.save(made, tmp_path / "model.ts")
        made = torch.jit.load(tmp_path / "model.ts")
    report = bisect(made, (x,), tmp_path / "model.onnx")
    assert report.verdict.status == "agrees"
    assert [finding.text for finding in report.preflight if finding.severity != "fact"] == []


def test_behind_a_fault_stages_of_an_archive_are_told_by_structure(tmp_path: Path) -> None:
    """Its operations bear no module's name, whatever the file says; they were said to have no value in the graph."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Sigmoid()]
    module, x = nn.Sequential(*layers).eval(), torch.randn(1, 3, 12, 12)
    torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    model = onnx.load(tmp_path / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "2.weight")
    numbers = numpy_helper.to_array(weight).copy()
    numbers[3] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    onnx.save(model, tmp_path / "faulty.onnx")
    torch.jit.save(torch.jit.trace(module, x), tmp_path / "model.ts")
    archive = torch.jit.load(tmp_path / "model.ts")
    report = bisect(archive, (x,), tmp_path / "faulty.onnx")
    # Structure tells the activation behind the convolution; both are one origin's nodes.
    (origin,) = report.verdict.origins
    assert origin.ref.stage in ("/_convolution#1", "/silu#1")
    assert "2.weight" in origin.onnx_weights
    assert [cause.code for cause in report.verdict.diagnoses] == ["BD202"]
    assert not any(row.stage.startswith(("/_convolution#2", "/sigmoid")) for row in report.stages if not row.results)


class Owned(nn.Module):
    """Keeps statistics beside a weight of another shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 16)), nn.Parameter(torch.randn(4))
        self.register_buffer("running_mean", torch.randn(4))
        self.register_buffer("running_var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 16]`` to ``[N, 4]``."""
        made = nn.functional.linear(x, self.weight, self.bias)
        return nn.functional.batch_norm(made, self.running_mean, self.running_var)  # type: ignore[arg-type]


def test_statistics_beside_another_weight_are_no_folded_norm(tmp_path: Path) -> None:
    module, x = nn.Sequential(Owned(), nn.ReLU()).eval(), torch.randn(3, 16)
    torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=False)
    assert bisect(module, (x,), tmp_path / "model.onnx").verdict.status == "agrees"


class Unused(nn.Module):
    """Has a norm that it never calls, as heads of training are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.aux = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8, eps=1), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, T]`` to ``[N, 8, T - 2]``."""
        return torch.relu(self.norm(self.conv(x)))


@pytest.mark.parametrize("is_traced", [False, True])
def test_norms_that_are_never_called_and_an_eps_that_is_whole(is_traced: bool, tmp_path: Path) -> None:
    module, x = Unused().eval(), torch.randn(2, 3, 12)
    assert module.norm.running_mean is not None
    module.norm.running_mean.normal_()
    torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=False)
    report = bisect(torch.jit.trace(module, x) if is_traced else module, (x,), tmp_path / "model.onnx")
    assert report.verdict.status == "agrees"
    assert [finding.text for finding in report.preflight if finding.severity != "fact"] == []
