"""Faults in recurrences that a graph has step by step, all of them with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from by_hand import EXPORTERS, exported, judged
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bisect_tool.backends.exporting import Exporter
from bisect_tool.records import Report

STEPS = 5


class Steps(nn.Module):
    """An LSTM's cell, step by step; its two results are of one shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names, self.cell, self.head = nn.Embedding(50, 16), nn.LSTMCell(16, 24), nn.Linear(24, 10)

    def forward(self, ids: Tensor) -> Tensor:
        """``[N, 5]`` to ``[N, 5, 10]``."""
        x = self.names(ids)
        state = (x.new_zeros(x.shape[0], 24), x.new_zeros(x.shape[0], 24))
        results = []
        for step in range(STEPS):
            state = self.cell(x[:, step], state)
            results.append(self.head(state[0]))
        return torch.stack(results, 1)


class Gates(nn.Module):
    """A recurrence of single operations, which begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = nn.Embedding(50, 16)
        self.gate, self.new = nn.Linear(40, 24), nn.Linear(40, 24)

    def forward(self, ids: Tensor) -> Tensor:
        """``[N, 5]`` to ``[N, 24]``."""
        x = self.names(ids)
        state = x.new_zeros(x.shape[0], 24)
        for step in range(STEPS):
            read = torch.cat([x[:, step], state], 1)
            gate = torch.sigmoid(self.gate(read))
            state = (1 - gate) * torch.tanh(self.new(read)) + gate * state
        return state


class Whole(nn.Module):
    """One module for all steps, which the default exporter writes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names, self.rnn = nn.Embedding(50, 16), nn.RNN(16, 24, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        """``[N, 5]`` to ``[N, 5, 24]``."""
        return self.rnn(self.names(ids))[0]  # type: ignore[no-any-return]


IDS = (torch.randint(0, 50, (3, STEPS), generator=torch.Generator().manual_seed(0)),)


def other_operator(kind: str, number: int, other: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        [node for node in model.graph.node if node.op_type == kind][number].op_type = other

    return change


def scaled_row(shape: tuple[int, int]) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if shape in (tuple(t.dims), tuple(t.dims)[::-1]))
        weight = numpy_helper.to_array(tensor).copy()
        weight[3] *= np.float32(1.5)
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))

    return change


def found(module: nn.Module, exporter: Exporter, change: Callable[[ModelProto], None], folder: Path) -> Report:
    model: onnx.ModelProto = exported(module.eval(), IDS, exporter, folder)
    change(model)
    report = judged(module, IDS, model, folder)
    assert report.verdict.status == "diverges"
    return report


def calls(report: Report) -> set[tuple[str, int]]:
    return {(origin.ref.stage, origin.ref.call) for origin in report.verdict.origins}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("kind", "number", "other", "step"),
    [("Sigmoid", 4, "Tanh", 1), pytest.param("Mul", 2, "Add", 0, marks=pytest.mark.slow)],
)
def test_the_step_of_a_cell_is_told_by_structure(
    kind: str, number: int, other: str, step: int, exporter: Exporter, tmp_path: Path
) -> None:
    """Behind the fault no value is right, and neither scope nor shape tells the calls and their results apart."""
    report = found(Steps(), exporter, other_operator(kind, number, other), tmp_path)
    assert calls(report) == {("cell", step)}
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD102", True)]


def test_a_weight_of_all_steps_is_one_cause(tmp_path: Path) -> None:
    report = found(Steps(), "torchscript", scaled_row((96, 16)), tmp_path)
    assert calls(report) == {("cell", step) for step in range(STEPS)}
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD202", True)]


def test_a_weight_that_several_nodes_of_a_stage_read_is_mended_in_all_of_them(tmp_path: Path) -> None:
    report = found(Whole(), "dynamo", scaled_row((24, 24)), tmp_path)
    (cause,) = report.verdict.diagnoses
    assert (cause.code, cause.remedy_verified) == ("BD202", True)
    assert "and 3 more read" in cause.evidence[0]
    assert "rnn.weight_hh_l0" in cause.evidence[0]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_zeros_that_a_run_makes_are_no_constant(exporter: Exporter, tmp_path: Path) -> None:
    """In the first step the state is zero, and so is its product: but the graph's own zeros do not stand for it."""
    model = exported(Gates().eval(), IDS, exporter, tmp_path)
    products = [node for node in model.graph.node if node.op_type == "Mul"]
    products[1].op_type = "Add"
    report = judged(Gates(), IDS, model, tmp_path)
    assert calls(report) == {("/mul#1", 0)}


