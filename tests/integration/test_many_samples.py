"""Several samples in one command: one export, one report each and one on all, and what tracing baked in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Outcome, command

from bisect_tool import store
from bisect_tool.backends.operations import operations_of

BRANCH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x):
        y = self.fc1(x)
        if x.mean() > 0:
            y = torch.relu(y)
        else:
            y = torch.tanh(y) * 2
        return self.fc2(y)

def build_model():
    torch.manual_seed(0)
    return Net()
"""

SCALED = """
import math
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.o = nn.Linear(8, 4)

    def forward(self, x):
        s = self.q(x) @ x.transpose(1, 2)
        s = s / math.sqrt(int(x.shape[1]))
        return self.o(torch.softmax(s, -1) @ x)

def build_model():
    torch.manual_seed(0)
    return Net()
"""

CLAMPED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, most=1.0):
        super().__init__()
        self.most = most
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 4)

    def forward(self, x):
        return self.b(torch.clamp(self.a(x), max=self.most))

def build_model(most=1.0):
    torch.manual_seed(0)
    return Net(most)
"""

PREPARED = """
import torch

def load(path):
    return torch.load(path) / 2
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models and samples, with the drawing left out, which takes half of the time and is tested elsewhere."""
    from bisect_tool.reporters import plots

    monkeypatch.setattr(plots, "images", lambda _: plots.Images(b"", "<svg/>"))
    for name, code in {"branch": BRANCH, "scaled": SCALED, "clamped": CLAMPED, "prepared": PREPARED}.items():
        (tmp_path / f"{name}.py").write_text(code)
    x = torch.rand(2, 8)
    for name, tensor in {"a": x, "b": x + 0.5, "c": -x, "d": torch.rand(3, 8), "small": x / 20, "big": 8 * x}.items():
        torch.save(tensor, tmp_path / f"{name}.pt")
    for length in (6, 9):
        torch.save(torch.randn(1, length, 8), tmp_path / f"n{length}.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture()
def exports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the first input of each export that is made."""
    from bisect_tool.backends import case

    shapes: list[tuple[int, ...]] = []
    own = case.export_onnx

    def counted(module: Any, args: Any, *rest: Any) -> None:
        shapes.append(tuple(args[0].shape))
        own(module, args, *rest)

    monkeypatch.setattr(case, "export_onnx", counted)
    return shapes


def run(folder: Path, model: str, *samples: str, options: tuple[object, ...] = ()) -> Outcome:
    inputs = [part for sample in samples for part in ("--input", f"{sample}.pt")]
    return command(f"{model}.py", *inputs, *options, folder=folder / "report")


def build(folder: Path, model: str, **given: Any) -> Any:
    space: dict[str, Any] = {}
    exec((folder / f"{model}.py").read_text(), space)
    return space["build_model"](**given).eval()


def test_a_branch_baked_in(folder: Path, exports: list[tuple[int, ...]]) -> None:
    """One export serves all samples of one shape, so that a branch which another sample takes is seen, and diagnosed."""
    outcome = run(folder, "branch", "a", "b", "c", "d", options=("--exporter", "torchscript"))
    assert 1 == outcome.code, outcome.err
    # Sample d has another shape. The third is that which keeps stages apart, and it follows the first sample too.
    assert [(2, 8), (2, 8), (3, 8)] == exports
    report = store.read_report(outcome.folder)
    assert ["agrees", "agrees", "diverges", "agrees"] == [each.status for each in report.samples]
    assert [0, 0, 0, 3] == [each.exported_from for each in report.samples]
    assert 2 == report.case["sample_index"]
    assert report.verdict.summary[0].startswith("1 of 4 samples diverges: the divergence depends on the sample")
    (found,) = [each for each in report.verdict.diagnoses if each.code == "BD401"]
    assert "branch baked at trace time" == found.title
    assert "agrees on sample 0 (a.pt), the sample of the export, and diverges on sample 2 (c.pt)" == found.evidence[0]
    assert any("runs only on sample 0 (a.pt): relu in (model)" in line for line in found.evidence)
    assert any("runs only on sample 2 (c.pt): tanh, mul" in line and "branch.py:16" in line for line in found.evidence)
    # Folders: each sample's report is whole, and links lead there.
    for each in report.samples:
        assert each.status == store.read_report(outcome.folder / each.folder).verdict.status
        assert f'href="{each.folder}/index.html"' in (outcome.folder / "index.html").read_text()
    own = store.read_report(outcome.folder / "002-c")
    assert ["BD401"] == [each.code for each in own.verdict.diagnoses] and () == own.samples
    assert any("exported anew for this sample" in note for note in store.read_report(outcome.folder / "003-d").notes)
    assert any("(d.pt): exported anew for this sample" in note for note in report.notes)
    rows = list(csv.DictReader((outcome.folder / "samples.csv").open()))
    assert ["a.pt", "b.pt", "c.pt", "d.pt"] == [row["source"] for row in rows]
    # On the terminal one table of samples, and one of stages.
    assert 1 == outcome.out.count("Stages under ort-cpu-off")
    assert 1 == sum(line.startswith(">   2  c.pt") for line in outcome.out.splitlines())
    assert "BD401 branch baked at trace time" in outcome.out
    # What the runs of one sample rule out, the others show.
    assert "ruled out BD401" not in outcome.out
    assert all("BD401" != each.code for verdict in (report.verdict, own.verdict) for each in verdict.ruled_out)


