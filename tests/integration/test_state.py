"""Models that keep a state in a buffer: each run begins as the first one did."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.backends.exporting import ExportSettings, export_onnx


class Cached(nn.Module):
    """What a layer has made so far is added to what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.register_buffer("cache", torch.zeros(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[:4] += self.layer(x)[:4]
        found: Tensor = self.head(x + self.cache)
        return found


@pytest.mark.parametrize("budget", [2 << 30, 1 << 16])
def test_a_fault_is_not_taken_for_randomness(tmp_path: Path, budget: int) -> None:
    """The second run, which tells whether a model repeats itself, and the comparison of weights see the first state."""
    torch.manual_seed(0)
    model, args = Cached().eval(), (torch.randn(8, 16),)
    export_onnx(model, args, {}, tmp_path / "m.onnx", ExportSettings("dynamo"))
    graph = onnx.load(tmp_path / "m.onnx")
    weight = next(t for t in graph.graph.initializer if t.name == "layer.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * [[1.5], *[[1.0]] * 15], weight.name))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype("float32"), weight.name))
    onnx.save(graph, tmp_path / "faulty.onnx")
    options = Options(make_tolerance(None, None, None), onnx=tmp_path / "faulty.onnx", memory_budget=budget)
    report = bisect(LoadedCase("cached", model, args, {}), options)
    assert "diverges" == report.verdict.status
    assert ["layer"] == [origin.ref.stage for origin in report.verdict.origins]
    assert ["BD202"] == [each.code for each in report.verdict.diagnoses]
    assert not model.cache.any()
