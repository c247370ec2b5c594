"""``weights``: what is another weight, and what exporters do to weights on purpose."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from bisect_tool import weights as weights_file
from bisect_tool.records import Origin, Verdict
from bisect_tool.weights import Folding, WeightPair, WeightReport, compare_weights, pair_weights, with_weights

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.standard_normal((6, 4)).astype(np.float32)
KERNEL = RANDOM.standard_normal((6, 4, 3, 3)).astype(np.float32)
INFINITE = np.where(KERNEL == KERNEL[-1, 0, 0, 0], np.inf, KERNEL)
FOLDING = Folding(RANDOM.uniform(0.5, 2, 6), RANDOM.standard_normal(6), RANDOM.standard_normal(6))


def compared(actual: NDArray[Any], expected: NDArray[Any], *foldings: Folding, by_name: bool = True) -> WeightReport:
    """The report on one pair."""
    pair = WeightPair("w", "w", by_name)
    return compare_weights([pair], lambda _: actual, lambda _: expected, foldings)


def scaled(channel: int = 2, factor: float = 1.5) -> NDArray[np.float32]:
    array = KERNEL.copy()
    array[channel] *= factor
    return array


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (MATRIX, MATRIX),
        (MATRIX.T.copy(), MATRIX),
        (MATRIX[:, :, None], MATRIX),
        (KERNEL * FOLDING.scale.astype(np.float32)[:, None, None, None], KERNEL),
        ((MATRIX[:, 0] - FOLDING.mean) * FOLDING.scale + FOLDING.shift, MATRIX[:, 0]),
        (np.array([np.nan, np.inf, 1.0]), np.array([np.nan, np.inf, 1.0])),
        (np.float32(3), np.float32(3)),
    ],
    ids=["same", "axes swapped", "axis of length 1", "BatchNorm in a kernel", "BatchNorm in a bias", "NaN", "scalar"],
)
def test_what_exporters_do_is_no_difference(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Neither differing nor rounded."""
    report = compared(np.asarray(actual), np.asarray(expected), FOLDING)
    assert (1, (), ()) == (report.compared, report.differing, report.rounded)


def test_an_infinity_is_no_factor_of_a_batch_norm() -> None:
    """It makes the difference infinite, and the norm too."""
    broken = KERNEL * FOLDING.scale.astype(np.float32)[:, None, None, None]
    broken[3, 1, 0, 0] = np.inf
    (found,) = compared(broken, KERNEL, FOLDING).differing
    assert np.inf == found.max_abs


@pytest.mark.parametrize(
    ("actual", "known"),
    [
        (KERNEL, True),
        (KERNEL * FOLDING.scale.astype(np.float32)[:, None, None, None], True),
        (np.where(KERNEL == KERNEL[0, 0, 0, 0], np.nan, KERNEL), False),
        (KERNEL * 1.5, False),
    ],
    ids=["same", "folded", "NaN", "differing"],
)
def test_what_compares_equal_holds_no_nan(actual: NDArray[Any], known: bool) -> None:
    """So that nobody has to read it again; of anything else that is left open, even where both sides hold the same NaN."""
    actual = actual.astype(np.float32)
    assert known == ("w" in compared(actual, KERNEL, FOLDING).without_nan)
    if np.isnan(actual).any():
        assert not compared(actual, actual, FOLDING).without_nan


@pytest.mark.parametrize("blocks", [1 << 16, 1])
@pytest.mark.parametrize(
    ("actual", "expected", "finite"),
    [
        (KERNEL, KERNEL, True),
        (KERNEL * FOLDING.scale.astype(np.float32)[:, None, None, None], KERNEL, True),
        (MATRIX.T.copy(), MATRIX, True),
        (np.float32(3), np.float32(3), True),
        (INFINITE, INFINITE, False),
        (KERNEL.astype(np.float16), KERNEL, False),
        (KERNEL * 1.5, KERNEL, False),
    ],
    ids=["same", "folded", "axes swapped", "scalar", "infinite", "half", "differing"],
)
def test_what_is_known_to_be_finite_is(
    monkeypatch: pytest.MonkeyPatch, blocks: int, actual: NDArray[Any], expected: NDArray[Any], finite: bool
) -> None:
    """So that nobody has to read it again; the same infinity on both sides is equal, and yet none of these."""
    monkeypatch.setattr(weights_file, "_CACHED", blocks)
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.dtype == np.float64:
        actual = actual.astype(np.float32)
    assert finite == ("w" in compared(actual, expected, FOLDING).finite)


