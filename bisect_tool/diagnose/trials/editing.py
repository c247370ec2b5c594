"""Edits of a node, and numbers compared and put into words for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Call, Edit, Node, Step

Array = NDArray[Any]


def with_changes(
    node: Node, attributes: Mapping[str, Any] | None = None, inputs: Mapping[int, Array] | None = None
) -> Edit:
    """The node with other attributes or constants."""
    given: list[str | Array | None] = [name or None for name in node.inputs]
    for place, array in (inputs or {}).items():
        given[place] = array
    return Edit(node.output, (Step(node.op, tuple(given), {**node.attributes, **(attributes or {})}),))


_LEFT_OUT = {"pads": 0, "output_padding": 0, "strides": 1, "dilations": 1}
"""What lists are full of that a window leaves out."""


def counted_as(node: Node, name: str, like: Any) -> Any:
    """An attribute; an axis as counted from the first, and a list that was left out as it is then. ``None``: unknown."""
    value = node.attributes.get(name)
    if value is None and name in _LEFT_OUT and isinstance(like, list):
        return [_LEFT_OUT[name]] * len(like)
    rank = next((len(node.shapes[each]) for each in node.inputs if each in node.shapes), 0)
    return int(value) % rank if value is not None and name == "axis" and rank else value


def are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return abs(float(one) - float(other)) <= 1e-6 * max(abs(float(one)), abs(float(other)))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) == list(other)
    return bool(one == other)


def are_equal_arrays(one: Array, other: Array) -> bool:
    if one.size != other.size:
        return False
    flat, wanted = one.reshape(-1), other.reshape(-1)
    if one.dtype.kind in "iu":
        # A slice to the very end is written in many ways.
        far = 1 << 30
        return bool((np.clip(flat, -far, far) == np.clip(wanted, -far, far)).all())
    return bool(np.allclose(flat, wanted, rtol=1e-6, atol=0))


def holds_result(value: Array | None, result: Array) -> bool:
    return value is not None and value.shape == result.shape and are_close(value, result)


def are_close(one: Array, other: Array) -> bool:
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return one.dtype.kind == other.dtype.kind and bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-5 * largest_of(other), equal_nan=True))


def largest_of(array: Array) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def size_of(node: Node, name: str) -> int | None:
    shape = node.shapes.get(name)
    return None if shape is None else int(np.prod(shape, dtype=np.int64))


def value_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.reshape(()).item():.7g}" if value.size == 1 else str(value.reshape(-1)[:8].tolist())
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(list(value)) if isinstance(value, (list, tuple)) else str(value)


def numbers_of(call: Call) -> str:
    numbers = ", ".join(f"{name} {number:.6g}" for name, number in list(call.numbers().items())[:3])
    return f" ({numbers})" if numbers else ""


def an(op: str) -> str:
    return f"{'an' if op[:1] in 'AEIOU' else 'a'} {op}"
