"""``tolerances.toml``: limits of each stage from known-good runs, what they rest on, and which model they are for.

    schema_version = 1

    [calibration]               # the rate of false alarms that was asked for, and what carries it
    false_alarm = 0.01
    samples = 128
    tail = "measured"           # or "extrapolated", "too few": then the limits are wider

    [fingerprint]               # of the architecture, never of weights: a table is for one model
    architecture = "sha256:…"   # of fingerprint.modules, that is paths, types, shapes and dtypes
    stages = "sha256:…"         # of the stages' names and kinds below

    [hardware."cpu x86_64 …"]   # what was measured on each kind of machine

    [metrics]                   # by hand: limits of `verify --metric`, of argmax and of top_k
    argmax = 0.99

    [[stage]]
    stage = "backbone.conv1"
    call = 0
    output = 0
    kind = "Conv2d float32 4-d"
    n = 128                     # samples that had it
    rel_l2 = { limit = 3.1e-06, p50 = 4.0e-07, p90 = …, p99 = …, max = …, least = 1.2e-07, on = { "cpu …" = 3.0e-06 } }

Limits may be edited by hand; what they are for may not.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from bisect_tool.errors import BisectError
from bisect_tool.records import OutputKey, StageRef, StageRow
from bisect_tool.whole_files import write_whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE_VERSION = 1

METRICS = ("rel_l2", "max_abs", "mean_abs", "local_rel_l2")
"""Columns of the table: three of a stage's total error, and the relative L2 of the error that it makes itself."""

Tail = Literal["measured", "extrapolated", "too few"]

_AGAIN = "calibrate again: bisect-tool calibrate"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class MetricLimit:
    """One metric of one stage: the limit, and what known-good samples had.

    Attributes:
        limit: over it, a stage fails.
        p50, p90, p99, max: of the samples' largest errors.
        least: what counts as no error at all; smaller ones were taken for it.
        on: limits from the samples of one kind of hardware alone, by its name.
    """

    limit: float
    p50: float
    p90: float
    p99: float
    max: float
    least: float
    on: Mapping[str, float] = field(default_factory=dict)

    def limit_on(self, hardware: str | None) -> float:
        """The limit on a kind of hardware, or the pooled one where the table knows nothing of it."""
        return self.limit if hardware is None else self.on.get(hardware, self.limit)


