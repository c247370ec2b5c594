"""``bisect-tool demo``: the fault that it plants is the one that is found, and nothing that is there is touched."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from pages import execute_line


def test_demo_finds_what_it_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 0, the origin is the planted weight's stage, and both commands that it names do what it says."""
    monkeypatch.chdir(tmp_path)
    code, out = execute_line("bisect-tool demo -q")
    assert 0 == code
    assert ["bisect-demo"] == [path.name for path in tmp_path.iterdir()]
    report = json.loads(Path("bisect-demo/report/report.json").read_text(encoding="utf-8"))
    (origin,) = report["verdict"]["origins"]
    assert ("blocks.2.pointwise", "actual") == (origin["stage"], origin["side"])
    assert ["BD202"] == [each["code"] for each in report["verdict"]["diagnoses"]]
    # The command that the report gives to repeat it does so: not the demo, which leaves its folder alone.
    code, again = execute_line(f"{report['case']['command']} --force")
    assert (1, "DIVERGES") == (code, again[:8])
    first, right = (line.strip().removeprefix("$ ") for line in out.splitlines() if "bisect-divergence bisect" in line)
    assert "bisect-demo/broken.onnx" in shlex.split(first)
    code, out = execute_line(f"{right} -q")
    assert (0, "agrees") == (code, out[:6])


def test_a_folder_that_is_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/model.py").write_text("precious", encoding="utf-8")
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.tool import tool

    assert 2 == execute(tool, "bisect-tool", ["demo", "-o", "mine"])
    assert "mine is there already\nhelp: choose another folder with -o" in capsys.readouterr().err
    assert "precious" == Path("mine/model.py").read_text(encoding="utf-8")


def test_nothing_is_left_of_a_demo_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bisect_tool.backends import demo
    from bisect_tool.cli.demo import write_files

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "export_onnx", fails)
    with pytest.raises(Exception, match="cannot be written: No space left"):
        write_files(tmp_path / "demo")
    assert [] == list(tmp_path.iterdir())
