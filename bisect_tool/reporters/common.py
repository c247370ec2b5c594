"""What several reporters need: which configuration to show, and how names and numbers are worded."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bisect_tool.records import (
    Alignment,
    Comparison,
    ConfigRun,
    ConfigStatus,
    Diagnosis,
    ErrorMetrics,
    NumericConfig,
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
    "crashed": "CRASHED",
}


# What to show


def main_config(report: Report) -> str | None:
    """The configuration whose stages are shown: the first gating one that diverges, else the first gating one.

    A configuration without any stage result has nothing to show, and is taken only if none has. Of a matrix's pairs
    that agree the one without optimisation is taken: there alone the stages' own errors are measured.
    """
    seen = {name for row in report.stages for name in row.results}
    first = report.verdict.first_over_tolerance
    matrix = is_matrix(report)

    def rank(config: ConfigRun) -> tuple[bool, ...]:
        if not matrix:
            return (config.name not in seen, not config.gating, config.status != "diverges")
        diverges = config.gating and config.status == "diverges"
        located = first is not None and first.config == config.name
        plain = config.actual.optimization == "off"
        return (config.name not in seen, not diverges, not located, not config.gating, not plain)

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


def first_divergence(report: Report, config: ConfigRun) -> str | None:
    """The first stage that is over tolerance under a configuration, or the first final output that is."""
    for row in stage_rows(report):
        if config.name in row.results and row.results[config.name].judgement == "fail":
            return str(row.ref)
    failing = (output for output in config.outputs if output.judgement == "fail")
    return next((f"final output {output.output}" for output in failing), None)


def made_most(report: Report, config: str | None, limit: int = 3) -> tuple[tuple[StageRef, float], ...]:
    """The stages that make the largest shares of the final error, the largest first; () where none was measured."""
    shares = [
        (row.ref, share)
        for row in stage_rows(report)
        if config in row.results and (share := row.results[config].share) is not None and share > 0
    ]
    return tuple(sorted(shares, key=lambda item: -item[1])[:limit])


def shows_shares(report: Report, config: str | None) -> bool:
    """Whether it is worth a column where the error is made: something diverges, and the shares were measured."""
    diverges = report.verdict.status == "diverges" or any(run.status == "diverges" for run in report.configs)
    return diverges and any(config in row.results and row.results[config].share is not None for row in report.stages)


# Matrices

_TRIAL = re.compile(r"(.+) try [0-9]+")
_SWITCH_CODES = "BD3"
_PREFIXES = ("session.", "optimization.", "mlas.")


@dataclass(frozen=True)
class NotRun:
    """Pairs that gave no answer for one and the same reason."""

    status: ConfigStatus
    reason: str
    runs: tuple[ConfigRun, ...]


def is_matrix(report: Report) -> bool:
    """Whether the pairs ran one by one, or differ in more than the optimisation of one graph on one PyTorch run.

    A plain report has one PyTorch side, one export and no switches; what ONNX Runtime does with it may differ.
    """
    runs = report.configs
    if any(f"pair {run.name}" in report.timings for run in runs):  # each was a step of the run
        return True
    if any(run.expected.switches or run.actual.switches for run in runs):
        return True
    return len({(run.expected, replace(run.actual, device="", optimization=None)) for run in runs}) > 1


def is_trial(run: ConfigRun, report: Report) -> bool:
    """Whether a pair is not the matrix's own, but ran to explain one of its pairs (names in a matrix have no blanks)."""
    of = _TRIAL.fullmatch(run.name)
    return of is not None and any(of[1] == other.name for other in report.configs)


def has_results(run: ConfigRun, report: Report) -> bool:
    """Whether there is anything to show about a pair beside its reason."""
    return bool(run.outputs) or any(run.name in row.results for row in report.stages)


def not_run(report: Report) -> list[NotRun]:
    """Pairs that were skipped, failed, crashed or were perturbed, those with one reason together."""
    found: dict[tuple[ConfigStatus, str], list[ConfigRun]] = {}
    for run in report.configs:
        if run.skipped_reason or run.status not in ("agrees", "diverges"):
            reason = " ".join((run.skipped_reason or "no reason was recorded").split())
            found.setdefault((run.status, reason), []).append(run)
    return [NotRun(status, reason, tuple(runs)) for (status, reason), runs in found.items()]


def matrix_text(report: Report) -> str:
    """How many pairs ran, with which result, and how many of them count, in one sentence."""
    own = [run for run in report.configs if not is_trial(run, report)]
    trials = len(report.configs) - len(own)
    counts = Counter(run.status for run in own)
    words = {"agrees": "agree", "diverges": "diverge"}
    results = ", ".join(
        f"{counts[status]} {words.get(status, STATUSES[status].lower())}"  # type: ignore[index]
        for status in STATUSES
        if counts[status]  # type: ignore[index]
    )
    gating = sum(run.gating for run in own)
    count = f"{gating} of them {'counts' if gating == 1 else 'count'}" if gating < len(own) else "all count"
    text = f"{plural(len(own), 'pair')}: {results}; {count} for the exit code"
    return f"{text}; {plural(trials, 'trial')} more to explain failing pairs." if trials else f"{text}."


