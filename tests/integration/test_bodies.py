"""Models with bodies: torch.cond, torch.while_loop and scripted control flow, which become If and Loop nodes."""

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


class Conditional(nn.Module):
    """One of two branches, with a layer before and a layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 2)."""
        x = torch.tanh(self.stem(x))
        x = torch.cond(x.sum() > 100, lambda t: self.left(t).relu(), lambda t: self.right(t).sigmoid(), (x,))
        return self.head(x)


class Repeated(nn.Module):
    """A loop of three rounds, with a layer before and a layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 2)."""
        x = self.stem(x)
        start = torch.zeros((), dtype=torch.int64)
        _, x = torch.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, self.right(x).tanh()), (start, x))
        return self.head(x)


@torch.jit.script
def scripted_rounds(x: Tensor, rounds: int) -> Tensor:
    """As many rounds as said, of two kinds: a Loop with an If in it."""
    for number in range(rounds):
        if x.sum() > 0:
            x = torch.tanh(x + number)
        else:
            x = torch.sigmoid(x)
    return x


class Scripted(nn.Module):
    """Control flow in a scripted function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 2)."""
        return self.head(scripted_rounds(torch.relu(self.stem(x)), 3))


def scripted_whole() -> nn.Module:
    """A whole scripted module, in which no Python runs."""
    return torch.jit.script(Scripted().eval())


# Scripted modules have no module calls: their operations are the stages.
NAMES = {"scripted module": {"stem": "/addmm#0", "head": "/addmm#1"}}

KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "cond": (Conditional, "dynamo"),
    "while_loop": (Repeated, "dynamo"),
    "scripted function": (Scripted, "torchscript"),
    "scripted module": (scripted_whole, "torchscript"),
}


def judged(
    tmp_path: Path, kind: str, weight: str | None = None, spoil: Callable[[onnx.ModelProto], None] | None = None
) -> Report:
    """The report on a model and its export, in which a channel of a weight was scaled, or which was spoiled otherwise."""
    build, exporter = KINDS[kind]
    torch.manual_seed(0)
    module = build().eval()
    x = torch.randn(5, 8)
    path = tmp_path / "model.onnx"
    export_onnx(module, (x,), {}, path, ExportSettings(exporter))  # type: ignore[arg-type]
    if weight is not None:
        model = onnx.load(path)
        (tensor,) = [t for t in model.graph.initializer if t.name == weight]
        array = np.array(numpy_helper.to_array(tensor))
        array[1] *= 1.5
        tensor.CopyFrom(numpy_helper.from_array(array, weight))
        onnx.save(model, path)
    if spoil is not None:
        model = onnx.load(path)
        spoil(model)
        onnx.save(model, path)
    options = Options(make_tolerance(None, None, None), onnx=path)
    return bisect(LoadedCase("bodies", module, (x,), {}), options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_model_with_bodies_agrees(tmp_path: Path, kind: str) -> None:
    """What the graph computes in bodies has no value to compare, and does not count against coverage."""
    report = judged(tmp_path, kind)
    assert ("agrees", 1.0) == (report.verdict.status, report.alignment.coverage)
    paired = {pair.ref.stage for pair in report.alignment.pairs}
    assert {NAMES.get(kind, {}).get(place, place) for place in ("stem", "head")} <= paired


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("cond", "this sample takes the else_branch, which is looked into; the other one is not covered"),
        ("while_loop", "a loop that runs 3 times with this sample, each of them looked into"),
    ],
)
def test_stages_inside_a_body_are_compared(tmp_path: Path, kind: str, note: str) -> None:
    """Every call of the layer inside has a value of its own, and the report says what was taken apart."""
    report = judged(tmp_path, kind)
    calls = {row.call for row in report.stages if row.stage == "right" and "ort-cpu-off" in row.results}
    assert ({0} if kind == "cond" else {0, 1, 2}) == calls
    assert any(line.endswith(note) for line in report.notes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["stem", "head"])
def test_a_fault_beside_a_body_is_found(tmp_path: Path, kind: str, place: str) -> None:
    """Before a body and behind it: the origin is the layer, and nothing else."""
    report = judged(tmp_path, kind, f"{place}.weight")
    assert "diverges" == report.verdict.status
    assert [NAMES.get(kind, {}).get(place, place)] == [origin.stage for origin in report.verdict.origins]


@pytest.mark.parametrize(
    ("kind", "stages", "nodes"),
    [
        ("cond", ["right"], ["node_linear_3"]),
        ("while_loop", ["right"] * 3, [f"node_linear_2@{i}" for i in range(3)]),
    ],
)
def test_a_fault_inside_a_body_is_found_there(tmp_path: Path, kind: str, stages: list[str], nodes: list[str]) -> None:
    """In every iteration the node with the weight is named, and no node beside it."""
    report = judged(tmp_path, kind, "right.weight")
    assert "diverges" == report.verdict.status
    assert [(stage, (node,)) for stage, node in zip(stages, nodes, strict=True)] == [
        (origin.stage, origin.onnx_nodes) for origin in report.verdict.origins
    ]


def test_one_node_in_a_body_has_one_diagnosis(tmp_path: Path) -> None:
    """However often the body runs: each round is an origin, and the file is wrong in one place."""

    def spoil(model: onnx.ModelProto) -> None:
        (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
        bodies = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
        (tanh,) = [node for node in bodies[0].node if node.op_type == "Tanh"]
        tanh.op_type = "Softsign"

    report = judged(tmp_path, "while_loop", spoil=spoil)
    assert 3 == len(report.verdict.origins)
    (found,) = [each for each in report.verdict.diagnoses if each.code == "BD102"]
    assert found.remedy_verified
    assert any("it shows in" in line for line in found.evidence)
    assert [found] == list(report.verdict.diagnoses)
