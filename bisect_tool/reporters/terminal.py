"""The report on a terminal: how much was compared, what each configuration gave, stage by stage, and the verdict.

Every mark is text as well as colour, so that a log, a grey print and a screen reader say the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Literal

from rich.console import Console

from bisect_tool.records import Comparison, ConfigRun, Diagnosis, Origin, Report, StageRef, StageRow
from bisect_tool.reporters import causes, common, next_steps, pairs
from bisect_tool.reporters.layout import Column, Page, Row, Span, column_widths

FULL_TABLE = 24
"""Longer tables are cut down to the rows that matter."""
AGREEING_TABLE = 8
"""The same where all agree: then few rows say all."""
HEAD_LINES = 4
"""Lines of the verdict's wording that stand at the top, each folded into two at most; below it stands in full."""
HEAD_CAUSES = 2
SCREEN = 18
"""Lines of a page beyond which its end says once more what its beginning said: that may have scrolled away."""
NEIGHBOURS = 4
EDGE = 3
ORIGINS_IN_TABLE = 5
COSTS_IN_TABLE = 3
ORIGINS_IN_DETAIL = 3
NODES_IN_DETAIL = 3
FINDINGS_IN_TABLE = 8
TRIALS_IN_TABLE = 8
"""More runs than these that only serve to explain others are counted, not listed."""
SHARES_FROM = 120
"""Narrower terminals have no room for where the error is made."""

_STATUS_STYLES = {
    "agrees": "bold green",
    "diverges": "bold red",
    "inconclusive": "bold yellow",
    "perturbed": "bold yellow",
    "failed": "bold red",
    "crashed": "bold red",
    "skipped": "dim",
}
_JUDGEMENT_STYLES = {"pass": "green", "fail": "bold red", "not compared": "dim"}


