"""NaN and infinities that the sample itself holds: what both sides make of them is no fault of either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.causes import NONFINITE
from bisect_tool.records import Diagnosis, Finding, Verdict

Array = NDArray[Any]

_BLOCK = 1 << 20
_OPENING = "the sample itself holds "


def odd_inputs(inputs: Mapping[str, Array]) -> tuple[Finding, ...]:
    """Inputs that hold NaN or positive infinities, a line each; negative ones are what masks are made of.

    Args:
        inputs: by name.
    """
    return tuple(_odd(inputs))


def _odd(inputs: Mapping[str, Array]) -> Iterator[Finding]:
    for name, array in inputs.items():
        if array.dtype.kind not in "fcV" or not array.size:
            continue
        count, first, nan = 0, None, False
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            part = part.astype(np.float32) if part.dtype.kind == "V" else part
            # NaN is not smaller than anything; the greatest of complex numbers is another question.
            if part.dtype.kind == "f" and part.max() < np.inf:
                continue
            bad = np.isnan(part) | np.isposinf(part.real)
            if bad.any():
                count += int(bad.sum())
                nan = nan or bool(np.isnan(part).any())
                first = start + int(bad.argmax()) if first is None else first
        if first is None:
            continue
        place = tuple(int(each) for each in np.unravel_index(first, array.shape))
        what = "NaN" if nan else "infinities"
        text = f"{_OPENING}{what}: {count} of {array.size} numbers of input {name}, the first at {place}"
        yield Finding(NONFINITE, "suspicion", text, (name,))


def with_odd_inputs(verdict: Verdict, findings: Sequence[Finding]) -> Verdict:
    """The verdict that names the sample as where NaN come from: in its summary, and beside each cause that is about them."""
    lines = tuple(each.text for each in findings if each.code == NONFINITE and each.text.startswith(_OPENING))
    if not lines:
        return verdict

    def told(diagnosis: Diagnosis) -> Diagnosis:
        if diagnosis.code != NONFINITE:
            return diagnosis
        return replace(diagnosis, evidence=(*lines, *diagnosis.evidence), remedy=f"{_REMEDY}; {diagnosis.remedy}")

    return replace(
        verdict, summary=(*verdict.summary, *lines), diagnoses=tuple(told(each) for each in verdict.diagnoses)
    )


_REMEDY = "take a sample without them, or see to it that the model says what becomes of them"
