"""Limits from known-good runs: how large an error of each stage is still usual, and how firmly that is known.

The rate of false alarms belongs to a whole run: one stage over its limit is an alarm. Errors of stages go together (a
sample that is hard for one is hard for the next), so that neither a limit for each stage alone nor a division of the rate
by their number gives the rate that was asked for. Therefore each sample gets one score, the farthest that any of its
errors lies from what is usual for it, and all limits lie at one score.

- The score of a sample is taken against what the *other* samples say is usual, as the score of a new run will be.
- Where there are enough samples, the limit is the order statistic that a new score passes with the stated probability if
  it is exchangeable with theirs (split conformal prediction: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random
  World", 2005; leave-one-out: Barber et al., "Predictive inference with the jackknife+", 2021).
- Where there are too few, the tail is not known: a Gumbel law is fitted by probability-weighted moments (Hosking, Wallis,
  Wood, 1985) and the upper end of a parametric bootstrap is taken, never less than the largest score that was seen.
- The spread of one stage over few samples is mostly chance: it is drawn towards that of all stages (moderated variance:
  Smyth, 2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PRIOR_RUNS = 4.0
"""What the spread of all columns counts for beside the spread of one, in samples."""

LEAST_SPREAD = 0.1
"""Least standard deviation of an error's logarithm: errors that never moved will move by a tenth all the same."""

FEW = 5
"""Samples under which nothing is concluded from how they spread."""

USUAL_SPREAD = math.log(2.0)
"""Standard deviation of an error's logarithm that is assumed over few samples, where theirs is not larger."""

CONFIDENCE = 0.9
"""Of the bounds on what few samples can't tell."""

_BOOTSTRAPS = 400
_EULER = 0.5772156649015329


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of all columns, and what they rest on.

    Attributes:
        values: one limit for each column, in the column's own unit.
        false_alarm: stated probability that a run without a fault is over any of them.
        samples: how many samples they rest on.
        score: at which all limits lie: standard deviations of an error's logarithm over its mean.
        firm: whether the samples are enough for the rate; else the tail is extrapolated and the limits are wider.
        rate_bound: upper bound (confidence 0.9) on the true rate of false alarms, if later runs are like the samples;
            ``None`` where the tail is extrapolated.
    """

    values: Array
    false_alarm: float
    samples: int
    score: float
    firm: bool
    rate_bound: float | None


def samples_needed(false_alarm: float) -> int:
    """The fewest samples whose largest score is passed with no more than this probability."""
    return math.ceil(1.0 / false_alarm) - 1


def limits_of(errors: Array, least: Array, false_alarm: float, seed: int = 0) -> Limits:
    """Limits that a run without a fault passes, all at once, with probability ``1 - false_alarm``.

    Args:
        errors: of samples (rows) in columns (a stage's metric); not negative, NaN where a sample has none. Each column
            has at least one number.
        least: for each column, what counts as no error at all: smaller ones are taken for it.
        false_alarm: for a whole run, between 0 and 1.
        seed: of the bootstrap.

    Raises:
        ValueError: no samples, a column without a number, or a rate that is no probability.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"a rate of false alarms lies between 0 and 1, not at {false_alarm}")
    count, columns = errors.shape
    if count == 0 or not np.all(np.any(np.isfinite(errors), axis=0)):
        raise ValueError("a column without a single error has no limit")
    if columns == 0:
        return Limits(np.empty(0), false_alarm, count, 0.0, count >= samples_needed(false_alarm), None)
    logs = np.log(np.maximum(errors, least))
    center, spread = _usual(logs)
    if count < FEW:
        spread = np.maximum(spread, USUAL_SPREAD * np.sqrt(1.0 + 1.0 / count))
    score, firm = _score(logs, false_alarm, seed)
    bound = _rate_bound(count, false_alarm) if firm else None
    return Limits(np.exp(center + score * spread), false_alarm, count, score, firm, bound)


def _usual(logs: Array) -> tuple[Array, Array]:
    """Mean and moderated standard deviation of each column."""
    seen = np.isfinite(logs)
    count = seen.sum(axis=0)
    filled = np.where(seen, logs, 0.0)
    center = filled.sum(axis=0) / count
    squares = np.where(seen, (filled - center) ** 2, 0.0).sum(axis=0)
    return center, _spread(count, squares)


