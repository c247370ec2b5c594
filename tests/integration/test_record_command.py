"""``bisect-tool record``, ``recorder`` and ``compare`` as one calls them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

from bisect_tool import recorder
from bisect_tool.cli.main import execute
from bisect_tool.cli.tool import tool
from bisect_tool.recordings.bundles import open_bundle
from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.records import Report
from bisect_tool.store import report_from_json
from bisect_tool.tolerances import make_tolerance

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Linear(width, 4)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.out(x.mean((2, 3)))

def build_model(width=6):
    return Net(width)
"""


def tool_run(*arguments: object) -> tuple[int, str, str]:
    """``bisect-tool ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(tool, "bisect-tool", list(map(str, arguments)))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two checkpoints of it, a sample, its ONNX file, and a recording."""
    folder = tmp_path_factory.mktemp("case")
    (folder / "model.py").write_text(MODEL)
    space: dict[str, Any] = {"__name__": "model"}
    exec(compile(MODEL, "model.py", "exec"), space)
    torch.manual_seed(0)
    model = space["build_model"]().eval()
    torch.save(model.state_dict(), folder / "ckpt.pth")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["norm.weight"][2] *= 1.5
    torch.save(state, folder / "other.pth")
    sample = torch.randn(2, 3, 8, 8)
    torch.save(sample, folder / "s.pt")
    torch.onnx.export(model, (sample,), folder / "m.onnx", dynamo=False)
    assert 0 == record(folder, "a.trace")[0]
    return folder


def record(folder: Path, name: str, *more: object, ckpt: str = "ckpt.pth") -> tuple[int, str, str]:
    model, weights, sample = folder / "model.py", folder / ckpt, folder / "s.pt"
    return tool_run("record", model, weights, "--input", sample, "-o", folder / name, "-q", *more)


def report(folder: Path, one: str, other: str) -> tuple[int, Report]:
    code, out, err = tool_run("compare", folder / one, folder / other, "--format", "json")
    assert code < 4, err
    return code, report_from_json(json.loads(out))


def test_the_same_twice(case: Path) -> None:
    """Exit 0, nothing differs, and the report is what the schema says."""
    assert 0 == record(case, "b.trace")[0]
    code, out, _ = tool_run("compare", case / "a.trace", case / "b.trace", "--format", "json")
    assert 0 == code
    schema = json.loads(files("bisect_tool").joinpath("report.schema.json").read_text())
    Draft202012Validator(schema).validate(json.loads(out))
    assert {"same"} == {link.status for link in report_from_json(json.loads(out)).chain}


def test_floors_are_recorded_and_judge(case: Path) -> None:
    """By default where that is cheap; ONNX Runtime's run has those of its model; ``--no-floor`` leaves them out."""
    model = ("record", case / "model.py", case / "ckpt.pth", "--input", case / "s.pt", "-q", "--force")
    assert 0 == tool_run(*model, "--onnx", case / "m.onnx", "-o", case / "ort.trace")[0]
    assert 0 == record(case, "plain.trace", "--no-floor")[0]
    known = {}
    for name in ("a.trace", "ort.trace", "plain.trace"):
        with open_bundle(case / name) as bundle:
            entries = [*bundle.manifest["stages"], *bundle.manifest["outputs"]]
            known[name] = [entry.get("floor") for entry in entries]
    assert all(0 < floor < 1e-5 for name in ("a.trace", "ort.trace") for floor in known[name])
    assert {None} == set(known["plain.trace"])
    code, found = report(case, "plain.trace", "ort.trace")
    assert 0 == code
    assert all(result.noise_ratio is not None for row in found.stages for result in row.results.values())
    assert any(line.startswith("rounding: at most") for line in found.verdict.summary)
    code, out, _ = tool_run("compare", case / "plain.trace", case / "ort.trace")
    assert "judged by the noise floor" in " ".join(out.split()) and "noise: error / noise floor" in out
    assert "noise" not in tool_run("compare", case / "plain.trace", case / "plain.trace")[1]


