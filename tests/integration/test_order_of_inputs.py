"""Orders of inputs are no cause where the outputs hardly tell any inputs apart."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance


class Dull(nn.Module):
    """Its output is nearly the same for every input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.Softplus(1.0, 0.1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 + 1e-5 * self.head(self.act(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_another_order_must_be_clearly_better(tmp_path: Path) -> None:
    """An error of 1e-6 in the outputs passes under any order of channels; a dropped threshold is the cause."""
    x, file = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), tmp_path / "model.onnx"
    dull = Dull().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(dull, (x,), str(file), dynamo=False)
    report = bisect(LoadedCase("dull", dull, (x,), {}), Options(make_tolerance(None, None, None), onnx=file))
    assert "diverges" == report.verdict.status
    assert "BD404" not in [told.code for told in report.verdict.diagnoses]
