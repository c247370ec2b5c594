"""``memory``: what becomes of freed blocks."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
import numpy as np
from bisect_tool.backends.memory import freed_memory_is_kept

def faults():
    "Pages that the system had to find for a block of 64 MiB that was had and freed just before."
    np.ones(64 << 20, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with freed_memory_is_kept():
    inside = faults()
print(inside, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator that cannot be told")
def test_freed_blocks_serve_again() -> None:
    """A big block is had anew without fresh pages while it lasts, and given back to the system afterwards.

    In a process of its own: where much was freed before, a block may be had of that at any time.
    """
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, timeout=60, check=True)
    inside, outside = map(int, done.stdout.split())
    assert inside < 200
    assert outside > 10 * max(inside, 1)
