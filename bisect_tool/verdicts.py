"""The verdict in words, the same in every reporter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bisect_tool.localize import localize
from bisect_tool.records import (
    Alignment,
    ConfigRun,
    FirstOverTolerance,
    Localization,
    Origin,
    OutputResult,
    StageRow,
    Status,
    Verdict,
)

LISTED = 5
"""Origins that the verdict's wording names, the first in causal order."""

LARGE_GROWTH = 10.0
"""An error that grew by less inside a stage came in, as far as the stage makes none of its own."""


def decide(
    rows: Sequence[StageRow],
    runs: Sequence[ConfigRun],
    alignment: Alignment,
    min_coverage: float,
    *,
    selected: bool = False,
) -> Verdict:
    """What all runs together say: a gating run that diverges decides, and nothing compared never reads as agreement.

    Args:
        rows, runs, alignment: of the report.
        min_coverage: share of stages that must be aligned.
        selected: the user asked for certain stages; then the final outputs alone are no answer.
    """
    judged = [row for row in rows if row.results and row.role != "group"]
    diverging = [run for run in runs if run.gating and run.status == "diverges"]
    found = Localization(None, (), ())
    for run in diverging:
        found = localize(judged, run.name)
        if found.first_over_tolerance is not None:
            break
    if not diverging:
        # A tolerance decides the verdict, and hides nothing: what rounding does not explain is named all the same.
        for run in runs:
            if run.gating and run.status == "agrees" and not found.origins:
                found = replace(localize(judged, run.name), first_over_tolerance=None, amplifiers=())
    status: Status
    covered = not selected if alignment.coverage is None else alignment.coverage >= min_coverage
    whole = not _not_compared(runs)
    if diverging:
        status = "diverges"
    elif not covered or not whole or not _all_agree(runs) or not _anything_passes(judged, runs):
        status = "inconclusive"
    else:
        status = "agrees"
    summary = summarize_verdict(status, found, runs, alignment, rows, min_coverage)
    return Verdict(status, summary, found.first_over_tolerance, found.origins, found.amplifiers)


def _all_agree(runs: Sequence[ConfigRun]) -> bool:
    """Those that count; what was skipped, since nobody asked for it by name and it can't run here, does not."""
    counting = [run for run in runs if run.gating and run.status != "skipped"]
    return bool(counting) and all(run.status == "agrees" for run in counting)


def _not_compared(runs: Sequence[ConfigRun]) -> list[OutputResult]:
    """Outputs without an answer; only of runs that count. An empty tensor has none to give."""
    outputs = [out for run in runs if run.gating for out in run.outputs]
    return [out for out in outputs if out.judgement == "not compared" and out.total.count]


def _anything_passes(rows: Sequence[StageRow], runs: Sequence[ConfigRun]) -> bool:
    """Whether a single number was compared in a run that counts: empty tensors agree with everything."""
    names = {run.name for run in runs if run.gating}
    outputs = any(out.judgement == "pass" for run in runs if run.gating for out in run.outputs)
    return outputs or any(row.results[name].judgement == "pass" for row in rows for name in names & row.results.keys())


def summarize_verdict(
    status: Status,
    found: Localization,
    runs: Sequence[ConfigRun],
    alignment: Alignment,
    rows: Sequence[StageRow],
    min_coverage: float,
) -> tuple[str, ...]:
    """One to a few plain lines: what was found, where it begins, and where the error is made."""
    if status == "agrees":
        lines = [_agreement(runs, alignment, rows), *_nonfinite_lines(runs)]
        if found.origins:
            why = "too little SQNR in" if _is_quantised(rows) else "rounding does not explain:"
            lines.append(f"within your tolerance, {why} " + _listed(found.origins))
        return tuple(lines)
    if status == "inconclusive":
        return (_inconclusive(runs, alignment, min_coverage),)
    lines = []
    first = found.first_over_tolerance
    diverging = [run.name for run in runs if run.gating and run.status == "diverges"]
    if first is not None:
        lines.append(f"first diverging stage: {first.ref} ({first.config}); diverging: {', '.join(diverging)}")
    elif wrong := _wrong_outputs(runs):
        lines.append(f"the final outputs diverge under {', '.join(diverging)} after the last stage: {wrong}")
    else:
        lines.append(
            f"the final outputs diverge under {', '.join(diverging)}, and no exposed stage does: "
            "exposing values hides what happens between them"
        )
    if found.origins:
        lines.append("error is made in: " + _listed(found.origins))
    elif first is not None and _comes_from_outside(first, rows):
        lines.append(
            f"the error comes into the selection from before {first.ref}: widen --stages, or judge all with --level leaf"
        )
    elif first is not None and _is_quantised(rows):
        lines.append("no stage by itself costs more than it may: their errors add up, or grow (see the column growth)")
    elif first is not None and _is_measured(rows, first.config):
        lines.append(
            "no stage makes more error than rounding does: it grows from stage to stage (see the column growth)"
        )
    elif first is not None:
        lines.append("where the error is made was not measured under this configuration")
    if found.amplifiers:
        count = len(found.amplifiers)
        lines.append(
            f"{count} {'stage diverges' if count == 1 else 'stages diverge'} with errors handed on from before"
        )
    return tuple(lines)


