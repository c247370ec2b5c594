"""Files that are written whole or not at all: a full disk costs nobody what was there before."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_whole(files: Mapping[Path, str | bytes | Path]) -> None:
    """Writes files under other names beside their places, and moves them there when all of them are complete.

    Links are followed. What is no regular file, such as a pipe or ``/dev/null``, is written to where it is.

    Args:
        files: what each one is to hold: text (UTF-8), bytes, or the file that it is to be a copy of.

    Raises:
        OSError: one of them cannot be written; nothing that was there has changed, but for pipes.
    """
    partial: list[tuple[Path, Path]] = []
    try:
        for target, content in files.items():
            # Before links are followed: that of /dev/stdout leads to no path.
            if target.exists() and not target.is_file():
                _write(target, content)
                continue
            place = Path(os.path.realpath(target))
            partial.append((place, place.with_name(f".partial-{secrets.token_hex(4)}")))
            _write(partial[-1][1], content)
            with contextlib.suppress(OSError):
                shutil.copymode(place, partial[-1][1])
        for place, written in partial:
            os.replace(written, place)
    finally:
        for _, written in partial:
            with contextlib.suppress(OSError):
                written.unlink()


def _write(place: Path, content: str | bytes | Path) -> None:
    if isinstance(content, Path):
        with content.open("rb") as source, place.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    else:
        with place.open("wb") as target:
            target.write(content.encode() if isinstance(content, str) else content)