class PipedConsole(Console):
    """rich exits with 1 on a closed pipe, which would read as "divergence"; the command line knows a better code."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


MOST_EXPLORED = 24
"""Rows that are shown a second time, under a pair that only explores; more would bury the first table."""


def print_report(
    report: Report,
    *,
    all_stages: bool = False,
    report_dir: str | os.PathLike[str] | None = None,
    file: IO[str] | None = None,
    width: int | None = None,
) -> None:
    """Print a report to stdout, or to ``file``. Rich decides about colour (NO_COLOR, FORCE_COLOR, isatty)."""
    render(report, PipedConsole(file=file, width=width), all_stages=all_stages, report_dir=report_dir)


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
    config = common.main_config(report)
    cut = _headline(page, report, config)
    page.line()
    if report.samples:
        _samples(page, report)
    if report.chain:
        _chain(page, report)
    page.prose(common.alignment_text(report.alignment, common.looked_in(report)))
    page.line()
    if common.is_matrix(report):
        _pairs(page, report, all_stages)
    else:
        _configs(page, report)
    if report.parts:
        page.line()
        _parts(page, report)
    for note in report.notes:
        page.prose(note, label=("note: ", "bold yellow"))
    _preflight(page, report)
    columns: list[str] = []
    for title, rows in (("Stage groups", common.group_rows(report)), ("Stages", common.stage_rows(report))):
        if rows:
            page.line()
            columns = _stages(page, report, config, title, rows, all_stages)
    exploratory = common.exploratory_config(report)
    few = common.group_rows(report) or common.stage_rows(report)
    if exploratory is not None and exploratory != config and len(few) <= MOST_EXPLORED:
        page.line()
        columns = _stages(page, report, exploratory, "Explored: stages", few, all_stages)
    if columns:
        _legend(page, report, config, columns, all_stages)
    _findings(page, report, config, in_full=cut)
    if page.lines > SCREEN:
        page.line()
        _once_more(page, report)
    if report_dir is not None:
        if page.lines <= SCREEN:
            page.line()
        page.line(("Report  ", "bold"), os.path.join(report_dir, "index.html"))


# The verdict, first and last


def _headline(page: Page, report: Report, config: str | None) -> bool:
    """What somebody reads who reads no further: verdict, place, cause, remedy. Returns whether the wording was cut."""
    verdict = report.verdict
    label = (common.STATUSES[verdict.status] + "  ", _STATUS_STYLES[verdict.status])
    lines = verdict.summary or ("no reason was recorded",)
    cut = page.prose(lines[0], label=label, most=3)
    for line in lines[1:HEAD_LINES]:
        cut |= page.prose(line, indent=" " * len(label[0]), most=2)
    cut |= len(lines) > HEAD_LINES
    causes_found = [each for each in verdict.diagnoses if each.gating]
    origin = _first_origin(report, config, causes_found[0] if causes_found else None)
    if origin is not None:
        nodes = ", ".join(common.node_texts(origin, 1))
        where = f"{origin.source}  " if origin.source else ""
        text = f"{where}{origin.ref} ({origin.type})" + (f"; onnx: {nodes}" if nodes else "")
        page.prose(text, label=("  --> ", "bold blue"), most=2)
    for number, each in enumerate(causes_found[:HEAD_CAUSES]):
        following = causes_found[number + 1 : HEAD_CAUSES]
        _cause_in_short(page, each, several=len(causes_found) > 1)
        # One remedy for both is said once.
        if not any((other.remedy, other.remedy_verified) == (each.remedy, each.remedy_verified) for other in following):
            _remedy_in_short(page, each)
    if len(causes_found) > HEAD_CAUSES:
        page.prose(f"and {common.plural(len(causes_found) - HEAD_CAUSES, 'more cause')}, below", style="dim")
    if not causes_found:
        step = next_steps.next_step(report)
        if step is not None:
            page.prose(step, label=("help: ", "bold green"), indent="  ")
    return cut


def _first_origin(report: Report, config: str | None, cause: Diagnosis | None) -> Origin | None:
    """The origin that the first cause explains, else the first one under the configuration that is shown."""
    here = [origin for origin in report.verdict.origins if origin.config == config]
    explained = [origin for origin in here if cause is not None and origin.ref == cause.origin]
    return next(iter([*explained, *here]), None)


def _cause_in_short(page: Page, diagnosis: Diagnosis, *, several: bool) -> None:
    where = f", at {diagnosis.origin}" if several and diagnosis.origin is not None else ""
    page.prose(diagnosis.title + where, label=(f"{diagnosis.code} ", "bold"), most=2)


def _remedy_in_short(page: Page, diagnosis: Diagnosis) -> None:
    tried = f" ({common.tried_text(diagnosis)})"
    code = common.remedy_code(diagnosis)
    if code is None:
        page.prose(diagnosis.remedy + tried, label=("help: ", "bold green"), indent="  ", most=3)
        return
    page.line(("  help:", "bold green"), tried)
    for line in code[:3]:  # never broken, so that they can be copied
        page.line("      ", line)
    if len(code) > 3:
        page.line((f"      ... {common.plural(len(code) - 3, 'more line')} below", "dim"))


def _once_more(page: Page, report: Report) -> None:
    """The verdict in two lines at the end of a long page."""
    verdict = report.verdict
    label = (common.STATUSES[verdict.status] + "  ", _STATUS_STYLES[verdict.status])
    lines = verdict.summary or ("no reason was recorded",)
    page.prose(lines[0], label=label, most=2)
    cause = next((each for each in verdict.diagnoses if each.gating), None)
    if cause is None:
        # Of two recordings the remedy is a line of the verdict.
        said = (line.removeprefix("help: ") for line in verdict.summary[1:] if line.startswith("help: "))
        step = next_steps.next_step(report) or next(said, None)
        if step is not None:
            page.prose(step, label=("help: ", "bold green"), indent=" " * len(label[0]))
        return
    page.prose(cause.title, label=(f"{cause.code} ", "bold"), indent=" " * len(label[0]), most=1)
    code = common.remedy_code(cause)
    if code is None:
        page.prose(cause.remedy, label=("help: ", "bold green"), indent=" " * len(label[0]), most=2)
        return
    page.line((" " * len(label[0]) + "help:", "bold green"))
    for line in code[:3]:
        page.line("      ", line)


# Before the run


def _preflight(page: Page, report: Report) -> None:
    """What the files told, each in a line of its own."""
    found = causes.findings(report)
    if found:
        page.line()
        page.line(("Before the run", "bold"), ": the file beside the model")
    for each in found[:FINDINGS_IN_TABLE]:
        style = {"fault": "bold red", "suspicion": "bold yellow"}.get(each.severity, "dim")
        page.prose(each.text, label=(f"{each.code} {causes.SEVERITIES[each.severity]}: ", style), indent="  ")
    if len(found) > FINDINGS_IN_TABLE:
        page.prose(f"and {len(found) - FINDINGS_IN_TABLE} more, in the report", indent="  ", style="dim")


# Samples


def _samples(page: Page, report: Report) -> None:
    """What became of each sample; everything below is about the worst one."""
    worst, marked = common.shown_sample(report), common.marks_shown(report)
    columns = (
        Column("  "),
        Column("#", right=True),
        Column("sample", minimum=16),
        Column("verdict"),
        Column("output", right=True),
        Column("of limit", right=True, drop=1),
        Column("noise", right=True, drop=2),
        Column("first diverging stage", minimum=20),
    )
    rows = []
    for sample in report.samples:
        first = sample.first_over_tolerance
        cells = (
            "> " if marked and sample is worst else "  ",
            str(sample.index),
            os.path.basename(sample.source) or sample.source,
            common.STATUSES[sample.status],
            common.sci(sample.worst_output),
            common.ratio(sample.over_limit),
            common.ratio(sample.noise_ratio),
            str(first.ref) if first is not None else "-",
        )
        rows.append(Row(cells, ((3, _STATUS_STYLES[sample.status]),)))
    page.line(("Samples", "bold"))
    page.table(columns, rows)
    what = common.deciding_text(report.tolerance)
    page.prose(
        f"output: {what} of the worst final output; of limit: in units of its limit; noise: the worst origin, in units "
        "of its noise floor",
        indent="  ",
        style="dim",
    )
    for sample in report.samples:
        if sample.reason is not None and sample is not worst:
            page.prose(sample.reason, label=(f"sample {sample.index}: ", "dim"), indent="  ")
    page.line()
    if worst is not None:
        why = common.shown_text(report)
        page.prose(f"{worst.source} (sample {worst.index}), {why}", label=("Shown below: ", "bold"))


# The chain of two recordings


def _chain(page: Page, report: Report) -> None:
    columns = (Column("link", minimum=14), Column(""), Column("compared, and what differs", minimum=30, cut="end"))
    styles = {"same": "green", "DIFFERS": "bold red", "harmless": "dim", "unknown": "dim"}
    entries: list[Row | Span] = []
    for link in report.chain:
        for name, status, text in common.chain_cells(link):
            if name:
                # A row is one line; what it has no room for gets lines of its own.
                text, _, rest = text.partition("; ")
                entries.append(Row((name, status, text), ((1, styles[status]),)))
                if rest:
                    entries.append(Span(f"    {rest}", fold=True))
            else:
                entries.append(Span(f"    {text}", fold=True))
    page.line(("The chain, in causal order", "bold"))
    page.table(columns, entries)
    page.line()


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
    explanation = common.judged_by_outputs(report)
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
            what = common.deciding_text(report.tolerance)
            legend = f"{what.capitalize()} of the worst stage and the final outputs; relative L2 of the probes' effect."
        page.prose(legend, indent="  ", style="dim")


def _config_row(report: Report, config: ConfigRun) -> Row:
    tolerance = report.tolerance
    worst = common.worst_row(common.stage_rows(report), config.name, tolerance)
    output = common.worst_output(config, tolerance)
    cells = (
        config.name + ("" if config.gating else " *"),
        common.sci(common.deciding(worst.results[config.name].total, tolerance) if worst else None),
        common.sci(common.deciding(output.total, tolerance) if output else None),
        common.sci(config.observer_effect),
        common.STATUSES[config.status],
        common.effective_text(config.effective),
    )
    return Row(cells, ((4, _STATUS_STYLES[config.status]), (5, "dim")))


# Parts


def _parts(page: Page, report: Report) -> None:
    config = common.main_config(report)
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
        entries.append(Span(f"  PyTorch: {common.glue_text(first)}", fold=True))
    for line in common.part_lines(report, config):
        part = line.part
        cells = (
            line.name,
            os.path.basename(part.onnx),
            f"{part.aligned} of {part.stages}",
            common.sci(line.entering),
            common.sci(line.made),
            common.sci(line.out),
            common.STATUSES[line.status],
        )
        entries.append(Row(cells, ((6, _STATUS_STYLES[line.status]),)))
        if line.glue:
            entries.append(Span(f"  PyTorch: {common.glue_text(line.glue)}", fold=True))
    page.table(columns, entries)
    page.prose(common.PARTS_LEGEND, indent="  ", style="dim")


# Pairs of a matrix


def _pairs(page: Page, report: Report, all_pairs: bool) -> None:
    page.prose(common.matrix_text(report))
    shown = [run for run in report.configs if common.has_results(run, report)]
    columns: list[str] = []
    if shown:
        page.line()
        columns = _pair_table(page, report, shown, all_pairs)
    explanation = common.judged_by_outputs(report)
    if explanation:
        page.prose(explanation, indent="  ", style="dim")
    missing = common.no_answers(report)
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


def _pair_table(page: Page, report: Report, shown: Sequence[ConfigRun], all_pairs: bool) -> list[str]:
    requested = pairs.requested_texts(report)
    trials = [run for run in shown if common.is_trial(run, report)]
    own = [run for run in shown if not common.is_trial(run, report)]
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
        text = f"{common.plural(len(counted), 'trial')} left out, {common.results_text(counted)}"
        entries.append(Span(f"... {text}; --all-stages shows them", fold=True))
    return page.table(columns, entries)


def _pair_row(report: Report, run: ConfigRun, requested: str) -> Row:
    worst = common.worst_row(common.stage_rows(report), run.name)
    output = common.worst_output(run)
    cells = {
        "pair": run.name + ("" if run.gating else " *"),
        "requested": requested,
        "really in effect": pairs.in_effect_text(run),
        "rel-L2": common.sci(worst.results[run.name].total.rel_l2 if worst else None),
        "worst stage": str(worst.ref) if worst else "-",
        "output": common.sci(output.total.rel_l2 if output else None),
        "first divergence": common.first_divergence(report, run) or "-",
        "verdict": common.STATUSES[run.status],
        "time": common.run_time_text(run),
        "memory": f"{run.peak_rss_mb:.0f} MB",
    }
    style = "bold" if run.status == "diverges" else ""
    return Row(tuple(cells[column.title] for column in _PAIR_COLUMNS), ((7, _STATUS_STYLES[run.status]),), style)


def _only(row: Row, keep: Sequence[int]) -> Row:
    styles = tuple((keep.index(number), style) for number, style in row.styles)
    return replace(row, cells=tuple(row.cells[number] for number in keep), styles=styles)


def _details(report: Report, run: ConfigRun, requested: str | None) -> Iterator[tuple[str, str]]:
    """Lines under a pair, each with its style; ``requested`` is ``None`` where the columns have it."""
    first = common.first_divergence(report, run)
    parts = [f"first divergence: {first}"] if first is not None and requested is not None else []
    made = common.made_most(report, run.name) if run.status == "diverges" else ()
    if made:
        parts.append(common.made_text(made))
    if parts:
        yield "; ".join(parts), ""
    if requested is not None:
        yield f"requested: {requested}; in effect: {pairs.in_effect_text(run)}", "dim"


def _no_answer(page: Page, group: common.NoAnswer) -> None:
    label = (f"{common.STATUSES[group.status]}  ", _STATUS_STYLES[group.status])
    names = [run.name + ("" if run.gating else "*") for run in group.runs]
    if len(names) == 1:
        page.prose(f"{names[0]}: {group.reason}", label=label)
    else:
        page.prose(f"{len(names)} pairs: {group.reason}", label=label)
        page.prose(", ".join(names), indent=" " * len(label[0]), style="dim")


# Stages


def _stages(
    page: Page, report: Report, config: str | None, title: str, rows: Sequence[StageRow], all_stages: bool
) -> list[str]:
    first = common.first_ref(report, config)
    origins = common.origin_refs(report, config)
    dtypes = common.dtypes_under(report, config, rows)
    tolerance = common.tolerance_text(report.tolerance, dtypes, floors=common.has_floors(report))
    page.line((f"{title} under {config}" if config is not None else title, "bold"))
    by = "tolerance:" if report.tolerance.source == "user" else "judged by"
    page.prose(f"{by} {tolerance}", style="dim")
    if not all_stages:
        # Folded stages have no numbers; the head line counts them, and --all-stages shows them.
        rows = [row for row in rows if _result(row, config) is not None] or rows
    if report.chain and rows and not all_stages and all(_is_equal(row, config) for row in rows):
        count = "the one stage is" if len(rows) == 1 else f"all {len(rows)} stages are"
        page.prose(f"{count} equal; --all-stages shows {'it' if len(rows) == 1 else 'them'}", indent="    ")
        return []
    # Containers are there because the user asked for them.
    asked = all(row.level == "container" for row in rows)
    full = AGREEING_TABLE if report.verdict.status == "agrees" and not asked else FULL_TABLE
    origins_shown = _shown_origins(report, config)
    keep = range(len(rows)) if all_stages else _interesting(rows, config, first, origins_shown, full)
    with_noise = any(r.noise_ratio is not None for row in rows if (r := _result(row, config)))
    with_sqnr = any(r.quantised is not None for row in rows if (r := _result(row, config)))
    with_share = with_sqnr or (page.width >= SHARES_FROM and common.shows_shares(report, config))
    with_amplification = common.is_matrix(report) and any(
        result.amplification is not None for row in rows if (result := _result(row, config))
    )
    columns = (
        Column("  "),  # the marks; as wide without any, so that sub-headers stand over their rows
        Column("stage", minimum=20 if page.width < 100 else 36),
        Column("type", minimum=12, cut="end", drop=5),
        Column("shape", drop=3),
        Column("max abs", right=True, drop=8 if with_sqnr else 1),
        Column("mean abs", right=True, drop=8 if with_sqnr else 4),
        *((Column("SQNR", right=True), Column("by itself", right=True)) if with_sqnr else ()),
        Column("rel-L2", right=True, drop=7 if with_sqnr else 0),
        # Two recordings have no model to run a stage by itself.
        *(() if report.chain else (Column("local", right=True, drop=7 if with_sqnr else 0),)),
        *((Column("made here", right=True, drop=1 if with_sqnr else 7),) if with_share else ()),
        Column("growth", right=True, drop=2),
        *((Column("amplified", right=True, drop=4),) if with_amplification else ()),
        *((Column("noise", right=True, drop=0 if report.chain else 6),) if with_noise else ()),
        Column(""),
    )
    extra = _Extra(with_noise, with_share, with_amplification, with_sqnr, not report.chain)
    return page.table(columns, list(_entries(rows, set(keep), config, first, origins, extra)))


@dataclass(frozen=True, slots=True)
class _Extra:
    """Columns that not every table has."""

    noise: bool
    share: bool
    amplification: bool
    sqnr: bool = False
    local: bool = True


def _is_equal(row: StageRow, config: str | None) -> bool:
    """Whether both sides hold the same numbers; of what was not compared nobody knows."""
    result = _result(row, config)
    return result is not None and result.judgement == "pass" and result.total.rel_l2 == 0 and not result.total.differing


def _result(row: StageRow, config: str | None) -> Comparison | None:
    return row.results.get(config) if config is not None else None


def _shown_origins(report: Report, config: str | None) -> frozenset[StageRef]:
    listed = [origin.ref for origin in report.verdict.origins if origin.config == config]
    dear = [cost.ref for cost in report.verdict.costs[:COSTS_IN_TABLE] if cost.config == config]
    return frozenset([*listed[:ORIGINS_IN_TABLE], *dear])


def _interesting(
    rows: Sequence[StageRow], config: str | None, first: StageRef | None, origins: frozenset[StageRef], full: int
) -> list[int]:
    """Rows worth reading in a table of more than ``full``: both ends, the worst stage, what lies around the divergence."""
    count = len(rows)
    if count <= full:
        return list(range(count))
    edge = EDGE if full >= FULL_TABLE else 1
    keep = {*range(edge), *range(count - edge, count)}
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
    extra: _Extra,
) -> Iterator[Row | Span]:
    group = ""
    part: str | None = None
    left_out: list[StageRow] = []
    for number, row in enumerate(rows):
        if row.part != part:
            if left_out:
                yield Span(_left_out_text(left_out, config), fold=True)
                left_out = []
            part, group = row.part, ""
            yield Span(f"  part {common.printable(part)}, on PyTorch's inputs", "")
        if number not in keep:
            left_out.append(row)
            continue
        if left_out:
            yield Span(_left_out_text(left_out, config), fold=True)
            left_out = []
        if row.group != group:
            group = row.group
            if group:  # rows of the model itself stand where sub-headers do, and need none
                yield Span(f"    {common.printable(group)}")
        yield _stage_row(row, _result(row, config), first, origins, extra)
    if left_out:
        yield Span(_left_out_text(left_out, config), fold=True)


def _decibels(result: Comparison | None) -> tuple[str, str]:
    """A quantised stage in dB: in the graph's own run, and by itself."""
    quality = result.quantised if result else None
    return (
        common.decibels(result.total.sqnr_db if result else None),
        common.decibels(quality.local_sqnr_db if quality else None),
    )


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
    extra: _Extra,
) -> Row:
    judgement: Literal["pass", "fail", "not compared"] = result.judgement if result else "not compared"
    mark = (">" if row.ref == first else "") + ("*" if row.ref in origins else "")
    total = result.total if result else None
    whole = None if total is None or common.is_estimate(total) else total
    numbers = [
        common.sci(whole.max_abs if whole else None),
        common.sci(whole.mean_abs if whole else None),
        *(_decibels(result) if extra.sqnr else ()),
        common.sci(total.rel_l2 if total else None),
        *((common.sci(common.local_rel(result) if result else None),) if extra.local else ()),
        *((common.share_text(result.share if result else None),) if extra.share else ()),
        common.ratio(result.growth if result else None),
        *((common.ratio(result.amplification if result else None),) if extra.amplification else ()),
    ]
    if extra.noise:
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
        marks.append("> first diverging stage")
    if common.origin_refs(report, config) & refs:
        marks.append("* the error is made here")
    without = [result is None or result.judgement == "not compared" for result in results]
    if all(without) or (all_stages and any(without)):
        marks.append("n/c not compared")
    words = []
    if "local" in columns and any(result is not None and result.local is not None for result in results):
        words.append("local: error of the stage itself, on PyTorch's inputs")
    if "by itself" in columns:
        words.append("SQNR, by itself: in dB, in the graph's run and on PyTorch's inputs")
    if "made here" in columns:
        words.append("made here: share of the final error")
    if "growth" in columns:
        words.append("growth: out / in")
    if "amplified" in columns:
        words.append("amplified: handed on / in")
    if "noise" in columns:
        words.append(f"noise: {'error' if report.chain else 'local'} / noise floor")
    for parts in (marks, words):
        if parts:
            page.prose("; ".join(parts), indent="    ", style="dim")


