"""Which configuration, stages and rows a report shows, and which of them count most."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bisect_tool.records import (
    ConfigRun,
    ConfigStatus,
    Diagnosis,
    ErrorMetrics,
    GlueStage,
    Origin,
    OutputResult,
    PartResult,
    Report,
    SampleResult,
    StageRef,
    StageRow,
    Status,
    Tolerance,
)
from bisect_tool.reporters import wording


def main_config(report: Report) -> str | None:
    """The configuration whose stages are shown: the first gating one that diverges, else the first gating one.

    A configuration without any stage result has nothing to show, and is taken only if none has. Of a matrix's pairs
    that agree the one without optimisation is taken: there alone the stages' own errors are measured.
    """
    seen = {name for row in report.stages for name in row.results}
    first = report.verdict.first_over_tolerance
    matrix = is_matrix(report)

    def rank(config: ConfigRun) -> tuple[bool, ...]:
        if not matrix:
            return (config.name not in seen, not config.gating, config.status != "diverges")
        diverges = config.gating and config.status == "diverges"
        located = first is not None and first.config == config.name
        plain = config.actual.optimization == "off"
        return (config.name not in seen, not diverges, not located, not config.gating, not plain)

    return min(report.configs, key=rank).name if report.configs else None


def exploratory_config(report: Report) -> str | None:
    """The first pair that diverges without counting for the exit code, if none that counts does: what would happen."""
    if any(config.gating and config.status == "diverges" for config in report.configs):
        return None
    seen = {name for row in report.stages for name in row.results}
    diverging = (c.name for c in report.configs if c.status == "diverges" and c.name in seen and "-try-" not in c.name)
    return next(diverging, None)


def shown_sample(report: Report) -> SampleResult | None:
    """Of several samples the one that the rest of the report is about."""
    source = report.case.get("sample_index")
    return next((sample for sample in report.samples if sample.index == source), None)


def shown_text(report: Report) -> str:
    """Why that sample is shown: ``the worst``, where any of them is not as it should be."""
    return "furthest off; all agree" if _all_agree(report) else "the worst"


def marks_shown(report: Report) -> bool:
    """Whether one of the samples stands out."""
    return not _all_agree(report)


def _all_agree(report: Report) -> bool:
    return all(sample.status == "agrees" for sample in report.samples)


def stage_rows(report: Report) -> tuple[StageRow, ...]:
    """The rows of the stage table proper, those that count for the verdict."""
    return tuple(row for row in report.stages if row.role != "group")


def group_rows(report: Report) -> tuple[StageRow, ...]:
    """Containers that the user asked for beside the stages."""
    return tuple(row for row in report.stages if row.role == "group")


def rows_by_ref(report: Report) -> dict[StageRef, StageRow]:
    """Rows by name; where a container is a group and counts as well, the row that counts."""
    return {row.ref: row for row in (*group_rows(report), *stage_rows(report))}


def origin_refs(report: Report, config: str | None) -> frozenset[StageRef]:
    """Stages where the error is made under ``config``."""
    return frozenset(origin.ref for origin in report.verdict.origins if origin.config == config)


def first_ref(report: Report, config: str | None) -> StageRef | None:
    """The first diverging stage, if it was found under ``config``."""
    first = report.verdict.first_over_tolerance
    return first.ref if first is not None and first.config == config else None


def worst_row(rows: Sequence[StageRow], config: str | None, tolerance: Tolerance | None = None) -> StageRow | None:
    """The stage with the largest error, relative or by what a tolerance limits; NaN is worse than any number."""
    if config is None:
        return None
    compared = [row for row in rows if config in row.results and row.results[config].judgement != "not compared"]
    return max(compared, key=lambda row: badness(_error(row.results[config].total, tolerance)), default=None)


def worst_output(config: ConfigRun, tolerance: Tolerance | None = None) -> OutputResult | None:
    """The final output with the largest error, relative or by what a tolerance limits."""
    return max(config.outputs, key=lambda output: badness(_error(output.total, tolerance)), default=None)


def _error(metrics: ErrorMetrics, tolerance: Tolerance | None) -> float:
    return metrics.rel_l2 if tolerance is None else deciding(metrics, tolerance)


def deciding_text(tolerance: Tolerance) -> str:
    """What :func:`deciding` gives, in words."""
    return "relative L2" if tolerance.rel_l2 is not None else "largest absolute difference"


def deciding(metrics: ErrorMetrics, tolerance: Tolerance) -> float:
    """The error that the tolerance in force limits: relative L2, or the largest absolute difference."""
    return metrics.rel_l2 if tolerance.rel_l2 is not None else metrics.max_abs


def badness(value: float) -> float:
    """A sort key: NaN counts as infinite, for nothing is known about such an error."""
    return math.inf if math.isnan(value) else value


def first_divergence(report: Report, config: ConfigRun) -> str | None:
    """The first stage that fails under a configuration, or the first final output that does."""
    for row in stage_rows(report):
        if config.name in row.results and row.results[config.name].judgement == "fail":
            return str(row.ref)
    failing = (output for output in config.outputs if output.judgement == "fail")
    return next((f"final output {output.output}" for output in failing), None)


def judged_by_outputs(report: Report) -> str | None:
    """Why optimised configurations agree beside another one that diverges with the same numbers; ``None`` if none does."""
    gating = [run for run in report.configs if run.gating]
    located = {
        (run.expected, run.actual.device)
        for run in gating
        if run.status == "diverges" and run.actual.optimization == "off"
    }
    names = [
        run.name
        for run in gating
        if run.status == "agrees" and run.outputs and run.actual.optimization not in (None, "off")
        if (run.expected, run.actual.device) in located
    ]
    if not names:
        return None
    its = "its" if len(names) == 1 else "their"
    return (
        f"{wording.names_text(names)}: judged by {its} final outputs, which are within the limit; "
        "stages are judged with optimisation off"
    )


LEAST_SHARE = 0.001
"""Of the final error; stages that make less of it are not named."""


def made_most(report: Report, config: str, limit: int = 3) -> tuple[tuple[StageRef, float], ...]:
    """The stages that make the largest shares of the final error, the largest first; () where none was measured.

    Shares that would read as nothing are left out.
    """
    results = [(row.ref, row.results[config]) for row in stage_rows(report) if config in row.results]
    # What was not run on PyTorch's inputs has not been seen to make anything.
    shares = [(ref, r.share) for ref, r in results if r.share and r.share >= LEAST_SHARE and r.local is not None]
    return tuple(sorted(shares, key=lambda item: -item[1])[:limit])


def shows_shares(report: Report, config: str | None) -> bool:
    """Whether it is worth a column where the error is made: something diverges, and the shares were measured."""
    if report.verdict.status != "diverges" and all(run.status != "diverges" for run in report.configs):
        return False
    results = [row.results[config] for row in report.stages if config is not None and config in row.results]
    return any(result.share is not None for result in results)


# Parts


@dataclass(frozen=True)
class PartLine:
    """A part in one call, under the configuration that is shown; errors are relative L2, of the worst output.

    ``glue``: stages that PyTorch computes behind it.
    """

    part: PartResult
    name: str
    status: ConfigStatus | Status
    entering: float | None
    made: float | None
    out: float | None
    glue: tuple[GlueStage, ...]


def part_lines(report: Report, config: str | None) -> list[PartLine]:
    """The parts in the order in which they are called first; one without an answer has no numbers."""
    lines = []
    for part in report.parts:
        glue = tuple(stage for stage in report.glue if stage.after == part.part)
        runs = [call for call in part.runs if call.config == config]
        if not runs:
            lines.append(PartLine(part, part.part, part.status, None, None, None, glue))
        for number, call in enumerate(runs):
            last = number == len(runs) - 1
            name = part.part if call.call == 0 else f"{part.part}@{call.call}"
            made = [badness(out.local.rel_l2) for out in call.outputs]
            totals = [badness(out.total.rel_l2) for out in call.outputs if out.total is not None]
            lines.append(
                PartLine(
                    part,
                    name,
                    part.status if part.status == "inconclusive" else call.status,
                    call.input_error,
                    max(made, default=None),
                    max(totals, default=None),
                    glue if last else (),
                )
            )
    return lines


def glue_text(stages: Sequence[GlueStage]) -> str:
    """``scatter (Scatter), /mul#0 (mul)``: what PyTorch computes in one place, each stage once."""
    names = dict.fromkeys(f"{stage.ref.stage or '(model)'} ({stage.type})" for stage in stages)
    return wording.names_text(list(names), 4)


