"""How far rounding can move the stages of a whole run: what a recording holds so that another one can be judged by it.

Two recordings are compared run against run, without the model. What counts for them is what rounding does from the
inputs to a stage, not what it does in that stage alone: the run is computed once more in float64, once in strict float32,
and with made-up rounding, and each stage's floor is how far the others lie from float64. The run that was recorded sets no
floor: it may have been made in TF32.

Nothing is kept of these computations but the projections that a recording's summary has too, so that memory does not grow
with the number of stages; a floor is about 9 % off for that, which is little beside the factor it is taken with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bisect_tool.backends.floors import strict_products
from bisect_tool.backends.replay import (
    EXACT,
    STRICT,
    Arithmetic,
    CannotReplayError,
    replay_values,
    rounded,
    slice_of_all,
    work_of,
)
from bisect_tool.noise import epsilon
from bisect_tool.recorder import Op, Recorder, Trace, encode, stages_of, summarize

MOST_WORK = 4e9
"""Multiplications up to which floors are measured without being asked for: a few seconds."""

DRAWS = 2
"""Samples of made-up rounding."""


@dataclass(frozen=True, slots=True)
class Floors:
    """Floors by value of the trace, relative L2; ``unknown``: why some or all have none, ``None`` if all have one."""

    floors: Mapping[int, float] = field(default_factory=dict)
    unknown: str | None = None


def run_floors(recorder: Recorder, *, every_op: bool = False, most: float | None = MOST_WORK) -> Floors:
    """Floors of all floating stages and outputs of a run.

    Args:
        recorder: after the run, with a tape; values that the run started from are held.
        every_op: the stages inside leaf modules too.
        most: multiplications from which on nothing is measured; ``None``: however many.
    """
    trace = recorder.trace
    wanted = {entry.value for entry in stages_of(trace, every_op)} | {value for _, value in trace.outputs}
    wanted = {v for v in wanted if trace.values[v].producer >= 0 and epsilon(trace.values[v].dtype)}
    try:
        ops = slice_of_all(trace, wanted, set())
        if most is not None and (work := work_of(trace, ops)) > most:
            return Floors({}, f"the run has {work:.1e} multiplications; --floor measures them all the same")
    except CannotReplayError as error:
        return Floors({}, str(error))

    def fetch(value: int) -> Tensor:
        try:
            held: Tensor = recorder.held(value)
        except KeyError:
            raise CannotReplayError("a value that the run started from was not kept") from None
        return held

    with strict_products():
        exact, problem = _projected(trace, ops, wanted, fetch, EXACT)
        others = []
        for arithmetic in (STRICT, *(rounded(seed) for seed in range(DRAWS))):
            found, again = _projected(trace, ops, wanted, fetch, arithmetic)
            others.append(found)
            problem = problem or again
    floors = {}
    for value, known in exact.items():
        floor = _floor(known, [other.get(value) for other in others], trace.values[value].dtype)
        if floor is not None:
            floors[value] = floor
    return Floors(floors, problem)


@dataclass(frozen=True, slots=True)
class _Projected:
    norm: float | None
    nonfinite: int
    projection: NDArray[np.float64]


def _projected(
    trace: Trace, ops: Sequence[Op], wanted: set[int], fetch: Any, arithmetic: Arithmetic
) -> tuple[dict[int, _Projected], str | None]:
    """What the wanted values are in another arithmetic; with the reason where the computation came to an end early."""
    found: dict[int, _Projected] = {}

    def after(op: Op, results: Sequence[Tensor]) -> None:
        for value, tensor in zip(op.outputs, results, strict=True):
            if value in wanted:
                numbers = encode(tensor).numbers
                if numbers is not None:
                    told, projection = summarize(numbers, tuple(tensor.shape))
                    nonfinite = told["nan"] + told["positive_infinite"] + told["negative_infinite"]
                    found[value] = _Projected(told["norm"], nonfinite, projection)

    try:
        replay_values(trace, set(), list(ops), fetch, arithmetic, after=after)
    except CannotReplayError as error:
        return found, str(error)
    return found, None


def _floor(exact: _Projected, others: Sequence[_Projected | None], dtype: str) -> float | None:
    """``None`` where a computation is missing, or infinities differ: then no number says what rounding does."""
    if not exact.norm or any(other is None or other.nonfinite != exact.nonfinite for other in others):
        return None
    apart = [float(np.linalg.norm(other.projection - exact.projection)) for other in others if other is not None]
    floor = max(max(apart) / exact.norm, epsilon(dtype), epsilon("float32"))
    return floor if math.isfinite(floor) else None


def put_floors(recording: Any, recorder: Recorder, found: Floors, *, every_op: bool = False) -> None:
    """Writes floors beside the stages and outputs of a recording, by their names; and why some have none.

    Args:
        recording: with its stages; of the run itself, or of ONNX Runtime's run of the same model.
        recorder: that ``found`` is of.
    """
    by_ref = {tuple(entry.ref): found.floors.get(entry.value) for entry in stages_of(recorder.trace, every_op)}
    for entry in recording.stages:
        entry["floor"] = by_ref.get((entry["stage"], entry["call"], entry["output"]))
    by_key = {key: found.floors.get(value) for key, value in recorder.trace.outputs}
    for entry in recording.outputs:
        entry["floor"] = by_key.get(entry["key"])
    if found.unknown is not None:
        which = "some stages have" if found.floors else "the recording has"
        recording.notes.append(f"{which} no noise floor: {found.unknown}")
