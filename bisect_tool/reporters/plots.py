"""``amplification.png`` and ``.svg``: where error is made, and what becomes of it from stage to stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bisect_tool.records import Report, StageRow
from bisect_tool.reporters import selecting, wording
from bisect_tool.reporters.plot_style import LABEL_WIDTH as LABEL_WIDTH
from bisect_tool.reporters.plot_style import LIGHT as _LIGHT
from bisect_tool.reporters.plot_style import bare, save, stage_name
from bisect_tool.reporters.plot_style import text as _text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Error and its growth by stage"
LABELS = 44
"""At most about so many stage names fit under the axis."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Beyond these a value counts as zero, or as off the scale: axes that reach further show nothing."""


@dataclass(frozen=True)
class _Series:
    """Values as an axis with a logarithm can show them: a curve, and marks for what has no place on it."""

    places: list[int]
    line: list[float]
    zeros: list[int]
    beyond: list[int]


@dataclass(frozen=True)
class _Look:
    """How a curve is drawn: matplotlib's words for markers and lines; ``size`` of the markers in points."""

    color: str
    marker: str
    line: str
    size: float


@dataclass(frozen=True)
class Images:
    """The plot in both of its forms."""

    png: bytes
    svg: str


def images(report: Report) -> Images:
    """Draw the plot once for all its forms. The same report gives the same bytes; text in an SVG stays text."""
    figure = draw(report)
    return Images(save(figure, "png", TITLE), save(figure, "svg", TITLE).decode())


def draw(report: Report) -> Figure:
    """Draw total and local error above, growth below, for the configuration that the terminal shows as well."""
    from matplotlib.figure import Figure

    config = selecting.main_config(report)
    rows = selecting.stage_rows(report) or selecting.group_rows(report)
    figure = Figure(
        figsize=(min(10 + max(len(rows) - 40, 0) / 40, 16), 7), layout="constrained", facecolor=_LIGHT.paper
    )
    errors, growth = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    title = f"{report.case.get('name') or 'model'}: {wording.STATUSES[report.verdict.status]}"
    figure.suptitle(_text(f"{title}, {config}" if config else title, 90), color=_LIGHT.ink, parse_math=False)
    _errors(errors, report, rows, config)
    _growth(growth, rows, config)
    for axes in (errors, growth):
        _dress(axes)
    _stage_names(growth, rows, _marked(report, rows, config))
    if not any(config in row.results for row in rows):
        errors.text(0.5, 0.5, "no stage was compared", transform=errors.transAxes, ha="center", color=_LIGHT.ink)
    return figure


def _errors(axes: Axes, report: Report, rows: Sequence[StageRow], config: str | None) -> None:
    results = [row.results.get(config or "") for row in rows]
    total = _series([result.total.rel_l2 if result else None for result in results])
    local = _series([wording.local_rel(result) if result else None for result in results])
    dtypes = [selecting.dtypes_under(report, config, [row]) for row in rows]
    limits = [
        max((wording.rel_limit(report.tolerance, dtype) or 0.0 for dtype in names), default=0) for names in dtypes
    ]
    low, high = _range([*total.line, *local.line, *(limit for limit in limits if limit)])
    size = _marker_size(len(rows))
    if any(limits):
        # with one stage a line has no length, so it is drawn from edge to edge of each stage's place
        x = [edge for index in range(len(rows)) for edge in (index - 0.5, index + 0.5)]
        y = [limit or math.nan for limit in limits for _ in range(2)]
        axes.plot(x, y, color=_LIGHT.ink, linestyle="-.", linewidth=1.2, label="tolerance")
    # larger: where both are the same, the local square frames the total's dot
    look = _Look(_LIGHT.local, "s", "--", size * 1.6 if size > 3 else size)
    _plot(axes, local, (low, high), look, "local: made in the stage itself")
    _plot(axes, total, (low, high), _Look(_LIGHT.total, "o", "-", size), "total: against PyTorch's run")
    for index, label in _marked(report, rows, config).items():
        if "first" in label:
            axes.axvline(index, color=_LIGHT.first, linestyle=":", linewidth=2, zorder=1)
            left = index < len(rows) / 2
            axes.annotate(
                "first diverging stage: " + _text(str(rows[index].ref), 60),
                (index, 1),
                xycoords=("data", "axes fraction"),
                xytext=(6 if left else -6, -6),
                textcoords="offset points",
                ha="left" if left else "right",
                va="top",
                color=_LIGHT.ink,
                fontsize=9,
                parse_math=False,
                bbox={"facecolor": _LIGHT.paper, "edgecolor": _LIGHT.first, "boxstyle": "round,pad=0.3"},
                zorder=6,
            )
    _origins(axes, report, rows, config, (low, high))
    axes.set_ylim(low / 2, high * 30)  # room for the label above the curves
    axes.set_ylabel("relative L2 error")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.01),
            ncols=3,
            frameon=False,
            labelcolor=_LIGHT.ink,
            fontsize=9,
            borderaxespad=0,
        )