PARTS_LEGEND = (
    "Relative L2 of the worst output. in: of what the chain feeds the part; alone: of its outputs on PyTorch's inputs; "
    "chained: of its outputs in the chain. Lines that begin with PyTorch: computed by PyTorch on both sides, not compared."
)
_TRIAL = re.compile(r"(.+)-try-[0-9]+")
_SWITCH_CODES = "BD3"
"""Codes whose remedy is code: the lines that set switches."""


@dataclass(frozen=True)
class NoAnswer:
    """Pairs that gave no answer for one and the same reason."""

    status: ConfigStatus
    reason: str
    runs: tuple[ConfigRun, ...]


def is_matrix(report: Report) -> bool:
    """Whether the pairs ran one by one, or differ in more than the optimisation of one graph on one PyTorch run.

    A plain report has one PyTorch side, one export and no switches; what ONNX Runtime does with it may differ.
    """
    runs = report.configs
    if any(f"pair {run.name}" in report.timings for run in runs):  # each was a step of the run
        return True
    if any(run.expected.switches or run.actual.switches for run in runs):
        return True
    return len({(run.expected, replace(run.actual, device="", optimization=None)) for run in runs}) > 1


def is_trial(run: ConfigRun, report: Report) -> bool:
    """Whether a pair is not the matrix's own, but ran to explain one of its pairs, which its name begins with."""
    of = _TRIAL.fullmatch(run.name)
    return of is not None and not run.gating and any(of[1] == other.name for other in report.configs)


