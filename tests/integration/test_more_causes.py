"""Causes end to end, of kinds that need more than one node: other sizes, pieces, masks, branches, precision, samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from test_rules_in_runs import Around, X, constant, first, layer, node_of, put_in, report_on
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.backends.exporting import Exporter, ExportSettings, export_onnx
from bisect_tool.backends.ort_runner import OrtGraph, OrtRunner
from bisect_tool.backends.runners import RUNNERS
from bisect_tool.records import NumericConfig


class Windows(nn.Module):
    """Whatever size a stage has, the next one takes it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.up(torch.relu(self.conv(x))))
        return self.head(y[:, :, 1:5].mean((2, 3)))


IMAGE = torch.randn(2, 3, 17, 15, generator=torch.Generator().manual_seed(2))


def attribute(op: str, name: str, value: object) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        node = node_of(model, op)
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


@pytest.mark.parametrize(
    "edit, stage, code, text",
    [
        (attribute("Conv", "strides", [1, 1]), "conv", "BD101", "strides is [1, 1]"),
        (attribute("Conv", "pads", [0, 0, 0, 0]), "conv", "BD101", "pads is [0, 0, 0, 0]"),
        (attribute("ConvTranspose", "output_padding", [0, 0]), "up", "BD101", "output_padding is [0, 0]"),
        (attribute("MaxPool", "ceil_mode", 0), "pool", "BD101", "ceil_mode is 0"),
        (attribute("MaxPool", "strides", [3, 3]), "pool", "BD101", "strides is [3, 3]"),
    ],
)
def test_result_of_another_size(
    tmp_path: Path, edit: Callable[[ModelProto], None], stage: str, code: str, text: str
) -> None:
    report = report_on(Windows(), (IMAGE,), tmp_path, edit)
    (origin,) = report.verdict.origins
    assert stage == origin.ref.stage
    found = first(report)
    assert (code, True) == (found.code, found.remedy_verified)
    assert text in found.evidence[0]
    assert "the result has PyTorch's shape" in found.evidence[1]
    assert found.cost is not None and found.cost.endswith("once an edit of the file, or an export")


def test_result_of_another_size_with_a_norm_folded_in(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    net.append(nn.AdaptiveAvgPool2d(1))
    net[1].running_mean.normal_()  # type: ignore[union-attr, operator]
    net[1].running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    found = first(report_on(net, (IMAGE,), tmp_path, attribute("Conv", "strides", [1, 1])))
    assert ("BD101", True, "1") == (found.code, found.remedy_verified, found.origin.stage if found.origin else None)


def test_pieces_cut_and_named_otherwise(tmp_path: Path) -> None:
    def exchanged(model: ModelProto) -> None:
        split = node_of(model, "Split")
        split.input[1] = constant(model, "sizes", [5, 3])
        split.output[:] = [split.output[1], split.output[0]]

    def parts(y: Tensor) -> Tensor:
        one, other = torch.split(y, [3, 5], -1)
        return torch.cat([other.sin(), one], -1)

    found = first(report_on(Around(parts), (X,), tmp_path, exchanged))
    assert ("BD105", True) == (found.code, found.remedy_verified)
    assert "cuts [5, 3] where PyTorch cuts [3, 5]" in found.evidence[0]


class Attention(nn.Module):
    def __init__(self, **how: object) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v, self.o = layer(1), layer(2), layer(3), layer(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        more = {} if mask is None else {"attn_mask": mask}
        made = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), **self.how, **more)  # type: ignore[arg-type]
        out: Tensor = self.o(made)
        return out


def masked(model: ModelProto) -> onnx.NodeProto:
    softmax = node_of(model, "Softmax")
    return next(node for node in model.graph.node if softmax.input[0] in node.output)


def without_mask(model: ModelProto) -> None:
    add = masked(model)
    assert "Add" == add.op_type
    add.op_type = "Identity"
    del add.input[1:]