@dataclass(frozen=True, slots=True)
class StageLimits:
    """Limits of one stage.

    Attributes:
        kind: type, dtype and rank, from :func:`kind_of_stage`.
        n: samples that had it; fewer than the table's where the model does not always compute it.
        metrics: by the names of :data:`METRICS`; none for stages without an error of their own (whole numbers).
    """

    stage: str
    call: int
    output: OutputKey
    kind: str
    n: int
    metrics: Mapping[str, MetricLimit]

    @property
    def ref(self) -> StageRef:
        return StageRef(self.stage, self.call, self.output)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a table is for, or what is at hand. Weights are not in it.

    Attributes:
        modules: description of each module by its path: type, and shapes and dtypes of its own parameters.
        stages: kind of each stage by its name (:class:`~bisect_tool.records.StageRef`).
        graph: facts of the ONNX graph; empty where none was there.
    """

    modules: Mapping[str, str]
    stages: Mapping[StageRef, str]
    graph: Mapping[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return digest(f"{path}\t{text}" for path, text in self.modules.items())

    @property
    def stage_digest(self) -> str:
        return digest(f"{ref}\t{kind}" for ref, kind in self.stages.items())


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was measured on one kind of machine.

    Attributes:
        name: of the kind, as limits refer to it.
        samples, runs: on it.
        tail: how firmly its limits are known.
        score: at which its limits lie (:class:`bisect_tool.calibration.limits.Limits`).
    """

    name: str
    samples: int
    runs: int
    tail: Tail
    score: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the limits rest on.

    Attributes:
        false_alarm: probability that a sample of a correct graph is over any limit.
        samples: different inputs, on each kind of hardware; each gives one score.
        runs: known-good runs, all samples together.
        level: of the stages.
        created: date and time, ISO 8601 in UTC. tool: version.
        variations: which known-good runs were made. accepted: reductions of precision that the user allows.
        tail: ``measured``: there are enough samples for the rate; ``extrapolated``: not, and the limits are wider;
            ``too few``: not even their spread is known, and is assumed.
        score: at which all limits lie: standard deviations of an error's logarithm over its mean.
        rate_bound: upper bound (confidence 0.9) on the true rate of false alarms; ``None`` where it is extrapolated.
    """

    false_alarm: float
    samples: int
    runs: int
    level: str
    created: str
    tool: str
    variations: tuple[str, ...]
    tail: Tail
    score: float
    accepted: tuple[str, ...] = ()
    rate_bound: float | None = None


@dataclass(frozen=True, slots=True)
class ToleranceTable:
    """The whole file.

    ``metrics``: limits on numbers about final outputs, written by hand: the largest that passes, or text as ``>= 0.4``.
    """

    calibration: Calibration
    fingerprint: Fingerprint
    hardware: tuple[Hardware, ...]
    stages: tuple[StageLimits, ...]
    metrics: Mapping[str, float | str] = field(default_factory=dict)

    def limits(self) -> dict[StageRef, StageLimits]:
        return {stage.ref: stage for stage in self.stages}


# Which model a table is for


def digest(lines: Iterable[str]) -> str:
    """Of lines in any order."""
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32]


def kind_of_stage(type_name: str, dtype: str, rank: int) -> str:
    """``Conv2d float32 4-d``: what a stage is, whatever the sizes of the sample."""
    return f"{type_name} {dtype} {rank}-d"


def stages_of_rows(rows: Iterable[StageRow]) -> dict[StageRef, str]:
    """The stages of a report as a fingerprint has them."""
    return {row.ref: kind_of_stage(row.type, row.dtype, len(row.shape)) for row in rows if row.role != "group"}


def differences(table: ToleranceTable, here: Fingerprint) -> list[str]:
    """What makes the model or graph at hand another one than the table is for, one line each; empty: it is the same.

    Stages that the model does not always compute may be missing, and a loop may run longer than it ever did.
    """
    there = table.fingerprint
    found = _apart("module", there.modules, here.modules)
    if not found:
        # A module that is gone takes its stages with it; that need not be said twice.
        always = {s.ref: s.kind for s in table.stages if s.n >= table.calibration.samples}
        known = {ref: kind for ref, kind in there.stages.items() if ref in here.stages or ref in always}
        paths = {(ref.stage, ref.output) for ref in there.stages}
        new = {ref: k for ref, k in here.stages.items() if ref in there.stages or (ref.stage, ref.output) not in paths}
        found = _apart("stage", {str(ref): k for ref, k in known.items()}, {str(ref): k for ref, k in new.items()})
    both = there.graph.keys() & here.graph.keys()
    return found + [
        f"{key} of the graph: {there.graph[key]} in the table, {here.graph[key]} here"
        for key in sorted(both)
        if there.graph[key] != here.graph[key]
    ]


def _apart(what: str, there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    found = []
    for name in {**there, **here}:
        old, new = there.get(name), here.get(name)
        shown = name or "(model)"
        if old is None:
            found.append(f"{what} {shown}: {new} is not in the table")
        elif new is None:
            found.append(f"{what} {shown}: {old} is only in the table")
        elif old != new:
            found.append(f"{what} {shown}: {old} in the table, {new} here")
    return found


def refuse_other_model(path: str, table: ToleranceTable, here: Fingerprint, most: int = 5) -> None:
    """Raises a :class:`BisectError` (exit code 2) that says what differs, if the table is for another model or graph."""
    found = differences(table, here)
    if found:
        more = f"; and {len(found) - most} more" if len(found) > most else ""
        raise BisectError(
            f"tolerances {path}: made for another model or graph: {'; '.join(found[:most])}{more}",
            hint=f"for this model {_AGAIN}; or take the table that was made for it",
        )


# Writing


def round_up(number: float, digits: int = 4) -> float:
    """To so many digits, never below: a limit stays one."""
    if number == 0 or not math.isfinite(number):
        return number
    unit = 10.0 ** (math.floor(math.log10(abs(number))) - digits + 1)
    near = float(f"{number:.{digits - 1}e}")
    return near if near >= number else float(f"{near + unit:.{digits - 1}e}")


def write_table(path: Path, table: ToleranceTable, *, force: bool = False) -> None:
    """Writes the file, whole or not at all.

    Raises:
        BisectError: a file is there and ``force`` is not given, or it cannot be written.
    """
    check_place(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole({path: table_text(table)})
    except OSError as error:
        raise BisectError(
            f"tolerances {path}: cannot be written ({error.strerror or error})", hint="choose another place with -o"
        ) from error


def check_place(path: Path, *, force: bool) -> None:
    """Refuses to write over a table, before hours of runs and not after them.

    Raises:
        BisectError: a file is there and ``force`` is not given, or a folder.
    """
    if path.is_dir():
        raise BisectError(f"tolerances {path}: a folder", hint=f"name the file: -o {path / 'tolerances.toml'}")
    if path.exists() and not force:
        raise BisectError(
            f"tolerances {path}: the file exists and is not overwritten", hint="--force replaces it; or choose another"
        )


def table_text(table: ToleranceTable) -> str:
    """The TOML of a table."""
    known, print_ = table.calibration, table.fingerprint
    lines = [f"schema_version = {TABLE_VERSION}", "", "[calibration]"]
    for item in fields(Calibration):
        value = getattr(known, item.name)
        if value is not None:
            lines.append(f"{item.name} = {_toml(value)}")
    lines += [
        "",
        "[fingerprint]",
        f"architecture = {_toml(print_.architecture)}",
        f"stages = {_toml(print_.stage_digest)}",
    ]
    for name, values in (("graph", print_.graph), ("modules", print_.modules)):
        lines += ["", f"[fingerprint.{name}]", *(f"{_toml(key)} = {_toml(text)}" for key, text in values.items())]
    for machine in table.hardware:
        lines += ["", f"[hardware.{_toml(machine.name)}]"]
        lines += [f"{key} = {_toml(getattr(machine, key))}" for key in ("samples", "runs", "tail", "score")]
    if table.metrics:
        lines += ["", "[metrics]", *(f"{_toml(name)} = {_toml(limit)}" for name, limit in table.metrics.items())]
    for stage in table.stages:
        lines += ["", "[[stage]]"]
        lines += [f"{key} = {_toml(getattr(stage, key))}" for key in ("stage", "call", "output", "kind", "n")]
        lines += [f"{name} = {_toml(_metric(limit))}" for name, limit in stage.metrics.items()]
    return "\n".join(lines) + "\n"


def _metric(limit: MetricLimit) -> dict[str, Any]:
    values = {item.name: getattr(limit, item.name) for item in fields(MetricLimit)}
    if not values["on"]:
        del values["on"]
    return values


def _toml(value: Any) -> str:
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one control character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(map(_toml, value)) + "]"


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").isalnum() else _toml(key)


# Reading


def read_table(path: Path) -> ToleranceTable:
    """Reads ``tolerances.toml``.

    Raises:
        BisectError: it cannot be read, is of another version, or a key is missing, of the wrong kind or not believable.
    """
    where = f"tolerances {path}"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BisectError(f"{where}: cannot be read ({reason})", hint="to make one: bisect-tool calibrate") from error
    except tomllib.TOMLDecodeError as error:
        raise BisectError(f"{where}: not valid TOML ({error})", hint=_AGAIN) from error
    version = data.get("schema_version")
    if version != TABLE_VERSION:
        raise BisectError(
            f"{where}: schema_version is {version!r}; this version of the tool reads {TABLE_VERSION}", hint=_AGAIN
        )
    stages = tuple(
        _stage(entry, f"{where}: stage {number}") for number, entry in enumerate(_get(data, "stage", list, where), 1)
    )
    names = [stage.ref for stage in stages]
    if len(set(names)) < len(names):
        twice = next(ref for ref in names if names.count(ref) > 1)
        raise BisectError(f"{where}: stage {twice} is there twice", hint="leave one of the two")
    machines = tuple(
        Hardware(
            name,
            _get(entry, "samples", int, f"{where}: hardware {name!r}"),
            _get(entry, "runs", int, f"{where}: hardware {name!r}"),
            _tail(entry, f"{where}: hardware {name!r}"),
            _number(entry, "score", f"{where}: hardware {name!r}"),
        )
        for name, entry in _get({"hardware": {}, **data}, "hardware", dict, where).items()
    )
    return ToleranceTable(
        _calibration(_get(data, "calibration", dict, where), f"{where}: [calibration]"),
        _fingerprint(_get(data, "fingerprint", dict, where), stages, f"{where}: [fingerprint]"),
        machines,
        stages,
        _metrics(data.get("metrics", {}), f"{where}: [metrics]"),
    )


def _metrics(data: Any, where: str) -> dict[str, float | str]:
    if not isinstance(data, dict):
        raise BisectError(f"{where}: not a table", hint='write name = 0.1, or name = ">= 0.4", under [metrics]')
    found: dict[str, float | str] = {}
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise BisectError(f"{where}: {name} is {value!r}", hint='write the largest number that passes, or ">= 0.4"')
        found[name] = value if isinstance(value, str) else float(value)
    return found


def _calibration(data: Mapping[str, Any], where: str) -> Calibration:
    rate = _number(data, "false_alarm", where)
    if not 0 < rate < 1:
        raise BisectError(f"{where}: false_alarm {rate} lies not between 0 and 1", hint=_AGAIN)
    return Calibration(
        false_alarm=rate,
        samples=_get(data, "samples", int, where),
        runs=_get(data, "runs", int, where),
        level=_get(data, "level", str, where),
        created=_get(data, "created", str, where),
        tool=_get(data, "tool", str, where),
        variations=_texts(data, "variations", where),
        tail=_tail(data, where),
        score=_number(data, "score", where),
        accepted=_texts(data, "accepted", where),
        rate_bound=_number(data, "rate_bound", where) if "rate_bound" in data else None,
    )


def _fingerprint(data: Mapping[str, Any], stages: Sequence[StageLimits], where: str) -> Fingerprint:
    found = Fingerprint(
        {key: str(text) for key, text in _get(data, "modules", dict, where).items()},
        {stage.ref: stage.kind for stage in stages},
        {key: str(text) for key, text in _get({"graph": {}, **data}, "graph", dict, where).items()},
    )
    for key, computed in (("architecture", found.architecture), ("stages", found.stage_digest)):
        written = _get(data, key, str, where)
        if written != computed:
            raise BisectError(
                f"{where}: {key} is {written}, and what the file lists makes {computed}: it was edited, or merged",
                hint=f"limits may be edited, what they are for may not; {_AGAIN}",
            )
    return found


def _stage(data: Any, where: str) -> StageLimits:
    if not isinstance(data, dict):
        raise BisectError(f"{where}: not a table", hint=_AGAIN)
    output = data.get("output")
    if not isinstance(output, (int, str)) or isinstance(output, bool):
        raise BisectError(f"{where}: output is {output!r}, neither a number nor a name", hint=_AGAIN)
    name = _get(data, "stage", str, where)
    return StageLimits(
        stage=name,
        call=_get(data, "call", int, where),
        output=output,
        kind=_get(data, "kind", str, where),
        n=_get(data, "n", int, where),
        metrics={
            metric: _limit(_get(data, metric, dict, where), f"{where} ({name or '(model)'}): {metric}")
            for metric in METRICS
            if metric in data
        },
    )


def _limit(data: Mapping[str, Any], where: str) -> MetricLimit:
    numbers = {key: _number(data, key, where) for key in ("limit", "p50", "p90", "p99", "max", "least")}
    own = _get({"on": {}, **data}, "on", dict, where)
    on = {str(name): _number(own, name, f"{where} on {name}") for name in own}
    for name, limit in {"": numbers["limit"], **on}.items():
        # Everything would pass under an infinite one, and nothing under NaN.
        if not 0 <= limit < math.inf:
            raise BisectError(
                f"{where}: limit {limit}{' on ' + name if name else ''}: a limit is a finite number not below zero",
                hint="write the largest error that is to pass",
            )
    return MetricLimit(**numbers, on=on)


def _get(data: Mapping[str, Any], key: str, kind: type[_T], where: str) -> _T:
    value = data.get(key)
    if key not in data:
        raise BisectError(f"{where}: {key} is missing", hint=_AGAIN)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BisectError(f"{where}: {key} is {value!r}, of the wrong kind", hint=_AGAIN)
    return value


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    value = data.get(key)
    if key not in data:
        raise BisectError(f"{where}: {key} is missing", hint=_AGAIN)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise BisectError(f"{where}: {key} is {value!r}, and not a number", hint=_AGAIN)
    return float(value)


def _texts(data: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _get(data, key, list, where)
    return tuple(map(str, values))


def _tail(data: Mapping[str, Any], where: str) -> Tail:
    value = _get(data, "tail", str, where)
    for tail in get_args(Tail):
        if value == tail:
            return tail  # type: ignore[no-any-return]
    raise BisectError(f"{where}: tail is {value!r}, none of {', '.join(get_args(Tail))}", hint=_AGAIN)
