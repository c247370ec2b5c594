"""How far a step is, told to those who want to know: a progress callback may have ``count(done, total)`` as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def tell_count(progress: Callable[[str], Any], done: int, total: int) -> None:
    """Tells it, where somebody listens; ``total`` is 0 where nobody knows."""
    count = getattr(progress, "count", None)
    if count is not None:
        count(done, total)


class Labelled:
    """A progress callback whose steps begin with a label."""

    def __init__(self, progress: Callable[[str], Any], label: str):
        self._progress = progress
        self._label = label

    def __call__(self, text: str) -> None:
        self._progress(f"{self._label}: {text}")

    def count(self, done: int, total: int) -> None:
        tell_count(self._progress, done, total)
