"""Gives freed memory back to the system between steps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator


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
    _set_malloc(_MMAP_THRESHOLD, 4 << 20)


@contextlib.contextmanager
def freed_memory_is_kept() -> Iterator[None]:
    """While it lasts, glibc keeps freed blocks of up to 1 GiB, for whoever wants one next.

    By itself it gives blocks over 32 MiB back as soon as they are freed; the system clears every page of the next one.
    That took a sixth of a forward with such tensors. Only for what frees most of what it takes.
    """
    _set_malloc(_MMAP_THRESHOLD, 1 << 30)
    _set_malloc(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        # Where glibc itself would have got to by now.
        _set_malloc(_MMAP_THRESHOLD, 32 << 20)
        _set_malloc(_TRIM_THRESHOLD, 64 << 20)
        return_free_memory()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


def _set_malloc(what: int, size: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(what, size)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return lambda pad: 0
    found: Callable[[int], object] = trim
    return found
