"""Lines and columns on a rich console: nothing wraps inside a row, and no name is read as markup.

Rich's own ``Table`` wraps or truncates at the end and has no sub-headers; stage names say most at their two ends.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from bisect_tool.reporters.wording import printable, shorten_middle

GAP = 2
PROSE_WIDTH = 100
LABEL_WIDTH = 14
"""Lines after a longer label are indented a little only, not under the text's beginning."""


class PipedConsole(Console):
    """rich exits with 1 on a closed pipe, which would read as "divergence"; the command line knows a better code.

    A width of 0, as terminals without a size have it in ``COLUMNS``, is none.
    """

    def __init__(self, *, file: IO[str] | None = None, width: int | None = None):
        if width is None and os.environ.get("COLUMNS") == "0":
            width = shutil.get_terminal_size().columns
        super().__init__(file=file, width=width)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its head.
        minimum: the column may be shortened down to this width; ``None``: never.
        cut: where a cell loses characters.
        right: numbers are set flush right.
        drop: 0 stays always; of the others, the highest number goes first when there is no room.
    """

    title: str
    minimum: int | None = None
    cut: Literal["middle", "end"] = "middle"
    right: bool = False
    drop: int = 0


@dataclass(frozen=True)
class Row:
    """Cells, one for each column; ``styles`` by number of the column; ``note`` stands in place of the numbers."""

    cells: tuple[str, ...]
    styles: tuple[tuple[int, str], ...] = ()
    style: str = ""
    note: str | None = None
    note_from: int = 0


@dataclass(frozen=True)
class Span:
    """A line of its own across the table: a sub-header, or what was left out.

    ``fold`` breaks it into several lines, all indented alike, where it would be shortened otherwise.
    """

    text: str
    style: str = "dim"
    fold: bool = False


class Page:
    """A console, and the three ways of writing to it: a line, prose, a table."""

    def __init__(self, console: Console):
        self.console = console
        self.width = max(console.width, 20)
        self.lines = 0
        """Printed so far."""

    def clean(self, text: object) -> str:
        """Make text safe to print here: no control characters, and nothing that the encoding cannot write."""
        safe = printable(text)
        encoding = self.console.encoding
        try:
            safe.encode(encoding)
        except UnicodeEncodeError:
            safe = safe.encode(encoding, "backslashreplace").decode(encoding)
        return safe

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print one line that is never broken here, so that paths in it can be copied."""
        text = Text()
        for part in parts:
            body, style = (part, "") if isinstance(part, str) else part
            text.append(self.clean(body), style or None)
        self._print(text)

    def prose(
        self,
        text: str,
        *,
        label: tuple[str, str] = ("", ""),
        indent: str = "",
        style: str = "",
        most: int | None = None,
    ) -> bool:
        """Print a paragraph, folded between words, later lines under the first one's beginning.

        Args:
            text, style: of the paragraph.
            label: what it begins with, and its style.
            indent: before the label.
            most: lines; of a longer paragraph the last one ends in two dots.

        Returns:
            Whether something was cut off.
        """
        start = indent + " " * len(label[0])
        hanging = start if len(label[0]) <= LABEL_WIDTH else indent + "    "
        lines = textwrap.wrap(
            self.clean(text),
            min(self.width, PROSE_WIDTH),
            initial_indent=start,
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        cut = most is not None and len(lines) > most
        if cut:
            kept = lines[most - 1] if most is not None else ""
            room = min(self.width, PROSE_WIDTH) - 3
            while len(kept) > room and " " in kept.strip():
                kept = kept.rstrip().rpartition(" ")[0]
            lines = [*lines[: (most or 1) - 1], f"{kept} .."]
        first = lines[0][len(start) :] if lines else ""
        self._print(Text.assemble(indent, label).append(first, style or None))
        for line in lines[1:]:
            self._print(Text(line, style))
        return cut

    def table(self, columns: Sequence[Column], entries: Sequence[Row | Span], *, indent: int = 0) -> list[str]:
        """Print a table that fits the width, leaving out columns where it must; returns the titles shown."""
        rows = [
            Row(tuple(map(self.clean, e.cells)), e.styles, e.style, e.note, e.note_from) if isinstance(e, Row) else e
            for e in entries
        ]
        widths = column_widths(columns, [row.cells for row in rows if isinstance(row, Row)], self.width - indent)
        shown = [number for number, width in enumerate(widths) if width is not None]
        self._row(columns, widths, shown, Row(tuple(column.title for column in columns), style="bold"), indent)
        for row in rows:
            if isinstance(row, Span) and row.fold:
                body = row.text.lstrip(" ")
                self.prose(body, indent=" " * (indent + len(row.text) - len(body)), style=row.style)
            elif isinstance(row, Span):
                self._print(Text(" " * indent + fit_text(self.clean(row.text), self.width - indent), row.style))
            else:
                self._row(columns, widths, shown, row, indent)
        return [columns[number].title for number in shown]

    def _row(
        self, columns: Sequence[Column], widths: Sequence[int | None], shown: Sequence[int], row: Row, indent: int
    ) -> None:
        text = Text(" " * indent, row.style)
        styles = dict(row.styles)
        for position, number in enumerate(shown):
            if row.note is not None and number >= row.note_from:
                text.append(fit_text(self.clean(row.note), self.width - text.cell_len, "end"), styles.get(number))
                break
            width = widths[number] or 0
            cell = fit_text(row.cells[number], width, columns[number].cut)
            pad = " " * (width - cell_len(cell))
            text.append(pad + cell if columns[number].right else cell + pad, styles.get(number))
            if position + 1 < len(shown):
                text.append(" " * GAP)
        text.truncate(self.width)
        self._print(text)

    def _print(self, text: Text) -> None:
        text.rstrip()
        self.lines += 1
        self.console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)


def fit_text(text: str, width: int, cut: Literal["middle", "end"] = "middle") -> str:
    """Shorten to a width in terminal cells; wide characters take two."""
    room = width
    short = text
    while cell_len(short) > width:
        short = shorten_middle(text, room) if cut == "middle" else text[: max(room - 2, 0)] + ".."[: max(width, 0)]
        room -= 1
    return short


def column_widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int | None]:
    """Choose which columns are shown and how wide each is; ``None`` for those left out."""
    natural = [
        max([cell_len(column.title), *(cell_len(row[number]) for row in rows)]) for number, column in enumerate(columns)
    ]
    least = [
        size if column.minimum is None else min(size, column.minimum)
        for size, column in zip(natural, columns, strict=True)
    ]
    shown = list(range(len(columns)))

    def needed() -> int:
        return sum(least[number] for number in shown) + GAP * (len(shown) - 1)

    for number in sorted(shown, key=lambda number: -columns[number].drop):
        if needed() <= width or columns[number].drop == 0:
            break
        shown.remove(number)
    widths: list[int | None] = [least[number] if number in shown else None for number in range(len(columns))]
    spare = width - needed()
    for number in shown:
        # first come, first served: the first column that can be shortened is the one that matters most
        change = max(min(spare, natural[number] - least[number]), -least[number] + 4)
        if columns[number].minimum is not None:
            widths[number] = least[number] + change
            spare -= change
    return widths
