"""``localize.with_shares``: which part of the final error each stage makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import metrics

from bisect_tool.localize import localize, with_shares
from bisect_tool.records import Comparison, Role, StageRef, StageRow

CONFIG = "off"


def compared(total: float, local: float | None, propagated: float | None = None) -> Comparison:
    """A result whose amplification of an input error of 1 is the propagated error."""
    return Comparison(
        total=metrics(total),
        local=None if local is None else metrics(local),
        input_error=None if propagated is None else 1.0,
        growth=None,
        amplification=propagated,
        floor=None,
        noise_ratio=None,
        judgement="pass",
    )


def row(
    index: int,
    inputs: Sequence[int],
    result: Comparison | None,
    *,
    name: str | None = None,
    role: Role = "judged",
    alias_of: str | None = None,
) -> StageRow:
    """A stage that reads those with the given indices."""
    return StageRow(
        index=index,
        stage=f"s{index}" if name is None else name,
        call=0,
        output=0,
        level="leaf",
        type="Linear",
        source=None,
        shape=(3,),
        dtype="float32",
        group="",
        inputs=tuple(inputs),
        alias_of=None if alias_of is None else StageRef(alias_of, 0, 0),
        onnx_value=f"v{index}",
        onnx_nodes=(),
        results={} if result is None else {CONFIG: result},
        role=role,
    )


def shares(rows: Sequence[StageRow], *outputs: str) -> dict[str, float | None]:
    """Share by stage, of the rows that have a result."""
    found = with_shares(rows, CONFIG, {StageRef(name, 0, 0) for name in outputs})
    assert [r.ref for r in rows] == [r.ref for r in found]
    return {r.stage: r.results[CONFIG].share for r in found if CONFIG in r.results}


def test_chain() -> None:
    """Of what arrives at a stage, local² / (local² + propagated²) was made there; the rest came from before."""
    chain = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(5e-3, 3e-3, 4e-3)),
        row(2, [1], compared(2e-2, 6e-3, 8e-3)),
    ]
    assert shares(chain) == pytest.approx({"s2": 0.36, "s1": 0.64 * 0.36, "s0": 0.64 * 0.64})


def test_first_stage_makes_all_that_it_has() -> None:
    """Also the error of what comes before it and is not shown."""
    alone = [row(0, [], compared(1e-3, 1e-4, 9e-4))]
    assert {"s0": 1.0} == shares(alone)


def test_diamond() -> None:
    """Two branches share what they hand on by the squares of their errors."""
    rows = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(3e-3, 3e-3, 0.0)),
        row(2, [0], compared(1e-3, 0.0, 1e-3)),
        row(3, [1, 2], compared(2e-3, 1e-3, 1e-3)),
    ]
    assert shares(rows) == pytest.approx({"s3": 0.5, "s1": 0.5 * 0.9, "s2": 0.0, "s0": 0.5 * 0.1})


def test_residual() -> None:
    """A sum that reads a stage and what came before it: the stage's error and the old one both come through."""
    rows = [
        row(0, [], compared(2e-3, 2e-3)),
        row(1, [0], compared(1e-3, 1e-3, 0.0)),
        row(2, [0, 1], compared(2e-3, 0.0, 2e-3)),
    ]
    assert shares(rows) == pytest.approx({"s2": 0.0, "s1": 0.2, "s0": 0.8})


def test_outputs_count_by_the_squares_of_their_errors() -> None:
    """Several ends: the worst one decides most."""
    rows = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(1e-3, 1e-3, 0.0), role="output"),
        row(2, [0], compared(3e-3, 0.0, 3e-3), role="output"),
    ]
    assert shares(rows) == pytest.approx({"s0": 0.9, "s1": 0.1, "s2": 0.0})


