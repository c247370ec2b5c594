"""Which of several alike values a broken stage has, and what rounding may do to an order."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from anonymous import without_names
from by_hand import EXPORTERS, exported, first_node, judged
from onnx import helper, numpy_helper
from torch import Tensor, nn

from bisect_tool.backends.exporting import Exporter
from bisect_tool.records import Report


def origins(report: Report) -> list[tuple[str, int]]:
    return [(origin.ref.stage, origin.ref.call) for origin in report.verdict.origins]


class Twice(nn.Module):
    """A whole module is one operation of PyTorch's, and is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 4]``, as given."""
        first = self.enc(x)
        return self.enc(first) / (first.abs() + 0.7)  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_calls_of_a_module_that_is_one_operation_keep_their_order(exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = Twice().eval(), (torch.randn(2, 6, 4),)
    model = exported(module, inputs, exporter, tmp_path)
    first_node(model, "Relu").op_type = "Softplus"
    report = judged(module, inputs, model, tmp_path)
    assert origins(report) == [("enc/_transformer_encoder_layer_fwd#0", 0)]
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD102", True)]


class Halved(nn.Module):
    """An activation whose first part is fused with the layer before it, and another branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act = nn.Linear(6, 12), nn.LogSigmoid()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 6]`` to ``[N, 12]`` and ``[N, 6]``."""
        return self.act(self.fc(x)), torch.sin(x)


def test_a_fused_activation_is_not_the_layer_that_it_belongs_to(tmp_path: Path) -> None:
    """Once any stage was broken, the layer was taken for the fused node by its weights."""
    module, inputs = Halved().eval(), (torch.randn(4, 6),)
    exported(module, inputs, "torchscript", tmp_path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(tmp_path / "healthy.onnx"), options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "fused.onnx")
    assert first_node(model, "FusedGemm")
    first_node(model, "Sin").op_type = "Cos"
    report = judged(module, inputs, model, tmp_path)
    assert origins(report) == [("/sin#0", 0)]


class Attention(nn.Module):
    """Three projections alike, with biases of zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[1, T, 8]`` each."""
        return self.att(query, key, value)[0]  # type: ignore[no-any-return]


def test_a_sum_behind_a_product_that_has_a_pair_is_no_other_operations(tmp_path: Path) -> None:
    module, inputs = Attention().eval(), tuple(torch.randn(1, 6, 8) for _ in range(3))
    model = exported(module, inputs, "torchscript", tmp_path)
    name = first_node(model, "MatMul").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[0] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    report = judged(module, inputs, model, tmp_path)
    assert origins(report) == [("att/addmm#0", 0)]


class Order(nn.Module):
    """The order of numbers with ties among them."""

    def __init__(self, pad: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """``[N, M, 8]`` to ``[N, M, 10]``."""
        x = self.pad(x)
        return torch.argsort(x, dim=-1).float() / x.shape[-1] + x


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_reversed_order_is_no_rounding_for_the_sake_of_a_tie(exporter: Exporter, tmp_path: Path) -> None:
    """Rounding may exchange two equal numbers; by the norm of indices that was as much as the whole order."""
    module = Order(lambda x: torch.nn.functional.pad(x, (1, 1), value=0.5)).eval()
    torch.manual_seed(0)
    inputs = (torch.randn(2, 5, 8),)
    model = exported(module, inputs, exporter, tmp_path)
    assert judged(module, inputs, model, tmp_path).verdict.status == "agrees"
    node = first_node(model, "TopK")
    largest = next(given for given in node.attribute if given.name == "largest")
    largest.i = 1 - largest.i
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "diverges"
    assert origins(report) == [("/sort#0", 0)]


class Best(nn.Module):
    """The best scores and what belongs to them, as a detector has it; many scores are zeros alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.boxes = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, M, 6]`` to ``[N, 8]`` and ``[N, 8, 4]``."""
        scores, places = torch.relu(self.scores(x) - 1.2).flatten(1).topk(8)
        return scores, self.boxes(x).gather(1, (places // 4)[..., None].expand(-1, -1, 4))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_places_of_ties_belong_to_their_numbers(exporter: Exporter, tmp_path: Path) -> None:
    """Which of equal scores comes first is nobody's rule; behind their places everything passed as rounding."""
    module, inputs = Best().eval(), (torch.randn(1, 30, 6, generator=torch.Generator().manual_seed(3)),)
    model = exported(module, inputs, exporter, tmp_path)
    healthy = judged(module, inputs, model, tmp_path)
    assert healthy.verdict.status == "agrees"
    assert any("same node" in pair.evidence for pair in healthy.alignment.pairs)
    assert not any("rounding grows" in line for line in healthy.verdict.summary)
    model.graph.initializer.append(numpy_helper.from_array(np.array(5), "five"))
    first_node(model, "Div").input[1] = "five"
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "diverges"
    assert origins(report) == [("/floor_divide#0", 0)]


class Basis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(0, 2, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """``[N]`` to ``[N, 4]``."""
        return self.fc(torch.exp(-((x[:, None] - self.centres) ** 2) * 8))  # type: ignore[no-any-return]


class Bases(nn.Module):
    """Twice the same of one input, which the exporter merges."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = Basis(), Basis()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N]`` to ``[N, 4]`` twice."""
        return self.a(x), self.b(x)


def test_what_reads_a_broken_stage_under_another_name_fails_too(tmp_path: Path) -> None:
    module, inputs = Bases().eval(), (torch.rand(12) * 2,)
    model = exported(module, inputs, "dynamo", tmp_path)
    node = first_node(model, "Mul")
    node.op_type = "Identity"
    del node.input[1]
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "diverges"
    assert {row.stage: row.results["ort-cpu-off"].judgement for row in report.stages if row.type == "Linear"} == {
        "a.fc": "fail",
        "b.fc": "fail",
    }
    assert not any("no fault" in line for line in report.verdict.summary)


class Layers(nn.Module):
    """Recurrent layers on one sample: time first in the graph is the same numbers as batch first, in another shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(6, 8, 3, padding=1), nn.Linear(6, 4)
        self.lstm, self.gru = nn.LSTM(8, 5, batch_first=True, bidirectional=True), nn.GRU(10, 6, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 6, T]`` to ``[N, T, 4]`` and the last state."""
        found, last = self.gru(self.lstm(torch.tanh(self.conv(x)).transpose(1, 2))[0])
        return self.head(found), last


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_layers_on_one_sample_are_given_the_graphs_shape(exporter: Exporter, tmp_path: Path) -> None:
    """A fault before them leaves them without an equal value; the graph does not run on PyTorch's axes."""
    module, inputs = Layers().eval(), (torch.randn(1, 6, 12),)
    model = exported(module, inputs, exporter, tmp_path)
    name = first_node(model, "Conv").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[1] *= -1
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    report = judged(module, inputs, model, tmp_path)
    assert origins(report) == [("conv", 0)]
    assert report.notes == ()


class Recurrent(nn.Module):
    """Batch-first modules behind each other, whose transpositions TorchScript's exporter cancels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.att = nn.MultiheadAttention(8, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 8]``, as given."""
        x = self.lstm(x)[0]
        return x + self.att(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


class Attentions(nn.Module):
    """One attention reads the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.MultiheadAttention(8, 2, batch_first=True)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 8]``, as given."""
        x = self.lstm(x, x, x, need_weights=False)[0]
        return x + self.att(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(("kind", "amount"), [(Recurrent, 1e-4), (Attentions, 0.05)])
def test_a_value_that_is_read_in_two_orders_of_axes_is_one(
    kind: type[nn.Module], amount: float, exporter: Exporter, tmp_path: Path
) -> None:
    """The attention reads what is before a transposition, the sum what is behind it; both are the first module's."""
    module, inputs = kind().eval(), (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
    model = exported(module, inputs, exporter, tmp_path)
    node = first_node(model, "LSTM", "MatMul", "Gemm")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weight = numpy_helper.to_array(tensor).copy()
    weight.flat[3] += amount
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    report = judged(module, inputs, model, tmp_path)
    assert {stage.partition("/")[0] for stage, _ in origins(report)} == {"lstm"}
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD202", True)]


class Rotary(nn.Module):
    """Rotary embedding before an attention, which scales both of its products itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("speeds", 1 / 10000 ** (torch.arange(0, 4, 2).float() / 4))

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """``[N, T, 4]`` and a number, to ``[N, 1, T, 4]``."""
        angles = torch.outer(torch.arange(x.shape[1]).float() + past, self.speeds)
        angles = torch.cat((angles, angles), -1)

        def turned(y: Tensor) -> Tensor:
            first, second = y.chunk(2, -1)
            return (y * angles.cos() + torch.cat((-second, first), -1) * angles.sin())[:, None]

        query, key = turned(self.query(x)), turned(self.key(x))
        return torch.nn.functional.scaled_dot_product_attention(query, key, x[:, None])


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_product_is_nearer_than_the_scaling_behind_it(exporter: Exporter, tmp_path: Path) -> None:
    """Of two products that come from what the stage reads, the one that reads it itself is the stage's."""
    module, inputs = Rotary().eval(), (torch.randn(2, 3, 4), torch.tensor(4.0))
    model = exported(module, inputs, exporter, tmp_path)
    for cosine in [node for node in model.graph.node if node.op_type == "Cos"]:
        cosine.op_type = "Identity"
    report = judged(module, inputs, model, tmp_path)
    assert {stage.partition("#")[0] for stage, _ in origins(report)} <= {"/mul", "/cos"}
    assert all(cause.remedy_verified for cause in report.verdict.diagnoses)
    assert {cause.code for cause in report.verdict.diagnoses} == {"BD103"}


class Corners(nn.Module):
    """A box as its corners: half its size is computed twice, and once in the graph. Four equal parts, one for each number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.box = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8]`` to ``[N, 4]``."""
        cx, cy, w, h = self.box(x).sigmoid().unbind(-1)
        return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], -1)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_node_that_reads_what_another_stage_reads_rightly(exporter: Exporter, tmp_path: Path) -> None:
    """The second product halves the width once more: neither the repeated product's fault nor that of the width."""
    module, inputs = Corners().eval(), (torch.randn(7, 8),)
    model = exported(module, inputs, exporter, tmp_path)
    first, second = (node for node in model.graph.node if node.op_type == "Mul")
    right = second.input[0]
    second.input[0] = first.input[0]
    report = judged(module, inputs, model, tmp_path)
    (origin,) = report.verdict.origins
    assert ("/mul#1", (second.name,)) == (origin.ref.stage, origin.onnx_nodes)
    (cause,) = report.verdict.diagnoses
    assert ("BD105", f"let it read {right}", True) == (cause.code, cause.remedy, cause.remedy_verified)
    assert report.alignment.aligned == report.alignment.stages


class Unrolled(nn.Module):
    """The same sum in the first step of two recurrences."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.steps = nn.Linear(8, 5), nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 4, 8]`` to two of ``[N, 5]``."""
        x = self.fc(x)
        first = best = x[:, 0]
        for i in range(1, 4):
            first = torch.logsumexp(first.unsqueeze(2) + self.steps + x[:, i].unsqueeze(1), 1)
            best = (best.unsqueeze(2) + self.steps).max(1)[0] + x[:, i]
        return first, best


def test_what_is_computed_again_takes_no_half_precision_for_its_own(tmp_path: Path) -> None:
    """A cast behind a later sum belongs to that, and is no value for the one that the exporter left out."""
    module, inputs = Unrolled().eval(), (torch.randn(2, 4, 8),)
    model = exported(module, inputs, "dynamo", tmp_path)
    sums = [(place, node) for place, node in enumerate(model.graph.node) if "steps" in node.input]
    place, node = sums[1]
    name = node.output[0]
    node.output[0] = f"{name}_wide"
    model.graph.node.insert(place + 1, helper.make_node("Cast", [f"{name}_wide"], [f"{name}_half"], to=10))
    model.graph.node.insert(place + 2, helper.make_node("Cast", [f"{name}_half"], [name], to=1))
    report = judged(module, inputs, model, tmp_path)
    assert [origin.onnx_value for origin in report.verdict.origins] == [name]
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD107", True)]


class Gate(nn.Module):
    """Returns what it is computed from as well; nobody uses that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Twice ``[N, 6]``, as given."""
        state = x @ self.weight
        return torch.tanh(state) * 2, state


class Gated(nn.Module):
    """A gate, and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.out = Gate(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 6]`` to ``[N, 3]``."""
        return self.out(self.gate(x)[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_result_that_nobody_uses_is_not_taken_for_the_other(exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = Gated().eval(), (torch.randn(2, 6),)
    model = exported(module, inputs, exporter, tmp_path)
    first_node(model, "Tanh").op_type = "Sigmoid"
    report = judged(module, inputs, model, tmp_path)
    assert [(origin.ref.stage, origin.ref.output) for origin in report.verdict.origins] == [("gate", 0)]
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD102", True)]


class Residual(nn.Module):
    """Two blocks of one form, with a sum behind each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 16]``, as given."""
        x = x + self.first(x)
        return x + self.second(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["bias", "weight"])
def test_weights_that_were_exchanged_in_a_file_without_names(kind: str, tmp_path: Path) -> None:
    """A weight says where a node is, unless all around it says otherwise."""
    module, inputs = Residual().eval(), (torch.randn(2, 6, 16),)
    model = exported(module, inputs, "torchscript", tmp_path)
    one, other = (w for w in model.graph.initializer if list(w.dims) == ([16] if kind == "bias" else [32, 16]))
    one.raw_data, other.raw_data = other.raw_data, one.raw_data
    report = judged(module, inputs, without_names(model), tmp_path)
    assert [origin.ref.stage for origin in report.verdict.origins] == ["first.2", "second.2"]
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD202", True)] * 2


class Experts(nn.Module):
    """Two of one form; their GELU is written out as it is not in any export."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU("tanh"), nn.Linear(16, 8)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 8]``, as given."""
        return torch.stack([expert(x) for expert in self.experts], -2).sum(-2)


def test_a_module_that_only_structure_tells_is_not_fed_too_early(tmp_path: Path) -> None:
    """The last of the nodes that a GELU is written out with is its own, whatever stands at that place in an export."""
    module, inputs = Experts().eval(), (torch.randn(2, 6, 8),)
    model = exported(module, inputs, "torchscript", tmp_path, opset=17)
    one, other = (w for w in model.graph.initializer if list(w.dims) == [8, 16])
    one.raw_data, other.raw_data = other.raw_data, one.raw_data
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(value), f"c{value}") for value in (1, 2))
    written: list[onnx.NodeProto] = []
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type == "Tanh":  # 2 sigmoid(2 x) - 1
            written += [
                helper.make_node("Add", [node.input[0], node.input[0]], [f"{name}_a"]),
                helper.make_node("Sigmoid", [f"{name}_a"], [f"{name}_b"]),
                helper.make_node("Mul", [f"{name}_b", "c2"], [f"{name}_c"]),
                helper.make_node("Sub", [f"{name}_c", "c1"], [name]),
            ]
            continue
        if node.op_type in ("Mul", "Add"):
            node.input[:] = reversed(node.input)
        written.append(node)
    del model.graph.node[:]
    model.graph.node.extend(written)
    report = judged(module, inputs, without_names(model), tmp_path)
    assert [origin.ref.stage for origin in report.verdict.origins] == ["experts.0.0", "experts.1.0"]
    assert {cause.code for cause in report.verdict.diagnoses} == {"BD202"}


class Likeness(nn.Module):
    """One exporter multiplies first and divides then, and has no value for what PyTorch multiplies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 6]`` to ``[N]``."""
        return nn.functional.cosine_similarity(self.one(x).relu(), self.two(x), dim=1)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_is_computed_otherwise_behind_a_fault_has_no_node(exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = Likeness().eval(), (torch.randn(5, 6),)
    model = exported(module, inputs, exporter, tmp_path)
    weight = next(t for t in model.graph.initializer if t.name == "one.weight")
    changed = numpy_helper.to_array(weight).copy()
    changed[1] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    assert origins(judged(module, inputs, model, tmp_path)) == [("one", 0)]


class AsLongAsWide(nn.Module):
    """As many steps as numbers in each: the graph's first two axes could be PyTorch's in two ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.gru = nn.LSTM(5, 6, 2, batch_first=True), nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 6, 5]`` to ``[N, 6]`` and ``[N, 6]``."""
        made, (hidden, _) = self.lstm(x)
        return self.gru(made)[0][:, -1], hidden[-1]


def test_a_broken_recurrence_of_equal_axes_keeps_its_pair(tmp_path: Path) -> None:
    module, inputs = AsLongAsWide().eval(), (torch.randn(3, 6, 5),)
    model = exported(module, inputs, "torchscript", tmp_path)
    (_, second) = [node for node in model.graph.node if node.op_type == "LSTM"]
    second.attribute.append(helper.make_attribute("direction", "reverse"))
    report = judged(module, inputs, model, tmp_path)
    assert {place for place, _ in origins(report)} == {"lstm"}
    assert [(each.code, each.remedy_verified) for each in report.verdict.diagnoses] == [("BD101", True)]


class Hashed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """``[N]``, whole numbers."""
        return x * 40503 + 7


def test_whole_numbers_that_float64_cannot_tell_apart(tmp_path: Path) -> None:
    module, inputs = Hashed().eval(), (torch.arange(64) + 2**47,)
    model = exported(module, inputs, "dynamo", tmp_path)
    assert judged(module, inputs, model, tmp_path).verdict.status == "agrees"
    (seven,) = [t for t in model.graph.initializer if numpy_helper.to_array(t) == 7]
    seven.CopyFrom(numpy_helper.from_array(np.asarray(8), seven.name))
    report = judged(module, inputs, model, tmp_path)
    assert (report.verdict.status, origins(report)) == ("diverges", [("/add#0", 0)])
    assert [each.code for each in report.verdict.diagnoses] == ["BD106"]


class Decaying(nn.Module):
    """Nothing uses the state behind the last step; exporters leave it out."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor([0.1, -0.2, 0.3, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 4]``, as given."""
        state, made = x[:, 0] * 0.5, []
        for step in range(2):
            made.append(torch.tanh(state + x[:, step]))
            state = torch.exp(x[:, step] * 0.3) + torch.exp(x[:, step] - self.decay) * state
        return torch.stack(made, 1)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_no_output_comes_from_is_no_stage_that_lacks_its_value(exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = Decaying().eval(), (torch.randn(1, 3, 4),)
    report = judged(module, inputs, exported(module, inputs, exporter, tmp_path), tmp_path)
    assert (report.verdict.status, report.alignment.coverage) == ("agrees", 1.0)


class Contracted(nn.Module):
    """A sum of products, which is a product of matrices in PyTorch and an ``Einsum`` in the graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, I, H, 6]`` to ``[B, I, 2]`` and ``[B, I]``."""
        made = self.a(x)
        return self.o(made).sum(2), torch.einsum("bihk,bihk->bi", made, made)


class CalledTwice(nn.Module):
    """One exporter keeps one of two equal calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.o = nn.Conv1d(3, 6, 3, padding=1)

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 3, T]`` and ``[N, 1, T]`` to ``[N, 6]`` twice."""
        return self.o(x).masked_fill(hidden, 0.0).sum(-1), self.o(x).masked_fill(hidden, -9.0).amax(-1)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind", ["contracted", "called twice"])
def test_a_layer_beside_what_has_no_node_of_its_own(kind: str, exporter: Exporter, tmp_path: Path) -> None:
    torch.manual_seed(1)
    if kind == "contracted":
        module, inputs = Contracted().eval(), (torch.randn(2, 6, 4, 6),)
    else:
        module, inputs = CalledTwice().eval(), (torch.randn(4, 3, 10), torch.rand(4, 1, 10) > 0.5)  # type: ignore[assignment]
    model = exported(module, inputs, exporter, tmp_path)
    bias = next(t for t in model.graph.initializer if t.name == "o.bias")
    bias.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(bias), bias.name))
    report = judged(module, inputs, model, tmp_path)
    assert origins(report) == [("o", 0)]
    assert [(each.code, each.remedy_verified) for each in report.verdict.diagnoses] == [("BD202", True)]


class Unused(nn.Module):
    """Three calls of a layer, of which nothing uses the last: as many as the two equal ones that were computed twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.o = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 6]`` to the same twice."""
        made = torch.sin(x)
        first, second, _ = self.o(made), self.o(made), self.o(torch.cos(x))
        return torch.where(first > 0, first, 0.0), torch.where(second < 0, second, 1.0)


def test_two_equal_calls_that_the_graph_has_both(tmp_path: Path) -> None:
    """As it comes without the exporter's own optimisation."""
    module, inputs = Unused().eval(), (torch.randn(4, 6),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, tmp_path / "plain.onnx", dynamo=True, optimize=False, verbose=False)
    model = onnx.load(tmp_path / "plain.onnx")
    assert sum(node.op_type in ("Gemm", "MatMul") for node in model.graph.node) == 2
    assert judged(module, inputs, model, tmp_path).verdict.status == "agrees"


class Branches(nn.Module):
    """Two branches that read one value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(8, 3)
        self.one, self.two = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, 3]``."""
        x = self.stem(x)
        return self.fc(torch.cat([self.one(x), self.two(x)], 1).mean((2, 3)))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_layers_of_two_modules_whose_results_have_another_size(exporter: Exporter, tmp_path: Path) -> None:
    """Each is its own module's, and values of two sizes that do not fit together end no run."""
    module, inputs = Branches().eval(), (torch.randn(2, 3, 8, 8),)
    model = exported(module, inputs, exporter, tmp_path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "pads":
                attribute.ints[:] = [0] * 4
    model.graph.ClearField("value_info")
    assert origins(judged(module, inputs, model, tmp_path)) == [("one.0", 0), ("two.0", 0)]
