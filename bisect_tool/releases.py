"""A release bisect as it is told: versions with how far their numbers lie from the first one's, and where they changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import measure
from bisect_tool.noise import BEYOND
from bisect_tool.release_search import Change

RELEASES_VERSION = 1

WITHOUT_FLOOR = 1e-4
"""Limit on relative L2 where the noise floor is not known."""


@dataclass(frozen=True)
class Release:
    """One version.

    Attributes:
        state: ``reference`` | ``same`` | ``changed`` | ``failed`` | ``not tried``.
        rel_l2, max_abs: greatest over the outputs, against the reference's; None where it was not run.
        why: of ``failed``, and of a change that is none of numbers (another shape).
        cached: its outputs are of an earlier run of this command.
    """

    version: str
    state: Literal["reference", "same", "changed", "failed", "not tried"]
    rel_l2: float | None = None
    max_abs: float | None = None
    why: str | None = None
    cached: bool = False


@dataclass(frozen=True)
class ReleaseReport:
    """What ``releases`` says.

    Attributes:
        what: ``graph``: ONNX Runtime ran the same file each time; ``model``: PyTorch ran the model.
        floor: noise floor of the outputs, relative L2; None: not known.
        limit: on relative L2 against the reference's outputs.
    """

    package: str
    what: Literal["graph", "model"]
    change: Change
    releases: tuple[Release, ...]
    floor: float | None
    limit: float
    cache: str
    releases_version: int = RELEASES_VERSION


def limit_for(floor: float | None) -> float:
    """Both versions may lie up to so many floors from float64, on either side of it."""
    return WITHOUT_FLOOR if floor is None else 2 * BEYOND * floor


@dataclass(frozen=True)
class Apart:
    """How far one version's outputs lie from the reference's; ``why``: they cannot be compared by numbers."""

    rel_l2: float | None
    max_abs: float | None
    why: str | None

    def beyond(self, limit: float) -> bool:
        """Whether that is a change."""
        return self.why is not None or not (self.rel_l2 is not None and self.rel_l2 <= limit)


def apart(reference: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> Apart:
    """The greatest difference over all outputs; integers must be equal."""
    if list(reference) != list(other):
        return Apart(None, None, f"other outputs: {', '.join(other) or 'none'}")
    if not reference:
        return Apart(None, None, "no outputs to compare")
    worst, greatest = 0.0, 0.0
    for name, array in reference.items():
        found = other[name]
        if array.dtype.kind not in "fiubc" or found.dtype.kind not in "fiubc":
            if not np.array_equal(array, found):
                return Apart(None, None, f"{name}: other texts")
            continue
        metrics = measure(array, found)
        if metrics.problem is not None:
            return Apart(None, None, f"{name}: {metrics.problem}")
        if metrics.nonfinite_mismatch:
            return Apart(None, None, f"{name}: NaN or infinities in other places")
        if array.dtype.kind in "iub" and metrics.differing:
            return Apart(None, None, f"{name}: {metrics.differing} of {metrics.count} integers differ")
        if metrics.count:
            worst = max(worst, metrics.rel_l2 if not math.isnan(metrics.rel_l2) else math.inf)
            greatest = max(greatest, metrics.max_abs)
    return Apart(worst, greatest, None)
