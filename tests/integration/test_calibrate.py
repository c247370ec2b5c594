"""``bisect-tool calibrate``: from samples to a table; a faulty file widens no limit, and an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from bisect_tool.backends import known_good_runs
from bisect_tool.backends.architecture import graph_of, modules_of
from bisect_tool.backends.emulation import Emulation
from bisect_tool.backends.known_good_runs import (
    Sample,
    Variations,
    perturbed,
    torch_errors,
    usual_variations,
    with_matrix,
)
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.torch_runner import TorchRun
from bisect_tool.calibrate import Calibrated, How, Plan, calibrate, inputs_digest, sample_errors
from bisect_tool.calibration.table_judging import judge_outputs_by_table, over_limits
from bisect_tool.calibration.tolerance_table import Fingerprint, ToleranceTable, differences, read_table, stages_of_rows
from bisect_tool.cli.main import execute
from bisect_tool.cli.tool import tool
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.matrix import read_matrix
from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import StageRef, StageRow
from bisect_tool.tolerances import make_tolerance

BUDGET = 1 << 30


class Net(nn.Module):
    """A convolution, a norm, functional code, two linear layers, and an argmax beside the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.LayerNorm(96)
        self.fc1 = nn.Linear(96, 16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.conv(x)).flatten(1)
        y = self.fc2(torch.tanh(self.fc1(self.norm(y))))
        return y, y.argmax(1)


def sample(seed: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed)),)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def cases(net: nn.Module) -> list[LoadedCase]:
    return [LoadedCase("net", net, sample(seed), {}) for seed in range(5)]


@pytest.fixture(scope="module")
def healthy_file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "net.onnx"
    torch.onnx.export(net, sample(0), str(path), dynamo=False, input_names=["x"])
    return path


def planted(source: Path, target: Path, factor: float) -> Path:
    """The file with the first linear layer's weight scaled."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name == "fc1.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(model, target)
    return target


@pytest.fixture(scope="module")
def calibrated(cases: list[LoadedCase], healthy_file: Path) -> Calibrated:
    return calibrate(cases, Plan(false_alarm=0.2, onnx=healthy_file))


def alarms(case: LoadedCase, file: Path, table: ToleranceTable) -> list[str]:
    """What ``verify`` finds over its limits."""
    report = bisect(case, Options(make_tolerance(None, None, None), onnx=file, explain=False))
    found = [str(ref) for ref, _ in over_limits(report.stages, "ort-cpu-off", table)]
    for run in report.configs:
        outs = judge_outputs_by_table(run.outputs, report.stages, run.name, table, baseline="ort-cpu-off")
        found += [out.onnx_value for out in outs if out.judgement == "fail"]
    return found


# The table


def test_every_stage_has_limits(calibrated: Calibrated) -> None:
    """Floating ones; whole numbers are there without any."""
    table = calibrated.made.table
    by_name = {stage.stage: stage for stage in table.stages}
    assert {"conv", "norm", "fc1", "fc2"} <= by_name.keys()
    for name in ("conv", "norm", "fc1", "fc2"):
        metrics = by_name[name].metrics
        assert {"rel_l2", "max_abs", "mean_abs", "local_rel_l2"} == metrics.keys()
        assert 1e-7 < metrics["rel_l2"].limit < 1e-4
        assert metrics["rel_l2"].p50 <= metrics["rel_l2"].p99 <= metrics["rel_l2"].max
    (index,) = (stage for stage in table.stages if "int64" in stage.kind)
    assert {} == index.metrics
    assert ("measured", 5) == (table.calibration.tail, table.calibration.samples)


def test_all_kinds_of_runs_are_counted(calibrated: Calibrated) -> None:
    """Each variation ran for each sample; nothing was left out of a healthy model."""
    names = calibrated.made.table.calibration.variations
    for part in (
        "float64",
        "made-up rounding",
        "thread",
        "oneDNN",
        "deterministic",
        "batch",
        "unoptimised",
        "optimised",
    ):
        assert any(part in name for name in names), part
    assert {} == calibrated.made.left_out


def test_a_healthy_sample_passes(calibrated: Calibrated, net: nn.Module, healthy_file: Path) -> None:
    """One that the table has not seen; limits are for one false alarm in five runs, and this is a frozen one."""
    assert [] == alarms(LoadedCase("net", net, sample(99), {}), healthy_file, calibrated.made.table)


def test_a_small_fault_fails(calibrated: Calibrated, net: nn.Module, healthy_file: Path, tmp_path: Path) -> None:
    """1e-4 of one layer's weight, far below any usual tolerance, and the layer is named first."""
    file = planted(healthy_file, tmp_path / "faulty.onnx", 1.0001)
    found = alarms(LoadedCase("net", net, sample(99), {}), file, calibrated.made.table)
    assert "fc1" == found[0]


