"""Distributions of errors that can be merged: of one process with another's, of one machine with another's.

As long as there are few numbers they are kept as they are. Where there are many, a sketch counts them in bins whose
width is a fixed share of the value (DDSketch: Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", 2019), and the largest are kept beside it, since limits lie there.

Either way a summary depends on the numbers alone, and not on the order in which they came or the processes that they came
from: whatever is merged with whatever, the result is the same to the last bit.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

EXACT = 1000
"""Numbers up to which all are kept."""

LARGEST = 100
"""The largest numbers, which are kept beside a sketch."""

ACCURACY = 0.01
"""Relative error of a sketch's quantiles, at most."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A distribution of errors: numbers from zero up.

    Attributes:
        count: finite numbers.
        nonfinite: NaN and infinities, which are counted and nothing else.
        values: all of them in ascending order; where there are more than ``EXACT``, the ``LARGEST`` largest.
        least: the smallest; ``None`` without a number.
        bins: of the sketch: its keys and counts, ascending by key; empty where ``values`` holds all.
        zeros: numbers that are zero to the sketch.
    """

    count: int
    nonfinite: int
    values: tuple[float, ...]
    least: float | None
    bins: tuple[tuple[int, int], ...] = ()
    zeros: int = 0

    @property
    def exact(self) -> bool:
        """Whether every number is there."""
        return self.count == len(self.values)

    @property
    def greatest(self) -> float | None:
        """The largest number, always exact; ``None`` without a number."""
        return self.values[-1] if self.values else None

    def quantile(self, share: float) -> float | None:
        """The smallest of the numbers that this share of them does not exceed; within ``ACCURACY`` if not exact.

        Args:
            share: from 0 to 1.

        Returns:
            ``None`` without a number.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a share lies between 0 and 1, not at {share}")
        if not self.count:
            return None
        # 0.07 * 100 is a little more than 7.
        place = max(0, math.ceil(share * self.count - 1e-9) - 1)
        kept = place - (self.count - len(self.values))
        if kept >= 0:
            return self.values[kept]
        if place == 0:
            return self.least
        # Halfway to the next place: the library takes a share of it, and rounding must not lead to the place before.
        found = float(_sketch(self).get_quantile_value((place + 0.5) / (self.count - 1)))
        assert self.least is not None
        return min(max(found, self.least), self.values[0])


def summary_of(values: Iterable[float]) -> Summary:
    """The summary of these numbers.

    Raises:
        ValueError: one of them is negative.
    """
    finite: list[float] = []
    nonfinite = 0
    for value in values:
        number = float(value)
        if not math.isfinite(number):
            nonfinite += 1
        elif number < 0:
            raise ValueError(f"an error is not negative: {number}")
        else:
            finite.append(number + 0.0)  # of the two zeros the positive one
    finite.sort()
    if len(finite) <= EXACT:
        return Summary(len(finite), nonfinite, tuple(finite), finite[0] if finite else None)
    return _sketched(_Counts.of(finite), nonfinite, finite[-LARGEST:], finite[0])


def merged(summaries: Iterable[Summary]) -> Summary:
    """The summary of all their numbers together."""
    parts = list(summaries)
    nonfinite = sum(part.nonfinite for part in parts)
    if sum(part.count for part in parts) <= EXACT:
        values = tuple(heapq.merge(*(part.values for part in parts)))
        return Summary(len(values), nonfinite, values, values[0] if values else None)
    counts = _Counts.of()
    for part in parts:
        counts.sketch.merge(_sketch(part))
    largest = sorted(heapq.nlargest(LARGEST, (value for part in parts for value in part.values)))
    return _sketched(counts, nonfinite, largest, min(part.least for part in parts if part.least is not None))


def to_json(summary: Summary) -> dict[str, Any]:
    """Plain JSON values; :func:`from_json` gives the summary back."""
    exact = {"count": summary.count, "nonfinite": summary.nonfinite, "values": list(summary.values)}
    if summary.exact:
        return exact
    bins = [list(each) for each in summary.bins]
    return {**exact, "accuracy": ACCURACY, "least": summary.least, "zeros": summary.zeros, "bins": bins}


