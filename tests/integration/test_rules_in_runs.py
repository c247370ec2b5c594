"""Causes with a sign of their own, in real runs: planted into a file, or left by an exporter; and controls without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import Diagnosis, Report

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def layer(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(8, 8)


class Around(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.before, self.after, self.function = layer(5), layer(6), function

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.after(self.function(self.before(x), *more))


class Whole(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.layer, self.function = layer(5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


def report_on(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    folder: Path,
    edit: Callable[[ModelProto], None] = lambda _: None,
    *,
    traced_with: tuple[Tensor, ...] | None = None,
    max_abs: float | None = None,
    dynamo: bool = False,
    **export: Any,
) -> Report:
    file = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), traced_with or inputs, str(file), dynamo=dynamo, **export)
    graph = onnx.load(file)
    edit(graph)
    onnx.save(graph, file)
    return bisect(LoadedCase("net", model, inputs, {}), Options(make_tolerance(max_abs, None, None), onnx=file))


def node_of(model: ModelProto, op: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def put_in(model: ModelProto, place: NodeProto, *nodes: NodeProto) -> None:
    """Nodes before another one."""
    at = list(model.graph.node).index(place)
    for node in reversed(nodes):
        model.graph.node.insert(at, node)


def constant(model: ModelProto, name: str, array: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def first(report: Report) -> Diagnosis:
    assert report.verdict.diagnoses, report.verdict.summary
    return report.verdict.diagnoses[0]


def test_where_nan_begins_is_evidence_beside_the_cause_that_was_tried(tmp_path: Path) -> None:
    def unclamped(model: ModelProto) -> None:
        clip = node_of(model, "Clip")
        clip.op_type = "Relu"
        del clip.input[1:]

    class Logarithm(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return torch.log(y.clamp(min=1e-3))

    found = first(report_on(Around(Logarithm()), (X,), tmp_path, unclamped))
    assert ("BD102", True) == (found.code, found.remedy_verified)
    assert any("Log of 0 gives -inf" in line for line in found.evidence)


def test_overflow_names_its_node_and_what_would_not_overflow(tmp_path: Path) -> None:
    def naive(model: ModelProto) -> None:
        node = node_of(model, "ReduceLogSumExp")
        source, target = node.input[0], node.output[0]
        axes = constant(model, "axes", [-1])
        put_in(
            model,
            node,
            helper.make_node("Exp", [source], ["e"], name="exp"),
            helper.make_node("ReduceSum", ["e", axes], ["s"], name="sum", keepdims=0),
            helper.make_node("Log", ["s"], [target], name="log"),
        )
        model.graph.node.remove(node)

    report = report_on(Whole(lambda own, x: torch.logsumexp(own(x) * 200, -1)), (X,), tmp_path, naive)
    found = first(report)
    # One operator would not overflow: it is tried in the place of the last one of those that do.
    assert ("BD102", True) == (found.code, found.remedy_verified)
    assert any("they begin in Exp exp at" in line for line in found.evidence)


def test_division_of_whole_numbers(tmp_path: Path) -> None:
    def cut(model: ModelProto) -> None:
        casts = [node for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i == 1]
        casts[-1].input[0] = node_of(model, "Div").output[0]

    def function(own: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = own(torch.div(x + 1, 3, rounding_mode="floor").float())
        return out

    whole = torch.arange(-12, 20).reshape(4, 8)
    report = report_on(Whole(function), (whole,), tmp_path, cut)
    assert ("BD111", True) == (first(report).code, first(report).remedy_verified)
    assert "-11 / 3 at (0, 0) is -3 in ONNX" in first(report).evidence[0]
    assert "agrees" == report_on(Whole(function), (whole,), tmp_path).verdict.status


def test_rows_masked_throughout_as_an_exporter_writes_them(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = layer(1), layer(2), layer(3), layer(4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            made = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), attn_mask=mask)
            out: Tensor = self.o(made)
            return out

    def lowest(model: ModelProto) -> None:
        """As some exporters fill masks: the lowest number, where PyTorch has minus infinity."""
        for tensor in model.graph.initializer:
            if np.isneginf(numpy_helper.to_array(tensor)).all():
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(np.finfo(np.float32).min), tensor.name))
        for node in model.graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if np.isneginf(numpy_helper.to_array(attribute.t)).all():
                    attribute.t.CopyFrom(numpy_helper.from_array(np.asarray(np.finfo(np.float32).min)))

    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    report = report_on(Attention(), (X[None, None], mask), tmp_path, lowest, dynamo=True)
    assert "diverges" == report.verdict.status
    assert ("BD114", True) == (first(report).code, first(report).remedy_verified)
    assert "PyTorch gives zeros there" in first(report).evidence[0]
    seen = torch.ones(4, 4, dtype=torch.bool).tril()
    assert "agrees" == report_on(Attention(), (X[None, None], seen), tmp_path, lowest, dynamo=True).verdict.status


def test_file_left_in_training_mode(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.norm.running_mean.normal_()  # type: ignore[union-attr]
            self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.drop(self.norm(self.conv(x))))

    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "training.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = torch.onnx.TrainingMode.TRAINING
        torch.onnx.export(Net().train(), (x,), str(file), dynamo=False, training=training)
    report = bisect(LoadedCase("net", Net().eval(), (x,), {}), Options(make_tolerance(None, None, None), onnx=file))
    assert {("BD402", True)} == {(each.code, each.remedy_verified) for each in report.verdict.diagnoses}
    before = [each for each in report.preflight if each.code == "BD402"]
    assert {"fault"} == {each.severity for each in before}
    assert 2 == len(before)


def test_noise_in_the_graph_and_in_the_model(tmp_path: Path) -> None:
    def noisy(model: ModelProto) -> None:
        relu = node_of(model, "Relu")
        name, relu.output[0] = relu.output[0], "quiet"
        after = list(model.graph.node)[list(model.graph.node).index(relu) + 1]
        noise = helper.make_node("RandomNormalLike", ["quiet"], ["noise"], name="noise", scale=0.01)
        put_in(model, after, noise, helper.make_node("Add", ["quiet", "noise"], [name], name="sum"))

    report = report_on(Around(torch.relu), (X,), tmp_path, noisy)
    assert ("BD403", True) == (first(report).code, first(report).remedy_verified)
    assert any(line.startswith("run twice on the same inputs") for line in first(report).evidence)
    own = report_on(Around(lambda y: y + torch.rand_like(y)), (X,), tmp_path)
    assert ("inconclusive", "BD403") == (own.verdict.status, first(own).code)


def test_inputs_exchanged_and_channels_reversed(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = layer(1), layer(2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.relu(self.a(left)) + 2 * self.b(right)

    def exchanged(model: ModelProto) -> None:
        other = {"left": "right", "right": "left"}
        for node in model.graph.node:
            node.input[:] = [other.get(name, name) for name in node.input]

    report = report_on(Two(), (X, X + 1.5), tmp_path, exchanged, input_names=["left", "right"])
    assert ("BD404", True) == (first(report).code, first(report).remedy_verified)
    assert "with inputs left and right exchanged" in first(report).evidence[0]
    assert not [each for each in report.verdict.diagnoses if each.code == "BD100"]

    def reversed_channels(model: ModelProto) -> None:
        weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
        array = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(array[:, ::-1].copy(), weight.name))

    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    image = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    report = report_on(net, (image,), tmp_path, reversed_channels)
    assert {"BD404", "BD203"} == {each.code for each in report.verdict.diagnoses}
    assert "(RGB and BGR)" in first(report).evidence[0]


def test_number_and_branch_of_another_sample(tmp_path: Path) -> None:
    scaled = Around(lambda y: y / float(y.abs().max()))
    report = report_on(scaled, (X,), tmp_path, traced_with=(X * 1.7,))
    assert ("BD401", True) == (first(report).code, first(report).remedy_verified)
    assert "the number follows the input" in first(report).evidence[-1]

    def branch(y: Tensor) -> Tensor:
        return y.tanh() if y.mean() > 0 else y.sigmoid()

    net = Around(branch)
    x = X if float(net.before(X).mean()) < 0 else -X
    report = report_on(net, (x,), tmp_path, traced_with=(-x,))
    assert "branch baked at trace time" == first(report).title


def test_constant_of_the_file_that_no_input_moves_is_not_called_baked(tmp_path: Path) -> None:
    def other(model: ModelProto) -> None:
        node_of(model, "Mul").input[1] = constant(model, "other_factor", np.float32(0.51))

    report = report_on(Around(lambda y: y * 0.5), (X,), tmp_path, other)
    assert "BD106" == first(report).code
    assert "BD401" in {each.code for each in report.verdict.ruled_out}


def test_rounding_over_the_users_tolerance(tmp_path: Path) -> None:
    torch.manual_seed(3)
    wide = nn.Linear(512, 64)
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(4))
    edge = float(wide(x)[0, 0])

    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = wide

        def forward(self, x: Tensor) -> Tensor:
            y = self.wide(x)
            return (y + 1000.0 - 1000.0 - y) * 1e6

    report = report_on(Cancels(), (x,), tmp_path, max_abs=1e-4)
    if report.verdict.status == "diverges":  # both libraries may add in one order on some machine
        assert "BD503" == first(report).code
        assert "no stage makes more error than rounding" in first(report).evidence[1]

    class Threshold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = wide

        def forward(self, x: Tensor) -> Tensor:
            return (self.wide(x) > edge).float()

    report = report_on(Threshold(), (x,), tmp_path, max_abs=1e-5)
    if report.verdict.status == "diverges":
        assert "BD112" == first(report).code


def test_stage_in_half_precision_as_a_whole(tmp_path: Path) -> None:
    def halved(model: ModelProto) -> None:
        power = node_of(model, "Pow")
        name, source = power.output[0], power.input[0]
        exponent = constant(model, "two", np.float16(2))
        put_in(
            model,
            power,
            helper.make_node("Cast", [source], ["h"], to=10, name="down"),
            helper.make_node("Pow", ["h", exponent], ["p"], name="half_power"),
            helper.make_node("Cast", ["p"], [name], to=1, name="up"),
        )
        model.graph.node.remove(power)

    report = report_on(Around(lambda y: (y * 3) ** 2 / 10), (X,), tmp_path, halved)
    assert {("BD107", True)} == {(each.code, each.remedy_verified) for each in report.verdict.diagnoses}
    assert any("in float16, PyTorch in float32" in each.evidence[0] for each in report.verdict.diagnoses)


def test_input_that_the_file_takes_in_half_precision(tmp_path: Path) -> None:
    """The rounding of the sample itself is the cause, shown by the numbers as they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh()).eval()
    weights = [numpy_helper.from_array(p.detach().numpy(), name) for name, p in model[0].named_parameters()]
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], "up", to=1),
        helper.make_node("Gemm", ["wide", "weight", "bias"], ["h"], "dense", transB=1),
        helper.make_node("Tanh", ["h"], ["y"], "end"),
    ]
    ends = [helper.make_tensor_value_info("x", 10, [3, 8])], [helper.make_tensor_value_info("y", 1, [3, 4])]
    file = tmp_path / "half.onnx"
    graph = helper.make_graph(nodes, "half", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    case = LoadedCase("half", model, (torch.randn(3, 8),), {})
    verdict = bisect(case, Options(make_tolerance(None, None, None), onnx=file, optimizations=("off",))).verdict
    assert ("diverges", ["0"]) == (verdict.status, [origin.stage for origin in verdict.origins])
    (found,) = verdict.diagnoses
    assert "BD107" == found.code
    assert any("the graph's input x is float16: the sample's float32 numbers are rounded" in e for e in found.evidence)
    assert found.remedy_verified


def test_number_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    def through_half(model: ModelProto) -> None:
        power = node_of(model, "Pow")
        name, power.output[0] = power.output[0], "large"
        after = list(model.graph.node)[list(model.graph.node).index(power) + 1]
        down = helper.make_node("Cast", ["large"], ["half"], to=10, name="down")
        put_in(model, after, down, helper.make_node("Cast", ["half"], [name], to=1, name="up"))

    report = report_on(Around(lambda y: (y * 900) ** 2 / 1000), (X,), tmp_path, through_half)
    assert ("BD107", True) == (first(report).code, first(report).remedy_verified)
    assert any("they begin in Cast down" in line and "float16 ends at 65504" in line for line in first(report).evidence)


def test_one_missing_sum_with_several_readers_is_told_once(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.norm = layer(1), layer(2), layer(3), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            z = self.b(y) + y
            return self.c(z) + self.norm(z)

    def dropped(model: ModelProto) -> None:
        total = node_of(model, "Add")
        for node in model.graph.node:
            node.input[:] = [total.input[0] if name == total.output[0] else name for name in node.input]
        model.graph.node.remove(total)

    report = report_on(Net(), (X,), tmp_path, dropped)
    assert len(report.verdict.origins) > 1
    (only,) = report.verdict.diagnoses
    assert ("BD103", True) == (only.code, only.remedy_verified)
    assert only.evidence[-1].startswith("it shows in ")


@pytest.mark.parametrize("dynamo", [False, True])
def test_healthy_model_has_neither_diagnoses_nor_findings(tmp_path: Path, dynamo: bool) -> None:
    report = report_on(Around(lambda y: torch.softmax(y, -1)), (X,), tmp_path, dynamo=dynamo)
    assert ("agrees", (), (), ()) == (
        report.verdict.status,
        report.verdict.diagnoses,
        report.verdict.ledger,
        report.preflight,
    )


def test_index_that_leaves_its_axis_has_a_hint(tmp_path: Path) -> None:
    """The TorchScript exporter flattens several indices into one, which is wrong for negative ones."""

    class Pick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(1)

        def forward(self, x: Tensor, i: Tensor, j: Tensor) -> Tensor:
            out: Tensor = self.layer(x)[i, j]
            return out

    rows, columns = torch.tensor([0, -4, 2]), torch.tensor([1, -8, 3])
    with pytest.raises(InconclusiveError) as caught:
        report_on(Pick(), (X, rows, columns), tmp_path)
    assert "out of data bounds" in caught.value.message
    assert "BD113" in (caught.value.hint or "")


def test_a_number_added_before_the_bias_is_not_taken_for_the_bias(tmp_path: Path) -> None:
    """What follows a product of a layer's weight need not be its bias, nor have its size."""

    def offset(model: ModelProto) -> None:
        node = node_of(model, "MatMul")
        target = node.output[0]
        node.output[0] = "product"
        place = next(other for other in model.graph.node if target in other.input)
        put_in(
            model,
            place,
            helper.make_node(
                "Add", ["product", constant(model, "little", np.float32([1e-3]))], [target], name="little"
            ),
        )

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = layer(5), layer(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    report = report_on(Deep(), (X.reshape(1, 4, 8),), tmp_path, offset)
    assert "diverges" == report.verdict.status
    assert any("little" in node for node in report.verdict.origins[0].onnx_nodes)
