"""Delta debugging: which of many things are needed for an effect.

Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE Transactions on Software Engineering
28(2), 2002, there called ddmin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest(items: Sequence[T], works: Callable[[Sequence[T]], bool]) -> list[T]:
    """A set of items that works, and of which no single one can be left out.

    It need not be the smallest of all: where items help or hinder each other, finding that takes every combination.

    Args:
        items: all of them together work; that is not asked again.
        works: whether some of them do, in the order of ``items``. It may say no where it ran out of time: what is found
            then works all the same, but something in it may be needless.
    """
    found = list(items)
    pieces = 2
    while len(found) >= 2:
        size = math.ceil(len(found) / pieces)
        parts = [found[i : i + size] for i in range(0, len(found), size)]
        rests = [[item for item in found if item not in part] for part in parts]
        smaller = next((part for part in parts if works(part)), None)
        if smaller is not None:
            found, pieces = smaller, 2
            continue
        smaller = next((rest for rest in rests if rest and works(rest)), None)
        if smaller is not None:
            found, pieces = smaller, max(pieces - 1, 2)
            continue
        if pieces >= len(found):
            break
        pieces = min(len(found), 2 * pieces)
    return found
