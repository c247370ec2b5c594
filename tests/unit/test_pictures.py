"""Pictures of errors: which cells are bright, what is counted, and of which stages one is kept."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from report_samples import diverging, picture

from bisect_tool import pictures
from bisect_tool.metrics import measure
from bisect_tool.pictures import CELLS, TOP, Camera, bin_edge, error_at, picture_of, unpacked, with_few
from bisect_tool.records import ErrorPicture, StageRef

RNG = np.random.default_rng(0)
EXPECTED = RNG.normal(size=(1, 4, 80, 100)).astype(np.float32)


def taken(expected: np.ndarray, actual: np.ndarray) -> ErrorPicture:
    found = picture_of(expected, actual, "local")
    assert found is not None
    return found


def cells(found: ErrorPicture) -> np.ndarray:
    data = unpacked(found.error, found.rows, found.columns)
    assert data is not None
    return data


def test_a_border_shows() -> None:
    """An error along the border of an image, in one channel only, is a bright frame and nothing else."""
    actual = EXPECTED.copy()
    actual[0, 2, [0, -1], :] += 0.5
    actual[0, 2, :, [0, -1]] += 0.5
    found = taken(EXPECTED, actual)
    assert ((2, 3), CELLS, CELLS) == (found.axes, found.rows, found.columns)
    bright = cells(found) > TOP - 20
    frame = np.ones_like(bright)
    frame[1:-1, 1:-1] = False
    assert np.array_equal(frame, bright)
    assert 4 * 80 * 100 - 2 * 80 - 2 * 100 + 4 == found.equal
    assert found.high == pytest.approx(1.0)  # at corners both were added
    assert 0 == found.nonfinite and 2 * 80 + 2 * 100 - 4 == sum(found.histogram)


def test_no_difference_is_dark() -> None:
    """Equal tensors have a map of zeros and an empty histogram."""
    found = taken(EXPECTED, EXPECTED)
    assert 0 == cells(found).max() == found.high == sum(found.histogram)
    assert EXPECTED.size == found.equal


def test_what_is_not_finite_stands_apart() -> None:
    """NaN on one side has a byte of its own; NaN and infinities on both sides are no difference."""
    expected, actual = EXPECTED[0, 0, :20, :20].copy(), EXPECTED[0, 0, :20, :20].copy()
    expected[3, 4] = actual[3, 4] = np.nan
    expected[3, 5] = actual[3, 5] = -np.inf
    actual[7, 8] = np.nan
    actual[9, 9] += 1
    found = taken(expected, actual)
    assert 1 == found.nonfinite and 400 - 2 == found.equal
    assert TOP + 1 == cells(found)[7, 8] and TOP == cells(found)[9, 9] and 0 == cells(found)[3, 4] == cells(found)[3, 5]
    reference = unpacked(found.expected, 20, 20)
    assert reference is not None and TOP + 1 == reference[3, 4] == reference[3, 5]
    assert expected[np.isfinite(expected)].max() == pytest.approx(found.expected_high)


@pytest.mark.parametrize(
    ("shape", "axes", "size"),
    [
        ((1, 16, 8, 8), (2, 3), (8, 8)),
        ((2, 16, 1, 1), (0, 1), (2, 16)),
        ((1, 200, 300), (1, 2), (CELLS, CELLS)),
        ((1000,), (0,), (1, CELLS)),
        ((1, 1, 30, 1), (2,), (1, 30)),
        ((2, 3, 4, 5, 6), (3, 4), (5, 6)),
    ],
)
def test_axes_of_the_map(shape: tuple[int, ...], axes: tuple[int, ...], size: tuple[int, int]) -> None:
    """Rows and columns are the last two axes that are longer than one; long ones are taken in blocks."""
    expected = np.ones(shape, np.float32)
    found = taken(expected, expected + np.float32(1e-3))
    assert (axes, size) == (found.axes, (found.rows, found.columns))
    assert {TOP} == set(cells(found).ravel().tolist())


def test_reference_is_the_mean_of_each_cell() -> None:
    """Blocks of unequal length and other axes count by their elements."""
    found = taken(EXPECTED, EXPECTED)
    data = unpacked(found.expected, found.rows, found.columns)
    assert data is not None
    means = found.expected_low + data / TOP * (found.expected_high - found.expected_low)
    rows, columns = (np.append(np.arange(CELLS) * size // CELLS, size) for size in (80, 100))
    wanted = [
        [EXPECTED[0, :, top:bottom, left:right].mean() for left, right in zip(columns, columns[1:], strict=False)]
        for top, bottom in zip(rows, rows[1:], strict=False)
    ]
    assert np.allclose(wanted, means, atol=0.01 * (found.expected_high - found.expected_low))


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16, np.float64, np.int8, np.uint64, bool]
)
def test_every_dtype(dtype: type) -> None:
    """One element that differs is one bright cell, in whatever the tensors hold, and whole numbers do not wrap around."""
    expected = np.ones((8, 8)).astype(dtype)
    actual = expected.copy()
    actual[2, 3] = 0
    found = taken(expected, actual)
    assert (63, 1.0) == (found.equal, found.high)
    assert [(2, 3)] == [*zip(*(place.tolist() for place in np.nonzero(cells(found))), strict=True)]


@pytest.mark.parametrize("what", ["few", "other shape", "other kind", "complex"])
def test_nothing_to_show(what: str) -> None:
    """Tensors that can't be compared, or hold too little, have no picture."""
    expected, actual = EXPECTED, EXPECTED + 1
    if what == "few":
        expected, actual = EXPECTED[0, 0, 0, :15], EXPECTED[0, 0, 0, :15]
    elif what == "other shape":
        actual = actual[..., :-1]
    elif what == "other kind":
        actual = actual.astype(np.int32)
    else:
        expected, actual = expected.astype(np.complex64), actual.astype(np.complex64)
    assert picture_of(expected, actual, "total") is None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_element_is_counted(data: st.DataObject) -> None:
    """Whatever the tensors hold, elements add up, and no cell is brighter than the largest difference."""
    shape = data.draw(array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=70))
    if not pictures.LEAST <= np.prod(shape) <= 5000:
        shape = (20, 3)
    one, other = (data.draw(arrays(np.float32, shape, elements=st.floats(width=32))) for _ in range(2))
    found = taken(one, other)
    assert one.size == sum(found.histogram) + found.equal + found.nonfinite
    assert np.isfinite(found.high) and len(cells(found).ravel()) == found.rows * found.columns


