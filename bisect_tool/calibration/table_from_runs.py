"""Known-good samples → a tolerance table: one score for each sample, and all limits at one score (``limits``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.calibration.known_good import SampleErrors, StageErrors
from bisect_tool.calibration.limits import FEW, Limits, limits_of
from bisect_tool.calibration.tolerance_table import (
    METRICS,
    Calibration,
    Fingerprint,
    Hardware,
    MetricLimit,
    StageLimits,
    Tail,
    ToleranceTable,
    round_up,
)
from bisect_tool.errors import InconclusiveError
from bisect_tool.noise import epsilon
from bisect_tool.records import StageRef
from bisect_tool.summaries import Gathered

Array = NDArray[np.float64]

_ABSOLUTE = ("max_abs", "mean_abs")


@dataclass(frozen=True, slots=True)
class Known:
    """One sample's known-good errors, and the kind of machine that they are from."""

    hardware: str
    errors: SampleErrors


@dataclass(frozen=True, slots=True)
class Columns:
    """All errors as one matrix.

    Attributes:
        names: stage and metric of each column.
        errors: a row for each sample; NaN where it has none.
        least: for each column, what counts as no error.
    """

    names: tuple[tuple[StageRef, str], ...]
    errors: Array
    least: Array

    def at(self, ref: StageRef, metric: str) -> Array:
        """The samples' errors of one metric of one stage, those that there are."""
        column = self.errors[:, self.names.index((ref, metric))]
        return column[np.isfinite(column)]


@dataclass(frozen=True, slots=True)
class Made:
    """A table with what it was made of. ``left_out``: what was not used, with how many samples say so."""

    table: ToleranceTable
    columns: Columns
    left_out: Mapping[str, int] = field(default_factory=dict)


def columns_of(samples: Sequence[SampleErrors]) -> Columns:
    """The matrix of several samples. Columns are in the order in which stages first came up."""
    seen: dict[StageRef, list[StageErrors]] = {}
    for sample in samples:
        for ref, stage in sample.stages.items():
            seen.setdefault(ref, []).append(stage)
    names = tuple(
        (ref, metric)
        for ref, found in seen.items()
        for metric in METRICS
        if any(metric in stage.largest for stage in found)
    )
    errors = np.full((len(samples), len(names)), np.nan)
    for row, sample in enumerate(samples):
        for column, (ref, metric) in enumerate(names):
            if ref in sample.stages:
                errors[row, column] = sample.stages[ref].largest.get(metric, np.nan)
    least = np.array([_least(seen[ref], metric) for ref, metric in names], dtype=np.float64)
    return Columns(names, errors, least)


def _least(stages: Sequence[StageErrors], metric: str) -> float:
    """One unit in the last place: a stage that came out right by luck may be off by as much the next time."""
    # Nobody computes in more than float32 on both sides, whatever the dtype says.
    unit = max(epsilon(stages[0].dtype), epsilon("float32"))
    if metric not in _ABSOLUTE:
        return unit
    size = float(np.median([stage.size for stage in stages]))
    return max(unit * size, float(np.finfo(np.float32).tiny))


def table_of(
    known: Sequence[Known],
    modules: Mapping[str, str],
    graph: Mapping[str, str],
    false_alarm: float,
    about: Mapping[str, Any],
) -> Made:
    """The table of all samples.

    Args:
        known: the samples.
        modules, graph: of the fingerprint.
        false_alarm: for a whole run.
        about: ``level``, ``created``, ``tool`` and ``accepted`` of the calibration.

    Raises:
        InconclusiveError: no sample, or no stage with an error.
    """
    if not known:
        raise InconclusiveError("no known-good run: nothing to calibrate with")
    columns = columns_of([sample.errors for sample in known])
    if not columns.names:
        raise InconclusiveError(
            "no stage of the model has a known-good error: all of them are whole numbers, or not finite",
            hint="calibrate on samples whose values are finite; bisect-tool inspect lists the stages",
        )
    pooled = limits_of(columns.errors, columns.least, false_alarm)
    kinds = sorted({sample.hardware for sample in known})
    own = {kind: _limits_on(columns, [sample.hardware == kind for sample in known], false_alarm) for kind in kinds}
    on = {kind: own[kind] for kind in kinds} if len(kinds) > 1 else {}
    stages = _stages(known, columns, pooled, on)
    runs: dict[str, int] = {}
    for sample in known:
        for variation, count in sample.errors.runs.items():
            runs[variation] = runs.get(variation, 0) + count
    table = ToleranceTable(
        Calibration(
            false_alarm=false_alarm,
            samples=len(known),
            runs=sum(runs.values()),
            variations=tuple(runs),
            tail=tail_of(pooled),
            score=round(pooled.score, 3),
            rate_bound=None if pooled.rate_bound is None else round_up(pooled.rate_bound),
            **about,
        ),
        Fingerprint(dict(modules), {stage.ref: stage.kind for stage in stages}, dict(graph)),
        tuple(
            Hardware(
                kind,
                sum(sample.hardware == kind for sample in known),
                sum(sum(sample.errors.runs.values()) for sample in known if sample.hardware == kind),
                tail_of(own[kind][0]),
                round(own[kind][0].score, 3),
            )
            for kind in kinds
        ),
        stages,
    )
    left_out: dict[str, int] = {}
    for sample in known:
        for line in dict.fromkeys(sample.errors.left_out):
            left_out[line] = left_out.get(line, 0) + 1
    return Made(table, columns, left_out)


