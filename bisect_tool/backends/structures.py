"""Replacing the tensors inside nested containers."""

from __future__ import annotations

import copy
import dataclasses
import enum
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

_LEAVES = (str, bytes, bytearray, numbers.Number, torch.nn.Module, enum.Enum, type)


def map_tensors(obj: Any, fn: Callable[[torch.Tensor], Any]) -> Any:
    """A copy of the structure with ``fn(tensor)`` in the place of each tensor.

    The original is left alone, lists and dictionaries included, so that a model that writes into its inputs can't reach
    it. A tensor in two places is mapped once, and cycles stay cycles. Plain objects without a tensor are shared, not
    copied; so are modules and iterators.

    Args:
        obj: tuples, lists, named tuples, sets, mappings (also a transformers ``ModelOutput``), dataclasses and plain
            objects, nested in any way.
        fn: tensor of any shape → whatever shall stand there.
    """
    memo: dict[int, Any] = {}

    def visit(item: Any) -> Any:
        if item is None or isinstance(item, _LEAVES):
            return item
        if id(item) not in memo:
            memo[id(item)] = rebuilt(item)
        return memo[id(item)]

    def rebuilt(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return fn(item)
        if isinstance(item, tuple):
            make = getattr(type(item), "_make", type(item))
            return make([visit(child) for child in item])
        if type(item) is set:
            return {visit(child) for child in item}
        if isinstance(item, list):
            new: Any = [] if type(item) is list else copy.copy(item)
            memo[id(item)] = new
            new[:] = [visit(child) for child in item]
        elif isinstance(item, dict):
            new = {} if type(item) is dict else copy.copy(item)
            memo[id(item)] = new
            for key, child in list(item.items()):
                new[key] = visit(child)
        elif isinstance(item, Mapping) and not _attributes(item):
            return {key: visit(child) for key, child in item.items()}  # a read-only view
        elif dataclasses.is_dataclass(item) or isinstance(item, Mapping) or _holds_tensor(item, set()):
            memo[id(item)] = new = copy.copy(item)
        else:
            return item
        for name, child in _attributes(item):
            # Frozen dataclasses refuse the plain assignment.
            object.__setattr__(new, name, visit(child))
        return new

    return visit(obj)


def _holds_tensor(item: object, seen: set[int]) -> bool:
    if isinstance(item, torch.Tensor):
        return True
    if item is None or isinstance(item, _LEAVES) or id(item) in seen:
        return False
    seen.add(id(item))
    if isinstance(item, (tuple, list, set)):
        return any(_holds_tensor(child, seen) for child in item)
    children = [*(item.values() if isinstance(item, Mapping) else ()), *(child for _, child in _attributes(item))]
    return any(_holds_tensor(child, seen) for child in children)


def _attributes(item: object) -> list[tuple[str, object]]:
    """What the object itself stores, in its ``__dict__`` and its slots."""
    return list(_stored(item))


def _stored(item: object) -> Iterator[tuple[str, object]]:
    if type(item).__module__ == "builtins":  # functions, for one: a copy of theirs is they themselves
        return
    yield from vars(item).items() if hasattr(item, "__dict__") else ()
    for cls in type(item).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(item, name):
                yield name, getattr(item, name)


def form_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What an export depends on: the structure of inputs, shapes and dtypes of tensors, everything else in full.

    Two samples of one form can be given to one exported graph.
    """

    def text(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key}: {text(item)}" for key, item in value.items()) + "}"
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}({', '.join(map(text, value))})"
        return repr(value)

    return ", ".join([*map(text, args), *(f"{name}={text(value)}" for name, value in sorted(kwargs.items()))])


def bytes_of_weights(module: torch.nn.Module) -> int:
    """Size of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
