"""What fails as annotations of GitHub Actions: lines that its runner turns into marks beside the code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from bisect_tool.errors import BisectError
from bisect_tool.records import Report
from bisect_tool.reporters import failing, wording
from bisect_tool.verification import metric_line

MOST = 10
"""GitHub shows so many errors of one step, and drops the rest."""

_SOURCE = re.compile(r"(?P<file>.+):(?P<line>\d+)")


def runs_there(environment: Mapping[str, str]) -> bool:
    """Whether this is a step of GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


def marks(report: Report, environment: Mapping[str, str]) -> list[str]:
    """One line for each thing that fails, stages where error is made first; at most :data:`MOST`.

    Args:
        report: of one sample.
        environment: for the folder that paths in annotations are relative to.
    """
    found = [*_all(report, Path(environment.get("GITHUB_WORKSPACE") or os.getcwd()))]
    return found[:MOST]


def _all(report: Report, root: Path) -> Iterator[str]:
    if report.verdict.status == "agrees":
        return
    model = report.case.get("model")
    stages = failing.failing_stages(report)
    # Stages that only hand error on are in the report; marks on all of them would hide where it is made.
    for stage in [stage for stage in stages if stage.origin is not None] or stages[:1]:
        made = "error is made here" if stage.origin is not None else "first over its limit"
        yield _line(f"{stage.name}: {stage.why} ({made}; {stage.config})", "ONNX divergence", stage.row.source, root)
    outputs = {out.output: (run, out) for run, out in reversed(failing.failing_outputs(report))}
    for run, out in reversed(outputs.values()):
        yield _line(
            f"output {out.output}: {failing.why_output(out, report)} ({run.name})", "ONNX divergence", None, root
        )
    for metric in failing.failing_metrics(report):
        yield _line(metric_line(metric), "ONNX divergence", None, root)
    if report.verdict.status == "inconclusive" or not stages:
        line = report.verdict.summary[0] if report.verdict.summary else report.verdict.status
        # There is no line to blame; the model's file at least is what the run was about.
        source = f"{model}:1" if isinstance(model, str) and model.endswith(".py") else None
        yield _line(line, f"ONNX verification: {report.verdict.status}", source, root)


def _line(message: str, title: str, source: str | None, root: Path) -> str:
    properties = {**_place(source, root), "title": title}
    given = ",".join(f"{key}={_escaped(value, property=True)}" for key, value in properties.items())
    return f"::error {given}::{_escaped(wording.printable(message))}"


def _place(source: str | None, root: Path) -> dict[str, str]:
    """File and line as GitHub wants them; nothing for code that is not in the repository."""
    match = _SOURCE.fullmatch(source) if source is not None else None
    if match is None:
        return {}
    try:
        file = Path(match["file"]).resolve().relative_to(root.resolve())
    except (ValueError, OSError):
        return {}
    return {"file": file.as_posix(), "line": match["line"]}


def _escaped(text: str, *, property: bool = False) -> str:
    """As the runner reads it back; commas and colons end a property."""
    for char, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"), *([(":", "%3A"), (",", "%2C")] if property else [])):
        text = text.replace(char, code)
    return text


def failure(error: BisectError) -> str:
    """The annotation of a run that came to no report."""
    return _line(error.message.splitlines()[0], "ONNX verification: no answer", None, Path.cwd())
