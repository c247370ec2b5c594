"""A comparison of two data files on a terminal: verdict, structure, first difference, shares, patterns, the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from rich.console import Console

from bisect_tool.data.records import Cell, DataComparison, ItemResult, Limits, SideStats
from bisect_tool.reporters import wording
from bisect_tool.reporters.layout import Column, Page, PipedConsole, Row, Span

ITEMS = 12
"""Columns or arrays in the table; those that differ come first."""

_WHAT = {"table": "column", "arrays": "array", "image": "image"}


def print_comparison(
    found: DataComparison, *, all_items: bool = False, file: IO[str] | None = None, width: int | None = None
) -> None:
    """Print a comparison to stdout, or to ``file``."""
    render(found, PipedConsole(file=file, width=width), all_items=all_items)


def render(found: DataComparison, console: Console, *, all_items: bool = False) -> None:
    """Print a comparison; the console's width decides which columns there is room for."""
    page = Page(console)
    for name, side in (("first", found.expected), ("second", found.actual)):
        rows = f", {wording.plural(side.rows, 'row')}" if side.rows is not None else ""
        size = f" ({side.format}, {wording.plural(side.items, _WHAT[found.kind])}{rows}, sha256 {side.sha256[:12]})"
        page.prose(side.path + size, label=(f"{name:<8}", "bold"))
    for note in found.notes:
        page.prose(note, label=("note: ", "bold yellow"))
    page.line()
    _verdict(page, found)
    for item in found.structure:
        label = (f"{item.code:<10}", "bold" if item.counts else "dim")
        page.prose(item.text, label=label, indent="  ")
    if found.first is not None:
        page.prose(first_text(found.first, found.kind == "table"), label=(f"{'first':<10}", "bold"), indent="  ")
    _shares(page, found)
    if found.patterns:
        page.line()
        page.line(("What it looks like", "bold"))
        for pattern in found.patterns:
            names = wording.names_text(pattern.items, 6)
            share = f"explains {wording.percent(round(pattern.explains * 1000), 1000)} of the differing cells there"
            page.prose(f"{pattern.text} ({names}); {share}", label=("- ", ""), indent="  ")
    page.line()
    _items(page, found, all_items)


def _verdict(page: Page, found: DataComparison) -> None:
    if found.status == "equal":
        differing = sum(item.differing for item in found.items)
        if found.same_bytes:
            text = "the files are the same, byte for byte"
        elif differing:
            verb = "differs," if differing == 1 else "differ, all"
            text = f"{wording.plural(differing, 'cell')} {verb} within {limits_text(found.limits)}"
        else:
            text = (
                "all values are equal; the files' bytes are not (how numbers are written, order of keys, metadata ...)"
            )
        page.prose(text, label=("EQUAL  ", "bold green"))
        return
    beyond = sum(item.beyond for item in found.items)
    compared = sum(item.compared for item in found.items)
    if beyond:
        items = sum(item.beyond > 0 for item in found.items)
        where = wording.plural(items, _WHAT[found.kind])
        verb = "differs" if beyond == 1 else "differ"
        text = (
            f"{beyond} of {wording.plural(compared, 'cell')} {verb} ({wording.percent(beyond, compared)}), in {where}"
        )
        if not found.limits.exact:
            text += f", by more than {limits_text(found.limits)}"
        text += size_text(found.items)
    elif compared:
        text = "the values that could be compared are equal; what differs is below"
    else:
        text = "no values could be compared"
    page.prose(text, label=("DIFFERENT  ", "bold red"))


def size_text(items: Sequence[ItemResult]) -> str:
    """How large the differences are: absolute, relative, and in steps of the dtype where that says more."""
    measured = [item for item in items if item.max_abs]
    if not measured:
        return ""
    worst = max(measured, key=lambda item: item.max_abs or 0.0)
    text = f"; greatest difference {wording.ratio(worst.max_abs)}"
    relative = max(item.max_rel or 0.0 for item in measured)
    steps = [item.max_ulp for item in measured if item.max_ulp is not None]
    text += f", {wording.sci(relative)} relative to the larger value"
    if steps and max(steps) < 1e5:
        text += f" ({max(steps):.3g} ulp)"
    return text


