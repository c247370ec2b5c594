"""A model in several ONNX files: each part is judged by itself, and errors are followed through the chain."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from commands import ROOT, Outcome, command
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool import BisectError, LoadedCase, Options, bisect_parts, make_tolerance
from bisect_tool.parts import MOST_CALLS
from bisect_tool.records import PartCall, Report
from bisect_tool.store import report_to_json

SCHEMA = json.loads((ROOT / "bisect_tool" / "report.schema.json").read_text(encoding="utf-8"))


class Encoder(nn.Module):
    """Points to features and a weight for each: a tuple, as many encoders return."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 16)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 8)
        self.gate = nn.Linear(16, 1)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points (P, 5) -> features (P, 8), weights (P, 1)."""
        hidden = torch.relu(self.norm(self.fc(points)))
        return self.out(hidden), self.gate(hidden).sigmoid()


class Head(nn.Module):
    """A grid to a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 8, 3, padding=1)
        self.score = nn.Conv2d(8, 2, 1)
        self.box = nn.Conv2d(8, 4, 1)

    def forward(self, grid: Tensor) -> dict[str, Tensor]:
        """grid (1, 8, 6, 6) -> score (1, 2, 6, 6), box (1, 4, 6, 6)."""
        hidden = torch.relu(self.fc(grid))
        return {"score": self.score(hidden), "box": self.box(hidden)}


class Detector(nn.Module):
    """Encoder and head, with a scatter by index assignment between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = Head()

    def forward(self, points: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """points (P, 5), cells (P,) -> as `Head`."""
        features, weights = self.encoder(points)
        grid = features.new_zeros(36, 8)
        grid[cells] = features * weights
        return self.head(grid.t().reshape(1, 8, 6, 6))


PARTS = ("encoder", "head")


def export(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, **options: Any) -> Path:
    """The module as a file, by the quicker exporter."""
    torch.onnx.export(module, inputs, str(path), dynamo=False, **options)
    return path


def judge(
    module: nn.Module,
    inputs: tuple[Any, ...],
    files: Mapping[str, Path],
    *,
    max_abs: float | None = None,
    **options: Any,
) -> Report:
    """A report, which fits the schema."""
    case = LoadedCase("net", module.eval(), inputs, {})
    report = bisect_parts(case, files, Options(make_tolerance(max_abs, None, None), **options))
    jsonschema.Draft202012Validator(SCHEMA).validate(report_to_json(report))
    return report


def scaled(source: Path, target: Path, weight: str, index: int, by: float = 1.3) -> Path:
    """The file with one output channel of a weight scaled."""
    model = onnx.load(source)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == weight]
    array = numpy_helper.to_array(tensor).copy()
    array[index] *= by
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    onnx.save(model, target)
    return target


def reader_of(file: Path, weight: str) -> str:
    """The node that reads a weight."""
    (name,) = [node.name for node in onnx.load(file).graph.node if weight in node.input]
    return name


def call_of(report: Report, part: str, config: str = "ort-cpu-off", call: int = 0) -> PartCall:
    """One call of one part."""
    (result,) = [each for each in report.parts if each.part == part]
    (found,) = [run for run in result.runs if (run.config, run.call) == (config, call)]
    return found


def alone(run: PartCall) -> float:
    """The worst output on PyTorch's inputs."""
    return max(out.local.rel_l2 for out in run.outputs)


def chained(run: PartCall) -> float:
    """The worst output in the chain."""
    totals = [out.total for out in run.outputs]
    assert None not in totals
    return max(total.rel_l2 for total in totals if total is not None)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, tuple[Tensor, Tensor], dict[str, Path]]:
    """The model, its inputs, and its files."""
    torch.manual_seed(3)
    model, folder = Detector().eval(), tmp_path_factory.mktemp("detector")
    points, cells = torch.randn(12, 5), torch.randperm(36)[:12]
    files = {
        "encoder": export(model.encoder, (points,), folder / "encoder.onnx"),
        "head": export(model.head, (torch.randn(1, 8, 6, 6),), folder / "head.onnx"),
    }
    return model, (points, cells), files


