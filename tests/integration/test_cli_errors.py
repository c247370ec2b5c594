"""Bad input: what is said, the remedy, the exit code, and that nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from commands import Outcome, command

MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, image, scale):
        return self.fc(self.conv(image).mean((2, 3)) * scale)

def build_model():
    return Net()
"""

SEVERAL = """
from torch import nn

class First(nn.Identity):
    pass

class Second(nn.Identity):
    pass
"""

CONTROL_FLOW = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        return y if y.sum() > 0 else -y

def build_model():
    return Net()
"""


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its checkpoint, sample and graph, and broken variants of each."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "model.py").write_text(MODEL)
    (folder / "raises.py").write_text("import torch\nx = 1 / 0\n")
    (folder / "no_entry.py").write_text("x = 1\n")
    (folder / "several.py").write_text(SEVERAL)
    (folder / "flow.py").write_text(CONTROL_FLOW)
    (folder / "other.py").write_text("from torch import nn\n\ndef build_model():\n    return nn.Linear(4, 4)\n")
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "material"}
    exec(MODEL, namespace)
    state = namespace["build_model"]().state_dict()
    torch.save(state, folder / "ckpt.pt")
    torch.save({key: value for key, value in state.items() if key != "fc.bias"}, folder / "missing.pt")
    torch.save({**state, "extra.weight": torch.zeros(1)}, folder / "unexpected.pt")
    (folder / "garbage.pt").write_bytes(b"garbage!!")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"state_dict": Path("x")}))
    image, scale = torch.randn(1, 3, 8, 8), torch.randn(1, 4)
    torch.save({"image": image, "scale": scale}, folder / "sample.pt")
    torch.save((image,), folder / "one.pt")
    torch.save((image, scale, scale), folder / "three.pt")
    torch.save({"image": image, "scales": scale}, folder / "name.pt")
    torch.save({"image": torch.randn(1, 5, 8, 8), "scale": scale}, folder / "shape.pt")
    torch.save({"image": image.double(), "scale": scale.double()}, folder / "dtype.pt")
    torch.save(torch.randn(2, 4), folder / "x.pt")
    torch.save(torch.arange(8).reshape(2, 4), folder / "whole.pt")
    made = _run(folder, "model.py", "ckpt.pt", "--input", "sample.pt", "--keep-onnx", "model.onnx", "-o", "report")
    assert 0 == made.code, made.err
    content = (folder / "model.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(content[: len(content) // 2])
    (folder / "garbage.onnx").write_bytes(b"this is no graph")
    (folder / "empty.onnx").write_bytes(b"")
    external = onnx.load(folder / "model.onnx")
    onnx.save(external, folder / "external.onnx", save_as_external_data=True, location="lost.data", size_threshold=0)
    (folder / "lost.data").unlink()
    (folder / "key.toml").write_text("[case]\nmodell = 'model.py'\n")
    (folder / "section.toml").write_text("[cases]\nmodel = 'model.py'\n")
    (folder / "broken.toml").write_text("[case\n")
    return folder


@pytest.fixture(autouse=True)
def inside(material: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs each test inside the folder, so that messages hold short names."""
    before = {path.name for path in material.iterdir()}
    monkeypatch.chdir(material)
    yield
    assert before == {path.name for path in material.iterdir()}, "something was left behind"


