"""Data files into columns and arrays: tables piece by piece, arrays as memory maps where the format allows it.

What a file is, its name says; reading tells whether that is true. torch is loaded for ``.pt`` files only.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import math
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.data.records import PIECE, Content, FileFacts, FileKind
from bisect_tool.errors import BisectError

Array = NDArray[Any]

TABLES = {".csv": "csv", ".tsv": "tsv", ".txt": "text table", ".dat": "text table"}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
ARRAYS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".json")
KNOWN = f"{' '.join(TABLES)} (also .gz) {' '.join(ARRAYS)} {' '.join(IMAGES)}"

LEAST_ROWS = 1024
"""Rows of a piece, however many columns there are."""

_SAFETENSORS: Mapping[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "C64": np.complex64, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


def suffix_of(path: Path) -> str:
    """``.csv``, and the same for ``a.csv.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]


def read_data(path: Path, *, separator: str | None = None) -> Content:
    """Opens a data file.

    Args:
        path: a file with one of the ``KNOWN`` endings.
        separator: of a table; None: found out from its first lines.

    Raises:
        BisectError: no such file, of no kind that is known, or not readable as what its name says.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise BisectError(f"{path} is a folder, not a data file", hint="give one file of each side")
        suffix = suffix_of(path)
        digest, lines = _digest(path, count=suffix in TABLES)
    except FileNotFoundError as error:
        raise BisectError(f"{path}: no such file", hint="check the path") from error
    except OSError as error:
        raise BisectError(f"{path} cannot be read: {error.strerror or error}", hint="check the file") from error
    facts = FileFacts(str(path), suffix.lstrip("."), size, digest, 0, None)
    if size == 0:
        raise BisectError(f"{path} is empty (0 bytes)", hint="write or copy it again")
    try:
        if suffix in TABLES:
            return _table(path, facts, separator, lines)
        if suffix in IMAGES:
            return _image(path, facts)
        if suffix in ARRAYS:
            return _content(_READERS[suffix](path), facts)
    except BisectError:
        raise
    except ImportError as error:
        raise BisectError(f"{path} needs {error.name} to be read", hint=f"pip install {error.name}") from error
    except Exception as error:  # whatever the bytes made a reader stumble over
        raise _unreadable(path, error) from error
    raise BisectError(f"{path}: no data file that is known by its name", hint=f"known are {KNOWN}")


def _unreadable(path: Path, error: Exception) -> BisectError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    suffix = suffix_of(path)
    hint = "the file is damaged, or its name says another format than it has"
    if "allow_pickle" in reason or "Python objects" in reason:
        reason, hint = "it holds Python objects", "objects run code when they are read; save numbers only"
    return BisectError(f"{path} cannot be read as {suffix.lstrip('.')}: {reason[:240]}", hint=hint)


def _digest(path: Path, *, count: bool) -> tuple[str, int]:
    """SHA-256 of the bytes, and the number of lines of the text in them."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    lines = 0
    if count:
        last = b"\n"
        try:
            with _opened(path) as stream:
                while block := stream.read(1 << 20):
                    lines += block.count(b"\n")
                    last = block
        except (OSError, EOFError):
            lines = -1  # the reader tells why
        lines += not last.endswith(b"\n")
    return digest.hexdigest(), lines


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


# Tables

_HEAD = 1 << 16
"""Bytes that separator, decimal sign and header are told from."""

_WRITTEN = {r"\t": "\t", r"\s+": r"\s+"}
"""Separators as they are written on a command line."""


def _table(path: Path, facts: FileFacts, separator: str | None, lines: int) -> Content:
    with _opened(path) as stream:
        head = stream.read(_HEAD)
        encoding, notes = _encoding(path, head, stream)
    text = head.decode(encoding, "ignore")
    if "\0" in text:
        raise BisectError(f"{path} is no text: it holds zero bytes", hint="give the table as .csv or .tsv")
    sample = text.splitlines()[: None if len(head) < _HEAD else -1]
    if separator is not None and len(separator) != 1 and separator not in _WRITTEN:
        raise BisectError(
            f"--separator {separator!r}: one character, or \\t for a tab", hint="for example --separator ';'"
        )
    separator = _WRITTEN.get(separator or "", separator) or ("\t" if suffix_of(path) == ".tsv" else _separator(sample))
    decimal = "," if separator != "," and _decimal_comma(sample, separator) else "."
    header = _has_header(sample, separator, decimal)
    options: dict[str, Any] = {
        "sep": separator,
        "header": 0 if header else None,
        "encoding": encoding,
        "decimal": decimal,
        "skipinitialspace": True,
        "compression": "infer",
    }
    names = _names(path, options)
    # In a single column an empty line is an empty cell.
    options["skip_blank_lines"] = len(names) > 1
    return Content(
        kind="table",
        facts=replace(facts, items=len(names)),
        names=names,
        pieces=_pieces(path, options, names),
        arrays={},
        header=int(header),
        lines=lines,
        notes=(*notes, *(() if header else (f"{path.name} has no header: its columns are numbered from 1",))),
    )


