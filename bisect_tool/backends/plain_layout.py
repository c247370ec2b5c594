"""Graphs in ONNX Runtime's blocked layout (domain ``com.microsoft.nchwc``): each value in its plain layout beside it.

ONNX Runtime's optimiser writes such graphs for the processor it runs on. Their convolutions and pools hand on tensors whose
channels are split into blocks that lie last in memory, filled up to a whole block; the shape that is told is still
``[N, C, H, W]``. Behind each such value a ``ReorderOutput`` and a ``ReorderInput`` are put in. Together they change nothing:
numbers move there and back. What lies between them can be compared with PyTorch, and given in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bisect_tool.records import OnnxGraph, OnnxNode

Array = NDArray[Any]

DOMAIN = "com.microsoft.nchwc"
BLOCKED = "__blocked"
"""Behind the name of a value in its blocked layout; in its plain one it has the name that the file gives it."""

_OTHER_TYPES = frozenset(["QuantizeLinear", "Cast"])
"""Operators that may make other numbers than float32, the only ones that can be moved."""

_ALIGNED = 4
"""``ReorderInput`` takes whole multiples of so many channels."""


def is_blocked(model: ir.Model) -> bool:
    """Whether there is a value to lay out plainly."""
    return any(node.domain == DOMAIN for node in model.graph)


@cache
def block_size() -> int:
    """Channels in a block, on this processor: as many as ONNX Runtime fills a few up to."""
    import onnxruntime as ort

    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    node = onnx.helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, 1)]
    graph = onnx.helper.make_graph([node], "block", sides[:1], sides[1:])
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (filled,) = session.run(None, {"x": np.zeros((1, _ALIGNED, 1, 1), np.float32)})
    return int(filled.shape[1])


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """A graph with its values in plain layout.

    Attributes:
        model: the graph.
        nodes: names of the nodes that were put in.
        blocked: names of the values that stand there once more in plain layout.
    """

    model: ir.Model
    nodes: frozenset[str]
    blocked: frozenset[str]


def with_plain_layout(model: ir.Model, block: int) -> PlainLayout:
    """A copy that computes the same and has each value in plain layout too.

    Weights are shared with the original. A value whose number of channels is not told stays as it is.

    Args:
        model: with nodes of the blocked layout.
        block: channels in a block, as the processor has it; see :func:`block_size`.
    """
    copy = ir.Model(
        model.graph.clone(),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        functions=list(model.functions.values()),
    )
    channels = _channels(list(copy.graph), block)
    added: list[str] = []
    twice: list[str] = []
    for node in list(copy.graph):
        for value in node.outputs:
            users = list(value.uses())
            if not value.name:
                continue
            is_plain = bool(users) and all(_is(user, "ReorderOutput") and not _is_last(user) for user, _ in users)
            if _is(node, "ReorderInput") or is_plain:
                # What is plain before or behind it is there already.
                twice.append(value.name)
                continue
            if value not in channels or node.op_type in _OTHER_TYPES:
                continue
            name, value.name = value.name, f"{value.name}{BLOCKED}"
            nodes = _there_and_back(value, name, channels[value], block)
            copy.graph.insert_after(node, nodes)
            for user, place in users:
                user.replace_input_with(place, nodes[-1].outputs[0])
                # Beside other readers the file may turn the value back itself.
                again = user.outputs[0] if _is(user, "ReorderOutput") and not _is_last(user) else None
                if again is not None and again.name and not again.is_graph_output():
                    twice.append(again.name)
            added += [each.name or "" for each in nodes]
            twice += [value.name, *(out.name or "" for each in nodes[1:] for out in each.outputs)]
    return PlainLayout(copy, frozenset(added), frozenset(twice))


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == DOMAIN and node.op_type == op_type


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """How a convolution of the blocked layout holds its weight.

    Attributes:
        filters: of the convolution, without those that fill up the last block.
        is_blocked_twice: the channels that a filter reads are in blocks too, and not only the filters.
    """

    filters: int
    is_blocked_twice: bool


def blocked_weights(nodes: Sequence[ir.Node], block: int) -> dict[str, BlockedWeight]:
    """The weights of convolutions in the blocked layout, by name."""
    blocked = _blocked_values(nodes)
    found = {}
    for node in nodes:
        if not _is(node, "Conv") or (count := _filters(node, block)) is None:
            continue
        weight = node.inputs[1]
        assert weight is not None and weight.name is not None and weight.const_value is not None
        twice = node.inputs[0] in blocked and weight.const_value.shape.numpy()[1] > 1
        found[weight.name] = BlockedWeight(count, twice)
    return found


def out_of_blocks(weight: Array, how: BlockedWeight, block: int) -> Array:
    """A weight as ``[filters, inputs, height, width]``, without what fills up blocks; the inverse of :func:`in_blocks`."""
    count, inputs, *size = weight.shape
    if not how.is_blocked_twice:
        plain = weight.reshape(count // block, inputs, *size, block).transpose(0, 4, 1, 2, 3)
        return plain.reshape(weight.shape)[: how.filters]
    parts = weight.reshape(count // block, inputs // block, *size, block, block)
    plain = parts.transpose(0, 5, 1, 4, 2, 3).reshape(weight.shape)[: how.filters]
    is_used: NDArray[np.bool_] = np.any(plain[:, inputs - block :], axis=(0, 2, 3))
    return plain[:, : inputs - block + _last(is_used)]


def _last(is_used: NDArray[np.bool_]) -> int:
    """Places up to the last that is used; all of them, where none is."""
    used = np.flatnonzero(is_used)
    return int(used[-1]) + 1 if used.size else is_used.size


def in_blocks(weight: Array, block: int) -> list[Array]:
    """A convolution's weights as the blocked layout has them: in each form that may stand in a graph.

    Args:
        weight: ``[out, in, height, width]``, or a bias, ``[out]``.
        block: as for :func:`with_plain_layout`.

    Returns:
        Arrays of the same number of axes, filled up with zeros; the numbers of a block of filters lie side by side.
    """
    if weight.ndim not in (1, 4):
        return []
    filled = np.pad(weight, [(0, -weight.shape[0] % block), *[(0, 0)] * (weight.ndim - 1)])
    if weight.ndim == 1:
        return [filled]
    of_plain = _split(filled, block).transpose(0, 2, 3, 4, 1).reshape(filled.shape)
    if weight.shape[1] == 1:
        return [of_plain]
    both = np.pad(filled, [(0, 0), (0, -weight.shape[1] % block), (0, 0), (0, 0)])
    parts = _split(both, block)
    parts = parts.reshape(*parts.shape[:2], -1, block, *parts.shape[3:])
    return [of_plain, parts.transpose(0, 2, 4, 5, 3, 1).reshape(both.shape)]


def _split(filters: Array, block: int) -> Array:
    """``[out, ...]`` as ``[out / block, block, ...]``."""
    return filters.reshape(-1, block, *filters.shape[1:])


def _blocked_values(nodes: Iterable[ir.Node]) -> set[ir.Value]:
    found: set[ir.Value] = set()
    for node in nodes:
        # The optimiser lets no other operators read blocked values than those that don't mind.
        if not _is(node, "ReorderOutput") and (node.domain == DOMAIN or any(value in found for value in node.inputs)):
            found.update(value for value in node.outputs if value.name)
    return found


def _channels(nodes: Sequence[ir.Node], block: int) -> dict[ir.Value, int]:
    """Of each blocked value, how many channels it has without those that fill the last block."""
    blocked = _blocked_values(nodes)
    known: dict[ir.Value, int] = {}
    for node in nodes:
        if _is(node, "ReorderOutput") and node.inputs[0] is not None and "channels" in node.attributes:
            known[node.inputs[0]] = node.attributes["channels"].as_int()
    for node in nodes:
        made = next(iter(node.outputs), None)
        if made is None or made not in blocked or made in known:
            continue
        if _is(node, "Conv"):
            found: int | None = _filters(node, block)
        elif _is(node, "ReorderInput"):
            found = _shape_at(node.inputs[0], 3 if _is_last(node) else 1)
        else:
            parts = [known.get(value) for value in node.inputs if value in blocked]
            # Concatenated are channels, of whole blocks only; all else keeps them.
            found = _added_up(parts) if node.op_type == "Concat" else next(iter(parts), None)
        if found is not None:
            known[made] = found
    return {value: count for value, count in known.items() if value in blocked}


def _added_up(parts: Iterable[int | None]) -> int | None:
    counts = list(parts)
    return None if None in counts else sum(count or 0 for count in counts)


def _is_last(node: ir.Node) -> bool:
    return "channels_last" in node.attributes and bool(node.attributes["channels_last"].as_int())


def _shape_at(value: ir.Value | None, axis: int) -> int | None:
    shape = value.shape if value is not None else None
    if shape is None or len(shape) != 4:
        return None
    length: int | ir.SymbolicDim = shape[axis]
    return length if isinstance(length, int) else None


def _filters(node: ir.Node, block: int) -> int | None:
    """Filters of a convolution up to the last that is not zero throughout: the rest only fills the block."""
    weight = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if weight is None:
        return None
    array = weight.numpy()
    count = int(array.shape[0])
    if count % block:
        return None
    # A block's filters lie side by side in memory, whatever the order of the other axes.
    is_used = np.any(array.reshape(count // block, -1, block)[-1], axis=0)
    bias = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if bias is not None:
        is_used |= bias.numpy().reshape(-1)[-block:] != 0
    return count - block + _last(is_used)


def _there_and_back(value: ir.Value, name: str, channels: int, block: int) -> list[ir.Node]:
    count = ir.Attr("channels", ir.AttributeType.INT, channels)
    plain = ir.Node(DOMAIN, "ReorderOutput", [value], [count], outputs=[ir.Value(name=name)], name=f"{name}__out")
    nodes, last = [plain], plain.outputs[0]
    if channels % _ALIGNED:
        pads = ir.tensor(np.array([0, 0, 0, 0, 0, -channels % block, 0, 0], np.int64), name=f"{name}__pads")
        attribute = ir.Attr("value", ir.AttributeType.TENSOR, pads)
        constant = ir.Node(
            "", "Constant", [], [attribute], outputs=[ir.Value(name=f"{name}__pads")], name=f"{name}__pads"
        )
        inputs = [last, constant.outputs[0]]
        filled = ir.Node("", "Pad", inputs, outputs=[ir.Value(name=f"{name}__filled")], name=f"{name}__filled")
        nodes += [constant, filled]
        last = filled.outputs[0]
    again = ir.Node(DOMAIN, "ReorderInput", [last], outputs=[ir.Value(name=f"{name}__again")], name=f"{name}__in")
    return [*nodes, again]


def without_moves(graph: OnnxGraph, put_in: Set[str], blocked: Set[str]) -> OnnxGraph:
    """The graph as if all of it were in plain layout: no node moves numbers, and each value has one name.

    Args:
        graph: with the nodes that were put in.
        put_in: their names.
        blocked: values that stand there once more in plain layout.
    """
    names: dict[str, str] = {}
    for node in graph.nodes:
        source, made = (node.inputs[0] if node.inputs else ""), node.outputs[0]
        if _moves(node, "ReorderOutput") and source in blocked and source not in names:
            names[source] = made
        elif (node.name in put_in or _moves(node, "ReorderInput")) and source and made in blocked:
            names[made] = names.get(source, source)
        elif _moves(node, "ReorderOutput") and made in blocked:
            names[made] = names[source]
    kept = []
    for node in graph.nodes:
        is_move = _moves(node, "ReorderOutput") and (
            node.outputs[0] in blocked or names.get(node.inputs[0]) == node.outputs[0]
        )
        if node.name not in put_in and not _moves(node, "ReorderInput") and not is_move:
            inputs, outputs = (tuple(names.get(name, name) for name in each) for each in (node.inputs, node.outputs))
            kept.append(replace(node, inputs=inputs, outputs=outputs))
    return replace(graph, nodes=tuple(kept))


def _moves(node: OnnxNode, op_type: str) -> bool:
    return node.domain == DOMAIN and node.op_type == op_type
