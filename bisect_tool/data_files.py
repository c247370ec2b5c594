"""Two data files, as numbers: what is counted and measured on the way through both, and what comes of it.

Tables and arrays are read in pieces (``backends/data_reading.py``), so that nothing here holds a whole file. A piece of
a column, or of a flat array, goes into a :class:`Tally`; a table's columns have one each, and so has each array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.errors import BisectError

Array = NDArray[Any]
FileKind = Literal["table", "arrays", "image"]

DATA_COMPARISON_VERSION = 1

PIECE = 1 << 18
"""Elements of an array that are looked at together."""


# What is found


@dataclass(frozen=True)
class Limits:
    """What is still allowed between two numbers; nothing given: they must be equal."""

    max_abs: float | None = None
    atol: float | None = None
    rtol: float | None = None

    @property
    def exact(self) -> bool:
        """Whether nothing is allowed."""
        return self.max_abs is None and self.atol is None


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


@dataclass(frozen=True)
class SideStats:
    """One side of a column or array.

    Attributes:
        dtype: of the values, a short name; ``text`` where there are others than numbers.
        shape: of the array; of a column the number of rows.
        count: cells.
        missing: empty cells, NA and NaN.
        zeros: cells that are exactly zero.
        infinite: infinities.
        mean, std, min, max: of the finite numbers; None if there are none. ``std`` divides by their count.
    """

    dtype: str
    shape: tuple[int, ...]
    count: int
    missing: int
    zeros: int
    infinite: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True)
class Cell:
    """One place with what stands there on both sides, as text that keeps every digit.

    Attributes:
        item: the column or array.
        index: place; of a table's cell its row alone, counted from 0.
        line: the line in both text files, counted from 1; None where rows and lines do not go together.
    """

    item: str
    index: tuple[int, ...]
    line: int | None
    expected: str
    actual: str


@dataclass(frozen=True)
class ItemResult:
    """One column or array on both sides.

    Attributes:
        compared: cells that stand on both sides.
        differing: cells with other values.
        beyond: those beyond the tolerance; without a tolerance the same number.
        only_expected_missing, only_actual_missing: missing on this side, a value on the other.
        only_expected_zero, only_actual_zero: zero on this side, another number on the other.
        max_abs, mean_abs: of the differences between finite numbers; the mean is over all those, equal ones too.
        max_rel: greatest difference relative to the larger of the two numbers.
        max_ulp: greatest difference in steps of the less exact dtype; None unless both are floats.
        first: first cell beyond the tolerance; None: there is none.
        worst: cell with the greatest difference.
        note: why nothing was compared, else None.
    """

    name: str
    expected: SideStats
    actual: SideStats
    compared: int
    differing: int
    beyond: int
    only_expected_missing: int
    only_actual_missing: int
    only_expected_zero: int
    only_actual_zero: int
    max_abs: float | None
    mean_abs: float | None
    max_rel: float | None
    max_ulp: float | None
    first: Cell | None
    worst: Cell | None
    note: str | None


@dataclass(frozen=True)
class Pattern:
    """A way in which the one file may have been made from the other.

    Attributes:
        code: ``scattered-zeros``, ``shifted-rows`` ... (docs/data-files.md has all).
        items: columns or arrays it was seen in.
        text: what was found, in one sentence.
        explains: share of the differing cells that are equal once it is undone; of those it was looked for in. Of images
            the share of the mean difference, since they are seldom stored exactly.
    """

    code: str
    items: tuple[str, ...]
    text: str
    explains: float


@dataclass(frozen=True)
class Structure:
    """A difference that is not one between two numbers: ``shape``, ``dtype``, ``missing``, ``order``, ``mode`` ...

    ``counts``: whether it makes the files different; another dtype does not once there is a tolerance.
    """

    code: str
    text: str
    counts: bool


@dataclass(frozen=True)
class FileFacts:
    """A file as a whole. ``format``: ``csv``, ``npy`` ...; ``sha256`` of its bytes; ``items``: columns or arrays."""

    path: str
    format: str
    bytes: int
    sha256: str
    items: int
    rows: int | None


@dataclass(frozen=True)
class Shares:
    """Zeros and missing values of one side: counts, and shares of all cells."""

    cells: int
    zeros: int
    missing: int
    zero_share: float
    missing_share: float


@dataclass(frozen=True)
class DataComparison:
    """What ``compare`` says of two data files."""

    kind: FileKind
    status: Literal["equal", "different"]
    expected: FileFacts
    actual: FileFacts
    limits: Limits
    structure: tuple[Structure, ...]
    first: Cell | None
    expected_shares: Shares
    actual_shares: Shares
    items: tuple[ItemResult, ...]
    patterns: tuple[Pattern, ...]
    notes: tuple[str, ...]
    data_comparison_version: int = DATA_COMPARISON_VERSION

    @property
    def same_bytes(self) -> bool:
        """Whether the files are the same, byte for byte."""
        return self.expected.sha256 == self.actual.sha256


# What goes in


@dataclass(frozen=True)
class Named:
    """An array under its name; ``values`` may be a memory map, or of objects (texts)."""

    name: str
    values: Array


@dataclass(frozen=True)
class Content:
    """An opened file.

    Attributes:
        facts: about the file; ``rows`` of a table is only known once it was read.
        names: of columns or arrays, in the file's order.
        pieces: a table's rows in pieces of at most ``PIECE`` rows, each all columns; empty for arrays.
        arrays: by name; empty for a table.
        mode: an image's (``RGB``), else None.
        header: lines before the first row; None if lines and rows do not go together.
        notes: what the user should know about how it was read.
    """

    kind: FileKind
    facts: FileFacts
    names: tuple[str, ...]
    pieces: Iterator[Mapping[str, Array]]
    arrays: Mapping[str, Array]
    mode: str | None = None
    header: int | None = None
    notes: tuple[str, ...] = ()


# Counting


@dataclass
class _Side:
    """Sums over one side's pieces; mean and squares are merged piece by piece, so that large means cost no digits."""

    count: int = 0
    missing: int = 0
    zeros: int = 0
    infinite: int = 0
    numbers: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    dtypes: list[str] = field(default_factory=list)

    def add(self, values: Array, missing: Array, dtype: str) -> None:
        self.count += values.size
        self.missing += int(missing.sum())
        if dtype not in self.dtypes:
            self.dtypes.append(dtype)
        if values.dtype == object:
            return
        if values.dtype.kind not in "fiubc":  # bfloat16 and its like
            values = values.astype(np.float32)
        self.zeros += int(np.count_nonzero(values == 0))
        finite = np.isfinite(values)
        self.infinite += int(values.size - np.count_nonzero(finite) - np.count_nonzero(missing & ~finite))
        numbers = values[finite & ~missing]
        if not numbers.size:
            return
        if numbers.dtype.kind == "c":
            numbers = np.abs(numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            least, greatest = float(numbers.min()), float(numbers.max())
            self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)
            wide = numbers.astype(np.float64)
            mean = float(wide.mean())
            squares = float(np.square(wide - mean).sum())
            total, shift = self.numbers + wide.size, mean - self.mean
            self.squares += squares + shift * shift * self.numbers * wide.size / total
            self.mean += shift * wide.size / total
            self.numbers = total

    def stats(self, shape: tuple[int, ...]) -> SideStats:
        dtype = next((d for d in self.dtypes if d == "text"), None) or "/".join(self.dtypes) or "none"
        if not self.numbers:
            return SideStats(dtype, shape, self.count, self.missing, self.zeros, self.infinite, None, None, None, None)
        return SideStats(
            dtype,
            shape,
            self.count,
            self.missing,
            self.zeros,
            self.infinite,
            self.mean,
            math.sqrt(max(self.squares, 0.0) / self.numbers),
            self.least,
            self.greatest,
        )


