"""Both sides of an origin as trials see them: PyTorch's calls with all their arguments, and the graph's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor among the arguments of a call.

    Attributes:
        array: its data.
        static: it does not depend on the model's inputs: a parameter, a buffer, a constant, or made of those.
        name: of the ONNX value that holds it in the graph; ``None`` if there is none or it is not known.
    """

    array: Array
    static: bool
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """An aten operation as PyTorch ran it.

    Attributes:
        name: without namespace and overload, ``max_pool2d_with_indices``.
        arguments: by the names of the operator's schema, defaults filled in; tensors are :class:`Operand`.
        result: its first floating result.
        source: ``file:line``; ``None`` if unknown.
        key: tells it from the run's other calls; ``None`` where that is not known.
    """

    name: str
    arguments: Mapping[str, Any]
    result: Array | None
    source: str | None = None
    key: int | None = None

    def operand(self, *names: str) -> Operand | None:
        """The first of some arguments that is a tensor."""
        found = (self.arguments.get(name) for name in names)
        return next((each for each in found if isinstance(each, Operand)), None)

    def numbers(self) -> dict[str, float]:
        """Arguments that are plain numbers."""
        return {
            name: float(value)
            for name, value in self.arguments.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the graph.

    Attributes:
        name: as in the file, or as invented for it.
        op: its type; of another domain than ONNX's with ``domain::`` before it.
        attributes: as Python values: numbers, strings, lists; tensors as arrays, subgraphs are left out.
        inputs: names; empty where an optional one is left out.
        constants: those inputs that are initialisers or constants, by place.
        outputs: names.
        values: computed inputs and outputs as they stand on PyTorch's inputs of the stage, by name; only floating ones.
        shapes: of the same and of all others that are known.
        others: values that are not floating: whole numbers, truth values.
    """

    name: str
    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    constants: Mapping[int, Array]
    outputs: tuple[str, ...]
    values: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    others: Mapping[str, Array] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return next(name for name in self.outputs if name)


@dataclass(frozen=True, slots=True)
class Step:
    """A node that a trial puts into the graph.

    ``inputs``: names, arrays that become constants, or ``None`` for an optional one that is left out. An attribute that is
    ``None`` is left out. ``output`` is the
    name of its result; ``None``: the outputs of the node that it stands for, in ``order`` if that is given: the number among
    them of each of its results.
    """

    op: str
    inputs: tuple[str | Array | None, ...]
    attributes: Mapping[str, Any]
    output: str | None = None
    order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """A node replaced by one or several others.

    Attributes:
        output: first output of the node that goes.
        steps: what comes in its place, in order; the last one has its outputs.
        keep: the node stays, and what it made is read by the steps under the name :data:`BEFORE`.
        more: edits of other nodes, made together with this one.
    """

    output: str
    steps: tuple[Step, ...]
    keep: bool = False
    more: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Widened:
    """The whole stage in float32: what it has in ``narrow``, float16 or bfloat16, is that no longer.

    Inputs of the stage, and weights that are PyTorch's rounded, are PyTorch's own then.
    """

    narrow: str


BEFORE = "<before>"
"""Among the inputs of a step: what the edited node itself made."""
