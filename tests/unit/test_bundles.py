"""Bundles: what goes in comes out, and nothing that was altered, cut off or made up is read."""

from __future__ import annotations

import json
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from bisect_tool import recorder
from bisect_tool.errors import BisectError
from bisect_tool.recorder import BundleWriter, RecordError, Recording, manifest_digest, record
from bisect_tool.recordings.bundles import PROJECTED, open_bundle
from bisect_tool.recordings.compare_traces import estimate

EMPTY: dict[str, Any] = {
    "kind": "trace",
    "content": "full",
    "provenance": {},
    "environment": {},
    "data": {"taps": [], "inputs": []},
    "weights": [],
    "stages": [],
    "outputs": [],
    "notes": [],
}


def written(path: Path, values: list[Any], **options: Any) -> list[str]:
    """A bundle with nothing but tensors; returns their names."""
    with BundleWriter(path, **options) as writer:
        names = [writer.add(value) for value in values]
        writer.finish(EMPTY)
    return names


def bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


# -- round trips ------------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from(
    ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16", ">f4", ">i8"]
)


def _views(array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    found = [array, array.T, np.asfortranarray(array)]
    if array.ndim:
        found += [array[::-1], array[..., ::2], array[1:], np.broadcast_to(array, (3, *array.shape))]
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=DTYPES)
def test_arrays_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str) -> None:
    """Every dtype, shape and layout in memory comes back with the same bits, NaN and infinities included."""
    array = data.draw(hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    values = _views(array)
    path = tmp_path_factory.mktemp("bundle") / "a.trace"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sums of hypothesis' numbers overflow
        names = written(path, values)
    with open_bundle(path) as bundle:
        for name, value in zip(names, values, strict=True):
            loaded = bundle.load(name)
            assert loaded is not None
            native = value.astype(value.dtype.newbyteorder("<"))
            assert (native.shape, bits(native)) == (loaded.shape, bits(loaded))
            assert native.dtype == loaded.dtype


SPECIAL = [
    name
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
]


@pytest.mark.parametrize("name", [*SPECIAL, "float16", "float64", "complex64", "complex128", "bool", "int64", "uint8"])
def test_tensors_round_trip(tmp_path: Path, name: str) -> None:
    """Also the formats that numpy lacks, in layouts that are not contiguous."""
    dtype = getattr(torch, name)
    tensor = (torch.randn(4, 6, 3) * 3).to(dtype)
    values = [tensor, tensor.transpose(0, 2), tensor[:, ::2], tensor[0, 0, 0], tensor[:0], tensor.expand(2, 4, 6, 3)]
    names = written(tmp_path / "a.trace", values)
    with open_bundle(tmp_path / "a.trace") as bundle:
        for key, value in zip(names, values, strict=True):
            loaded = bundle.load(key)
            assert loaded is not None
            whole = value.contiguous()
            width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.float64}[
                whole.element_size()
            ]
            raw = torch.view_as_real(whole).contiguous() if whole.is_complex() else whole.view(width)
            assert (tuple(value.shape), bits(raw.numpy())) == (loaded.shape, bits(loaded))
            assert name == bundle.tensors[key].dtype == loaded.dtype.name


def test_lazy_and_sparse_tensors(tmp_path: Path) -> None:
    """Conjugates that are not worked out yet, and sparse tensors, go in as their numbers."""
    z = torch.randn(3, dtype=torch.complex64)
    sparse = torch.eye(3).to_sparse()
    names = written(tmp_path / "a.trace", [z.conj(), sparse, torch.nn.Parameter(torch.ones(2))])
    with open_bundle(tmp_path / "a.trace") as bundle:
        arrays = [bundle.load(name) for name in names]
    assert np.array_equal(z.numpy().conj(), arrays[0])  # type: ignore[arg-type]
    assert np.array_equal(np.eye(3), arrays[1])  # type: ignore[arg-type]
    assert np.array_equal(np.ones(2), arrays[2])  # type: ignore[arg-type]


