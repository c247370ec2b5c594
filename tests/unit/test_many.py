"""Many samples: which is the worst, what is said of all, and what two runs of PyTorch tell about tracing."""

from __future__ import annotations

import csv
import io
import math

import pytest
from report_samples import diverging, healthy
from rich.console import Console

from bisect_tool.baked import BRANCH, CONSTANT, diagnose, differences
from bisect_tool.many import report_on_all, sample_lines, sample_result, worst_sample
from bisect_tool.records import FirstOverTolerance, Operation, Report, SampleResult, StageRef, Tolerance
from bisect_tool.reporters import csv_table, html, terminal


def sample(index: int, status: str, over: float | None = None, noise: float | None = None) -> SampleResult:
    first = FirstOverTolerance("fc", 0, 0, "ort-off") if status == "diverges" else None
    reason = "no CUDA" if status == "inconclusive" else None
    error = None if over is None else over * 1e-4
    return SampleResult(index, f"in/s{index}.pt", status, error, over, noise, first, f"00{index}-s{index}", 0, reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("results", "worst"),
    [
        ([sample(0, "agrees", 0.1), sample(1, "agrees", 0.2)], 1),
        ([sample(0, "diverges", 5.0), sample(1, "agrees", 0.9), sample(2, "inconclusive")], 0),
        ([sample(0, "agrees", 0.5), sample(1, "inconclusive")], 1),
        ([sample(0, "diverges", 5.0, 9.0), sample(1, "diverges", 7.0, 4.0)], 1),
        ([sample(0, "diverges", 5.0, 4.0), sample(1, "diverges", 5.0, 9.0)], 1),
        ([sample(0, "diverges", math.nan), sample(1, "diverges", 1e9)], 0),
        ([sample(0, "diverges"), sample(1, "diverges", 2.0)], 1),
        ([sample(0, "diverges", 3.0, 1.0), sample(1, "diverges", 3.0, 1.0)], 0),
    ],
)
def test_the_worst_sample(results: list[SampleResult], worst: int) -> None:
    """The gravest verdict, then the output's error, then the origins' noise ratio, then the first."""
    assert worst == worst_sample(results).index


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([sample(0, "agrees", 0.1), sample(1, "agrees", 0.2)], "all 2 samples agree; furthest off is sample 1 (s1.pt)"),
        ([sample(0, "diverges", 2.0), sample(1, "diverges", 3.0)], "does not depend on the sample"),
        ([sample(0, "agrees", 0.2), sample(1, "diverges", 3.0)], "1 of 2 samples diverges: the divergence depends on"),
        ([sample(0, "agrees", 0.2), sample(1, "inconclusive")], "1 of 2 samples agree; 1 without an answer: sample 1"),
        ([sample(0, "diverges", 2.0), sample(1, "inconclusive")], "1 of 2 samples diverges; 1 without an answer;"),
    ],
)
def test_what_is_said_of_all(results: list[SampleResult], words: str) -> None:
    """How many diverge, whether that depends on the sample, and which is the worst."""
    assert words in sample_lines(results)[0]


def test_a_sample_without_a_single_limit() -> None:
    """Under atol and rtol the greatest difference is told, and no number of limits."""
    report = diverging()
    result = sample_result(report, 3, "x.pt", "003-x", None)
    assert result.worst_output is not None and result.over_limit is not None
    assert result.first_over_tolerance == report.verdict.first_over_tolerance
    loose = sample_result(
        type(report)(**{**fields(report), "tolerance": Tolerance("user", atol=1e-3, rtol=0.0)}), 3, "x", "f", 0
    )
    assert loose.over_limit is None and loose.worst_output is not None


def fields(report: object) -> dict[str, object]:
    return {name: getattr(report, name) for name in report.__slots__}  # type: ignore[attr-defined]


def on_page(results: list[SampleResult], report: Report, notes: list[str]) -> tuple[str, str]:
    """Terminal and HTML of the report on several samples."""
    whole = report_on_all(report, results, notes=notes)
    text = io.StringIO()
    terminal.render(whole, Console(file=text, width=80, no_color=True))
    return text.getvalue(), html.html_text(whole)


def test_no_sample_stands_out_where_all_agree() -> None:
    """There is a mark, and a word of the worst, only where one of them is not as it should be."""
    text, page = on_page([sample(0, "agrees", 0.1), sample(1, "agrees", 0.2)], healthy(), [])
    assert "Shown below: in/s1.pt (sample 1), furthest off; all agree" in text
    assert not [line for line in text.splitlines() if line.startswith("> ")]
    assert "the worst one" not in page and "furthest off; all agree" in page
    text, page = on_page([sample(0, "agrees", 0.1), sample(1, "inconclusive")], healthy(), [])
    assert [line.split()[1] for line in text.splitlines() if line.startswith("> ")] == ["1"]
    assert "(sample 1), the worst" in text and "the worst one" in page