def test_a_clash_of_dtypes_names_the_operation(tmp_path: Path) -> None:
    """By the main command as by the recorder: which operation, in which module, and what against what."""
    code = "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
    code += "        super().__init__()\n"
    code += "        self.a = nn.Linear(4, 4)\n        self.b = nn.Linear(4, 4).half()\n\n    def forward(self, x):\n"
    (tmp_path / "model.py").write_text(code + "        return self.b(self.a(x))\n")
    torch.save(torch.ones(1, 4), tmp_path / "s.pt")
    from bisect_tool.cli.run import run

    given = [str(tmp_path / "model.py"), "--input", str(tmp_path / "s.pt")]
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        found = execute(run, "bisect-divergence", [*given, "-o", str(tmp_path / "report"), "-q"])
    other = tool_run("record", *given, "-o", tmp_path / "a.trace", "-q")
    for code_of, text in ((found, err.getvalue()), (other[0], other[2])):
        assert 2 == code_of
        assert "operation addmm in b (Linear): its tensors clash in dtype, float16 against float32" in text
        assert "so that" in text and "one dtype" in text


def test_bundles_are_what_their_schema_says(case: Path) -> None:
    """Of both programs, full and summary."""
    schema = json.loads(files("bisect_tool").joinpath("bundle.schema.json").read_text())
    record(case, "short.trace", "--summary", "--force")
    for name in ("a.trace", "short.trace"):
        with zipfile.ZipFile(case / name) as archive:
            manifest = json.loads(archive.read("manifest.json"))
        Draft202012Validator(schema).validate(manifest)
        text = json.dumps(manifest)
        # The command is as typed; nothing else names a place of this machine.
        assert str(case) not in text.replace(json.dumps(manifest["command"]), "")


def test_another_checkpoint_diverges(case: Path) -> None:
    """Exit 1, the stage, the report folder with page, table and plot."""
    assert 0 == record(case, "c.trace", "--force", ckpt="other.pth")[0]
    code, out, _ = tool_run("compare", case / "a.trace", case / "c.trace", "-o", case / "report", "--force")
    assert 1 == code
    assert "first cause: files: checkpoint" in " ".join(out.split()) and "norm" in out
    folder = case / "report"
    assert {"report.json", "index.html", "stages.csv", "amplification.png", "amplification.svg"} <= set(
        os.listdir(folder)
    )
    page = (folder / "index.html").read_text()
    assert "The chain, in causal order" in page and "two recordings" in page and "first cause" in page
    read = report_from_json(json.loads((folder / "report.json").read_text()))
    assert "norm" == read.verdict.first_over_tolerance.stage  # type: ignore[union-attr]
    assert 0 == tool_run("compare", case / "a.trace", case / "c.trace", "--exit-zero")[0]
    rows = {row.stage: row.results["a.trace|c.trace"] for row in read.stages}
    assert rows["norm"].growth is None and rows["out"].growth == pytest.approx(
        rows["out"].total.rel_l2 / rows["/mean#0"].total.rel_l2
    )


def test_summaries_and_tolerances(case: Path) -> None:
    """A summary gives the same stage; what it can't answer is inconclusive."""
    record(case, "c.trace", "--force", ckpt="other.pth")
    record(case, "s1.trace", "--summary", "--force")
    record(case, "s2.trace", "--summary", "--force", ckpt="other.pth")
    code, short = report(case, "s1.trace", "s2.trace")
    _, full = report(case, "a.trace", "c.trace")
    assert 1 == code and full.verdict.first_over_tolerance.stage == short.verdict.first_over_tolerance.stage  # type: ignore[union-attr]
    assert any("estimates" in note for note in short.notes)
    code, _, err = tool_run("compare", case / "s1.trace", case / "s2.trace", "--max-abs", "0.1")
    assert 3 == code and "needs them" in err
    assert 0 == tool_run("compare", case / "a.trace", case / "c.trace", "--max-abs", "100")[0]


