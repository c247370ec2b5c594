"""``noise``: what a floor is, and which side lies beyond it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bisect_tool.noise import BEYOND, CHEAP_BOUND, assess, epsilon, is_settled, side_of
from bisect_tool.records import Noise

EPS = float(np.finfo(np.float32).eps)


def reference(size: int = 512) -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal(size)


def off(relative: float, size: int = 512, seed: int = 1) -> NDArray[np.float64]:
    """The reference with an error of a given relative L2."""
    exact = reference(size)
    error = np.random.default_rng(seed).standard_normal(size)
    return exact + error * relative * np.linalg.norm(exact) / np.linalg.norm(error)


@pytest.mark.parametrize(("expected", "actual", "side"), [(1e-7, 1e-4, "actual"), (1e-4, 1e-7, "expected")])
def test_the_side_that_is_off_is_named(expected: float, actual: float, side: str) -> None:
    noise = assess(reference(), off(expected), off(actual), "float32", off(1e-7, seed=2))
    assert side_of(noise) == side
    assert noise.ratio == pytest.approx(1e-4 / EPS, rel=0.01)


def test_a_degraded_run_never_sets_its_own_floor() -> None:
    """PyTorch in TF32: its own error is no yardstick, the strict computation's is."""
    tf32 = off(5e-4)
    noise = assess(reference(), tf32, off(1e-7, seed=3), "float32", off(1e-7, seed=2))
    assert side_of(noise) == "expected"
    assert noise.actual is not None
    assert noise.actual < BEYOND


def test_both_sides_within_the_floor_are_rounding() -> None:
    """A stage that loses half of its digits loses them on both sides."""
    noise = assess(reference(), off(3e-4), off(5e-4, seed=4), "float32", off(3e-4, seed=2))
    assert side_of(noise) is None
    assert noise.floor == pytest.approx(3e-4, rel=0.01)


def test_few_elements_that_came_out_right_by_luck_have_a_floor() -> None:
    one = np.array([1.0])
    noise = assess(one, one, one * (1 + 2 * EPS), "float32", one)
    assert noise.floor == EPS
    assert side_of(noise) is None


def test_a_reference_of_zeros_has_an_absolute_floor() -> None:
    """``x - x``: right on one side, 1e-8 on the other; made-up rounding says whether that is noise."""
    zeros, some = np.zeros(4), np.full(4, 1e-8)
    assert side_of(assess(zeros, zeros, some, "float32", zeros)) == "actual"
    assert side_of(assess(zeros, zeros, some, "float32", zeros, [some * 0.5])) is None
    assert assess(zeros, zeros, zeros, "float32", zeros).ratio == 0


def test_draws_are_asked_for_only_where_the_floor_does_not_clear() -> None:
    def never() -> Iterator[NDArray[Any]]:
        raise AssertionError
        yield

    assert side_of(assess(reference(), off(1e-7), off(2e-7, seed=2), "float32", None, never())) is None


@pytest.mark.parametrize(("bad", "side"), [("expected", "expected"), ("actual", "actual")])
def test_a_nan_that_float64_lacks_is_infinitely_off(bad: str, side: str) -> None:
    """float16 that overflows in PyTorch: ONNX Runtime, which does not, is right."""
    sides = {"expected": reference(), "actual": reference()}
    sides[bad] = sides[bad].copy()
    sides[bad][3] = math.inf
    noise = assess(reference(), sides["expected"], sides["actual"], "float16", reference())
    assert side_of(noise) == side
    assert noise.ratio == math.inf


def test_a_nan_that_all_have_says_nothing() -> None:
    same = reference()
    same[7] = math.nan
    assert assess(same, same, same, "float32", same).ratio == 0


def test_another_shape_is_infinitely_off() -> None:
    noise = assess(reference(), reference(), reference()[:-1], "float32", reference())
    assert side_of(noise) == "actual"


def test_a_draw_that_overflows_clears_nobody() -> None:
    broken = reference()
    broken[5] = math.nan
    assert side_of(assess(reference(), off(1e-7), off(1e-3), "float32", None, [broken, off(1e-7, seed=5)])) == "actual"


