"""Models that hooks on modules can't see: each agrees when healthy, and a fault in one weight is found where it is.

Faults are planted on PyTorch's side, after the export: so no knowledge of the graph, or of this tool's alignment, is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bisect_tool import LoadedCase, Options, Report, bisect, make_tolerance
from bisect_tool.backends import unfold as unfold_module
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.models import load_model


class Functional(nn.Module):
    """No submodules at all."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 8) * 0.3)
        self.w2 = nn.Parameter(torch.randn(4, 16) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 4)."""
        return torch.softmax(F.linear(F.layer_norm(F.gelu(F.linear(x, self.w1)), (16,)), self.w2), -1)


class Shared(nn.Module):
    """A layer called four times, under two names, and an embedding that is the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(20, 16)
        self.layer = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.emb.weight
        self.alias = self.layer

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, 20)."""
        x = self.emb(ids)
        for _ in range(3):
            x = self.norm(x + torch.tanh(self.layer(x)))
        return self.head(self.alias(x))


class Attention(nn.Module):
    """Self-attention, and attention to something of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 16)
        self.own = nn.MultiheadAttention(16, 4, batch_first=True)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True, kdim=8, vdim=8)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 16) and (B, S, 8) -> (B, T, 4) and the weights of attention."""
        found, weights = self.own(self.q(x), x, x)
        return self.out(self.cross(found, memory, memory)[0]), weights


class Nested(nn.Module):
    """An encoder inside an encoder's place; with padding it works on nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        inner = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16))
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoder(inner, 1))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """(B, T, 16) and (B, T) -> (B, T, 3)."""
        return self.out(self.inner(self.enc(x, src_key_padding_mask=padding)))


class Recurrent(nn.Module):
    """Three kinds of recurrence, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 12, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(24, 10, batch_first=True)
        self.rnn = nn.RNN(10, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 8) -> (T, B, 3) and the last state of the LSTM."""
        y, (h, _) = self.lstm(self.inp(x))
        y, _ = self.gru(y)
        y, _ = self.rnn(y.transpose(0, 1))
        return self.out(y), h


