"""Tables beside that of the stages: configurations, parts of a model, pairs of a matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bisect_tool.records import ConfigRun, Report
from bisect_tool.reporters import pairs, selecting, wording
from bisect_tool.reporters.layout import Column, Page, Row, Span, column_widths

TRIALS_IN_TABLE = 8
"""More runs than these that only serve to explain others are counted, not listed."""
STATUS_STYLES = {
    "agrees": "bold green",
    "diverges": "bold red",
    "inconclusive": "bold yellow",
    "perturbed": "bold yellow",
    "failed": "bold red",
    "crashed": "bold red",
    "skipped": "dim",
}
_PAIR_COLUMNS = (
    Column("pair", minimum=16),
    Column("requested", minimum=36, cut="end", drop=5),
    Column("really in effect", minimum=44, cut="end", drop=5),
    Column("rel-L2", right=True),
    Column("worst stage", minimum=20, drop=1),
    Column("output", right=True, drop=4),
    Column("first divergence", minimum=20, drop=5),
    Column("verdict"),
    Column("time", right=True, drop=2),
    Column("memory", right=True, drop=3),
)
_UNDER_THE_PAIR = ("requested", "really in effect", "first divergence")
"""Columns whose words stand in lines of their own where not all columns fit."""


def config_table(page: Page, report: Report) -> None:
    columns = (
        Column("config", minimum=16),
        Column("worst stage", right=True, drop=1),
        Column("output", right=True),
        Column("observer", right=True, drop=2),
        Column("status"),
        Column("effective", minimum=14, cut="end", drop=3),
    )
    page.table(columns, [_config_row(report, config) for config in report.configs])
    if not report.configs:
        page.line(("  no configuration was run", "dim"))
    explanation = selecting.judged_by_outputs(report)
    if explanation:
        page.prose(explanation, indent="  ", style="dim")
    for config in report.configs:
        if config.skipped_reason:
            page.prose(config.skipped_reason, label=(f"{page.clean(config.name)}: ", "dim"), indent="  ")
    if any(not config.gating for config in report.configs):
        page.prose("* explores only: does not count for the exit code", indent="  ", style="dim")
    if report.configs:
        legend = "Relative L2 of the worst stage, the final outputs, and the probes' effect."
        if report.tolerance.rel_l2 is None:
            what = selecting.deciding_text(report.tolerance)
            legend = f"{what.capitalize()} of the worst stage and the final outputs; relative L2 of the probes' effect."
        page.prose(legend, indent="  ", style="dim")


def _config_row(report: Report, config: ConfigRun) -> Row:
    tolerance = report.tolerance
    worst = selecting.worst_row(selecting.stage_rows(report), config.name, tolerance)
    output = selecting.worst_output(config, tolerance)
    cells = (
        config.name + ("" if config.gating else " *"),
        wording.sci(selecting.deciding(worst.results[config.name].total, tolerance) if worst else None),
        wording.sci(selecting.deciding(output.total, tolerance) if output else None),
        wording.sci(config.observer_effect),
        wording.STATUSES[config.status],
        wording.effective_text(config.effective),
    )
    return Row(cells, ((4, STATUS_STYLES[config.status]), (5, "dim")))


def part_table(page: Page, report: Report) -> None:
    config = selecting.main_config(report)
    page.line((f"Parts under {config}" if config is not None else "Parts", "bold"))
    columns = (
        Column("part", minimum=16),
        Column("file", minimum=12, drop=2),
        Column("aligned", right=True, drop=1),
        Column("in", right=True),
        Column("alone", right=True),
        Column("chained", right=True),
        Column("status"),
    )
    entries: list[Row | Span] = []
    first = [stage for stage in report.glue if stage.after is None]
    if first:
        entries.append(Span(f"  PyTorch: {selecting.glue_text(first)}", fold=True))
    for line in selecting.part_lines(report, config):
        part = line.part
        cells = (
            line.name,
            os.path.basename(part.onnx),
            f"{part.aligned} of {part.stages}",
            wording.sci(line.entering),
            wording.sci(line.made),
            wording.sci(line.out),
            wording.STATUSES[line.status],
        )
        entries.append(Row(cells, ((6, STATUS_STYLES[line.status]),)))
        if line.glue:
            entries.append(Span(f"  PyTorch: {selecting.glue_text(line.glue)}", fold=True))
    page.table(columns, entries)
    page.prose(selecting.PARTS_LEGEND, indent="  ", style="dim")


def matrix_table(page: Page, report: Report, all_pairs: bool) -> None:
    page.prose(selecting.matrix_text(report))
    shown = [run for run in report.configs if selecting.has_results(run, report)]
    columns: list[str] = []
    if shown:
        page.line()
        columns = _pair_table(page, report, shown, all_pairs)
    explanation = selecting.judged_by_outputs(report)
    if explanation:
        page.prose(explanation, indent="  ", style="dim")
    missing = selecting.no_answers(report)
    if missing:
        page.line()
    for group in missing:
        _no_answer(page, group)
    if any(not run.gating for run in report.configs):
        page.prose("* explores only: does not count for the exit code", indent="  ", style="dim")
    words = {
        "rel-L2": "of the worst stage",
        "output": "of the final outputs",
        "time": "of one plain run of both sides",
        "memory": "the peak of the pair's process, comparison included",
    }
    legend = "; ".join(f"{title}: {text}" for title, text in words.items() if title in columns)
    if legend:
        page.prose(legend, indent="  ", style="dim")


def _pair_table(page: Page, report: Report, shown: Sequence[ConfigRun], all_pairs: bool) -> list[str]:
    requested = pairs.requested_texts(report)
    trials = [run for run in shown if selecting.is_trial(run, report)]
    own = [run for run in shown if not selecting.is_trial(run, report)]
    counted = [] if all_pairs or len(trials) <= TRIALS_IN_TABLE else trials
    listed = own if counted else [*own, *trials]
    rows = [_pair_row(report, run, requested[run.name]) for run in listed]
    columns: tuple[Column, ...] = _PAIR_COLUMNS
    one_line = None not in column_widths(columns, [row.cells for row in rows], page.width)
    if not one_line:
        keep = [number for number, column in enumerate(columns) if column.title not in _UNDER_THE_PAIR]
        columns = tuple(columns[number] for number in keep)
        rows = [_only(row, keep) for row in rows]
    entries: list[Row | Span] = []
    for number, (run, row) in enumerate(zip(listed, rows, strict=True)):
        if number == len(own):
            entries.append(Span("tried, to explain failing pairs"))
        details = _details(report, run, None if one_line else requested[run.name])
        entries += [row, *(Span(f"    {line}", style, fold=True) for line, style in details)]
    if counted:
        text = f"{wording.plural(len(counted), 'trial')} left out, {selecting.results_text(counted)}"
        entries.append(Span(f"... {text}; --all-stages shows them", fold=True))
    return page.table(columns, entries)


def _pair_row(report: Report, run: ConfigRun, requested: str) -> Row:
    worst = selecting.worst_row(selecting.stage_rows(report), run.name)
    output = selecting.worst_output(run)
    cells = {
        "pair": run.name + ("" if run.gating else " *"),
        "requested": requested,
        "really in effect": pairs.in_effect_text(run),
        "rel-L2": wording.sci(worst.results[run.name].total.rel_l2 if worst else None),
        "worst stage": str(worst.ref) if worst else "-",
        "output": wording.sci(output.total.rel_l2 if output else None),
        "first divergence": selecting.first_divergence(report, run) or "-",
        "verdict": wording.STATUSES[run.status],
        "time": wording.run_time_text(run),
        "memory": f"{run.peak_rss_mb:.0f} MB",
    }
    style = "bold" if run.status == "diverges" else ""
    return Row(tuple(cells[column.title] for column in _PAIR_COLUMNS), ((7, STATUS_STYLES[run.status]),), style)


def _only(row: Row, keep: Sequence[int]) -> Row:
    styles = tuple((keep.index(number), style) for number, style in row.styles)
    return replace(row, cells=tuple(row.cells[number] for number in keep), styles=styles)


def _details(report: Report, run: ConfigRun, requested: str | None) -> Iterator[tuple[str, str]]:
    """Lines under a pair, each with its style; ``requested`` is ``None`` where the columns have it."""
    first = selecting.first_divergence(report, run)
    parts = [f"first divergence: {first}"] if first is not None and requested is not None else []
    made = selecting.made_most(report, run.name) if run.status == "diverges" else ()
    if made:
        parts.append(wording.made_text(made))
    if parts:
        yield "; ".join(parts), ""
    if requested is not None:
        yield f"requested: {requested}; in effect: {pairs.in_effect_text(run)}", "dim"


def _no_answer(page: Page, group: selecting.NoAnswer) -> None:
    label = (f"{wording.STATUSES[group.status]}  ", STATUS_STYLES[group.status])
    names = [run.name + ("" if run.gating else "*") for run in group.runs]
    if len(names) == 1:
        page.prose(f"{names[0]}: {group.reason}", label=label)
    else:
        page.prose(f"{len(names)} pairs: {group.reason}", label=label)
        page.prose(", ".join(names), indent=" " * len(label[0]), style="dim")
