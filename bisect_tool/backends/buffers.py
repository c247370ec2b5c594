"""Memory for big tensors that is used again and again.

Fresh memory is dear: the system clears each page when it is first touched, which costs several times what an elementwise
operator costs. Tensors here come and go segment by segment, in few sizes, so most of them find a place where another one
has been.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
HUGE_PAGE = 2 << 20
"""Below this size fresh memory costs little, and a pool would only keep it from others."""


@dataclass(eq=False, slots=True)
class _Buffer:
    memory: mmap.mmap
    user: weakref.ref[NDArray[np.uint8]]


class BufferPool:
    """Hands out page-aligned memory; a buffer is free again when the array that was handed out, and every view of it, are
    gone.

    Args:
        idle: bytes that may lie about when another size is wanted, for whoever wants theirs next; they add to the peak.
    """

    def __init__(self, idle: int = 0) -> None:
        self._idle = idle
        self._buffers: list[_Buffer] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes, with anything in them."""
        idle = [b for b in self._buffers if b.user() is None]
        fitting = [b for b in idle if size <= len(b.memory) <= 2 * size]
        if fitting:
            memory = min((b.memory for b in fitting), key=len)
            self._buffers = [b for b in self._buffers if b.memory is not memory]
        else:
            self._drop(idle)
            memory = _map(size)
        array = np.frombuffer(memory, np.uint8, size)
        # Views refer to the array that owns the memory for numpy, so that it lives as long as any of them.
        self._buffers.append(_Buffer(memory, weakref.ref(array)))
        return array

    def _drop(self, idle: Sequence[_Buffer]) -> None:
        """Lets go of idle buffers that are too many, of those first that have been there longest."""
        left = self._idle
        for buffer in reversed(idle):
            left -= len(buffer.memory)
            if left < 0:
                self._buffers.remove(buffer)


def _map(size: int) -> mmap.mmap:
    step = HUGE_PAGE if size >= HUGE_PAGE else PAGE
    memory = mmap.mmap(-1, max(-(-size // step) * step, step))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