def test_other_readers_read_the_shards(tmp_path: Path) -> None:
    """They are plain safetensors files."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    (name,) = written(tmp_path / "a", [array], folder=True)
    assert np.array_equal(array, load_file(tmp_path / "a" / "tensors-00000.safetensors")[name])


def test_texts_and_objects(tmp_path: Path) -> None:
    """What is no number goes in as text."""
    names = written(tmp_path / "a.trace", [np.array(["b", "a"], dtype=object), np.array(["x"]), np.array("é")])
    with open_bundle(tmp_path / "a.trace") as bundle:
        assert [["b", "a"], ["x"], ["é"]] == [bundle.texts(name) for name in names]


def test_equal_tensors_are_kept_once(tmp_path: Path) -> None:
    """The same content has one name, another shape or dtype of it another one."""
    x = torch.arange(6.0)
    names = written(tmp_path / "a.trace", [x, x.clone(), x.reshape(2, 3), x.int()])
    assert names[0] == names[1] and len({*names}) == 3


def test_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large recordings are several files, and a small one in between is found."""
    monkeypatch.setattr(recorder, "_SHARD", 1000)
    values = [np.full(200, float(i)) for i in range(5)]
    names = written(tmp_path / "a.trace", values)
    with open_bundle(tmp_path / "a.trace") as bundle:
        assert len({bundle.tensors[name].member for name in names}) == 5
        assert all(np.array_equal(v, bundle.load(n)) for v, n in zip(values, names, strict=True))  # type: ignore[arg-type]


def test_the_same_recording_is_the_same_file(tmp_path: Path) -> None:
    """No time, no chance and no folder gets into the bytes."""
    for name in ("a.trace", "b.trace"):
        written(tmp_path / name, [np.arange(5)])
    assert (tmp_path / "a.trace").read_bytes() == (tmp_path / "b.trace").read_bytes()


# -- summaries --------------------------------------------------------------------------------------------------------


def test_the_projection_never_changes() -> None:
    """Bundles of different years and numpy versions are compared: these numbers are part of the format."""
    statistics, projection = recorder.summarize(np.arange(1000, dtype=np.float32) - 500, (10, 100))
    assert PROJECTED == len(projection)
    assert [int(value) for value in projection[:4]] == PROJECTION_OF_RAMP
    assert (-500, 499, -0.5) == (statistics["minimum"], statistics["maximum"], statistics["mean"])


PROJECTION_OF_RAMP = [-985, 976, 715, 655]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(-12, 0), st.integers(100, 5000))
def test_projections_estimate_errors(seed: int, exponent: int, size: int) -> None:
    """Relative errors from 1 down to the last bits of float64, each within half of its size."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=size)
    y = x + generator.normal(size=size) * 10.0**exponent
    sides = [recorder.summarize(each, (size,))[1] for each in (x, y)]
    real = np.linalg.norm(y - x)
    assert 0.5 * real < np.linalg.norm(sides[0] - sides[1]) < 1.5 * real


def test_errors_in_one_channel_are_seen() -> None:
    """Elements at even distances don't fall into one sum."""
    x = np.zeros((64, 128), np.float32)
    y = x.copy()
    y[:, 64] = 1
    sides = [recorder.summarize(each.reshape(-1), x.shape)[1] for each in (x, y)]
    assert 5 < np.linalg.norm(sides[0] - sides[1]) < 11  # 8


def test_non_finite_numbers_are_counted(tmp_path: Path) -> None:
    """They take no part in sums; where their number differs, that is told."""
    x = np.array([1.0, np.nan, np.inf, -np.inf, 2.0])
    y = np.array([1.0, np.nan, 5.0, -np.inf, 2.0])
    written(tmp_path / "a.trace", [x], summary=True)
    written(tmp_path / "b.trace", [y], summary=True)
    with open_bundle(tmp_path / "a.trace") as one, open_bundle(tmp_path / "b.trace") as other:
        metrics = estimate(one.tensors["t0"], other.tensors["t0"])
        assert one.load("t0") is None
    assert (3, 2, 1) == (metrics.nonfinite_expected, metrics.nonfinite_actual, metrics.nonfinite_mismatch)


