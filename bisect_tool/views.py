"""How records show themselves in notebooks: by name, so that they need not know what draws them.

``records`` and ``traces.py`` may know no reporter, but it is they whom a notebook asks. What they call here loads
:mod:`bisect_tool.reporters.notebook`, with pandas, only when a notebook asks.
"""

from __future__ import annotations

import importlib
from typing import Any

_DRAWS = "bisect_tool.reporters.notebook"


def html_of(kind: str, thing: object) -> str:
    """A record as HTML for a cell's output; ``kind``: ``report``, ``stages`` or ``trace``."""
    text: str = getattr(importlib.import_module(_DRAWS), f"{kind}_html")(thing)
    return text


def frame_of(kind: str, thing: object) -> Any:
    """A record as a pandas DataFrame; ``kind`` as in :func:`html_of`."""
    return getattr(importlib.import_module(_DRAWS), f"{kind}_frame")(thing)
