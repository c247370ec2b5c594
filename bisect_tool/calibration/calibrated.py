"""A calibrated table in force: for which model it is, what it judges, and which of its limits decided.

The table decides, as a tolerance of the user's would. Noise floors go on explaining: a stage over its limit that makes no
more error than rounding only hands error on, and one under its limits that makes more than rounding is named all the same.
What the table does not have is judged as it would be without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bisect_tool.calibration.table_judging import Excess, Judge, judge_by_table, judge_outputs_by_table
from bisect_tool.calibration.tolerance_table import (
    Fingerprint,
    StageLimits,
    ToleranceTable,
    refuse_other_model,
    stages_of_rows,
)
from bisect_tool.records import (
    Comparison,
    ErrorMetrics,
    FirstOverTolerance,
    LimitUse,
    OutputResult,
    StageRow,
    TableSource,
    Tolerance,
)

_LOCAL = "local_"
"""Before the name of a metric: of the error that the stage makes itself."""


@dataclass(frozen=True, slots=True)
class TableInForce:
    """A table, and where it is used.

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
            stages=len(self.table.stages),
            variations=known.variations,
        )


def in_force(path: str, table: ToleranceTable, modules: Mapping[str, str], machine: str | None) -> TableInForce:
    """A table for a model.

    Args:
        path: of the file.
        table: that was read from it.
        modules: of the model at hand, as a fingerprint has them.
        machine: the kind of this one; where the table does not know it, the pooled limits hold.

    Raises:
        BisectError: the model is another one than the table is for; what differs is said.
    """
    refuse_other_model(path, table, Fingerprint(modules, table.fingerprint.stages))
    known = any(kind.name == machine for kind in table.hardware)
    return TableInForce(path, table, modules, machine if known else None)


def refuse_other_stages(
    used: TableInForce, rows: Sequence[StageRow], *, selected: bool, graph: Mapping[str, str]
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
    refuse_other_model(used.path, used.table, Fingerprint(used.modules, here, graph))


def with_table(tolerance: Tolerance, used: TableInForce | None) -> Tolerance:
    """The tolerance as the report has it."""
    return tolerance if used is None else replace(tolerance, source="calibrated", table=used.source())


def judge_rows(rows: Sequence[StageRow], config: str, used: TableInForce, baseline: str | None) -> list[StageRow]:
    """The rows judged by the table under one configuration, each with the limit that decided.

    Args:
        rows: judged without the table.
        config: name of the configuration pair.
        used: the table.
        baseline: for a pair without local errors, the pair whose are known and whose PyTorch run is the same.
    """
    limits = used.table.limits()
    over = Judge(used.table, config, used.hardware, baseline).over(rows)
    found = []
    for row in judge_by_table(rows, config, used.table, used.hardware, baseline):
        result = row.results.get(config)
        if result is not None and row.index in over:
            use = _use(over[row.index], limits[row.ref], result, used.hardware)
            row = replace(row, results={**row.results, config: replace(result, limit=use)})
        found.append(row)
    return found


def judge_outputs(
    outputs: Sequence[OutputResult], rows: Sequence[StageRow], config: str, used: TableInForce, baseline: str | None
) -> tuple[OutputResult, ...]:
    """Final outputs of an untouched graph by the limits of the stages that make them; arguments as for the rows."""
    limits = used.table.limits()
    stages = {
        row.onnx_value: limits[row.ref]
        for row in reversed(rows)
        if row.onnx_value is not None and row.role != "group" and row.ref in limits
    }
    judged = judge_outputs_by_table(outputs, rows, config, used.table, used.hardware, baseline)

    def with_limit(out: OutputResult) -> OutputResult:
        own = stages.get(out.onnx_value)
        uses = [] if own is None else list(_uses(own, out.total, None, used.hardware))
        fitting = [use for use in uses if (use.ratio > 1) == (out.judgement == "fail")]
        return replace(out, limit=max(fitting, key=lambda use: use.ratio, default=None))

    return tuple(map(with_limit, judged))


def _use(over: Sequence[Excess], own: StageLimits, result: Comparison, hardware: str | None) -> LimitUse | None:
    """What is furthest over its limit, or nearest to it."""
    if over:
        return LimitUse(over[0].metric, over[0].error, over[0].limit)
    passing = [use for use in _uses(own, result.total, result.local, hardware) if use.ratio <= 1]
    return max(passing, key=lambda use: use.ratio, default=None)


def _uses(
    own: StageLimits, total: ErrorMetrics, local: ErrorMetrics | None, hardware: str | None
) -> Iterator[LimitUse]:
    for name, limit in own.metrics.items():
        errors: Any = local if name.startswith(_LOCAL) else total
        if errors is not None and errors.problem is None:
            yield LimitUse(name, float(getattr(errors, name.removeprefix(_LOCAL))), limit.limit_on(hardware))


def table_lines(
    rows: Sequence[StageRow], used: TableInForce, first: FirstOverTolerance | None = None
) -> tuple[str, ...]:
    """What the verdict says about the limits: which one the first failing stage is over, where they are not firm, and
    what they leave open.
    """
    limits, lines = used.table.limits(), []
    for row in rows if first is not None else ():
        result = row.results.get(first.config) if first is not None and row.ref == first.ref else None
        if result is not None and result.limit is not None and row.role != "group":
            lines.append(f"{row.ref}: {limit_text(result.limit)}")
    known = used.table.calibration
    if known.tail != "measured":
        why = "fewer than their rate takes, so that they are wider" if known.tail == "extrapolated" else "too few"
        lines.append(f"the limits of {used.path} rest on {known.samples} samples, {why}")
    without = [row for row in rows if row.role != "group" and row.results and row.ref not in limits]
    if without:
        names = ", ".join(str(row.ref) for row in without[:3]) + (" ..." if len(without) > 3 else "")
        count = f"{len(without)} stage{'' if len(without) == 1 else 's'}"
        lines.append(f"{count} without a limit in {used.path}, judged by the noise floor: {names}")
    return tuple(lines)


def limit_text(use: LimitUse) -> str:
    """``rel_l2 4.8e-02, limit 1.0e-05 (x4800)``; without the factor where the error is under its limit."""
    if use.metric == "values":
        if math.isinf(use.value):
            return "no size of error: another shape, or NaN and infinities elsewhere"
        return f"{use.value:.0f} whole numbers differ, where none may"
    text = f"{use.metric} {use.value:.1e}, limit {use.limit:.1e}"
    if not 1 < use.ratio < math.inf:
        return text
    form = ".2g" if use.ratio < 9.95 else ".0f" if use.ratio < 9999.5 else ".0e"
    return f"{text} (x{use.ratio:{form}})"
