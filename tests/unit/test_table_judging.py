"""``table_judging``: limits decide, steps that rounding turned excuse what is behind them, and a fault is no such step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bisect_tool.calibration.table_judging import Judge, judge_by_table, judge_outputs_by_table, over_limits
from bisect_tool.calibration.tolerance_table import Calibration, Fingerprint, MetricLimit, StageLimits, ToleranceTable
from bisect_tool.metrics import judge, measure
from bisect_tool.records import Comparison, Noise, OutputResult, StageRow
from bisect_tool.tolerances import make_tolerance

DEFAULT = make_tolerance(None, None, None)
HERE = "some-machine"


def row(
    index: int,
    total: float,
    local: float | None = 0.0,
    *,
    dtype: str = "float32",
    kind: str = "Linear",
    inputs: Sequence[int] | None = None,
) -> StageRow:
    """A stage whose hundred elements are each off by ``total``, and by ``local`` on equal inputs."""
    ones = np.ones(100, dtype)

    def off(by: float) -> np.ndarray:
        return (ones + by).astype(dtype)

    metrics, judgement = judge(ones, off(total), DEFAULT)
    own = None if local is None else measure(ones, off(local))
    result = Comparison(metrics, own, 0.0, None, None, None, None, judgement, noise=Noise(settled=not local))
    reads = tuple(inputs) if inputs is not None else ((index - 1,) if index else ())
    name, value = f"s{index}", f"v{index}"
    return StageRow(
        index, name, 0, 0, "leaf", kind, None, (100,), dtype, "", reads, None, value, (), {"off": result, "all": result}
    )


def limit(at: float, on: dict[str, float] | None = None) -> MetricLimit:
    return MetricLimit(at, at / 4, at / 3, at / 2, at / 2, 1e-7, on or {})


def table(rows: Sequence[StageRow], at: float = 1e-5, **on: float) -> ToleranceTable:
    """One limit for all metrics of all floating stages."""
    names = ("rel_l2", "max_abs", "mean_abs", "local_rel_l2")
    stages = tuple(
        StageLimits(r.stage, 0, 0, "kind", 9, {n: limit(at, on) for n in names} if r.dtype.startswith("float") else {})
        for r in rows
    )
    known = Calibration(0.01, 9, 9, "leaf", "", "", (), "too few", 1.0)
    return ToleranceTable(known, Fingerprint({}, {}, {}), (), stages)


def judgements(
    rows: Sequence[StageRow], made: ToleranceTable | None = None, config: str = "off", **more: str
) -> list[str]:
    judged = judge_by_table(rows, config, made or table(rows), **more)
    return [row.results[config].judgement for row in judged]


def test_the_limits_decide() -> None:
    """An error that the default lets pass fails, and one that it does not let pass is allowed."""
    assert ["pass", "fail"] == judgements([row(0, 5e-6), row(1, 3e-5)])
    rows = [row(0, 1e-2, 1e-2)]
    assert ["pass"] == judgements(rows, table(rows, at=0.1))


def test_an_error_of_its_own_fails_whatever_the_total() -> None:
    """The limit on the local error is the sharper one where rounding grows."""
    rows = [row(0, 1e-6, 5e-5)]
    assert ["fail"] == judgements(rows)
    ((ref, (excess,)),) = over_limits(rows, "off", table(rows))
    assert ("s0", "local_rel_l2") == (ref.stage, excess.metric)
    assert excess.factor == pytest.approx(5, rel=0.02)


def test_the_farthest_excess_comes_first() -> None:
    """Each metric that is over its limit is named."""
    rows = [row(0, 3e-4, 1e-4)]
    ((_, over),) = over_limits(rows, "off", table(rows))
    assert {"rel_l2", "max_abs", "mean_abs", "local_rel_l2"} == {each.metric for each in over}
    assert "local_rel_l2" == over[-1].metric


def test_limits_of_the_hardware_at_hand() -> None:
    """A kind of machine that was measured has its own; others have the pooled one."""
    rows = [row(0, 5e-6)]
    made = table(rows, **{HERE: 1e-6})
    assert ["fail"] == judgements(rows, made, hardware=HERE)
    assert ["pass"] == judgements(rows, made, hardware="another")


def test_stages_without_limits_keep_their_judgement() -> None:
    """The noise floor has judged them."""
    rows = [row(0, 1e-2)]
    assert ["fail"] == judgements(rows, replace(table(rows), stages=()))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_fails(broken: float) -> None:
    """NaN is under no limit, however wide."""
    rows = [row(0, broken, broken)]
    assert ["fail"] == judgements(rows, table(rows, at=1e9))


def test_a_step_that_rounding_turned_excuses_what_is_behind_it() -> None:
    """Indices differ, and not on equal inputs: totals behind it are whole steps off in any correct run."""
    rows = [row(0, 1e-6), row(1, 1, dtype="int64", kind="topk"), row(2, 0.5), row(3, 0.5), row(4, 1e-6, inputs=(0,))]
    assert ["pass"] * 5 == judgements(rows)
    beside = [*rows[:4], row(4, 0.5, inputs=(0,))]
    assert ["pass", "pass", "pass", "pass", "fail"] == judgements(beside)


def test_rounded_numbers_are_steps_too() -> None:
    """``round`` makes a whole step of a small error."""
    assert ["pass"] * 3 == judgements([row(0, 1e-6), row(1, 1.0, kind="round"), row(2, 1.0)])


def test_a_faulty_step_is_no_excuse() -> None:
    """On equal inputs it gives other indices: that is a fault, and everything behind it fails as well."""
    rows = [row(0, 1e-6), row(1, 1, 1, dtype="int64", kind="topk"), row(2, 0.5)]
    assert ["pass", "fail", "fail"] == judgements(rows)


def test_a_fault_behind_a_turned_step_shows_by_its_own_error() -> None:
    """Its total is not judged, and its local error is."""
    rows = [row(0, 1, dtype="int64", kind="topk"), row(1, 0.5, 1e-3), row(2, 0.5)]
    assert ["pass", "fail", "pass"] == judgements(rows)


def test_not_a_number_behind_a_turned_step_fails() -> None:
    """No step makes NaN of numbers."""
    rows = [row(0, 1, dtype="int64", kind="topk"), row(1, np.nan, 0.0)]
    assert ["pass", "fail"] == judgements(rows)


def test_whole_numbers_that_differ_without_local_runs_fail() -> None:
    """Nobody knows then whether the step stands."""
    assert ["fail", "fail"] == judgements([row(0, 1, None, dtype="int64"), row(1, 0.5, None)])


def test_a_baseline_tells_whether_a_step_stands() -> None:
    """An optimised run has no local errors; those of the unoptimised one serve."""
    step, behind = row(0, 1, dtype="int64"), row(1, 0.5)
    rows = [
        replace(each, results={**each.results, "all": replace(each.results["all"], local=None)})
        for each in (step, behind)
    ]
    assert ["fail", "fail"] == judgements(rows, config="all")
    assert ["pass", "pass"] == judgements(rows, config="all", baseline="off")


def test_final_outputs() -> None:
    """Those of the untouched graph have the limits of the stages that they are, and the same excuse."""
    rows = [row(0, 1e-6), row(1, 1, dtype="int64"), row(2, 0.5)]
    ones = np.ones(100, "float32")
    outs = tuple(
        OutputResult(place, f"v{stage}", *judge(ones, (ones + by).astype("float32"), DEFAULT))
        for place, (stage, by) in enumerate([(0, 5e-6), (0, 5e-5), (2, 0.5), (2, np.nan), (7, 0.5)])
    )
    judged = judge_outputs_by_table(outs, rows, "off", table(rows))
    assert ["pass", "fail", "pass", "fail", "fail"] == [out.judgement for out in judged]
    assert outs[4] is judged[4]


def test_a_reference_of_zeros_is_judged_by_absolute_errors() -> None:
    """Relative to nothing, every error is infinite."""
    zeros, base = np.zeros(10, "float32"), row(0, 0)

    def judged(by: float) -> list[str]:
        metrics = measure(zeros, zeros + np.float32(by))
        result = replace(base.results["off"], total=metrics, local=metrics)
        return judgements([replace(base, results={"off": result})], table([base]))

    assert ["pass"] == judged(1e-9)
    assert ["fail"] == judged(1e-3)


def test_rows_that_were_not_compared_stay_so() -> None:
    """Neither pass nor fail is said of them."""
    base = row(0, 1.0)
    result = replace(base.results["off"], judgement="not compared")
    rows = [replace(base, results={"off": result})]
    assert ["not compared"] == judgements(rows)
    assert {} == Judge(table(rows), "off").over(rows)
