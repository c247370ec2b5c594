"""Reads recordings: a folder or one stored zip file, with ``manifest.json`` and safetensors files.

Nothing in a bundle is trusted. Members have one of three fixed names, so that none leads out of the folder, none is
written anywhere, and nothing is unpickled; everything is checked against its SHA-256 before any of it is used. Only numpy
(and ml_dtypes for formats that numpy lacks) is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.errors import BisectError

Array = NDArray[Any]

BUNDLE_VERSION = 1
MANIFEST = "manifest.json"
PROJECTIONS = "projections.safetensors"
PROJECTED = 64

_MEMBER = re.compile(r"manifest\.json|projections\.safetensors|tensors-[0-9]{5}\.safetensors")
_MOST_MANIFEST = 1 << 28
_BLOCK = 1 << 20
_STORED = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_VIEWED = {
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
"""Dtypes that are stored as another one: pairs of numbers, or bytes."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a bundle knows about one tensor.

    Attributes:
        name: in the bundle.
        dtype: torch's short name; ``json`` for what is no number.
        shape: of the tensor.
        sha256: over dtype, shape and bytes: equal where and only where two tensors are.
        member: file that holds it; ``None``: only this much is known.
        statistics: count, nan, infinities, minimum, maximum, mean, norm; ``None`` for what is no number.
        projection: ``(PROJECTED,)`` sums with random signs; ``None`` for what is no number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    member: str | None
    statistics: Mapping[str, Any] | None
    projection: Array | None


class Bundle:
    """An open recording; read it with :func:`open_bundle`.

    Attributes:
        path: of the folder or file.
        manifest: as the file has it, checked for what every reader relies on.
        tensors: by name.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], source: _Source):
        self.path = path
        self.manifest = manifest
        self._source = source
        self._headers: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self.tensors = self._read_tensors()

    @property
    def name(self) -> str:
        return self.path.name

    def load(self, name: str) -> Array | None:
        """A tensor in C order; ``None`` where the bundle has no more than a summary of it."""
        info = self.tensors[name]
        if info.member is None:
            return None
        stored, flat = self._stored(info.member, name)
        if info.dtype == "json":
            return np.array(json.loads(flat.tobytes().decode()), dtype=object).reshape(info.shape)
        viewed = _VIEWED.get(info.dtype)
        if viewed is not None:
            flat = flat.view(viewed)
        elif _short_name(stored) != info.dtype:
            self._broken(f"{name} is {info.dtype} in the manifest and {stored} in {info.member}")
        if flat.size != _product(info.shape):
            self._broken(f"{name} has {flat.size} elements in {info.member}, its shape is {list(info.shape)}")
        return flat.reshape(info.shape)

    def texts(self, name: str) -> list[str] | None:
        """What a step holds that is no number."""
        array = self.load(name)
        return None if array is None else [str(item) for item in array.reshape(-1).tolist()]

    def _read_tensors(self) -> dict[str, Recorded]:
        _, rows = self._stored(PROJECTIONS, "projections")
        table = (
            rows.reshape(-1, PROJECTED) if rows.size % PROJECTED == 0 else self._broken("its projections are cut off")
        )
        found = {}
        for name, entry in self.manifest["tensors"].items():
            place = entry["projection"]
            if place is not None and not 0 <= place < len(table):
                self._broken(f"{name} has no projection")
            found[name] = Recorded(
                name,
                str(entry["dtype"]),
                tuple(int(size) for size in entry["shape"]),
                str(entry["sha256"]),
                entry["member"],
                entry["statistics"],
                None if place is None else table[place],
            )
        return found

    def _stored(self, member: str, name: str) -> tuple[np.dtype[Any], Array]:
        """A tensor of a safetensors file: stored dtype, and its numbers in one dimension."""
        start, header = self._header(member)
        entry = header.get(name)
        if not isinstance(entry, Mapping):
            self._broken(f"{member} holds no {name}")
        try:
            dtype = _STORED[entry["dtype"]]
            begin, end = (int(place) for place in entry["data_offsets"])
            count = _product(tuple(int(size) for size in entry["shape"]))
        except (KeyError, TypeError, ValueError):
            self._broken(f"{member}: the entry of {name} is malformed")
        size = self._source.size(member)
        if not 0 <= begin <= end <= size - start or end - begin != count * dtype.itemsize:
            self._broken(f"{member}: {name} lies outside of the file")
        raw = self._source.read(member, start + begin, end - begin)
        return dtype, np.frombuffer(raw, dtype=dtype)

    def _header(self, member: str) -> tuple[int, Mapping[str, Any]]:
        if member not in self._headers:
            size = self._source.size(member)
            if size < 8:
                self._broken(f"{member} is no safetensors file")
            length = int.from_bytes(self._source.read(member, 0, 8), "little")
            if length > size - 8:
                self._broken(f"{member} is cut off")
            try:
                header = json.loads(self._source.read(member, 8, length).decode())
            except ValueError:
                header = None
            if not isinstance(header, dict):
                self._broken(f"{member} is no safetensors file")
            self._headers[member] = (8 + length, header)
        return self._headers[member]

    def _broken(self, reason: str) -> NoReturn:
        raise broken(self.path, reason)


def broken(path: Path, reason: str) -> BisectError:
    """The error for a bundle that can't be relied on."""
    return BisectError(
        f"recording {path}: {reason}", hint="it was cut off or altered on its way; copy or record it again"
    )


