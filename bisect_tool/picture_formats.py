"""Formats that plots are written in, and how the user names them."""

from __future__ import annotations

from bisect_tool.errors import BisectError

FORMATS = ("png", "svg", "pdf")
DEFAULT_FORMATS = ("png", "svg")
"""Written unless something else is asked for."""


def read_formats(text: str | None) -> tuple[str, ...]:
    """``png,svg,pdf`` as a tuple, each once; ``none`` is no format at all, and nothing the default.

    Raises:
        BisectError: a format that cannot be written.
    """
    if text is None:
        return DEFAULT_FORMATS
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words == ["none"]:
        return ()
    wrong = [word for word in words if word not in FORMATS]
    if wrong or not words:
        raise BisectError(
            f"--plots {text!r}: {wrong[0] if wrong else 'nothing'} is no format of plots",
            hint=f"{', '.join(FORMATS)}, several with commas, or none",
        )
    return tuple(dict.fromkeys(words))
