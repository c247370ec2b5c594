"""Files that ONNX Runtime's optimiser has written, in its blocked layout: stages, faults and causes as in any other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bisect_tool import bisect
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.facts import graph_facts
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.plain_layout import DOMAIN, block_size


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """20 and 24 channels, which fill no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = block(3, 20, 2), block(20, 20), block(20, 20)
        self.pool, self.last = nn.MaxPool2d(2), block(20, 24)
        self.head = nn.Linear(24, 10)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean, std=0.1)
                nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 32, 32]`` to ``[N, 10]``."""
        x = self.stem(x)
        x = torch.relu(self.second(self.first(x)) + x)
        return self.head(self.last(self.pool(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Tensor, ModelProto]:
    folder = tmp_path_factory.mktemp("blocked")
    torch.manual_seed(0)
    module, x = Residual().eval(), torch.randn(2, 3, 32, 32)
    export_onnx(module, (x,), {}, folder / "plain.onnx", ExportSettings("dynamo"))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "blocked.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(folder / "plain.onnx"), options, providers=["CPUExecutionProvider"])
    model = onnx.load(folder / "blocked.onnx")
    if not any(node.domain == DOMAIN for node in model.graph.node):
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    return module, x, model


def nameless(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    kept = {value.name for value in [*bare.graph.input, *bare.graph.output]}
    made = [name for node in bare.graph.node for name in node.output if name and name not in kept]
    names = {name: f"v{number}" for number, name in enumerate(made)}
    for number, tensor in enumerate(bare.graph.initializer):
        names[tensor.name] = tensor.name = f"w{number}"
    old = {tensor.name: bare.graph.initializer[number].name for number, tensor in enumerate(model.graph.initializer)}
    for node in bare.graph.node:
        node.name = ""
        del node.metadata_props[:]
        for places in (node.input, node.output):
            for place, name in enumerate(places):
                places[place] = old.get(name, names.get(name, name))
    del bare.graph.value_info[:]
    return bare


def with_scaled_filter(model: ModelProto, number: int, factor: float) -> ModelProto:
    """One filter of a convolution that is not idle on the sample, times a factor."""
    faulty = ModelProto()
    faulty.CopyFrom(model)
    node = [node for node in faulty.graph.node if node.op_type == "Conv"][number]
    tensor = next(tensor for tensor in faulty.graph.initializer if tensor.name == node.input[1])
    weight = numpy_helper.to_array(tensor).copy()
    block = block_size()
    weight.reshape(weight.shape[0] // block, -1, block)[0, :, : block // 2] *= factor
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return faulty


@pytest.mark.parametrize("bare", [False, True], ids=["named", "nameless"])
def test_a_healthy_file_agrees_and_every_value_is_found(
    material: tuple[nn.Module, Tensor, ModelProto], tmp_path: Path, bare: bool
) -> None:
    module, x, model = material
    onnx.save(nameless(model) if bare else model, tmp_path / "model.onnx")
    report = bisect(module, (x,), tmp_path / "model.onnx")
    assert report.verdict.status == "agrees"
    assert report.alignment.coverage == 1.0
    found = {row.stage for row in report.stages if row.onnx_value is not None}
    assert {"stem.2", "first.2", "pool", "last.2", "head"} <= found
    # A sum in the midst of a convolution is no value, and so is what a BatchNorm was folded into.
    lost = {row.stage for row in report.stages if row.onnx_value is None and row.role == "judged"}
    assert not any(stage.endswith(".2") and stage != "second.2" for stage in lost)
    assert any("blocked layout" in note for note in report.notes)
    names = {name for node in model.graph.node for name in node.output} | {f"v{n}" for n in range(99)}
    assert {row.onnx_value for row in report.stages if row.onnx_value is not None} <= names


@pytest.mark.parametrize("bare", [False, True], ids=["named", "nameless"])
@pytest.mark.parametrize(("number", "stage"), [(0, "stem.2"), (1, "first.2"), (3, "last.2")])
@pytest.mark.parametrize("factor", [1.03, 3.0], ids=["small", "large"])
def test_a_fault_is_found_at_its_stage_with_its_cause(
    material: tuple[nn.Module, Tensor, ModelProto], tmp_path: Path, number: int, stage: str, factor: float, bare: bool
) -> None:
    """A small one leaves all that lies behind it right by its value."""
    module, x, model = material
    faulty = with_scaled_filter(nameless(model) if bare else model, number, factor)
    onnx.save(faulty, tmp_path / "model.onnx")
    report = bisect(module, (x,), tmp_path / "model.onnx")
    assert report.verdict.status == "diverges"
    assert [origin.ref.stage for origin in report.verdict.origins] == [stage]
    first = report.verdict.first_over_tolerance
    assert first is not None and first.ref.stage == stage
    (cause,) = report.verdict.diagnoses
    assert cause.code == "BD202" and cause.remedy_verified
    # Nodes that are not in the file are no one's business.
    known = {node.name for node in faulty.graph.node if node.name}
    nodes = report.verdict.origins[0].onnx_nodes
    assert nodes and (bare or set(nodes) <= known)
    assert not any("__" in name for name in nodes)


def test_nodes_that_were_put_in_are_not_counted(material: tuple[nn.Module, Tensor, ModelProto], tmp_path: Path) -> None:
    _, _, model = material
    onnx.save(model, tmp_path / "model.onnx")
    facts = graph_facts(OnnxProgram(load_onnx(tmp_path / "model.onnx"), tmp_path / "model.onnx"), None)
    assert facts.nodes == len(model.graph.node)
    assert facts.operators == dict(Counter(node.op_type for node in model.graph.node))
