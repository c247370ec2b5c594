"""Nodes that were left in training mode (``BD402``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bisect_tool.diagnose.calls import Call, Edit, Node, Step
from bisect_tool.diagnose.causes import TRAINING
from bisect_tool.diagnose.rules.facts import Array, Clue, Facts, value_of
from bisect_tool.diagnose.trial import Trial

_RESULT = "<as in inference>"


def look(facts: Facts) -> Iterator[Trial | Clue]:
    for node in facts.nodes:
        if node.op == "Dropout" and drops(node):
            text = f"Dropout {node.name} is in training mode: it drops values by chance"
            yield _trial(node, text, (Step("Identity", (node.inputs[0],), {}),))
        elif node.op == "BatchNormalization" and node.attributes.get("training_mode"):
            kept = {**node.attributes, "training_mode": 0}
            steps = (
                Step(node.op, tuple(name or None for name in node.inputs), kept, _RESULT),
                Step("Identity", (_RESULT,), {}),
            )
            text = (
                f"BatchNormalization {node.name} is in training mode: it uses the batch's statistics, not the model's"
            )
            yield _trial(node, text, steps)
            # The export itself ran in training mode, and moved the statistics.
            for statistics in _statistics(facts.calls, node):
                inputs = (*(name or None for name in node.inputs[:3]), *statistics)
                moved = f"{text}; and the statistics that it holds are not the model's either"
                yield _trial(node, moved, (Step(node.op, inputs, kept, _RESULT), steps[1]))


def drops(node: Node) -> bool:
    """Whether a Dropout drops anything at all."""
    mode, ratio = value_of(node, 2), value_of(node, 1)
    return mode is not None and bool(mode.any()) and (ratio is None or bool(ratio.any()))


def _statistics(calls: Sequence[Call], node: Node) -> Iterator[tuple[Array, Array]]:
    """Running mean and variance of PyTorch's calls that fit a node."""
    shape = node.shapes.get(node.inputs[3]) if len(node.inputs) > 4 else None
    for call in calls:
        mean, variance = call.operand("running_mean"), call.operand("running_var")
        if mean is not None and variance is not None and mean.array.shape == shape:
            yield mean.array, variance.array


def _trial(node: Node, text: str, steps: tuple[Step, ...]) -> Trial:
    remedy = "call model.eval() before the export, and leave training= out of it"
    return Trial(TRAINING, node.name, text, remedy, Edit(node.output, steps))
