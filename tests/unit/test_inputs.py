"""``inputs``: which tensor of the sample feeds which input of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bisect_tool.backends.inputs import bind_inputs, sample_tensors
from bisect_tool.errors import EXIT_USAGE, BisectError
from bisect_tool.records import OnnxGraph

Kind = tuple[str, "tuple[int, ...] | None"]


def graph(**inputs: Kind) -> OnnxGraph:
    """A graph of inputs alone; ``None`` is a dynamic shape."""
    shapes = {name: shape for name, (_, shape) in inputs.items() if shape is not None}
    dtypes = {name: dtype for name, (dtype, _) in inputs.items()}
    return OnnxGraph(tuple(inputs), (), (), frozenset(), shapes, dtypes, "unknown")


def bound_to(feeds: Mapping[str, Any], **wanted: Tensor) -> None:
    assert feeds.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert np.array_equal(feeds[name], tensor.numpy()), name


A, B, C = torch.full((2, 3), 1.0), torch.full((2, 3), 2.0), torch.full((4,), 3.0)

# -- binding ----------------------------------------------------------------------------------------------------------


def test_inputs_are_found_by_name() -> None:
    """In any order, and without a note."""
    found = bind_inputs(graph(b=("float32", (2, 3)), a=("float32", (2, 3))), [("a", A), ("b", B)])
    bound_to(found.feeds, a=A, b=B)
    assert found.notes == ()


@pytest.mark.parametrize("wanted", ["points_xyz", "Points.XYZ", "points-xyz"])
def test_names_are_compared_loosely(wanted: str) -> None:
    """Exporters write dots as underscores."""
    found = bind_inputs(graph(other=("float32", (2, 3)), **{wanted: ("float32", (2, 3))}), [
        ("points.xyz", A), ("other", B)
    ])  # fmt: skip
    bound_to(found.feeds, **{wanted: A, "other": B})
    assert found.notes == ()


def test_one_input_needs_no_name() -> None:
    """There is nothing else it could be: no note either."""
    found = bind_inputs(graph(input_1=("float32", (2, 3))), [("x", A)])
    bound_to(found.feeds, input_1=A)
    assert found.notes == ()


def test_other_names_go_by_order() -> None:
    """With a note each, since order is weak evidence."""
    found = bind_inputs(graph(p=("float32", (2, 3)), q=("float32", (2, 3))), [("a", A), ("b", B)])
    bound_to(found.feeds, p=A, q=B)
    assert len(found.notes) == 2
    assert "p" in found.notes[0] and "a" in found.notes[0] and "order" in found.notes[0]


def test_shape_and_kind_beat_order() -> None:
    """An input takes the first tensor that fits it."""
    index = torch.tensor([1, 2])
    found = bind_inputs(graph(p=("int64", (2,)), q=("float32", (4,))), [("c", C), ("i", index)])
    bound_to(found.feeds, p=index, q=C)


def test_a_name_that_does_not_fit_is_not_taken() -> None:
    """The right name on the wrong shape: the other tensor fits."""
    found = bind_inputs(graph(a=("float32", (4,)), b=("float32", (2, 3))), [("a", A), ("b", C)])
    bound_to(found.feeds, a=C, b=A)
    assert len(found.notes) == 2


def test_dynamic_shapes_fit_anything() -> None:
    """Of the same kind."""
    bound_to(bind_inputs(graph(a=("float32", None)), [("a", A)]).feeds, a=A)


def test_unused_tensors_are_noted() -> None:
    """The exporter dropped an input that the model never read."""
    found = bind_inputs(graph(a=("float32", (2, 3))), [("a", A), ("mask", C)])
    bound_to(found.feeds, a=A)
    assert len(found.notes) == 1 and "mask" in found.notes[0] and "unused" in found.notes[0]


def test_a_single_fitting_tensor_is_taken_where_counts_differ() -> None:
    """Of two tensors only one has the shape."""
    found = bind_inputs(graph(p=("float32", (4,))), [("a", A), ("c", C)])
    bound_to(found.feeds, p=C)


def test_several_fitting_tensors_are_not_guessed_where_counts_differ() -> None:
    """One of two equal shapes was dropped, and no name says which."""
    with pytest.raises(BisectError):
        bind_inputs(graph(p=("float32", (2, 3))), [("a", A), ("b", B)])


def test_equal_inputs_without_names_go_by_order_and_say_so() -> None:
    """Beside one that can only be the one; what else it could be is in the note."""
    index, other = torch.tensor([1, 2]), torch.tensor([3, 4])
    wanted = {"1": ("float32", (4,)), "2": ("int64", (2,)), "3": ("int64", (2,))}
    found = bind_inputs(graph(**wanted), [("cloud", C), ("sources", index), ("targets", other)])  # type: ignore[arg-type]
    bound_to(found.feeds, **{"1": C, "2": index, "3": other})
    assert found.alike == (("2", "3"),)
    ((group, feeds),) = found.exchanges()
    assert group == ("2", "3")
    bound_to(feeds, **{"1": C, "2": other, "3": index})
    assert any("3 was given the sample's targets" in note and "sources would fit too" in note for note in found.notes)


def test_what_several_fit_is_left_to_those_that_fit_nothing_else() -> None:
    """A dynamic input takes what the others leave."""
    found = bind_inputs(graph(any=("float32", None), p=("float32", (2, 3))), [("a", A), ("c", C)])
    bound_to(found.feeds, any=C, p=A)


# -- shapes and layouts -----------------------------------------------------------------------------------------------

IMAGE = torch.arange(24.0).reshape(1, 2, 3, 4)


def dynamic(**inputs: tuple[int | str, ...]) -> OnnxGraph:
    """Inputs of float32 with dynamic axes."""
    dtypes = dict.fromkeys(inputs, "float32")
    return OnnxGraph(tuple(inputs), (), (), frozenset(), {}, dtypes, "unknown", inputs)


def test_dynamic_axes_take_any_size() -> None:
    """But the others are what they are, and one name stands for one size."""
    bound_to(bind_inputs(dynamic(x=("n", 2, "h", "w")), [("x", IMAGE)]).feeds, x=IMAGE)
    bound_to(bind_inputs(dynamic(x=("?", 2, "?", "?")), [("x", IMAGE)]).feeds, x=IMAGE)
    for wrong in (("n", 7, "h", "w"), ("n", 2, "h"), ("n", 2, "s", "s")):
        with pytest.raises(BisectError) as caught:
            bind_inputs(dynamic(x=wrong), [("x", IMAGE)])
        assert f"x float32[{', '.join(map(str, wrong))}]" in caught.value.message


@pytest.mark.parametrize("named", [True, False])
def test_another_layout_is_found_and_said(named: bool) -> None:
    """NCHW for a graph in NHWC."""
    wanted = graph(x=("float32", (1, 3, 4, 2)), other=("float32", (4,)))
    found = bind_inputs(wanted, [("x" if named else "image", IMAGE), ("other", C)])
    bound_to(found.feeds, x=IMAGE.permute(0, 2, 3, 1), other=C)
    assert found.orders == {"x": (0, 2, 3, 1)}
    assert any("channels last" in note and "[1, 3, 4, 2]" in note for note in found.notes)


def test_a_fitting_shape_beats_another_layout() -> None:
    """Nothing is turned that fits as it is."""
    found = bind_inputs(graph(p=("float32", (3, 2)), q=("float32", (2, 3))), [("a", A), ("b", A.t())])
    bound_to(found.feeds, p=A.t(), q=A)
    assert found.orders == {}


# -- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (A.double(), "float32"),
        (A, "float16"),
        (A, "bfloat16"),
        (A.bfloat16(), "float32"),
        (torch.tensor([1, 2]), "int32"),
    ],
)
def test_another_width_is_converted_and_noted(tensor: Tensor, dtype: str) -> None:
    """Both dtypes are named; the values stay."""
    found = bind_inputs(graph(x=(dtype, tuple(tensor.shape))), [("x", tensor)])
    assert found.feeds["x"].dtype.name == dtype
    assert np.array_equal(found.feeds["x"].astype(np.float64), tensor.double().numpy())
    (note,) = found.notes
    assert dtype in note and str(tensor.dtype).removeprefix("torch.") in note


def test_the_same_dtype_is_not_noted() -> None:
    """bfloat16 too, which numpy does not know by itself."""
    for tensor in (A, A.bfloat16(), A.half(), torch.tensor([True])):
        name = str(tensor.dtype).removeprefix("torch.")
        assert bind_inputs(graph(x=(name, tuple(tensor.shape))), [("x", tensor)]).notes == ()


@pytest.mark.parametrize(
    ("tensor", "dtype"), [(torch.tensor([1]), "float32"), (torch.tensor([1.0]), "int64"), (torch.tensor([1]), "bool")]
)
def test_another_kind_of_dtype_is_refused(tensor: Tensor, dtype: str) -> None:
    """Integers are no floats, and neither are booleans."""
    with pytest.raises(BisectError, match="do not fit"):
        bind_inputs(graph(x=(dtype, (1,))), [("x", tensor)])


@pytest.mark.parametrize(
    ("tensor", "dtype", "told"),
    [
        (torch.tensor([1, 2**40]), "int32", "1 values do not fit into it"),
        (torch.tensor([1.0, 1e6]), "float16", "1 values are too large for it"),
    ],
)
def test_what_a_conversion_loses_is_said(tensor: Tensor, dtype: str, told: str) -> None:
    """A token number beyond int32, and what is infinite in float16."""
    (note,) = bind_inputs(graph(x=(dtype, (2,))), [("x", tensor)]).notes
    assert told in note


# -- errors -----------------------------------------------------------------------------------------------------------


def test_what_was_rounded_is_kept_as_it_was() -> None:
    """A cause may lie in it; what every narrower number holds exactly is no loss."""
    exact, other = torch.full((2, 3), 0.5), torch.full((4,), 0.1)
    given = graph(x=("float16", (2, 3)), y=("float16", (4,)))
    found = bind_inputs(given, [("x", exact), ("y", other)])
    assert {"y"} == set(found.rounded)
    assert np.array_equal(other.numpy(), found.rounded["y"])


def test_one_name_for_sizes_that_differ_is_noted() -> None:
    """ONNX Runtime takes it, and the graph may mean something else."""
    dims: dict[str, tuple[int | str, ...]] = {"x": ("N", 3), "y": ("N",)}
    given = replace(graph(x=("float32", None), y=("float32", None)), input_dims=dims)
    (note,) = bind_inputs(given, [("x", A), ("y", C)]).notes
    assert note.endswith("one size N for axes that have several in this sample: 2 in x, 4 in y")
    assert () == bind_inputs(given, [("x", A), ("y", C[:2])]).notes


def test_a_mismatch_lists_both_sides() -> None:
    """Names, dtypes and shapes of what is wanted and of what is there."""
    with pytest.raises(BisectError) as caught:
        bind_inputs(graph(p=("float32", (2, 4)), n=("int64", None)), [("a", A), ("c", C)])
    wants, has = caught.value.message.splitlines()[1:]
    assert wants.strip() == "ONNX wants: p float32[2, 4], n int64[dynamic]"
    assert has.strip() == "sample has: a float32[2, 3], c float32[4]"
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.hint


def test_a_missing_input_is_named() -> None:
    """By itself: the others fit."""
    with pytest.raises(BisectError, match=r"nothing for mask"):
        bind_inputs(graph(a=("float32", (2, 3)), mask=("bool", (4,))), [("a", A)])


def test_a_file_that_takes_raw_bytes_is_told_what_to_do() -> None:
    """Preprocessing was put before the graph: the sample of the model alone does not fit."""
    with pytest.raises(BisectError, match=r"nothing for pixels") as caught:
        bind_inputs(graph(pixels=("uint8", (3, 2))), [("a", A)])
    assert "a file that prepares its input itself wants a model that does the same" in str(caught.value.hint)


def test_equal_tensors_ask_for_names() -> None:
    """Two fit one input, and nothing says which."""
    with pytest.raises(BisectError) as caught:
        bind_inputs(graph(p=("float32", (2, 3))), [("a", A), ("b", B)])
    assert caught.value.hint is not None and "a and b fit p equally" in caught.value.hint


def test_too_few_tensors_are_a_mismatch() -> None:
    """Nothing is fed twice."""
    with pytest.raises(BisectError, match="do not fit"):
        bind_inputs(graph(a=("float32", (2, 3)), b=("float32", (2, 3))), [("a", A)])


def test_no_tensors_are_a_mismatch() -> None:
    """An empty sample."""
    with pytest.raises(BisectError, match="do not fit"):
        bind_inputs(graph(a=("float32", (2, 3))), [])


# -- the sample's names -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    def forward(self, points: Tensor, voxels: Any, *, mask: Any = None, scale: Any = None) -> Any:
        return points


def test_positional_inputs_have_forward_s_names() -> None:
    """Keywords follow in the order of the signature."""
    found = sample_tensors(Net(), (A, B), {"scale": C, "mask": A})
    assert [name for name, _ in found] == ["points", "voxels", "mask", "scale"]
    assert found[2][1] is A and found[3][1] is C


def test_containers_are_numbered_below_their_name() -> None:
    """What is no tensor is left out."""
    found = sample_tensors(Net(), (A, {"xyz": B, "n": 3, "feats": [C]}), {"mask": None})
    assert [name for name, _ in found] == ["points", "voxels.xyz", "voxels.feats.0"]


def test_without_names_inputs_are_numbered() -> None:
    """``forward(*args)`` names nothing."""

    class Star(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return args[0]

    assert [name for name, _ in sample_tensors(Star(), (A, B), {})] == ["input_0", "input_1"]
