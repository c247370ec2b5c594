"""The pairs of a matrix in short words: what each asks for, what was really in effect, and which switches were tried.

A switch keeps the name that it has in ``docs/switches.md``, without the prefix of ONNX Runtime's session keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bisect_tool.records import ConfigRun, Hypothesis, NumericConfig, Report
from bisect_tool.reporters.wording import effective_sides, plural, sci
from bisect_tool.switches import ONNXRUNTIME, TORCH

_PREFIXES = ("session.", "optimization.", "mlas.")


# Requested


def requested_texts(report: Report) -> dict[str, str]:
    """What each pair asks for beyond the libraries' defaults and what most pairs have, by the pair's name."""
    # Pairs that never ran leave open what the case and the command line fill in.
    runs = [run for run in report.configs if run.expected.dtype is not None] or report.configs
    usual = {
        name: _most_common([getattr(run.actual, name) for run in runs])
        for name in ("dtype", "exporter", "opset", "constant_folding")
    }
    threads = _most_common([(run.expected.threads, run.actual.threads) for run in runs])
    return {run.name: ", ".join(_requested(run, usual, threads)) or "defaults" for run in report.configs}


def _most_common(values: Sequence[Any]) -> Any:
    """Of equals the first."""
    return Counter(values).most_common(1)[0][0] if values else None


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
        if expected.threads == actual.threads != 0:
            words.append(plural(expected.threads, "thread"))
        else:
            words += [f"{side} {plural(config.threads, 'thread')}" for side, config in _sides(run) if config.threads]
    if actual.backend == "onnx-reference":
        words.append("reference evaluator")
    elif actual.optimization not in (None, "all"):
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
    return f"{_short(name)} {('on' if value else 'off') if isinstance(value, bool) else value}"


def _short(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


# In effect


def in_effect_text(run: ConfigRun) -> str:
    """What was read back from a pair's run, short; what could not be read back is said to be so."""
    expected, actual = effective_sides(run.effective)
    if not expected and not actual:
        return "-"
    devices = _devices(expected, actual)
    words = [
        *([str(run.effective["graph"])] if "graph" in run.effective else []),
        *_switches_in_effect(run, expected, actual),
        *_torch_in_effect(expected),
        *_dtype_in_effect(run, actual),
        *_nodes_text(actual),
    ]
    # That a run on the CPU was one is worth a word where there is no other.
    return ", ".join(words if words and devices == ["CPU"] else [*devices, *words]) or "-"