class Packed(nn.Module):
    """A recurrence over sequences of several lengths."""

    def __init__(self, kind: str, ordered: bool) -> None:
        super().__init__()
        self.ordered = ordered
        self.inp = nn.Linear(8, 8)
        self.rec = getattr(nn, kind)(8, 12, batch_first=True, bidirectional=True)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, 8) and (B,) -> (B, T, 3)."""
        packed = pack_padded_sequence(self.inp(x).relu(), lengths, batch_first=True, enforce_sorted=self.ordered)
        y, _ = pad_packed_sequence(self.rec(packed)[0], batch_first=True)
        return self.out(y)


class Spectral(nn.Module):
    """A filter in the frequency domain, and a rotation by a complex number."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(16, 16)
        self.filter = nn.Parameter(torch.randn(9, 2) * 0.5)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 16) -> (B, 4) and (B, 9)."""
        spectrum = torch.fft.rfft(self.inp(x), dim=-1) * torch.view_as_complex(self.filter)
        y = torch.fft.irfft(spectrum, n=16, dim=-1)
        turned = torch.view_as_complex(y.reshape(-1, 8, 2)) * torch.polar(torch.ones(8), torch.arange(8.0))
        return self.out(torch.view_as_real(turned).flatten(1)), spectrum.abs()


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.5 * x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def symbolic(graph: Any, x: Any) -> Any:
        return graph.op("Mul", x, graph.op("Sigmoid", graph.op("Mul", x, torch.tensor(1.5))))


class Custom(nn.Module):
    """A function with a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 4)."""
        return self.b(_Swish.apply(self.a(x)))


class Plain(nn.Module):
    """Convolutions, as most models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 5)."""
        x = torch.relu(self.bn(self.a(x)))
        return self.fc((x + torch.relu(self.b(x))).mean((2, 3)))


class Looped(nn.Module):
    """A shared layer in a loop; scripted, the number of rounds is that of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.step = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 2)."""
        x = self.stem(x)
        for _ in range(int(x.size(0))):
            x = torch.tanh(self.step(x)) + x
        return self.head(x)


class Scanned(nn.Module):
    """The scan of torch's higher-order operators."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.step = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, 8) -> (T, B, 2)."""
        from torch._higher_order_ops.scan import scan

        def combine(state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.tanh(self.step(state) + row)
            return state, state.clone()

        return self.head(scan(combine, torch.zeros(x.shape[1], 8), self.stem(x))[1])


def _sizes(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


def _ids() -> tuple[Tensor, ...]:
    return (torch.randint(0, 20, (2, 5)),)


def _lengths(*lengths: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(3, 6, 8), torch.tensor(lengths))


@dataclass(frozen=True)
class Kind:
    """A model, its sample, exporters that know it, and where a fault in a weight has to be found.

    Attributes:
        form: ``module``, ``compiled``, or the file that it is read from: ``pt2``, ``traced``, ``scripted``.
        faults: weight -> stages that are the origins.
    """

    build: Callable[[], nn.Module]
    sample: Callable[[], tuple[Tensor, ...]]
    exporters: tuple[str, ...]
    faults: dict[str, list[str]]
    form: str = "module"


BOTH, DYNAMO, TORCHSCRIPT = ("dynamo", "torchscript"), ("dynamo",), ("torchscript",)
_LAYERS = {"layer.weight": ["layer", "layer@1", "layer@2", "layer@3"]}
_IMAGE = _sizes((2, 3, 8, 8))

KINDS = {
    "functional": Kind(Functional, _sizes((3, 8)), TORCHSCRIPT, {"w1": ["/mm#0"], "w2": ["/mm#1"]}),
    "shared": Kind(Shared, _ids, TORCHSCRIPT, {**_LAYERS, "norm.weight": ["norm", "norm@1", "norm@2"]}),
    "attention": Kind(
        Attention,
        _sizes((2, 5, 16), (2, 7, 8)),
        BOTH,
        {"own.in_proj_weight": ["own/mm#0"], "cross.k_proj_weight": ["cross/mm#0"], "out.weight": ["out"]},
    ),
    "encoders": Kind(
        Nested,
        lambda: (torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)),
        TORCHSCRIPT,
        {"inner.0.weight": ["inner.0"], "out.weight": ["out"]},
    ),
    "recurrent": Kind(
        Recurrent,
        _sizes((3, 6, 8)),
        BOTH,
        {"lstm.weight_hh_l0": ["lstm", "lstm[1.0]"], "gru.weight_ih_l0": ["gru"], "rnn.weight_hh_l0": ["rnn"]},
    ),
    # What the recurrence makes is packed in PyTorch and padded in the graph: the next stage tells.
    "packed GRU": Kind(
        lambda: Packed("GRU", True),
        _lengths(6, 4, 2),
        TORCHSCRIPT,
        {"inp.weight": ["inp"], "rec.weight_hh_l0": ["out"], "out.weight": ["out"]},
    ),
    "packed LSTM": Kind(
        lambda: Packed("LSTM", False),
        _lengths(2, 6, 4),
        TORCHSCRIPT,
        {"inp.weight": ["inp"], "rec.weight_hh_l0": ["/index_select#1"], "out.weight": ["out"]},
    ),
    "complex": Kind(
        Spectral,
        _sizes((3, 16)),
        DYNAMO,
        {"inp.weight": ["inp"], "filter": ["/mul#0"], "out.weight": ["out"]},
    ),
    "custom function": Kind(Custom, _sizes((3, 8)), TORCHSCRIPT, {"a.weight": ["a"], "b.weight": ["b"]}),
    "compiled": Kind(
        Plain, _IMAGE, TORCHSCRIPT, {"a.weight": ["bn"], "b.weight": ["b"], "fc.weight": ["fc"]}, "compiled"
    ),
    "pt2": Kind(Plain, _IMAGE, DYNAMO, {"a.weight": ["bn"], "b.weight": ["b"], "fc.weight": ["fc"]}, "pt2"),
    # A program keeps the second name.
    "pt2 shared": Kind(Shared, _ids, BOTH, {"layer.weight": ["layer", "layer@1", "layer@2", "alias"]}, "pt2"),
    "pt2 recurrent": Kind(
        Recurrent, _sizes((3, 6, 8)), DYNAMO, {"inp.weight": ["inp"], "gru.weight_ih_l0": ["gru"]}, "pt2"
    ),
    "traced": Kind(Plain, _IMAGE, TORCHSCRIPT, {"b.weight": ["/_convolution#1"], "fc.weight": ["/addmm#0"]}, "traced"),
    "scripted loop": Kind(
        Looped,
        _sizes((3, 8)),
        TORCHSCRIPT,
        {"step.weight": [f"/addmm#{i}" for i in (1, 2, 3)], "head.weight": ["/addmm#4"]},
        "scripted",
    ),
    "scan": Kind(Scanned, _sizes((3, 2, 8)), DYNAMO, {"stem.weight": ["stem"], "head.weight": ["head"]}),
}


def _made(kind: Kind, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    model = kind.build().eval()
    if kind.form == "compiled":
        return torch.compile(model)  # type: ignore[return-value]
    if kind.form == "module":
        return model
    file = folder / ("model.pt2" if kind.form == "pt2" else "model.pt")
    if not file.exists():
        with torch.no_grad():
            if kind.form == "pt2":
                torch.export.save(torch.export.export(model, _sample(kind)), file)
            elif kind.form == "traced":
                torch.jit.trace(model, _sample(kind)).save(str(file))
            else:
                torch.jit.script(model).save(str(file))
    return load_model(str(file)).module


def _sample(kind: Kind) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return kind.sample()


def judged(kind: Kind, folder: Path, weight: str | None = None) -> Report:
    """The report on a model and its file in a folder, where one row of a weight was scaled after the export."""
    model = _made(kind, folder)
    if weight is not None:
        inner = getattr(model, "_orig_mod", model)
        with torch.no_grad():
            dict(inner.named_parameters(remove_duplicate=False))[weight][1] *= 1.5
    return report_on(model, _sample(kind), folder / "model.onnx")


def report_on(model: nn.Module, sample: tuple[Tensor, ...], file: Path) -> Report:
    options = Options(make_tolerance(None, None, None), onnx=file, optimizations=("off",), threads=1)
    return bisect(LoadedCase("unseen", model, sample, {}), options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "exporter"), [(name, e) for name, kind in KINDS.items() for e in kind.exporters])
def test_healthy_agrees_and_faults_are_found(tmp_path: Path, name: str, exporter: str) -> None:
    """Nothing is said against the healthy model; of a faulty one the stages are named, and no others before them."""
    kind = KINDS[name]
    file = tmp_path / "model.onnx"
    export_onnx(_made(kind, tmp_path), _sample(kind), {}, file, ExportSettings(exporter))  # type: ignore[arg-type]
    healthy = judged(kind, tmp_path)
    assert ("agrees", 1.0) == (healthy.verdict.status, healthy.alignment.coverage), healthy.verdict.summary
    assert healthy.alignment.aligned >= 3
    for weight, stages in kind.faults.items():
        verdict = judged(kind, tmp_path, weight).verdict
        found = [str(origin.ref) for origin in verdict.origins]
        assert ("diverges", stages) == (verdict.status, found[: len(stages)]), (weight, found)
        # Behind them at most further outputs of the same modules.
        assert {ref.partition("[")[0] for ref in found} <= {ref.partition("[")[0] for ref in stages}, (weight, found)


@pytest.mark.filterwarnings("ignore")
def test_nested_tensors_are_said_to_be_the_reason(tmp_path: Path) -> None:
    """With padding the fast path puts zeros where a graph computes: that is a divergence, and the report knows why."""
    torch.manual_seed(0)
    model = Nested().eval()
    sample = (torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
    export_onnx(model, sample, {}, tmp_path / "model.onnx", ExportSettings("torchscript"))
    report = report_on(model, sample, tmp_path / "model.onnx")
    assert "diverges" == report.verdict.status
    assert ["enc/to_padded_tensor#0"] == [origin.stage for origin in report.verdict.origins]
    assert any("enable_nested_tensor=False" in note for note in report.notes)


class Compiling(nn.Module):
    """Compiles a part of itself, while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 2)."""
        part = torch.compile(lambda t: self.stem(t).relu(), backend="eager", fullgraph=True)
        return self.head(part(x))


def test_a_part_that_the_model_compiles_runs_as_it_is(tmp_path: Path) -> None:
    """The operations inside are stages as any others; afterwards torch compiles again."""
    torch.manual_seed(0)
    model, sample, before = Compiling().eval(), (torch.randn(5, 8),), torch.compile
    export_onnx(model, sample, {}, tmp_path / "model.onnx", ExportSettings("torchscript"))
    report = report_on(model, sample, tmp_path / "model.onnx")
    assert "agrees" == report.verdict.status
    assert {"stem", "/relu#0", "head"} <= {pair.ref.stage for pair in report.alignment.pairs}
    assert before is torch.compile


def test_a_compiled_model_stays_compiled(tmp_path: Path) -> None:
    """Its parts are put back, and the report says that they ran uncompiled."""
    model = nn.Sequential(torch.compile(nn.Linear(8, 8)), nn.ReLU()).eval()  # type: ignore[arg-type]
    compiled, sample = model[0], (torch.randn(2, 8),)
    export_onnx(model, sample, {}, tmp_path / "model.onnx", ExportSettings("torchscript"))
    report = report_on(model, sample, tmp_path / "model.onnx")
    assert "agrees" == report.verdict.status
    assert any(note.startswith("torch.compile: 0 runs uncompiled") for note in report.notes)
    assert compiled is model[0] and "OptimizedModule" == type(model[0]).__name__


# -- graphs that no exporter wrote ------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two layers with an activation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 8)."""
        return torch.tanh(self.b(torch.relu(self.a(x))))


def _functions(model: Small) -> onnx.ModelProto:
    """The model as calls of functions of the file's own, one with an attribute, one inside the other."""
    opset = [helper.make_opsetid("", 18)]
    dense = helper.make_function(
        "own",
        "Dense",
        ["x", "w", "b"],
        ["y"],
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["y"]),
        ],
        opset,
    )
    leaky = helper.make_node("LeakyRelu", ["d"], ["y"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    layer = helper.make_function(
        "own",
        "Layer",
        ["x", "w", "b"],
        ["y"],
        [helper.make_node("Dense", ["x", "w", "b"], ["d"], domain="own"), leaky],
        [*opset, helper.make_opsetid("own", 1)],
        ["slope"],
    )
    nodes = [
        helper.make_node("Layer", ["x", "wa", "ba"], ["h"], "first", domain="own", slope=0.0),
        helper.make_node("Dense", ["h", "wb", "bb"], ["d"], "second", domain="own"),
        helper.make_node("Tanh", ["d"], ["y"], "end"),
    ]
    return _model(nodes, _weights(model), [dense, layer])


def _weights(model: Small) -> dict[str, Tensor]:
    return {"wa": model.a.weight, "ba": model.a.bias, "wb": model.b.weight, "bb": model.b.bias}


def _model(nodes: list[Any], weights: dict[str, Tensor], functions: list[Any]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 8]) for name in "xy")
    held = [numpy_helper.from_array(weight.detach().numpy(), name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "made", [x], [y], held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    made = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def _branches(model: Small) -> onnx.ModelProto:
    """All of the model within one If within another, weights as constants inside."""

    def body(name: str, scale: float, wrap: bool) -> onnx.GraphProto:
        constants = [
            helper.make_node("Constant", [], [f"{name}_{key}"], value=numpy_helper.from_array(array))
            for key, array in {k: w.detach().numpy() * np.float32(scale) for k, w in _weights(model).items()}.items()
        ]
        nodes = [
            *constants,
            helper.make_node("Gemm", ["x", f"{name}_wa", f"{name}_ba"], [f"{name}_1"], f"{name}_gemm", transB=1),
            helper.make_node("Relu", [f"{name}_1"], [f"{name}_2"], f"{name}_relu"),
            helper.make_node(
                "Gemm", [f"{name}_2", f"{name}_wb", f"{name}_bb"], [f"{name}_3"], f"{name}_last", transB=1
            ),
            helper.make_node("Tanh", [f"{name}_3"], [f"{name}_4"], f"{name}_tanh"),
        ]
        out = helper.make_tensor_value_info(f"{name}_4", TensorProto.FLOAT, None)
        inner = helper.make_graph(nodes, name, [], [out])
        if not wrap:
            return inner
        other = body(f"{name}_other", 0.0, False)
        yes = helper.make_node("Constant", [], [f"{name}_yes"], value=numpy_helper.from_array(np.array(True)))
        choose = helper.make_node(
            "If", [f"{name}_yes"], [f"{name}_5"], f"{name}_if", then_branch=inner, else_branch=other
        )
        return helper.make_graph(
            [yes, choose], f"{name}_outer", [], [helper.make_tensor_value_info(f"{name}_5", 1, None)]
        )

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "zero"], ["rows"], "rows"),
        helper.make_node("Equal", ["rows", "three"], ["same"], "same"),
        helper.make_node(
            "If", ["same"], ["y"], "choice", then_branch=body("in", 1, True), else_branch=body("out", 0, False)
        ),
    ]
    numbers = {"zero": torch.tensor(0), "three": torch.tensor(3)}
    return _model(nodes, numbers, [])


