"""What fails in a report, one line each: for logs, test reports and annotations, which have no room for tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from bisect_tool.calibration.calibrated import limit_text
from bisect_tool.judging import makes_error
from bisect_tool.metrics import kind_of_name, relative_limit
from bisect_tool.records import (
    Agreement,
    Comparison,
    ConfigRun,
    ErrorMetrics,
    Origin,
    OutputResult,
    Report,
    StageRow,
    Tolerance,
    UserMetric,
)
from bisect_tool.reporters import wording


@dataclass(frozen=True, slots=True)
class FailingStage:
    """A stage that fails under a configuration that counts.

    Attributes:
        name: of the stage.
        config: the first one under which it fails.
        why: what is over which limit, in words.
        row: of the report.
        origin: error is made here; ``None``: it only comes through.
    """

    name: str
    config: str
    why: str
    row: StageRow
    origin: Origin | None

    @property
    def place(self) -> str:
        """Where it is: ``model.py:17 (Conv2d)``."""
        return f"{self.row.source} ({self.row.type})" if self.row.source else self.row.type


def counting_runs(report: Report) -> list[ConfigRun]:
    """Configurations that decide the exit code."""
    return [run for run in report.configs if run.gating]


def stages_count(run: ConfigRun) -> bool:
    """Whether a configuration is judged by its stages too; with optimisation on it is by its final outputs alone."""
    return run.actual.optimization == "off" or not run.outputs


def counting_rows(report: Report, run: ConfigRun) -> Iterator[tuple[StageRow, Comparison]]:
    """The stages that a configuration is judged by, in the order of PyTorch's computation."""
    if stages_count(run):
        for row in report.stages:
            result = row.results.get(run.name)
            if row.role != "group" and result is not None:
                yield row, result


def failing_stages(report: Report) -> list[FailingStage]:
    """Each once, in the order of PyTorch's computation."""
    origins = {origin.ref: origin for origin in report.verdict.origins}
    found: dict[int, FailingStage] = {}
    for run in counting_runs(report):
        for row, result in counting_rows(report, run):
            if result.judgement == "fail" and row.index not in found:
                why = why_stage(row, result, report.tolerance)
                found[row.index] = FailingStage(str(row.ref), run.name, why, row, origins.get(row.ref))
    return [found[index] for index in sorted(found)]


def failing_outputs(report: Report) -> list[tuple[ConfigRun, OutputResult]]:
    """Final outputs that fail under a configuration that counts."""
    return [(run, out) for run in counting_runs(report) for out in run.outputs if out.judgement == "fail"]


def failing_metrics(report: Report) -> list[UserMetric]:
    """Numbers of the user's own that are over their limits."""
    return [metric for metric in report.user_metrics if metric.judgement == "fail"]


def why_stage(row: StageRow, result: Comparison, tolerance: Tolerance) -> str:
    """What is over which limit: ``rel_l2 4.8e-02, limit 1.0e-05 (x4800)``."""
    if result.limit is not None:
        return _broken(result.total) or limit_text(result.limit)
    if tolerance.source in ("default", "calibrated") and result.local is not None and makes_error(row, result):
        own = _broken(result.local) or f"own error {wording.sci(result.local.rel_l2)}"
        if result.noise_ratio is None:
            return f"{own}, more than rounding"
        return f"{own} ({wording.ratio(result.noise_ratio)} x noise floor)"
    return why_metrics(result.total, row.dtype, tolerance)


def why_output(out: OutputResult, report: Report) -> str:
    """The same for a final output."""
    if out.limit is not None:
        return _broken(out.total) or limit_text(out.limit)
    row = next((row for row in report.stages if row.onnx_value == out.onnx_value), None)
    return why_metrics(out.total, row.dtype if row is not None else "float32", report.tolerance)


def why_metrics(total: ErrorMetrics, dtype: str, tolerance: Tolerance) -> str:
    """What one tensor's error is held against where no table has a limit for it."""
    broken = _broken(total)
    if broken:
        return broken
    if tolerance.max_abs is not None:
        return f"max abs {_beside(total.max_abs, tolerance.max_abs)}"
    if tolerance.atol is not None:
        limits = f"atol {wording.sci(tolerance.atol)}, rtol {wording.sci(tolerance.rtol)}"
        return f"max abs {wording.sci(total.max_abs)} at {total.worst_index}, beyond {limits}"
    if tolerance.min_sqnr is not None:
        return f"SQNR {total.sqnr_db:.1f} dB, least {tolerance.min_sqnr:g} dB"
    if kind_of_name(dtype) == "integer":
        return f"{total.differing} of {total.count} whole numbers differ"
    if tolerance.rel_l2 is None:
        return f"relative L2 {wording.sci(total.rel_l2)}"
    return f"relative L2 {_beside(total.rel_l2, relative_limit(dtype, tolerance))}"


def _beside(value: float, limit: float) -> str:
    """A number and its limit, with as many digits as tell them apart."""
    digits = next((n for n in range(1, 8) if f"{value:.{n}e}" != f"{limit:.{n}e}"), 1)
    number = wording.sci(value) if digits == 1 else f"{value:.{digits}e}"
    return f"{number}, limit {wording.sci(limit)}"


def _broken(metrics: ErrorMetrics) -> str | None:
    """Why two tensors can't be measured against each other at all."""
    if metrics.problem is not None:
        return metrics.problem
    if metrics.nonfinite_mismatch:
        return f"{metrics.nonfinite_mismatch} of {metrics.count} elements do not hold the same NaN or infinity"
    return None


def agreement_text(found: Agreement) -> str:
    """``same class at 98 of 100 positions (axis 1 of 10 classes), top-5 99.2 % in common``."""
    same = round(found.argmax * found.positions)
    if found.axis is None:
        return f"{same} of {found.positions} whole numbers the same"
    positions = wording.plural(found.positions, "position")
    text = f"same class at {same} of {positions} (axis {found.axis}, {found.classes} classes)"
    if found.top_k is not None:
        text += f", top {found.k} {wording.share_text(found.top_k)} in common"
    if same < found.positions and found.widest_lead is not None:
        text += f", lead of a lost class at most {wording.sci(found.widest_lead)}"
    return text


def judged_by(report: Report) -> str:
    """The tolerance in words, for the dtypes that occur."""
    dtypes = sorted({row.dtype for row in report.stages if row.results})
    return wording.tolerance_text(report.tolerance, dtypes, floors=not report.chain)


def graph_name(report: Report) -> str:
    """The given file's name, or what was made of the model here."""
    given = report.case.get("onnx")
    return os.path.basename(str(given)) if given else "the exported graph"
