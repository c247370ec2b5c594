"""Two data files: what differs is counted as numpy counts it, and planted ways from one to the other are named."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from bisect_tool.backends.data_reading import read_data
from bisect_tool.data import files as data_files
from bisect_tool.data.comparison import compare_files
from bisect_tool.data.files import make_limits
from bisect_tool.data.patterns import find_patterns
from bisect_tool.data.records import DataComparison, Limits
from bisect_tool.data.tally import Tally
from bisect_tool.errors import BisectError
from bisect_tool.reporters.data_files import print_comparison, render
from bisect_tool.store import record_to_json

Array = Any
EXACT = Limits()


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Other work may hold the processor."""


def compared(first: Path, second: Path, limits: Limits = EXACT) -> DataComparison:
    return compare_files(read_data(first), read_data(second), limits)


def codes(found: DataComparison) -> set[str]:
    return {pattern.code for pattern in found.patterns}


# Counting

FLOATS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


@UNHURRIED
@given(FLOATS, st.data())
def test_counts_are_those_of_numpy(a: Array, data: st.DataObject) -> None:
    """Whatever the pieces: counts and greatest difference are what the whole arrays give."""
    b = data.draw(hnp.arrays(np.float32, a.shape, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
    b = np.where(data.draw(hnp.arrays(np.bool_, a.shape)), a, b)
    tally = Tally("x", EXACT)
    size = data.draw(st.integers(1, a.size))
    for at in range(0, a.size, size):
        tally.add(a[at : at + size], b[at : at + size], at)
    found = tally.result((a.shape, b.shape))
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    assert int(differs.sum()) == found.differing == found.beyond
    finite = np.isfinite(a) & np.isfinite(b)
    gaps = np.abs(a[finite].astype(np.float64) - b[finite])
    assert found.max_abs == (float(gaps.max()) if gaps.size else None)
    assert (found.first is None) == (not differs.any())
    if found.first is not None:
        assert found.first.index == (int(np.argmax(differs)),)
    assert (int(np.isnan(a).sum()), int((a == 0).sum())) == (found.expected.missing, found.expected.zeros)
    numbers = a[np.isfinite(a)].astype(np.float64)
    if numbers.size:
        assert found.expected.mean == pytest.approx(numbers.mean(), rel=1e-9, abs=1e-9 * np.abs(numbers).max())
        assert found.expected.std == pytest.approx(numbers.std(), rel=1e-6, abs=1e-9 * np.abs(numbers).max())


@UNHURRIED
@given(FLOATS)
def test_an_array_equals_itself(a: Array) -> None:
    tally = Tally("x", EXACT)
    tally.add(a, a.copy(), 0)
    assert (0, 0) == (tally.differing, tally.beyond)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e4m3fn])
def test_a_step_is_one_ulp(dtype: Any) -> None:
    """Neighbouring numbers of a dtype lie one unit apart, at any magnitude."""
    for value in (1.0, 1.5, 0.01, 3.0):
        a = np.array([value], dtype)
        bits = a.view(f"i{a.dtype.itemsize}")
        b = (bits + 1).view(dtype)
        tally = Tally("x", EXACT)
        tally.add(a, b, 0)
        assert 1.0 == tally.result((a.shape, b.shape)).max_ulp


def test_large_integers_keep_their_digits() -> None:
    a = np.array([2**60, 5], np.int64)
    tally = Tally("x", EXACT)
    tally.add(a, a + np.array([1, 0]), 0)
    found = tally.result((a.shape, a.shape))
    assert (1, 1.0) == (found.differing, found.max_abs)


@pytest.mark.parametrize(
    ("limits", "beyond"),
    [(EXACT, 4), (Limits(max_abs=0.15), 3), (Limits(atol=0.15, rtol=0.1), 2), (Limits(max_abs=math.inf), 2)],
)
def test_tolerance(limits: Limits, beyond: int) -> None:
    """NaN and infinity on one side only are beyond any tolerance."""
    a = np.array([1.0, 2.0, 3.0, 4.0, np.inf])
    b = np.array([1.1, 2.3, 3.0, np.nan, 5.0])
    tally = Tally("x", limits)
    tally.add(a, b, 0)
    assert (4, beyond) == (tally.differing, tally.beyond)


