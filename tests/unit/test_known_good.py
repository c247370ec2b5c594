"""``known_good`` and ``table_from_runs``: what counts as known good, and the table that is made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from report_samples import config_run, healthy

from bisect_tool.calibration.known_good import (
    SampleErrors,
    StageErrors,
    add_report,
    clean_rows,
    with_copy,
    within_rounding,
)
from bisect_tool.calibration.table_from_runs import Known, smallest_caught, table_of
from bisect_tool.calibration.tolerance_table import kind_of_stage
from bisect_tool.errors import InconclusiveError
from bisect_tool.metrics import measure
from bisect_tool.records import Comparison, Noise, NumericConfig, OutputResult, Report, StageRef, StageRow

ABOUT = {"level": "leaf", "created": "", "tool": "", "accepted": ()}
SETTLED = Noise(settled=True)
BEYOND = Noise(1e-7, 0.5, 4.0)
WITHIN = Noise(1e-7, 0.5, 2.0)
UNKNOWN = Noise(unknown="draws random numbers")


def row(
    index: int,
    noise: Noise | None = SETTLED,
    *,
    total: float = 1e-6,
    local: float | None = 1e-6,
    dtype: str = "float32",
    inputs: Sequence[int] | None = None,
    alias: StageRef | None = None,
) -> StageRow:
    ones = np.ones(100, dtype)
    own = None if local is None else measure(ones, (ones + local).astype(dtype))
    result = Comparison(
        measure(ones, (ones + total).astype(dtype)), own, 0.0, None, None, None, None, "pass", noise=noise
    )
    reads = tuple(inputs) if inputs is not None else ((index - 1,) if index else ())
    return StageRow(
        index,
        f"s{index}",
        0,
        0,
        "leaf",
        "Linear",
        None,
        (100,),
        dtype,
        "",
        reads,
        alias,
        f"v{index}",
        (),
        {"off": result},
    )


# What of a run of ONNX Runtime counts


@pytest.mark.parametrize(
    ("rows", "clean"),
    [
        ([row(0), row(1, WITHIN), row(2)], {0, 1, 2}),
        ([row(0), row(1, BEYOND), row(2)], {0}),
        ([row(0), row(1, BEYOND), row(2, inputs=(0,))], {0, 2}),
        ([row(0), row(1, UNKNOWN), row(2)], {0}),
        ([row(0), row(1, None), row(2)], {0}),
        ([row(0), row(1, local=None), row(2)], {0}),
        ([row(0), row(1, local=None, alias=StageRef("s0", 0, 0)), row(2)], {0, 1, 2}),
        ([row(0, local=None, total=0.0), row(1)], {0, 1}),
        ([row(0, UNKNOWN, local=0.0), row(1)], {0, 1}),
        ([row(0, local=1, total=1, dtype="int64"), row(1)], set()),
        ([row(0, local=0, total=1, dtype="int64"), row(1)], {0, 1}),
        ([row(0, local=np.nan), row(1)], set()),
    ],
    ids=[
        "rounding", "a fault", "beside a fault", "unknown floor", "no floor", "no local run", "another name",
        "hands on its input", "nothing differs", "other whole numbers", "turned by rounding", "NaN",
    ],
)  # fmt: skip
def test_only_rounding_counts(rows: list[StageRow], clean: set[int]) -> None:
    """It has to be shown, for a stage and for all before it."""
    assert clean == clean_rows(rows, "off")


def test_error_from_stages_that_were_not_looked_at_is_not_known() -> None:
    """Of selected stages the others may hold a fault."""
    base = row(0)
    rows = [replace(base, results={"off": replace(base.results["off"], outside_error=1e-6)})]
    assert set() == clean_rows(rows, "off")


def test_half_precision_has_to_be_accepted() -> None:
    """A graph that was converted rounds, but a table would let every fault of that size pass."""
    rows = [row(0, Noise(settled=True, dtype="float16")), row(1)]
    assert set() == clean_rows(rows, "off")
    assert set() == clean_rows(rows, "off", ("bf16",))
    assert {0, 1} == clean_rows(rows, "off", ("fp16",))
    own = row(0, Noise(settled=True, dtype="float32"))
    assert {0} == clean_rows([own], "off")


def report_of(rows: Sequence[StageRow], outputs: Sequence[tuple[str, float]] = ()) -> Report:
    """A report with an optimised pair whose final outputs are off by as much as is given."""
    ones = np.ones(100, "float32")
    outs = tuple(
        OutputResult(place, value, measure(ones, ones + np.float32(by)), "pass")
        for place, (value, by) in enumerate(outputs)
    )
    runs = (
        config_run("off", NumericConfig("onnxruntime", optimization="off"), 1e-6),
        replace(config_run("all", NumericConfig("onnxruntime", optimization="all"), 1e-6), outputs=outs),
    )
    return replace(healthy(), stages=tuple(rows), configs=runs)


def errors_for(rows: Sequence[StageRow]) -> SampleErrors:
    kind = kind_of_stage("Linear", "float32", 1)
    return SampleErrors({r.ref: StageErrors(kind, "float32", 1.0, {"rel_l2": 1e-7}) for r in rows})


def test_a_faulty_run_leaves_errors_as_they_are() -> None:
    """At the fault, behind it, and at the output; the stage before it counts."""
    rows = [row(0), row(1, BEYOND, total=0.1, local=0.1), row(2, total=0.1)]
    errors = errors_for(rows)
    add_report(errors, report_of(rows, [("v2", 0.1)]), "off")
    found = [stage.largest["rel_l2"] for stage in errors.stages.values()]
    assert found == pytest.approx([1e-6, 1e-7, 1e-7], rel=0.05)
    assert ["local_rel_l2" in stage.largest for stage in errors.stages.values()] == [True, False, False]
    (line,) = errors.left_out
    assert "s1 and 1 more" in line


def test_a_healthy_run_counts_optimised_outputs_too() -> None:
    """As long as they are no more than the unoptimised rounding in another order."""
    rows = [row(0), row(1, total=2e-6)]
    errors = errors_for(rows)
    add_report(errors, report_of(rows, [("v1", 1e-5)]), "off")
    assert errors.stages[rows[1].ref].largest["rel_l2"] == pytest.approx(1e-5, rel=0.05)
    assert {"ONNX Runtime, unoptimised": 1, "ONNX Runtime, optimised": 1} == errors.runs
    wrong = errors_for(rows)
    add_report(wrong, report_of(rows, [("v1", 1e-2)]), "off")
    assert wrong.stages[rows[1].ref].largest["rel_l2"] == pytest.approx(2e-6, rel=0.05)
    assert any("1.0e-02" in line for line in wrong.left_out)


def test_a_variation_that_is_more_than_rounding_is_named() -> None:
    """The first stage of it; stages without a known rounding tell nothing."""
    ones = np.ones(10)
    errors = {StageRef(name, 0, 0): measure(ones, ones + by) for name, by in [("a", 1e-6), ("b", 1e-2), ("c", 1e-2)]}
    usual = dict.fromkeys(errors, 1e-06)
    assert StageRef("b", 0, 0) == within_rounding(errors, usual)
    assert within_rounding(errors, {}) is None


def test_errors_survive_json() -> None:
    """They come back from other processes as they went."""
    errors = errors_for([row(0)])
    errors.stages[StageRef("odd", 1, "boxes")] = StageErrors("k", "bfloat16", 2.0, {"max_abs": 0.5})
    errors.ran("float64")
    assert errors == SampleErrors.from_json(json.loads(json.dumps(errors.as_json())))


def test_a_copy_raises_what_is_larger() -> None:
    """And adds its runs."""
    first, copy = errors_for([row(0)]), errors_for([row(0), row(1)])
    copy.stages[row(0).ref].largest = {"rel_l2": 3e-7, "max_abs": 1.0}
    copy.ran("copies")
    with_copy(first, copy)
    assert {"rel_l2": 3e-7, "max_abs": 1.0} == first.stages[row(0).ref].largest
    assert {"copies": 1} == first.runs


# The table


def samples(count: int, seed: int = 0, machines: Sequence[str] = ("here",)) -> list[Known]:
    """Two floating stages and one of whole numbers; the second one is 3 times as wide."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        stages = {}
        for place, name in enumerate(("a", "b")):
            error = float(np.exp(random.normal(-14 + place, 0.2 + 0.4 * place)))
            largest = {"rel_l2": error, "max_abs": 2 * error, "local_rel_l2": error / 3}
            stages[StageRef(name, 0, 0)] = StageErrors("Linear float32 2-d", "float32", 2.0, largest)
        stages[StageRef("c", 0, 0)] = StageErrors("argmax int64 1-d", "int64", 0.0)
        found.append(Known(machines[number % len(machines)], SampleErrors(stages, {"float64": 1, "threads": 1})))
    return found


