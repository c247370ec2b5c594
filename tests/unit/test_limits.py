"""``limits``: the rate of false alarms holds for whole runs, few samples widen the limits, and the numbers are exact."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bisect_tool.calibration.limits import (
    FEW,
    _farthest,
    _usual,
    binomial_at_most,
    limits_of,
    samples_needed,
)

Array = NDArray[np.float64]


def errors_of(samples: int, columns: int, seed: int) -> Array:
    """Errors that go together, as a sample that is hard for one stage is hard for the next."""
    random = np.random.default_rng(seed)
    usual = random.uniform(-16, -12, columns)
    spread = random.uniform(0.1, 0.8, columns)
    hard = random.normal(size=(samples, 1))
    own = random.normal(size=(samples, columns))
    return np.asarray(np.exp(usual + spread * (0.6 * hard + 0.8 * own)))


def least_of(columns: int) -> Array:
    return np.full(columns, 1e-9)


@pytest.mark.parametrize(("samples", "rate"), [(60, 0.05), (150, 0.02)])
def test_the_rate_holds_for_a_whole_run(samples: int, rate: float) -> None:
    """Over many calibrations new runs are over any of 40 limits as often as was stated, and not much less."""
    alarms, runs = 0, 0
    for seed in range(60):
        both = errors_of(samples + 50, 40, seed)
        found = limits_of(both[:samples], least_of(40), rate)
        assert found.firm
        alarms += int(np.any(both[samples:] > found.values, axis=1).sum())
        runs += 50
    assert 0.3 * rate < alarms / runs < 1.25 * rate


def test_a_limit_for_each_column_alone_would_not_do() -> None:
    """What the joint score is for: per-column quantiles alarm in most runs."""
    both = errors_of(260, 40, 1)
    alone = np.quantile(both[:60], 0.98, axis=0)
    assert np.mean(np.any(both[60:] > alone, axis=1)) > 0.3


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 8, 16])
def test_few_samples_say_so_and_widen(samples: int) -> None:
    """The tail is not called measured, and limits from few samples lie above those from many."""
    both = errors_of(2000, 20, 3)
    few = limits_of(both[:samples], least_of(20), 0.01)
    many = limits_of(both, least_of(20), 0.01)
    assert (False, None) == (few.firm, few.rate_bound)
    assert many.firm
    assert many.rate_bound is not None
    assert 0.01 <= many.rate_bound < 0.02
    over = np.mean(np.any(both[samples:] > few.values, axis=1))
    assert over <= 0.02
    if samples >= FEW:
        assert few.score > many.score


def test_limits_never_fall_below_what_counts_as_none() -> None:
    """Errors of zero: the limit lies over one unit in the last place, and not at zero."""
    found = limits_of(np.zeros((20, 3)), np.full(3, 1e-7), 0.01)
    assert (found.values > 1e-7).all()
    assert (found.values < 1e-5).all()


def test_missing_numbers_are_left_out() -> None:
    """A stage that some samples lack has limits from the others."""
    both = errors_of(50, 4, 5)
    both[10:, 2] = np.nan
    found = limits_of(both, least_of(4), 0.05)
    assert np.isfinite(found.values).all()


def test_scores_are_those_of_each_sample_left_out() -> None:
    """The short way gives what leaving each sample out gives."""
    logs = np.log(errors_of(12, 6, 7))
    logs[3, 2] = np.nan
    logs[:11, 5] = np.nan
    for index, score in enumerate(_farthest(logs)):
        others = np.delete(logs, index, axis=0)
        usable = np.isfinite(logs[index]) & np.any(np.isfinite(others), axis=0)
        there = np.any(np.isfinite(others), axis=0)
        center, spread = (np.full(6, np.nan) for _ in range(2))
        center[there], spread[there] = _usual(others[:, there])
        assert score == pytest.approx(np.max(((logs[index] - center) / spread)[usable]))


@pytest.mark.parametrize(("rate", "samples"), [(0.01, 99), (0.05, 19), (0.1, 9)])
def test_samples_needed(rate: float, samples: int) -> None:
    """From so many on, the largest score is a limit for the rate; one fewer is not enough."""
    assert samples == samples_needed(rate)
    assert limits_of(errors_of(samples, 3, 1), least_of(3), rate).firm
    assert not limits_of(errors_of(samples - 1, 3, 1), least_of(3), rate).firm


def test_binomial_sums() -> None:
    """Against sums that anyone can do."""
    assert binomial_at_most(0, 10, 0.1) == pytest.approx(0.9**10)
    assert binomial_at_most(1, 10, 0.1) == pytest.approx(0.9**10 + 10 * 0.1 * 0.9**9)
    assert binomial_at_most(10, 10, 0.3) == pytest.approx(1.0)
    assert (1.0, 0.0, 1.0) == (binomial_at_most(0, 5, 0.0), binomial_at_most(0, 5, 1.0), binomial_at_most(5, 5, 1.0))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_is_a_probability(rate: float) -> None:
    """Neither never nor always."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        limits_of(np.ones((3, 1)), least_of(1), rate)


@pytest.mark.parametrize("errors", [np.empty((0, 2)), np.full((3, 2), np.nan)])
def test_nothing_to_go_by(errors: Array) -> None:
    """No sample, or a column without a number."""
    with pytest.raises(ValueError, match="no limit"):
        limits_of(errors, least_of(2), 0.01)
