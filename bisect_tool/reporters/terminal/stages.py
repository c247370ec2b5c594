"""The table of stages: which rows and columns it has, and what its marks mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bisect_tool.records import Comparison, Report, StageRef, StageRow
from bisect_tool.reporters import selecting, wording
from bisect_tool.reporters.layout import Column, Page, Row, Span

FULL_TABLE = 24
"""Longer tables are cut down to the rows that matter."""
AGREEING_TABLE = 8
"""The same where all agree: then few rows say all."""
NEIGHBOURS = 4
EDGE = 3
ORIGINS_IN_TABLE = 5
COSTS_IN_TABLE = 3
SHARES_FROM = 120
"""Narrower terminals have no room for where the error is made."""
_JUDGEMENT_STYLES = {"pass": "green", "fail": "bold red", "not compared": "dim"}


def stage_table(
    page: Page, report: Report, config: str | None, title: str, rows: Sequence[StageRow], all_stages: bool
) -> list[str]:
    first = selecting.first_ref(report, config)
    origins = selecting.origin_refs(report, config)
    dtypes = selecting.dtypes_under(report, config, rows)
    tolerance = wording.tolerance_text(report.tolerance, dtypes, floors=wording.has_floors(report))
    page.line((f"{title} under {config}" if config is not None else title, "bold"))
    by = "tolerance:" if report.tolerance.source == "user" else "judged by"
    page.prose(f"{by} {tolerance}", style="dim")
    if not all_stages:
        # Folded stages have no numbers; the head line counts them, and --all-stages shows them.
        rows = [row for row in rows if _result(row, config) is not None] or rows
    if report.chain and rows and not all_stages and all(_is_equal(row, config) for row in rows):
        count = "the one stage is" if len(rows) == 1 else f"all {len(rows)} stages are"
        page.prose(f"{count} equal; --all-stages shows {'it' if len(rows) == 1 else 'them'}", indent="    ")
        return []
    # Containers are there because the user asked for them.
    asked = all(row.level == "container" for row in rows)
    full = AGREEING_TABLE if report.verdict.status == "agrees" and not asked else FULL_TABLE
    origins_shown = _shown_origins(report, config)
    keep = range(len(rows)) if all_stages else _interesting(rows, config, first, origins_shown, full)
    with_noise = any(r.noise_ratio is not None for row in rows if (r := _result(row, config)))
    with_sqnr = any(r.quantised is not None for row in rows if (r := _result(row, config)))
    with_share = with_sqnr or (page.width >= SHARES_FROM and selecting.shows_shares(report, config))
    with_amplification = selecting.is_matrix(report) and any(
        result.amplification is not None for row in rows if (result := _result(row, config))
    )
    columns = (
        Column("  "),  # the marks; as wide without any, so that sub-headers stand over their rows
        Column("stage", minimum=20 if page.width < 100 else 36),
        Column("type", minimum=12, cut="end", drop=5),
        Column("shape", drop=3),
        Column("max abs", right=True, drop=8 if with_sqnr else 1),
        Column("mean abs", right=True, drop=8 if with_sqnr else 4),
        *((Column("SQNR", right=True), Column("by itself", right=True)) if with_sqnr else ()),
        Column("rel-L2", right=True, drop=7 if with_sqnr else 0),
        # Two recordings have no model to run a stage by itself.
        *(() if report.chain else (Column("local", right=True, drop=7 if with_sqnr else 0),)),
        *((Column("made here", right=True, drop=1 if with_sqnr else 7),) if with_share else ()),
        Column("growth", right=True, drop=2),
        *((Column("amplified", right=True, drop=4),) if with_amplification else ()),
        *((Column("noise", right=True, drop=0 if report.chain else 6),) if with_noise else ()),
        Column(""),
    )
    extra = _Extra(with_noise, with_share, with_amplification, with_sqnr, not report.chain)
    return page.table(columns, list(_entries(rows, set(keep), config, first, origins, extra)))


@dataclass(frozen=True, slots=True)
class _Extra:
    """Columns that not every table has."""

    noise: bool
    share: bool
    amplification: bool
    sqnr: bool = False
    local: bool = True


def _is_equal(row: StageRow, config: str | None) -> bool:
    """Whether both sides hold the same numbers; of what was not compared nobody knows."""
    result = _result(row, config)
    return result is not None and result.judgement == "pass" and result.total.rel_l2 == 0 and not result.total.differing


def _result(row: StageRow, config: str | None) -> Comparison | None:
    return row.results.get(config) if config is not None else None


def _shown_origins(report: Report, config: str | None) -> frozenset[StageRef]:
    listed = [origin.ref for origin in report.verdict.origins if origin.config == config]
    dear = [cost.ref for cost in report.verdict.costs[:COSTS_IN_TABLE] if cost.config == config]
    return frozenset([*listed[:ORIGINS_IN_TABLE], *dear])


def _interesting(
    rows: Sequence[StageRow], config: str | None, first: StageRef | None, origins: frozenset[StageRef], full: int
) -> list[int]:
    """Rows worth reading in a table of more than ``full``: both ends, the worst stage, what lies around the divergence."""
    count = len(rows)
    if count <= full:
        return list(range(count))
    edge = EDGE if full >= FULL_TABLE else 1
    keep = {*range(edge), *range(count - edge, count)}
    worst = selecting.worst_row(rows, config)
    for number, row in enumerate(rows):
        if row.ref == first or row.ref in origins:
            keep.update(range(max(0, number - NEIGHBOURS), min(count, number + NEIGHBOURS + 1)))
        elif row is worst:
            keep.add(number)
    # a gap of one row costs a line either way
    keep.update(number for number in range(1, count - 1) if {number - 1, number + 1} <= keep)
    return sorted(keep)


def _entries(
    rows: Sequence[StageRow],
    keep: set[int],
    config: str | None,
    first: StageRef | None,
    origins: frozenset[StageRef],
    extra: _Extra,
) -> Iterator[Row | Span]:
    group = ""
    part: str | None = None
    left_out: list[StageRow] = []
    for number, row in enumerate(rows):
        if row.part != part:
            if left_out:
                yield Span(_left_out_text(left_out, config), fold=True)
                left_out = []
            part, group = row.part, ""
            yield Span(f"  part {wording.printable(part)}, on PyTorch's inputs", "")
        if number not in keep:
            left_out.append(row)
            continue
        if left_out:
            yield Span(_left_out_text(left_out, config), fold=True)
            left_out = []
        if row.group != group:
            group = row.group
            if group:  # rows of the model itself stand where sub-headers do, and need none
                yield Span(f"    {wording.printable(group)}")
        yield _stage_row(row, _result(row, config), first, origins, extra)
    if left_out:
        yield Span(_left_out_text(left_out, config), fold=True)


def _decibels(result: Comparison | None) -> tuple[str, str]:
    """A quantised stage in dB: in the graph's own run, and by itself."""
    quality = result.quantised if result else None
    return (
        wording.decibels(result.total.sqnr_db if result else None),
        wording.decibels(quality.local_sqnr_db if quality else None),
    )