def test_complex_numbers_count_part_by_part() -> None:
    exact = reference() + 1j * reference()
    noise = assess(exact, exact, exact * (1 + 1e-3j), "complex64", exact)
    assert noise.actual == pytest.approx(1e-3 / EPS, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64"])
def test_the_cheap_bound_goes_by_the_dtype(dtype: str) -> None:
    assert is_settled(epsilon(dtype), dtype)
    assert not is_settled(20 * epsilon(dtype), dtype)


def test_integers_are_settled_only_if_they_are_equal() -> None:
    assert is_settled(0.0, "int64")
    assert not is_settled(1e-9, "int64")


def test_no_fault_that_counts_is_under_the_cheap_bound() -> None:
    """Faults count from 2e-5 on; the bound leaves a factor of ten."""
    assert CHEAP_BOUND * EPS < 2e-6


def test_epsilons_are_those_of_the_dtypes() -> None:
    assert epsilon("float32") == EPS
    assert epsilon("bfloat16") == float(ml_dtypes.finfo("bfloat16").eps)
    assert epsilon("int32") == epsilon("bool") == 0


@given(
    st.floats(0, 1e-2),
    st.floats(0, 1e-2),
    st.floats(0, 1e-2),
    st.floats(2**-40, 2**40),
)
def test_scaling_everything_changes_nothing(expected: float, actual: float, strict: float, scale: float) -> None:
    arrays = [reference(64), off(expected, 64), off(actual, 64, 2), off(strict, 64, 3)]
    plain, scaled = (
        assess(r * s, e * s, a * s, "float32", f * s)
        for s in (1.0, 2.0 ** round(math.log2(scale)))
        for r, e, a, f in [arrays]
    )
    assert plain.floor is not None and scaled.floor is not None
    assert scaled.floor == pytest.approx(plain.floor, rel=1e-9)
    assert scaled.ratio == pytest.approx(plain.ratio, rel=1e-9)


@pytest.mark.parametrize("exponent", [-1000, -600, 600, 1000])
def test_numbers_whose_squares_leave_float64_have_a_floor(exponent: int) -> None:
    """A float64 model with 1e200 in it, or with float64's lowest number in a mask."""
    arrays = [reference(), off(1e-7), off(1e-4), off(1e-7, seed=2)]
    plain, scaled = (
        assess(r * s, e * s, a * s, "float64", f * s) for s in (1.0, 2.0**exponent) for r, e, a, f in [arrays]
    )
    assert side_of(scaled) == "actual"
    assert (scaled.floor, scaled.expected, scaled.actual) == pytest.approx((plain.floor, plain.expected, plain.actual))


def test_an_infinity_in_the_place_of_a_large_number_is_off() -> None:
    right = reference() * 1e200
    wrong = right.copy()
    wrong[3] = np.inf
    assert side_of(assess(right, right, wrong, "float64", right)) == "actual"


def test_unknown_says_nothing_about_sides() -> None:
    assert side_of(Noise(unknown="no float64 kernel")) is None


def test_whole_numbers_are_counted_where_rounding_turns_some() -> None:
    """An order with one tie in ten: rounding exchanges two, and no more."""
    order = np.tile(np.arange(10), (10, 1))
    tied = order.copy()
    tied[::2, [4, 5]] = tied[::2, [5, 4]]
    every = order.copy()
    every[:, [4, 5]] = every[:, [5, 4]]
    assert side_of(assess(order, order, every, "int64", order, [tied])) is None
    assert side_of(assess(order, order, order[:, ::-1], "int64", order, [tied])) == "actual"
    assert side_of(assess(order, order[:, ::-1], order, "int64", order, [tied])) == "expected"


def test_few_whole_numbers_that_rounding_turned_are_chance() -> None:
    choice = np.arange(1000)
    drawn, other = choice.copy(), choice.copy()
    drawn[7] += 1
    other[[1, 2, 3, 4]] += 1
    assert side_of(assess(choice, choice, other, "int64", choice, [drawn])) is None


# -- steps ------------------------------------------------------------------------------------------------------------


def stepped(jump: float = 1.0, at: slice = slice(0, 64)) -> NDArray[np.float64]:
    """The reference with some elements that a step carried off."""
    moved = reference().copy()
    moved[at] += jump
    return moved


def test_a_step_excuses_what_depends_on_it_and_nothing_else() -> None:
    floor = {"strict": off(1e-8, seed=2), "draws": [stepped()], "leaning": [stepped(at=slice(0, 80))]}
    exact = reference()
    assert side_of(assess(exact, exact, stepped(at=slice(30, 70)), "float32", **floor)) is None
    everywhere = exact + 0.2
    assert side_of(assess(exact, exact, everywhere, "float32", floor["strict"], floor["draws"])) is None, "by the norm"
    assert side_of(assess(exact, exact, everywhere, "float32", **floor)) == "actual"
    assert side_of(assess(exact, everywhere, exact, "float32", **floor)) == "expected"


def test_some_jumps_are_never_seen() -> None:
    """One in eight of those that were; rounding beside them is rounding."""
    exact = reference()
    side = stepped(at=slice(0, 86)) * (1 + 4 * EPS)
    assert side_of(assess(exact, exact, side, "float32", off(1e-8), [stepped()], [stepped(at=slice(0, 80))])) is None


@pytest.mark.parametrize("seen", [slice(0, 4), slice(0, 0)])
def test_where_few_jumps_were_seen_one_is_chance(seen: slice) -> None:
    """Beside products that are summed in the stage itself rounding is more than the operand is moved by."""
    exact, size = reference(4096), 4096

    def jumped(at: slice) -> NDArray[np.float64]:
        moved = exact.copy()
        moved[at] += 1.0
        return moved

    side, draws = jumped(slice(2, 6)), [jumped(slice(0, 3))]
    assert side_of(assess(exact, exact, side, "float32", off(1e-8, size), draws, [jumped(seen)])) is None
    # One row in ten is no chance.
    side = jumped(slice(100, 500)) * 1.0
    floor = [jumped(slice(600, 1100))]
    assert side_of(assess(exact, exact, side, "float32", off(1e-8, size), floor, [jumped(seen)])) == "actual"


def test_where_everything_is_disturbed_the_norm_decides() -> None:
    """Half of all digits are lost: no element is steady, and none is held against more than that."""
    exact = reference()
    draws, leaning = [off(1e-3, seed=3)], [off(1e-3, seed=4), off(1e-3, seed=5)]
    assert side_of(assess(exact, exact, off(2e-3, seed=6), "float32", off(1e-8), draws, leaning)) is None


def test_leaning_is_asked_for_only_where_it_could_blame() -> None:
    def never() -> Iterator[NDArray[Any]]:
        raise AssertionError("asked")
        yield

    assess(reference(), off(1e-7), off(2e-7, seed=2), "float32", None, (), never())
    assess(reference(), off(1e-7), off(1e-2, seed=2), "float32", off(1e-7), [off(1e-7, seed=3)], never())


@pytest.mark.parametrize("shape", [(511,), (2, 256)])
def test_a_step_that_changes_how_many_numbers_there_are(shape: tuple[int, ...]) -> None:
    exact = reference()
    moved = [stepped(), np.zeros(shape)]
    assert side_of(assess(exact, exact, stepped(), "float32", off(1e-8), [stepped()], moved)) is None
