"""Stages and outputs judged by calibrated limits: over one of them fails, under all of them passes.

The table decides, as a tolerance of the user's would. Noise floors go on explaining: a stage over its limit that makes no
more error than rounding only hands error on, and one under its limits that makes more than rounding is named all the same.
What the table does not have is judged as it would be without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bisect_tool.records import (
    Comparison,
    ErrorMetrics,
    LimitUse,
    OutputResult,
    StageRef,
    StageRow,
    TableSource,
    Tolerance,
)
from bisect_tool.tolerance_table import Fingerprint, StageLimits, ToleranceTable, refuse_other_model, stages_of_rows

LOCAL = "local_"
"""Before the name of a metric: of the error that the stage makes itself, not of all that has come together."""


@dataclass(frozen=True, slots=True)
class TableInForce:
    """A table, and the machine that it is used on.

    Attributes:
        path: of the file, as the user gave it.
        table: that was read.
        modules: of the model at hand, as a fingerprint has them.
        hardware: whose own limits are taken, by the table's name for it; ``None``: the pooled ones.
    """

    path: str
    table: ToleranceTable
    modules: Mapping[str, str]
    hardware: str | None = None

    def source(self) -> TableSource:
        """What the report says about it."""
        known = self.table.calibration
        return TableSource(
            file=self.path,
            created=known.created,
            tool=known.tool,
            false_alarm=known.false_alarm,
            samples=known.samples,
            runs=known.runs,
            tail=known.tail,
            hardware=self.hardware,
            stages=sum(bool(stage.metrics) for stage in self.table.stages),
            variations=known.variations,
        )


def refuse_other_modules(table: ToleranceTable, path: str, modules: Mapping[str, str]) -> None:
    """Before anything runs: the model at hand is the one that the table is for.

    Raises:
        BisectError: it is another one; what differs is said.
    """
    refuse_other_model(path, table, Fingerprint(modules, table.fingerprint.stages))


def refuse_other_stages(
    used: TableInForce, rows: Sequence[StageRow], *, selected: bool, graph: Mapping[str, str] | None = None
) -> None:
    """After PyTorch's run: its stages are those of the table.

    Args:
        used: the table.
        rows: of the report.
        selected: the user asked for certain stages only; the others are no difference.
        graph: facts of the graph, as a fingerprint has them.

    Raises:
        BisectError: they are others; what differs is said.
    """
    here = stages_of_rows(rows)
    if selected:
        here = {**used.table.fingerprint.stages, **here}
    refuse_other_model(used.path, used.table, Fingerprint(used.modules, here, graph or {}))


def with_table(tolerance: Tolerance, used: TableInForce | None) -> Tolerance:
    """The tolerance as the report has it."""
    return tolerance if used is None else replace(tolerance, source="calibrated", table=used.source())


def judge_by_table(
    rows: Iterable[StageRow], config: str, table: ToleranceTable, hardware: str | None = None
) -> list[StageRow]:
    """The rows with their judgements under one configuration, where the table has limits for them.

    Args:
        rows: judged without the table.
        config: name of the configuration pair.
        table: the limits.
        hardware: whose own limits are taken, by the table's name for it; ``None``: the pooled ones.
    """
    limits = table.limits()
    found = []
    for row in rows:
        result = row.results.get(config)
        use = None if result is None else decisive(limits.get(row.ref), result.total, result.local, hardware)
        if result is not None and use is not None:
            result = _judged(result, use)
            row = replace(row, results={**row.results, config: result})
        found.append(row)
    return found


def judge_outputs_by_table(
    outputs: Sequence[OutputResult], rows: Sequence[StageRow], table: ToleranceTable, hardware: str | None = None
) -> tuple[OutputResult, ...]:
    """Final outputs of an untouched graph by the limits of the stages that make them."""
    limits = table.limits()
    # Several stages may hand on one value; the table has its limits under any of their names.
    by_value: dict[str, StageRef] = {}
    for row in rows:
        if row.onnx_value is not None and row.ref in limits and limits[row.ref].metrics and row.role != "group":
            by_value.setdefault(row.onnx_value, row.ref)
    found = []
    for out in outputs:
        ref = by_value.get(out.onnx_value)
        use = None if ref is None else decisive(limits[ref], out.total, None, hardware)
        if use is not None and out.judgement != "not compared":
            fails = out.total.problem is not None or not use.ratio <= 1
            out = replace(out, judgement="fail" if fails else "pass", limit=use)
        found.append(out)
    return tuple(found)


def decisive(
    limits: StageLimits | None, total: ErrorMetrics, local: ErrorMetrics | None, hardware: str | None
) -> LimitUse | None:
    """Of a stage's limits the one that its errors come nearest to, or are furthest over; ``None`` without limits.

    Local errors without a forced run, and tensors that are empty, have no number to hold against a limit.
    """
    uses = []
    for name, limit in limits.metrics.items() if limits is not None else ():
        errors = local if name.startswith(LOCAL) else total
        if errors is None or (errors.count == 0 and errors.problem is None):
            continue
        value = getattr(errors, name.removeprefix(LOCAL), None)
        if isinstance(value, (int, float)):
            uses.append(LimitUse(name, float(value), limit.limit_on(hardware)))
    return max(uses, key=lambda use: use.ratio, default=None)


def _judged(result: Comparison, use: LimitUse) -> Comparison:
    total, local = result.total, result.local
    broken = total.problem is not None or bool(total.nonfinite_mismatch)
    # A shape that differs, or a NaN on one side, is no size of error.
    broken = broken or (local is not None and (local.problem is not None or bool(local.nonfinite_mismatch)))
    return replace(result, judgement="fail" if broken or not use.ratio <= 1 else "pass", limit=use)


def table_lines(rows: Sequence[StageRow], used: TableInForce) -> tuple[str, ...]:
    """What the verdict says about the limits: where they are not firm, and what they leave open."""
    limits, lines = used.table.limits(), []
    known = used.table.calibration
    if known.tail != "measured":
        why = "few samples, so that they are wider" if known.tail == "extrapolated" else "too few samples to know more"
        lines.append(f"the limits of {used.path} rest on {known.samples} samples: {why}")
    judged = [row for row in rows if row.role != "group" and row.results]
    without = [row for row in judged if row.ref not in limits]
    if without:
        names = ", ".join(str(row.ref) for row in without[:3]) + (" ..." if len(without) > 3 else "")
        count = f"{len(without)} stage{'' if len(without) == 1 else 's'}"
        lines.append(f"{count} without a limit in {used.path}, judged by the noise floor: {names}")
    return tuple(lines)


def limit_text(use: LimitUse) -> str:
    """``rel_l2 4.8e-02, limit 1.0e-05 (x4800)``; without the factor where the error is under its limit."""
    text = f"{use.metric} {use.value:.1e}, limit {use.limit:.1e}"
    if not use.ratio > 1:
        return text
    factor = use.ratio
    return f"{text} (x{factor:.3g})" if math.isfinite(factor) and factor < 1e4 else text
