"""Totals alone: both sides run abreast, and every number is the one that a run which keeps everything gives."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.backends import abreast
from bisect_tool.backends.activations import ActivationStore, GoneError
from bisect_tool.backends.ahead import Ahead
from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.ort_runner import SegmentedRun
from bisect_tool.backends.torch_runner import TorchRun
from bisect_tool.errors import InconclusiveError
from bisect_tool.pipeline.bisection import Bisection
from bisect_tool.recorder import Recorder
from bisect_tool.records import Report
from bisect_tool.store import report_to_json


class Net(nn.Module):
    """In-place activations, a folded norm, look-alikes, axes in another order, and a buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.again = nn.ReLU()
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Hardtanh(-50, 50))
        self.rnn = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        x = self.again(self.stem(x))
        x = self.left(x) + self.right(x) + x
        tokens = x.flatten(2).transpose(1, 2)
        found, _ = self.rnn(tokens)
        return self.head(found), x.argmax(1)


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("abreast") / "model.onnx"
    model, args = _model()
    export_onnx(model, args, {}, path, ExportSettings(request.param))
    return path


def _model() -> tuple[Net, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(2, 3, 8, 8),)


def _judge(path: Path, monkeypatch: pytest.MonkeyPatch, *, together: bool, **options: Any) -> tuple[Report, Net]:
    if not together:
        monkeypatch.setattr(Bisection, "_can_go_abreast", lambda self: False)
    model, args = _model()
    given = {"forced": False, "observe": False, "optimizations": ("off",), "threads": 1, **options}
    report = bisect(LoadedCase("net", model, args, {}), Options(make_tolerance(None, None, None), onnx=path, **given))
    monkeypatch.undo()
    return report, model


def _numbers(report: Report) -> Mapping[str, Any]:
    """All of a report but for what the clock, and the memory that was taken, say."""
    found = report_to_json(report)
    for run in found["configs"]:
        del run["seconds"], run["peak_rss_mb"]
    return {key: value for key, value in found.items() if key not in ("timings", "environment")}


