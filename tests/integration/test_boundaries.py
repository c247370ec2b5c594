"""Faults between stages: in views that a container hands out, before a choice, in steps that resemble each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import EXPORTERS, exported, judged
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bisect_tool import bisect
from bisect_tool.backends.exporting import Exporter


class Causal(nn.Module):
    """Its output is a view of its child's: no stage of its own."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, T]`` to ``[N, outputs, T]``."""
        return self.conv(x)[..., :-2]  # type: ignore[no-any-return]


class Temporal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = Causal(4, 6), Causal(6, 6), nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 4, T]`` to ``[N, 2, T]``."""
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))  # type: ignore[no-any-return]


def shift_first_slice(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Slice")
    constants = {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    constants.update((tensor.name, tensor) for tensor in model.graph.initializer)
    for place in (1, 2):
        value = numpy_helper.to_array(constants[node.input[place]])
        shifted = value + 1 if abs(int(value.reshape(-1)[0])) < 1000 else value
        model.graph.initializer.append(numpy_helper.from_array(shifted, f"planted_{place}"))
        node.input[place] = f"planted_{place}"


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_wrong_view_at_the_end_of_a_container(exporter: Exporter, tmp_path: Path) -> None:
    """What lies between the last stage of a container and its own output is the next stage's."""
    module, inputs = Temporal().eval(), (torch.randn(2, 4, 12),)
    model = exported(module, inputs, exporter, tmp_path)
    assert judged(module, inputs, model, tmp_path).verdict.status == "agrees"
    shift_first_slice(model)
    verdict = judged(module, inputs, model, tmp_path).verdict
    assert verdict.status == "diverges"
    (origin,) = verdict.origins
    assert origin.stage == "/relu#0"
    assert [name for name in origin.onnx_nodes if "lice" in name] == [*origin.onnx_nodes]
    (cause,) = verdict.diagnoses
    assert cause.code == "BD106" and cause.remedy_verified


def test_what_comes_from_outside_a_selection_is_not_called_rounding(tmp_path: Path) -> None:
    """BD503 says that nothing is wrong with the file: not where nobody has looked."""
    torch.manual_seed(0)
    module, inputs = (
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 4)).eval(),
        (torch.randn(3, 8),),
    )
    model = exported(module, inputs, "torchscript", tmp_path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "0.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.2), weight.name))
    verdict = judged(module, inputs, model, tmp_path, stages=("2", "3")).verdict
    assert verdict.status == "diverges" and not verdict.origins
    assert "BD503" not in {cause.code for cause in verdict.diagnoses}
    assert any("comes into the selection" in line for line in verdict.summary)


class Chosen(nn.Module):
    """A choice hides by how much what it was made from is off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 5, 1)
        self.weight, self.bias = nn.Parameter(torch.rand(5) + 0.5), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to classes ``[N, H, W]``."""
        y = self.conv(x).permute(0, 2, 3, 1)
        return (y * self.weight + self.bias).argmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_operation_on_a_view_before_a_choice(exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = Chosen().eval(), (torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)),)
    model = exported(module, inputs, exporter, tmp_path)
    healthy = judged(module, inputs, model, tmp_path)
    assert healthy.verdict.status == "agrees"
    assert not [row.stage for row in healthy.stages if row.onnx_value is None]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    array = numpy_helper.to_array(weight) * np.float32([1, 1, 1, 1, 1.03])
    weight.CopyFrom(numpy_helper.from_array(array, "weight"))
    report = judged(module, inputs, model, tmp_path)
    # The choice is the same: the final output agrees, and the stage before it does not.
    assert all(out.judgement == "pass" for run in report.configs for out in run.outputs)
    assert report.verdict.status == "diverges"
    assert [origin.stage for origin in report.verdict.origins] == ["/mul#0"]