def limits_text(limits: Limits) -> str:
    """The tolerance, as given."""
    if limits.max_abs is not None:
        return f"{limits.max_abs:g}"
    return f"{limits.atol:g} + {limits.rtol:g} * |first|" if limits.atol is not None else "nothing"


def first_text(cell: Cell, table: bool) -> str:
    """Where the first difference is, and both values."""
    values = f"{cell.expected} against {cell.actual}"
    if not table:
        return f"{cell.item} at {wording.index_text(cell.index)}: {values}"
    line = f" (line {cell.line} of the file)" if cell.line is not None else ""
    # Columns without a name are called by their number.
    column = cell.item if cell.item.startswith("column ") else f"column {cell.item}"
    return f"row {cell.index[0]}{line}, {column}: {values}"


def _shares(page: Page, found: DataComparison) -> None:
    one, other = found.expected_shares, found.actual_shares
    for label, counts in (("zeros", (one.zeros, other.zeros)), ("missing", (one.missing, other.missing))):
        if not any(counts):
            continue
        texts = [
            f"{count} ({wording.percent(count, cells)})" if count else "none"
            for count, cells in zip(counts, (one.cells, other.cells), strict=True)
        ]
        page.prose(f"{texts[0]} against {texts[1]} of all cells", label=(f"{label:<10}", "bold"), indent="  ")


def _items(page: Page, found: DataComparison, all_items: bool) -> None:
    what = _WHAT[found.kind]
    columns = (
        Column(what, minimum=12),
        Column("", drop=0),
        Column("dtype", drop=7),
        Column("missing", right=True, drop=4),
        Column("zeros", right=True, drop=2),
        Column("mean", right=True),
        Column("std", right=True, drop=5),
        Column("min", right=True, drop=3),
        Column("max", right=True, drop=3),
        Column("differ", right=True),
        Column("max diff", right=True),
        Column("mean diff", right=True, drop=6),
    )
    ranked = sorted(found.items, key=lambda item: not (item.differing or item.note))
    shown = ranked if all_items else ranked[:ITEMS]
    page.table(columns, list(_rows(shown)))
    rest = len(ranked) - len(shown)
    if rest:
        equal = sum(not (item.differing or item.note) for item in ranked[len(shown) :])
        page.line((f"and {rest} more, {equal} of them equal; --all-items prints all", "dim"))


def _rows(items: Sequence[ItemResult]) -> Iterator[Row | Span]:
    for item in items:
        style = "" if item.differing or item.note else "dim"
        if item.note != "only in the second file":
            numbers = ("=", "", "") if _is_equal(item) else _differences(item)
            yield Row((item.name, "1", *_stats(item.expected), *numbers), style=style)
        if item.note != "only in the first file" and not _is_equal(item):
            first = item.name if item.note == "only in the second file" else ""
            yield Row((first, "2", *_stats(item.actual), "", "", ""), style=style)
        if item.note:
            yield Span(f"    {item.note}")


def _is_equal(item: ItemResult) -> bool:
    """Whether both files have the same cells: of columns of other lengths only a part was compared."""
    return not item.differing and not item.note and item.compared == item.expected.count == item.actual.count


def _differences(item: ItemResult) -> tuple[str, str, str]:
    if item.note or not item.compared:
        return "", "", ""
    if item.differing and not item.max_abs:
        # What differs has no number on one side: the largest difference of the others is no size of it.
        return str(item.differing), "-", "-"
    return str(item.differing), _number(item.max_abs), _number(item.mean_abs)


def _stats(side: SideStats) -> tuple[str, ...]:
    numbers = (side.mean, side.std, side.min, side.max)
    return side.dtype, str(side.missing or "-"), str(side.zeros or "-"), *map(_number, numbers)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