def _spread(count: NDArray[np.int64], squares: Array) -> Array:
    """Moderated standard deviation of columns, of a new number from their means.

    Args:
        count: numbers in each column.
        squares: sum of their squared distances from the column's mean.
    """
    freedom = np.maximum(count - 1, 0)
    known = freedom > 0
    if known.any():
        common = float(np.median(squares[known] / freedom[known]))
    else:
        common = USUAL_SPREAD**2
    variance = (PRIOR_RUNS * common + squares) / (PRIOR_RUNS + freedom)
    # A column's mean is uncertain too, and a new error is that much farther from it.
    return np.maximum(np.sqrt(variance), LEAST_SPREAD) * np.sqrt(1.0 + 1.0 / np.maximum(count, 1))


def _score(logs: Array, false_alarm: float, seed: int) -> tuple[float, bool]:
    """The score at which all limits lie, and whether the samples carry it."""
    count, columns = logs.shape
    if count < FEW:
        return NormalDist().inv_cdf((1.0 - false_alarm) ** (1.0 / columns)), False
    scores = np.sort(_farthest(logs))
    place = math.ceil((count + 1) * (1.0 - false_alarm))
    if place <= count:
        return float(scores[place - 1]), True
    return max(float(scores[-1]), _extrapolated(scores, false_alarm, seed)), False


def _farthest(logs: Array) -> Array:
    """Each sample's score against what the others say is usual: what :func:`_usual` gives with the sample left out."""
    seen = np.isfinite(logs)
    count = seen.sum(axis=0)
    filled = np.where(seen, logs, 0.0)
    center = filled.sum(axis=0) / count
    apart = np.where(seen, filled - center, 0.0)
    squares = np.square(apart).sum(axis=0)
    scores = np.zeros(len(logs))
    for index, row in enumerate(apart):
        left = count - seen[index]
        known = left > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            # Without one number the mean moves away from it, and the squares lose more than its own.
            moved = np.where(known, -row / left, 0.0)
            rest = np.where(known, squares - np.square(row) * count / left, 0.0)
        spread = _spread(left, np.maximum(rest, 0.0))
        usable = seen[index] & known
        if usable.any():
            scores[index] = np.max((row - moved)[usable] / spread[usable])
    return scores


def _extrapolated(scores: Array, false_alarm: float, seed: int) -> float:
    """Upper bound on the score's quantile, by a Gumbel law and a parametric bootstrap."""
    place, scale = _gumbel(scores)
    draws = np.random.Generator(np.random.PCG64(seed)).gumbel(place, scale, (_BOOTSTRAPS, len(scores)))
    tail = -math.log(-math.log1p(-false_alarm))
    quantiles = [at + width * tail for at, width in map(_gumbel, np.sort(draws, axis=1))]
    # The fit to the samples errs as those to the draws do, in the other direction: the basic bootstrap's upper end.
    fitted = place + scale * tail
    return max(fitted, 2.0 * fitted - float(np.quantile(quantiles, 1.0 - CONFIDENCE)))


def _gumbel(scores: Array) -> tuple[float, float]:
    """Location and scale by probability-weighted moments; ``scores`` ascend."""
    count = len(scores)
    mean = float(np.mean(scores))
    weighted = float(np.mean(scores * np.arange(count))) / (count - 1)
    scale = max((2.0 * weighted - mean) / math.log(2.0), 1e-3)
    return mean - _EULER * scale, scale


def _rate_bound(count: int, false_alarm: float) -> float:
    """Clopper-Pearson: rates over it would have put fewer scores over the limit, with the confidence.

    The limit is an order statistic, so that the true rate over it has a beta distribution whatever the scores' law.
    """
    over = count - math.ceil((count + 1) * (1.0 - false_alarm))
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if binomial_at_most(over, count, middle) > 1.0 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def binomial_at_most(hits: int, trials: int, probability: float) -> float:
    """Probability of at most ``hits`` in ``trials``."""
    if probability <= 0.0:
        return 1.0
    if probability >= 1.0:
        return 1.0 if hits >= trials else 0.0
    terms = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(probability)
        + (trials - k) * math.log1p(-probability)
        for k in range(hits + 1)
    ]
    top = max(terms)
    return min(1.0, math.exp(top) * sum(math.exp(term - top) for term in terms))