def _devices(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    torch = str(expected.get("device") or "").upper()
    providers = [str(name).removesuffix("ExecutionProvider") for name in actual.get("providers") or ()]
    placed = {name.removesuffix("ExecutionProvider"): count for name, count in _counts(actual.get("placement")).items()}
    ort = ", ".join(providers)
    if providers and set(placed) == {providers[0]}:
        ort = providers[0]
    elif len(providers) > 1 and placed:
        # A session that lists a provider may still have put every node elsewhere.
        ort = ", ".join(f"{plural(placed.get(name, 0), 'node')} on {name}" for name in providers)
    if not torch or not providers or torch == providers[0].upper():
        return [text for text in (ort or torch,) if text]
    return [f"PyTorch {torch}", f"ONNX Runtime {ort}"]


def _torch_in_effect(expected: Mapping[str, Any]) -> list[str]:
    words = []
    if expected.get("emulate"):
        counts = [sum(_counts(expected.get(f"emulate_{kind}")).values()) for kind in ("rounded", "unreached")]
        words.append(f"{expected['emulate']} in {plural(counts[0], 'operation')}")
        words += [f"{counts[1]} out of its reach"] if counts[1] else []
    seen = {kind: expected.get(f"{kind}_tf32_seen") for kind in ("matmul", "conv")}
    if any(value is not None for value in seen.values()):
        where = " and ".join(kind for kind, value in seen.items() if value)
        words.append(f"TF32 seen in {where}" if where else "no TF32 seen")
    return words


def _switches_in_effect(run: ConfigRun, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Whether each switch was read back, and as it was set; those of the export show in the graph alone."""
    found = actual.get("switches")
    unconfirmed = actual.get("unconfirmed")
    sides = (
        (run.expected.switches, {name: value for name, value in expected.items() if name in run.expected.switches}),
        (run.actual.switches, found if isinstance(found, Mapping) else {}),
    )
    idle = actual.get("without_effect") or ()
    confirmed, words = 0, []
    for side, config, read in (("PyTorch", run.expected, expected), ("ONNX Runtime", run.actual, actual)):
        if config.threads and "threads" in read:
            confirmed += read["threads"] == config.threads
            words += [f"{side} {plural(read['threads'], 'thread')}"] if read["threads"] != config.threads else []
    for asked, read in sides:
        for name, value in read.items():
            if name in idle and asked is run.actual.switches:
                words.append(f"{setting_text(name, asked[name])} without effect")
            elif name in asked and _same_setting(asked[name], value):
                confirmed += name != "emulate"  # it has words of its own
            else:
                words.append(f"{setting_text(name, 'unknown' if value is None else value)} instead")
    missing = [name for name in run.expected.switches if name not in expected]
    missing += [str(name) for name in unconfirmed] if isinstance(unconfirmed, (list, tuple)) else []
    words += [f"{_short(name)} not read back" for name in missing]
    return [*(["set as requested"] if confirmed and not words else []), *words]


def _same_setting(asked: object, read: object) -> bool:
    """Libraries spell ``true`` as ``1``, or as ``True``."""
    spelled = {"true": "1", "false": "0"}
    one, other = (str(value).lower() for value in (asked, read))
    return spelled.get(one, one) == spelled.get(other, other)


def _dtype_in_effect(run: ConfigRun, actual: Mapping[str, Any]) -> list[str]:
    """A given graph need not be in the model's dtype, and a request for another one than usual needs an answer."""
    dtype = actual.get("dtype")
    return [f"graph in {dtype}"] if dtype and (dtype != run.actual.dtype or dtype != "float32") else []


def _nodes_text(actual: Mapping[str, Any]) -> list[str]:
    """What the optimiser left of the graph."""
    nodes, changed = actual.get("nodes"), actual.get("changed")
    after = nodes if isinstance(nodes, int) else sum(_counts(nodes).values())
    if not after:
        return []
    if not isinstance(changed, Mapping):
        return [plural(after, "node")]
    if not changed:
        return [f"{plural(after, 'node')} as given"]
    before = after
    for pair in changed.values():
        if isinstance(pair, (list, tuple)) and [type(count) for count in pair] == [int, int]:
            before += pair[0] - pair[1]
    return [f"{plural(after, 'node')} from {before}"]


def _counts(value: object) -> dict[str, int]:
    """A map of names to counts out of a free-form one; nothing where it is something else."""
    found = value.items() if isinstance(value, Mapping) else ()
    return {str(name): count for name, count in found if isinstance(count, int)}


# Hypotheses

HYPOTHESIS_COLUMNS = ("suspect", "tried", "pair", "its error", "passing pair, set back", "time", "conclusion")
_ON_BOTH_SIDES = {switch.name for switch in TORCH} & {switch.name for switch in ONNXRUNTIME}


def hypothesis_cells(item: Hypothesis) -> tuple[str, ...]:
    """One row of the table of hypotheses; ``HYPOTHESIS_COLUMNS`` are its heads."""
    side = {"torch": "PyTorch ", "onnxruntime": "ONNX Runtime "}.get(item.side, "")
    return (
        (side if item.switch in _ON_BOTH_SIDES else "") + _short(item.switch),
        f"{item.before or 'unset'} -> {item.after or 'unset'}",
        item.failing,
        f"{sci(item.error_before)} -> {sci(item.error_after)}",
        f"{sci(item.error_passing)} -> {sci(item.error_back)}",
        "-" if item.time_cost is None else f"{item.time_cost:+.0%}" if item.time_cost else "same",
        item.conclusion,
    )
