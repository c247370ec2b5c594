"""How one data file may have come from the other: what is tried on differing columns and arrays, and kept if it fits.

Each way is undone (or done) exactly, and counts by the share of the differing cells that it explains. Nothing here knows
what the data stand for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.data.files import Kept
from bisect_tool.data.records import FileKind, ItemResult, Pattern
from bisect_tool.data.tally import missing_of, numbers_of

Array = NDArray[Any]

LOOKED_AT = 2_000_000
"""Elements of a column or array that patterns are looked for in: its first ones."""
LAGS = 64
ROWS_FOR_LAGS = 20_000
LEAST_SHARE = 0.1
"""Patterns that explain less of what differs are not told."""
FITS = 0.95
"""Share that a pattern of all values at once (a scale, a shift) must explain."""
LEAST_VALUES = 4
"""Different values that a rounding must have changed."""
LEAST_CUT = 3
"""Cells that must have been cut off."""
ROUNDING_ULPS = 16
"""Differences up to this many units in the last place are called rounding."""
SMALL_IN_IMAGES = 0.02
"""Mean difference, as a share of the range of an image's values, up to which it is the same picture."""
MOST_OF_PICTURE = 0.75
"""Share of the mean difference of two images that another layout must explain."""
_DECIMALS = range(9)
_DTYPES: Mapping[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
_SIDES = ("first", "second")


@dataclass(frozen=True)
class _Pair:
    """Numbers of one column or array on both sides, flat, with what differs; NaN where nothing stands."""

    name: str
    a: Array
    b: Array
    differs: Array

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.differs))


def find_patterns(kind: FileKind, results: Sequence[ItemResult], kept: Kept) -> tuple[Pattern, ...]:
    """Ways from one file to the other that fit, those that explain most first."""
    tiny = [result for result in results if _is_rounding(result)]
    differing = {result.name for result in results if result.differing} - {result.name for result in tiny}
    pairs = [pair for name in kept.expected if name in differing and (pair := _pair(name, kept)) is not None]
    found = [pattern for pair in pairs for pattern in _of_values(pair)]
    patterns = _merged(found, pairs)
    if kind == "table":
        patterns += _of_rows(kept, differing)
        patterns += _of_columns(kept, differing)
    else:
        patterns += [pattern for result in results for pattern in _of_axes(result, kept, kind)]
    patterns = [pattern for pattern in patterns if pattern.explains >= LEAST_SHARE]
    told = {name for pattern in patterns for name in pattern.items}
    if tiny:
        patterns.append(_rounding(tiny))
    if kind == "image":
        patterns += [_small_differences(r) for r in results if r.name not in told and _is_same_picture(r)]
    return tuple(sorted(patterns, key=lambda pattern: -round(pattern.explains, 3)))


def _is_rounding(result: ItemResult) -> bool:
    """Whether all differences are of a few units in the last place."""
    return bool(
        result.differing
        and not result.only_expected_missing + result.only_actual_missing
        and result.max_ulp is not None
        and result.max_ulp <= ROUNDING_ULPS
    )


def _rounding(results: Sequence[ItemResult]) -> Pattern:
    most = max(result.max_ulp or 0.0 for result in results)
    text = f"differences of the size of rounding, at most {most:.3g} ulp (units in the last place)"
    return Pattern("rounding", tuple(result.name for result in results), text, 1.0)


def _is_same_picture(result: ItemResult) -> bool:
    if not result.differing or result.note or result.mean_abs is None or not result.expected.dtype.startswith("uint"):
        return False
    return result.mean_abs <= SMALL_IN_IMAGES * _range_of(result.expected.dtype)


def _small_differences(result: ItemResult) -> Pattern:
    text = "the same picture with small differences all over, as another decoder, encoder or interpolation makes"
    return Pattern("small-differences", (result.name,), text, 1.0)


