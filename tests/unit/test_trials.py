"""What is tried for an origin, and how a number is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Call, Edit, Node, Operand, Step
from bisect_tool.diagnose.causes import (
    ATTRIBUTE,
    CONSTANT,
    EXTRA,
    LAYOUT,
    MISSING,
    OPERANDS,
    OPERATOR,
    PRECISION,
    WEIGHT,
)
from bisect_tool.diagnose.onnx_forms import forms
from bisect_tool.diagnose.trial import Fit, Trial
from bisect_tool.diagnose.trials import propose
from bisect_tool.diagnose.trials.numbers import other_settings
from bisect_tool.diagnose.trying import try_all
from bisect_tool.diagnose.weight_forms import Static, difference, weight_forms

Array = NDArray[Any]
X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)


def node(op: str, *, attributes: Any = None, constants: dict[int, Array] | None = None, inputs: Any = ("x",)) -> Node:
    shapes = dict.fromkeys((*inputs, "y"), X.shape)
    return Node(
        f"the_{op}",
        op,
        attributes or {},
        tuple(inputs),
        constants or {},
        ("y",),
        dict.fromkeys((*inputs, "y"), X),
        shapes,
    )


def call(name: str, result: Array = X, **arguments: Any) -> Call:
    return Call(name, {"self": Operand(X, False, "x"), **arguments}, result)


def trials(nodes: list[Node], calls: list[Call], statics: list[Static] | None = None, opset: int = 20) -> list[Trial]:
    return [each for each in propose(nodes, calls, statics or [], opset) if isinstance(each, Trial)]


def first(nodes: list[Node], calls: list[Call], code: str) -> Trial:
    return next(each for each in trials(nodes, calls) if each.code == code)


def test_attribute_is_set_as_the_call_has_it() -> None:
    found = first([node("LeakyRelu", attributes={"alpha": 0.2})], [call("leaky_relu", negative_slope=0.01)], ATTRIBUTE)
    assert 0.01 == found.edit.steps[0].attributes["alpha"]
    assert "set alpha to 0.01, as PyTorch's leaky_relu has it" == found.remedy
    assert "alpha is 0.2; PyTorch's leaky_relu has alpha 0.01" in found.text


def test_right_attribute_is_left_alone() -> None:
    found = trials([node("LeakyRelu", attributes={"alpha": 0.01})], [call("leaky_relu", negative_slope=0.01)])
    assert not [each for each in found if each.code in (ATTRIBUTE, OPERATOR)]


def test_axis_is_the_same_from_either_end() -> None:
    assert not [
        each
        for each in trials([node("Softmax", attributes={"axis": -1})], [call("_softmax", dim=2)])
        if "PyTorch's" in each.text and each.code == ATTRIBUTE
    ]


def test_another_operator() -> None:
    found = first([node("Elu", attributes={"alpha": 1.0})], [call("relu")], OPERATOR)
    assert (Step("Relu", ("x",), {}),) == found.edit.steps


def test_gelu_of_an_old_opset_is_taken_apart() -> None:
    found = [
        each for each in trials([node("Relu")], [call("gelu", approximate="none")], opset=17) if each.code == OPERATOR
    ]
    assert ["Mul", "Erf", "Add", "Mul", "Mul"] == [step.op for step in found[0].edit.steps]


def test_missing_sum_reads_both_operands() -> None:
    other = Operand(2 * X, False, "z")
    found = first([node("Identity")], [call("add", 3 * X, other=other, alpha=1)], MISSING)
    assert ("x", "z") == found.edit.steps[0].inputs


def test_cast_pair_is_left_out_as_one() -> None:
    first_cast = Node("a", "Cast", {"to": 10}, ("x",), {}, ("h",), {"x": X}, {"x": X.shape, "h": X.shape})
    second = Node("b", "Cast", {"to": 1}, ("h",), {}, ("y",), {"y": X}, {"h": X.shape, "y": X.shape})
    found = [each for each in trials([first_cast, second], [call("relu")]) if each.code == PRECISION]
    assert Edit("y", (Step("Identity", ("x",), {}),)) == found[0].edit
    assert "Cast → Cast (a, b)" in found[0].text


def test_surplus_goes_before_constants() -> None:
    """Of two sums where PyTorch has one, the one too many is told before its number is."""
    one = Node("one", "Add", {}, ("x", "e"), {1: np.float32([1e-6])}, ("h",), {"x": X}, {"x": X.shape, "h": X.shape})
    two = Node("two", "Add", {}, ("h", "o"), {1: np.float32([0.5])}, ("y",), {"h": X}, {"h": X.shape, "y": X.shape})
    one = Node(**{**{f: getattr(one, f) for f in Node.__slots__}, "values": {"x": X, "h": X}})
    two = Node(**{**{f: getattr(two, f) for f in Node.__slots__}, "values": {"h": X, "y": X}})
    codes = [each.code for each in trials([one, two], [call("add", X + np.float32(0.5), other=0.5, alpha=1)])]
    assert codes.index(EXTRA) < codes.index(CONSTANT)


def test_operands_are_exchanged() -> None:
    found = first([node("Sub", inputs=("x", "z"))], [], OPERANDS)
    assert ("z", "x") == found.edit.steps[0].inputs


def test_a_node_too_much_is_told_before_an_order_of_operands() -> None:
    """A Not before a Where does what an exchange of its values would."""
    truth = X > 0
    shapes = dict.fromkeys(("c", "n", "x", "z", "y"), X.shape)
    flip = Node("flip", "Not", {}, ("c",), {}, ("n",), {}, shapes, {"c": truth, "n": ~truth})
    choose = Node("choose", "Where", {}, ("n", "x", "z"), {}, ("y",), {"x": X, "z": X, "y": X}, shapes, {"n": ~truth})
    where = Call("where", {"condition": Operand(truth, False), "self": Operand(X, False, "x")}, X)
    codes = [each.code for each in trials([flip, choose], [where])]
    assert codes.index(EXTRA) < codes.index(OPERANDS)


def comparison(op: str, threshold: float = 0.5) -> Node:
    shapes = dict.fromkeys(("x", "t", "y"), X.shape)
    return Node("it", op, {}, ("x", "t"), {1: np.float32(threshold)}, ("y",), {"x": X}, shapes, {"y": X > threshold})


def test_another_comparison_is_told_before_an_order_of_operands() -> None:
    found = trials([comparison("Less")], [call("gt", X > 0.5, other=0.5)])
    assert (OPERATOR, "Greater") == (found[0].code, found[0].edit.steps[0].op)
    found = trials([comparison("Greater")], [call("gt", X > 0.5, other=0.5)])
    assert OPERATOR not in [each.code for each in found]


def test_threshold_of_a_comparison() -> None:
    found = first([comparison("GreaterOrEqual", 0.7)], [call("ge", X >= 0.5, other=0.5)], CONSTANT)
    assert 0.5 == found.edit.steps[0].inputs[1]


def test_index_that_is_a_tensor_of_its_own() -> None:
    index = np.asarray([0, 2], np.int64)
    gather = node("Gather", attributes={"axis": 1}, inputs=("x", "i"), constants={1: np.asarray([0, 1], np.int64)})
    asked = call("index_select", X[:, :2], dim=1, index=Operand(index, True))
    assert np.array_equal(index, np.asarray(first([gather], [asked], CONSTANT).edit.steps[0].inputs[1]))


def test_sizes_of_a_split() -> None:
    split = node("Split", attributes={"axis": 1}, inputs=("x", "s"), constants={1: np.asarray([2, 1], np.int64)})
    asked = call("split_with_sizes", X[:, :1], split_sizes=[1, 2], dim=1)
    assert [1, 2] == list(np.asarray(first([split], [asked], CONSTANT).edit.steps[0].inputs[1]))


def test_whole_number_keeps_its_type() -> None:
    mod = node("Mod", inputs=("x", "m"), constants={1: np.asarray(3, np.int64)})
    asked = Call("remainder", {"self": Operand(X.astype(np.int64), False, "x"), "other": 4}, X.astype(np.int64))
    (made,) = [each.edit.steps[0].inputs[1] for each in trials([mod], [asked]) if each.code == CONSTANT]
    assert (4, np.int64) == (np.asarray(made).item(), np.asarray(made).dtype)


def test_whole_operator_in_the_place_of_its_last_part_is_in_doubt() -> None:
    """It would mend a wrong number anywhere in the chain, and so comes after the numbers."""
    shapes = dict.fromkeys(("x", "h", "e", "y"), X.shape)
    values = dict.fromkeys(("x", "h", "e", "y"), X)
    erf = Node("erf", "Erf", {}, ("x",), {}, ("h",), values, shapes)
    half = Node("half", "Mul", {}, ("h", "c"), {1: np.float32(0.55)}, ("y",), values, shapes)
    found = list(propose([erf, half], [call("gelu", approximate="none")], [], 20))
    numbers = [place for place, each in enumerate(found) if isinstance(each, Fit)]
    whole = [(n, each) for n, each in enumerate(found) if isinstance(each, Trial) and each.code == OPERATOR]
    assert whole and numbers
    assert all(place > max(numbers) and each.text.startswith("not certain: ") for place, each in whole)


def test_pads_of_a_window() -> None:
    window = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [0, 1, 2, 1], "ceil_mode": 0, "dilations": [1, 1]}
    image = np.zeros((1, 2, 5, 5), np.float32)
    pool = Node(
        "pool", "MaxPool", window, ("x",), {}, ("y",), {"x": image, "y": image}, {"x": image.shape, "y": image.shape}
    )
    given = {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "ceil_mode": False}
    asked = Call("max_pool2d_with_indices", {"self": Operand(image, False, "x"), **given}, image)
    assert [1, 1, 1, 1] == first([pool], [asked], ATTRIBUTE).edit.steps[0].attributes["pads"]


@pytest.mark.parametrize("opset, named", [(17, "axes"), (20, None)])
def test_reduction_has_its_axes_where_the_opset_wants_them(opset: int, named: str | None) -> None:
    (form, *_) = forms(call("mean", dim=[-1], keepdim=True), opset)
    assert (named in form.attributes) if named else (np.array_equal(form.inputs[1], [2]))  # type: ignore[arg-type]


def test_unknown_call_has_no_form() -> None:
    assert () == forms(call("my_own_operator"), 20)
    assert () == forms(Call("mean", {}, None), 20), "an overload without what is needed"


# -- weights ----------------------------------------------------------------------------------------------------------

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def test_right_kernel_needs_no_trial() -> None:
    kernel = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    assert () == weight_forms(kernel, [Static("conv.weight", kernel)])


def test_square_weight_that_is_turned() -> None:
    (found,) = weight_forms(W.T.copy(), [Static("fc.weight", W)])
    assert (LAYOUT, "holds the numbers of the model's fc.weight in another order") == (found.code, found.text)
    assert np.array_equal(W, found.array)


def test_weight_of_another_checkpoint_names_the_nearest_tensor() -> None:
    near = W + np.float32(1e-3)
    found = weight_forms(near, [Static("other.weight", W[::-1].copy()), Static("fc.weight", W)])
    assert WEIGHT == found[0].code
    assert "fc.weight" in found[0].text


def test_gates_are_put_into_onnx_order() -> None:
    tensor = np.arange(12 * 5, dtype=np.float32).reshape(12, 5)
    i, f, g, o = np.split(tensor, 4)
    right = np.concatenate([i, o, f, g])[None]
    assert () == weight_forms(right, [Static("weight_ih_l0", tensor)], gates=4)
    (found, *_) = weight_forms(tensor[None], [Static("weight_ih_l0", tensor)], gates=4)
    assert LAYOUT == found.code
    assert np.array_equal(right, found.array)


def lstm_weight(tensor: Array) -> Array:
    i, f, g, o = np.split(tensor, 4)
    return np.concatenate([i, o, f, g])


def test_directions_in_each_others_place() -> None:
    there, back = (np.random.default_rng(n).standard_normal((12, 5)).astype(np.float32) for n in (1, 2))
    statics = [Static("weight_ih_l0", there), Static("weight_ih_l0_reverse", back)]
    right = np.stack([lstm_weight(there), lstm_weight(back)])
    assert () == weight_forms(right, statics, gates=4)
    (found,) = weight_forms(right[::-1].copy(), statics, gates=4)
    assert np.array_equal(right, found.array)


def test_weights_of_one_node_in_each_others_place() -> None:
    scale, shift = np.float32([1, 2, 3, 4]), np.float32([5, 6, 7, 8])
    norm = node("LayerNormalization", inputs=("x", "w", "b"), constants={1: shift, 2: scale})
    found = [
        each
        for each in trials([norm], [], [Static("n.weight", scale), Static("n.bias", shift)])
        if "other's" in each.text
    ]
    assert [("x", "b", "w")] == [each.edit.steps[0].inputs for each in found]


@pytest.mark.parametrize("stale", [True, False], ids=["another checkpoint", "layers exchanged"])
def test_weights_of_several_nodes_at_once(stale: bool) -> None:
    tensors = [np.random.default_rng(n).standard_normal((12, 3)).astype(np.float32) for n in (1, 2)]
    right = [lstm_weight(each)[None] for each in tensors]
    have = [each + np.float32(0.01) for each in right] if stale else right[::-1]
    layers = [
        Node(f"l{i}", "LSTM", {}, (f"h{i}", f"w{i}"), {1: have[i]}, (f"h{i + 1}",), {}, {f"h{i}": X.shape})
        for i in range(2)
    ]
    statics = [Static(f"weight_ih_l{i}", each) for i, each in enumerate(tensors)]
    together = [each for each in trials(layers, [], statics) if isinstance(each.edit, Edit) and each.edit.more]
    made = [[each.edit.steps[0].inputs[1], each.edit.more[0].steps[0].inputs[1]] for each in together]
    assert any(all(np.array_equal(a, b) for a, b in zip(each, right, strict=True)) for each in made)
    assert all(each.code == WEIGHT for each in together)


def test_the_weight_of_another_module_is_named() -> None:
    product = node("Add", inputs=("x", "v.bias"), constants={1: W[0]})
    given = propose([product], [], [Static("k.bias", W[1])], 20, (), frozenset(["v.bias", "k.bias"]))
    assert "the_Add reads v.bias where PyTorch reads k.bias" == next(e.text for e in given if isinstance(e, Trial))


def test_zeros_have_no_relative_difference() -> None:
    assert "at most 2, where all should be 0" == difference(np.full(4, 2.0), np.zeros(4))


@pytest.mark.parametrize(
    "have, text",
    [
        (W.astype(np.float16).astype(np.float32), "rounded to float16"),
        (W * np.float32(1.5), "all of it times 1.5"),
        (np.where(np.arange(4)[:, None] == 2, 0, W).astype(np.float32), "all of it at index 2 of axis 0"),
        (np.where(W == W.max(), np.nan, W).astype(np.float32), "1 of 16 numbers are NaN or infinite"),
    ],
)
def test_difference_in_words(have: Array, text: str) -> None:
    assert text in difference(have, W)


# -- trying -----------------------------------------------------------------------------------------------------------


def scaled(value: float, hint: str | None) -> Trial:
    edit = Edit("y", (Step("Mul", ("x", np.float32(value)), {}),))
    return Trial(CONSTANT, "scale", f"{value:.6g} {hint}", "", edit)


def run_scale(wrong: float) -> Any:
    def run(edit: Edit | None) -> Array:
        number = wrong if edit is None else float(np.asarray(edit.steps[0].inputs[1]))
        return (X.astype(np.float64) * number).astype(np.float32)

    return run


def close_to(expected: Array) -> Any:
    return lambda made: bool(np.linalg.norm(made - expected) <= 3e-7 * np.linalg.norm(expected))


@given(right=st.floats(0.01, 50), factor=st.floats(1.0001, 20))
def test_constant_is_found_by_its_effect(right: float, factor: float) -> None:
    expected = (X.astype(np.float64) * right).astype(np.float32)
    wrong = right * factor
    outcome = try_all([Fit(wrong, scaled, ())], run_scale(wrong), expected, close_to(expected))
    assert outcome.cause is not None
    assert float(np.asarray(outcome.cause.trial.edit.steps[0].inputs[1])) == pytest.approx(right, rel=1e-6)


def test_number_of_the_call_is_preferred() -> None:
    expected = X * np.float32(0.125)
    hints = (("mul has other 0.125", 0.125),)
    outcome = try_all([Fit(0.13, scaled, hints)], run_scale(0.13), expected, close_to(expected))
    assert outcome.cause is not None
    assert "0.125 mul has other 0.125" == outcome.cause.trial.text


def test_number_of_the_call_is_tried_where_a_search_would_not_find_it() -> None:
    """A step: its derivative says nothing."""
    expected = np.round(X * np.float32(3))

    def run(edit: Edit | None) -> Array:
        number = 30.0 if edit is None else float(np.asarray(edit.steps[0].inputs[1]))
        return np.round(X * np.float32(number))

    outcome = try_all([Fit(30.0, scaled, (("mul has other 3", 3.0),))], run, expected, close_to(expected))
    assert outcome.cause is not None
    assert [outcome.cause] == list(outcome.tried)


def test_nothing_mends_and_the_nearest_is_told() -> None:
    expected = X * np.float32(2)
    outcome = try_all([scaled(1.9, None), scaled(5.0, None)], run_scale(1.0), expected, close_to(expected))
    assert outcome.cause is None and outcome.complete
    assert outcome.partly is not None and "1.9 None" == outcome.partly.trial.text
    assert [pytest.approx(0.05, rel=1e-3), pytest.approx(1.5)] == [each.error for each in outcome.tried]


def test_a_graph_that_does_not_run_is_no_answer() -> None:
    outcome = try_all([scaled(2.0, None)], lambda edit: X if edit is None else None, X * 2, close_to(X * 2))
    assert [None] == [each.error for each in outcome.tried]
    assert outcome.cause is None and outcome.partly is None


def test_time_ends_the_trials() -> None:
    endless = (scaled(5.0 + i, None) for i in range(10**6))
    outcome = try_all(endless, run_scale(1.0), X * 2, close_to(X * 2), seconds=0.05)
    assert not outcome.complete
    assert len(outcome.tried) <= 160


def test_of_two_numbers_that_mend_the_shorter_is_meant() -> None:
    """n / (n - 1): with 13.65 for 13, 14.7 for 14 would do as well."""

    def trial(place: int) -> Any:
        return lambda value, hint: Trial(CONSTANT, f"n{place}", f"{value:.7g}", "", edit(place, value))

    def edit(place: int, value: float) -> Edit:
        return Edit(str(place), (Step("Mul", ("x", np.float32(value)), {}),))

    def run(edit: Edit | None) -> Array:
        numbers = [14.0, 13.65]
        if edit is not None:
            numbers[int(edit.output)] = float(np.asarray(edit.steps[0].inputs[1]))
        return (X.astype(np.float64) * numbers[0] / numbers[1]).astype(np.float32)

    expected = (X.astype(np.float64) * 14 / 13).astype(np.float32)
    outcome = try_all([Fit(14.0, trial(0), ()), Fit(13.65, trial(1), ())], run, expected, close_to(expected))
    assert outcome.cause is not None
    assert ("n1", "13") == (outcome.cause.trial.node, outcome.cause.trial.text)


def test_bias_that_is_not_added() -> None:
    bias = np.arange(4, dtype=np.float32)
    product = Call("addmm", {"self": Operand(bias, True), "mat1": Operand(X, False, "x")}, X)
    found = [each for each in trials([node("Identity")], [product]) if each.code == MISSING]
    assert "the bias that PyTorch's addmm adds is missing" in found[0].text
    assert np.array_equal(bias, np.asarray(found[0].edit.steps[0].inputs[1]).reshape(-1))


def test_sigmoid_of_a_product_that_is_silu() -> None:
    found = [each for each in trials([node("Tanh")], [call("silu")]) if each.code == OPERATOR]
    # Its sisters come after what the call says.
    found = [each for each in found if " should be " not in each.text]
    assert {"Swish", "Sigmoid"} >= {step.op for each in found for step in each.edit.steps} - {"Mul"}
    assert ["Sigmoid"] in [[step.op for step in each.edit.steps] for each in found]


def test_operation_that_is_missing_in_front() -> None:
    """A residual sum that the graph left out shows in what reads it."""
    whole = Call("add", {"self": Operand(X, False, "x"), "other": Operand(2 * X, False, "z"), "alpha": 1}, 3 * X)
    found = [each for each in trials([node("LayerNormalization")], [whole]) if "in front" in each.text]
    assert [["Add", "LayerNormalization"]] == [[step.op for step in each.edit.steps] for each in found]
    add, norm = found[0].edit.steps
    assert ("x", "z") == add.inputs and (add.output,) == norm.inputs


def test_no_tensor_of_pytorch_stands_in_front() -> None:
    """What the graph has nowhere would mend any fault before it."""
    whole = Call("add", {"self": Operand(X, False, "x"), "other": Operand(2 * X, False), "alpha": 1}, 3 * X)
    assert not [each for each in trials([node("LayerNormalization")], [whole]) if "in front" in each.text]


def test_nan_that_both_sides_have_leaves_a_number_for_the_error() -> None:
    expected = np.asarray([1.0, np.nan, 2.0], np.float32)
    wrong = np.asarray([1.0, 0.0, 2.0], np.float32)
    trial = Trial(EXTRA, "n", "it", "leave it out", Edit("y", (Step("Identity", ("x",), {}),)))

    def run(edit: Any) -> Array:
        return wrong if edit is None else expected

    outcome = try_all([trial], run, expected, lambda made: bool(np.array_equal(made, expected, equal_nan=True)))
    assert np.inf == outcome.before
    assert outcome.cause is not None and 0.0 == outcome.cause.error


def test_sisters_of_an_operator_that_no_call_has() -> None:
    """Only where PyTorch's calls have not the operator itself, and after all that they say."""
    found = list(trials([node("ReduceL1", attributes={"axes": [1], "keepdims": 0})], [call("std", dim=[1])]))
    ops = [each.edit.steps[0].op for each in found if " should be " in each.text]
    assert "ReduceL2" in ops and "ReduceL1" not in ops
    assert not [each for each in trials([node("Relu")], [call("relu")]) if " should be " in each.text]