def has_results(run: ConfigRun, report: Report) -> bool:
    """Whether there is anything to show about a pair beside its reason."""
    return bool(run.outputs) or any(run.name in row.results for row in report.stages)


def no_answers(report: Report) -> list[NoAnswer]:
    """Pairs that were skipped, failed, crashed or were perturbed, those with one reason together."""
    found: dict[tuple[ConfigStatus, str], list[ConfigRun]] = {}
    for run in report.configs:
        if run.skipped_reason or run.status not in ("agrees", "diverges"):
            reason = " ".join((run.skipped_reason or "no reason was recorded").split())
            found.setdefault((run.status, reason), []).append(run)
    return [NoAnswer(status, reason, tuple(runs)) for (status, reason), runs in found.items()]


def matrix_text(report: Report) -> str:
    """How many pairs ran, with which result, and how many of them count, in one sentence."""
    own = [run for run in report.configs if not is_trial(run, report)]
    trials = len(report.configs) - len(own)
    # What was skipped counts for nothing.
    gating = sum(run.gating and run.status != "skipped" for run in own)
    count = f"{gating} of them {'counts' if gating == 1 else 'count'}" if gating < len(own) else "all count"
    text = f"{wording.plural(len(own), 'pair')}: {results_text(own)}; {count} for the exit code"
    return f"{text}; {trials} more tried to explain failing ones." if trials else f"{text}."


def results_text(runs: Sequence[ConfigRun]) -> str:
    """``3 agree, 1 diverges, 2 skipped``."""
    verbs = {"agrees": ("agrees", "agree"), "diverges": ("diverges", "diverge")}
    return ", ".join(
        f"{count} {verbs[status][count > 1] if status in verbs else word.lower()}"
        for status, word in wording.STATUSES.items()
        if (count := sum(run.status == status for run in runs))
    )


def separation_text(report: Report) -> str | None:
    """What can be said about failing and passing pairs where no switch was found that separates them."""
    statuses = {run.status for run in report.configs}
    switches = any(each.code.startswith(_SWITCH_CODES) for each in report.verdict.diagnoses)
    if switches or "diverges" not in statuses:
        return None
    if "agrees" not in statuses:
        return "No pair agrees: no switch of this matrix removes the divergence."
    return "No switch was found that makes a failing pair agree."


def remedy_code(diagnosis: Diagnosis) -> tuple[str, ...] | None:
    """The remedy as lines of code to copy; ``None`` where it is a sentence."""
    lines = tuple(line for line in diagnosis.remedy.splitlines() if line.strip())
    return lines if len(lines) > 1 or (lines and diagnosis.code.startswith(_SWITCH_CODES)) else None


def tried_text(diagnosis: Diagnosis) -> str:
    """Whether the remedy was tried, and what came of it."""
    if diagnosis.remedy_verified is None and any(line.startswith("tried in ") for line in diagnosis.evidence):
        return "tried: the stage is right then, but another part of it may be what is wrong"
    if diagnosis.remedy_verified is None:
        return "not tried"
    if diagnosis.origin is not None and diagnosis.remedy_verified and not diagnosis.code.startswith(_SWITCH_CODES):
        return "tried: the stage is right then"
    return "tried: it removes the divergence" if diagnosis.remedy_verified else "tried: it does not help"


def is_emulation(diagnosis: Diagnosis) -> bool:
    """Whether a switch is blamed that only emulates what a GPU would do."""
    return "-emulated" in diagnosis.title


HEAT_LEVELS = 8
"""Shades of the heat table, from an error of 1e-7 and less to 1 and more."""


def heat_level(rel_l2: float) -> int:
    """The shade of a relative error: 0 for none at all, one more for each factor of ten; NaN has the last."""
    if rel_l2 == 0:
        return 0
    if not rel_l2 < 1:
        return HEAT_LEVELS
    return max(1, HEAT_LEVELS + math.floor(math.log10(rel_l2)))


def dtypes_under(report: Report, config: str | None, rows: Sequence[StageRow]) -> list[str]:
    """Dtypes of rows as they are under a configuration, each of them once.

    Rows of a matrix are those of one pair; another one may run the model in another precision, or parts of it.
    """
    found = Counter(row.dtype for row in rows)
    run = next((run for run in report.configs if run.name == config), None)
    if run is None or not is_matrix(report):
        return sorted(found)
    usual = max((dtype for dtype in found if "float" in dtype), key=lambda dtype: found[dtype], default=None)
    own = run.expected.dtype or usual
    names = {own if dtype == usual and own is not None else dtype for dtype in found}
    autocast = run.expected.switches.get("autocast", "off")
    return sorted(names if autocast == "off" else {*names, str(autocast)})


def strongest(origins: Sequence[Origin]) -> Origin | None:
    """The origin with the largest local error."""
    return max(origins, key=lambda origin: badness(origin.local_rel_l2), default=None)