def test_a_constant_baked_into_a_file_with_dynamic_axes(folder: Path) -> None:
    """A given file serves all shapes; the number that follows from one of them is named with its line."""
    torch.onnx.export(
        build(folder, "scaled"),
        (torch.load(folder / "n6.pt"),),
        str(folder / "m.onnx"),
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {1: "n"}, "y": {1: "n"}},
    )
    # The sample that diverges comes first: what it lacks is known only after the second.
    outcome = run(folder, "scaled", "n9", "n6", options=("--onnx", "m.onnx"))
    assert 1 == outcome.code, outcome.err
    report = store.read_report(outcome.folder)
    assert ["diverges", "agrees"] == [each.status for each in report.samples]
    assert [None, None] == [each.exported_from for each in report.samples]
    for place in (outcome.folder, outcome.folder / "000-n9"):
        (found,) = [d for d in store.read_report(place).verdict.diagnoses if d.code == "BD401"]
        assert "constant baked at trace time" == found.title
        assert "first diverging stage on sample 0 (n9.pt): /div#0" in found.evidence
        (line,) = [line for line in found.evidence if line.startswith("div in (model)")]
        assert "scaled.py:14) works with 2.449489742783178 on sample 1 (n6.pt) and with 3.0 on sample 0" in line


def test_values_alone_are_no_baked_constant(folder: Path) -> None:
    """Where PyTorch does the same on all samples, only the values decide, and nothing was baked in."""
    torch.onnx.export(build(folder, "clamped", most=1.5), (torch.rand(2, 8),), str(folder / "m.onnx"), dynamo=False)
    outcome = run(folder, "clamped", "small", "big", options=("--onnx", "m.onnx"))
    assert 1 == outcome.code, outcome.err
    report = store.read_report(outcome.folder)
    assert ["agrees", "diverges"] == [each.status for each in report.samples]
    assert "the divergence depends on the sample, by its values" in report.verdict.summary[0]
    # The bound of the clamp is found all the same.
    assert ["BD106"] == [diagnosis.code for diagnosis in report.verdict.diagnoses]


def test_a_graph_that_fails_on_one_sample(folder: Path) -> None:
    """Samples that the graph does not run on have no answer; the others have theirs, and the exit code is 3."""
    model = build(folder, "scaled")

    class Reshaped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.reshape(1, 6, 8))

    shape = {"x": {1: "n"}, "y": {1: "n"}}
    torch.onnx.export(
        Reshaped().eval(),
        (torch.load(folder / "n6.pt"),),
        str(folder / "m.onnx"),
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=shape,
    )
    outcome = run(folder, "scaled", "n6", "n9", options=("--onnx", "m.onnx", "--format", "json"))
    assert 3 == outcome.code, outcome.err
    assert ["agrees", "inconclusive"] == [each["verdict"]["status"] for each in json.loads(outcome.out)]
    report = store.read_report(outcome.folder)
    assert ["agrees", "inconclusive"] == [each.status for each in report.samples]
    assert "ONNX Runtime failed while running" in (report.samples[1].reason or "")
    (found,) = report.verdict.diagnoses
    assert "BD401" == found.code and "does not run on sample 1 (n9.pt)" in found.evidence[0]