class Attending(nn.Module):
    """Every step looks at the same memory: the contexts resemble each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.encoder = nn.Embedding(30, 12), nn.LSTM(12, 12, 2, batch_first=True, bidirectional=True)
        self.bridge, self.cell = nn.Linear(24, 12), nn.LSTMCell(24, 12)
        self.query, self.out = nn.Linear(12, 12, bias=False), nn.Linear(24, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Tokens ``[N, S]`` and ``[N, T]`` to scores ``[N, T, 30]``."""
        memory, (h, c) = self.encoder(self.embedding(source))
        memory, h, c = self.bridge(memory), torch.tanh(h[-1]), c[-1]
        context, found = torch.zeros_like(h), []
        for step in range(target.shape[1]):
            h, c = self.cell(torch.cat([self.embedding(target[:, step]), context], -1), (h, c))
            weights = torch.bmm(memory, self.query(h).unsqueeze(-1)).squeeze(-1).softmax(-1)
            context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
            found.append(self.out(torch.cat([h, context], -1)))
        return torch.stack(found, 1)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_steps_that_resemble_each_other_are_not_exchanged(seed: int, tmp_path: Path) -> None:
    """A fault in one step has one origin: no value of an earlier step stands for one behind the fault."""
    module = Attending().eval()
    tokens = torch.Generator().manual_seed(seed)
    inputs = (torch.randint(30, (2, 9), generator=tokens), torch.randint(30, (2, 4), generator=tokens))
    model = exported(module, inputs, "dynamo", tmp_path)
    sums = [node for node in model.graph.node if node.op_type == "Add" and "add" in node.name]
    products = [node for node in model.graph.node if node.op_type == "Mul"]
    node = products[min(6 + seed, len(products) - 1)] if products else sums[-1]
    node.op_type = "Div"
    verdict = judged(module, inputs, model, tmp_path).verdict
    assert verdict.status == "diverges"
    (origin,) = verdict.origins
    assert origin.stage == "cell"
    assert node.name in origin.onnx_nodes


class Twice(nn.Module):
    """One BatchNorm under two names: an exporter writes the first of them wherever it is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(6)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 6]`` to ``[N, 6]``."""
        return self.layers(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_module_under_two_names(exporter: Exporter) -> None:
    report = bisect(Twice().eval(), (torch.randn(4, 6),), exporter=exporter)
    assert report.verdict.status == "agrees"
    assert report.alignment.coverage == 1.0


class Around(nn.Module):
    """Deployment code wraps a model to change what it takes or gives."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * torch.tanh(self.fc(self.norm(x)))  # type: ignore[no-any-return]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8]`` to ``[N, 3]``."""
        return self.head(self.blocks(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["net", "inner_model"])
def test_a_file_that_was_exported_with_a_module_around_the_model(exporter: Exporter, name: str, tmp_path: Path) -> None:
    """Its scopes begin with a name that the model does not have."""
    inner, inputs = Inner().eval(), (torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),)
    model = exported(Around(name, inner).eval(), inputs, exporter, tmp_path)
    node = [node for node in model.graph.node if node.op_type == "LayerNormalization"][1]
    for attribute in node.attribute:
        if attribute.name == "epsilon":
            attribute.f = 5e-3
    report = judged(inner, inputs, model, tmp_path)
    assert not [each for each in report.alignment.unaligned if "folded away" in each.reason]
    assert [origin.stage for origin in report.verdict.origins] == ["blocks.1.norm"]
    assert report.verdict.diagnoses[0].code == "BD101"
    # The other way round: the file is of a module inside the model.
    model = exported(inner, inputs, exporter, tmp_path)
    report = judged(Around(name, inner).eval(), inputs, model, tmp_path)
    assert report.verdict.status == "agrees"
    assert report.alignment.coverage == 1.0
    rows = {row.stage: row.onnx_value for row in report.stages}
    assert rows[f"{name}.blocks.1.norm"] is not None


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        """``{"x": [N, 6], "y": [N, 6]}`` to ``[N, 6]``."""
        return self.fc(given["x"]) + given["y"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_dictionary_is_the_only_argument(exporter: Exporter) -> None:
    """Exporters take a trailing dictionary for keywords."""
    report = bisect(Dictionary().eval(), ({"x": torch.randn(4, 6), "y": torch.randn(4, 6)},), exporter=exporter)
    assert report.verdict.status == "agrees"