@dataclass
class Tally:
    """Counts and differences of one column or array, piece by piece."""

    name: str
    limits: Limits
    expected: _Side = field(default_factory=_Side)
    actual: _Side = field(default_factory=_Side)
    compared: int = 0
    differing: int = 0
    beyond: int = 0
    missing: list[int] = field(default_factory=lambda: [0, 0])
    zero: list[int] = field(default_factory=lambda: [0, 0])
    measured: int = 0
    total: float = 0.0
    worst: float = -1.0
    worst_at: tuple[int, str, str] | None = None
    relative: float = 0.0
    steps: float | None = None
    first_at: tuple[int, str, str] | None = None

    def add(self, expected: Array, actual: Array, at: int) -> None:
        """A piece of both sides, flat and of one length; ``at``: the place of its first element."""
        a, b = _plain(expected), _plain(actual)
        a_missing, b_missing = missing_of(a), missing_of(b)
        self.alone(0, a, a_missing)
        self.alone(1, b, b_missing)
        self.compared += a.size
        texts = a.dtype == object or b.dtype == object
        a_numbers, b_numbers = (numbers_of(a), numbers_of(b)) if texts else (a, b)
        with np.errstate(all="ignore"):
            same = a_numbers == b_numbers
            if texts:
                same |= _texts(a) == _texts(b)
        either = a_missing | b_missing
        differs = ~np.asarray(same, np.bool_) & ~(a_missing & b_missing) | (a_missing != b_missing)
        self.missing[0] += int(np.count_nonzero(a_missing & ~b_missing))
        self.missing[1] += int(np.count_nonzero(b_missing & ~a_missing))
        finite = np.isfinite(a_numbers) & np.isfinite(b_numbers) & ~either
        self.measured += int(np.count_nonzero(finite))
        places = np.flatnonzero(differs)
        if not places.size:
            if self.steps is None and _both_float(a, b):
                self.steps = 0.0
            return
        self.differing += places.size
        self._values(a, b, a_numbers[places], b_numbers[places], finite[places], places, at)

    def alone(self, side: int, values: Array, missing: Array | None = None) -> None:
        """A piece that only one side has."""
        values = _plain(values)
        missing = missing_of(values) if missing is None else missing
        into = (self.expected, self.actual)[side]
        dtype = "text" if values.dtype == object and not bool(missing.all()) else short_dtype(values.dtype)
        if values.dtype == object:
            if bool(missing.all()):
                into.add(values, missing, "empty")
                return
            # Numbers among texts still have zeros and a mean.
            into.add(numbers_of(values), missing | np.isnan(numbers_of(values)), dtype)
            into.missing += int(missing.sum()) - int((missing | np.isnan(numbers_of(values))).sum())
            return
        into.add(values, missing, dtype)

    def _values(self, a: Array, b: Array, x: Array, y: Array, finite: Array, places: Array, at: int) -> None:
        """What only differing cells are asked: ``x`` and ``y`` are their numbers, NaN for texts."""
        self.zero[0] += int(np.count_nonzero((x == 0) & (y != 0) & ~np.isnan(y)))
        self.zero[1] += int(np.count_nonzero((y == 0) & (x != 0) & ~np.isnan(x)))
        distance = np.full(places.size, np.inf)
        wide = (
            np.longdouble
            if _needs_wide(x, y)
            else (np.complex128 if "c" in (x.dtype.kind, y.dtype.kind) else np.float64)
        )
        p, q = x[finite].astype(wide), y[finite].astype(wide)
        with np.errstate(all="ignore"):
            gap: Array = np.abs(np.subtract(p, q))
            larger = np.maximum(np.abs(p), np.abs(q))
            distance[finite] = gap.astype(np.float64)
            self.total += float(gap.sum())
            if gap.size:
                self.relative = max(self.relative, float(np.max(gap / np.where(larger == 0, 1, larger))))
                if _both_float(a, b):
                    steps = float(np.max(gap / _step(larger, _coarser(a.dtype, b.dtype))))
                    self.steps = max(self.steps or 0.0, steps)
            allowed = np.zeros(places.size)
            if self.limits.max_abs is not None:
                allowed[finite] = self.limits.max_abs
            elif self.limits.atol is not None:
                allowed[finite] = self.limits.atol + (self.limits.rtol or 0.0) * np.abs(p).astype(np.float64)
        beyond = np.ones(places.size, np.bool_) if self.limits.exact else ~(finite & (distance <= allowed))
        self.beyond += int(np.count_nonzero(beyond))
        if self.first_at is None and beyond.any():
            self.first_at = _at(a, b, int(places[np.argmax(beyond)]), at)
        if finite.any():
            greatest = int(np.argmax(np.where(finite, distance, -1.0)))
            if distance[greatest] > self.worst:
                self.worst = float(distance[greatest])
                self.worst_at = _at(a, b, int(places[greatest]), at)

    def result(
        self, shapes: tuple[tuple[int, ...], tuple[int, ...]], line: int | None = None, note: str | None = None
    ) -> ItemResult:
        """What was found. ``line``: that of the first row, where rows are lines."""

        def cell(found: tuple[int, str, str] | None) -> Cell | None:
            if found is None:
                return None
            place, expected, actual = found
            index = tuple(int(i) for i in np.unravel_index(place, shapes[0])) if shapes[0] else ()
            return Cell(self.name, index, None if line is None else place + line, expected, actual)

        numeric = self.measured > 0
        return ItemResult(
            name=self.name,
            expected=self.expected.stats(shapes[0]),
            actual=self.actual.stats(shapes[1]),
            compared=self.compared,
            differing=self.differing,
            beyond=self.beyond,
            only_expected_missing=self.missing[0],
            only_actual_missing=self.missing[1],
            only_expected_zero=self.zero[0],
            only_actual_zero=self.zero[1],
            max_abs=max(self.worst, 0.0) if numeric else None,
            mean_abs=self.total / self.measured if numeric else None,
            max_rel=self.relative if numeric else None,
            max_ulp=self.steps if numeric else None,
            first=cell(self.first_at),
            worst=cell(self.worst_at),
            note=note,
        )