def test_table_of_enough_samples() -> None:
    """Every stage is there, whole numbers without limits; the tail is measured, and the rate has a bound."""
    made = table_of(samples(120), {"": "Net"}, {"inputs": "float32 2-d"}, 0.01, ABOUT)
    table = made.table
    assert ("measured", 120, 240) == (table.calibration.tail, table.calibration.samples, table.calibration.runs)
    assert table.calibration.rate_bound is not None
    a, b, c = table.stages
    assert {} == c.metrics
    assert b.metrics["rel_l2"].limit > a.metrics["rel_l2"].limit > a.metrics["rel_l2"].p99 > a.metrics["rel_l2"].p50
    assert 2.4e-7 == pytest.approx(a.metrics["max_abs"].least, rel=0.01)
    assert table.fingerprint.stages.keys() == {stage.ref for stage in table.stages}
    assert {} == a.metrics["rel_l2"].on


@pytest.mark.parametrize(("count", "tail"), [(2, "too few"), (20, "extrapolated"), (99, "measured")])
def test_how_firmly_the_tail_is_known(count: int, tail: str) -> None:
    """By the number of samples."""
    assert tail == table_of(samples(count), {}, {}, 0.01, ABOUT).table.calibration.tail


def test_hardware_has_limits_of_its_own() -> None:
    """And the pooled ones rest on all samples."""
    made = table_of(samples(40, machines=("x", "y")), {}, {}, 0.05, ABOUT)
    assert [("x", 20), ("y", 20)] == [(machine.name, machine.samples) for machine in made.table.hardware]
    limit = made.table.stages[0].metrics["rel_l2"]
    assert {"x", "y"} == limit.on.keys()
    assert len({limit.limit, *limit.on.values()}) == 3


