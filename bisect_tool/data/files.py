"""Two data files side by side: their structure, then their values, piece by piece; and what comes of it.

Tables and arrays are read in pieces (``backends/data_reading.py``), so that nothing here holds a whole file. A piece of
a column, or of a flat array, goes into a :class:`~bisect_tool.data.tally.Tally`; each column has one, and each array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.data.records import (
    PIECE,
    Cell,
    Content,
    DataComparison,
    FileFacts,
    FileKind,
    ItemResult,
    Limits,
    Pattern,
    Shares,
    SideStats,
    Structure,
)
from bisect_tool.data.tally import Tally
from bisect_tool.errors import BisectError

Array = NDArray[Any]


def make_limits(max_abs: float | None, atol: float | None, rtol: float | None) -> Limits:
    """Limits from the command line.

    Raises:
        BisectError: one of --atol and --rtol alone, both kinds at once, or a number below zero.
    """
    if (atol is None) != (rtol is None):
        raise BisectError("--atol and --rtol are given together or not at all", hint="--atol 1e-6 --rtol 0")
    if max_abs is not None and atol is not None:
        raise BisectError("--max-abs excludes --atol and --rtol", hint="--max-abs X is the same as --atol X --rtol 0")
    for name, value in (("--max-abs", max_abs), ("--atol", atol), ("--rtol", rtol)):
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise BisectError(f"{name} {value}: a tolerance is a number from zero up", hint=f"for example {name} 1e-6")
    return Limits(max_abs, atol, rtol)


def compare_contents(expected: Content, actual: Content, limits: Limits) -> tuple[tuple[ItemResult, ...], Kept]:
    """Goes through two files of one kind side by side.

    Returns:
        The result for each column or array that both have, in the first file's order, and for each that only one has;
        and what is kept of both for finding patterns.
    """
    return _tables(expected, actual, limits) if expected.kind == "table" else _arrays(expected, actual, limits)


@dataclass
class Kept:
    """What patterns are looked for in: columns or arrays, and whether they are complete.

    ``rows``: of both tables, and ``complete``: whether all of them are kept.
    """

    expected: dict[str, Array] = field(default_factory=dict)
    actual: dict[str, Array] = field(default_factory=dict)
    rows: tuple[int, int] = (0, 0)
    complete: bool = True


KEPT_CELLS = 20_000_000
"""Cells of one side's table that are kept for the patterns; 160 MB of float64."""


def _tables(expected: Content, actual: Content, limits: Limits) -> tuple[tuple[ItemResult, ...], Kept]:
    names = (*expected.names, *(name for name in actual.names if name not in expected.names))
    both = [name for name in names if name in expected.names and name in actual.names]
    tallies = {name: Tally(name, limits) for name in names}
    kept: tuple[list[Mapping[str, Array]], list[Mapping[str, Array]]] = ([], [])
    rows = [0, 0]
    complete = True
    for first, second in _side_by_side(expected.pieces, actual.pieces):
        sizes = [len(next(iter(piece.values()))) if piece else 0 for piece in (first, second)]
        shared = min(sizes)
        for name in both:
            a, b = first.get(name), second.get(name)
            if a is not None and b is not None:
                tallies[name].add(a[:shared], b[:shared], rows[0])
        for side, piece in enumerate((first, second)):
            for name, values in piece.items():
                done = shared if name in both else 0
                if len(values) > done:
                    tallies[name].alone(side, values[done:])
            if rows[side] * len(names) < KEPT_CELLS:
                kept[side].append(piece)
            else:
                complete = False
            rows[side] += sizes[side]
    plain = all(c.lines == c.header + count for c, count in zip((expected, actual), rows, strict=True))
    line = expected.header + 1 if plain and expected.header == actual.header else None
    results = [tallies[name].result(((rows[0],), (rows[1],)), line, _absence(name, expected, actual)) for name in names]
    whole = Kept(
        {name: _joined(kept[0], name) for name in expected.names},
        {name: _joined(kept[1], name) for name in actual.names},
        (rows[0], rows[1]),
        complete,
    )
    return tuple(results), whole


def _absence(name: str, expected: Content, actual: Content) -> str | None:
    if name not in actual.names:
        return "only in the first file"
    return None if name in expected.names else "only in the second file"


def _joined(pieces: Sequence[Mapping[str, Array]], name: str) -> Array:
    parts = [piece[name] for piece in pieces if name in piece]
    if not parts:
        return np.empty(0)
    if any(part.dtype == object for part in parts):
        parts = [part.astype(object) for part in parts]
    return np.concatenate(parts)


def _side_by_side(
    first: Iterable[Mapping[str, Array]], second: Iterable[Mapping[str, Array]]
) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
    """Pieces that begin at the same row; ``{}`` where one side has ended."""
    a, b = iter(first), iter(second)
    while True:
        one, other = next(a, {}), next(b, {})
        if not one and not other:
            return
        yield one, other


