"""Makes docs/accuracy.md of the results of the zoo."""

from __future__ import annotations

import fnmatch
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from judging import LEVELS, Result

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SIZES: tuple[tuple[float, str], ...] = (
    (math.inf, "NaN or infinite"),
    (1e-1, "≥ 1e-1"),
    (1e-2, "1e-2 … 1e-1"),
    (1e-3, "1e-3 … 1e-2"),
    (1e-4, "1e-4 … 1e-3"),
    (0.0, "2e-5 … 1e-4"),
)
"""Classes of size by the least that a fault of the class moves its own value."""

INTRODUCTION = """\
# Accuracy

Written by this command; do not edit by hand. Reasons of misses are kept in
[scripts/zoo_reasons.toml](../scripts/zoo_reasons.toml).

```console
$ {command}
```

Small models of {families} families (tests/zoo/families.py), exported by {exporters}, get one fault each, of {kinds} kinds
(tests/zoo/faults.py), at nodes from frozen seeds. No tolerance is given. A fault counts when its own value moved by more
than 2e-5 of its norm in an unoptimised run of plain ONNX Runtime (tests/zoo/truth.py), whatever becomes of it downstream.

- *detected*: the verdict is `diverges`
- *top-1*: the planted node is among the nodes of the first origin
- *named*: number of nodes of the first origin, median and 90th percentile, where there is one
- *side*: the first origin says `actual`, of all that have one. Faults planted in a graph are always that side's:
  the reference is PyTorch's stage with PyTorch's weights, in float64
- *cause*: a change of one thing in the first origin's nodes mends it, and its code is one that was written down for the
  kind of fault (tests/zoo/causes.py); *remedy*: with that change only rounding is left

{machine}
"""

GOALS = {
    "detected": 0.97,
    "top-1": 0.95,
    "named, median": 3,
    "named, 90 %": 8,
    "side": 0.95,
    "cause": 0.85,
    "remedy": 0.80,
    "wrong cause": 0.02,
}


def page(results: Sequence[Result], command: str, reasons: Path) -> str:
    """The whole page."""
    planted = [result for result in results if result.section == "fault"]
    families = {result.family for result in results}
    parts = [
        INTRODUCTION.format(
            command=command,
            families=len(families),
            exporters=" and ".join(sorted({result.exporter for result in results})),
            kinds=len({result.kind for result in planted}),
            machine=_machine(results),
        ),
        "## Summary\n",
        summary(results),
        "\n## Two faults in one model\n\n*Found*: each of the two is among the nodes of some origin.\n",
        _two(results),
        "\n## Unhurt models\n",
        "Every family as exported, on several inputs. Anything but agreement, and any origin, is a false alarm.\n",
        _unhurt(results),
        "\n## PyTorch in low precision\n",
        "Operands of PyTorch's products are rounded (`emulate`), the graph is unhurt: PyTorch's side is off.",
        "*Convolutions*: those that are origins with side `expected`. *Blamed on ONNX*: origins with side `actual`.\n",
        _precisions(results),
    ]
    for title, key in _SPLITS:
        parts += [f"\n## By {title}\n", _split(planted, title, key)]
    parts += ["\n## Misses\n", _misses(results, _reasons(reasons))]
    return "\n".join(parts).rstrip() + "\n"


def summary(results: Sequence[Result]) -> str:
    """What the whole zoo comes to, beside its goals."""
    planted = [result for result in results if result.section == "fault"]
    unhurt = [result for result in results if result.section == "unhurt"]
    two = [result for result in results if result.section == "two"]
    lines = ["| measure | found | goal |", "|---|---:|---:|", f"| planted faults | {len(planted)} | |"]
    named = sorted(result.named for result in planted if result.named)
    sided = [result for result in planted if result.origins]
    rows = [
        ("detected", _share(planted, lambda r: r.detected), f"{GOALS['detected']:.0%}"),
        ("top-1", _share(planted, lambda r: r.top1), f"{GOALS['top-1']:.0%}"),
        ("named, median", _rank(named, 0.5), f"≤ {GOALS['named, median']}"),
        ("named, 90 %", _rank(named, 0.9), f"≤ {GOALS['named, 90 %']}"),
        ("side", _share(sided, lambda r: r.side == "actual"), f"{GOALS['side']:.0%}"),
        ("one origin only, of those with any", _share(sided, lambda r: r.origins == 1), ""),
        ("right cause named, of those with an origin", _share(sided, lambda r: r.cause_right), f"{GOALS['cause']:.0%}"),
        ("remedy verified, of those", _share(sided, lambda r: r.remedy), f"{GOALS['remedy']:.0%}"),
        ("another cause stated as certain, of those", _share(sided, _wrong_cause), f"< {GOALS['wrong cause']:.0%}"),
        ("two faults, both found", _share(two, lambda r: r.found), "100%"),
        ("false alarms on unhurt models", f"{sum(r.detected for r in unhurt)} of {len(unhurt)}", "0"),
        ("errors and crashes", str(sum(r.error is not None for r in results)), "0"),
        ("seconds for a case, median", f"{_middle([r.seconds for r in planted]):.2f}", ""),
    ]
    return "\n".join([*lines, *(f"| {name} | {found} | {goal} |" for name, found, goal in rows)])


def _wrong_cause(result: Result) -> bool:
    return result.cause not in ("", "BD100") and not result.cause_right


def size_of(moved: float) -> str:
    """The class of a fault's size."""
    return next(name for least, name in SIZES if moved >= least)


