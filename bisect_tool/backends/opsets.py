"""Whether a node means the same under another version of ONNX's operators."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir
from onnx import TensorProto, defs, helper, version_converter

_CONVERTED_WRONG = ("GroupNormalization",)
"""The converter lets it pass, though scale and bias went from one for each group to one for each channel."""


def other_meaning(nodes: Iterable[ir.Node], was: int, now: int) -> str | None:
    """An operator of ONNX's own that means something else in another version, or may; ``None`` if all mean the same.

    Args:
        nodes: written for the version ``was``; those of bodies inside are to be among them. Other domains are not asked.
        was, now: versions of the domain ``ai.onnx``.
    """
    for node in nodes:
        if node.domain in ("", "ai.onnx") and not _same(node, was, now):
            return node.op_type
    return None


def _same(node: ir.Node, was: int, now: int) -> bool:
    try:
        first, second = (defs.get_schema(node.op_type, version, "") for version in (was, now))
    except defs.SchemaError:
        return False
    return first.since_version == second.since_version or _form(first) == _form(second) or _left_alone(node, was, now)


def _form(schema: defs.OpSchema) -> tuple[object, ...]:
    """All but the types that it takes: in most versions only these were added."""
    attributes = {
        name: (each.type, each.required, each.default_value.SerializeToString())
        for name, each in schema.attributes.items()
    }
    inputs, outputs = ([(each.name, each.option) for each in side] for side in (schema.inputs, schema.outputs))
    return schema.doc, attributes, inputs, outputs


def _left_alone(node: ir.Node, was: int, now: int) -> bool:
    """Whether ONNX's own converter leaves it as it is."""
    if node.op_type in _CONVERTED_WRONG:
        return False
    proto = ir.serde.serialize_node(node)
    if any(each.HasField("g") or each.graphs for each in proto.attribute):
        return False
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in dict.fromkeys(proto.input) if name
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = helper.make_graph([proto], "one", inputs, outputs)
    try:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", was)])
        (made,) = version_converter.convert_version(model, now).graph.node
    except (RuntimeError, ValueError, version_converter.ConvertError):  # no way there, or several nodes
        return False
    kept = made.op_type, list(made.input), sorted(made.attribute, key=_name)
    return kept == (proto.op_type, list(proto.input), sorted(proto.attribute, key=_name))


def _name(attribute: onnx.AttributeProto) -> str:
    return attribute.name
