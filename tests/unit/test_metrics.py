"""``metrics``: two arrays to numbers, at every dtype, size and corner, and the judgement of them."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bisect_tool import metrics
from bisect_tool.metrics import (
    CHUNK,
    THREADED_ABOVE,
    difference_norms,
    judge,
    kind_of,
    kind_of_name,
    measure,
    relative_difference,
)
from bisect_tool.records import Tolerance
from bisect_tool.tolerances import make_tolerance

Array = NDArray[Any]

DEFAULT = make_tolerance(None, None, None)
EVERYTHING = make_tolerance(math.inf, None, None)
LOOSE = [DEFAULT, EVERYTHING, make_tolerance(1e30, None, None), make_tolerance(None, 1e30, 1e30)]

FLOATS: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
INTEGERS: dict[str, Any] = {"int8": np.int8, "uint8": np.uint8, "int64": np.int64, "bool": np.bool_}
DTYPES = {**FLOATS, **INTEGERS, "complex64": np.complex64}
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (3, 5), (1, 1, 2), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,)]

quick = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def make(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Random numbers of ordinary magnitude."""
    random = np.random.default_rng(seed)
    if dtype == "bool":
        return np.asarray(random.random(shape) < 0.5)
    if dtype in INTEGERS:
        low = 0 if dtype == "uint8" else -100
        return np.asarray(random.integers(low, 101, shape)).astype(DTYPES[dtype])
    numbers = random.standard_normal(shape)
    if dtype == "complex64":
        return np.asarray(numbers + 1j * random.standard_normal(shape)).astype(np.complex64)
    return np.asarray(numbers).astype(DTYPES[dtype])


def naive(expected: Array, actual: Array) -> dict[str, float]:
    """The definitions written down once more, in float64 and without chunks."""
    if expected.dtype.kind == "c":
        expected, actual = (np.stack([x.real, x.imag], -1) for x in (expected, actual))
    a, b = (x.astype(np.float64).reshape(-1) for x in (expected, actual))
    d = np.abs(b - a)
    norms = [float(np.sqrt(np.sum(x * x))) for x in (d, a, b)]
    with np.errstate(all="ignore"):
        relative = np.where(d == 0, 0.0, d / np.abs(a))
    if norms[1] and norms[2]:
        cosine = float(np.sum(a * b)) / (norms[1] * norms[2])
    else:
        cosine = 1.0 if norms[1] == norms[2] else 0.0
    return {
        "max_abs": float(d.max(initial=0.0)),
        "rel_l2": norms[0] / norms[1] if norms[1] else (math.inf if norms[0] else 0.0),
        "max_rel": float(relative.max(initial=0.0)),
        "cosine": cosine,
        "differing": int(np.count_nonzero(d)),
        "absolute": float(d.sum()),
    }


def assert_like_naive(expected: Array, actual: Array) -> None:
    """Every number of ``measure`` is the naive one, up to the rounding of float32 sums."""
    found, wanted = measure(expected, actual), naive(expected, actual)
    assert found.problem is None
    assert found.count == expected.size
    for name in ("max_abs", "rel_l2", "max_rel"):
        assert getattr(found, name) == pytest.approx(wanted[name], rel=2e-5), name
    assert found.cosine == pytest.approx(wanted["cosine"], abs=2e-6)
    assert found.differing == wanted["differing"]
    count = expected.size
    parts = count * (2 if expected.dtype.kind == "c" else 1)
    assert found.mean_abs == pytest.approx(wanted["absolute"] / parts if parts else 0.0, rel=2e-5)
    if 0 < found.rel_l2 < math.inf:
        assert found.sqnr_db == pytest.approx(-20 * math.log10(wanted["rel_l2"]), abs=0.01)


# -- against the definitions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_definitions(dtype: str, shape: tuple[int, ...]) -> None:
    """All dtypes, at sizes around nothing, one and a whole chunk."""
    assert_like_naive(make(dtype, shape, 1), make(dtype, shape, 2))


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "complex64"])
def test_agrees_with_the_definitions_when_threads_share_the_work(dtype: str) -> None:
    """More elements than one thread gets, and not a whole number of chunks."""
    shape = (THREADED_ABOVE + CHUNK + 13,)
    assert_like_naive(make(dtype, shape, 1), make(dtype, shape, 2))