def _encoding(path: Path, head: bytes, rest: IO[bytes]) -> tuple[str, tuple[str, ...]]:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16", ()
    decoder, block = codecs.getincrementaldecoder("utf-8")(), head
    try:
        while block:
            decoder.decode(block)
            block = rest.read(1 << 20)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1", (f"{path.name} is not UTF-8 and was read as Latin-1",)
    return "utf-8-sig", ()


def _separator(sample: list[str]) -> str:
    """The character that splits the first lines into the same number of cells, more than one; a comma if none does."""
    lines = [line for line in sample[:20] if line.strip()]
    best, most = ",", 1
    for candidate in (",", "\t", ";", "|"):
        counts = {len(row) for row in csv.reader(lines, delimiter=candidate)}
        if len(counts) == 1 and max(counts) > most:
            best, most = candidate, max(counts)
    if most == 1 and lines and len({len(line.split()) for line in lines}) == 1 and len(lines[0].split()) > 1:
        return r"\s+"
    return best


def _cells(line: str, separator: str) -> list[str]:
    if len(separator) == 1:
        return next(csv.reader([line], delimiter=separator), [])
    return re.split(separator, line.strip())


def _decimal_comma(sample: list[str], separator: str) -> bool:
    cells = [cell.strip() for line in sample[1:20] for cell in _cells(line, separator)]
    return any(re.fullmatch(r"[-+]?\d+,\d+", cell) for cell in cells) and not any(
        re.fullmatch(r"[-+]?\d*\.\d+", cell) for cell in cells
    )


def _has_header(sample: list[str], separator: str, decimal: str) -> bool:
    """Without one the first line looks like the second one: numbers stand in the same columns, in one at least."""
    lines = [line for line in sample[:3] if line.strip()]
    kinds = [[_is_number(cell.strip().replace(decimal, ".")) for cell in _cells(line, separator)] for line in lines[:2]]
    if not kinds or not any(kinds[0]):
        return True
    return not all(kinds[0]) and kinds[0] != kinds[-1]


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _names(path: Path, options: Mapping[str, Any]) -> tuple[str, ...]:
    import pandas

    frame = pandas.read_csv(path, nrows=0 if options["header"] == 0 else 1, **options)
    names = [re.sub(r"^Unnamed: \d+$", "(no name)", str(name).strip()) for name in frame.columns]
    if options["header"] is None:
        names = [f"column {number + 1}" for number in range(len(names))]
    # Stripping may make two names one.
    return tuple(name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names))


