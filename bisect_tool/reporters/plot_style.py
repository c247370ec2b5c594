"""What all plots share: colours, how a figure becomes bytes, and how names fit beside an axis.

Figures are made without pyplot, so drawing leaves no state behind and needs no display. Colours are near Okabe and
Ito's, some darker or lighter, so that those that meet in one plot differ in grey too; line styles, markers and hatches
differ as well.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bisect_tool.reporters import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_WIDTH = 34
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""No date and no program: the same report gives the same bytes."""


@dataclass(frozen=True)
class Style:
    paper: str
    ink: str
    grid: str
    total: str
    local: str
    growth: str
    first: str
    origin: str


LIGHT = Style("#ffffff", "#1b1f24", "#d8dce1", "#d55e00", "#00487a", "#009e73", "#cc79a7", "#e69f00")


def save(figure: Figure, kind: str, title: str) -> bytes:
    """A figure as the bytes of a file; text in an SVG and in a PDF stays text.

    The first file of a figure finds the places of everything, which takes as long as drawing it; the others have the same.
    """
    import matplotlib

    metadata = _METADATA[kind] if kind == "png" else {**_METADATA[kind], "Title": title}
    settings: dict[Any, Any] = {"svg.hashsalt": "bisect-tool", "svg.fonttype": "none", "pdf.fonttype": 42}
    # What a user's own settings would put in an engine's place.
    settings |= {"figure.autolayout": False, "figure.constrained_layout.use": False}
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in other scripts; SVG keeps them
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
            # Whatever is there makes matplotlib draw each file twice, the first time for nothing but the places.
            figure.set_layout_engine(None)
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def text(words: str, width: int) -> str:
    """A name that is safe to draw, cut in its middle."""
    return wording.shorten_middle(wording.printable(words), width)


def stage_name(ref: object) -> str:
    """A stage's name, short enough for an axis."""
    return text(wording.initials(str(ref), LABEL_WIDTH), LABEL_WIDTH)


def bare(axes: Axes) -> None:
    """Ink on paper, without a box around."""
    axes.set_facecolor(LIGHT.paper)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT.ink)
    axes.xaxis.label.set_color(LIGHT.ink)
    axes.yaxis.label.set_color(LIGHT.ink)
    for spine in axes.spines.values():
        spine.set_color(LIGHT.grid)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
