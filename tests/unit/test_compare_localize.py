"""``compare`` and ``localize``: errors from stage to stage, and where they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bisect_tool import recorder
from bisect_tool.compare import Ledger, compare_stage, hands_on, input_error, stage_inputs
from bisect_tool.localize import localize
from bisect_tool.metrics import judge, measure
from bisect_tool.records import Comparison, Localization, Noise, Stage, StageRef, StageRow
from bisect_tool.tolerances import make_tolerance

Array = NDArray[Any]
DEFAULT = make_tolerance(None, None, None)
CONFIG = "off"


def stage(path: str, value: int, inputs: Sequence[int]) -> Stage:
    return Stage(StageRef(path, 0, 0), "leaf", "Linear", None, (3,), "float32", value, tuple(inputs), value)


def vector(*numbers: float) -> Array:
    return np.array(numbers, np.float64)


# -- errors that come in ----------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=12, max_size=12),
    st.lists(st.integers(0, 11), max_size=3),
    st.sets(st.integers(0, 11)),
)
def test_the_recorder_finds_the_same_inputs(made_from: list[list[int]], own: list[int], known: set[int]) -> None:
    """It travels without this package and so has a walk of its own; both give the same values in the same order."""
    # Values are made from earlier ones only.
    parents = {value: tuple(parent for parent in given if parent < value) for value, given in enumerate(made_from)}
    expected = stage_inputs(stage("a", 12, own), parents, known)
    assert expected == tuple(recorder._nearest(own, parents, known))


def test_several_inputs_are_one_vector() -> None:
    """Each scaled by its own norm: root of the mean of the squares."""
    errors = {1: 3e-3, 2: 4e-3}
    assert input_error([1, 2], errors.get) == pytest.approx(math.sqrt((9e-6 + 16e-6) / 2))
    assert input_error([1], errors.get) == 3e-3


def test_the_input_error_is_that_of_the_joined_vector() -> None:
    """The definition, on real vectors of very different norms."""
    first, second = vector(3, 4), vector(3000, 4000)
    first_off, second_off = vector(3.1, 4), vector(3000, 4200)
    errors = {1: measure(first, first_off).rel_l2, 2: measure(second, second_off).rel_l2}
    joined = np.concatenate([first / 5, second / 5000])
    joined_off = np.concatenate([first_off / 5, second_off / 5000])
    wanted = np.linalg.norm(joined_off - joined) / np.linalg.norm(joined)
    assert input_error([1, 2], errors.get) == pytest.approx(wanted)


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_one_unknown_input_makes_the_error_unknown(unknown: float | None) -> None:
    """It is not taken for zero."""
    assert input_error([1, 2], {1: 1e-3, 2: unknown}.get) is None


def test_no_inputs_carry_no_error() -> None:
    """A stage that reads the model's inputs alone."""
    assert input_error([], lambda _: None) == 0.0


def test_stage_inputs_are_the_nearest_known_values() -> None:
    """Values without a pair are walked past, each known one is named once."""
    parents = {4: (3,), 3: (1, 2), 5: (4, 2), 2: (0,)}
    assert stage_inputs(stage("s", 6, [5]), parents, {1, 2}) == (1, 2)
    assert stage_inputs(stage("s", 6, [4, 2]), parents, {4, 2}) == (4, 2)
    assert stage_inputs(stage("s", 6, [5]), parents, {0, 1}) == (1, 0)


def test_stage_inputs_stop_at_the_first_known_value() -> None:
    """What lies behind it is not the stage's input."""
    assert stage_inputs(stage("s", 3, [2]), {2: (1,), 1: (0,)}, {0, 1}) == (1,)


def test_stage_inputs_without_a_known_ancestor_are_none() -> None:
    """Also where the data flow has a diamond."""
    assert stage_inputs(stage("s", 4, [3]), {3: (1, 2), 2: (0,), 1: (0,)}, set()) == ()


def test_a_stage_that_returns_its_input_hands_on() -> None:
    """Dropout does, a residual sum does not."""
    assert hands_on(stage("drop", 1, [1]))
    assert hands_on(stage("pick", 2, [1, 2]))
    assert not hands_on(stage("sum", 3, [1, 2]))


# -- the ledger and comparisons ---------------------------------------------------------------------------------------


def ledger() -> Ledger:
    return Ledger(DEFAULT, {CONFIG})


def compared(book: Ledger, what: Stage, inputs: tuple[int, ...], local: str | None = CONFIG) -> Comparison:
    result = compare_stage(book, what, CONFIG, local, inputs, {0})
    assert result is not None
    return result


