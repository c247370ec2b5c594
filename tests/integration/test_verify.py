"""``bisect-tool verify`` and ``--tolerances``: exit codes, what is printed, JUnit, annotations, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import torch
from tables import table_of
from verifying import Project, make_project, run, without_plots

import bisect_tool
from bisect_tool import store, verify, write_table
from bisect_tool.backends.models import load_model
from bisect_tool.cli.settings import tomllib
from bisect_tool.verification import limit_texts, parse_limit

BASE = ("model.py", "ckpt.pth", "--input", "samples/0.pt")
VERIFY = ("bisect-tool", "verify", *BASE, "-q", "-o")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The files, with a table whose limits are ten times the errors of the right graph."""
    folder = tmp_path_factory.mktemp("project")
    made = make_project(folder)
    here = os.getcwd()
    os.chdir(folder)
    try:
        module = load_model("model.py").module
        module.load_state_dict(torch.load("ckpt.pth"))
        report = verify(module, "samples", "model.onnx")
        assert "agrees" == report.verdict.status
        write_table(folder / "tolerances.toml", table_of(report, module, 10.0))
        write_table(folder / "strict.toml", table_of(report, module, 1e-3))
    finally:
        os.chdir(here)
    return made


@pytest.fixture(autouse=True)
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the project's folder, on no pipeline."""
    monkeypatch.chdir(project.folder)
    without_plots(monkeypatch)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)


