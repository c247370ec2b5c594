"""Temporary folders, gone when the process ends, also where Ctrl-C came in the very moment of making or removing one."""

from __future__ import annotations

import atexit
import contextlib
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


def lasting_file(name: str, text: str) -> Path:
    """A text file among the temporary ones that stays when the process ends, unless it is told that nobody needs it.

    Args:
        name: of the file; what makes it unique stands before its ending.
        text: its content.
    """
    stem, ending = os.path.splitext(name)
    with tempfile.NamedTemporaryFile("w", prefix=f"{stem}-", suffix=ending, delete=False, encoding="utf-8") as file:
        _lasting.append(Path(file.name))
        file.write(text)
    return _lasting[-1]


_lasting: list[Path] = []


def remove_lasting_files() -> None:
    """Removes them after all."""
    while _lasting:
        with contextlib.suppress(OSError):
            _lasting.pop().unlink()


def claim(name: str) -> bool:
    """Whether a name is this process's from now on, and no other one's that asks for it at the same time."""
    try:
        place = Path(tempfile.gettempdir()) / f"bisect-divergence-claim-{name}"
        place.mkdir()
    except FileExistsError:
        return False
    except OSError:  # no temporary folder to be had: then nobody else has one either
        return True
    _claimed.append(place)
    return True


_claimed: list[Path] = []


@atexit.register
def remove_what_is_left() -> None:
    """Removes folders of this process that no block is left to remove."""
    if os.getpid() != _PROCESS:
        # A copy of it, as a model's own code may fork one: the folders are still in use.
        return
    for path in _claimed:
        with contextlib.suppress(OSError):
            path.rmdir()
    for path in [path for place in _places for path in place.glob(f"{_PREFIX}*")]:
        shutil.rmtree(path, ignore_errors=True)
