"""Causes of a whole run: inputs in another order, what tracing baked in, rounding that grows or crosses a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_samples import comparison, row

from bisect_tool.baked import Variant, with_baked
from bisect_tool.diagnose.findings import with_order
from bisect_tool.diagnose.grown import Crossing, grown, tied
from bisect_tool.diagnose.input_orders import MOST, order_diagnosis, other_orders
from bisect_tool.records import Diagnosis, Operation, StageRef, StageRow


def test_orders_of_inputs() -> None:
    left, right = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    (only,) = other_orders({"left": left, "right": right})
    assert "inputs left and right exchanged" == only.text
    assert (only.feeds["left"] == right).all()
    image = np.arange(3 * 4 * 5, dtype=np.float32).reshape(1, 3, 4, 5)
    texts = [order.text for order in other_orders({"image": image})]
    assert 5 == len(texts)
    assert "the channels of input image (axis 1) as 2, 1, 0 (RGB and BGR)" == texts[0]
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert ["the last two axes of input x exchanged"] == [order.text for order in other_orders({"x": square})]


def test_orders_that_change_nothing_are_not_tried() -> None:
    same = np.ones((1, 3, 4, 4), np.float32)
    assert not list(other_orders({"a": same, "b": same.copy()}))
    many = {str(i): np.full(2, i, np.float32) for i in range(9)}
    assert MOST == len(list(other_orders(many)))


def test_order_that_mends_leaves_nothing_unknown() -> None:
    unknown = Diagnosis("BD100", "cause unknown", ("x",), "look", None, None)
    order = next(other_orders({"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}))
    found = order_diagnosis(order, 0.5, 1e-7, 3, "off")
    assert [found] == with_order([unknown], found)
    assert [unknown] == with_order([unknown], None)
    assert "falls from 5.0e-01 to 1.0e-07; 2 other orders did not" in found.evidence[1]


def operation(name: str, *constants: str) -> Operation:
    return Operation(name, "", 0, "net.py:3", constants)


def of(code: str, stage: str) -> Diagnosis:
    return Diagnosis(code, "t", ("first",), "r", True, None, origin=StageRef(stage, 0, 0))


SAMPLE = Variant("the sample", (operation("relu"), operation("div", "1: 2.0")))


def test_number_that_follows_the_input_was_baked_in() -> None:
    other = Variant("other numbers", (operation("relu"), operation("div", "1: 3.5")))
    (found,) = with_baked([of("BD106", "/div#0")], [SAMPLE, other], {})
    assert ("BD401", True) == (found.code, found.remedy_verified)
    assert "div in (model) (net.py:3) works with 3.5 on other numbers and with 2.0 on the sample" in found.evidence[-1]


def test_number_that_does_not_was_not() -> None:
    same = Variant("other numbers", SAMPLE.run)
    assert (of("BD106", "/div#0"),) == with_baked([of("BD106", "/div#0")], [SAMPLE, same], {})
    # A weight is no number of the trace.
    other = Variant("other numbers", (operation("relu"), operation("div", "1: 3.5")))
    assert (of("BD202", "/div#0"),) == with_baked([of("BD202", "/div#0")], [SAMPLE, other], {})
    assert (of("BD106", "/relu#0"),) == with_baked([of("BD106", "/relu#0")], [SAMPLE, other], {})


def test_branch_whose_other_side_is_in_the_graph() -> None:
    here = Variant("the sample", (operation("sigmoid"), operation("add")))
    other = Variant("a sample twice as large", (operation("tanh"), operation("add")))
    nodes = {StageRef("/add#0", 0, 0): ("Tanh", "Add")}
    (found,) = with_baked([of("BD102", "/add#0")], [here, other], nodes)
    assert ("BD401", "branch baked at trace time") == (found.code, found.title)
    # The graph has what PyTorch runs on the sample: that branch is not what is wrong.
    nodes = {StageRef("/add#0", 0, 0): ("Sigmoid", "Add")}
    assert (of("BD102", "/add#0"),) == with_baked([of("BD102", "/add#0")], [here, other], nodes)


def stage(index: int, kind: str, total: float, local: float, *, fails: bool, dtype: str = "float32") -> StageRow:
    result = comparison(total, local, 1e-7, judgement="fail" if fails else "pass", floor=None)
    return replace(row(index, f"s{index}", kind, {"off": replace(result, amplification=total / 1e-7)}), dtype=dtype)


def test_rounding_that_grows_is_no_fault() -> None:
    rows = [stage(0, "Linear", 1e-7, 1e-7, fails=False), stage(1, "sub", 3e-2, 0.0, fails=True)]
    (found,) = grown(rows, "off", lambda row: None)
    assert ("BD503", StageRef("s1", 0, 0)) == (found.code, found.origin)
    assert "s1 is over the tolerance with 3.0e-02 relative L2" in found.evidence[0]
    assert "it grows most in s1: 3e+05 times" in found.evidence[2]


@pytest.mark.parametrize(("coming_in", "is_told"), [(3e-2, True), (1e-2, False)])
def test_stage_that_hands_on_needs_no_error_of_its_own(coming_in: float, is_told: bool) -> None:
    """Dropout in evaluation is not forced; a stage that was not, and changes the error, may hold a fault."""
    behind = stage(2, "Dropout", 3e-2, 0.0, fails=True)
    behind = replace(behind, results={"off": replace(behind.results["off"], local=None, input_error=coming_in)})
    rows = [stage(0, "Linear", 1e-7, 1e-7, fails=False), stage(1, "sub", 3e-2, 0.0, fails=True), behind]
    assert is_told == bool(grown(rows, "off", lambda row: None))


def test_error_of_a_stages_own_is_never_called_growth() -> None:
    rows = [stage(0, "Linear", 1e-2, 1e-2, fails=True), stage(1, "sub", 3e-2, 0.0, fails=True)]
    assert () == grown(rows, "off", lambda row: None)
    assert () == grown([stage(0, "Linear", 1e-7, 0.0, fails=False)], "off", lambda row: None)


def test_step_is_told_with_the_numbers_on_its_edge() -> None:
    rows = [stage(0, "Linear", 1e-7, 1e-7, fails=False), stage(1, "gt", 0.1, 0.0, fails=True, dtype="bool")]
    sides = Crossing(
        np.asarray([False, True]),
        np.asarray([True, True]),
        (np.asarray([0.5, 2], np.float32), np.asarray([0.50000006, 2], np.float32)),
        True,
    )
    (found,) = grown(rows, "off", lambda row: sides)
    assert "BD112" == found.code
    assert "the first at (0,): 0.5 gives False in PyTorch, 0.50000006 gives True in the graph" in found.evidence
    assert "PyTorch's own stage, given the graph's inputs, gives the graph's result" in found.evidence


@pytest.mark.parametrize("result", [np.asarray([1]), np.asarray([[1, 0]])])
def test_tie_names_both_indices_and_their_numbers(result: np.ndarray) -> None:
    given = np.asarray([[1.0000001, 1.0, 0.5]], np.float32)
    other = result.copy()
    other.flat[0] = 0
    (text,) = tied(Crossing(result, other, (given, given), None))
    assert "index 1 in PyTorch, 0 in the graph; PyTorch has 1 and 1.0000001 there" in text
