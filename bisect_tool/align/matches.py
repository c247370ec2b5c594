"""What is paired with what, on which evidence, and what is known before pairs are looked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bisect_tool.records import OnnxGraph, TorchTrace
from bisect_tool.signatures import Signature

Permuted = Callable[[int, "tuple[int, ...] | None"], Mapping[tuple[int, ...], Signature]]
"""Signatures of a PyTorch value with its axes in other orders; with a shape, those of more or fewer axes that have it."""

SecondDraw = tuple[Mapping[int, Signature], Mapping[str, Signature]]
"""Signatures of both sides on another input: by PyTorch value, and by name."""

VALUE_LIMIT = 1e-3
"""Relative difference up to which two tensors count as the same value; exports are off by 1e-6, TF32 by 1e-3."""

NARROW_VALUE_LIMIT = 3e-2
"""The same where a side computes in half precision or less."""

QUANTISED_LIMIT = 0.15
"""The same in a quantised graph, where eight bits cost a few per cent at each stage; scopes and order tell many apart."""

NEAR_LIMIT = 5e-2
"""Up to which a value still counts as handed on by a node that no exporter tagged."""

FORCED_VALUE = "forced value"
"""Evidence of a pair whose values agree in a run that reads PyTorch's tensors."""

SPLIT = "axes split"
"""Evidence of a pair whose PyTorch value has one axis where the graph's has two, or the other way round, in another order."""

SECOND = "second input"
"""Evidence of a pair that another input told from look-alikes."""

STRUCTURE = "structure"
"""Evidence of a pair that stands where a fresh export of the model has the stage's value."""

AMBIGUOUS = "ambiguous"
"""Evidence of a pair whose value others have too, which neither names nor the order of computation tell from it."""

_NARROW = {"float16", "bfloat16"}


@dataclass(frozen=True, slots=True)
class Match:
    """A PyTorch value, its ONNX value, the evidence, and whether a run showed the two to be the same tensor.

    ``permutation``: the ONNX value is the PyTorch tensor with its axes in this order; ``None``: in the same order.
    """

    value: int
    onnx: str
    evidence: tuple[str, ...]
    confirmed: bool
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a run, whose values are to be paired.

    Attributes:
        trace, graph: their structure.
        torch: signatures by value; a value without one can't be paired.
        onnx: signatures by name, from a chained run, or from a forced one.
        permuted: signatures of a PyTorch value with its axes in other orders; asked only where nothing else fits.
        biased: PyTorch values that their module adds a bias to.
    """

    trace: TorchTrace
    graph: OnnxGraph
    torch: Mapping[int, Signature]
    onnx: Mapping[str, Signature]
    permuted: Permuted
    biased: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known beside the values.

    Attributes:
        known: confirmed pairs of an earlier pass, kept as they are.
        fed: pairs at which the forced run was given PyTorch's values, confirmed or not; ``None`` for a chained run.
        chained: signatures from the chained run, where the side's own are from a forced one.
        second: signatures of both sides on another input, which tell look-alikes apart.
        modules: module path by node name, for nodes that no exporter tagged: those that read a module's weights.
        placed: pairs by structure, for values that no value of the graph's fits.
        instead: pairs by structure that no look-alike takes the place of.
    """

    known: Mapping[int, Match] = field(default_factory=dict)
    fed: Mapping[int, Match] | None = None
    chained: Mapping[str, Signature] | None = None
    second: SecondDraw | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    placed: Mapping[int, Match] = field(default_factory=dict)
    instead: Mapping[int, Match] = field(default_factory=dict)


def is_narrow(graph: OnnxGraph) -> bool:
    """Whether anything in a graph is computed in half precision."""
    return any(graph.dtypes.get(name) in _NARROW for node in graph.nodes for name in node.outputs)


def value_limit(dtype: str, *, narrow: bool) -> float:
    """Relative difference up to which a value of this dtype counts as the same; ``narrow``: :func:`is_narrow`."""
    return NARROW_VALUE_LIMIT if narrow or dtype in _NARROW else VALUE_LIMIT
