"""Numbers that places point at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bisect_tool.backends.pointing import Pointing, numbers_at

NUMBERS = np.array([[3.0, 1.0, 3.0], [0.0, 5.0, 2.0]], np.float32)
ORDER = Pointing(0, -1, kept=True, distinct=True, ordered=True, first=False)
CHOICE = Pointing(0, 1, kept=False, distinct=False, ordered=True, first=True)


def test_places_along_an_axis() -> None:
    assert numbers_at(NUMBERS, ORDER, np.array([[2, 0], [1, 2]])).tolist() == [[3, 3], [5, 2]]
    assert numbers_at(NUMBERS, CHOICE, np.array([0, 1], np.int32)).tolist() == [3, 5]


def test_places_through_everything() -> None:
    whole = Pointing(0, None, kept=False, distinct=False, ordered=True, first=True)
    assert numbers_at(NUMBERS, whole, np.array(4)).tolist() == 5
    assert numbers_at(np.array(7), CHOICE, np.array(0)).tolist() == 7


@pytest.mark.parametrize(
    ("pointing", "places"),
    [
        (ORDER, [[0, 0, 1], [0, 1, 2]]),
        (CHOICE, [3, -1]),
        (CHOICE, [0, 1, 2]),
        (CHOICE, [[0], [1]]),
    ],
    ids=["twice", "outside", "another length", "another rank"],
)
def test_what_no_such_operation_returns_is_wrong(pointing: Pointing, places: list[object]) -> None:
    assert np.isnan(numbers_at(NUMBERS, pointing, np.array(places))).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_which_of_equal_numbers_comes_first_makes_no_difference(numbers: list[int], random: object) -> None:
    source = np.array(numbers)
    first = np.argsort(source, kind="stable")
    shuffled = np.array(sorted(range(source.size), key=lambda i: (numbers[i], random.random())))  # type: ignore[attr-defined]
    assert (numbers_at(source, ORDER, first) == numbers_at(source, ORDER, shuffled)).all()


@given(st.permutations(range(6)))
def test_of_no_certain_order_only_what_is_chosen_counts(chosen: list[int]) -> None:
    source = np.arange(6.0) ** 2
    loose = Pointing(0, 0, kept=True, distinct=True, ordered=False, first=False)
    picked = np.array(chosen[:3])
    assert numbers_at(source, loose, picked).tolist() == sorted(source[picked].tolist())
