"""Case files (``--config FILE.toml``): the command line's options under other names; the command line wins."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bisect_tool.errors import BisectError
from bisect_tool.matrix import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS: Mapping[str, Mapping[str, str]] = {
    "case": {
        "model": "model",
        "checkpoint": "checkpoint",
        "input": "inputs",
        "name": "name",
        "entry": "entry",
        "entry_args": "entry_args",
        "onnx": "onnx",
        "preprocess": "preprocess",
        "raw": "raw",
        "allow_pickle": "allow_pickle",
        "allow_missing": "allow_missing",
        "allow_unexpected": "allow_unexpected",
    },
    "export": {"exporter": "exporter", "opset": "opset", "constant_folding": "constant_folding"},
    "tolerance": {
        "table": "tolerances",
        "max_abs": "max_abs",
        "atol": "atol",
        "rtol": "rtol",
        "min_sqnr": "min_sqnr",
    },
    "report": {"groups": "groups", "stages": "stages", "level": "level", "output": "output", "plots": "plots"},
    "run": {
        "memory_budget": "memory_budget",
        "min_coverage": "min_coverage",
        "threads": "threads",
        "matrix": "matrix",
        "runner": "runner",
    },
}
"""Section → key → name of the command's parameter."""

PARTS = "parts"
"""A section whose keys are submodules, and whose values are their ONNX files."""

_CHOICES = {
    "exporter": ("dynamo", "torchscript"),
    "level": ("op", "leaf", "container"),
    "runner": ("onnxruntime", "onnx-reference"),
}
_BOOLEANS = {"allow_pickle", "allow_missing", "allow_unexpected", "constant_folding"}
_INTEGERS = {"opset", "threads"}
_NUMBERS = {"max_abs", "atol", "rtol", "min_sqnr", "min_coverage"}
_PATHS = {"model", "checkpoint", "inputs", "onnx", "entry_args", "output", "raw", "matrix", "tolerances"}
_LISTS = {"inputs", "raw", "groups", "stages"}


def read_case_file(path: Path) -> dict[str, Any]:
    """Parameters from a case file; paths in it are relative to the file.

    Raises:
        BisectError: the file cannot be read, is no TOML, or holds a key that is not known.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BisectError(f"config {path}: cannot be read ({error})", hint="see configs/ for examples") from error
    except tomllib.TOMLDecodeError as error:
        raise BisectError(f"config {path}: not valid TOML ({error})", hint="see configs/ for examples") from error
    found: dict[str, Any] = {}
    for section, values in data.items():
        if section == PARTS and isinstance(values, dict):
            found[PARTS] = _parts(values, path)
            continue
        if section not in KEYS or not isinstance(values, dict):
            raise BisectError(
                f"config {path}: unknown section [{section}]", hint=f"sections are: {', '.join([*KEYS, PARTS])}"
            )
        for key, value in values.items():
            name = KEYS[section].get(key)
            if name is None:
                known = ", ".join(KEYS[section])
                raise BisectError(f"config {path}: unknown key {key!r} in [{section}]", hint=f"keys are: {known}")
            _check_type(name, value, f"config {path}: {key} in [{section}]")
            found[name] = _prepare(name, value, path)
    return found


def _parts(values: Mapping[str, Any], path: Path) -> tuple[tuple[str, str], ...]:
    """Submodules and files; TOML makes inner tables of dotted keys without quotes."""
    for name, file in values.items():
        if not isinstance(file, str):
            raise BisectError(
                f"config {path}: {name} in [{PARTS}]: {file!r} is not a string",
                hint='"neck.blocks" = "neck.onnx": a path with dots, or joined with +, is quoted',
            )
    base = path.resolve().parent
    return tuple((name, os.path.normpath(base / file)) for name, file in values.items())


def check_parts(given: Sequence[str | tuple[str, str]]) -> dict[str, Path]:
    """Files by submodule, from the command line's ``SUBMODULE=FILE`` or a case file's pairs.

    Raises:
        BisectError: no such form, or a submodule given twice.
    """
    found: dict[str, Path] = {}
    for part in given:
        name, file = part if isinstance(part, tuple) else _split_part(part)
        if name in found:
            raise BisectError(f"--part {name}: given twice ({found[name]}, {file})", hint="a submodule has one file")
        found[name] = Path(file)
    return found


def _split_part(text: str) -> tuple[str, str]:
    name, separator, file = text.partition("=")
    if not separator or not name.strip() or not file.strip():
        raise BisectError(
            f"--part {text!r}: not of the form SUBMODULE=FILE",
            hint="for example --part backbone=backbone.onnx; --onnx FILE for the whole model",
        )
    return name.strip(), file.strip()


def _check_type(name: str, value: Any, where: str) -> None:
    """Raises BisectError unless a value has the type that its key takes."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in _LISTS:
        items = value if isinstance(value, list) else [value]
        fits, wanted = all(isinstance(item, str) for item in items), "a string or a list of strings"
    elif name in _CHOICES:
        fits, wanted = value in _CHOICES[name], f"one of {', '.join(_CHOICES[name])}"
    elif name in _BOOLEANS:
        fits, wanted = isinstance(value, bool), "true or false"
    elif name in _INTEGERS:
        fits, wanted = isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number from 0 up"
    elif name in _NUMBERS:
        fits, wanted = number, "a number"
    elif name == "memory_budget":
        fits, wanted = isinstance(value, str) or number, 'a size such as "1GiB"'
    else:
        fits, wanted = isinstance(value, str), "a string"
    if not fits:
        raise BisectError(f"{where}: {value!r} is not {wanted}", hint="see configs/ for examples")


def _prepare(name: str, value: Any, path: Path) -> Any:
    if name in _LISTS:
        value = [value] if isinstance(value, str) else list(value)
    if name not in _PATHS or (name == "matrix" and value in PRESETS):
        return value
    if name == "model" and not value.endswith((".py", ".pt", ".pt2", ".pth", ".ts", ".jit")):
        return value
    base = path.resolve().parent

    def resolve(text: str) -> str:
        return os.path.normpath(base / text)

    return [resolve(v) for v in value] if isinstance(value, list) else resolve(value)
