"""Products whose bias a fused node behind them adds: their value is no stage's, however near it is to one."""

from __future__ import annotations

from bisect_tool.align.families import SHAPING
from bisect_tool.records import OnnxGraph, OnnxNode

_PRODUCTS = frozenset(
    ["MatMul", "FusedMatMul", "TransposeMatMul", "MatMulNBits", "MatMulInteger", "Gemm", "FusedGemm", "Conv"]
)

BIAS_AT = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "BiasAdd", "BiasSplitGelu", "BiasDropout"), 1),
    "SkipSimplifiedLayerNormalization": 3,
    "MultiHeadAttention": 3,
    "SkipLayerNormalization": 4,
}
"""Operators of ONNX Runtime's own, and which of their inputs is the bias of a product that they read."""


def without_bias(graph: OnnxGraph) -> frozenset[str]:
    """Names of the products' values, and of what hands them on in another shape."""
    makers = {name: node for node in graph.nodes for name in node.outputs if name}
    constants = graph.initializers | {
        name for node in graph.nodes if node.op_type == "Constant" for name in node.outputs
    }
    found: set[str] = set()
    for node in graph.nodes:
        at = BIAS_AT.get(node.op_type, len(node.inputs)) if node.domain == "com.microsoft" else len(node.inputs)
        if at >= len(node.inputs) or not node.inputs[at] or node.inputs[at] not in constants:
            continue
        read = [_handed_on(name, makers) for name in node.inputs[:at] if name in makers]
        products = [names for names in read if _is_bare(makers[names[-1]])]
        # Beside a skip that is a product too, it is either one's.
        if len(products) == 1 or node.op_type == "MultiHeadAttention":
            found.update(name for names in products for name in names)
    return frozenset(found)


def _handed_on(name: str, makers: dict[str, OnnxNode]) -> list[str]:
    """A value, and those that it is in another shape, the first one last."""
    names = [name]
    while (node := makers[names[-1]]).op_type in SHAPING and node.inputs[0] in makers:
        names.append(node.inputs[0])
    return names


def _is_bare(node: OnnxNode) -> bool:
    return node.op_type in _PRODUCTS and not any(
        node.inputs[2:] if node.op_type in ("Gemm", "FusedGemm", "Conv") else ()
    )