@pytest.mark.parametrize(("reshape", "shape"), [((4, 2, 6, 6), "(4, 2, 6, 6)"), ((1, 8, 36), "(1, 8, 36)")])
def test_a_file_that_returns_another_shape(
    detector: tuple[Detector, tuple[Tensor, Tensor], dict[str, Path]],
    tmp_path: Path,
    reshape: tuple[int, ...],
    shape: str,
) -> None:
    """Its stages are all right; what it hands over is not, and that is what the verdict says."""
    model, inputs, files = detector

    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(model.head.fc)

        def forward(self, grid: Tensor) -> Tensor:
            """grid (1, 8, 6, 6) -> its convolution, as elements in another shape."""
            return self.head(grid).reshape(reshape)

    file = export(Reshaped(), (torch.randn(1, 8, 6, 6),), tmp_path / "conv.onnx")
    report = judge(model, inputs, {"encoder": files["encoder"], "head.fc": file})
    line = report.verdict.summary[0]
    assert report.verdict.status == "diverges"
    assert line.startswith("head.fc (conv.onnx) does not return what the submodule returns: output 0: shape: ")
    assert line.endswith(f"expected (1, 8, 6, 6), actual {shape}")
    assert not any("exposing values hides" in each for each in report.verdict.summary)
    assert not any("\n" in note for note in report.notes)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes long and is tested elsewhere."""
    from bisect_tool.reporters import plots

    monkeypatch.setattr(plots, "images", lambda *_: plots.Images(b"", "<svg></svg>"))


Case = tuple[Detector, tuple[Tensor, Tensor], dict[str, Path]]


def test_healthy_parts_agree(detector: Case) -> None:
    """Everything is compared and named as in the whole model; the scatter is listed as PyTorch's, and not counted."""
    report = judge(*detector)
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert () == report.verdict.origins
    assert {"agrees"} == {run.status for run in report.configs}
    assert ["encoder", "head"] == [part.part for part in report.parts]
    assert {("agrees", 1, 1, 1.0)} == {(p.status, p.calls, p.compared, p.coverage) for p in report.parts}
    stages = [row.stage for row in report.stages]
    assert ["encoder.fc", "encoder.norm", "encoder/relu#0", "encoder.out"] == stages[:4]
    assert {"head.fc", "head/relu#0", "head.score", "head.box"} == {
        row.stage for row in report.stages if row.part == "head"
    }
    assert list(range(len(stages))) == [row.index for row in report.stages]
    assert all(0 <= index < row.index for row in report.stages for index in row.inputs)
    assert {"/mul#0", "/index_put#0"} == {stage.ref.stage for stage in report.glue}
    assert {"encoder"} == {stage.after for stage in report.glue}
    assert report.alignment.stages == sum(part.stages for part in report.parts) == len(stages)


def test_chain_of_healthy_parts(detector: Case) -> None:
    """The first part gets what PyTorch gets; the second gets the first one's rounding; outputs are those of the chain."""
    report = judge(*detector)
    for config in ("ort-cpu-off", "ort-cpu-all"):
        first, second = (call_of(report, part, config) for part in PARTS)
        assert 0 == first.input_error
        assert [0, 1] == [out.output for out in first.outputs]
        assert ["score", "box"] == [out.output for out in second.outputs]
        assert second.input_error is not None and 0 < second.input_error < 1e-6
        assert chained(first) == alone(first) < 1e-6
        assert chained(second) < 1e-5
    (off, _) = report.configs
    names = [out.name for out in onnx.load(detector[2]["head"]).graph.output]
    assert [("score", names[0]), ("box", names[1])] == [(out.output, out.onnx_value) for out in off.outputs]


FAULTS = {
    "first": {"encoder": ("fc.weight", "encoder.fc")},
    "second": {"head": ("score.weight", "head.score")},
    "both": {"encoder": ("out.weight", "encoder.out"), "head": ("fc.weight", "head.fc")},
}


@pytest.mark.parametrize("where", FAULTS)
def test_a_fault_is_found_in_its_part(detector: Case, tmp_path: Path, where: str) -> None:
    """The origin has the right part, stage and node; a part that only hands error on is not blamed, and that is said."""
    module, inputs, healthy = detector
    files = dict(healthy)
    for part, (weight, _) in FAULTS[where].items():
        files[part] = scaled(healthy[part], tmp_path / f"{part}.onnx", weight, 1)
    report = judge(module, inputs, files)
    assert "diverges" == report.verdict.status
    assert [(part, stage) for part, (_, stage) in FAULTS[where].items()] == [
        (origin.part, origin.stage) for origin in report.verdict.origins
    ]
    for origin, (part, (weight, _)) in zip(report.verdict.origins, FAULTS[where].items(), strict=True):
        assert reader_of(files[part], weight) in [name.removeprefix(f"{part}:") for name in origin.onnx_nodes]
        told = [line for each in report.verdict.diagnoses for line in each.evidence if each.origin == origin.ref]
        assert any(weight in line for line in told), told
    first = report.verdict.first_over_tolerance
    assert first is not None
    assert next(iter(FAULTS[where].values()))[1] == first.stage
    assert {part.part: part.status for part in report.parts} == {
        part: "diverges" if part in FAULTS[where] else "agrees" for part in PARTS
    }
    for part in PARTS:
        assert (alone(call_of(report, part)) > 1e-3) == (part in FAULTS[where])
    said = [line for line in report.verdict.summary if "hands on what comes in" in line]
    second = call_of(report, "head")
    assert second.input_error is not None
    if "encoder" in FAULTS[where]:
        assert second.input_error > 1e-3
        assert chained(second) > 1e-3
    else:
        assert second.input_error < 1e-6
    assert (where == "first") == bool(said)
    if said:
        assert said[0].startswith("head agrees on PyTorch's inputs")
        assert all(row.results["ort-cpu-off"].judgement == "pass" for row in report.stages if row.part == "head")


