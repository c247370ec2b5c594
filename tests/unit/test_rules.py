"""Rules: each sees the sign of its cause, and says nothing of a stage that has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import BEFORE, Call, Edit, Node, Operand, Widened
from bisect_tool.diagnose.rules import (
    RULES,
    Clue,
    Facts,
    answers,
    indices,
    integers,
    masks,
    narrow,
    nonfinite,
    randomness,
    training,
)
from bisect_tool.diagnose.trial import Trial

Array = NDArray[Any]


def node(
    op: str,
    inputs: Mapping[str, Array],
    result: Array,
    *,
    constants: tuple[str, ...] = (),
    output: str = "y",
    **attributes: Any,
) -> Node:
    """A node whose inputs are given by name; those in ``constants`` are initialisers."""
    given = {**inputs, output: result}
    computed = {name: array for name, array in given.items() if name not in constants}
    return Node(
        name=f"the_{op}_{output}",
        op=op,
        attributes=attributes,
        inputs=tuple(inputs),
        constants={place: inputs[name] for place, name in enumerate(inputs) if name in constants},
        outputs=(output,),
        values={name: array for name, array in computed.items() if array.dtype.kind in "fV"},
        shapes={name: array.shape for name, array in given.items()},
        others={name: array for name, array in computed.items() if array.dtype.kind in "iub"},
    )


def facts(
    *stage: Node,
    expected: Array | None = None,
    actual: Array | None = None,
    twice: tuple[Array, Array] | None = None,
    calls: tuple[Call, ...] = (),
) -> Facts:
    last = stage[-1]
    made = last.values.get(last.output, last.others.get(last.output))
    assert made is not None
    same = np.ones(3, np.float32)
    actual = made if actual is None else actual
    expected = np.zeros_like(actual) if expected is None else expected
    return Facts(stage, stage, calls, expected, actual, lambda: twice or (same, same))


def clues(rule: Any, given: Facts) -> list[Clue]:
    return [each for each in rule(given) if isinstance(each, Clue) and each.speaks_for]


def trials(rule: Any, given: Facts) -> list[Trial]:
    return [each for each in rule(given) if isinstance(each, Trial)]


F = np.float32


def test_healthy_stage_gives_no_rule_anything_to_say() -> None:
    x = np.linspace(-1, 1, 12, dtype=F).reshape(3, 4)
    relu = node("Relu", {"x": x}, np.maximum(x, 0), output="r")
    softmax = node("Softmax", {"r": np.maximum(x, 0)}, np.full_like(x, 0.25), axis=-1)
    said = list(answers(facts(relu, softmax, expected=np.full_like(x, 0.25))))
    assert [(each.code, each.speaks_for) for each in said if isinstance(each, Clue)] == [("BD403", False)]
    assert not [each for each in said if isinstance(each, Trial)]
    assert len(RULES) >= 7


@pytest.mark.parametrize(
    "op, inputs, result, text",
    [
        ("Div", {"a": [1.0, 0.0], "b": [2.0, 0.0]}, [0.5, np.nan], "0 / 0 gives NaN"),
        ("Div", {"a": [1.0, 3.0], "b": [2.0, 0.0]}, [0.5, np.inf], "3 / 0 gives inf"),
        ("Log", {"a": [1.0, 0.0]}, [0.0, -np.inf], "Log of 0 gives -inf"),
        ("Sqrt", {"a": [4.0, -2.0]}, [2.0, np.nan], "Sqrt of -2 gives NaN"),
        ("Exp", {"a": [0.0, 200.0]}, [1.0, np.inf], "Exp of 200 (float32 ends at Exp of 88.7) gives inf"),
    ],
)
def test_operands_of_the_first_number_that_is_none(
    op: str, inputs: dict[str, list[float]], result: list[float], text: str
) -> None:
    arrays = {name: np.asarray([values, values], F) for name, values in inputs.items()}
    arrays = {name: np.where(np.arange(2)[:, None] == 0, np.full_like(a, 1), a) for name, a in arrays.items()}
    made = np.asarray([[1.0, 1.0], result], F)
    (clue,) = clues(nonfinite.look, facts(node(op, arrays, made), expected=np.ones((2, 2), F)))
    assert ("BD109", True) == (clue.code, clue.strong)
    assert f"begin in {op} the_{op}_y at (1, 1): {text}" in clue.text[0]
    assert clue.text[0].startswith("1 of 4 numbers")


def test_nan_is_followed_back_to_the_infinity_that_made_it() -> None:
    x = np.asarray([0.0, 200.0], F)
    exp = node("Exp", {"x": x}, np.asarray([1, np.inf], F), output="e")
    less = node("Sub", {"e": np.asarray([1, np.inf], F), "f": np.asarray([1, np.inf], F)}, np.asarray([0, np.nan], F))
    (clue,) = clues(nonfinite.look, facts(exp, less, expected=np.zeros(2, F)))
    assert "begin in Exp" in clue.text[0]
    assert "Sub the_Sub_y makes NaN of it: inf - inf gives NaN" in clue.text[1]


def test_nan_in_a_weight_is_named() -> None:
    weight = np.asarray([[1.0, np.nan], [0.5, 2.0]], F)
    product = node("MatMul", {"x": np.ones((1, 2), F), "w": weight}, np.full((1, 2), np.nan, F), constants=("w",))
    (clue,) = clues(nonfinite.look, facts(product, expected=np.ones((1, 2), F)))
    assert "reads w, which holds 1 NaN, the first at (0, 1)" in clue.text[0]


def test_minus_infinity_of_a_mask_is_meant() -> None:
    mask = np.asarray([[0.0, -np.inf], [0.0, 0.0]], F)
    total = node("Add", {"x": np.ones((2, 2), F), "m": mask}, 1 + mask, constants=("m",), output="s")
    soft = node("Softmax", {"s": 1 + mask}, np.asarray([[1, 0], [0.5, 0.5]], F), axis=-1)
    assert not clues(nonfinite.look, facts(total, soft, expected=np.full((2, 2), 0.5, F)))


def test_overflow_of_half_precision_has_its_own_code() -> None:
    x = np.asarray([2.0, 300.0], np.float16)
    square = node("Mul", {"x": x, "x2": x}, np.asarray([4, np.inf], np.float16), output="s")
    (clue,) = clues(nonfinite.look, facts(square, expected=np.asarray([4, 90000], F)))
    assert "BD110" == clue.code
    assert "300 * 300 gives inf, float16 ends at 65504" in clue.text[0]
    given = facts(square, expected=np.asarray([4, 90000], F))
    (trial,) = trials(narrow.look, given)
    assert ("BD110", Widened("float16")) == (trial.code, trial.edit)


def test_half_precision_that_pytorch_has_too_is_left_alone() -> None:
    x = np.asarray([2.0, 3.0], np.float16)
    square = node("Mul", {"x": x, "x2": x}, x * x)
    own = Call("mul", {}, x * x)
    assert not trials(narrow.look, facts(square, expected=np.ones(2, F), calls=(own,)))
    assert "BD107" == trials(narrow.look, facts(square, expected=np.ones(2, F)))[0].code


def test_an_input_that_the_graph_takes_in_half_precision_is_a_cause() -> None:
    """Its rounding comes before the first node; where nodes compute in half precision, that is tried as a whole."""
    x = np.asarray([2.0, 0.1], F)
    half = x.astype(np.float16)
    cast = node("Cast", {"x": half}, half.astype(F), to=1)
    given = replace(facts(cast, expected=x), rounded={"x": x})
    (trial,) = trials(narrow.look, given)
    assert ("BD107", "the_Cast_y", Widened("float16")) == (trial.code, trial.node, trial.edit)
    assert "the graph's input x is float16: the sample's float32 numbers are rounded" in trial.text
    assert not trials(narrow.look, facts(cast, expected=x))
    square = node("Mul", {"x": half, "x2": half}, half * half)
    (trial,) = trials(narrow.look, replace(facts(square, expected=x), rounded={"x": x}))
    assert "the graph computes Mul the_Mul_y in float16" in trial.text


def test_division_that_cuts_off() -> None:
    a, b = np.asarray([-11, 9]), np.asarray([3])
    div = node("Div", {"a": a, "b": b}, np.asarray([-3, 3]))
    assert (
        "-11 / 3 at (0,) is -3 in ONNX, which cuts off, and -4 rounded down"
        in clues(integers.look, facts(div))[0].text[0]
    )
    (trial,) = trials(integers.look, facts(div))
    assert isinstance(trial.edit, Edit)
    assert ["Mod", "Sub", "Div"] == [step.op for step in trial.edit.steps]
    exact = node("Div", {"a": np.asarray([-9, 9]), "b": b}, np.asarray([-3, 3]))
    assert not list(integers.look(facts(exact)))


def test_product_that_leaves_int32_is_tried_in_int64_before_the_casts() -> None:
    a = np.asarray([3_000_000, 2], np.int32)
    cast = node("Cast", {"wide": a.astype(np.int64)}, a, output="a", to=6)
    made = (a.astype(np.int64) * 1000).astype(np.int32)
    product = node("Mul", {"a": a, "b": np.asarray([1000], np.int32)}, made, constants=("b",))
    (clue,) = clues(integers.look, facts(cast, product))
    assert f"1 of 2 results of Mul the_Mul_y do not fit into int32: 3000000000 at (0,) became {made[0]}" == clue.text[0]
    (trial,) = trials(integers.look, facts(cast, product))
    assert isinstance(trial.edit, Edit)
    assert [("wide",), ("b",)] == [step.inputs for step in trial.edit.steps[:2]]


def test_cast_of_what_does_not_fit() -> None:
    wide = np.asarray([2**40, 5])
    cast = node("Cast", {"x": wide}, wide.astype(np.int32), to=6)
    assert "BD111" == trials(integers.look, facts(cast))[0].code
    fits = node("Cast", {"x": np.asarray([7, 5])}, np.asarray([7, 5], np.int32), to=6)
    assert not list(integers.look(facts(fits)))
    huge = node("Cast", {"x": np.asarray([3e9], F)}, np.asarray([-(2**31)], np.int32), to=6)
    assert "became -2147483648" in clues(integers.look, facts(huge))[0].text[0]


def test_places_that_are_written_twice() -> None:
    where = np.asarray([[0, 2, 0]])
    data, updates = np.zeros((1, 4), F), np.asarray([[1, 2, 3]], F)
    scatter = node("ScatterElements", {"d": data, "i": where, "u": updates}, data, axis=1, reduction="none")
    (clue,) = clues(indices.look, facts(scatter))
    assert "1 of the places" in clue.text[0] and "at (0, 0)" in clue.text[0]
    once = node("ScatterElements", {"d": data, "i": np.asarray([[0, 2, 1]]), "u": updates}, data, axis=1)
    assert not list(indices.look(facts(once)))
    summed = node("ScatterElements", {"d": data, "i": where, "u": updates}, data, axis=1, reduction="add")
    assert not list(indices.look(facts(summed)))
    twice = node("ScatterND", {"d": np.zeros((4, 2), F), "i": np.asarray([[1], [1]]), "u": np.ones((2, 2), F)}, data)
    assert clues(indices.look, facts(twice))


def test_negative_indices_are_tried_from_the_front() -> None:
    data = np.arange(6, dtype=F)
    gather = node("Gather", {"d": data, "i": np.asarray([-1, 2])}, data[[5, 2]], axis=0)
    (trial,) = trials(indices.look, facts(gather))
    assert isinstance(trial.edit, Edit)
    assert 6 == trial.edit.steps[0].inputs[1]
    assert not clues(indices.look, facts(gather)), "by themselves they are no fault"


@pytest.mark.parametrize("fill", [-np.inf, np.finfo(F).min, -1e9])
def test_rows_masked_throughout(fill: float) -> None:
    scores = np.zeros((1, 3, 4), F)
    scores[0, 1] = fill
    soft = node("Softmax", {"s": scores}, np.full_like(scores, 0.25), output="p", axis=-1)
    value = node("MatMul", {"p": np.full_like(scores, 0.25), "v": np.ones((1, 4, 2), F)}, np.ones((1, 3, 2), F))
    expected = np.ones((1, 3, 2), F)
    expected[0, 1] = 0
    given = facts(soft, value, expected=expected)
    (clue,) = clues(masks.look, given)
    assert clue.strong
    assert "1 of 3 rows of Softmax the_Softmax_p are masked throughout, the first at (0, 1)" == clue.text[0]
    assert "there PyTorch gives 0 ..., the graph 1 ..." == clue.text[1]
    assert 3 == len(trials(masks.look, given))
    for trial in trials(masks.look, given):
        assert isinstance(trial.edit, Edit)
        assert trial.edit.keep and BEFORE in [each for each in trial.edit.steps[0].inputs if isinstance(each, str)]


def test_rows_with_one_place_left_are_no_case_of_it() -> None:
    scores = np.full((3, 4), -np.inf, F)
    scores[:, 0] = 0
    assert not list(masks.look(facts(node("Softmax", {"s": scores}, np.eye(4, dtype=F)[:3], axis=-1))))


def test_training_mode() -> None:
    x = np.ones((2, 3), F)
    on = {"x": x, "r": np.asarray(0.5, F), "t": np.asarray(True)}
    assert "BD402" == trials(training.look, facts(node("Dropout", on, x, constants=("r", "t"))))[0].code
    off = {**on, "t": np.asarray(False)}
    assert not list(training.look(facts(node("Dropout", off, x, constants=("r", "t")))))
    numbers = {name: np.ones(3, F) for name in ("s", "b", "m", "v")}
    norm = node("BatchNormalization", {"x": x, **numbers}, x, constants=tuple(numbers), training_mode=1, epsilon=1e-5)
    own = Call(
        "_native_batch_norm_legit_no_training",
        {name: Operand(np.zeros(3, F), True) for name in ("running_mean", "running_var")},
        x,
    )
    found = trials(training.look, facts(norm, calls=(own,)))
    assert 2 == len(found)
    for trial in found:
        assert isinstance(trial.edit, Edit)
        assert 0 == trial.edit.steps[0].attributes["training_mode"]
    assert not list(training.look(facts(node("BatchNormalization", {"x": x, **numbers}, x, training_mode=0))))


def test_chance_is_measured_and_the_noise_left_out() -> None:
    x = np.ones((2, 2), F)
    noise = node("RandomNormalLike", {"x": x}, x * 0.1, output="n")
    total = node("Add", {"x": x, "n": x * 0.1}, x * 1.1)
    given = facts(noise, total, twice=(x, x * 1.1))
    (clue,) = clues(randomness.look, given)
    assert "differs by 1.0e-01; random nodes: RandomNormalLike the_RandomNormalLike_n" in clue.text[0]
    (trial,) = trials(randomness.look, given)
    assert isinstance(trial.edit, Edit)
    assert (("x",), "y") == (trial.edit.steps[0].inputs, trial.edit.output)
