"""Graphs of integer operators (``QLinearConv`` and its like): a float beside each quantised value.

Such a graph hands bytes from node to node; the scale that makes numbers of them stands with the node that made them. Behind
each such value a ``DequantizeLinear`` and a ``QuantizeLinear`` with that very scale are put in. Together they change nothing:
each byte comes out as it went in. The float between them is what can be compared with PyTorch, and given in its place.
"""

from __future__ import annotations

import onnx_ir as ir

from bisect_tool.backends.onnx_graph import copy_of

SUFFIX = "__dequantized"
"""Of the floats' names."""

_SCALE_AT = {
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QGemm": 7,
    "QLinearSigmoid": 3,
    "QLinearLeakyRelu": 3,
    "QLinearSoftmax": 3,
    "QLinearAveragePool": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearReduceMean": 3,
    "QLinearConcat": 0,
    "QLinearWhere": 7,
}
"""Place of the output's scale among the inputs; its zero point comes next."""

_HANDING_ON = frozenset(
    [
        *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
        *("Slice", "Gather", "Split", "Expand", "DepthToSpace", "SpaceToDepth"),
    ]
)
"""Operators that move bytes and leave them as they are: the scale stays."""

_Scale = tuple[ir.Value, ir.Value]


def has_integer_operators(model: ir.Model) -> bool:
    """Whether there is a value to put a float beside."""
    return any(node.op_type in _SCALE_AT for node in model.graph)


def with_floats(model: ir.Model) -> tuple[ir.Model, frozenset[str]]:
    """A copy that computes the same and has a float for each quantised value, and the names of the nodes put in.

    Weights are shared with the original. The graph's own inputs and outputs stay.
    """
    copy = copy_of(model)
    graph = copy.graph
    known: dict[ir.Value, _Scale] = {}
    added: list[str] = []
    for node in list(graph):
        scale = _scale_of(node, known)
        if scale is None:
            continue
        for value in node.outputs:
            known[value] = scale
            # What a quantising node makes was a float before; constants have no error of their own.
            users = list(value.uses())
            is_float_soon = all(user.op_type == "DequantizeLinear" for user, _ in users)
            if node.op_type == "QuantizeLinear" or not value.name or is_float_soon:
                continue
            own = next((user for user, _ in users if user.graph is graph and _turns_back(user, scale)), None)
            given, again = _pair(value, scale, own)
            if own is not None:
                # Its float is the value of its readers alone, unless the byte for all others is made of it again.
                graph.remove(own)
            graph.insert_after(node, [given, again])
            for user, place in users:
                if user is not own:
                    user.replace_input_with(place, again.outputs[0])
            known[again.outputs[0]] = scale
            added += [each.name or "" for each in (given, again) if each is not own]
    return copy, frozenset(added)


def _scale_of(node: ir.Node, known: dict[ir.Value, _Scale]) -> _Scale | None:
    """Scale and zero point of what a node makes; ``None`` where it makes no quantised values, or they are not told."""
    inputs = node.inputs
    place = 1 if node.op_type == "QuantizeLinear" else _SCALE_AT.get(node.op_type)
    if place is not None:
        scale, zero = (inputs[at] if at < len(inputs) else None for at in (place, place + 1))
        return (scale, zero) if scale is not None and zero is not None else None
    if node.op_type in _HANDING_ON and inputs and inputs[0] is not None:
        return known.get(inputs[0])
    return None


def _turns_back(node: ir.Node, scale: _Scale) -> bool:
    """Whether a node makes the float that a byte stands for."""
    return node.op_type == "DequantizeLinear" and tuple(node.inputs[1:]) == scale


def _pair(value: ir.Value, scale: _Scale, own: ir.Node | None) -> tuple[ir.Node, ir.Node]:
    """What turns a byte back, which the graph may have of its ``own``, and what makes the byte of that again."""
    name = f"{value.name}{SUFFIX}"
    given = own or ir.Node("", "DequantizeLinear", [value, *scale], outputs=[ir.Value(name=name)], name=f"{name}_node")
    again = ir.Node(
        "",
        "QuantizeLinear",
        [given.outputs[0], *scale],
        outputs=[ir.Value(name=f"{name}_again")],
        name=f"{name}_again_node",
    )
    return given, again