@pytest.mark.parametrize("place", [0, 7, KERNEL.size - 1])
def test_one_number_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """A glance at the first of a weight says that it is another one, never that it is the same."""
    monkeypatch.setattr(weights_file, "_CACHED", 1)
    for folded in (1.0, FOLDING.scale.astype(np.float32)[:, None, None, None]):
        actual = KERNEL * folded
        actual.reshape(-1)[place] += 0.5
        assert 1 == len(compared(actual.astype(np.float32), KERNEL, FOLDING).differing)


def test_a_square_matrix_may_have_its_axes_swapped() -> None:
    """Its shape says nothing; its values do."""
    square = RANDOM.standard_normal((5, 5)).astype(np.float32)
    assert () == compared(square.T, square).differing


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["narrow", "wide"])
def test_rounded_weights_are_called_so(dtype: str, stored: str) -> None:
    """Whether they are stored in the narrow type or back in float32."""
    actual = MATRIX.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    report = compared(actual if stored == "narrow" else actual.astype(np.float32), MATRIX)
    assert ((), [dtype]) == (report.differing, [each.rounded for each in report.rounded])


def test_one_channel_is_named() -> None:
    """The axis and the index that hold the difference, as the graph counts its axes."""
    (found,) = compared(scaled(), KERNEL, FOLDING).differing
    assert (0, 2) == (found.axis, found.index)
    assert str(found).startswith("weight w differs from the model's: relative L2 ")
    assert str(found).endswith(", all of it at index 2 of axis 0")
    (found,) = compared(scaled()[:, None], KERNEL).differing
    assert (0, 2) == (found.axis, found.index)
    (found,) = compared(scaled()[None], KERNEL).differing
    assert (1, 2) == (found.axis, found.index)


def test_another_folding_is_a_difference() -> None:
    """Channels scaled by numbers that no BatchNorm of the model has."""
    actual = KERNEL * FOLDING.scale[:, None, None, None] ** 2
    (found,) = compared(actual.astype(np.float32), KERNEL, FOLDING).differing
    assert found.axis is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_folded_weight_may_be_rounded(dtype: type) -> None:
    """What was rounded was computed: the last bit of it is anybody's guess."""
    fold = FOLDING
    exact = fold.weight(KERNEL, 0).astype(np.float32)
    nudged = np.nextafter(exact, np.float32(np.inf))
    (found,) = compared(nudged.astype(dtype).astype(np.float32), KERNEL, fold).rounded
    assert np.dtype(dtype).name == found.rounded
    assert 0 < found.rel_l2 < 1e-2
    assert "with a BatchNorm folded in rounded to" in str(found)


def test_a_difference_is_that_to_the_folded_weight() -> None:
    """Beside the bare weight all of it would differ, and by another number."""
    fold = FOLDING
    actual = fold.weight(KERNEL, 0).astype(np.float32)
    should = actual.copy()
    actual[1] *= np.float32(1.25)
    (found,) = compared(actual, KERNEL, fold).differing
    wanted = np.linalg.norm(actual - should) / np.linalg.norm(should)
    assert math.isclose(found.rel_l2, wanted, rel_tol=1e-5)
    assert (0, 1) == (found.axis, found.index) and found.folded
    assert "differs from the model's with a BatchNorm folded in: relative L2" in str(found)
    # Of another checkpoint no folding is any nearer.
    other = np.random.default_rng(9).standard_normal(KERNEL.shape).astype(np.float32)
    (found,) = compared(other, KERNEL, fold).differing
    assert not found.folded


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_a_difference(bad: float) -> None:
    """On one side only."""
    actual = MATRIX.copy()
    actual[1, 1] = bad
    (found,) = compared(actual, MATRIX).differing
    assert np.inf == found.rel_l2


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are read row by row where they are large."""
    whole = compared(scaled(), KERNEL, FOLDING)
    monkeypatch.setattr(weights_file, "_BLOCK", 1)
    pieces = compared(scaled(), KERNEL, FOLDING)
    assert (whole.differing[0].axis, whole.differing[0].index) == (pieces.differing[0].axis, pieces.differing[0].index)
    assert whole.differing[0].rel_l2 == pytest.approx(pieces.differing[0].rel_l2)
    assert [] == [*compared(MATRIX.astype(np.float16), MATRIX).differing]


def test_pairs() -> None:
    """One name and one shape; a swapped weight under another name by the layer that reads it; wrappers' names."""
    parameters = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (3, 6)}
    initializers = {"a.bias": (6,), "a.weight": (7, 4), "val_1": (6, 3), "val_2": (4, 6)}
    pairs = pair_weights(initializers, parameters, {"val_1": ["b"], "val_2": ["a"]})
    assert [("a.bias", "a.bias", True), ("val_1", "b.weight", False), ("val_2", "a.weight", False)] == [
        (pair.onnx, pair.parameter, pair.by_name) for pair in pairs
    ]
    (pair,) = pair_weights({"module.a.bias": (6,)}, parameters, {})
    assert "a.bias" == pair.parameter
    (pair,) = pair_weights({"a.bias": (6,)}, {"model.a.bias": (6,)}, {})
    assert "model.a.bias" == pair.parameter


