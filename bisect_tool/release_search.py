"""Which release changed the numbers: which versions to try, in which order, and what that shows. Pure.

The first version of the range is the reference. A version has *changed* if its numbers lie beyond the limit from the
reference's; it may also turn out not to be testable (no wheel, an import that fails). Binary search finds a neighbouring
pair, the one unchanged, the other changed, with nothing but untestable versions between them. Where numbers changed and
changed back, it is one such pair of several.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from packaging.version import InvalidVersion, Version

from bisect_tool.errors import BisectError

Status = Literal["changed", "unchanged", "untestable"]


@dataclass(frozen=True)
class Change:
    """What a search found.

    Attributes:
        status: ``untestable``: fewer than two versions could be tried.
        reference: the version that all are compared with; the first that could be tried.
        last_same, first_changed: neighbours, but for ``between``.
        between: versions between them that could not be tried.
        tried: in the order in which they were.
    """

    status: Status
    reference: str | None
    last_same: str | None = None
    first_changed: str | None = None
    between: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()


@dataclass
class _Search:
    versions: Sequence[str]
    probe: Callable[[str], bool | None]
    answers: dict[int, bool | None] = field(default_factory=dict)

    def ask(self, place: int) -> bool | None:
        if place not in self.answers:
            self.answers[place] = self.probe(self.versions[place])
        return self.answers[place]


def search(versions: Sequence[str], probe: Callable[[str], bool | None]) -> Change:
    """Finds where numbers changed between the first and the last version.

    Args:
        versions: oldest first, each once.
        probe: whether a version's numbers differ from the first one's; None: it cannot be tried. It is called at most once
            for each; the first version that can be tried answers False, whatever it says.
    """
    state = _Search(versions, probe)

    def tried() -> tuple[str, ...]:
        return tuple(versions[place] for place in state.answers)

    low = next((place for place in range(len(versions)) if state.ask(place) is not None), None)
    if low is None:
        return Change("untestable", None, tried=tried())
    state.answers[low] = False
    high = next((place for place in range(len(versions) - 1, low, -1) if state.ask(place) is not None), None)
    reference = versions[low]
    if high is None:
        return Change("untestable", reference, tried=tried())
    if not state.ask(high):
        return Change("unchanged", reference, versions[high], tried=tried())
    start = low
    while (place := _next(low, high, state.answers)) is not None:
        answer = state.ask(place)
        if answer is None:
            continue
        if answer:
            high = place
        else:
            low = place
    assert start <= low < high
    return Change("changed", reference, versions[low], versions[high], tuple(versions[low + 1 : high]), tried())


def _next(low: int, high: int, known: dict[int, bool | None]) -> int | None:
    """The middle one of the untried places: as many on either side, wherever those lie that could not be tried."""
    open_places = [place for place in range(low + 1, high) if place not in known]
    return open_places[(len(open_places) - 1) // 2] if open_places else None


def most_probes(count: int) -> int:
    """Versions that are tried at most where each can be."""
    return count if count <= 2 else 2 + math.ceil(math.log2(count - 1))


# Ranges


def choose(spec: str, released: Sequence[str], *, pre: bool = False) -> tuple[str, ...]:
    """Versions of a range, oldest first.

    Args:
        spec: ``1.18..1.31``: both ends with all their fix releases; either end may be left out; or a list by commas.
        released: every version that there is.
        pre: release candidates and the like too.

    Raises:
        BisectError: no such form, or fewer than two versions in it.

    Example:
        >>> choose("1.1..1.2", ["1.0", "1.1.0", "1.1.1", "1.2.3", "1.3"])
        ('1.1.0', '1.1.1', '1.2.3')
    """
    known: dict[Version, str] = {}
    for text in released:
        try:
            known.setdefault(Version(text), text)
        except InvalidVersion:
            continue
    ordered = sorted(known)
    if ".." in spec:
        low, _, high = (part.strip() for part in spec.partition(".."))
        ends = tuple(_release(text, spec) if text else None for text in (low, high))
        chosen = [known[v] for v in ordered if _within(v, ends[0], ends[1]) and (pre or not v.is_prerelease)]
    else:
        wanted = [part.strip() for part in spec.split(",") if part.strip()]
        versions = [_version(text, spec) for text in wanted]
        missing = [str(version) for version in versions if released and version not in known]
        if missing:
            raise BisectError(f"{', '.join(missing)}: no such release", hint=_there_are([known[v] for v in ordered]))
        chosen = [known.get(version, str(version)) for version in sorted(set(versions))]
    if len(chosen) < 2:
        found = f"only {chosen[0]}" if chosen else "no release"
        raise BisectError(f"{spec!r} holds {found}: two are needed", hint=_there_are([known[v] for v in ordered]))
    return tuple(chosen)


def _there_are(versions: Sequence[str]) -> str:
    shown = [*versions[:3], "...", *versions[-5:]] if len(versions) > 9 else versions
    return f"there are {', '.join(shown)}" if versions else "write a range as 1.18..1.31, or versions by commas"


def _version(text: str, spec: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise BisectError(
            f"{spec!r}: {text!r} is no version", hint="a range as 1.18..1.31, or versions by commas"
        ) from error


def _release(text: str, spec: str) -> Version:
    if re.fullmatch(r"\d+(\.\d+)*(\.dev\d+|rc\d+|a\d+|b\d+)?", text) is None:
        raise BisectError(f"{spec!r}: {text!r} is no version", hint="a range as 1.18..1.31, or versions by commas")
    return Version(text)


def _within(version: Version, low: Version | None, high: Version | None) -> bool:
    if low is not None and version < low:
        return False
    # 1.31 as the end also means 1.31.1.
    return high is None or version <= high or version.release[: len(high.release)] == high.release
