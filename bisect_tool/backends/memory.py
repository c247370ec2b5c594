"""Gives freed memory back to the system between steps."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def return_free_memory() -> None:
    """Asks glibc to release what is free; elsewhere nothing happens.

    ONNX Runtime frees big tensors from several threads; without this their pages stay with the process, and peaks of
    one step come on top of those of the next (100 MB and more on a ResNet-50 with 512 x 512 images).
    """
    _trim()(0)


def map_big_blocks() -> None:
    """Has glibc take every block of 4 MiB and more from the system, and give it back as soon as it is freed.

    By itself it raises that size to 32 MiB as a program frees big blocks, and keeps what is freed below it. For the rest
    of the process; it costs page faults, so it is for runs that were asked to stay small.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    try:
        ctypes.CDLL(None).mallopt(mmap_threshold, 4 << 20)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return lambda pad: 0
    found: Callable[[int], object] = trim
    return found