def test_names_of_several_files_tell_which(detector: Case, tmp_path: Path) -> None:
    """Names that two files have bear their part; others stay as they are in the file."""
    module, inputs, healthy = detector
    faulty = scaled(healthy["encoder"], tmp_path / "encoder.onnx", "fc.weight", 1)
    report = judge(module, inputs, {**healthy, "encoder": faulty})
    (origin,) = report.verdict.origins
    # Both files have weights of a submodule `fc`.
    assert "encoder:fc.weight" in origin.onnx_weights
    weights = {name for row in report.stages for name in row.onnx_weights}
    assert {"encoder:fc.weight", "head:fc.weight", "out.weight", "score.weight"} <= weights
    assert not {"fc.weight", "encoder:out.weight"} & weights


def test_optimised_run_of_the_faulty_part_diverges(detector: Case, tmp_path: Path) -> None:
    """Both configurations are judged, each by its own chain."""
    module, inputs, healthy = detector
    faulty = scaled(healthy["head"], tmp_path / "head.onnx", "box.weight", 0)
    report = judge(module, inputs, {**healthy, "head": faulty})
    assert 2 == len(report.configs)
    for run in report.configs:
        assert "diverges" == run.status
        assert {"score": "pass", "box": "fail"} == {out.output: out.judgement for out in run.outputs}


def test_a_tolerance_of_the_users_decides(detector: Case, tmp_path: Path) -> None:
    """A large one lets a fault pass; what rounding does not explain is named all the same."""
    module, inputs, healthy = detector
    faulty = scaled(healthy["head"], tmp_path / "head.onnx", "score.weight", 0, by=1.01)
    report = judge(module, inputs, {**healthy, "head": faulty}, max_abs=10.0)
    assert "agrees" == report.verdict.status
    assert ["head.score"] == [origin.stage for origin in report.verdict.origins]
    report = judge(module, inputs, {**healthy, "head": faulty}, max_abs=1e-4)
    assert "diverges" == report.verdict.status


def test_globs_are_of_the_whole_model(detector: Case) -> None:
    """`--stages` picks by full paths; of a part where nothing was picked the outputs count."""
    report = judge(*detector, stages=("encoder.*",))
    rows = {(row.part, row.stage) for row in report.stages if row.role == "judged"}
    assert {("encoder", f"encoder.{name}") for name in ("fc", "norm", "out", "gate")} | {("head", "head")} == rows
    with pytest.raises(BisectError, match="no stage of a part matches"):
        judge(*detector, stages=("nothing.*",))
    with pytest.raises(BisectError, match="lies in no part"):
        judge(*detector, groups=("/mul#*",))


def test_the_model_is_left_as_it_was(detector: Case) -> None:
    """No forward stays exchanged, also after an error; the inputs are untouched."""
    module, inputs, files = detector
    before = [tensor.clone() for tensor in inputs]
    with pytest.raises(BisectError):
        judge(module, inputs, {"encoder": files["head"], "head": files["head"]})
    judge(module, inputs, files)
    assert all("forward" not in vars(child) for child in module.modules())
    assert all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))


# Several calls


class Pyramid(nn.Module):
    """One tower for every level, each of another size; one activation for all that there is."""

    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        self.levels = levels
        self.act = nn.Tanh()
        self.tower = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), self.act, nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (1, 3, H, W) -> for each level (1, 2, H / 2^level, W / 2^level)."""
        image = self.act(image)
        return [self.tower(nn.functional.avg_pool2d(image, 2**level)) for level in range(self.levels)]


def pyramid(folder: Path, levels: int = 3) -> tuple[Pyramid, Tensor, Path]:
    """The model, its input, and its tower as a file that takes every size."""
    torch.manual_seed(1)
    model, image = Pyramid(levels).eval(), torch.randn(1, 3, 16, 16)
    axes = {"image": {2: "h", 3: "w"}}
    return model, image, export(model.tower, (image,), folder / "tower.onnx", input_names=["image"], dynamic_axes=axes)


def test_every_call_is_compared(tmp_path: Path) -> None:
    """Each with its own shape, its own rows, and the numbers of calls that the whole model counts."""
    model, image, file = pyramid(tmp_path)
    report = judge(model, (image,), {"tower": file})
    assert "agrees" == report.verdict.status, report.verdict.summary
    (part,) = report.parts
    assert (3, 3, 9) == (part.calls, part.compared, part.stages)
    assert [("tower.0", 0), ("act", 1), ("tower.2", 0), ("tower.0", 1), ("act", 2), ("tower.2", 1)] == [
        (row.stage, row.call) for row in report.stages[:6]
    ]
    assert [(1, 2, 16, 16), (1, 2, 8, 8), (1, 2, 4, 4)] == [
        row.shape for row in report.stages if row.stage == "tower.2"
    ]
    assert 6 == len(part.runs)
    # The activation's own first call lies before all parts.
    assert ("act", None) in {(stage.ref.stage, stage.after) for stage in report.glue}


def test_calls_of_several_shapes_need_dynamic_axes(tmp_path: Path) -> None:
    """A file with the first call's shape alone is refused, with the call that it does not take."""
    model, image, _ = pyramid(tmp_path)
    file = export(model.tower, (image,), tmp_path / "fixed.onnx")
    with pytest.raises(BisectError, match="call 1: the ONNX inputs and the sample do not fit") as caught:
        judge(model, (image,), {"tower": file})
    assert "dynamic axes" in str(caught.value.hint)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.Linear])
