"""What a remedy costs: time and size as measured where it was tried, and what is to be done once, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bisect_tool.diagnose.causes import (
    ATTRIBUTE,
    BAKED,
    CHANCE,
    CONSTANT,
    EXTRA,
    INDICES,
    INPUTS,
    INTEGERS,
    JUMP,
    LAYOUT,
    MASKED,
    MISSING,
    NONFINITE,
    NOT_FINITE,
    OPERANDS,
    OPERATOR,
    OVERFLOW,
    PLACEMENT,
    PRECISION,
    REDUCED,
    ROUNDED,
    RUNTIME,
    TRAINING,
    WEIGHT,
)
from bisect_tool.records import Diagnosis, SideCost
from bisect_tool.remedies import time_text

OTHER_CHECKPOINT = "BD201"

LEAST_BYTES = 1000
"""A change of the weights' size that is told: bounds and single numbers come and go."""

_FILE = "once an edit of the file, or an export"
_EXPORT = "once an export"
_MODEL = "once a change of the model's code, and an export"

WORK: Mapping[str, str] = {
    **dict.fromkeys((ATTRIBUTE, CONSTANT, OPERANDS, EXTRA, TRAINING), _FILE),
    **dict.fromkeys((OPERATOR, MISSING, WEIGHT, LAYOUT, OTHER_CHECKPOINT, NOT_FINITE, BAKED), _EXPORT),
    **dict.fromkeys((NONFINITE, INTEGERS, INDICES, MASKED, CHANCE, JUMP), _MODEL),
    **dict.fromkeys((PRECISION, OVERFLOW, ROUNDED), "once a conversion without it"),
    REDUCED: "the speed of the lower precision, on hardware that has it",
    INPUTS: "nothing at run time: the caller feeds what it has in that order",
    RUNTIME: "an edit of the file for as long as the runtime is off",
    PLACEMENT: "none beyond setting it up: the nodes run where they were meant to",
}
"""What has to be done once for the remedy of a code, or what is given up by it."""


def stage_cost(before: SideCost, after: SideCost, bytes_before: int, bytes_after: int) -> str:
    """Time and size of a stage's nodes with what mends them, beside those of the nodes as they are.

    Args:
        before, after: of a run of the stage alone, in ONNX Runtime.
        bytes_before, bytes_after: of its weights.
    """
    words = [time_text("the stage in ONNX Runtime", before, after)]
    if abs(bytes_after - bytes_before) > LEAST_BYTES:
        words.append(f"weights of {_size(bytes_before)} -> {_size(bytes_after)}")
    return ", ".join(words)


def _size(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def with_work(diagnoses: Sequence[Diagnosis]) -> tuple[Diagnosis, ...]:
    """Diagnoses with what their remedies cost besides what was measured; that of a switch or a pass says it already."""
    return tuple(_with_work(each) for each in diagnoses)


def _with_work(diagnosis: Diagnosis) -> Diagnosis:
    work = WORK.get(diagnosis.code)
    if work is None or (diagnosis.cost is not None and diagnosis.cost.endswith(work)):
        return diagnosis
    # What was tried in place of the whole of the graph was not timed; what was not tried cannot be.
    untried = [] if diagnosis.remedy_verified is not None else ["not measured, as it was not tried"]
    return replace(diagnosis, cost="; ".join([*([diagnosis.cost] if diagnosis.cost else untried), work]))
