"""``signatures``: fingerprints by which equal tensors find each other, and different ones do not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.layouts import in_order
from bisect_tool.signatures import (
    PERMUTATIONS,
    SAMPLE,
    Signature,
    distance,
    permuted_signatures,
    sampled_norm,
    signature_of,
    split_signatures,
)

Array = NDArray[Any]

SIZES = [1, 5, SAMPLE - 1, SAMPLE, SAMPLE + 1, 2 * SAMPLE - 1, 2 * SAMPLE, 3 * SAMPLE + 7, 100_003]


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def of(array: Array) -> Signature:
    return signature_of(array, "float")


@pytest.mark.parametrize("size", SIZES)
def test_equal_tensors_match(size: int) -> None:
    """No distance at all between a tensor and its copy, whatever its size."""
    array = noise(size)
    assert distance(of(array), of(array.copy())) == 0


@pytest.mark.parametrize("shape", [(6, 5, 14), (30, 14), (5, 84), (1, 420, 1), (420,)])
def test_reshaped_tensors_match(shape: tuple[int, ...]) -> None:
    """Only the row-major order counts; the signature still names its own shape."""
    array = noise(6, 5, 14)
    other = of(array.reshape(shape))
    assert distance(of(array), other) == 0
    assert (other.shape, other.size) == (shape, 420)


def test_memory_layout_does_not_count() -> None:
    """A transposed view has the signature of its contiguous copy, and another one than the tensor it came from."""
    array = noise(40, 50)
    assert distance(of(array.T), of(array.T.copy())) == 0
    assert distance(of(array), of(array.T)) > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_different_random_tensors_do_not_match(size: int) -> None:
    """Far beyond any limit."""
    assert distance(of(noise(size, seed=1)), of(noise(size, seed=2))) > 0.1


@pytest.mark.parametrize("size", SIZES[2:])
def test_the_sample_is_spread_over_the_whole_tensor(size: int) -> None:
    """Its elements lie evenly from the first to the last part of the tensor, not in its first part only."""
    sample = of(np.arange(size, dtype=np.float32)).sample
    assert len(sample) <= SAMPLE
    assert sample[0] == 0
    assert sample[-1] >= 0.95 * (size - 1)


@pytest.mark.parametrize("size", [2 * SAMPLE - 1, 4 * SAMPLE - 1])
def test_tensors_that_differ_in_their_last_third_alone_do_not_match(size: int) -> None:
    """Signs turned there: no norm shows it, only the elements do."""
    array = noise(size)
    other = array.copy()
    other[-size // 3 :] *= -1
    assert distance(of(array), of(other)) > 0.1


def test_a_sample_is_small() -> None:
    """At most ``SAMPLE`` elements are kept of any tensor."""
    assert all(len(of(noise(size)).sample) == min(size, SAMPLE) for size in (1, SAMPLE, SAMPLE * 4, 1_000_000))


def test_rounding_gives_the_relative_error() -> None:
    """The distance estimates the relative L2 difference."""
    array = noise(100_000)
    other = array * (1 + 1e-3 * noise(100_000, seed=3))
    assert distance(of(array), of(other)) == pytest.approx(1e-3, rel=0.2)


def test_other_sizes_and_kinds_never_match() -> None:
    """Infinitely far, whatever the elements say."""
    array = noise(12)
    assert distance(of(array), of(array[:11])) == math.inf
    assert distance(of(array), signature_of(array.astype(np.int64), "integer")) == math.inf


def test_widths_of_one_kind_match() -> None:
    """float16 and bfloat16 copies are as near as their rounding."""
    array = noise(5000)
    assert 0 < distance(of(array), of(array.astype(np.float16))) < 1e-3
    assert 0 < distance(of(array), of(array.astype(ml_dtypes.bfloat16))) < 1e-2


# -- NaN, zeros, nothing ----------------------------------------------------------------------------------------------


def test_nonfinite_elements_in_the_same_places_match() -> None:
    """NaN equals NaN, an infinity the same infinity; the rest decides."""
    array = noise(100)
    array[3], array[50], array[51] = np.nan, np.inf, -np.inf
    assert distance(of(array), of(array.copy())) == 0
    assert distance(of(array), of(array * np.float32(1.5))) == pytest.approx(0.5)


@pytest.mark.parametrize("pair", [(math.nan, 1.0), (1.0, math.nan), (math.inf, -math.inf), (math.nan, math.inf)])
def test_nonfinite_elements_elsewhere_do_not_match(pair: tuple[float, float]) -> None:
    """Infinitely far."""
    first, second = noise(100), noise(100)
    first[7], second[7] = pair
    assert distance(of(first), of(second)) == math.inf


def test_norms_count_finite_elements_alone() -> None:
    """``norm`` stays a number; ``total`` tells that there is a NaN."""
    signature = of(np.array([3.0, math.nan, 4.0, math.inf], np.float32))
    assert signature.norm == 5.0
    assert math.isnan(signature.total)


def test_empty_tensors_match_and_are_zero() -> None:
    """Nothing is raised."""
    empty = of(np.zeros((0, 3), np.float32))
    assert (empty.size, empty.norm, empty.total) == (0, 0.0, 0.0)
    assert distance(empty, of(np.zeros((3, 0), np.float32))) == 0


def test_zeros_match_zeros_only() -> None:
    """A relative difference from nothing is infinite."""
    zeros = of(np.zeros(10, np.float32))
    assert distance(zeros, zeros) == 0
    assert distance(zeros, of(np.full(10, 1e-20, np.float32))) == math.inf


def test_scalars_have_signatures() -> None:
    """0-d tensors."""
    assert distance(of(np.asarray(np.float32(2))), of(np.asarray(np.float32(3)))) == pytest.approx(0.5)


# -- tensors that are nearly all zero ---------------------------------------------------------------------------------


def test_norms_see_what_the_sample_misses() -> None:
    """Two maps of zeros but for one place that no sample holds: other heights do not match."""
    first, second = np.zeros((64, 64, 64), np.float32), np.zeros((64, 64, 64), np.float32)
    first[1, 1, 1], second[1, 1, 1] = 1.0, 2.0
    assert not of(first).sample.any()
    assert distance(of(first), of(second)) == pytest.approx(1.0)
    assert distance(of(first), of(first.copy())) == 0


def test_a_sparse_map_does_not_match_zeros() -> None:
    """Neither way round."""
    sparse, zeros = np.zeros(100_000, np.float32), np.zeros(100_000, np.float32)
    sparse[12345] = 1.0
    assert distance(of(sparse), of(zeros)) > 0.1
    assert distance(of(zeros), of(sparse)) > 0.1


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
def test_sparse_layouts_have_the_signature_of_the_dense_tensor(layout: str) -> None:
    """torch's sparse tensors become dense on their way."""
    dense = torch.relu(torch.randn(30, 40) - 1)
    sparse = dense.to_sparse() if layout == "sparse_coo" else dense.to_sparse_csr()
    assert distance(of(to_numpy(dense)), of(to_numpy(sparse))) == 0