def _pair(name: str, kept: Kept) -> _Pair | None:
    a, b = kept.expected.get(name), kept.actual.get(name)
    if a is None or b is None or (a.ndim > 1 and a.shape != b.shape):
        return None
    size = min(a.size, b.size, LOOKED_AT)
    x, y = (_floats(v.reshape(-1)[:size]) for v in (a, b))
    # Texts among numbers differ, and are nothing that is missing.
    text = _is_text(a.reshape(-1)[:size], x) | _is_text(b.reshape(-1)[:size], y)
    x[text] = y[text] = np.nan
    with np.errstate(invalid="ignore"):
        differs = (x != y) & ~(np.isnan(x) & np.isnan(y))
    return _Pair(name, x, y, differs) if differs.any() else None


def _is_text(values: Array, numbers: Array) -> Array:
    if values.dtype != object:
        return np.zeros(values.size, np.bool_)
    return np.asarray(np.isnan(numbers) & ~missing_of(values), np.bool_)


def _floats(values: Array) -> Array:
    """A copy, as float64; NaN where no number stands."""
    if values.dtype.kind == "c":
        return np.abs(values).astype(np.float64)
    if values.dtype == object or values.dtype.kind in "US":
        return numbers_of(values.astype(object))
    return values.astype(np.float64)


def _merged(found: Sequence[Pattern], pairs: Sequence[_Pair]) -> list[Pattern]:
    """One pattern in several columns is told once; what it explains is taken over their differing cells."""
    counts = {pair.name: pair.count for pair in pairs}
    groups: dict[tuple[str, str], list[Pattern]] = {}
    for pattern in found:
        groups.setdefault((pattern.code, pattern.text), []).append(pattern)
    merged = []
    for (code, text), members in groups.items():
        items = tuple(name for member in members for name in member.items)
        cells = sum(counts[name] for name in items)
        explained = sum(member.explains * counts[member.items[0]] for member in members)
        merged.append(Pattern(code, items, text, explained / cells))
    return merged


# Values, place by place


def _of_values(pair: _Pair) -> Iterator[Pattern]:
    yield from _one_sided(pair)
    # A column of one value would also be a rounding; what is rounded needs no other name.
    for find in (_constant, _rounded, _clipped, _scaled):
        pattern = find(pair)
        if pattern is not None:
            yield pattern
            if find in (_constant, _rounded):
                return


def _one_sided(pair: _Pair) -> Iterator[Pattern]:
    """Zeros, or missing values, where the other side has a number."""
    a, b = pair.a, pair.b
    for side, (x, y) in enumerate(((a, b), (b, a))):
        as_zero = (x == 0) & np.isnan(y)
        if as_zero.any():
            text = f"missing values are zeros in the {_SIDES[side]} file"
            yield _shared("missing-as-zero", pair, as_zero, text)
        zero = (x == 0) & (y != 0) & ~np.isnan(y)
        if zero.any():
            yield _one_side("zeros", side, pair, zero)
        gone = np.isnan(x) & ~np.isnan(y) & (y != 0)
        if gone.any():
            yield _one_side("missing values", side, pair, gone)


def _one_side(what: str, side: int, pair: _Pair, mask: Array) -> Pattern:
    """Cells in one stretch are a block, others are scattered."""
    places = np.flatnonzero(mask)
    block = places.size > 2 and places[-1] - places[0] + 1 == places.size
    code = f"{'block' if block else 'scattered'}-{what.partition(' ')[0]}"
    how = "a block of" if block else "scattered"
    text = f"one {what.removesuffix('s')}" if places.size == 1 else f"{how} {what}"
    return _shared(code, pair, mask, f"{text} in the {_SIDES[side]} file only")


def _shared(code: str, pair: _Pair, mask: Array, text: str) -> Pattern:
    return Pattern(code, (pair.name,), text, float(np.count_nonzero(mask & pair.differs)) / pair.count)


def _rounded(pair: _Pair) -> Pattern | None:
    """One side is the other after rounding to fewer bits or decimals."""
    finite = np.isfinite(pair.a) & np.isfinite(pair.b)
    if np.count_nonzero(pair.differs & ~finite) > (1 - FITS) * pair.count:
        return None
    for side, (x, y) in enumerate(((pair.a[finite], pair.b[finite]), (pair.b[finite], pair.a[finite]))):
        changed = x != y
        # A few values fit some rounding by chance.
        if len(np.unique(x[changed][:1000])) < LEAST_VALUES:
            return None
        for name, to in _ways():
            # The coarser side: what rounding makes of the other.
            if bool((to(x) == y).all()):
                explained = float(np.count_nonzero(changed)) / pair.count
                text = f"the {_SIDES[1 - side]} file is the {_SIDES[side]} one {name}"
                return Pattern("rounded", (pair.name,), text, explained)
    return None


