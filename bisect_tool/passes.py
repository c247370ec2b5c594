"""Which passes of an optimiser make a result wrong: levels first, then delta debugging over single passes.

Nothing here knows a runtime: a callable runs the model with some passes left out and says what comes of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bisect_tool.delta import smallest
from bisect_tool.hypotheses import MARKED


@dataclass(frozen=True, slots=True)
class PassRun:
    """The model with some passes left out.

    Attributes:
        error: relative L2 of the worst final output, infinite where shapes differ; ``None``: it did not run.
        agrees: whether its final outputs are within what is allowed.
        changed: nodes of the optimised graph that are others than with all passes; ``None``: not looked at.
    """

    error: float | None
    agrees: bool
    changed: int | None = None


@dataclass(frozen=True, slots=True)
class PassTrial:
    """One run of the search: at a level, without some passes; ``mends``: the error went."""

    level: str
    disabled: tuple[str, ...]
    run: PassRun
    mends: bool


@dataclass(frozen=True, slots=True)
class PassSearch:
    """What a search found.

    Attributes:
        level: that was deployed.
        before: error with all passes of that level; ``None``: the optimised graph does not run at all.
        first_level: the lowest level that is wrong too; the deployed one where the others are right.
        best_level: the highest level below the deployed one that is right; ``None``: only without optimisation.
        found: passes that have to be left out together, none of them needlessly; () where leaving out all does not help.
        mended: the run without them.
        alternatives: other passes, each of which mends by itself.
        trials: every run, in order.
        complete: nothing was left out for want of time or runs.
    """

    level: str
    before: float | None
    first_level: str
    best_level: str | None
    found: tuple[str, ...]
    mended: PassRun | None
    alternatives: tuple[str, ...]
    trials: tuple[PassTrial, ...]
    complete: bool

    @property
    def ruled_out(self) -> tuple[PassTrial, ...]:
        """Runs without one pass, which changed the graph and left the error."""
        return tuple(
            trial
            for trial in self.trials
            if len(trial.disabled) == 1 and not trial.mends and trial.run.changed != 0 and trial.run.error is not None
        )


class Budget:
    """So many runs and so many seconds.

    Args:
        runs, seconds: that may be spent, from now on.
        clock: tells seconds.
    """

    def __init__(self, runs: int, seconds: float, clock: Callable[[], float] = time.perf_counter):
        self.runs = 0
        self._most = runs
        self._clock = clock
        self._ends = clock() + seconds
        self.exhausted = False

    def take(self) -> bool:
        """Whether one more run may be made; it counts as made then."""
        if self.runs >= self._most or self._clock() > self._ends:
            self.exhausted = True
            return False
        self.runs += 1
        return True


def mends(before: float | None, run: PassRun) -> bool:
    """Whether a run is right where the deployed one, with error ``before``, is wrong. Agreement with nearly the same
    error is none.
    """
    if not run.agrees or run.error is None:
        return False
    return before is None or math.isnan(before) or run.error <= before * MARKED


def search_passes(
    level: str,
    lower: Sequence[str],
    changing: Callable[[Sequence[str]], Sequence[tuple[str, str]]],
    before: float | None,
    attempt: Callable[[str, tuple[str, ...]], PassRun],
    budget: Budget,
) -> PassSearch:
    """Looks for the fewest passes whose absence makes an optimised run right.

    Args:
        level: of optimisation that is deployed, and wrong.
        lower: levels below it, the lowest first; without any optimisation the run is known to be right.
        changing: passes that change the graph when some are left out, each with the level that brings it in: what one
            pass leaves alone another may take.
        before: error of the deployed run; ``None`` where it does not run.
        attempt: runs the model at a level, without some passes.
        budget: of runs; levels, sets and single passes all take from it.
    """
    trials: list[PassTrial] = []
    known: dict[tuple[str, frozenset[str]], bool] = {}

    def right(at: str, disabled: Sequence[str]) -> bool:
        key = at, frozenset(disabled)
        if key not in known:
            if not budget.take():
                return False
            run = attempt(at, tuple(disabled))
            known[key] = mends(before, run)
            trials.append(PassTrial(at, tuple(disabled), run, known[key]))
        return known[key]

    first, best = level, None
    for at in lower:
        if not right(at, ()):
            first = at
            break
        best = at
    levels = dict(changing(()))
    while levels and not right(level, _in_order(levels, first)):
        more = {name: at for name, at in changing(list(levels)) if name not in levels}
        if not more or budget.exhausted:
            break
        levels.update(more)
    names = _in_order(levels, first)
    found: list[str] = []
    if names and right(level, names):
        found = smallest(names, lambda chosen: right(level, chosen))
        # Each by itself, for what else would do, and what is not to blame.
        for name in names:
            right(level, [name])
    single = [trial for trial in trials if trial.mends and len(trial.disabled) == 1]
    alternatives: list[str] = []
    if len(found) == 1 and single:
        # Of several the one that changes least: others mend by keeping the culprit from finding anything.
        chosen = min(single, key=lambda trial: math.inf if trial.run.changed is None else trial.run.changed)
        found = list(chosen.disabled)
        alternatives = [trial.disabled[0] for trial in single if trial is not chosen]
    kept = frozenset(found)
    mended = next((trial.run for trial in trials if trial.mends and frozenset(trial.disabled) == kept), None)
    return PassSearch(
        level=level,
        before=before,
        first_level=first,
        best_level=best,
        found=tuple(found),
        mended=mended if found else None,
        alternatives=tuple(alternatives),
        trials=tuple(trials),
        complete=not budget.exhausted,
    )


def _in_order(levels: Mapping[str, str], first: str) -> list[str]:
    """Names of passes; what the first wrong level brings in is likelier than what was there before."""
    return sorted(levels, key=lambda name: levels[name] != first)