def test_a_part_without_children_is_the_stage_that_it_is_in_the_model(kind: type, tmp_path: Path) -> None:
    """Not its operations: a recurrence has hundreds of them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = kind(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.rnn(x)
            return self.out(y[0] if isinstance(y, tuple) else y)

    net, x = Net().eval(), torch.randn(5, 2, 4)
    report = judge(net, (x,), {"rnn": export(net.rnn, (x,), tmp_path / "rnn.onnx")})
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert {"rnn"} == {row.stage for row in report.stages}
    assert {kind.__name__} == {row.type for row in report.stages}


def test_a_fault_shows_in_every_call(tmp_path: Path) -> None:
    """One origin for each, and it is said that one node is behind them all."""
    model, image, file = pyramid(tmp_path)
    report = judge(model, (image,), {"tower": scaled(file, tmp_path / "bad.onnx", "2.weight", 0)})
    assert [("tower.2", 0), ("tower.2", 1), ("tower.2", 2)] == [(o.stage, o.call) for o in report.verdict.origins]
    assert all(any("one fault would explain them all" in line for line in o.evidence) for o in report.verdict.origins)


def test_only_the_first_calls_are_compared_where_there_are_many(tmp_path: Path) -> None:
    """The rest runs in the chain all the same, and a note says how many were compared."""

    class Repeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(MOST_CALLS + 3):
                x = x + self.step(x).tanh()
            return x

    model, x = Repeats().eval(), torch.randn(2, 4)
    report = judge(model, (x,), {"step": export(model.step, (x,), tmp_path / "step.onnx")})
    assert "agrees" == report.verdict.status
    (part,) = report.parts
    assert (MOST_CALLS + 3, MOST_CALLS) == (part.calls, part.compared)
    assert (
        f"step is called {MOST_CALLS + 3} times; the first {MOST_CALLS} calls are compared, "
        "the others only run in the chain"
    ) in report.notes
    assert {0, MOST_CALLS - 1} <= {run.call for run in part.runs}
    assert all(out.judgement == "pass" for run in report.configs for out in run.outputs)


# Several submodules in one file


class Split(nn.Module):
    """Three stages; what lies between the last two is told at the start."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x, leak: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True))
        self.tail = nn.Linear(8, 2)
        self.between, self.leak = between, leak

    def forward(self, x: Tensor) -> Any:
        y = self.body(self.stem(x) * 2)
        z = self.tail(self.between(y))
        return (z, y) if self.leak else z


class Joined(nn.Module):
    """Body and tail, as people wrap what they export together."""

    def __init__(self, net: Split) -> None:
        super().__init__()
        self.body, self.tail = net.body, net.tail

    def forward(self, hidden: Tensor) -> Tensor:
        return self.tail(self.body(hidden))


def test_submodules_that_share_a_file(tmp_path: Path) -> None:
    """They are one part, and their stages have the model's names; a fault in it is found at its stage."""
    torch.manual_seed(2)
    net, x = Split().eval(), torch.randn(3, 4)
    file = export(Joined(net), (torch.randn(3, 8),), tmp_path / "joined.onnx")
    report = judge(net, (x,), {"body+tail": file})
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert ["body.0", "body.1", "tail"] == [row.stage for row in report.stages]
    assert ["stem", "/mul#0"] == [stage.ref.stage for stage in report.glue]
    assert {None} == {stage.after for stage in report.glue}
    outputs = judge(net, (x,), {"body+tail": file}, stages=("(model)",)).stages
    assert [("body+tail", None)] == [(row.stage, row.source) for row in outputs]
    report = judge(net, (x,), {"body+tail": scaled(file, tmp_path / "bad.onnx", "tail.weight", 1)})
    assert ["tail"] == [origin.stage for origin in report.verdict.origins]