def _ways() -> Iterator[tuple[str, Callable[[Array], Array]]]:
    yield "with decimals cut off", np.trunc
    for digits in _DECIMALS:
        yield f"rounded to {digits} decimals", lambda v, digits=digits: _decimals(v, digits)  # type: ignore[misc]
    for name, dtype in _DTYPES.items():
        yield f"rounded to {name}", lambda v, dtype=dtype: _through(v, dtype)  # type: ignore[misc]


def _decimals(values: Array, digits: int) -> Array:
    return np.asarray(np.round(values, digits))


def _through(values: Array, dtype: Any) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(dtype).astype(np.float64))


def _clipped(pair: _Pair) -> Pattern | None:
    """One side is the other, held within its own smallest and greatest value."""
    if np.isnan(pair.a).any() != np.isnan(pair.b).any():
        return None
    for side, (x, y) in enumerate(((pair.a, pair.b), (pair.b, pair.a))):
        known = ~np.isnan(y)
        if not known.any():
            return None
        low, high = float(y[known].min()), float(y[known].max())
        if low == high:
            continue
        ends = [float(v) for v in (low, high) if np.count_nonzero((y == v) & pair.differs)]
        at_ends = (y == low) | (y == high)
        # One or two cells beyond all others fit by chance.
        if pair.count < LEAST_CUT:
            return None
        if np.array_equal(np.clip(x, low, high), y, equal_nan=True) and not (pair.differs & ~at_ends).any():
            limits = " and ".join(f"{'above' if v == high else 'below'} {v:g}" for v in ends)
            text = f"the {_SIDES[1 - side]} file is the {_SIDES[side]} one cut off {limits}"
            return Pattern("clipped", (pair.name,), text, 1.0)
    return None


def _scaled(pair: _Pair) -> Pattern | None:
    """second = scale * first + offset, up to what printing with six digits loses."""
    known = np.isfinite(pair.a) & np.isfinite(pair.b)
    x, y = pair.a[known], pair.b[known]
    if x.size < 4 or np.ptp(x) == 0:
        return None
    candidates: list[tuple[float, float]] = [(1.0, float(np.median(y - x)))]
    nonzero = x != 0
    if nonzero.any():
        candidates.append((float(np.median(y[nonzero] / x[nonzero])), 0.0))
    candidates.append(_line(x, y))
    spread = float(np.sqrt(np.mean(np.square(y - y.mean())))) if y.size else 0.0
    if spread == 0:
        return None
    scattered = known & pair.differs
    for scale, offset in candidates:
        if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0 or (scale, offset) == (1.0, 0.0):
            continue
        if abs(scale - 1) < 1e-4 and abs(offset) < 1e-4 * spread:
            continue  # as near as that is rounding
        with np.errstate(all="ignore"):
            fits = np.abs(scale * pair.a + offset - pair.b) <= 1e-5 * np.abs(pair.b) + 1e-6 * spread
        # Cells that are equal as they are, and would not be, speak against it.
        against = np.count_nonzero(known & ~fits)
        explained = np.count_nonzero(fits & scattered)
        if against <= (1 - FITS) * np.count_nonzero(known) and explained:
            return Pattern("scaled", (pair.name,), _affine_text(scale, offset, spread), float(explained) / pair.count)
    return None


def _line(x: Array, y: Array) -> tuple[float, float]:
    """The straight line through most points: slopes between far apart ones, their median."""
    order = np.argsort(x, kind="stable")
    half = order.size // 2
    low, high = order[:half], order[-half:]
    run = x[high] - x[low]
    with np.errstate(all="ignore"):
        slopes = (y[high] - y[low])[run > 0] / run[run > 0]
    if not slopes.size:
        return math.nan, math.nan
    scale = float(np.median(slopes))
    return scale, float(np.median(y - scale * x))


