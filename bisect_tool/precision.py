"""Whether the graph computes in another precision than PyTorch: the first thing to know about a small divergence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bisect_tool.records import OnnxGraph, OnnxNode, Stage

OPENINGS = ("the graph computes in ", "the graph rounds to ")
"""Each line begins with one of these."""

_NARROW = ("float16", "bfloat16")
_FLOATING = (*_NARROW, "float32", "float64")
_NO_ARITHMETIC = {"Cast", "CastLike", "Constant", "Identity"}
_QUANTIZED = ("Quantize", "QLinear", "MatMulInteger", "ConvInteger", "QGemm", "QAttention", "MatMulNBits")
_NAMED = 3


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
    for narrow in _NARROW:
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
    return [node for node in graph.nodes if any(part in node.op_type for part in _QUANTIZED)]


def _names(nodes: Sequence[OnnxNode]) -> str:
    return f" ({', '.join(node.name for node in nodes)})" if len(nodes) <= _NAMED else ""


def _is_in(node: OnnxNode, dtypes: Mapping[str, str], wanted: Sequence[str]) -> bool:
    return any(dtypes.get(name) in wanted for name in node.outputs if name)


def _integers(nodes: Iterable[OnnxNode], dtypes: Mapping[str, str]) -> str:
    """The narrow integers that quantised nodes read and make."""
    found = {dtypes.get(name, "") for node in nodes for name in (*node.inputs, *node.outputs) if name}
    narrow = sorted(kind for kind in found if "int" in kind and "32" not in kind and "64" not in kind)
    return " and ".join(narrow) or "integers"
