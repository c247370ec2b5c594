"""Sizes in bytes, as people write them."""

from __future__ import annotations

from bisect_tool.errors import BisectError


def parse_size(text: str) -> int:
    """``1GiB``, ``256 MiB``, ``2GB`` or plain bytes → bytes.

    Raises:
        BisectError: not a size above zero.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    number = text.strip().rstrip("BbGgIiKkMm ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise BisectError(f"memory budget {text!r}: not a size", hint="write 256MiB, 1GiB, or a number of bytes")
    return size
