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


class Shared(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc = torch.nn.Linear(6, 6)
        self.norm = torch.nn.LayerNorm(6)
        torch.nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(torch.sigmoid(x)) + self.fc(x * 2))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, torch.Tensor, Path]:
    model, sample = Shared().eval(), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    file = tmp_path_factory.mktemp("shared") / "model.onnx"
    with pytest.warns(DeprecationWarning):
        torch.onnx.export(model, (sample,), str(file), dynamo=False)
    return model, sample, file


def edited_report(
    shared: tuple[torch.nn.Module, torch.Tensor, Path],
    tmp_path: Path,
    edit: Callable[[ModelProto], None],
    *levels: str,
) -> Report:
    model, sample, file = shared
    graph = onnx.load(file)
    edit(graph)
    onnx.save(graph, tmp_path / "edited.onnx")
    options = Options(make_tolerance(None, None, None), onnx=tmp_path / "edited.onnx", optimizations=levels)  # type: ignore[arg-type]
    return bisect(LoadedCase("shared", model, (sample,), {}), options)


def other_bias(model: ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == "fc.bias")
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) + np.arange(6, dtype=np.float32) / 10, tensor.name)
    )


def test_a_weight_that_is_read_twice_is_told_once(
    shared: tuple[torch.nn.Module, torch.Tensor, Path], tmp_path: Path
) -> None:
    verdict = edited_report(shared, tmp_path, other_bias, "off").verdict
    assert ["fc", "fc@1"] == [str(origin.ref) for origin in verdict.origins]
    (found,) = verdict.diagnoses
    assert "BD202" == found.code
    assert "it shows in fc@1 too" in found.evidence


def test_weights_of_one_node_that_are_exchanged(
    shared: tuple[torch.nn.Module, torch.Tensor, Path], tmp_path: Path
) -> None:
    def exchange(model: ModelProto) -> None:
        norm = node_of(model, "LayerNormalization")
        norm.input[1], norm.input[2] = norm.input[2], norm.input[1]

    (found,) = edited_report(shared, tmp_path, exchange, "off").verdict.diagnoses
    assert ("BD105", True) == (found.code, found.remedy_verified)
    assert "reads norm.bias and norm.weight in each other's place" in found.evidence[0]


def test_where_only_an_optimised_graph_ran_the_other_one_is_asked_too(
    shared: tuple[torch.nn.Module, torch.Tensor, Path], tmp_path: Path
) -> None:
    (found,) = edited_report(shared, tmp_path, other_bias, "all").verdict.diagnoses
    assert "BD100" == found.code
    assert "beside ort-cpu-all, the unoptimised graph's outputs are wrong too" in found.evidence


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.rnn = torch.nn.LSTM(4, 4, 2, bidirectional=True)
        self.fc = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0])


def test_all_layers_of_an_lstm_from_another_checkpoint(tmp_path: Path) -> None:
    """No single weight mends the stage that both layers are."""
    model, sample, file = Layers().eval(), torch.randn(3, 2, 4), tmp_path / "model.onnx"
    with pytest.warns((DeprecationWarning, UserWarning)):
        torch.onnx.export(model, (sample,), str(file), dynamo=False)

    def stale(graph: ModelProto) -> None:
        read = {name for node in graph.graph.node if node.op_type == "LSTM" for name in node.input[1:3]}
        for tensor in graph.graph.initializer:
            if tensor.name in read:
                array = numpy_helper.to_array(tensor)
                noise = np.random.default_rng(len(tensor.name)).standard_normal(array.shape) * 0.05
                tensor.CopyFrom(numpy_helper.from_array((array + noise).astype(np.float32), tensor.name))

    (found,) = edited_report((model, sample, file), tmp_path, stale, "off").verdict.diagnoses
    assert ("BD202", True) == (found.code, found.remedy_verified)
    assert "weights of the stage's nodes are not PyTorch's" in found.evidence[0]
