"""What a file is, judged by its content, and reading tensors from it without leaking the libraries' own errors."""

from __future__ import annotations

import contextlib
import difflib
import os
import pickle
import re
import stat
import sys
import types
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bisect_tool.errors import BisectError

FileKind = Literal[
    "torch", "torchscript", "exported", "npz", "npy", "safetensors", "pickle", "onnx", "zip", "broken zip", "tar",
    "hdf5", "gzip", "html", "lfs", "text", "unknown",
]  # fmt: skip

USER_MODULE_PREFIX = "_bisect_model_"
"""Names in ``sys.modules`` of the model files that were loaded."""

_WORDS: dict[FileKind, str] = {
    "torch": "a file of torch.save",
    "torchscript": "a TorchScript archive",
    "exported": "a program of torch.export",
    "npz": "a NumPy archive (.npz)",
    "npy": "a NumPy array (.npy)",
    "safetensors": "a safetensors file",
    "pickle": "a plain pickle",
    "onnx": "an ONNX file",
    "zip": "a zip archive, but not one of PyTorch or NumPy",
    "broken zip": "a damaged or incomplete zip archive",
    "tar": "a tar archive",
    "hdf5": "an HDF5 file",
    "gzip": "a gzip file",
    "html": "a web page",
    "lfs": "a Git LFS pointer, not the file itself",
    "text": "a text file",
    "unknown": "nothing that is known here",
}
_REMEDIES: dict[FileKind, str] = {
    "onnx": "an ONNX file is given with --onnx",
    "broken zip": "copy or download it again, and compare its size with the original",
    "gzip": "unpack it first",
    "html": "a download ended on a login or error page; download it again",
    "lfs": "fetch the file: git lfs pull",
}
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_BLOCKED = re.compile(r"Unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)|but got <class '([^']+)'>")