# Verdict


def _findings(page: Page, report: Report, config: str | None, *, in_full: bool) -> None:
    """Everything that led to the verdict; ``in_full``: its own words too, as the top of the page has them cut."""
    verdict = report.verdict
    if in_full:
        page.line()
        page.line(("The verdict in full", "bold"))
        for line in verdict.summary:
            page.prose(line, label=("- ", ""), indent="  ")
    _places(page, report, config)
    if common.is_matrix(report):
        _separation(page, report)
    _causes(page, report)
    lost = [item for item in report.alignment.unaligned if item.in_graph]
    if lost and verdict.status == "inconclusive":
        page.line()
        for stage in lost[:5]:
            page.prose(stage.reason, label=(f"not aligned {page.clean(stage.ref)}: ", "dim"))
        if len(lost) > 5:
            page.prose(f"and {len(lost) - 5} more")


def _places(page: Page, report: Report, config: str | None) -> None:
    """Where it shows first, where error is made, and which stages hand it on."""
    verdict = report.verdict
    rows = common.rows_by_ref(report)
    here = [origin for origin in verdict.origins if origin.config == config]
    shown = {origin.ref for origin in here}
    first = verdict.first_over_tolerance
    if first is not None and first.ref not in shown:
        page.line()
        _place(page, "first diverging stage", first.ref, rows.get(first.ref), first.config)
    strongest = common.strongest(here)
    detailed = [*here[:ORIGINS_IN_DETAIL], *(origin for origin in here[ORIGINS_IN_DETAIL:] if origin is strongest)]
    for origin in detailed:
        page.line()
        _origin(page, report, origin, rows.get(origin.ref), here)
    rest = [origin for origin in here if origin not in detailed]
    if rest:
        page.line()
        page.prose(common.names_text([origin.ref for origin in rest]), label=("further origins: ", ""))
    for other in dict.fromkeys(origin.config for origin in verdict.origins if origin.config != config):
        refs = [origin.ref for origin in verdict.origins if origin.config == other]
        page.line()
        page.prose(common.names_text(refs), label=(f"origins under {page.clean(other)}: ", ""))
    if verdict.hand_over is not None:
        page.line()
        page.prose(common.hand_over_text(verdict.hand_over), label=("second witness: ", ""))
    if verdict.amplifiers:
        page.line()
        names = common.names_text(verdict.amplifiers)
        page.prose(
            f"{names}: diverge by error handed on from before (amplifiers where growth > 1)",
            label=("handed on: ", ""),
        )


