"""Makes docs/calibration.md of what calibration_runs.py found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corpus_run import machine

from bisect_tool.calibration.limits import binomial_at_most
from bisect_tool.judging import OPTIMISED_SPREAD

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]

COUNTS_FROM = 1e-4
"""Local relative error from which on a fault has to be caught."""

STEPS = (0.0, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, COUNTS_FROM, 1e-3, 1e-2, float("inf"))

INTRODUCTION = Path(__file__).with_suffix(".md")


def page(results: Results, rates: Sequence[float], command: str) -> str:
    """The whole page."""
    lines = [
        INTRODUCTION.read_text(encoding="utf-8").format(command=command, machine=machine(), spread=OPTIMISED_SPREAD)
    ]
    lines += ["### Calibrations", "", *_about(results, rates), ""]
    lines += ["### False alarms on held-out samples", "", *_alarms(results, rates), ""]
    lines += ["### Faults that are caught", "", *_caught(results, rates), ""]
    return "\n".join(lines).rstrip() + "\n"


def _about(results: Results, rates: Sequence[float]) -> list[str]:
    lines = [
        "Limits are those for the first rate. `left out`: what was not known good, in how many samples.",
        "",
        f"| family | stages | samples | known-good runs | {' | '.join(f'tail at {rate:g}' for rate in rates)} "
        "| own error: median limit | largest limit | total error: largest limit | left out |",
        "|" + "---|" * (8 + len(rates)),
    ]
    for family, found in results.items():
        about = found.get("about")
        if about is None:
            continue
        left = "; ".join(f"{text} ({count})" for text, count in list(about["left_out"].items())[:3]) or "nothing"
        tails = " | ".join(about["tails"][str(rate)] for rate in rates)
        lines.append(
            f"| {family} | {about['stages']} | {about['samples']} | {about['runs']} | {tails} "
            f"| {about['median_local_limit']:.1e} | {about['largest_local_limit']:.1e} "
            f"| {about['largest_total_limit']:.1e} | {left} |"
        )
    return lines


def _alarms(results: Results, rates: Sequence[float]) -> list[str]:
    lines = [
        "`P`: probability of at least so many alarms in so many runs if the stated rate were exact (binomial); small numbers "
        "speak against the rate. `bound`: Clopper-Pearson upper bound on the true rate, confidence 0.95. The stated rate "
        "is an upper bound: a sample is calibrated by the largest error of all its known-good runs, and a judged run is "
        "only one of those. So there are fewer alarms than stated, and the sensitivity below is what that costs.",
        "",
        f"| family | runs | {' | '.join(f'alarms at {rate:g} | P | bound' for rate in rates)} | over their limits |",
        "|" + "---|" * (3 + 3 * len(rates)),
    ]
    total = {rate: [0, 0] for rate in rates}
    for family, found in results.items():
        runs = [result for result in found.values() if result.get("section") == "held-out"]
        cells = []
        for rate in rates:
            hits = sum(bool(result["over"][str(rate)]) for result in runs)
            total[rate][0] += hits
            total[rate][1] += len(runs)
            cells.append(_counted(hits, len(runs), rate))
        over = [name for result in runs for name in result["over"][str(rates[0])][:1]]
        lines.append(f"| {family} | {len(runs)} | {' | '.join(cells)} | {', '.join(over[:4]) or 'none'} |")
    cells = [_counted(hits, runs, rate) for rate, (hits, runs) in total.items()]
    lines.append(f"| **all** | {total[rates[0]][1]} | {' | '.join(cells)} | |")
    return lines


def _counted(hits: int, runs: int, rate: float) -> str:
    at_least = 1.0 - binomial_at_most(hits - 1, runs, rate) if hits else 1.0
    return f"{hits} | {at_least:.2f} | {upper_bound(hits, runs):.3f}"


def upper_bound(hits: int, runs: int, confidence: float = 0.95) -> float:
    """Clopper-Pearson: the largest rate at which so few hits are no surprise."""
    if not runs or hits >= runs:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_at_most(hits, runs, middle) > 1 - confidence else (low, middle)
    return high


def _faults(results: Results, section: str) -> list[Mapping[str, Any]]:
    return [result for found in results.values() for result in found.values() if result.get("section") == section]


def _is_caught(result: Mapping[str, Any], rate: float) -> bool:
    return isinstance(result["over"], Mapping) and bool(result["over"][str(rate)])


def _caught(results: Results, rates: Sequence[float]) -> list[str]:
    lines = [
        "Faults by the relative size by which they move the value of their own node, measured by plain ONNX Runtime. The "
        "zoo's kinds move it by 2e-5 at least; `scaled` multiplies the result of one node by 1 + size.",
        "",
        f"| size | zoo: faults | {' | '.join(f'caught at {rate:g}' for rate in rates)} | scaled: faults "
        f"| {' | '.join(f'caught at {rate:g}' for rate in rates)} |",
        "|" + "---|" * (3 + 2 * len(rates)),
    ]
    for low, high in zip(STEPS[:-1], STEPS[1:], strict=True):
        cells = []
        for section in ("fault", "scaled"):
            inside = [r for r in _faults(results, section) if low <= r["moved"] < high]
            cells.append(str(len(inside)))
            cells += [_share(sum(_is_caught(r, rate) for r in inside), len(inside)) for rate in rates]
        lines.append(f"| {low:g} to {high:g} | {' | '.join(cells)} |")
    large = [r for section in ("fault", "scaled") for r in _faults(results, section) if r["moved"] >= COUNTS_FROM]
    small = [r for section in ("fault", "scaled") for r in _faults(results, section) if r["moved"] < COUNTS_FROM]
    lines.append("")
    for rate in rates:
        many, few = (_share(sum(_is_caught(r, rate) for r in found), len(found)) for found in (large, small))
        lines.append(
            f"- at a rate of {rate:g}: of {len(large)} faults over {COUNTS_FROM:g} {many} are caught, "
            f"of {len(small)} under it {few}"
        )
    missed = [r for r in large if not _is_caught(r, rates[-1])]
    if missed:
        lines += ["", f"Missed at {rates[-1]:g}:", ""]
        names = {id(r): family for family, found in results.items() for r in found.values()}
        for result in missed[:20]:
            why = f": {result['over']}" if isinstance(result["over"], str) else ""
            lines.append(f"- {names[id(result)]}: {result['kind']} at {result['place']}, {result['moved']:.1e}{why}")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else "–"


def summary(results: Results, rates: Sequence[float]) -> str:
    """A few lines for the terminal."""
    found = [
        line for line in [*_alarms(results, rates), *_caught(results, rates)] if line.startswith(("| **all", "- at"))
    ]
    return "\n".join(found)
