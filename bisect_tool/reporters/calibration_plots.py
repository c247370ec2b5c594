"""Plots beside a tolerance table: the errors of each stage with its limit, and what a rate of false alarms costs.

Drawn without pyplot; marks differ in form as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bisect_tool.calibration.table_from_runs import Made, smallest_caught
from bisect_tool.calibration.tolerance_table import MetricLimit
from bisect_tool.records import StageRef
from bisect_tool.reporters.plot_style import LABEL_WIDTH, LIGHT, save, stage_name, text
from bisect_tool.reporters.plots import LABELS, _dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""False alarms for which the price is drawn."""

_NOTHING = 1e-9


def files(made: Made, stem: str) -> dict[str, bytes]:
    """Contents of all plots by file name: ``STEM.errors.png`` and ``.svg``, ``STEM.sensitivity.png`` and ``.svg``."""
    found: dict[str, bytes] = {}
    for name, figure in (("errors", draw_errors(made)), ("sensitivity", draw_sensitivity(made))):
        for kind in ("png", "svg"):
            found[f"{stem}.{name}.{kind}"] = save(figure, kind, f"calibration: {name}")
    return found


def names(stem: str) -> list[str]:
    """The files that :func:`files` makes."""
    return [f"{stem}.{name}.{kind}" for name in ("errors", "sensitivity") for kind in ("png", "svg")]


def draw_errors(made: Made) -> Figure:
    """Above the total errors, below those that each stage makes itself: percentiles, the largest, and the limit."""
    from matplotlib.figure import Figure

    stages = [stage for stage in made.table.stages if stage.metrics]
    figure = Figure(
        figsize=(min(10 + max(len(stages) - 40, 0) / 40, 16), 7), layout="constrained", facecolor=LIGHT.paper
    )
    above, below = figure.subplots(2, 1, sharex=True)
    known = made.table.calibration
    title = (
        f"known-good errors of {known.samples} samples, and limits for {100 * known.false_alarm:g} % false alarms a run"
    )
    figure.suptitle(title, color=LIGHT.ink)
    for axes, metric, label in ((above, "rel_l2", "total error"), (below, "local_rel_l2", "the stage's own error")):
        limits = {place: stage.metrics[metric] for place, stage in enumerate(stages) if metric in stage.metrics}
        places = list(limits)
        spread = [[_shown(limit.p50, limit) for limit in limits.values()]]
        spread.append([_shown(limit.p99, limit) for limit in limits.values()])
        largest = [_shown(limit.max, limit) for limit in limits.values()]
        ends = [limit.limit for limit in limits.values()]
        axes.vlines(places, *spread, color=LIGHT.local, linewidth=3, alpha=0.5, label="50th to 99th percentile")
        axes.plot(places, largest, "o", color=LIGHT.local, markersize=3.5, label="largest")
        axes.plot(places, ends, "_", color=LIGHT.total, markersize=9, markeredgewidth=2, label="limit")
        axes.set_ylabel(f"{label}, relative L2")
        _dress(axes)
        _whole_decades(axes, [*spread[0], *largest, *ends])
    above.legend(loc="lower right", fontsize=8, framealpha=0.9)
    _stage_names(below, [stage.ref for stage in stages])
    return figure


def _shown(error: float, limit: MetricLimit) -> float:
    """An error as an axis with a logarithm can show it: none at all lies a decade under one unit in the last place."""
    return max(error, limit.least / 10)


def _whole_decades(axes: Axes, values: Sequence[float]) -> None:
    """An axis from one power of ten to another: else there may be a single number on it, or none."""
    if len(values):
        axes.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(1.1 * max(values))))


def _stage_names(axes: Axes, refs: Sequence[StageRef]) -> None:
    step = max(1, math.ceil(len(refs) / LABELS))
    ticks = list(range(0, len(refs), step))
    texts = [stage_name(refs[place]) for place in ticks]
    axes.set_xticks(ticks, texts, rotation=90, fontsize=8, parse_math=False)
    axes.set_xlim(-0.5, max(len(refs), 1) - 0.5)


def draw_sensitivity(made: Made) -> Figure:
    """The smallest fault that stages still show, against the rate of false alarms that a team can live with."""
    from matplotlib.figure import Figure

    caught = smallest_caught(made.columns, RATES)
    figure = Figure(figsize=(7, 5), layout="constrained", facecolor=LIGHT.paper)
    axes = figure.subplots()
    if caught:
        values = np.maximum(np.array(list(caught.values())), _NOTHING)
        worst = int(np.argmax(values[:, RATES.index(0.01)]))
        curves: list[tuple[Any, str, dict[str, Any]]] = [
            (np.median(values, axis=0), "half of the stages", {"color": LIGHT.local, "marker": "o"}),
            (
                np.percentile(values, 90, axis=0),
                "nine of ten stages",
                {"color": LIGHT.growth, "marker": "s", "ls": "--"},
            ),
            (
                values[worst],
                f"the widest: {text(str(list(caught)[worst]), LABEL_WIDTH)}",
                {"color": LIGHT.total, "marker": "^", "ls": ":"},
            ),
        ]
        for curve, label, style in curves:
            axes.plot(RATES, curve, label=label, **style)
        axes.legend(fontsize=8, framealpha=0.9)
    else:
        axes.text(0.5, 0.5, "no stage has an error of its own", transform=axes.transAxes, ha="center", color=LIGHT.ink)
    _dress(axes)
    if caught:
        _whole_decades(axes, values.ravel().tolist())
    axes.set_xscale("log")
    axes.set_xticks(RATES, [f"{100 * rate:g} %" for rate in RATES])
    axes.minorticks_off()
    axes.set_xlabel("false alarms a run, over all stages", color=LIGHT.ink)
    axes.set_ylabel("smallest fault that is caught, relative to the stage's value")
    axes.axvline(made.table.calibration.false_alarm, color=LIGHT.ink, linewidth=0.8, ls="-.")
    figure.suptitle("sensitivity of the limits", color=LIGHT.ink)
    return figure
