"""Reports of parts → one report: names, numbers of rows, and what parts and chain say together."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from report_samples import ORT_OFF, TOLERANCE, alignment, comparison, config_run, metrics, row

from bisect_tool.merging import (
    CallReport,
    Chain,
    local_error,
    merged_alignment,
    merged_config,
    merged_rows,
    merged_verdict,
    part_results,
    renamer,
    total_error,
)
from bisect_tool.records import GlueStage, OutputResult, Report, StageRef, Verdict
from bisect_tool.reporters.html import html_text
from bisect_tool.reporters.terminal import print_report
from bisect_tool.verdicts import decide

FILES = {"a": "files/a.onnx", "b": "files/b.onnx"}


def part(name: str, errors: list[float], **verdict: object) -> Report:
    """A part of a chain of stages, each with the error of its own and no other."""
    rows = [
        row(index, f"{name}.{index}", "Linear", {"ort-off": comparison(error, error, 1e-7 if index else None)})
        for index, error in enumerate(errors)
    ]
    worst = max(errors)
    return Report(
        case={"name": name},
        verdict=replace(Verdict("agrees" if worst <= 1e-4 else "diverges", (), None, ()), **verdict),  # type: ignore[arg-type]
        tolerance=TOLERANCE,
        alignment=alignment(rows),
        configs=(config_run("ort-off", ORT_OFF, worst),),
        stages=tuple(rows),
        environment={},
        timings={},
    )


def merged(reports: list[CallReport], chain: Chain) -> Report:
    """What the orchestration makes of them."""
    rename = renamer({"a": set(), "b": set()})
    rows, both, chains = merged_rows(reports, rename), merged_alignment(reports, rename), {"ort-off": chain}
    runs = (merged_config("ort-off", reports, chain),)
    parts = part_results(reports, FILES, {"a": 1, "b": 1}, chains)
    verdict = decide(rows, runs, both, 0.9, selected=False)
    verdict = merged_verdict(verdict, reports, runs, parts, chains, rename, 0.9, selected=False)
    glue = (GlueStage(StageRef("scatter", 0, 0), "Scatter", "model.py:7", "a"),)
    return Report({}, verdict, TOLERANCE, both, runs, tuple(rows), {}, {}, parts=parts, glue=glue)


def chain(rel: float = 3e-7, **changes: object) -> Chain:
    """A chain with one final output of the given error; what comes into the second part has a tenth of it."""
    output = OutputResult(0, "b:out", metrics(rel), "pass" if rel <= 1e-4 else "fail")
    calls = {("a", 0): (0.0, {0: metrics(rel / 10)}), ("b", 0): (rel / 10, {0: metrics(rel)})}
    return replace(Chain((output,), calls), **changes)  # type: ignore[arg-type]


def test_names_that_several_parts_have_are_told_apart() -> None:
    """Only these bear the part's name."""
    rename = renamer({"a": {"x", "conv"}, "b": {"conv", "y"}})
    assert ["a:conv", "b:conv", "x", "y"] == [
        rename(*each) for each in (("a", "conv"), ("b", "conv"), ("a", "x"), ("b", "y"))
    ]


def test_rows_are_numbered_anew() -> None:
    """Inputs follow; each row knows its part; shares of the parts' own outputs are gone."""
    reports = [CallReport("a", 0, part("a", [1e-7, 1e-7])), CallReport("b", 0, part("b", [1e-7, 2e-7]))]
    first = reports[0].report
    assert first is not None
    shared = replace(first.stages[0].results["ort-off"], share=0.5)
    stages = (replace(first.stages[0], results={"ort-off": shared}), *first.stages[1:])
    reports[0] = replace(reports[0], report=replace(first, stages=stages))
    rows = merged_rows(reports, renamer({"a": {"/a/0/Linear"}, "b": {"/a/0/Linear"}}))
    assert [(0, "a", ()), (1, "a", (0,)), (2, "b", ()), (3, "b", (2,))] == [(r.index, r.part, r.inputs) for r in rows]
    assert ("a:/a/0/Linear",) == rows[0].onnx_nodes and ("/a/1/Linear",) == rows[1].onnx_nodes
    assert {None} == {row.results["ort-off"].share for row in rows}


def test_counts_of_all_parts_add_up() -> None:
    """A value stands for no stage if it does so in every call of its part."""
    one, two = part("a", [1e-7]), part("a", [1e-7, 1e-7])
    two = replace(two, alignment=replace(two.alignment, unmatched_onnx=("other", "/Shape_output_0")))
    found = merged_alignment([CallReport("a", 0, one), CallReport("a", 1, two)], lambda _, name: name)
    assert (3, 3, 1.0, ("/Shape_output_0",)) == (found.stages, found.aligned, found.coverage, found.unmatched_onnx)


