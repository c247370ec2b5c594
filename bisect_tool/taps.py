"""``tap("name", value)`` in preprocessing code: a step that a recording shall hold, and nothing at all otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

SINKS: list[Callable[[str, Any], None]] = sys.modules.setdefault(
    "_bisect_taps", ModuleType("_bisect_taps")
).__dict__.setdefault("SINKS", [])
"""Recordings that are being made. ``recorder.py``, which may run as a file by itself, keeps them in the same place."""


def tap(name: str, value: T) -> T:
    """Puts a step of preprocessing into the recording that is being made, if one is.

    Args:
        name: of the step; several taps of one name are numbered.
        value: a numpy array, tensor, data frame, image, or a container of them. It is read at once and never changed.

    Returns:
        ``value`` itself, so that a call can stand around an expression.
    """
    for sink in SINKS:
        sink(name, value)
    return value
