"""What a file is, by its content, and the errors of reading what ``torch.save`` wrote."""

from __future__ import annotations

import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bisect_tool.backends.files import (
    USER_MODULE_PREFIX,
    first_line,
    kind_of_file,
    nearest,
    read_torch,
    require_file,
    some,
)
from bisect_tool.errors import EXIT_USAGE, BisectError

STATE = {"weight": torch.arange(300.0)}


class Payload:
    """What a pickle may hold: unpickling it calls ``mark``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return mark, ()


executed: list[str] = []


def mark() -> str:
    executed.append("ran")
    return "ran"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, obj: Any, **options: Any) -> Path:
    torch.save(obj, path, **options)
    return path


def half(path: Path) -> Path:
    content = path.read_bytes()
    return write(path, content[: len(content) // 2])


def script(path: Path) -> Path:
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), str(path))
    return path


def exported(path: Path) -> Path:
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), str(path))
    return path


def npz(path: Path) -> Path:
    np.savez(path, a=np.zeros(1))
    return path


def npy(path: Path) -> Path:
    np.save(path, np.zeros(1))
    return path


def safetensors(path: Path) -> Path:
    save_file(STATE, str(path))
    return path


def plain_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    return path


def tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(write(path.with_suffix(".inner"), b"x" * 10))
    return path


KINDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "torch": ("a.pt", lambda p: saved(p, STATE)),
    "torch legacy": ("a.pt", lambda p: saved(p, STATE, _use_new_zipfile_serialization=False)),
    "torchscript": ("a.pt", script),
    "exported": ("a.pt2", exported),
    "npz": ("a.npz", npz),
    "npy": ("a.npy", npy),
    "safetensors": ("a.safetensors", safetensors),
    "pickle": ("a.pkl", lambda p: write(p, pickle.dumps({"a": 1}))),
    "onnx": ("a.onnx", lambda p: write(p, b"\x08\x0a\x12\x07pytorch")),
    "zip": ("a.zip", plain_zip),
    "broken zip": ("a.pt", lambda p: half(saved(p, STATE))),
    "tar": ("a.tar", tar),
    "hdf5": ("a.h5", lambda p: write(p, b"\x89HDF\r\n\x1a\n")),
    "gzip": ("a.gz", lambda p: write(p, b"\x1f\x8b\x08")),
    "html": ("a.pt", lambda p: write(p, b"<!DOCTYPE html>\n<html>")),
    "lfs": ("a.pt", lambda p: write(p, b"version https://git-lfs.github.com/spec/v1\n")),
    "text": ("a.pt", lambda p: write(p, "größe = 1\n".encode() * 100)),
    "unknown": ("a.pt", lambda p: write(p, bytes(range(128, 256)) * 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_by_content(kind: str, tmp_path: Path) -> None:
    """Each format is recognised, and its suffix does not matter (except for ONNX, which has no mark)."""
    name, make = KINDS[kind]
    file = make(tmp_path / name)
    assert kind_of_file(file) == kind.removesuffix(" legacy")
    if kind != "onnx":
        assert kind_of_file(file.rename(tmp_path / "other.bin")) == kind.removesuffix(" legacy")


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith(("torch", "pickle")) or k == "torchscript"])
def test_other_kinds_are_named_instead_of_read(kind: str, tmp_path: Path) -> None:
    """A file of another kind is refused with exit code 2, its path and a remedy; torch never sees it."""
    name, make = KINDS[kind]
    file = make(tmp_path / name)
    with pytest.raises(BisectError, match="is no checkpoint: it is") as caught:
        read_torch(file, "checkpoint")
    assert str(file) in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(("kind", "remedy"), [("lfs", "git lfs pull"), ("html", "download"), ("onnx", "--onnx")])
def test_remedies_fit_the_kind(kind: str, remedy: str, tmp_path: Path) -> None:
    """Kinds with a known cause get the remedy of that cause."""
    name, make = KINDS[kind]
    with pytest.raises(BisectError) as caught:
        read_torch(make(tmp_path / name), "checkpoint")
    assert remedy in str(caught.value.hint)


def test_cut_files_are_damaged_and_not_unsafe(tmp_path: Path) -> None:
    """A legacy file that was cut says so; --allow-pickle would not help and is not offered."""
    file = half(saved(tmp_path / "a.pt", STATE, _use_new_zipfile_serialization=False))
    with pytest.raises(BisectError, match="damaged or incomplete") as caught:
        read_torch(file, "checkpoint")
    assert "--allow-pickle" not in str(caught.value.hint)
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.__cause__ is not None


def test_damage_inside_a_whole_archive_is_reported(tmp_path: Path) -> None:
    """A zip archive whose directory is whole but whose pickle is not raises no error of torch."""
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00X")
        archive.writestr("a/version", b"3\n")
    with pytest.raises(BisectError, match="damaged or incomplete") as caught:
        read_torch(file, "checkpoint")
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_files_does_not_run_without_permission(tmp_path: Path, legacy: bool) -> None:
    """A class in the file is named, --allow-pickle and its risk are said, and nothing of it ran."""
    file = saved(tmp_path / "a.pt", {"x": Payload()}, _use_new_zipfile_serialization=not legacy)
    executed.clear()
    with pytest.raises(BisectError, match=r"without running code: it holds \S*mark") as caught:
        read_torch(file, "checkpoint")
    assert executed == []
    assert "--allow-pickle" in str(caught.value.hint)
    assert "runs whatever code" in str(caught.value.hint)
    assert read_torch(file, "checkpoint", allow_pickle=True) == {"x": "ran"}
    assert executed == ["ran"]


def test_plain_pickles_need_permission(tmp_path: Path) -> None:
    """A file of ``pickle.dump`` is not what torch.load reads, but permission is enough for it."""
    file = write(tmp_path / "a.pkl", pickle.dumps({"x": np.arange(3)}))
    with pytest.raises(BisectError, match="it is a plain pickle"):
        read_torch(file, "checkpoint")
    assert read_torch(file, "checkpoint", allow_pickle=True)["x"].tolist() == [0, 1, 2]


def test_numpy_arrays_and_numbers_need_no_permission(tmp_path: Path) -> None:
    """Training scripts store metrics as numpy numbers; that is no reason to run code."""
    file = saved(tmp_path / "a.pt", {"best": np.float64(0.5), "mean": np.arange(2.0), "epoch": np.int64(3)})
    found = read_torch(file, "checkpoint")
    assert found["best"] == 0.5
    assert found["mean"].tolist() == [0.0, 1.0]
    assert found["epoch"] == 3


def test_allowing_numpy_leaves_torch_as_it_was(tmp_path: Path) -> None:
    """What is let through here stays refused for the user's own ``torch.load``."""
    file = saved(tmp_path / "a.pt", np.arange(2.0))
    read_torch(file, "checkpoint")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_classes_are_looked_up_in_the_loaded_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model saved whole by a training script (``__main__.SavedWhole``) finds its class in the model file."""
    source = types.ModuleType("gone")
    cls = type("SavedWhole", (torch.nn.Linear,), {"__module__": "gone"})
    source.SavedWhole = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gone", source)
    file = saved(tmp_path / "a.pt", cls(1, 1))
    monkeypatch.delitem(sys.modules, "gone")
    with pytest.raises(BisectError, match="needs code that is not there: No module named 'gone'") as caught:
        read_torch(file, "checkpoint", allow_pickle=True)
    assert "model file" in str(caught.value.hint)
    monkeypatch.setitem(sys.modules, USER_MODULE_PREFIX + "model_x", source)
    assert type(read_torch(file, "checkpoint", allow_pickle=True)) is cls


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    """Missing, empty, a folder, a pipe, an impossible name: each with its path and exit code 2."""
    (tmp_path / "model.py").write_text("x = 1\n")
    (tmp_path / "empty.pt").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, reason, hint in (
        (tmp_path / "modle.py", "no such file", "model.py"),
        (tmp_path / "empty.pt", "is empty", "again"),
        (tmp_path, "is a folder; in it: empty.pt, model.py", "file itself"),
        (tmp_path / "pipe", "not a regular file", "save"),
        (tmp_path / ("x" * 500), "cannot be read", "check"),
        ("nul\0byte", "cannot be read", "check"),
        ("~no_such_user_here/a.pt", "no such file", "check"),
    ):
        with pytest.raises(BisectError, match=reason) as caught:
            require_file(path, "sample")
        assert hint in str(caught.value.hint)
        assert caught.value.message.startswith("sample ")
        assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_unreadable_files(tmp_path: Path) -> None:
    """A file without the right to read it is an error that says so."""
    file = saved(tmp_path / "a.pt", STATE)
    file.chmod(0)
    with pytest.raises(BisectError, match="Permission denied"):
        require_file(file, "sample")


def test_small_helpers() -> None:
    """Lists are cut with a count, near names are found, and an error without a text gives its type."""
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some("ab") == "a, b"
    assert nearest("num_point", ["voxels", "num_points"]) == "num_points"
    assert nearest("zzz", ["voxels"]) is None
    assert first_line(KeyError()) == "KeyError"
    assert first_line("\n  one\ntwo") == "one"
    assert len(first_line("x" * 1000)) == 240