def test_exponents_that_people_write() -> None:
    power = Node(
        "p", "Pow", {}, ("x", "c"), {1: np.float32(2.5)}, ("y",), {"x": X, "y": X}, {"x": X.shape, "y": X.shape}
    )
    found = [each for each in propose([power], [], [], 20) if isinstance(each, Trial) and "exponent" in each.text]
    assert [2.0, 0.5] == [float(each.edit.steps[0].inputs[1]) for each in found[:2]]  # type: ignore[union-attr, arg-type]


def settings_of(op: str, shapes: dict[str, tuple[int, ...]], name: str, value: Any) -> list[Any]:
    """The other values of an attribute that are tried."""
    given = Node("n", op, {name: value}, tuple(shapes), {}, ("y",), {}, shapes)
    found = [each.edit for each in other_settings(given)]
    return [edit.steps[0].attributes[name] for edit in found if isinstance(edit, Edit)]


def test_axes_of_a_pixel_shuffle_are_exchanged() -> None:
    """Six of them: all orders of the same shape, the nearest first."""
    tried = settings_of("Transpose", {"x": (1, 3, 8, 2, 10, 2)}, "perm", [0, 1, 5, 3, 2, 4])
    assert tried == [[0, 1, 3, 5, 2, 4]]


def test_of_many_axes_two_are_exchanged() -> None:
    tried = settings_of("Transpose", {"x": (2,) * 8}, "perm", [1, 0, 2, 3, 4, 5, 6, 7])
    assert [0, 1, 2, 3, 4, 5, 6, 7] in tried
    assert len(tried) <= 24