def _run(folder: Path, *arguments: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return command(*arguments, folder=folder / "report")


SAMPLE = ("--input", "sample.pt")
GIVEN = ("model.py", "ckpt.pt", *SAMPLE, "--onnx", "model.onnx")

TABLE = {
    "no arguments": ((), ("no model given", "bisect-divergence model.py ckpt.pth --input sample.pt")),
    "no sample": (("model.py",), ("no sample given", "--input sample.pt")),
    "too many arguments": (("model.py", "ckpt.pt", "more"), ("unexpected extra argument (more)",)),
    "unknown option": (("model.py", "--nope"), ("No such option '--nope'",)),
    "model missing": (("modle.py", *SAMPLE), ("model modle.py: no such file", "help: there is model.py")),
    "model raises": (
        ("raises.py", *SAMPLE),
        ("raises.py raised on import: ZeroDivisionError", "at raises.py:2: x = 1 / 0", "help: mend the model's code"),
    ),
    "no entry": (("no_entry.py", *SAMPLE), ("no_entry.py has no entry", "help: define build_model()")),
    "several entries": (("several.py", *SAMPLE), ("several candidates: First, Second", "--entry")),
    "unknown entry": (("model.py", "--entry", "Nett", *SAMPLE), ("no Nett in model.py", "did you mean Net")),
    "checkpoint missing": (
        ("model.py", "ckp.pt", *SAMPLE),
        ("checkpoint ckp.pt: no such file", "help: there is ckpt.pt"),
    ),
    "checkpoint garbage": (
        ("model.py", "garbage.pt", *SAMPLE),
        ("garbage.pt is no checkpoint", "help: give a checkpoint that torch.save wrote"),
    ),
    "checkpoint pickle": (
        ("model.py", "pickle.pt", *SAMPLE),
        ("pickle.pt cannot be read without running code", "--allow-pickle"),
    ),
    "missing keys": (("model.py", "missing.pt", *SAMPLE), ("missing: fc.bias", "help: --allow-missing")),
    "unexpected keys": (
        ("model.py", "unexpected.pt", *SAMPLE),
        ("unexpected: extra.weight", "help: --allow-unexpected"),
    ),
    "sample missing": (("model.py", "--input", "sampel.pt"), ("sample sampel.pt: no such file", "there is sample.pt")),
    "sample too short": (
        ("model.py", "--input", "one.pt"),
        ("forward(image, scale): no input for scale", "sample has: float32[1, 3, 8, 8]", "help: add scale"),
    ),
    "sample too long": (
        ("model.py", "--input", "three.pt"),
        ("3 positional inputs for 2", "help: leave out the inputs"),
    ),
    "sample unknown name": (
        ("model.py", "--input", "name.pt"),
        ("forward has no argument 'scales'", "help: did you mean 'scale'?"),
    ),
    "sample shape": (
        ("model.py", "--input", "shape.pt", "--onnx", "model.onnx"),
        ("image float32[1, 3, 8, 8]", "image float32[1, 5, 8, 8]"),
    ),
    "sample dtype": (
        ("model.py", "--input", "dtype.pt"),
        ("input image is float64", "the weights are float32", "convert the sample or the model"),
    ),
    "onnx missing": (("model.py", *SAMPLE, "--onnx", "no.onnx"), ("ONNX file no.onnx: no such file", "--onnx")),
    "onnx truncated": (
        ("model.py", *SAMPLE, "--onnx", "truncated.onnx"),
        ("truncated.onnx: cannot be read", "help: the file is truncated or no ONNX model"),
    ),
    "onnx garbage": (
        ("model.py", *SAMPLE, "--onnx", "garbage.onnx"),
        ("garbage.onnx: cannot be read", "help: the file is truncated or no ONNX model"),
    ),
    "onnx empty": (("model.py", *SAMPLE, "--onnx", "empty.onnx"), ("empty.onnx: the file is empty", "export it again")),
    "external data missing": (
        ("model.py", *SAMPLE, "--onnx", "external.onnx"),
        ("external data lost.data is missing", "help: put lost.data beside the .onnx file"),
    ),
    "onnx of another model": (
        ("other.py", "--input", "x.pt", "--onnx", "model.onnx"),
        ("ONNX wants: image float32[1, 3, 8, 8], scale float32[1, 4]", "sample has: input float32[2, 4]", "help: "),
    ),
    "onnx is a folder": (
        ("model.py", *SAMPLE, "--onnx", "."),
        ("ONNX file .: is a folder", "help: name the .onnx file"),
    ),
    "exporter and onnx": ((*GIVEN, "--exporter", "dynamo"), ("--exporter: for an export", "help: leave it out")),
    "opset and folding and onnx": (
        (*GIVEN, "--opset", "18", "--no-constant-folding"),
        ("--opset, --no-constant-folding: for an export", "help: leave them out"),
    ),
    "opset out of reach": (
        ("model.py", *SAMPLE, "--opset", "99"),
        ("--opset 99: the dynamo exporter cannot convert to it", "help: leave --opset out for the exporter's default"),
    ),
    "opset unknown": (
        ("model.py", *SAMPLE, "--opset", "99", "--exporter", "torchscript"),
        ("99", "help: leave --opset 99 out for the exporter's default"),
    ),
    "sample of whole numbers": (
        ("other.py", "--input", "whole.pt"),
        ("forward failed in the model (Linear", "help: input 0 is int64, and the weights are float32 (such as weight)"),
    ),
    "infinite tolerance": (
        (*GIVEN, "--max-abs", "inf"),
        ("--max-abs inf: a tolerance is a finite", "help: for example"),
    ),
    "keep-onnx and onnx": ((*GIVEN, "--keep-onnx", "k.onnx"), ("--keep-onnx", "help: give one of the two")),
    "keep-onnx exists": (
        ("model.py", *SAMPLE, "--keep-onnx", "model.onnx"),
        ("the file exists and is not overwritten", "help: --force replaces it"),
    ),
    "keep-onnx folder": (("no.py", *SAMPLE, "--keep-onnx", "."), ("--keep-onnx .: is a folder", "help: name the file")),
    "keep-onnx nowhere": (("no.py", *SAMPLE, "--keep-onnx", "no/k.onnx"), ("there is no folder no", "help: make it")),
    "keep-onnx unwritable": (
        ("no.py", *SAMPLE, "--keep-onnx", "/proc/k.onnx"),
        ("--keep-onnx /proc/k.onnx: cannot be written", "help: choose another place"),
    ),
    "no file alike": (
        ("model.py", "nofile.pt", *SAMPLE),
        ("checkpoint nofile.pt: no such file", "help: check the path"),
    ),
    "no entry alike": (("model.py", "--entry", "N", *SAMPLE), ("there is no N in model.py", "did you mean Net")),
    "totals of a matrix": (
        (*GIVEN, "--totals-only", "--matrix", "quick"),
        ("--totals-only and --matrix exclude each other", "help: leave one of the two out"),
    ),
    "totals of a reference": (
        (*GIVEN, "--totals-only", "--runner", "onnx-reference"),
        ("--totals-only and --runner exclude each other", "help: leave one of the two out"),
    ),
    "two tolerances": ((*GIVEN, "--max-abs", "1", "--atol", "1"), ("exclude each other", "help: give one")),
    "atol alone": ((*GIVEN, "--atol", "1"), ("--rtol is missing", "help: add --rtol 0")),
    "rtol alone": ((*GIVEN, "--rtol", "1"), ("--atol is missing", "help: add --atol 0")),
    "negative tolerance": ((*GIVEN, "--max-abs", "-1"), ("not below zero", "help: for example --max-abs 0.01")),
    "NaN tolerance": ((*GIVEN, "--max-abs", "nan"), ("--max-abs nan", "help: for example --max-abs 0.01")),
    "tolerance no number": ((*GIVEN, "--max-abs", "small"), ("'small' is not a valid float",)),
    "budget no size": ((*GIVEN, "--memory-budget", "lots"), ("'lots': not a size", "help: write 256MiB")),
    "budget zero": ((*GIVEN, "--memory-budget", "0"), ("'0': not a size", "help: write 256MiB")),
    "coverage above one": ((*GIVEN, "--min-coverage", "1.1"), ("1.1: a share from 0 to 1", "help: for example 0.9")),
    "name is a path": (
        ("model.py", *SAMPLE, *SAMPLE, "--name", "a/b"),
        ("error: --name 'a/b': a name, not a path", "help: use -o DIR"),
    ),
    "stages match nothing": ((*GIVEN, "--stages", "convs.*"), ("no stage of the model matches", "stages look like")),
    "config missing": (("--config", "no.toml"), ("config no.toml: cannot be read", "help: see configs/")),
    "config broken": (("--config", "broken.toml"), ("not valid TOML", "help: see configs/")),
    "config unknown key": (("--config", "key.toml"), ("unknown key 'modell' in [case]", "help: keys are: model,")),
    "config unknown section": (("--config", "section.toml"), ("unknown section [cases]", "help: sections are: case,")),
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_told(name: str, tmp_path: Path) -> None:
    """Exit 2, the thing and the remedy on stderr, no traceback, nothing on stdout, and no report."""
    arguments, fragments = TABLE[name]
    outcome = command(*arguments, folder=tmp_path / "new")
    assert 2 == outcome.code, outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    assert "Traceback" not in outcome.err
    assert "" == outcome.out
    assert not (tmp_path / "new").exists()


def test_force_replaces_the_kept_file(tmp_path: Path) -> None:
    """A command with --keep-onnx can be repeated."""
    kept = tmp_path / "kept.onnx"
    kept.write_bytes(b"old")
    outcome = command("model.py", *SAMPLE, "--keep-onnx", kept, "--force", folder=tmp_path / "new")
    assert 0 == outcome.code, outcome.err
    assert onnx.load(kept).graph.node


def test_the_kept_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever keeps a file is told where it is."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.run import run

    kept = tmp_path / "kept.onnx"
    arguments = ["model.py", *SAMPLE, "--keep-onnx", str(kept), "-o", str(tmp_path / "new")]
    assert 0 == execute(run, "bisect-divergence", arguments)
    assert f"the exported file is kept at {kept}\n" in capsys.readouterr().err


def test_options_of_an_export_may_stand_in_a_case_file(tmp_path: Path) -> None:
    """One case file serves with and without a given file; with a matrix there are exports beside it."""
    from bisect_tool.cli.run import _check_export_options

    config = tmp_path / "case.toml"
    config.write_text("[export]\nexporter = 'dynamo'\nopset = 18\n")
    outcome = command(*GIVEN, "--config", config, folder=tmp_path / "new")
    assert 0 == outcome.code, outcome.err
    given = {"exporter": "dynamo", "opset": 18, "constant_folding": True}
    _check_export_options(given, {"onnx": "model.onnx", "matrix": "quick"})
    _check_export_options(given, {"onnx": None, "matrix": None})


def test_verbose_has_the_time_of_the_imports(tmp_path: Path) -> None:
    """It is a large part of a short run, and no step of the comparison."""
    outcome = command(*GIVEN, "--verbose", folder=tmp_path / "new")
    assert 0 == outcome.code, outcome.err
    assert re.search(r"^ +\d+\.\d\d s  imports$", outcome.err, re.MULTILINE)


@pytest.mark.parametrize(
    "given", [("--atol", "1"), ("--max-abs", "-1"), ("--min-coverage", "2"), ("--memory-budget", "x")]
)
def test_limits_are_checked_before_the_model_is_loaded(
    given: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading may take minutes."""
    monkeypatch.setattr("bisect_tool.cli.run.load", lambda settings: pytest.fail("loaded"))
    outcome = command(*GIVEN, *given, folder=tmp_path / "new")
    assert 2 == outcome.code
    assert ("not a size" if given[0] == "--memory-budget" else given[0]) in outcome.err


def test_pickle_is_not_run(tmp_path: Path, material: Path) -> None:
    """A checkpoint that is refused has run none of its code."""

    class Writes:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Writes()}))
    outcome = command("model.py", tmp_path / "evil.pt", *SAMPLE, folder=tmp_path / "new")
    assert 2 == outcome.code
    assert not (tmp_path / "ran").exists()


def test_failing_forward_names_its_module(tmp_path: Path) -> None:
    """A sample of a wrong shape fails in forward; the module, its line, the reason and the sample are named."""
    outcome = command("model.py", "ckpt.pt", "--input", "shape.pt", folder=tmp_path / "new")
    assert 2 == outcome.code
    for fragment in ("conv", "model.py:", "5 channels", "float32[1, 5, 8, 8]", "help: "):
        assert fragment in outcome.err
    assert "Traceback" not in outcome.err


def test_failing_export_gives_reason_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails says the exporter's reason, and its whole log lies where it says."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = command("flow.py", "--input", "x.pt", folder=tmp_path / "new")
    assert 2 == outcome.code
    reason, where, remedy = outcome.err.splitlines()
    assert "the dynamo exporter failed" in reason
    assert "data-dependent" in reason
    log = Path(where.partition("whole log: ")[2])
    assert "Traceback" in log.read_text(encoding="utf-8")
    assert remedy.startswith("help: try --exporter torchscript")
    assert not (tmp_path / "new").exists()


def test_report_is_not_overwritten(tmp_path: Path) -> None:
    """A folder that holds a report is refused before anything runs, and stays as it was."""
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    outcome = command(*GIVEN, folder=folder)
    assert 2 == outcome.code
    assert "already holds a report" in outcome.err
    assert "help: --force replaces it" in outcome.err
    assert ["report.json"] == [path.name for path in folder.iterdir()]
    assert "{}" == (folder / "report.json").read_text()


def test_force_replaces_the_report_only(tmp_path: Path) -> None:
    """With --force the report is new, and other files in its folder survive."""
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    outcome = command(*GIVEN, "--force", folder=folder)
    assert 0 == outcome.code, outcome.err
    assert "agrees" == json.loads((folder / "report.json").read_text())["verdict"]["status"]
    assert "mine" == (folder / "notes.txt").read_text()
    assert 6 == len(list(folder.iterdir()))


def test_folder_of_others_is_refused(tmp_path: Path) -> None:
    """A folder that holds something else than a report is refused."""
    (tmp_path / "mine.txt").write_text("mine")
    outcome = command(*GIVEN, folder=tmp_path)
    assert 2 == outcome.code
    assert "is not empty and holds no report" in outcome.err


@pytest.fixture(scope="session")
def faulty(material: Path) -> Path:
    """The tiny model's graph with another bias."""
    model = onnx.load(material / "model.onnx")
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "fc.bias"]
    array = onnx.numpy_helper.to_array(bias) + 1
    bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))
    file = material.parent / f"{material.name}-faulty.onnx"
    onnx.save(model, file)
    return file


