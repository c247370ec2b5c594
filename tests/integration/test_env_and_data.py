"""``bisect-tool env``, ``env diff`` and ``compare`` as a user calls them: output, files, exit codes, pages of docs."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from commands import ROOT
from pages import commands_of, execute_line

SCHEMA = json.loads((ROOT / "bisect_tool" / "environment.schema.json").read_text(encoding="utf-8"))


def tool(*arguments: object) -> tuple[int, str, str]:
    """``bisect-tool ARGUMENTS`` in this process: exit code, stdout, stderr."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.tool import tool as command

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(command, "bisect-tool", [*map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def test_env_is_text_or_json(tmp_path: Path) -> None:
    code, text, _ = tool("env")
    assert 0 == code and "torch.backends.cudnn.benchmark = False" in text
    code, out, _ = tool("env", "--format", "json")
    jsonschema.validate(json.loads(out), SCHEMA, jsonschema.Draft202012Validator)


def test_env_never_replaces_a_file_unasked(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "here.json"
    assert (0, "") == tool("env", "-o", file)[:2]
    before = file.read_bytes()
    code, out, err = tool("env", "-o", file)
    assert (2, "") == (code, out)
    assert f"error: {file} is there already\nhelp: --force replaces it; or choose another name\n" == err
    assert before == file.read_bytes()
    assert 0 == tool("env", "-o", file, "--force")[0]
    assert 0 == tool("env", "diff", file, file)[0]


def test_env_names_a_program_that_is_not_there() -> None:
    code, _, err = tool("env", "--binary", "no-such-program")
    assert (2, True) == (code, "--binary no-such-program: no such program" in err)


def test_env_diff_of_a_snapshot_with_a_planted_difference(tmp_path: Path) -> None:
    """One changed value is the first difference, with exit code 1; in JSON too."""
    tool("env", "-o", tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    data["distributions"]["numpy"] = "1.26.4"
    (tmp_path / "b.json").write_text(json.dumps(data))
    code, out, _ = tool(
        "env", "diff", tmp_path / "b.json", tmp_path / "a.json", "--format", "json", "-o", tmp_path / "out"
    )
    found = json.loads(out)
    assert (1, "numpy", "likely") == (code, found["differences"][0]["name"], found["differences"][0]["level"])
    assert found == json.loads((tmp_path / "out" / "diff.json").read_text())
    assert "numpy==1.26.4\n" == (tmp_path / "out" / "requirements.txt").read_text()
    compile((tmp_path / "out" / "determinism.py").read_text(), "determinism.py", "exec")
    code, _, err = tool("env", "diff", tmp_path / "b.json", tmp_path / "a.json", "-o", tmp_path / "out")
    assert (2, True) == (code, "diff.json is there already" in err)


@pytest.mark.parametrize("content", ["{", "", "no requirement at all\n"])
def test_env_diff_names_what_it_cannot_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(content)
    (tmp_path / "good.txt").write_text("numpy==1.0\n")
    code, out, err = tool("env", "diff", tmp_path / "good.txt", tmp_path / "bad.txt")
    assert (2, "") == (code, out)
    assert err.startswith("error: ") and "bad.txt" in err and "\nhelp: accepted are " in err


def test_a_report_has_the_whole_environment_and_can_be_compared(tmp_path: Path) -> None:
    from commands import command

    model = tmp_path / "model.py"
    model.write_text("import torch\n\n\ndef build_model():\n    return torch.nn.Linear(3, 2)\n")
    np.save(tmp_path / "sample.npy", np.ones((1, 3), np.float32))
    outcome = command(model, "--input", tmp_path / "sample.npy", folder=tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    environment = report["environment"]
    jsonschema.validate(environment, SCHEMA, jsonschema.Draft202012Validator)
    assert 0 == outcome.code
    tool("env", "-o", tmp_path / "here.json")
    _, out, _ = tool("env", "diff", tmp_path / "report", tmp_path / "here.json", "--format", "json")
    # The flags of one process may have been set by another test; packages cannot.
    assert {"package"}.isdisjoint(item["domain"] for item in json.loads(out)["differences"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("a.npy", "a.npy"), 0, "EQUAL  the files are the same, byte for byte"),
        (("a.npy", "b.npy"), 1, "DIFFERENT  1 of 6 cells differs"),
        (("a.npy", "b.npy", "--exit-zero"), 0, "DIFFERENT"),
        (("a.npy", "b.npy", "--max-abs", "2"), 0, "EQUAL  1 cell differs, within 2"),
        (("a.npy", "gone.npy"), 2, "gone.npy: no such file"),
        (("a.npy", "t.csv"), 2, "a.npy holds arrays, t.csv a table"),
        (("a.npy", "b.npy", "--atol", "1"), 2, "--atol and --rtol are given together"),
        (("folder", "folder"), 2, "folder is a folder, not a data file"),
        (("bundle", "a.npy"), 2, "bundle is a recording, a.npy is none"),
    ],
)
def test_compare_exits_as_documented(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.arange(6.0))
    np.save("b.npy", np.array([0, 1, 2, 4, 4, 5.0]))
    Path("t.csv").write_text("x,y\n1,2\n")
    Path("folder").mkdir()
    Path("bundle").mkdir()
    Path("bundle/manifest.json").write_text("{}")
    found, out, err = tool("compare", *arguments)
    assert code == found, err
    assert says in out + err
    assert (2 == code) == ("help: " in err)


@pytest.mark.parametrize("page", ["data-files.md", "environments.md"])
def test_pages_show_what_the_commands_print(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that the page shows is printed, in the order of the page, and every exit code is right."""
    for name in ("skeleton-csv", "environments"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / "examples" / name)
    monkeypatch.chdir(tmp_path)
    commands = commands_of((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(commands) >= 2
    for command in commands:
        code, out = execute_line(command.line)
        assert (command.code or 0) == code, command.line
        printed = iter(out.splitlines())
        for line in command.shown:
            if line != "[...]":
                assert line in printed, f"{line!r} is not printed, or not there:\n{out}"


def test_every_option_is_on_its_page() -> None:
    from bisect_tool.cli.compare import compare
    from bisect_tool.cli.env import diff, env
    from bisect_tool.cli.releases import releases
    from bisect_tool.cli.run import run

    # Options of recordings stand on the page of recordings.
    every = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    own = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    for command, text in ((compare, every), (env, own), (diff, own), (releases, own)):
        names = {name for option in command.params for name in option.opts if name.startswith("-")}
        names -= {"-h", "--help", "--output", "--version"}
        if command is releases:
            names -= {name for option in run.params for name in option.opts}
        assert set() == {name for name in names if f"`{name}" not in text and f"{name} " not in text}
