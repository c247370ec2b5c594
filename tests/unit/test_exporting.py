"""Exporting: what each of the settings leaves in the graph, with either exporter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnxscript import rewriter
from torch import nn

from bisect_tool.backends.case import LoadedCase, export_case
from bisect_tool.backends.exporting import Exporter, ExportSettings, export_onnx
from bisect_tool.backends.ort_options import op_counts
from bisect_tool.errors import BisectError


class Net(nn.Module):
    """A convolution with its BatchNorm, and a shape that is computed from constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 4 * 4, 2)
        # Equal ones would be shared, through nodes of their own.
        for tensor in (self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var):
            assert tensor is not None
            nn.init.uniform_(tensor, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        found: torch.Tensor = self.fc(x.view(x.shape[0], -1))
        return found


def counts(path: Path, exporter: Exporter, *, batchnorm: bool, constants: bool) -> dict[str, int]:
    """Nodes of an exported graph by type."""
    settings = ExportSettings(exporter, constant_folding=constants, batchnorm_folding=batchnorm)
    export_onnx(Net().eval(), (torch.randn(2, 3, 6, 6),), {}, path, settings)
    return op_counts(path)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_batchnorm_is_folded_apart_from_constants(tmp_path: Path, exporter: Exporter) -> None:
    """One node more where BatchNorm is not folded, and nothing else; without constant folding it never is."""
    rules = rewriter._DEFAULT_REWRITE_RULES
    folded, apart = (counts(tmp_path / "m.onnx", exporter, batchnorm=b, constants=True) for b in (True, False))
    assert "BatchNormalization" not in folded
    assert {**folded, "BatchNormalization": 1} == apart
    for batchnorm in (True, False):
        plain = counts(tmp_path / "m.onnx", exporter, batchnorm=batchnorm, constants=False)
        assert 1 == plain["BatchNormalization"] and sum(plain.values()) > sum(apart.values())
    assert rules is rewriter._DEFAULT_REWRITE_RULES


def test_optimiser_without_a_list_of_rules_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be left out is not said to be; the other exporter can do it."""
    monkeypatch.delattr(rewriter, "_DEFAULT_REWRITE_RULES")
    with pytest.raises(BisectError, match="batchnorm_folding = false: onnxscript .* does not let") as found:
        counts(tmp_path / "m.onnx", "dynamo", batchnorm=False, constants=True)
    assert "torchscript" in str(found.value.hint)


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + 1


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_the_sample_is_what_it_was(tmp_path: Path, exporter: Exporter) -> None:
    """An exporter runs the model, and that may write into its inputs: what is judged is the user's sample."""
    sample = torch.ones(2, 3)
    case = LoadedCase("writes", Writes().eval(), (sample,), {})
    export_case(case, tmp_path / "m.onnx", ExportSettings(exporter))
    assert torch.equal(torch.ones(2, 3), sample)