@pytest.mark.parametrize("factor", [1.0001, 1.05])
def test_calibrating_with_a_fault_at_hand_does_not_let_it_pass(
    factor: float, cases: list[LoadedCase], torch_alone: ToleranceTable, healthy_file: Path, tmp_path: Path
) -> None:
    """Small or gross: at the fault and behind it nothing of the file counts, and it fails by its own table."""
    file = planted(healthy_file, tmp_path / "faulty.onnx", factor)
    made = calibrate(cases, Plan(false_alarm=0.2, onnx=file, copies=0)).made
    assert "fc1" == alarms(cases[0], file, made.table)[0]
    assert any("fc1" in line for line in made.left_out)
    alone = {stage.ref: stage for stage in torch_alone.stages}
    reached = {"fc1", "/tanh#0", "fc2"}
    for stage in made.table.stages:
        for name, limit in stage.metrics.items():
            known = alone[stage.ref].metrics[name]
            if stage.stage in reached:
                assert (known.p50, known.p99, known.max) == (limit.p50, limit.p99, limit.max), (stage.ref, name)
            else:
                assert known.max <= limit.max < 1e-5, (stage.ref, name)
    assert reached <= {stage.stage for stage in made.table.stages}


@pytest.fixture(scope="module")
def torch_alone(cases: list[LoadedCase]) -> ToleranceTable:
    return calibrate(cases, Plan(false_alarm=0.2, with_onnx=False, copies=0)).made.table


def test_pytorch_alone_makes_a_table_that_onnx_runtime_passes(
    torch_alone: ToleranceTable, net: nn.Module, healthy_file: Path, tmp_path: Path
) -> None:
    """Made-up rounding stands for another implementation; a fault fails by that table too."""
    table = torch_alone
    assert {} == table.fingerprint.graph
    case = LoadedCase("net", net, sample(99), {})
    assert [] == alarms(case, healthy_file, table)
    assert "fc1" == alarms(case, planted(healthy_file, tmp_path / "faulty.onnx", 1.0001), table)[0]


# Which model it is for


def _fingerprint(module: nn.Module, rows: Sequence[StageRow], graph: Mapping[str, str]) -> Fingerprint:
    return Fingerprint(modules_of(module), stages_of_rows(rows), graph)


def test_the_fingerprint_of_a_comparison_is_that_of_the_table(
    calibrated: Calibrated, net: nn.Module, healthy_file: Path
) -> None:
    """Other weights are the same model; another layer, another forward and another graph are not."""
    report = bisect(LoadedCase("net", net, sample(7), {}), Options(make_tolerance(None, None, None), onnx=healthy_file))
    graph = graph_of(OnnxProgram(load_onnx(healthy_file), healthy_file))
    table = calibrated.made.table
    assert [] == differences(table, _fingerprint(net, report.stages, graph))
    assert [] == differences(table, _fingerprint(Net(), report.stages, graph))
    other = Net()
    other.fc2 = nn.Linear(16, 6)
    (line,) = differences(table, _fingerprint(other, report.stages, graph))
    assert "module fc2: Linear(weight float32[5, 16], bias float32[5]) in the table" in line
    fewer = [row for row in report.stages if row.stage != "norm"]
    assert ["stage norm: LayerNorm float32 2-d is only in the table"] == differences(
        table, _fingerprint(net, fewer, graph)
    )
    assert ["precision of the graph: float32 in the table, float16 here"] == differences(
        table, _fingerprint(net, report.stages, {**graph, "precision": "float16"})
    )


def test_buffers_that_grow_with_the_sample_are_no_architecture() -> None:
    """A cache is not saved with the model."""
    module = nn.Linear(2, 2)
    module.register_buffer("cache", torch.zeros(3), persistent=False)
    assert {"": "Linear(weight float32[2, 2], bias float32[2])"} == modules_of(module)


# PyTorch's own runs


class Mixing(nn.Module):
    """Looks at its neighbours in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.sum(0, keepdim=True) / 10


class Drawing(nn.Module):
    """Draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 + torch.rand_like(x)


