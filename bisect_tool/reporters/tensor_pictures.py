"""Pictures of tensors for the page: the reference and its error as images, and the histogram of the error.

Images are indexed PNGs of at most 64 by 64 pixels in data URIs, made here: no more than a palette and a packed stream.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bisect_tool import pictures
from bisect_tool.records import Comparison, ErrorPicture, Report, StageRef, StageRow
from bisect_tool.reporters import wording

# Light values grow steadily along it, so that it reads in grey and to the colour-blind.
_STOPS = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)
_NONE = (16, 16, 20)
_ODD = (255, 0, 220)
_SIDE, _THIN = 256, 32
"""CSS pixels of an image's longer side, and of its shorter one at least."""
_LEAST_SPAN = 64
"""Steps of the error's scale that the palette spans at least, about two powers of ten: noise is not blown up to a pattern."""

WIDTH, HEIGHT = 384, 120


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class View:
    """One tensor's picture as the page shows it.

    Attributes:
        where: the stage. of: which error, in words. reference: whose tensor it is.
        expected, error: images as data URIs. bar: the error's palette.
        width, height: of the images, in CSS pixels.
        range_text, error_range: values of the darkest and the lightest pixel.
        axes: what rows and columns are.
        bars: of the histogram, each ``bar_width`` wide. ticks: place and text under it.
        limit: place of the limit on a single element; ``None`` without one, or out of the range.
        counts: elements, those that are equal, those that are not finite, in words.
    """

    where: str
    of: str
    reference: str
    expected: str
    error: str
    bar: str
    width: int
    height: int
    range_text: tuple[str, str]
    error_range: tuple[str, str]
    axes: str
    bars: tuple[Bar, ...]
    bar_width: float
    ticks: tuple[tuple[float, str], ...]
    limit: float | None
    counts: str
    text: str


def views(report: Report, config: str | None) -> dict[tuple[StageRef, str], View]:
    """Pictures by stage and configuration, those of one configuration and of every origin."""
    wanted = {(origin.ref, origin.config) for origin in report.verdict.origins}
    found: dict[tuple[StageRef, str], View] = {}
    for row in report.stages:
        for name, result in row.results.items():
            if result.picture is not None and (name == config or (row.ref, name) in wanted):
                view = _view(row, name, result, result.picture, "the first recording" if report.chain else "PyTorch")
                if view is not None:
                    found[row.ref, name] = view
    return found


def _view(row: StageRow, config: str, result: Comparison, picture: ErrorPicture, reference: str) -> View | None:
    error = pictures.unpacked(picture.error, picture.rows, picture.columns)
    expected = pictures.unpacked(picture.expected, picture.rows, picture.columns)
    if error is None or expected is None:
        return None
    steps = error[(error > 0) & (error <= pictures.TOP)]
    low = int(steps.min()) if steps.size else pictures.TOP
    low = max(1, min(low, pictures.TOP - _LEAST_SPAN))
    width, height = _size(row, picture)
    of = "made in the stage itself" if picture.of == "local" else "of the whole run"
    ends = (wording.sci(pictures.error_at(low, picture.high)), wording.sci(picture.high))
    where = f"{wording.printable(row.ref)} under {wording.printable(config)}"
    limit = result.spread.limit if result.spread is not None and picture.of == "total" else None
    return View(
        where=where,
        of=of,
        reference=reference,
        expected=_uri(_png(expected, _greys())),
        error=_uri(_png(error, _palette(low))),
        bar=_uri(_png(np.linspace(low, pictures.TOP, 128).astype(np.uint8)[None], _palette(low))),
        width=width,
        height=height,
        range_text=(wording.sci(picture.expected_low), wording.sci(picture.expected_high)),
        error_range=ends,
        axes=_axes_text(row, picture),
        bars=tuple(_bars(picture)),
        bar_width=WIDTH / pictures.CELLS,
        ticks=tuple(_ticks(picture)),
        limit=_limit(limit, picture),
        counts=_counts_text(picture),
        text=f"Map of the error {of} in {where}: from {ends[0]} to {ends[1]}, {_place_text(error)}.",
    )


