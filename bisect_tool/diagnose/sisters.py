"""Trials with an operator's sisters: those that read the same inputs and settings, and one of which another was taken for.

Nothing of PyTorch's call is needed: of all of them only the right one leaves rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bisect_tool.diagnose.calls import Call, Edit, Node, Step
from bisect_tool.diagnose.causes import CONSTANT, OPERATOR
from bisect_tool.diagnose.trial import Trial

FAMILIES: tuple[tuple[str, ...], ...] = (
    (
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceProd", "ReduceSumSquare"),
        *("ReduceLogSumExp", "ReduceLogSum"),
    ),
    ("ArgMax", "ArgMin"),
    (
        *("Relu", "Softplus", "Sigmoid", "Tanh", "Erf", "Elu", "LeakyRelu", "HardSigmoid", "HardSwish", "Softsign"),
        *("Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Neg", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign"),
    ),
    ("Add", "Sub", "Mul", "Div", "Max", "Min"),
    ("Softmax", "LogSoftmax", "Hardmax"),
)
"""Operators of one signature, the usual ones first."""

EXPONENTS = (2.0, 0.5, 3.0, -0.5, 1.0, -1.0, 1.5, 4.0)
"""Exponents that people write: no search finds one where a power of a negative number is none."""

_FUNCTIONS = FAMILIES[2]


def sisters(node: Node, calls: Sequence[Call]) -> Iterator[Trial]:
    """The node's operator exchanged for one of its family; for nodes whose operator none of PyTorch's calls has.

    Args:
        node: of the origin.
        calls: PyTorch's, of the stage; the evidence names them.
    """
    names = ", ".join(dict.fromkeys(call.name for call in calls[:3]))
    inputs = tuple(name or None for name in node.inputs)
    family = next((each for each in FAMILIES if node.op in each), ())
    for other in family:
        if other == node.op:
            continue
        # A function's settings are its own; all reductions have the same.
        attributes = {} if family is _FUNCTIONS else node.attributes
        yield Trial(
            OPERATOR,
            node.name,
            f"{node.op} {node.name} should be {other}" + (f" for PyTorch's {names}" if names else ""),
            f"the graph needs {other} there: export it again, or with another exporter or opset",
            Edit(node.output, (Step(other, inputs, attributes),)),
        )


def exponents(node: Node) -> Iterator[Trial]:
    """A constant power exchanged for one that people write."""
    exponent = node.constants.get(1) if node.op == "Pow" else None
    if exponent is None or exponent.size != 1 or exponent.dtype.kind != "f":
        return
    have = float(exponent.reshape(()))
    for power in EXPONENTS:
        if power != have:
            step = Step("Pow", (node.inputs[0], np.full(exponent.shape, power, exponent.dtype)), node.attributes)
            text = f"Pow {node.name}: the exponent {node.inputs[1]} is {have:.7g}, not {power:.7g}"
            yield Trial(CONSTANT, node.name, text, f"set {node.inputs[1]} to {power:.7g}", Edit(node.output, (step,)))
