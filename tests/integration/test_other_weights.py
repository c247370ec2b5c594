"""A graph with other weights than the model's, from both exporters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import Report
from bisect_tool.tolerances import make_tolerance


class Mixture(nn.Module):
    """Everything that exporters do to weights: folding, swapped axes, and leaving them alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.after = nn.BatchNorm2d(8)
        self.tokens = nn.Linear(8, 8)
        self.layer = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        for norm in (self.norm, self.after):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 6, 6) -> (B, 144, 5)."""
        x = torch.relu(self.norm(self.conv(x)))
        x = self.after(self.up(x)).flatten(2).transpose(1, 2)
        return self.head(self.layer(torch.relu(self.tokens(x))))


def judged(tmp_path: Path, exporter: str, seed: int = 0, edit: object = None) -> Report:
    """The report on a model and the export of one with another seed, edited by ``edit(model)``."""
    x, path = torch.randn(2, 3, 6, 6), tmp_path / "model.onnx"
    export_onnx(Mixture(seed).eval(), (x,), {}, path, ExportSettings(exporter))  # type: ignore[arg-type]
    if edit is not None:
        model = onnx.load(path)
        edit(model)  # type: ignore[operator]
        onnx.save(model, path)
    options = Options(make_tolerance(None, None, None), onnx=path)
    return bisect(LoadedCase("weights", Mixture(0).eval(), (x,), {}), options)


def scale_head(model: onnx.ModelProto) -> None:
    """Channel 3 of the last layer, under whatever name."""
    (tensor,) = [t for t in model.graph.initializer if list(t.dims) in ([8, 5], [5, 8])]
    array = np.array(numpy_helper.to_array(tensor))
    array[(slice(None), 3) if array.shape == (8, 5) else 3] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def fault_without_weights(model: onnx.ModelProto) -> None:
    (node,) = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    (epsilon,) = [a for a in node.attribute if a.name == "epsilon"]
    epsilon.f = 0.1


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_another_seed_is_another_checkpoint(tmp_path: Path, exporter: str) -> None:
    """The verdict says so, with numbers."""
    report = judged(tmp_path, exporter, seed=1)
    assert "diverges" == report.verdict.status
    assert ["BD201"] == [diagnosis.code for diagnosis in report.verdict.diagnoses]
    assert "another checkpoint?" in report.verdict.summary[-1]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_one_other_weight_is_told_at_its_origin(tmp_path: Path, exporter: str) -> None:
    """With the channel that holds the difference."""
    report = judged(tmp_path, exporter, edit=scale_head)
    (origin,) = report.verdict.origins
    (diagnosis,) = report.verdict.diagnoses
    assert ("head", "BD202", True) == (origin.stage, diagnosis.code, diagnosis.remedy_verified)
    assert "differs from the model's head.weight" in diagnosis.evidence[0]
    assert "all of it at index 3 of axis 1" in diagnosis.evidence[0]
    assert not [text for text in origin.evidence if "weight" in text], "it is told once"


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_what_the_exporter_does_to_weights_is_never_blamed(tmp_path: Path, exporter: str) -> None:
    """Folded BatchNorms and swapped axes, beside a fault that has nothing to do with weights."""
    report = judged(tmp_path, exporter, edit=fault_without_weights)
    assert ["layer"] == [origin.stage for origin in report.verdict.origins]
    told = [*report.verdict.summary, *(line for origin in report.verdict.origins for line in origin.evidence)]
    assert [] == [line for line in told if "weight" in line]


def to_half(scale: float = 1.0) -> Callable[[onnx.ModelProto], None]:
    """Weights and arithmetic in float16, inputs and outputs in float32; ``scale``: of the first weight."""

    def edit(model: onnx.ModelProto) -> None:
        first = scale
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = (first * numpy_helper.to_array(tensor)).astype(np.float16)
                first = 1.0
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        (given,), (made,) = model.graph.input, model.graph.output
        for node in model.graph.node:
            node.input[:] = [f"{name}_half" if name == given.name else name for name in node.input]
            node.output[:] = [f"{name}_half" if name == made.name else name for name in node.output]
        half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        model.graph.node.insert(0, onnx.helper.make_node("Cast", [given.name], [f"{given.name}_half"], to=half))
        model.graph.node.append(onnx.helper.make_node("Cast", [f"{made.name}_half"], [made.name], to=full))
        del model.graph.value_info[:]

    return edit


def test_a_graph_in_half_precision_is_judged_by_that(tmp_path: Path) -> None:
    """It agrees, and says what it was allowed: what float16 rounds off is no fault of any stage."""
    report = judged(tmp_path, "dynamo", edit=to_half())
    told = [line for line in report.verdict.summary if "float16" in line]
    assert told[0].startswith("the graph computes in float16 in ")
    assert told[0].endswith(" nodes, PyTorch in float32")
    assert "stages are judged by what float16 rounds off, since the graph as a whole is in float16" == told[1]
    assert ("agrees", ()) == (report.verdict.status, report.verdict.origins)
    noises = [result.noise for row in report.stages for result in row.results.values() if result.noise is not None]
    assert noises and {"float16"} == {noise.dtype for noise in noises}


def test_a_fault_in_a_graph_in_half_precision_is_found(tmp_path: Path) -> None:
    """A weight that is 2 % off is far beyond rounding; the stage that has it is the one origin."""
    report = judged(tmp_path, "dynamo", edit=to_half(1.02))
    assert "diverges" == report.verdict.status
    (origin,) = report.verdict.origins
    assert "actual" == origin.side
    assert any("rounded to float16" in line for line in report.verdict.summary)


class Table(nn.Module):
    """Adds the first rows of a parameter, and one picked out of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)
        self.places, self.kinds = nn.Parameter(torch.randn(9, 6)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 5, 6]``, as given."""
        return self.layer(x + self.places[:5]) * self.kinds[2]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("shape", "name", "stage"), [([5, 6], "slice of places", "/add#0"), ([6], "select of kinds", "/mul#0")]
)
def test_a_part_of_a_weight_that_was_folded(tmp_path: Path, shape: list[int], name: str, stage: str) -> None:
    """The exporter wrote the rows that are used, under a name of its own."""
    module, inputs = Table().eval(), (torch.randn(2, 5, 6),)
    file = tmp_path / "table.onnx"
    torch.onnx.export(module, inputs, file, dynamo=True)
    model = onnx.load(file, load_external_data=True)
    bias = module.layer.bias.detach().numpy()
    (tensor,) = [
        tensor
        for tensor in model.graph.initializer
        if list(tensor.dims) == shape and not np.array_equal(numpy_helper.to_array(tensor), bias)
    ]
    wrong = numpy_helper.to_array(tensor).copy()
    wrong.flat[3] += 1
    tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    onnx.save(model, file)
    verdict = bisect(
        LoadedCase("table", module, inputs, {}), Options(make_tolerance(None, None, None), onnx=file)
    ).verdict
    assert [stage] == [origin.stage for origin in verdict.origins]
    (cause,) = verdict.diagnoses
    assert ("BD202", True) == (cause.code, cause.remedy_verified)
    assert f"the model's {name}" in cause.evidence[0]