class Shrinking(nn.Module):
    """Iterations that come to rest (ISTA): the signs of all steps are equal soon."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.step = nn.Linear(20, 30, bias=False), nn.Linear(30, 30, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 20]`` to ``[N, 30]``."""
        start = self.first(x)
        code = torch.sign(start) * torch.relu(start.abs() - 0.05)
        for _ in range(4):
            moved = start + self.step(code) * 0.3
            code = torch.sign(moved) * torch.relu(moved.abs() - 0.05)
        return code


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("kind", "number", "other", "stage"),
    [("Sign", 1, "Identity", "/sign#1"), ("Mul", 1, "Add", "/mul#1")],
)
def test_another_step_with_the_same_value_does_not_stand_for_a_broken_one(
    kind: str, number: int, other: str, stage: str, exporter: Exporter, tmp_path: Path
) -> None:
    module, inputs = Shrinking().eval(), (torch.randn(4, 20, generator=torch.Generator().manual_seed(1)),)
    model = exported(module, inputs, exporter, tmp_path)
    other_operator(kind, number, other)(model)
    report = judged(module, inputs, model, tmp_path)
    assert calls(report) == {(stage, 0)}
    (cause,) = report.verdict.diagnoses
    assert cause.remedy_verified


@pytest.mark.parametrize(("kind", "part"), [("GRU", 2), ("GRU", 3), ("LSTM", 1), ("LSTM", 3), ("RNN", 2)])
def test_a_foreign_weight_in_the_last_of_several_layers(kind: str, part: int, tmp_path: Path) -> None:
    """Whatever it is nearest to: the tensors of each layer are tried."""

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = getattr(nn, kind)(8, 8, 3, batch_first=True, bidirectional=part == 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)[0]  # type: ignore[no-any-return]

    module, inputs = Stacked().eval(), (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
    model = exported(module, inputs, "torchscript", tmp_path)
    name = [node for node in model.graph.node if node.op_type == kind][-1].input[part]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    foreign = np.random.default_rng(0).uniform(-0.4, 0.4, tuple(tensor.dims)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(foreign, name))
    (cause,) = judged(module, inputs, model, tmp_path).verdict.diagnoses
    assert (cause.code, cause.remedy_verified) == ("BD202", True)


class Scan(nn.Module):
    """A state that decays and is read at each step, as in state-space models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 8]``, as given."""
        decay, put, read = self.parts(x).chunk(3, -1)
        decay, put = torch.exp(-decay.abs()), put * x
        state = x.new_zeros(x.shape[0], 8, 1)
        results = []
        for step in range(x.shape[1]):
            state = decay[:, step, :, None] * state + put[:, step, :, None]
            results.append((state @ read[:, step, None, :]).sum(-1))
        return torch.stack(results, 1)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_step_of_a_scan_is_told_by_what_reads_its_state(exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = Scan().eval(), (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
    model = exported(module, inputs, exporter, tmp_path)
    other_operator("Add", -3, "Sub")(model)
    report = judged(module, inputs, model, tmp_path)
    assert calls(report) == {("/add#2", 0)}
    assert [(cause.code, cause.remedy_verified) for cause in report.verdict.diagnoses] == [("BD102", True)]


def test_a_gates_order_of_operations_in_two_directions(tmp_path: Path) -> None:
    """``linear_before_reset`` left out is 0, and PyTorch's are 1: one number that is tried before all weights."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.GRU(8, 8, 2, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)[0]  # type: ignore[no-any-return]

    module, inputs = Both().eval(), (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
    model = exported(module, inputs, "torchscript", tmp_path)
    node = [node for node in model.graph.node if node.op_type == "GRU"][-1]
    kept = [given for given in node.attribute if given.name != "linear_before_reset"]
    del node.attribute[:]
    node.attribute.extend(kept)
    (cause,) = judged(module, inputs, model, tmp_path).verdict.diagnoses
    assert (cause.code, cause.remedy_verified) == ("BD101", True)
    assert "linear_before_reset is 0" in cause.evidence[0]