def _faulty(path: Path, folder: Path) -> Path:
    """The graph with one channel of its first weight turned round."""
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[0] *= -1
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, folder / "faulty.onnx")
    return folder / "faulty.onnx"


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize("stretch", [None, 5000, 1], ids=["whole", "several, in a thread", "one node each"])
def test_every_number_is_the_same(
    exported: Path, stretch: int | None, observe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the graph is cut, the report is that of a run that keeps both sides and compares afterwards."""
    wanted, _ = _judge(exported, monkeypatch, together=False, observe=observe)
    if stretch is not None:
        monkeypatch.setattr(abreast, "LEAST_STRETCH", stretch)
    found, _ = _judge(exported, monkeypatch, together=True, observe=observe)
    assert "agrees" == found.verdict.status
    assert _numbers(wanted) == _numbers(found)
    assert observe == (found.configs[0].observer_effect == 0)


@pytest.mark.parametrize("turns", [[False], [True, False, False]], ids=["late throughout", "late now and then"])
def test_no_number_depends_on_who_is_first(exported: Path, turns: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the graph lies behind, the model runs on; what the report says is the same."""
    wanted, _ = _judge(exported, monkeypatch, together=True)
    monkeypatch.setattr(abreast, "LEAST_STRETCH", 5000)
    turn = itertools.cycle(turns)
    monkeypatch.setattr(Ahead, "ready", property(lambda _: next(turn)))
    found, _ = _judge(exported, monkeypatch, together=True)
    assert _numbers(wanted) == _numbers(found)


def test_each_side_runs_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy graph's nodes and the model are computed once, also with segments in a thread; the model's buffers stay."""
    runs: list[int] = []
    started: list[TorchRun] = []
    advance, start = SegmentedRun.advance, TorchRun.start
    monkeypatch.setattr(TorchRun, "start", lambda self: (started.append(self), start(self))[1])
    monkeypatch.setattr(abreast, "LEAST_STRETCH", 5000)
    monkeypatch.setattr(SegmentedRun, "advance", lambda self: (runs.append(self.next), advance(self))[1])
    _, model = _judge(exported, monkeypatch, together=True)
    assert len(runs) > 3
    assert list(range(len(runs))) == runs
    assert 1 == len(started)
    assert not any(thread.name.startswith("segments") for thread in threading.enumerate())
    assert 0 == model.calls


def test_behind_a_fault_the_model_runs_again(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no partner was let go and is needed now; the second run starts from the buffers that the first one had."""
    path = _faulty(exported, tmp_path)
    wanted, plain = _judge(path, monkeypatch, together=False)
    found, model = _judge(path, monkeypatch, together=True)
    assert "diverges" == found.verdict.status
    assert _numbers(wanted) == _numbers(found)
    assert 0 == plain.calls == model.calls


def test_a_graph_that_does_not_run_is_told_as_ever(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's error does not pass through the model's own code."""

    def refuse(self: SegmentedRun) -> Any:
        raise InconclusiveError("no kernel")

    monkeypatch.setattr(SegmentedRun, "advance", refuse)
    found, _ = _judge(exported, monkeypatch, together=True)
    assert "agrees" == found.verdict.status


@pytest.mark.parametrize("options", [{"forced": True}, {"optimizations": ("off", "all")}, {"memory_budget": 1 << 14}])
def test_only_where_each_value_is_needed_once(
    exported: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local errors, a second configuration and a budget that holds little need PyTorch's tensors kept."""
    monkeypatch.setattr(abreast.Abreast, "see", lambda *_: pytest.fail("not kept"))
    report, _ = _judge(exported, monkeypatch, together=True, **options)
    assert "agrees" == report.verdict.status


class Accumulator(nn.Module):
    """Hands out its own buffer, which is put back as it was when the run is over."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.state.add_(x.sum(0))[1:]


@pytest.mark.parametrize("together", [True, False])
def test_an_output_may_be_a_view_of_a_buffer(tmp_path: Path, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared as it was handed out."""
    nodes = [
        onnx.helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0),
        onnx.helper.make_node("Slice", ["sum", "one", "four"], ["y"]),
    ]
    numbers = {"axis": [0], "one": [1], "four": [4]}
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])],
        [numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()],
    )
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "model.onnx")
    if not together:
        monkeypatch.setattr(Bisection, "_can_go_abreast", lambda self: False)
    options = Options(
        make_tolerance(None, None, None),
        onnx=tmp_path / "model.onnx",
        forced=False,
        observe=True,
        optimizations=("off",),
    )
    model = Accumulator()
    report = bisect(LoadedCase("net", model, (torch.randn(3, 4),), {}), options)
    (output,) = report.configs[0].outputs
    assert (report.verdict.status, output.judgement) == ("agrees", "pass")
    assert not model.state.any()


class Workspace(nn.Module):
    """Not twice the same, and from its first call on in the same memory, which is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        if torch.compiler.is_exporting():
            return y
        if not self.calls:
            self.out = torch.empty_like(y)
        self.calls += 1
        return self.out.copy_(y + 0.1 * self.calls)


def test_a_model_that_differs_from_itself_in_memory_of_its_own(tmp_path: Path) -> None:
    """The second run does not write over what the first one is judged by."""
    totals = {"forced": False, "optimizations": ("off",)}
    options = Options(make_tolerance(None, None, None), export=ExportSettings("dynamo"), **totals)
    verdict = bisect(LoadedCase("net", Workspace().eval(), (torch.randn(3, 4),), {}), options).verdict
    assert verdict.status == "inconclusive"
    assert [diagnosis.code for diagnosis in verdict.diagnoses] == ["BD403"]


def test_what_was_let_go_is_no_value() -> None:
    """Asking for a tensor that was forgotten, or found no room, raises; others stay."""
    model = nn.Sequential(nn.ReLU(), nn.Sigmoid(), nn.Tanh())
    store = ActivationStore(200_000, BufferPool(), spill=False)
    kept: list[int] = []

    def on_value(value: Any, tensor: Tensor) -> None:
        kept.append(value.id)
        store.keep(value.id, tensor)

    with torch.no_grad(), Recorder(model, on_value) as recorder:
        store.attach(recorder)
        out = recorder.run(torch.randn(30_000))
    assert [False, True, True] == [store.is_gone(value) for value in kept]
    store.forget(kept[0])
    for value in kept:
        with pytest.raises(GoneError):
            store.fetch(value)
        with pytest.raises(GoneError):
            store.tensor(value)
    store.keep(99, out)
    assert np.array_equal(out.numpy(), store.fetch(99))