def test_axes_of_a_sum_of_products_are_exchanged() -> None:
    """Those of one length: another equation of the same shapes."""
    tried = settings_of("Einsum", {"a": (2, 4, 6, 6), "v": (2, 8, 4, 6)}, "equation", "bhmn, bdhm -> bdhn")
    assert tried == ["bhnm,bdhm->bdhn"]
    assert not settings_of("Einsum", {"a": (2, 3), "b": (3, 4)}, "equation", "...i,ij->...j")


@pytest.mark.parametrize("inputs", [("x", "w"), ("x", "w", "")])
def test_the_bias_that_a_normalisation_lost_is_put_back(inputs: tuple[str, ...]) -> None:
    bias = np.array([1, 2, 3, 4], np.float32)
    norm = call("native_layer_norm", weight=Operand(bias, True), bias=Operand(bias, True), eps=1e-5)
    found = first([node("LayerNormalization", inputs=inputs, attributes={"epsilon": 1e-5})], [norm], MISSING)
    assert "the bias that PyTorch's native_layer_norm adds is missing: behind the_LayerNormalization" == found.text
    step = found.edit.steps[0]
    assert "Add" == step.op and [1, 2, 3, 4] == np.ravel(step.inputs[1]).tolist()


def test_a_normalisation_with_its_bias_gets_no_other() -> None:
    norm = call("native_layer_norm", bias=Operand(np.ones(4, np.float32), True), eps=1e-5)
    found = trials([node("LayerNormalization", inputs=("x", "w", "b"), attributes={"epsilon": 1e-5})], [norm])
    assert not [each for each in found if each.code == MISSING and "bias" in each.text]
