"""The report on a terminal: how much was compared, what each configuration gave, stage by stage, and the verdict.

Every mark is text as well as colour, so that a log, a grey print and a screen reader say the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import IO, Literal

from rich.console import Console

from bisect_tool.records import Comparison, ConfigRun, Diagnosis, Origin, Report, StageRef, StageRow
from bisect_tool.reporters import common
from bisect_tool.reporters.layout import Column, Page, Row, Span

FULL_TABLE = 24
"""Longer tables are cut down to the rows that matter."""
NEIGHBOURS = 4
EDGE = 3
ORIGINS_IN_TABLE = 5
ORIGINS_IN_DETAIL = 3

_STATUS_STYLES = {
    "agrees": "bold green",
    "diverges": "bold red",
    "inconclusive": "bold yellow",
    "perturbed": "bold yellow",
    "failed": "bold red",
    "skipped": "dim",
}
_JUDGEMENT_STYLES = {"pass": "green", "fail": "bold red", "not compared": "dim"}


class _PipedConsole(Console):
    """rich exits with 1 on a closed pipe, which would read as "divergence"; the command line knows a better code."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_report(
    report: Report,
    *,
    all_stages: bool = False,
    report_dir: str | os.PathLike[str] | None = None,
    file: IO[str] | None = None,
    width: int | None = None,
) -> None:
    """Print a report to stdout, or to ``file``. Rich decides about colour (NO_COLOR, FORCE_COLOR, isatty)."""
    render(report, _PipedConsole(file=file, width=width), all_stages=all_stages, report_dir=report_dir)


