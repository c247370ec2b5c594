"""Replacing tensors in nested containers."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput

from bisect_tool.backends.structures import map_tensors
from bisect_tool.recorder import flatten_tensors

Pair = collections.namedtuple("Pair", "boxes scores")


def tensor(value: float = 0.0) -> torch.Tensor:
    return torch.full((2,), value)


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


class Batch(MutableMapping[str, Any]):
    """A mapping that is no dictionary and keeps its items in one."""

    def __init__(self, **items: Any):
        self.store = items

    def __getitem__(self, key: str) -> Any:
        return self.store[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.store[key] = value

    def __delitem__(self, key: str) -> None:
        del self.store[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.store)

    def __len__(self) -> int:
        return len(self.store)


class Tagged(list[Any]):
    """A list with something beside its items."""

    def __init__(self, items: list[Any], size: torch.Tensor):
        super().__init__(items)
        self.size = size


@pytest.mark.parametrize(
    ("obj", "tensors_in"),
    [
        (tensor(1), lambda t: [t]),
        ((tensor(1), [tensor(2)]), lambda t: [t[0], t[1][0]]),
        ({"a": tensor(1), "b": (tensor(2), None, "x", 3)}, lambda d: [d["a"], d["b"][0]]),
        (collections.OrderedDict(a=tensor(1)), lambda d: [d["a"]]),
        (collections.UserDict(a=tensor(1)), lambda d: [d["a"]]),
        (Batch(a=tensor(1)), lambda d: [d["a"]]),
        (Tagged([tensor(1)], tensor(2)), lambda x: [x[0], x.size]),
        (Pair(tensor(1), tensor(2)), lambda p: [p.boxes, p.scores]),
        (Frozen(tensor(1)), lambda f: [f.heat]),
        (Slotted(tensor(1), [tensor(2)]), lambda s: [s.value, s.late[0]]),
        (BaseModelOutput(tensor(1), (tensor(2),)), lambda o: [o[0], o.last_hidden_state, o.hidden_states[0]]),
        (Instances(boxes=tensor(1), labels=[tensor(2)]), lambda i: [i._fields["boxes"], i._fields["labels"][0]]),
        (WithSlots(tensor(1)), lambda s: [s.left]),
        (torch.max(torch.eye(2), dim=0), lambda m: [m.values, m.indices]),
        (torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]), lambda p: [p.data, p.batch_sizes]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mapping_keeps_types_and_leaves_the_original(obj: Any, tensors_in: Callable[[Any], list[torch.Tensor]]) -> None:
    """``map_tensors`` gives the same structure of the same types with new tensors, and changes nothing in place."""
    before = tensors_in(obj)
    copies = [old.clone() for old in before]
    mapped = map_tensors(obj, lambda t: t + 1)
    assert type(mapped) is type(obj)
    for new, old, copy, still in zip(tensors_in(mapped), before, copies, tensors_in(obj), strict=True):
        assert torch.equal(new, copy + 1)
        assert torch.equal(old, copy)
        assert still is old


def containers(obj: Any) -> list[Any]:
    """The object and every container in it, empty tuples aside: there is only one of those."""
    if isinstance(obj, dict):
        inside = list(obj.values())
    elif isinstance(obj, (tuple, list, set)):
        inside = list(obj)
    elif dataclasses.is_dataclass(obj) or isinstance(obj, (Batch, Instances)):
        inside = list(vars(obj).values())
    else:
        return []
    return [found for child in inside for found in containers(child)] + ([] if obj == () else [obj])


@pytest.mark.parametrize(
    ("obj", "count"),
    [
        ({"a": [], "b": {"c": [1, {2}]}, "d": ((1, 2), [3])}, 8),
        ([(), [()], {}], 3),
        (Pair([1], {"a": []}), 4),
        (Frozen([tensor()], {"id": []}), 4),  # type: ignore[arg-type]
        (Frozen("no", [1]), 2),  # type: ignore[arg-type]
        (BaseModelOutput(tensor(), (tensor(), tensor())), 2),
        (Batch(a=[tensor()], b={"id": [1]}), 5),
        (Instances(a=tensor(), b=[1]), 3),
        ((tensor(), tensor()), 1),
    ],
)
def test_no_container_is_shared_with_the_original(obj: Any, count: int) -> None:
    """Even where every tensor stays the same, each container of the result is a new one, with tensors in it or not."""
    mapped = map_tensors(obj, lambda t: t)
    old, new = containers(obj), containers(mapped)
    assert [type(item) for item in new] == [type(item) for item in old]
    assert len(old) == count
    assert not {id(item) for item in new} & {id(item) for item in old}


def test_mapped_lists_and_dictionaries_are_new() -> None:
    """A model that writes into the mapped structure does not reach the original."""
    original = {"batch": [tensor()], "meta": {"id": 1}, "own": Batch(a=1)}
    mapped = map_tensors(original, torch.clone)
    mapped["batch"].append("new")
    mapped["meta"]["id"] = 2
    mapped["own"]["a"] = 2
    assert len(original["batch"]) == 1
    assert original["meta"] == {"id": 1}
    assert original["own"]["a"] == 1


def test_read_only_mappings_become_dictionaries() -> None:
    """What can't be copied and filled comes back as a plain dictionary with the same keys."""
    assert map_tensors(types.MappingProxyType({"a": 1, "t": tensor(2)}), torch.Tensor.tolist) == {"a": 1, "t": [2, 2]}


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


def test_objects_that_know_each_other_are_mapped_once() -> None:
    """Forty objects that all know each other have more paths than can be walked; each is entered once."""
    nodes = [Instances(t=tensor()) for _ in range(40)]
    for node in nodes:
        node._fields["others"] = [other for other in nodes if other is not node]
    calls = []
    mapped = map_tensors(nodes, lambda t: calls.append(1) or t)
    assert len(calls) == 40
    assert mapped[0]._fields["others"][0] is mapped[1]
    assert mapped[1] is not nodes[1]


def test_objects_without_tensors_are_shared() -> None:
    """A configuration object among the inputs is passed on as it is; functions and modules are always shared."""
    config, module = Instances(size=3), torch.nn.Linear(1, 1)

    def function() -> None: ...

    function.table = tensor()  # type: ignore[attr-defined]
    mapped = map_tensors({"config": config, "module": module, "function": function}, torch.clone)
    assert mapped["config"] is config
    assert mapped["module"] is module
    assert mapped["function"] is function


def test_iterators_are_not_consumed() -> None:
    """A generator among the inputs is left for whoever it is meant for."""
    stream = (tensor() for _ in range(2))
    assert map_tensors({"stream": stream}, torch.clone)["stream"] is stream
    assert len(list(stream)) == 2


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
def test_any_nesting_is_copied_whole(shape: Any) -> None:
    """Keys and numbers of the tensors are the same afterwards, and no container or tensor is."""
    obj = built(shape)
    mapped = map_tensors(obj, torch.clone)
    old, new = flatten_tensors(obj), flatten_tensors(mapped)
    assert [key for key, _ in new] == [key for key, _ in old]
    assert all(torch.equal(a, b) and a is not b for (_, a), (_, b) in zip(new, old, strict=True))
    assert not {id(item) for item in containers(mapped)} & {id(item) for item in containers(obj)}
