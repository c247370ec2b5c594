"""The report on a terminal: how much was compared, what each configuration gave, stage by stage, and the verdict.

Every mark is text as well as colour, so that a log, a grey print and a screen reader say the same.
"""

from __future__ import annotations

import os
from typing import IO

from rich.console import Console

from bisect_tool.records import Diagnosis, Origin, Report
from bisect_tool.reporters import causes, next_steps, selecting, wording
from bisect_tool.reporters.layout import Column, Page, PipedConsole, Row, Span
from bisect_tool.reporters.terminal.findings import findings
from bisect_tool.reporters.terminal.stages import legend, stage_table
from bisect_tool.reporters.terminal.tables import STATUS_STYLES, config_table, matrix_table, part_table

HEAD_LINES = 4
"""Lines of the verdict's wording that stand at the top, each folded into two at most; below it stands in full."""
HEAD_CAUSES = 2
SCREEN = 18
"""Lines of a page beyond which its end says once more what its beginning said: that may have scrolled away."""
FINDINGS_IN_TABLE = 8
MOST_EXPLORED = 24
"""Rows that are shown a second time, under a pair that only explores; more would bury the first table."""


def print_report(
    report: Report,
    *,
    all_stages: bool = False,
    report_dir: str | os.PathLike[str] | None = None,
    file: IO[str] | None = None,
    width: int | None = None,
) -> Page:
    """Print a report to stdout, or to ``file``. Rich decides about colour (NO_COLOR, FORCE_COLOR, isatty).

    Returns:
        The page, for :func:`name_folder` where the folder is written later.
    """
    return render(report, PipedConsole(file=file, width=width), all_stages=all_stages, report_dir=report_dir)


def render(
    report: Report,
    console: Console,
    *,
    all_stages: bool = False,
    report_dir: str | os.PathLike[str] | None = None,
) -> Page:
    """Print a report.

    Args:
        report: what to print.
        console: where to; its width decides which columns there is room for.
        all_stages: print every row, however many there are.
        report_dir: the report's folder, named in the last line.
    """
    page = Page(console)
    config = selecting.main_config(report)
    cut = _headline(page, report, config)
    page.line()
    if report.samples:
        _samples(page, report)
    if report.chain:
        _chain(page, report)
    page.prose(wording.alignment_text(report.alignment, wording.looked_in(report)))
    page.line()
    if selecting.is_matrix(report):
        matrix_table(page, report, all_stages)
    else:
        config_table(page, report)
    if report.parts:
        page.line()
        part_table(page, report)
    for note in report.notes:
        page.prose(note, label=("note: ", "bold yellow"))
    _preflight(page, report)
    columns: list[str] = []
    for title, rows in (("Stage groups", selecting.group_rows(report)), ("Stages", selecting.stage_rows(report))):
        if rows:
            page.line()
            columns = stage_table(page, report, config, title, rows, all_stages)
    exploratory = selecting.exploratory_config(report)
    few = selecting.group_rows(report) or selecting.stage_rows(report)
    if exploratory is not None and exploratory != config and len(few) <= MOST_EXPLORED:
        page.line()
        columns = stage_table(page, report, exploratory, "Explored: stages", few, all_stages)
    if columns:
        legend(page, report, config, columns, all_stages)
    findings(page, report, config, in_full=cut)
    if page.lines > SCREEN:
        page.line()
        _once_more(page, report)
    if report_dir is not None:
        name_folder(page, report_dir)
    return page


def name_folder(page: Page, report_dir: str | os.PathLike[str]) -> None:
    """Prints the last line: where the report is."""
    if page.lines <= SCREEN:
        page.line()
    page.line(("Report  ", "bold"), os.path.join(report_dir, "index.html"))


def _headline(page: Page, report: Report, config: str | None) -> bool:
    """What somebody reads who reads no further: verdict, place, cause, remedy. Returns whether the wording was cut."""
    verdict = report.verdict
    label = (wording.STATUSES[verdict.status] + "  ", STATUS_STYLES[verdict.status])
    lines = verdict.summary or ("no reason was recorded",)
    cut = page.prose(lines[0], label=label, most=3)
    for line in lines[1:HEAD_LINES]:
        cut |= page.prose(line, indent=" " * len(label[0]), most=2)
    cut |= len(lines) > HEAD_LINES
    causes_found = [each for each in verdict.diagnoses if each.gating]
    origin = _first_origin(report, config, causes_found[0] if causes_found else None)
    if origin is not None:
        nodes = ", ".join(wording.node_texts(origin, 1))
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
        page.prose(f"and {wording.plural(len(causes_found) - HEAD_CAUSES, 'more cause')}, below", style="dim")
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
    tried = f" ({selecting.tried_text(diagnosis)})"
    code = selecting.remedy_code(diagnosis)
    if code is None:
        page.prose(diagnosis.remedy + tried, label=("help: ", "bold green"), indent="  ", most=3)
        return
    page.line(("  help:", "bold green"), tried)
    for line in code[:3]:  # never broken, so that they can be copied
        page.line("      ", line)
    if len(code) > 3:
        page.line((f"      ... {wording.plural(len(code) - 3, 'more line')} below", "dim"))


def _once_more(page: Page, report: Report) -> None:
    """The verdict in two lines at the end of a long page."""
    verdict = report.verdict
    label = (wording.STATUSES[verdict.status] + "  ", STATUS_STYLES[verdict.status])
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
    code = selecting.remedy_code(cause)
    if code is None:
        page.prose(cause.remedy, label=("help: ", "bold green"), indent=" " * len(label[0]), most=2)
        return
    page.line((" " * len(label[0]) + "help:", "bold green"))
    for line in code[:3]:
        page.line("      ", line)


def _preflight(page: Page, report: Report) -> None:
    """What the files told, each in a line of its own."""
    found = causes.findings(report)
    if found:
        page.line()
        page.prose("what both tell without a run", label=("The file beside the model: ", "bold"))
    for each in found[:FINDINGS_IN_TABLE]:
        style = {"fault": "bold red", "suspicion": "bold yellow"}.get(each.severity, "dim")
        page.prose(each.text, label=(f"{each.code} {causes.SEVERITIES[each.severity]}: ", style), indent="  ")
    if len(found) > FINDINGS_IN_TABLE:
        page.prose(f"and {len(found) - FINDINGS_IN_TABLE} more, in the report", indent="  ", style="dim")


def _samples(page: Page, report: Report) -> None:
    """What became of each sample; everything below is about the worst one."""
    worst, marked = selecting.shown_sample(report), selecting.marks_shown(report)
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
            wording.STATUSES[sample.status],
            wording.sci(sample.worst_output),
            wording.ratio(sample.over_limit),
            wording.ratio(sample.noise_ratio),
            str(first.ref) if first is not None else "-",
        )
        rows.append(Row(cells, ((3, STATUS_STYLES[sample.status]),)))
    page.line(("Samples", "bold"))
    page.table(columns, rows)
    what = selecting.deciding_text(report.tolerance)
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
        why = selecting.shown_text(report)
        page.prose(f"{worst.source} (sample {worst.index}), {why}", label=("Shown below: ", "bold"))


def _chain(page: Page, report: Report) -> None:
    columns = (Column("link", minimum=14), Column(""), Column("compared, and what differs", minimum=30, cut="end"))
    styles = {"same": "green", "DIFFERS": "bold red", "harmless": "dim", "unknown": "dim"}
    entries: list[Row | Span] = []
    for link in report.chain:
        for name, status, text in wording.chain_cells(link):
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