def test_unfit_samples_are_refused_before_anything_runs(folder: Path, exports: list[tuple[int, ...]]) -> None:
    """One sample that cannot be read, or that the given file does not take, is named, and nothing is written."""
    (folder / "bad.pt").write_text("nonsense")
    outcome = run(folder, "branch", "a", "bad", "b")
    assert 2 == outcome.code and "bad.pt" in outcome.err
    torch.onnx.export(build(folder, "branch"), (torch.rand(2, 8),), str(folder / "m.onnx"), dynamo=False)
    outcome = run(folder, "branch", "a", "d", options=("--onnx", "m.onnx"))
    assert 2 == outcome.code and "sample d.pt: the ONNX inputs and the sample do not fit together" in outcome.err
    assert [] == exports and not outcome.folder.exists()


def test_what_is_done_stays_after_ctrl_c(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second sample leaves the first one's report, none on all of them, and exit code 130."""
    from bisect_tool import pipeline

    own = pipeline.bisect
    runs: list[int] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return own(*args, **kwargs)

    monkeypatch.setattr(pipeline, "bisect", interrupted)
    outcome = run(folder, "branch", "a", "b", "c", options=("--exporter", "torchscript"))
    assert 130 == outcome.code
    assert ["000-a"] == [path.name for path in outcome.folder.iterdir()]
    assert "agrees" == store.read_report(outcome.folder / "000-a").verdict.status
    assert "written before" in outcome.err and "000-a" in outcome.err


def test_raw_files_and_json(folder: Path, exports: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """--raw may be repeated, --format json gives one report for each sample, and the second one needs no new session."""
    from bisect_tool.backends import ort_runner
    from bisect_tool.cli import run as command_module

    sessions: list[int] = []
    made_at: list[int] = []
    own, write = ort_runner._new_session, command_module._write
    monkeypatch.setattr(ort_runner, "_new_session", lambda *args: (sessions.append(1), own(*args))[1])
    monkeypatch.setattr(command_module, "_write", lambda *args: (made_at.append(len(sessions)), write(*args)))
    raws = ("--preprocess", "prepared:load", "--raw", "a.pt", "--raw", "b.pt", "--exporter", "torchscript")
    outcome = command("branch.py", *raws, "--format", "json", "--keep-onnx", "kept.onnx", folder=folder / "report")
    assert 0 == outcome.code, outcome.err
    reports = json.loads(outcome.out)
    assert ["prepared:load(a.pt)", "prepared:load(b.pt)"] == [each["case"]["sample"] for each in reports]
    assert [[], []] == [each["samples"] for each in reports]
    assert 0 < made_at[0] == made_at[1] and ort_runner._kept is None
    assert [(2, 8)] == exports
    assert (folder / "kept.onnx").exists()


def test_a_matrix_shares_its_exports(folder: Path) -> None:
    """Each graph of a matrix is exported with the first sample of a shape, and judged on all of them."""
    (folder / "matrix.toml").write_text('[[pair]]\nname = "plain"\n')
    options = ("--matrix", "matrix.toml", "--exporter", "torchscript", "--keep-onnx", "kept.onnx")
    outcome = run(folder, "branch", "a", "c", options=options)
    assert 1 == outcome.code, outcome.err
    report = store.read_report(outcome.folder)
    assert ["agrees", "diverges"] == [each.status for each in report.samples]
    assert "export" in store.read_report(outcome.folder / "000-a").timings
    assert "export" not in store.read_report(outcome.folder / "001-c").timings
    assert "BD401" in [each.code for each in report.verdict.diagnoses]
    assert (folder / "kept.onnx").exists()


def test_operations_of_a_run(folder: Path) -> None:
    """Numbers are told with their place, tensors that no input changes in full, bodies of torch.cond not at all."""

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.add_(torch.tensor([1.0, 2.0]))
            y = torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))
            return y * 0.5

    given = torch.ones(2)
    found = operations_of(Net(), (given,), {})
    assert [1.0, 1.0] == given.tolist()
    names = [each.name for each in found]
    assert "sin" not in names and "cos" not in names
    constants = {each.name: each.constants for each in found}
    assert "1: [1.0, 2.0]" in constants["add"]
    assert ("1: 0.5",) == constants["mul"]
