"""Where NaN and infinities begin (``BD109``), and what half precision cannot hold (``BD110``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bisect_tool.diagnose.calls import Node
from bisect_tool.diagnose.causes import NONFINITE, OVERFLOW
from bisect_tool.diagnose.rules.facts import Array, Clue, Facts, number, place_text, result_of, value_of

_LARGEST_EXPONENT = 88.7
_ROWS = {"Softmax", "LogSoftmax"}
_HALVES = {"float16": 65504.0, "bfloat16": 3.39e38}


def look(facts: Facts) -> Iterator[Clue]:
    if facts.actual is None or facts.expected.dtype.kind not in "fV" or facts.actual.dtype.kind not in "fV":
        return
    one, other = facts.expected.astype(np.float64), facts.actual.astype(np.float64)
    odd = ~np.isfinite(other) & np.isfinite(one)
    if not odd.any():
        return
    count = f"{int(odd.sum())} of {odd.size} numbers of the graph's result are NaN or infinite where PyTorch's are not"
    found = first_node(facts.stage, wants_nan=bool(np.isnan(other[odd]).any()))
    first = tuple(int(n) for n in np.argwhere(odd)[0])
    if found is None:
        yield Clue(NONFINITE, (f"{count}, the first{place_text(first)}",), "", strong=False)
        return
    node, place, told = found
    made = result_of(node)
    narrow = made is not None and made.dtype.name in _HALVES and not told[0].startswith("reads")
    code = OVERFLOW if narrow else NONFINITE
    remedy = (
        "keep this node in float32, or scale its input"
        if narrow
        else "keep the operand away from there: clamp it, add an epsilon, subtract the maximum first"
    )
    yield Clue(
        code,
        (f"{count}; they begin in {node.op} {node.name}{place_text(place)}: {told[0]}", *told[1:]),
        remedy,
        node=node.name,
    )


def first_node(stage: Sequence[Node], wants_nan: bool) -> tuple[Node, tuple[int, ...], tuple[str, ...]] | None:
    """The first node that makes NaN (or else infinities) from what has none: it, where, and from what.

    An infinity that a node before it made from finite numbers is the beginning of a NaN. One that is read from a constant,
    such as a mask's filling, is meant.
    """
    # Minus infinity is what masks are made of, so that only a NaN shows where it does harm.
    harmful: dict[str, tuple[Node, tuple[int, ...], tuple[str, ...]]] = {}
    for node in stage:
        made = result_of(node)
        if made is None or made.dtype.kind not in "fV":
            continue
        values = made.astype(np.float64)
        bad = np.isnan(values)
        given = [(value_of(node, i), i) for i in range(len(node.inputs))]
        inputs = [(a, i) for a, i in given if a is not None and a.dtype.kind in "fV"]
        had_nan = next((i for a, i in inputs if np.isnan(a.astype(np.float64)).any()), None)
        if bad.any():
            if had_nan is not None and had_nan in node.constants:
                held = node.constants[had_nan].astype(np.float64)
                where = tuple(int(n) for n in np.argwhere(np.isnan(held))[0])
                told = f"reads {node.inputs[had_nan]}, which holds {int(np.isnan(held).sum())} NaN, the first"
                return node, tuple(np.argwhere(bad)[0]), (f"{told}{place_text(where)}",)
            if had_nan is None:
                before = next((harmful[name] for name in node.inputs if name in harmful), None)
                place = tuple(int(n) for n in np.argwhere(bad)[0])
                told_here = f"{_operands(node, inputs, place)} gives NaN"
                if before is not None:
                    source, where, told_before = before
                    return source, where, (*told_before, f"{node.op} {node.name} makes NaN of it: {told_here}")
                return node, place, (told_here,)
        fresh = np.isinf(values)
        if fresh.any() and all(np.isfinite(a.astype(np.float64)).all() for a, _ in inputs) and inputs:
            place = tuple(int(n) for n in np.argwhere(fresh)[0])
            sign = "-inf" if values[place] < 0 else "inf"
            harmful[node.output] = (node, place, (f"{_operands(node, inputs, place)} gives {sign}{_limit(made)}",))
        else:
            source_name = next((name for name in node.inputs if name in harmful), None)
            if source_name is not None and fresh.any():
                harmful[node.output] = harmful[source_name]
    return None if wants_nan or not harmful else next(iter(harmful.values()))


def _limit(made: Array) -> str:
    return f", {made.dtype.name} ends at {_HALVES[made.dtype.name]:g}" if made.dtype.name in _HALVES else ""


def _operands(node: Node, inputs: Sequence[tuple[Array, int]], place: tuple[int, ...]) -> str:
    """The operands of one element, as ``0 / 0``."""
    if node.op in _ROWS:
        given = inputs[0][0].astype(np.float64)
        axis = int(node.attributes.get("axis", -1))
        row = given[tuple(slice(None) if i == axis % given.ndim else n for i, n in enumerate(place))]
        if np.isneginf(row).all():
            return f"{node.op} of a row that is -inf throughout"
        if np.isposinf(row).any():
            return f"{node.op} of a row with an infinity"
    numbers = []
    for array, _ in inputs:
        found = _at(array, place)
        if found is None:
            # A sum over an axis, a product: no single operand is to blame.
            return f"{node.op} of numbers up to {max(_largest(a) for a, _ in inputs):.3g}"
        numbers.append(found)
    signs = {"Div": " / ", "Sub": " - ", "Add": " + ", "Mul": " * ", "Pow": " ** "}
    if node.op in signs and len(numbers) == 2:
        return f"{number(numbers[0])}{signs[node.op]}{number(numbers[1])}"
    if node.op.startswith(("Reduce", "MatMul", "Gemm", "Conv", "LayerNorm", "Softmax", "LogSoftmax")):
        return f"{node.op} of numbers up to {max(_largest(a) for a, _ in inputs):.3g}"
    text = ", ".join(number(each) for each in numbers[:3])
    if node.op == "Exp" and numbers and numbers[0] > _LARGEST_EXPONENT:
        return f"Exp of {text} (float32 ends at Exp of {_LARGEST_EXPONENT})"
    return f"{node.op} of {text}"


def _largest(array: Array) -> float:
    values = np.abs(array.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _at(array: Array, place: tuple[int, ...]) -> float | None:
    """An element by an index of the broadcast result; ``None`` where the array is no operand of that element."""
    if array.ndim > len(place):
        return None
    own = place[len(place) - array.ndim :]
    index = [0 if size == 1 else n for size, n in zip(array.shape, own, strict=True)]
    if any(n >= size for n, size in zip(index, array.shape, strict=True)):
        return None
    return float(array[tuple(index)])