def test_onnx_runtime_against_pytorch(case: Path) -> None:
    """Stages under the model's names, in its layout; two recordings of one file are the same."""
    onnx = case / "m.onnx"
    for name in ("o1.trace", "o2.trace"):
        assert 0 == record(case, name, "--onnx", onnx, "--force")[0]
    assert {"same"} >= {link.status for link in report(case, "o1.trace", "o2.trace")[1].chain} - {"unknown"}
    code, found = report(case, "a.trace", "o1.trace")
    assert 0 == code and found.alignment.coverage == 1.0
    rows = {row.stage: row for row in found.stages if row.results}
    assert {"norm", "act", "out"} <= rows.keys()
    assert all(r.total.rel_l2 < 1e-5 for row in rows.values() for r in row.results.values())
    cause = found.verdict.first_cause
    assert cause is not None and ("configuration", "backend") == (cause.link, cause.difference.what)


def test_onnx_runtime_alone(case: Path) -> None:
    """Without a model stages are the graph's own values; another optimisation is named."""
    for name, level in (("g1.trace", "off"), ("g2.trace", "all")):
        code, _, err = tool_run(
            "record",
            "--onnx",
            case / "m.onnx",
            "--input",
            case / "s.pt",
            "-o",
            case / name,
            "-q",
            "--force",
            "--optimization",
            level,
        )
        assert 0 == code, err
    _, found = report(case, "g1.trace", "g2.trace")
    assert found.verdict.first_cause is not None
    assert "optimization" == found.verdict.first_cause.difference.what
    assert found.alignment.aligned == found.alignment.stages > 2