def mask_of_zeros_and_ones(model: ModelProto) -> None:
    """Truth values taken for numbers."""
    seen = np.tril(np.ones((4, 4), np.float32))
    masked(model).input[1] = constant(model, "wrong_mask", seen)


def mask_of_the_past(model: ModelProto) -> None:
    hidden = np.where(np.triu(np.ones((4, 4), bool)), 0, -1e9).astype(np.float32)
    masked(model).input[1] = constant(model, "wrong_mask", hidden)


def mask_taken_away(model: ModelProto) -> None:
    """It is there, and nothing is hidden."""
    masked(model).op_type = "Sub"


@pytest.mark.parametrize(
    "edit, code",
    [
        (without_mask, "BD103"),
        (mask_taken_away, "BD102"),
        (mask_of_zeros_and_ones, "BD106"),
        (mask_of_the_past, "BD106"),
    ],
)
def test_causal_mask(tmp_path: Path, edit: Callable[[ModelProto], None], code: str) -> None:
    report = report_on(Attention(is_causal=True), (X[None, None],), tmp_path, edit)
    found = first(report)
    assert (code, True) == (found.code, found.remedy_verified)
    assert "causal mask" in " ".join((*found.evidence, found.remedy))


class Below(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tril(x * 2, -1)


class Mixed(nn.Module):
    """Written out by the exporter with a choice between two forms, each of which is right."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(torch.sin(x), x, 0.3)


def with_the_diagonal(model: ModelProto) -> None:
    node_of(model, "Trilu").input[1] = constant(model, "zero", np.asarray(0))


def divided(model: ModelProto) -> None:
    node_of(model, "Mul").op_type = "Div"


@pytest.mark.parametrize("net, edit, code", [(Below, with_the_diagonal, "BD106"), (Mixed, divided, "BD102")])
def test_an_operation_of_many_nodes_or_with_a_number(
    tmp_path: Path, net: type[nn.Module], edit: Callable[[ModelProto], None], code: str
) -> None:
    found = first(report_on(net(), (X,), tmp_path, edit))
    assert (code, True) == (found.code, found.remedy_verified)


def test_scale_of_an_attention_that_is_missing(tmp_path: Path) -> None:
    def unscaled(model: ModelProto) -> None:
        made = {name: node for node in model.graph.node for name in node.output}
        product = made[node_of(model, "Softmax").input[0]]
        factor = made[product.input[0]]
        assert ("MatMul", "Mul") == (product.op_type, factor.op_type)
        factor.op_type = "Identity"
        del factor.input[1:]

    found = first(report_on(Attention(), (X[None, None],), tmp_path, unscaled))
    assert ("BD103", True) == (found.code, found.remedy_verified)
    assert "scales is missing" in found.evidence[0]


def test_branches_exchanged(tmp_path: Path) -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = layer(1), layer(2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: -self.b(x), (x,)) + 1  # type: ignore[no-any-return]

    def exchanged(model: ModelProto) -> None:
        one, other = node_of(model, "If").attribute
        one.name, other.name = other.name, one.name

    found, *others = report_on(Chosen(), (X.abs(),), tmp_path, exchanged, dynamo=True).verdict.diagnoses
    assert ("BD105", True) == (found.code, found.remedy_verified)
    assert "with its two branches exchanged" in found.evidence[0]
    assert not [each for each in others if each.origin is not None]


def test_half_precision_overflows_in_the_middle_of_a_graph(tmp_path: Path) -> None:
    """A converter put one square into float16: 300 ** 2 is beyond it."""

    def half(model: ModelProto) -> None:
        node = node_of(model, "Mul")
        source, target = node.input[0], node.output[0]
        at = list(model.graph.node).index(node)
        put_in(model, node, helper.make_node("Cast", [source], ["narrow"], to=10, name="down"))
        node.input[:], node.output[0] = ["narrow", "narrow"], "narrow_square"
        model.graph.node.insert(at + 2, helper.make_node("Cast", ["narrow_square"], [target], to=1, name="up"))

    square = Around(lambda y: (y * y).clamp(max=1e5) / 1e4)
    causes = report_on(square, (X * 400,), tmp_path, half).verdict.diagnoses
    found = next(each for each in causes if each.code == "BD110")
    assert found.remedy_verified is True
    assert any("float16 ends at 65504" in line for line in found.evidence)


class LikeTf32(OrtRunner):
    """ONNX Runtime with products that keep eleven bits of each operand, as a GPU's may: the graph shows nothing of it."""

    name = "like-tf32"

    def load(self, model: bytes, config: NumericConfig, weights_folder: str) -> OrtGraph:
        graph = onnx.load_model_from_string(model)
        factor = constant(graph, "splitter", np.float32(2**13 + 1))
        for product in [node for node in graph.graph.node if node.op_type == "MatMul"]:
            for place, name in enumerate(list(product.input)):
                many, rest, kept = (f"{product.name}_{place}_{step}" for step in ("many", "rest", "kept"))
                nodes = (("Mul", [name, factor], many), ("Sub", [many, name], rest), ("Sub", [many, rest], kept))
                put_in(graph, product, *(helper.make_node(op, given, [made], name=made) for op, given, made in nodes))
                product.input[place] = kept
        return super().load(graph.SerializeToString(), replace(config, backend="onnxruntime"), weights_folder)


def test_products_in_tf32_are_called_lower_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNNERS, "like-tf32", LikeTf32)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))
    net = Around(lambda y: y.T @ torch.sin(y))
    assert "agrees" == report_on(net, (x,), tmp_path).verdict.status
    options = Options(make_tolerance(None, None, None), onnx=tmp_path / "model.onnx", runner="like-tf32")
    report = bisect(LoadedCase("net", net, (x,), {}), options)
    (origin,) = report.verdict.origins
    assert ("/mm#0", "actual") == (origin.ref.stage, origin.side)
    found = first(report)
    assert ("BD108", None) == (found.code, found.remedy_verified)
    assert any("operands rounded to TF32" in line for line in found.evidence)


