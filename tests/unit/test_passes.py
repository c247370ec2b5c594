"""Search over passes of an optimiser, on simulated ones: nothing here runs a model."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bisect_tool.passes import Budget, PassRun, mends, search_passes

WRONG, RIGHT = 0.5, 1e-7
NAMES = [f"Pass{number}" for number in range(12)]

groups = st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=3), min_size=1, max_size=3)


def optimiser(
    right: Callable[[frozenset[str]], bool], changes: Callable[[str], int] = lambda _: 1
) -> Callable[[str, tuple[str, ...]], PassRun]:
    """A simulated runtime: ``right`` says whether the outputs are, without some passes."""

    def attempt(_: str, disabled: tuple[str, ...]) -> PassRun:
        good = right(frozenset(disabled))
        return PassRun(RIGHT if good else WRONG, good, sum(map(changes, disabled)))

    return attempt


def search(attempt: Callable[[str, tuple[str, ...]], PassRun], names: Sequence[str] = NAMES, runs: int = 1000):
    return search_passes("all", (), lambda _: [(name, "basic") for name in names], WRONG, attempt, Budget(runs, 1e9))


@given(groups)
def test_what_is_found_is_needed_and_enough(faults: list[set[str]]) -> None:
    """Each fault takes all passes of its set: leaving out one of each set mends, and no found pass is needless."""

    def right(disabled: frozenset[str]) -> bool:
        return all(fault & disabled for fault in faults)

    found = search(optimiser(right)).found
    assert right(frozenset(found))
    assert not any(right(frozenset(found) - {name}) for name in found)


@given(st.integers(0, 2**32), st.integers(2, 9))
def test_passes_that_hinder_each_other(seed: int, count: int) -> None:
    """Whatever subsets mend, monotone or not: the set found does, and none of its members can be left out alone."""
    names = NAMES[:count]

    def right(disabled: frozenset[str]) -> bool:
        if not disabled:
            return False
        return disabled == frozenset(names) or zlib.crc32(repr((seed, sorted(disabled))).encode()) % 3 == 0

    found = search(optimiser(right), names).found
    assert right(frozenset(found))
    if len(found) > 1:
        assert not any(right(frozenset(found) - {name}) for name in found)


@given(groups, st.integers(1, 20))
def test_an_exhausted_budget_still_names_what_mends(faults: list[set[str]], runs: int) -> None:
    """With few runs the set may be larger than it need be, and it says so; it is never one that does not mend."""

    def right(disabled: frozenset[str]) -> bool:
        return all(fault & disabled for fault in faults)

    result = search(optimiser(right), runs=runs)
    assert len(result.trials) <= runs
    assert right(frozenset(result.found))
    needless = any(right(frozenset(result.found) - {name}) for name in result.found)
    assert not (needless and result.complete)


def test_of_several_that_mend_the_one_that_changes_least() -> None:
    """A pass that prepares the graph for the culprit mends too, and changes much else."""
    result = search(optimiser(lambda d: bool(d & {"Pass2", "Pass7"}), lambda name: 40 if name == "Pass2" else 3))
    assert (("Pass7",), ("Pass2",)) == (result.found, result.alternatives)


def test_passes_that_are_not_to_blame_are_tried_one_by_one() -> None:
    """Each of them has its number; those that had nothing to do in this graph are none."""
    idle = {"Pass0", "Pass1"}
    result = search(optimiser(lambda d: "Pass5" in d, lambda name: 0 if name in idle else 2))
    expected = {(name,) for name in NAMES} - {("Pass5",), *((name,) for name in idle)}
    assert expected == {trial.disabled for trial in result.ruled_out}
    assert {WRONG} == {trial.run.error for trial in result.ruled_out}


def test_no_pass_is_to_blame() -> None:
    """Where leaving out all of them does not help, none is named, and no more is tried."""
    result = search(optimiser(lambda _: False))
    assert () == result.found
    assert result.mended is None
    assert 1 == len(result.trials)


def test_nothing_changed_the_graph() -> None:
    """Without a candidate nothing runs."""
    result = search(optimiser(lambda _: True), [])
    assert ((), ()) == (result.found, result.trials)


LEVELS = ("basic", "extended", "layout")


@pytest.mark.parametrize(
    ("wrong_from", "first", "best"),
    [("basic", "basic", None), ("extended", "extended", "basic"), ("all", "all", "layout")],
)
def test_levels_from_coarse_to_fine(wrong_from: str, first: str, best: str | None) -> None:
    """The lowest wrong level is found first, and what it brings in is tried before the rest."""
    order = [*LEVELS, "all"]
    culprit = f"Of{wrong_from}"

    def attempt(level: str, disabled: tuple[str, ...]) -> PassRun:
        good = order.index(level) < order.index(wrong_from) or culprit in disabled
        return PassRun(RIGHT if good else WRONG, good)

    candidates = [(f"Of{level}", level) for level in order]
    result = search_passes("all", LEVELS, lambda _: candidates, WRONG, attempt, Budget(100, 1e9))
    assert (first, best, (culprit,)) == (result.first_level, result.best_level, result.found)
    singles = [trial.disabled[0] for trial in result.trials if len(trial.disabled) == 1]
    assert culprit == singles[0]


def test_what_one_pass_leaves_alone_another_takes() -> None:
    """Three fusions take the same nodes, one after the other: each shows up only once those before it are left out."""
    fusions = ["First", "Second", "Third"]

    def changing(disabled: Sequence[str]) -> list[tuple[str, str]]:
        return [(name, "basic") for name in ["Other", *fusions] if name not in disabled][: 2 - ("Other" in disabled)]

    attempt = optimiser(lambda disabled: set(fusions) <= disabled)
    result = search_passes("all", (), changing, WRONG, attempt, Budget(100, 1e9))
    assert set(fusions) == set(result.found)


def test_a_run_that_fails_mends_nothing() -> None:
    """A set of passes without which the runtime refuses the graph is no remedy."""

    def attempt(_: str, disabled: tuple[str, ...]) -> PassRun:
        if disabled == ("Pass3",):
            return PassRun(None, False)
        return PassRun(RIGHT, True) if {"Pass3", "Pass4"} <= set(disabled) else PassRun(WRONG, False)

    result = search(attempt)
    assert ("Pass3", "Pass4") == result.found
    assert ("Pass3",) not in {trial.disabled for trial in result.ruled_out}


@pytest.mark.parametrize(
    ("before", "run", "expected"),
    [
        (0.5, PassRun(1e-7, True), True),
        (0.5, PassRun(1e-7, False), False),
        (0.5, PassRun(0.4, True), False),
        (math.inf, PassRun(1e-3, True), True),
        (math.nan, PassRun(1e-3, True), True),
        (None, PassRun(1e-3, True), True),
        (None, PassRun(None, False), False),
        (0.5, PassRun(None, True), False),
    ],
)
def test_mending(before: float | None, run: PassRun, expected: bool) -> None:
    """A remedy agrees, and lowers the error; agreeing with nearly the same error is luck."""
    assert expected == mends(before, run)


def test_a_budget_ends_by_the_clock() -> None:
    """Seconds count as well as runs."""
    clock = itertools.count(0.0, 0.4)
    budget = Budget(10, 1.0, lambda: next(clock))
    assert [True, True, False] == [budget.take() for _ in range(3)]
    assert (2, True) == (budget.runs, budget.exhausted)
