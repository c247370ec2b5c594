"""Temporary folders, gone when the process ends, also where Ctrl-C came in the very moment of making or removing one."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

_PREFIX = f"bisect-divergence-{secrets.token_hex(4)}-"
"""Of this process alone, so that it can tell its own."""
_PROCESS = os.getpid()
_places: set[Path] = set()
"""Where folders were made."""


def temporary_folder(folder: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A folder for the length of a ``with`` block.

    Args:
        folder: where it lies; ``None``: where the system has such (``TMPDIR``).
    """
    _places.add(Path(tempfile.gettempdir() if folder is None else folder))
    return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder, ignore_cleanup_errors=True)


@atexit.register
def remove_what_is_left() -> None:
    """Removes folders of this process that no block is left to remove."""
    if os.getpid() != _PROCESS:
        # A copy of it, as a model's own code may fork one: the folders are still in use.
        return
    for path in [path for place in _places for path in place.glob(f"{_PREFIX}*")]:
        shutil.rmtree(path, ignore_errors=True)
