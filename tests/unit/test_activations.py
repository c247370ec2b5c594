"""Activations beyond the budget go through a file and come back bit for bit; its memory is used again."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from bisect_tool.backends import activations
from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.buffers import HUGE_PAGE, BufferPool
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.errors import BisectError
from bisect_tool.recorder import Recorder, Value

BIG = 70_000
"""Elements of float32 that are too many to be held in any case."""


def store(limit: int = 0) -> ActivationStore:
    made = ActivationStore(limit, BufferPool())
    made.attach(Recorder(torch.nn.Identity()))
    return made


def tensors() -> dict[int, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(4, BIG)
    half = base[0].to(torch.bfloat16)
    return {
        1: base,
        2: base.t(),
        3: half,
        4: (base > 0),
        5: torch.tensor(3.5),
        6: torch.empty(0, 7),
        7: torch.randint(0, 1 << 40, (3, BIG)),
        8: torch.complex(base[0], base[1]),
        9: base[:, ::2],
        10: torch.full((BIG,), float("nan")),
        11: torch.randn(3 << 20),
    }


@pytest.mark.parametrize("limit", [0, 1 << 20, 1 << 40], ids=["all in the file", "some of both", "all in memory"])
def test_what_was_kept_comes_back(limit: int) -> None:
    """Every dtype, layout and size, in any order, more than once."""
    kept = store(limit)
    given = tensors()
    for value, tensor in given.items():
        kept.keep(value, tensor)
    assert (kept.spilled_bytes > 0) == (limit < 1 << 40)
    kept.settle()
    for value in [*reversed(given), *given]:
        array, wanted = kept.fetch(value), to_numpy(given[value])
        assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape), value
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(wanted).tobytes(), value
    assert kept.fetch(3).dtype == ml_dtypes.bfloat16
    kept.close()


@pytest.mark.parametrize("limit", [0, 1 << 40])
def test_a_value_stays_as_it_was(limit: int) -> None:
    """The model may write into the tensor as soon as the callback has returned."""
    seen: list[int] = []

    class InPlace(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1).mul_(2).mul_(2)

    model = InPlace()

    def on_value(value: Value, tensor: torch.Tensor) -> None:
        seen.append(value.id)
        kept.keep(value.id, tensor)

    recorder = Recorder(model, on_value)
    kept = ActivationStore(limit, BufferPool())
    kept.attach(recorder)
    x = torch.randn(BIG)
    with torch.no_grad(), recorder:
        recorder.run(x)
    wanted = [x + 1, (x + 1) * 2, (x + 1) * 2 * 2]
    assert len(seen) == 3
    for value, tensor in zip(seen, wanted, strict=True):
        assert np.array_equal(kept.fetch(value), tensor.numpy())
    kept.close()


def test_dropped_values_leave_their_memory_to_others() -> None:
    """What is retained, or still in use, keeps its place."""
    kept = store()
    for value in range(4):
        kept.keep(value, torch.full((1 << 20,), float(value)))
    first = kept.fetch(0)
    part = first[100:200]
    place = first.ctypes.data
    del first
    kept.retain({0})
    assert kept.fetch(1).ctypes.data != place
    kept.retain(())
    assert kept.fetch(2).ctypes.data != place, "a view of it is in use"
    assert np.all(part == 0)
    del part
    kept.retain(())
    assert np.all(kept.fetch(3) == 3)
    assert len(kept._cache) == 1
    kept.close()


def test_what_will_be_fetched_is_read_before() -> None:
    """In the order in which it was asked for; what is dropped meanwhile is read again when it is wanted."""
    kept = store()
    for value in range(4):
        kept.keep(value, torch.full((1 << 20,), float(value)))
    kept.forget(3)
    kept.prefetch([2, 0, 3])
    assert [2, 0] == list(kept._cache)
    assert np.all(kept.fetch(0) == 0)
    kept.retain({2})
    kept.prefetch([2, 1])
    assert [2, 1] == list(kept._cache)
    kept.retain(())
    assert [np.all(kept.fetch(value) == value) for value in range(3)] == [True] * 3
    kept.close()


def test_the_file_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no name even while it is in use."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = store()
    kept.keep(1, torch.randn(BIG))
    assert kept.spilled_bytes > 0
    assert list(tmp_path.iterdir()) == []
    kept.close()


def test_without_direct_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems in memory refuse it: then through the page cache."""
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    kept = store()
    x = torch.randn(BIG)
    kept.keep(1, x)
    assert np.array_equal(kept.fetch(1), x.numpy())
    kept.close()


@pytest.mark.parametrize("later", [False, True], ids=["at the next read", "at a later write"])
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    """With the folder, and two ways out."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(activations.os, "pwrite", full)
    kept = store()
    with pytest.raises(BisectError, match="no room in .* GB free") as caught:
        kept.keep(1, torch.randn(BIG))
        if not later:
            kept.fetch(1)
        for value in range(2, 100):
            kept.keep(value, torch.randn(BIG))
    assert caught.value.hint is not None and "TMPDIR" in caught.value.hint and "--memory-budget" in caught.value.hint
    kept.close()


def test_buffers_are_used_again_only_when_free() -> None:
    """By an array of about the same size, once nothing refers to the one before."""
    pool = BufferPool()
    first = pool.take(3 * HUGE_PAGE)
    second = pool.take(3 * HUGE_PAGE)
    place = first.ctypes.data
    assert second.ctypes.data != place
    view = first.view(np.float32)[10:20].reshape(2, 5)
    del first
    third = pool.take(3 * HUGE_PAGE)
    assert third.ctypes.data not in (place, second.ctypes.data)
    del view
    assert pool.take(2 * HUGE_PAGE).ctypes.data == place
    assert pool.take(100).size == 100


def test_idle_buffers_stay_as_far_as_was_said() -> None:
    """Two sizes in turn find the places that they had; beyond what may lie about, the oldest goes first."""
    small, big = HUGE_PAGE, 4 * HUGE_PAGE

    def kept(idle: int) -> int:
        pool = BufferPool(idle)
        for _ in range(3):
            pool.take(small)
            pool.take(big)
        return len(pool._buffers)

    assert [1, 2] == [kept(0), kept(small + big)], "of two sizes, how many buffers"
    pool = BufferPool(big + small)
    held = [pool.take(size) for size in (small, big, 2 * big)]
    held.clear()
    pool.take(16 * big)
    assert [16 * big] == [len(buffer.memory) for buffer in pool._buffers]
    held = [pool.take(size) for size in (big, small)]
    held.clear()
    pool.take(16 * big)
    assert [big, small, 16 * big] == [len(buffer.memory) for buffer in pool._buffers]
