"""Many samples: what became of each, which is the worst, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from bisect_tool.baked import CODE as BAKED
from bisect_tool.metrics import relative_limit
from bisect_tool.records import Diagnosis, ErrorMetrics, Report, SampleResult, StageRow, Tolerance

_RANK = {"agrees": 0, "inconclusive": 1, "diverges": 2}


def sample_result(
    report: Report, index: int, source: str, folder: str, exported_from: int | None, reason: str | None = None
) -> SampleResult:
    """One sample's line, from its own report.

    Args:
        report: of the sample.
        index, source: which sample it is.
        folder: of its report, relative to that of all samples.
        exported_from: index of the sample that the graph was exported with.
        reason: why there is no answer.
    """
    tolerance = report.tolerance
    outputs = [out for run in report.configs if run.gating for out in run.outputs]
    worst = max(outputs, key=lambda out: _badness(_error(out.total, tolerance)), default=None)
    error = _error(worst.total, tolerance) if worst is not None else None
    limit = None
    if worst is not None:
        row = next((row for row in report.stages if row.onnx_value == worst.onnx_value), None)
        limit = _limit(tolerance, row)
    calibrated = worst.limit.ratio if worst is not None and worst.limit is not None else None
    ratios = [o.noise_ratio for o in report.verdict.origins if o.noise_ratio is not None]
    status = report.verdict.status
    if status == "inconclusive" and reason is None:
        reason = report.verdict.summary[0] if report.verdict.summary else None
    return SampleResult(
        index=index,
        source=source,
        status=status,
        worst_output=error,
        over_limit=calibrated if calibrated is not None else error / limit if error is not None and limit else None,
        noise_ratio=max(ratios, default=None),
        first_over_tolerance=report.verdict.first_over_tolerance,
        folder=folder,
        exported_from=exported_from,
        reason=reason,
    )


def _error(metrics: ErrorMetrics, tolerance: Tolerance) -> float:
    """What the tolerance limits; under ``atol`` and ``rtol``, which no single number is, the greatest difference."""
    return metrics.rel_l2 if tolerance.rel_l2 is not None else metrics.max_abs


def _limit(tolerance: Tolerance, row: StageRow | None) -> float | None:
    if tolerance.rel_l2 is not None:
        return relative_limit(row.dtype if row is not None else "float32", tolerance)
    return tolerance.max_abs


def _badness(value: float | None) -> float:
    if value is None:
        return -1.0
    return math.inf if math.isnan(value) else value


def worst_sample(results: Sequence[SampleResult]) -> SampleResult:
    """The sample with the gravest verdict; of those the one that is furthest off, the first if several are.

    Samples that diverge are held against each other by the error of their outputs in units of its limit. Only where that
    does not tell (outputs without a number, or all within their limit) the origins' noise ratio does.
    """
    gravest = max(_RANK[result.status] for result in results)
    left = [result for result in results if _RANK[result.status] == gravest]

    def key(result: SampleResult) -> tuple[float, float, int]:
        error = result.over_limit if result.over_limit is not None else result.worst_output
        return (_badness(error), _badness(result.noise_ratio), -result.index)

    return max(left, key=key)


def sample_lines(results: Sequence[SampleResult], by_values: bool = False) -> tuple[str, ...]:
    """How many samples diverge, whether that depends on the sample, and which is the worst.

    ``by_values``: PyTorch was seen to do the same on samples that agree and on those that diverge.
    """
    count = len(results)
    bad = [result for result in results if result.status == "diverges"]
    open_ = [result for result in results if result.status == "inconclusive"]
    without = f"; {len(open_)} without an answer" if open_ else ""
    if not bad:
        if open_:
            return (f"{count - len(open_)} of {count} samples agree{without}: {sample_name(open_[0])}",)
        worst = worst_sample(results)
        return (f"all {count} samples agree; furthest off is {sample_name(worst)}",)
    worst = worst_sample(bad)
    if len(bad) == count:
        text = f"all {count} samples diverge: this does not depend on the sample"
        stages = dict.fromkeys(str(r.first_over_tolerance.ref) for r in bad if r.first_over_tolerance is not None)
        if len(stages) > 1:
            text += f", but where it starts does ({', '.join([*stages][:3])}{' ...' if len(stages) > 3 else ''})"
    else:
        text = f"{len(bad)} of {count} samples {'diverges' if len(bad) == 1 else 'diverge'}{without}"
        if len(bad) + len(open_) < count:
            text += ": the divergence depends on the sample"
            text += ", by its values (PyTorch runs the same operations on both kinds)" if by_values else ""
    return (f"{text}; the worst is {sample_name(worst)}, shown here",)


def sample_name(result: SampleResult) -> str:
    """``sample 2 (frame.pt)``."""
    return f"sample {result.index} ({PurePath(result.source).name or result.source})"


def report_on_all(
    report: Report,
    results: Sequence[SampleResult],
    diagnoses: Sequence[Diagnosis] = (),
    *,
    by_values: bool = False,
    notes: Sequence[str] = (),
) -> Report:
    """The report on all samples: that of the worst one, with a line on all of them, and what was diagnosed on any.

    ``notes``: what is to be said about other samples than the worst.
    """
    verdict = report.verdict
    known = {(each.code, each.title) for each in verdict.diagnoses}
    more = []
    for each in diagnoses:
        if (each.code, each.title) not in known:
            known.add((each.code, each.title))
            more.append(each)
    summary = (*sample_lines(results, by_values), *verdict.summary)
    verdict = replace(verdict, summary=summary, diagnoses=(*verdict.diagnoses, *more))
    # What one sample rules out for itself, several may show.
    shown = {each.code for each in verdict.diagnoses if each.code == BAKED}
    verdict = replace(verdict, ruled_out=tuple(each for each in verdict.ruled_out if each.code not in shown))
    case = {**report.case, "sample_index": worst_sample(results).index}
    return replace(report, case=case, verdict=verdict, samples=tuple(results), notes=(*report.notes, *notes))
