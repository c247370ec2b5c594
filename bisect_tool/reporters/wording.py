"""Names, numbers and limits in words, the same in every reporter."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bisect_tool.quantised import STAGE_SQNR
from bisect_tool.records import (
    Alignment,
    Comparison,
    ConfigRun,
    Difference,
    ErrorMetrics,
    HandOver,
    Link,
    Origin,
    Report,
    Spread,
    StageRef,
    TableSource,
    Tolerance,
    Witness,
)
from bisect_tool.tolerances import DEFAULT_REL_L2

JUDGEMENTS = {"pass": "pass", "fail": "FAIL", "not compared": "n/c"}
STATUSES = {
    "agrees": "agrees",
    "diverges": "DIVERGES",
    "inconclusive": "INCONCLUSIVE",
    "perturbed": "PERTURBED",
    "skipped": "skipped",
    "failed": "FAILED",
    "crashed": "CRASHED",
}


# Tolerances


def rel_limit(tolerance: Tolerance, dtype: str) -> float | None:
    """The limit on the relative L2 error of a stage, where the tolerance is of that form."""
    return tolerance.rel_l2.get(dtype) if tolerance.rel_l2 else None


def tolerance_text(tolerance: Tolerance, dtypes: Sequence[str] = (), *, floors: bool = True) -> str:
    """What stages are judged by in words, for the dtypes that occur (all of them if none is named).

    ``floors``: noise floors are measured; two recordings may have none.
    """
    if tolerance.table is not None:
        return table_text(tolerance.table)
    if tolerance.min_sqnr is not None:
        least = f"SQNR: at least {tolerance.min_sqnr:g} dB"
        if tolerance.source == "quantised":
            return f"{least} in total, and {STAGE_SQNR:g} dB in each stage by itself, the defaults for quantised graphs"
        return f"{least}, given by the user"
    if tolerance.rel_l2 is not None:
        limits = {name: limit for name, limit in tolerance.rel_l2.items() if not dtypes or name in dtypes}
        text = "relative L2 " + (", ".join(f"{sci(limit)} ({name})" for name, limit in limits.items()) or "-")
        if tolerance.source == "default":
            if any(limit > DEFAULT_REL_L2.get(name, math.inf) for name, limit in limits.items()):
                # Raised by precision.tolerance_for, for every dtype alike: it is not that of PyTorch's own.
                text = f"relative L2 {sci(max(limits.values()))} (half precision, as in the graph)"
            # A stage under this limit fails all the same if it makes more error than rounding does.
            return f"the noise floor, and {text}, the defaults" if floors else f"{text}, the default"
    elif tolerance.max_abs is not None:
        text = f"max abs {sci(tolerance.max_abs)}"
    else:
        text = f"atol {sci(tolerance.atol)} + rtol {sci(tolerance.rtol)} * |expected|"
    return f"{text}, {'the default' if tolerance.source == 'default' else 'given by the user'}"


def table_text(table: TableSource) -> str:
    """``limits of 58 stages calibrated on 128 samples (tolerances.toml), one false alarm in 100 samples``."""
    text = f"limits of {plural(table.stages, 'stage')} calibrated on {plural(table.samples, 'sample')} ({table.file})"
    one_in = 1 / table.false_alarm if table.false_alarm else math.inf
    text += f", one false alarm in {one_in:.3g} samples"
    if table.tail != "measured":
        text += " asked for, of which they are too few to be sure: the limits are wider"
    if table.hardware is not None:
        text += "; those of this kind of machine"
    return f"{text}; the noise floor explains"


def has_floors(report: Report) -> bool:
    """Whether stages are judged by noise floors: always where the model is there, else as far as a recording holds them."""
    return not report.chain or any(r.floor is not None for row in report.stages for r in row.results.values())


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


def value_texts(expected: float | None, actual: float | None) -> tuple[str, str]:
    """One element of either tensor, to six digits, or to as many as show that the two differ."""
    if expected != actual and isinstance(expected, int) and isinstance(actual, int):
        return str(expected), str(actual)
    for digits in range(6, 18):
        texts = tuple("-" if value is None else f"{value:.{digits}g}" for value in (expected, actual))
        if texts[0] != texts[1] or expected == actual:
            break
    return texts[0], texts[1]


def percent(part: float, whole: float) -> str:
    """A share that says 0 % and 100 % only when it is so, and 0.1 % only when it is as much."""
    if whole == 0:
        return "0 %"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 0 < part < whole:
        share = min(share, 99.9)
    return f"{share:.0f} %" if part in (0, whole) else f"{share:.1f} %"


def share_text(share: float | None) -> str:
    """``21.4 %``; ``-`` where it was not measured."""
    return "-" if share is None else percent(share, 1)


def made_text(made: Sequence[tuple[StageRef, float]]) -> str:
    """``of the final error 75.0 % is made in block.conv, 21.0 % in stem.conv``."""
    parts = [f"{share_text(share)} {'' if number else 'is made '}in {ref}" for number, (ref, share) in enumerate(made)]
    return f"of the final error {', '.join(parts)}"


def run_seconds(run: ConfigRun) -> float | None:
    """One plain run of either side, together; ``None`` where one of them was not measured."""
    if run.expected_cost is None or run.actual_cost is None:
        return None
    return run.expected_cost.seconds + run.actual_cost.seconds


def run_time_text(run: ConfigRun) -> str:
    """``0.35 ms``, ``12 ms``, ``3.1 s``; ``-`` where it was not measured."""
    seconds = run_seconds(run)
    if seconds is None:
        return "-"
    value, unit = (seconds, "s") if seconds >= 0.995 else (seconds * 1e3, "ms")
    return (
        f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}" if value >= 0.995 else f"{value:.2f} {unit}"
    )


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


def initials(path: str, width: int) -> str:
    """Shorten a path's words to initials, outermost first: neighbours differ in their numbers, which must stay."""
    parts = path.split(".")
    for index, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        if part.isidentifier():
            parts[index] = part[0]
    return ".".join(parts)


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


