"""``memory``: what becomes of freed blocks."""

from __future__ import annotations

import platform
import resource

import numpy as np
import pytest

from bisect_tool.backends.memory import freed_memory_is_kept

_SIZE = 64 << 20


def _faults() -> int:
    """Pages that the system had to find for a block of 64 MiB that was had and freed just before."""
    np.ones(_SIZE, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(_SIZE, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator that cannot be told")
def test_freed_blocks_serve_again() -> None:
    """A big block is had anew without fresh pages while it lasts, and given back to the system afterwards."""
    with freed_memory_is_kept():
        inside = _faults()
    outside = _faults()
    assert inside < 200
    assert outside > 10 * max(inside, 1)
