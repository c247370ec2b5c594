"""Binary search over releases: it finds a real change, asks little, and copes with versions that cannot be tried."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bisect_tool.errors import BisectError
from bisect_tool.release_search import Change, choose, most_probes, search
from bisect_tool.releases import apart, limit_for

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Other work may hold the processor."""

ANSWERS = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=40)


def asked(answers: list[bool | None]) -> tuple[Change, list[str]]:
    """A search over versions with these answers, and what it asked in order."""
    log: list[str] = []

    def probe(version: str) -> bool | None:
        log.append(version)
        return answers[int(version)]

    return search([str(i) for i in range(len(answers))], probe), log


@UNHURRIED
@given(ANSWERS)
def test_what_is_found_is_true(answers: list[bool | None]) -> None:
    """Any answers, monotone or not: the pair found is a change, with nothing but untestable versions between."""
    change, log = asked(answers)
    assert len(log) == len(set(log))
    assert list(change.tried) == log
    testable = [i for i, answer in enumerate(answers) if answer is not None]
    if len(testable) < 2:
        assert "untestable" == change.status
        return
    first, last = testable[0], testable[-1]
    assert str(first) == change.reference
    if not answers[last]:
        assert ("unchanged", str(last)) == (change.status, change.last_same)
        return
    assert "changed" == change.status
    low, high = int(change.last_same), int(change.first_changed)
    assert answers[high] is True
    assert low == first or answers[low] is False
    assert low < high
    assert [str(i) for i in range(low + 1, high)] == list(change.between)
    assert all(answers[i] is None for i in range(low + 1, high))


@UNHURRIED
@given(st.integers(2, 300), st.data())
def test_one_change_is_found_with_few_probes(count: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(1, count - 1))
    change, log = asked([i >= place for i in range(count)])
    assert (str(place - 1), str(place)) == (change.last_same, change.first_changed)
    assert len(log) <= most_probes(count) <= 2 + math.ceil(math.log2(count))


@UNHURRIED
@example(9, 7, {4})
@given(st.integers(2, 60), st.integers(1, 59), st.sets(st.integers(0, 59)))
def test_untestable_versions_cost_one_probe_each_at_most(count: int, place: int, skipped: set[int]) -> None:
    place, skipped = min(place, count - 1), {each for each in skipped if each < count}
    answers = [None if i in skipped else i >= place for i in range(count)]
    _, log = asked(answers)
    assert len(log) <= most_probes(count) + len(skipped)


RELEASED = ["1.17.0", "1.18.0", "1.18.1", "1.19.0", "1.20.0rc1", "1.20.0", "1.31.0", "1.31.1", "1.32.0", "no version"]


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("1.18..1.20", ("1.18.0", "1.18.1", "1.19.0", "1.20.0")),
        ("1.18.1..1.19", ("1.18.1", "1.19.0")),
        ("1.31..", ("1.31.0", "1.31.1", "1.32.0")),
        ("..1.18", ("1.17.0", "1.18.0", "1.18.1")),
        ("1.20..1.31.0", ("1.20.0", "1.31.0")),
        ("1.31.1, 1.17.0", ("1.17.0", "1.31.1")),
    ],
)
def test_ranges(spec: str, chosen: tuple[str, ...]) -> None:
    assert chosen == choose(spec, RELEASED)


def test_prereleases_only_when_asked_for() -> None:
    assert "1.20.0rc1" in choose("1.19..1.20", RELEASED, pre=True)
    assert "1.20.0rc1" not in choose("1.19..1.20", RELEASED)


def test_named_versions_need_no_index() -> None:
    assert ("1.2", "1.10") == choose("1.10,1.2", [])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a..b", "'a' is no version"),
        ("1.18", "only 1.18"),
        ("9..10", "holds no release"),
        ("1.19..1.19", "holds only 1.19.0"),
        ("1.18.0,x", "'x' is no version"),
        ("1.18.0,1.18.7", "1.18.7: no such release"),
        ("", "holds no release"),
    ],
)
def test_ranges_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(BisectError) as caught:
        choose(spec, RELEASED)
    assert message in caught.value.message
    assert caught.value.hint


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 2)), min_size=2, unique=True))
def test_every_release_is_between_the_ends(versions: list[tuple[int, int, int]]) -> None:
    """The range from the least to the greatest is all of them, in order."""
    ordered = [".".join(map(str, version)) for version in sorted(versions)]
    assert tuple(ordered) == choose(f"{ordered[0]}..{ordered[-1]}", list(reversed(ordered)))
    assert tuple(ordered) == choose("..", ordered)


def test_apart() -> None:
    a = {"y": np.array([3.0, 4.0], np.float32)}
    assert (0.0, 0.0) == (apart(a, a).rel_l2, apart(a, a).max_abs)
    near = apart(a, {"y": np.array([3.0, 4.5], np.float32)})
    assert near.rel_l2 == pytest.approx(0.1) and near.beyond(0.05) and not near.beyond(0.2)
    for other in ({"z": a["y"]}, {"y": a["y"][:1]}, {"y": np.array([3.0, np.nan], np.float32)}, {}):
        assert apart(a, other).beyond(1e9)
    counts = {"n": np.array([1, 2])}
    assert not apart(counts, counts).beyond(0) and apart(counts, {"n": np.array([1, 3])}).beyond(1e9)


def test_nothing_compared_never_reads_as_unchanged() -> None:
    assert apart({}, {}).beyond(1e9)


def test_limits() -> None:
    assert limit_for(1e-7) == pytest.approx(6e-7)
    assert 0 < limit_for(None) < 1e-3