@pytest.mark.parametrize(
    "given", [(None, 1.0, None), (None, None, 1.0), (1.0, 1.0, 1.0), (-1.0, None, None), (math.nan, None, None)]
)
def test_tolerances_that_are_none(given: tuple[float | None, float | None, float | None]) -> None:
    with pytest.raises(BisectError) as caught:
        make_limits(*given)
    assert caught.value.hint


# Tables


@pytest.fixture
def frame() -> pandas.DataFrame:
    rng = np.random.default_rng(1)
    columns = {
        f"{joint}_{axis}": np.round(1 + np.cumsum(rng.normal(0, 0.01, 120)), 6)
        for joint in ("hip", "knee")
        for axis in "xyz"
    }
    return pandas.DataFrame({"frame": range(120), **columns, "label": ["walk", "run"] * 60})


def _zeros(f: pandas.DataFrame) -> pandas.DataFrame:
    f.loc[[3, 17, 50, 51, 90], "hip_y"] = 0
    return f


def _shifted(f: pandas.DataFrame) -> pandas.DataFrame:
    f.iloc[3:, 1:7] = f.iloc[:-3, 1:7].to_numpy()
    return f


def _block(f: pandas.DataFrame) -> pandas.DataFrame:
    f.loc[20:40, "knee_x"] = 0
    return f


PLANTED: dict[str, Callable[[pandas.DataFrame], pandas.DataFrame]] = {
    "scattered-zeros": _zeros,
    "block-zeros": _block,
    "scattered-missing": lambda f: f.assign(hip_x=f.hip_x.where(f.index % 7 != 0)),
    "shifted-rows": _shifted,
    "swapped-columns": lambda f: f.assign(hip_x=f.hip_y, hip_y=f.hip_x),
    "scaled": lambda f: f.assign(knee_z=f.knee_z * 100),
    "rounded": lambda f: f.assign(knee_z=f.knee_z.round(3)),
    "other-order": lambda f: f.sample(frac=1, random_state=3),
    "left-out-rows": lambda f: f.drop([5, 6, 7, 60]),
    "renamed-column": lambda f: f.rename(columns={"hip_x": "pelvis_x"}),
    "clipped": lambda f: f.assign(knee_y=f.knee_y.clip(upper=float(f.knee_y.median()))),
    "constant": lambda f: f.assign(knee_y=1.0),
}


@pytest.mark.parametrize("code", PLANTED)
def test_planted_patterns_in_tables_are_named(code: str, frame: pandas.DataFrame, tmp_path: Path) -> None:
    """Each way explains all, or nearly all, of what differs, and is told first."""
    frame.to_csv(tmp_path / "a.csv", index=False)
    PLANTED[code](frame.copy()).to_csv(tmp_path / "b.csv", index=False)
    found = compared(tmp_path / "a.csv", tmp_path / "b.csv")
    assert "different" == found.status
    assert code == found.patterns[0].code, found.patterns
    assert found.patterns[0].explains > 0.9


def test_texts_among_numbers_are_not_missing(frame: pandas.DataFrame, tmp_path: Path) -> None:
    """A broken cell differs; the zeros beside it are told all the same."""
    frame.to_csv(tmp_path / "a.csv", index=False)
    other = _zeros(frame.copy()).astype({"hip_y": object})
    other.loc[7, "hip_y"] = "broken"
    other.to_csv(tmp_path / "b.csv", index=False)
    found = compared(tmp_path / "a.csv", tmp_path / "b.csv")
    (item,) = [item for item in found.items if item.differing]
    assert (6, 0, 5) == (item.differing, item.only_actual_missing, item.only_actual_zero)
    assert {"scattered-zeros"} == codes(found)


