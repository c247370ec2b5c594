"""Finds look-alikes among many tensors without holding each against each, by their signatures.

No two signatures are nearer to each other than their projections onto any direction are: sorted by one of those, and
looked through by some more, few neighbours are left to be held against each other, and none is missed.
What is equal is looked at once: in a saturated chain all values are.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bisect_tool.signatures import Signature, distance, mark_of

T = TypeVar("T", bound=Hashable)
Near = Mapping[str, float]
"""How far off each name is."""

_Bucket = tuple[str, int, bool]
_Place = tuple[float, float, float]


class Neighbours(Generic[T]):
    """Items that can be asked for by what their signatures are near to.

    Args:
        items: with their signatures; in their order they come out again.
    """

    def __init__(self, items: Iterable[tuple[T, Signature]]):
        equal: dict[object, tuple[Signature, list[T]]] = {}
        self._order: dict[T, int] = {}
        for item, signature in items:
            self._order[item] = len(self._order)
            equal.setdefault(mark_of(signature), (signature, []))[1].append(item)
        # Numbered: signatures and items need not be sortable.
        self._groups = list(equal.values())
        self._sorted: dict[_Bucket, list[tuple[_Place, int]]] = defaultdict(list)
        for number, (signature, _) in enumerate(self._groups):
            key, place = _place(signature)
            self._sorted[key].append((place, number))
        for bucket in self._sorted.values():
            bucket.sort()

    def _groups_around(self, signature: Signature, limit: float) -> Iterator[tuple[Signature, list[T]]]:
        key, place = _place(signature)
        bucket = self._sorted.get(key, [])
        # Twice the limit leaves room for rounding, and for which of the two norms the limit goes by.
        width = 2 * limit * max(signature.norm, 1e-30)
        first, second, third = place
        for at in range(bisect.bisect_left(bucket, first - width, key=lambda entry: entry[0][0]), len(bucket)):
            other, number = bucket[at]
            if other[0] > first + width:
                break
            if abs(other[1] - second) <= width and abs(other[2] - third) <= width:
                yield self._groups[number]

    def around(self, signature: Signature, limit: float) -> Iterator[T]:
        """All that may be nearer than ``limit``, and some that are not; ``limit`` under 0.3."""
        return (item for _, items in self._groups_around(signature, limit) for item in items)

    def near(self, signature: Signature, limit: float) -> dict[T, float]:
        """What lies within ``limit`` of a signature, the reference, and how far off; in the order of the items."""
        found = {}
        for other, items in self._groups_around(signature, limit):
            apart = distance(signature, other)
            if apart <= limit:
                found.update(dict.fromkeys(items, apart))
        return {item: found[item] for item in sorted(found, key=self._order.__getitem__)}


def _place(signature: Signature) -> tuple[_Bucket, _Place]:
    """Bucket and place in it. NaN and infinities have no projection: they are in buckets of their own, all in one place."""
    sample = signature.sample
    with np.errstate(all="ignore"):
        first, second, third = (float(along) for along in _directions(sample.size).dot(sample))
    known = bool(np.isfinite((first, second, third)).all())
    return (signature.kind, signature.size, not known), (first, second, third) if known else (0.0, 0.0, 0.0)


@lru_cache(maxsize=256)
def _directions(size: int) -> NDArray[np.float64]:
    """Fixed directions that no tensor has reason to lie along or across."""
    drawn = np.random.default_rng(size).standard_normal((3, size))
    directions: NDArray[np.float64] = drawn / np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-30)
    return directions


@dataclass(frozen=True, eq=False, slots=True)
class LookAlikes:
    """Names that may stand for a value, in topological order. Values that are equal share one of these."""

    names: tuple[str, ...]
    _members: frozenset[str]

    @classmethod
    def of(cls, names: Collection[str], place: Mapping[str, int]) -> LookAlikes:
        return cls(tuple(sorted(names, key=lambda name: (place[name], name))), frozenset(names))

    def __contains__(self, name: Any) -> bool:
        return name in self._members


def components(candidates: Mapping[int, LookAlikes]) -> Iterator[tuple[list[int], list[str]]]:
    """Connected groups of values and names that claim each other."""
    values_of: dict[int, list[int]] = defaultdict(list)
    shared: dict[int, LookAlikes] = {}
    for value, names in candidates.items():
        values_of[id(names)].append(value)
        shared[id(names)] = names
    claims: dict[str, list[int]] = defaultdict(list)
    for key, names in shared.items():
        for name in names.names:
            claims[name].append(key)
    seen: set[int] = set()
    for start in shared:
        if start in seen:
            continue
        values: list[int] = []
        found: dict[str, None] = {}
        stack = [start]
        seen.add(start)
        while stack:
            key = stack.pop()
            values += values_of[key]
            for name in shared[key].names:
                if name not in found:
                    found[name] = None
                    for other in claims[name]:
                        if other not in seen:
                            seen.add(other)
                            stack.append(other)
        yield values, list(found)