def _faulty(model: onnx.ModelProto) -> onnx.ModelProto:
    """One row of the second layer's weight is 1.5 times as large."""
    old = numpy_helper.to_array(next(t for t in _tensors(model.graph) if t.name == "wb" or t.name == "in_wb"))
    wrong = old.copy()
    wrong[1] *= 1.5
    for tensor in _tensors(model.graph):
        if tensor.name in ("wb", "in_wb"):
            tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    return model


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Initialisers, and constants under the name of their value, in the graph and in all bodies."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                attribute.t.name = node.output[0]
                found.append(attribute.t)
            elif attribute.HasField("g"):
                found += _tensors(attribute.g)
    return found


def _older_functions(model: Small) -> onnx.ModelProto:
    """The same, with functions written for older opsets than the graph is."""
    made = _functions(model)
    for function in made.functions:
        for opset in function.opset_import:
            opset.version = {"": 15, "own": 3}[opset.domain]
    return made


@pytest.mark.parametrize("build", [_functions, _older_functions, _branches])
def test_functions_and_branches_of_a_file_are_looked_into(tmp_path: Path, build: Callable[[Small], Any]) -> None:
    """Layers inside have values; a wrong weight inside is found at its layer, and the file itself stays as it was."""
    torch.manual_seed(0)
    model, sample, file = Small().eval(), (torch.randn(3, 8),), tmp_path / "model.onnx"
    onnx.save(build(model), file)
    report = report_on(model, sample, file)
    assert ("agrees", 4, 1.0) == (report.verdict.status, report.alignment.aligned, report.alignment.coverage)
    assert any("taken apart" in note or "takes the then_branch" in note for note in report.notes)
    onnx.save(_faulty(build(model)), file)
    verdict = report_on(model, sample, file).verdict
    (origin,) = verdict.origins
    assert ("diverges", "b") == (verdict.status, origin.stage)
    assert {*origin.onnx_nodes} <= {"second/Transpose", "second/MatMul", "second/Add", "in_last"}


