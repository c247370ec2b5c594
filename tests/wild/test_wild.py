"""Mismatches that nobody planted: the right stage and a fitting cause, or agreement where nothing is wrong.

A case whose outputs no longer differ, by plain ONNX Runtime and PyTorch alone, is skipped and says so.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from cases import CASES
from wild_runs import Found, look, reproduces


def _pairs(*, faults: bool) -> list[object]:
    """Cases and exporters; what the fast exporter shows is slow with the other one."""
    return [
        pytest.param(name, exporter, marks=[pytest.mark.slow] if exporter != case.exporters[0] else [])
        for name, case in CASES.items()
        for exporter in case.exporters
        if bool(case.codes) is faults
    ]


def _found(name: str, exporter: str, folder: Path) -> Found:
    found = look(CASES[name], exporter, folder)
    if not found.reproduced:
        versions = f"torch {torch.__version__} and onnxruntime {ort.__version__}"
        pytest.skip(f"no longer reproducible with {versions}: {CASES[name].issue or 'no report'}")
    return found


@pytest.mark.parametrize(("name", "exporter"), _pairs(faults=True))
def test_stage_and_cause(name: str, exporter: str, tmp_path: Path) -> None:
    """The first origin is the stage that is got wrong, the graph's side is off, and the cause fits."""
    case, found = CASES[name], _found(name, exporter, tmp_path)
    verdict = found.report.verdict
    assert "diverges" == verdict.status
    assert found.stage is not None and found.stage.partition("/")[0] == case.stage, verdict.summary
    assert "actual" == verdict.origins[0].side
    assert found.diagnosis is not None and found.diagnosis.code in case.codes, verdict.diagnoses
    assert found.diagnosis is verdict.diagnoses[0], verdict.diagnoses
    # Blaming whatever is there would be no art.
    assert len([row for row in found.report.stages if row.results]) >= 8


@pytest.mark.parametrize("name", ["masked_fill_ through a view", "fill_ of a diagonal"])
def test_a_write_left_out_is_named_with_its_module(name: str, tmp_path: Path) -> None:
    """The module whose write is missing has no value in the graph; the cause names the write and the module."""
    found = _found(name, "torchscript", tmp_path)
    assert found.diagnosis is not None
    assert re.search(r"without (masked_fill_|fill_) of wild, which writes in place", found.diagnosis.evidence[0])


@pytest.mark.parametrize(("name", "exporter"), _pairs(faults=False))
def test_no_fault(name: str, exporter: str, tmp_path: Path) -> None:
    """Both sides differ, and neither is wrong."""
    verdict = _found(name, exporter, tmp_path).report.verdict
    assert ("agrees", ()) == (verdict.status, verdict.origins), verdict.summary


def test_issues_are_numbers() -> None:
    """Where a report is named, it can be looked up."""
    assert all(case.issue is None or re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", case.issue) for case in CASES.values())


LEAST_REPRODUCED = 10


def test_enough_reports_still_reproduce(tmp_path: Path) -> None:
    """With other versions cases are skipped one by one; all of them skipped would look like all of them right."""
    reports: set[str] = set()
    for number, case in enumerate(CASES.values()):
        if len(reports) == LEAST_REPRODUCED:
            break
        if case.codes and case.issue is not None and case.issue not in reports:
            folder = tmp_path / str(number)
            folder.mkdir()
            if reproduces(case, case.exporters[0], folder):
                reports.add(case.issue)
    assert LEAST_REPRODUCED == len(reports), sorted(reports)
