"""Which weight of a file without names is which of a fresh export's: by what they hold, or else by their place."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TELLING = 0.9
"""Share of the weights that hold something else which must have a place in both graphs, or places tell nothing."""


@dataclass(frozen=True, slots=True)
class WeightUse:
    """A weight where a node first reads it.

    Attributes:
        name: of the initialiser.
        key: what reads it, in which place, and its shape without axes of length 1.
        content: equal for weights that hold the same; ``None``: one number all over, which tells nothing.
    """

    name: str
    key: tuple[object, ...]
    content: object | None


def pair_by_place(fresh: Sequence[WeightUse], given: Sequence[WeightUse]) -> dict[str, str]:
    """Names of the fresh export's weights by those of the given file's.

    Args:
        fresh, given: weights in the order in which they are read.

    Weights that hold what exactly one other holds are that one, wherever they are read; the others are told by the order
    in which they are read, between those. Empty where too many of them find no place.
    """
    equal = _equal(fresh, given)
    known = {name: other for other, name in equal.items()}
    first = [("known", use.name) if use.name in known else use.key for use in fresh]
    second = [("known", equal[use.name]) if use.name in equal else use.key for use in given]
    found = dict(equal)
    for block in difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            one, other = fresh[block.a + step], given[block.b + step]
            if other.name not in equal:
                found[other.name] = one.name
    open_ = max(len(fresh) - len(known), len(given) - len(equal))
    return found if len(found) - len(equal) >= TELLING * open_ else equal


def _equal(fresh: Sequence[WeightUse], given: Sequence[WeightUse]) -> dict[str, str]:
    """Weights that hold the same and are the only ones on either side that do."""
    names: Mapping[object, list[str]] = defaultdict(list)
    for use in fresh:
        if use.content is not None:
            names[use.content].append(use.name)
    counts = Counter(use.content for use in given)
    return {
        use.name: names[use.content][0]
        for use in given
        if use.content is not None and counts[use.content] == 1 and len(names.get(use.content, ())) == 1
    }