@quick
@given(
    dtype=st.sampled_from(sorted(FLOATS)),
    shape=st.sampled_from([(), (0,), (1,), (5,), (2, 3), (33, 7)]),
    seed=st.integers(0, 9),
    noise=st.sampled_from([0.0, 1e-3, 1.0]),
    exponent=st.integers(-4, 4),
)
def test_agrees_with_the_definitions_at_all_distances(
    dtype: str, shape: tuple[int, ...], seed: int, noise: float, exponent: int
) -> None:
    """Equal, close and unrelated tensors of any ordinary scale."""
    first = np.asarray(make(dtype, shape, seed).astype(np.float64) * 10.0**exponent)
    second = first * (1 + noise * make("float64", shape, seed + 100))
    assert_like_naive(first.astype(DTYPES[dtype]), second.astype(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "complex64"])
def test_reads_arrays_of_any_memory_layout(dtype: str) -> None:
    """Transposed, strided and reversed inputs give what their contiguous copies give."""
    first, second = make(dtype, (8, 30, 3), 1), make(dtype, (8, 30, 3), 2)
    for view in (lambda x: x.transpose(2, 0, 1), lambda x: x[::2, ::-1], lambda x: x[:, 3:17]):
        expected, actual = view(first), view(second)
        assert measure(expected, actual) == measure(expected.copy(), actual.copy())


def test_leaves_its_inputs_as_they_are() -> None:
    """Measuring writes into neither side, also where the work dtype is the array's own."""
    first, second = make("float32", (100,), 1), make("float32", (100,), 2)
    first.setflags(write=False)
    second.setflags(write=False)
    assert measure(first, second).differing == 100


# -- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_does_not_differ_from_itself(dtype: str, shape: tuple[int, ...]) -> None:
    """Equal sides: every error is zero, cosine 1, SQNR infinite, and any tolerance is kept, if there is an element."""
    array = make(dtype, shape)
    found = measure(array, array.copy())
    assert (found.max_abs, found.mean_abs, found.rel_l2, found.max_rel, found.p99_abs) == (0, 0, 0, 0, 0)
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.sqnr_db == math.inf
    assert found.differing == found.nonfinite_mismatch == 0
    assert not found.max_ulp
    for tolerance in (DEFAULT, make_tolerance(0.0, None, None), make_tolerance(None, 0.0, 0.0)):
        assert judge(array, array.copy(), tolerance)[1] == ("pass" if array.size else "not compared")


@quick
@given(
    size=st.integers(1, 50),
    place=st.integers(0, 49),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([*sorted(FLOATS), "complex64"]),
    swap=st.booleans(),
    tolerance=st.sampled_from(LOOSE),
)
def test_a_nonfinite_value_on_one_side_never_passes(
    size: int, place: int, bad: float, dtype: str, swap: bool, tolerance: Tolerance
) -> None:
    """NaN or infinity against a number fails under any tolerance, and is the worst place."""
    place %= size
    clean = make(dtype, (size,))
    dirty = clean.copy()
    dirty[place] = bad
    expected, actual = (dirty, clean) if swap else (clean, dirty)
    found, judgement = judge(expected, actual, tolerance)
    assert judgement == "fail"
    assert found.nonfinite_mismatch == 1
    assert found.worst_index == (place,)
    assert found.max_abs == found.rel_l2 == found.max_rel == math.inf
    assert found.sqnr_db == -math.inf


@pytest.mark.parametrize("pair", [(math.nan, math.inf), (math.inf, -math.inf), (-math.inf, math.nan)])
def test_different_nonfinite_values_never_pass(pair: tuple[float, float]) -> None:
    """NaN against infinity and plus against minus infinity are mismatches."""
    expected, actual = np.array([1.0, pair[0]], np.float32), np.array([1.0, pair[1]], np.float32)
    for tolerance in LOOSE:
        assert judge(expected, actual, tolerance)[1] == "fail"
    assert measure(expected, actual).nonfinite_mismatch == 1


