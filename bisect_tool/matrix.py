"""Matrix files: which configuration pairs to run. The presets are such files themselves (``configs/matrix``).

    [defaults]                  # for all pairs below, wherever it stands in the file
    gating = false
    [defaults.expected]
    threads = 1

    [[pair]]
    name = "no-prepacking"      # letters, digits, dots, dashes, plus signs and underscores
    gating = true               # counts for the exit code; without it: yes, but not for emulated pairs
    [pair.expected]             # PyTorch: device, dtype, threads, and switches by name
    device = "cpu"
    [pair.actual]               # ONNX Runtime: device, optimization, threads, and switches by name;
                                # or backend = "onnx-reference", ONNX's own evaluator
    optimization = "all"
    disabled_passes = ["ConvBNFusion", "GeluFusionL2"]
    "session.disable_prepacking" = true
    [pair.export]               # how the graph is made: exporter, opset, constant_folding ...
    opset = 18

All names and values are those of ``docs/switches.md``.
"""

from __future__ import annotations

import importlib.resources
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bisect_tool.errors import BisectError
from bisect_tool.numerics import PASS_SEPARATOR, check, check_pair, did_you_mean, lookup
from bisect_tool.records import ConfigPair, NumericConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = ("quick", "full", "strict", "deploy")

_TABLES = ("expected", "actual", "export")
_KEYS = ("name", "gating")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Matrix:
    """Pairs to run.

    Attributes:
        source: the preset's name, or the path as it was given.
        pairs: in the order of the file; names are unique.
        preset: whether nobody named these pairs one by one: what cannot run here is then skipped with a reason, and is
            an inconclusive result otherwise.
    """

    source: str
    pairs: tuple[ConfigPair, ...]
    preset: bool


def read_matrix(source: str) -> Matrix:
    """Reads a preset by its name, or a file.

    Args:
        source: ``quick``, ``full``, ``strict``, ``deploy``, or the path of a TOML file (``./quick`` is a file).

    Raises:
        BisectError: there is no such preset or file, or it is not what this module's description says; the message
            names the file, the line, the pair and the key.
    """
    if source in PRESETS:
        text, where = preset_text(source), f"preset {source}"
    else:
        text, where = _file_text(source), f"matrix {source}"
    return Matrix(source, _parse(text, where), source in PRESETS)


def preset_text(name: str) -> str:
    """The TOML of a preset, from the installed package, or from the repository where the package runs from there."""
    packaged = importlib.resources.files("bisect_tool") / "presets" / f"{name}.toml"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[1] / "configs" / "matrix" / f"{name}.toml").read_text(encoding="utf-8")


