"""One run of the PyTorch side, and what it has in common with another run of the same model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from bisect_tool.align.matches import VALUE_LIMIT, Match
from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.metrics import kind_of, relative_difference
from bisect_tool.recorder import Trace, Value
from bisect_tool.records import NumericConfig, OutputKey, StageRef, StageRow, TorchTrace
from bisect_tool.rows import first_stage_by_value, upstream
from bisect_tool.selection import Cut
from bisect_tool.signatures import Signature, distance, signature_of

Array = NDArray[Any]
Outputs = Sequence[tuple[OutputKey, Array]]
OnValue = Callable[[Value, torch.Tensor], None]


@dataclass(eq=False, slots=True)
class Reference:
    """One run of the PyTorch side.

    Attributes:
        config: what it ran under.
        trace: its stages and where their values come from.
        tape: what the recorder saw, each operation with its arguments where that was asked for.
        activations: the tensors.
        signatures: of each value.
        outputs: the model's, by key.
        effective: what was in effect, as read back.
    """

    config: NumericConfig
    trace: TorchTrace
    tape: Trace
    activations: ActivationStore
    signatures: Mapping[int, Signature]
    outputs: list[tuple[OutputKey, Array]]
    effective: dict[str, Any]

    def stages_in_bodies(self) -> set[StageRef]:
        """Stages whose value was made in a body, of ``torch.cond`` for one."""
        made = {value for op in self.tape.ops if op.body is not None for value in op.outputs}
        return {stage.ref for stage in self.trace.stages if stage.value in made}


def same_stages(trace: TorchTrace, other: TorchTrace) -> dict[int, int]:
    """Values of one run and those of another run of the same model, by the stages that have them."""
    there = {stage.ref: stage.value for stage in other.stages}
    found = {stage.value: there[stage.ref] for stage in trace.stages if stage.ref in there}
    inputs = dict(other.inputs)
    found.update({value: inputs[key] for key, value in trace.inputs if key in inputs})
    return found


def within(cut: Cut, there: Mapping[int, int], matches: Mapping[int, Match]) -> Cut:
    """A cut without the values that another run does not have."""
    values = cut.values & there.keys()
    return Cut(values, cut.known & there.keys(), frozenset(matches[value].onnx for value in values))


def output_error(expected: Array, actual: Array | None) -> float:
    """Relative L2; infinite where the two can't be compared."""
    if actual is None or actual.size != expected.size:
        return math.inf
    error = relative_difference(expected, actual.reshape(expected.shape).astype(expected.dtype, copy=False))
    return math.inf if math.isnan(error) else error


def repeats_not(
    reference: Reference,
    rows: Sequence[StageRow],
    signatures: Mapping[int, Signature],
    again: Callable[[OnValue], tuple[Trace, Outputs]],
) -> str | None:
    """Where a model differs from itself when run twice; ``None`` if it does not in what failed or is put out.

    Args:
        reference: the first run.
        rows: judged.
        signatures: of the first run's values.
        again: runs the model once more and tells each value; gives its tape and its outputs.
    """
    trace = reference.trace
    stages = first_stage_by_value(trace)
    stages_of = {stage.ref: stage.value for stage in trace.stages}
    differing: list[int] = []
    limit = VALUE_LIMIT / 10

    def on_value(value: Value, tensor: torch.Tensor) -> None:
        known = signatures.get(value.id)
        array = to_numpy(tensor)
        signature = signature_of(array, kind_of(array.dtype))
        # Another order of sums from run to run is noise; random numbers are far beyond it.
        if known is None or distance(known, signature) > limit:
            differing.append(value.id)

    tape, outputs = again(on_value)
    if not _same_operations(tape, reference.tape):
        # Values have other numbers then; outputs keep their places.
        pairs = zip(reference.outputs, outputs, strict=False)
        apart = any(output_error(one[1], other[1]) > limit for one, other in pairs)
        return "the model's output differs from one run to the next" if apart else None
    reaching = upstream(trace, rows)
    # What failed must differ itself: memory that is written later, or never read, may hold anything before.
    failing = {stages_of[row.ref] for row in rows if row.role != "group" and row.ref in stages_of and _fails(row)}
    failing |= {value for _, value in trace.outputs}
    if not failing & set(differing):
        return None
    differing = [value for value in differing if value in reaching]
    if not differing:
        return None
    where = next((stages[value].ref for value in differing if value in stages), "the model")
    return f"{where} differs from one run to the next (random numbers in forward?)"


def _same_operations(one: Trace, other: Trace) -> bool:
    return [op.name for op in one.ops] == [op.name for op in other.ops]


def _fails(row: StageRow) -> bool:
    return any(result.judgement == "fail" for result in row.results.values())