def report_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_right_file_passes(tmp_path: Path) -> None:
    """A right graph: exit 0, a few lines, all JUnit cases green, and the report says what it was judged by."""
    junit = tmp_path / "verify.xml"
    code, out, err = run(
        *VERIFY, tmp_path / "r", "--onnx", "model.onnx", "--tolerances", "tolerances.toml", "--junit", junit
    )
    assert 0 == code, out + err
    assert out.startswith("agrees  ") and "nearest to its limit is" in " ".join(out.split())
    assert len(out.splitlines()) <= 14
    suite = ElementTree.parse(junit).getroot()[0]
    assert "0" == suite.get("failures")
    names = {case.get("name") for case in suite.iter("testcase")}
    assert {"stage first", "stage act", "stage last", "output 0", "verdict"} <= names
    report = report_in(tmp_path / "r")
    schema = json.loads((Path(store.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(report, schema)
    assert "calibrated" == report["tolerance"]["source"]
    assert "tolerances.toml" == report["tolerance"]["table"]["file"]
    (first, *_) = report["stages"]
    limit = first["results"]["ort-cpu-off"]["limit"]
    assert 0 <= limit["value"] <= limit["limit"]
    assert 3 == report["configs"][0]["outputs"][0]["agreement"]["classes"]


def test_wrong_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    """A planted fault: exit 1; log, JUnit and annotations name the stage where it is made, with its line."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.folder.parent))
    junit = tmp_path / "verify.xml"
    code, out, err = run(
        *VERIFY, tmp_path / "r", "--onnx", "broken.onnx", "--tolerances", "tolerances.toml", "--junit", junit
    )
    assert 1 == code, out + err
    assert out.startswith("DIVERGES  ")
    line = next(line for line in out.splitlines() if "first" in line.split()[:2])
    assert ["*", "first"] == line.split()[:2] and "limit" in line and "model.py:15" in line
    cases = {case.get("name"): case for case in ElementTree.parse(junit).getroot().iter("testcase")}
    failure = cases["stage first"].find("failure")
    assert failure is not None and "limit" in failure.get("message", "")
    assert "error is made here" in (failure.text or "") and "BD202" in (failure.text or "")
    marks = [line for line in err.splitlines() if line.startswith("::error ")]
    assert marks[0].startswith(f"::error file={project.folder.name}/model.py,line=15,"), marks
    assert (
        "first:" in marks[0]
        and "error is made here" in marks[0]
        and not any(line.startswith("::") for line in out.splitlines())
    )


def test_limits_decide_and_floors_explain(tmp_path: Path) -> None:
    """Under limits that nothing can keep, a right graph fails; and the report says that it is all rounding."""
    code, out, _ = run(*VERIFY, tmp_path / "r", "--onnx", "model.onnx", "--tolerances", "strict.toml")
    assert 1 == code
    assert [] == report_in(tmp_path / "r")["verdict"]["origins"]
    assert "no stage makes more error than rounding does" in " ".join(out.split())


def test_main_command_takes_the_table(tmp_path: Path) -> None:
    """``bisect-divergence --tolerances`` judges by it as well, and says so."""
    arguments = ("bisect-divergence", *BASE, "-q", "--tolerances", "tolerances.toml", "-o")
    code, out, _ = run(*arguments, tmp_path / "a", "--onnx", "model.onnx")
    assert 0 == code
    assert "calibrated on 128 samples (tolerances.toml)" in " ".join(out.split())
    code, out, _ = run(*arguments, tmp_path / "b", "--onnx", "broken.onnx")
    assert 1 == code and "first diverging stage: first" in out
    page = (tmp_path / "b" / "index.html").read_text(encoding="utf-8")
    assert "calibrated on 128 samples (tolerances.toml)" in page


def test_without_a_table_floors_decide(tmp_path: Path) -> None:
    """A table is not needed."""
    code, out, _ = run(*VERIFY, tmp_path / "a", "--onnx", "broken.onnx")
    assert 1 == code and "the noise floor" in " ".join(out.split())


def test_metric_decides(tmp_path: Path) -> None:
    """A number of the user's over its limit is a divergence of a graph that is within all others."""
    arguments = ("--onnx", "model.onnx", "--metric", "quality:drift", "--metric-limit", "argmax=1")
    code, out, _ = run(*VERIFY, tmp_path / "a", *arguments, "--metric-limit", "drift=0.1")
    assert 0 == code and "drift" in out
    code, out, _ = run(*VERIFY, tmp_path / "b", *arguments, "--metric-limit", "drift>=0.1")
    assert 1 == code and "FAIL drift" in out
    report = report_in(tmp_path / "b")
    assert {"drift": "fail", "classes": "not compared", "argmax": "pass"} == {
        metric["name"]: metric["judgement"] for metric in report["user_metrics"]
    }
    code, _, err = run(*VERIFY, tmp_path / "c", *arguments, "--metric-limit", "dirft=0.1")
    assert 2 == code and "gives no number of that name" in err and "drift" in err


def test_table_limits_metrics_too(tmp_path: Path) -> None:
    """Limits of outputs that a team wrote into its table hold, and the command line replaces them."""
    table = tmp_path / "own.toml"
    text = Path("tolerances.toml").read_text(encoding="utf-8")
    table.write_text(
        text.replace("[[stage]]", '[metrics]\nargmax = 1\ndrift = ">= 0.5"\n\n[[stage]]', 1), encoding="utf-8"
    )
    arguments = ("--onnx", "model.onnx", "--tolerances", table, "--metric", "quality:drift")
    code, out, _ = run(*VERIFY, tmp_path / "a", *arguments)
    assert 1 == code and "FAIL drift" in out and "argmax 1 is within its limit 1" in out
    code, out, err = run(*VERIFY, tmp_path / "b", *arguments, "--metric-limit", "drift=0.5")
    assert 0 == code, out + err
    code, _, err = run(*VERIFY, tmp_path / "c", *arguments[:-2])
    assert 2 == code and "nothing gives a number of that name" in err


def test_several_samples(tmp_path: Path) -> None:
    """Each sample is a suite; the log has one line for each that fails, and the worst one in detail."""
    junit = tmp_path / "verify.xml"
    arguments = ("--input", "samples/1.pt", "--onnx", "broken.onnx", "--junit", junit)
    code, out, err = run(*VERIFY, tmp_path / "r", *arguments)
    assert 1 == code, err
    assert "0 of 2 samples agree" in out
    root = ElementTree.parse(junit).getroot()
    assert 2 == len(root) and all("samples" in suite.get("name", "") for suite in root)
    assert (tmp_path / "r" / "001-1" / "report.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tolerances", "tolerances.toml", "--entry", "wider"), "made for another model"),
        (("--tolerances", "tolerances.toml", "--level", "op"), "those of leaf stages"),
        (("--tolerances", "tolerances.toml", "--max-abs", "1"), "exclude each other"),
        (("--tolerances", "none.toml"), "none.toml"),
        (("--junit", "no/such/folder.xml"), "there is no folder"),
        (("--junit", "samples"), "is a folder"),
        (("--metric-limit", "drift=1"), "nothing gives a number"),
        (("--top-k", "0"), "at least one"),
        (("--class-axis", "9"), "no output has that many dimensions"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """Usage errors: exit 2, what is wrong, and a remedy; before anything runs."""
    given = BASE if "--entry" not in arguments else ("model.py", "--input", "samples/0.pt")
    code, out, err = run(
        "bisect-tool", "verify", *given, "-q", "-o", tmp_path / "r", "--onnx", "model.onnx", *arguments
    )
    assert (2, "") == (code, out), err
    assert message in " ".join(err.split()) and "help:" in err
    assert not (tmp_path / "r").exists()


def test_case_file(tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case file may name the table, relative to itself; what only the main command does is refused."""
    case = project.folder / "case.toml"
    lines = '[case]\nmodel = "model.py"\ncheckpoint = "ckpt.pth"\ninput = "samples/0.pt"\nonnx = "model.onnx"\n'
    case.write_text(lines + '[tolerance]\ntable = "tolerances.toml"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("bisect-tool", "verify", "--config", case, "-q", "-o", "a")
    assert 0 == code, err
    assert "calibrated on 128 samples" in " ".join(out.split())
    code, _, err = run("bisect-tool", "verify", "--config", case, "-q", "-o", "b", "--max-abs", "1")
    assert 0 == code, "the command line's tolerance takes the place of the file's"
    case.write_text(lines + '[run]\nmatrix = "quick"\n', encoding="utf-8")
    code, _, err = run("bisect-tool", "verify", "--config", case, "-q", "-o", "c")
    assert 2 == code and "does not take a matrix" in err


def test_run_without_an_answer_leaves_a_failing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier, green JUnit file does not stand for a run that broke; GitHub is told too."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    junit = tmp_path / "verify.xml"
    junit.write_text("<testsuites/>", encoding="utf-8")
    code, _, err = run(*VERIFY, tmp_path / "r", "--onnx", "samples/0.pt", "--junit", junit)
    assert 2 == code and "::error " in err
    (failure,) = ElementTree.parse(junit).getroot().iter("failure")
    assert failure.get("message", "") in err


def test_json_is_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--format json`` leaves stdout to one document, on GitHub too."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, out, _ = run(*VERIFY, tmp_path / "r", "--onnx", "broken.onnx", "--format", "json")
    assert 1 == code and "diverges" == json.loads(out)["verdict"]["status"]
    code, _, _ = run(*VERIFY, tmp_path / "s", "--onnx", "broken.onnx", "--exit-zero")
    assert 0 == code


# -- what the pages say -----------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")


def test_workflow_runs_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    """The workflow's command gates an export: a right file passes, a wrong one fails, and what is uploaded is there."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "docs" / "github-workflow.yml").read_text(encoding="utf-8")
    assert text in PAGE
    steps = yaml.safe_load(text)["jobs"]["verify"]["steps"]
    (line,) = [step["run"] for step in steps if "bisect-tool" in step.get("run", "")]
    (upload,) = [step for step in steps if "upload-artifact" in step.get("uses", "")]
    assert "always()" == upload["if"]
    monkeypatch.chdir(project.copy(tmp_path / "checkout"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    program, *arguments = shlex.split(line)
    for file, expected in (("model.onnx", 0), ("broken.onnx", 1)):
        shutil.copy(project.folder / file, "model.onnx")
        code, out, err = run(program, *arguments)
        assert expected == code, out + err
        assert (expected == 1) == ("::error file=model.py," in err)
        for path in upload["with"]["path"].split():
            assert Path(path).exists()


def test_page_names_every_option() -> None:
    """docs/verify.md has the command's own options, README those that it shares; neither has others."""
    from bisect_tool.cli.run import run as main
    from bisect_tool.cli.verify import verify as command

    options = {name for option in command.params for name in option.opts if name.startswith("--")}
    own = options - {name for option in main.params for name in option.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert {"--junit", "--metric", "--metric-limit", "--top-k", "--class-axis"} == own
    assert set() == own - named
    assert set() == named - options - {"--quiet"}


def test_metric_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own function gives a number, and its table of limits can be read."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def drift" in block]
    space: dict[str, Any] = {}
    exec(code, space)
    ones = {"0": torch.ones(3).numpy()}
    assert {"drift": 0.5} == space["drift"](ones, {"0": ones["0"] + 0.5})
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert {"argmax", "drift", "recall"} == {
        parse_limit(text).name for text in limit_texts(tomllib.loads(table)["metrics"])
    }


def test_python_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/python.md's example runs, and names every function."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert 3 == len(capsys.readouterr().out.splitlines())
    for name in (
        "bisect",
        "verify",
        "inspect",
        "calibrate",
        "record",
        "compare",
        "determinism",
        "environment",
        "env_diff",
    ):
        assert f"`{name}(" in page and callable(getattr(bisect_tool, name))
