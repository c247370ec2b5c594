"""Tolerance tables made from one report, for tests of what uses them: calibrating takes longer than they may."""

from __future__ import annotations

from typing import Any

from bisect_tool.backends.architecture import modules_of
from bisect_tool.calibration.tolerance_table import (
    Calibration,
    Fingerprint,
    Hardware,
    MetricLimit,
    StageLimits,
    ToleranceTable,
    kind_of_stage,
    stages_of_rows,
)
from bisect_tool.hardware import this_hardware
from bisect_tool.records import Report


def table_of(report: Report, module: Any, factor: float, least: float = 1e-6) -> ToleranceTable:
    """Limits at so many times the errors that a report found, and never under ``least``."""

    def limit(error: float) -> MetricLimit:
        return MetricLimit(max(error * factor, least * factor), error, error, error, error, least)

    stages = []
    for row in report.stages:
        result = row.results.get("ort-cpu-off")
        known = {}
        if result is not None and "float" in row.dtype:
            known = {"rel_l2": limit(result.total.rel_l2), "max_abs": limit(result.total.max_abs)}
            if result.local is not None:
                known["local_rel_l2"] = limit(result.local.rel_l2)
        kind = kind_of_stage(row.type, row.dtype, len(row.shape))
        stages.append(StageLimits(row.stage, row.call, row.output, kind, 128, known))
    return ToleranceTable(
        Calibration(
            false_alarm=0.01,
            samples=128,
            runs=256,
            level="leaf",
            created="2026-01-01T00:00:00Z",
            tool="0.1.0",
            variations=("threads",),
            tail="measured",
            score=3.0,
        ),
        Fingerprint(modules_of(module), stages_of_rows(report.stages)),
        (Hardware(this_hardware().name, 128, 256, "measured", 3.0),),
        tuple(stages),
    )
