"""Results that are places of numbers: where the greatest one lies, in which order they stand.

Which of equal numbers is named first is mostly nobody's rule, and of nearly equal ones rounding decides. How many places
differ therefore says little, and how far apart they lie says nothing. What the places point at does: the numbers there, read
from the operand in float64, are judged as any other floating result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.recorder import Op, Ref, Trace

Array = NDArray[Any]

_RESULT = {
    "argmax": 0,
    "argmin": 0,
    "argsort": 0,
    "cummax": 1,
    "cummin": 1,
    "kthvalue": 1,
    "max": 1,
    "median": 1,
    "min": 1,
    "mode": 1,
    "nanmedian": 1,
    "sort": 1,
    "topk": 1,
}
"""Which result of an operation are the places."""

_FIRST = {"argmax", "argmin", "max", "min"}
"""Of equal numbers these are documented to name the first."""

_OF_MANY = {"argsort", "sort", "topk"}
"""No place is named twice."""


@dataclass(frozen=True, slots=True)
class Pointing:
    """What places point at.

    Attributes:
        source: value of the trace that holds the numbers.
        dim: axis along which the places count; ``None``: through all numbers as they lie in a row.
        kept: the places have that axis too.
        distinct: none is named twice along it.
        ordered: it matters which comes first.
        first: of equal numbers the first is meant, so that the places themselves count as well.
    """

    source: int
    dim: int | None
    kept: bool
    distinct: bool
    ordered: bool
    first: bool


def pointing_of(trace: Trace, value: int) -> Pointing | None:
    """What a value points at, if an operation made it that returns places of its first operand; ``None`` otherwise."""
    known = trace.values[value]
    if known.producer < 0:
        return None
    op = trace.ops[known.producer]
    place = _RESULT.get(op.name)
    if op.call is None or place is None or place >= len(op.outputs) or op.outputs[place] != value:
        return None
    source, given = _arguments(op)
    if source is None or trace.values[source].shape is None or isinstance(given.get("dim"), str):
        return None
    many = op.name in _OF_MANY or op.name.startswith("cum")
    return Pointing(
        source,
        given.get("dim"),
        many or bool(given.get("keepdim")),
        op.name in _OF_MANY,
        given.get("sorted") is not False,
        op.name in _FIRST or bool(given.get("stable")),
    )


def loose_dim(trace: Trace, value: int) -> int | None:
    """Axis along which the numbers of a value may stand in any order: ``topk(sorted=False)`` promises none."""
    producer = trace.values[value].producer
    if producer < 0:
        return None
    op = trace.ops[producer]
    if op.name != "topk" or op.call is None or op.outputs[0] != value:
        return None
    _, given = _arguments(op)
    return given["dim"] if given.get("sorted") is False else None


def _arguments(op: Op) -> tuple[int | None, dict[str, Any]]:
    """Value of the first operand, and all arguments by name, also those that were left out."""
    assert op.call is not None
    func, args, kwargs = op.call
    given: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            given[argument.name] = args[place]
        elif argument.has_default_value():
            given[argument.name] = argument.default_value
    given.update(kwargs)
    first = args[0] if args else None
    return (first.id if isinstance(first, Ref) else None), given


def numbers_at(source: Array, pointing: Pointing, places: Array) -> Array:
    """The numbers that places point at.

    Args:
        source: the operand, numbers or booleans of any shape.
        places: whole numbers, as the operation returned them, or as another one should have.

    Returns:
        float64, in the shape of ``places``. NaN where a place lies outside, and throughout where one is named twice that may
        not be, or the shape is none that such places have: right ones never have those, so they count as wrong.
    """
    wrong = np.full(places.shape, np.nan)
    at = places.astype(np.int64)
    if pointing.dim is None or source.ndim == 0:
        numbers, at, axis = source.reshape(-1), at.reshape(-1), 0
    else:
        numbers, axis = source, pointing.dim % source.ndim
        if not pointing.kept:
            if at.ndim != source.ndim - 1:
                return wrong
            at = np.expand_dims(at, axis)
    others = [i for i in range(numbers.ndim) if i != axis]
    if at.ndim != numbers.ndim or any(at.shape[i] != numbers.shape[i] for i in others):
        return wrong
    if pointing.distinct and (np.diff(np.sort(at, axis=axis), axis=axis) == 0).any():
        return wrong
    inside = (at >= 0) & (at < numbers.shape[axis])
    if not numbers.size:
        return wrong
    read = np.take_along_axis(numbers, np.where(inside, at, 0), axis).astype(np.float64)
    read = np.where(inside, read, np.nan)
    if not pointing.ordered:
        read = np.sort(read, axis=axis)
    return read.reshape(places.shape)
