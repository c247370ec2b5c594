"""Models whose classes are gone: archives and exported programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

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
