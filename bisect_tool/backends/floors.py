"""Measures a stage's noise floor: replays it in float64 and in strict float32, and holds both sides against them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
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
from bisect_tool.metrics import hidden_groups, relative_difference
from bisect_tool.noise import BEYOND, DRAWS, SETTLED, assess, epsilon, is_settled
from bisect_tool.precision import saturated
from bisect_tool.recorder import Trace
from bisect_tool.records import ErrorMetrics, Noise

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TapedRun:
    """A run whose stages can be computed anew.

    Attributes:
        trace: with a tape, of a plain run on the CPU.
        fetch: tensors of values on the expected side, and those that the run starts with.
        budget: bytes that a replay may hold at once.
        same_run: the expected side is the very run that was taped: then the replay must reproduce it.
    """

    trace: Trace
    fetch: Callable[[int], Tensor]
    budget: int
    same_run: bool


def noise_of(
    run: TapedRun,
    value: int,
    known: Set[int],
    expected: Array,
    actual: Array,
    local: ErrorMetrics,
    total: float,
    held: str | None,
) -> Noise:
    """How far both sides of a stage lie from float64, if its local error does not settle it.

    Args:
        run, value, known, expected, actual, held: as for :func:`stage_noise`.
        local: of the two sides, over the whole tensor.
        total: L2 norm of ``expected``, as its signature has it.
    """
    own = run.trace.values[value].dtype
    dtype = held if held is not None and epsilon(own) else own
    clean = not local.problem and not local.nonfinite_mismatch
    measured = functools.partial(stage_noise, run, value, known, expected, actual, held=held)
    settled = clean and (local.differing == 0 or is_settled(local.rel_l2, dtype))
    noise = replace(SETTLED, dtype=held) if settled else measured()
    if local.differing and clean and not (noise.ratio is not None and noise.ratio > BEYOND):
        for where in hidden_groups(expected, actual, total):
            if not is_settled(relative_difference(expected[where], actual[where]), dtype):
                hidden = measured(where=where)
                if hidden.ratio is not None and hidden.ratio > BEYOND:
                    return hidden
    return noise


def stage_noise(
    taped: TapedRun,
    value: int,
    known: Set[int],
    expected: Array,
    actual: Array,
    *,
    where: NDArray[np.bool_] | None = None,
    held: str | None = None,
) -> Noise:
    """Both sides of one stage against float64.

    Args:
        taped: the run.
        value: the stage's.
        known: values that the stage starts from.
        expected, actual: what both sides made of them, in PyTorch's shape.
        where: elements that count; ``None``: all.
        held: the half precision that the graph computes in: its rounding is allowed, of what is given and of all results.
    """
    trace = taped.trace
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
        if needed > taped.budget:
            raise CannotReplayError(f"float64 needs {needed / 1e6:.0f} MB, more than the memory budget leaves")

        def run(arithmetic: Arithmetic) -> Array:
            return picked(replay_values(trace, {value}, ops, taped.fetch, arithmetic)[value])

        with strict_products():
            reference = run(EXACT)
            strict = run(STRICT)
        draws: list[Array] = []

        def drawn() -> Iterator[Array]:
            for seed in range(DRAWS):
                draws.append(run(rounded(seed, held)))
                yield draws[-1]

        noise = assess(reference, expected, actual, dtype, strict, drawn())
        if taped.same_run and noise.expected is not None and noise.expected > BEYOND:
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