@quick
@given(dtype=st.sampled_from([*sorted(FLOATS), "complex64"]), seed=st.integers(0, 99))
def test_nonfinite_values_in_the_same_places_pass(dtype: str, seed: int) -> None:
    """Equal NaN and infinities count as equal, whatever they hold besides."""
    array = make(dtype, (40,), seed)
    array[seed % 40], array[(seed + 1) % 40], array[(seed + 7) % 40] = np.nan, np.inf, -np.inf
    found, judgement = judge(array, array.copy(), DEFAULT)
    assert judgement == "pass"
    assert found.nonfinite_expected == found.nonfinite_actual == 3
    assert found.nonfinite_mismatch == found.differing == found.rel_l2 == 0


def test_values_beside_shared_nan_are_still_measured() -> None:
    """A NaN on both sides hides no error elsewhere."""
    expected, actual = np.array([math.nan, 3.0, 4.0]), np.array([math.nan, 3.0, 4.5])
    found, judgement = judge(expected, actual, DEFAULT)
    assert judgement == "fail"
    assert (found.max_abs, found.worst_index, found.rel_l2) == (0.5, (2,), pytest.approx(0.1))


def test_a_nan_in_a_late_chunk_is_found() -> None:
    """Also where it is the only one among many chunks shared between threads."""
    expected = np.ones(THREADED_ABOVE + 5, np.float32)
    actual = expected.copy()
    actual[THREADED_ABOVE + 3] = math.nan
    found, judgement = judge(expected, actual, EVERYTHING)
    assert (judgement, found.worst_index, found.nonfinite_actual) == ("fail", (THREADED_ABOVE + 3,), 1)


@quick
@given(dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 99), size=st.integers(0, 60))
def test_absolute_differences_are_symmetric(dtype: str, seed: int, size: int) -> None:
    """Exchanging the sides changes no absolute difference, no cosine, and no count of differing elements."""
    first, second = make(dtype, (size,), seed), make(dtype, (size,), seed + 1)
    there, back = measure(first, second), measure(second, first)
    for name in ("max_abs", "mean_abs", "p99_abs", "differing", "worst_index", "max_ulp"):
        assert getattr(there, name) == getattr(back, name), name
    assert there.cosine == pytest.approx(back.cosine, abs=1e-12)


@quick
@given(dtype=st.sampled_from(sorted(FLOATS)), seed=st.integers(0, 99), exponent=st.integers(-6, 6))
def test_scaling_both_sides_scales_absolute_errors_alone(dtype: str, seed: int, exponent: int) -> None:
    """Powers of two: relative numbers stay, absolute ones scale."""
    factor = 2.0**exponent
    first, second = make(dtype, (50,), seed), make(dtype, (50,), seed + 1)
    small = np.abs(np.concatenate([first, second]).astype(np.float64)).min()
    assume(small > 1e-3)  # no float16 leaves its normal range
    plain = measure(first, second)
    scaled = measure((first * DTYPES[dtype](factor)), (second * DTYPES[dtype](factor)))
    assert scaled.max_abs == plain.max_abs * factor
    assert scaled.rel_l2 == pytest.approx(plain.rel_l2, rel=1e-6)
    assert scaled.max_rel == pytest.approx(plain.max_rel, rel=1e-6)
    assert scaled.cosine == pytest.approx(plain.cosine, abs=1e-6)


# -- rules ------------------------------------------------------------------------------------------------------------


def test_a_zero_reference_is_infinitely_far_from_anything_else() -> None:
    """rel_l2 and max_rel are infinite, the cosine is 0, and it fails."""
    found, judgement = judge(np.zeros(4, np.float32), np.array([0, 0, 1e-20, 0], np.float32), DEFAULT)
    assert (found.rel_l2, found.max_rel, found.cosine) == (math.inf, math.inf, 0.0)
    assert (judgement, found.worst_index) == ("fail", (2,))


def test_two_zero_tensors_are_equal() -> None:
    """Zero against zero, also minus zero: no error."""
    found, judgement = judge(np.zeros(4, np.float32), -np.zeros(4, np.float32), DEFAULT)
    assert (found.rel_l2, found.max_rel, found.cosine, found.max_ulp) == (0, 0, 1, 0)
    assert judgement == "pass"


def test_max_rel_is_infinite_where_one_zero_meets_a_number() -> None:
    """A single zero in the reference is enough; rel_l2 stays finite."""
    found = measure(np.array([0.0, 1.0], np.float32), np.array([1e-6, 1.0], np.float32))
    assert found.max_rel == math.inf
    assert found.rel_l2 == pytest.approx(1e-6)