def test_submodules_of_any_name_can_share_a_file(tmp_path: Path) -> None:
    """Also where the last parts of their paths are the same."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (nn.ModuleDict({"fc": nn.Linear(4, 4)}) for _ in range(2))
            self.call = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.call(self.right["fc"](self.left["fc"](x)))

    net, x = Net().eval(), torch.randn(3, 4)
    report = judge(net, (x,), {"left.fc+right.fc+call": export(net, (x,), tmp_path / "net.onnx")})
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert ["left.fc", "right.fc", "call"] == [row.stage for row in report.stages]


@pytest.mark.parametrize("net", [Split(lambda x: x + 1), Split(leak=True)], ids=["between", "leak"])
def test_nothing_may_happen_between_submodules_of_one_file(net: Split, tmp_path: Path) -> None:
    """What one hands to the next must not be used by anybody else; that is told before anything is compared."""
    file = export(Joined(net), (torch.randn(3, 8),), tmp_path / "joined.onnx")
    with pytest.raises(BisectError, match="what body returns is also used outside of these submodules") as caught:
        judge(net, (torch.randn(3, 4),), {"body+tail": file})
    assert "a file of its own" in str(caught.value.hint)


class Mix(nn.Module):
    """Of two tensors of one shape, one counts more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, main: Tensor, side: Tensor) -> Tensor:
        return self.fc(main * 2 - side)


class Mixed(nn.Module):
    """Two submodules of one file that read two tensors of one shape from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.mix = nn.Linear(4, 4), Mix()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        # Tensors that come and go: what they leave behind must not be taken for what the submodules return.
        for _ in range(20):
            left = left * 1.01 + right * 0.01
        hidden = self.add(left)
        return self.mix(hidden, right)


class Exchanged(nn.Module):
    """The submodules as they were exported: with the inputs the other way round."""

    def __init__(self, net: Mixed) -> None:
        super().__init__()
        self.add, self.mix = net.add, net.mix

    def forward(self, side: Tensor, input: Tensor) -> Tensor:
        return self.mix(self.add(input), side)


def test_inputs_of_joined_submodules_go_by_the_names_of_their_forwards(tmp_path: Path) -> None:
    """Two inputs of one shape, in another order: names tell them apart."""
    net, (left, right) = Mixed().eval(), torch.randn(2, 5, 4)
    file = export(Exchanged(net), (right, left), tmp_path / "joined.onnx", input_names=["side", "input"])
    report = judge(net, (left, right), {"add+mix": file})
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert {"add+mix"} == {row.part for row in report.stages}


# The chain


class Sensitive(nn.Module):
    """What PyTorch does between the parts makes large errors of small ones."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 32))
        self.second = nn.Linear(32, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def sensitive(folder: Path, between: Callable[[Tensor], Tensor]) -> Report:
    """The report on a model of two healthy parts."""
    torch.manual_seed(5)
    net, x = Sensitive(between).eval(), torch.randn(8, 32)
    files = {name: export(getattr(net, name), (x,), folder / f"{name}.onnx") for name in ("first", "second")}
    return judge(net, (x,), files)


def test_rounding_that_grows_between_the_parts_is_no_fault(tmp_path: Path) -> None:
    """PyTorch's own parts with random errors of the same size come out as far off: that is said, and it agrees."""
    report = sensitive(tmp_path, lambda x: torch.sin(x * 2e4))
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert any("rounding grows through the chain" in line for line in report.verdict.summary)
    assert max(out.total.rel_l2 for run in report.configs for out in run.outputs) > 1e-4


def test_random_numbers_between_the_parts_are_inconclusive(tmp_path: Path) -> None:
    """Neither a fault nor agreement can be told."""
    report = sensitive(tmp_path, lambda x: x + torch.rand_like(x))
    assert "inconclusive" == report.verdict.status
    assert "does not repeat itself" in " ".join(report.verdict.summary)


def test_what_only_the_chain_meets_is_a_divergence(tmp_path: Path) -> None:
    """Parts that agree by themselves, and code between them that does other things on anything but PyTorch's numbers."""
    torch.manual_seed(5)
    seen: list[Tensor] = []

    def between(x: Tensor) -> Tensor:
        # PyTorch, then for each configuration the chain, PyTorch once more, and PyTorch with random errors.
        seen.append(x)
        return x * 2 if len(seen) in (2, 5) else x

    report = sensitive(tmp_path, between)
    assert 7 == len(seen)
    assert "diverges" == report.verdict.status
    assert report.verdict.summary[0].startswith("each part agrees on PyTorch's inputs, and chained together")
    assert () == report.verdict.origins


def test_a_chain_that_fails_is_told(detector: Case, tmp_path: Path) -> None:
    """A part with an output of another shape diverges; the code behind it can't take that, and a note says so."""
    module, inputs, healthy = detector
    model = onnx.load(healthy["encoder"])
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["wide" if out == name else out for out in node.output]
    model.graph.node.append(onnx.helper.make_node("Transpose", ["wide"], [name], name="turned", perm=[1, 0]))
    shape = model.graph.output[0].type.tensor_type.shape
    shape.dim[0].dim_value, shape.dim[1].dim_value = 8, 12
    onnx.save(model, tmp_path / "encoder.onnx")
    report = judge(module, inputs, {**healthy, "encoder": tmp_path / "encoder.onnx"})
    assert "diverges" == report.verdict.status
    assert any("the model fails with the files in its parts' place" in note for note in report.notes), report.notes
    assert {part.part: part.status for part in report.parts} == {"encoder": "diverges", "head": "agrees"}


def test_a_part_that_writes_into_its_input(tmp_path: Path) -> None:
    """The part is judged on what it was given, not on what became of that."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x - 1)

    net, x = Writes().eval(), torch.randn(4, 6)
    report = judge(net, (x,), {"part": export(net.part, (torch.randn(4, 6),), tmp_path / "part.onnx")})
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert 0 == call_of(report, "part").input_error


def test_structures_that_a_part_takes_and_returns(tmp_path: Path) -> None:
    """Keywords, nested containers, things that are no tensors, the same tensor twice."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, pair: list[Tensor], scale: float, *, last: Tensor, mask: Tensor | None = None) -> Any:
            y = self.fc(pair[0] + pair[1]) * scale
            y = y if mask is None else y.masked_fill(mask, 0.0)
            return {"main": (y, [y + last]), "none": None}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner([x, x], 0.5, last=x.tanh(), mask=x > 0)
            assert out["none"] is None
            return out["main"][0] + out["main"][1][0]

    class Exported(nn.Module):
        def __init__(self, inner: Inner) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, a: Tensor, b: Tensor, last: Tensor, mask: Tensor) -> Any:
            return self.inner([a, b], 0.5, last=last, mask=mask)["main"]

    net, x = Net().eval(), torch.randn(2, 4)
    names = ["pair.0", "pair.1", "last", "mask"]
    file = export(Exported(net.inner), (x, x, x.tanh(), x > 0), tmp_path / "inner.onnx", input_names=names)
    report = judge(net, (x,), {"inner": file})
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert ["main.0", "main.1.0"] == [out.output for out in call_of(report, "inner").outputs]


