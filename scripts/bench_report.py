"""Raw results of scripts/benchmark → the Markdown of docs/performance.md."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench_worker import ENOUGH

Results = Mapping[str, Any]

DESCRIPTIONS = {
    "resnet50": "ResNet-50, 1×3×224×224",
    "resnet50-8x512": "ResNet-50, 8×3×512×512",
    "vit-b16": "ViT-B/16, 1×3×224×224",
    "bert-base": "BERT-base, 1×128",
    "gpt2-medium": "GPT-2-medium, 1×256",
    "second-fpn": "SECOND+FPN, 1×64×512×512",
}
RUNS = {
    "totals": "totals only",
    "forced": "with forced run and noise floors",
    "floors": "with every noise floor measured",
    "default": "as the command does",
    "totals-256MiB": "totals only, budget 256 MiB",
    "forced-256MiB": "with forced run, budget 256 MiB",
}
PEERS = {
    "naive": "hook script",
    "onnx-diagnostic": "onnx-diagnostic, side by side",
    "polygraphy": "Polygraphy, all outputs marked",
    "verification": "torch.onnx.verification, intermediates",
}
LIMITS = {"totals": 1.3, "forced": 2.0, "floors": 4.0}
"""Greatest multiple of the floor, for first calls: what the command does is one."""

PEER_LIMITS = {"onnx-diagnostic": 5, "polygraphy": 20, "verification": 300}
"""How many times faster than a peer, on ResNet-50."""

GPT2_LIMITS = {"floor": 3.0, "memory": 1.5}
BUDGET_MB = (256 << 20) / 1e6

_DISTRIBUTIONS = (
    *("torch", "onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "onnxscript", "numpy", "transformers"),
    *("polygraphy", "onnx-diagnostic"),
)

INTRODUCTION = """\
# Performance

Written by `scripts/benchmark`; do not edit by hand. One command for each line, with the results of all in one file:

```console
{commands}
```

Every measurement is a process of its own; the sides take turns, and the figures are medians over {rounds}.
Imports and export are outside of the clock; a comparison of a model with one layer comes first, so that lazy imports
have happened and thread pools stand. *First* is the first call in its process, as on the command line; *again* the later
calls (– where the first took over {enough} s). This tool's processes start as its command does (OpenMP's idle threads
sleep, libraries are left out of garbage collections); the floor and the peers have the libraries' defaults. Peak memory
(10⁶ bytes) is the whole process's after the first call, imports and model included.

{machine}

Times of one machine say little; the ratios of one run are what counts.
[size.md](size.md) has a model of a billion parameters.
"""

TARGETS = """\
First calls count: each run of the command is one. Later calls in the same process are shown beside them; there the floor
gains from what the libraries keep between runs, and this tool keeps nothing.
"""

FLOOR = """\
## The floor

What any comparison must do: PyTorch's forward, and an ONNX Runtime session (optimisation off, default threads) created
and run once.
"""

TOOL = """\
## This tool

*Totals only* compares every stage under one configuration; the *forced run* adds each stage's local error, and its noise
floor where that is not plainly rounding (on these healthy models it is); *with every noise floor measured* replays each
stage in float64 and in float32 all the same, which a model that is faulty throughout would cost; *as the
command does* is both optimisation levels, exposed and untouched, with the forced run. The multiple of the floor is that
of the same kind of call.
"""

PEER_TABLE = """\
## Peers

