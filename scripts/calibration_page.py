"""Makes docs/calibration.md of what calibration_runs.py found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corpus_run import machine

from bisect_tool.judging import OPTIMISED_SPREAD
from bisect_tool.limits import binomial_at_most

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]

COUNTS_FROM = 1e-4
"""Local relative error from which on a fault has to be caught."""

STEPS = (0.0, 1e-6, 3e-6, 1e-5, 3e-5, COUNTS_FROM, 1e-3, 1e-2, float("inf"))

INTRODUCTION = """\
# Calibration

Written by this command; do not edit by hand.

```console
$ {command}
```

## What it does

```console
$ bisect-tool calibrate model.py ckpt.pth --input samples/ -o tolerances.toml
$ bisect-tool verify model.py ckpt.pth --onnx model.onnx --input sample.pt --tolerances tolerances.toml
```

`calibrate` measures what error each stage of a *correct* model has, and writes a limit for each. Only known-good runs count:

| runs | what they show |
|---|---|
| PyTorch against float64 | what rounding does to each stage in the whole model |
| made-up rounding (Monte Carlo arithmetic, [noise-floor.md](noise-floor.md)) | what another correct implementation may return: of the whole model, and of each stage on the run's own inputs |
| the same on slightly other inputs (`--copies`) | more draws of the same |
| PyTorch with other threads, without oneDNN, deterministic, at another place in a batch; what `--matrix` names | PyTorch's own allowed variations, as long as they do no more than round: else they are left out, which is said |
| PyTorch in TF32 or bfloat16 | only with `--accept tf32`, `--accept bf16` |
| ONNX Runtime, unoptimised | only at stages whose own error, and that of everything before them, was shown to be rounding by the noise floor |
| ONNX Runtime, optimised and untouched | final outputs only, where their stage is such a stage, within {spread:g} times the unoptimised error |

So a fault in the ONNX file at hand widens no limit: it is in the error of its own stage, and of those behind it, and none of these count.
`--no-onnx` leaves ONNX Runtime out altogether.

## The rate of false alarms

It belongs to a whole run on one sample: one stage over its limit is an alarm. A limit for each stage alone would give 1 % for each of
a hundred stages. Therefore:

1. The largest known-good error of each stage and metric is taken for each sample; its logarithm is set in relation to the mean and
   the spread that the *other* samples have. The spread of one stage is drawn towards that of all, as a few samples tell little of it.
2. The score of a sample is the largest of these over all stages and metrics.
3. All limits lie at one score: the one that a new sample passes with the stated probability. If the score of a new sample is
   exchangeable with theirs, the ⌈(n + 1)(1 − rate)⌉-th smallest of n scores is such a one, whatever their law (split conformal
   prediction, Vovk et al., 2005).

| tail | samples | limits |
|---|---|---|
| `measured` | 1 / rate − 1 and more: 99 for 1 %, 19 for 5 % | an order statistic; `rate_bound` is what the true rate may be at most, with confidence 0.9 |
| `extrapolated` | 5 and more | a Gumbel law of the scores, and the upper end of a bootstrap: wider |
| `too few` | 1 to 4 | an assumed spread of a factor of two |

Metrics are the relative L2 error, the largest and the mean absolute error of a stage in the running graph, and `local_rel_l2`, the relative
L2 of the error that it makes itself on PyTorch's own inputs. An error of less than one unit in the last place counts as one.
Stages of whole numbers have no limits: on equal inputs they have to be equal. Where rounding alone turned such a stage (or `round`,
`floor` ...), totals behind it say nothing and are not judged; local errors are.

## The table

`tolerances.toml` is written to be read, compared and edited: `[[stage]]` has for each metric its `limit` and the percentiles of known-good
errors. `[fingerprint]` holds the module tree (paths, types, shapes and dtypes of parameters, never weights), the stages, and
inputs and precision of the graph: a table for another model is refused with what differs (exit code 2). Samples that ran on several kinds of
machines (`--executor dask://HOST:PORT`) give a limit for each kind (`on`) beside the pooled one. An interrupted calibration goes on where it
was: its journal lies beside the table until it is finished.

Beside the table are two plots: `*.errors.png` and `.svg` (known-good errors of each stage, with its limits), and `*.sensitivity.png` and `.svg` (the
smallest fault that stages still show, for other rates of false alarms).

## What was measured

{machine}

Each family of the zoo is calibrated with its healthy export. Then other samples are judged, and graphs with one planted fault
each, by the function that `verify` judges with (`bisect_tool.table_judging`). A run is an alarm if any stage of
the unoptimised graph, or any final output of the untouched graph (optimised or not), is over a limit.

"""


def page(results: Results, rates: Sequence[float], command: str) -> str:
    """The whole page."""
    lines = [INTRODUCTION.format(command=command, machine=machine(), spread=OPTIMISED_SPREAD)]
    lines += ["### Calibrations", "", *_about(results, rates), ""]
    lines += ["### False alarms on held-out samples", "", *_alarms(results, rates), ""]
    lines += ["### Faults that are caught", "", *_caught(results, rates), ""]
    return "\n".join(lines).rstrip() + "\n"


def _about(results: Results, rates: Sequence[float]) -> list[str]:
    lines = [
        "Limits are those for the first rate. `left out`: what was not known good, in how many samples.",
        "",
        f"| family | stages | samples | known-good runs | {' | '.join(f'tail at {rate:g}' for rate in rates)} "
        "| own error: median limit | largest limit | total error: largest limit | seconds | left out |",
        "|" + "---|" * (9 + len(rates)),
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
            f"| {about['largest_total_limit']:.1e} | {about['seconds']:.0f} | {left} |"
        )
    return lines


def _alarms(results: Results, rates: Sequence[float]) -> list[str]:
    lines = [
        "`P`: probability of at least so many alarms in so many runs if the stated rate were exact (binomial); small numbers "
        "speak against the rate. `bound`: Clopper-Pearson upper bound on the true rate, confidence 0.95.",
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
        "Faults by the relative size by which they move the value of their own node, measured by plain ONNX Runtime. The zoo's "
        "kinds move it by 2e-5 at least; `scaled` multiplies the result of one node by 1 + size.",
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
        lines.append(
            f"- at a rate of {rate:g}: of {len(large)} faults over {COUNTS_FROM:g} {_share(sum(_is_caught(r, rate) for r in large), len(large))} "
            f"are caught, of {len(small)} under it {_share(sum(_is_caught(r, rate) for r in small), len(small))}"
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
    found = [line for line in [*_alarms(results, rates), *_caught(results, rates)] if line.startswith(("| **all", "- at"))]
    return "\n".join(found)