# Errors


MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.unused = nn.Linear(4, 4)
        self.again = self.stem

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

def build_model():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file, a sample, and the file of a part."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "model.py").write_text(MODEL)
    namespace: dict[str, Any] = {"__name__": "material"}
    exec(MODEL, namespace)
    net, x = namespace["build_model"]().eval(), torch.randn(2, 4)
    torch.save(x, folder / "sample.pt")
    export(net.stem, (x,), folder / "stem.onnx")
    export(net.blocks[0], (x,), folder / "block.onnx")
    export(nn.Linear(7, 4), (torch.randn(2, 7),), folder / "other.onnx")
    (folder / "case.toml").write_text('[parts]\nstem = "stem.onnx"\n"blocks.0" = "block.onnx"\n')
    (folder / "dotted.toml").write_text('[parts]\nblocks.0 = "block.onnx"\n')
    return folder


def run(folder: Path, tmp_path: Path, *arguments: str) -> Outcome:
    """The command inside the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return command("model.py", "--input", "sample.pt", *arguments, folder=tmp_path / "report")


STEM = ("--part", "stem=stem.onnx")
ERRORS = {
    "no such submodule": (("--part", "block=block.onnx"), ("has no submodule block", "help:", "blocks")),
    "no such inner submodule": (("--part", "net.stem=stem.onnx"), ("has no submodule net.stem", "stem")),
    "never called": (("--part", "unused=stem.onnx"), ("unused is never called", "help: a part is a submodule")),
    "a list": (("--part", "blocks=block.onnx"), ("blocks is never called", "ModuleList", "blocks.0+blocks.1")),
    "given twice": ((*STEM, "--part", "stem=block.onnx"), ("stem: given twice (stem.onnx, block.onnx)", "one file")),
    "one submodule, two names": (
        (*STEM, "--part", "again=block.onnx"),
        ("stem and again, which are one submodule", "help: stem stands for it already"),
    ),
    "in two parts": (
        ("--part", "stem+blocks.0=stem.onnx", "--part", "blocks.0=block.onnx"),
        ("blocks.0 is in two parts", "a submodule has one file"),
    ),
    "nested": (
        ("--part", "blocks.0=block.onnx", "--part", "blocks.0.0=stem.onnx"),
        ("blocks.0.0 lies inside blocks.0", "leave one of the two out"),
    ),
    "does not fit": (
        ("--part", "stem=other.onnx"),
        ("--part stem=other.onnx: the ONNX inputs and the sample do not fit", "is this the file of stem?"),
    ),
    "no file": (("--part", "stem=steam.onnx"), ("--part stem=steam.onnx: ", "no such file")),
    "no form": (("--part", "stem.onnx"), ("not of the form SUBMODULE=FILE", "--part backbone=backbone.onnx")),
    "no name": (("--part", "=stem.onnx"), ("not of the form SUBMODULE=FILE", "--onnx FILE for the whole model")),
    "with onnx": ((*STEM, "--onnx", "stem.onnx"), ("--part and --onnx exclude each other", "give one of the two")),
    "with matrix": ((*STEM, "--matrix", "quick"), ("--part and --matrix do not go together yet", "leave --matrix out")),
    "with an export": (
        (*STEM, "--exporter", "dynamo", "--opset", "18", "--keep-onnx", "x.onnx"),
        ("--exporter, --opset, --keep-onnx: for an export, and --part makes none", "help: leave"),
    ),
    "dotted key": (("--config", "dotted.toml"), ("blocks in [parts]", "help:", "is quoted")),
    "not called one after another": (
        ("--part", "blocks.0+stem+unused=stem.onnx"),
        ("unused is never called", "help:"),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_go_is_told(material: Path, tmp_path: Path, name: str) -> None:
    """Exit 2, what is wrong and the remedy, no traceback, no report."""
    arguments, fragments = ERRORS[name]
    outcome = run(material, tmp_path, *arguments)
    assert 2 == outcome.code, outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    assert "Traceback" not in outcome.err
    assert "" == outcome.out
    assert not (tmp_path / "report").exists()


def test_calls_of_forward_itself_are_refused(tmp_path: Path) -> None:
    """They pass the module's hooks, so that there is no stage to compare."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.forward(x) * 2

    net, x = Net().eval(), torch.randn(2, 4)
    with pytest.raises(BisectError, match="calls forward itself"):
        judge(net, (x,), {"inner": export(net.inner, (x,), tmp_path / "inner.onnx")})


