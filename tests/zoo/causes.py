"""Which causes are right for a kind of fault: written down by hand beside the edits, not read off the tool's answers.

Some faults have two right names: an epsilon is an attribute of a norm, and a constant where the exporter takes norms
apart; weights turned by their axes are other numbers, or numbers in another layout.
"""

from __future__ import annotations

from collections.abc import Mapping

ATTRIBUTE, OPERATOR, MISSING, EXTRA, OPERANDS, CONSTANT, PRECISION = (f"BD10{i}" for i in range(1, 8))
WEIGHT, LAYOUT = "BD202", "BD203"

RIGHT: Mapping[str, frozenset[str]] = {
    name: frozenset(codes)
    for name, codes in {
        "weight": (WEIGHT, LAYOUT),
        "bias": (WEIGHT, LAYOUT),
        "statistics": (WEIGHT,),
        "recurrence: gates": (WEIGHT, LAYOUT),
        "recurrence: reset": (ATTRIBUTE,),
        "constant": (CONSTANT,),
        "result: NaN": (EXTRA,),
        "result: float16": (PRECISION,),
        "result: bfloat16": (PRECISION,),
        "result: int8": (PRECISION,),
        "result: ×": (EXTRA,),
        "result: offset": (EXTRA,),
        "result: saturated": (EXTRA,),
        "norm: epsilon": (ATTRIBUTE, CONSTANT),
        "gelu: approximation": (ATTRIBUTE, OPERATOR),
        "activation: another": (OPERATOR,),
        "activation: slope": (ATTRIBUTE, CONSTANT, WEIGHT),
        "activation: bounds": (CONSTANT,),
        "softmax: axis": (ATTRIBUTE,),
        "window": (ATTRIBUTE, CONSTANT),
        "pool: another": (OPERATOR,),
        "pad: mode": (ATTRIBUTE,),
        "resize": (ATTRIBUTE,),
        "order: axes": (ATTRIBUTE,),
        "order: concat": (OPERANDS,),
        "order: operands": (OPERANDS,),
        "order: input channels": (EXTRA,),
        "residual: dropped": (MISSING,),
        "mask: dropped": (MISSING,),
        "branch: other": (OPERANDS,),
        "index: off by one": (EXTRA,),
        "index: slice": (CONSTANT,),
        "scatter: reduction": (ATTRIBUTE,),
        "reduction: another": (OPERATOR,),
        "reduction: running sum": (ATTRIBUTE,),
        "topk: other end": (ATTRIBUTE,),
    }.items()
}
"""Beginnings of names of kinds → codes; the longest that fits counts."""


def right_causes(kind: str) -> frozenset[str]:
    """The codes that name a kind of fault.

    Raises:
        KeyError: a kind that nobody has written down.
    """
    fitting = [name for name in RIGHT if kind.startswith(name)]
    if not fitting:
        raise KeyError(kind)
    return RIGHT[max(fitting, key=len)]