def effective_sides(effective: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """``effective.expected`` and ``effective.actual``; a flat map is ONNX Runtime's."""
    sides = [effective.get(side) for side in ("expected", "actual")]
    if not any(isinstance(side, Mapping) for side in sides):
        return {}, effective
    expected, actual = (side if isinstance(side, Mapping) else {} for side in sides)
    return expected, actual


def effective_text(effective: Mapping[str, Any]) -> str:
    """What was read back from ONNX Runtime, short: ``CPU, nodes 31, threads 2``. Nested maps are for the HTML page."""
    parts: list[str] = []
    for key, value in effective_sides(effective)[1].items():
        if isinstance(value, Mapping) or value is None or value == []:
            continue
        text = source_text(value).replace("ExecutionProvider", "")
        if key == "version" and parts:
            # Of the runner, which is named before it.
            parts[-1] += f" {text}"
        else:
            parts.append(text if "provider" in key or key == "runner" else f"{key.replace('_', ' ')} {text}")
    return ", ".join(parts) or "-"


def command_text(command: Any) -> str:
    """The command to repeat the run, quoted for a shell if it is kept as a list of words."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command or "")


def names_text(names: Sequence[StageRef] | Sequence[str], limit: int = 3) -> str:
    """``a, b, c and 4 more``."""
    text = ", ".join(printable(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


_PLUMBING = {
    *("Cast", "CastLike", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Range"),
    *("Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators that move values and compute shapes; they rarely make an error."""
DETAILED_NODES = 3
"""Nodes whose attributes are shown at an origin; the report has those of more."""


def telling_nodes(origin: Origin) -> list[str]:
    """An origin's nodes, the likeliest to be at fault first: what makes the value, arithmetic, the plumbing."""
    ops = dict(zip(origin.onnx_nodes, origin.onnx_ops, strict=False))
    *others, maker = origin.onnx_nodes or [""]
    names = [maker, *sorted(others, key=lambda name: ops.get(name) in _PLUMBING)]
    return [name for name in names if name]


def node_texts(origin: Origin, limit: int | None = None) -> list[str]:
    """An origin's most telling nodes with their types, in the graph's order, and how many more there are."""
    ops = dict(zip(origin.onnx_nodes, origin.onnx_ops, strict=False))
    telling = telling_nodes(origin)[:limit]
    texts = [f"{name} ({ops[name]})" if name in ops else name for name in origin.onnx_nodes if name in telling]
    left = sum(map(bool, origin.onnx_nodes)) - len(texts)
    return [*texts, f"{left} more"] if left else texts


def detail_texts(origin: Origin) -> list[str]:
    """The few nodes of an origin with their attributes and lines; nothing where there are many, or nothing to say."""
    if len(origin.onnx_details) > DETAILED_NODES:
        return []
    texts = []
    for node in origin.onnx_details:
        attributes = ", ".join(f"{name}={value}" for name, value in node.attributes.items())
        if attributes or (node.source and node.source != origin.source):
            texts.append(f"{node.name}: {node.op_type}({attributes})" + (f" from {node.source}" if node.source else ""))
    return texts


def hand_over_text(found: HandOver) -> str:
    """The hand-over bisection in words."""
    return (
        f"with PyTorch's values up to {found.ref} handed to the graph its outputs are right "
        f"(relative L2 {sci(found.error_after)}), with those before it they are not ({sci(found.error_before)})"
    )


def weight_texts(origin: Origin, origins: Sequence[Origin]) -> list[str]:
    """The initialisers that an origin reads, first those that other origins read too: one fault may be behind them all."""
    found = []
    for name in origin.onnx_weights:
        sharing = {other.ref for other in origins if name in other.onnx_weights} - {origin.ref}
        found.append((len(sharing), name))
    found.sort(key=lambda item: -item[0])
    return [f"{name} (in {plural(count, 'more origin')})" if count else name for count, name in found]


# Sentences


def alignment_text(alignment: Alignment, where: str = "the graph") -> str:
    """How much of the model was compared, and what was not, in one sentence; ``where``: what stages were looked for in."""
    absent = [item.ref for item in alignment.unaligned if not item.in_graph]
    lost = [item.ref for item in alignment.unaligned if item.in_graph]
    text = f"Aligned {alignment.aligned} of {plural(alignment.stages, 'stage')}"
    parts = []
    if absent:
        verb = "has" if len(absent) == 1 else "have"
        parts.append(f"{len(absent)} {verb} no value in the graph ({names_text(absent)})")
    if lost:
        verb = "was" if len(lost) == 1 else "were"
        parts.append(f"{len(lost)} {verb} not found in {'it' if absent else where} ({names_text(lost)})")
    if alignment.coverage is not None and (lost or alignment.coverage < 1):
        parts.append(f"coverage {100 * alignment.coverage:.1f} %")
    return f"{text}; {', '.join(parts)}." if parts else f"{text}."


def looked_in(report: Report) -> str:
    """Where stages were looked for: in a graph, or in the other recording."""
    return "the other recording" if report.chain else "the graph"


def chain_cells(link: Link) -> list[tuple[str, str, str]]:
    """Rows of the chain's table for one link: link, whether it differs, and what was compared or differs."""
    status = {"same": "same", "differs": "DIFFERS", "unknown": "unknown"}[link.status]
    if link.status == "differs" and all(difference.reach == "none" for difference in link.differences):
        status = "harmless"
    rows = [(link.link, status, link.checked)]
    rows += [("", "", difference_text(difference)) for difference in link.differences[:CHAIN_LINES]]
    if len(link.differences) > CHAIN_LINES:
        rows.append(("", "", f"and {len(link.differences) - CHAIN_LINES} more"))
    return rows


CHAIN_LINES = 6
"""Differences of one link that a table names."""
_REACH = {
    "any": "",
    "reduced": "as much as a reduced precision",
    "rounding": "rounding only",
    "possible": "possibly",
    "none": "cannot have changed a number",
}


def difference_text(difference: Difference) -> str:
    """What differs, both sides, and what it can do."""
    text = difference.what
    if difference.expected is not None or difference.actual is not None:
        text += f": {difference.expected or 'not there'} -> {difference.actual or 'not there'}"
    said = [part for part in (difference.note, _REACH[difference.reach]) if part]
    return f"{text} ({'; '.join(said)})" if said else text


def is_estimate(metrics: ErrorMetrics) -> bool:
    """Whether only the relative L2 is known, from summaries of both tensors."""
    return bool(metrics.count) and math.isnan(metrics.max_abs) and not math.isnan(metrics.rel_l2)


def worst_element_lines(metrics: ErrorMetrics, spread: Spread | None = None) -> tuple[str, ...]:
    """How many elements differ, where they do most, and both values there."""
    if metrics.problem is not None:
        return (f"values could not be compared: {printable(metrics.problem)}",)
    if metrics.differing == 0:
        return (f"all {metrics.count} elements are equal",)
    if is_estimate(metrics):
        return (f"relative L2 about {sci(metrics.rel_l2)}, estimated from summaries",)
    number, more = metrics.differing, ""
    if spread is not None:
        number = spread.beyond
        more = f" by more than {sci(spread.limit)}" if spread.limit is not None else " by more than atol and rtol allow"
    text = f"{number} of {metrics.count} elements differ{more} ({percent(number, metrics.count)})"
    if spread is not None and spread.share is not None:
        text += f", {percent(spread.share, 1)} of the squared error in index {spread.index} of axis {spread.axis}"
    if metrics.worst_index is None:
        return (text,)
    what = "greatest"
    if metrics.nonfinite_mismatch:
        text += f", {metrics.nonfinite_mismatch} of them NaN or infinite on one side"
        what = "the first of these"
    expected, actual = value_texts(metrics.worst_expected, metrics.worst_actual)
    return f"{text}; {what} at {index_text(metrics.worst_index)}:", f"expected {expected}, actual {actual}"


def noise_text(noise_ratio: float | None, side: str | None, runner: str = "ONNX Runtime") -> str:
    """How far above the noise floor an origin lies, and which side is off against float64."""
    parts = []
    if noise_ratio is not None:
        parts.append(f"{ratio(noise_ratio)} times the noise floor")
    if side is not None:
        name = "PyTorch" if side == "expected" else runner
        if noise_ratio is None:  # not measured: then it is known from a switch of that side alone
            return f"a switch on {name}'s side removes it"
        parts.append(f"{name} is the side that is off against float64")
    return "; ".join(parts) or "noise floor not measured"


_RUNNERS = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "onnx-reference": "the reference evaluator"}


