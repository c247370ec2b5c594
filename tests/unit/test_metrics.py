"""``metrics``: two arrays to numbers, at every dtype, size and corner, and the judgement of them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
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
    SAMPLE,
    THREADED_ABOVE,
    difference_norms,
    hidden_groups,
    integer_distances,
    judge,
    kind_of,
    kind_of_name,
    largest_difference,
    measure,
    measure_with_norm,
    relative_difference,
    relative_error,
    relative_errors,
)
from bisect_tool.records import Tolerance
from bisect_tool.tolerances import make_tolerance

Array = NDArray[Any]

DEFAULT = make_tolerance(None, None, None)
EVERYTHING = Tolerance("user", max_abs=math.inf)
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


@quick
@given(a=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), data=st.data(), sign=st.booleans())
def test_integers_beyond_float64_lie_as_far_apart_as_they_do(a: list[int], data: st.DataObject, sign: bool) -> None:
    """Whatever float64 makes of them, and where one side has no sign."""
    other = st.integers(-(2**63), 2**63 - 1) if sign else st.integers(0, 2**64 - 1)
    b = [data.draw(st.sampled_from([x, x + 1]).filter(lambda y: y < 2**63) if sign else other) for x in a]
    apart = [abs(x - y) for x, y in zip(a, b, strict=True)]
    first, second = np.array(a, np.int64), np.array(b, np.int64 if sign else np.uint64)
    assert [float(each) for each in apart] == pytest.approx(integer_distances(first, second).tolist(), rel=1e-15)
    if sign:
        found = measure(first, second)
        assert (found.max_abs, found.differing) == (max(apart), sum(each > 0 for each in apart))
        assert found.mean_abs == pytest.approx(sum(apart) / len(a))
        worst = a[apart.index(max(apart))]
        assert found.worst_expected == (worst if abs(worst) >= 2**53 else float(worst))
        for allowed, passes in ((0.5, max(apart) == 0), (1.0, True)):
            assert (judge(first, second, make_tolerance(None, allowed, 0.0))[1] == "pass") == passes
            assert (judge(first, second, make_tolerance(allowed, None, None))[1] == "pass") == passes


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


@pytest.mark.parametrize("row", [16, 64, 96, 1000])
def test_no_column_escapes_the_sample(row: int) -> None:
    """Its runs lie at other places of each row, whatever the rows' length: two columns in a hundred show in each."""
    random = np.random.default_rng(0)
    expected = random.standard_normal((400_000 // row, row))
    error = np.abs(random.standard_normal(expected.shape))
    whole = np.quantile(error, 0.99)
    assert whole == pytest.approx(measure(expected, expected + error).p99_abs, rel=0.05)
    for column in {0, row // 3, row - 1}:
        actual = expected.copy()
        actual[:, [column, column - 1] if row < 200 else slice(column // 2, column // 2 + row // 40)] += 1.0
        assert measure(expected, actual).p99_abs == pytest.approx(1.0)


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


# -- the fast ways and the slow ones ----------------------------------------------------------------------------------

FLOAT8 = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
NARROW: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    **{name: getattr(ml_dtypes, name) for name in FLOAT8},
}


def same(first: Any, second: Any) -> bool:
    """Equal metrics, NaN equal to NaN."""
    return str(asdict(first)) == str(asdict(second))


@pytest.mark.parametrize("size", [3, SAMPLE - 1, SAMPLE + 5, CHUNK + 3])
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_floats_are_read_exactly(dtype: str, size: int) -> None:
    """Looked up in a table or converted: what their float32 copies give, and their own units in the last place."""
    expected = make("float32", (size,), 1).astype(NARROW[dtype])
    actual = (expected.astype(np.float32) * 1.3).astype(NARROW[dtype])
    found, wide = measure(expected, actual), measure(expected.astype(np.float32), actual.astype(np.float32))
    assert found.max_ulp is not None and 0 < found.max_ulp < 1 << 10
    for name in ("max_abs", "mean_abs", "rel_l2", "max_rel", "cosine", "p99_abs", "differing", "worst_index"):
        assert getattr(found, name) == getattr(wide, name), name


@pytest.mark.parametrize("dtype", NARROW)
def test_every_narrow_float_is_itself(dtype: str) -> None:
    """All bit patterns, NaN and infinities among them, in long tensors and in short ones."""
    width = np.dtype(NARROW[dtype]).itemsize
    patterns = np.arange(1 << 8 * width, dtype=f"u{width}").view(NARROW[dtype])
    long = np.tile(patterns, max(1, SAMPLE // patterns.size))
    for array in (patterns, long, patterns[: patterns.size // 3]):
        bad = int(np.count_nonzero(~np.isfinite(array.astype(np.float32))))
        found = measure(array, array.copy())
        assert (found.nonfinite_expected, found.nonfinite_mismatch, found.max_abs, found.max_ulp) == (bad, 0, 0, 0)
        with np.errstate(all="ignore"):
            assert_finite_part_is_naive(array, np.roll(array, 1))


def assert_finite_part_is_naive(expected: Array, actual: Array) -> None:
    """The numbers over elements that are finite on both sides; the rest counts as equal or as a mismatch."""
    found = measure(expected, actual)
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    mismatch = ~both & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    assert found.nonfinite_expected == np.count_nonzero(~np.isfinite(a))
    assert found.nonfinite_actual == np.count_nonzero(~np.isfinite(b))
    assert found.nonfinite_mismatch == np.count_nonzero(mismatch)
    wanted = naive(np.where(both, a, 0.0), np.where(both, b, 0.0))
    assert found.differing == wanted["differing"] + found.nonfinite_mismatch
    assert found.cosine == pytest.approx(wanted["cosine"], abs=2e-6)
    if found.nonfinite_mismatch:
        assert found.worst_index == (int(mismatch.argmax()),)
        assert found.max_abs == found.rel_l2 == math.inf
    else:
        for name in ("max_abs", "rel_l2", "max_rel"):
            # A ratio that leaves float32 may be infinite.
            allowed = [wanted[name], math.inf] if wanted[name] > 3e38 else [wanted[name]]
            assert any(getattr(found, name) == pytest.approx(number, rel=2e-5) for number in allowed), name
        assert found.mean_abs == pytest.approx(wanted["absolute"] / a.size, rel=2e-5)


ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-42, -1e-30, 1.0]


@quick
@given(
    dtype=st.sampled_from(["float32", "float64", "bfloat16", "float16"]),
    size=st.sampled_from([1, 2, 40, 700, SAMPLE + 9]),
    odd=st.lists(st.sampled_from(ODD), min_size=1, max_size=4),
    share=st.sampled_from([0.01, 0.5, 1.0]),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_odd_values_leave_the_others_as_they_are(
    dtype: str, size: int, odd: list[float], share: float, shared: bool, seed: int
) -> None:
    """NaN, infinities, zeros, values whose squares overflow or underflow: in the same places, or in others."""
    random = np.random.default_rng(seed)
    expected = make("float64", (size,), seed)
    actual = expected * (1 + 1e-3 * make("float64", (size,), seed + 1))
    values = random.choice(odd, size)
    expected = np.where(places := random.random(size) < share, values, expected)
    actual = np.where(places if shared else random.random(size) < share, values, actual)
    with np.errstate(all="ignore"):
        assert_finite_part_is_naive(expected.astype(DTYPES[dtype]), actual.astype(DTYPES[dtype]))


@pytest.mark.parametrize("value", [math.nan, -math.inf, float(np.finfo(np.float32).min), 1e-30, 0.0])
def test_one_odd_chunk_among_ordinary_ones(value: float) -> None:
    """As a mask in attention: every chunk goes its own way, and the sums are joined."""
    expected, actual = make("float32", (3 * CHUNK,), 1), make("float32", (3 * CHUNK,), 2)
    expected[CHUNK : 2 * CHUNK] = value
    actual[CHUNK : 2 * CHUNK] = value
    assert_finite_part_is_naive(expected, actual)
    # Whatever the size of the masked value, nothing is lost of the others.
    assert measure(expected, actual).mean_abs == pytest.approx(2 / 3 * measure(*_pair()).mean_abs, rel=1e-2)


def _pair() -> tuple[Array, Array]:
    return make("float32", (CHUNK,), 1), make("float32", (CHUNK,), 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_chunks_beside_different_ones(dtype: str) -> None:
    """Equal, zero and tiny chunks take short cuts that no number shows."""
    random = make(dtype, (CHUNK,), 1)
    tiny = random * DTYPES[dtype](1e-25 if dtype == "float32" else 1e-180)
    expected = np.concatenate([random, np.zeros_like(random), tiny, random])
    actual = np.concatenate([random, -np.zeros_like(random), tiny, random * DTYPES[dtype](1.001)])
    assert_like_naive(expected, actual)
    assert_like_naive(expected[: 3 * CHUNK], actual[: 3 * CHUNK])
    assert measure(tiny, tiny.copy()).rel_l2 == 0.0
    assert relative_difference(tiny, tiny * DTYPES[dtype](1.5)) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.57, 1.13, 7.0])
@pytest.mark.parametrize("off", [1e-7, 1e-4, 1e-2, 0.3])
def test_the_cosine_of_near_vectors_is_that_of_the_definition(value: float, off: float) -> None:
    """Rounding in the sums of float32 squares, great where all elements are equal, does not reach it."""
    expected = np.full(CHUNK + 7, value, np.float32)
    actual = (expected * (1 + off * make("float64", expected.shape, 3))).astype(np.float32)
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    wanted = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    # Beyond, the sums are those of float32.
    assert measure(expected, actual).cosine == pytest.approx(wanted, abs=1e-8 if off < 0.3 else 1e-5)
    assert measure(expected, actual).cosine == measure(actual, expected).cosine


@quick
@given(
    size=st.integers(1, 3000),
    seed=st.integers(0, 999),
    levels=st.sampled_from([0, 1, 2, 30]),
    zeros=st.sampled_from([0.0, 0.5, 0.985, 0.995, 1.0]),
    order=st.sampled_from(["as it is", "ascending", "descending", "periodic"]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_percentile_is_that_of_the_sorted_numbers(
    size: int, seed: int, levels: int, zeros: float, order: str, dtype: Any
) -> None:
    """Exactly one of them, however many are equal and wherever the great ones lie."""
    random = np.random.default_rng(seed)
    numbers = np.abs(random.standard_normal(size))
    if levels:
        numbers = np.round(numbers * levels)
    numbers[random.random(size) < zeros] = 0
    if order == "ascending":
        numbers.sort()
    elif order == "descending":
        numbers = np.sort(numbers)[::-1].copy()
    elif order == "periodic":
        # The greatest where the pivot is taken from, or nowhere there.
        numbers[:: max(1, size // 256)] *= random.choice([0.0, 100.0])
    numbers = numbers.astype(dtype)
    wanted = float(np.sort(numbers)[int(0.99 * (size - 1))])
    assert metrics._percentile_99(numbers.copy()) == wanted


def units_apart(first: Any, second: Any, width: int) -> int:
    """The definition once more, in Python's integers."""
    places = []
    for number in (first, second):
        bits = int.from_bytes(number.tobytes(), "little")
        magnitude = bits & ((1 << (8 * width - 1)) - 1)
        places.append(-magnitude if bits >> (8 * width - 1) else magnitude)
    return abs(places[0] - places[1])


@quick
@given(
    dtype=st.sampled_from(["float32", "float64", *NARROW]),
    size=st.sampled_from([1, 5, 300]),
    seed=st.integers(0, 999),
    noise=st.sampled_from([0.0, 1e-6, 1e-2, 3.0]),
    scale=st.sampled_from([1.0, 1e-6, 1e30]),
    odd=st.sampled_from([None, *ODD]),
)
def test_units_in_the_last_place_are_counted_exactly(
    dtype: str, size: int, seed: int, noise: float, scale: float, odd: float | None
) -> None:
    """All dtypes, equal and opposite signs, from the smallest to the greatest number; NaN and infinities left out."""
    kind = np.dtype(NARROW.get(dtype, dtype))
    random = np.random.default_rng(seed)
    wide = random.standard_normal(size) * scale
    with np.errstate(all="ignore"):
        expected, actual = wide.astype(kind), (wide * (1 + noise * random.standard_normal(size))).astype(kind)
        if odd is not None:
            expected[0] = kind.type(odd)
    pairs = [p for p in zip(expected, actual, strict=True) if np.isfinite(p[0]) and np.isfinite(p[1])]
    wanted = max((units_apart(a, b, kind.itemsize) for a, b in pairs), default=0)
    # At the ends of float64 the number of units has more digits than a float64.
    assert measure(expected, actual).max_ulp == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_ends_of_a_float_dtype_do_not_wrap_around(dtype: str) -> None:
    """The least against the greatest: twice the bits of the greatest."""
    ends = np.finfo(dtype)
    low, high = np.array([ends.min], dtype), np.array([ends.max], dtype)
    assert measure(low, high).max_ulp == pytest.approx(2.0 * int(high.view(f"u{high.itemsize}")[0]))
    assert not math.isnan(measure(low, high).p99_abs)


def test_the_greatest_units_are_those_of_the_worst_place_at_least() -> None:
    """The worst element counts where the sample does not hold it; a sample in two dtypes counts in the first."""
    expected = np.ones(3 * SAMPLE, np.float32)
    actual = expected.copy()
    actual[4] = 1.5
    assert measure(expected, actual).max_ulp == 1 << 22
    assert measure(expected.astype(np.float16), actual).max_ulp == 1 << 9
    assert measure(expected, actual).p99_abs == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("cores", [1, 2, 3, 8])
def test_no_number_depends_on_how_many_threads_there_are(
    cores: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the last digit; equal greatest differences and several NaN included."""
    expected, actual = make(dtype, (9 * CHUNK + 5,), 1), make(dtype, (9 * CHUNK + 5,), 2)
    expected[::CHUNK], actual[::CHUNK] = 0.0, 50.0
    dirty = actual.copy()
    dirty[[4 * CHUNK, 6 * CHUNK + 1, 8 * CHUNK + 2]] = math.nan
    tolerance = make_tolerance(None, 0.5, 0.5)
    monkeypatch.setattr(metrics, "THREADED_ABOVE", 0)
    monkeypatch.setattr(metrics, "SHARED_CHUNK", CHUNK)
    monkeypatch.setattr(metrics.os, "cpu_count", lambda: 1)
    alone = [judge(expected, other, tolerance)[0] for other in (actual, dirty)]
    norms = difference_norms(expected, actual, actual[::-1])
    monkeypatch.setattr(metrics, "_pool", None)
    monkeypatch.setattr(metrics.os, "cpu_count", lambda: cores)
    for _ in range(3):
        for other, wanted in zip((actual, dirty), alone, strict=True):
            assert same(judge(expected, other, tolerance)[0], wanted)
        assert difference_norms(expected, actual, actual[::-1]) == norms
    assert alone[0].worst_index == (0,)
    assert alone[1].worst_index == (4 * CHUNK,)


def test_an_error_in_a_thread_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for an empty result."""

    def broken(*_: Any) -> bool:
        raise MemoryError

    monkeypatch.setattr(metrics, "_chunk", broken)
    array = make("float32", (THREADED_ABOVE,))
    with pytest.raises(MemoryError):
        measure(array, array)


def test_scratch_arrays_carry_nothing_over() -> None:
    """Neither from call to call, whatever came before, nor between threads that measure at the same time."""
    random = np.random.default_rng(0)
    cases = []
    for dtype in ("float32", "float64", "float16", "int64", "complex64", "float32", "bool"):
        for size in (CHUNK + 11, 900, 1):
            first, second = make(dtype, (size,), int(random.integers(99))), make(dtype, (size,), 1)
            cases.append((first, second, measure(first, second)))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(measure, *zip(*(case[:2] for case in cases), strict=True))
            assert all(same(now, case[2]) for now, case in zip(found, cases, strict=True))


def test_measuring_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """Overflow and 0/0 are accounted for, in every thread."""
    ends = np.finfo(np.float32)
    array = np.tile(np.array([ends.max, ends.min, 0.0, math.nan, math.inf, 1e-42], np.float32), THREADED_ABOVE // 6 + 1)
    measure(array, np.roll(array, 1))
    measure(np.array([1e300, math.nan, 1e-300]), np.array([-1e300, -math.inf, 1e300]))
    measure(np.array([1 + 1j], np.complex64), np.array([1e300 + 1j]))
    measure(np.array([1.0], np.float16), np.array([1e30], np.float32))
    difference_norms(array, array, np.roll(array, 1))
    assert not recwarn.list


def test_integers_are_counted_exactly_wherever_the_great_ones_are() -> None:
    """A few beyond 2**53, which differ by less than float64 shows, among many small ones."""
    expected = np.arange(2 * CHUNK) % 100
    actual = expected.copy()
    actual[5] += 1
    assert (measure(expected, actual).differing, measure(expected, actual).worst_index) == (1, (5,))
    expected[-1], actual[-1] = 2**60, 2**60 + 1
    assert measure(expected, actual).differing == 2
    actual[5] -= 1
    found = measure(expected, actual)
    assert (found.differing, found.worst_index, found.max_abs) == (1, (2 * CHUNK - 1,), 1.0)
    assert (measure(-expected, -actual).differing, found.p99_abs) == (1, 0.0)


@quick
@given(shape=st.lists(st.integers(1, 7), max_size=5), seed=st.integers(0, 99))
def test_the_worst_index_is_numpy_s(shape: list[int], seed: int) -> None:
    """Any rank."""
    expected, actual = make("float64", tuple(shape), seed), make("float64", tuple(shape), seed + 1)
    worst = np.unravel_index(np.abs(actual - expected).argmax(), expected.shape)
    assert measure(expected, actual).worst_index == tuple(int(i) for i in worst)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_reference_s_norm_comes_with_the_metrics(dtype: str) -> None:
    """What ``difference_norms`` finds by itself; unknown where the reference is not finite, or there is no comparison."""
    reference, first, second = (make(dtype, (CHUNK + 3,), seed) for seed in range(3))
    metrics_, norm = measure_with_norm(reference, first)
    assert metrics_ == measure(reference, first)
    assert difference_norms(reference, first, second) == pytest.approx(
        difference_norms(reference, first, second, norm), rel=1e-6
    )
    assert math.isnan(measure_with_norm(reference, None)[1])
    reference[3] = math.inf
    assert math.isnan(measure_with_norm(reference, first)[1])


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [-1e4, -65504.0, -1e9, float(np.finfo(np.float32).min)])
def test_a_masks_filling_hides_nothing(fill: float) -> None:
    """The rest is 10 % off; over everything that is nothing."""
    expected = np.array([fill, 1, 2, fill, 3], np.float32)
    actual = np.array([fill, 1.1, 2.2, fill, 3.3], np.float32)
    assert relative_difference(expected, actual) < 1e-4
    assert largest_difference(expected, actual) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("shape", [(64, 40), (2, 40, 6, 6), (3, 20, 40)])
@pytest.mark.parametrize("scales", [(1e4,), (1e6, 1e3)])
def test_huge_channels_hide_nothing(shape: tuple[int, ...], scales: tuple[float, ...]) -> None:
    """One of the quiet channels is 1 % off, and so is each of the louder ones, one after the other."""
    axis = shape.index(40)
    expected = make("float32", shape, 3)
    channels = np.moveaxis(expected, axis, 0)
    for number, scale in enumerate(scales):
        channels[number] *= scale
    for wrong in range(len(scales) + 1):
        actual = expected.copy()
        np.moveaxis(actual, axis, 0)[wrong] *= 1.01
        assert largest_difference(expected, actual) > 1e-3


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ([1, 2, 3], [1, 2, 3.3]),  # nothing huge
        ([1e6, 2e6, 3e6], [1e6, 2e6, 3.3e6]),  # everything huge
        ([-1e9, 1, 2], [-1.1e9, 1, 2.2]),  # the huge number differs itself
        ([0, 1e-40, 1], [0, 0, 1]),  # tiny numbers beside usual ones
        ([1e-9] * 20 + [1] * 20, [0] * 20 + [1] * 20),  # an activation's tail
        ([], []),
    ],
)
def test_without_anything_hidden_everything_counts(expected: list[float], actual: list[float]) -> None:
    first, second = np.array(expected, np.float32), np.array(actual, np.float32)
    assert list(hidden_groups(first, second, float(np.linalg.norm(first)))) == []
    assert largest_difference(first, second) == relative_difference(first, second)


def test_errors_against_many_references_are_those_against_each() -> None:
    """Also where numbers are not finite, or all zero."""
    random = np.random.default_rng(0)
    references = random.standard_normal((8, 100)).astype(np.float32)
    other = references[0].copy()
    references[1] = 0.0
    references[2, 3], references[3, 4], references[4, 5] = np.nan, np.inf, -np.inf
    for odd in (None, np.nan, np.inf, 0.0):
        if odd is not None:
            other[[3, 4]] = odd
        expected = [relative_error(row, other) for row in references]
        assert expected == pytest.approx(relative_errors(references, other).tolist(), rel=1e-12)
    zeros = np.zeros((2, 4))
    assert [0.0, 0.0] == relative_errors(zeros, zeros[0]).tolist()
