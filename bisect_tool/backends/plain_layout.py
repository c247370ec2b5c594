"""Graphs in ONNX Runtime's blocked layout (domain ``com.microsoft.nchwc``): each value in its plain layout beside it.

ONNX Runtime's optimiser writes such graphs for the processor it runs on. Their convolutions and pools hand on tensors whose
channels are split into blocks that lie last in memory, filled up to a whole block; the shape that is told is still
``[N, C, H, W]``. Behind each such value a ``ReorderOutput`` and a ``ReorderInput`` are put in. Together they change nothing:
numbers move there and back. What lies between them can be compared with PyTorch, and given in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bisect_tool.backends.onnx_graph import copy_of
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import OnnxGraph, OnnxNode

Array = NDArray[Any]

DOMAIN = "com.microsoft.nchwc"
BLOCKED = "__blocked"
"""Behind the name of a value in its blocked layout; in its plain one it has the name that the file gives it."""

_ENDINGS = ("__out", "__in", "__pads", "__filled")
_PUT_IN = ("ReorderOutput", "ReorderInput", "Pad", "Constant")
"""Ends of the names of nodes that are put in, and their operators."""

_OTHER_TYPES = frozenset(["QuantizeLinear", "Cast"])
"""Operators that may make other numbers than float32, the only ones that can be moved."""

_PADS_AS_INPUT = 11
"""Opset from which ``Pad`` reads how far."""

_ALIGNED = 4
"""``ReorderInput`` takes whole multiples of so many channels."""


def is_blocked(model: ir.Model) -> bool:
    """Whether there is a value to lay out plainly."""
    return any(node.domain == DOMAIN for node in model.graph)


@cache
def block_size() -> int:
    """Channels in a block, on this processor: as many as ONNX Runtime fills a few up to.

    Raises:
        InconclusiveError: this build of ONNX Runtime does not know the layout.
    """
    import onnxruntime as ort

    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    node = onnx.helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, 1)]
    graph = onnx.helper.make_graph([node], "block", sides[:1], sides[1:])
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (filled,) = session.run(None, {"x": np.zeros((1, _ALIGNED, 1, 1), np.float32)})
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise InconclusiveError(
            f"the ONNX file is in ONNX Runtime's blocked layout ({DOMAIN}), which it does not run on this processor",
            hint="compare the file that it was made from, or save it with ORT_ENABLE_EXTENDED",
        ) from error
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
    copy = copy_of(model)
    blocked, channels = _blocked_values(copy.graph), _channels(list(copy.graph), block)
    opset = copy.graph.opset_imports.get("", _PADS_AS_INPUT)
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
                if value in blocked:
                    twice.append(value.name)
                continue
            name, value.name = value.name, f"{value.name}{BLOCKED}"
            nodes = _there_and_back(value, name, channels[value], block, opset)
            copy.graph.insert_after(node, nodes)
            for user, place in users:
                user.replace_input_with(place, nodes[-1].outputs[0])
                # Beside other readers the file may turn the value back itself.
                again = user.outputs[0] if _is(user, "ReorderOutput") and not _is_last(user) else None
                if again is not None and again.name and not again.is_graph_output():
                    twice.append(again.name)
            added += [each.name or "" for each in nodes]
            twice += [value.name, *(out.name or "" for each in nodes[1:] for out in each.outputs)]
    # A graph that was taken apart has been through this before.
    for node in model.graph:
        if (
            node.name
            and node.name.endswith(_ENDINGS)
            and node.op_type in ("ReorderOutput", "ReorderInput", "Pad", "Constant")
        ):
            added.append(node.name)
            twice += [value.name or "" for value in node.outputs if node.op_type != "ReorderOutput"]
    return PlainLayout(copy, frozenset(added), frozenset(twice))


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == DOMAIN and node.op_type == op_type


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """How a convolution of the blocked layout holds its weight.

    Attributes:
        filters: of the convolution, without those that fill up the last block.
        inputs: channels that a filter reads, where these are in blocks too; ``None``: only the filters are.
    """

    filters: int
    inputs: int | None


def blocked_weights(nodes: Sequence[ir.Node], block: int) -> dict[str, BlockedWeight]:
    """The weights of convolutions in the blocked layout, by name."""
    blocked, channels = _blocked_values(nodes), _channels(nodes, block)
    found = {}
    for node in nodes:
        weight = _weight(node)
        if weight is None or weight.shape[0] % block:
            continue
        given, name = node.inputs[0], node.inputs[1].name  # type: ignore[union-attr]
        inputs = int(weight.shape[1]) if given in blocked and weight.shape[1] > 1 else None
        if inputs is not None and given is not None and _group(node) == 1:
            inputs = channels.get(given, inputs)
        found[name or ""] = BlockedWeight(channels.get(node.outputs[0], int(weight.shape[0])), inputs)
    return found


def _weight(node: ir.Node) -> Array | None:
    """What a convolution of the blocked layout reads; ``None``: it is another node, or computes its weight."""
    value = node.inputs[1] if _is(node, "Conv") and len(node.inputs) > 1 else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _group(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) or 1


def out_of_blocks(weight: Array, how: BlockedWeight, block: int) -> Array:
    """A weight as ``[filters, inputs, height, width]``, without what fills up blocks; the inverse of :func:`in_blocks`."""
    count, inputs, *size = weight.shape
    if how.inputs is None:
        plain = weight.reshape(count // block, inputs, *size, block).transpose(0, 4, 1, 2, 3)
        return plain.reshape(weight.shape)[: how.filters]
    parts = weight.reshape(count // block, inputs // block, *size, block, block)
    return parts.transpose(0, 5, 1, 4, 2, 3).reshape(weight.shape)[: how.filters, : how.inputs]


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
    """Of each blocked value, how many channels it has without those that fill the last block.

    Values that a pool, a sum or the like makes of one another have as many. Where none of them tells, all channels up to the
    last that a filter makes or reads are some: the rest is zero, or nobody's.
    """
    blocked = _blocked_values(nodes)
    alike, told, least = _Alike(), dict[ir.Value, int](), dict[ir.Value, int]()
    for node in nodes:
        made = next((value for value in node.outputs if value in blocked), None)
        read = [value for value in node.inputs if value in blocked and value is not None]
        weight = _weight(node)
        if _is(node, "ReorderOutput"):
            if read and "channels" in node.attributes:
                told[read[0]] = node.attributes["channels"].as_int()
        elif made is None:
            continue
        elif _is(node, "ReorderInput"):
            length = _shape_at(node.inputs[0], 3 if _is_last(node) else 1)
            if length is not None:
                told[made] = length
        elif weight is not None:
            given = node.inputs[0]
            if given is not None and given in blocked:
                _read_in_blocks(node, weight, given, alike, least, block)
            least[made] = max(_last_filter(node, weight, block), least.get(made, 0))
            alike.join_all(made, [value for value in node.inputs[3:] if value in blocked])
        elif node.op_type != "Concat":
            alike.join_all(made, read)
    told, least = alike.greatest(told), alike.greatest(least)

    def known(value: ir.Value) -> int | None:
        root = alike.root(value)
        return told.get(root, least.get(root))

    for node in nodes:
        made = next((value for value in node.outputs if value in blocked), None)
        if node.op_type == "Concat" and made is not None and known(made) is None:
            # Of whole blocks only.
            parts = [known(value) for value in node.inputs if value is not None]
            if None not in parts:
                told[alike.root(made)] = sum(part or 0 for part in parts)
    found = {value: known(value) for value in blocked}
    return {value: count for value, count in found.items() if count is not None}


def _read_in_blocks(
    node: ir.Node, weight: Array, given: ir.Value, alike: _Alike, least: dict[ir.Value, int], block: int
) -> None:
    """What a convolution tells of a value in blocks that it reads."""
    if weight.shape[1] == 1:
        alike.join(node.outputs[0], given)
        return
    last = _last_input(weight, block) if _group(node) == 1 else int(weight.shape[1]) * _group(node)
    least[given] = max(last, least.get(given, 0))


class _Alike:
    """Values that have as many channels as one another."""

    def __init__(self) -> None:
        self._next: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        while value in self._next:
            value = self._next[value]
        return value

    def join(self, one: ir.Value, other: ir.Value) -> None:
        first, second = self.root(one), self.root(other)
        if first is not second:
            self._next[first] = second

    def greatest(self, counts: Mapping[ir.Value, int]) -> dict[ir.Value, int]:
        """By the value that stands for all that are alike."""
        found: dict[ir.Value, int] = {}
        for value, count in counts.items():
            found[self.root(value)] = max(count, found.get(self.root(value), 0))
        return found

    def join_all(self, one: ir.Value, others: Iterable[ir.Value | None]) -> None:
        for other in others:
            if other is not None:
                self.join(one, other)


def _is_last(node: ir.Node) -> bool:
    return "channels_last" in node.attributes and bool(node.attributes["channels_last"].as_int())


def _shape_at(value: ir.Value | None, axis: int) -> int | None:
    shape = value.shape if value is not None else None
    if shape is None or len(shape) != 4:
        return None
    length: int | ir.SymbolicDim = shape[axis]
    return length if isinstance(length, int) else None


def _last_filter(node: ir.Node, weight: Array, block: int) -> int:
    """Filters of a convolution up to the last that is not zero throughout."""
    count = int(weight.shape[0])
    if count % block:
        return count
    # A block's filters lie side by side in memory, whatever the order of the other axes.
    is_used = np.any(weight.reshape(count // block, -1, block)[-1], axis=0)
    bias = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if bias is not None:
        is_used |= bias.numpy().reshape(-1)[-block:] != 0
    return count - block + _last(is_used)


def _last_input(weight: Array, block: int) -> int:
    """Channels up to the last that any filter reads, of a weight in blocks both ways."""
    count, inputs, *size = weight.shape
    if count % block or inputs % block:
        return int(inputs)
    parts = weight.reshape(count // block, inputs // block, *size, block, block)[:, -1]
    is_used: NDArray[np.bool_] = np.any(parts, axis=(0, 1, 2, 4))
    return int(inputs) - block + _last(is_used)


def _there_and_back(value: ir.Value, name: str, channels: int, block: int, opset: int) -> list[ir.Node]:
    count = ir.Attr("channels", ir.AttributeType.INT, channels)
    plain = ir.Node(DOMAIN, "ReorderOutput", [value], [count], outputs=[ir.Value(name=name)], name=f"{name}__out")
    nodes, last = [plain], plain.outputs[0]
    if channels % _ALIGNED:
        counts = [0, 0, 0, 0, 0, -channels % block, 0, 0]
        pads = ir.tensor(np.array(counts, np.int64), name=f"{name}__pads")
        attribute = ir.Attr("value", ir.AttributeType.TENSOR, pads)
        constant = ir.Node(
            "", "Constant", [], [attribute], outputs=[ir.Value(name=f"{name}__pads")], name=f"{name}__pads"
        )
        late = opset >= _PADS_AS_INPUT
        filled = ir.Node(
            "",
            "Pad",
            [last, constant.outputs[0]] if late else [last],
            [] if late else [ir.Attr("pads", ir.AttributeType.INTS, counts)],
            outputs=[ir.Value(name=f"{name}__filled")],
            name=f"{name}__filled",
        )
        nodes += [constant, filled] if late else [filled]
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
