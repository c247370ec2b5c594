"""Case files (``--config FILE.toml``): the command line's options under other names; the command line wins."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bisect_tool.errors import BisectError

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
    "tolerance": {"max_abs": "max_abs", "atol": "atol", "rtol": "rtol"},
    "report": {"groups": "groups", "stages": "stages", "level": "level", "output": "output"},
    "run": {"memory_budget": "memory_budget", "min_coverage": "min_coverage", "threads": "threads"},
}
"""Section → key → name of the command's parameter."""

_PATHS = {"model", "checkpoint", "inputs", "onnx", "entry_args", "output", "raw"}
_LISTS = {"inputs", "groups", "stages"}


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
        if section not in KEYS or not isinstance(values, dict):
            raise BisectError(f"config {path}: unknown section [{section}]", hint=f"sections are: {', '.join(KEYS)}")
        for key, value in values.items():
            name = KEYS[section].get(key)
            if name is None:
                known = ", ".join(KEYS[section])
                raise BisectError(f"config {path}: unknown key {key!r} in [{section}]", hint=f"keys are: {known}")
            found[name] = _prepare(name, value, path)
    return found


def _prepare(name: str, value: Any, path: Path) -> Any:
    if name in _LISTS:
        value = [value] if isinstance(value, str) else list(value)
    if name not in _PATHS:
        return value
    if name == "model" and not value.endswith((".py", ".pt", ".pt2", ".pth", ".ts", ".jit")):
        return value
    base = path.resolve().parent
    return [str(base / v) for v in value] if isinstance(value, list) else str(base / value)


def parse_size(text: str) -> int:
    """``1GiB``, ``256 MiB``, ``2GB`` or plain bytes → bytes.

    Raises:
        BisectError: not a size above zero.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    number = text.strip().rstrip("BbGgIiKkMm ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise BisectError(f"memory budget {text!r}: not a size", hint="write 256MiB, 1GiB, or a number of bytes")
    return size
