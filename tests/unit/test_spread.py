"""Where in a tensor the difference lies."""

from __future__ import annotations

import numpy as np
import pytest

from bisect_tool import spread
from bisect_tool.metrics import measure
from bisect_tool.records import Spread, Tolerance
from bisect_tool.reporters.wording import worst_element_lines
from bisect_tool.spread import spread_of
from bisect_tool.tolerances import make_tolerance

EXPECTED = np.ones((2, 8, 5, 7), np.float32)


def found(actual: np.ndarray, tolerance: Tolerance | None = None) -> Spread | None:  # type: ignore[type-arg]
    return spread_of(EXPECTED, actual, measure(EXPECTED, actual), tolerance or make_tolerance(None, None, None))


@pytest.mark.parametrize("block", [1 << 18, 64, 1])
def test_one_channel_is_named(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding elsewhere neither counts nor hides it; nor does the size of the blocks."""
    monkeypatch.setattr(spread, "_BLOCK", block)
    actual = EXPECTED + np.float32(1e-6)
    actual[:, 5] += 0.1
    place = found(actual)
    assert place is not None
    assert (70, 1, 5) == (place.beyond, place.axis, place.index)
    text = worst_element_lines(measure(EXPECTED, actual), place)[0]
    assert text.startswith(
        "70 of 560 elements differ by more than 1.0e-04 (12.5 %), 99.9 % of the squared error in index 5"
    )


def test_an_error_everywhere_is_in_no_place() -> None:
    """Every element is off by the same."""
    place = found(EXPECTED + np.float32(0.1))
    assert place is not None
    assert (560, None, None, None) == (place.beyond, place.axis, place.index, place.share)


def test_the_users_tolerance_counts() -> None:
    """Elements beyond it are counted, whatever the default is."""
    actual = EXPECTED.copy()
    actual[0, 0, 0, :3] += np.array([0.1, 0.3, 0.5], np.float32)
    for tolerance in (make_tolerance(0.2, None, None), make_tolerance(None, 0.1, 0.1)):
        place = found(actual, tolerance)
        assert place is not None
        assert 2 == place.beyond


def test_a_scalar_has_no_axes() -> None:
    """It counts as one element."""
    one, two = np.array(1.0), np.array(2.0)
    place = spread_of(one, two, measure(one, two), make_tolerance(None, None, None))
    assert place == Spread(1e-4, 1, None, None, None)


def test_what_cannot_be_compared_lies_nowhere() -> None:
    """Other shapes, NaN, nothing at all."""
    assert found(EXPECTED[:1]) is None
    assert found(np.full_like(EXPECTED, np.nan)) is None


def test_without_a_place_all_that_differ_are_counted() -> None:
    """No limit is named then."""
    assert worst_element_lines(measure(EXPECTED, EXPECTED + 1))[0].startswith("560 of 560 elements differ (100 %); ")


def test_values_that_differ_read_differently() -> None:
    """Under a tolerance of zero the last digit may be all there is."""
    one = np.array([1.6998841], np.float32)
    two = np.nextafter(one, np.float32(2))
    assert ("expected 1.6998841", "actual 1.6998842") == tuple(worst_element_lines(measure(one, two))[1].split(", "))
    assert "expected 1, actual 2" == worst_element_lines(measure(one * 0 + 1, one * 0 + 2))[1]
