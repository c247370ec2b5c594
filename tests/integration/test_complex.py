"""Complex numbers: a graph has them as pairs, in inputs, in between and in outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, Report, bisect, bisect_parts, make_tolerance
from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.torch_runner import TorchRun, complex_like, from_numpy, to_numpy

BINS = 9


class Filter(nn.Module):
    """Takes a complex filter, and returns a complex spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(16, 16)

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        """(B, 16) and (9,) complex -> (B, 9) complex."""
        return torch.fft.rfft(self.inp(x)) * by


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = Filter()
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        """(B, 16) and (9,) complex -> (B, 4)."""
        return self.out(torch.fft.irfft(self.filter(x, by), n=16))  # type: ignore[no-any-return]


def _graph(model: Filter, wrong: float = 1.0) -> onnx.ModelProto:
    """The filter as an exporter writes it; ``wrong`` scales the imaginary part of the product."""
    held = {
        "w": model.inp.weight.detach().numpy(),
        "b": model.inp.bias.detach().numpy(),
        "last": np.array([-1]),
        "half": np.array([1, 1]),
        "axis": np.array(1),
        "wrong": np.array(wrong, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "inp", transB=1),
        helper.make_node("Unsqueeze", ["h", "last"], ["real"], "real"),
        helper.make_node("DFT", ["real", "", "axis"], ["spectrum"], "dft", onesided=1),
        helper.make_node("Split", ["spectrum", "half"], ["a", "c"], "split", axis=-1),
        helper.make_node("Split", ["by", "half"], ["e", "f"], "split_by", axis=-1),
        *(helper.make_node("Mul", [x, y], [x + y], x + y) for x, y in ("ae", "cf", "af", "ce")),
        helper.make_node("Sub", ["ae", "cf"], ["re"], "re"),
        helper.make_node("Add", ["af", "ce"], ["sum"], "sum"),
        helper.make_node("Mul", ["sum", "wrong"], ["im"], "im"),
        helper.make_node("Concat", ["re", "im"], ["y"], "pairs", axis=-1),
    ]
    shapes = {"x": [3, 16], "by": [BINS, 2], "y": [3, BINS, 2]}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    weights = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "filter", [infos["x"], infos["by"]], [infos["y"]], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def _sample() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 16), torch.randn(BINS, dtype=torch.complex64)


def _report(model: Filter, file: Path) -> Report:
    return bisect(LoadedCase("filter", model, _sample(), {}), Options(make_tolerance(None, None, None), onnx=file))


@pytest.mark.parametrize(("wrong", "status", "origins"), [(1.0, "agrees", []), (1.01, "diverges", ["/mul#0"])])
def test_complex_values_are_stages(tmp_path: Path, wrong: float, status: str, origins: list[str]) -> None:
    """A complex input is bound, each complex value has its pair, and a fault between two of them is found there."""
    torch.manual_seed(0)
    model = Filter().eval()
    onnx.save(_graph(model, wrong), tmp_path / "filter.onnx")
    report = _report(model, tmp_path / "filter.onnx")
    assert (status, origins) == (report.verdict.status, [origin.stage for origin in report.verdict.origins])
    pairs = {str(pair.ref): (pair.onnx_value, pair.permutation) for pair in report.alignment.pairs}
    assert {"inp", "/_fft_r2c#0", "/mul#0"} <= set(pairs)
    assert [("spectrum", None), ("y", None)] == [pairs["/_fft_r2c#0"], pairs["/mul#0"]]
    (row,) = (row for row in report.stages if row.stage == "/mul#0")
    assert ("complex64", (3, BINS, 2)) == (row.dtype, row.shape)
    local = row.results["ort-cpu-off"].local
    assert local is not None
    assert 3 * BINS * 2 == local.count
    assert 0 < local.rel_l2 < 0.01 if origins else local.rel_l2 < 1e-6


def test_a_part_may_return_complex_numbers(tmp_path: Path) -> None:
    """What comes behind it in PyTorch gets them as the numbers that they are."""
    torch.manual_seed(0)
    model = Whole().eval()
    onnx.save(_graph(model.filter), tmp_path / "filter.onnx")
    case = LoadedCase("whole", model, _sample(), {})
    report = bisect_parts(case, {"filter": tmp_path / "filter.onnx"}, Options(make_tolerance(None, None, None)))
    assert "agrees" == report.verdict.status
    assert not [note for note in report.notes if "fails" in note]


def test_what_is_spilled_comes_back_complex() -> None:
    """From the temporary file too, a replay gets what PyTorch had."""
    value = torch.randn(300, 200, dtype=torch.complex64)
    store = ActivationStore(1, BufferPool())
    run = TorchRun(nn.Identity(), (value,), {}, lambda *_: None)
    store.attach(run.recorder)
    store.keep(0, value)
    store.settle()
    try:
        assert store.spilled_bytes
        assert torch.equal(value, store.tensor(0))
        assert (300, 200, 2) == store.fetch(0).shape
    finally:
        store.close()


def test_pairs_become_complex_only_where_such_are_wanted() -> None:
    """By shape and by what PyTorch has in that place."""
    value = torch.randn(4, 3, dtype=torch.complex64)
    pairs = from_numpy(to_numpy(value.conj()))
    assert torch.equal(value.conj(), complex_like(pairs, value))
    assert pairs is complex_like(pairs, torch.randn(4, 3))
    assert pairs is complex_like(pairs, value[:2])
