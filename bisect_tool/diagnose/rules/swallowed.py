"""NaN that one side hands on and the other loses (``BD109``): a maximum, a comparison, a sign of NaN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bisect_tool.align.families import family
from bisect_tool.diagnose.calls import Call, Node, Operand
from bisect_tool.diagnose.causes import NONFINITE
from bisect_tool.diagnose.rules.facts import Array, Clue, Facts, place_text, result_of, value_of

_ASKING = {"IsNaN", "IsInf", "Shape", "Size", "isnan", "isinf", "isfinite", "nan_to_num"}
"""Operations that are there to look for NaN, or to put something in its place."""

_REMEDY = "leave no NaN there: torch.nan_to_num or torch.where before it, which both sides compute alike"


def look(facts: Facts) -> Iterator[Clue]:
    found = _inside(facts) or _outside(facts)
    if found is not None:
        text, node = found
        yield Clue(NONFINITE, (text,), _REMEDY, node=node)


def _inside(facts: Facts) -> tuple[str, str] | None:
    """A node beside PyTorch's call of the same operation: both read NaN, and give it at other places or not at all."""
    for node in facts.stage:
        made = result_of(node)
        if made is None or made.dtype.kind not in "fV" or not _reads_nan(node):
            continue
        for call in facts.calls:
            result = call.result
            same = family(call.name) == family(node.op) and node.op not in _ASKING | {"Where"}
            if not same or result is None or result.size != made.size or not _given_nan(call):
                continue
            one, other = _nan(result), _nan(made)
            if one.sum() != other.sum() or (one.shape == other.shape and (one != other).any()):
                count = f"PyTorch's {call.name} gives {int(one.sum())} NaN"
                elsewhere = " at other places" if one.sum() == other.sum() else ""
                return f"{node.op} {node.name} reads NaN: {count}, the graph {int(other.sum())}{elsewhere}", node.name
    return None


def _outside(facts: Facts) -> tuple[str, str] | None:
    """The stage's result, and what loses a NaN on the way to it."""
    if facts.actual is None or facts.expected.dtype.kind not in "fV" or facts.actual.dtype.kind not in "fV":
        return None
    expected, actual = _nan(facts.expected), _nan(facts.actual)
    lost, kept = expected & ~actual, actual & ~expected
    if lost.any():
        node = _loses(facts.stage)
        where = place_text(np.argwhere(lost)[0])
        count = f"{int(lost.sum())} of {lost.size} numbers of PyTorch's result are NaN where the graph's are not"
        if node is not None:
            text = f"{count}, the first{where}; {node.op} {node.name} reads NaN and gives none, which PyTorch hands on"
            return text, node.name
    elif kept.any():
        call = _drops(facts.calls)
        where = place_text(np.argwhere(kept)[0])
        count = f"{int(kept.sum())} of {kept.size} numbers of the graph's result are NaN where PyTorch's are not"
        if call is not None:
            return (
                f"{count}, the first{where}; PyTorch's {call.name} reads NaN and gives none, which the graph hands on",
                "",
            )
    return None


def _loses(stage: Sequence[Node]) -> Node | None:
    """The first node that reads NaN and gives none."""
    for node in stage:
        result = result_of(node)
        if node.op not in _ASKING and result is not None and _reads_nan(node):
            chosen = node.op == "Where" and not _chooses_nan(node)
            if not _nan(result).any() and not chosen:
                return node
    return None


def _chooses_nan(node: Node) -> bool:
    """Whether the condition of a ``Where`` takes a NaN that is there; one that it passes over is lost on purpose."""
    condition = value_of(node, 0)
    if condition is None:
        return True
    taken = (value_of(node, 1), condition), (value_of(node, 2), ~condition.astype(bool))
    for array, mask in taken:
        if array is not None:
            bad, used = np.broadcast_arrays(_nan(array), mask.astype(bool))
            if (bad & used).any():
                return True
    return False


def _drops(calls: Sequence[Call]) -> Call | None:
    """The first of PyTorch's calls that reads NaN and gives none."""
    for call in calls:
        result = call.result
        if call.name in _ASKING | {"where"} or result is None or result.dtype.kind != "f":
            continue
        if _given_nan(call) and not _nan(result).any():
            return call
    return None


def _reads_nan(node: Node) -> bool:
    given = (value_of(node, i) for i in range(len(node.inputs)))
    return any(array is not None and bool(_nan(array).any()) for array in given)


def _given_nan(call: Call) -> bool:
    return any(isinstance(each, Operand) and bool(_nan(each.array).any()) for each in call.arguments.values())


def _nan(array: Array) -> Array:
    if array.dtype.kind not in "fV":
        return np.zeros(array.shape, bool)
    return np.isnan(array.astype(np.float64))
