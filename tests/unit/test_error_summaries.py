"""Mergeable distributions: exact while small, within one per cent when large, and the same whatever was merged first."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bisect_tool import summaries
from bisect_tool.summaries import Gathered, Summary, from_json, merged, summary_of, to_json

ERRORS = st.one_of(
    st.just(0.0),
    st.floats(min_value=0.0, allow_infinity=False, allow_nan=False),
    st.floats(min_value=1e-9, max_value=1.0),
    st.sampled_from([math.nan, math.inf, 5e-324, 1.7e308]),
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketches begin early, so that a few numbers reach both kinds."""
    monkeypatch.setattr(summaries, "EXACT", 12)
    monkeypatch.setattr(summaries, "LARGEST", 3)


def _true(values: list[float], share: float) -> float:
    finite = sorted(value for value in values if math.isfinite(value))
    return finite[max(0, math.ceil(share * len(finite) - 1e-9) - 1)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(ERRORS, max_size=12), min_size=3, max_size=3))
def test_merging_is_associative_and_commutative(parts: list[list[float]]) -> None:
    """To the last bit, across the border between exact and sketched, and equal to one summary of everything."""
    a, b, c = map(summary_of, parts)
    whole = summary_of([value for part in parts for value in part])
    assert whole == merged([a, merged([b, c])])
    assert whole == merged([merged([a, b]), c])
    assert whole == merged([merged([c, a]), b])
    assert whole == merged([b, a, c])


@settings(max_examples=60, deadline=None)
@given(st.lists(ERRORS, min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_quantiles_are_near(values: list[float], share: float) -> None:
    """Within the stated accuracy of the number at that place; exact for the smallest and the largest."""
    found = summary_of(values)
    if not found.count:
        assert found.quantile(share) is None
        return
    true, told = _true(values, share), found.quantile(share)
    assert told is not None
    if found.exact:
        assert true == told
    elif true < 1e-300:
        assert told < 1.1e-300  # the sketch's zero
    else:
        assert abs(told - true) <= summaries.ACCURACY * true * (1 + 1e-9)
    assert _true(values, 0.0) == found.quantile(0.0)
    assert _true(values, 1.0) == found.quantile(1.0) == found.greatest


@settings(max_examples=30, deadline=None)
@given(st.lists(ERRORS, max_size=40))
def test_files_keep_them(values: list[float]) -> None:
    """Through JSON text and back."""
    found = summary_of(values)
    assert found == from_json(json.loads(json.dumps(to_json(found))))


def test_small_ones_are_exact_and_large_ones_small() -> None:
    """The border, and what is kept beyond it."""
    assert summary_of(range(12)).exact
    numbers = [1e-7 * random.Random(0).lognormvariate(0, 2) for _ in range(5000)]
    large = summary_of(numbers)
    assert not large.exact and 5000 == large.count == sum(count for _, count in large.bins)
    assert tuple(sorted(numbers)[-3:]) == large.values
    assert len(large.bins) < 1000


def test_what_is_no_number_is_counted() -> None:
    """And changes no quantile."""
    found = summary_of([1.0, math.nan, 2.0, math.inf, -0.0])
    assert (3, 2, (0.0, 1.0, 2.0)) == (found.count, found.nonfinite, found.values)
    assert "-" not in str(found.values)
    assert Summary(0, 1, (), None) == summary_of([math.nan])


def test_negative_errors_and_other_sketches_are_refused() -> None:
    """Neither is what the file or the caller says it is."""
    with pytest.raises(ValueError, match=r"not negative: -1\.0"):
        summary_of([-1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        summary_of([1.0]).quantile(1.5)
    with pytest.raises(ValueError, match=r"accuracy is 0\.02"):
        from_json({**to_json(summary_of(range(1, 40))), "accuracy": 0.02})


def test_kinds_of_hardware_stay_apart() -> None:
    """Each has its own distribution, and the pooled one has all, however the numbers came."""
    found = Gathered()
    for number in range(1, 21):
        found.add("fast" if number % 2 else "slow", "conv1", [number / 8])
        found.add("fast", "conv2", [number])
    by_hardware = found.by_hardware()
    assert {"fast": ["conv1", "conv2"], "slow": ["conv1"]} == {kind: list(each) for kind, each in by_hardware.items()}
    assert summary_of([n / 8 for n in range(2, 21, 2)]) == by_hardware["slow"]["conv1"]
    assert summary_of([n / 8 for n in range(1, 21)]) == found.pooled()["conv1"]
    assert summary_of(range(1, 21)) == found.pooled()["conv2"]