def test_divergence_exits_one(faulty: Path, tmp_path: Path) -> None:
    """A graph with another weight exits 1 and still leaves a report."""
    outcome = command("model.py", "ckpt.pt", *SAMPLE, "--onnx", faulty, folder=tmp_path / "new")
    assert 1 == outcome.code
    assert (tmp_path / "new" / "report.json").exists()


def test_a_quick_look_says_how_far_and_not_where_error_is_made(faulty: Path, tmp_path: Path) -> None:
    """``--totals-only``: one configuration, totals without locals, the same first stage over tolerance."""
    given = ("model.py", "ckpt.pt", *SAMPLE, "--onnx", faulty, "--format", "json", "--max-abs", "1e-3")
    whole = command(*given, folder=tmp_path / "whole").report
    outcome = command(*given, "--totals-only", folder=tmp_path / "quick")
    assert 1 == outcome.code, outcome.err
    assert ["ort-cpu-off"] == [run["name"] for run in outcome.report["configs"]]
    results = [row["results"]["ort-cpu-off"] for row in outcome.report["stages"] if row["results"]]
    assert results
    assert all(result["local"] is None for result in results)
    first = whole["verdict"]["first_over_tolerance"]
    assert first is not None
    assert first == outcome.report["verdict"]["first_over_tolerance"]
    same = {(row["stage"], row["call"], row["output"]): row["results"] for row in whole["stages"]}
    for row in outcome.report["stages"]:
        full = same[row["stage"], row["call"], row["output"]]
        assert [r["total"] for r in row["results"].values()] == [full[name]["total"] for name in row["results"]]
    assert whole["preflight"]
    assert whole["preflight"] == outcome.report["preflight"]
    (unknown,) = outcome.report["verdict"]["diagnoses"]
    assert unknown["code"] == "BD100" and unknown["remedy"].startswith("leave --totals-only out")