def test_nan_of_the_sample_is_named(tmp_path: Path) -> None:
    sample = X.clone()
    sample[1, 2] = float("nan")

    def lost(model: ModelProto) -> None:
        # Max of it and itself passes over NaN in no runtime; a choice does.
        node = node_of(model, "Relu")
        flag = helper.make_node("IsNaN", [node.input[0]], ["odd"], name="odd")
        zero = constant(model, "zero", np.float32(0))
        put_in(model, node, flag, helper.make_node("Where", ["odd", zero, node.input[0]], ["even"], name="even"))
        node.input[0] = "even"

    report = report_on(Around(torch.relu), (sample,), tmp_path, lost)
    line = re.compile(r"the sample itself holds NaN: 1 of 32 numbers of input \S+, the first at \(1, 2\)")
    assert any(map(line.fullmatch, report.verdict.summary))
    assert ["BD109"] == [each.code for each in report.preflight if "sample" in each.text]
    healthy = report_on(Around(torch.relu), (sample,), tmp_path)
    assert any("the sample itself holds NaN" in each for each in healthy.verdict.summary)
    assert not any("sample" in each.text for each in report_on(Around(torch.relu), (X,), tmp_path).preflight)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.lstm = nn.LSTM(8, 5, 2, bidirectional=True)
        self.gru = nn.GRU(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gru(self.lstm(x)[0])[0]
        return out


def array_of(model: ModelProto, op: str, place: int, number: int = 0) -> onnx.TensorProto:
    name = [node for node in model.graph.node if node.op_type == op][number].input[place]
    return next(each for each in model.graph.initializer if each.name == name)


def change(tensor: onnx.TensorProto, array: np.ndarray) -> None:  # type: ignore[type-arg]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def torch_gates(model: ModelProto) -> None:
    tensor = array_of(model, "LSTM", 1)
    i, o, f, c = np.split(numpy_helper.to_array(tensor), 4, 1)
    change(tensor, np.concatenate([i, f, c, o], 1))


def directions(model: ModelProto) -> None:
    tensor = array_of(model, "LSTM", 2, 1)
    change(tensor, numpy_helper.to_array(tensor)[::-1])


def stale(model: ModelProto) -> None:
    tensor = array_of(model, "GRU", 3)
    array = numpy_helper.to_array(tensor).copy()
    array[0, 3] += 0.5
    change(tensor, array)


@pytest.mark.parametrize(
    "edit, code, text",
    [
        (torch_gates, "BD203", "its gates as PyTorch has them, i f g o, where ONNX has i o f c"),
        (directions, "BD203", "its directions are exchanged"),
        (stale, "BD202", ": 1 of 24 numbers"),
    ],
)
def test_recurrent_weights_before_the_run(
    tmp_path: Path, edit: Callable[[ModelProto], None], code: str, text: str
) -> None:
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1))
    report = report_on(Recurrent(), (x,), tmp_path, edit)
    (found,) = [each for each in report.preflight if each.severity == "fault"]
    assert (code, True) == (found.code, text in found.text), found.text
    assert "lstm." in found.text or "gru." in found.text
    assert () == report_on(Recurrent(), (x,), tmp_path).preflight


