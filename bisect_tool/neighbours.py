"""Finds look-alikes among many tensors without holding each against each, by their signatures.

No two signatures are nearer to each other than their projections onto one direction are: sorted by those, only a few
neighbours have to be looked at, and none is missed. What is equal is looked at once: in a saturated chain all values are.
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
        self._sorted: dict[tuple[str, int, bool], list[tuple[float, int]]] = defaultdict(list)
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
        low = 0 if key[2] else bisect.bisect_left(bucket, (place - width, -1))
        for other, number in bucket[low:]:
            if other > place + width and not key[2]:
                break
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


def _place(signature: Signature) -> tuple[tuple[str, int, bool], float]:
    """Bucket and place in it. NaN and infinities have no projection: they are in buckets of their own, unsorted."""
    sample = signature.sample
    with np.errstate(all="ignore"):
        along = float(sample.dot(_direction(sample.size))) if sample.size else 0.0
    known = bool(np.isfinite(along))
    return (signature.kind, signature.size, not known), along if known else 0.0


@lru_cache(maxsize=256)
def _direction(size: int) -> NDArray[np.float64]:
    """A fixed direction that no tensor has reason to lie along or across."""
    drawn = np.random.default_rng(size).standard_normal(size)
    direction: NDArray[np.float64] = drawn / np.linalg.norm(drawn)
    return direction


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