def short_dtype(dtype: np.dtype[Any]) -> str:
    """``float32``; ``text`` for objects."""
    return "text" if dtype.kind in "OUS" else str(dtype.name)


def missing_of(values: Array) -> Array:
    """Where nothing, or NaN, stands."""
    if values.dtype == object:
        return np.fromiter((v is None or v != v for v in values), np.bool_, values.size)
    if values.dtype.kind == "c" or _is_float(values.dtype):
        return np.asarray(np.isnan(values), np.bool_)
    return np.zeros(values.shape, np.bool_)


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Also bfloat16 and its like, which are no floats to numpy."""
    return "float" in dtype.name


def _both_float(a: Array, b: Array) -> bool:
    return _is_float(a.dtype) and _is_float(b.dtype)


def _plain(values: Array) -> Array:
    """Flat; texts as objects; dtypes that numpy itself lacks as float32, booleans as they are."""
    values = values.reshape(-1)
    return values.astype(object) if values.dtype.kind in "USMm" else values


def numbers_of(values: Array) -> Array:
    """Each value as a float, NaN where it is none."""
    if values.dtype != object:
        return values
    return np.fromiter((_number(value) for value in values), np.float64, values.size)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _texts(values: Array) -> Array:
    return values if values.dtype == object else values.astype(object)


def _needs_wide(x: Array, y: Array) -> bool:
    """Integers of 64 bits have more digits than float64."""
    return any(v.dtype.kind in "iu" and v.dtype.itemsize == 8 for v in (x, y)) and "c" not in (
        x.dtype.kind,
        y.dtype.kind,
    )


def _coarser(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    return max((a, b), key=lambda dtype: float(ml_dtypes.finfo(dtype).eps))


def _step(magnitude: Array, dtype: np.dtype[Any]) -> Array:
    """Distance to the next number of the dtype."""
    info = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(magnitude.astype(np.float64))
    smallest = float(info.smallest_subnormal)
    least = smallest or float(info.tiny) * float(info.eps)
    return np.asarray(np.maximum(np.ldexp(float(info.eps), exponent - 1), least))


def _at(a: Array, b: Array, place: int, at: int) -> tuple[int, str, str]:
    return place + at, value_text(a[place]), value_text(b[place])


def value_text(value: Any) -> str:
    """A value with all its digits."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, (float, np.floating)):
        return "missing" if math.isnan(value) else str(value)
    return str(value)


# Comparing


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
    line = None
    if expected.header is not None and expected.header == actual.header:
        line = expected.header + 1
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
                for at in range(0, flat.size, PIECE):
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
            text = f"{rows[0]} rows against {rows[1]}; the first {min(rows)} were compared with each other"
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
