"""The error of each stage as a drawing for the page: where it lies is reckoned here, the template makes SVG of it.

Each stage is a link to its row of the table, with its numbers beside it, so that nothing of it needs a script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from bisect_tool.records import Comparison, Report, StageRef, StageRow
from bisect_tool.reporters import selecting, wording

SMALLEST, LARGEST = 1e-30, 1e30
"""Beyond these a value counts as zero, or as off the scale."""

HEIGHT = 270
TOP, LEFT, RIGHT = 42, 62, 14

_CHARACTER = 7.3
_LINE = 17
_LABELS = 40
_LABEL = 24


@dataclass(frozen=True, slots=True)
class Mark:
    """A value: ``point`` on the curve, ``zero`` at the bottom, or ``beyond`` the scale at the top (NaN too)."""

    x: float
    y: float
    kind: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One kind of error over all stages: ``name`` is its class, ``path`` its line as SVG has it."""

    name: str
    label: str
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """What belongs to one stage: the place where one points at it, and its numbers.

    Attributes:
        anchor: of its row.
        left, width: of the strip that one points at. x: of its middle.
        lines: its numbers; the first is its name.
        tip: left edge and width of the box with the lines.
        stop: reached with the tabulator key; the others with arrow keys.
    """

    anchor: str
    left: float
    width: float
    x: float
    lines: tuple[str, ...]
    tip: tuple[float, float]
    stop: bool


@dataclass(frozen=True, slots=True)
class ErrorPlot:
    """All of it, in units of the drawing.

    Attributes:
        left, right, top, bottom: of the part with the curves.
        limits, floors: the tolerance and the noise floors as paths; empty where there are none.
        ticks: of the error axis, place and text. names: of stages, the same.
        first: place and text of the first diverging stage, and whether the text goes to the right of it.
        origins: where stars go.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    curves: tuple[Curve, ...]
    limits: str
    floors: str
    ticks: tuple[tuple[float, str], ...]
    names: tuple[tuple[float, str], ...]
    first: tuple[float, str, bool] | None
    origins: tuple[tuple[float, float], ...]
    spots: tuple[Spot, ...]


def propagated(result: Comparison) -> float | None:
    """Relative error that a stage only handed on; ``None`` where it was not measured."""
    if result.local is None:
        return None
    if result.input_error == 0:
        return 0.0
    if result.amplification is None or result.input_error is None:
        return None
    return result.amplification * result.input_error


def error_plot(report: Report, config: str | None) -> ErrorPlot | None:
    """The drawing for one configuration; ``None`` where no stage was compared under it."""
    rows = selecting.stage_rows(report) or selecting.group_rows(report)
    found = [(row, row.results[config]) for row in rows if config in row.results] if config is not None else []
    if not found or config is None:
        return None
    results = [row.results.get(config) for row in rows]
    limits = [_limit(report, config, row) for row in rows]
    floors = [result.floor if result else None for result in results]
    # In the order in which they are drawn: what is judged lies on top.
    kinds = {
        "propagated": [propagated(result) if result else None for result in results],
        "local": [wording.local_rel(result) if result else None for result in results],
        "total": [result.total.rel_l2 if result else None for result in results],
    }
    scale = _Scale.of([value for values in (*kinds.values(), limits, floors) for value in values])
    width = 1000.0 if len(rows) <= 160 else 1200.0 if len(rows) <= 900 else 2000.0
    step = (width - LEFT - RIGHT) / len(rows)
    middles = [LEFT + (index + 0.5) * step for index in range(len(rows))]
    labels = {
        "total": "total: the second recording against the first" if report.chain else "total: against PyTorch's run",
        "local": "local: made in the stage itself",
        "propagated": "propagated: handed on from before",
    }
    curves = tuple(
        _curve(name, labels[name], middles, values, scale)
        for name, values in kinds.items()
        if any(value is not None for value in values)
    )
    first, origins = selecting.first_ref(report, config), selecting.origin_refs(report, config)
    marked = {index for index, row in enumerate(rows) if row.ref == first or row.ref in origins}
    worst = selecting.worst_row(rows, config)
    worst_index = next((index for index, row in enumerate(rows) if row is worst), 0)
    stops = marked or {worst_index}
    spots = tuple(
        _spot(row, result, _words(row, first, origins), LEFT + index * step, step, width, index in stops)
        for index, (row, result) in enumerate(zip(rows, results, strict=True))
    )
    names = tuple(_names(rows, middles, sorted(marked), [result is not None for result in results]))
    # Below the axis there are the names, or over them the numbers of the stage that is pointed at.
    below = max([*(len(name) * _CHARACTER + 20 for _, name in names), *(tip_height(spot) + 10 for spot in spots)])
    starts = [index for index, row in enumerate(rows) if row.ref == first]
    return ErrorPlot(
        width=width,
        height=HEIGHT + round(below),
        left=LEFT,
        right=width - RIGHT,
        top=TOP - 12,
        bottom=HEIGHT,
        curves=curves,
        limits=_steps(middles, step, [limit if limit else None for limit in limits], scale),
        floors=_steps(middles, step, floors, scale),
        ticks=tuple(scale.ticks()),
        names=names,
        first=(middles[starts[0]], str(first), starts[0] < len(rows) / 2) if starts else None,
        origins=tuple(
            (middles[index], scale.y(value if value is not None else math.nan))
            for index, row in enumerate(rows)
            if row.ref in origins
            for value in [kinds["local"][index]]
        ),
        spots=spots,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Decades from ``low`` to ``high`` over the height."""

    low: int
    high: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> _Scale:
        finite = [math.log10(value) for value in values if value is not None and SMALLEST <= value <= LARGEST]
        if not finite:
            return cls(-9, 0)
        low, high = math.floor(min(finite) - 0.3), math.ceil(max(finite) + 0.3)
        return cls(low, max(high, low + 2))

    def y(self, value: float) -> float:
        """Zeros lie on the axis; what is beyond the scale, NaN too, at the top."""
        if not abs(value) <= LARGEST:
            return TOP + 8
        if value < SMALLEST:
            return HEIGHT - 6
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return HEIGHT - 14 - share * (HEIGHT - 14 - TOP - 18)

    def ticks(self) -> list[tuple[float, str]]:
        step = max(1, math.ceil((self.high - self.low) / 8))
        return [(self.y(10.0**power), f"1e{power:+03d}") for power in range(self.low, self.high + 1, step)]