def first_line(error: BaseException | str, limit: int = 240) -> str:
    """The first line that says something, trimmed; the type's name for errors without a text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "" if isinstance(error, str) else type(error).__name__
    return lines[0] if len(lines[0]) <= limit else lines[0][: limit - 1] + "…"


def reason_of(error: BaseException, limit: int = 300) -> str:
    """What an exception says, in one line of at most ``limit`` characters: ``RuntimeError: ...``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if text.startswith(("The following operation failed", "Caught ")):
        # TorchScript puts its own traceback first and the reason last.
        text = re.sub(r"^\w*Error: ", "", lines[-1])
    # Torch's C++ messages carry the C++ file and line, which help nobody here.
    text = re.sub(r"\s*Exception raised from .*$", "", text)
    name = type(error).__name__
    text = f"{name}: {text}" if text else name
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def some(names: Iterable[object], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    listed = [str(name) for name in names]
    text = ", ".join(listed[:limit])
    return text + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like the given one; ``None`` if none is."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def require_file(path: str | os.PathLike[str], role: str) -> Path:
    """The path of a file that can be opened and is not empty.

    Args:
        path: as the user gave it; ``~`` is expanded.
        role: what it should be, for the message (``checkpoint``).

    Raises:
        BisectError: no such file, a folder, not a regular file, no permission, empty.
    """
    file = Path(os.path.expanduser(path))  # Path.expanduser raises for users that there are not
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = sorted(p.name for p in file.iterdir() if p.is_file() and not p.name.startswith("."))
            listing = f"; in it: {some(inside)}" if inside else ""
            raise BisectError(f"{role} {path} is a folder{listing}", hint=f"give the {role} file itself")
        if not stat.S_ISREG(status.st_mode):
            raise BisectError(f"{role} {path} is not a regular file", hint="save it to a file first")
        with file.open("rb"):
            pass
    except FileNotFoundError as error:
        raise _no_such_file(path, file, role) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise BisectError(
            f"{role} {path} cannot be read: {reason}", hint="check the path and its permissions"
        ) from error
    if status.st_size == 0:
        raise BisectError(f"{role} {path} is empty (0 bytes)", hint="save or copy it again")
    return file


def _similar_file(file: Path) -> str | None:
    """A neighbour's name that may have been meant; a suffix in common makes no two names alike."""
    names = [path.name for path in file.parent.iterdir()]
    stem = nearest(file.stem, (Path(name).stem for name in names if Path(name).suffix == file.suffix))
    if stem is not None:
        return stem + file.suffix
    return nearest(file.name, (name for name in names if Path(name).suffix != file.suffix))


def _no_such_file(path: object, file: Path, role: str) -> BisectError:
    try:
        near = _similar_file(file)
    except OSError:
        near = None
    hint = f"there is {file.parent / near}" if near else "check the path"
    return BisectError(f"{role} {path}: no such file", hint=hint)


def kind_of_file(file: Path) -> FileKind:
    """What a file is, by its first bytes, and by its members if it is a zip archive; suffixes lie too often.

    Raises:
        BisectError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
        if head.startswith(b"PK"):
            return _kind_of_zip(file)
    except OSError as error:
        raise BisectError(f"{file} cannot be read: {error.strerror or error}", hint="check its permissions") from error
    if head.startswith(_LEGACY_MAGIC):
        return "torch"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"
    for start, kind in ((b"\x89HDF\r\n", "hdf5"), (b"\x1f\x8b", "gzip"), (b"version https://git-lfs", "lfs")):
        if head.startswith(start):
            return kind  # type: ignore[return-value]
    if head[257:262] == b"ustar":
        return "tar"
    if file.suffix == ".onnx":
        return "onnx"
    return _kind_of_text(head)


def _kind_of_zip(file: Path) -> FileKind:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "broken zip"
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or {"serialized_exported_program.json", "version"} <= set(names):
        return "exported"
    if "constants.pkl" in inner and "data.pkl" in inner:
        return "torchscript"
    if "data.pkl" in inner:
        return "torch"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


def _kind_of_text(head: bytes) -> FileKind:
    # The cut may have split a character.
    text = head.decode("utf-8", errors="ignore")
    if b"\0" in head or len(text.encode()) < len(head) - 4:
        return "unknown"
    if not all(char.isprintable() or char.isspace() for char in text):
        return "unknown"
    return "html" if text.lstrip().lower().startswith(("<!doctype", "<html")) else "text"


def wrong_kind(file: Path, kind: FileKind, role: str, hint: str) -> BisectError:
    """The error for a file of another kind; ``hint`` is used unless the kind has a remedy of its own."""
    return BisectError(f"{file} is no {role}: it is {_WORDS[kind]}", hint=_REMEDIES.get(kind, hint))


def read_torch(file: Path, role: str, *, allow_pickle: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU. Numpy arrays and numbers are let through: they can't run code.

    Args:
        file: exists (:func:`require_file`).
        role: what it should be, for the messages.
        allow_pickle: unpickle anything, which runs code that the file holds; classes are also looked up in the loaded
            model file, since whoever saves a whole model does so from a script with another module name.

    Raises:
        BisectError: not such a file, damaged, or wants pickle and may not.
    """
    kind = kind_of_file(file)
    if kind not in ("torch", "pickle") and not (kind == "tar" and allow_pickle):
        raise wrong_kind(file, kind, role, f"give a {role} that torch.save wrote")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not allow_pickle:
                # Older versions let nothing through but tensors: the error says what a file holds beside them.
                allowed = getattr(torch.serialization, "safe_globals", None)
                with allowed(_numpy_globals()) if allowed is not None else contextlib.nullcontext():
                    return torch.load(file, map_location="cpu", weights_only=True)
            if kind == "pickle":
                with file.open("rb") as stream:
                    # latin1 is what numpy arrays pickled by Python 2 need; it changes nothing for newer ones.
                    return _Unpickler(stream, encoding="latin1").load()
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    except Exception as error:  # torch.load raises whatever the bytes made it stumble over
        raise _torch_load_error(file, kind, role, allow_pickle, error) from error


def read_safetensors(file: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        BisectError: it is no such file, or a damaged one.
    """
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except Exception as error:  # SafetensorError, but also KeyError for a dtype that torch does not have
        raise BisectError(
            f"{what} {file} cannot be read as safetensors: {reason_of(error)}",
            hint="the file is damaged, cut short, or of another format",
        ) from error


def _torch_load_error(file: Path, kind: FileKind, role: str, allow_pickle: bool, error: Exception) -> BisectError:
    if isinstance(error, OSError) and error.strerror:
        return BisectError(f"{role} {file} cannot be read: {error.strerror}", hint="check its permissions")
    if allow_pickle:
        if isinstance(error, (AttributeError, ImportError)):
            return BisectError(
                f"{role} {file} needs code that is not there: {first_line(error)}",
                hint="define or import that class in the model file, or put its package on PYTHONPATH",
            )
        return _damaged(file, role, error)
    blocked = _BLOCKED.search(str(error))
    names = [name for name in blocked.groups() if name] if blocked else []
    if names or kind == "pickle":
        what = f"it holds {names[0]}, which is more than tensors" if names else "it is a plain pickle"
        return BisectError(
            f"{role} {file} cannot be read without running code: {what}",
            hint="if you trust its origin: --allow-pickle (this runs whatever code the file holds); "
            "safer: save only the tensors",
        )
    return _damaged(file, role, error)


def _damaged(file: Path, role: str, error: Exception) -> BisectError:
    reason = re.split(r"\. (?=[A-Z])", first_line(error))[0]
    text = reason if reason == type(error).__name__ else f"{type(error).__name__}: {reason}"
    return BisectError(
        f"{role} {file} is damaged or incomplete ({text})",
        hint="copy or download it again, and compare its size with the original",
    )


def _numpy_globals() -> list[Any]:
    # Taken from the objects themselves: the module was renamed in numpy 2, and files carry either name.
    array: Any = np.zeros(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    found: list[Any] = [np.ndarray, np.dtype]
    for core in ("numpy._core.multiarray", "numpy.core.multiarray"):
        found += [(array, f"{core}._reconstruct"), (scalar, f"{core}.scalar")]
    dtypes = getattr(np, "dtypes", None)
    return found + [getattr(dtypes, name) for name in getattr(dtypes, "__all__", ())]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            for known, loaded in list(sys.modules.items()):
                if known.startswith(USER_MODULE_PREFIX) and name in vars(loaded):
                    return vars(loaded)[name]
            raise


def _pickle_load(stream: Any, **options: Any) -> Any:
    return _Unpickler(stream, **options).load()


# torch.load asks for a module; this one differs from pickle only in where it looks for classes.
_PICKLE = types.ModuleType("bisect_pickle")
_PICKLE.__dict__.update(Unpickler=_Unpickler, load=_pickle_load)