def test_max_rel_passes_over_equal_zeros() -> None:
    """0 against 0 is no relative error."""
    assert measure(np.array([0.0, 2.0]), np.array([0.0, 3.0])).max_rel == 0.5


@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((1,), ()), ((2, 3), (3, 2)), ((4,), (1,)), ((0,), (0, 3))])
def test_another_shape_is_a_problem(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Shapes that would broadcast, or hold as many elements, are not compared, and fail."""
    for tolerance in LOOSE:
        found, judgement = judge(np.ones(shapes[0]), np.ones(shapes[1]), tolerance)
        assert judgement == "fail"
        assert found.problem is not None and "shape" in found.problem
        assert math.isnan(found.max_abs) and math.isnan(found.rel_l2)


def test_another_kind_of_dtype_is_a_problem() -> None:
    """Floats against integers and complex numbers are not compared; other widths of one kind are."""
    array = np.ones(3, np.float32)
    for other in (np.int32, np.bool_, np.complex64):
        problem = measure(array, array.astype(other)).problem
        assert problem is not None and "dtype" in problem
    assert measure(array, array.astype(np.float16)).rel_l2 == 0
    assert measure(np.ones(3, np.bool_), np.ones(3, np.int64)).differing == 0


def test_a_missing_value_is_a_problem_and_fails() -> None:
    """Nothing from the runtime never passes."""
    for tolerance in LOOSE:
        found, judgement = judge(np.ones(3), None, tolerance)
        assert judgement == "fail" and found.problem is not None and "missing" in found.problem


def test_strings_are_a_problem() -> None:
    """What is no number is not compared."""
    assert measure(np.array(["a"]), np.array(["a"])).problem is not None


def test_unsigned_integers_do_not_wrap_around() -> None:
    """uint8 3 against 5 differs by 2 in both directions."""
    three, five = np.array([3], np.uint8), np.array([5], np.uint8)
    assert measure(three, five).max_abs == measure(five, three).max_abs == 2


def test_the_ends_of_int64_do_not_wrap_around() -> None:
    """The smallest against the greatest int64 is 2**64 apart."""
    ends = np.iinfo(np.int64)
    assert measure(np.array([ends.min]), np.array([ends.max])).max_abs == pytest.approx(2.0**64)


@pytest.mark.parametrize("pair", [(2**53, 2**53 + 1), (2**62, 2**62 + 1), (-(2**60), -(2**60) - 3)])
def test_integers_beyond_float64_must_be_equal(pair: tuple[int, int]) -> None:
    """int64 that float64 cannot tell apart still differ, and fail."""
    found, judgement = judge(np.array([0, pair[0]]), np.array([0, pair[1]]), DEFAULT)
    assert (judgement, found.differing) == ("fail", 1)


def test_integers_must_be_equal_unless_the_user_says_otherwise() -> None:
    """One of a thousand is enough to fail; max_abs and atol/rtol allow it."""
    expected = np.full(1000, 100, np.int64)
    actual = expected.copy()
    actual[7] += 1
    assert judge(expected, actual, DEFAULT)[1] == "fail"
    assert judge(expected, actual, make_tolerance(1.0, None, None))[1] == "pass"
    assert judge(expected, actual, make_tolerance(None, 0.0, 0.01))[1] == "pass"


@pytest.mark.parametrize("scale", [1e-30, 1e-40, 1e30])
def test_squares_that_leave_float32_are_still_measured(scale: float) -> None:
    """Tensors of 1e-30 and 1e30 give the relative error that ordinary ones give."""
    expected = (np.array([3.0, 4.0]) * scale).astype(np.float32)
    actual = (np.array([3.0, 5.0]) * scale).astype(np.float32)
    found, judgement = judge(expected, actual, DEFAULT)
    assert found.rel_l2 == pytest.approx(0.2, rel=1e-3)
    assert found.max_rel == pytest.approx(0.25, rel=1e-3)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(0.2), abs=0.01)
    assert judgement == "fail"


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_that_leave_float64_never_pass(scale: float) -> None:
    """A float64 tensor whose squares are 0 or infinite is as wrong as any other that is twice its reference."""
    found, judgement = judge(np.array([1.0, 1.0]) * scale, np.array([2.0, 2.0]) * scale, DEFAULT)
    assert judgement == "fail"
    assert found.rel_l2 == pytest.approx(1.0)


def test_a_tiny_difference_beside_great_values_counts_as_differing() -> None:
    """Whatever the norms make of it."""
    expected = np.array([1e20, 1e-30], np.float32)
    actual = np.array([1e20, 2e-30], np.float32)
    found = measure(expected, actual)
    assert found.differing == 1
    assert found.max_rel == pytest.approx(1.0)
    assert found.worst_index == (1,)


# -- judgement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "verdict"), [(0.49, "fail"), (0.5, "pass"), (1.0, "pass")])
def test_max_abs_alone_decides(limit: float, verdict: str) -> None:
    """The limit itself is allowed; nothing relative matters."""
    expected, actual = np.array([1e-9, 1.0]), np.array([1e-9, 1.5])
    assert judge(expected, actual, make_tolerance(limit, None, None))[1] == verdict


@quick
@given(
    seed=st.integers(0, 999),
    atol=st.sampled_from([0.0, 1e-8, 1e-3, 0.3]),
    rtol=st.sampled_from([0.0, 1e-5, 1e-2, 2.0]),
    noise=st.sampled_from([1e-6, 1e-3, 0.5]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    bad=st.sampled_from([None, math.nan, math.inf]),
)
@example(seed=0, atol=0.0, rtol=1e-2, noise=1e-3, dtype="float32", bad=math.inf)
def test_atol_and_rtol_mean_what_numpy_means(
    seed: int, atol: float, rtol: float, noise: float, dtype: str, bad: float | None
) -> None:
    """The same verdict as ``numpy.allclose``, the reference being what rtol is relative to."""
    expected = make(dtype, (30,), seed)
    actual = (expected * (1 + noise * make("float64", (30,), seed + 1))).astype(dtype)
    if bad is not None:
        expected[3] = actual[3] = bad
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    with np.errstate(all="ignore"):
        allowed = atol + rtol * np.abs(a)
        border = np.abs(np.abs(b - a) - allowed) <= 1e-5 * (allowed + np.abs(b - a))
    assume(not np.any(border & np.isfinite(a) & (a != b)))
    wanted = "pass" if np.allclose(b, a, rtol=rtol, atol=atol, equal_nan=True) else "fail"
    assert judge(expected, actual, make_tolerance(None, atol, rtol))[1] == wanted


def test_rtol_is_relative_to_the_reference() -> None:
    """1 against 2 is off by 1 of 1; 2 against 1 by 1 of 2."""
    tolerance = make_tolerance(None, 0.0, 0.6)
    one, two = np.array([1.0]), np.array([2.0])
    assert judge(one, two, tolerance)[1] == "fail"
    assert judge(two, one, tolerance)[1] == "pass"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
def test_the_default_limit_goes_by_dtype(dtype: str) -> None:
    """Just under the limit passes, well over it fails: 1e-4 in float32, 2e-2 in half precision."""
    wide = dtype not in ("float16", "bfloat16")
    array = np.ones(10, DTYPES[dtype])
    for factor, verdict in ((0.5, "pass"), (2.0, "fail")):
        other = (array * np.float64(1 + factor * (1e-4 if wide else 2e-2))).astype(DTYPES[dtype])
        assert judge(array, other, DEFAULT)[1] == verdict


def test_the_reference_names_the_limit() -> None:
    """A half precision actual side does not loosen a float32 reference."""
    expected = np.full(10, 1.0004, np.float32)
    assert judge(expected, expected.astype(np.float16), DEFAULT)[1] == "fail"
    assert judge(expected.astype(np.float16), expected, DEFAULT)[1] == "pass"


# -- the worst place, and units in the last place ---------------------------------------------------------------------


@quick
@given(place=st.integers(0, 3 * CHUNK), value=st.sampled_from([-9.0, 7.5]), dtype=st.sampled_from(sorted(FLOATS)))
def test_the_worst_index_is_where_the_greatest_difference_is(place: int, value: float, dtype: str) -> None:
    """In any chunk, with both values there."""
    expected = np.ones((3 * CHUNK + 1,), DTYPES[dtype])
    actual = expected.copy()
    actual[place // 2] += DTYPES[dtype](0.5)
    actual[place] = value
    found = measure(expected, actual)
    assert found.worst_index == (place,)
    assert (found.worst_expected, found.worst_actual) == (1.0, value)


def test_the_worst_index_has_the_tensor_s_rank() -> None:
    """Also for a scalar, for a complex tensor, and for one that is not contiguous."""
    assert measure(np.float32(1).reshape(()), np.float32(2).reshape(())).worst_index == ()
    expected = np.zeros((4, 5), np.complex64)
    actual = expected.copy()
    actual[2, 3] = 1j
    assert measure(expected, actual).worst_index == (2, 3)
    assert measure(expected.T, actual.T).worst_index == (3, 2)


def test_the_worst_index_of_a_mismatch_is_the_first_nan() -> None:
    """Before any finite difference, however great."""
    expected = np.zeros((2, CHUNK), np.float32)
    actual = expected.copy()
    actual[0, 0], actual[1, 5], actual[1, 9] = 1e6, math.nan, math.nan
    found = measure(expected, actual)
    assert found.worst_index == (1, 5)
    assert found.worst_expected == 0.0
    assert found.worst_actual is not None and math.isnan(found.worst_actual)


def test_an_empty_tensor_has_no_worst_place() -> None:
    """No element: nothing is invented."""
    found = measure(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert (found.count, found.worst_index, found.worst_expected, found.mean_abs) == (0, None, None, 0.0)


@pytest.mark.parametrize("start", [0.0, 1.0, -1.0, 255.0, 1e-4, -3e-5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_neighbouring_floats_are_one_unit_apart(dtype: str, start: float) -> None:
    """In every dtype, on both sides of zero."""
    number = np.array([start], DTYPES[dtype])
    assert measure(number, np.nextafter(number, np.array([1e4], DTYPES[dtype]))).max_ulp == 1.0
    assert measure(number, np.nextafter(number, np.array([-1e4], DTYPES[dtype]))).max_ulp == 1.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_units_are_counted_across_zero(dtype: str) -> None:
    """The smallest negative and the smallest positive number are two apart."""
    zero = np.zeros(1, DTYPES[dtype])
    up = np.nextafter(zero, np.ones(1, DTYPES[dtype]))
    assert measure(-up, up).max_ulp == 2.0
    assert measure(zero, -zero).max_ulp == 0.0


def test_integers_have_no_unit_in_the_last_place() -> None:
    """``None``, not zero."""
    assert measure(np.array([1]), np.array([2])).max_ulp is None


def test_p99_leaves_out_the_few_worst() -> None:
    """One outlier among a thousand elements does not show in it."""
    expected = np.zeros(1000)
    actual = np.full(1000, 0.25)
    actual[500] = 100.0
    found = measure(expected, actual)
    assert (found.p99_abs, found.max_abs) == (0.25, 100.0)


# -- small parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DTYPES, "float8_e4m3fn", "float8_e5m2", "int32", "complex128"])
def test_the_kind_of_a_dtype_goes_by_its_name_too(name: str) -> None:
    """Both ways of asking agree."""
    dtype = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    assert kind_of(dtype) == kind_of_name(dtype.name)


def test_difference_norms_are_those_of_the_definition() -> None:
    """``||first - second||`` and ``||reference||`` over several chunks, of different dtypes and layouts."""
    shape = (2, CHUNK + 3)
    reference, first, second = (make("float32", shape, seed) for seed in range(3))
    found = difference_norms(reference, first.astype(np.float16), np.asfortranarray(second))
    wide = first.astype(np.float16).astype(np.float64) - second
    assert found == pytest.approx((np.linalg.norm(wide), np.linalg.norm(reference.astype(np.float64))), rel=1e-6)


def test_relative_difference_is_rel_l2() -> None:
    """A short cut to one number."""
    assert relative_difference(np.array([3.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(0.2)


def test_threads_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass and a shared one give the same metrics."""
    expected, actual = make("float32", (THREADED_ABOVE + 1,), 1), make("float32", (THREADED_ABOVE + 1,), 2)
    shared = measure(expected, actual)
    monkeypatch.setattr(metrics, "THREADED_ABOVE", 1 << 40)
    alone = measure(expected, actual)
    assert shared.worst_index == alone.worst_index
    assert shared.rel_l2 == pytest.approx(alone.rel_l2, rel=1e-12)
    assert shared.mean_abs == pytest.approx(alone.mean_abs, rel=1e-12)
    assert shared.differing == alone.differing
