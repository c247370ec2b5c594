"""One fault in a graph, and its cause by name, with the remedy tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.records import Report


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.act = torch.nn.LeakyReLU(0.02)
        self.pool = torch.nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.fc = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = self.act(self.norm(y)) + y
        y = self.pool(y).mean((2, 3))
        return torch.cat([torch.softmax(self.fc(y), -1) * 0.5, y], 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, torch.Tensor, Path]:
    model, sample = Net().eval(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    file = tmp_path_factory.mktemp("causes") / "model.onnx"
    with pytest.warns(DeprecationWarning):
        torch.onnx.export(model, (sample,), str(file), dynamo=False)
    return model, sample, file


def node_of(model: ModelProto, op: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def attribute(op: str, name: str, value: object) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        node = node_of(model, op)
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def other_operator(op: str, other: str) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        node = node_of(model, op)
        node.op_type = other
        del node.attribute[:]

    return edit


def weight(model: ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == "fc.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[3] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def turned_weight(model: ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == "fc.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), tensor.name))


def half(model: ModelProto) -> None:
    node = node_of(model, "Conv")
    place = list(model.graph.node).index(node)
    name, node.output[0] = node.output[0], "narrow_before"
    model.graph.node.insert(place + 1, helper.make_node("Cast", ["narrow_before"], ["narrow"], to=10, name="down"))
    model.graph.node.insert(place + 2, helper.make_node("Cast", ["narrow"], [name], to=1, name="up"))


def dropped_sum(model: ModelProto) -> None:
    node = [node for node in model.graph.node if node.op_type == "Add"][-1]
    node.op_type = "Identity"
    del node.input[1:]


def exchanged(model: ModelProto) -> None:
    node = node_of(model, "Concat")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def constant(model: ModelProto) -> None:
    node = [node for node in model.graph.node if node.op_type == "Mul"][-1]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.51), "other_half"))
    node.input[1] = "other_half"


@pytest.mark.parametrize(
    "edit, code, stage, text",
    [
        (attribute("LeakyRelu", "alpha", 0.03), "BD101", "act", "alpha is 0.03"),
        (attribute("AveragePool", "count_include_pad", 1), "BD101", "pool", "count_include_pad is 1"),
        (attribute("Softmax", "axis", 0), "BD101", "/_softmax#0", "axis is 0"),
        (other_operator("LeakyRelu", "Relu"), "BD102", "act", "where PyTorch computes leaky_relu"),
        (dropped_sum, "BD103", "/add#0", "PyTorch's add is missing"),
        (exchanged, "BD105", "/cat#0", "wrong order"),
        (constant, "BD106", "/mul#0", "0.5"),
        (half, "BD107", "conv", "narrower type (float16)"),
        (weight, "BD202", "fc", "all of it at index 3 of axis 0"),
        (turned_weight, "BD203", "fc", "fc.weight in another order"),
    ],
)
def test_cause_is_named_and_its_remedy_tried(
    exported: tuple[Net, torch.Tensor, Path],
    tmp_path: Path,
    edit: Callable[[ModelProto], None],
    code: str,
    stage: str,
    text: str,
) -> None:
    report = report_of(exported, tmp_path, edit)
    assert "diverges" == report.verdict.status
    (diagnosis, *others) = [each for each in report.verdict.diagnoses if each.origin is not None]
    assert not others
    assert (code, stage) == (diagnosis.code, diagnosis.origin.stage if diagnosis.origin else None)
    assert text in diagnosis.evidence[0]
    assert diagnosis.remedy_verified is True
    assert diagnosis.error_after is not None and diagnosis.error_before is not None
    assert diagnosis.error_after < 2e-6 < 1e-4 < diagnosis.error_before
    ends = [entry for entry in report.verdict.ledger if entry.conclusion == "cause"]
    assert [code] == [entry.code for entry in ends]


def passed_by(model: ModelProto) -> None:
    """The sum is there no more, and what read it reads one of its operands."""
    node = [node for node in model.graph.node if node.op_type == "Add"][-1]
    for other in model.graph.node:
        other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]
    model.graph.node.remove(node)


def without_bias(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if "fc.weight" in node.input)
    del node.input[2:]


@pytest.mark.parametrize(
    "edit, stage, text",
    [
        (passed_by, "pool", "PyTorch's add (alpha 1) is missing in front of"),
        (without_bias, "fc", "the bias that PyTorch's"),
    ],
)
def test_what_is_not_there_at_all_is_put_in(
    exported: tuple[Net, torch.Tensor, Path],
    tmp_path: Path,
    edit: Callable[[ModelProto], None],
    stage: str,
    text: str,
) -> None:
    report = report_of(exported, tmp_path, edit)
    diagnosis = next(each for each in report.verdict.diagnoses if each.origin is not None)
    assert ("BD103", stage, True) == (
        diagnosis.code,
        diagnosis.origin and diagnosis.origin.stage,
        diagnosis.remedy_verified,
    )
    assert text in diagnosis.evidence[0]


def test_two_faults_in_one_stage_are_unknown(exported: tuple[Net, torch.Tensor, Path], tmp_path: Path) -> None:
    """Nothing alone mends it, and nothing is claimed."""

    def both(model: ModelProto) -> None:
        weight(model)
        attribute("Gemm", "alpha", 1.3)(model)

    report = report_of(exported, tmp_path, both)
    (diagnosis,) = [each for each in report.verdict.diagnoses if each.origin is not None]
    assert ("BD100", None) == (diagnosis.code, diagnosis.remedy_verified)
    assert "none leaves only rounding" in diagnosis.evidence[0]
    assert "nearest: " in diagnosis.evidence[1]
    assert {"ruled out", "contributes"} <= {entry.conclusion for entry in report.verdict.ledger}


def report_of(exported: tuple[Net, torch.Tensor, Path], folder: Path, edit: Callable[[ModelProto], None]) -> Report:
    model, sample, file = exported
    graph = onnx.load(file)
    edit(graph)
    onnx.save(graph, folder / "faulty.onnx")
    case = LoadedCase("net", model, (sample,), {})
    return bisect(case, Options(make_tolerance(None, None, None), onnx=folder / "faulty.onnx"))