def _file_text(source: str) -> str:
    try:
        return Path(source).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        hint = did_you_mean(source, PRESETS)
        raise BisectError(f"matrix {source}: neither a preset nor a file", hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BisectError(
            f"matrix {source}: cannot be read ({error})", hint=f"presets: {', '.join(PRESETS)}"
        ) from error


def _parse(text: str, where: str) -> tuple[ConfigPair, ...]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BisectError(f"{where}: not valid TOML ({error})", hint=_toml_hint(text)) from error
    with _place(where):
        _known(data, ("pair", "defaults"), "")
        defaults = _table(data.get("defaults", {}), "[defaults]")
        _known(defaults, ("gating", *_TABLES), "[defaults]")
        tables = data.get("pair", [])
        if not isinstance(tables, list) or not tables:
            raise BisectError("holds no [[pair]]", hint="configs/matrix has examples")
    lines = _Lines(text)
    pairs: list[ConfigPair] = []
    for number, table in enumerate(tables):
        # A mistake in the defaults shows in the first pair.
        with _place(where, lines, number):
            pair = _pair(_table(table, "[[pair]]"), defaults)
            if pair.name in {other.name for other in pairs}:
                raise BisectError(f"a second pair is called {pair.name!r}", hint="names tell pairs apart in the report")
            pairs.append(pair)
    return tuple(pairs)


def _toml_hint(text: str) -> str:
    """``optimization`` is a key, and without quotes ``optimization.enable_gelu_approximation`` is one inside it."""
    dotted = re.search(r"^\s*(?:actual\.)?(optimization\.\w+)\s*=", text, re.MULTILINE)
    return f'put the name in quotes: "{dotted[1]}" = ...' if dotted else "configs/matrix has examples"


def _pair(table: Mapping[str, Any], defaults: Mapping[str, Any]) -> ConfigPair:
    _known(table, (*_KEYS, *_TABLES), "[[pair]]")
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        wrong = BisectError(
            f"name = {name!r} is no name of a pair" if "name" in table else "a pair has no name",
            hint='such as name = "ort-cpu-off": letters, digits, dots, dashes, plus signs, underscores',
        )
        raise _KeyedError(wrong, wrong.message, "name")
    with _place(f"pair {name!r}"):
        settings = {part: _settings(part, defaults, table) for part in _TABLES}
        expected = _config("torch", settings["expected"])
        actual = _config("onnxruntime", {**settings["actual"], **settings["export"]})
        gating = table.get("gating", defaults.get("gating", "emulate" not in expected.switches))
        if not isinstance(gating, bool):
            wrong = BisectError(f"gating = {gating!r} is not true or false", hint="without quotes")
            raise _KeyedError(wrong, wrong.message, "gating")
        # The graph is exported from the model as PyTorch runs it.
        if actual.dtype not in (None, expected.dtype):
            with _place("[pair.actual]", key="actual.dtype"):
                other = f"[pair.expected] says {expected.dtype}" if expected.dtype else "[pair.expected] says nothing"
                raise BisectError(
                    f'dtype = "{actual.dtype}", and {other}: the graph is exported from the model as PyTorch runs it',
                    hint="set dtype in [pair.expected] alone; for a graph in another dtype than the model give its --onnx",
                )
        if actual.dtype is None and expected.dtype is not None:
            actual = _config("onnxruntime", {**settings["actual"], **settings["export"], "dtype": expected.dtype})
    pair = ConfigPair(name, expected, actual, gating)
    check_pair(pair)
    return pair


def _settings(part: str, defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """One side's keys with their values, checked; those of the pair win over the defaults."""
    side = {"expected": "torch", "actual": "onnxruntime", "export": "export"}[part]
    merged: dict[str, Any] = {}
    for source in (defaults, table):
        given = _table(source.get(part, {}), f"[pair.{part}]")
        merged.update(_flat(given))
    for key, value in merged.items():
        with _place(f"[pair.{part}]", key=key):
            if lookup(side, key).side != side:
                raise BisectError(f"{key} says how the graph is made", hint="it belongs to [pair.export]")
            if isinstance(value, list):
                merged[key] = value = _joined(key, value)
            check(side, key, value)
    return merged


def _joined(key: str, names: list[Any]) -> str:
    if key != "disabled_passes" or not all(isinstance(name, str) for name in names):
        raise BisectError(f"{key} takes no such list", hint='disabled_passes = ["ConvBNFusion"] does')
    # One with a separator in it would be two.
    odd = [name for name in names if PASS_SEPARATOR in name]
    if odd:
        raise BisectError(f"{odd[0]!r} is no name of a pass", hint="one name in each place of the list")
    return PASS_SEPARATOR.join(names)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``session.disable_prepacking = true`` without quotes is a table in TOML; it is meant as a name."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def _config(side: str, settings: Mapping[str, Any]) -> NumericConfig:
    fields = {name: value for name, value in settings.items() if lookup(side, name).home == "field"}
    switches = {name: value for name, value in settings.items() if name not in fields}
    if fields.get("backend") == "onnx-reference":
        fields.setdefault("optimization", "off")  # it has none
    return NumericConfig(**{"backend": side, **fields}, switches=switches)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BisectError(f"{where} is not a table", hint="configs/matrix has examples")
    return value


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            place = f" in {where}" if where else ""
            unknown = BisectError(f"unknown key {key!r}{place}", hint=did_you_mean(key, keys))
            raise _KeyedError(unknown, unknown.message, key)


# Places in messages


class _KeyedError(BisectError):
    """Knows the key that it is about, until its line is looked up."""

    def __init__(self, error: BisectError, message: str, key: str):
        super().__init__(message, hint=error.hint, exit_code=error.exit_code)
        self.key = key


class _Lines:
    """Where keys stand in the file, as far as headers of the usual form tell: TOML's reader keeps no lines."""

    def __init__(self, text: str):
        self._lines = text.splitlines()
        heads = [i for i, line in enumerate(self._lines) if re.match(r"\s*\[\[\s*pair\s*\]\]", line)]
        self._parts = list(zip(heads, [*heads[1:], len(self._lines)], strict=True))

    def of(self, number: int, key: str | None) -> int | None:
        """Number of the line, from 1, of a key of the pair with that number, or of the pair's header.

        A key that begins with the name of a table, ``actual.dtype``, is looked for in that table alone.
        """
        if number >= len(self._parts):
            return None
        start, stop = self._parts[number]
        if key is None:
            return start + 1
        table, _, rest = key.partition(".")
        name = rest if table in _TABLES else key
        pattern = re.compile(rf"""\s*(?:(\w+)\.)??["']?{re.escape(name)}["']?\s*=""")
        here = None
        for i in range(start, stop):
            if head := re.match(r"\s*\[\s*pair\.(\w+)\s*\]", self._lines[i]):
                here = head[1]
            found = pattern.match(self._lines[i])
            if found and (table not in _TABLES or (found[1] or here) == table):
                return i + 1
        return start + 1


@contextmanager
def _place(where: str, lines: _Lines | None = None, number: int = 0, key: str | None = None) -> Iterator[None]:
    """Puts the place before the message of an error from within."""
    try:
        yield
    except BisectError as error:
        key = key if key is not None else getattr(error, "key", None)
        line = lines.of(number, key) if lines is not None else None
        at = f"{where}, line {line}" if line is not None else where
        message = f"{at}: {error.message}"
        if key is not None and lines is None:
            raise _KeyedError(error, message, key) from error
        raise BisectError(message, hint=error.hint, exit_code=error.exit_code) from error
