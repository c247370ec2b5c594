"""``waterfall.png`` and ``.svg``: which stages make the final error, piled up from 0 to 100 %.

Bars stand in the order of the computation, each beginning where the one before it ends. Of a long model the stages
that make most have a bar of their own, and each stretch between them one together, so that the bars still add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bisect_tool.records import Report, StageRow
from bisect_tool.reporters import selecting, wording
from bisect_tool.reporters.plot_style import LIGHT, bare, stage_name, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Where the final error is made"
OWN_BARS = 14
"""Stages that have a bar of their own at most."""
LEAST = 0.01
"""Share under which a stage has none, unless it is an origin."""
ALWAYS = 3
"""Stages with the largest shares that have one where none makes as much."""


SEEN = 0.0005
"""Share of several stages together under which they have no bar: it would be a line."""


@dataclass(frozen=True)
class Bar:
    """``start`` and ``share`` of the final error, 0 to 1; ``stages`` that it stands for."""

    name: str
    start: float
    share: float
    stages: int
    origin: bool


def applies(report: Report) -> bool:
    """Whether something diverges, and it was measured where its error is made."""
    config = selecting.main_config(report)
    return selecting.shows_shares(report, config) and bool(bars(report, config))


def bars(report: Report, config: str | None) -> list[Bar]:
    """The bars from top to bottom; () where no stage makes a share of the error."""
    rows = [row for row in selecting.stage_rows(report) if config is not None and config in row.results]
    shares = [row.results[config].share or 0.0 if config is not None else 0.0 for row in rows]
    if not any(shares):
        return []
    origins = selecting.origin_refs(report, config)
    own = _own(rows, shares, [row.ref in origins for row in rows])
    found: list[Bar] = []
    start = 0.0
    waiting: list[float] = []

    def pile() -> None:
        nonlocal start
        if sum(waiting) >= SEEN:
            found.append(Bar(f"{wording.plural(len(waiting), 'stage')} more", start, sum(waiting), len(waiting), False))
        start += sum(waiting)
        waiting.clear()

    for number, (row, share) in enumerate(zip(rows, shares, strict=True)):
        if number not in own:
            waiting.append(share)
            continue
        pile()
        found.append(Bar(str(row.ref), start, share, 1, row.ref in origins))
        start += share
    pile()
    return found


def _own(rows: Sequence[StageRow], shares: Sequence[float], origins: Sequence[bool]) -> set[int]:
    """Numbers of the rows with a bar of their own: those that make most, origins before others of like size."""
    by_share = sorted(range(len(rows)), key=lambda number: (-shares[number], not origins[number]))
    chosen = [number for number in by_share if shares[number] >= LEAST or origins[number]]
    return set((chosen or by_share[:ALWAYS])[:OWN_BARS])


def draw(report: Report) -> Figure:
    """Draw the bars of the configuration that the terminal shows as well; there must be some."""
    from matplotlib.figure import Figure

    config = selecting.main_config(report)
    found = bars(report, config)
    height = 1.7 + 0.32 * len(found)
    figure = Figure(figsize=(10, height), facecolor=LIGHT.paper)
    axes = figure.add_axes((0.29, 0.62 / height, 0.67, 1 - 1.42 / height))
    title = f"{report.case.get('name') or 'model'}: {TITLE[0].lower()}{TITLE[1:]}"
    figure.text(
        0.02,
        1 - 0.24 / height,
        text(f"{title}, {config}", 90),
        color=LIGHT.ink,
        fontsize=12,
        va="center",
        parse_math=False,
    )
    for place, bar in enumerate(found):
        rest = bar.stages > 1 or bar.name.endswith(" more")
        color = LIGHT.origin if bar.origin else LIGHT.grid if rest else LIGHT.local
        axes.barh(
            place,
            bar.share,
            left=bar.start,
            height=0.66,
            color=color,
            edgecolor=LIGHT.ink,
            linewidth=0.8,
            hatch="///" if bar.origin else None,
        )
        end = bar.start + bar.share
        # Behind the bar; where it reaches the right edge before it, and where it has no room there either on it.
        at, side = (end + 0.008, "left") if end <= 0.9 else (bar.start - 0.008, "right")
        if end > 0.9 and bar.start < 0.1:
            at, side = (bar.start + end) / 2, "center"
        axes.text(
            at,
            place,
            wording.percent(bar.share, 1),
            ha=side,
            va="center",
            fontsize=9,
            color=LIGHT.ink,
            bbox={"facecolor": LIGHT.paper, "edgecolor": "none", "pad": 1, "alpha": 0.85},
        )
        if place + 1 < len(found):
            axes.plot([end, end], [place, place + 1], color=LIGHT.ink, linewidth=0.7, linestyle=":", zorder=0)
    names = [("* " if bar.origin else "") + stage_name(bar.name) for bar in found]
    axes.set_yticks(range(len(found)), names, fontsize=9, parse_math=False)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(0, 1.0)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of the squared error of the model's outputs")
    axes.grid(True, axis="x", color=LIGHT.grid, linewidth=0.6)
    bare(axes)
    if any(bar.origin for bar in found):
        figure.text(
            0.29,
            1 - 0.56 / height,
            "* hatched: an origin, which makes more error than rounding explains",
            color=LIGHT.ink,
            fontsize=9,
            va="center",
        )
    return figure
