"""Measures a stage's noise floor: replays it in float64 and in strict float32, and holds both sides against them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bisect_tool.backends.replay import (
    AS_RUN,
    EXACT,
    STRICT,
    Arithmetic,
    CannotReplayError,
    replay_bytes,
    replay_values,
    rounded,
    slice_of,
)
from bisect_tool.noise import BEYOND, DRAWS, assess, epsilon
from bisect_tool.precision import saturated
from bisect_tool.recorder import Trace
from bisect_tool.records import Noise

Array = NDArray[Any]


def stage_noise(
    trace: Trace,
    value: int,
    known: Set[int],
    fetch: Callable[[int], Tensor],
    expected: Array,
    actual: Array,
    *,
    budget: int,
    same_run: bool,
    where: NDArray[np.bool_] | None = None,
    held: str | None = None,
) -> Noise:
    """Both sides of one stage against float64.

    Args:
        trace: with a tape, of a plain run on the CPU.
        value: the stage's.
        known: values that the stage starts from.
        fetch: their tensors on the expected side, and those that the run starts with.
        expected, actual: what both sides made of them, in PyTorch's shape.
        budget: bytes that a replay may hold at once.
        same_run: ``expected`` is of the very run that was taped: then the replay must reproduce it.
        where: elements that count; ``None``: all.
        held: the half precision that the graph computes in: its rounding is allowed, of what is given and of all results.
    """
    dtype = trace.values[value].dtype
    if held is not None and epsilon(dtype):
        dtype = held

    def picked(array: Array) -> Array:
        array = array if where is None else array[where]
        return array if held is None else saturated(array, held)

    expected, actual = picked(expected), picked(actual)
    try:
        ops = slice_of(trace, value, known)
        needed = replay_bytes(trace, ops)
        if needed > budget:
            raise CannotReplayError(f"float64 needs {needed / 1e6:.0f} MB, more than the memory budget leaves")

        def run(arithmetic: Arithmetic) -> Array:
            return picked(replay_values(trace, {value}, ops, fetch, arithmetic)[value])

        with strict_products():
            reference = run(EXACT)
            strict = run(STRICT)
        draws: list[Array] = []

        def drawn() -> Iterator[Array]:
            for seed in range(DRAWS):
                draws.append(run(rounded(seed, held)))
                yield draws[-1]

        noise = assess(reference, expected, actual, dtype, strict, drawn())
        if same_run and noise.expected is not None and noise.expected > BEYOND:
            # Blaming the run for what the replay did otherwise would be worse than not knowing.
            again = assess(reference, expected, run(AS_RUN), dtype, strict, draws)
            if again.actual is None or not noise.expected / 2 < again.actual < noise.expected * 2:
                raise CannotReplayError("computed anew the stage is not what it was in the run")
    except CannotReplayError as error:
        return Noise(unknown=str(error), dtype=held)
    return replace(noise, dtype=held)


@contextlib.contextmanager
def strict_products() -> Iterator[None]:
    """Float32 products in float32: a model file may have asked for less."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
