"""What several reporters need: which configuration to show, and how names and numbers are worded."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bisect_tool.records import (
    Alignment,
    Comparison,
    ConfigRun,
    ErrorMetrics,
    OutputResult,
    Report,
    StageRef,
    StageRow,
    Tolerance,
)

JUDGEMENTS = {"pass": "pass", "fail": "FAIL", "not compared": "n/c"}
STATUSES = {
    "agrees": "agrees",
    "diverges": "DIVERGES",
    "inconclusive": "INCONCLUSIVE",
    "perturbed": "PERTURBED",
    "skipped": "skipped",
    "failed": "FAILED",
}


# What to show


def main_config(report: Report) -> str | None:
    """The configuration whose stages are shown: the first gating one that diverges, else the first gating one.

    A configuration without any stage result has nothing to show, and is taken only if none has.
    """
    seen = {name for row in report.stages for name in row.results}

    def rank(config: ConfigRun) -> tuple[bool, bool, bool]:
        return (config.name not in seen, not config.gating, config.status != "diverges")

    return min(report.configs, key=rank).name if report.configs else None


def stage_rows(report: Report) -> tuple[StageRow, ...]:
    """The rows of the stage table proper, those that count for the verdict."""
    return tuple(row for row in report.stages if row.role != "group")


def group_rows(report: Report) -> tuple[StageRow, ...]:
    """Containers that the user asked for beside the stages."""
    return tuple(row for row in report.stages if row.role == "group")


def rows_by_ref(report: Report) -> dict[StageRef, StageRow]:
    """Rows by name; where a container is a group and counts as well, the row that counts."""
    return {row.ref: row for row in (*group_rows(report), *stage_rows(report))}


def origin_refs(report: Report, config: str | None) -> frozenset[StageRef]:
    """Stages where the error is made under ``config``."""
    return frozenset(origin.ref for origin in report.verdict.origins if origin.config == config)


def first_ref(report: Report, config: str | None) -> StageRef | None:
    """The first stage over tolerance, if it was found under ``config``."""
    first = report.verdict.first_over_tolerance
    return first.ref if first is not None and first.config == config else None


def worst_row(rows: Sequence[StageRow], config: str | None) -> StageRow | None:
    """The stage with the largest relative error; NaN is worse than any number."""
    if config is None:
        return None
    compared = [row for row in rows if config in row.results and row.results[config].judgement != "not compared"]
    return max(compared, key=lambda row: badness(row.results[config].total.rel_l2), default=None)


def worst_output(config: ConfigRun) -> OutputResult | None:
    """The final output with the largest relative error."""
    return max(config.outputs, key=lambda output: badness(output.total.rel_l2), default=None)


def badness(value: float) -> float:
    """A sort key: NaN counts as infinite, for nothing is known about such an error."""
    return math.inf if math.isnan(value) else value


# Tolerances


def rel_limit(tolerance: Tolerance, dtype: str) -> float | None:
    """The limit on the relative L2 error of a stage, where the tolerance is of that form."""
    return tolerance.rel_l2.get(dtype) if tolerance.rel_l2 else None


def tolerance_text(tolerance: Tolerance, dtypes: Sequence[str] = ()) -> str:
    """The tolerance in words, for the dtypes that occur (all of them if none is named)."""
    if tolerance.rel_l2 is not None:
        limits = {name: limit for name, limit in tolerance.rel_l2.items() if not dtypes or name in dtypes}
        text = "relative L2 " + (", ".join(f"{sci(limit)} ({name})" for name, limit in limits.items()) or "-")
    elif tolerance.max_abs is not None:
        text = f"max abs {sci(tolerance.max_abs)}"
    else:
        text = f"atol {sci(tolerance.atol)} + rtol {sci(tolerance.rtol)} * |expected|"
    return f"{text}, {'the default' if tolerance.source == 'default' else 'given by the user'}"


# Numbers


def sci(value: float | None) -> str:
    """Compact scientific form: ``2.1e-07``; ``-`` where there is nothing."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}".replace("-0", "0")
    return f"{value:.1e}"


def ratio(value: float | None) -> str:
    """A factor: plain where that is short (``0.92``, ``1.3``, ``250``), else in scientific form."""
    if value is None or not math.isfinite(value) or not 0.01 <= abs(value) < 1000:
        return sci(value)
    if abs(value) >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2g}"


def value_text(value: float | None) -> str:
    """One element of a tensor, to six digits."""
    return "-" if value is None else f"{value:.6g}"