def test_scale_reads_back() -> None:
    """Bytes and bins say what they stand for."""
    assert [0.0, 2.0, np.inf] == [error_at(0, 2.0), error_at(TOP, 2.0), error_at(TOP + 1, 2.0)]
    assert 2e-8 == pytest.approx(error_at(1, 2.0)) == pytest.approx(bin_edge(0, 2.0))
    assert 2.0 == bin_edge(CELLS, 2.0)
    small = taken(np.zeros((4, 4), np.float32), np.full((4, 4), 3e-3, np.float32) * np.float32([1, 1, 1, 1e-3]))
    assert {1e-3: 4, 1.0: 12} == {1e-3: small.histogram[40], 1.0: small.histogram[63]}
    # The next step above.
    assert 3e-6 * (1 - 1e-5) <= error_at(int(cells(small)[0, 3]), small.high) < 3e-6 * 10 ** (8 / 253)


def test_no_cell_holds_more_than_its_byte_says() -> None:
    """As the report's readers are told."""
    errors = 10.0 ** RNG.uniform(-7, 1, (12, 12))
    found = taken(np.zeros((12, 12)), errors)
    bounds = np.vectorize(lambda byte: error_at(int(byte), found.high))(cells(found))
    assert (errors <= bounds * (1 + 1e-6)).all()
    # Within the eight powers of ten no bound is looser than a step.
    assert (errors >= bounds * 10 ** (-8.01 / 253))[errors > found.high * 1e-8].all()


def test_edited_maps_are_no_maps() -> None:
    """A report may be anybody's: text of another size, or none of base64, is left out."""
    assert unpacked("AAAA", 1, 3) is not None
    assert unpacked("AAAA", 2, 3) is None and unpacked("<b>", 1, 1) is None and unpacked("层", 1, 1) is None


def test_camera_takes_the_first_and_then_the_worst() -> None:
    """Rounding has no picture; after the first few only clearly larger errors have one; runs do not mix."""
    camera = Camera()

    def take(scale: float, run: str = "a") -> bool:
        actual = EXPECTED * np.float32(1 + scale)
        return camera.take(run, "total", EXPECTED, actual, measure(EXPECTED, actual)) is not None

    assert [False, False] == [take(0.0), take(1e-7)]
    assert [True] * 4 == [take(scale) for scale in (1e-3, 1e-2, 1e-3, 1e-4)]
    assert [False, False, True, False] == [take(scale) for scale in (1e-3, 1.1e-2, 3e-2, 3e-2)]
    assert take(1e-3, "b")


def test_few_pictures_are_kept() -> None:
    """Those of the first diverging stage, of origins, and of the worst; the others are dropped."""
    report = diverging()
    rows = [
        replace(row, results={name: replace(each, picture=picture()) for name, each in row.results.items()})
        for row in report.stages
    ]

    def kept(limit: int) -> set[tuple[str, str]]:
        found = with_few(rows, report.verdict, limit)
        return {(str(row.ref), name) for row in found for name, each in row.results.items() if each.picture}

    assert {("layer3.upsample", "ort-off")} == kept(1)
    assert {("layer3.upsample", "ort-off"), ("head.fc", "ort-off"), ("head.fc", "ort-all")} == kept(4)
    assert set() == kept(0)
    assert StageRef("head.fc", 0, 0) in {row.ref for row in with_few(rows, report.verdict, 4)}