def runner_text(report: Report, config: str | None) -> str:
    """What ran the graph under a configuration; without one, what ran it in all of them."""
    found = {run.actual.backend for run in report.configs if config in (None, run.name)}
    return _RUNNERS.get(found.pop(), "ONNX") if len(found) == 1 else "ONNX"


def witness_text(witness: Witness, judged: str = "ONNX Runtime") -> str:
    """What another runner says about an origin.

    Args:
        witness: its values.
        judged: the runner that was judged.
    """
    who = "ONNX's reference evaluator" if witness.runner == "onnx-reference" else witness.runner
    if witness.says == "unknown":
        return f"{who} gave no answer: {witness.reason}"
    to_expected, to_actual = sci(witness.against_expected_rel_l2), sci(witness.against_actual_rel_l2)
    if witness.says == "neither":
        return f"{who} gives neither value: relative L2 {to_expected} from PyTorch's, {to_actual} from {judged}'s"
    if witness.says == "export":
        return f"{who} gives {judged}'s value (relative L2 {to_actual}; {to_expected} from PyTorch's): the graph is off"
    return f"{who} gives PyTorch's value (relative L2 {to_expected}; {to_actual} from {judged}'s): {judged} is off"


def decibels(value: float | None) -> str:
    """``33.1``; a dash where there is none."""
    return (
        "-"
        if value is None
        else "nan"
        if math.isnan(value)
        else f"{value:.1f}"
        if math.isfinite(value)
        else f"{value:g}"
    )


def local_rel(comparison: Comparison) -> float | None:
    """Relative error made in the stage itself."""
    return None if comparison.local is None else comparison.local.rel_l2