def test_a_variation_that_is_no_rounding_is_left_out() -> None:
    """A model that looks at its neighbours in a batch has errors of rounding all the same."""
    inputs = (torch.randn(2, 8),)
    errors = torch_errors(Sample(Mixing(), inputs, {}), usual_variations(), "leaf", (), BUDGET, 0)
    assert any("batch" in line for line in errors.left_out)
    assert not any("batch" in name for name in errors.runs)
    assert all(stage.largest["rel_l2"] < 1e-5 for stage in errors.stages.values())


def test_a_model_that_draws_numbers_says_why_it_has_no_reference() -> None:
    """And its variations are no rounding."""
    errors = torch_errors(Sample(Drawing(), (torch.randn(2, 8),), {}), usual_variations(), "leaf", (), BUDGET, 0)
    assert any("random numbers" in line for line in errors.left_out)
    assert all(stage.largest.get("rel_l2", 0.0) < 1e-5 for stage in errors.stages.values())


def test_reduced_precision_counts_only_where_it_is_accepted(net: nn.Module) -> None:
    """TF32 is a thousand times as coarse; then its local errors count as well."""
    plain = torch_errors(Sample(net, sample(0), {}), Variations(), "leaf", (), BUDGET, 0)
    coarse = torch_errors(Sample(net, sample(0), {}), Variations(accepted=("tf32",)), "leaf", (), BUDGET, 0)
    fc1 = StageRef("fc1", 0, 0)
    for metric in ("rel_l2", "local_rel_l2"):
        assert plain.stages[fc1].largest[metric] < 1e-5 < 1e-4 < coarse.stages[fc1].largest[metric]
    with pytest.raises(BisectError, match="--accept int4"):
        usual_variations(("int4",))


class Coarse(TorchRun):
    """A run of PyTorch whose products round to TF32, as on a GPU whose switch nobody looked at."""

    def start(self) -> Any:
        with Emulation("tf32"):
            return super().start()


def test_a_coarse_run_of_pytorch_is_not_known_good(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where it is further from float64 than rounding, nor behind; unless that is accepted."""
    monkeypatch.setattr(known_good_runs, "TorchRun", Coarse)
    errors = torch_errors(Sample(net, sample(0), {}), Variations(batch=False), "leaf", (), BUDGET, 0)
    (line,) = (line for line in errors.left_out if "float64" in line)
    assert line.startswith("PyTorch at conv and 2 more: further from float64 than rounding")
    norm, fc2 = (errors.stages[StageRef(name, 0, 0)].largest for name in ("norm", "fc2"))
    assert {"local_rel_l2"} == norm.keys()
    assert norm["local_rel_l2"] < 1e-5
    assert {} == fc2
    allowed = Variations(batch=False, accepted=("tf32",))
    accepted = torch_errors(Sample(net, sample(0), {}), allowed, "leaf", (), BUDGET, 0)
    assert accepted.stages[StageRef("fc2", 0, 0)].largest["rel_l2"] > 1e-5


class Choosing(nn.Module):
    """Takes the row of the larger of two numbers, which are equal but for the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(2, 2)
        self.after = nn.Linear(4, 3)
        nn.init.eye_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)
        self.register_buffer("rows", torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.rows[self.scale(x).argmax(1)])


def test_whole_steps_are_no_measure() -> None:
    """Made-up rounding turns the choice in half of the draws; what is behind it has no error of a whole step."""
    inputs = (torch.tensor([[1.0, 1.0000001]]),)
    turned = Variations(draws=6, batch=False)
    errors = torch_errors(Sample(Choosing().eval(), inputs, {}), turned, "leaf", (), BUDGET, 0)
    assert all(error < 1e-5 for stage in errors.stages.values() for error in stage.largest.values())
    assert "local_rel_l2" in errors.stages[StageRef("after", 0, 0)].largest


def test_a_matrix_adds_configurations_that_only_round(net: nn.Module, tmp_path: Path) -> None:
    """Emulated TF32 does more, and is left out with its size."""
    path = tmp_path / "m.toml"
    pairs = {"one-thread": "threads = 1", "channels": "channels_last = true", "tf32-emulated": 'emulate = "tf32"'}
    path.write_text("".join(f'[[pair]]\nname = "{n}"\n[pair.expected]\n{text}\n' for n, text in pairs.items()))
    wanted = with_matrix(Variations(batch=False), read_matrix(str(path)))
    errors = torch_errors(Sample(net, sample(0), {}), wanted, "leaf", (), BUDGET, 0)
    assert {"PyTorch of one-thread", "PyTorch of channels"} <= errors.runs.keys()
    assert "PyTorch of tf32-emulated" not in errors.runs
    assert any("PyTorch of tf32-emulated" in line and "more than rounding" in line for line in errors.left_out)