def tail_of(limits: Limits) -> Tail:
    """How firmly the limits are known."""
    if limits.samples < FEW:
        return "too few"
    return "measured" if limits.firm else "extrapolated"


def _limits_on(columns: Columns, rows: Sequence[bool], false_alarm: float) -> tuple[Limits, NDArray[np.bool_]]:
    """Limits from some of the samples, and of which columns."""
    errors = columns.errors[np.array(rows)]
    there = np.any(np.isfinite(errors), axis=0)
    return limits_of(errors[:, there], columns.least[there], false_alarm), there


def _stages(
    known: Sequence[Known],
    columns: Columns,
    pooled: Limits,
    on: Mapping[str, tuple[Limits, NDArray[np.bool_]]],
) -> tuple[StageLimits, ...]:
    limits: dict[StageRef, dict[str, MetricLimit]] = {}
    own: dict[str, dict[int, float]] = {
        kind: dict(zip(np.flatnonzero(there).tolist(), found.values.tolist(), strict=True))
        for kind, (found, there) in on.items()
    }
    gathered = Gathered()
    for kind in sorted({sample.hardware for sample in known}):
        rows = columns.errors[np.array([sample.hardware == kind for sample in known])]
        for place in range(len(columns.names)):
            gathered.add(kind, f"{place}", rows[:, place].tolist())
    profiles = gathered.pooled()
    for place, (ref, metric) in enumerate(columns.names):
        p50, p90, p99, most = (profiles[f"{place}"].quantile(share) or 0.0 for share in (0.5, 0.9, 0.99, 1.0))
        limits.setdefault(ref, {})[metric] = MetricLimit(
            limit=round_up(float(pooled.values[place])),
            p50=round_up(p50),
            p90=round_up(p90),
            p99=round_up(p99),
            max=round_up(most),
            least=round_up(float(columns.least[place])),
            on={kind: round_up(values[place]) for kind, values in own.items() if place in values},
        )
    first: dict[StageRef, StageErrors] = {}
    counts: dict[StageRef, int] = {}
    for sample in known:
        for ref, stage in sample.errors.stages.items():
            first.setdefault(ref, stage)
            counts[ref] = counts.get(ref, 0) + 1
    return tuple(
        StageLimits(ref.stage, ref.call, ref.output, stage.kind, counts[ref], limits.get(ref, {}))
        for ref, stage in first.items()
    )


def smallest_caught(
    columns: Columns, rates: Sequence[float], metric: str = "local_rel_l2"
) -> dict[StageRef, list[float]]:
    """The smallest fault that each stage's limit still catches, for several rates of false alarms.

    A fault of relative size ``d`` in a stage adds up with its rounding to ``sqrt(d² + usual²)``, since both are independent.

    Args:
        columns: of the samples.
        rates: of false alarms for a whole run.
        metric: the stage's own error, relative to its value.
    """
    found: dict[StageRef, list[float]] = {}
    for rate in rates:
        limits = limits_of(columns.errors, columns.least, rate)
        for place, (ref, name) in enumerate(columns.names):
            if name == metric:
                usual = float(np.median(columns.at(ref, name)))
                limit = float(limits.values[place])
                found.setdefault(ref, []).append(float(np.sqrt(max(limit**2 - usual**2, 0.0))))
    return found