def test_a_weight_under_another_name_may_be_scaled() -> None:
    """A model may scale a weight before it uses it; that is no other weight, and another one is."""
    other = RANDOM.standard_normal((4, 6)).astype(np.float32)
    assert () == compared(MATRIX.T * np.float32(0.25), MATRIX, by_name=False).differing
    assert 1 == len(compared(other, MATRIX, by_name=False).differing)
    assert 1 == len(compared(MATRIX.T * np.float32(0.25), MATRIX).differing)


def origin(*weights: str) -> Origin:
    return Origin("a", 0, 0, "Linear", None, "a", ("Gemm_0",), "off", 0.1, 10.0, "actual", onnx_weights=weights)


def verdict(*origins: Origin) -> Verdict:
    return Verdict("diverges", ("first line",), None, origins)


def of_names(*names: str, fresh: tuple[str, ...] = ()) -> WeightReport:
    """Four weights; those named differ, and the fresh ones hold one number."""
    pairs = [WeightPair(name, name) for name in ("a", "b", "c", "d")]

    def expected(name: str) -> NDArray[Any]:
        return np.ones(4) if name in fresh else MATRIX

    return compare_weights(pairs, lambda name: expected(name) + RANDOM.random() * (name in names), expected)


def test_most_weights_differ() -> None:
    """A line of the summary and a diagnosis, and nothing at the origins."""
    found = with_weights(verdict(origin("a")), of_names("a", "b", "d"))
    assert found.summary[-1].startswith("3 of 4 weights in the ONNX file differ from the model's (first: a; largest")
    assert found.summary[-1].endswith(": another checkpoint?")
    (diagnosis,) = found.diagnoses
    assert ("BD201", 4) == (diagnosis.code, len(diagnosis.evidence))
    assert () == found.origins[0].evidence


def test_fresh_norms_and_biases_do_not_speak_for_a_checkpoint() -> None:
    """Ones and zeros are the same in every checkpoint that was never trained."""
    assert of_names("a", "b", fresh=("c", "d")).is_another_checkpoint
    assert not of_names("a", "b").is_another_checkpoint


def test_few_weights_differ() -> None:
    """They are named where error is made by them, and else in the summary."""
    found = with_weights(verdict(origin("a", "x")), of_names("a"))
    assert ("first line",) == found.summary
    assert () == found.diagnoses
    assert found.origins[0].evidence[0].startswith("weight a differs from the model's: relative L2 ")
    found = with_weights(verdict(origin("b")), of_names("c", "d"))
    assert found.summary[1].startswith("weight c differs") and found.summary[1].endswith(", and 1 more")


def test_rounded_weights_are_no_other_checkpoint() -> None:
    """However many they are."""
    pairs = [WeightPair(name, name) for name in ("a", "b")]
    report = compare_weights(pairs, lambda _: MATRIX.astype(np.float16), lambda _: MATRIX)
    found = with_weights(verdict(origin("a")), report)
    assert ("first line", "2 of 2 weights in the ONNX file are the model's rounded to float16") == found.summary
    assert "rounded to float16" in found.origins[0].evidence[0]
