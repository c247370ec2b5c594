"""A graph that is wrong and of which no cause was shown: what there is to go by (``BD100``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bisect_tool.diagnose import optimiser
from bisect_tool.diagnose.causes import TITLES, UNKNOWN
from bisect_tool.records import ConfigRun, Diagnosis, RuledOut, StageRow, Verdict

_FINER = "compare finer stages (--level op)"
_UNOPTIMISED = f"{_FINER}, and run the unoptimised graph too: there stages have values of their own"
_ONLY_TOTALS = "leave --totals-only out: then each stage's own error is measured, and causes of it are tried"
_OTHER_OUTPUT = "compare a file that puts out what the model returns, or a model that returns what the file does"


def without_optimiser_too(name: str) -> RuledOut:
    """The unoptimised graph is as wrong, though nobody asked for it; ``name``: of the configuration that was asked for."""
    return RuledOut(optimiser.CODE, optimiser.TITLE, (f"beside {name}, the unoptimised graph's outputs are wrong too",))


def with_what_is_known(
    verdict: Verdict, rows: Sequence[StageRow], runs: Sequence[ConfigRun], *, forced: bool = True
) -> Verdict:
    """The verdict with a diagnosis of an unknown cause, if it is one of divergence and has none at all.

    ``forced``: whether a forced run was asked for, which shows who makes the error.
    """
    if verdict.status != "diverges" or verdict.diagnoses:
        return verdict
    lines = [
        "no stage was shown to make the error" if not verdict.origins else "what makes the error could not be tried"
    ]
    lines += [line for each in verdict.ruled_out if each.code == optimiser.CODE for line in each.evidence]
    failing = [(run, out) for run in runs for out in run.outputs if out.judgement == "fail"]
    if failing:
        run, worst = max(failing, key=lambda each: math.inf if each[1].total.problem else each[1].total.rel_l2)
        told = worst.total.problem or f"relative L2 {worst.total.rel_l2:.1e}"
        lines.append(f"output {worst.onnx_value} under {run.name}: {told}")
    # What comes before a stage that is right was folded into it.
    right = [number for number, row in enumerate(rows) if any(r.judgement == "pass" for r in row.results.values())]
    behind = rows[right[-1] + 1 :] if right else rows
    unpaired = next((row for row in behind if row.role == "judged" and row.onnx_value is None), None)
    if unpaired is not None:
        shape = list(unpaired.shape)
        place = f", {unpaired.source}" if unpaired.source else ""
        lines.append(
            f"the first stage without a value in the graph is {unpaired.ref}, {unpaired.type} of {shape}{place}"
        )
    first = verdict.first_over_tolerance
    if first is not None:
        lines.append(f"the first stage over tolerance is {first.ref} under {first.config}")
    remedy = _remedy(verdict, runs, forced, unpaired)
    found = Diagnosis(UNKNOWN, TITLES[UNKNOWN], tuple(lines), remedy, None, None)
    return replace(verdict, diagnoses=(found,))


def _remedy(verdict: Verdict, runs: Sequence[ConfigRun], forced: bool, unpaired: StageRow | None) -> str:
    """What to do: outputs that are other tensors come first, where no stage is wrong.

    ``unpaired``: the first stage without a value in the graph.
    """
    if verdict.first_over_tolerance is None and any(out.total.problem for run in runs for out in run.outputs):
        return _OTHER_OUTPUT if unpaired is None else f"look at {unpaired.ref} in the graph; or {_OTHER_OUTPUT}"
    if not forced:
        return _ONLY_TOTALS
    return _FINER if any(run.actual.optimization == "off" for run in runs) else _UNOPTIMISED