def test_the_carried_file_writes_the_same_bundle(case: Path, tmp_path: Path) -> None:
    """`bisect-tool recorder` prints a program that needs nothing of the package, with the same arguments and numbers."""
    code, out, _ = tool_run("recorder")
    assert 0 == code
    program = tmp_path / "bisect_recorder.py"
    program.write_text(out, encoding="utf-8")
    # Not even by accident: an empty package of this name stands before the real one.
    blocked = tmp_path / "blocked"
    (blocked / "bisect_tool").mkdir(parents=True)
    (blocked / "bisect_tool" / "__init__.py").write_text("raise ImportError('not here')")
    arguments = [case / "model.py", case / "ckpt.pth", "--input", case / "s.pt", "-o", tmp_path / "r.trace"]
    surroundings = {**os.environ, "PYTHONPATH": str(blocked)}
    done = subprocess.run(
        [sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        env=surroundings,
        check=False,
        cwd=tmp_path,
    )
    assert 0 == done.returncode, done.stderr
    found = compare_recordings(case / "a.trace", tmp_path / "r.trace", make_tolerance(None, None, None))
    same = {link.link: link.status for link in found.chain}
    assert {"code", "configuration", "files", "data", "weights", "stages", "outputs"} <= {
        k for k, v in same.items() if v == "same"
    }
    schema = json.loads(files("bisect_tool").joinpath("bundle.schema.json").read_text())
    with zipfile.ZipFile(tmp_path / "r.trace") as archive:
        Draft202012Validator(schema).validate(json.loads(archive.read("manifest.json")))


NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Blocked())
from bisect_tool.cli.main import bisect_tool
bisect_tool()
"""


def test_comparing_needs_no_torch(case: Path) -> None:
    """On a machine with neither torch nor ONNX Runtime."""
    record(case, "c.trace", "--force", ckpt="other.pth")
    pair = [case / "a.trace", case / "c.trace"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, "compare", *pair, "-o", case / "plain"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 1 == done.returncode, done.stderr
    assert "first cause: files" in done.stdout and (case / "plain" / "index.html").is_file()


# -- another torch ----------------------------------------------------------------------------------------------------


def test_without_a_dispatch_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An older torch shows no operations: outputs of modules are recorded by hooks, in-place writes and all."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    recorder.record(model, x, None, tmp_path / "a.trace")
    monkeypatch.setattr(recorder, "TorchDispatchMode", None)
    recorder.record(model, x, None, tmp_path / "b.trace")
    found = compare_recordings(tmp_path / "a.trace", tmp_path / "b.trace")
    assert 5 == found.alignment.aligned == found.alignment.stages
    assert all(r.total.differing == 0 for row in found.stages for r in row.results.values())
    assert any("shows no operations" in note for note in found.notes)


class Clash(nn.Module):
    """Half weights behind float ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3) -> never."""
        y: torch.Tensor = self.second(self.first(x))
        return y


@pytest.mark.parametrize("hooks", [False, True])
def test_a_clash_of_dtypes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hooks: bool) -> None:
    """Float against half is told with the module, and the operation where operations are seen; nothing is written."""
    if hooks:
        monkeypatch.setattr(recorder, "TorchDispatchMode", None)
    with pytest.raises(recorder.RecordError) as caught:
        recorder.record(Clash(), torch.ones(1, 3), None, tmp_path / "a.trace")
    assert "second (Linear)" in caught.value.message
    if not hooks:
        assert "addmm" in caught.value.message and "float16 against float32" in caught.value.message
        assert ".half()" in str(caught.value.hint)
    assert [] == os.listdir(tmp_path)


# -- errors -----------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[str, Callable[[Path], list[object]], str]] = [
    ("no output", lambda c: ["record", c / "model.py", c / "ckpt.pth", "--input", c / "s.pt"], "no place for the recording"),
    ("taken", lambda c: ["record", c / "model.py", c / "ckpt.pth", "--input", c / "s.pt", "-o", c / "a.trace"], "exists"),
    ("no folder", lambda c: ["record", c / "model.py", "--input", c / "s.pt", "-o", c / "x" / "a.trace"], "is no folder"),
    ("no sample", lambda c: ["record", c / "model.py", "-o", c / "z.trace"], "no sample given"),
    ("no sample for a graph", lambda c: ["record", "--onnx", c / "m.onnx", "-o", c / "z.trace"], "no sample given"),
    (
        "no stage",
        lambda c: ["record", c / "model.py", "--input", c / "s.pt", "-o", c / "z.trace", "--stages", "nope"],
        "no stage has such a name",
    ),
    (
        "no GPU",
        lambda c: ["record", c / "model.py", "--input", c / "s.pt", "-o", c / "z.trace", "--device", "cuda"],
        "no CUDA device",
    ),
    (
        "a level without a graph",
        lambda c: ["record", c / "model.py", "--input", c / "s.pt", "-o", c / "z.trace", "--optimization", "all"],
        "--optimization has no effect without --onnx",
    ),
    (
        "steps without a script",
        lambda c: ["record", c / "model.py", "--input", c / "s.pt", "-o", c / "z.trace", "--steps", "2"],
        "--steps has no effect without --script",
    ),
    (
        "a mode without a model",
        lambda c: ["record", "--onnx", c / "m.onnx", "--input", c / "s.pt", "-o", c / "z.trace", "--mode", "train"],
        "--mode has no effect without MODEL",
    ),
    ("no recording", lambda c: ["compare", c / "a.trace", c / "none.trace"], "no such file"),
    ("no such other", lambda c: ["compare", c / "a.trace", c / "b.trcae"], "b.trcae: no such file"),
    ("no bundle", lambda c: ["compare", c / "a.trace", c / "s.pt"], "is a recording"),
    ("coverage", lambda c: ["compare", c / "a.trace", c / "a.trace", "--min-coverage", "7"], "a share from 0 to 1"),
    ("glob", lambda c: ["compare", c / "a.trace", c / "a.trace", "--stages", "nope"], "no recorded stage matches"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "text"), ERRORS, ids=[name for name, _, _ in ERRORS])
def test_errors_name_thing_and_remedy(
    case: Path, name: str, arguments: Callable[[Path], list[object]], text: str
) -> None:
    """Exit 2, one or two lines, a remedy, and nothing left behind."""
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    before = sorted(os.listdir(case))
    code, _, err = tool_run(*arguments(case))
    assert 2 == code, err
    assert text in err and "help:" in err and "Traceback" not in err
    assert before == sorted(os.listdir(case))


def test_a_cut_off_recording_is_refused(case: Path) -> None:
    """By the command too, whatever its name says."""
    data = (case / "a.trace").read_bytes()
    (case / "cut.trace").write_bytes(data[: len(data) // 2])
    code, _, err = tool_run("compare", case / "a.trace", case / "cut.trace")
    assert 2 == code and "cut.trace" in err and "cut off or altered" in err


def test_folders_are_bundles_too(case: Path) -> None:
    """One can be compared with a file."""
    assert 0 == record(case, "f", "--folder", "--force")[0]
    assert 0 == report(case, "a.trace", "f")[0]
    with open_bundle(case / "f") as bundle:
        assert "full" == bundle.manifest["content"]


def test_force_leaves_what_is_read(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both programs: the checkpoint, the sample, the model or the graph as the place of the recording is exit 2."""
    names = ("model.py", "ckpt.pth", "s.pt", "m.onnx")
    before = {name: (case / name).read_bytes() for name in names}
    for name in names:
        code, _, err = record(case, name, "--force")
        assert 2 == code and "nothing but a bundle" in err and "help:" in err
    monkeypatch.chdir(case)
    out = io.StringIO()
    with contextlib.redirect_stderr(out):
        assert 2 == recorder.main(["model.py", "ckpt.pth", "--input", "s.pt", "-o", "ckpt.pth", "--force"])
    assert "nothing but a bundle" in out.getvalue()
    assert before == {name: (case / name).read_bytes() for name in names}