def _causes(page: Page, report: Report) -> None:
    """Why, what else was considered, and what was ruled out."""
    verdict = report.verdict
    # What only explores has its line in the summary.
    for diagnosis in (each for each in verdict.diagnoses if each.gating):
        page.line()
        _diagnosis(page, diagnosis)
    for diagnosis in (each for each in verdict.diagnoses if common.is_emulation(each) and not each.gating):
        page.line()
        _lines_for_a_gpu(page, diagnosis)
    _ledger(page, report)
    if verdict.hypotheses:
        page.line()
        _hypotheses(page, report)
    if verdict.ruled_out:
        page.line()
        for item in verdict.ruled_out:
            page.prose("; ".join((item.title, *item.evidence)), label=(f"ruled out {page.clean(item.code)}: ", "dim"))


def _origin(page: Page, report: Report, origin: Origin, row: StageRow | None, origins: Sequence[Origin]) -> None:
    runner = common.runner_text(report, origin.config)
    _place(page, "origin", origin.ref, row, origin.config, source=origin.source, kind=origin.type)
    if origin.part is not None:
        file = next((part.onnx for part in report.parts if part.part == origin.part), "-")
        page.prose(f"{origin.part} ({file})", label=("part: ", ""), indent="  ")
    page.prose(", ".join(common.node_texts(origin, NODES_IN_DETAIL)) or "no node", label=("onnx: ", ""), indent="  ")
    page.line("  value: ", origin.onnx_value)
    if origin.onnx_weights:
        names = common.names_text(common.weight_texts(origin, origins))
        page.prose(names, label=("weights: ", ""), indent="  ")
    for text in common.detail_texts(origin):
        page.prose(text, indent="  ", style="dim")
    if origin.operation:
        page.line("  PyTorch's operation: ", origin.operation)
    for text in origin.evidence:
        page.prose(text, indent="  ", style="dim")
    if origin.replay:
        page.prose("in the report's folder:", label=("replay: ", ""), indent="  ")
        page.line("    ", f"python {origin.replay}/run.py")
    result = row.results.get(origin.config) if row else None
    if result is not None and result.quantised is not None:
        quality = result.quantised
        wanted = f"at least {quality.limit_db:g} dB are wanted"
        page.prose(f"made here: SQNR {common.decibels(quality.local_sqnr_db)} dB by itself, {wanted}", indent="  ")
        return
    noise = common.noise_text(origin.noise_ratio, origin.side, runner)
    page.prose(f"made here: relative L2 {common.sci(origin.local_rel_l2)}, {noise}", indent="  ")
    if origin.witness is not None:
        page.prose(common.witness_text(origin.witness, runner), label=("third witness: ", ""), indent="  ")


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
    page.prose(f"{ref}{f' ({kind})' if kind else ''} under {config}", label=(f"{what} ", "bold red"), style="bold")
    source = source or (row.source if row else None)
    if source:
        page.line(("  --> ", "bold blue"), source)
    result = row.results.get(config) if row else None
    # A stage that passes while it is looked at has nothing to show: its optimised run is wrong when nobody does.
    if result is not None and (result.local is not None or result.judgement != "pass"):
        for line in common.worst_element_lines(result.total, result.spread):
            page.prose(line, indent="  ")


