"""Two recordings and the noise floor that one of them holds: is a difference rounding, or more than that?

A floor says how far rounding moves a stage away from float64, from the model's inputs on. Either run may lie ``BEYOND``
floors away, and to either side, so that two runs may lie twice as far apart. See docs/noise-floor.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bisect_tool.metrics import kind_of_name
from bisect_tool.noise import BEYOND, is_settled
from bisect_tool.records import ErrorMetrics, Judgement, OutputResult, StageRow, Tolerance

APART = 2 * BEYOND
"""Floors that two runs may lie apart."""


def floor_of(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> float | None:
    """Of two entries for one stage, or one output, the smaller floor; ``None`` where neither recording holds one.

    The smaller one: a run in half precision, by autocast for one, rounds more, and must not excuse itself by that.
    """
    known = [float(floor) for entry in (expected, actual) if (floor := entry.get("floor")) is not None]
    return min(known, default=None)


def ratio_of(total: ErrorMetrics, floor: float | None) -> float | None:
    """The error in units of the floor; ``None`` where no number says it."""
    if floor is None or not floor or total.problem or total.rel_l2 != total.rel_l2:
        return None
    return total.rel_l2 / floor


def judged_by_floor(
    total: ErrorMetrics, judgement: Judgement, floor: float | None, dtype: str, tolerance: Tolerance
) -> Judgement:
    """The judgement by the floor, where there is one and no tolerance of the user's decides."""
    if tolerance.source != "default" or total.problem or total.nonfinite_mismatch or judgement == "not compared":
        return judgement
    ratio = ratio_of(total, floor)
    if ratio is None or kind_of_name(dtype) in ("integer", "other"):
        return judgement
    # Below the cheap bound nothing is blamed in a single graph either.
    return "pass" if ratio <= APART or is_settled(total.rel_l2, dtype) else "fail"


def rounding_limit(floor: float | None, otherwise: float) -> float:
    """The error up to which a difference may be rounding, by the floor or by what usually holds."""
    return otherwise if floor is None else APART * floor


@dataclass(frozen=True, slots=True)
class _Told:
    name: str
    ratio: float
    fails: bool


def floor_lines(rows: Sequence[StageRow], outputs: Sequence[OutputResult], config: str) -> list[str]:
    """What the floors say about all of it, in a line: rounding, or more than rounding, and where that begins."""
    told = [
        _Told(str(row.ref), result.noise_ratio, result.judgement == "fail")
        for row in rows
        if (result := row.results.get(config)) is not None and result.noise_ratio is not None
    ]
    if not told or not any(each.ratio for each in told):
        return []
    beyond = next((each for each in told if each.ratio > APART and each.fails), None)
    count = f"{len(told)} of {sum(config in row.results for row in rows)} stages"
    if beyond is not None:
        return [
            f"more than rounding: from {beyond.name} on, {beyond.ratio:.3g} noise floors; {APART:g} may be rounding"
        ]
    most = max(told, key=lambda each: each.ratio)
    # What fails without a floor may be anything.
    if any(row.results[config].judgement == "fail" for row in rows if config in row.results):
        return []
    if any(out.judgement == "fail" for out in outputs):
        return []
    label = "rounding" if most.ratio <= APART else "more than rounding, and within the tolerance"
    return [
        f"{label}: at most {most.ratio:.2g} noise floors ({most.name}; measured for {count}); {APART:g} may be rounding"
    ]