def test_a_summary_is_small(tmp_path: Path) -> None:
    """Kilobytes, whatever the tensors' size."""
    model = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))
    x = torch.randn(1, 8, 96, 96)
    sizes = {s: Path(record(model, x, None, tmp_path / f"{s}.trace", summary=s)).stat().st_size for s in (True, False)}
    assert sizes[True] < 60_000 < 2_000_000 < sizes[False]


def test_selected_stages(tmp_path: Path) -> None:
    """Tensors of the others are left out, what is known about them is not; a glob that finds nothing is told."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    record(model, torch.ones(1, 3), None, tmp_path / "a.trace", stages=["1"])
    with open_bundle(tmp_path / "a.trace") as bundle:
        kept = {e["stage"]: bundle.load(e["tensor"]) is not None for e in bundle.manifest["stages"] if e["stage"]}
    assert {"0": False, "1": True, "2": True} == kept  # the last one is the output
    with pytest.raises(RecordError, match="no stage has such a name"):
        record(model, torch.ones(1, 3), None, tmp_path / "b.trace", stages=["nothing*"])
    assert ["a.trace"] == sorted(os.listdir(tmp_path))


# -- what is there ----------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Not without force, and never something that is no bundle."""
    written(tmp_path / "a.trace", [np.ones(2)])
    with pytest.raises(RecordError, match="exists"):
        written(tmp_path / "a.trace", [np.ones(3)])
    written(tmp_path / "a.trace", [np.ones(4)], force=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("kept")
    with pytest.raises(RecordError, match="no bundle"):
        written(tmp_path / "folder", [np.ones(2)], force=True, folder=True)
    assert "kept" == (tmp_path / "folder" / "mine").read_text()
    with pytest.raises(RecordError, match="a file"):
        written(tmp_path / "a.trace", [np.ones(2)], force=True, folder=True)
    with pytest.raises(RecordError, match="no folder"):
        written(tmp_path / "none" / "a.trace", [np.ones(2)])


def _foreign(place: Path) -> dict[str, Path]:
    """What --force must not touch, by kind."""
    torch.save({"w": torch.ones(2)}, place / "ckpt.pth")
    np.savez(place / "s.npz", x=np.ones(2))
    (place / "model.py").write_text("x = 1")
    (place / "empty.trace").touch()
    (place / "m.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    with zipfile.ZipFile(place / "mine.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("tensors-00000.safetensors", "x")
    with zipfile.ZipFile(place / "notes.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("notes.txt", "x")
    written(place / "whole.trace", [np.ones(2)])
    (place / "cut.trace").write_bytes((place / "whole.trace").read_bytes()[:-9])
    (place / "link.trace").symlink_to("whole.trace")
    with zipfile.ZipFile(place / "whole.trace") as source, zipfile.ZipFile(place / "altered.trace", "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name).replace(b'"stages"', b'"Stages"'))
    return {path.name: path for path in place.iterdir() if path.name != "whole.trace"}


def test_force_replaces_nothing_but_bundles(tmp_path: Path) -> None:
    """Checkpoints, models, samples, other zip files, halves of bundles and links stay as they are."""
    things = _foreign(tmp_path)
    assert 10 == len(things)
    for name, path in things.items():
        before = path.read_bytes()
        for folder in (False, True):
            with pytest.raises(RecordError, match="nothing but a bundle") as caught:
                written(path, [np.ones(3)], force=True, folder=folder)
            assert caught.value.hint, name
        assert before == path.read_bytes(), name
    assert things["link.trace"].is_symlink()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_force_replaces_folders_that_hold_nothing_else(tmp_path: Path) -> None:
    """A bundle's folder goes; with one file more in it, or a member less, it stays."""
    folder = tmp_path / "folder"
    written(folder, [np.ones(2)], folder=True)
    written(folder, [np.ones(3)], folder=True, force=True)
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(RecordError, match=r"it holds 'mine\.txt'"):
        written(folder, [np.ones(4)], folder=True, force=True)
    assert "kept" == (folder / "mine.txt").read_text()
    (folder / "mine.txt").unlink()
    (folder / "projections.safetensors").unlink()
    with pytest.raises(RecordError, match="no whole bundle"):
        written(folder, [np.ones(4)], folder=True, force=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(RecordError, match="not that of a bundle"):
        written(folder, [np.ones(4)], folder=True, force=True)
    assert "{}" == (folder / "manifest.json").read_text()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("moment", ["add", "finish", "move"])
def test_interrupted_recordings_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, folder: bool
) -> None:
    """Ctrl-C at any point: the old bundle is still there, and nothing half beside it."""
    path = tmp_path / "a.trace"
    written(path, [np.ones(2)], folder=folder)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    target = {"add": "_store", "finish": "_write", "move": "_move"}[moment]
    with monkeypatch.context() as patched:
        patched.setattr(BundleWriter, target, stop)
        with pytest.raises(KeyboardInterrupt):
            written(path, [np.zeros(3)], force=True, folder=folder)
    assert ["a.trace"] == os.listdir(tmp_path)
    with open_bundle(path) as bundle:
        assert np.array_equal(np.ones(2), bundle.load("t0"))  # type: ignore[arg-type]


def test_taps_are_free_and_gone_afterwards(tmp_path: Path) -> None:
    """Outside of a recording a tap does nothing; inside both names of it do the same."""
    import bisect_tool

    assert "x" == bisect_tool.tap("nothing", "x")
    with Recording(tmp_path / "a.trace") as recording:
        bisect_tool.tap("one", np.ones(2))
        recorder.tap("two", {"a": torch.zeros(1), "b": [np.ones(1), 3]})
        names = [entry["name"] for entry in recording.taps]
    assert ["one", "two/a", "two/b/0", "two/b/1"] == names
    assert [] == recorder.SINKS and [] == os.listdir(tmp_path)


def test_taps_of_tables_and_images(tmp_path: Path) -> None:
    """Columns are steps of their own, and so is an image's mode."""
    import pandas as pd
    from PIL import Image

    table = pd.DataFrame({"x": [1.0, np.nan], "name": ["p", "q"]})
    with Recording(tmp_path / "a.trace") as recording:
        recorder.tap("table", table)
        recorder.tap("image", Image.new("RGB", (3, 2)))
        names = [entry["name"] for entry in recording.taps]
        recording.finish({})
    assert ["table/(columns)", "table/(index)", "table/x", "table/name", "image", "image/(mode)"] == names
    with open_bundle(tmp_path / "a.trace") as bundle:
        tensors = {entry["name"]: entry["tensor"] for entry in bundle.manifest["data"]["taps"]}
        assert ["p", "q"] == bundle.texts(tensors["table/name"])
        assert (2, 3, 3) == bundle.tensors[tensors["image"]].shape


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    written(tmp_path / "good.trace", [np.arange(100, dtype=np.float32), np.ones((2, 3))])
    return tmp_path / "good.trace"


def refused(path: Path, match: str) -> None:
    with pytest.raises(BisectError, match=match) as caught, open_bundle(path):
        pass
    assert str(path) in caught.value.message and caught.value.hint


def test_cut_off_anywhere(good: Path, tmp_path: Path) -> None:
    """At no length does a part of a bundle read as one."""
    whole = good.read_bytes()
    for size in sorted({0, 1, 10, 100, *range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}):
        (tmp_path / "cut.trace").write_bytes(whole[:size])
        refused(tmp_path / "cut.trace", "zip|cut off|recording|manifest")


def test_every_byte_counts(good: Path, tmp_path: Path) -> None:
    """One flipped bit anywhere in members is found."""
    whole = good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        places = [(e.header_offset + 30 + len(e.filename), e.file_size) for e in archive.infolist()]
    for start, size in places:
        for at in range(start, start + size, max(1, size // 12)):
            data = bytearray(whole)
            data[at] ^= 4
            (tmp_path / "bad.trace").write_bytes(bytes(data))
            refused(tmp_path / "bad.trace", "recording")


def rebuilt(
    good: Path, target: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None], *, sign: bool = True
) -> Path:
    """The bundle with other members and another manifest, with digests that fit."""
    with zipfile.ZipFile(good) as source:
        members = {name: source.read(name) for name in source.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    change(manifest, members)
    if sign:
        manifest["digest"] = manifest_digest(manifest)
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w") as made:
        warnings.simplefilter("ignore")  # of a second member of one name
        made.writestr("manifest.json", json.dumps(manifest))
        for name, data in members.items():
            made.writestr(name, data)
    return target


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../evil", "..\\evil", "C:\\evil", "tensors-1.safetensors", "x.pkl"]
)
def test_members_cannot_lead_out_of_the_folder(good: Path, tmp_path: Path, name: str) -> None:
    """Names are one of three, whether the archive or the manifest has them; nothing is written anywhere."""
    refused(rebuilt(good, tmp_path / "a.trace", lambda _, members: members.update({name: b"x"})), "no recording has")

    def named(manifest: dict[str, Any], _: dict[str, bytes]) -> None:
        manifest["members"].append({"name": name, "bytes": 1, "sha256": "0"})

    refused(rebuilt(good, tmp_path / "b.trace", named), "no recording has")
    assert {"good.trace", "a.trace", "b.trace"} == set(os.listdir(tmp_path))


def test_links_and_duplicates(good: Path, tmp_path: Path) -> None:
    """A member that is a link, twice there, or compressed is refused."""
    with zipfile.ZipFile(good) as source:
        members = {name: source.read(name) for name in source.namelist()}

    def archive(name: str, write: Callable[[zipfile.ZipFile], None]) -> Path:
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / name, "w") as made:
            warnings.simplefilter("ignore")
            for member, data in members.items():
                if member != "projections.safetensors":
                    made.writestr(member, data)
            write(made)
        return tmp_path / name

    link = zipfile.ZipInfo("projections.safetensors")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    data = members["projections.safetensors"]
    refused(archive("link.trace", lambda made: made.writestr(link, "/etc/passwd")), "link")
    twice = [data, data]
    refused(archive("twice.trace", lambda made: [made.writestr(link.filename, d) for d in twice] and None), "twice")
    packed = lambda made: made.writestr(link.filename, data, zipfile.ZIP_DEFLATED)  # noqa: E731
    refused(archive("packed.trace", packed), "compressed")


def test_links_in_a_folder(tmp_path: Path) -> None:
    """A member that leads elsewhere is refused, as is one that is missing; other files do no harm."""
    written(tmp_path / "a", [np.ones(2)], folder=True)
    (tmp_path / "a" / ".DS_Store").write_text("")
    with open_bundle(tmp_path / "a"):
        pass
    (tmp_path / "a" / "projections.safetensors").rename(tmp_path / "elsewhere")
    refused(tmp_path / "a", "missing")
    (tmp_path / "a" / "projections.safetensors").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "a", "link")


def _drop(key: str) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    return lambda manifest, _: manifest.pop(key) and None


def _set(**values: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    return lambda manifest, _: manifest.update(values)


MALFORMED: list[tuple[Callable[[dict[str, Any], dict[str, bytes]], None], str]] = [
    (_set(bundle_version=99), "bundle_version is 99"),
    (_drop("stages"), "lacks 'stages'"),
    (_set(outputs=[{"key": 0, "tensor": "t99"}]), "not there"),
    (_set(stages=[{"stage": "x"}]), "malformed"),
    (_set(tensors={"t0": 3}), "malformed"),
    (_set(members=[{"name": "projections.safetensors"}]), "malformed"),
    (lambda manifest, _: manifest["tensors"]["t0"].update(member="tensors-00009.safetensors"), "no member"),
    (lambda manifest, _: manifest["tensors"]["t0"].update(projection=77), "projection"),
    (lambda manifest, _: manifest["tensors"]["t0"].update(shape=["x"]), "malformed"),
    (lambda _, members: members.update({"tensors-00007.safetensors": b"x"}) and None, "does not name"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "match"), MALFORMED, ids=[match for _, match in MALFORMED])
def test_malformed_manifests(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None], match: str
) -> None:
    """Whoever signs it: what is missing or makes no sense is named."""
    refused(rebuilt(good, tmp_path / "a.trace", change), match)


def test_an_unsigned_change(good: Path, tmp_path: Path) -> None:
    """The manifest has a digest of its own."""
    refused(rebuilt(good, tmp_path / "a.trace", _set(content="summary"), sign=False), "its own digest")


def _with_header(good: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    import hashlib

    def edit(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        name = "tensors-00000.safetensors"
        (size,) = struct.unpack("<Q", members[name][:8])
        header = json.loads(members[name][8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        members[name] = struct.pack("<Q", len(text)) + text + members[name][8 + size :]
        entry = next(each for each in manifest["members"] if each["name"] == name)
        entry.update(bytes=len(members[name]), sha256=hashlib.sha256(members[name]).hexdigest())

    return rebuilt(good, target, edit)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["t0"].update(data_offsets=[0, 10**12]),
        lambda header: header["t0"].update(data_offsets=[-8, 392]),
        lambda header: header["t0"].update(data_offsets=[400, 0]),
        lambda header: header["t0"].update(dtype="F99"),
        lambda header: header["t0"].update(shape=[10**9]),
        lambda header: header.pop("t0"),
    ],
)
def test_malformed_shards(good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Offsets, dtypes and shapes that do not fit the file are told when the tensor is read."""
    path = _with_header(good, tmp_path / "a.trace", change)
    with pytest.raises(BisectError, match="recording"), open_bundle(path) as bundle:
        bundle.load("t0")


def test_no_bundle_at_all(tmp_path: Path) -> None:
    """Missing files, folders without a manifest, other zip files."""
    refused(tmp_path / "none.trace", "no such file")
    (tmp_path / "d").mkdir()
    refused(tmp_path / "d", "no manifest.json")
    with zipfile.ZipFile(tmp_path / "z.trace", "w") as archive:
        archive.writestr("data.pkl", b"")
    refused(tmp_path / "z.trace", "no recording has")


def test_ml_dtypes_arrays(tmp_path: Path) -> None:
    """numpy arrays of ml_dtypes, which ONNX Runtime's side may have."""
    array = np.array([1.5, -2.0, 0.0], ml_dtypes.bfloat16)
    (name,) = written(tmp_path / "a.trace", [array])
    with open_bundle(tmp_path / "a.trace") as bundle:
        loaded = bundle.load(name)
    assert loaded is not None and loaded.dtype == array.dtype and bits(array) == bits(loaded)


def test_both_programs_tell_of_the_same_variables() -> None:
    """The carried file has the package's list, and tells neither secrets nor places."""
    from bisect_tool.environments.variables import ALLOWED, is_allowed

    assert sorted(ALLOWED) == sorted(recorder.VARIABLES)
    names = [
        "OMP_NUM_THREADS",
        "MKL_DYNAMIC",
        "PYTHONHASHSEED",
        "HOME",
        "TORCH_HUB_TOKEN",
        "TORCHINDUCTOR_CACHE_DIR",
        "CUDA_PATH",
    ]
    names += ["ORT_API_KEY", "LANG", "NVIDIA_TF32_OVERRIDE", "USER", "PATH", "TORCH_LOGS", "CUDA_VISIBLE_DEVICES"]
    assert [is_allowed(name) for name in names] == [recorder._is_told(name) for name in names]


def test_long_values_are_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what they are."""
    monkeypatch.setenv("TORCH_SOMETHING", "x" * 61)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = recorder.environment()["variables"]
    assert ("(withheld)", "3") == (found["TORCH_SOMETHING"], found["OMP_NUM_THREADS"])
