"""What noise floors say about stages: where error is made, and which totals are rounding that grew on its way.

Without a tolerance of the user's, a stage fails if it makes error of its own, or if it is over the default limit with error
that another stage made. A total over the limit to which every stage on the way adds no more than rounding is no fault, as
large as it may be: the model amplifies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bisect_tool.metrics import kind_of_name
from bisect_tool.noise import BEYOND, epsilon, side_of
from bisect_tool.quantised import fails
from bisect_tool.records import Comparison, ErrorMetrics, OutputResult, Side, Stage, StageRow, Tolerance
from bisect_tool.tolerances import DEFAULT_REL_L2

OPTIMISED_SPREAD = 10.0
"""How far the untouched run of an optimised graph may lie from PyTorch, in units of the unoptimised run's rounding.

Both round as often, in another order; see docs/noise-floor.md.
"""


_SAME_INPUTS = 10.0
"""How far a stage's total may lie from its local error where both runs read the same numbers: they are the same run then."""

STEPS = frozenset(["ceil", "floor", "floor_divide", "fmod", "frac", "heaviside", "remainder", "round", "sign", "trunc"])
"""Operations on floating numbers that turn the smallest difference into a whole step."""


def is_step(stage: Stage | StageRow) -> bool:
    """Whether the smallest difference may make a whole step in what a stage returns."""
    return kind_of_name(stage.dtype) == "integer" or stage.type in STEPS


def makes_error(row: StageRow, result: Comparison) -> bool:
    """Whether a stage makes error that rounding does not explain."""
    local, noise = result.local, result.noise
    if local is None:
        return False
    if local.problem:
        return True
    if result.quantised is not None:
        return bool(local.nonfinite_mismatch) or fails(result.quantised)
    if noise is not None and noise.ratio is not None:
        # Where plain float32 overflows too, no floor can be told; that one side has numbers there is no rounding.
        overflows = local.nonfinite_mismatch > 0 and noise.floor == math.inf
        return noise.ratio > BEYOND or overflows
    if noise is not None and noise.settled:
        return False
    if local.nonfinite_mismatch:
        return True
    if kind_of_name(row.dtype) == "integer":
        return local.differing > 0
    return not local.rel_l2 <= _default_limit(row, result)


def is_perturbed(outputs: Sequence[OutputResult], rows: Sequence[StageRow], config: str, effect: float | None) -> bool:
    """Whether stages fail only because they were looked at: then the run has no answer.

    The final outputs are right as long as nobody asks for inner values, asking moves them by more than rounding does, and no
    stage makes error on PyTorch's own inputs. A stage that does is an answer, however the outputs come out.

    Args:
        outputs: of the untouched run, judged.
        rows: the stage table.
        config: of the run, which fails.
        effect: relative L2 of the final outputs with and without inner values; ``None``: not measured.
    """
    if not outputs or effect is None or any(out.judgement != "pass" for out in outputs):
        return False
    results = [(row, row.results[config]) for row in rows if row.role != "group" and config in row.results]
    names = {out.onnx_value for out in outputs}
    floors = [result.floor for row, result in results if row.onnx_value in names and result.floor is not None]
    rounding = max([epsilon(row.dtype) for row, _ in results if row.onnx_value in names] + floors, default=0.0)
    return effect > BEYOND * rounding and not any(makes_error(row, result) for row, result in results)


def _default_limit(row: StageRow, result: Comparison) -> float:
    """Of the stage's dtype, or of the half precision that the graph computes it in."""
    held = result.noise.dtype if result.noise is not None else None
    return DEFAULT_REL_L2.get(held or row.dtype, DEFAULT_REL_L2["float32"])


def side_off(result: Comparison) -> Side | None:
    """Which side makes the error; ``None`` where that is not known."""
    return side_of(result.noise) if result.noise is not None else None


def judge_by_noise(
    rows: Sequence[StageRow], config: str, tolerance: Tolerance, baseline: str | None = None
) -> list[StageRow]:
    """The rows with their judgements under one configuration, where no tolerance of the user's decides.

    Args:
        rows: judged by the default limits, in order of execution.
        config: name of the configuration pair.
        tolerance: in force; the user's own is not touched.
        baseline: for a pair without local errors, the pair whose are known and whose PyTorch run is the same.
    """
    if tolerance.source != "default":
        return list(rows)
    tainted = _tainted(rows, baseline or config)
    found = []
    for row in rows:
        result = row.results.get(config)
        if result is not None:
            base = row.results.get(baseline) if baseline else None
            if baseline is None and makes_error(row, result):
                result = replace(result, judgement="fail")
            elif result.judgement == "fail" and row.index not in tainted and _is_rounding(result, base, baseline):
                result = replace(result, judgement="pass")
            row = replace(row, results={**row.results, config: result})
        found.append(row)
    return found


