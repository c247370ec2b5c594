"""Healthy files in which a stage's value is nowhere: what is made of it is computed in another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from by_hand import exported, first_node, judged
from onnx import helper, numpy_helper
from torch import Tensor, nn


class Root(nn.Module):
    """Divides by the root mean square, and scales."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 8]``, as given."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Ends(nn.Module):
    """As T5 ends: a norm, a constant factor, and a product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 8), Root(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 8]`` to ``[N, T, 3]``."""
        return self.last(self.norm(self.first(x)) * 8**-0.5)  # type: ignore[no-any-return]


class Feed(nn.Module):
    """A transformer's feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.act, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 6]``, as given."""
        return x + self.down(self.act(self.up(self.norm(x))))  # type: ignore[no-any-return]


def simplified(folder: Path) -> onnx.ModelProto:
    """The factor behind the norm is in the norm's own weight, as simplifiers write it."""
    model = exported(Ends().eval(), (torch.randn(2, 5, 8),), "torchscript", folder)
    graph = model.graph
    weight = next(tensor for tensor in graph.initializer if list(tensor.dims) == [8] and "norm" in tensor.name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(8**-0.5), weight.name))
    scaled = next(node for node in graph.node if weight.name in node.input)
    factor = next(node for node in graph.node if scaled.output[0] in node.input)
    assert factor.op_type == "Mul"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == factor.output[0]:
                node.input[place] = scaled.output[0]
    graph.node.remove(factor)
    return model


def test_a_factor_in_a_norms_weight_is_no_fault(tmp_path: Path) -> None:
    module, inputs = Ends().eval(), (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
    report = judged(module, inputs, simplified(tmp_path), tmp_path)
    assert report.verdict.status == "agrees", report.verdict.summary
    assert "norm" not in [pair.ref.stage for pair in report.alignment.pairs]


def test_another_factor_there_is_one(tmp_path: Path) -> None:
    model = simplified(tmp_path)
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [8] and "norm" in tensor.name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    module, inputs = Ends().eval(), (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "diverges"
    assert report.verdict.origins[0].ref.stage in ("norm", "/mul#0")


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_bias_that_was_fused_with_the_activation_is_no_fault(dynamic: bool, tmp_path: Path) -> None:
    module, inputs = Feed().eval(), (torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)),)
    plain, saved = tmp_path / "plain.onnx", tmp_path / "saved.onnx"
    axes = {"x": {0: "batch"}} if dynamic else None
    torch.onnx.export(module, inputs, plain, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(saved)
    ort.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    model = onnx.load(saved)
    if dynamic:
        assert first_node(model, "BiasGelu")
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "agrees", report.verdict.summary
    assert report.alignment.coverage == 1.0


class Residual(nn.Module):
    """The end of a transformer's layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 8]`` to ``[N, T, 3]``."""
        return self.head(self.norm(x + self.down(torch.tanh(x))))  # type: ignore[no-any-return]


def with_skip_norm(folder: Path, inputs: tuple[Tensor, ...], epsilon: float) -> onnx.ModelProto:
    """The bias of ``down``, the sum and the norm are one node, as ONNX Runtime's optimiser of transformers writes them."""
    model = exported(Residual().eval(), inputs, "torchscript", folder, 17)
    graph = model.graph
    sums = [node for node in graph.node if node.op_type == "Add"][:2]
    norm, product = first_node(model, "LayerNormalization"), first_node(model, "MatMul")
    (bias,) = set(sums[0].input) - set(product.output)
    (skip,) = set(sums[1].input) - set(sums[0].output)
    read = [product.output[0], skip, *norm.input[1:], bias]
    fused = helper.make_node(
        "SkipLayerNormalization", read, norm.output, "fused", domain="com.microsoft", epsilon=epsilon
    )
    graph.node.insert([*graph.node].index(norm), fused)
    for node in [*sums, norm]:
        graph.node.remove(node)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize("epsilon", [1e-5, 1e-1])
def test_a_product_whose_bias_a_fused_norm_adds_is_no_stage(epsilon: float, tmp_path: Path) -> None:
    """Its value is not the linear layer's, and so a fault in the norm makes no second origin there."""
    inputs = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
    report = judged(Residual().eval(), inputs, with_skip_norm(tmp_path, inputs, epsilon), tmp_path)
    assert "down" not in [pair.ref.stage for pair in report.alignment.pairs]
    origins = [origin.ref.stage for origin in report.verdict.origins]
    assert ([] if epsilon == 1e-5 else ["norm"]) == origins


def test_a_fault_in_a_convolution_with_its_activation_inside(tmp_path: Path) -> None:
    """The fused node has the activation's value, whatever its name says; norm and activation are in it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3, 1, 1)]
    net = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)).eval()
    inputs = (torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1)),)
    exported(net, inputs, "torchscript", tmp_path, 17)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    ort.InferenceSession(str(tmp_path / "healthy.onnx"), options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "saved.onnx")
    second = [node for node in model.graph.node if node.op_type == "FusedConv"][1]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == second.input[1])
    changed = numpy_helper.to_array(weight).copy()
    changed[3] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    report = judged(net, inputs, model, tmp_path)
    assert ["5"] == [origin.ref.stage for origin in report.verdict.origins]
    assert [("BD202", True)] == [(each.code, each.remedy_verified) for each in report.verdict.diagnoses]


BY_HAND = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
g (float[4,6] x) => (float[4,3] y) {
  a = MatMul(x, w0)
  b = Add(a, b0)
  c = %s(b)
  d = MatMul(c, w2)
  e = %s
  f = MatMul(e, w4)
  y = Add(f, b4)
}"""


@pytest.mark.parametrize(
    "behind, stage", [("Add(d, b2)", "1"), ("com.microsoft.BiasGelu(d, b2)", "3")], ids=["plain", "fused"]
)
def test_a_broken_operation_between_layers_without_names(behind: str, stage: str, tmp_path: Path) -> None:
    """What the next layer reads is its value, or that of the first stage behind it that the graph has."""
    torch.manual_seed(0)
    fused = "BiasGelu" in behind
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU() if fused else nn.Identity())
    net.append(nn.Linear(8, 3)).eval()
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    weights = {f"w{n}": state[f"{n}.weight"].T.copy() for n in "024"} | {f"b{n}": state[f"{n}.bias"] for n in "024"}
    inputs = (torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),)
    for op, origins in (("Tanh", []), ("Sigmoid", [stage])):
        model = onnx.parser.parse_model(BY_HAND % (op, behind))
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        report = judged(net, inputs, model, tmp_path)
        assert origins == [origin.ref.stage for origin in report.verdict.origins]
        assert all(("BD102", True) == (each.code, each.remedy_verified) for each in report.verdict.diagnoses)
