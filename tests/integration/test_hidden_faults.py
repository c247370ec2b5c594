"""Faults that a norm over everything does not see: beside activations a thousand times larger than the others."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance


class Outlier(nn.Module):
    """One channel is huge, as in residual streams of language models, and what follows scales it down."""

    def __init__(self, size: float):
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.last = nn.Linear(64, 8)
        self.first.bias.data[3] = size
        self.register_buffer("scale", self.first.bias.detach().abs().clamp_min(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) / self.scale))  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [1e3, 1e4, 1e6])
@pytest.mark.parametrize("factor", [1.0, 1.003, 1.05])
def test_a_fault_beside_a_huge_channel(tmp_path: Path, size: float, factor: float) -> None:
    """Another channel's weight is wrong: found where it is; and nothing is where none is."""
    torch.manual_seed(0)
    module, sample = Outlier(size).eval(), (torch.randn(8, 32),)
    file = tmp_path / "model.onnx"
    torch.onnx.export(module, sample, file, dynamo=False)
    graph = onnx.load(file)
    (weight,) = [w for w in graph.graph.initializer if w.name == "first.weight"]
    array = numpy_helper.to_array(weight).copy()
    array[7] *= np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(graph, file)
    verdict = bisect(
        LoadedCase("outlier", module, sample, {}), Options(make_tolerance(None, None, None), onnx=file, threads=1)
    ).verdict
    if factor == 1:
        assert ("agrees", ()) == (verdict.status, verdict.origins)
    else:
        assert "diverges" == verdict.status
        assert [("first", "actual")] == [(origin.stage, origin.side) for origin in verdict.origins]


class Hiding(nn.Module):
    """Attention's weights with the first rows masked throughout, as those of padding on the left are."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.weights = nn.Linear(16, 16), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ x.transpose(-1, -2)
        hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
        hidden[:3] = True
        weights: Tensor = self.weights(scores.masked_fill(hidden, torch.finfo(torch.float32).min))
        return weights @ x


@pytest.mark.filterwarnings("ignore")
def test_rows_that_are_masked_throughout_hide_no_fault_in_others(tmp_path: Path) -> None:
    """Rounding that is made up leaves their equal scores equal: one of them would take the whole row."""
    torch.manual_seed(0)
    model, sample = Hiding().eval(), torch.randn(2, 9, 16)
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (sample,), str(file), dynamo=False)
    graph = onnx.load(file)
    softmax = next(node for node in graph.graph.node if node.op_type == "Softmax")
    place = list(graph.graph.node).index(softmax)
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(0.9), "factor"))
    graph.graph.node.insert(place, onnx.helper.make_node("Mul", [softmax.input[0], "factor"], ["less"], name="less"))
    softmax.input[0] = "less"
    onnx.save(graph, file)
    report = bisect(LoadedCase("hiding", model, (sample,), {}), Options(make_tolerance(None, None, None), onnx=file))
    assert ["weights"] == [origin.ref.stage for origin in report.verdict.origins]
    assert ["BD104"] == [diagnosis.code for diagnosis in report.verdict.diagnoses]


class Buckets(nn.Module):
    """T5's relative positions: logarithms that are whole numbers, or nearly so, and a cast behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bias = nn.Embedding(16, 4)
        self.query, self.key = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 16]`` to ``[N, 4, T, T]``."""
        steps = torch.arange(x.shape[1])
        apart = (steps[None] - steps[:, None]).abs()
        far = 4 + (torch.log(apart.float() / 4) / math.log(8) * 12).long().clamp(max=11)
        bias = self.bias(torch.where(apart < 4, apart, far)).permute(2, 0, 1)
        query, key = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.query, self.key))
        return torch.softmax(query @ key.transpose(2, 3) + bias, -1)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("factor", [1.0, 0.0, 1.01])
def test_a_step_that_rounding_may_cross_hides_no_fault(tmp_path: Path, dynamo: bool, factor: float) -> None:
    """The table may be read elsewhere at some distances; that it is another table, at all of them, is a fault."""
    module, sample = Buckets().eval(), (torch.randn(2, 33, 16, generator=torch.Generator().manual_seed(1)),)
    file = tmp_path / "model.onnx"
    torch.onnx.export(module, sample, file, dynamo=dynamo)
    graph = onnx.load(file)
    scores = next(node for node in graph.graph.node if node.op_type == "Softmax").input[0]
    total = next(node for node in graph.graph.node if scores in node.output)
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    at = list(graph.graph.node).index(total)
    graph.graph.node.insert(at, onnx.helper.make_node("Mul", [total.input[1], "factor"], ["scaled"], "scaling"))
    if factor != 1:
        total.input[1] = "scaled"
    onnx.save(graph, file)
    verdict = bisect(
        LoadedCase("buckets", module, sample, {}), Options(make_tolerance(None, None, None), onnx=file, threads=1)
    ).verdict
    if factor == 1:
        assert ("agrees", ()) == (verdict.status, verdict.origins)
    else:
        assert [("/add#0", "actual")] == [(origin.stage.rpartition("+")[2], origin.side) for origin in verdict.origins]
