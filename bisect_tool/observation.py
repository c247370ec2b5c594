"""Bisection under observation: where a value first goes wrong in a run that looking at it may change.

A probe looks at a few values and tells whether the final outputs stayed bit for bit what they are when nobody looks.
Only then does what it saw count. Values lie on a graph and not on a line, so that, as ``git bisect`` does with commits,
the next value is the one that comes nearest to halving what is left; one that cannot be looked at without changing the
result is skipped, and its neighbours serve instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from bisect_tool.passes import Budget


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe of one value tells.

    Attributes:
        neutral: the final outputs stayed bit for bit what they are without the probe.
        faulty: the final outputs were still wrong.
        error: how far the value lies from what it should be, relative L2; ``None``: nothing came out.
        deviates: whether that is more than rounding.
    """

    neutral: bool
    faulty: bool
    error: float | None
    deviates: bool

    @property
    def counts(self) -> bool:
        return self.neutral and self.error is not None


@dataclass(frozen=True, slots=True)
class Observed:
    """What a search under observation found.

    Attributes:
        first: the first value that deviates while the final outputs are those of the deployed run.
        seen: what its probe told; ``None`` where ``first`` is a final output, which needs none.
        good: values before it that were seen to be right.
        hidden: values before it that could not be looked at without changing the outputs; the fault may lie among them.
        healing: of those, the ones whose probe made the final outputs right.
        runs: probes made.
        complete: the search was not ended by its budget.
    """

    first: str
    seen: Seen | None
    good: tuple[str, ...]
    hidden: tuple[str, ...]
    healing: tuple[str, ...]
    runs: int
    complete: bool


def first_deviating(
    last: str,
    inputs: Mapping[str, Sequence[str]],
    candidates: Set[str],
    probe: Callable[[str], Seen],
    budget: Budget,
) -> Observed:
    """The first value that deviates on the way to one that does.

    What comes before a right value is taken to be right. With several faults one of them is found: before what is found
    nothing that could be looked at deviates.

    Args:
        last: a value that deviates, such as a wrong final output.
        inputs: by value the values that it is computed from; values that nothing is computed from may be left out.
        candidates: values that may be probed.
        probe: looks at one value.
        budget: of probes.
    """
    names = sorted(candidates - {last})
    before = _before_each(last, inputs, {name: 1 << place for place, name in enumerate(names)})
    left = before[last]
    first, told = last, None
    good: list[str] = []
    skipped = healing = 0
    began = budget.runs
    complete = True
    while left & ~skipped:
        place = _halving(names, left, left & ~skipped, before)
        bit = 1 << place
        if not budget.take():
            complete = False
            break
        seen = probe(names[place])
        if not seen.counts:
            skipped |= bit
            healing |= 0 if seen.faulty else bit
        elif seen.deviates:
            first, told = names[place], seen
            left &= before[first]
        else:
            good.append(names[place])
            left &= ~(bit | before[names[place]])
    return Observed(
        first=first,
        seen=told,
        good=tuple(good),
        hidden=tuple(_chosen(names, left & skipped)),
        healing=tuple(_chosen(names, left & healing)),
        runs=budget.runs - began,
        complete=complete,
    )


def _before_each(last: str, inputs: Mapping[str, Sequence[str]], bits: Mapping[str, int]) -> dict[str, int]:
    """For a value and everything that it is computed from: the candidates before it, as a set of bits."""
    found: dict[str, int] = {}
    stack = [last]
    while stack:
        name = stack[-1]
        missing = [other for other in inputs.get(name, ()) if other not in found]
        if missing and name not in found:
            stack += missing
            continue
        stack.pop()
        if name not in found:
            found[name] = 0
            for other in inputs.get(name, ()):
                found[name] |= found[other] | bits.get(other, 0)
    return found


def _halving(names: Sequence[str], left: int, eligible: int, before: Mapping[str, int]) -> int:
    """The value whose answer leaves least in the worse case; the first name of equals, so that runs repeat."""
    count = left.bit_count()

    def worse(place: int) -> int:
        behind = (before[names[place]] & left).bit_count()
        return max(behind, count - behind - 1)

    return min((place for place in range(len(names)) if eligible >> place & 1), key=worse)


def _chosen(names: Sequence[str], bits: int) -> list[str]:
    return [name for place, name in enumerate(names) if bits >> place & 1]