def test_all_agree() -> None:
    """The errors of the chain stand beside those of the parts alone."""
    report = merged([CallReport("a", 0, part("a", [1e-7])), CallReport("b", 0, part("b", [2e-7]))], chain())
    assert "agrees" == report.verdict.status
    first, second = (each.runs[0] for each in report.parts)
    assert (0.0, 1e-7, 3e-8) == (first.input_error, local_error(first), pytest.approx(total_error(first)))
    assert (pytest.approx(3e-8), 2e-7, 3e-7) == (second.input_error, local_error(second), total_error(second))


def test_an_error_that_came_in_is_not_made() -> None:
    """The part behind the fault is right, and hands on."""
    verdict = merged([CallReport("a", 0, part("a", [3e-2])), CallReport("b", 0, part("b", [2e-7]))], chain(0.3)).verdict
    assert ["a.0"] == [origin.stage for origin in verdict.origins]
    assert "by itself, on PyTorch's inputs, diverges: a (a.onnx)" in verdict.summary
    assert (
        "b agrees on PyTorch's inputs and hands on what comes in: relative L2 3.0e-02 in, 3.0e-01 out"
        in verdict.summary
    )


def test_a_part_without_an_answer_is_inconclusive() -> None:
    """Whatever the others say, unless one diverges."""
    failed = CallReport("b", 0, None, "ONNX Runtime cannot load the graph: no such operator")
    stopped = Chain((), {}, "the chain was not run, since b has no answer")
    report = merged([CallReport("a", 0, part("a", [1e-7])), failed], stopped)
    assert "inconclusive" == report.verdict.status
    assert ("b (b.onnx): ONNX Runtime cannot load the graph: no such operator",) == report.verdict.summary
    (run,) = report.configs
    assert "failed" == run.status and "no such operator" in str(run.skipped_reason)
    assert ("inconclusive", 0, None, ()) == tuple(
        getattr(report.parts[1], name) for name in ("status", "stages", "coverage", "runs")
    )
    report = merged([CallReport("a", 0, part("a", [1e-2])), failed], stopped)
    assert "diverges" == report.verdict.status


def test_a_part_whose_coverage_is_low_is_inconclusive() -> None:
    """Its own verdict counts, though all parts together may be covered well enough."""
    low = part("b", [1e-7], status="inconclusive", summary=("only 50% of the stages could be aligned",))
    verdict = merged([CallReport("a", 0, part("a", [1e-7] * 20)), CallReport("b", 0, low)], chain()).verdict
    assert ("inconclusive", ("b (b.onnx): only 50% of the stages could be aligned",)) == (
        verdict.status,
        verdict.summary,
    )


def test_a_chain_that_does_not_run_is_inconclusive() -> None:
    """Parts that agree are no answer for the whole."""
    reports = [CallReport("a", 0, part("a", [1e-7])), CallReport("b", 0, part("b", [2e-7]))]
    verdict = merged(reports, Chain((), {}, "the model fails with the files in its parts' place: ValueError")).verdict
    assert "inconclusive" == verdict.status
    assert "ValueError" in verdict.summary[0]
    assert "inconclusive" == merged(reports, chain(0.3, random=True)).verdict.status


@pytest.mark.parametrize("rel", [0.3, math.nan])
def test_only_the_chain_diverges(rel: float) -> None:
    """No stage is blamed."""
    reports = [CallReport("a", 0, part("a", [1e-7])), CallReport("b", 0, part("b", [2e-7]))]
    verdict = merged(reports, chain(rel)).verdict
    assert ("diverges", (), None) == (verdict.status, verdict.origins, verdict.first_over_tolerance)
    assert verdict.summary[0].startswith("each part agrees on PyTorch's inputs, and chained together")


def test_calls_are_told_apart_by_reporters() -> None:
    """A second call has its number; a part without an answer has its reason on the page, and no numbers."""
    reports = [
        CallReport("a", 0, part("a", [1e-7])),
        CallReport("a", 1, part("a", [2e-7])),
        CallReport("b", 0, None, "no <answer>"),
    ]
    report = merged(reports, Chain((), {}, "not run"))
    out = io.StringIO()
    print_report(report, file=out, width=80)
    lines = out.getvalue().splitlines()
    table = lines.index("Parts under ort-off")
    assert ["a", "a.onnx", "2", "of", "2", "-", "1.0e-07", "-", "agrees"] == lines[table + 2].split()
    assert "a@1" == lines[table + 3].split()[0]
    assert "  PyTorch: scatter (Scatter)" == lines[table + 4]
    assert ["b", "b.onnx", "0", "of", "0", "-", "-", "-", "INCONCLUSIVE"] == lines[table + 5].split()
    page = html_text(report)
    assert "no &lt;answer&gt;" in page and "a@1" in page