def _affine_text(scale: float, offset: float, spread: float) -> str:
    nice = next((f"1/{n}" for n in (2, 255, 256, 1000, 100, 10, 65535) if abs(scale * n - 1) < 1e-5), f"{scale:.6g}")
    if abs(offset) <= 1e-6 * spread:
        return f"the second file is the first one times {nice}"
    shift = f"{'plus' if offset > 0 else 'minus'} {abs(offset):.6g}"
    return (
        f"the second file is the first one {shift}"
        if scale == 1
        else f"the second file is {nice} times the first one {shift}"
    )


def _constant(pair: _Pair) -> Pattern | None:
    for side, (x, y) in enumerate(((pair.a, pair.b), (pair.b, pair.a))):
        known, other = x[~np.isnan(x)], y[~np.isnan(y)]
        if known.size >= LEAST_VALUES and np.ptp(known) == 0 and other.size > 1 and np.ptp(other) > 0:
            return Pattern(
                "constant", (pair.name,), f"the {_SIDES[side]} file has one value throughout: {known[0]:g}", 1.0
            )
    return None


# Rows of tables


def _of_rows(kept: Kept, differing: set[str]) -> list[Pattern]:
    names = [name for name in kept.expected if name in kept.actual]
    if not names:
        return []
    first, second = _codes([kept.expected[n] for n in names], [kept.actual[n] for n in names])
    rows = first.shape[0], second.shape[0]
    if min(rows) == 0:
        return []
    cells = sum(int(np.count_nonzero(a[: min(rows)] != b[: min(rows)])) for a, b in zip(first.T, second.T, strict=True))
    if rows[0] != rows[1]:
        return _left_out(first, second, names)
    if not cells:
        return []
    order = [np.lexsort(side.T) for side in (first, second)]
    if np.array_equal(first[order[0]], second[order[1]]):
        return [_sorted_otherwise(kept, names)]
    shifted = _shifted(first, second, [name in differing for name in names])
    if shifted is None:
        return []
    lag, share = shifted
    which = f"row r of the first file is row r {'-' if lag > 0 else '+'} {abs(lag)} of the second"
    return [
        Pattern(
            "shifted-rows", tuple(n for n in names if n in differing), f"rows are shifted by {abs(lag)}: {which}", share
        )
    ]


def _codes(firsts: Sequence[Array], seconds: Sequence[Array]) -> tuple[Array, Array]:
    """Cells as numbers of their values: equal cells have equal numbers, whatever their kind."""
    one, other = [], []
    for a, b in zip(firsts, seconds, strict=True):
        if a.dtype == object or b.dtype == object:
            both = np.array(["" if v is None else str(v) for v in (*a.astype(object), *b.astype(object))], object)
        else:
            both = np.concatenate((a, b)).astype(np.float64)
        _, codes = np.unique(both, return_inverse=True)
        one.append(codes[: len(a)])
        other.append(codes[len(a) :])
    return np.stack(one, 1), np.stack(other, 1)


def _sorted_otherwise(kept: Kept, names: Sequence[str]) -> Pattern:
    texts = []
    for side, columns in enumerate((kept.expected, kept.actual)):
        sorted_by = [n for n in names if _ascending(columns[n])]
        if sorted_by:
            texts.append(f"the {_SIDES[side]} is sorted by {', '.join(sorted_by[:2])}")
    more = f" ({'; '.join(texts)})" if texts else ""
    return Pattern("other-order", tuple(names), f"the same rows in another order{more}", 1.0)


def _ascending(column: Array) -> bool:
    if column.dtype == object or column.size < 3:
        return False
    with np.errstate(invalid="ignore"):
        return bool((np.diff(column.astype(np.float64)) >= 0).all()) and bool(column[0] != column[-1])


def _left_out(first: Array, second: Array, names: Sequence[str]) -> list[Pattern]:
    """Rows of the longer file that are not in the shorter one, if all others are, in order."""
    longer, shorter, side = (first, second, 0) if len(first) > len(second) else (second, first, 1)
    extra, place = [], 0
    for row in range(len(longer)):
        if place < len(shorter) and np.array_equal(longer[row], shorter[place]):
            place += 1
        else:
            extra.append(row)
        if len(extra) > len(longer) - len(shorter):
            return []
    where = f"row {extra[0]}" if len(extra) == 1 else f"rows {_ranges(extra)}"
    text = f"{where} of the {_SIDES[side]} file {'is' if len(extra) == 1 else 'are'} not in the other; all others are equal"
    return [Pattern("left-out-rows", tuple(names), text, 1.0)]


