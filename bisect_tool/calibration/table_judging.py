"""Judges a comparison by a calibrated table: the limits of each stage decide, for its total error and for its own.

Rounding may turn a step the other way: an index that two values compete for, a comparison, a rounded number. What comes
behind such a stage differs by whole steps, in any correct run, so that only the error that each stage makes itself is
judged there; the step itself is judged by what it makes of equal inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bisect_tool.calibration.tolerance_table import StageLimits, ToleranceTable
from bisect_tool.judging import is_step, makes_error
from bisect_tool.metrics import kind_of_name
from bisect_tool.records import Comparison, ErrorMetrics, OutputResult, StageRef, StageRow

TOTALS = ("rel_l2", "max_abs", "mean_abs")
LOCAL = "local_rel_l2"
VALUES = "values"


@dataclass(frozen=True, slots=True)
class Excess:
    """An error over its limit.

    ``metric``: as in the table; or ``values``: numbers of elements that differ where none may (whole numbers), and
    infinity where the two sides can't be compared, or hold other NaN and infinities.
    """

    metric: str
    error: float
    limit: float

    @property
    def factor(self) -> float:
        """How many times the limit."""
        return self.error / self.limit if self.limit else math.inf


@dataclass(frozen=True, slots=True)
class Judge:
    """A table and where it is applied.

    Attributes:
        table: of this model.
        config: name of the configuration pair.
        hardware: name of the kind that the run was made on; ``None``: the pooled limits.
        baseline: for a pair without local errors, the pair whose are known and whose PyTorch run is the same.
    """

    table: ToleranceTable
    config: str
    hardware: str | None = None
    baseline: str | None = None

    def over(self, rows: Sequence[StageRow]) -> dict[int, tuple[Excess, ...]]:
        """What is over its limits by index of the row, the farthest first; ``()`` for stages that pass.

        Stages without limits in the table, and those that were not compared, are left out.
        """
        limits = self.table.limits()
        found: dict[int, tuple[Excess, ...]] = {}
        shaken: set[int] = set()
        for row in rows:
            behind = any(index in shaken for index in row.inputs)
            if behind:
                shaken.add(row.index)
            result, own = row.results.get(self.config), limits.get(row.ref)
            if result is None or own is None or result.judgement == "not compared":
                continue
            over = self._local(row, result, own)
            totals = self._totals(row, result.total, own)
            if totals and not over and is_step(row) and self._stands(row, result):
                shaken.add(row.index)
            elif not behind or totals and totals[0].error == math.inf:
                over += totals
            found[row.index] = tuple(sorted(over, key=lambda each: -each.factor))
        return found

    def shaken(self, rows: Sequence[StageRow]) -> set[int]:
        """Rows that rounding alone turned, and those that read from one, however indirectly."""
        limits = self.table.limits()
        found: set[int] = set()
        for row in rows:
            result, own = row.results.get(self.config), limits.get(row.ref)
            if any(index in found for index in row.inputs):
                found.add(row.index)
            elif result is not None and own is not None and is_step(row):
                turned = self._totals(row, result.total, own) and not self._local(row, result, own)
                if turned and self._stands(row, result):
                    found.add(row.index)
        return found

    def _totals(self, row: StageRow, total: ErrorMetrics, own: StageLimits) -> list[Excess]:
        over = self._over(total, own, {name: name for name in TOTALS})
        if not over and kind_of_name(row.dtype) == "integer" and total.differing:
            return [Excess(VALUES, float(total.differing), 0.0)]
        return over

    def _local(self, row: StageRow, result: Comparison, own: StageLimits) -> list[Excess]:
        if result.local is None:
            return []
        over = self._over(result.local, own, {"rel_l2": LOCAL})
        if not over and kind_of_name(row.dtype) == "integer" and makes_error(row, result):
            return [Excess(VALUES, float(result.local.differing), 0.0)]
        return over

    def _over(self, metrics: ErrorMetrics, own: StageLimits, names: Mapping[str, str]) -> list[Excess]:
        if metrics.problem or metrics.nonfinite_mismatch:
            return [Excess(VALUES, math.inf, 0.0)]
        found = []
        for attribute, name in names.items():
            error, known = getattr(metrics, attribute), own.metrics.get(name)
            # Against a reference of zeros alone nothing is relative; its absolute errors have limits too.
            if known is None or (error == math.inf and attribute == "rel_l2" and math.isfinite(metrics.max_abs)):
                continue
            limit = known.limit_on(self.hardware)
            if not error <= limit:
                found.append(Excess(name, error, limit))
        return found

    def _stands(self, row: StageRow, result: Comparison) -> bool:
        """Whether a step makes of equal inputs what PyTorch makes of them, as far as is known."""
        known = result if result.local is not None else row.results.get(self.baseline) if self.baseline else None
        return known is not None and known.local is not None and not makes_error(row, known)


def judge_by_table(
    rows: Sequence[StageRow],
    config: str,
    table: ToleranceTable,
    hardware: str | None = None,
    baseline: str | None = None,
) -> list[StageRow]:
    """The rows with their judgements under one configuration by a table's limits.

    Stages that the table has no limits for keep the judgement that they have.

    Args:
        rows: in order of execution.
        config, table, hardware, baseline: see :class:`Judge`.
    """
    over = Judge(table, config, hardware, baseline).over(rows)

    def judged(row: StageRow) -> StageRow:
        if row.index not in over:
            return row
        result = replace(row.results[config], judgement="fail" if over[row.index] else "pass")
        return replace(row, results={**row.results, config: result})

    return [judged(row) for row in rows]


def judge_outputs_by_table(
    outputs: Sequence[OutputResult],
    rows: Sequence[StageRow],
    config: str,
    table: ToleranceTable,
    hardware: str | None = None,
    baseline: str | None = None,
) -> tuple[OutputResult, ...]:
    """Final outputs of the untouched graph by the limits of the stages that they are.

    Args:
        outputs: of the configuration.
        rows: in order of execution.
        config, table, hardware, baseline: see :class:`Judge`.
    """
    judge = Judge(table, config, hardware, baseline)
    limits, shaken = table.limits(), judge.shaken(rows)
    by_value = {row.onnx_value: row for row in reversed(rows) if row.role != "group" and row.onnx_value}

    def judged(out: OutputResult) -> OutputResult:
        row = by_value.get(out.onnx_value)
        own = limits.get(row.ref) if row is not None else None
        if row is None or own is None or out.judgement == "not compared":
            return out
        over = judge._totals(row, out.total, own)
        fails = bool(over) and (row.index not in shaken or over[0].error == math.inf)
        return replace(out, judgement="fail" if fails else "pass")

    return tuple(map(judged, outputs))


def over_limits(
    rows: Sequence[StageRow],
    config: str,
    table: ToleranceTable,
    hardware: str | None = None,
    baseline: str | None = None,
) -> list[tuple[StageRef, tuple[Excess, ...]]]:
    """The stages that fail by the table's limits, in order of execution, with what is over them."""
    over = Judge(table, config, hardware, baseline).over(rows)
    return [(row.ref, over[row.index]) for row in rows if over.get(row.index) and row.role != "group"]