def test_a_stage_that_some_samples_lack() -> None:
    """Its count says so; it has limits all the same."""
    known = samples(20)
    for sample in known[5:]:
        del sample.errors.stages[StageRef("b", 0, 0)]
    found = {stage.stage: stage for stage in table_of(known, {}, {}, 0.05, ABOUT).table.stages}
    assert (20, 5) == (found["a"].n, found["b"].n)
    assert found["b"].metrics["rel_l2"].limit > 0


def test_nothing_to_calibrate_with() -> None:
    """No sample, or no stage with an error."""
    with pytest.raises(InconclusiveError, match="no known-good run"):
        table_of([], {}, {}, 0.01, ABOUT)
    with pytest.raises(InconclusiveError, match="no stage of the model"):
        table_of([Known("here", SampleErrors())], {}, {}, 0.01, ABOUT)


def test_a_lower_rate_costs_sensitivity() -> None:
    """The smallest fault that is caught grows as false alarms get rarer."""
    columns = table_of(samples(60), {}, {}, 0.01, ABOUT).columns
    caught = smallest_caught(columns, (0.3, 0.1, 0.03, 0.01))
    assert {"a", "b"} == {ref.stage for ref in caught}
    for values in caught.values():
        assert values == sorted(values)
        assert 1e-8 < values[0] < values[-1] < 1e-4
