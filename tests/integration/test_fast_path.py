"""Attention's fast path: one operation in PyTorch, dozens of nodes in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, Report, bisect, make_tolerance

MOST_NAMED = 4


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        found, _ = self.attend(x, x, x, key_padding_mask=~keep)
        return self.out(found)  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first, activation="gelu")
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.out(self.layer(x, src_key_padding_mask=~keep))  # type: ignore[no-any-return]


MODELS = {"attention": Attention, "norm first": lambda: Layer(True), "norm last": lambda: Layer(False)}


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", MODELS)
def test_faults_inside_the_fast_path(tmp_path: Path, name: str, exporter: str) -> None:
    """Each weight in turn is 1 % off: a few nodes are named, the planted one among them, and no module behind it."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    sample = (torch.randn(2, 6, 16), torch.tensor([[True] * 6, [True] * 4 + [False] * 2]))
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, sample, file, dynamo=exporter == "dynamo", external_data=False)
    healthy = onnx.load(file)
    assert "agrees" == _report(model, sample, file).verdict.status
    weights = {w.name: w for w in healthy.graph.initializer if len(w.dims) == 2}
    products = [n for n in healthy.graph.node if n.op_type in ("MatMul", "Gemm") and set(n.input) & set(weights)]
    assert len(products) >= 3
    for product in products[:-1]:
        (used,) = set(product.input) & set(weights)
        faulty = onnx.ModelProto()
        faulty.CopyFrom(healthy)
        (weight,) = [w for w in faulty.graph.initializer if w.name == used]
        scaled = numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(numpy_helper.from_array(scaled, used))
        onnx.save(faulty, tmp_path / "faulty.onnx")
        verdict = _report(model, sample, tmp_path / "faulty.onnx").verdict
        assert "diverges" == verdict.status
        (origin,) = verdict.origins
        assert "out" != origin.stage
        assert product.name in origin.onnx_nodes
        assert len(origin.onnx_nodes) <= MOST_NAMED, (product.name, origin.onnx_nodes)


def _report(model: nn.Module, sample: tuple[Tensor, ...], file: Path) -> Report:
    case = LoadedCase("fast", model, sample, {})
    return bisect(case, Options(make_tolerance(None, None, None), onnx=file, optimizations=("off",), threads=1))
