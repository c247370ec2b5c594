"""Globs over stage paths: ``*`` stays within one part of a dotted path, ``**`` does not."""

from __future__ import annotations

import re


def matches(path: str, glob: str) -> bool:
    """Whether a stage path matches; ``backbone.blocks.*`` matches ``backbone.blocks.0`` and not what lies inside it."""
    parts = re.split(r"(\*\*|\*|\?)", glob)
    pattern = {"**": ".*", "*": r"[^./]*", "?": r"[^./]"}
    return re.fullmatch("".join(pattern.get(part, re.escape(part)) for part in parts), path) is not None