def percent(part: int, whole: int) -> str:
    """A share that says 0 % and 100 % only when it is so."""
    if whole == 0:
        return "0 %"
    share = 100 * part / whole
    if 0 < part < whole:
        share = min(max(share, 0.1), 99.9)
    return f"{share:.0f} %" if part in (0, whole) else f"{share:.1f} %"


def plural(count: int, noun: str) -> str:
    """``1 stage``, ``2 stages``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# Names


def printable(text: object) -> str:
    r"""A name with everything that could steer a terminal (escapes, newlines, text direction) written as ``\x1b``."""
    return "".join(char if char.isprintable() else _escape(char) for char in str(text))


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def shorten_middle(text: str, width: int) -> str:
    """Cut out the middle: a path says most at its two ends. The end gets the larger part."""
    if len(text) <= width:
        return text
    if width <= 4:
        return text[: max(width, 0)]
    tail = (width - 2) * 3 // 5
    return text[: width - 2 - tail] + ".." + text[len(text) - tail :]


def shape_text(shape: Sequence[int]) -> str:
    """``1x64x56x56``; ``scalar`` for no dimensions."""
    return "x".join(map(str, shape)) or "scalar"


def index_text(index: Sequence[int]) -> str:
    """``(0, 17, 0, 27)``."""
    return "(" + ", ".join(map(str, index)) + ")"


def source_text(value: Any) -> str:
    """A value of a free-form map in one line: lists by commas, maps as ``key=value``."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={source_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(source_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def effective_text(effective: Mapping[str, Any]) -> str:
    """What was read back from a run, short: ``CPU, nodes 31, threads 2``. Nested maps are for the HTML page."""
    parts = []
    for key, value in effective.items():
        if isinstance(value, Mapping) or value is None:
            continue
        text = source_text(value).replace("ExecutionProvider", "")
        parts.append(text if "provider" in key else f"{key.replace('_', ' ')} {text}")
    return ", ".join(parts) or "-"


def command_text(command: Any) -> str:
    """The command to repeat the run, quoted for a shell if it is kept as a list of words."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command or "")


def names_text(names: Sequence[StageRef] | Sequence[str], limit: int = 3) -> str:
    """``a, b, c and 4 more``."""
    text = ", ".join(printable(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


# Sentences


def alignment_text(alignment: Alignment) -> str:
    """How much of the model was compared, and what was not, in one sentence."""
    absent = [item.ref for item in alignment.unaligned if not item.in_graph]
    lost = [item.ref for item in alignment.unaligned if item.in_graph]
    text = f"Aligned {alignment.aligned} of {plural(alignment.stages, 'stage')}"
    parts = []
    if absent:
        verb = "has" if len(absent) == 1 else "have"
        parts.append(f"{len(absent)} {verb} no value in the graph ({names_text(absent)})")
    if lost:
        verb = "was" if len(lost) == 1 else "were"
        parts.append(f"{len(lost)} {verb} not found in {'it' if absent else 'the graph'} ({names_text(lost)})")
    if alignment.coverage is not None and (lost or alignment.coverage < 1):
        parts.append(f"coverage {100 * alignment.coverage:.1f} %")
    return f"{text}; {', '.join(parts)}." if parts else f"{text}."


def worst_element_lines(metrics: ErrorMetrics) -> tuple[str, ...]:
    """How many elements differ, where they do most, and both values there."""
    if metrics.problem is not None:
        return (f"values could not be compared: {printable(metrics.problem)}",)
    if metrics.differing == 0:
        return (f"all {metrics.count} elements are equal",)
    text = f"{metrics.differing} of {metrics.count} elements differ ({percent(metrics.differing, metrics.count)})"
    if metrics.worst_index is None:
        return (text,)
    what = "greatest"
    if metrics.nonfinite_mismatch:
        text += f", {metrics.nonfinite_mismatch} of them NaN or infinite on one side"
        what = "the first of these"
    values = f"expected {value_text(metrics.worst_expected)}, actual {value_text(metrics.worst_actual)}"
    return f"{text}; {what} at {index_text(metrics.worst_index)}:", values


def noise_text(noise_ratio: float | None, side: str | None) -> str:
    """How far above the noise floor an origin lies, and which side is off against float64."""
    parts = []
    if noise_ratio is not None:
        parts.append(f"{ratio(noise_ratio)} times the noise floor")
    if side is not None:
        parts.append(f"{'PyTorch' if side == 'expected' else 'ONNX Runtime'} is the side that is off against float64")
    return "; ".join(parts) or "noise floor not measured"


def local_rel(comparison: Comparison) -> float | None:
    """Relative error made in the stage itself."""
    return None if comparison.local is None else comparison.local.rel_l2