def test_a_function_that_would_mean_something_else_stays_closed(tmp_path: Path) -> None:
    """A note names the operator; what the function returns is compared."""
    torch.manual_seed(0)
    model, file = Small().eval(), tmp_path / "model.onnx"
    made = _functions(model)
    (dense, _) = made.functions
    # A factor of one, by an operator whose axis means something else since opset 13.
    dense.node[2].output[0] = "sum"
    dense.node.extend(
        [helper.make_node("Softmax", ["axis_free"], ["one"], axis=0), helper.make_node("Mul", ["sum", "one"], ["y"])]
    )
    dense.node.insert(0, helper.make_node("Constant", [], ["axis_free"], value_floats=[3.0]))
    dense.opset_import[0].version = 12
    onnx.save(made, file)
    report = report_on(model, (torch.randn(3, 8),), file)
    closed = (
        "own::Dense is not looked into: its opset ai.onnx 12 is not the model's, and Softmax may mean something else"
    )
    assert any(note.startswith(closed) for note in report.notes), report.notes
    assert "agrees" == report.verdict.status


def test_what_is_too_much_to_take_apart_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then stages inside are listed, with the reason; what leaves the body is compared still."""
    monkeypatch.setattr(unfold_module, "MAX_ADDED", 4)
    kind = KINDS["scripted loop"]
    export_onnx(_made(kind, tmp_path), _sample(kind), {}, tmp_path / "model.onnx", ExportSettings("torchscript"))
    report = judged(kind, tmp_path)
    assert "agrees" == report.verdict.status
    assert any("is not looked into: its body of" in note and "runs 3 times" in note for note in report.notes)
    assert {"/tanh#0", "/tanh#1", "/tanh#2"} <= {left.ref.stage for left in report.alignment.unaligned}
    wrong = judged(kind, tmp_path, "step.weight")
    assert "diverges" == wrong.verdict.status


def test_a_graph_that_is_one_unknown_body_is_not_called_agreeing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing but the output to compare, the output decides, and the stages inside are listed."""
    monkeypatch.setattr(unfold_module, "MAX_ADDED", 0)
    torch.manual_seed(0)
    model, file = Small().eval(), tmp_path / "model.onnx"
    onnx.save(_faulty(_branches(model)), file)
    report = report_on(model, (torch.randn(3, 8),), file)
    assert "diverges" == report.verdict.status
    assert {"a", "/relu#0", "b"} == {left.ref.stage for left in report.alignment.unaligned}


