"""What lies around a value on PyTorch's side, as far as pairs say where that is in the graph."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

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

    def apart(matched: int) -> float:
        first, second = torch_signatures.get(matched), chained.get(matches[matched].onnx)
        usable = first is not None and second is not None and matches[matched].permutation is None
        return distance(first, second) if usable else math.inf  # type: ignore[arg-type]

    after = nearest_paired(value, children, matches)
    if not after or not all("value" in matches[v].evidence for v in after):
        return False
    before = [apart(v) for v in nearest_paired(value, trace.parents, matches)]
    limit = max([_ROUNDING, *(_GROWTH * by for by in before if math.isfinite(by))])
    return all(apart(v) <= limit for v in after)