def _ranges(rows: Sequence[int], limit: int = 5) -> str:
    groups: list[list[int]] = []
    for row in rows:
        if groups and row == groups[-1][-1] + 1:
            groups[-1].append(row)
        else:
            groups.append([row])
    texts = [f"{g[0]}" if len(g) == 1 else f"{g[0]} to {g[-1]}" for g in groups]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more places" if len(texts) > limit else "")


def _shifted(first: Array, second: Array, counted: Sequence[bool]) -> tuple[int, float] | None:
    """The lag at which most cells are equal, and the share; None unless that is nearly all, and more than as it is."""
    varies = [c and len(np.unique(column)) > 2 for c, column in zip(counted, first.T, strict=True)]
    a, b = first[:ROWS_FOR_LAGS, varies], second[:ROWS_FOR_LAGS, varies]
    if not a.size or len(a) < 4:
        return None
    shares = {lag: _share(a, b, lag) for lag in range(-min(LAGS, len(a) // 2), min(LAGS, len(a) // 2) + 1)}
    lag = max(shares, key=lambda k: (shares[k], -abs(k)))
    return (lag, shares[lag]) if lag and shares[lag] >= 0.9 and shares[lag] > shares[0] + 0.2 else None


def _share(a: Array, b: Array, lag: int) -> float:
    one, other = (a[lag:], b[: len(b) - lag]) if lag >= 0 else (a[:lag], b[-lag:])
    return float(np.mean(one == other))


# Columns of tables


def _of_columns(kept: Kept, differing: set[str]) -> list[Pattern]:
    """Columns that stand under another column's name."""
    ours = {name: kept.expected[name] for name in kept.expected if name in differing or name not in kept.actual}
    theirs = {name: kept.actual[name] for name in kept.actual if name in differing or name not in kept.expected}
    moved = {}
    for name, values in ours.items():
        same = [other for other, column in theirs.items() if other != name and _same_column(values, column)]
        if len(same) == 1:
            moved[name] = same[0]
    swapped = sorted({tuple(sorted((a, b))) for a, b in moved.items() if moved.get(b) == a})
    found = [Pattern("swapped-columns", pair, f"{pair[0]} and {pair[1]} have changed places", 1.0) for pair in swapped]
    for name, other in moved.items():
        if moved.get(other) != name:
            renamed = name not in kept.actual and other not in kept.expected
            text = (
                f"{name} is called {other} in the second file"
                if renamed
                else f"{other} of the second file holds {name} of the first"
            )
            found.append(Pattern("renamed-column" if renamed else "moved-column", (name, other), text, 1.0))
    return found


def _same_column(a: Array, b: Array) -> bool:
    if len(a) != len(b) or (a.dtype == object) != (b.dtype == object):
        return False
    if a.dtype == object:
        return bool((a == b).all())
    return np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True) and bool(np.ptp(a) > 0)


# Axes of arrays and images


def _of_axes(result: ItemResult, kept: Kept, kind: FileKind) -> Iterator[Pattern]:
    """Other layouts: axes exchanged, turned round, moved along, channels in another order."""
    a, b = kept.expected.get(result.name), kept.actual.get(result.name)
    if (
        a is None
        or b is None
        or not a.size
        or a.size != b.size
        or a.size > 10 * LOOKED_AT
        or a.dtype.kind not in "biuf"
    ):
        return
    if a.shape == b.shape and not result.differing:
        return
    explained = _explains_picture if kind == "image" else _explains_array
    best: tuple[float, str, str] | None = None
    for code, text, candidate in _candidates(a, b.shape, kind):
        share = explained(a, candidate, b)
        if share >= (MOST_OF_PICTURE if kind == "image" else FITS) and (best is None or share > best[0]):
            best = share, code, text
            if share == 1.0:
                break
    if best is not None:
        yield Pattern(best[1], (result.name,), f"the second file is the first one {best[2]}", best[0])


def _explains_array(a: Array, candidate: Array, b: Array) -> float:
    """Share of the differing elements that the candidate has right."""
    corner = tuple(slice(0, 8) for _ in b.shape)
    if not np.array_equal(candidate[corner], b[corner], equal_nan=b.dtype.kind == "f"):
        return 0.0
    own = _equal_share(a, b) if a.shape == b.shape else 0.0
    return (_equal_share(candidate, b) - own) / (1 - own) if own < 1 else 0.0


def _explains_picture(a: Array, candidate: Array, b: Array) -> float:
    """Share of the mean difference that is gone; what is left may be that of a lossy format, and no more."""
    left = _mean_difference(candidate, b)
    if left > SMALL_IN_IMAGES * _range_of(b.dtype):
        return 0.0
    # Of pictures of other sizes: against one that has nothing to do with it.
    whole = _mean_difference(a, b) if a.shape == b.shape else _range_of(b.dtype) / 3
    return 1 - left / whole if whole else 0.0


def _range_of(dtype: Any) -> float:
    return float(np.iinfo(dtype).max) if np.dtype(dtype).kind in "iu" else 1.0


def _mean_difference(a: Array, b: Array) -> float:
    return float(np.mean(np.abs(a.astype(np.float64) - b)))


def _equal_share(a: Array, b: Array) -> float:
    return float(np.mean((a == b) | ((a != a) & (b != b))))


def _candidates(a: Array, shape: tuple[int, ...], kind: FileKind) -> Iterator[tuple[str, str, Array]]:
    """What may have been done to a file: a word for it, how, and what comes of it."""
    if a.shape == shape:
        yield from _same_shape(a, kind)
    yield from _other_axes(a, shape, kind)
    if a.shape == shape:
        yield from _rolled(a)
    else:
        yield "reshaped", "in another shape", a.reshape(shape)


def _same_shape(a: Array, kind: FileKind) -> Iterator[tuple[str, str, Array]]:
    """Channels exchanged, flipped, upside down."""
    for axis in range(a.ndim):
        if 2 <= a.shape[axis] <= 4 and (kind != "image" or axis == 2):
            for order in itertools.permutations(range(a.shape[axis])):
                if order != tuple(range(a.shape[axis])):
                    reverse = order[:3] == (2, 1, 0)
                    how = (
                        "with channels reversed (RGB against BGR)" if reverse else f"with channels in the order {order}"
                    )
                    yield "channel-order", f"{how}, axis {axis}", np.take(a, order, axis)
    for axis in range(a.ndim):
        if a.shape[axis] > 4 or kind == "image":
            how = (
                ("upside down", "mirrored left to right", "")[axis]
                if kind == "image" and axis < 2
                else f"reversed along axis {axis}"
            )
            yield "flipped", how, np.flip(a, axis)
    if kind == "image":
        yield "rotated", "turned by 180 degrees", a[::-1, ::-1]


def _other_axes(a: Array, shape: tuple[int, ...], kind: FileKind) -> Iterator[tuple[str, str, Array]]:
    """Axes in another order, a picture turned by a quarter."""
    axes = tuple(range(a.ndim))
    if a.ndim <= 5:
        for permutation in itertools.permutations(axes):
            if permutation != axes and tuple(a.shape[p] for p in permutation) == shape:
                yield "transposed", f"with its axes in the order {permutation}", np.transpose(a, permutation)
    if kind == "image" and a.ndim >= 2 and (a.shape[1], a.shape[0], *a.shape[2:]) == shape:
        yield "rotated", "turned by 90 degrees counter-clockwise", np.rot90(a, 1)
        yield "rotated", "turned by 90 degrees clockwise", np.rot90(a, -1)


def _rolled(a: Array) -> Iterator[tuple[str, str, Array]]:
    for axis in range(a.ndim):
        for lag in range(1, min(9, a.shape[axis] // 2)):
            for signed in (lag, -lag):
                rolled = np.roll(a, signed, axis)
                yield (
                    "rolled",
                    f"moved by {signed} along axis {axis}, with what falls out put in at the other end",
                    rolled,
                )