def test_options_of_the_other_kind_of_file(case: Path) -> None:
    """An error, and not silence; -q leaves stderr empty."""
    for option in (["--all-items"], ["--separator", ";"]):
        code, _, err = tool_run("compare", case / "a.trace", case / "a.trace", *option)
        assert 2 == code and f"{option[0]} has no effect on recordings" in err
    (case / "t.csv").write_text("a,b\n1,2\n")
    for option in (["--level", "op"], ["--stages", "x"], ["-o", str(case / "r")], ["--all-stages"]):
        code, _, err = tool_run("compare", case / "t.csv", case / "t.csv", *option)
        assert 2 == code and "has no effect on data files" in err
    assert (0, "") == tool_run("compare", case / "a.trace", case / "a.trace", "-q")[::2]
    assert (0, "") == tool_run("env", "-q", "-o", case / "env.json")[::2]
    assert (case / "env.json").is_file()


def test_what_to_do_about_the_first_cause(case: Path) -> None:
    """One line of help, and what is long is folded, not cut."""
    record(case, "h.trace", "--force", ckpt="other.pth")
    _, out, _ = tool_run("compare", case / "a.trace", case / "h.trace")
    assert "help: copy the checkpoint from one side to the other" in " ".join(out.split())
    assert ".." not in out.split("The chain")[1].split("random state")[1].splitlines()[0]


def test_the_file_alone_tells_of_what_does_not_fit(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exceptions of the user's preprocessing, another model's checkpoint, a sample that only a pickle holds."""
    monkeypatch.chdir(case)
    (case / "prep_that_fails.py").write_text("def load(path):\n    raise ValueError('no picture')\n")
    torch.save({"other": torch.ones(1)}, case / "foreign.pth")
    torch.save({"x": Path("x")}, case / "pickled.pt")

    def told(*arguments: str) -> str:
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert 2 == recorder.main([*arguments, "-o", "none.trace"])
        assert not (case / "none.trace").exists() and "Traceback" not in err.getvalue()
        return err.getvalue()

    failed = told("model.py", "--preprocess", "prep_that_fails:load", "--raw", "s.pt")
    assert "--preprocess prep_that_fails:load: ValueError: no picture" in failed and "help: call load(" in failed
    assert "no key fits; it has other" in told("model.py", "foreign.pth", "--input", "s.pt")
    assert "--allow-pickle" not in told("model.py", "ckpt.pth", "--input", "pickled.pt")
    assert "--allow-pickle" in told("model.py", "pickled.pt", "--input", "s.pt")


def test_help_says_what_record_does() -> None:
    """Shared options mean something narrower here; the other commands keep their texts."""
    text = " ".join(tool_run("record", "--help")[1].split())
    assert "Record ONNX Runtime's run of this file" in text and "ONNX file to judge" not in text
    assert "--preprocess; one." in text and "repeatable" not in text and "or a folder" not in text
    assert "ONNX file to judge" in " ".join(tool_run("determinism", "--help")[1].split())
    text = " ".join(tool_run("releases", "--help")[1].split())
    assert "Replace a file of --keep-onnx" in text and "Replace a report" not in text