def test_notes_of_other_samples_are_in_the_report_on_all() -> None:
    """Such as that one of them was exported for anew."""
    note = "sample 0 (s0.pt): exported anew"
    text, page = on_page([sample(0, "agrees", 0.1), sample(1, "agrees", 0.2)], healthy(), [note])
    assert note in text and note in page


def test_all_reporters_list_the_samples() -> None:
    """Terminal, page and table name each sample with its verdict; the page links to its report."""
    results = [sample(0, "agrees", 0.1), sample(1, "diverges", 480.0, 90.0)]
    report = report_on_all(diverging(), results)
    text = io.StringIO()
    terminal.render(report, Console(file=text, width=80, no_color=True))
    lines = text.getvalue().splitlines()
    assert "Samples" in lines
    assert any(line.startswith(">") and "s1.pt" in line and "DIVERGES" in line for line in lines)
    assert any("s0.pt" in line and "agrees" in line for line in lines)
    page = html.html_text(report)
    assert 'href="001-s1/index.html"' in page and 'href="000-s0/index.html"' in page
    rows = list(csv.DictReader(io.StringIO(csv_table.samples_csv_text(report))))
    assert [("0", "agrees", ""), ("1", "diverges", "fc")] == [(r["index"], r["status"], r["stage"]) for r in rows]
    assert "index.html" not in html.html_text(healthy())


# Two runs of PyTorch


def op(name: str, module: str = "", *constants: str, source: str | None = None) -> Operation:
    return Operation(name, module, 0, source, constants)


def test_other_operations_are_a_branch() -> None:
    """What only one of the runs did is named with its place."""
    agreeing = [op("addmm", "fc1"), op("relu", "", source="net.py:7"), op("addmm", "fc2")]
    other = [op("addmm", "fc1"), op("tanh", "", source="net.py:9"), op("mul", "", "1: 2.0"), op("addmm", "fc2")]
    found = diagnose(agreeing, other, ("a", "b"), StageRef("fc2", 0, 0), same_shapes=True, exported=True)
    assert found is not None
    assert ("BD401", BRANCH) == (found.code, found.title)
    assert "runs only on a: relu in (model) (net.py:7)" in found.evidence
    assert "runs only on b: tanh, mul in (model) (net.py:9)" in found.evidence
    assert "torch.cond" in found.remedy


def test_another_number_is_a_constant() -> None:
    """Sizes that follow the input are not blamed where something else differs."""
    agreeing = [op("view", "", "1: [6, 8]"), op("div", "", "1: 2.45"), op("addmm", "out")]
    other = [op("view", "", "1: [9, 8]"), op("div", "", "1: 3.0"), op("addmm", "out")]
    found = diagnose(agreeing, other, ("a", "b"), StageRef("/div#0", 0, 0), same_shapes=False, exported=False)
    assert found is not None and CONSTANT == found.title
    assert "div in (model) works with 2.45 on a and with 3.0 on b" in found.evidence
    assert not any("view" in line for line in found.evidence)
    assert "dynamic" in found.remedy
    same = diagnose(agreeing[1:], other[1:], ("a", "b"), None, same_shapes=True, exported=False)
    assert same is not None and ".item()" in same.remedy


def test_what_comes_later_explains_nothing() -> None:
    """A difference behind the first diverging stage is none of its causes, and equal runs have none."""
    agreeing = [op("addmm", "fc1"), op("addmm", "fc2"), op("mul", "", "1: 2.0")]
    other = [op("addmm", "fc1"), op("addmm", "fc2"), op("mul", "", "1: 3.0")]
    keys = {"same_shapes": True, "exported": True}
    assert diagnose(agreeing, other, ("a", "b"), StageRef("fc1", 0, 0), **keys) is None  # type: ignore[arg-type]
    assert diagnose(agreeing, other, ("a", "b"), StageRef("/mul#0", 0, 0), **keys) is not None  # type: ignore[arg-type]
    assert diagnose(agreeing, agreeing, ("a", "b"), None, **keys) is None  # type: ignore[arg-type]
    assert [] == differences(agreeing, agreeing)


def test_a_loop_of_another_length() -> None:
    """More rounds of a loop are other operations, counted."""
    agreeing = [op("add", "", "1: 1.0")] * 3
    other = [op("add", "", "1: 1.0")] * 12
    found = diagnose(agreeing, other, ("a", "b"), None, same_shapes=True, exported=True)
    assert found is not None and BRANCH == found.title
    assert "runs only on b: 9 add in (model)" in found.evidence


def test_a_graph_that_does_not_run() -> None:
    """That the graph fails on the other sample is in the evidence."""
    found = diagnose(
        [op("view", "", "1: [6]")],
        [op("view", "", "1: [9]")],
        ("a", "b"),
        None,
        same_shapes=False,
        exported=False,
        failure="ONNX Runtime failed while running: Reshape",
    )
    assert found is not None
    assert "does not run on b: ONNX Runtime failed while running: Reshape" in found.evidence[0]