def test_a_quick_look_at_what_agrees_does_not_read_all_weights(tmp_path: Path) -> None:
    """That takes as long as the look itself; where something is off it is worth it."""
    outcome = command("model.py", "ckpt.pt", *SAMPLE, "--totals-only", "--format", "json", folder=tmp_path / "quick")
    assert 0 == outcome.code
    assert "preflight" not in outcome.report["timings"]


def test_exit_zero_hides_divergence_from_the_shell(faulty: Path, tmp_path: Path) -> None:
    """With --exit-zero a divergence exits 0; the verdict stays what it is."""
    arguments = ("model.py", "ckpt.pt", *SAMPLE, "--onnx", faulty, "--exit-zero", "--format", "json")
    outcome = command(*arguments, folder=tmp_path / "new")
    assert 0 == outcome.code
    assert "diverges" == outcome.report["verdict"]["status"]


def test_exit_zero_does_not_hide_bad_input(tmp_path: Path) -> None:
    """--exit-zero is about divergence; unreadable input still exits 2."""
    assert 2 == command("modle.py", *SAMPLE, "--exit-zero", folder=tmp_path / "new").code


def test_user_tolerance_decides(faulty: Path, tmp_path: Path) -> None:
    """A tolerance wider than the fault makes the same graph agree."""
    outcome = command("model.py", "ckpt.pt", *SAMPLE, "--onnx", faulty, "--max-abs", "2", folder=tmp_path / "new")
    assert 0 == outcome.code