def _unrolled(model: Small, operator: str) -> onnx.ModelProto:
    """``b`` applied to each row of ``tanh(a(x))`` and summed up: what a Loop, or a Scan backwards, does row by row."""
    weights = {**_weights(model), "start": torch.zeros(8), "rounds": torch.tensor(3), "go": torch.tensor(True)}
    row, number = ("row", None) if operator == "Scan" else ("picked", "i")
    dense = [
        helper.make_node("Unsqueeze", [row, "axis"], ["wide"], "wide"),
        helper.make_node("Gemm", ["wide", "wb", "bb"], ["dense"], "dense", transB=1),
        helper.make_node("Squeeze", ["dense", "axis"], ["flat"], "flat"),
        helper.make_node("Add", ["state", "flat"], ["next"], "next"),
        helper.make_node("Identity", ["next"], ["seen"], "seen"),
    ]
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [8]) for n in ("row", "state", "next", "seen")}
    if operator == "Loop":
        pick = helper.make_node("Gather", ["h", str(number)], ["picked"], "pick")
        keep = helper.make_node("Identity", ["on"], ["still"], "keep")
        inputs = [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            infos["state"],
        ]
        outputs = [helper.make_tensor_value_info("still", TensorProto.BOOL, []), infos["next"], infos["seen"]]
        body = helper.make_graph([pick, keep, *dense], "body", inputs, outputs)
        node = helper.make_node("Loop", ["rounds", "go", "start"], ["last", "y"], "rows", body=body)
    else:
        body = helper.make_graph(dense, "body", [infos["state"], infos["row"]], [infos["next"], infos["seen"]])
        turn = {"scan_input_directions": [1], "scan_output_directions": [1]}
        node = helper.make_node("Scan", ["start", "h"], ["last", "y"], "rows", body=body, num_scan_inputs=1, **turn)
    weights["axis"] = torch.tensor([0])
    nodes = [
        helper.make_node("Gemm", ["x", "wa", "ba"], ["g"], "first", transB=1),
        helper.make_node("Tanh", ["g"], ["h"], "tanh"),
        node,
    ]
    return _model(nodes, weights, [])