def _left_out_text(rows: Sequence[StageRow], config: str | None) -> str:
    results = [_result(row, config) for row in rows]
    counts = {
        name: sum((result.judgement if result else "not compared") == name for result in results)
        for name in wording.JUDGEMENTS
    }
    parts = [f"{count} {wording.JUDGEMENTS[name]}" for name, count in counts.items() if count]
    what = ", ".join(parts) if len(parts) > 1 else "all " + parts[0].partition(" ")[2]
    return f"    ... {wording.plural(len(rows), 'stage')} left out, {what}; --all-stages shows them"


def _stage_row(
    row: StageRow,
    result: Comparison | None,
    first: StageRef | None,
    origins: frozenset[StageRef],
    extra: _Extra,
) -> Row:
    judgement: Literal["pass", "fail", "not compared"] = result.judgement if result else "not compared"
    mark = (">" if row.ref == first else "") + ("*" if row.ref in origins else "")
    total = result.total if result else None
    whole = None if total is None or wording.is_estimate(total) else total
    numbers = [
        wording.sci(whole.max_abs if whole else None),
        wording.sci(whole.mean_abs if whole else None),
        *(_decibels(result) if extra.sqnr else ()),
        wording.sci(total.rel_l2 if total else None),
        *((wording.sci(wording.local_rel(result) if result else None),) if extra.local else ()),
        *((wording.share_text(result.share if result else None),) if extra.share else ()),
        wording.ratio(result.growth if result else None),
        *((wording.ratio(result.amplification if result else None),) if extra.amplification else ()),
    ]
    if extra.noise:
        numbers.append(wording.ratio(result.noise_ratio if result else None))
    indent = "  " if row.group else ""
    cells = (
        mark,
        indent + _label(row),
        row.type,
        wording.shape_text(row.shape),
        *numbers,
        wording.JUDGEMENTS[judgement],
    )
    note = f"{wording.JUDGEMENTS[judgement]}: {total.problem}" if total and total.problem else None
    last = len(cells) - 1
    number_style = "dim" if judgement == "not compared" else ""
    styles = [(0, "bold red"), (last, _JUDGEMENT_STYLES[judgement])]
    if note is not None:
        styles.append((4, _JUDGEMENT_STYLES[judgement]))
    elif judgement == "fail":
        styles.append((6, "red"))
    return Row(cells, tuple(styles), "bold" if mark else number_style, note, note_from=4)


def _label(row: StageRow) -> str:
    """The stage's name under its group's sub-header."""
    text = str(row.ref)
    if row.group and row.stage.startswith(row.group + "."):
        return text[len(row.group) + 1 :]
    if row.group and row.stage.startswith(row.group + "/"):
        return text[len(row.group) :]
    return text


def legend(page: Page, report: Report, config: str | None, columns: Sequence[str], all_stages: bool) -> None:
    """Explain the marks and the less obvious columns, those only that are on the page."""
    refs = {row.ref for row in report.stages}
    results = [_result(row, config) for row in report.stages]
    marks = []
    if selecting.first_ref(report, config) in refs:
        marks.append("> first diverging stage")
    if selecting.origin_refs(report, config) & refs:
        marks.append("* the error is made here")
    without = [result is None or result.judgement == "not compared" for result in results]
    if all(without) or (all_stages and any(without)):
        marks.append("n/c not compared")
    words = []
    if "local" in columns and any(result is not None and result.local is not None for result in results):
        words.append("local: error of the stage itself, on PyTorch's inputs")
    if "by itself" in columns:
        words.append("SQNR, by itself: in dB, in the graph's run and on PyTorch's inputs")
    if "made here" in columns:
        words.append("made here: share of the final error")
    if "growth" in columns:
        words.append("growth: out / in")
    if "amplified" in columns:
        words.append("amplified: handed on / in")
    if "noise" in columns:
        words.append(f"noise: {'error' if report.chain else 'local'} / noise floor")
    for parts in (marks, words):
        if parts:
            page.prose("; ".join(parts), indent="    ", style="dim")
