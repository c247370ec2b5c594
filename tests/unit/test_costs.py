"""What plain runs cost: warm-up, repeats, and both sides on their own."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from bisect_tool.backends.costs import ort_cost, repeat, torch_cost
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.records import NumericConfig


class Counted(torch.nn.Module):
    """Writes into its input, and counts its runs."""

    runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x.mul_(2) + 1


def test_warm_up_is_not_counted() -> None:
    """The first run may be as slow as it likes; those after it count, five of them where they are short."""
    slow = [0.05]

    def prepare() -> object:
        def run() -> None:
            time.sleep(slow.pop() if slow else 0.006)

        return run

    times = repeat(prepare, lambda: None)  # type: ignore[arg-type]
    assert 5 == len(times) and max(times) < 0.05


def test_each_side_is_measured_by_itself(tmp_path: Path) -> None:
    """Both have a median within their range, and PyTorch's inputs are left alone."""
    module, sample = Counted().eval(), torch.ones(2, 3)
    export_onnx(module, (sample.clone(),), {}, tmp_path / "m.onnx", ExportSettings())
    module.runs = 0
    program = OnnxProgram(load_onnx(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    expected = torch_cost(module, (sample,), {}, NumericConfig("torch"))
    actual = ort_cost(program, NumericConfig("onnxruntime"), {program.graph.inputs[0]: sample.numpy()})
    assert module.runs > 5 and bool((sample == 1).all())
    for cost in (expected, actual):
        assert cost.fastest <= cost.seconds <= cost.slowest and 5 == cost.repeats
        assert cost.device_mb is None