def test_bisect_is_told_by_the_whole_only_where_no_part_is_wrong(tmp_path: Path) -> None:
    """GELU in nodes of its own: another function in it is a cause, and what only mends it is not certain."""

    def other_function(model: ModelProto) -> None:
        node_of(model, "Erf").op_type = "Tanh"

    found = first(report_on(Around(nn.functional.gelu), (X,), tmp_path, other_function, opset_version=17))
    assert ("BD102", True) == (found.code, found.remedy_verified)
    assert "is a Tanh, where PyTorch's gelu, written out, has an Erf" in found.evidence[0]


class Grouped(nn.Module):
    """A normalisation that exporters write out in several nodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x)))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("gone", [False, True], ids=["identity", "gone"])
@pytest.mark.parametrize(("op", "name"), [("Add", "bias"), ("Mul", "weight")])
def test_a_normalisation_without_its_last_step(
    tmp_path: Path, op: str, name: str, gone: bool, exporter: Exporter
) -> None:
    """The factor or the summand by channel is not there; the nodes before it are all right."""
    module, x = Grouped().eval(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "model.onnx"
    export_onnx(module, (x,), {}, file, ExportSettings(exporter))
    model = onnx.load(file)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    node = [node for node in model.graph.node if node.op_type == op][-1]
    (read,) = [given for given in node.input if given not in constants]
    node.op_type = "Identity"
    node.ClearField("input")
    node.input.append(read)
    if gone:
        model.graph.node.remove(node)
        for other in model.graph.node:
            for place, given in enumerate(other.input):
                other.input[place] = read if given == node.output[0] else given
    onnx.save(model, file)
    verdict = bisect(
        LoadedCase("grouped", module, (x,), {}), Options(make_tolerance(None, None, None), onnx=file)
    ).verdict
    assert ["norm"] == [origin.stage for origin in verdict.origins]
    (cause,) = verdict.diagnoses
    assert ("BD103", True) == (cause.code, cause.remedy_verified)
    assert f"the {name} of PyTorch's native_group_norm is missing" in cause.evidence[0]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Spread(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return x / x.std(-1, keepdim=True)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(("kind", "stage"), [(Scaled, "/rsqrt#0"), (Spread, "/std#0")])
def test_an_operation_without_one_of_its_steps(
    tmp_path: Path, kind: type[nn.Module], stage: str, exporter: Exporter
) -> None:
    module, x = kind().eval(), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "model.onnx"
    export_onnx(module, (x,), {}, file, ExportSettings(exporter))
    model = onnx.load(file)
    [node for node in model.graph.node if node.op_type == "Sqrt"][-1].op_type = "Identity"
    onnx.save(model, file)
    verdict = bisect(
        LoadedCase("steps", module, (x,), {}), Options(make_tolerance(None, None, None), onnx=file)
    ).verdict
    assert [stage] == [origin.stage for origin in verdict.origins]
    (cause,) = verdict.diagnoses
    assert ("BD103", True) == (cause.code, cause.remedy_verified)
    assert f"a Sqrt of PyTorch's {stage[1:-2]} is missing" in cause.evidence[0]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_attention_without_the_bias_of_its_output(tmp_path: Path, exporter: Exporter) -> None:
    """PyTorch computes all of it in one operation."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    nn.init.normal_(module.out_proj.bias)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    x, file = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)), tmp_path / "model.onnx"
    export_onnx(Own().eval(), (x,), {}, file, ExportSettings(exporter))
    model = onnx.load(file)
    del [node for node in model.graph.node if node.op_type == "Gemm"][-1].input[2:]
    onnx.save(model, file)
    case = LoadedCase("attention", Own().eval(), (x,), {})
    (cause,) = bisect(case, Options(make_tolerance(None, None, None), onnx=file)).verdict.diagnoses
    assert ("BD103", True) == (cause.code, cause.remedy_verified)
    assert "the proj_bias of PyTorch's _native_multi_head_attention is missing" in cause.evidence[0]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_logarithm_inside_of_a_whole_attention(tmp_path: Path, exporter: Exporter) -> None:
    """PyTorch runs it as one operation, which says nothing of a softmax."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0] + x  # type: ignore[no-any-return]

    def edit(model: ModelProto) -> None:
        node_of(model, "Softmax").op_type = "LogSoftmax"

    report = report_on(Whole(), (torch.randn(2, 5, 16),), tmp_path, edit, dynamo=exporter == "dynamo")
    (cause,) = report.verdict.diagnoses
    assert (cause.code, cause.remedy_verified) == ("BD102", True)
    assert "should be Softmax" in cause.evidence[0]


def test_a_trial_that_onnx_runtime_would_die_of_is_left_out(tmp_path: Path) -> None:
    """Of operands with too few axes its ``Einsum`` of three ends the process."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            key = self.key(x)
            summed = torch.cumsum(torch.einsum("bld,ble->blde", key, self.value(x)), 1)
            return torch.einsum("bld,blde,bl->ble", key, summed, x.sum(-1))

    def edit(model: ModelProto) -> None:
        node_of(model, "Einsum").attribute[0].s = b"bld,ble->bled"

    report = report_on(Outer(), (torch.randn(2, 3, 6),), tmp_path, edit, dynamo=True)
    assert "diverges" == report.verdict.status


