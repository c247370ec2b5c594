"""``bisect-tool verify`` on a terminal or in a log: the verdict, what is over its limit, and how far outputs agree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO

from bisect_tool.calibration.calibrated import limit_text
from bisect_tool.records import LimitUse, Report, StageRow
from bisect_tool.reporters import failing, wording
from bisect_tool.reporters.layout import Column, Page, PipedConsole, Row, Span
from bisect_tool.verification import metric_line

MOST_STAGES = 10
"""Failing stages that are listed; the report has all of them."""
MOST_BEHIND = 3
"""Of those that only hand on the error of another one in the list."""
MOST_OUTPUTS = 8
MOST_LINES = 4
"""Of the verdict's wording."""

_STYLES = {"agrees": "bold green", "diverges": "bold red", "inconclusive": "bold yellow"}


def print_verification(
    report: Report,
    *,
    files: Sequence[tuple[str, str]] = (),
    file: IO[str] | None = None,
    width: int | None = None,
) -> None:
    """Prints a report in a few lines.

    Args:
        report: of the only sample, or of all samples.
        files: what was written, each with what it is.
        file, width: instead of stdout and the terminal's width.
    """
    page = Page(PipedConsole(file=file, width=width))
    status = report.verdict.status
    name = str(report.case.get("name") or "the model")
    page.line((wording.STATUSES[status], _STYLES[status]), f"  {name} against {failing.graph_name(report)}")
    _samples(page, report)
    page.prose(failing.judged_by(report), label=("judged by: ", ""))
    stages = failing.failing_stages(report)
    if stages:
        _stages(page, report, stages)
    elif status == "agrees":
        page.prose(_within(report))
    _outputs(page, report)
    for metric in report.user_metrics:
        failed = metric.judgement == "fail"
        page.prose(metric_line(metric), label=("FAIL " if failed else "", "bold red"))
    if status != "agrees" or report.verdict.origins:
        told = {metric_line(metric) for metric in report.user_metrics}
        for line in [line for line in report.verdict.summary if line not in told][:MOST_LINES]:
            page.prose(line)
        for diagnosis in report.verdict.diagnoses[:1]:
            page.prose(f"{diagnosis.title}: {diagnosis.remedy}", label=(f"{diagnosis.code} ", "bold"))
    for what, path in files:
        page.line((f"{what:<8}", "bold"), path)


def _samples(page: Page, report: Report) -> None:
    """How many samples, and which of them fail."""
    if not report.samples:
        return
    bad = [sample for sample in report.samples if sample.status != "agrees"]
    page.prose(f"{len(report.samples) - len(bad)} of {len(report.samples)} samples agree; shown is the worst one")
    for sample in bad[:MOST_STAGES]:
        where = f", first at {sample.first_over_tolerance.ref}" if sample.first_over_tolerance is not None else ""
        reason = f": {sample.reason}" if sample.reason else ""
        source = os.path.basename(sample.source) or sample.source
        page.prose(f"sample {sample.index} ({source}) {wording.STATUSES[sample.status]}{where}{reason}", indent="  ")


def _stages(page: Page, report: Report, stages: Sequence[failing.FailingStage]) -> None:
    judged = {row.index for run in failing.counting_runs(report) for row, _ in failing.counting_rows(report, run)}
    page.line()
    page.line((f"{len(stages)} of {wording.plural(len(judged), 'stage')} over their limits", "bold"))
    # Where error is made says most; stages behind it only hand it on.
    first = [stage for stage in stages if stage.origin is not None][:MOST_STAGES]
    room = min(MOST_STAGES - len(first), MOST_BEHIND) if first else MOST_STAGES
    first += [stage for stage in stages if stage.origin is None][:room]
    entries: list[Row | Span] = [
        Row(("*" if stage.origin is not None else "", stage.name, stage.why, stage.row.source or "-"))
        for stage in stages
        if stage in first
    ]
    if len(stages) > len(first):
        entries.append(Span(f"   and {len(stages) - len(first)} more, in the report"))
    columns = (
        Column(""),
        Column("stage", minimum=16),
        Column("error"),
        Column("at", minimum=12, drop=1),
    )
    page.table(columns, entries, indent=1)
    if any(stage.origin is not None for stage in first):
        page.line(("   * error is made here; the others hand it on", "dim"))
    page.line()


def _within(report: Report) -> str:
    """How many stages were compared, and which of them is nearest to its limit."""
    runs = failing.counting_runs(report)
    rows = {row.index for run in runs for row, _ in failing.counting_rows(report, run)}
    outputs = {out.output for run in runs for out in run.outputs}
    names = ", ".join(run.name for run in runs)
    text = f"{wording.plural(len(rows), 'stage')} and {wording.plural(len(outputs), 'output')} within limits ({names})"
    nearest = _nearest(report)
    if nearest is None:
        return text
    row, use = nearest
    return f"{text}; nearest to its limit is {row.ref}: {limit_text(use)}"


def _nearest(report: Report) -> tuple[StageRow, LimitUse] | None:
    """The stage that is nearest to a calibrated limit."""
    uses = [
        (row, result.limit)
        for run in failing.counting_runs(report)
        for row, result in failing.counting_rows(report, run)
        if result.limit is not None
    ]
    return max(uses, key=lambda item: item[1].ratio, default=None)


def _outputs(page: Page, report: Report) -> None:
    """Each output of each configuration: its error, and whether it chooses the same classes."""
    shown = [(run, out) for run in failing.counting_runs(report) for out in run.outputs]
    for run, out in shown[:MOST_OUTPUTS]:
        failed = out.judgement == "fail"
        words = failing.why_output(out, report) if failed else f"relative L2 {wording.sci(out.total.rel_l2)}"
        if out.judgement == "not compared":
            words = "not compared"
        if out.agreement is not None:
            words += f"; {failing.agreement_text(out.agreement)}"
        label = f"output {wording.printable(out.output)} ({run.name}): "
        page.prose(words, label=(("FAIL " if failed else "") + label, "bold red" if failed else ""))
    if len(shown) > MOST_OUTPUTS:
        page.prose(f"and {len(shown) - MOST_OUTPUTS} more outputs, in the report", style="dim")