# -- permuted axes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (2, 3, 4, 5), (1, 7, 9, 11), (8, 16, 20, 30)])
def test_permuted_signatures_are_those_of_the_permuted_tensor(shape: tuple[int, ...], dtype: Any) -> None:
    """Sample for sample, in every order of axes that is tried."""
    array = (noise(*shape) * 10).astype(dtype)
    kind = "float" if np.dtype(dtype).kind == "f" else "integer"
    found = permuted_signatures(array, kind)
    assert found
    for order, signature in found.items():
        wanted = signature_of(array.transpose(order), kind)
        assert signature.shape == wanted.shape
        assert np.array_equal(signature.sample, wanted.sample)
        assert signature.norm == pytest.approx(wanted.norm)
        assert signature.total == pytest.approx(wanted.total, rel=1e-5)
        assert distance(signature, wanted) == 0


def test_permuted_signatures_of_views() -> None:
    """Strided and transposed arrays too."""
    array = noise(6, 8, 10)[:, ::2].transpose(2, 0, 1)
    found = permuted_signatures(array, "float")
    assert found
    for order, signature in found.items():
        assert np.array_equal(signature.sample, of(array.transpose(order)).sample)


def test_all_orders_are_tried_where_all_axes_are_long() -> None:
    """None of the listed ones is left out."""
    for rank, orders in PERMUTATIONS.items():
        assert set(permuted_signatures(noise(*range(2, 2 + rank)), "float")) == set(orders)


