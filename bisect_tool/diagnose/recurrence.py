"""Trials for LSTM, GRU and RNN nodes: their settings as PyTorch's layers have them, and biases that they lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Edit, Node, Step
from bisect_tool.diagnose.causes import ATTRIBUTE, MISSING
from bisect_tool.diagnose.trial import Trial
from bisect_tool.diagnose.weight_forms import GATES, Static, weight_forms

USUAL: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "LSTM": (("Sigmoid", "Tanh", "Tanh"),),
    "GRU": (("Sigmoid", "Tanh"),),
    "RNN": (("Tanh",), ("Relu",)),
}
"""Activations that PyTorch's layers have, for each direction."""

MOST_BIASES = 3


def recurrence(node: Node, statics: Sequence[Static]) -> Iterator[Trial]:
    """What PyTorch's layers never have, set to what they have.

    Args:
        node: of any type.
        statics: PyTorch's tensors of the stage, among which are the layer's biases.
    """
    if node.op not in GATES:
        return
    directions = 2 if node.attributes.get("direction") == "bidirectional" else 1
    have = node.attributes.get("activations")
    for names in USUAL[node.op] if have else ():
        usual = list(names * directions)
        if have != usual:
            yield _set(node, "activations", usual)
    # Left out it is 0.
    if node.op == "GRU" and not node.attributes.get("linear_before_reset"):
        yield _set(node, "linear_before_reset", 1)
    for name in ("clip", "input_forget"):
        if node.attributes.get(name):
            yield _set(node, name, None)
    yield from _biases(node, statics, directions)


def _set(node: Node, name: str, value: Any) -> Trial:
    """``None``: leave it out."""
    told = ", ".join(value) if isinstance(value, list) else str(value)
    right = "PyTorch's layers have none" if value is None else f"PyTorch's have {told}"
    text = f"{node.op} {node.name}: {name} is {node.attributes.get(name, 0)}; {right}"
    remedy = f"leave {name} out" if value is None else f"set {name} to {told}"
    step = Step(node.op, tuple(each or None for each in node.inputs), {**node.attributes, name: value})
    return Trial(ATTRIBUTE, node.name, text, remedy, Edit(node.output, (step,)), thing=f"{node.name} {[name]}")


def _biases(node: Node, statics: Sequence[Static], directions: int) -> Iterator[Trial]:
    states = node.shapes.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if states is None or (len(node.inputs) > 3 and node.inputs[3]):
        return
    none: NDArray[Any] = np.zeros((directions, 2 * GATES[node.op] * states[2]), np.float32)
    for form in weight_forms(none, statics, gates=GATES[node.op])[:MOST_BIASES]:
        inputs: list[str | NDArray[Any] | None] = [each or None for each in node.inputs[:3]]
        inputs += [form.array, *(each or None for each in node.inputs[4:])]
        yield Trial(
            MISSING,
            node.name,
            f"{node.op} {node.name} has no biases, where PyTorch's layer has {form.name}",
            "the node needs them as its fourth input: export it again, or with another exporter or opset",
            Edit(node.output, (Step(node.op, tuple(inputs), node.attributes),)),
        )