def test_copies_differ_a_little_and_repeat() -> None:
    """Zeros and whole numbers stay."""
    inputs = (torch.tensor([0.0, 1.0, -2.0]), torch.arange(3))
    one, two = (perturbed(Sample(nn.Identity(), inputs, {"k": inputs[0]}), 5, 1e-3) for _ in range(2))
    assert torch.equal(one.args[0], two.args[0])
    assert torch.equal(inputs[1], one.args[1])
    assert 0 == one.args[0][0]
    change = (one.args[0][1:] / inputs[0][1:] - 1).abs()
    assert bool(((change > 0) & (change <= 1e-3)).all())
    assert not torch.equal(inputs[0], one.kwargs["k"])


# Samples, journals, and what goes wrong


def test_an_interrupted_calibration_goes_on(cases: list[LoadedCase], tmp_path: Path) -> None:
    """After a Ctrl-C nothing is lost and nothing counted twice: the table is that of a run in one go."""
    plan, journal = Plan(false_alarm=0.2, with_onnx=False, copies=0), tmp_path / "journal"
    whole = calibrate(cases[:4], plan).made.table

    def interrupt(text: str) -> None:
        if "2 of 4" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(cases[:4], plan, How(journal=journal), interrupt)
    again = calibrate(cases[:4], plan, How(journal=journal))
    assert 2 == again.resumed
    table = again.made.table
    assert whole.stages == table.stages
    assert replace(whole.calibration, created="") == replace(table.calibration, created="")


def test_a_journal_of_another_calibration_is_refused(cases: list[LoadedCase], tmp_path: Path) -> None:
    """What differs is named; another rate of false alarms is no difference, as it changes no run."""
    plan, journal = Plan(with_onnx=False, copies=0, draws=1), How(journal=tmp_path / "journal")
    calibrate(cases[:1], plan, journal)
    assert 1 == calibrate(cases[:1], replace(plan, false_alarm=0.3), journal).resumed
    with pytest.raises(BisectError, match="draws was 1 and is 2"):
        calibrate(cases[:1], replace(plan, draws=2), journal)


def test_the_same_numbers_count_once(cases: list[LoadedCase]) -> None:
    """Two files with one content are one sample."""
    told: list[str] = []
    plan = Plan(with_onnx=False, copies=0, draws=1)
    made = calibrate([cases[0], cases[1], cases[0]], plan, progress=told.append).made
    assert 2 == made.table.calibration.samples
    assert any("counted once" in line for line in told)
    assert inputs_digest(cases[0]) != inputs_digest(cases[1])


def test_a_sample_that_fails_is_told_and_the_others_count(cases: list[LoadedCase]) -> None:
    """Without any there is no table."""
    broken = replace(cases[0], args=(torch.randn(2, 4, 6, 6),))
    plan = Plan(with_onnx=False, copies=0, draws=1)
    done = calibrate([broken, cases[1]], plan)
    assert [0] == list(done.failed)
    assert 1 == done.made.table.calibration.samples
    with pytest.raises(InconclusiveError, match="no sample could be run"):
        calibrate([broken], plan)


def test_a_sample_of_nan_is_no_run_without_error(cases: list[LoadedCase]) -> None:
    """NaN equals NaN in every variation; limits near zero would come of it."""
    empty = replace(cases[0], args=(torch.full_like(cases[0].args[0], torch.nan),))
    plan = Plan(with_onnx=False, copies=0, draws=1)
    assert "nothing but NaN or infinite values" in calibrate([empty, cases[1]], plan).failed[0]
    with pytest.raises(InconclusiveError, match="no sample could be run"):
        calibrate([empty], plan)