@pytest.mark.parametrize("name", ["logsumexp", "norm"])
def test_a_reduction_over_another_axis_at_the_end(tmp_path: Path, name: str) -> None:
    """The result has another size, and nothing comes behind it."""
    function = {"norm": lambda y: y.norm(dim=-1)}.get(name, lambda y: getattr(y, name)(-1))

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return function(torch.tanh(self.layer(x)))  # type: ignore[no-any-return]

    def edit(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type.startswith("Reduce"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "other"))
        node.input[1] = "other"
        del model.graph.value_info[:]
        for axis in model.graph.output[0].type.tensor_type.shape.dim:
            axis.Clear()

    report = report_on(Ends(), (torch.randn(2, 5, 6),), tmp_path, edit, dynamo=True)
    assert [origin.type for origin in report.verdict.origins] == [{"norm": "linalg_vector_norm"}.get(name, name)]
    (cause,) = report.verdict.diagnoses
    assert ("BD106", True) == (cause.code, cause.remedy_verified)


class Batches(nn.Module):
    """Sizes that the graph computes, where the batch may vary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, size = x.shape
        y = self.first(x.view(batch * steps, size)).view(batch, steps, 2, 3)
        shift = torch.arange(batch).view(batch, 1, 1, 1)
        return self.last(torch.sigmoid(y * 2 - 0.5 + shift).view(batch, steps, size))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_file_whose_batch_varies_is_laid_beside_an_export_whose_batch_varies(tmp_path: Path, dynamo: bool) -> None:
    def edit(model: ModelProto) -> None:
        node_of(model, "Sub").op_type = "Add"

    axes = {"dynamic_shapes": {"x": {0: "batch"}}} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    names = {"input_names": ["x"], **axes}
    report = report_on(Batches(), (torch.randn(2, 5, 6),), tmp_path, edit, dynamo=dynamo, **names)
    assert ["/sub#0"] == [origin.stage for origin in report.verdict.origins]
    assert report.verdict.diagnoses[0].remedy_verified


@pytest.mark.parametrize("padding", [0, 1])
def test_zeros_around_a_convolution_that_were_folded_in(tmp_path: Path, padding: int) -> None:
    """A causal convolution: PyTorch's pad, and the convolution's own, in one node."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv1d(3, 4, 3, padding=padding)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(nn.functional.pad(x, (4, 0)))  # type: ignore[no-any-return]

    def edit(model: ModelProto) -> None:
        node = node_of(model, "Conv")
        pads = next(given for given in node.attribute if given.name == "pads")
        assert list(pads.ints) == [4 + padding, padding], "the exporter folds it"
        pads.ints[:] = [3 + padding, 1 + padding]

    report = report_on(Causal(), (torch.randn(2, 3, 9),), tmp_path, edit, dynamo=True)
    assert ["conv"] == [origin.stage for origin in report.verdict.origins]
    (cause,) = report.verdict.diagnoses
    assert ("BD101", True) == (cause.code, cause.remedy_verified)
    assert f"pads [{4 + padding}, {padding}]" in cause.evidence[0]