def test_torchscript_archives_have_no_parts(tmp_path: Path, detector: Case) -> None:
    """Their submodules can't be exchanged."""
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(BisectError, match="TorchScript archive"):
        judge(scripted, (torch.randn(2, 4),), {"0": detector[2]["head"]})


def test_a_file_that_does_not_run_is_inconclusive(material: Path, tmp_path: Path) -> None:
    """The other part is judged all the same, and the verdict says which one gave no answer."""
    model = onnx.load(material / "block.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "block.onnx")
    outcome = run(material, tmp_path, *STEM, "--part", f"blocks.0={tmp_path / 'block.onnx'}", "--format", "json")
    assert 3 == outcome.code, outcome.err
    report = outcome.report
    assert report["verdict"]["summary"][0].startswith("blocks.0 (block.onnx): ONNX Runtime cannot load the graph")
    assert {"stem": "agrees", "blocks.0": "inconclusive"} == {part["part"]: part["status"] for part in report["parts"]}


def test_parts_of_a_case_file(material: Path, tmp_path: Path) -> None:
    """Files are relative to the case file; --part on the command line takes the place of the whole table."""
    outcome = run(material, tmp_path, "--config", str(material / "case.toml"), "--format", "json")
    assert 0 == outcome.code, outcome.err
    assert ["stem", "blocks.0"] == [part["part"] for part in outcome.report["parts"]]
    outcome = run(material, tmp_path / "b", "--config", "case.toml", "--format", "json", *STEM)
    assert ["stem"] == [part["part"] for part in outcome.report["parts"]]
    assert {"blocks.0.0", "blocks.0.1", "blocks.1.0"} <= {stage["stage"] for stage in outcome.report["glue"]}


def test_every_reporter_shows_the_parts(material: Path, tmp_path: Path) -> None:
    """The terminal and the page have a table of parts with PyTorch's share between them; CSV and JSON name the part."""
    outcome = run(material, tmp_path, "--part", "stem=stem.onnx", "--part", "blocks.1=block.onnx")
    # The second file is that of another block.
    assert 1 == outcome.code, outcome.err
    lines = outcome.out.splitlines()
    table = lines.index("Parts under ort-cpu-off")
    assert lines[table + 1].split() == ["part", "file", "aligned", "in", "alone", "chained", "status"]
    assert ["stem", "stem.onnx", "1", "of", "1", "0"] == lines[table + 2].split()[:6]
    assert "  PyTorch: blocks.0.0 (Linear), blocks.0.1 (ReLU)" == lines[table + 3]
    assert lines[table + 4].split()[0] == "blocks.1" and lines[table + 4].endswith("DIVERGES")
    assert "  part blocks.1, on PyTorch's inputs" in lines
    assert "  part: blocks.1 (block.onnx)" in lines
    page = (outcome.folder / "index.html").read_text(encoding="utf-8")
    assert "<h2>Parts under ort-cpu-off</h2>" in page
    assert "PyTorch: blocks.0.0 (Linear), blocks.0.1 (ReLU)" in page
    assert '<th scope="col" data-sort="text">part</th>' in page
    report = json.loads((outcome.folder / "report.json").read_text(encoding="utf-8"))
    assert {"stem", "blocks.1"} == {row["part"] for row in report["stages"]}
    assert {"blocks.1"} == {origin["part"] for origin in report["verdict"]["origins"]}
    head, *rows = (outcome.folder / "stages.csv").read_text(encoding="utf-8").splitlines()
    assert head.endswith(",part")
    assert {"stem", "blocks.1"} == {row.rpartition(",")[2] for row in rows}


# CenterPoint


@pytest.fixture(scope="module")
def centerpoint(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small CenterPoint and its two files; README's commands run it in full size."""
    import runpy

    folder, example = tmp_path_factory.mktemp("centerpoint"), small_root / "examples" / "centerpoint"
    for name in ("model.py", "ckpt.pth", "sample.pt"):
        (folder / name).symlink_to(example / name)
    runpy.run_path(str(example / "export_parts.py"))["export"](folder)
    return folder


def _centerpoint(folder: Path, target: Path, **files: Path) -> Outcome:
    encoder = files.get("encoder", folder / "encoder.onnx")
    behind = files.get("behind", folder / "backbone_neck_head.onnx")
    return command(
        folder / "model.py",
        folder / "ckpt.pth",
        *("--input", folder / "sample.pt"),
        *("--part", f"pillar_encoder={encoder}"),
        *("--part", f"backbone+neck+head={behind}"),
        *("--group", "backbone.blocks.*", "--format", "json"),
        folder=target,
    )


def test_centerpoint_in_two_files(centerpoint: Path, tmp_path: Path) -> None:
    """The detector's two files agree; the scatter between them is PyTorch's; the backbone's stages have their rows."""
    outcome = _centerpoint(centerpoint, tmp_path / "report")
    assert 0 == outcome.code, outcome.err
    report = outcome.report
    assert ["pillar_encoder", "backbone+neck+head"] == [part["part"] for part in report["parts"]]
    assert {1.0} == {part["coverage"] for part in report["parts"]}
    assert [("scatter", "Scatter", "pillar_encoder")] == [(g["stage"], g["type"], g["after"]) for g in report["glue"]]
    groups = [row["stage"] for row in report["stages"] if row["role"] == "group"]
    assert [f"backbone.blocks.{number}" for number in range(3)] == groups
    assert 12 == len(report["configs"][0]["outputs"])


@pytest.mark.slow
def test_centerpoint_with_a_fault_in_the_encoder(centerpoint: Path, tmp_path: Path) -> None:
    """It is found there; the other file is not blamed for what comes in through the scatter."""
    model = onnx.load(centerpoint / "encoder.onnx")
    (node,) = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name in node.input]
    array = numpy_helper.to_array(tensor).copy()
    np.moveaxis(array, array.shape.index(64), 0)[5] *= 1.3
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "encoder.onnx")
    outcome = _centerpoint(centerpoint, tmp_path / "report", encoder=tmp_path / "encoder.onnx")
    assert 1 == outcome.code, outcome.err
    verdict = outcome.report["verdict"]
    (origin,) = verdict["origins"]
    assert ("pillar_encoder", "pillar_encoder.linear") == (origin["part"], origin["stage"])
    assert [node.name] == [name.removeprefix("pillar_encoder:") for name in origin["onnx_nodes"]]
    encoder, behind = outcome.report["parts"]
    assert ("diverges", "agrees") == (encoder["status"], behind["status"])
    (run,) = [run for run in behind["runs"] if run["config"] == "ort-cpu-off"]
    assert run["input_error"] > 1e-3
    assert max(out["total"]["rel_l2"] for out in run["outputs"]) > 1e-2
    assert max(out["local"]["rel_l2"] for out in run["outputs"]) < 1e-4
    assert any(line.startswith("backbone+neck+head agrees on PyTorch's inputs") for line in verdict["summary"])


