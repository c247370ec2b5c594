"""Whether the graph computes in another precision than PyTorch: the first thing to know about a small divergence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.records import OnnxGraph, OnnxNode, Stage, Tolerance

Array = NDArray[Any]

OPENINGS = ("the graph computes in ", "the graph rounds to ")
"""Each line begins with one of these."""

HALF = ("float16", "bfloat16")
"""Narrower than what weights are trained in."""

_FLOATING = (*HALF, "float32", "float64")
_NO_ARITHMETIC = {"Cast", "CastLike", "Constant", "Identity"}
_QUANTIZED = ("Quantize", "QLinear", "MatMulInteger", "ConvInteger", "QGemm", "QAttention", "MatMulNBits")
_NAMED = 3

_MOSTLY = 0.5
"""Share of a graph's floating nodes in half precision from which on the whole graph was meant to be."""


def half_precision(graph: OnnxGraph, dtypes: Mapping[str, str], own: str | None) -> str | None:
    """The half precision that a graph as a whole computes in while PyTorch does not; ``None`` if it does not.

    A single node in half precision in a float32 graph is no conversion, but something to find.

    Args:
        graph: of ONNX.
        dtypes: short names, by value; what is not known counts on neither side.
        own: dtype of PyTorch's weights.
    """
    if own not in ("float32", "float64"):
        return None
    floating = [node for node in graph.nodes if node.op_type not in _NO_ARITHMETIC and _is_in(node, dtypes, _FLOATING)]
    for narrow in HALF:
        if floating and sum(_is_in(node, dtypes, (narrow,)) for node in floating) >= _MOSTLY * len(floating):
            return narrow
    return None


def tolerance_for(tolerance: Tolerance, half: str | None) -> Tolerance:
    """The default limits where the graph computes in half precision: then they are those of that for every dtype."""
    if half is None or tolerance.rel_l2 is None or tolerance.source != "default":
        return tolerance
    limit = tolerance.rel_l2[half]
    return replace(tolerance, rel_l2={name: max(limit, own) for name, own in tolerance.rel_l2.items()})


def held_line(half: str) -> str:
    """Says what such a graph is judged by."""
    return f"stages are judged by what {half} rounds off, since the graph as a whole is in {half}"


def held_values(graph: OnnxGraph, dtypes: Mapping[str, str], pairs: Mapping[int, str], half: str) -> frozenset[int]:
    """PyTorch values whose stage the graph computes in half precision, or from values in it.

    Converters keep some operators in float32, between casts: these read what was rounded already.

    Args:
        graph: of ONNX.
        dtypes: short names, by value.
        pairs: ONNX value by PyTorch value.
        half: the short name.
    """
    makers = {name: node for node in graph.nodes for name in node.outputs if name}
    ends = {*pairs.values(), *graph.inputs}
    return frozenset(value for value, name in pairs.items() if _reads(name, half, dtypes, makers, ends))


def _reads(name: str, half: str, dtypes: Mapping[str, str], makers: Mapping[str, OnnxNode], ends: Set[str]) -> bool:
    seen: set[str] = set()
    stack = [name]
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        # A cast there and back inside the stage rounds as well; weights that are cast are another matter.
        if dtypes.get(at) == half and (at in makers or at in ends):
            return True
        if at != name and at in ends:
            continue
        if at in makers:
            stack.extend(value for value in makers[at].inputs if value)
    return False


_FILL_TO_REST = 100.0
"""A fill to the largest number beside it: scores are tens, a mask's number -1e9."""

_FILLS = 3.5
"""So many masks are added up at most: of padding, of what comes later, and one more."""

_ONE_FILL = 1e-3
"""Relative distance up to which two numbers are one fill: scores were added to it."""


def saturated(array: Array, half: str) -> Array:
    """What a narrower dtype cannot hold as its largest number, as converters write a mask's -1e9; infinities stay."""
    if array.dtype.kind != "f" or array.size == 0:
        return array
    most = float(ml_dtypes.finfo(half).max)
    with np.errstate(all="ignore"):
        if not np.nanmax(np.abs(array), initial=0.0) > most:
            return array
    return np.where(np.isfinite(array), np.clip(array, -most, most), array)


