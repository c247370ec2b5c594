"""What was tried, and what the files told before the run, in the terminal, the page and report.json."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from report_samples import diverging
from rich.console import Console

from bisect_tool.pipeline.explaining import REPLAY_NAME
from bisect_tool.records import Finding, LedgerEntry, Report, StageRef, TrialConclusion
from bisect_tool.reporters import causes, html, terminal
from bisect_tool.store import report_from_json, report_to_json

REF = StageRef("layer3.upsample", 0, 0)


def entry(
    code: str, after: float | None, conclusion: TrialConclusion, change: str, *, tried: bool = True
) -> LedgerEntry:
    return LedgerEntry(REF, "ort-cpu-off", code, "node_37", change, 4.8e-2, after, conclusion, tried)


@pytest.fixture
def report() -> Report:
    base = diverging()
    ledger = (
        entry("BD202", 4.7e-2, "ruled out", "weight w differs"),
        entry("BD202", 4.6e-2, "ruled out", "weight v differs"),
        entry("BD101", 3e-7, "cause", "mode is asymmetric"),
        entry("BD403", None, "ruled out", "run twice, the stage gives the same bits", tried=False),
    )
    found = (
        Finding("BD402", "fault", "drop: Dropout in training mode: it drops values by chance", ("drop",)),
        Finding("BD405", "suspicion", "up: Resize linear with asymmetric: none of PyTorch's modes has that", ("up",)),
        Finding("BD205", "fact", "9 of 9 weights are the model's rounded to float16: a, b", ("a", "b")),
    )
    return replace(base, verdict=replace(base.verdict, ledger=ledger), preflight=found)


def printed(report: Report, width: int = 80) -> str:
    stream = io.StringIO()
    terminal.render(report, Console(file=stream, width=width), report_dir="reports/x")
    return stream.getvalue()


def test_hypotheses_are_counted_by_cause_and_the_cause_comes_first(report: Report) -> None:
    (trials,) = causes.trials(report)
    assert [("BD101", 1, 3e-7, "cause"), ("BD202", 2, 4.6e-2, "ruled out"), ("BD403", 0, None, "ruled out")] == [
        (row.code, row.count, row.best, row.conclusion) for row in trials.hypotheses
    ]
    assert 4 == len(trials.entries)


def test_terminal_has_both_in_80_columns(report: Report) -> None:
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "Tried in layer3.upsample under ort-cpu-off, error 4.8e-02 before" in text
    rows = [line.split() for line in text.splitlines()]
    assert any(row[:1] == ["BD101"] and row[-2:] == ["3.0e-07", "cause"] for row in rows)
    assert any(row[:1] == ["BD202"] and row[-5:] == ["2", "changes", "4.6e-02", "ruled", "out"] for row in rows)
    assert "The file beside the model: what both tell without a run" in text
    assert "BD402 fault: drop: Dropout in training mode" in text
    assert "BD405 look at: up: Resize linear" in text
    assert text.index("The file beside the model") < text.index("Stages under")


def test_page_has_each_entry(report: Report) -> None:
    page = html.html_text(report)
    assert "What was tried" in page and "The file beside the model" in page
    for text in ("mode is asymmetric", "weight v differs", "run twice, the stage gives the same bits", "ruled out"):
        assert text in page
    assert "it drops values by chance" in page


def test_report_without_them_has_no_empty_headings() -> None:
    assert "The file beside the model" not in printed(diverging())
    assert "Tried in" not in printed(diverging())


def test_both_survive_the_file(report: Report) -> None:
    again = report_from_json(report_to_json(report))
    assert (report.preflight, report.verdict.ledger) == (again.preflight, again.verdict.ledger)


def test_replay_line_fits_80_columns(report: Report) -> None:
    name = "replay/01-" + "a" * REPLAY_NAME
    origin = replace(report.verdict.origins[0], replay=name)
    text = printed(replace(report, verdict=replace(report.verdict, origins=(origin, *report.verdict.origins[1:]))))
    (line,) = [line for line in text.splitlines() if "/run.py" in line]
    assert f"python {name}/run.py" == line.strip()
    assert len(line) <= 80
