"""What rules look at, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Call, Node
from bisect_tool.diagnose.trial import Trial

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """An origin's stage, computed on PyTorch's inputs.

    Attributes:
        nodes: those that hold the fault, in topological order.
        stage: all nodes of the stage, in topological order.
        calls: PyTorch's, of the stage.
        expected: PyTorch's result.
        actual: the graph's, in the same shape; ``None`` where it is not known or has another number of elements.
        twice: runs the graph's stage two times in one session; ``None`` where it does not run.
        rounded: inputs of the graph that the stage reads, as the sample has them, where the graph takes a narrower type.
    """

    nodes: Sequence[Node]
    stage: Sequence[Node]
    calls: Sequence[Call]
    expected: Array
    actual: Array | None
    twice: Callable[[], tuple[Array, Array] | None]
    rounded: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Clue:
    """What a rule saw.

    Attributes:
        code: of the cause that it speaks for, or against.
        text: the evidence, in one line or several.
        remedy: what to do; empty where it speaks against.
        speaks_for: ``False``: this cause is ruled out.
        node: that it is about; empty for the whole stage.
        strong: it explains the whole error by itself, so that the cause may be named by it where no trial showed one.
    """

    code: str
    text: tuple[str, ...]
    remedy: str = ""
    speaks_for: bool = True
    node: str = ""
    strong: bool = True


Rule = Callable[[Facts], Iterator["Trial | Clue"]]


def value_of(node: Node, place: int) -> Array | None:
    """An input of a node as it stands on PyTorch's inputs; constants too. ``None``: left out, or not known."""
    if place >= len(node.inputs) or not node.inputs[place]:
        return None
    if place in node.constants:
        return node.constants[place]
    name = node.inputs[place]
    found = node.values.get(name)
    return node.others.get(name) if found is None else found


def result_of(node: Node) -> Array | None:
    """A node's first result."""
    found = node.values.get(node.output)
    return node.others.get(node.output) if found is None else found


def number(value: Any) -> str:
    """A number in a line of evidence."""
    return f"{value:.7g}" if isinstance(value, (float, np.floating)) else str(value)


def place_text(index: Sequence[int]) -> str:
    """``(0, 3)``; of a scalar nothing."""
    return f" at {tuple(int(each) for each in index)}" if len(index) else ""