First calls. × is the multiple of this tool's *totals only*. A pair is *wrong* when its relative L2 is over 10⁻²: these
exports are correct, so its two sides are not the same value. torch.onnx.verification makes one session for each value;
its time is **extrapolated** from an evenly spaced sample of values. Polygraphy compares two optimisation levels of ONNX
Runtime, without PyTorch. The hook script, written for this table, stores what forward hooks see, exposes all ONNX
values and pairs them in order, by shape.
"""


class Model:
    """The measurements of one model."""

    def __init__(self, name: str, results: Mapping[str, Sequence[Results]]):
        self.name = name
        self.title = DESCRIPTIONS.get(name, name)
        self.results = results

    def good(self, side: str) -> list[Results]:
        return [r for r in self.results.get(side, ()) if "error" not in r]

    def error(self, side: str) -> str | None:
        return next((r["error"] for r in self.results.get(side, ()) if "error" in r), None)

    def first(self, side: str) -> float | None:
        return _median(r["seconds"][0] for r in self.good(side))

    def again(self, side: str) -> float | None:
        return _median(s for r in self.good(side) for s in r["seconds"][1:])

    def peak(self, side: str) -> float | None:
        return _median(r["peak_rss_mb"] for r in self.good(side))

    def extra(self, side: str) -> Mapping[str, Any]:
        found = self.good(side)
        return found[-1]["extra"] if found else {}

    def ort_part(self, part: str, *, again: bool) -> float | None:
        lists = [r["extra"][part] for r in self.good("ort")]
        return _median(s for values in lists for s in (values[1:] if again else values[:1]))

    def floor(self, *, again: bool) -> float | None:
        forward = self.again("forward") if again else self.first("forward")
        ort = self.again("ort") if again else self.first("ort")
        return None if forward is None or ort is None else forward + ort

    def ratio(self, side: str, *, again: bool) -> float | None:
        return _divide(self.again(side) if again else self.first(side), self.floor(again=again))


def render(results: Results) -> str:
    """The whole document."""
    models = [Model(name, found) for name, found in results["models"].items()]
    parts = [
        INTRODUCTION.format(
            commands="\n".join(_commands(results)),
            rounds=_rounds(models),
            enough=f"{ENOUGH:g}",
            machine=_machine(models),
        ),
        "## Targets\n\n" + TARGETS + "\n" + _targets(models, results),
        FLOOR + "\n" + _floor(models),
        TOOL + "\n" + _tool(models),
    ]
    if any(model.results.get(peer) for model in models for peer in PEERS):
        parts.append(PEER_TABLE + "\n" + _peers(models))
    parts.append("## Metric kernel and command line\n\n" + _rest(results))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _commands(results: Results) -> list[str]:
    """Those that measured the models, each once, in the order of the models."""
    arguments = results.get("arguments_of", {})
    lines = [" ".join(["$ scripts/benchmark", *arguments.get(model, ())]) for model in results["models"]]
    return list(dict.fromkeys(lines))


# -- tables -----------------------------------------------------------------------------------------------------------


def _targets(models: Sequence[Model], results: Results) -> str:
    rows = []
    for model in models:
        for side, limit in LIMITS.items():
            # GPT-2 has a line of its own.
            limit = GPT2_LIMITS["floor"] if (model.name, side) == ("gpt2-medium", "totals") else limit
            ratios = [model.ratio(side, again=again) for again in (False, True)]
            known = [r for r in ratios if r is not None]
            measured = f"{_times(ratios[0])} first, {_times(ratios[1])} again" if known else _cell(model.error(side))
            what = f"{model.title}: {RUNS[side]} against the floor"
            rows.append((what, f"≤ {limit:g} ×", measured, _verdict(None if ratios[0] is None else ratios[0] <= limit)))
    by_name = {model.name: model for model in models}
    if "resnet50" in by_name:
        rows += _peer_targets(by_name["resnet50"])
    if "resnet50-8x512" in by_name:
        rows += _memory_targets(by_name["resnet50-8x512"])
    if "gpt2-medium" in by_name:
        model = by_name["gpt2-medium"]
        sides = [p for p in (model.peak("forward"), model.peak("ort")) if p is not None]
        ratio = _divide(model.peak("totals"), max(sides, default=None))
        limit = GPT2_LIMITS["memory"]
        what = f"{model.title}: peak memory against the larger side's own"
        rows.append((what, f"≤ {limit:g} ×", _times(ratio), _verdict(None if ratio is None else ratio <= limit)))
    kernel = results.get("kernel", {}).get("extra")
    if kernel:
        share = kernel["gb_per_s"] / kernel["read_gb_per_s"]
        rows.append(("metric kernel against reading the same data", "≥ 25 %", f"{share:.0%}", _verdict(share >= 0.25)))
    rows += _stage_targets(results)
    commands = results.get("commands", {})
    if "help" in commands:
        shown = commands["help"]
        rows.append(("`bisect-divergence --help`", "< 0.3 s", f"{shown:.2f} s", _verdict(shown < 0.3)))
    if commands.get("examples"):
        beyond = _beyond_export(commands)
        what = "CenterPoint example, command to verdict, without its export"
        rows.append((what, "≤ 4 s", f"{beyond:.1f} s", _verdict(beyond <= 4)))
    return _table(("what", "target", "measured", ""), rows)


def _peer_targets(model: Model) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for peer, limit in PEER_LIMITS.items():
        if peer in model.results:
            ratio = _divide(model.first(peer), model.first("totals"))
            measured = f"{ratio:.0f} ×" if ratio is not None else _cell(model.error(peer))
            if peer == "verification" and ratio is not None:
                measured += ", extrapolated"
            what = f"{model.title}: totals only faster than {PEERS[peer]}"
            rows.append((what, f"≥ {limit} ×", measured, _verdict(None if ratio is None else ratio >= limit)))
    extra = model.extra("totals")
    if extra:
        measured = f"{extra['wrong']} of {extra['compared']} wrong, coverage {extra['coverage'] or 0:.0%}"
        fine = extra["wrong"] == 0 and extra["status"] == "agrees"
        rows.append((f"{model.title}: every pair right", "0 wrong", measured, _verdict(fine)))
    return rows


def _memory_targets(model: Model) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    own = model.peak("forward")
    for side in ("totals-256MiB", "forced-256MiB"):
        peak = model.peak(side)
        ratio = _divide(peak, own)
        if peak is None or own is None or ratio is None:
            rows.append(
                (f"{model.title}: peak memory, {RUNS[side]}", "≤ 1.3 ×", _cell(model.error(side)), _verdict(None))
            )
            continue
        what = f"{model.title}: peak memory against the forward's own, {RUNS[side]}"
        rows.append((what, "≤ 1.3 ×", _times(ratio), _verdict(ratio <= 1.3)))
        # The forward's process holds the model once; ONNX Runtime holds it once more.
        allowed = own + model.extra("forward")["weights_mb"] + BUDGET_MB
        what = f"{model.title}: peak memory, {RUNS[side]}, in MB"
        rows.append(
            (what, f"≤ {allowed:.0f} (forward + model + budget)", f"{peak:.0f}", _verdict(peak <= allowed)),
        )
    return rows


def _stage_targets(results: Results) -> list[tuple[str, ...]]:
    """Linear: a stage of the longest chain costs hardly more than one of the shortest."""
    each = [(r["extra"]["stages"], r["seconds"][0] / r["extra"]["stages"]) for r in _chains(results)]
    if len(each) < 2:
        return []
    (few, short), (many, long) = min(each), max(each)
    what = f"a stage of {many} against one of {few}, comparison and report"
    return [(what, "≤ 1.5 × (linear)", _times(long / short), _verdict(long / short <= 1.5))]


def _chains(results: Results) -> list[Results]:
    return [result for result in results.get("stages", {}).values() if "error" not in result]


def _floor(models: Iterable[Model]) -> str:
    rows = []
    for model in models:
        rows.append(
            (
                model.title,
                _pair(model.first("forward"), model.again("forward")),
                _pair(model.ort_part("create", again=False), model.ort_part("create", again=True)),
                _pair(model.ort_part("run", again=False), model.ort_part("run", again=True)),
                _pair(model.floor(again=False), model.floor(again=True)),
                _megabytes(model.peak("forward")),
                _megabytes(model.peak("ort")),
            )
        )
    header = ("model", "forward, s: first / again", "create", "run", "floor", "peak MB: forward", "ONNX Runtime")
    return _table(header, rows)


def _tool(models: Iterable[Model]) -> str:
    rows = []
    for model in models:
        for side, title in RUNS.items():
            if side not in model.results:
                continue
            if not model.good(side):
                rows.append((model.title, title, f"did not run: {_cell(model.error(side))}", "", "", "", ""))
                continue
            extra = model.extra(side)
            rows.append(
                (
                    model.title,
                    title,
                    _pair(model.first(side), model.again(side)),
                    f"{_times(model.ratio(side, again=False))} / {_times(model.ratio(side, again=True))}",
                    _megabytes(model.peak(side)),
                    _times(_divide(model.peak(side), model.peak("forward"))),
                    f"{extra['compared']} stages, {extra['status']}",
                )
            )
    header = ("model", "run", "s: first / again", "× floor", "peak MB", "× forward's peak", "compared")
    return _table(header, rows)


def _peers(models: Iterable[Model]) -> str:
    rows = []
    for model in models:
        if not any(peer in model.results for peer in PEERS):
            continue
        for side, title in {"totals": "**this tool, totals only**", **PEERS}.items():
            if side not in model.results:
                continue
            seconds = model.first(side)
            if seconds is None:
                rows.append((model.title, title, "–", "", "", f"did not run: {_cell(model.error(side))}"))
                continue
            ratio = _divide(seconds, model.first("totals"))
            times = "" if ratio is None else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"
            shown = f"**~{_seconds(seconds)}**" if side == "verification" else _seconds(seconds)
            rows.append((model.title, title, shown, times, _megabytes(model.peak(side)), _found(side, model)))
    return _table(("model", "tool", "s", "×", "peak MB", "what it compared"), rows)


def _found(side: str, model: Model) -> str:
    extra = model.extra(side)
    count = extra["compared"]
    if side in ("totals", "naive"):
        return f"{count} pairs, {extra['wrong']} wrong"
    if side == "polygraphy":
        return f"{count} values, {extra['failed']} of them fail"
    if side == "verification":
        return f"{count} values, extrapolated from {extra['measured_values']} ({extra['measured_seconds']:.1f} s)"
    return f"{count} values"


def _rest(results: Results) -> str:
    rows: list[tuple[str, ...]] = []
    kernel = results.get("kernel", {})
    if "extra" in kernel:
        extra = kernel["extra"]
        what = f"all metrics of two float32 arrays of 16.8 M elements, {extra['threads']} threads"
        rows.append((what, f"{statistics.median(kernel['seconds']) * 1000:.1f} ms, {extra['gb_per_s']:.1f} GB/s"))
        rows.append(("reading the same data (`max`, same threads and chunks)", f"{extra['read_gb_per_s']:.1f} GB/s"))
    elif kernel:
        rows.append(("metric kernel", _cell(kernel["error"])))
    for result in _chains(results):
        extra, seconds = result["extra"], result["seconds"][0]
        what = f"a chain of {extra['stages']} stages as the command does it, and its report's files"
        per_stage = f"{seconds / extra['stages'] * 1000:.2f} ms a stage"
        rows.append((what, f"{seconds:.1f} s ({extra['compared']:.1f} s comparison), {per_stage}, {extra['status']}"))
    commands = results.get("commands", {})
    if "help" in commands:
        rows.append(("`bisect-divergence --help`", f"{commands['help']:.2f} s"))
    if commands.get("examples"):
        whole = statistics.median(e["whole"] for e in commands["examples"])
        export = statistics.median(e["timings"]["export"] for e in commands["examples"])
        steps = commands["examples"][-1]["timings"]
        rest = sum(seconds for name, seconds in steps.items() if name != "export")
        rows.append(("`bisect-divergence --config configs/centerpoint.toml`", f"{whole:.1f} s"))
        rows.append(("… of which export", f"{export:.1f} s"))
        rows.append(("… of which all other steps of the comparison (`timings` in report.json)", f"{rest:.1f} s"))
        rows.append(("… command to verdict without its export", f"{_beyond_export(commands):.1f} s"))
        rows.append(("… command to its end without its export", f"{whole - export:.1f} s"))
    elif "error" in commands:
        rows.append(("CenterPoint example", commands["error"]))
    return _table(("what", "measured"), rows)


def _beyond_export(commands: Results) -> float:
    return statistics.median(e["verdict"] - e["timings"]["export"] for e in commands["examples"])


# -- words ------------------------------------------------------------------------------------------------------------


def _rounds(models: Sequence[Model]) -> str:
    rounds = max((len(model.good("forward")) for model in models), default=1)
    return f"{rounds} round{'s' if rounds != 1 else ''} (one\nwhere a call takes over 10 s)"


def _machine(models: Sequence[Model]) -> str:
    versions = []
    for name in _DISTRIBUTIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    threads = next((m.extra("forward")["threads"] for m in models if m.extra("forward")), None)
    lines = [
        f"- machine: {_processor()}, {os.cpu_count()} cores, {_memory()}; {platform.system()}",
        f"- Python {platform.python_version()}; {', '.join(versions)}; all on the CPU",
    ]
    if threads is not None:
        lines.append(f"- float32; PyTorch with {threads} threads, ONNX Runtime with its default")
    return "\n".join(lines)


def _processor() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return name
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    avx = " (AVX-512)" if "avx512f" in fields.get("flags", "").split() else ""
    return fields.get("model name", name) + avx


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "memory unknown"
    return f"{size / 2**30:.0f} GiB"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str | None) -> str:
    return (text or "no result").replace("|", "\\|")


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _divide(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _pair(first: float | None, again: float | None) -> str:
    return f"{_seconds(first)} / {_seconds(again)}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ×"


def _megabytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _verdict(met: bool | None) -> str:
    return "–" if met is None else "met" if met else "**missed**"