_SPLITS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("size", lambda result: size_of(result.moved)),
    ("kind", lambda result: result.kind),
    ("family", lambda result: result.family),
    ("exporter", lambda result: result.exporter),
    ("reach", lambda result: "moves no output by 2e-5" if result.outputs_moved < 2e-5 else "moves an output"),
)


def _split(planted: Sequence[Result], title: str, key: Callable[[Result], str]) -> str:
    groups: dict[str, list[Result]] = {}
    for result in planted:
        groups.setdefault(key(result), []).append(result)
    names = sorted(groups)
    if title == "size":
        names = [name for _, name in SIZES if name in groups]
    lines = [
        f"| {title} | faults | detected | top-1 | named, median | 90 % | side | cause | remedy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        found = groups[name]
        named = sorted(result.named for result in found if result.named)
        sided = [result for result in found if result.origins]
        cells = [name, str(len(found)), _share(found, lambda r: r.detected), _share(found, lambda r: r.top1)]
        cells += [_rank(named, 0.5), _rank(named, 0.9), _share(sided, lambda r: r.side == "actual")]
        cells += [_share(sided, lambda r: r.cause_right), _share(sided, lambda r: r.remedy)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _two(results: Sequence[Result]) -> str:
    lines = ["| family | cases | found | one of them is top-1 |", "|---|---:|---:|---:|"]
    for family, found in _by_family(results, "two"):
        shares = [_share(found, lambda r: r.found), _share(found, lambda r: r.top1)]
        lines.append(f"| {family} | {len(found)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _unhurt(results: Sequence[Result]) -> str:
    lines = [f"| family | runs | {' | '.join(LEVELS)} | false alarms |", f"|---|---:|{'---:|' * len(LEVELS)}---:|"]
    for family, found in _by_family(results, "unhurt"):
        agree = [str(sum((r.levels or {}).get(level) == "agrees" for r in found)) for level in LEVELS]
        lines.append(f"| {family} | {len(found)} | {' | '.join(agree)} | {sum(r.detected for r in found)} |")
    return "\n".join(lines)


def _precisions(results: Sequence[Result]) -> str:
    lines = ["| precision | runs | diverges | convolutions | blamed on ONNX |", "|---|---:|---:|---:|---:|"]
    found = [result for result in results if result.section == "torch"]
    for precision in dict.fromkeys(result.kind for result in found):
        own = [result for result in found if result.kind == precision]
        blamed, convolutions = sum(r.blamed for r in own), sum(r.convolutions for r in own)
        cells = [precision, str(len(own)), str(sum(r.detected for r in own)), f"{blamed} of {convolutions}"]
        lines.append(f"| {' | '.join(cells)} | {sum(r.wrong_side for r in own)} |")
    return "\n".join(lines)


def _by_family(results: Sequence[Result], section: str) -> Iterable[tuple[str, list[Result]]]:
    found = [result for result in results if result.section == section]
    for family in sorted({result.family for result in found}):
        yield family, [result for result in found if result.family == family]


# -- misses -----------------------------------------------------------------------------------------------------------


def _reasons(file: Path) -> Mapping[str, str]:
    found = tomllib.loads(file.read_text(encoding="utf-8")).get("reasons", {}) if file.exists() else {}
    return {str(glob): str(reason) for glob, reason in found.items()}


def missed(result: Result) -> str:
    """What is wrong with a result; empty: nothing."""
    if result.error is not None:
        return result.error
    if result.section == "unhurt":
        return f"{result.status} {result.stage}".strip() if result.detected else ""
    if result.section == "two":
        return "" if result.found else f"{result.origins} origins, not both" if result.detected else result.status
    if result.section == "torch":
        whole = result.blamed == result.convolutions and not result.wrong_side
        return "" if whole else f"{result.blamed} of {result.convolutions} convolutions, {result.wrong_side} ONNX's"
    if not result.detected:
        return result.status
    if not result.origins:
        return "no origin"
    if not result.top1:
        return f"found, not first: {result.stage}" if result.found else f"another place: {result.stage}"
    return ""


def _misses(results: Sequence[Result], reasons: Mapping[str, str]) -> str:
    lines = ["| case | at | moved | outputs | answer | reason |", "|---|---|---:|---:|---|---|"]
    for result in sorted(results, key=lambda r: (r.section, r.id)):
        answer = missed(result)
        if answer:
            reason = next((text for glob, text in reasons.items() if fnmatch.fnmatchcase(result.id, glob)), "")
            cells = [result.id, _code(result.place), f"{result.moved:.1e}", f"{result.outputs_moved:.1e}"]
            lines.append(f"| {' | '.join([*cells, _plain(answer), reason])} |")
    return "\n".join(lines) if len(lines) > 2 else "None."


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def _share(results: Sequence[Result], right: Callable[[Result], bool]) -> str:
    return f"{sum(map(right, results)) / len(results):.1%}" if results else ""


def _rank(numbers: Sequence[int], share: float) -> str:
    """Of sorted numbers the one that this share of them does not exceed."""
    return str(numbers[math.ceil(share * len(numbers)) - 1]) if numbers else ""


def _middle(numbers: Sequence[float]) -> float:
    return sorted(numbers)[len(numbers) // 2] if numbers else math.nan


def _machine(results: Sequence[Result]) -> str:
    packages = []
    for name in ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    seconds = sum(result.seconds for result in results)
    return f"{', '.join(packages)}; {os.cpu_count()} CPU cores; {seconds:.0f} s in the tool for {len(results)} cases."
