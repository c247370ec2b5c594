"""What led to the verdict: where, why, and what was ruled out."""

from __future__ import annotations

from collections.abc import Sequence

from bisect_tool.records import Diagnosis, Origin, Report, StageRef, StageRow
from bisect_tool.reporters import causes, pairs, selecting, wording
from bisect_tool.reporters.layout import Column, Page, Row

ORIGINS_IN_DETAIL = 3
NODES_IN_DETAIL = 3


def findings(page: Page, report: Report, config: str | None, *, in_full: bool) -> None:
    """Everything that led to the verdict; ``in_full``: its own words too, as the top of the page has them cut."""
    verdict = report.verdict
    if in_full:
        page.line()
        page.line(("The verdict in full", "bold"))
        for line in verdict.summary:
            page.prose(line, label=("- ", ""), indent="  ")
    _places(page, report, config)
    if selecting.is_matrix(report):
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
    rows = selecting.rows_by_ref(report)
    here = [origin for origin in verdict.origins if origin.config == config]
    shown = {origin.ref for origin in here}
    first = verdict.first_over_tolerance
    if first is not None and first.ref not in shown:
        page.line()
        _place(page, "first diverging stage", first.ref, rows.get(first.ref), first.config)
    strongest = selecting.strongest(here)
    detailed = [*here[:ORIGINS_IN_DETAIL], *(origin for origin in here[ORIGINS_IN_DETAIL:] if origin is strongest)]
    for origin in detailed:
        page.line()
        _origin(page, report, origin, rows.get(origin.ref), here)
    rest = [origin for origin in here if origin not in detailed]
    if rest:
        page.line()
        page.prose(wording.names_text([origin.ref for origin in rest]), label=("further origins: ", ""))
    for other in dict.fromkeys(origin.config for origin in verdict.origins if origin.config != config):
        refs = [origin.ref for origin in verdict.origins if origin.config == other]
        page.line()
        page.prose(wording.names_text(refs), label=(f"origins under {page.clean(other)}: ", ""))
    if verdict.hand_over is not None:
        page.line()
        page.prose(wording.hand_over_text(verdict.hand_over), label=("second witness: ", ""))
    if verdict.amplifiers:
        page.line()
        names = wording.names_text(verdict.amplifiers)
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
    for diagnosis in (each for each in verdict.diagnoses if selecting.is_emulation(each) and not each.gating):
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
    runner = wording.runner_text(report, origin.config)
    _place(page, "origin", origin.ref, row, origin.config, source=origin.source, kind=origin.type)
    if origin.part is not None:
        file = next((part.onnx for part in report.parts if part.part == origin.part), "-")
        page.prose(f"{origin.part} ({file})", label=("part: ", ""), indent="  ")
    page.prose(", ".join(wording.node_texts(origin, NODES_IN_DETAIL)) or "no node", label=("onnx: ", ""), indent="  ")
    page.line("  value: ", origin.onnx_value)
    if origin.onnx_weights:
        names = wording.names_text(wording.weight_texts(origin, origins))
        page.prose(names, label=("weights: ", ""), indent="  ")
    for text in wording.detail_texts(origin):
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
        page.prose(f"made here: SQNR {wording.decibels(quality.local_sqnr_db)} dB by itself, {wanted}", indent="  ")
        return
    noise = wording.noise_text(origin.noise_ratio, origin.side, runner)
    page.prose(f"made here: relative L2 {wording.sci(origin.local_rel_l2)}, {noise}", indent="  ")
    if origin.witness is not None:
        page.prose(wording.witness_text(origin.witness, runner), label=("third witness: ", ""), indent="  ")


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
        for line in wording.worst_element_lines(result.total, result.spread):
            page.prose(line, indent="  ")


def _separation(page: Page, report: Report) -> None:
    """The head over the diagnoses of a matrix, or why there are none."""
    text = selecting.separation_text(report)
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
        page.prose(f"in {trials.where}, error {wording.sci(trials.before)} before", label=("Tried ", "bold"))
        rows = [
            Row(
                (row.code, causes.title(row.code), causes.count_text(row), wording.sci(row.best), row.conclusion),
                ((4, styles[row.conclusion]),) if row.conclusion in styles else (),
            )
            for row in trials.hypotheses
        ]
        page.table(columns, rows, indent=2)


def _lines_for_a_gpu(page: Page, diagnosis: Diagnosis) -> None:
    """What keeps a GPU from doing what was emulated, though nothing here counts."""
    text = f"on a GPU these lines keep both libraries from it ({diagnosis.title}; not tried):"
    page.prose(text, label=("help: ", "bold green"))
    for line in selecting.remedy_code(diagnosis) or ():
        page.line("      ", line)


def _diagnosis(page: Page, diagnosis: Diagnosis) -> None:
    page.line((diagnosis.code, "bold"), f" {diagnosis.title}")
    for number, line in enumerate(diagnosis.evidence):
        page.prose(line, label=("evidence: " if number == 0 else "          ", ""), indent="  ")
    tried = f" ({selecting.tried_text(diagnosis)})"
    code = selecting.remedy_code(diagnosis)
    if code is None:
        page.prose(diagnosis.remedy + tried, label=("help: ", "bold green"), indent="  ")
    else:
        page.line(("  help:", "bold green"), tried)
        for line in code:  # never broken, so that they can be copied
            page.line("      ", line)
    if diagnosis.cost:
        page.prose(diagnosis.cost, label=("cost: ", ""), indent="  ")