@pytest.mark.parametrize("stored", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16])
def test_a_weight_that_is_cast_before_it_is_read(tmp_path: Path, stored: int) -> None:
    """It is the model's, rounded: found before the run and at the stage, though its name is lost."""

    def edit(model: ModelProto) -> None:
        weight = next(tensor for tensor in model.graph.initializer if 2 == len(tensor.dims))
        narrow = numpy_helper.to_array(weight).astype(helper.tensor_dtype_to_np_dtype(stored))
        model.graph.initializer.append(helper.make_tensor("narrow", stored, narrow.shape, narrow.tobytes(), raw=True))
        cast = helper.make_node("Cast", ["narrow"], [weight.name], name="wider", to=onnx.TensorProto.FLOAT)
        model.graph.initializer.remove(weight)
        model.graph.node.insert(0, cast)

    net = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
    report = report_on(net, (torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2)),), tmp_path, edit)
    assert ["BD205"] == [finding.code for finding in report.preflight]
    assert ["0"] == [origin.ref.stage for origin in report.verdict.origins]
    found = first(report)
    assert ("BD205", True) == (found.code, found.remedy_verified)
    assert "narrow is the model's 0.weight" in found.evidence[0]


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 16]``, as given."""
        return self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


def test_what_mends_one_stage_may_be_more_than_another_has(tmp_path: Path) -> None:
    """Both read the shared weight, and each a bias of its own; all of them are stored in half precision."""

    def edit(model: ModelProto) -> None:
        casts = []
        for tensor in list(model.graph.initializer):
            narrow = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}_half")
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(narrow)
            casts.append(helper.make_node("Cast", [narrow.name], [tensor.name], to=onnx.TensorProto.FLOAT))
        for cast in casts:
            model.graph.node.insert(0, cast)

    report = report_on(Tied(), (torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2)),), tmp_path, edit)
    assert ["a", "b"] == [origin.ref.stage for origin in report.verdict.origins]
    assert {"BD205"} == {each.code for each in report.verdict.diagnoses}