def render(
    report: Report,
    console: Console,
    *,
    all_stages: bool = False,
    report_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Print a report.

    Args:
        report: what to print.
        console: where to; its width decides which columns there is room for.
        all_stages: print every row, however many there are.
        report_dir: the report's folder, named in the last line.
    """
    page = Page(console)
    page.prose(common.alignment_text(report.alignment))
    page.line()
    _configs(page, report)
    for note in report.notes:
        page.prose(note, label=("note: ", "bold yellow"))
    config = common.main_config(report)
    columns: list[str] = []
    for title, rows in (("Stage groups", common.group_rows(report)), ("Stages", common.stage_rows(report))):
        if rows:
            page.line()
            columns = _stages(page, report, config, title, rows, all_stages)
    if columns:
        _legend(page, report, config, columns, all_stages)
    page.line()
    _verdict(page, report, config)
    if report_dir is not None:
        page.line()
        page.line(("Report  ", "bold"), os.path.join(report_dir, "index.html"))


# Configurations


def _configs(page: Page, report: Report) -> None:
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
    for config in report.configs:
        if config.skipped_reason:
            page.prose(config.skipped_reason, label=(f"{page.clean(config.name)}: ", "dim"), indent="  ")
    if any(not config.gating for config in report.configs):
        page.prose("* explores only: does not count for the exit code", indent="  ", style="dim")
    if report.configs:
        legend = "Relative L2 of the worst stage, the final outputs, and the probes' effect."
        page.prose(legend, indent="  ", style="dim")


def _config_row(report: Report, config: ConfigRun) -> Row:
    worst = common.worst_row(common.stage_rows(report), config.name)
    output = common.worst_output(config)
    cells = (
        config.name + ("" if config.gating else " *"),
        common.sci(worst.results[config.name].total.rel_l2 if worst else None),
        common.sci(output.total.rel_l2 if output else None),
        common.sci(config.observer_effect),
        common.STATUSES[config.status],
        common.effective_text(config.effective),
    )
    return Row(cells, ((4, _STATUS_STYLES[config.status]), (5, "dim")))


# Stages


def _stages(
    page: Page, report: Report, config: str | None, title: str, rows: Sequence[StageRow], all_stages: bool
) -> list[str]:
    first = common.first_ref(report, config)
    origins = common.origin_refs(report, config)
    tolerance = common.tolerance_text(report.tolerance, sorted({row.dtype for row in rows}))
    page.line((f"{title} under {config}" if config is not None else title, "bold"))
    page.prose(f"tolerance: {tolerance}", style="dim")
    if not all_stages:
        # Folded stages have no numbers; the head line counts them, and --all-stages shows them.
        rows = [row for row in rows if _result(row, config) is not None] or rows
    keep = range(len(rows)) if all_stages else _interesting(rows, config, first, _shown_origins(report, config))
    with_noise = any(r.noise_ratio is not None for row in rows if (r := _result(row, config)))
    columns = (
        Column("  "),  # the marks; as wide without any, so that sub-headers stand over their rows
        Column("stage", minimum=22 if page.width < 100 else 36),
        Column("type", minimum=12, cut="end", drop=5),
        Column("shape", drop=4),
        Column("max abs", right=True, drop=1),
        Column("mean abs", right=True, drop=3),
        Column("rel-L2", right=True),
        Column("local", right=True),
        Column("growth", right=True, drop=2),
        *((Column("noise", right=True, drop=6),) if with_noise else ()),
        Column(""),
    )
    return page.table(columns, list(_entries(rows, set(keep), config, first, origins, with_noise)))


def _result(row: StageRow, config: str | None) -> Comparison | None:
    return row.results.get(config) if config is not None else None


def _shown_origins(report: Report, config: str | None) -> frozenset[StageRef]:
    listed = [origin.ref for origin in report.verdict.origins if origin.config == config]
    return frozenset(listed[:ORIGINS_IN_TABLE])


def _interesting(
    rows: Sequence[StageRow], config: str | None, first: StageRef | None, origins: frozenset[StageRef]
) -> list[int]:
    """Rows worth reading in a long table: both ends, the worst stage, and what lies around the divergence."""
    count = len(rows)
    if count <= FULL_TABLE:
        return list(range(count))
    keep = {*range(EDGE), *range(count - EDGE, count)}
    worst = common.worst_row(rows, config)
    for number, row in enumerate(rows):
        if row.ref == first or row.ref in origins:
            keep.update(range(max(0, number - NEIGHBOURS), min(count, number + NEIGHBOURS + 1)))
        elif row is worst:
            keep.add(number)
    # a gap of one row costs a line either way
    keep.update(number for number in range(1, count - 1) if {number - 1, number + 1} <= keep)
    return sorted(keep)


def _entries(
    rows: Sequence[StageRow],
    keep: set[int],
    config: str | None,
    first: StageRef | None,
    origins: frozenset[StageRef],
    with_noise: bool,
) -> Iterator[Row | Span]:
    group = ""
    left_out: list[StageRow] = []
    for number, row in enumerate(rows):
        if number not in keep:
            left_out.append(row)
            continue
        if left_out:
            yield Span(_left_out_text(left_out, config))
            left_out = []
        if row.group != group:
            group = row.group
            if group:  # rows of the model itself stand where sub-headers do, and need none
                yield Span(f"    {common.printable(group)}")
        yield _stage_row(row, _result(row, config), first, origins, with_noise)
    if left_out:
        yield Span(_left_out_text(left_out, config))


def _left_out_text(rows: Sequence[StageRow], config: str | None) -> str:
    results = [_result(row, config) for row in rows]
    counts = {
        name: sum((result.judgement if result else "not compared") == name for result in results)
        for name in common.JUDGEMENTS
    }
    parts = [f"{count} {common.JUDGEMENTS[name]}" for name, count in counts.items() if count]
    what = ", ".join(parts) if len(parts) > 1 else "all " + parts[0].partition(" ")[2]
    return f"    ... {common.plural(len(rows), 'stage')} left out, {what}; --all-stages shows them"


def _stage_row(
    row: StageRow,
    result: Comparison | None,
    first: StageRef | None,
    origins: frozenset[StageRef],
    with_noise: bool,
) -> Row:
    judgement: Literal["pass", "fail", "not compared"] = result.judgement if result else "not compared"
    mark = (">" if row.ref == first else "") + ("*" if row.ref in origins else "")
    total = result.total if result else None
    numbers = [
        common.sci(total.max_abs if total else None),
        common.sci(total.mean_abs if total else None),
        common.sci(total.rel_l2 if total else None),
        common.sci(common.local_rel(result) if result else None),
        common.ratio(result.growth if result else None),
    ]
    if with_noise:
        numbers.append(common.ratio(result.noise_ratio if result else None))
    indent = "  " if row.group else ""
    cells = (mark, indent + _label(row), row.type, common.shape_text(row.shape), *numbers, common.JUDGEMENTS[judgement])
    note = f"{common.JUDGEMENTS[judgement]}: {total.problem}" if total and total.problem else None
    last = len(cells) - 1
    number_style = "dim" if judgement == "not compared" else ""
    styles = [(0, "bold red"), (last, _JUDGEMENT_STYLES[judgement])]
    if note is not None:
        styles.append((4, _JUDGEMENT_STYLES[judgement]))
    elif judgement == "fail":
        styles.append((6, "red"))
    return Row(cells, tuple(styles), "bold" if mark else number_style, note, note_from=4)


def _label(row: StageRow) -> str:
    """The stage's name under its group's sub-header."""
    text = str(row.ref)
    if row.group and row.stage.startswith(row.group + "."):
        return text[len(row.group) + 1 :]
    if row.group and row.stage.startswith(row.group + "/"):
        return text[len(row.group) :]
    return text


def _legend(page: Page, report: Report, config: str | None, columns: Sequence[str], all_stages: bool) -> None:
    """Explain the marks and the less obvious columns, those only that are on the page."""
    refs = {row.ref for row in report.stages}
    results = [_result(row, config) for row in report.stages]
    marks = []
    if common.first_ref(report, config) in refs:
        marks.append("> first over tolerance")
    if common.origin_refs(report, config) & refs:
        marks.append("* the error is made here")
    without = [result is None or result.judgement == "not compared" for result in results]
    if all(without) or (all_stages and any(without)):
        marks.append("n/c not compared")
    words = []
    if any(result is not None and result.local is not None for result in results):
        words.append("local: error of the stage itself, on PyTorch's inputs")
    if "growth" in columns:
        words.append("growth: out / in")
    if "noise" in columns:
        words.append("noise: local / noise floor")
    for parts in (marks, words):
        if parts:
            page.prose("; ".join(parts), indent="    ", style="dim")


# Verdict


def _verdict(page: Page, report: Report, config: str | None) -> None:
    verdict = report.verdict
    label = (common.STATUSES[verdict.status] + "  ", _STATUS_STYLES[verdict.status])
    lines = verdict.summary or ("no reason was recorded",)
    page.prose(lines[0], label=label)
    for line in lines[1:]:
        page.prose(line, indent=" " * len(label[0]))
    rows = common.rows_by_ref(report)
    here = [origin for origin in verdict.origins if origin.config == config]
    shown = {origin.ref for origin in here}
    first = verdict.first_over_tolerance
    if first is not None and first.ref not in shown:
        page.line()
        _place(page, "first over tolerance", first.ref, rows.get(first.ref), first.config)
    for origin in here[:ORIGINS_IN_DETAIL]:
        page.line()
        _origin(page, origin, rows.get(origin.ref))
    rest = here[ORIGINS_IN_DETAIL:]
    if rest:
        page.line()
        page.prose(common.names_text([origin.ref for origin in rest]), label=("further origins: ", ""))
    for other in dict.fromkeys(origin.config for origin in verdict.origins if origin.config != config):
        refs = [origin.ref for origin in verdict.origins if origin.config == other]
        page.line()
        page.prose(common.names_text(refs), label=(f"origins under {page.clean(other)}: ", ""))
    if verdict.amplifiers:
        page.line()
        names = common.names_text(verdict.amplifiers)
        page.prose(f"{names}: over tolerance, but they only hand the error on", label=("amplifiers: ", ""))
    for diagnosis in verdict.diagnoses:
        page.line()
        _diagnosis(page, diagnosis)
    if verdict.ruled_out:
        page.line()
        for item in verdict.ruled_out:
            page.prose("; ".join((item.title, *item.evidence)), label=(f"ruled out {page.clean(item.code)}: ", "dim"))
    lost = [item for item in report.alignment.unaligned if item.in_graph]
    if lost and verdict.status == "inconclusive":
        page.line()
        for stage in lost[:5]:
            page.prose(stage.reason, label=(f"not aligned {page.clean(stage.ref)}: ", "dim"))
        if len(lost) > 5:
            page.prose(f"and {len(lost) - 5} more")


def _origin(page: Page, origin: Origin, row: StageRow | None) -> None:
    _place(page, "origin", origin.ref, row, origin.config, source=origin.source, kind=origin.type)
    page.line("  onnx: ", common.names_text(origin.onnx_nodes) or "no node")
    page.line("  value: ", origin.onnx_value)
    noise = common.noise_text(origin.noise_ratio, origin.side)
    page.prose(f"made here: relative L2 {common.sci(origin.local_rel_l2)}, {noise}", indent="  ")


def _place(
    page: Page,
    what: str,
    ref: StageRef,
    row: StageRow | None,
    config: str,
    *,
    source: str | None = None,
    kind: str | None = None,
) -> None:
    kind = kind or (row.type if row else None)
    page.line((f"{what} ", "bold red"), (str(ref), "bold"), f" ({kind})" if kind else "", f" under {config}")
    source = source or (row.source if row else None)
    if source:
        page.line(("  --> ", "bold blue"), source)
    result = row.results.get(config) if row else None
    if result is not None:
        for line in common.worst_element_lines(result.total):
            page.prose(line, indent="  ")


def _diagnosis(page: Page, diagnosis: Diagnosis) -> None:
    page.line((diagnosis.code, "bold"), f" {diagnosis.title}")
    for number, line in enumerate(diagnosis.evidence):
        page.prose(line, label=("evidence: " if number == 0 else "          ", ""), indent="  ")
    tried = {True: " (tried: it removes the divergence)", False: " (tried: it does not help)", None: " (not tried)"}
    page.prose(diagnosis.remedy + tried[diagnosis.remedy_verified], label=("help: ", "bold green"), indent="  ")
    if diagnosis.cost:
        page.prose(diagnosis.cost, label=("cost: ", ""), indent="  ")
