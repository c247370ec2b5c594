"""What the bisection over an optimiser's passes found, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bisect_tool.passes import PassSearch, PassTrial
from bisect_tool.records import (
    ConfigPair,
    Diagnosis,
    FirstOverTolerance,
    LedgerEntry,
    Origin,
    StageRef,
    Verdict,
)

CODE = "BD302"
"""The optimised graph is wrong, and the same graph unoptimised is right."""

TITLE = "an optimiser pass changes the result"
BLOWN_UP = "a node blows up the rounding that optimisation changes"
NO_PASS = "the optimised graph gives another result, and no pass that can be switched off explains it"

_LISTED = 4

_UNKNOWN_PLACE, _NOT_MEASURED = ", and no exposed stage does", "where the error is made was not measured"
"""What lines of a verdict say that a finding answers."""


_RIGHT = "the graph unoptimised is right"


@dataclass(frozen=True, slots=True)
class OptimiserFinding:
    """What explains an optimised run: the diagnosis with all that ran, the places as origins, and a line."""

    diagnosis: Diagnosis
    ledger: tuple[LedgerEntry, ...]
    origins: tuple[Origin, ...]
    line: str


def is_optimised(pair: ConfigPair) -> bool:
    """Whether passes of an optimiser may be what makes a pair wrong."""
    return pair.actual.backend == "onnxruntime" and pair.actual.optimization != "off"


def finding_of(verdict: Verdict) -> OptimiserFinding | None:
    """The finding that a verdict on one optimised configuration holds; ``None``: it has none."""
    made = next((each for each in verdict.diagnoses if each.code == CODE), None)
    if made is None:
        return None
    said = next((text for text in verdict.summary if _RIGHT in text), made.title)
    entries = tuple(entry for entry in verdict.ledger if entry.code == CODE)
    return OptimiserFinding(made, entries, verdict.origins, said)


def with_finding(verdict: Verdict, found: OptimiserFinding) -> Verdict:
    """The verdict with a finding; its place is where the divergence begins, if no place was known."""
    verdict = with_places(verdict, found.origins)
    return replace(
        verdict,
        summary=(*verdict.summary[:1], found.line, *verdict.summary[1:]),
        diagnoses=(*verdict.diagnoses, found.diagnosis),
        ledger=(*verdict.ledger, *found.ledger),
    )


def with_places(verdict: Verdict, origins: Sequence[Origin]) -> Verdict:
    """The verdict with places that the optimiser rewrote; what it says of hidden places is answered then."""
    kept = [text.partition(_UNKNOWN_PLACE)[0] for text in verdict.summary if not text.startswith(_NOT_MEASURED)]
    first = verdict.first_over_tolerance
    if first is None and origins:
        first = FirstOverTolerance(origins[0].stage, origins[0].call, origins[0].output, origins[0].config)
    return replace(verdict, summary=tuple(kept), first_over_tolerance=first, origins=(*verdict.origins, *origins))


@dataclass(frozen=True, slots=True)
class Spot:
    """A place that the optimiser rewrote, and where the error begins.

    Attributes:
        value: of the given graph, the first that deviates while nobody disturbs the run.
        error: how far it lies from the unoptimised run's, relative L2; ``None``: not measured.
        nodes: of the given graph that were replaced, as ``name (operator)``, in a topological order.
        instead: operators that the optimised graph has in their place.
        reads: values of the given graph that these read.
        stages: that the replaced nodes belong to, in the order of the run.
        good: how many values before it were seen to be right.
        inner: values between the nodes, which the optimised graph does not have any more.
        healed: error of the value while these are looked at, if it is right then; else ``None``.
        rewritten: the optimised graph has something else there; else only rounding before it differs.
        hidden: values before it that cannot be looked at without changing the final outputs.
        runs: that it took. complete: not ended for want of time or runs.
    """

    value: str
    error: float | None
    nodes: tuple[str, ...]
    instead: tuple[str, ...]
    reads: tuple[str, ...]
    stages: tuple[StageRef, ...]
    good: int
    inner: tuple[str, ...]
    healed: float | None
    rewritten: bool
    hidden: tuple[str, ...]
    runs: int
    complete: bool


def diagnosis(
    pair: ConfigPair,
    search: PassSearch,
    spots: Sequence[Spot],
    places: int | None,
    remedy: str,
    cost: str | None,
) -> Diagnosis:
    """The finding.

    Args:
        pair: that diverges.
        search: over the passes.
        spots: where the error begins, the first one first.
        places: nodes that the passes found made or changed in this graph; ``None``: unknown.
        remedy: lines of Python that set what was found.
        cost: of it, in words.
    """
    named = " and ".join(search.found)
    fixed = search.found or search.best_level is not None
    after = search.mended.error if search.mended is not None else _error_of_level(search)
    title = f"{_what(spots)}: {named}" if search.found else NO_PASS
    evidence = [_before_and_after(pair, search, after), *_levels(search)]
    for spot in spots:
        evidence += _place(spot)
    if places and search.found:
        many = f"{places} nodes" if places > 1 else "1 node"
        evidence.append(
            f"in all {'it makes' if len(search.found) == 1 else 'they make'} or changes {many} of this graph"
        )
    if search.alternatives:
        evidence.append(f"without {_listed(search.alternatives)} it is right as well: {named} finds nothing to do then")
    evidence.append(_effort(search, spots))
    return Diagnosis(
        code=CODE,
        title=title,
        evidence=tuple(evidence),
        remedy=remedy,
        remedy_verified=True if fixed else None,
        cost=cost,
        gating=pair.gating,
        origin=spots[0].stages[-1] if spots and spots[0].stages else None,
        error_before=search.before,
        error_after=after,
    )


def _what(spots: Sequence[Spot]) -> str:
    return BLOWN_UP if spots and not any(spot.rewritten for spot in spots) else TITLE


def _error_of_level(search: PassSearch) -> float | None:
    level = search.best_level
    return next((t.run.error for t in search.trials if t.level == level and not t.disabled), None)


def _before_and_after(pair: ConfigPair, search: PassSearch, after: float | None) -> str:
    was = "does not run" if search.before is None else f"final outputs off by {_number(search.before)}"
    was += " (another shape, or NaN on one side)" if search.before is not None and math.isinf(search.before) else ""
    if search.found:
        return f"{pair.name}: {was}; without {' and '.join(search.found)} by {_number(after)}"
    tried = sum(len(trial.disabled) > 1 for trial in search.trials)
    rest = "with all passes left out that changed the graph it stays wrong" if tried else "no pass changed the graph"
    return f"{pair.name}: {was}; {rest}"


def _levels(search: PassSearch) -> list[str]:
    below = [trial for trial in search.trials if not trial.disabled]
    if not below:
        return []
    words = [
        f"{trial.level} {'is right' if trial.mends else 'is wrong'} ({_number(trial.run.error)})" for trial in below
    ]
    return [f"by level: off is right, {', '.join(words)}, {search.level} is wrong"]


def _place(spot: Spot) -> list[str]:
    lines = []
    if spot.nodes and not spot.rewritten:
        lines.append(
            f"not rewritten there: {_listed(spot.nodes)}, of {_listed([str(stage) for stage in spot.stages])}; what they "
            "read differs by rounding alone (ties, a step, cancellation?)"
        )
    elif spot.nodes:
        instead = f": {_listed(spot.instead)} in their place" if spot.instead else ""
        instead += f", from {_listed(spot.reads)} to {spot.value}" if spot.instead and spot.reads else ""
        stages = f", of {_listed([str(stage) for stage in spot.stages])}" if spot.stages else ""
        lines.append(f"rewritten there: {_listed(spot.nodes)}{stages}{instead}")
    if spot.error is not None:
        before = f"; {spot.good} values before it are right" if spot.good > 1 else ""
        before = "; the one value before it is right" if spot.good == 1 else before
        lines.append(
            f"first value that is off while the final outputs stay bit for bit as deployed: {spot.value} "
            f"({_number(spot.error)}){before}"
        )
    if spot.healed is not None:
        lines.append(
            f"looking at {_listed(spot.inner)} in between mends it: {spot.value} is off by {_number(spot.healed)} then"
        )
    elif spot.hidden:
        lines.append(f"cannot be looked at without changing the final outputs: {_listed(spot.hidden)}")
    return lines


def _effort(search: PassSearch, spots: Sequence[Spot]) -> str:
    watched = sum(spot.runs for spot in spots)
    text = f"{len(search.trials)} runs over levels and passes"
    text += f", {watched} under observation" if watched else ""
    complete = search.complete and all(spot.complete for spot in spots)
    return text if complete else f"{text}; then time or number of runs ended it"


def ledger(pair: ConfigPair, search: PassSearch, spots: Sequence[Spot], where: StageRef) -> tuple[LedgerEntry, ...]:
    """Every single pass that was left out and changed the graph, and what came of it.

    Args:
        pair, search, spots: as for :func:`diagnosis`.
        where: stage that the entries stand under.
    """
    node = spots[0].nodes[-1].partition(" (")[0] if spots and spots[0].nodes else ""
    before = math.inf if search.before is None else search.before
    found = []
    for trial in search.trials:
        if trial.level != search.level or not trial.disabled:
            continue
        if len(trial.disabled) > 1 and trial.disabled != search.found:
            continue
        if not trial.mends and trial.run.changed == 0:
            continue  # it answers to the name, and has nothing to do here
        found.append(_entry(trial, search, pair, where, node, before))
    return tuple(found)


def _entry(
    trial: PassTrial, search: PassSearch, pair: ConfigPair, where: StageRef, node: str, before: float
) -> LedgerEntry:
    blamed = trial.disabled == search.found
    return LedgerEntry(
        ref=where,
        config=pair.name,
        code=CODE,
        node=node,
        change=f"optimiser without {' and '.join(trial.disabled)}",
        error_before=before,
        error_after=trial.run.error,
        conclusion="cause"
        if blamed
        else "contributes"
        if trial.mends
        else "no answer"
        if trial.run.error is None
        else "ruled out",
    )


def line(pair: ConfigPair, search: PassSearch, spots: Sequence[Spot]) -> str:
    """The finding in one line of the verdict."""
    many = len(search.found) > 1
    what = "optimisation does"
    if search.found:
        what = f"the optimiser {'passes' if many else 'pass'} {' and '.join(search.found)} {'do' if many else 'does'}"
    where = _listed([str(spot.stages[-1]) for spot in spots if spot.stages])
    if _what(spots) == BLOWN_UP:
        by = f" by {' and '.join(search.found)}" if search.found else ""
        return f"rounding that is changed{by} under {pair.name} is blown up at {where}; {_RIGHT}"
    return f"{what} it under {pair.name}, {_RIGHT}" + (f": at {where}" if where else "")


def _number(error: float | None) -> str:
    if error is None:
        return "it does not run"
    return f"{error:.1e}"


def _listed(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
