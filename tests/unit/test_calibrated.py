"""A table in force: which model it is for, which of its limits decided, and what the verdict says about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from report_samples import comparison, healthy, metrics, row

from bisect_tool.calibration.calibrated import (
    TableInForce,
    in_force,
    judge_outputs,
    judge_rows,
    limit_text,
    refuse_other_stages,
    table_lines,
    with_table,
)
from bisect_tool.calibration.tolerance_table import (
    Calibration,
    Fingerprint,
    Hardware,
    MetricLimit,
    StageLimits,
    Tail,
    ToleranceTable,
    stages_of_rows,
)
from bisect_tool.errors import EXIT_USAGE, BisectError
from bisect_tool.records import FirstOverTolerance, LimitUse, OutputResult, StageRow

CONFIG = "ort-off"
MODULES = {"": "Net", "a": "Linear(weight float32[2, 2])", "b": "ReLU"}


def limit(value: float, **on: float) -> MetricLimit:
    return MetricLimit(value, value / 4, value / 3, value / 2, value / 2, 1e-7, on)


def rows(*errors: float) -> list[StageRow]:
    """Stages ``a``, ``b`` and so on, each with this total and own error."""
    return [row(i, "abcdef"[i], "Linear", {CONFIG: comparison(error, error)}) for i, error in enumerate(errors)]


def table(
    stages: Sequence[StageRow], limits: dict[str, dict[str, MetricLimit]], tail: Tail = "measured"
) -> TableInForce:
    known = stages_of_rows(stages)
    made = ToleranceTable(
        Calibration(0.01, 128, 256, "leaf", "2026-01-01T00:00:00Z", "0.1.0", ("threads",), tail, 3.0),
        Fingerprint(MODULES, known),
        (Hardware("cpu one", 128, 256, "measured", 3.0),),
        tuple(
            StageLimits(ref.stage, ref.call, ref.output, kind, 128, limits[ref.stage])
            for ref, kind in known.items()
            if ref.stage in limits
        ),
    )
    return in_force("t.toml", made, MODULES, None)


def test_limits_decide_both_ways() -> None:
    """Over one of its limits a stage fails, under all of them it passes, whatever it was judged before."""
    stages = rows(1e-3, 1e-3, 5e-6)
    used = table(stages, {"a": {"rel_l2": limit(1e-2)}, "b": {"rel_l2": limit(1e-2), "max_abs": limit(1e-3)}})
    before = [r.results[CONFIG].judgement for r in stages]
    judged = [r.results[CONFIG] for r in judge_rows(stages, CONFIG, used, None)]
    assert ["fail", "fail", "pass"] == before
    assert ["pass", "fail", "pass"] == [result.judgement for result in judged]
    # Nearest to its limit, and furthest over it.
    assert LimitUse("rel_l2", 1e-3, 1e-2) == judged[0].limit
    assert LimitUse("max_abs", 8e-3, 1e-3) == judged[1].limit
    assert judged[2].limit is None, "the table does not have it"


def test_own_error_has_a_limit_of_its_own() -> None:
    """An error that a stage makes itself may be over its limit where the total is not."""
    (stage,) = rows(1e-5)
    used = table([stage], {"a": {"rel_l2": limit(1e-2), "local_rel_l2": limit(1e-6)}})
    (judged,) = judge_rows([stage], CONFIG, used, None)
    assert "fail" == judged.results[CONFIG].judgement
    assert LimitUse("local_rel_l2", 1e-5, 1e-6) == judged.results[CONFIG].limit


def test_kind_of_machine() -> None:
    """Limits of this kind of machine go before the pooled ones; an unknown kind takes those."""
    (stage,) = rows(1e-5)
    used = table([stage], {"a": {"rel_l2": limit(1e-4, **{"cpu one": 1e-6})}})
    here = in_force("t.toml", used.table, MODULES, "cpu one")
    other = in_force("t.toml", used.table, MODULES, "cpu two")
    assert ("cpu one", None) == (here.hardware, other.hardware)
    verdicts = [judge_rows([stage], CONFIG, each, None)[0].results[CONFIG].judgement for each in (here, other)]
    assert ["fail", "pass"] == verdicts
    assert "cpu one" == here.source().hardware


def test_outputs_by_the_stage_that_makes_them() -> None:
    """A final output is held against the limits of its stage; others keep their judgement."""
    stages = rows(1e-5, 1e-5)
    used = table(stages, {"b": {"rel_l2": limit(1e-6)}})
    outputs = (
        OutputResult(0, str(stages[1].onnx_value), metrics(1e-5), "pass"),
        OutputResult(1, "elsewhere", metrics(1e-5), "pass"),
        OutputResult(2, str(stages[1].onnx_value), metrics(1e-5), "not compared"),
    )
    judged = judge_outputs(outputs, stages, CONFIG, used, None)
    assert ["fail", "pass", "not compared"] == [out.judgement for out in judged]
    assert [LimitUse("rel_l2", 1e-5, 1e-6), None] == [out.limit for out in judged[:2]]


def test_nan_on_one_side_is_over_every_limit() -> None:
    """What has no size fails, and is said in words."""
    (stage,) = rows(1e-9)
    result = stage.results[CONFIG]
    broken = replace(result, total=replace(result.total, nonfinite_mismatch=3, rel_l2=math.inf, max_abs=math.inf))
    stage = replace(stage, results={CONFIG: broken})
    (judged,) = judge_rows([stage], CONFIG, table([stage], {"a": {"rel_l2": limit(1.0)}}), None)
    assert "fail" == judged.results[CONFIG].judgement
    use = judged.results[CONFIG].limit
    assert use is not None and "NaN" in limit_text(use)


def test_other_models_are_refused() -> None:
    """Another module, another stage, another graph: exit code 2, with what differs; a selection of stages is none."""
    stages = rows(1e-5, 1e-5)
    used = table(stages, {"a": {"rel_l2": limit(1e-4)}, "b": {"rel_l2": limit(1e-4)}})
    with pytest.raises(BisectError, match="module b") as caught:
        in_force("t.toml", used.table, {**MODULES, "b": "GELU"}, None)
    assert EXIT_USAGE == caught.value.exit_code and caught.value.hint
    refuse_other_stages(used, stages, selected=False, graph={})
    refuse_other_stages(used, stages[1:], selected=True, graph={})
    with pytest.raises(BisectError, match="stage a"):
        refuse_other_stages(used, stages[1:], selected=False, graph={})
    other = replace(stages[0], type="Conv2d")
    with pytest.raises(BisectError, match="stage a"):
        refuse_other_stages(used, [other, *stages[1:]], selected=True, graph={})
    fingerprint = replace(used.table.fingerprint, graph={"precision": "float32"})
    changed = replace(used, table=replace(used.table, fingerprint=fingerprint))
    with pytest.raises(BisectError, match="precision of the graph"):
        refuse_other_stages(changed, stages, selected=False, graph={"precision": "quantised"})


def test_what_the_verdict_says() -> None:
    """The limit that the first failing stage is over, limits that are not firm, and stages without any."""
    stages = rows(1e-3, 1e-3)
    used = table(stages, {"a": {"rel_l2": limit(1e-6)}}, "too few")
    judged = judge_rows(stages, CONFIG, used, None)
    assert table_lines(judged, used, FirstOverTolerance("a", 0, 0, CONFIG)) == (
        "a: rel_l2 1.0e-03, limit 1.0e-06 (x1000)",
        "the limits of t.toml rest on 128 samples, too few",
        "1 stage without a limit in t.toml, judged by the noise floor: b",
    )
    firm = table(stages, {"a": {"rel_l2": limit(1e-2)}, "b": {"rel_l2": limit(1e-2)}})
    assert () == table_lines(stages, firm)


def test_tolerance_of_the_report() -> None:
    """The report says where limits come from; without a table nothing changes."""
    tolerance = healthy().tolerance
    assert tolerance is with_table(tolerance, None)
    stages = rows(1e-5)
    found = with_table(tolerance, table(stages, {"a": {"rel_l2": limit(1e-4)}}))
    assert found.table is not None
    assert ("calibrated", "t.toml", 128, 1) == (found.source, found.table.file, found.table.samples, found.table.stages)


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (LimitUse("rel_l2", 5e-6, 1e-5), "rel_l2 5.0e-06, limit 1.0e-05"),
        (LimitUse("rel_l2", 5e-2, 1e-3), "rel_l2 5.0e-02, limit 1.0e-03 (x50)"),
        (LimitUse("max_abs", 1.0, 1e-9), "max_abs 1.0e+00, limit 1.0e-09 (x1e+09)"),
        (LimitUse("rel_l2", 2.3e-3, 1e-3), "rel_l2 2.3e-03, limit 1.0e-03 (x2.3)"),
        (LimitUse("rel_l2", 2.3e-3, 0.0), "rel_l2 2.3e-03, limit 0.0e+00"),
        (LimitUse("values", 3.0, 0.0), "3 whole numbers differ, where none may"),
    ],
)
def test_limit_in_words(use: LimitUse, text: str) -> None:
    """Factors only where an error is over its limit, and as long as they say something."""
    assert text == limit_text(use)