def separation_text(report: Report) -> str | None:
    """What can be said about failing and passing pairs where no switch was found that separates them."""
    statuses = {run.status for run in report.configs}
    if report.verdict.diagnoses or "diverges" not in statuses:
        return None
    if "agrees" not in statuses:
        return "No pair agrees: no switch of this matrix removes the divergence."
    return "No switch was found that makes a failing pair agree."


def requested_texts(report: Report) -> dict[str, str]:
    """What each pair asks for beyond the libraries' defaults and what most pairs have, by the pair's name."""
    usual = {
        name: _most_common([getattr(run.actual, name) for run in report.configs])
        for name in ("dtype", "exporter", "opset", "constant_folding")
    }
    threads = _most_common([(run.expected.threads, run.actual.threads) for run in report.configs])
    return {run.name: ", ".join(_requested(run, usual, threads)) or "defaults" for run in report.configs}


def _most_common(values: Sequence[Any]) -> Any:
    """Of equals the first; pairs that never ran leave fields open, which says nothing."""
    known = Counter(value for value in values if value is not None)
    return known.most_common(1)[0][0] if known else None


def _requested(run: ConfigRun, usual: Mapping[str, Any], threads: tuple[int, int] | None) -> list[str]:
    expected, actual = run.expected, run.actual
    words = []
    if expected.device == actual.device != "cpu":
        words.append(actual.device.upper())
    elif expected.device != actual.device:
        words += [f"{side} on {config.device.upper()}" for side, config in _sides(run) if config.device != "cpu"]
    if expected.dtype is not None and expected.dtype != usual["dtype"]:
        words.append(expected.dtype)
    if (expected.threads, actual.threads) != threads:
        if expected.threads == actual.threads:
            words.append(plural(expected.threads, "thread"))
        else:
            words += [f"{side} {plural(config.threads, 'thread')}" for side, config in _sides(run)]
    if actual.optimization not in (None, "all"):
        words.append(f"optimization {actual.optimization}")
    if actual.exporter is not None and actual.exporter != usual["exporter"]:
        words.append(actual.exporter)
    if actual.opset is not None and actual.opset != usual["opset"]:
        words.append(f"opset {actual.opset}")
    if actual.constant_folding is not None and actual.constant_folding != usual["constant_folding"]:
        words.append("constant folding" if actual.constant_folding else "no constant folding")
    both = expected.switches.keys() & actual.switches.keys()
    for side, config in _sides(run):
        for name, value in config.switches.items():
            words.append((f"{side} " if name in both else "") + setting_text(name, value))
    return words


def _sides(run: ConfigRun) -> tuple[tuple[str, NumericConfig], tuple[str, NumericConfig]]:
    return ("PyTorch", run.expected), ("ONNX Runtime", run.actual)


def setting_text(name: str, value: object) -> str:
    """A switch with its value, short: ``mkldnn off``, ``emulate tf32``, ``disable_prepacking on``."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return f"{name} {('on' if value else 'off') if isinstance(value, bool) else value}"


def in_effect_text(run: ConfigRun) -> str:
    """What was read back from a pair's run, short; what could not be read back is said to be so."""
    expected, actual = effective_sides(run.effective)
    if not expected and not actual:
        return "-"
    words = [*_devices(expected, actual), *_torch_in_effect(run, expected), *_ort_in_effect(run, actual)]
    nodes = _nodes_text(actual)
    return ", ".join([*words, nodes] if nodes else words) or "-"