def test_orders_that_move_only_axes_of_length_one_are_left_out() -> None:
    """They are reshapes, which plain signatures find."""
    assert permuted_signatures(noise(1, 5), "float") == {}
    assert (0, 2, 3, 1) not in permuted_signatures(noise(2, 1, 4, 5), "float")


@pytest.mark.parametrize("shape", [(), (4,), (2, 0), (2, 3, 4, 5, 6, 7)])
def test_ranks_without_orders_have_no_permuted_signatures(shape: tuple[int, ...]) -> None:
    """Nor have empty tensors."""
    assert permuted_signatures(np.zeros(shape, np.float32), "float") == {}


def test_a_permuted_tensor_is_found_by_its_order() -> None:
    """Only the right one of all orders matches."""
    array = noise(4, 5, 6)
    target = of(np.ascontiguousarray(array.transpose(1, 0, 2)))
    near = [o for o, s in permuted_signatures(array, "float").items() if distance(s, target) < 1e-6]
    assert near == [(1, 0, 2)]


def test_complex_tensors_have_signatures() -> None:
    """Real and imaginary parts both count."""
    array = (noise(50) + 1j * noise(50, seed=1)).astype(np.complex64)
    first, second = signature_of(array, "complex"), signature_of(array.conj(), "complex")
    assert distance(first, signature_of(array.copy(), "complex")) == 0
    assert distance(first, second) > 0.1
    assert first.size == 50


# -- short cuts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 50), (4, 25, 100), (3, 7, 20, 11)])
def test_a_known_signature_saves_reading_the_tensor_again(shape: tuple[int, ...]) -> None:
    """The same permuted signatures, also for strided views and NaN."""
    array = noise(*shape)
    array.reshape(-1)[::97] = np.nan
    for view in (array, array[:, ::-1], array.transpose(), array[1:, 2:]):
        plain, known = permuted_signatures(view, "float"), permuted_signatures(view, "float", of(view))
        assert plain.keys() == known.keys()
        for order, signature in known.items():
            wanted = signature_of(view.transpose(order), "float")
            for found in (signature, plain[order]):
                assert np.array_equal(found.sample, wanted.sample, equal_nan=True)
                assert (found.shape, found.norm) == (wanted.shape, pytest.approx(wanted.norm))
                assert math.isnan(found.total)


def test_permuted_signatures_do_not_share_memory_with_the_tensor() -> None:
    """Nor is what is kept of a shape changed by them."""
    array = noise(20, 30)
    first = permuted_signatures(array, "float")[1, 0]
    kept = first.sample.copy()
    array[:] = 0
    permuted_signatures(noise(20, 30, seed=1), "float")[1, 0].sample[:] = 7
    assert np.array_equal(first.sample, kept)
    assert np.array_equal(permuted_signatures(noise(20, 30), "float")[1, 0].sample, kept)


def test_complex_tensors_have_no_permuted_signatures() -> None:
    """Their parts lie side by side, which no order of axes expresses."""
    assert permuted_signatures(noise(4, 5).astype(np.complex64), "complex") == {}


@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float32, np.float64, np.int8, np.int64, np.bool_],
)
@pytest.mark.parametrize("size", [0, 1, 1000, 200_003])
def test_norms_are_those_of_the_definition(dtype: Any, size: int) -> None:
    """Of the sample and of the whole tensor, to the precision of float32, whatever the dtype."""
    array = (noise(size) * 20).astype(dtype)
    signature = of(array)
    wide = array.astype(np.float64)
    assert signature.total == pytest.approx(float(np.linalg.norm(wide)), rel=2e-5)
    assert signature.norm == pytest.approx(float(np.linalg.norm(signature.sample)), rel=1e-12)
    assert math.isinf(of(np.full(10, 3e38, np.float32)).total)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    first=st.lists(st.sampled_from([0.0, 1.0, -2.5, 1e200, 1e-200, math.nan, math.inf, -math.inf]), max_size=6),
    swaps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 3.0, math.nan, math.inf])), max_size=2),
)
def test_the_distance_is_that_of_the_samples(first: list[float], swaps: list[tuple[int, float]]) -> None:
    """Infinite where NaN or infinities lie elsewhere, else the relative error of the finite elements."""
    second = list(first)
    for place, value in swaps:
        if place < len(second):
            second[place] = value
    a, b = np.array(first, np.float64), np.array(second, np.float64)
    # Norms of the whole have their own test.
    one, other = (dataclasses.replace(of(x), total=math.nan) for x in (a, b))
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(all="ignore"):
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            wanted = math.inf
        else:
            apart, norm = (float(np.linalg.norm(x)) for x in (b[finite] - a[finite], a[finite]))
            wanted = 0.0 if apart == 0 else apart / norm if norm else math.inf
    assert distance(one, other) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("fill", [-1e9, float(np.finfo(np.float32).min), -1e4, 65504.0, -100.0])