@pytest.fixture()
def sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the alignment say that one stage in five could not be aligned."""
    from bisect_tool.pipeline import bisection

    summarize = bisection.summarize
    monkeypatch.setattr(bisection, "summarize", lambda *given: dataclasses.replace(summarize(*given), coverage=0.8))


def test_low_coverage_exits_three(sparse: None, tmp_path: Path) -> None:
    """Below the default --min-coverage nothing is called agreeing, and the summary says what is missing."""
    outcome = command(*GIVEN, "--format", "json", folder=tmp_path / "new")
    assert 3 == outcome.code
    assert "inconclusive" == outcome.report["verdict"]["status"]
    (line,) = outcome.report["verdict"]["summary"]
    assert "80%" in line and "90%" in line


def test_min_coverage_decides(sparse: None, tmp_path: Path) -> None:
    """The same coverage is enough where less is asked for."""
    assert 0 == command(*GIVEN, "--min-coverage", "0.8", folder=tmp_path / "new").code


def test_exit_zero_does_not_hide_an_open_verdict(sparse: None, tmp_path: Path) -> None:
    """--exit-zero is about divergence; an inconclusive run still exits 3."""
    assert 3 == command(*GIVEN, "--exit-zero", folder=tmp_path / "new").code


LEAVES = """
import sys
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        sys.exit({code!r})

