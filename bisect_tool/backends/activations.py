"""PyTorch's activations of one run: in memory as far as the budget goes, in a temporary file beyond it.

A layer-wise comparison needs each activation at least twice: to find its ONNX value, and to be compared with it. Keeping
them all costs the sum of all activations; running the model again costs its time, fails for models that do not repeat
themselves, and adds up both sides' memory while one waits for the other. A file costs neither: PyTorch runs once, alone,
then ONNX Runtime runs, alone, so that the peak is the larger of the two.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.buffers import PAGE, BufferPool
from bisect_tool.backends.torch_runner import from_numpy, to_numpy
from bisect_tool.errors import BisectError
from bisect_tool.recorder import Recorder

Array = NDArray[Any]

_BOUNCE, _BOUNCES = 4 << 20, 8
"""Bytes written at once, and how many such pieces may wait for the disk."""

_ALWAYS_HELD = 1 << 16
"""Bytes up to which a tensor is held in any case: a file would cost more than it saves."""


class GoneError(Exception):
    """A value is asked for that was said not to be needed any more: PyTorch has to run again."""


class ActivationStore:
    """Keeps tensors by value id.

    Args:
        limit: bytes that may be held in memory; what comes later goes to a temporary file (``TMPDIR``).
        buffers: memory for what is read back.
        spill: whether what comes later goes to the file at all; else it is gone.
    """

    def __init__(self, limit: int, buffers: BufferPool, *, spill: bool = True):
        self._buffers = buffers
        self._spills = spill
        self._gone: set[int] = set()
        self._recorder: Recorder | None = None
        self._limit = limit
        self._held = 0
        self._spill: _Spill | None = None
        self._cache: dict[int, Future[Array]] = {}
        self._complex: set[int] = set()

    def attach(self, recorder: Recorder) -> None:
        """Says who holds what stays in memory, and copies it before the model overwrites it."""
        self._recorder = recorder

    @property
    def spilled_bytes(self) -> int:
        return 0 if self._spill is None else self._spill.size

    def keep(self, value: int, tensor: torch.Tensor) -> None:
        """Keeps a tensor as it is now. To be called from the recorder's callback.

        Raises:
            BisectError: the disk is full.
        """
        assert self._recorder is not None
        # Not on the device: there the model needs the room.
        tensor = tensor if tensor.device.type == "cpu" else tensor.cpu()
        size = tensor.numel() * tensor.element_size()
        if self.has_room(size):
            self._held += size
            self._recorder.hold(value, tensor)
            return
        if not self._spills:
            self._gone.add(value)
            return
        if self._spill is None:
            self._spill = _Spill(self._buffers)
        self._spill.write(value, to_numpy(tensor))
        if tensor.is_complex():
            self._complex.add(value)

    def has_room(self, size: int) -> bool:
        """Whether a tensor of so many bytes would stay in memory."""
        return size <= _ALWAYS_HELD or self._held + size <= self._limit

    def forget(self, value: int) -> None:
        """Says that a value will not be asked for any more; whether it was kept or not."""
        assert self._recorder is not None
        self._gone.add(value)
        if self._recorder.is_held(value):
            tensor = self._recorder.held(value)
            self._held -= tensor.numel() * tensor.element_size()
            self._recorder.release(value)

    def is_gone(self, value: int) -> bool:
        """Whether a value was forgotten, or found no room."""
        return value in self._gone

    def settle(self) -> None:
        """Says that nothing more will come; the memory that writing took is free then.

        Raises:
            BisectError: the disk is full.
        """
        if self._spill is not None:
            self._spill.settle()

    def fetch(self, value: int) -> Array:
        """The tensor as numpy has it. What comes from the file stays valid until ``retain`` drops it.

        Raises:
            GoneError: it was forgotten.
        """
        self._check(value)
        if self._spill is None or value not in self._spill:
            assert self._recorder is not None
            return to_numpy(self._recorder.held(value))
        self.prefetch((value,))
        return self._cache[value].result()

    def prefetch(self, values: Collection[int]) -> None:
        """Says that values will be fetched soon: those in the file are read meanwhile."""
        for value in values:
            if (
                self._spill is not None
                and value in self._spill
                and value not in self._cache
                and value not in self._gone
            ):
                self._cache[value] = self._spill.read(value)

    def tensor(self, value: int) -> torch.Tensor:
        """The tensor itself, of a kept value or of one that the recorder holds; not to be written to."""
        self._check(value)
        if self._spill is not None and value in self._spill:
            array = from_numpy(self.fetch(value))
            return torch.view_as_complex(array) if value in self._complex else array
        assert self._recorder is not None
        return self._recorder.held(value)  # type: ignore[no-any-return]

    def _check(self, value: int) -> None:
        if value in self._gone:
            raise GoneError(value)

    def retain(self, values: Collection[int]) -> None:
        """Drops what was read from the file, except for ``values``."""
        for value in [v for v in self._cache if v not in values]:
            self._cache.pop(value).cancel()

    def close(self) -> None:
        """Frees everything; the file is gone with it."""
        self._cache.clear()
        if self._recorder is not None:
            self._recorder.release_all()
        if self._spill is not None:
            self._spill.close()
            self._spill = None


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Spill:
    """Arrays in a temporary file that has no name any more, so that it goes with the process whatever happens.

    Written and read past the system's page cache where that is possible: it would only crowd out other files, and getting
    fresh pages for it costs more than a local disk does. Both go on in a thread, while a model or a graph computes.
    """

    def __init__(self, buffers: BufferPool) -> None:
        self._buffers = buffers
        self._folder = tempfile.gettempdir()
        self._file = _open_unnamed(self._folder)
        self._places: dict[int, _Place] = {}
        # Direct writing wants aligned memory, which tensors are not in.
        self._bounces: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(_BOUNCES):
            self._bounces.put(mmap.mmap(-1, _BOUNCE))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spill")
        self._writing: list[Future[None]] = []
        self.size = 0

    def __contains__(self, key: int) -> bool:
        return key in self._places

    def write(self, key: int, array: Array) -> None:
        """Takes a copy; an error of an earlier write may be raised here."""
        self._finish([job for job in self._writing if job.done()])
        self._places[key] = _Place(self.size, array.dtype, tuple(array.shape))
        # Not ascontiguousarray: that makes vectors of scalars, and the shape is kept apart anyway.
        raw = array.reshape(-1) if array.flags.c_contiguous else array.flatten()
        data = raw.view(np.uint8).data
        for start in range(0, len(data), _BOUNCE):
            part = data[start : start + _BOUNCE]
            bounce = self._bounces.get()
            bounce[: len(part)] = part
            self._writing.append(self._thread.submit(self._write_out, bounce, len(part), self.size + start))
        self.size += _padded(len(data))

    def _write_out(self, bounce: mmap.mmap, size: int, offset: int) -> None:
        try:
            part = memoryview(bounce)[: _padded(size)]
            while part:
                done = os.pwrite(self._file, part, offset)
                part, offset = part[done:], offset + done
        finally:
            self._bounces.put(bounce)

    def _finish(self, jobs: list[Future[None]]) -> None:
        try:
            for job in jobs:
                job.result()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise BisectError(
                f"no room in {self._folder} for the activations that exceed the memory budget "
                f"({self.size / 1e9:.1f} GB so far, {shutil.disk_usage(self._folder).free / 1e9:.1f} GB free)",
                hint="set TMPDIR to a roomier disk, or raise --memory-budget",
            ) from error
        self._writing = [job for job in self._writing if job not in jobs]

    def read(self, key: int) -> Future[Array]:
        """Reads an array after those that were asked for before."""
        self._finish(self._writing)
        place = self._places[key]
        # Here, for only one thread may take from the pool.
        return self._thread.submit(self._read_in, self._buffers.take(_padded(place.nbytes)), place)

    def _read_in(self, buffer: NDArray[np.uint8], place: _Place) -> Array:
        view, offset = buffer.data, place.offset
        while view:
            done = os.preadv(self._file, [view], offset)
            if not done:
                raise BisectError(f"the temporary file in {self._folder} lost its end", hint="is its disk failing?")
            view, offset = view[done:], offset + done
        return buffer[: place.nbytes].view(place.dtype).reshape(place.shape)

    def settle(self) -> None:
        self._finish(self._writing)
        while not self._bounces.empty():
            self._bounces.get().close()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        # Freeing some gigabytes takes a file system a second or more, and nobody waits for it.
        threading.Thread(target=os.close, args=(self._file,), name="spill", daemon=True).start()


def _padded(size: int) -> int:
    """Direct input and output wants whole pages."""
    return -(-size // PAGE) * PAGE


def _open_unnamed(folder: str) -> int:
    handle, path = tempfile.mkstemp(prefix="bisect-divergence-", dir=folder)
    try:
        direct = getattr(os, "O_DIRECT", None)
        if direct is None:
            return handle
        try:
            unbuffered = os.open(path, os.O_RDWR | direct)
        except OSError:  # file systems in memory, and some on the network, have no direct access
            return handle
        os.close(handle)
        return unbuffered
    finally:
        os.unlink(path)
