"""Makes docs/noise-floor.md and its plot of the stages that noise_floor_run.py measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from corpus_run import machine
from noise_floor_run import DRAWN, SECTIONS, Run, Stage, cases

from bisect_tool.judging import OPTIMISED_SPREAD
from bisect_tool.noise import BEYOND, CHEAP_BOUND, DRAWS, EPSILONS, HALF_BOUND, epsilon

TITLES = {
    "examples": "the four examples",
    "zoo": "the zoo's families",
    "trained": "networks with real weights",
    "random": "transformers, random weights",
    "half": "half precision",
    "single": "stages of a single number",
    "nasty": "numerically nasty models",
}

SIZES: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("1", lambda count: count <= 1),
    ("2–63", lambda count: 1 < count < 64),
    ("≥ 64", lambda count: count >= 64),
)

SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)

INTRODUCTION = """\
# The noise floor

Written by this command; do not edit by hand.

```console
$ scripts/noise-floor
```

## What it is

Without a tolerance, a stage is blamed only for error that rounding does not explain. For a stage on PyTorch's own inputs let

- `r` be the stage in float64: PyTorch's operations again, every floating operand and dtype promoted,
- `s` the stage in *strict* float32 on the CPU: no TF32, nothing narrower,
- `d1`, `d2`, ... the stage in float64 with *made-up rounding*: each result disturbed at random by as much as rounding may
  disturb it, and the operands of sums and products too (Monte Carlo arithmetic, D. S. Parker, 1997). A sum, a product of
  matrices or a convolution of n terms is disturbed by max(1, sqrt(n / 16)) units: libraries add in different orders.

The floor has three terms, and the third is asked for only where the first two do not clear the stage:

    floor = max( |s - r| , EPSILONS · eps · |r| , |d1 - r| , ... , |d_DRAWS - r| )

`| |` is the Euclidean norm over the whole tensor, `eps` that of the dtype that the stage has in PyTorch, and never below
float32's. PyTorch's run and ONNX Runtime's are each held against it: a side further than BEYOND floors from `r` makes
error of its own. So PyTorch in TF32 never sets its own floor.

- *strict float32* says what plain rounding costs here; enough for nearly all stages
- *eps*: a few numbers may come out right by luck, and then the first term says nothing
- *made-up rounding*: where results cancel, where few numbers are left of many, where an algorithm rounds where PyTorch's
  does not, the spread over all orders of rounding counts, and not the one that PyTorch happened to take
- *steps*: in a stage with a `floor`, a comparison or a cast to whole numbers, rounding may carry a number over an edge. That
  excuses the elements that depend on it. All others, those that neither made-up rounding nor operands moved by LEANING units
  change, are held against STEADY eps
- *places* (`sort`, `topk`, `argmax`): the numbers that they point at are judged, and not the places
- *cheap bound*: the local error (one side against the other) is known without any replay. Up to CHEAP_BOUND eps
  (HALF_BOUND eps for half precision) it is rounding, and nothing is replayed
- *unknown*: an operation can't be promoted or draws random numbers; then only the default limits judge the stage

Below, **nothing was settled by the cheap bound**: every stage whose two sides differ in any bit was replayed. All models are
healthy; what is blamed is a false alarm. Models and inputs: examples/, tests/zoo/families.py, scripts/corpus_nets.py,
tests/zoo/nasty.py (activations in their tails, cancellation, ties, long sums, nearly constant data, single numbers).

