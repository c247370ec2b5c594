"""Attention whose heads the graph splits otherwise than PyTorch: one matrix for queries, keys and values, or three."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.records import Report

BATCH, TIME, SIZE, HEADS = 2, 16, 24, 3
X = torch.randn(BATCH, TIME, SIZE, generator=torch.Generator().manual_seed(1))


class Three(nn.Module):
    """A linear layer each for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.out = (nn.Linear(SIZE, SIZE) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x (2, 16, 24) -> (2, 16, 24)."""
        shape = (BATCH, TIME, HEADS, SIZE // HEADS)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(SIZE // HEADS), -1)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape))


class One(nn.Module):
    """The same with one layer for all three."""

    def __init__(self, three: Three) -> None:
        super().__init__()
        layers = (three.query, three.key, three.value)
        self.qkv, self.out = nn.Linear(SIZE, 3 * SIZE), three.out
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([layer.weight for layer in layers]))
            self.qkv.bias.copy_(torch.cat([layer.bias for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """x (2, 16, 24) -> (2, 16, 24)."""
        stacked = self.qkv(x).view(BATCH, TIME, 3, HEADS, SIZE // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = stacked.unbind(0)
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(SIZE // HEADS), -1)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape))


def fused(folder: Path, columns: slice = slice(0, 0), by: float = 1.0) -> Path:
    """`Three` as optimisers write it: one product, heads made of it at once, then split; some columns scaled."""
    one = One(Three())
    weight = one.qkv.weight.detach().numpy().T.copy()
    weight[:, columns] *= np.float32(by)
    arrays = {
        "w": weight,
        "b": one.qkv.bias.detach().numpy(),
        "wo": one.out.weight.detach().numpy().T,
        "bo": one.out.bias.detach().numpy(),
        "heads": np.array([BATCH, TIME, 3, HEADS, SIZE // HEADS]),
        "joined": np.array([BATCH, TIME, SIZE]),
        "scale": np.float32(1 / math.sqrt(SIZE // HEADS)),
        **{f"at{i}": np.array(i) for i in range(3)},
    }
    nodes = [
        ("MatMul", ["x", "w"], "10", {}),
        ("Add", ["10", "b"], "11", {}),
        ("Reshape", ["11", "heads"], "12", {}),
        ("Transpose", ["12"], "13", {"perm": [2, 0, 3, 1, 4]}),
        *(("Gather", ["13", f"at{i}"], f"2{i}", {"axis": 0}) for i in range(3)),
        ("Transpose", ["21"], "30", {"perm": [0, 1, 3, 2]}),
        ("MatMul", ["20", "30"], "31", {}),
        ("Mul", ["31", "scale"], "32", {}),
        ("Softmax", ["32"], "33", {"axis": -1}),
        ("MatMul", ["33", "22"], "34", {}),
        ("Transpose", ["34"], "35", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["35", "joined"], "36", {}),
        ("MatMul", ["36", "wo"], "37", {}),
        ("Add", ["37", "bo"], "y", {}),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(X.shape)) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node(op, read, [made], **more) for op, read, made, more in nodes],  # type: ignore[arg-type]
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(np.array(array, order="C"), name) for name, array in arrays.items()],
    )
    path = folder / "fused.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def judge(module: nn.Module, path: Path) -> Report:
    case = LoadedCase("attention", module.eval(), (X,), {})
    return bisect(case, Options(make_tolerance(None, None, None), onnx=path))


def test_three_layers_of_one_product(tmp_path: Path) -> None:
    """The graph has no projection with its heads side by side; each is told by value, in another order of other axes."""
    report = judge(Three(), fused(tmp_path))
    pairs = {pair.ref.stage: pair for pair in report.alignment.pairs}
    assert (report.verdict.status, report.alignment.coverage) == ("agrees", 1)
    assert {"query": "20", "value": "22"} == {name: pairs[name].onnx_value for name in ("query", "value")}
    assert all(pairs[name].evidence == ("value", "permuted", "axes split") for name in ("query", "value"))
    assert pairs["key"].onnx_value in ("21", "30")
    assert all(row.results["ort-cpu-off"].judgement == "pass" for row in report.stages if row.onnx_value)


@pytest.mark.parametrize(("columns", "stage"), [(slice(0, 24), "query"), (slice(48, 72), "value")])
def test_a_small_fault_in_a_split_layer_is_found_there(tmp_path: Path, columns: slice, stage: str) -> None:
    """The values still agree to 1e-3: compared, handed over and looked into in the graph's own layout."""
    report = judge(Three(), fused(tmp_path, columns, 1.0005))
    (origin,) = report.verdict.origins
    assert (origin.ref.stage, origin.local_rel_l2) == (stage, pytest.approx(5e-4, rel=0.2))
    assert "MatMul_0" in origin.onnx_nodes


def test_a_gross_fault_in_a_split_layer_is_found_behind_it(tmp_path: Path) -> None:
    """Its own value is nowhere then; what comes next is told by structure."""
    report = judge(Three(), fused(tmp_path, slice(48, 72), 1.5))
    (origin,) = report.verdict.origins
    assert origin.ref.stage == "/bmm#1"
    assert "MatMul_0" in origin.onnx_nodes


def test_one_layer_of_three_products(tmp_path: Path) -> None:
    """No value of the graph is the layer's; the report says which three are."""
    path = tmp_path / "three.onnx"
    torch.onnx.export(Three().eval(), (X,), str(path), dynamo=False)
    report = judge(One(Three()), path)
    assert report.verdict.status == "agrees"
    (left,) = [item for item in report.alignment.unaligned if item.ref.stage == "qkv"]
    assert not left.in_graph
    assert left.reason.startswith("the graph has it in parts, along axis 2: ")
    assert 3 == len(left.reason.partition(": ")[2].split(", "))