def test_a_sample_gives_the_same_errors_wherever_it_runs(cases: list[LoadedCase]) -> None:
    """Made-up rounding follows from the sample, not from its place or its process."""
    plan = Plan(with_onnx=False, draws=1)
    one, other = (sample_errors(cases.__getitem__, 0, 7, plan, None) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize("rate", [0.0, 1.0, 2.0])
def test_rates_that_are_none(rate: float, cases: list[LoadedCase]) -> None:
    """Refused before anything runs."""
    with pytest.raises(BisectError, match="--false-alarm"):
        calibrate(cases, Plan(false_alarm=rate))


# The command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, healthy_file: Path, net: nn.Module) -> Iterator[Path]:
    """A model file, its checkpoint, two samples, and the ONNX file."""
    folder = tmp_path_factory.mktemp("case")
    source = Path(__file__).read_text(encoding="utf-8")
    body = source[source.index("class Net(nn.Module)") : source.index("def sample(")]
    text = f"import torch\nfrom torch import Tensor, nn\n\n\n{body}\ndef build_model():\n    return Net()\n"
    (folder / "model.py").write_text(text, encoding="utf-8")
    torch.save(net.state_dict(), folder / "ckpt.pt")
    (folder / "samples").mkdir()
    for seed in range(2):
        torch.save(sample(seed), folder / "samples" / f"{seed}.pt")
    (folder / "net.onnx").write_bytes(healthy_file.read_bytes())
    yield folder


def call(files: Path, *more: str) -> int:
    arguments = [str(files / "model.py"), str(files / "ckpt.pt"), "--input", str(files / "samples"), "-q", *more]
    return execute(tool, "bisect-tool", ["calibrate", *arguments])


def test_command(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes the table and its plots, says how firmly the tail is known, and leaves no journal."""
    target = tmp_path / "tolerances.toml"
    assert 0 == call(files, "--onnx", str(files / "net.onnx"), "-o", str(target))
    text = capsys.readouterr().out
    for part in ("2 samples", "cannot show that, 99 could", "widest stages", "fc1", "known good", "plots"):
        assert part in text, part
    table = read_table(target)
    assert ("too few", 0.01) == (table.calibration.tail, table.calibration.false_alarm)
    names = {"tolerances.toml", *(f"tolerances.{n}.{k}" for n in ("errors", "sensitivity") for k in ("png", "svg"))}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert b"\x89PNG" == (tmp_path / "tolerances.errors.png").read_bytes()[:4]
    assert "fc1" in (tmp_path / "tolerances.errors.svg").read_text(encoding="utf-8")
    assert 2 == call(files, "-o", str(target))
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_command_as_json(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an ONNX file and without plots."""
    target = tmp_path / "t.toml"
    assert 0 == call(files, "--no-onnx", "--no-plots", "--copies", "0", "--format", "json", "-o", str(target))
    data = json.loads(capsys.readouterr().out)
    assert (str(target), [], 2, 99) == (
        data["tolerances"],
        data["plots"],
        data["calibration"]["samples"],
        data["samples_needed"],
    )
    assert {stage.stage for stage in read_table(target).stages} == {stage["stage"] for stage in data["stages"]}
    assert [target] == list(tmp_path.iterdir())
    with target.open("a", encoding="utf-8") as table:
        table.write("\n[metrics]\nargmax = 0.99\n")
    assert 0 == call(files, "--no-onnx", "--no-plots", "--copies", "0", "--force", "-o", str(target))
    assert {"argmax": 0.99} == read_table(target).metrics
    target.write_text("limits = none", encoding="utf-8")
    assert 2 == call(files, "--no-onnx", "--no-plots", "--force", "-o", str(target))
    assert "move that file away" in capsys.readouterr().err
    assert "limits = none" == target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--false-alarm", "0"], "--false-alarm 0.0"),
        (["--accept", "int4"], "--accept int4"),
        (["--no-onnx", "--onnx", "x.onnx"], "--no-onnx and --onnx"),
        (["--onnx", "nowhere.onnx"], "no such file"),
        (["--executor", "cloud"], "--executor cloud"),
        (["-o", "."], "a folder"),
    ],
)
def test_bad_usage(more: list[str], said: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and what to do."""
    place = [] if "-o" in more else ["-o", str(tmp_path / "t.toml")]
    assert 2 == call(files, *more, *place)
    error = capsys.readouterr().err
    assert said in error
    assert "help:" in error


def test_a_file_of_another_model_widens_nothing(files: Path, tmp_path: Path) -> None:
    """ONNX Runtime's runs are left out, with the reason."""
    made = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3, 6, 6])],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "other.onnx")
    target = tmp_path / "t.toml"
    assert 0 == call(files, "--no-plots", "--onnx", str(tmp_path / "other.onnx"), "-o", str(target))
    for stage in read_table(target).stages:
        assert all(limit.limit < 1e-4 for limit in stage.metrics.values()), stage.ref
