"""What viewers show beside the nodes of a graph: text for an annotated ONNX file, and node data for Model Explorer.

A stage's errors are those of one value, so that they stand at the node that makes it and at no other. Further nodes of
the stage say that they belong to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bisect_tool.graph_names import GraphNames
from bisect_tool.records import Comparison, ConfigRun, Diagnosis, Origin, Report, StageRow
from bisect_tool.reporters import selecting, wording

Quantity = Literal["total", "local"]

KEPT_APART = "stages kept apart"
"""A configuration whose graph is another export than that of all others."""

ORIGIN_COLOR = ("#d55e00", "#000000")
THRESHOLDS: tuple[tuple[float, str, str], ...] = (
    (1e-7, "#fee838", "#000000"),
    (1e-6, "#dcc857", "#000000"),
    (1e-5, "#b8a96c", "#000000"),
    (1e-4, "#958f78", "#000000"),
    (1e-3, "#6c6e72", "#ffffff"),
    (1e-2, "#46536d", "#ffffff"),
    (1e-1, "#1f3a6c", "#ffffff"),
    (1e30, "#00224e", "#ffffff"),
)
"""Relative errors up to which a node has this background and this ink: evenly darker, also for colour-blind eyes."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Where the stages of a report are in a graph.

    Attributes:
        made: key of a node → stages whose value it makes, by index.
        inside: key of a node → further stages that it belongs to.
        origins: key of a node → origins that it holds.
        lost: compared stages whose value no node of the file makes.
    """

    made: Mapping[str, tuple[StageRow, ...]]
    inside: Mapping[str, tuple[StageRow, ...]]
    origins: Mapping[str, tuple[Origin, ...]]
    lost: tuple[StageRow, ...]


def configs_of(report: Report) -> list[ConfigRun]:
    """Configurations about the graph that the stages' nodes are of: pairs of a matrix may have exports of their own."""
    seen = {name for row in report.stages for name in row.results}
    runs = [run for run in report.configs if run.name in seen and run.name != KEPT_APART]
    if report.case.get("onnx"):
        return [run for run in runs if run.effective.get("graph") != "exported afresh"]
    main = next((run for run in runs if run.name == selecting.main_config(report)), None)
    return [run for run in runs if main is not None and _export(run) == _export(main)]


def _export(run: ConfigRun) -> tuple[object, ...]:
    actual = run.actual
    return actual.exporter, actual.opset, actual.constant_folding, actual.dtype, actual.switches.get("keep_stages")


def find_marks(report: Report, names: GraphNames, part: str | None = None) -> Marks:
    """Lays a report over a graph.

    Args:
        report: on a graph.
        names: of that graph.
        part: of a model in several files, the one whose graph it is.
    """
    made: dict[str, list[StageRow]] = {}
    inside: dict[str, list[StageRow]] = {}
    lost: list[StageRow] = []
    for row in report.stages:
        if row.part != part or row.onnx_value is None:
            continue
        found = [key for name in row.onnx_nodes if (key := names.of_node(_own(name, part))) is not None]
        # The last of a stage's nodes makes its value, also where the value is one that the comparison put in.
        maker = names.of_value(_own(row.onnx_value, part)) or (found[-1] if found else None)
        if maker is None:
            lost += [row] if row.results else []
            continue
        made.setdefault(maker, []).append(row)
        for key in found:
            if key != maker:
                inside.setdefault(key, []).append(row)
    origins: dict[str, list[Origin]] = {}
    for origin in report.verdict.origins:
        if origin.part == part:
            for name in origin.onnx_nodes:
                key = names.of_node(_own(name, part))
                if key is not None:
                    origins.setdefault(key, []).append(origin)
    return Marks(
        {key: tuple(rows) for key, rows in made.items()},
        {key: tuple(rows) for key, rows in inside.items()},
        {key: tuple(found) for key, found in origins.items()},
        tuple(lost),
    )


def _own(name: str, part: str | None) -> str:
    """A name as the part's file has it."""
    return name.removeprefix(f"{part}:") if part is not None else name


# Text for an annotated file


def node_notes(report: Report, marks: Marks) -> dict[str, dict[str, str]]:
    """Metadata of nodes, by key of the node."""
    configs = [run.name for run in configs_of(report)]
    notes: dict[str, dict[str, str]] = {}
    for key, origins in marks.origins.items():
        lines = [_origin_text(origin, report.verdict.diagnoses) for origin in origins]
        notes.setdefault(key, {})["origin"] = _clean("; ".join(dict.fromkeys(lines)))
    for key, rows in marks.made.items():
        own = notes.setdefault(key, {})
        for number, row in enumerate(rows, 1):
            behind = "" if number == 1 else f".{number}"
            own[f"stage{behind}"] = _clean(_stage_text(row))
            for name in configs:
                if name in row.results:
                    own[f"{_clean(name)}{behind}"] = _clean(result_text(row.results[name]))
    for key, rows in marks.inside.items():
        names = wording.names_text([str(row.ref) for row in rows])
        notes.setdefault(key, {})["inside"] = f"a node of {names}; its own value was not compared"
    return notes