def test_cells_between_tabs(frame: pandas.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.loc[33, "knee_z"] = 5
    frame.to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    found = compared(tmp_path / "a.tsv", tmp_path / "b.tsv")
    assert [("knee_z", 1)] == [(item.name, item.differing) for item in found.items if item.differing]


def test_unrelated_tables_show_no_pattern(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name in ("a", "b"):
        np.savetxt(tmp_path / f"{name}.csv", rng.normal(size=(50, 3)), delimiter=",", header="x,y,z", comments="")
    assert () == compared(tmp_path / "a.csv", tmp_path / "b.csv").patterns


def test_first_difference_is_the_first_row(frame: pandas.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.loc[80, "hip_x"] = 5
    frame.loc[33, "knee_z"] = 5
    frame.loc[34, "label"] = "sit"
    frame.to_csv(tmp_path / "b.csv", index=False)
    first = compared(tmp_path / "a.csv", tmp_path / "b.csv").first
    assert first is not None
    assert ("knee_z", (33,), 35, "5.0") == (first.item, first.index, first.line, first.actual)
    line = (tmp_path / "b.csv").read_text().splitlines()[first.line - 1]
    assert "33" == line.split(",")[0]


def test_columns_are_compared_by_name(frame: pandas.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame[frame.columns[::-1]].assign(more=1).to_csv(tmp_path / "b.csv", index=False)
    found = compared(tmp_path / "a.csv", tmp_path / "b.csv")
    assert {"order", "added"} == {item.code for item in found.structure if item.counts}
    assert not any(item.differing for item in found.items)
    assert "different" == found.status


def test_pieces_make_no_difference(frame: pandas.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces that split columns of changing kind, the answer is the same."""
    frame.to_csv(tmp_path / "a.csv", index=False)
    other = _zeros(frame.copy()).astype({"hip_x": object})
    other.loc[100, "hip_x"] = "broken"
    other.to_csv(tmp_path / "b.csv", index=False)
    whole = compared(tmp_path / "a.csv", tmp_path / "b.csv")
    from bisect_tool.backends import data_reading

    monkeypatch.setattr(data_reading, "PIECE", 1)
    monkeypatch.setattr(data_reading, "LEAST_ROWS", 11)
    parts = compared(tmp_path / "a.csv", tmp_path / "b.csv")
    assert [(i.name, i.differing, i.first) for i in whole.items] == [
        (i.name, i.differing, i.first) for i in parts.items
    ]


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("x,y\n1,2\n", "x,y\n1.0,2.00\n", True),
        ("x,y\n1,2\n", "x;y\n1;2\n", True),
        ("x\ty\n1\t2\n", "x,y\n1,2\n", True),
        ("x;y\n1,5;2\n", "x,y\n1.5,2\n", True),
        ("x,y\r\n1,2\r\n", "x,y\n1,2\n", True),
        ('x,y\n"1","a"\n', "x,y\n1,a\n", True),
        ("x,y\n,2\n", "x,y\nNaN,2\n", True),
        ("x,y\n,2\n", "x,y\n0,2\n", False),
        ("x,y\n1,a\n", "x,y\n1,b\n", False),
        ("1,2\n3,4\n", "1,2\n3,5\n", False),
        ("x,y\n0.1,2\n", "x,y\n0.10000000000000001,2\n", True),
        ("x,y\n0.1,2\n", "x,y\n0.1000000000000001,2\n", False),
        ("\ufeffx,y\n1,2\n", "x,y\n1,2\n", True),
        ("x,y\n1,2\n\n", "x,y\n1,2\n", True),
        ("x\n1\n\n2\n", "x\n1\n2\n", False),
        ("name,0,1\n5,1,2\n", "name,0,1\n5,1,2.0\n", True),
    ],
)
def test_tables_are_equal_by_value(first: str, second: str, equal: bool, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(first, encoding="utf-8", newline="")
    (tmp_path / "b.csv").write_text(second, encoding="utf-8", newline="")
    found = compared(tmp_path / "a.csv", tmp_path / "b.csv")
    assert ("equal" if equal else "different") == found.status
    assert not found.same_bytes


def test_a_table_without_header_is_numbered(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    found = compared(tmp_path / "a.csv", tmp_path / "a.csv")
    assert ["column 1", "column 2"] == [item.name for item in found.items]
    assert 2 == found.items[0].compared


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x,y\n1,2\n", ["x", "y"]),
        ("1,2\n3,4\n", ["column 1", "column 2"]),
        ("frame,0,1\n1,2,3\n", ["frame", "0", "1"]),
        ("walk,0.1\nrun,0.2\n", ["column 1", "column 2"]),
        ("a,b\nc,d\n", ["a", "b"]),
        ("a, b\n1, 2\n", ["a", "b"]),
        (",x,\n0,5,6\n", ["(no name)", "x", "(no name) (3)"]),
    ],
)
def test_headers(text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert names == [item.name for item in compared(tmp_path / "a.csv", tmp_path / "a.csv").items]


def test_no_line_is_told_where_rows_are_not_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,y\n"two\nlines",2\nb,3\n')
    (tmp_path / "b.csv").write_text('x,y\n"two\nlines",2\nb,4\n')
    first = compared(tmp_path / "a.csv", tmp_path / "b.csv").first
    assert first is not None and ((1,), None) == (first.index, first.line)


# Arrays


def _saved(folder: Path, name: str, array: Array) -> Path:
    file = folder / name
    {".npy": np.save, ".pt": lambda f, a: torch.save(torch.from_numpy(a), f)}.get(file.suffix, np.save)(file, array)
    return file


ARRAYS: dict[str, Callable[[Array], Array]] = {
    "channel-order": lambda a: a[::-1],
    "transposed": lambda a: a.transpose(1, 2, 0),
    "flipped": lambda a: a[:, :, ::-1],
    "reshaped": lambda a: a.reshape(3, -1),
    "scaled": lambda a: (a - 0.3) / 0.2,
    "rounded": lambda a: a.astype(np.float16).astype(np.float32),
    "rolled": lambda a: np.roll(a, 2, 1),
    "rounding": lambda a: np.nextafter(a, np.float32(9), dtype=np.float32),
    "clipped": lambda a: a.clip(-0.5, 0.5),
}


@pytest.mark.parametrize("code", ARRAYS)
def test_planted_patterns_in_arrays_are_named(code: str, tmp_path: Path) -> None:
    array = np.random.default_rng(3).normal(size=(3, 12, 17)).astype(np.float32)
    first = _saved(tmp_path, "a.npy", array)
    second = _saved(tmp_path, "b.npy", np.ascontiguousarray(ARRAYS[code](array)))
    found = compared(first, second)
    assert "different" == found.status
    assert code in codes(found), found.patterns


@UNHURRIED
@given(st.integers(0, 1000))
def test_noise_shows_no_pattern(seed: int) -> None:
    """Two unrelated arrays: nothing is read into them."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, 6, 7))
    kept = data_files.Kept({"x": a}, {"x": b})
    tally = Tally("x", EXACT)
    tally.add(a.reshape(-1), b.reshape(-1), 0)
    assert () == find_patterns("arrays", (tally.result((a.shape, b.shape)),), kept)


def test_every_format_of_arrays_reads_the_same(tmp_path: Path) -> None:
    array = np.random.default_rng(4).normal(size=(4, 5)).astype(np.float32)
    tensor = torch.from_numpy(array)
    np.savez(tmp_path / "a.npz", w=array)
    torch.save({"w": tensor}, tmp_path / "a.pt")
    save_file({"w": tensor}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text(json.dumps({"w": array.tolist()}))
    for name in ("a.pt", "a.safetensors"):
        assert "equal" == compared(tmp_path / "a.npz", tmp_path / name).status
    found = compared(tmp_path / "a.npz", tmp_path / "a.json")
    assert ["dtype"] == [item.code for item in found.structure]  # JSON knows no float32
    assert "equal" == compared(tmp_path / "a.npz", tmp_path / "a.json", Limits(max_abs=0)).status


def test_bfloat16_and_nested_names(tmp_path: Path) -> None:
    torch.save({"m": {"w": torch.ones(3, dtype=torch.bfloat16)}, "l": [torch.zeros(2), 3]}, tmp_path / "a.pt")
    torch.save({"m": {"w": torch.full((3,), 1.5, dtype=torch.bfloat16)}, "l": [torch.zeros(2), 4]}, tmp_path / "b.pt")
    found = compared(tmp_path / "a.pt", tmp_path / "b.pt")
    assert {"m.w": 3, "l[0]": 0, "l[1]": 1} == {item.name: item.differing for item in found.items}
    save_file({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    assert ("bfloat16", 1.0) == (lambda s: (s.dtype, s.mean))(
        compared(tmp_path / "a.safetensors", tmp_path / "a.safetensors").items[0].expected
    )


def test_fields_of_structured_arrays_are_compared_apart(tmp_path: Path) -> None:
    a = np.zeros(3, [("x", "f4"), ("t", "M8[s]")])
    b = a.copy()
    b["x"][1] = 2
    found = compared(_saved(tmp_path, "a.npy", a), _saved(tmp_path, "b.npy", b))
    assert {"array.x": 1, "array.t": 0} == {item.name: item.differing for item in found.items}


def test_dtypes_decide_without_a_tolerance_only(tmp_path: Path) -> None:
    first, second = _saved(tmp_path, "a.npy", np.ones(3, np.float32)), _saved(tmp_path, "b.npy", np.ones(3))
    assert "different" == compared(first, second).status
    assert "equal" == compared(first, second, Limits(max_abs=0)).status


def test_an_empty_array_has_a_dtype_too(tmp_path: Path) -> None:
    first = _saved(tmp_path, "a.npy", np.zeros((0, 3), np.float64))
    second = _saved(tmp_path, "b.npy", np.zeros((0, 4), np.float32))
    assert ["shape", "dtype"] == [item.code for item in compared(first, second).structure]


def test_shapes_that_would_broadcast_are_different(tmp_path: Path) -> None:
    first, second = _saved(tmp_path, "a.npy", np.ones((3, 1))), _saved(tmp_path, "b.npy", np.ones((3, 3)))
    found = compared(first, second, Limits(max_abs=100))
    assert ("different", ["shape"]) == (found.status, [item.code for item in found.structure])


# Images


@pytest.fixture
def picture() -> Array:
    y, x = np.mgrid[:48, :64]
    image = np.stack([x * 3, y * 5, x + y], -1).astype(np.uint8)
    image[5:20, 10:30] = (250, 20, 90)
    return image


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("channel-order", lambda p: p[:, :, ::-1]),
        ("flipped", lambda p: p[:, ::-1]),
        ("rotated", lambda p: np.rot90(p)),
        ("scattered-zeros", lambda p: np.where(np.random.default_rng(0).random(p.shape) < 0.1, 0, p)),
    ],
)
def test_planted_patterns_in_images_are_named(
    code: str, change: Callable[[Array], Array], picture: Array, tmp_path: Path
) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(np.ascontiguousarray(change(picture)).astype(np.uint8)).save(tmp_path / "b.png")
    assert code in codes(compared(tmp_path / "a.png", tmp_path / "b.png"))


def test_a_recompressed_image_and_one_with_other_channels(picture: Array, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "b.jpg", quality=92)
    Image.fromarray(picture[:, :, ::-1]).save(tmp_path / "c.jpg", quality=92)
    assert "small-differences" in codes(compared(tmp_path / "a.png", tmp_path / "b.jpg"))
    assert "channel-order" in codes(compared(tmp_path / "a.png", tmp_path / "c.jpg"))


def test_image_modes_are_structure(picture: Array, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture).convert("L").save(tmp_path / "b.png")
    assert {"mode", "shape"} == {item.code for item in compared(tmp_path / "a.png", tmp_path / "b.png").structure}


# Errors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"nonsense", "cannot be read as npy"),
        ("a.npz", b"nonsense", "no zip archive"),
        ("a.safetensors", b"\xff" * 20, "its header would be"),
        ("a.safetensors", b"\x02", "cannot be read as safetensors"),
        ("a.png", b"nonsense", "cannot be read as an image"),
        ("a.json", b"{", "cannot be read as json"),
        ("a.csv", b"a,b\x00\n", "holds zero bytes"),
        ("a.csv", b"", "is empty (0 bytes)"),
        ("a.csv.gz", b"nonsense", "cannot be read"),
        ("a.xyz", b"x", "no data file that is known"),
        ("a.pt", b"nonsense", "a.pt"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BisectError) as caught:
        compared(tmp_path / name, tmp_path / name)
    assert message in caught.value.message and name in caught.value.message
    assert caught.value.hint and 2 == caught.value.exit_code


def test_images_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BisectError, match="images are read with Pillow, which is not here") as caught:
        read_data(tmp_path / "a.png")
    assert "pip install pillow" == caught.value.hint


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(BisectError, match="Python objects"):
        read_data(tmp_path / "a.npy")
    torch.save({"w": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(BisectError):
        read_data(tmp_path / "a.pt")


def test_a_row_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n1,2,3\n")
    with pytest.raises(BisectError, match=r"a\.csv cannot be read as csv: .*line 3"):
        compared(tmp_path / "a.csv", tmp_path / "a.csv")


# What the user sees


def test_the_text_at_80_columns(frame: pandas.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame.to_csv("a.csv", index=False)
    _zeros(frame).to_csv("b.csv", index=False)
    out = io.StringIO()
    render(compared(Path("a.csv"), Path("b.csv")), Console(file=out, width=80, no_color=True))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "DIFFERENT  5 of 960 cells differ (0.5 %), in 1 column",
        "row 3 (line 5 of the file), column hip_y",
        "scattered zeros",
    ):
        assert part in text


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\x1b[31m,[bold]y\n1,2\n")
    out = io.StringIO()
    render(compared(tmp_path / "a.csv", tmp_path / "a.csv"), Console(file=out, width=80, no_color=True))
    assert "\x1b" not in out.getvalue() and "[bold]y" in out.getvalue()


def test_json_is_strict(tmp_path: Path) -> None:
    first = _saved(tmp_path, "a.npy", np.array([1.0, np.inf]))
    second = _saved(tmp_path, "b.npy", np.array([np.nan, 2.0]))
    data = record_to_json(compared(first, second))
    text = json.dumps(data, allow_nan=False)
    assert "data_comparison_version" == next(iter(json.loads(text)))
    assert ("different", 2) == (data["status"], data["items"][0]["differing"])


@pytest.mark.parametrize("text", [b"name,b\nM\xfcller,2\n", b"name,b\n" + b"Anna,1\n" * 10_000 + b"M\xfcller,2\n"])
def test_what_is_not_utf8_anywhere_is_latin1(text: bytes, tmp_path: Path) -> None:
    """At the very end, or behind all that other things are told from."""
    (tmp_path / "a.csv").write_bytes(text)
    content = read_data(tmp_path / "a.csv")
    assert content.notes == ("a.csv is not UTF-8 and was read as Latin-1",)


def test_separators_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\tb;c\n1\t2\n")
    assert read_data(tmp_path / "a.csv", separator=r"\t").names == ("a", "b;c")
    with pytest.raises(BisectError, match="--separator 'xx': one character"):
        read_data(tmp_path / "a.csv", separator="xx")


def test_columns_of_other_lengths_are_not_equal(tmp_path: Path) -> None:
    """The rows that both have are; both sides' numbers are shown. What was not compared is not equal either."""
    for name, rows in (("a", "1\n3\n"), ("b", "1\n3\n100\n"), ("c", "")):
        (tmp_path / f"{name}.csv").write_text("x\n" + rows)
    for one, other in (("a", "b"), ("a", "c")):
        stream = io.StringIO()
        print_comparison(compared(tmp_path / f"{one}.csv", tmp_path / f"{other}.csv"), file=stream)
        assert "=" not in stream.getvalue().partition("max diff")[2]


def test_an_infinity_is_no_difference_of_zero(tmp_path: Path) -> None:
    found = compared(
        _saved(tmp_path, "a.npy", np.array([np.inf, 1.0])), _saved(tmp_path, "b.npy", np.array([-np.inf, 1.0]))
    )
    stream = io.StringIO()
    print_comparison(found, file=stream)
    (line,) = (line.split() for line in stream.getvalue().splitlines() if line.startswith("array  1"))
    assert line[-3:] == ["1", "-", "-"]