def _origins(
    axes: Axes, report: Report, rows: Sequence[StageRow], config: str | None, ends: tuple[float, float]
) -> None:
    x, y = [], []
    for index, label in _marked(report, rows, config).items():
        result = rows[index].results.get(config or "")
        value = wording.local_rel(result) if result else None
        if "origin" in label:
            x.append(index)
            y.append(_clamp(value if value is not None else math.nan, ends))
    if x:
        axes.plot(
            x,
            y,
            linestyle="none",
            marker="*",
            markersize=17,
            markerfacecolor=_LIGHT.origin,
            markeredgecolor=_LIGHT.ink,
            label="origin: the error is made here",
            zorder=5,
        )


def _growth(axes: Axes, rows: Sequence[StageRow], config: str | None) -> None:
    results = [row.results.get(config or "") for row in rows]
    series = _series([result.growth if result else None for result in results])
    low, high = _range([1.0, *series.line])
    axes.axhline(1, color=_LIGHT.ink, linewidth=1, linestyle="-.")
    look = _Look(_LIGHT.growth, "D", "-", _marker_size(len(rows)))
    _plot(axes, series, (low, high), look, "growth", legend=False)
    axes.set_ylim(low / 2, high * 2)
    axes.set_ylabel("growth\n(error out / in)")


def _plot(
    axes: Axes,
    series: _Series,
    ends: tuple[float, float],
    look: _Look,
    label: str,
    *,
    legend: bool = True,
) -> None:
    """Draws a curve; ``ends``: where zeros and what is beyond the scale are marked."""
    name = label if legend else "_" + label
    shared: dict[str, Any] = {"color": look.color, "markersize": look.size, "zorder": 3}
    if not all(map(math.isnan, series.line)):
        axes.plot(
            series.places, series.line, marker=look.marker, linestyle=look.line, linewidth=1.4, label=name, **shared
        )
    short = label.partition(":")[0]
    hollow = {**shared, "markersize": look.size + 2, "markerfacecolor": "none", "linestyle": "none", "zorder": 4}
    if series.zeros:
        mark = f"{short}: zero" if legend else "_zero"
        axes.plot(series.zeros, [ends[0]] * len(series.zeros), marker="v", label=mark, **hollow)
    if series.beyond:
        mark = f"{short}: NaN or infinite" if legend else "_beyond"
        axes.plot(series.beyond, [ends[1]] * len(series.beyond), marker="x", label=mark, **hollow)


def _series(values: Sequence[float | None]) -> _Series:
    """Sort values into those with a place on the axis, zeros, and those beyond every scale.

    The curve breaks at the latter two. It runs on over stages without a value: exporters fold many away.
    """
    places: list[int] = []
    line: list[float] = []
    zeros, beyond = [], []
    for index, value in enumerate(values):
        if value is None:
            continue
        shown = math.nan
        if not abs(value) < LARGEST:  # NaN as well
            beyond.append(index)
        elif abs(value) < SMALLEST:
            zeros.append(index)
        else:
            shown = value
        places.append(index)
        line.append(shown)
    return _Series(places, line, zeros, beyond)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The places for zeros and for what is beyond the scale: a decade outside everything else."""
    finite = [value for value in values if SMALLEST <= value <= LARGEST]
    if not finite:
        return 1e-9, 1.0
    return min(finite) / 10, max(finite) * 10


def _clamp(value: float, ends: tuple[float, float]) -> float:
    return ends[1] if math.isnan(value) else min(max(value, ends[0]), ends[1])


def _marked(report: Report, rows: Sequence[StageRow], config: str | None) -> dict[int, str]:
    """Numbers of the rows that the eye should find."""
    first, origins = selecting.first_ref(report, config), selecting.origin_refs(report, config)
    words = {
        index: ("first " if row.ref == first else "") + ("origin" if row.ref in origins else "")
        for index, row in enumerate(rows)
    }
    return {index: word for index, word in words.items() if word}


def _stage_names(axes: Axes, rows: Sequence[StageRow], marked: dict[int, str]) -> None:
    step = max(1, math.ceil(len(rows) / LABELS))
    important = sorted(marked)[:LABELS]
    ticks = important + [
        index for index in range(0, len(rows), step) if all(abs(index - other) >= step for other in important)
    ]
    ticks.sort()
    names = [stage_name(rows[index].ref) for index in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=8, parse_math=False)
    axes.set_xlim(-0.5, max(len(rows), 1) - 0.5)


def _dress(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    bare(axes)
    axes.grid(True, color=_LIGHT.grid, linewidth=0.6)


def _marker_size(count: int) -> float:
    return 5 if count <= 60 else 2.5
