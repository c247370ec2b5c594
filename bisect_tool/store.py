"""Reports on disk: ``Report`` to and from JSON, and the folder that holds it.

The layout of ``report.json`` is the layout of the dataclasses in ``records``: every key is a field name. The one
exception is a field called ``ref``, whose three keys ``stage``, ``call`` and ``output`` stand in its place.

Strict JSON knows neither NaN nor infinities; they are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"`` and
read back as numbers wherever a field is numeric. Free-form maps (``case``, ``environment``, ``configs[].effective``)
have no field types, so there the strings stay strings.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from bisect_tool.errors import BisectError
from bisect_tool.inspection import Inspection
from bisect_tool.records import SCHEMA_VERSION, Report
from bisect_tool.whole_files import write_whole

REPORT_FILE = "report.json"
INSPECTION_FILE = "inspection.json"
PLOT_FILES = tuple(f"{n}.{kind}" for n in ("amplification", "waterfall", "heatmap") for kind in ("png", "svg", "pdf"))
KNOWN_FILES = (REPORT_FILE, "stages.csv", "samples.csv", *PLOT_FILES, "index.html")
"""Every file that this tool puts into a report folder; with ``force`` these, and nothing else, are replaced."""

REPLAY_FOLDER = "replay"
REPLAY_FILES = ("README.md", "about.json", "bug-report.md", "expected.npy", "inputs.npz", "model.onnx", "run.py")
"""What a replay folder of an origin holds; the folders lie in ``REPLAY_FOLDER``."""

OVERLAY_FOLDER = "overlay"
OVERLAY_FILES = ("*.annotated.onnx", "*.total.json", "*.local.json", "model.onnx", "model.onnx.data")
"""What ``--overlays`` leaves there, as globs; the model only where its weights are too large for the copy."""

FileContent = bytes | str | Callable[[Path], object]
"""What goes into a file of the folder: its content, or a function that writes it to the path it is given."""

_PARTIAL = ".partial-"
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


# Report -> JSON


def report_to_json(report: Report) -> dict[str, Any]:
    """Turn a report into plain JSON values (``docs/report.md`` describes them)."""
    data = cast(dict[str, Any], _encode(report))
    return {"schema_version": data.pop("schema_version"), **data}


def _encode(value: object) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if is_dataclass(value):
        data: dict[str, Any] = {}
        for item in fields(value):
            encoded = _encode(getattr(value, item.name))
            data.update(encoded if item.name == "ref" else {item.name: encoded})
        return data
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_encode(item) for item in value]
    if isinstance(value, AbstractSet):
        return sorted((_encode(item) for item in value), key=str)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # numpy's scalars
        return _encode(value.item())
    # The free-form maps hold whatever the environment gave; one odd value must not cost the whole report.
    return os.fspath(value) if isinstance(value, PurePath) else str(value)


# JSON -> Report


def report_from_json(data: Mapping[str, Any]) -> Report:
    """Rebuild the report that ``report_to_json`` wrote.

    Raises:
        BisectError: another schema version, or a key that is missing, unknown or of the wrong kind; it is named. Keys that
            came after the first reports of this version have defaults, and may be missing.
    """
    if not isinstance(data, Mapping):
        raise BisectError(f"{REPORT_FILE}: expected an object, found {_kind(data)}")
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BisectError(
            f"{REPORT_FILE}: schema_version is {version!r}; this version of the tool reads {SCHEMA_VERSION}",
            hint="run the comparison again, or read the report with the version of the tool that wrote it",
        )
    return cast(Report, _decode(Report, data, ""))


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _decode_record(cast(type, kind), value, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _decode_union(args, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise _wrong(where, "one of " + ", ".join(map(repr, args)), value)
    if origin is tuple:
        if isinstance(value, list):
            return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        raise _wrong(where, "an array", value)
    if origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {key: _decode(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
        raise _wrong(where, "an object", value)
    return _decode_scalar(kind, value, where)


def _decode_record(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    known: set[str] = set()
    for item in fields(kind):
        hint = hints[item.name]
        if item.name == "ref":
            keys = [part.name for part in fields(hint)]
            values["ref"] = _decode(hint, {key: value[key] for key in keys if key in value}, where)
            known.update(keys)
        elif item.name in value:
            values[item.name] = _decode(hint, value[item.name], f"{where}.{item.name}" if where else item.name)
            known.add(item.name)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise BisectError(f"{REPORT_FILE}: {where or 'the report'} lacks the key {item.name!r}")
    for key in value:
        if key not in known:
            raise BisectError(f"{REPORT_FILE}: {where or 'the report'} holds an unknown key {key!r}")
    return kind(**values)


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    members = [kind for kind in kinds if kind is not NoneType]
    if len(members) == 1:
        return _decode(members[0], value, where)
    for member in members:
        if type(value) is member:  # exact: a bool is no int here
            return value
    raise _wrong(where, " or ".join(member.__name__ for member in members), value)


def _decode_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float:
        if isinstance(value, str) and value in _NONFINITE:
            return _NONFINITE[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise _wrong(where, "a number", value)
    if type(value) is not kind:
        raise _wrong(where, {int: "an integer", str: "a string", bool: "true or false"}[kind], value)
    return value


def _wrong(where: str, wanted: str, found: Any) -> BisectError:
    return BisectError(f"{REPORT_FILE}: {where or 'the report'}: expected {wanted}, found {_kind(found)}")


def _kind(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."


# The folder


def report_text(report: Report) -> str:
    """The content of ``report.json``: strict JSON, in ASCII, so that any name survives any encoding."""
    return json.dumps(report_to_json(report), indent=1, allow_nan=False) + "\n"


def record_to_json(record: object) -> dict[str, Any]:
    """Any record of dataclasses as plain JSON values, its version first where it has one."""
    data = cast(dict[str, Any], _encode(record))
    first = next((key for key in data if key.endswith("_version")), None)
    return data if first is None else {first: data.pop(first), **data}


def inspection_text(inspection: Inspection) -> str:
    """What ``inspect --format json`` prints: strict JSON, in ASCII."""
    data = cast(dict[str, Any], _encode(inspection))
    data = {"inspection_version": data.pop("inspection_version"), **data}
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def write_inspection(inspection: Inspection, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write ``inspection.json`` into a folder, made if it is not there.

    Args:
        inspection: what the file holds.
        folder: where to.
        force: replace a file of that name.

    Returns:
        The file.

    Raises:
        BisectError: the file is there and ``force`` is not given, or it cannot be written.
    """
    target = Path(folder) / INSPECTION_FILE
    check_inspection_folder(folder, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole({target: inspection_text(inspection)})
    except OSError as error:
        raise BisectError(f"cannot write {target}: {_reason(error)}", hint="choose another folder") from error
    return target


def check_inspection_folder(folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse a folder that ``write_inspection`` would refuse; call it before a long run."""
    target = Path(folder)
    if os.path.lexists(target) and not target.is_dir():
        raise BisectError(f"{target} is a file, not a folder", hint="choose another folder")
    if (target / INSPECTION_FILE).exists() and not force:
        raise BisectError(
            f"{target} already holds an {INSPECTION_FILE}", hint="--force replaces it; or choose another folder"
        )


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a report from its folder, or from a ``report.json``."""
    file = Path(path)
    if file.is_dir():
        file = file / REPORT_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BisectError(
            f"cannot read {file}: {_reason(error)}", hint="name a report folder, or its report.json"
        ) from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BisectError(f"{file} is not JSON: {error}", hint="run the comparison again") from error
    return report_from_json(data)


def check_report_folder(folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse a folder that ``write_report_folder`` would refuse; call it before a long run, not only after it."""
    try:
        _check_report_folder(Path(folder), force=force)
    except OSError as error:
        # A name that is too long, or a folder that nobody may look into.
        raise BisectError(
            f"cannot write the report to {folder}: {_reason(error)}", hint="choose another folder"
        ) from error


def _check_report_folder(target: Path, *, force: bool) -> None:
    above = next((parent for parent in target.parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise BisectError(f"{target} cannot be made: {above} is a file, not a folder", hint="choose another folder")
    there = target.exists()
    if there and not target.is_dir():
        raise BisectError(f"{target} is a file, not a folder", hint="choose another folder")
    # Permissions alone do not tell: file systems may be read-only, and root is asked no questions.
    with tempfile.TemporaryFile(dir=target if there else above):
        pass
    if force or not there:
        return
    if (target / REPORT_FILE).exists():
        raise BisectError(f"{target} already holds a report", hint="--force replaces it; or choose another folder")
    if any(not entry.name.startswith(_PARTIAL) for entry in target.iterdir()):
        raise BisectError(
            f"{target} is not empty and holds no report",
            hint="choose another folder, or --force to write the report among the files there",
        )


def write_report_folder(
    report: Report,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    files: Mapping[str, FileContent] | None = None,
) -> Path:
    """Write ``report.json`` and its companions, all or nothing.

    Everything is written under a temporary name first: next to a folder that does not exist yet (then renamed), or
    inside one that does (its parent may be another file system or read-only), from where the files are moved into
    place with ``report.json`` last. A folder without ``report.json`` is never a report. When anything goes wrong,
    Ctrl-C included, the temporary folder is removed and an old report is put back.

    Args:
        report: what ``report.json`` holds.
        folder: where to; made if it is not there, with its parents.
        force: replace the report that is there. Only ``KNOWN_FILES`` and the names in ``files`` are touched.
        files: the other files, by path relative to the folder (``index.html``).

    Returns:
        The folder.

    Raises:
        BisectError: the folder is taken and ``force`` is not given, or it cannot be written.
    """
    target = Path(folder)
    contents = dict(files or {})
    for name in contents:
        _check_name(name)
    check_report_folder(target, force=force)
    try:
        if target.exists():
            with _temporary_folder(target) as partial:
                _fill(partial / "new", report, contents)
                _move_in(partial / "new", partial / "old", target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _temporary_folder(target.parent, suffix=f"-{target.name}") as partial:
                _fill(partial, report, contents)
                partial.rename(target)
    except OSError as error:
        raise BisectError(
            f"cannot write the report to {target}: {_reason(error)}", hint="choose another folder"
        ) from error
    return target


def _check_name(name: str) -> None:
    path = PurePath(name)
    if name == REPORT_FILE or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"not a file of a report folder: {name!r}")


@contextmanager
def _temporary_folder(parent: Path, suffix: str = "") -> Iterator[Path]:
    # not tempfile.mkdtemp: its folders are readable by their owner only, and this one becomes the report
    path = parent / f"{_PARTIAL}{secrets.token_hex(4)}{suffix}"
    try:
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _fill(folder: Path, report: Report, contents: Mapping[str, FileContent]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            # newline="": the same bytes on every system; names may hold what UTF-8 cannot write
            with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                stream.write(content)
    with (folder / REPORT_FILE).open("w", encoding="utf-8", newline="") as stream:
        stream.write(report_text(report))


def _move_in(new: Path, old: Path, target: Path) -> None:
    """Exchange the report in ``target`` for the one in ``new``; on any exception everything is put back."""
    fresh = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
    fresh.sort(key=lambda name: name == Path(REPORT_FILE))  # last in: until then the folder is no report
    known = {Path(name) for name in KNOWN_FILES} | set(_replays_of(target)) | set(_overlays_of(target)) | set(fresh)
    stale = sorted(known, key=lambda name: name != Path(REPORT_FILE))
    moved: list[tuple[Path, Path]] = []
    try:
        for source, destination, names in ((target, old, stale), (new, target, fresh)):
            for name in names:
                if (source / name).is_dir():
                    raise BisectError(
                        f"{target / name} is a folder, where the report needs a file", hint="move it away"
                    )
                if os.path.lexists(source / name):
                    (destination / name).parent.mkdir(parents=True, exist_ok=True)
                    moved.append((source / name, destination / name))
                    os.replace(source / name, destination / name)
    except BaseException:
        for was, now in reversed(moved):
            if os.path.lexists(now) and not os.path.lexists(was):
                os.replace(now, was)
        raise


def _replays_of(folder: Path) -> list[Path]:
    """Files of the replay folders that the report there names; beside a new report they would mislead."""
    try:
        origins = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))["verdict"]["origins"]
        names = [PurePath(str(origin["replay"])) for origin in origins if origin.get("replay")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    # Only what this tool would write: the report may be anybody's.
    found = [Path(REPLAY_FOLDER) / name.name for name in names if name.parts[:1] == (REPLAY_FOLDER,)]
    return [name / file for name in found for file in REPLAY_FILES if (folder / name / file).is_file()]


def _overlays_of(folder: Path) -> list[Path]:
    """Overlays of the report there; beside a new report they would mislead."""
    if not (folder / REPORT_FILE).is_file():
        return []
    files = (file for glob in OVERLAY_FILES for file in sorted((folder / OVERLAY_FOLDER).glob(glob)))
    return [file.relative_to(folder) for file in files if file.is_file()]


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