def test_centerpoint_with_a_fault_behind_the_scatter(centerpoint: Path, tmp_path: Path) -> None:
    """The stage and the node of the second file are named; the encoder is clean."""
    weight = "backbone.blocks.1.conv1.weight"
    file = scaled(centerpoint / "backbone_neck_head.onnx", tmp_path / "behind.onnx", weight, 3)
    outcome = _centerpoint(centerpoint, tmp_path / "report", behind=file)
    assert 1 == outcome.code, outcome.err
    (origin,) = outcome.report["verdict"]["origins"]
    assert ("backbone+neck+head", "backbone.blocks.1.norm1") == (origin["part"], origin["stage"])
    assert [reader_of(file, weight)] == [name.rpartition(":")[2] for name in origin["onnx_nodes"]]
    assert ["agrees", "diverges"] == [part["status"] for part in outcome.report["parts"]]
    assert not math.isnan(origin["local_rel_l2"])


class Adding(nn.Module):
    """Puts what it has into the dictionary that its head gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.neck, self.head = nn.Conv2d(8, 8, 1), Head()

    def forward(self, grid: Tensor) -> dict[str, Tensor]:
        """grid (1, 8, 6, 6) -> as `Head`, and neck (1, 8, 6, 6)."""
        features = self.neck(grid)
        found = self.head(features)
        found["neck"] = features
        return found  # type: ignore[no-any-return]


def test_a_part_whose_dictionary_the_model_adds_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, grid = Adding().eval(), torch.randn(1, 8, 6, 6)
    file = export(module.head, (module.neck(grid),), tmp_path / "head.onnx", output_names=["score", "box"])
    options = Options(make_tolerance(None, None, None))
    report = bisect_parts(LoadedCase("adding", module, (grid,), {}), {"head": file}, options)
    assert "agrees" == report.verdict.status
    assert {"score", "box", "neck"} == {str(out.output) for run in report.configs for out in run.outputs}