def model_notes(report: Report) -> dict[str, str]:
    """Metadata of the model: the verdict."""
    found = {
        "verdict": wording.STATUSES[report.verdict.status],
        "summary": _clean("; ".join(report.verdict.summary)),
        "case": _clean(report.case.get("name") or "model"),
    }
    if report.verdict.diagnoses:
        found["causes"] = _clean("; ".join(f"{each.code} {each.title}" for each in report.verdict.diagnoses))
    return found


def result_text(result: Comparison) -> str:
    """A comparison in one line: ``FAIL: total 1.3e-02, local 1.3e-02, max abs 7.0e-01, growth 1.7e+04``."""
    judgement = wording.JUDGEMENTS[result.judgement]
    if result.total.problem is not None:
        return f"{judgement}: {result.total.problem}"
    parts = [f"total {wording.sci(result.total.rel_l2)}"]
    if result.local is not None:
        parts.append(f"local {wording.sci(result.local.rel_l2)}")
    if not math.isnan(result.total.max_abs):
        parts.append(f"max abs {wording.sci(result.total.max_abs)}")
    for name, value in (("growth", result.growth), ("noise", result.noise_ratio)):
        if value is not None:
            parts.append(f"{name} {wording.ratio(value)}")
    if result.share:
        parts.append(f"makes {wording.share_text(result.share)} of the final error")
    return f"{judgement}: {', '.join(parts)}"


def _stage_text(row: StageRow) -> str:
    return f"{row.ref} ({row.type})" + (f", {row.source}" if row.source else "")


def _origin_text(origin: Origin, diagnoses: Sequence[Diagnosis]) -> str:
    text = f"the error is made here: {origin.ref} under {origin.config}, local {wording.sci(origin.local_rel_l2)}"
    why = next((each for each in diagnoses if each.origin == origin.ref), None)
    return f"{text}; {why.code} {why.title}" if why is not None else text


def _clean(text: object) -> str:
    """Without what steers a terminal, and without what UTF-8 cannot write."""
    return wording.printable(text).encode("utf-8", "backslashreplace").decode()


# Node data for Model Explorer


def node_data(marks: Marks, names: GraphNames, config: str, quantity: Quantity) -> dict[str, Any] | None:
    """Model Explorer's node data for one graph: a number for each node that makes a stage's value.

    Nodes inside bodies have no place there. NaN and infinite errors, which JSON has no numbers for, are text.

    Args:
        marks, names: of the graph.
        config: name of the configuration.
        quantity: ``total``, or ``local`` for the error that the stage itself makes.

    Returns:
        ``None`` where nothing was measured.
    """
    results: dict[str, dict[str, Any]] = {}
    for key, rows in marks.made.items():
        name = names.names.get(key)
        values = [value for row in rows if (value := _value(row.results.get(config), quantity)) is not None]
        if name is None or not values:
            continue
        worst = max(values, key=selecting.badness)
        entry: dict[str, Any] = {"value": worst if math.isfinite(worst) else str(worst)}
        if not math.isfinite(worst):
            entry["bgColor"], entry["textColor"] = THRESHOLDS[-1][1:]
        if any(origin.config == config for origin in marks.origins.get(key, ())):
            entry["bgColor"], entry["textColor"] = ORIGIN_COLOR
        results[name] = entry
    if not results:
        return None
    thresholds = [{"value": value, "bgColor": paper, "textColor": ink} for value, paper, ink in THRESHOLDS]
    return {"results": results, "thresholds": thresholds}


def _value(result: Comparison | None, quantity: Quantity) -> float | None:
    metrics = None if result is None else result.total if quantity == "total" else result.local
    return None if metrics is None else metrics.rel_l2


def node_data_files(report: Report, marks: Marks, names: GraphNames) -> dict[str, str]:
    """The node data of all configurations: file name → content."""
    files: dict[str, str] = {}
    quantities: tuple[Quantity, ...] = ("total", "local")
    taken: set[str] = set()
    for run in configs_of(report):
        stem = file_name(run.name)
        while stem.lower() in taken:  # names may differ in what no file system takes, or in case alone
            stem += "_"
        taken.add(stem.lower())
        for quantity in quantities:
            data = node_data(marks, names, run.name, quantity)
            if data is not None:
                files[f"{stem}.{quantity}.json"] = json.dumps(data, indent=1, allow_nan=False) + "\n"
    return files


def file_name(name: str) -> str:
    """A name that every file system takes."""
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in name)[:80] or "_"
