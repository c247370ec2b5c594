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

from bisect_tool.backends.pointing import loose_dim, numbers_at, pointing_of
from bisect_tool.backends.replay import (
    AS_RUN,
    EXACT,
    STRICT,
    Arithmetic,
    CannotReplayError,
    has_steps,
    leaning,
    replay_bytes,
    replay_values,
    rounded,
    slice_of,
)
from bisect_tool.metrics import hidden_groups, relative_difference
from bisect_tool.noise import BEYOND, DRAWS, LEANING, SETTLED, assess, epsilon, is_settled
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


@dataclass(frozen=True, slots=True)
class Aspect:
    """What of a stage's value is judged, and what rounding is allowed.

    Attributes:
        held: the half precision that the graph computes in: its rounding is allowed, of what is given and of all results.
        read: what is judged instead of the value; ``None``: the value.
        where: elements of it that count; ``None``: all.
        dtype: of what is judged; ``None``: the value's.
        ties: rounding may also decide which of equal numbers comes first.
    """

    held: str | None = None
    read: Callable[[Array], Array] | None = None
    where: NDArray[np.bool_] | None = None
    dtype: str | None = None
    ties: bool = True

    def of(self, value: Array) -> Array:
        """What is judged, of one side's value."""
        array = value if self.read is None else self.read(value)
        array = array if self.where is None else array[self.where]
        return array if self.held is None else saturated(array, self.held)

    def precision(self, declared: str) -> str:
        """Dtype whose rounding is allowed; ``declared`` is the stage's."""
        dtype = self.dtype or declared
        return self.held if self.held is not None and epsilon(dtype) else dtype


WHOLE = Aspect()


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
        run, value, known, expected, actual: as for :func:`stage_noise`.
        local: of the two sides, over the whole tensor.
        total: L2 norm of ``expected``, as its signature has it.
        held: as for :class:`Aspect`.
    """
    aspect, declared = Aspect(held), run.trace.values[value].dtype
    clean = not local.problem and not local.nonfinite_mismatch
    if clean and local.differing == 0:
        return replace(SETTLED, dtype=held)
    measured = functools.partial(stage_noise, run, value, known, expected, actual)
    if clean and is_settled(local.rel_l2, aspect.precision(declared)):
        noise = replace(SETTLED, dtype=held)
    elif (read := _reader(run, value, known)) is not None:
        return _noise_of_places(measured, expected, actual, replace(aspect, read=read[0], dtype=read[1]), read[2])
    else:
        noise = measured(aspect)
    if clean and not _is_beyond(noise):
        return _hidden(measured, expected, actual, total, aspect, declared) or noise
    return noise


def _is_beyond(noise: Noise) -> bool:
    return noise.ratio is not None and noise.ratio > BEYOND


def _hidden(
    measured: Callable[[Aspect], Noise], expected: Array, actual: Array, total: float, aspect: Aspect, declared: str
) -> Noise | None:
    """The first of the groups that a norm does not see whose error is no rounding."""
    for where in hidden_groups(expected, actual, total):
        if not is_settled(relative_difference(expected[where], actual[where]), aspect.precision(declared)):
            noise = measured(replace(aspect, where=where))
            if _is_beyond(noise):
                return noise
    return None


def _reader(run: TapedRun, value: int, known: Set[int]) -> tuple[Callable[[Array], Array], str, bool] | None:
    """For a value that holds places: what reads the numbers there, their dtype, and whether the first of equal ones is meant.

    For numbers in no certain order, what sorts them. ``None`` for any other value, and where the numbers can't be had.
    """
    if (dim := loose_dim(run.trace, value)) is not None:
        return (lambda array: np.sort(array, axis=dim) if array.ndim else array), run.trace.values[value].dtype, False
    pointing = pointing_of(run.trace, value)
    if pointing is None:
        return None
    source = pointing.source
    try:
        ops = [] if source in known else slice_of(run.trace, source, known)
        if replay_bytes(run.trace, ops) > run.budget:
            return None
        with strict_products():
            numbers = replay_values(run.trace, {source}, ops, run.fetch, EXACT)[source]
    except CannotReplayError:
        return None
    return functools.partial(numbers_at, numbers, pointing), run.trace.values[source].dtype, pointing.first


def _noise_of_places(
    measured: Callable[[Aspect], Noise], expected: Array, actual: Array, aspect: Aspect, first: bool
) -> Noise:
    """Judges places by the numbers there, and where these are equal and the first is meant, by the places themselves."""
    assert aspect.read is not None and aspect.dtype is not None
    noise = measured(aspect)
    if noise.ratio is None or _is_beyond(noise):
        return noise
    wanted, found = aspect.read(expected), aspect.read(actual)
    norm = float(np.linalg.norm(wanted[np.isfinite(wanted)]))
    if (hidden := _hidden(measured, wanted, found, norm, aspect, aspect.dtype)) is not None:
        return hidden
    if first and (tied := (wanted == found) & (expected != actual)).any():
        counted = measured(Aspect(aspect.held, where=tied, ties=False))
        return counted if _is_beyond(counted) else noise
    return noise


def stage_noise(
    taped: TapedRun, value: int, known: Set[int], expected: Array, actual: Array, aspect: Aspect = WHOLE
) -> Noise:
    """Both sides of one stage against float64.

    Args:
        taped: the run.
        value: the stage's.
        known: values that the stage starts from.
        expected, actual: what both sides made of them, in PyTorch's shape.
        aspect: what of it is judged.
    """
    trace = taped.trace
    dtype = aspect.precision(trace.values[value].dtype)
    expected, actual = aspect.of(expected), aspect.of(actual)
    try:
        ops = slice_of(trace, value, known)
        needed = replay_bytes(trace, ops)
        if needed > taped.budget:
            raise CannotReplayError(f"float64 needs {needed / 1e6:.0f} MB, more than the memory budget leaves")

        def run(arithmetic: Arithmetic) -> Array:
            return aspect.of(replay_values(trace, {value}, ops, taped.fetch, arithmetic)[value])

        with strict_products():
            reference = run(EXACT)
            strict = run(STRICT)
        draws: list[Array] = []

        def drawn() -> Iterator[Array]:
            for seed in range(DRAWS):
                draws.append(run(rounded(seed, aspect.held, ties=aspect.ties)))
                yield draws[-1]

        steps = has_steps(trace, ops)
        leaned = (run(leaning(way * LEANING, aspect.held)) for way in (1, -1)) if steps else ()
        noise = assess(reference, expected, actual, dtype, strict, drawn(), leaned)
        if taped.same_run and noise.expected is not None and noise.expected > BEYOND:
            # Blaming the run for what the replay did otherwise would be worse than not knowing.
            again = assess(reference, expected, run(AS_RUN), dtype, strict, draws)
            if again.actual is None or not noise.expected / 2 < again.actual < noise.expected * 2:
                raise CannotReplayError("computed anew the stage is not what it was in the run")
    except CannotReplayError as error:
        return Noise(unknown=str(error), dtype=aspect.held)
    return replace(noise, dtype=aspect.held)


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