def effective_sides(effective: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """``effective.expected`` and ``effective.actual``; a flat map is ONNX Runtime's."""
    sides = [effective.get(side) for side in ("expected", "actual")]
    if not any(isinstance(side, Mapping) for side in sides):
        return {}, effective
    expected, actual = (side if isinstance(side, Mapping) else {} for side in sides)
    return expected, actual


def _devices(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    torch = str(expected.get("device") or "").upper()
    providers = [str(name).removesuffix("ExecutionProvider") for name in actual.get("providers") or ()]
    placement = actual.get("placement")
    ort = ", ".join(providers)
    if len(providers) > 1 and isinstance(placement, Mapping):
        # A session that lists a provider may still have put every node elsewhere.
        placed = {str(name).removesuffix("ExecutionProvider"): count for name, count in placement.items()}
        ort = ", ".join(f"{placed.get(name, 0)} nodes on {name}" for name in providers if name in placed) or ort
    if not torch or not providers or torch == providers[0].upper():
        return [text for text in (ort or torch,) if text]
    return [f"PyTorch {torch}", f"ONNX Runtime {ort}"]


def _torch_in_effect(run: ConfigRun, expected: Mapping[str, Any]) -> list[str]:
    words = []
    for name, asked in run.expected.switches.items():
        if name == "emulate" and name in expected:
            counts = [sum((expected.get(f"emulate_{kind}") or {}).values()) for kind in ("rounded", "unreached")]
            words.append(f"{expected[name]} in {plural(counts[0], 'operation')}")
            words += [f"{counts[1]} out of its reach"] if counts[1] else []
        elif name in expected:
            words.append(_read_text(name, asked, expected[name]))
        else:
            words.append(f"{setting_text(name, asked)} (not read back)")
    seen = {kind: expected.get(f"{kind}_tf32_seen") for kind in ("matmul", "conv")}
    if any(value is not None for value in seen.values()):
        where = " and ".join(kind for kind, value in seen.items() if value)
        words.append(f"TF32 seen in {where}" if where else "no TF32 seen")
    if run.expected.threads and "threads" in expected:
        words.append(plural(expected["threads"], "thread"))
    return words


def _ort_in_effect(run: ConfigRun, actual: Mapping[str, Any]) -> list[str]:
    found = actual.get("switches")
    words = [
        _read_text(name, run.actual.switches.get(name), value)
        for name, value in (found.items() if isinstance(found, Mapping) else ())
    ]
    return words + [f"{setting_text(name, run.actual.switches.get(name))} (not read back)" for name in _unread(actual)]


def _unread(actual: Mapping[str, Any]) -> list[str]:
    names = actual.get("unconfirmed")
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def _read_text(name: str, asked: object, read: object) -> str:
    """A switch as it was read back; libraries spell ``true`` as ``1``."""
    spelled = {"1": "true", "0": "false"}
    one, other = (str(int(v) if isinstance(v, bool) else v).lower() for v in (asked, read))
    if asked is not None and spelled.get(one, one) == spelled.get(other, other):
        return setting_text(name, asked)
    return setting_text(name, "unknown" if read is None else read)


def _nodes_text(actual: Mapping[str, Any]) -> str:
    """What the optimiser left of the graph, and which new operators it brought in."""
    nodes, changed = actual.get("nodes"), actual.get("changed")
    if isinstance(nodes, int):
        return plural(nodes, "node")
    if not isinstance(nodes, Mapping):
        return ""
    after = sum(nodes.values())
    if not isinstance(changed, Mapping):
        return plural(after, "node")
    if not changed:
        return f"{plural(after, 'node')} as given"
    before = after - sum(new - old for old, new in changed.values())
    fused = [str(name).removeprefix("com.microsoft.") for name, (old, _) in changed.items() if not old]
    new = f" ({', '.join(fused[:2])}{' ..' if len(fused) > 2 else ''})" if fused else ""
    return f"{before} -> {plural(after, 'node')}{new}"


def remedy_code(diagnosis: Diagnosis) -> tuple[str, ...] | None:
    """The remedy as lines of code to copy; ``None`` where it is a sentence."""
    lines = tuple(line for line in diagnosis.remedy.splitlines() if line.strip())
    return lines if len(lines) > 1 or (lines and diagnosis.code.startswith(_SWITCH_CODES)) else None


HEAT_LEVELS = 8
"""Shades of the heat table, from an error of 1e-7 and less to 1 and more."""


def heat_level(rel_l2: float) -> int:
    """The shade of a relative error: 0 for none at all, one more for each factor of ten; NaN has the last."""
    if rel_l2 == 0:
        return 0
    if not rel_l2 < 1:
        return HEAT_LEVELS
    return max(1, HEAT_LEVELS + math.floor(math.log10(rel_l2)))


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


def percent(part: float, whole: float) -> str:
    """A share that says 0 % and 100 % only when it is so."""
    if whole == 0:
        return "0 %"
    share = 100 * part / whole
    if 0 < part < whole:
        share = min(max(share, 0.1), 99.9)
    return f"{share:.0f} %" if part in (0, whole) else f"{share:.1f} %"


def share_text(share: float | None) -> str:
    """``21.4 %``; ``-`` where it was not measured."""
    return "-" if share is None else percent(share, 1)


def seconds_text(seconds: float) -> str:
    """``0.35 s``, ``12 s``."""
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"


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
    """What was read back from ONNX Runtime, short: ``CPU, nodes 31, threads 2``. Nested maps are for the HTML page."""
    parts = []
    for key, value in effective_sides(effective)[1].items():
        if isinstance(value, Mapping) or value is None or value == []:
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
        name = "PyTorch" if side == "expected" else "ONNX Runtime"
        if noise_ratio is None:  # not measured: then it is known from a switch of that side alone
            return f"a switch on {name}'s side removes it"
        parts.append(f"{name} is the side that is off against float64")
    return "; ".join(parts) or "noise floor not measured"


def local_rel(comparison: Comparison) -> float | None:
    """Relative error made in the stage itself."""
    return None if comparison.local is None else comparison.local.rel_l2
