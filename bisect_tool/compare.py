"""Traces and alignment → comparisons: what each stage's tensors say, and how errors pass from stage to stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from bisect_tool.metrics import difference_norms, judge, kind_of, measure_with_norm
from bisect_tool.pictures import Camera
from bisect_tool.records import (
    Comparison,
    ErrorMetrics,
    ErrorPicture,
    Judgement,
    Noise,
    QuantisedStage,
    Spread,
    Stage,
    Tolerance,
)
from bisect_tool.spread import spread_of

Array = NDArray[Any]

MAIN_LAYER = "main"
"""The layer of stages whose forced run goes along with the configuration's own run."""


@dataclass(frozen=True, slots=True)
class Total:
    """A stage's total error, its judgement, and where it lies if it fails."""

    metrics: ErrorMetrics
    judgement: Judgement
    spread: Spread | None


def total_of(expected: Array, chained: Array, tolerance: Tolerance) -> Total:
    """Measures one pair, both in PyTorch's shape."""
    metrics, judgement = judge(expected, chained, tolerance)
    return Total(metrics, judgement, spread_of(expected, chained, metrics, tolerance) if judgement == "fail" else None)


@dataclass(slots=True)
class Ledger:
    """What was measured, by lane and PyTorch value, while the tensors themselves come and go.

    Lanes are names of runs; a forced run at another level is a lane of its own, and its chained values are those of the
    configuration's lane: totals are taken in ``chained_lanes`` only.
    """

    tolerance: Tolerance
    chained_lanes: Set[str]
    totals: dict[tuple[str, int], tuple[ErrorMetrics, Judgement]] = field(default_factory=dict)
    locals: dict[tuple[str, int], ErrorMetrics] = field(default_factory=dict)
    propagated: dict[tuple[str, int], float] = field(default_factory=dict)
    noise: dict[tuple[str, int], Noise] = field(default_factory=dict)
    spreads: dict[tuple[str, int], Spread] = field(default_factory=dict)
    quantised: dict[tuple[str, int], QuantisedStage] = field(default_factory=dict)
    pictures: dict[tuple[str, int], ErrorPicture] = field(default_factory=dict)
    camera: Camera = field(default_factory=Camera)

    def record(
        self,
        lane: str,
        value: int,
        expected: Array,
        chained: Array | None,
        forced: Array | None,
        narrowed: Array | None = None,
    ) -> None:
        """Measures one pair; the arrays are not kept. All in PyTorch's shape.

        Args:
            lane, value: what is measured.
            expected: of PyTorch.
            chained, forced: of ONNX Runtime, on its own values and on PyTorch's.
            narrowed: PyTorch's where the forced run was given it in a narrower type; ``None``: ``expected``.
        """
        if chained is not None and lane in self.chained_lanes:
            total = total_of(expected, chained, self.tolerance)
            self.enter(lane, value, total)
            if total.judgement == "fail":
                self._picture(lane, value, "total", expected, chained, total.metrics)
        if forced is not None:
            expected = expected if narrowed is None else narrowed
            self.locals[lane, value], norm = measure_with_norm(expected, forced)
            # What a stage itself makes shows more than what it was handed.
            self._picture(lane, value, "local", expected, forced, self.locals[lane, value])
            if chained is not None:
                self.propagated[lane, value] = self._propagated(lane, value, expected, norm, chained, forced)

    def enter(self, lane: str, value: int, total: Total) -> None:
        """Takes a total that was measured already."""
        self.totals[lane, value] = total.metrics, total.judgement
        if total.spread is not None:
            self.spreads[lane, value] = total.spread

    def _picture(
        self,
        lane: str,
        value: int,
        of: Literal["local", "total"],
        expected: Array,
        actual: Array,
        metrics: ErrorMetrics,
    ) -> None:
        picture = self.camera.take(lane, of, expected, actual, metrics)
        if picture is not None:
            self.pictures[lane, value] = picture

    def missing(self, lane: str, value: int, expected: Array) -> None:
        """The runtime returned nothing for a value that was asked for."""
        self.totals[lane, value] = judge(expected, None, self.tolerance)

    def _propagated(self, lane: str, value: int, expected: Array, norm: float, chained: Array, forced: Array) -> float:
        local = self.locals[lane, value]
        if local.rel_l2 == 0 and (lane, value) in self.totals:
            return self.totals[lane, value][0].rel_l2
        if local.problem or chained.shape != expected.shape or kind_of(expected.dtype) != "float":
            return math.nan
        error, reference = difference_norms(expected, chained, forced, norm)
        return error / reference if reference else (0.0 if error == 0 else math.inf)