def _separation(page: Page, report: Report) -> None:
    """The head over the diagnoses of a matrix, or why there are none."""
    text = common.separation_text(report)
    if text or any(each.gating for each in report.verdict.diagnoses) or report.verdict.ruled_out:
        page.line()
        page.line(("What separates failing from passing pairs", "bold"))
    if text:
        page.prose(text)


def _hypotheses(page: Page, report: Report) -> None:
    """What was tried, one switch at a time, and what came of it."""
    suspect, tried, pair, error, back, time, conclusion = pairs.HYPOTHESIS_COLUMNS
    columns = (
        Column(suspect, minimum=16),
        Column(tried, minimum=14, drop=2),
        Column(pair, minimum=10, drop=1),
        Column(error),
        Column(back, drop=4),
        Column(time, right=True, drop=3),
        Column(conclusion),
    )
    page.line(("Hypotheses", "bold"), ": one switch at a time, error before -> after")
    styles = {"culprit": "bold red", "contributes": "yellow"}
    last = len(columns) - 1
    page.table(
        columns,
        [
            Row(pairs.hypothesis_cells(item), ((last, styles[item.conclusion]),) if item.conclusion in styles else ())
            for item in report.verdict.hypotheses
        ],
        indent=2,
    )


def _ledger(page: Page, report: Report) -> None:
    """What was tried for the first origins, by cause; the report has each change by itself."""
    columns = (
        Column("code"),
        Column("cause", minimum=16, cut="end"),
        Column("tried", right=True),
        Column("error left", right=True, drop=1),
        Column("conclusion"),
    )
    styles = {"cause": "bold red", "contributes": "yellow"}
    for trials in causes.trials(report)[:ORIGINS_IN_DETAIL]:
        page.line()
        page.line(("Tried", "bold"), f" in {trials.where}, error {common.sci(trials.before)} before")
        rows = [
            Row(
                (row.code, causes.title(row.code), causes.count_text(row), common.sci(row.best), row.conclusion),
                ((4, styles[row.conclusion]),) if row.conclusion in styles else (),
            )
            for row in trials.hypotheses
        ]
        page.table(columns, rows, indent=2)


def _lines_for_a_gpu(page: Page, diagnosis: Diagnosis) -> None:
    """What keeps a GPU from doing what was emulated, though nothing here counts."""
    text = f"on a GPU these lines keep both libraries from it ({diagnosis.title}; not tried):"
    page.prose(text, label=("help: ", "bold green"))
    for line in common.remedy_code(diagnosis) or ():
        page.line("      ", line)


def _diagnosis(page: Page, diagnosis: Diagnosis) -> None:
    page.line((diagnosis.code, "bold"), f" {diagnosis.title}")
    for number, line in enumerate(diagnosis.evidence):
        page.prose(line, label=("evidence: " if number == 0 else "          ", ""), indent="  ")
    tried = f" ({common.tried_text(diagnosis)})"
    code = common.remedy_code(diagnosis)
    if code is None:
        page.prose(diagnosis.remedy + tried, label=("help: ", "bold green"), indent="  ")
    else:
        page.line(("  help:", "bold green"), tried)
        for line in code:  # never broken, so that they can be copied
            page.line("      ", line)
    if diagnosis.cost:
        page.prose(diagnosis.cost, label=("cost: ", ""), indent="  ")