def from_json(data: Mapping[str, Any]) -> Summary:
    """A summary from what :func:`to_json` made of it.

    Raises:
        ValueError: a sketch of another accuracy; its bins are others.
    """
    values = tuple(map(float, data["values"]))
    if "bins" not in data:
        return Summary(data["count"], data["nonfinite"], values, values[0] if values else None)
    if data["accuracy"] != ACCURACY:
        raise ValueError(f"the sketch's accuracy is {data['accuracy']}, and not {ACCURACY}")
    bins = tuple((int(key), int(count)) for key, count in data["bins"])
    return Summary(data["count"], data["nonfinite"], values, float(data["least"]), bins, data["zeros"])


class Gathered:
    """Summaries by kind of hardware and by name, while results come in.

    Numbers are collected, and summarised when there are many: adding them to a summary one by one would sort it each time.
    """

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], Summary] = {}
        self._loose: dict[tuple[str, str], list[float]] = {}

    def add(self, hardware: str, name: str, values: Iterable[float]) -> None:
        """Numbers of one name (a stage's metric) that were made on one kind of hardware."""
        loose = self._loose.setdefault((hardware, name), [])
        loose.extend(values)
        if len(loose) > EXACT:
            self._settle((hardware, name))

    def by_hardware(self) -> dict[str, dict[str, Summary]]:
        """Each kind's summaries by name; kinds in order of their names, names as they first came."""
        found: dict[str, dict[str, Summary]] = {hardware: {} for hardware, _ in sorted(self._loose)}
        for place in self._loose:
            self._settle(place)
            found[place[0]][place[1]] = self._done[place]
        return found

    def pooled(self) -> dict[str, Summary]:
        """All kinds' together, by name."""
        parts: dict[str, list[Summary]] = {}
        for summaries in self.by_hardware().values():
            for name, summary in summaries.items():
                parts.setdefault(name, []).append(summary)
        return {name: merged(each) for name, each in parts.items()}

    def _settle(self, place: tuple[str, str]) -> None:
        loose = summary_of(self._loose[place])
        self._loose[place] = []
        self._done[place] = merged([self._done[place], loose]) if place in self._done else loose


# -- the library's sketch ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Counts:
    """A sketch, and the store of its bins, which it keeps to itself."""

    sketch: Any
    store: Any

    @classmethod
    def of(cls, values: Iterable[float] = (), bins: Iterable[tuple[int, int]] = (), zeros: int = 0) -> _Counts:
        from ddsketch.ddsketch import BaseDDSketch
        from ddsketch.store import DenseStore

        store = DenseStore()
        for key, count in bins:
            store.add(key, count)
        sketch = BaseDDSketch(mapping=_mapping(), store=store, negative_store=DenseStore(), zero_count=zeros)
        for value in values:
            # The few numbers beyond what bins reach go into the last one; the largest are kept anyway.
            sketch.add(min(value, _mapping().max_possible))
        return cls(sketch, store)

    def bins(self) -> Iterator[tuple[int, int]]:
        for place, count in enumerate(self.store.bins):
            if count:
                yield place + self.store.offset, int(count)


@functools.cache
def _mapping() -> Any:
    from ddsketch.mapping import LogarithmicMapping

    return LogarithmicMapping(ACCURACY)


def _sketch(summary: Summary) -> Any:
    """The library's sketch of a summary."""
    return _Counts.of(summary.values if summary.exact else (), summary.bins, summary.zeros).sketch


def _sketched(counts: _Counts, nonfinite: int, largest: Iterable[float], least: float) -> Summary:
    bins = tuple(counts.bins())
    total = int(counts.sketch.count)
    return Summary(total, nonfinite, tuple(largest), least, bins, total - sum(count for _, count in bins))