def _limit(report: Report, config: str, row: StageRow) -> float | None:
    names = selecting.dtypes_under(report, config, [row])
    return max((wording.rel_limit(report.tolerance, name) or 0.0 for name in names), default=0.0) or None


def _curve(name: str, label: str, middles: Sequence[float], values: Sequence[float | None], scale: _Scale) -> Curve:
    """The line runs on over stages without a value, for exporters fold many away; it breaks where a value has no place."""
    marks: list[Mark] = []
    pieces: list[str] = []
    drawn = False
    for x, value in zip(middles, values, strict=True):
        if value is None:
            continue
        kind = "beyond" if not abs(value) <= LARGEST else "zero" if value < SMALLEST else "point"
        y = scale.y(value)
        marks.append(Mark(x, y, kind))
        if kind == "point":
            pieces.append(f"{'L' if drawn else 'M'}{x:.1f} {y:.1f}")
        drawn = kind == "point"
    return Curve(name, label, "".join(pieces), tuple(marks))


def _steps(middles: Sequence[float], step: float, values: Sequence[float | None], scale: _Scale) -> str:
    """A level for each stage, over the whole of its place; neighbours of one height are one line."""
    pieces: list[str] = []
    level: float | None = None
    for x, value in zip(middles, values, strict=True):
        y = None if value is None or not SMALLEST <= value <= LARGEST else round(scale.y(value), 1)
        if y is not None:
            # The end of a level that goes on is moved, not added to.
            if y == level:
                pieces[-1] = f"H{x + step / 2:.1f}"
            else:
                pieces += [f"M{x - step / 2:.1f} {y}", f"H{x + step / 2:.1f}"]
        level = y
    return "".join(pieces)


def _words(row: StageRow, first: StageRef | None, origins: Set[StageRef]) -> list[str]:
    return [*(["first diverging stage"] if row.ref == first else []), *(["origin"] if row.ref in origins else [])]


def _spot(
    row: StageRow, result: Comparison | None, words: Sequence[str], left: float, step: float, width: float, stop: bool
) -> Spot:
    name = wording.printable(row.ref)
    about = ", ".join(
        [
            *words,
            row.type,
            *([row.source] if row.source else []),
            wording.JUDGEMENTS[result.judgement] if result else "n/c",
        ]
    )
    numbers = [] if result is None else _numbers(result)
    lines = [wording.shorten_middle(name, 70), wording.shorten_middle(wording.printable(about), 84), *numbers]
    x = left + step / 2
    box = min(max(map(len, lines)) * _CHARACTER + 20, width - 8)
    tip = min(max(x - box / 2, 4), width - box - 4)
    return Spot(f"r{row.index}", left, step, x, tuple(lines), (tip, box), stop)


def _numbers(result: Comparison) -> list[str]:
    if result.total.problem is not None:
        return [wording.shorten_middle(wording.printable(result.total.problem), 84)]
    own, handed = wording.local_rel(result), propagated(result)
    first = [f"total {wording.sci(result.total.rel_l2)}"]
    first += [] if own is None else [f"local {wording.sci(own)}"]
    first += [] if handed is None else [f"propagated {wording.sci(handed)}"]
    second = [
        f"{word} {text}"
        for word, value, text in (
            ("growth", result.growth, wording.ratio(result.growth)),
            ("noise ratio", result.noise_ratio, wording.ratio(result.noise_ratio)),
            ("of the final error", result.share, wording.share_text(result.share)),
        )
        if value is not None
    ]
    third = [f"largest difference {wording.sci(result.total.max_abs)}"] if not math.isnan(result.total.max_abs) else []
    return [", ".join(part) for part in (first, second, third) if part]


def _names(
    rows: Sequence[StageRow], middles: Sequence[float], marked: Sequence[int], compared: Sequence[bool]
) -> list[tuple[float, str]]:
    """As many names as there is room for: those of marked stages first, then of stages that have a point."""
    apart = max(1.0, len(rows) / _LABELS)
    chosen: list[int] = []
    for index in (*marked, *(index for index, known in enumerate(compared) if known)):
        if all(abs(index - other) >= apart for other in chosen):
            chosen.append(index)
    short = {index: wording.initials(wording.printable(rows[index].ref), _LABEL) for index in sorted(chosen)}
    return [(middles[index], wording.shorten_middle(name, _LABEL)) for index, name in short.items()]


def tip_height(spot: Spot) -> float:
    """Of the box with a stage's lines."""
    return len(spot.lines) * _LINE + 10
