"""The third witness: the faulty part of an origin, computed by a runner that shares no kernel with the judged one.

If ONNX's own definition gives PyTorch's value, the runtime computes the part otherwise than ONNX defines it. If it gives the
runtime's value, the runtime did as it was told, and the graph says something else than the model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import largest_difference
from bisect_tool.noise import BEYOND, is_settled
from bisect_tool.records import Witness

Array = NDArray[Any]

MOST_SECONDS = 5.0
"""What the part may be expected to take in the witness, see ``backends/reference_runner.py``: nothing longer is asked."""


def heard(
    runner: str,
    version: str,
    expected: Array,
    actual: Array,
    value: Array,
    dtype: str,
    floor: float | None,
    rounding: float = 0.0,
) -> Witness:
    """What a witness' value says.

    Args:
        runner, version: of the witness.
        expected, actual: the stage's value in PyTorch, and in the judged runner from PyTorch's inputs.
        value: the same with the part computed by the witness.
        dtype: of the stage, a short name.
        floor: the stage's noise floor, relative; ``None`` if it was not measured.
        rounding: eps of the narrowest dtype that the part of the graph computes in: two runners of one graph in half
            precision differ by that, however precise PyTorch is.
    """
    to_expected, to_actual = apart(expected, value), apart(actual, value)

    def near(distance: float, least: float = 0.0) -> bool:
        return is_settled(distance, dtype) or distance <= BEYOND * max(floor or 0.0, least)

    def said(says: Any, reason: str | None = None) -> Witness:
        return Witness(runner, version, to_expected, to_actual, says, reason)

    sides = [
        *(["runtime"] if near(to_expected) else []),
        *(["export"] if near(to_actual, rounding) else []),
    ]
    if len(sides) == 2:
        # The two are so close that rounding may decide; far closer to one of them is an answer all the same.
        nearest, other = sorted((to_expected, to_actual))
        if other <= BEYOND * nearest:
            return said("unknown", "both values lie within rounding of the witness'")
        return said("runtime" if to_expected < to_actual else "export")
    if sides:
        return said(sides[0])
    if floor is None and math.isfinite(min(to_expected, to_actual)):
        return said("unknown", "the stage's noise floor is not known, and neither value is equal")
    return said("neither")


def silent(runner: str, version: str, reason: str) -> Witness:
    """A witness that could not be asked, or did not answer."""
    return Witness(runner, version, None, None, "unknown", reason)


def apart(reference: Array, other: Array) -> float:
    """Relative L2, of everything or of the group of numbers where it is largest; infinite where the two have other shapes,
    or not the same NaN and infinities.
    """
    if reference.size != other.size:
        return math.inf
    other = other.reshape(reference.shape)
    if reference.dtype.kind not in "fcV" and other.dtype.kind not in "fcV":
        return largest_difference(reference, other.astype(reference.dtype, copy=False))
    finite = np.isfinite(reference)
    if finite.all() and np.isfinite(other).all():
        return largest_difference(reference, other.astype(reference.dtype, copy=False))
    same = (reference == other) | (np.isnan(reference) & np.isnan(other))
    if not same[~(finite & np.isfinite(other))].all():
        return math.inf
    zero = np.zeros((), reference.dtype)
    return largest_difference(np.where(finite, reference, zero), np.where(finite, other, zero).astype(reference.dtype))