def lane_name(config: str, layer: str) -> str:
    """A configuration's own run is called like the configuration; forced runs at further levels bear the layer too."""
    return config if layer == MAIN_LAYER else f"{config} {layer}"


def hands_on(stage: Stage) -> bool:
    """Whether a stage returns one of its inputs untouched, as dropout does in evaluation: it computes nothing."""
    return stage.value in stage.inputs


def stage_inputs(stage: Stage, parents: Mapping[int, tuple[int, ...]], known: Set[int]) -> tuple[int, ...]:
    """The nearest values in ``known`` that a stage's inputs come from; inputs without one are passed over.

    A stage's own inputs may have no ONNX value (a folded convolution before its norm); then the stage that was really
    measured begins further up, and so does its input error.
    """
    found: dict[int, None] = {}
    seen: set[int] = set()
    stack = list(reversed(stage.inputs))
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in known:
            found[value] = None
        else:
            stack.extend(reversed(parents.get(value, ())))
    return tuple(found)


def input_error(values: Iterable[int], error_of: Callable[[int], float | None]) -> float | None:
    """Relative error of several tensors taken as one vector, each scaled by its own norm; ``None`` if one is unknown."""
    errors = [error_of(value) for value in values]
    if any(error is None or math.isnan(error) for error in errors):
        return None
    squares = [error * error for error in errors if error is not None]
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def compare_stage(
    ledger: Ledger,
    stage: Stage,
    lane: str,
    local_lane: str | None,
    inputs: tuple[int, ...],
    model_inputs: Set[int],
) -> Comparison | None:
    """One stage under one configuration.

    Args:
        ledger: the measurements.
        stage: whose value is compared.
        lane: with the chained run.
        local_lane: with the forced run at the stage's level; ``None`` where there is none, or the stage computes nothing.
        inputs: from :func:`stage_inputs`.
        model_inputs: values that are given to both sides and carry no error.

    Returns:
        ``None`` if the stage's value was not compared in this lane.
    """
    total = ledger.totals.get((lane, stage.value))
    if total is None:
        return None
    metrics, judgement = total

    def error_of(value: int) -> float | None:
        if value in model_inputs:
            return 0.0
        known = ledger.totals.get((lane, value))
        return None if known is None else known[0].rel_l2

    local: ErrorMetrics | None = None
    propagated: float | None = None
    noise: Noise | None = None
    quantised: QuantisedStage | None = None
    picture = ledger.pictures.get((lane, stage.value))
    if local_lane is not None:
        noise = ledger.noise.get((local_lane, stage.value))
        quantised = ledger.quantised.get((local_lane, stage.value))
        local = ledger.locals.get((local_lane, stage.value))
        propagated = ledger.propagated.get((local_lane, stage.value))
        picture = ledger.pictures.get((local_lane, stage.value), picture)
    entering = input_error(inputs, error_of)
    return Comparison(
        total=metrics,
        local=local,
        input_error=entering,
        growth=_ratio(metrics.rel_l2, entering),
        amplification=_ratio(propagated, entering),
        floor=noise.floor if noise else None,
        noise_ratio=noise.ratio if noise else None,
        judgement=judgement,
        noise=noise,
        spread=ledger.spreads.get((lane, stage.value)),
        quantised=quantised,
        picture=picture,
    )


def _ratio(error: float | None, entering: float | None) -> float | None:
    if error is None or entering is None or entering == 0 or math.isnan(error) or not math.isfinite(entering):
        return None
    return error / entering