def test_stage_that_nobody_reads_is_no_end() -> None:
    """The last states of an LSTM, say: their error is no part of the final one."""
    rows = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(9e-3, 9e-3, 0.0)),
        row(2, [0], compared(5e-3, 3e-3, 4e-3)),
    ]
    assert shares(rows, "s2") == pytest.approx({"s0": 0.64, "s1": 0.0, "s2": 0.36})
    assert shares(rows, "missing") == shares(rows), "without the model's outputs what nobody reads stands in for them"


def test_output_that_others_read() -> None:
    """A model may return an inner value too; it counts as the output that it is, and hands on as the stage it is."""
    rows = [row(0, [], compared(1e-3, 1e-3)), row(1, [0], compared(1e-3, 1e-3, 0.0))]
    assert shares(rows, "s0", "s1") == pytest.approx({"s0": 0.5, "s1": 0.5})


def test_output_under_the_name_of_another_stage() -> None:
    """A container that returns its last child's value has the output's name, and the child is what is shown."""
    rows = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(5e-3, 3e-3, 4e-3), name="top", alias_of="top.child"),
        row(2, [0], compared(9e-3, 9e-3, 0.0)),
    ]
    assert shares(rows, "top.child") == pytest.approx({"s0": 0.64, "top": 0.36, "s2": 0.0})


def test_container_has_the_sum_of_its_stages() -> None:
    """Stages inside it and functional ones of its own; not those whose names only begin alike, nor outputs beside it."""
    rows = [
        row(0, [], compared(1e-3, 1e-3), name="block.a"),
        row(1, [0], compared(5e-3, 3e-3, 4e-3), name="block/add#0"),
        row(2, [1], compared(5e-3, 3e-3, 4e-3), name="blocks.b"),
        row(3, [], compared(9e-3, 9e-3), name="block", role="group"),
        row(4, [], compared(9e-3, 9e-3), name="empty", role="group"),
        row(5, [], compared(9e-3, 9e-3), name="blocks", role="group"),
    ]
    found = shares(rows)
    assert found["block"] == pytest.approx(0.64)
    assert found["blocks"] == found["blocks.b"] == pytest.approx(0.36)
    assert found["empty"] is None


def test_a_module_around_an_origin_is_none_itself() -> None:
    """In the same call of it; at ``--level container`` both are shown."""
    failing = replace(compared(0.02, 0.02), floor=1e-7, noise_ratio=1e5, judgement="fail")
    names = ["block.fc", "block", "block.fc", "block", "head"]
    rows = [row(index, [], failing, name=name) for index, name in enumerate(names)]
    assert ["block.fc", "block.fc", "head"] == [origin.stage for origin in localize(rows, CONFIG).origins]
    # One call's member is no reason to pass over another call.
    found = localize([rows[1], rows[2]], CONFIG)
    assert ["block", "block.fc"] == [origin.stage for origin in found.origins]


def test_stage_that_hands_on_is_no_end() -> None:
    """Dropout in eval has the value of the stage before it: nothing reads its row, and yet it is no output."""
    rows = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(1e-3, None), alias_of="s0"),
        row(2, [0], compared(5e-3, 3e-3, 4e-3)),
        row(3, [2], compared(5e-3, None), alias_of="s2"),
    ]
    assert shares(rows) == pytest.approx({"s0": 0.64, "s1": 0.0, "s2": 0.36, "s3": 0.0})


def test_container_in_place_of_what_it_returns() -> None:
    """A judged container has the value of its last child; where the child is not shown, the container stands for it."""
    rows = [
        row(0, [], compared(1e-3, 1e-3), alias_of="inner.child"),
        row(1, [], compared(1e-3, 1e-3), name="outer", alias_of="inner.child"),
        row(2, [0], compared(5e-3, 3e-3, 4e-3)),
    ]
    assert shares(rows) == pytest.approx({"s0": 0.64, "outer": 0.0, "s2": 0.36})


def test_stages_that_were_not_compared_are_passed_over() -> None:
    """They have no result, and what they would hand on is not followed."""
    rows = [row(0, [], compared(1e-3, 1e-3)), row(1, [0], None), row(2, [1], compared(1e-3, 1e-3, 0.0))]
    assert shares(rows) == pytest.approx({"s0": 0.5, "s2": 0.5})