def _arrays(expected: Content, actual: Content, limits: Limits) -> tuple[tuple[ItemResult, ...], Kept]:
    names = (*expected.names, *(name for name in actual.names if name not in expected.names))
    results = []
    kept = Kept()
    for name in names:
        tally = Tally(name, limits)
        a, b = expected.arrays.get(name), actual.arrays.get(name)
        shapes = (() if a is None else a.shape, () if b is None else b.shape)
        note = _absence(name, expected, actual)
        if a is not None and b is not None:
            kept.expected[name], kept.actual[name] = a, b
        if a is not None and b is not None and a.shape == b.shape:
            flat, other = a.reshape(-1), b.reshape(-1)
            for at in range(0, flat.size, PIECE):
                tally.add(flat[at : at + PIECE], other[at : at + PIECE], at)
            if not flat.size:
                tally.alone(0, flat)
                tally.alone(1, other)
        else:
            note = note or "other shapes: the values were not compared"
            for side, array in enumerate((a, b)):
                flat = np.empty(0) if array is None else array.reshape(-1)
                # An empty one has a dtype too.
                for at in range(0, 0 if array is None else max(flat.size, 1), PIECE):
                    tally.alone(side, flat[at : at + PIECE])
        results.append(tally.result(shapes, note=note))
    return tuple(results), kept


def structure_of(
    expected: Content, actual: Content, results: Sequence[ItemResult], kept: Kept, limits: Limits
) -> list[Structure]:
    """What differs before any two numbers are looked at."""
    what = "column" if expected.kind == "table" else "array"
    found: list[Structure] = []
    lost = [name for name in expected.names if name not in actual.names]
    added = [name for name in actual.names if name not in expected.names]
    for names, where, code in ((lost, "first", "missing"), (added, "second", "added")):
        if names:
            plural = what if len(names) == 1 else f"{what}s"
            found.append(Structure(code, f"only the {where} file has the {plural} {_some(names)}", True))
    ours = [name for name in expected.names if name in actual.names]
    theirs = [name for name in actual.names if name in expected.names]
    if ours != theirs and expected.kind == "table":
        place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        text = f"the columns stand in another order: number {place + 1} is {ours[place]} against {theirs[place]}"
        found.append(Structure("order", f"{text}; they were compared by name", True))
    if expected.kind == "table" and results:
        rows = kept.rows
        if rows[0] != rows[1]:
            shared = f"the first {min(rows)} of both were compared" if min(rows) else "none was compared"
            text = f"{rows[0]} against {rows[1]} rows; {shared}"
            found.append(Structure("rows", text, True))
    if expected.mode != actual.mode:
        found.append(Structure("mode", f"image mode {expected.mode} against {actual.mode}", True))
    for result in results:
        if result.note and "only in" in result.note:
            continue
        one, other = result.expected, result.actual
        if expected.kind != "table" and one.shape != other.shape:
            text = f"{result.name}: shape {_shape(one.shape)} against {_shape(other.shape)}"
            found.append(Structure("shape", text, True))
        if one.dtype != other.dtype:
            found.append(_dtypes(result, expected.kind, limits))
    return found


def _dtypes(result: ItemResult, kind: FileKind, limits: Limits) -> Structure:
    """A text file has no dtypes: there they only say what the cells look like, and the cells themselves decide."""
    a, b = result.expected.dtype, result.actual.dtype
    counts = kind != "table" and limits.exact
    more = "" if counts or kind == "table" else "; with a tolerance the values decide"
    return Structure("dtype", f"{result.name}: {a} against {b}{more}", counts)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: Sequence[str], limit: int = 5) -> str:
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def first_cell(kind: FileKind, results: Sequence[ItemResult]) -> Cell | None:
    """Of a table the first row, and in it the first column; else the first array's first element."""
    cells = [result.first for result in results if result.first is not None]
    if not cells:
        return None
    return min(cells, key=lambda cell: cell.index) if kind == "table" else cells[0]


def shares_of(stats: Sequence[SideStats]) -> Shares:
    """Zeros and missing values of one side, all columns or arrays together."""
    cells, zeros, missing = (sum(getattr(s, name) for s in stats) for name in ("count", "zeros", "missing"))
    return Shares(cells, zeros, missing, zeros / cells if cells else 0.0, missing / cells if cells else 0.0)


def conclude(
    expected: Content,
    actual: Content,
    limits: Limits,
    results: tuple[ItemResult, ...],
    kept: Kept,
    patterns: tuple[Pattern, ...],
) -> DataComparison:
    """Everything together."""
    structure = structure_of(expected, actual, results, kept, limits)
    different = any(item.counts for item in structure) or any(result.beyond for result in results)
    rows = kept.rows if expected.kind == "table" else (None, None)
    facts = [_with_rows(content.facts, count) for content, count in zip((expected, actual), rows, strict=True)]
    notes = list(dict.fromkeys((*expected.notes, *actual.notes)))
    if not kept.complete and patterns:
        notes.append("patterns were looked for at the beginning of the tables only, which are long")
    return DataComparison(
        kind=expected.kind,
        status="different" if different else "equal",
        expected=facts[0],
        actual=facts[1],
        limits=limits,
        structure=tuple(structure),
        first=first_cell(expected.kind, results),
        expected_shares=shares_of([r.expected for r in results if r.note != "only in the second file"]),
        actual_shares=shares_of([r.actual for r in results if r.note != "only in the first file"]),
        items=results,
        patterns=patterns,
        notes=tuple(notes),
    )


def _with_rows(facts: FileFacts, rows: int | None) -> FileFacts:
    return FileFacts(facts.path, facts.format, facts.bytes, facts.sha256, facts.items, rows)