def _size(row: StageRow, picture: ErrorPicture) -> tuple[int, int]:
    """As wide and high as the tensor's own axes are to each other, within reason."""
    sizes = [row.shape[axis] for axis in picture.axes if axis < len(row.shape)]
    if len(sizes) != 2:
        return _SIDE, _THIN
    rows, columns = sizes
    longest = max(rows, columns)
    return max(round(_SIDE * columns / longest), _THIN), max(round(_SIDE * rows / longest), _THIN)


def _axes_text(row: StageRow, picture: ErrorPicture) -> str:
    sizes = [row.shape[axis] if axis < len(row.shape) else 0 for axis in picture.axes]
    names = [f"axis {axis} ({size})" for axis, size in zip(picture.axes, sizes, strict=True)]
    text = (
        f"rows: {names[0]}, columns: {names[1]}" if len(names) == 2 else f"columns: {', '.join(names) or 'one number'}"
    )
    others = [size for axis, size in enumerate(row.shape) if axis not in picture.axes and size > 1]
    block = any(size > pictures.CELLS for size in sizes)
    parts = [
        *(["a cell is a block of them"] if block else []),
        *(["the largest over all other axes"] if others else []),
    ]
    return f"{text} of {wording.shape_text(row.shape)}" + (f"; {', and '.join(parts)}" if parts else "")


def _counts_text(picture: ErrorPicture) -> str:
    total = sum(picture.histogram) + picture.equal + picture.nonfinite
    text = f"{total} elements, {picture.equal} of them equal"
    return text + (f", {picture.nonfinite} not finite on one side (pink)" if picture.nonfinite else "")


def _place_text(error: NDArray[np.uint8]) -> str:
    """Where the largest errors lie, for those who do not see the map."""
    rows, columns = error.shape
    strong = error >= max(int(error.max()) - 32, 1)  # within a power of ten of the largest
    share = wording.percent(int(strong.sum()), error.size)
    if min(rows, columns) > 2:
        inner = strong[1:-1, 1:-1]
        if strong.any() and not inner.any():
            return f"along the border only ({share} of the cells are within a power of ten of the largest)"
    return f"{share} of the cells are within a power of ten of the largest"


def _bars(picture: ErrorPicture) -> list[Bar]:
    """Heights by the logarithm of the count: a single element can be seen beside a million."""
    most = max(picture.histogram, default=0)
    step = WIDTH / pictures.CELLS
    bars = []
    for number, count in enumerate(picture.histogram):
        if count:
            height = max(HEIGHT * math.log1p(count) / math.log1p(most), 2.0)
            bars.append(Bar(number * step, HEIGHT - height, height))
    return bars


def _ticks(picture: ErrorPicture) -> list[tuple[float, str]]:
    """Every two powers of ten from the largest difference down."""
    step = pictures.CELLS // 4
    return [
        (number * WIDTH / pictures.CELLS, wording.sci(pictures.bin_edge(number, picture.high)))
        for number in range(0, pictures.CELLS + 1, step)
    ]


def _limit(limit: float | None, picture: ErrorPicture) -> float | None:
    if not limit or not picture.high > 0:
        return None
    place = 1 + math.log10(limit / picture.high) / pictures.DECADES
    return place * WIDTH if 0 <= place <= 1 else None


# Images


def _palette(low: int) -> bytes:
    colours = [_NONE] + [_between((number - low) / max(pictures.TOP - low, 1)) for number in range(1, pictures.TOP + 1)]
    return bytes(part for colour in [*colours, _ODD] for part in colour)


def _between(place: float) -> tuple[int, int, int]:
    place = min(max(place, 0.0), 1.0) * (len(_STOPS) - 1)
    start = min(int(place), len(_STOPS) - 2)
    red, green, blue = (
        round(one + (other - one) * (place - start))
        for one, other in zip(_STOPS[start], _STOPS[start + 1], strict=True)
    )
    return red, green, blue


def _greys() -> bytes:
    return bytes(part for number in range(255) for part in (number, number, number)) + bytes(_ODD)


def _png(pixels: NDArray[np.uint8], palette: bytes) -> bytes:
    """An indexed PNG, eight bits deep: four chunks, no library."""
    rows, columns = pixels.shape
    lines = b"".join(b"\0" + pixels[row].tobytes() for row in range(rows))
    head = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"PLTE", palette), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