def test_without_forced_run_there_are_no_shares() -> None:
    """``None``, and not a guess."""
    rows = [row(0, [], compared(1e-3, None)), row(1, [0], compared(1e-3, None))]
    assert {"s0": None, "s1": None} == shares(rows)


def test_stage_without_local_error_hands_all_on() -> None:
    """Nothing is known to be made there."""
    rows = [row(0, [], compared(1e-3, 1e-3)), row(1, [0], compared(2e-3, None))]
    assert {"s0": 1.0, "s1": 0.0} == shares(rows)


def test_no_error_at_all() -> None:
    """Nothing is shared out, and nothing is divided by zero."""
    rows = [row(0, [], compared(0.0, 0.0)), row(1, [0], compared(0.0, 0.0))]
    assert {"s0": 0.0, "s1": 0.0} == shares(rows)


def test_error_that_is_not_handed_on() -> None:
    """Where every input is exact, the stage made it all; a stage before an exact one made nothing of it."""
    rows = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(0.0, 0.0, 0.0)),
        row(2, [1], compared(1e-3, 1e-3)),
    ]
    assert {"s0": 0.0, "s1": 0.0, "s2": 1.0} == shares(rows)


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_what_cannot_be_measured_hides_the_rest(broken: float) -> None:
    """One side is infinite or NaN: the stage that makes it has the whole share, and the numbers stay finite."""
    rows = [
        row(0, [], compared(1e-3, 1e-3)),
        row(1, [0], compared(broken, broken, 1e-3)),
        row(2, [1], compared(broken, 1e-7)),
    ]
    assert shares(rows) == pytest.approx({"s0": 0.0, "s1": 1.0, "s2": 0.0})


def test_unknown_input_error_is_what_is_left() -> None:
    """Where one input was not compared, what the stage did not make itself came through the others."""
    rows = [row(0, [], compared(1e-3, 1e-3)), row(1, [0], compared(5e-3, 3e-3)), row(2, [1], compared(1e-3, 2e-3))]
    assert shares(rows) == pytest.approx({"s0": 0.0, "s1": 0.0, "s2": 1.0})
    assert shares(rows[:2]) == pytest.approx({"s0": 0.64, "s1": 0.36})


def test_other_configurations_stay_as_they_are() -> None:
    """Shares are those of one configuration."""
    one = row(0, [], compared(1e-3, 1e-3))
    both = replace(one, results={**one.results, "all": compared(1e-2, None)})
    (found,) = with_shares([both], CONFIG)
    assert (1.0, both.results["all"]) == (found.results[CONFIG].share, found.results["all"])


ERRORS = st.one_of(st.floats(1e-12, 1e3), st.sampled_from([0.0, math.inf, math.nan]))


@st.composite
def graphs(draw: st.DrawFn) -> list[StageRow]:
    """Any stages, each reading some of those before it."""
    rows: list[StageRow] = []
    for index in range(draw(st.integers(1, 12))):
        inputs = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        local = draw(st.one_of(st.none(), ERRORS)) if index else 1e-3
        propagated = draw(st.one_of(st.none(), ERRORS)) if inputs else None
        rows.append(row(index, sorted(inputs), compared(draw(ERRORS), local, propagated)))
    return rows


@given(graphs())
def test_shares_are_parts_of_one_whole(rows: list[StageRow]) -> None:
    """Each lies between 0 and 1, and together they are the final error, if there is any."""
    found: Mapping[str, float | None] = shares(rows)
    parts = [share for share in found.values() if share is not None]
    assert len(rows) == len(parts)
    assert all(-1e-12 <= share <= 1 + 1e-12 for share in parts)
    read = {index for r in rows for index in r.inputs}
    errors = [r.results[CONFIG].total.rel_l2 for r in rows if r.index not in read]
    assert sum(parts) == pytest.approx(1.0 if any(errors) else 0.0, abs=1e-9)