def is_bundle(path: Path) -> bool:
    """Whether it is a recording: a folder with a manifest, or one file that holds one; a damaged one too."""
    if path.suffix.lower() == ".trace":
        return True
    if path.is_dir():
        return (path / MANIFEST).is_file()
    if not path.is_file() or path.suffix.lower() in (".npz", ".pt", ".pth"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


@contextmanager
def open_bundle(path: str | os.PathLike[str]) -> Iterator[Bundle]:
    """Opens a recording, and checks all of it.

    Raises:
        BisectError: there is none, it is of another version, or it was cut off or altered.
    """
    place = Path(path)
    if not os.path.lexists(place):
        raise BisectError(f"recording {place}: no such file or folder", hint="bisect-tool record makes one")
    if place.is_dir():
        yield _checked(place, _Folder(place))
        return
    try:
        file = place.open("rb")
    except OSError as error:
        raise BisectError(f"recording {place} cannot be read: {error.strerror}", hint="check the path") from error
    with file:
        yield _checked(place, _Zip(place, file))


def _checked(place: Path, source: _Source) -> Bundle:
    manifest = _manifest(place, source)
    listed = {}
    for entry in manifest["members"]:
        name = str(entry["name"])
        if not _MEMBER.fullmatch(name) or name == MANIFEST or name in listed:
            raise broken(place, f"its manifest names a member {name!r}, which no recording has")
        listed[name] = entry
    if PROJECTIONS not in listed:
        raise broken(place, f"its manifest lacks {PROJECTIONS}")
    for name in source.names() - {MANIFEST} - listed.keys():
        raise broken(place, f"it holds {name!r}, which its manifest does not name")
    for name, entry in listed.items():
        if name not in source.names():
            raise broken(place, f"{name} is missing")
        if source.size(name) != entry["bytes"]:
            raise broken(place, f"{name} has {source.size(name)} bytes, {entry['bytes']} were written")
        if _digest(source, name) != entry["sha256"]:
            raise broken(place, f"{name} is not what was written: its SHA-256 is another one")
    for name, entry in manifest["tensors"].items():
        if entry["member"] is not None and entry["member"] not in listed:
            raise broken(place, f"{name} lies in {entry['member']!r}, which is no member")
    try:
        return Bundle(place, manifest, source)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise broken(place, f"its manifest is malformed ({type(error).__name__}: {error})") from error


def _manifest(place: Path, source: _Source) -> Mapping[str, Any]:
    if MANIFEST not in source.names():
        raise BisectError(f"{place} is no recording: it has no {MANIFEST}", hint="bisect-tool record makes one")
    if source.size(MANIFEST) > _MOST_MANIFEST:
        raise broken(place, f"{MANIFEST} is too large")
    try:
        manifest = json.loads(source.read(MANIFEST, 0, source.size(MANIFEST)).decode())
    except (ValueError, RecursionError) as error:
        raise broken(place, f"{MANIFEST} is no JSON") from error
    if not isinstance(manifest, dict):
        raise broken(place, f"{MANIFEST} is no object")
    version = manifest.get("bundle_version")
    if version != BUNDLE_VERSION:
        raise BisectError(
            f"recording {place}: bundle_version is {version!r}; this version of the tool reads {BUNDLE_VERSION}",
            hint="record it again, or compare with the version of the tool that wrote it",
        )
    plain = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    if digest != manifest.get("digest"):
        raise broken(place, f"{MANIFEST} is not what was written: its own digest does not fit")
    _check_form(place, manifest)
    return manifest


_FORM: Mapping[str, type] = {
    "kind": str,
    "content": str,
    "provenance": dict,
    "environment": dict,
    "data": dict,
    "weights": list,
    "stages": list,
    "outputs": list,
    "notes": list,
    "tensors": dict,
    "members": list,
}
_ENTRY_KEYS: Mapping[str, tuple[str, ...]] = {
    "members": ("name", "bytes", "sha256"),
    "weights": ("name", "kind", "tensor"),
    "stages": ("stage", "call", "output", "level", "type", "source", "value", "tensor", "reads", "alias_of"),
    "outputs": ("key", "tensor"),
}


def _check_form(place: Path, manifest: Mapping[str, Any]) -> None:
    """What readers rely on; ``bundle.schema.json`` says all of it."""
    for key, kind in _FORM.items():
        if not isinstance(manifest.get(key), kind):
            raise broken(place, f"{MANIFEST} lacks {key!r}, or holds another kind of thing there")
    data = manifest["data"]
    entries = {
        **{key: (manifest[key], keys) for key, keys in _ENTRY_KEYS.items()},
        "data.taps": (data.get("taps"), ("name", "call", "tensor")),
        "data.inputs": (data.get("inputs"), ("key", "tensor")),
        "tensors": (
            list(manifest["tensors"].values()),
            ("dtype", "shape", "sha256", "member", "statistics", "projection"),
        ),
    }
    for name, (items, keys) in entries.items():
        fits = isinstance(items, list) and all(isinstance(item, dict) and item.keys() >= set(keys) for item in items)
        if not fits:
            raise broken(place, f"{MANIFEST}: {name} is malformed")
        for item in cast("list[dict[str, Any]]", items):
            if "tensor" in keys and item["tensor"] not in manifest["tensors"]:
                raise broken(place, f"{MANIFEST}: {name} refers to a tensor that is not there")


class _Source(Protocol):
    """Members by name, wherever they are."""

    def names(self) -> set[str]: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str, start: int, size: int) -> bytes:
        """A stretch of a member; never less than was asked for."""


