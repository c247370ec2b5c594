"""What lies around a value on PyTorch's side, as far as pairs say where that is in the graph."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from bisect_tool.align.matches import Match
from bisect_tool.records import TorchTrace
from bisect_tool.signatures import Signature, distance

_ROUNDING = 1e-5
"""Relative difference that rounding alone may leave."""

_GROWTH = 10.0
"""So many times further off than what it is made from is a value that still comes out right."""


def children_of(trace: TorchTrace) -> dict[int, list[int]]:
    """Values that are made from each value."""
    found: dict[int, list[int]] = defaultdict(list)
    for value, parents in trace.parents.items():
        for parent in parents:
            found[parent].append(value)
    return found


def nearest_paired(value: int, step: Mapping[int, Sequence[int]], matches: Mapping[int, Match]) -> list[int]:
    """Values with a confirmed pair that are next in one direction."""
    found: list[int] = []
    seen: set[int] = set()
    stack = list(step.get(value, ()))
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        if at in matches and matches[at].confirmed:
            found.append(at)
        else:
            stack.extend(step.get(at, ()))
    return found


def is_passed_by(
    value: int,
    trace: TorchTrace,
    children: Mapping[int, Sequence[int]],
    matches: Mapping[int, Match],
    torch_signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
) -> bool:
    """Whether all that is made of a value comes out right in the graph's own run, while nothing there equals the value.

    Cosine similarity: an exporter multiplies first and divides then. *Right* is no further off than what it is made from
    is, but for rounding; a fault may well be small at the model's outputs.
    """

    after = nearest_paired(value, children, matches)
    if not after or not all("value" in matches[v].evidence for v in after):
        return False
    if _reaches_output(value, trace, children, matches):
        return False
    limit = _limit_behind(value, trace, matches, torch_signatures, chained)
    return all(_apart(v, matches, torch_signatures, chained) <= limit for v in after)


def _reaches_output(
    value: int, trace: TorchTrace, children: Mapping[int, Sequence[int]], matches: Mapping[int, Match]
) -> bool:
    """Whether an output is made of a value with no confirmed pair on the way: nobody knows how that comes out."""
    outputs = {each for _, each in trace.outputs}
    seen: set[int] = set()
    stack = [value]
    while stack:
        at = stack.pop()
        if at in seen or (at in matches and matches[at].confirmed):
            continue
        if at in outputs:
            return True
        seen.add(at)
        stack.extend(children.get(at, ()))
    return False


def has_unpaired_before(value: int, trace: TorchTrace, matches: Mapping[int, Match], staged: Set[int]) -> bool:
    """Whether a stage without a pair lies between a value and the nearest pairs that it is made from."""
    seen: set[int] = set()
    stack = list(trace.parents.get(value, ()))
    while stack:
        at = stack.pop()
        if at in seen or at in matches:
            continue
        if at in staged:
            return True
        seen.add(at)
        stack.extend(trace.parents.get(at, ()))
    return False


def has_broken_unpaired(
    trace: TorchTrace,
    matches: Mapping[int, Match],
    torch_signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
) -> bool:
    """Whether a value that still counts as equal is off by more than rounding, and stages before it have no pair.

    An error that is large where it is made leaves those stages without an equal value, and may be small again behind them.
    """
    staged = {stage.value for stage in trace.stages}
    for value, match in matches.items():
        if not match.confirmed or not has_unpaired_before(value, trace, matches, staged):
            continue
        apart = _apart(value, matches, torch_signatures, chained)
        if math.isfinite(apart) and apart > _limit_behind(value, trace, matches, torch_signatures, chained):
            return True
    return False


def _apart(
    value: int,
    matches: Mapping[int, Match],
    torch_signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
) -> float:
    """How far a paired value is off in the graph's own run; infinite where signatures can't tell."""
    first, second = torch_signatures.get(value), chained.get(matches[value].onnx)
    usable = first is not None and second is not None and matches[value].permutation is None
    return distance(first, second) if usable else math.inf  # type: ignore[arg-type]


def _limit_behind(
    value: int,
    trace: TorchTrace,
    matches: Mapping[int, Match],
    torch_signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
) -> float:
    """How far off a value may be that is right, by how far off the nearest pairs are that it is made from."""
    before = (_apart(v, matches, torch_signatures, chained) for v in nearest_paired(value, trace.parents, matches))
    return max([_ROUNDING, *(_GROWTH * by for by in before if math.isfinite(by))])
