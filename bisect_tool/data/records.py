"""The nouns of comparing data files: what is read, and what is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

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
class Content:
    """An opened file.

    Attributes:
        facts: about the file; ``rows`` of a table is only known once it was read.
        names: of columns or arrays, in the file's order.
        pieces: a table's rows in pieces of at most ``PIECE`` rows, each all columns; empty for arrays.
        arrays: by name; empty for a table.
        mode: an image's (``RGB``), else None.
        header: lines before the first row.
        lines: of the text; unless each row is one, no line can be told.
        notes: what the user should know about how it was read.
    """

    kind: FileKind
    facts: FileFacts
    names: tuple[str, ...]
    pieces: Iterator[Mapping[str, Array]]
    arrays: Mapping[str, Array]
    mode: str | None = None
    header: int = 0
    lines: int | None = None
    notes: tuple[str, ...] = ()