def _digest(source: _Source, name: str) -> str:
    found, size = hashlib.sha256(), source.size(name)
    for start in range(0, size, _BLOCK):
        found.update(source.read(name, start, min(_BLOCK, size - start)))
    return found.hexdigest()


class _Folder:
    def __init__(self, path: Path):
        self.path = path
        self._sizes: dict[str, int] = {}
        try:
            for entry in os.scandir(path):
                if not _MEMBER.fullmatch(entry.name):
                    continue
                facts = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(facts.st_mode):
                    raise broken(path, f"{entry.name} is a link or no file")
                self._sizes[entry.name] = facts.st_size
        except OSError as error:
            raise BisectError(f"recording {path} cannot be read: {error.strerror}", hint="check the path") from error

    def names(self) -> set[str]:
        return set(self._sizes)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def read(self, name: str, start: int, size: int) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise BisectError(f"recording {self.path}: {name} cannot be read", hint="check its permissions") from error
        if len(data) != size:
            raise broken(self.path, f"{name} is cut off")
        return data


class _Zip:
    """A zip file whose members are stored as they are, so that they can be read in place."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path = path
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
            raise broken(path, f"it is no whole zip file ({error})") from error
        length = os.fstat(file.fileno()).st_size
        for entry in entries:
            if not _MEMBER.fullmatch(entry.filename) or entry.filename != entry.orig_filename:
                raise broken(path, f"it holds {entry.orig_filename!r}, which no recording has")
            if entry.filename in self._places:
                raise broken(path, f"it holds {entry.filename} twice")
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise broken(path, f"{entry.filename} is compressed or encrypted, which no recording is")
            if stat.S_ISLNK(entry.external_attr >> 16) or entry.is_dir():
                raise broken(path, f"{entry.filename} is a link or a folder")
            start = self._start(entry)
            if start + entry.file_size > length:
                raise broken(path, f"{entry.filename} is cut off")
            self._places[entry.filename] = (start, entry.file_size)

    def _start(self, entry: zipfile.ZipInfo) -> int:
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise broken(self.path, f"{entry.filename} is not where the file says")
        name, extra = struct.unpack("<HH", header[26:30])
        return entry.header_offset + 30 + int(name) + int(extra)

    def names(self) -> set[str]:
        return set(self._places)

    def size(self, name: str) -> int:
        return self._places[name][1]

    def read(self, name: str, start: int, size: int) -> bytes:
        self._file.seek(self._places[name][0] + start)
        data = self._file.read(size)
        if len(data) != size:
            raise broken(self.path, f"{name} is cut off")
        return data


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _short_name(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)
