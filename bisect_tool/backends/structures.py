"""Tensors inside nested containers: finding them under stable keys, and replacing them."""

from __future__ import annotations

import copy
import dataclasses
import enum
import numbers
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch

from bisect_tool.records import OutputKey

_LEAVES = (str, bytes, bytearray, numbers.Number, torch.Tensor, torch.nn.Module, enum.Enum, type)


def flatten_tensors(
    obj: object, on_number: Callable[[OutputKey, Any], None] | None = None
) -> list[tuple[OutputKey, torch.Tensor]]:
    """Tensors of a nested structure, in order, each with its key.

    Args:
        obj: tuples, lists, named tuples, mappings (also a transformers ``ModelOutput``), dataclasses and plain objects,
            nested in any way. Sets have no order and are left out; modules and iterators are not entered.
        on_number: called with key and value of each Python or numpy number, which is no tensor and yet an output.

    Returns:
        Key and tensor. The key is 0 for a bare tensor, the index in a flat tuple, the name in a flat mapping or
        dataclass; deeper ones are joined with dots, ``0.hm``. Named tuples go by index: exporters number their fields.
        ``None`` keeps its place but is left out. Two places with equal keys are told apart by ``~1``, ``~2`` …
    """
    found: list[tuple[OutputKey, torch.Tensor]] = []
    taken: set[OutputKey] = set()
    open_items: set[int] = set()
    objects: set[int] = set()

    def visit(item: object, path: tuple[Any, ...]) -> None:
        if isinstance(item, torch.Tensor):
            key = _unused(_key(path), taken)
            taken.add(key)
            found.append((key, item))
        elif isinstance(item, numbers.Number):
            if on_number is not None:
                on_number(_key(path), item)
        elif id(item) not in open_items and id(item) not in objects:
            children = _children(item)
            if children is None:
                return
            # Containers may be met twice side by side. Plain objects point at each other, so that their paths may be
            # without number: each is entered once.
            if not isinstance(item, (tuple, list, Mapping)) and not dataclasses.is_dataclass(item):
                objects.add(id(item))
            open_items.add(id(item))
            for name, child in children:
                visit(child, (*path, name))
            open_items.discard(id(item))

    visit(obj, ())
    return found


def map_tensors(obj: Any, fn: Callable[[torch.Tensor], Any]) -> Any:
    """A copy of the structure with ``fn(tensor)`` in the place of each tensor.

    The original is left alone, lists and dictionaries included, so that a model that writes into its inputs can't reach
    it. A tensor in two places is mapped once, and cycles stay cycles. Objects without a tensor are shared, not copied.

    Args:
        obj: as for :func:`flatten_tensors`.
        fn: tensor of any shape → whatever shall stand there.
    """
    memo: dict[int, Any] = {}

    def visit(item: Any) -> Any:
        if id(item) in memo:
            return memo[id(item)]
        if isinstance(item, torch.Tensor):
            memo[id(item)] = fn(item)
            return memo[id(item)]
        if isinstance(item, list):
            new_list: Any = [] if type(item) is list else copy.copy(item)
            memo[id(item)] = new_list
            new_list[:] = [visit(child) for child in item]
            return new_list
        if isinstance(item, tuple):
            return _same_tuple(item, [visit(child) for child in item])
        if isinstance(item, Mapping):
            new_map = _empty_like(item)
            memo[id(item)] = new_map
            for key, child in list(item.items()):
                new_map[key] = visit(child)
            return new_map
        children = _children(item)
        if not children or not flatten_tensors(item):
            return item
        new = copy.copy(item)
        memo[id(item)] = new
        for name, child in children:
            # Frozen dataclasses refuse the plain assignment.
            object.__setattr__(new, name, visit(child))
        return new

    return visit(obj)


def _key(path: tuple[Any, ...]) -> OutputKey:
    if not path:
        return 0
    if len(path) == 1:
        return path[0] if type(path[0]) is int else str(path[0])
    return ".".join(str(part) for part in path)


def _unused(key: OutputKey, taken: set[OutputKey]) -> OutputKey:
    if key not in taken:
        return key
    number = 1
    while f"{key}~{number}" in taken:
        number += 1
    return f"{key}~{number}"


def _children(item: object) -> list[tuple[Any, object]] | None:
    if item is None or isinstance(item, _LEAVES):
        return None
    if isinstance(item, Mapping):
        return list(item.items())
    if isinstance(item, (tuple, list)):
        return list(enumerate(item))
    if dataclasses.is_dataclass(item):
        return [(f.name, getattr(item, f.name)) for f in dataclasses.fields(item) if hasattr(item, f.name)]
    if type(item).__module__ == "builtins":
        return None
    return list(_attributes(item))


def _attributes(item: object) -> Iterator[tuple[str, object]]:
    yield from vars(item).items() if hasattr(item, "__dict__") else ()
    for cls in type(item).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(item, name):
                yield name, getattr(item, name)


def _same_tuple(item: tuple[Any, ...], children: list[Any]) -> tuple[Any, ...]:
    if all(new is old for new, old in zip(children, item, strict=True)):
        return item
    make = getattr(type(item), "_make", None)
    result: tuple[Any, ...] = make(children) if make is not None else type(item)(children)
    return result


def _empty_like(item: Mapping[Any, Any]) -> MutableMapping[Any, Any]:
    """A mapping of the same type to write into; a plain dictionary where the type is read-only."""
    if type(item) is dict or not isinstance(item, MutableMapping):
        return {}
    return copy.copy(item)
