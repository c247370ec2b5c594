"""Finding and replacing tensors in nested containers."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput

from bisect_tool.backends.structures import flatten_tensors, map_tensors
from bisect_tool.recorder import flatten_tensors as recorder_flatten

Pair = collections.namedtuple("Pair", "boxes scores")


def tensor(value: float = 0.0) -> torch.Tensor:
    return torch.full((2,), value)


def keys(obj: object) -> list[Any]:
    return [key for key, _ in flatten_tensors(obj)]


@dataclasses.dataclass(frozen=True)
class Frozen:
    heat: torch.Tensor
    name: str = "car"


@dataclasses.dataclass
class Slotted:
    __slots__ = ("late", "value")
    value: Any
    late: Any


class Instances:
    """An object such as detectors return: tensors behind private attributes and slots."""

    def __init__(self, **fields: Any):
        self._fields = fields


class WithSlots:
    __slots__ = ("left", "unset")

    def __init__(self, left: Any):
        self.left = left


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (tensor(), [0]),
        ((tensor(), tensor()), [0, 1]),
        ([tensor(), None, tensor()], [0, 2]),
        ({"hm": tensor(), "reg": None, "dim": tensor()}, ["hm", "dim"]),
        ({7: tensor()}, [7]),
        ([{"hm": tensor()}, {"hm": tensor()}], ["0.hm", "1.hm"]),
        ((tensor(), (tensor(), [tensor()])), [0, "1.0", "1.1.0"]),
        (Pair(tensor(), tensor()), [0, 1]),
        (Frozen(tensor()), ["heat"]),
        (BaseModelOutput(tensor(), (tensor(), tensor())), ["last_hidden_state", "hidden_states.0", "hidden_states.1"]),
        (Instances(boxes=tensor()), ["_fields.boxes"]),
        (WithSlots(tensor()), ["left"]),
        (types.MappingProxyType({"a": tensor()}), ["a"]),
        (torch.max(torch.zeros(2, 2), dim=0), [0, 1]),
        ("text", []),
        (None, []),
        ({1.5, "x"}, []),
        (torch.nn.Linear(1, 1), []),
    ],
)
def test_keys_say_where_a_tensor_lies(obj: object, expected: list[Any]) -> None:
    """Each kind of container gives its tensors the documented keys, in order; ``None`` keeps its place."""
    assert keys(obj) == expected


def test_equal_keys_are_told_apart() -> None:
    """``{"a.b": t}`` and ``{"a": {"b": t}}`` in one dictionary do not become one output."""
    assert keys({"a.b": tensor(), "a": {"b": tensor()}}) == ["a.b", "a.b~1"]


def test_tensors_themselves_come_back_and_not_copies() -> None:
    """Whoever asks for a tensor gets that very object: identity is what stages are aligned by."""
    one, two = tensor(1), tensor(2)
    found = flatten_tensors({"x": one, "y": [two]})
    assert found[0][1] is one
    assert found[1][1] is two


def test_numbers_are_reported_but_not_listed() -> None:
    """Python numbers, booleans included, go to the callback under their keys; strings do not."""
    seen: list[tuple[Any, Any]] = []
    found = flatten_tensors({"t": tensor(), "loss": 0.5, "n": [3, True], "s": "x"}, lambda k, v: seen.append((k, v)))
    assert [key for key, _ in found] == ["t"]
    assert seen == [("loss", 0.5), ("n.0", 3), ("n.1", True)]


def test_cycles_end() -> None:
    """Lists, dictionaries and objects that hold themselves are walked once, and their tensors are found."""
    items: list[Any] = [tensor()]
    items.append(items)
    table: dict[str, Any] = {"t": tensor()}
    table["self"] = table
    parent, child = Instances(t=tensor()), Instances()
    child._fields["parent"] = parent
    parent._fields["child"] = child
    assert keys(items) == [0]
    assert keys(table) == ["t"]
    assert keys(parent) == ["_fields.t"]


def test_densely_linked_objects_end_too() -> None:
    """Forty objects that all know each other have more paths than can be walked; each is entered once."""
    nodes = [Instances(t=tensor()) for _ in range(40)]
    for node in nodes:
        node._fields["others"] = [other for other in nodes if other is not node]
    assert len(flatten_tensors(nodes)) == 40


def test_a_container_in_two_places_is_listed_twice() -> None:
    """Only cycles are cut: a list that stands in two places gives its tensor two keys."""
    shared = [tensor()]
    assert keys((shared, shared)) == ["0.0", "1.0"]


def test_iterators_are_not_consumed() -> None:
    """A generator among the outputs is left for whoever it is meant for."""
    stream = (tensor() for _ in range(2))
    assert keys({"stream": stream}) == []
    assert len(list(stream)) == 2


@pytest.mark.parametrize(
    "obj",
    [
        tensor(1),
        (tensor(1), [tensor(2)]),
        {"a": tensor(1), "b": (tensor(2), None, "x", 3)},
        collections.OrderedDict(a=tensor(1)),
        Pair(tensor(1), tensor(2)),
        Frozen(tensor(1)),
        Slotted(tensor(1), [tensor(2)]),
        BaseModelOutput(tensor(1), (tensor(2),)),
        Instances(boxes=tensor(1), labels=[tensor(2)]),
        WithSlots(tensor(1)),
        torch.max(torch.eye(2), dim=0),
        torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
    ],
)
def test_mapping_keeps_types_and_keys_and_leaves_the_original(obj: Any) -> None:
    """``map_tensors`` gives the same structure of the same types with new tensors, and changes nothing in place."""
    before = [(key, t, t.clone()) for key, t in flatten_tensors(obj)]
    mapped = map_tensors(obj, lambda t: t + 1)
    assert type(mapped) is type(obj)
    after = flatten_tensors(mapped)
    assert [key for key, _ in after] == [key for key, *_ in before]
    for (_, new), (_, old, copy), (_, still) in zip(after, before, flatten_tensors(obj), strict=True):
        assert torch.equal(new, copy + 1)
        assert torch.equal(old, copy)
        assert still is old


def test_mapped_lists_and_dictionaries_are_new() -> None:
    """A model that writes into the mapped structure does not reach the original."""
    original = {"batch": [tensor()], "meta": {"id": 1}}
    mapped = map_tensors(original, torch.clone)
    mapped["batch"].append("new")
    mapped["meta"]["id"] = 2
    assert len(original["batch"]) == 1
    assert original["meta"] == {"id": 1}


def test_shared_tensors_stay_shared_and_cycles_stay_cycles() -> None:
    """A tensor in two places is mapped once; a list that holds itself becomes a list that holds itself."""
    calls = []
    one = tensor()
    items: list[Any] = [one, (one,)]
    items.append(items)
    mapped = map_tensors(items, lambda t: calls.append(1) or t.clone())
    assert mapped[0] is mapped[1][0]
    assert mapped[2] is mapped
    assert mapped is not items
    assert len(calls) == 1


def test_objects_without_tensors_are_shared() -> None:
    """A configuration object among the inputs is passed on as it is."""
    config = Instances(size=3)
    assert map_tensors({"config": config}, torch.clone)["config"] is config


nested = st.recursive(
    st.sampled_from(["tensor", "none", "number"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def built(shape: Any) -> Any:
    if isinstance(shape, str):
        return {"tensor": tensor(), "none": None, "number": 1.5}[shape]
    if isinstance(shape, dict):
        return {key: built(value) for key, value in shape.items()}
    return type(shape)(built(value) for value in shape)


@settings(max_examples=60, deadline=None)
@given(nested)
def test_keys_agree_with_the_recorder(shape: Any) -> None:
    """The recorder is self-contained and has a walk of its own: both must name every output alike."""
    obj = built(shape)
    ours, recorded = flatten_tensors(obj), recorder_flatten(obj)
    assert [key for key, _ in ours] == [key for key, _ in recorded]
    assert all(a is b for (_, a), (_, b) in zip(ours, recorded, strict=True))