def test_propagated_is_total_minus_local() -> None:
    """As vectors, before any norm is taken."""
    expected, chained, forced = vector(3, 4, 0), vector(3.5, 4, 0), vector(3.5, 4, 0.1)
    book = ledger()
    book.record(CONFIG, 1, expected, chained, forced)
    book.totals[CONFIG, 7] = judge(vector(1, 0), vector(1.1, 0), DEFAULT)
    result = compared(book, stage("s", 1, [7]), (7,))
    assert result.total.rel_l2 == pytest.approx(0.1)
    assert result.local is not None
    assert result.local.rel_l2 == pytest.approx(math.hypot(0.5, 0.1) / 5)
    assert book.propagated[CONFIG, 1] == pytest.approx(0.1 / 5)
    assert result.amplification == pytest.approx(0.02 / 0.1)
    assert result.growth == pytest.approx(1.0)


def test_an_exact_stage_only_propagates() -> None:
    """Local error zero: propagated is the total."""
    book = ledger()
    book.record(CONFIG, 1, vector(3, 4), vector(3, 5), vector(3, 4))
    assert book.propagated[CONFIG, 1] == book.totals[CONFIG, 1][0].rel_l2 == pytest.approx(0.2)
    assert book.locals[CONFIG, 1].rel_l2 == 0


def test_growth_is_null_without_input_error() -> None:
    """A stage that reads the model's inputs: nothing can be grown."""
    book = ledger()
    book.record(CONFIG, 1, vector(3, 4), vector(3, 5), vector(3, 5))
    result = compared(book, stage("s", 1, [0]), (0,))
    assert (result.input_error, result.growth, result.amplification) == (0.0, None, None)


def test_growth_is_null_when_the_input_error_is_unknown() -> None:
    """The producer was not compared."""
    book = ledger()
    book.record(CONFIG, 2, vector(3, 4), vector(3, 5), None)
    result = compared(book, stage("s", 2, [1]), (1,))
    assert (result.input_error, result.growth, result.local) == (None, None, None)


def test_without_a_forced_run_there_is_no_local_error() -> None:
    """``null``, not zero."""
    book = ledger()
    book.record(CONFIG, 1, vector(3, 4), vector(3, 5), vector(3, 5))
    result = compared(book, stage("s", 1, [0]), (0,), local=None)
    assert result.local is None and result.total.rel_l2 == pytest.approx(0.2)


def test_another_lane_gives_locals_and_no_totals() -> None:
    """A forced run at another level does not touch the configuration's totals."""
    book = ledger()
    book.record(CONFIG, 1, vector(3, 4), vector(3, 5), vector(3, 4))
    book.record("groups0", 1, vector(3, 4), vector(3, 4), vector(3, 6))
    assert book.totals[CONFIG, 1][0].rel_l2 == pytest.approx(0.2)
    assert ("groups0", 1) not in book.totals
    assert compared(book, stage("s", 1, [0]), (0,), "groups0").local == measure(vector(3, 4), vector(3, 6))


def test_a_value_that_was_not_compared_gives_no_comparison() -> None:
    """``None``: it is never taken as agreeing."""
    assert compare_stage(ledger(), stage("s", 1, [0]), CONFIG, CONFIG, (0,), {0}) is None


def test_a_missing_value_fails() -> None:
    """The runtime returned nothing."""
    book = ledger()
    book.missing(CONFIG, 1, vector(1, 2))
    result = compared(book, stage("s", 1, [0]), (0,))
    assert result.judgement == "fail" and result.total.problem is not None


def test_shapes_that_differ_give_no_propagated_error() -> None:
    """NaN inside, ``null`` outside; nothing is raised."""
    book = ledger()
    book.record(CONFIG, 1, vector(1, 2), vector(1, 2, 3), vector(1, 2, 3))
    book.totals[CONFIG, 7] = judge(vector(1, 0), vector(1.1, 0), DEFAULT)
    result = compared(book, stage("s", 1, [7]), (7,))
    assert result.judgement == "fail"
    assert result.growth is None and result.amplification is None


def test_integers_have_no_propagated_norm() -> None:
    """They are judged by equality."""
    book = ledger()
    book.record(CONFIG, 1, np.array([1, 2]), np.array([1, 3]), np.array([1, 3]))
    assert math.isnan(book.propagated[CONFIG, 1])
    assert book.totals[CONFIG, 1][1] == "fail"


