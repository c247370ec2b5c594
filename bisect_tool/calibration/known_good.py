"""What known-good runs of one sample show: the largest error of each stage that no fault made.

Of a run of ONNX Runtime only stages count whose own error, and that of all stages before them, was shown to be rounding.
A fault in the file then never reaches a limit: it stays with the stage that makes it, and with those behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bisect_tool.calibration.table_judging import LOCAL, TOTALS
from bisect_tool.calibration.tolerance_table import kind_of_stage
from bisect_tool.judging import OPTIMISED_SPREAD, is_step
from bisect_tool.metrics import kind_of_name
from bisect_tool.noise import BEYOND, epsilon
from bisect_tool.records import Comparison, ErrorMetrics, Report, Stage, StageRef, StageRow

_HALF = {"float16": "fp16", "bfloat16": "bf16"}

_STEP = 64.0
"""Units in the last place by which a step that did not fall on the other side may still be off."""


@dataclass(slots=True)
class StageErrors:
    """One stage in one sample's known-good runs.

    Attributes:
        kind: from :func:`~bisect_tool.calibration.tolerance_table.kind_of_stage`.
        dtype: short name.
        size: root mean square of its value in PyTorch's run.
        largest: largest error by metric.
    """

    kind: str
    dtype: str
    size: float
    largest: dict[str, float] = field(default_factory=dict)

    def see(self, metric: str, error: float) -> None:
        """Takes one more error; what is no finite number tells nothing."""
        if math.isfinite(error):
            self.largest[metric] = max(error, self.largest.get(metric, 0.0))

    def see_total(self, metrics: ErrorMetrics) -> None:
        if not metrics.problem and not metrics.nonfinite_mismatch:
            for name in TOTALS:
                self.see(name, getattr(metrics, name))

    def see_local(self, metrics: ErrorMetrics) -> None:
        if not metrics.problem and not metrics.nonfinite_mismatch:
            self.see(LOCAL, metrics.rel_l2)


@dataclass(slots=True)
class SampleErrors:
    """All known-good runs of one sample.

    Attributes:
        stages: by name, in order of execution.
        runs: how many there were, by what varied.
        left_out: what was not used, and why, one line each.
        graph: facts of the graph that ran, for the table's fingerprint.
    """

    stages: dict[StageRef, StageErrors] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    graph: dict[str, str] = field(default_factory=dict)

    def ran(self, variation: str) -> None:
        self.runs[variation] = self.runs.get(variation, 0) + 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, which :meth:`from_json` reads."""
        return {
            "stages": [
                [ref.stage, ref.call, ref.output, stage.kind, stage.dtype, stage.size, stage.largest]
                for ref, stage in self.stages.items()
            ],
            "runs": self.runs,
            "left_out": self.left_out,
            "graph": self.graph,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SampleErrors:
        stages = {
            StageRef(stage, call, output): StageErrors(kind, dtype, size, dict(largest))
            for stage, call, output, kind, dtype, size, largest in data["stages"]
        }
        return cls(stages, dict(data["runs"]), list(data["left_out"]), dict(data["graph"]))


def with_copy(errors: SampleErrors, copy: SampleErrors) -> None:
    """Adds what a slightly different copy of the sample showed: a stage's largest errors are those of both."""
    for ref, stage in copy.stages.items():
        known = errors.stages.setdefault(ref, stage)
        for metric, error in stage.largest.items():
            known.see(metric, error)
    for variation, count in copy.runs.items():
        errors.runs[variation] = errors.runs.get(variation, 0) + count
    errors.left_out += [line for line in copy.left_out if line not in errors.left_out]


# Runs of ONNX Runtime


def add_report(errors: SampleErrors, report: Report, plain: str, accepted: Sequence[str] = ()) -> None:
    """Adds what a comparison with ONNX Runtime shows, as far as it was shown to be rounding.

    Args:
        errors: of the sample.
        report: judged by noise floors.
        plain: name of its unoptimised configuration, with local errors.
        accepted: reductions of precision that count as correct.
    """
    clean = clean_rows(report.stages, plain, accepted)
    ran = [run for run in report.configs if run.status in ("agrees", "diverges")]
    if any(run.name == plain for run in ran):
        errors.ran("ONNX Runtime, unoptimised")
    behind = _behind_steps(report.stages, plain)
    judged = [row for row in report.stages if row.role != "group"]
    for row in judged:
        result = row.results.get(plain)
        stage = errors.stages.get(row.ref)
        if stage is None or kind_of_name(row.dtype) not in ("float", "complex"):
            continue
        if result is not None and row.index in clean:
            if row.index not in behind:
                stage.see_total(result.total)
            if result.local is not None:
                stage.see_local(result.local)
    faulty = [row for row in judged if plain in row.results and row.index not in clean]
    if faulty:
        more = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
        errors.left_out.append(
            f"ONNX Runtime at {faulty[0].ref}{more}: error that rounding was not shown to explain is there or before"
        )
    by_value = {row.onnx_value: row for row in reversed(judged) if row.onnx_value}
    for run in ran:
        if run.name == plain or not run.outputs:
            continue
        errors.ran("ONNX Runtime, optimised")
        for out in run.outputs:
            found = by_value.get(out.onnx_value)
            base = found.results.get(plain) if found is not None else None
            if found is None or base is None or found.index not in clean - behind or found.ref not in errors.stages:
                continue
            if kind_of_name(found.dtype) not in ("float", "complex"):
                continue
            if out.total.rel_l2 <= OPTIMISED_SPREAD * base.total.rel_l2:
                errors.stages[found.ref].see_total(out.total)
            else:
                errors.left_out.append(
                    f"{run.name} at output {out.output}: {out.total.rel_l2:.1e}, and {base.total.rel_l2:.1e} unoptimised"
                )


def clean_rows(rows: Sequence[StageRow], config: str, accepted: Sequence[str] = ()) -> set[int]:
    """Rows whose error is rounding, their own and that of all that they read.

    That has to be shown: an unknown noise floor, or a stage that was not compared with equal inputs, shows nothing. A graph
    in half precision rounds too, but not as the model does: that it may has to be accepted.
    """
    clean: set[int] = set()
    dirty: set[int] = set()
    for row in rows:
        result = row.results.get(config)
        # Where a stage has no value in the graph those behind it read past it, and their own error has its.
        shown = result is None or _hands_on(row, result) or _is_rounding(row, result, accepted)
        outside = result is not None and bool(result.outside_error)
        if not shown or outside or any(index in dirty for index in row.inputs):
            dirty.add(row.index)
        elif result is not None:
            clean.add(row.index)
    return clean


def _hands_on(row: StageRow, result: Comparison) -> bool:
    """Whether a stage was not run on equal inputs because it computes nothing."""
    return result.local is None and (row.alias_of is not None or not result.total.differing)


def _is_rounding(row: StageRow, result: Comparison, accepted: Sequence[str]) -> bool:
    local, noise = result.local, result.noise
    if local is None or local.problem or local.nonfinite_mismatch or result.quantised is not None:
        return False
    if not local.differing:
        return True
    if kind_of_name(row.dtype) == "integer":
        return False
    if noise is None:
        return False
    if noise.dtype not in (None, row.dtype) and _HALF.get(str(noise.dtype)) not in accepted:
        return False
    return noise.settled or (noise.ratio is not None and noise.ratio <= BEYOND)


def _behind_steps(rows: Sequence[StageRow], config: str) -> set[int]:
    """Rows that rounding turned, and those that read from one: they are whole steps off, which is no measure."""
    found: set[int] = set()
    for row in rows:
        result = row.results.get(config)
        turned = result is not None and is_step(row) and turned_over(row.dtype, result.total)
        if turned or any(index in found for index in row.inputs):
            found.add(row.index)
    return found


def turned_over(dtype: str, metrics: ErrorMetrics) -> bool:
    """Whether a step fell on the other side."""
    if kind_of_name(dtype) == "integer":
        return metrics.differing > 0
    return not metrics.rel_l2 <= _STEP * max(epsilon(dtype), epsilon("float32"))


# Runs of PyTorch


def within_rounding(errors: Mapping[StageRef, ErrorMetrics], usual: Mapping[StageRef, float]) -> StageRef | None:
    """The first stage where a run leaves PyTorch's plain one by more than rounding does; ``None``: there is none.

    Args:
        errors: of the run, in order of execution.
        usual: relative L2 of made-up rounding, by stage.
    """
    for ref, metrics in errors.items():
        limit = usual.get(ref)
        if limit is not None and (metrics.problem or not metrics.rel_l2 <= OPTIMISED_SPREAD * limit):
            return ref
    return None


def kinds(stages: Iterable[Stage]) -> dict[StageRef, tuple[str, str]]:
    """Kind and dtype of each of a trace's stages, as the table has them."""
    return {stage.ref: (kind_of_stage(stage.type, stage.dtype, len(stage.shape)), stage.dtype) for stage in stages}
