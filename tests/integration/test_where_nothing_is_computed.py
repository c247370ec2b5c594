"""Stages that compute nothing, operators' idle weights, and pairs on which the graph does not even run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import EXPORTERS, exported, judged
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from bisect_tool import bisect
from bisect_tool.backends.exporting import Exporter
from bisect_tool.backends.ort_runner import SegmentedRun
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import Report


def origins(report: Report) -> list[str]:
    return [origin.ref.stage for origin in report.verdict.origins]


def with_output_times(model: ModelProto, output: int, factor: float) -> ModelProto:
    """One output multiplied, and nothing else that reads the same value."""
    changed = ModelProto()
    changed.CopyFrom(model)
    name = changed.graph.output[output].name
    made = next((node for node in changed.graph.node if name in node.output), None)
    if made is None:
        changed.graph.output[output].name = own = f"{name}_out"
        source = name
    else:
        own, source = name, f"{name}_was"
        for node in changed.graph.node:
            for names in (node.input, node.output):
                for place, each in enumerate(names):
                    names[place] = source if each == name else each
    changed.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    changed.graph.node.append(helper.make_node("Mul", [source, "factor"], [own], "extra"))
    return changed


class State(nn.Module):
    """Hands on what it was given, by modules that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)
        self.keep = nn.Sequential(nn.Identity(), nn.Dropout())

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors ``[N, 4]`` each."""
        return self.fc(x) + state, self.keep(state)


class Bare(nn.Module):
    """Returns its input itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 4]``, twice."""
        return self.fc(x), x


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(("module", "count", "stage"), [(State, 2, "keep.0"), (Bare, 1, "")])
def test_what_the_graph_does_to_an_input_that_is_handed_on(
    module: Callable[[], nn.Module], count: int, stage: str, exporter: Exporter, tmp_path: Path
) -> None:
    """No stage computes it, so that no stage had an error of its own: it was called rounding."""
    net, inputs = module().eval(), tuple(torch.randn(2, 4) for _ in range(count))
    model = exported(net, inputs, exporter, tmp_path)
    assert judged(net, inputs, model, tmp_path).verdict.status == "agrees"
    report = judged(net, inputs, with_output_times(model, 1, 1.5), tmp_path)
    assert report.verdict.status == "diverges"
    assert origins(report) in ([stage], [])
    if exporter == "torchscript" or stage:
        assert origins(report) == [stage]
        assert [cause.code for cause in report.verdict.diagnoses] == ["BD104"]


class OwnNorm(nn.Module):
    """Scales after the operator, which so gets ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8, H, W]``, as given."""
        x = torch.nn.functional.instance_norm(x)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(8, 8), OwnNorm], ids=["GroupNorm", "one's own"])
def test_idle_weights_of_an_operator_are_nobodys(
    norm: Callable[[], nn.Module], exporter: Exporter, tmp_path: Path
) -> None:
    """GroupNorm is written as InstanceNormalization with ones; these were compared with its weights (BD202)."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), norm(), nn.ReLU()).eval()
    nn.init.uniform_(module[1].weight, 0.5, 1.5)  # type: ignore[arg-type]
    nn.init.normal_(module[1].bias)  # type: ignore[arg-type]
    inputs = (torch.randn(1, 3, 12, 12),)
    report = judged(module, inputs, exported(module, inputs, exporter, tmp_path), tmp_path)
    assert report.verdict.status == "agrees"
    assert [finding.text for finding in report.preflight if finding.severity != "fact"] == []


class LastState(nn.Module):
    """Of a recurrent layer only the last state is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.gru, self.head = nn.Linear(8, 8), nn.GRU(8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, 8]`` to ``[N, 3]``."""
        _, state = self.gru(self.inp(x))
        return self.head(state[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_transposition_of_an_input_is_not_that_of_the_result(exporter: Exporter, tmp_path: Path) -> None:
    """Nothing reads the sequence that the layer makes, so that its graph does not hold it; what it reads was taken for it."""
    module, inputs = LastState().eval(), (torch.randn(2, 10, 8),)
    model = exported(module, inputs, exporter, tmp_path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
    bias = numpy_helper.to_array(tensor).copy()
    bias[0] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "diverges"
    assert origins(report) == ["head"]


class PowerPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.pool = nn.Linear(6, 6), nn.LPPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, 6, 6]`` to ``[N, C, 3, 3]``."""
        return torch.sigmoid(self.pool(self.fc(x)))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_supposed_pair_on_which_the_graph_does_not_run_is_none(exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = PowerPool().eval(), (torch.randn(1, 2, 6, 6),)
    model = exported(module, inputs, exporter, tmp_path)
    [node for node in model.graph.node if node.op_type == "Mul"][-1].op_type = "Add"
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "diverges"
    assert origins(report) == ["pool"]


@pytest.mark.parametrize("is_faulty", [False, True])
def test_without_a_forced_run_there_is_still_a_verdict(
    is_faulty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the graph does not run on PyTorch's values the totals stand, and a note says what is missing."""
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval(), (torch.randn(2, 4),)
    model = exported(module, inputs, "torchscript", tmp_path)
    if is_faulty:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "2.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(-3), tensor.name))
    plain = SegmentedRun._run

    def refuse(self: SegmentedRun, segment: Any, chain: Any, given: Any, forced: Any) -> Any:
        if forced:
            raise InconclusiveError("wrong shape")
        return plain(self, segment, chain, given, forced)

    monkeypatch.setattr(SegmentedRun, "_run", refuse)
    report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == ("diverges" if is_faulty else "agrees")
    first = report.verdict.first_over_tolerance
    assert (None if first is None else first.ref.stage) == ("2" if is_faulty else None)
    assert all(result.local is None for row in report.stages for result in row.results.values())
    assert [note for note in report.notes if "does not run on PyTorch's values: wrong shape" in note] == [
        "ort-cpu-off: no local errors, as the graph does not run on PyTorch's values: wrong shape"
    ]


def test_a_product_whose_sum_has_a_pair_is_no_value_of_pytorchs(tmp_path: Path) -> None:
    """A layer on three axes multiplies two: its operation's value is the layer's in another shape."""
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), (torch.randn(4, 6, 16),)
    exported(module, inputs, "torchscript", tmp_path)
    report = bisect(module, inputs, tmp_path / "healthy.onnx", level="op")
    assert report.verdict.status == "agrees"
    assert report.alignment.coverage == 1.0


def test_an_input_that_is_handed_on_through_half_precision_is_rounded(tmp_path: Path) -> None:
    """Between the casts there and back lies no stage."""
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    net, inputs = Bare().eval(), (torch.randn(4, 4),)
    model = exported(net, inputs, "torchscript", tmp_path)
    half = float16.convert_float_to_float16(with_output_times(model, 1, 1.0), keep_io_types=True)
    assert judged(net, inputs, half, tmp_path).verdict.status == "agrees"
