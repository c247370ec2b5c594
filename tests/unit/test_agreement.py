"""Do both sides of an output choose the same classes?"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bisect_tool import agreement as module
from bisect_tool.agreement import agreement, usual_axis


def scores(*rows: list[float]) -> Any:
    return np.array(rows, dtype=np.float32)


def test_equal_outputs_agree_everywhere() -> None:
    """An output agrees with itself, ties and all."""
    x = scores([0, 0, 0, 1], [2, 2, 1, 0])
    found = agreement(x, x, k=2)
    assert found is not None
    assert (1, 4, 2, 1.0, 2, 1.0, 0.0) == (
        found.axis, found.classes, found.positions, found.argmax, found.k, found.top_k, found.widest_lead
    )  # fmt: skip


def test_lost_class_is_counted_with_its_lead() -> None:
    """A class that no longer wins counts, and how far it was ahead is told; the best few overlap by their share."""
    found = agreement(scores([5, 1, 0], [1, 3, 2]), scores([5, 1, 0], [1, 2, 3]), k=2)
    assert found is not None
    assert (0.5, 1.0, 1.0) == (found.argmax, found.top_k, found.widest_lead)
    found = agreement(scores([5, 1, 0]), scores([5, 0, 1]), k=2)
    assert found is not None and (1.0, 0.5) == (found.argmax, found.top_k)


def test_axis_is_the_usual_one() -> None:
    """Channels of images and volumes are the classes; else the last axis; one class is no choice."""
    assert [None, 0, 1, 2, 1, 1, None, None] == [
        usual_axis(shape)
        for shape in [(), (5,), (2, 5), (2, 7, 5), (2, 5, 8, 8), (2, 5, 4, 8, 8), (2, 1), (2, 1, 8, 8)]
    ]
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 5))
    swapped = x[:, [1, 0, 2]]
    found = agreement(x, swapped)
    assert found is not None and (1, 3, 20) == (found.axis, found.classes, found.positions)
    assert found.argmax == np.mean(x.argmax(1) == swapped.argmax(1))
    assert found.top_k is None, "three classes are all among the best five"
    assert (found2 := agreement(x, swapped, axis=-1)) is not None and (3, 12) == (found2.axis, found2.positions)


def test_whole_numbers_are_classes() -> None:
    """A model that returns labels agrees where they are equal."""
    found = agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert found is not None and (None, 4, 0.75, None) == (found.axis, found.positions, found.argmax, found.top_k)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (np.ones((2, 3)), np.ones((3, 2))),
        (np.ones((0, 3)), np.ones((0, 3))),
        (np.ones((2, 1)), np.ones((2, 1))),
        (np.ones((2, 3), dtype=complex), np.ones((2, 3), dtype=complex)),
    ],
)
def test_nothing_to_compare(expected: Any, actual: Any) -> None:
    """Other shapes, no elements, one class and complex numbers have no agreement: that is not 100 %."""
    assert agreement(expected, actual) is None


def test_nan_on_one_side_never_agrees() -> None:
    """A NaN that only one side has is another choice, even beside the winning class; one on both sides is no score."""
    expected, actual = scores([3, 1, 0], [np.nan, 1, 0]), scores([3, np.nan, 0], [np.nan, 1, 0])
    found = agreement(expected, actual)
    assert found is not None and 0.5 == found.argmax
    infinite = scores([np.inf, np.inf, 0])
    found = agreement(infinite, infinite[:, [0, 2, 1]])
    assert found is not None and (1.0, 0.0) == (found.argmax, found.widest_lead)


def test_narrow_dtypes() -> None:
    """Half precision and bfloat16 are compared like any other."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = scores([1, 2, 3]).astype(dtype)
        found = agreement(x, x[:, ::-1])
        assert found is not None and (0.0, 2.0) == (found.argmax, found.widest_lead)


@given(st.integers(1, 7), st.integers(2, 6), st.integers(1, 6), st.integers(0, 99))
def test_chunks_do_not_matter(positions: int, classes: int, k: int, seed: int) -> None:
    """The numbers are those of one pass over everything, and shares lie between 0 and 1."""
    draws = np.random.default_rng(seed)
    one, other = draws.integers(0, 4, (2, positions, classes)).astype(np.float32)
    whole = agreement(one, other, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", classes)
        pieces = agreement(one, other, k)
    assert whole is not None and pieces is not None
    assert whole.argmax == pieces.argmax == np.mean(one.argmax(1) == other.argmax(1))
    assert whole.widest_lead == pieces.widest_lead
    assert (whole.top_k is None) == (k >= classes)
    if whole.top_k is not None and pieces.top_k is not None:
        assert whole.top_k == pytest.approx(pieces.top_k) and 0 <= whole.top_k <= 1
