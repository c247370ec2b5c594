"""Trials with nodes that the graph has too much, and with those that it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bisect_tool.align.families import family
from bisect_tool.diagnose.calls import BEFORE, Call, Edit, Node, Operand, Step
from bisect_tool.diagnose.causes import EXTRA, MISSING, PRECISION
from bisect_tool.diagnose.onnx_forms import forms
from bisect_tool.diagnose.trial import Trial
from bisect_tool.diagnose.trials.calls import call_steps, resolved_input
from bisect_tool.diagnose.trials.editing import an, largest_of, numbers_of, size_of, value_text

MAX_CHAIN = 4
"""Nodes in a row that are left out together."""

_NARROWING = {"Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "BitCast"}

_BOOL = 9

_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64", 16: "bfloat16"}
"""Element types of ONNX by number, as ``Cast`` has them."""


def left_out_nodes(
    nodes: Sequence[Node], calls: Sequence[Call], stage: Sequence[Node], opset: int
) -> list[tuple[bool, Trial]]:
    """Nodes without which the stage may be right, and whether PyTorch has none of these operations, or not as many.

    Those whose absence may help by chance are not certain.
    """
    counted: dict[str, int] = {}
    for call in calls:
        for kind in {family(call.name), *(family(form.op) for form in forms(call, opset))}:
            counted[kind] = counted.get(kind, 0) + 1
    surplus = {
        node.name
        for node in nodes
        if sum(family(other.op) == family(node.op) for other in stage) > counted.get(family(node.op), 0)
    }
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found: list[tuple[int, int, int, Trial]] = []
    for number, first in enumerate(nodes):
        chain: list[Node] = []
        following = [first]
        while len(following) == 1 and len(chain) < MAX_CHAIN:
            last = following[0]
            chain.append(last)
            for place, source in enumerate(first.inputs):
                passes = all(each.op == "Identity" for each in chain)
                # A constant stands for a value only where the node computes with nothing else.
                given = place in first.constants and len(first.constants) < len(first.inputs)
                if source and not passes and not given and not _is_call(last, calls) and _fits(first, source, last):
                    rank = sum(each.name not in surplus for each in chain)
                    trial = _without(chain, source)
                    trial = by_chance(trial) if may_be_chance(chain, calls, opset) else trial
                    found.append((rank, len(chain), number, trial))
            following = readers.get(last.output, [])
    return [(rank == 0, trial) for rank, *_, trial in sorted(found, key=lambda each: each[:3])]


def _is_call(node: Node, calls: Sequence[Call]) -> bool:
    """Whether what the node makes is what PyTorch made by the same operation: then it is not too much."""
    made = node.values.get(node.output)
    if made is None or made.dtype.kind != "f":
        return False
    own = (call.result for call in calls if family(call.name) == family(node.op))
    # To a few units in the last place: a factor of 1.0005 may be the very thing.
    return any(
        result is not None
        and result.shape == made.shape
        and np.allclose(made, result, rtol=1e-6, atol=1e-7 * largest_of(result), equal_nan=True)
        for result in own
    )


def _fits(first: Node, source: str, last: Node) -> bool:
    """Whether what the first node reads can stand for what the last one makes."""
    one, other = first.shapes.get(source), last.shapes.get(last.output)
    same_kind = (source in first.values) == (last.output in last.values)
    return one is not None and one == other and same_kind


_CHOOSING = {"Where", "And", "Or", "Xor", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
"""Operators on truth values: without them a stage may come out right by chance, or by another of its branches."""


def may_be_chance(chain: Sequence[Node], calls: Sequence[Call], opset: int) -> bool:
    """Whether that a stage is right without some nodes says little of them.

    They choose, which none of PyTorch's calls does, and one of them is nothing that ONNX has one operator for: the exporter
    writes choices for it.
    """
    if not any(node.op in _CHOOSING for node in chain):
        return False
    known = [forms(call, opset) for call in calls]
    return not all(known) and not any(form.op in _CHOOSING for each in known for form in each)


def by_chance(trial: Trial) -> Trial:
    """A change that :func:`may_be_chance`."""
    text = f"not certain: {trial.text}, but the stage may be right without it by chance, and another node be wrong"
    return replace(trial, text=text, certain=False)


def _without(chain: Sequence[Node], source: str) -> Trial:
    ops = " → ".join(node.op for node in chain)
    names = ", ".join(node.name for node in chain)
    # A truth value is no narrower number.
    narrow = [node for node in chain if node.op in _NARROWING and node.attributes.get("to") != _BOOL]
    if narrow and not any(node.op in _CHOOSING for node in chain):
        types = [_TYPES.get(node.attributes["to"], "") for node in narrow if "to" in node.attributes]
        through = f" ({types[0]})" if types and types[0] else ""
        code, text = PRECISION, f"the value passes through a narrower type{through}: {ops} ({names})"
        remedy = "keep the type as it is in PyTorch: leave these nodes out"
    else:
        numbers = [
            f"{value_text(array)}"
            for node in chain
            for array in node.constants.values()
            if array.size == 1 and len(chain) == 1
        ]
        by = f" by {numbers[0]}" if numbers else ""
        code, text = EXTRA, f"PyTorch has no {ops}{by} there ({names})"
        remedy = "leave these nodes out" if len(chain) > 1 else "leave this node out"
    return Trial(code, chain[0].name, text, remedy, Edit(chain[-1].output, (Step("Identity", (source,), {}),)))


def put_in_front(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """PyTorch's operation between the node and a value that it reads, where that is one of the operation's operands."""
    for place, name in enumerate(node.inputs):
        size = size_of(node, name) if name and place not in node.constants else None
        for call in calls if size is not None else ():
            if call.result is None or call.result.size != size or call.result.size <= 1:
                continue
            for form in forms(call, opset):
                if not form.inputs or form.op in ("Transpose", "Concat", node.op):
                    continue
                inputs = tuple(resolved_input(each, node) for each in form.inputs)
                # A tensor that the graph has nowhere would mend what is wrong before it.
                given = zip(form.inputs[: form.operands], inputs, strict=False)
                foreign = any(isinstance(o, Operand) and not o.static and not isinstance(to, str) for o, to in given)
                if foreign or name not in [each for each in inputs if isinstance(each, str)]:
                    continue
                steps = call_steps(form.op, inputs, form.attributes, opset)
                steps = (*steps[:-1], replace(steps[-1], output=_INSERTED))
                read = tuple(_INSERTED if i == place else other or None for i, other in enumerate(node.inputs))
                yield Trial(
                    MISSING,
                    node.name,
                    f"PyTorch's {call.name}{numbers_of(call)} is missing in front of {node.name}, which reads {name} itself",
                    f"the graph needs {an(form.op)} there: export it again, or with another exporter or opset",
                    Edit(node.output, (*steps, Step(node.op, read, node.attributes))),
                    call.key,
                )


_INSERTED = "<inserted>"


def inserted_nodes(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """PyTorch's operation behind the node."""
    size = size_of(node, node.output)
    for call in calls:
        first = call.operand("self", "input")
        if call.result is None or first is None or size not in (None, first.array.size) or call.result.size != size:
            continue
        for form in forms(call, opset):
            if not form.inputs or form.op in ("Transpose", "Concat"):
                continue
            inputs = tuple(BEFORE if each is first else resolved_input(each, node) for each in form.inputs)
            if BEFORE not in [each for each in inputs if isinstance(each, str)]:
                continue
            yield Trial(
                MISSING,
                node.name,
                f"PyTorch's {call.name}{numbers_of(call)} is missing behind {node.name}, or where it comes to the same",
                f"the graph needs {an(form.op)} there: export it again, or with another exporter or opset",
                Edit(node.output, call_steps(form.op, inputs, form.attributes, opset), keep=True),
                call.key,
            )