def _listed(origins: Sequence[Origin]) -> str:
    """The first origins, and the strongest one wherever it is."""
    text = ", ".join(_made(origin) for origin in origins[:LISTED])
    rest = origins[LISTED:]
    if rest:
        text += f" and {len(rest)} more"
        strongest = max(origins, key=lambda origin: origin.local_rel_l2)
        if strongest in rest:
            text += f", the strongest of all in {_made(strongest)}"
    return text


def _is_measured(rows: Sequence[StageRow], config: str) -> bool:
    """Whether local errors are known under a configuration."""
    return any(config in row.results and row.results[config].local is not None for row in rows)


def _is_quantised(rows: Sequence[StageRow]) -> bool:
    """Whether stages are judged by SQNR, since the graph is quantised and the model is not."""
    return any(result.quantised is not None for row in rows for result in row.results.values())


def _comes_from_outside(first: FirstOverTolerance, rows: Sequence[StageRow]) -> bool:
    """Whether most of a stage's error came in, through inputs that no stage of the report stands for."""
    results = (row.results.get(first.config) for row in rows if row.ref == first.ref and row.role != "group")
    result = next(results, None)
    if result is None or result.outside_error is None:
        return False
    return not result.outside_error < result.total.rel_l2 / LARGE_GROWTH


def _wrong_outputs(runs: Sequence[ConfigRun]) -> str:
    """Outputs that differ in shape or dtype, or that differ where nothing is fused: no inner stage is to blame."""
    parts = []
    for run in runs:
        for output in run.outputs if run.gating else ():
            if output.judgement == "fail" and (output.total.problem or run.actual.optimization == "off"):
                parts.append(f"{output.output} ({output.total.problem or f'relative L2 {output.total.rel_l2:.1e}'})")
    return ", ".join(dict.fromkeys(parts))


def kept_stages_line(kept: Verdict) -> str:
    """What the export that keeps stages apart adds to a divergence of the default export."""
    if kept.status == "agrees":
        return "an export with stages kept apart agrees: the exporter's own optimisation makes the difference"
    if kept.origins:
        return "an export with stages kept apart makes it in: " + ", ".join(_made(o) for o in kept.origins[:LISTED])
    if kept.first_over_tolerance is not None:
        return f"an export with stages kept apart first diverges at {kept.first_over_tolerance.ref}"
    return "an export with stages kept apart gave no answer"


def _made(origin: Origin) -> str:
    side = {"expected": ", PyTorch is off", "actual": "", None: ""}[origin.side]
    return f"{origin.ref} (local {origin.local_rel_l2:.1e}{side})"


def _agreement(runs: Sequence[ConfigRun], alignment: Alignment, rows: Sequence[StageRow]) -> str:
    worst = 0.0
    name = ""
    agreeing = [run.name for run in runs if run.gating and run.status == "agrees"]
    for row in rows:
        for result in (row.results[name] for name in agreeing if name in row.results):
            if result.total.rel_l2 > worst:
                worst, name = result.total.rel_l2, str(row.ref)
    where = f"; worst relative L2 {worst:.1e} at {name}" if name else ""
    configs = ", ".join(agreeing)
    count = alignment.aligned
    stages = "" if not count else "the compared stage and " if count == 1 else f"all {count} compared stages and "
    return f"{stages}the final outputs agree under {configs}{where}"


def _nonfinite_lines(runs: Sequence[ConfigRun]) -> list[str]:
    """Outputs that agree and hold what is no number: nobody should read past that."""
    return list(
        dict.fromkeys(
            f"but output {out.output} holds {out.total.nonfinite_expected} NaN or infinite values of "
            f"{out.total.count}, the same on both sides"
            for run in runs
            for out in run.outputs
            if run.gating and out.total.nonfinite_expected and out.judgement == "pass"
        )
    )


def _inconclusive(runs: Sequence[ConfigRun], alignment: Alignment, min_coverage: float) -> str:
    if alignment.coverage is None and (_all_agree(runs) or not runs):
        return "nothing was compared: no stage that was asked for has a value in the graph"
    if alignment.coverage is not None and alignment.coverage < min_coverage:
        return f"only {alignment.coverage:.0%} of the stages could be aligned, {min_coverage:.0%} are asked for"
    uncompared = _not_compared(runs)
    if _all_agree(runs) and not uncompared:
        return "nothing was compared: every tensor is empty"
    missing = dict.fromkeys(str(out.output) for out in uncompared if not out.onnx_value)
    empty = dict.fromkeys(str(out.output) for out in uncompared if out.onnx_value)
    if missing:
        return f"not compared: the graph has nothing for the model's output {', '.join(missing)}"
    if empty:
        outputs = "output" if len(empty) == 1 else "outputs"
        return f"{outputs} {', '.join(empty)}: nothing but NaN or infinite values on both sides, no number to compare"
    troubled = ", ".join(
        f"{run.name} {run.status}: {run.skipped_reason or ''}".rstrip(": ")
        for run in runs
        if run.gating and run.status not in ("agrees", "skipped")
    )
    agreeing = sum(run.gating and run.status == "agrees" for run in runs)
    if agreeing and troubled:
        verb = "configuration agrees" if agreeing == 1 else "configurations agree"
        return f"{agreeing} {verb}, and not all gave an answer: {troubled}"
    return f"no configuration gave an answer: {troubled or 'none ran'}"
