"""Annotations of GitHub Actions: which, how many, and nothing in them that the runner would read as a command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_samples import diverging, empty, healthy, hostile

from bisect_tool.errors import BisectError
from bisect_tool.reporters import failing, github


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A checkout with the model in a folder of its own, from which the command is run."""
    (tmp_path / "nets").mkdir()
    monkeypatch.chdir(tmp_path / "nets")
    return {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(tmp_path)}


def test_stages_where_error_is_made_come_first(workspace: dict[str, str]) -> None:
    """An annotation lies at the stage's line, relative to the checkout, and says what is over which limit."""
    report = diverging()
    lines = github.marks(report, workspace)
    made = [stage for stage in failing.failing_stages(report) if stage.origin is not None]
    first = made[0]
    file, line = (first.row.source or "").split(":")
    assert lines[0].startswith(f"::error file=nets/{file},line={line},title=")
    message = lines[0].rpartition("::")[2]
    assert first.name in message and first.why in message and "error is made here" in message


def test_nothing_where_all_agrees(workspace: dict[str, str]) -> None:
    """A report that agrees marks nothing."""
    assert [] == github.marks(healthy(), workspace)


def test_inconclusive_is_marked(workspace: dict[str, str]) -> None:
    """No verdict is told, at the model's file."""
    (line,) = github.marks(empty(), workspace)
    assert "inconclusive" in line and line.startswith("::error ")


def test_no_more_than_github_shows(workspace: dict[str, str]) -> None:
    """Of many things that fail the first ones are marked."""
    report = diverging()
    (run, *others) = report.configs
    many = tuple(replace(run.outputs[0], output=number, judgement="fail") for number in range(30))
    assert github.MOST == len(github.marks(replace(report, configs=(replace(run, outputs=many), *others)), workspace))


def test_names_are_no_commands(workspace: dict[str, str]) -> None:
    """Whatever a model calls its stages, each annotation is one line with one command."""
    lines = github.marks(hostile(), workspace)
    assert lines
    for line in lines:
        assert "\n" not in line and "\r" not in line and line.startswith("::error ")
        properties = line[len("::error ") :].partition("::")[0]
        assert {"file", "line", "title"} >= {item.partition("=")[0] for item in properties.split(",")}


def test_code_outside_of_the_checkout_has_no_place(workspace: dict[str, str]) -> None:
    """A stage in an installed library can't be marked; it is told all the same."""
    report = diverging()
    rows = tuple(replace(row, source="/usr/lib/python3/torch/nn.py:7") for row in report.stages)
    lines = github.marks(replace(report, stages=rows), workspace)
    assert lines and not any("file=" in line for line in lines)


def test_escapes() -> None:
    """Percent signs and line ends are written as the runner reads them back; in properties colons and commas too."""
    line = github.failure(BisectError("100% of a:b,c\nsecond line"))
    assert line == "::error title=ONNX verification%3A no answer::100%25 of a:b,c"
    assert github.runs_there({"GITHUB_ACTIONS": "true"}) and not github.runs_there({})