{machine}
"""


@dataclass(frozen=True)
class Constants:
    """Of bisect_tool/noise.py; ``cheap`` and ``half``: 0 settles nothing."""

    cheap: float = CHEAP_BOUND
    half: float = HALF_BOUND
    epsilons: float = EPSILONS
    beyond: float = BEYOND
    draws: int = DRAWS


REPLAYED = Constants(cheap=0.0, half=0.0)


def unit(stage: Stage) -> float:
    """Eps of a stage's dtype, not below float32's; 0 for integers."""
    eps = epsilon(stage.dtype)
    return max(eps, epsilon("float32")) if eps else 0.0


def plain_floor(stage: Stage, constants: Constants = REPLAYED) -> float:
    """The floor without made-up rounding."""
    return max(stage.strict, constants.epsilons * unit(stage) * stage.norm)


def ratio(stage: Stage, constants: Constants = REPLAYED, *, side: str = "both", plain: bool = False) -> float:
    """Error in units of the floor: of one side or of the larger of both."""
    error = max(stage.expected, stage.actual) if side == "both" else getattr(stage, side)
    floor = plain_floor(stage, constants)
    if not plain and max(stage.expected, stage.actual) > constants.beyond * floor:
        floor = max(floor, *stage.draws[: constants.draws], 0.0)
    if error == 0:
        return 0.0
    return error / floor if floor else math.inf


def cleared_by(stage: Stage, constants: Constants) -> str:
    """What says that a stage is healthy; ``blamed`` if nothing does."""
    if stage.same:
        return "same bits"
    if stage.unknown:
        return "unknown"
    half = epsilon(stage.dtype) > 1e-4
    if (constants.half if half else constants.cheap) * unit(stage) >= stage.local:
        return "cheap bound"
    if ratio(stage, constants, plain=True) <= constants.beyond:
        strict = max(stage.expected, stage.actual) <= constants.beyond * stage.strict
        return "strict float32" if strict else "eps"
    return "made-up rounding" if ratio(stage, constants) <= constants.beyond else "blamed"


CLEARED = ("same bits", "cheap bound", "strict float32", "eps", "made-up rounding", "unknown", "blamed")


def page(stages: Sequence[Stage], runs: Sequence[Run]) -> str:
    """The whole of docs/noise-floor.md."""
    parts = [
        INTRODUCTION.format(machine=machine()),
        "## Summary\n",
        summary(stages, runs),
        missing(runs),
        "\n## What clears a stage\n",
        "As the tool works: the cheap bound first.\n",
        _cleared(stages, Constants()),
        "\nIf everything were replayed:\n",
        _cleared(stages, REPLAYED),
        "\n## Constants\n",
        "*false alarms*: stages that would be blamed with half of the constant, with the constant, and with twice as much;",
        "once *as the tool works*, and once with *everything replayed*, where the cheap bound hides nothing.",
        "Halves and doubles of DRAWS are 1 and 6.\n",
        _constants(stages),
        "\nWhat each constant was fitted to, as quantiles:\n",
        _distributions(stages, runs),
        "\n## ONNX Runtime's error in units of the floor\n",
        "![Share of stages whose error exceeds a multiple of the floor](noise-floor.svg)\n",
        "Everything replayed. *plain*: the floor without made-up rounding; *full*: with it, where it is asked for.\n",
        "### By kind of operation and number of elements\n",
        "All sections but the nasty models; where a stage has several operations, what rounds most gives its kind.\n",
        _by_kind([stage for stage in stages if stage.section != "nasty"]),
        "\n### By section\n",
        _by_section(stages),
        "\n## False alarms\n",
        _alarms(stages, runs),
        "\n## Unknown floors\n",
        _unknown(stages),
        "\n## Not exported\n",
        *[f"- {run.model} ({TITLES[run.section]}), {run.exporter}: {_plain(run.why)}" for run in runs if _refused(run)],
    ]
    return "\n".join(parts).rstrip() + "\n"


def summary(stages: Sequence[Stage], runs: Sequence[Run]) -> str:
    """What it comes to, section by section."""
    lines = [
        "| models | graphs | agree | stages | replayed | blamed | unknown |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for section in [*SECTIONS, ""]:
        own = [stage for stage in stages if section in ("", stage.section)]
        graphs = [run for run in runs if section in ("", run.section) and not _refused(run)]
        if not graphs:
            continue
        counts = Counter(cleared_by(stage, REPLAYED) for stage in own)
        cells = [TITLES.get(section, "**all**"), str(len(graphs)), str(sum(run.status == "agrees" for run in graphs))]
        cells += [
            str(len(own)),
            str(sum(not stage.same for stage in own)),
            str(counts["blamed"]),
            str(counts["unknown"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def missing(runs: Sequence[Run]) -> str:
    """What these results do not have, so that nobody takes a part for the whole; empty where nothing is missing."""
    done = {(run.section, run.model, run.exporter) for run in runs}
    lines = []
    for section in SECTIONS:
        all_of = [(section, model, exporter) for model, exporter, _ in cases(section)]
        left = sum(case not in done for case in all_of)
        if left:
            lines.append(f"- {TITLES[section]}: {left} of {len(all_of)} graphs")
    head = "\n**Incomplete**: not measured yet, and in none of the figures below (`scripts/noise-floor --resume` does it):\n"
    return "\n".join([head, *lines]) if lines else ""


def _cleared(stages: Sequence[Stage], constants: Constants) -> str:
    lines = [f"| models | stages | {' | '.join(CLEARED)} |", f"|---|---:|{'---:|' * len(CLEARED)}"]
    for section in [*SECTIONS, ""]:
        own = [stage for stage in stages if section in ("", stage.section)]
        if own:
            counts = Counter(cleared_by(stage, constants) for stage in own)
            shares = [f"{counts[name] / len(own):.1%}" if counts[name] else "0" for name in CLEARED[:-2]]
            shares += [str(counts[name]) for name in CLEARED[-2:]]
            lines.append(f"| {TITLES.get(section, '**all**')} | {len(own)} | {' | '.join(shares)} |")
    return "\n".join(lines)


_TRIED: tuple[tuple[str, str, float], ...] = (
    ("CHEAP_BOUND", "cheap", CHEAP_BOUND),
    ("HALF_BOUND", "half", HALF_BOUND),
    ("EPSILONS", "epsilons", EPSILONS),
    ("BEYOND", "beyond", BEYOND),
    ("DRAWS", "draws", DRAWS),
)


def _constants(stages: Sequence[Stage]) -> str:
    lines = ["| constant | value | as the tool works: ½, 1, 2 | everything replayed: ½, 1, 2 | replayed: ½, 1, 2 |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for name, key, value in _TRIED:
        tried: list[float] = [value // 2 if key == "draws" else value / 2, value, value * 2]
        works = [replace(Constants(), **{key: number}) for number in tried]
        replayed = [replace(REPLAYED, **{key: number}) for number in tried]
        cells = [name, f"{value:g}", _three(_blamed(stages, each) for each in works)]
        cells += ["" if key in ("cheap", "half") else _three(_blamed(stages, each) for each in replayed)]
        cells += [_three(_replays(stages, each) for each in works)]
        lines.append(f"| {' | '.join(cells)} |")
    none = [_blamed(stages, replace(each, draws=0)) for each in (Constants(), REPLAYED)]
    lines += [f"| no draws at all | 0 | {none[0]} | {none[1]} | |"]
    none = [_blamed(stages, replace(each, epsilons=0.0)) for each in (Constants(), REPLAYED)]
    return "\n".join([*lines, f"| no eps term at all | 0 | {none[0]} | {none[1]} | |"])


def _three(counts: Iterable[int]) -> str:
    return ", ".join(map(str, counts))


def _blamed(stages: Sequence[Stage], constants: Constants) -> int:
    return sum(cleared_by(stage, constants) == "blamed" for stage in stages)


def _replays(stages: Sequence[Stage], constants: Constants) -> int:
    return sum(cleared_by(stage, constants) not in ("same bits", "cheap bound") for stage in stages)


def _distributions(stages: Sequence[Stage], runs: Sequence[Run]) -> str:
    measured = [stage for stage in stages if not stage.same and not stage.unknown and unit(stage)]
    plain = [stage for stage in measured if stage.section != "nasty"]
    single = [stage for stage in plain if epsilon(stage.dtype) < 1e-4]
    half = [stage for stage in plain if epsilon(stage.dtype) > 1e-4]
    nasty = [stage for stage in measured if stage.section == "nasty"]
    drawn = [stage for stage in measured if stage.draws and ratio(stage, plain=True) > BEYOND]

    def local(stage: Stage) -> float:
        return stage.local / unit(stage)

    def strict(stage: Stage) -> float:
        return stage.strict / (unit(stage) * stage.norm) if stage.norm else math.nan

    def by_draws(count: int) -> Callable[[Stage], float]:
        return lambda stage: ratio(stage, replace(REPLAYED, draws=count))

    spread = [value for run in runs if run.section != "nasty" for value in run.spread]
    rows: list[tuple[str, str, list[float], float | None]] = [
        ("CHEAP_BOUND", "local error / eps, float32", [local(s) for s in single], CHEAP_BOUND),
        ("", "the same, nasty models", [local(s) for s in nasty if epsilon(s.dtype) < 1e-4], CHEAP_BOUND),
        ("HALF_BOUND", "local error / eps, half precision", [local(s) for s in half], HALF_BOUND),
        ("EPSILONS", "strict float32's error / eps", [strict(s) for s in single], EPSILONS),
        ("", "the same, single elements", [strict(s) for s in single if s.count <= 1], EPSILONS),
        ("BEYOND", "larger side / plain floor", [ratio(s, plain=True) for s in plain], BEYOND),
        ("", "larger side / full floor", [ratio(s) for s in plain], BEYOND),
        ("", "larger side / plain floor, nasty models", [ratio(s, plain=True) for s in nasty], BEYOND),
        ("", "larger side / full floor, nasty models", [ratio(s) for s in nasty], BEYOND),
    ]
    for count in (0, 1, DRAWS, DRAWN):
        title = f"larger side / floor of {count} draws, where asked for"
        rows.append(("DRAWS" if not count else "", title, [by_draws(count)(s) for s in drawn], BEYOND))
    rows.append(("OPTIMISED_SPREAD", "error of an optimised output / unoptimised", spread, OPTIMISED_SPREAD))
    lines = ["| constant | quantity | stages | 50 % | 90 % | 99 % | 99.9 % | largest | beyond the constant |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for name, quantity, values, limit in rows:
        known = [value for value in values if not math.isnan(value)]
        over = "" if limit is None else str(sum(value > limit for value in known))
        lines.append(f"| {name} | {quantity} | {len(known)} | {_quantiles(known)} | {over} |")
    return "\n".join(lines)


def _quantiles(values: Sequence[float]) -> str:
    """The smallest values that so many do not exceed."""
    ordered = sorted(values)
    return " | ".join(_short(ordered[math.ceil(share * len(ordered)) - 1]) if ordered else "" for share in SHARES)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}"


def _by_kind(stages: Sequence[Stage]) -> str:
    lines = ["| kind | elements | stages | 50 % | 90 % | 99 % | 99.9 % | largest, plain | largest, full |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    measured = [stage for stage in stages if not stage.same and not stage.unknown]
    for kind in sorted({stage.kind for stage in measured}):
        for size, fits in SIZES:
            own = [stage for stage in measured if stage.kind == kind and fits(stage.count)]
            if own:
                full = max(ratio(stage, side="actual") for stage in own)
                plain = _quantiles([ratio(stage, side="actual", plain=True) for stage in own])
                lines.append(f"| {kind} | {size} | {len(own)} | {plain} | {_short(full)} |")
    return "\n".join(lines)


def _by_section(stages: Sequence[Stage]) -> str:
    lines = ["| models | elements | stages | 50 % | 90 % | 99 % | 99.9 % | largest, plain | largest, full |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for section in SECTIONS:
        for size, fits in SIZES:
            own = [s for s in stages if s.section == section and fits(s.count) and not s.same and not s.unknown]
            if own:
                full = max(ratio(stage, side="actual") for stage in own)
                plain = _quantiles([ratio(stage, side="actual", plain=True) for stage in own])
                lines.append(f"| {TITLES[section]} | {size} | {len(own)} | {plain} | {_short(full)} |")
    return "\n".join(lines)


def _alarms(stages: Sequence[Stage], runs: Sequence[Run]) -> str:
    blamed = [stage for stage in stages if cleared_by(stage, REPLAYED) == "blamed"]
    wrong = [run for run in runs if run.status not in ("agrees", "no export")]
    lines = [
        f"- {s.model} ({TITLES[s.section]}), {s.exporter}: {s.kind}, {s.count} elements, "
        f"expected {ratio(s, side='expected'):.1f}, actual {ratio(s, side='actual'):.1f}, local {s.local:.1e}"
        + (" (settled by the cheap bound)" if cleared_by(s, Constants()) == "cheap bound" else "")
        for s in blamed
    ]
    lines += [f"- {r.model} ({TITLES[r.section]}), {r.exporter}: {r.status}; {_plain(r.why)}" for r in wrong]
    return "\n".join(lines) or "None."


def _unknown(stages: Sequence[Stage]) -> str:
    counts = Counter((stage.unknown, stage.model) for stage in stages if stage.unknown)
    lines = [f"- {_plain(str(why))}: {model}, {count} stages" for (why, model), count in sorted(counts.items())]
    return "\n".join(lines) or "None."


def _refused(run: Run) -> bool:
    return run.status == "no export"


def _plain(text: str) -> str:
    return text.partition(" whole log:")[0].replace("|", "\\|").replace(str(Path.home()), "~")


def plot(stages: Sequence[Stage], file: Path) -> None:
    """How many stages exceed a multiple of the plain floor, by number of elements; nasty models apart."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "noise-floor"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    measured = [stage for stage in stages if not stage.same and not stage.unknown and unit(stage)]
    # Okabe and Ito's colours, and a dash of its own for each.
    styles = iter([("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", "-."), ("#CC79A7", ":")])
    ordinary = [stage for stage in measured if stage.section != "nasty"]
    groups = [(f"{size} elements", [s for s in ordinary if fits(s.count)]) for size, fits in reversed(SIZES)]
    groups += [("nasty models", [s for s in measured if s.section == "nasty"])]
    ticks = np.geomspace(0.05, 100, 240)
    for (name, own), (colour, dash) in zip(groups, styles, strict=True):
        values = np.array([ratio(stage, side="actual", plain=True) for stage in own])
        if len(values):
            share = [(values > tick).mean() or np.nan for tick in ticks]
            label = f"{name} ({len(values)} stages)"
            axes.plot(ticks, share, color=colour, linestyle=dash, linewidth=1.8, label=label)
    axes.axvline(BEYOND, color="black", linewidth=1)
    axes.annotate("blamed beyond here,\nunless made-up rounding clears it", (BEYOND * 1.1, 0.4), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="ONNX Runtime's error / (strict float32's error or eps)")
    axes.set(ylabel="share of stages beyond", xlim=(0.05, 100))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
