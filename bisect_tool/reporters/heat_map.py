"""``heatmap.png`` and ``.svg`` of a matrix: the total error of each stage under each configuration.

Darker is worse, and lightness alone says so. A cell with a cross fails; a column's first failing stage has a triangle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bisect_tool.records import ConfigRun, Report, StageRow
from bisect_tool.reporters import selecting, wording
from bisect_tool.reporters.plot_style import LIGHT, bare, stage_name, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Error of each stage under each configuration"
COLORMAP = "cividis_r"
"""Evenly darker from end to end, and the same for colour-blind eyes."""
LOWEST, HIGHEST = -8, 0
"""Decades of the colour scale; what lies beyond has the colour of its end."""
NUMBERS = 260
"""Cells up to which each holds its number."""
NAMED_ROWS = 60
"""Stages up to which each has its name, and each failing cell its cross."""
MISSING = "////"
LETTER = 0.072
"""Inches that a letter of a name takes."""


def applies(report: Report) -> bool:
    """Whether the report is that of a matrix, with stages under more than one configuration."""
    return selecting.is_matrix(report) and len(columns(report)) > 1


def columns(report: Report) -> list[ConfigRun]:
    """Configurations with results, those that were only tried to explain others left out."""
    rows = selecting.stage_rows(report)
    return [
        run
        for run in report.configs
        if not selecting.is_trial(run, report) and any(run.name in row.results for row in rows)
    ]


def rows_of(report: Report) -> list[StageRow]:
    """Stages that any of the columns compares."""
    names = {run.name for run in columns(report)}
    return [row for row in selecting.stage_rows(report) if names & row.results.keys()]


def draw(report: Report) -> Figure:
    """Draw the map; stages go down, configurations to the right."""
    import matplotlib
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    runs, rows = columns(report), rows_of(report)
    ticks = _ticks(report, rows)
    names = [stage_name(rows[index].ref) for index in ticks]
    heads = [f"{text(run.name, 26)}{'' if run.gating else ' *'}: {wording.STATUSES[run.status]}" for run in runs]
    # Room for names, in inches: measured by matplotlib itself it takes longer than all the rest.
    left, top = 0.4 + LETTER * max(map(len, names)), 0.7 + 0.9 * LETTER * max(map(len, heads))
    right, bottom = max(1.3, 0.5 * LETTER * max(map(len, heads))), 0.5
    across = min(max(0.7 * len(runs), 3.6), 30)
    down = min(max(0.26 * len(rows), 1.6), 14.5)
    width, height = left + across + right, top + down + bottom
    figure = Figure(figsize=(width, height), facecolor=LIGHT.paper)
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    colors = matplotlib.colormaps[COLORMAP]
    norm = Normalize(LOWEST, HIGHEST)
    levels = np.full((len(rows), len(runs)), np.nan)
    for y, row in enumerate(rows):
        for x, run in enumerate(runs):
            result = row.results.get(run.name)
            if result is not None:
                levels[y, x] = level(result.total.rel_l2)
    axes.patch.set_hatch(MISSING)
    axes.patch.set_edgecolor(LIGHT.grid)
    masked = np.ma.masked_invalid(levels)
    axes.imshow(masked, cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
    _marks(axes, rows, runs, levels)
    axes.set_yticks(ticks, names, fontsize=8, parse_math=False)
    axes.set_xticks(range(len(runs)), heads, rotation=60, ha="left", rotation_mode="anchor", fontsize=8)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.xaxis.tick_top()
    bare(axes)
    axes.set_facecolor(LIGHT.paper)
    beside = figure.add_axes(((left + across + 0.15) / width, bottom / height, 0.18 / width, min(down, 6) / height))
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=beside)
    marks = range(LOWEST, HIGHEST + 1, 2)
    bar.set_ticks(list(marks), labels=[f"1e{mark:+03d}" for mark in marks])
    bar.set_label("total relative L2 error", color=LIGHT.ink)
    bar.ax.tick_params(colors=LIGHT.ink)
    title = f"{report.case.get('name') or 'model'}: {TITLE[0].lower()}{TITLE[1:]}"
    high = 1 - 0.25 / height
    figure.text(0.1 / width, high, text(title, 90), color=LIGHT.ink, fontsize=12, va="center", parse_math=False)
    legend = _legend(len(rows), any(not run.gating for run in runs))
    figure.text(0.1 / width, 0.2 / height, legend, color=LIGHT.ink, fontsize=8, va="center")
    return figure


def level(rel_l2: float) -> float:
    """A relative error's place on the scale, in decades; what is NaN or infinite has the worst."""
    if not rel_l2 < math.inf:
        return float(HIGHEST)
    return float(LOWEST) if rel_l2 <= 0 else min(max(math.log10(rel_l2), LOWEST), HIGHEST)


def _legend(count: int, explores: bool) -> str:
    marks = "triangle: the first stage that fails; hatched: not compared"
    marks = f"cross: fails; {marks}" if count <= NAMED_ROWS else marks
    return marks + ("; * explores only" if explores else "")


def _marks(axes: Axes, rows: Sequence[StageRow], runs: Sequence[ConfigRun], levels: Any) -> None:
    """Numbers, crosses and triangles, in ink or paper, whichever is read better on the cell."""
    numbers = len(rows) * len(runs) <= NUMBERS
    for x, run in enumerate(runs):
        first = True
        for y, row in enumerate(rows):
            result = row.results.get(run.name)
            if result is None:
                continue
            color = LIGHT.paper if levels[y, x] > (LOWEST + HIGHEST) / 2 else LIGHT.ink
            fails = result.judgement == "fail"
            if numbers:
                words = ("× " if fails else "") + wording.sci(result.total.rel_l2)
                axes.text(x, y, words, ha="center", va="center", fontsize=7, color=color)
            elif fails and len(rows) <= NAMED_ROWS:
                axes.plot(x, y, marker="x", markersize=4, color=color)
            if fails and first:
                first = False
                shape: dict[str, Any] = {"marker": ">", "markersize": 7, "zorder": 5, "clip_on": False}
                axes.plot(x - 0.5, y, markerfacecolor=LIGHT.origin, markeredgecolor=LIGHT.ink, **shape)


def _ticks(report: Report, rows: Sequence[StageRow]) -> list[int]:
    """Stages that are named: all of a short model; of a long one every so many, and those that matter."""
    refs = {origin.ref for origin in report.verdict.origins}
    if report.verdict.first_over_tolerance is not None:
        refs.add(report.verdict.first_over_tolerance.ref)
    step = max(1, math.ceil(len(rows) / NAMED_ROWS))
    marked = [index for index, row in enumerate(rows) if row.ref in refs][:NAMED_ROWS]
    spaced = [index for index in range(0, len(rows), step) if all(abs(index - other) >= step for other in marked)]
    return sorted({*marked, *spaced})