class Rows(Small):
    """Row by row, with a sum that grows; backwards where asked."""

    backwards = False

    def forward(self, x: Tensor) -> Tensor:
        """(3, 8) -> (3, 8)."""
        h, state, found = torch.tanh(self.a(x)), torch.zeros(8), []
        for row in reversed(range(3)) if self.backwards else range(3):
            state = state + self.b(h[row : row + 1]).squeeze(0)
            found.append(state)
        return torch.stack(found[::-1] if self.backwards else found)


@pytest.mark.parametrize("operator", ["Loop", "Scan"])
def test_each_iteration_is_compared(tmp_path: Path, operator: str) -> None:
    """The layer's calls are the iterations, in order; a wrong weight shows in each."""
    torch.manual_seed(0)
    model, sample, file = Rows().eval(), (torch.randn(3, 8),), tmp_path / "model.onnx"
    model.backwards = operator == "Scan"
    onnx.save(_unrolled(model, operator), file)
    report = report_on(model, sample, file)
    assert ("agrees", 1.0) == (report.verdict.status, report.alignment.coverage)
    values = {pair.ref.call: pair.onnx_value for pair in report.alignment.pairs if pair.ref.stage == "b"}
    # Squeezed, a row is the same tensor still.
    assert all(values[call] in (f"dense@{call}", f"flat@{call}") for call in range(3)), values
    onnx.save(_faulty(_unrolled(model, operator)), file)
    verdict = report_on(model, sample, file).verdict
    assert "diverges" == verdict.status
    assert {"dense@0", "dense@1", "dense@2"} <= {node for origin in verdict.origins for node in origin.onnx_nodes}