def build_model():
    return Net()
"""


@pytest.mark.parametrize("code", [0, 1, 3, "gone"])
def test_a_model_that_ends_the_process_is_no_verdict(code: object, tmp_path: Path) -> None:
    """sys.exit(0) is no agreement, and sys.exit(1) no divergence."""
    (tmp_path / "leaves.py").write_text(LEAVES.format(code=code))
    given = (str(tmp_path / "leaves.py"), "--input", "x.pt")
    outcome = command(*given, folder=tmp_path / "report")
    assert 2 == outcome.code
    assert f"SystemExit: {code}" in outcome.err and "leaves.py:11" in outcome.err
    assert not (tmp_path / "report").exists()


def test_preprocessing_that_ends_the_process_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving.py").write_text("import sys\ndef load(path):\n    sys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = ("model.py", "ckpt.pt", "--preprocess", "leaving:load", "--raw", "x.pt")
    outcome = command(*given, folder=tmp_path / "report")
    assert 2 == outcome.code
    assert "--preprocess leaving:load: SystemExit: 0" in outcome.err


def test_what_is_left_of_an_exit_is_an_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it was called."""
    import click

    from bisect_tool.cli.main import execute

    @click.command()
    def leaving() -> int:
        raise SystemExit(0)

    assert 2 == execute(leaving, "leaving", [])
    assert "sys.exit(0) was called at" in capsys.readouterr().err