def test_what_lies_beside_a_masks_filling_tells(fill: float) -> None:
    """The scores of two blocks under one mask are two values, though nearly all of their norm is the mask's."""
    mask = np.triu(np.ones((24, 24), dtype=bool), 1)
    scores, others = (
        noise(4, 24, 24, seed=seed) * np.float32(min(1, -fill / 1e5 if fill < 0 else 1)) for seed in (1, 2)
    )
    one, other = (np.where(mask, np.float32(fill), each) for each in (scores, others))
    assert distance(of(one), of(other)) > 0.1
    assert distance(of(one), of(one * np.float32(1 - 1e-6))) < 1e-5
    assert distance(of(one), of(np.where(mask, np.float32(fill), scores * np.float32(1.00001)))) < 1e-4
    (turned,) = (s for order, s in permuted_signatures(one, "float").items() if order == (0, 2, 1))
    assert distance(turned, of(other.transpose(0, 2, 1))) > 0.1
    assert distance(turned, of(one.transpose(0, 2, 1))) == 0


def test_a_mask_alone_and_wide_ranges_have_nothing_beside_them() -> None:
    """Zeros beside the filling, sizes all the way between, and what is not that large."""
    mask = np.where(noise(30, 30) > 0, np.float32(-1e9), np.float32(0))
    wide = np.exp(12 * noise(30, 30))
    sharp = np.where(noise(30, 30) > 0, np.float32(1), np.float32(1e-6))
    assert all(of(array).beside is None for array in (mask, wide, sharp, noise(30, 30)))


def test_heads_that_are_split_and_moved() -> None:
    """A projection (batch, time, heads x size) is the graph's (batch, heads, time, size)."""
    array = noise(2, 160, 24)
    moved = array.reshape(2, 160, 3, 8).transpose(0, 2, 1, 3)
    found = split_signatures(array, "float", moved.shape, of(array))
    assert distance(found[0, 2, 1, 3], of(moved)) == 0
    assert all(distance(s, of(moved)) > 0.1 for order, s in found.items() if order != (0, 2, 1, 3))
    np.testing.assert_array_equal(in_order(array, (0, 2, 1, 3), moved.shape), moved)


def test_heads_that_are_merged_and_moved() -> None:
    """And the other way round, time first: (batch, heads, time, size) is (time, batch x heads, size)."""
    array = noise(2, 3, 160, 8)
    moved = np.ascontiguousarray(array.transpose(2, 0, 1, 3)).reshape(160, 6, 8)
    found = split_signatures(array, "float", moved.shape)
    assert distance(found[1, 0, 2], of(moved)) == 0
    np.testing.assert_array_equal(in_order(array, (1, 0, 2), moved.shape), moved)


def test_axes_of_one_number_and_of_other_sizes_are_not_split() -> None:
    array = noise(2, 16, 24)
    assert split_signatures(array, "float", (16, 2, 24)) == {}, "an order of its own axes"
    assert split_signatures(array, "float", (2, 3, 16, 4)) == {}
    assert (0, 2, 1, 3) not in split_signatures(array, "float", (2, 5, 16, 8))


@pytest.mark.parametrize("shape", [(3,), (7, 500), (2, 3, 40, 40)])
def test_a_norm_from_the_sampled_places_is_the_signatures(shape: tuple[int, ...]) -> None:
    whole = np.random.default_rng(0).normal(size=(*shape[:-1], 2 * shape[-1])).astype(np.float32)
    part = whole[..., shape[-1] :]
    part[(0,) * part.ndim] = np.inf
    assert sampled_norm(part) == of(part).norm