@pytest.mark.parametrize("lane", [CONFIG, "groups0"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_propagated_is_over_the_norm_of_the_reference(lane: str, dtype: str) -> None:
    """In every lane and dtype, whether or not the chained run was judged there."""
    random = np.random.default_rng(0)
    expected, chained, forced = (random.standard_normal(3000).astype(dtype) for _ in range(3))
    book = ledger()
    book.record(lane, 1, expected, chained, forced)
    wide = [x.astype(np.float64) for x in (expected, chained, forced)]
    wanted = np.linalg.norm(wide[1] - wide[2]) / np.linalg.norm(wide[0])
    assert book.propagated[lane, 1] == pytest.approx(wanted, rel=1e-5)


def test_propagated_is_unknown_where_the_reference_is_not_finite() -> None:
    """NaN and infinities have no norm, whatever the two runs hold there."""
    for bad in (math.nan, math.inf):
        book = ledger()
        book.record(CONFIG, 1, vector(1, bad), vector(1, 2), vector(1, 3))
        assert math.isnan(book.propagated[CONFIG, 1])


def test_propagated_to_a_zero_reference() -> None:
    """No error is none, any other is infinite."""
    book = ledger()
    book.record(CONFIG, 1, vector(0, 0), vector(0, 1), vector(0, 1))
    book.record(CONFIG, 2, vector(0, 0), vector(0, 1), vector(0, 2))
    assert (book.propagated[CONFIG, 1], book.propagated[CONFIG, 2]) == (0.0, math.inf)


# -- localize ---------------------------------------------------------------------------------------------------------

SIZE = 1000


def off_by(relative: float, dtype: str) -> tuple[Array, Array]:
    """Two vectors that are ``relative`` apart; for integers: how many differ; NaN: a NaN on one side."""
    if dtype in ("int64", "bool"):
        expected = np.zeros(SIZE, np.int64)
        actual = expected.copy()
        actual[: int(relative)] = 1
        return expected, actual
    expected = np.ones(SIZE)
    if math.isnan(relative):
        actual = expected.copy()
        actual[3] = math.nan
        return expected, actual
    return expected, expected + relative


def row(
    index: int,
    total: float,
    local: float | None,
    inputs: Sequence[int] | None = None,
    *,
    dtype: str = "float32",
    name: str | None = None,
) -> StageRow:
    """The judged row ``s<index>``, by default reading the row before it."""
    if inputs is None:
        inputs = (index - 1,) if index else ()
    metrics, judgement = judge(*off_by(total, dtype), DEFAULT)
    result = Comparison(
        total=metrics,
        local=None if local is None else measure(*off_by(local, dtype)),
        input_error=None,
        growth=None,
        amplification=None,
        floor=None,
        noise_ratio=None,
        judgement=judgement,
    )
    return StageRow(
        index=index,
        stage=name or f"s{index}",
        call=0,
        output=0,
        level="leaf",
        type="Linear",
        source="model.py:1",
        shape=(SIZE,),
        dtype=dtype,
        group="",
        inputs=tuple(inputs),
        alias_of=None,
        onnx_value=f"v{index}",
        onnx_nodes=(f"n{index}",),
        results={CONFIG: result},
    )


def origins(found: Localization) -> list[str]:
    return [origin.stage for origin in found.origins]


def amplifiers(found: Localization) -> list[str]:
    return [ref.stage for ref in found.amplifiers]


def test_a_healthy_run_has_nothing_to_find() -> None:
    """No stage fails: no origin, even if one local error stands out."""
    found = localize([row(0, 1e-7, 1e-7), row(1, 6e-5, 6e-5), row(2, 6e-5, 1e-7)], CONFIG)
    assert found == Localization(None, (), ())


def test_the_origin_is_where_error_is_made() -> None:
    """Stages behind it only hand it on: amplifiers, however far off they are."""
    rows = [row(0, 1e-7, 1e-7), row(1, 1e-2, 1e-2), row(2, 5e-2, 2e-7), row(3, 0.5, 1e-7)]
    found = localize(rows, CONFIG)
    assert found.first_over_tolerance is not None
    assert found.first_over_tolerance.stage == "s1"
    assert origins(found) == ["s1"]
    assert amplifiers(found) == ["s2", "s3"]


def test_an_origin_says_what_is_known_of_it() -> None:
    """Names, nodes and the local error."""
    (origin,) = localize([row(0, 1e-2, 1e-2), row(1, 1e-2, 1e-7)], CONFIG).origins
    assert (origin.ref, origin.onnx_value, origin.onnx_nodes) == (StageRef("s0", 0, 0), "v0", ("n0",))
    assert (origin.type, origin.source, origin.config, origin.side) == ("Linear", "model.py:1", CONFIG, None)
    assert origin.local_rel_l2 == pytest.approx(1e-2)


def test_the_origin_may_come_before_the_first_stage_over_tolerance() -> None:
    """It makes an error under the limit, and the next stage blows it up."""
    rows = [row(0, 1e-7, 1e-7), row(1, 8e-5, 8e-5), row(2, 5e-2, 1e-7), row(3, 5e-2, 1e-7)]
    result = rows[1].results[CONFIG]
    measured = replace(result, noise=Noise(1.2e-7, 0.4, 660.0))
    rows[1] = replace(rows[1], results={CONFIG: measured})
    found = localize(rows, CONFIG)
    assert found.first_over_tolerance is not None
    assert found.first_over_tolerance.stage == "s2"
    assert origins(found) == ["s1"]
    assert amplifiers(found) == ["s2", "s3"]


def test_two_origins_are_found_in_one_pass() -> None:
    """In causal order; local errors do not depend on each other."""
    rows = [
        row(0, 1e-7, 1e-7),
        row(1, 1e-2, 1e-2),
        row(2, 1e-2, 1e-7),
        row(3, 0.3, 0.3),
        row(4, 0.3, 1e-7),
    ]
    found = localize(rows, CONFIG)
    assert origins(found) == ["s1", "s3"]
    assert amplifiers(found) == ["s2", "s4"]


def test_smooth_growth_has_no_origin() -> None:
    """Errors that grow eightfold a stage, each stage exact to 1e-7: nobody is to blame."""
    rows = [row(i, 1e-7 * 8**i, 1e-7 * (1 + i % 3)) for i in range(9)]
    found = localize(rows, CONFIG)
    assert found.origins == ()
    assert found.first_over_tolerance is not None
    assert found.first_over_tolerance.stage == "s4"
    assert amplifiers(found) == ["s4", "s5", "s6", "s7", "s8"]


def test_a_nan_made_by_a_stage_is_an_origin() -> None:
    """Its local error is infinite; the NaN that others hand on are not theirs."""
    rows = [row(0, 1e-7, 1e-7), row(1, math.nan, math.nan), row(2, math.nan, 1e-7)]
    found = localize(rows, CONFIG)
    assert origins(found) == ["s1"]
    assert found.origins[0].local_rel_l2 == math.inf
    assert amplifiers(found) == ["s2"]


def test_a_missing_local_value_is_an_origin() -> None:
    """A problem in the forced run counts as made there."""
    rows = [row(0, 1e-7, 1e-7), row(1, 1e-2, 1e-2)]
    result = rows[1].results[CONFIG]
    broken = Comparison(result.total, measure(vector(1, 2), None), None, None, None, None, None, "fail")
    object.__setattr__(rows[1], "results", {CONFIG: broken})
    assert origins(localize(rows, CONFIG)) == ["s1"]


def test_integers_make_error_when_any_differs() -> None:
    """One index of a thousand is enough, whatever its relative size."""
    rows = [row(0, 1e-7, 1e-7), row(1, 1, 1, dtype="int64"), row(2, 0.2, 1e-7)]
    assert origins(localize(rows, CONFIG)) == ["s1"]


def test_integers_that_hand_on_are_no_origin() -> None:
    """Differing totals, equal locals."""
    rows = [row(0, 1e-2, 1e-2), row(1, 5, 0, dtype="int64"), row(2, 0.2, 1e-7)]
    found = localize(rows, CONFIG)
    assert origins(found) == ["s0"]
    assert amplifiers(found) == ["s1", "s2"]


def test_half_precision_has_its_own_limit() -> None:
    """Local errors of 1e-3 are ordinary there."""
    rows = [row(i, 1e-3 * (i + 1), 1e-3, dtype="float16") for i in range(4)]
    rows.append(row(4, 0.5, 0.5, dtype="float16"))
    assert origins(localize(rows, CONFIG)) == ["s4"]


def test_a_branch_beside_the_failing_one_is_not_blamed() -> None:
    """Where nothing stands out, only stages that feed the failing one are looked at."""
    rows = [
        row(0, 1e-7, 1e-7, ()),
        row(1, 9e-6, 9e-6, (0,)),
        row(2, 2e-6, 2e-6, (0,)),
        row(3, 1e-3, 1e-7, (2,)),
        *(row(i, 1e-3, 1e-7, (3,)) for i in range(4, 8)),
    ]
    assert "s1" not in origins(localize(rows, CONFIG))


def test_without_local_errors_there_are_neither_origins_nor_amplifiers() -> None:
    """Only where it shows first is known."""
    found = localize([row(0, 1e-7, None), row(1, 1e-2, None)], CONFIG)
    assert found.first_over_tolerance is not None
    assert (found.first_over_tolerance.stage, found.origins, found.amplifiers) == ("s1", (), ())


def test_rows_without_a_result_are_passed_over() -> None:
    """Stages that were not compared under this configuration."""
    rows = [row(0, 1e-2, 1e-2), row(1, 1e-2, 1e-7)]
    empty: Mapping[str, Comparison] = {}
    object.__setattr__(rows[0], "results", empty)
    found = localize(rows, CONFIG)
    assert found.first_over_tolerance is not None
    assert found.first_over_tolerance.stage == "s1"
    assert localize(rows, "another") == Localization(None, (), ())