def is_explained(total: ErrorMetrics, rows: Sequence[StageRow], value: str, baseline: str) -> bool:
    """Whether the error of a final output is rounding: all that its stage in ``baseline`` comes from is clean."""
    if total.problem or total.nonfinite_mismatch:
        return False
    tainted = _tainted(rows, baseline)
    for row in rows:
        if row.onnx_value == value and baseline in row.results:
            base = row.results[baseline].total
            return row.index not in tainted and total.rel_l2 <= OPTIMISED_SPREAD * base.rel_l2
    return False


def _is_rounding(result: Comparison, base: Comparison | None, baseline: str | None) -> bool:
    if result.total.problem or result.total.nonfinite_mismatch:
        return False
    if baseline is None:
        return (result.local is not None or result.input_error is not None) and not _comes_from_nowhere(result)
    if base is None or _comes_from_nowhere(base):
        return False
    return result.total.rel_l2 <= OPTIMISED_SPREAD * base.total.rel_l2


def _comes_from_nowhere(result: Comparison) -> bool:
    """Whether neither the stage nor what it reads has the error: the graph computes it from something else than PyTorch."""
    if result.local is None or result.local.problem or result.input_error != 0:
        return False
    return not result.total.rel_l2 <= _SAME_INPUTS * result.local.rel_l2


def _tainted(rows: Sequence[StageRow], config: str) -> set[int]:
    """Rows that make error or read, however indirectly, from one that does; containers shown beside them count too.

    So do rows that read error from stages that were not selected: nobody knows whether it is rounding. What a call returns
    may be made of another of its results, which no row says: a cell's output is made of its new state.
    """
    own = {
        row.index
        for row in rows
        if (result := row.results.get(config)) is not None
        and (makes_error(row, result) or _reads_unexplained(row, result))
    }
    calls = {(row.stage, row.call) for row in rows if row.index in own}
    tainted: set[int] = set()
    for row in rows:
        if (row.stage, row.call) in calls or any(index in tainted for index in row.inputs):
            tainted.add(row.index)
    return tainted


def _reads_unexplained(row: StageRow, result: Comparison) -> bool:
    if result.outside_error is None:
        return False
    return not result.outside_error <= _default_limit(row, result)


def growth_lines(rows: Sequence[StageRow], config: str, tolerance: Tolerance) -> list[str]:
    """Says where rounding grew over the default limit without a fault, and which steps are not continuous."""
    if tolerance.source != "default":
        return []
    lines = []
    over: list[tuple[float, StageRow]] = []
    jumps: list[StageRow] = []
    behind: set[int] = set()
    for row in rows:
        result = row.results.get(config)
        if any(index in behind for index in row.inputs):
            behind.add(row.index)
        if result is None or row.role == "group" or row.alias_of is not None or result.judgement != "pass":
            continue
        limit = _default_limit(row, result)
        # ``topk(sorted=False)`` promises no order.
        loose = row.type == "topk" and result.local is not None and result.local.rel_l2 > limit
        if (is_step(row) and result.local is not None) or loose:
            if result.total.differing and result.total.rel_l2 > limit:
                jumps.append(row)
                behind.add(row.index)
        # Behind a jump it is that, and no growth.
        elif result.total.rel_l2 > limit and row.index not in behind:
            over.append((result.total.rel_l2, row))
    if over:
        largest, row = max(over, key=lambda item: item[0])
        steps = [(r.results[config].amplification or 0.0, r) for r in rows if config in r.results and r.role != "group"]
        steps = [item for item in steps if math.isfinite(item[0])]
        text = f"rounding grows to {largest:.1e} at {row.ref}, and no stage adds more than its own rounding: no fault"
        if steps and (step := max(steps, key=lambda item: item[0]))[0] > 2:
            text += f"; it grows most in {step[1].ref} (x{step[0]:.0f})"
        lines.append(text)
    if jumps:
        names = ", ".join(str(row.ref) for row in jumps[:3]) + (" ..." if len(jumps) > 3 else "")
        lines.append(f"not continuous: rounding alone changes the result of {names}")
    return lines


def floor_summary(rows: Sequence[StageRow], config: str) -> Mapping[str, int]:
    """How many stages the cheap bound settled, how many were measured, and of how many the floor is unknown."""
    counts = {"settled": 0, "measured": 0, "unknown": 0}
    for row in rows:
        result = row.results.get(config)
        noise = result.noise if result is not None else None
        if noise is not None:
            counts["settled" if noise.settled else "unknown" if noise.unknown else "measured"] += 1
    return counts