def test_what_a_model_prints_is_no_part_of_the_answer(tmp_path: Path) -> None:
    text = MODEL.replace("        return", "        print('called')\n        return", 1)
    assert "called" in text
    (tmp_path / "talks.py").write_text(text)
    given = (str(tmp_path / "talks.py"), "ckpt.pt", *SAMPLE, "--format", "json")
    outcome = command(*given, folder=tmp_path / "report")
    assert 0 == outcome.code, outcome.err
    assert "agrees" == outcome.report["verdict"]["status"]
    assert "called" in outcome.err


def test_a_model_that_goes_elsewhere_leaves_paths_as_they_were_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODEL.replace("def build_model():", "def build_model():\n    import os\n    os.chdir('elsewhere')")
    (tmp_path / "goes.py").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    for name in ("ckpt.pt", "sample.pt"):
        (tmp_path / name).write_bytes(Path(name).read_bytes())
    monkeypatch.chdir(tmp_path)
    outcome = command("goes.py", "ckpt.pt", "--input", "sample.pt", folder=Path("report"))
    assert 0 == outcome.code, outcome.err
    assert (tmp_path / "report" / "report.json").exists()
    assert [] == list((tmp_path / "elsewhere").iterdir())


def test_no_option_writes_over_what_is_read(tmp_path: Path) -> None:
    """--force is meant for files of earlier runs."""
    for name in ("ckpt.pt", "sample.pt", "model.py", "model.onnx"):
        (tmp_path / name).write_bytes(Path(name).read_bytes())
    given = [str(tmp_path / name) for name in ("model.py", "ckpt.pt")]
    for name in ("ckpt.pt", "sample.pt", "model.py"):
        file = tmp_path / name
        before = file.read_bytes()
        arguments = (*given, "--input", str(tmp_path / "sample.pt"), "--keep-onnx", str(file), "--force")
        outcome = command(*arguments, folder=tmp_path / "report")
        assert 2 == outcome.code
        assert f"--keep-onnx {file}: this run reads that file" in outcome.err
        assert before == file.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(tmp_path / "ckpt.pt")
    arguments = (*given, "--input", str(tmp_path / "sample.pt"), "--keep-onnx", str(link), "--force")
    assert 2 == command(*arguments, folder=tmp_path / "report").code


def test_a_folder_of_samples_and_a_module_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples").mkdir()
    for name in ("model.py", "ckpt.pt", "sample.pt"):
        (tmp_path / name).write_bytes(Path(name).read_bytes())
    (tmp_path / "samples" / "s.pt").write_bytes(Path("sample.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("model.py", "ckpt.pt", "--input", "samples", "--keep-onnx", "samples/s.pt"),
        ("model:build_model", "ckpt.pt", "--input", "sample.pt", "--keep-onnx", "model.py"),
    ):
        before = Path(arguments[-1]).read_bytes()
        outcome = command(*arguments, "--force", folder=tmp_path / "report")
        assert 2 == outcome.code
        assert f"--keep-onnx {arguments[-1]}: this run reads that file" in outcome.err
        assert before == Path(arguments[-1]).read_bytes()
