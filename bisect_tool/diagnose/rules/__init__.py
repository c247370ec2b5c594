"""Causes that have a sign of their own: what each looks for, tries and rules out is a file of its own.

A rule is given the facts of an origin's stage. It proposes trials, which run before all others, and says what it saw: a
:class:`~bisect_tool.diagnose.rules.facts.Clue` never makes a cause certain, a trial that mends does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bisect_tool.diagnose.rules import indices, integers, masks, narrow, nonfinite, randomness, swallowed, training
from bisect_tool.diagnose.rules.facts import Clue, Facts, Rule
from bisect_tool.diagnose.trial import Trial

RULES: Sequence[Rule] = (
    training.look,
    randomness.look,
    masks.look,
    integers.look,
    indices.look,
    narrow.look,
    # What both sides have is no beginning.
    swallowed.look,
    nonfinite.look,
)


def answers(facts: Facts) -> Iterator[Trial | Clue]:
    """What all rules propose and saw, in their order."""
    for rule in RULES:
        yield from rule(facts)


__all__ = ["RULES", "Clue", "Facts", "answers"]