def saturated_fills(array: Array, half: str) -> Array:
    """The same, but only for what fills masked places; other numbers that are too large are a difference to be seen.

    A fill is much larger than everything beside it, and one number, or twice that where masks were added up.
    """
    if array.dtype.kind != "f" or array.size == 0:
        return array
    most = float(ml_dtypes.finfo(half).max)
    with np.errstate(all="ignore"):
        sizes = np.abs(array)
        beyond = np.isfinite(array) & (sizes > most)
        if not beyond.any():
            return array
        beside = np.isfinite(array) & ~beyond
        largest = float(sizes[beside].max()) if beside.any() else 0.0
        large = sizes[beyond].astype(np.float64)
        times = large / large.min()
        added_up = (np.abs(times - np.rint(times)) < _ONE_FILL * times) & (times < _FILLS)
        if large.min() < _FILL_TO_REST * largest or not added_up.all():
            return array
    return saturated(array, half)


def precision_lines(
    graph: OnnxGraph, dtypes: Mapping[str, str], stages: Sequence[Stage], pairs: Mapping[int, str]
) -> tuple[str, ...]:
    """What the verdict says of the graph's precision: nothing if both sides have the same.

    Args:
        graph: of ONNX.
        dtypes: short names, by value.
        stages: of PyTorch.
        pairs: ONNX value by PyTorch value.
    """
    here = Counter(stage.dtype for stage in stages if stage.dtype in _FLOATING)
    own = here.most_common(1)[0][0] if here else None
    if own is None:
        return ()
    computing = [node for node in graph.nodes if node.op_type not in _NO_ARITHMETIC]
    lines = []
    for narrow in HALF:
        # Where PyTorch has some of it too, it is the pairs that tell.
        wider = any(
            stage.dtype in ("float32", "float64") and dtypes.get(pairs.get(stage.value, "")) == narrow
            for stage in stages
        )
        if own == narrow or (narrow in here and not wider):
            continue
        nodes = [node for node in computing if _is_in(node, dtypes, (narrow,))]
        casts = [node for node in graph.nodes if node.op_type == "Cast" and _is_in(node, dtypes, (narrow,))]
        if nodes:
            count = sum(_is_in(node, dtypes, _FLOATING) for node in computing)
            lines.append(f"{OPENINGS[0]}{narrow} in {len(nodes)} of {count} nodes{_names(nodes)}, PyTorch in {own}")
        elif casts:
            places = f"{len(casts)} place{'s' if len(casts) > 1 else ''}{_names(casts)}"
            lines.append(f"{OPENINGS[1]}{narrow} and back in {places}, PyTorch stays in {own}")
    quantized = quantized_nodes(graph)
    if quantized and not any("quantize" in stage.type.lower() for stage in stages):
        kinds = Counter(node.op_type for node in quantized)
        named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_NAMED))
        lines.append(f"{OPENINGS[0]}{_integers(quantized, dtypes)}: it is quantised ({named}), PyTorch in {own}")
    return tuple(lines)


def quantized_nodes(graph: OnnxGraph) -> list[OnnxNode]:
    """Nodes that quantise, dequantise, or compute in integers that stand for numbers."""
    found = [node for node in graph.nodes if any(part in node.op_type for part in _QUANTIZED)]
    # Of weights alone nothing else tells.
    return found or [node for node in graph.nodes if node.op_type == "DequantizeLinear"]


def _names(nodes: Sequence[OnnxNode]) -> str:
    return f" ({', '.join(node.name for node in nodes)})" if len(nodes) <= _NAMED else ""


def _is_in(node: OnnxNode, dtypes: Mapping[str, str], wanted: Sequence[str]) -> bool:
    return any(dtypes.get(name) in wanted for name in node.outputs if name)


def _integers(nodes: Iterable[OnnxNode], dtypes: Mapping[str, str]) -> str:
    """The narrow integers that quantised nodes read and make."""
    found = {dtypes.get(name, "") for node in nodes for name in (*node.inputs, *node.outputs) if name}
    narrow = sorted(kind for kind in found if "int" in kind and "32" not in kind and "64" not in kind)
    return " and ".join(narrow) or "integers"