def _pieces(path: Path, options: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Mapping[str, Array]]:
    import pandas

    rows = max(PIECE // max(len(names), 1), LEAST_ROWS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # columns of several kinds are expected here
            # round_trip: the default reader is off by a unit in the last place now and then.
            reader = (
                pandas.read_csv(
                    path, chunksize=rows, float_precision="round_trip", low_memory=False, index_col=False, **options
                )
                if options["sep"] != r"\s+"
                else pandas.read_csv(path, chunksize=rows, float_precision="round_trip", low_memory=False, **options)
            )
            with reader:
                for frame in reader:
                    yield {name: _column(frame.iloc[:, i]) for i, name in enumerate(names)}
    except (ValueError, UnicodeError, OSError, EOFError) as error:  # ParserError is a ValueError
        raise _unreadable(path, error) from error


def _column(series: Any) -> Array:
    """Numbers as they are, all else as objects with None for what is missing."""
    if series.dtype.kind in "iufb":
        return np.asarray(series.to_numpy())
    values = series.astype(object)
    return np.asarray(values.where(series.notna(), None).to_numpy(dtype=object))


# Arrays


def _content(arrays: Mapping[str, Array], facts: FileFacts, kind: FileKind = "arrays", **more: Any) -> Content:
    return Content(kind, replace(facts, items=len(arrays)), tuple(arrays), iter(()), arrays, **more)


def _npy(path: Path) -> dict[str, Array]:
    return dict(_fields("array", np.load(path, mmap_mode="r", allow_pickle=False)))


def _fields(name: str, array: Array) -> Iterator[tuple[str, Array]]:
    """A structured array's fields one by one."""
    if array.dtype.names is None:
        yield name, array
        return
    for field in array.dtype.names:
        yield from _fields(f"{name}.{field}", array[field])


class _Archive(Mapping[str, Array]):
    """Arrays of an .npz, each read when it is asked for."""

    def __init__(self, path: Path):
        self._file = np.load(path, allow_pickle=False)

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self._file[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)


def _npz(path: Path) -> Mapping[str, Array]:
    if not zipfile.is_zipfile(path):
        raise BisectError(f"{path} cannot be read as npz: it is no zip archive", hint="write it with numpy.savez")
    archive = _Archive(path)
    if any(archive[name].dtype.names for name in archive):
        return dict(pair for name in archive for pair in _fields(name, archive[name]))
    return archive


def _safetensors(path: Path) -> dict[str, Array]:
    """Memory maps, by the format's own header: the library gives no bfloat16 without torch."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            raise ValueError(f"its header would be {length} bytes long, the file has {size}")
        header = json.loads(stream.read(length))
    arrays: dict[str, Array] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
        shape = tuple(map(int, entry["shape"]))
        begin, end = map(int, entry["data_offsets"])
        if not 0 <= begin <= end <= size - 8 - length or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: its data do not lie where the header says")
        if begin == end:
            arrays[name] = np.empty(shape, dtype)
        else:
            raw = np.memmap(path, np.uint8, "r", 8 + length + begin, (end - begin,))
            arrays[name] = raw.view(dtype).reshape(shape)
    return arrays


def _torch(path: Path) -> dict[str, Array]:
    import torch

    from bisect_tool.backends.files import read_torch, require_file

    arrays: dict[str, Array] = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            arrays[name or "tensor"] = _from_tensor(value, torch)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                take(f"{name}.{key}" if name else str(key), item)
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                take(f"{name}[{number}]", item)
        elif value is not None:
            arrays[name or "value"] = np.asarray(
                value if isinstance(value, (bool, int, float, np.ndarray)) else str(value)
            )

    take("", read_torch(require_file(path, "data file"), "data file"))
    return arrays


def _from_tensor(tensor: Any, torch: Any) -> Array:
    tensor = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError):  # float8 and quantised tensors
        return np.asarray((tensor.dequantize() if tensor.is_quantized else tensor.float()).numpy())


def _json(path: Path) -> dict[str, Array]:
    """Numbers in nested lists of one length each become arrays; all else is taken apart by keys and places."""
    arrays: dict[str, Array] = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, list) and value and (array := _rectangular(value)) is not None:
            arrays[name or "array"] = array
        elif isinstance(value, dict):
            for key, item in value.items():
                take(f"{name}.{key}" if name else key, item)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                take(f"{name}[{number}]", item)
        else:
            scalar = np.asarray(value)
            arrays[name or "value"] = scalar if scalar.dtype.kind in "biuf" else np.asarray(value, object)

    take("", json.loads(path.read_text(encoding="utf-8")))
    return arrays


def _rectangular(value: list[Any]) -> Array | None:
    try:
        # null among numbers is a missing value.
        array = np.asarray(json.loads(json.dumps(value).replace("null", "NaN")))
    except (ValueError, OverflowError):
        return None
    return array if array.dtype.kind in "biuf" else None


_READERS: Mapping[str, Callable[[Path], Mapping[str, Array]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".json": _json,
}


# Images


def _image(path: Path, facts: FileFacts) -> Content:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BisectError(
            f"{path}: images are read with Pillow, which is not here", hint="pip install pillow"
        ) from error
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            notes = _image_notes(path, image)
            mode = image.mode
            pixels = np.asarray(
                image.convert("RGBA" if "transparency" in image.info else "RGB") if mode == "P" else image
            )
    except UnidentifiedImageError as error:
        raise BisectError(f"{path} cannot be read as an image", hint="it is damaged, or no image") from error
    return _content({"pixels": pixels}, facts, "image", mode=mode, notes=notes)


def _image_notes(path: Path, image: Any) -> tuple[str, ...]:
    found = []
    if image.mode == "P":
        found.append(f"{path.name} has a palette; its colours were compared")
    orientation = image.getexif().get(0x0112, 1)
    if orientation != 1:
        found.append(
            f"{path.name} says to be shown turned (EXIF orientation {orientation}); some readers obey, here not"
        )
    if image.info.get("icc_profile"):
        found.append(f"{path.name} holds a colour profile, which was not applied")
    if getattr(image, "n_frames", 1) > 1:
        found.append(f"{path.name} has {image.n_frames} frames; the first was compared")
    return tuple(found)
