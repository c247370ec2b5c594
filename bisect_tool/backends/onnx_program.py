"""Surgery on an ONNX graph: cut it into segments, expose values as outputs, force values from outside.

*Exposed*: a value is also a graph output. *Forced*: every consumer of the value reads a tensor given as an input instead
of the computed one, which is still computed and still comes out; so each stage works on PyTorch's own inputs.
Small graphs share the weights where they lie, in the model's own file or beside it, which ONNX Runtime maps into memory.
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bisect_tool.backends.integer_values import has_integer_operators, with_floats
from bisect_tool.backends.onnx_graph import describe
from bisect_tool.backends.plain_layout import (
    BlockedWeight,
    block_size,
    blocked_weights,
    is_blocked,
    with_plain_layout,
    without_moves,
)
from bisect_tool.errors import BisectError
from bisect_tool.records import NodeDetail, OnnxGraph, OnnxNode

Array = NDArray[Any]

GIVEN = "__given"
"""Suffix of the input that stands in for a forced value made in the same segment."""

MAX_FORCED_INPUTS = 1000
"""ONNX Runtime's time to create a session grows quadratically with its inputs; beyond this it hurts."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """Element type and shape of a run-time tensor."""

    dtype: ir.DataType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says about itself.

    Attributes:
        producer: name and version.
        ir_version, opsets: opset versions by domain.
        functions: how many local functions.
        input_shapes: as declared, a text for each size.
    """

    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    functions: int
    input_shapes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the topological order.

    Attributes:
        index: place among the segments.
        nodes: indices into ``OnnxGraph.nodes``.
        reads: run-time values that come from outside the segment (no initialisers).
        makes: values that its nodes compute.
    """

    index: int
    nodes: tuple[int, ...]
    reads: tuple[str, ...]
    makes: frozenset[str]


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A graph ready for ONNX Runtime. ``feeds`` maps input names to the value each stands for."""

    model: bytes
    feeds: Mapping[str, str]
    outputs: tuple[str, ...]


_RESIDENT = 32 << 20
"""Bytes of weights that are read before those from the file leave memory again."""


class OnnxProgram:
    """An ONNX model that can be cut, exposed and forced.

    Args:
        model: as loaded by :func:`bisect_tool.backends.onnx_graph.load_onnx`.
        path: where it was loaded from.
        given: the file's own graph, serialised, where ``model`` is made of it; see :mod:`bisect_tool.backends.unfold`.
        former_bodies: operator and outputs of each node with a body that was taken apart there.
        has_copies: names that end in ``@`` and a number are those of copies that were made there, and of nothing else.

    Attributes:
        has_copies: as given.
        moving: names of the nodes that were put in to have values in their plain layout; a stage runs with those it needs.
    """

    def __init__(
        self,
        model: ir.Model,
        path: Path,
        given: bytes | None = None,
        former_bodies: Sequence[tuple[str, tuple[str, ...]]] = (),
        has_copies: bool = False,
    ):
        self.path = path
        self.has_copies = has_copies
        self._pages_read = 0
        self._mapped: dict[str, Any] = {}
        self._given = model
        self._put_in: frozenset[str] = frozenset()
        self.moving: frozenset[str] = frozenset()
        self._blocked: frozenset[str] = frozenset()
        if has_integer_operators(model):
            model, self._put_in = with_floats(model)
        if is_blocked(model):
            plain = with_plain_layout(model, block_size())
            model, self.moving, self._blocked = plain.model, plain.nodes, plain.blocked
            self._put_in |= self.moving
        self._model = model
        self._bytes = given
        self._former_bodies = former_bodies
        # Where external data lies, by locations relative to the model: the only place ONNX Runtime accepts.
        self.weights_folder = path.resolve().parent
        self.graph: OnnxGraph = describe(model)
        self.assume_shapes({})
        self._nodes = list(model.graph)
        self._values: dict[str, ir.Value] = {}
        for value in [*model.graph.inputs, *model.graph.initializers.values()]:
            self._values[value.name or ""] = value
        for node in self._nodes:
            self._values.update((value.name or "", value) for value in node.outputs)
        self._by_name = {node.name: node for node in self.graph.nodes}
        self._own = {node.name: own for node, own in zip(self.graph.nodes, self._nodes, strict=True)}
        self.makers = {name: i for i, node in enumerate(self.graph.nodes) for name in node.outputs if name}
        self._constant = {
            i for i, node in enumerate(self.graph.nodes) if node.op_type == "Constant" and not node.domain
        }
        self._constants = {
            self.graph.nodes[i].outputs[0]: self._nodes[i].attributes["value"].as_tensor()
            for i in self._constant
            if "value" in self._nodes[i].attributes
        }

    # -- preparation --------------------------------------------------------------------------------------------------

    def assume_shapes(self, inputs: Mapping[str, tuple[int, ...]]) -> None:
        """Shapes of inner values for the given shapes of the graph's inputs, where the file does not say them.

        They serve to estimate sizes; what can't be inferred counts as nothing. The model itself stays as it is.
        """
        names = {name for node in self.graph.nodes for name in node.outputs if name}
        if names <= self.graph.shapes.keys():
            return
        proto = ir.to_proto(self._model)
        for value in proto.graph.input:
            if value.name in inputs:
                shape = value.type.tensor_type.shape
                del shape.dim[:]
                for size in inputs[value.name]:
                    shape.dim.add().dim_value = size
        del proto.graph.value_info[:]
        try:
            inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
        except Exception:  # onnx raises many kinds; without inferred shapes only the size estimate is rougher
            return
        found = describe(inferred)
        self.graph = replace(
            self.graph, shapes={**found.shapes, **self.graph.shapes}, dtypes={**found.dtypes, **self.graph.dtypes}
        )

    def header(self) -> Header:
        """What the file says about itself."""
        model = self._model
        shapes = {
            value.name: tuple("?" if str(size) == "None" else str(size) for size in value.shape)
            for value in model.graph.inputs
            if value.name and value.shape is not None
        }
        return Header(
            producer=" ".join(filter(None, [model.producer_name, model.producer_version])),
            ir_version=model.ir_version,
            opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
            functions=len(model.functions),
            input_shapes=shapes,
        )

    # -- structure ----------------------------------------------------------------------------------------------------

    def type_of(self, name: str) -> ValueType | None:
        """What the file says of a value, or what was inferred; ``None`` where that is nothing."""
        shape, dtype = self.graph.shapes.get(name), self.graph.dtypes.get(name)
        if shape is None or dtype is None:
            return None
        try:
            return type_of_array(np.dtype(dtype), shape)
        except TypeError:  # a type that numpy lacks
            return None

    def bytes_of(self, name: str) -> int:
        """Estimated size of a value in bytes; 0 where the shape is unknown."""
        shape = self.graph.shapes.get(name)
        if shape is None:
            return 0
        return math.prod(shape) * _itemsize(self.graph.dtypes.get(name, "float32"))

    def weight_bytes(self) -> int:
        """Size of all initialisers together."""
        tensors = [v.const_value for v in self._model.graph.initializers.values()]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def floating_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the floating initialisers and constants, by name, in the file's order."""
        tensors = [(name, value.const_value) for name, value in self._model.graph.initializers.items()]
        # A body that was taken out of an ``If`` holds its weights as constants.
        tensors += [(name, tensor) for name, tensor in self._constants.items() if tensor.size > 1]
        return {
            name: tuple(int(size) for size in tensor.shape.numpy())
            for name, tensor in tensors
            if tensor is not None and tensor.dtype.is_floating_point() and tensor.dtype.bitwidth >= 16
        }

    def weight(self, name: str) -> Array:
        """An initialiser or a constant; a big initialiser is mapped from its file, not read.

        Raises:
            BisectError: its numbers are not there, or are too few.
        """
        if name in self._constants:
            return self._constants[name].numpy()
        tensor = self._model.graph.initializers[name].const_value
        assert tensor is not None
        if self._pages_read > _RESIDENT:
            self.release_pages()
        self._pages_read += tensor.nbytes
        self._mapped[name] = tensor
        try:
            return tensor.numpy()
        except (ValueError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BisectError(
                f"ONNX file {self.path}: its weight {name} cannot be read ({reason})",
                hint="the file is damaged, or its external data lies elsewhere; export or copy it again",
            ) from error

    def release_pages(self) -> None:
        """Takes the mapped weights out of the process's memory; those that are read again come back from the file.

        A page of a mapped file counts as the process's own once it has been read.
        """
        self._pages_read = 0
        advice = getattr(mmap, "MADV_DONTNEED", None)
        # Each of them maps the whole file, so that only those that were read are gone through.
        for tensor in self._mapped.values():
            mapped = getattr(tensor, "raw", None)
            if advice is not None and isinstance(mapped, mmap.mmap):
                mapped.madvise(advice)
        self._mapped.clear()

    def constant(self, name: str) -> Array | None:
        """The numbers of an initialiser, or of what a Constant node makes; ``None`` for what is computed."""
        if name in self.graph.initializers:
            return self.weight(name)
        maker = self.makers.get(name)
        if maker is None or maker not in self._constant:
            return None
        value = self._nodes[maker].attributes.get("value")
        return value.as_tensor().numpy() if value is not None else None

    def activation_bytes(self) -> int:
        """Estimated size of all run-time values together."""
        return sum(self.bytes_of(name) for node in self.graph.nodes for name in node.outputs if name)

    def largest_bytes(self) -> int:
        """Estimated size of the largest run-time value."""
        return max((self.bytes_of(name) for node in self.graph.nodes for name in node.outputs if name), default=0)

    def segments(self, budget: int | None, forced: Set[str] = frozenset()) -> list[Segment]:
        """Cuts the graph so that what each segment makes stays under ``budget`` bytes; None: one segment.

        A single node that makes more is a segment of its own.
        """
        groups: list[list[int]] = [[]]
        size, inputs = 0, 0
        for index, node in enumerate(self.graph.nodes):
            if index in self._constant:
                continue
            weight = sum(self.bytes_of(name) for name in node.outputs if name)
            count = sum(name in forced for name in node.inputs)
            full = budget is not None and size + weight > budget
            if groups[-1] and (full or inputs + count > MAX_FORCED_INPUTS):
                groups.append([])
                size, inputs = 0, 0
            groups[-1].append(index)
            size, inputs = size + weight, inputs + count
        return [self._segment(number, nodes) for number, nodes in enumerate(groups) if nodes]

    def _segment(self, number: int, nodes: list[int]) -> Segment:
        makes = {name for i in nodes for name in self.graph.nodes[i].outputs if name}
        reads: dict[str, None] = {}
        for i in nodes:
            for name in self.graph.nodes[i].inputs:
                if name and name not in makes and not self._is_constant(name):
                    reads[name] = None
        return Segment(number, tuple(nodes), tuple(reads), frozenset(makes))

    @property
    def plain(self) -> OnnxGraph:
        """The graph that PyTorch's is laid beside: without nodes that only move numbers to another layout."""
        return without_moves(self.graph, self.moving, self._blocked) if self._blocked else self.graph

    def blocked_weights(self) -> dict[str, BlockedWeight]:
        """Weights whose numbers stand in another order than the operator's own, and how."""
        return blocked_weights(self._nodes, block_size()) if self._blocked else {}

    def exposable(self, segments: Iterable[Segment]) -> set[str]:
        """Values that the segments make and that can be compared; one that is there in its plain layout too is not."""
        return {name for segment in segments for name in segment.makes} - self._blocked

    def operators_with_bodies(self) -> frozenset[str]:
        """Operators of the nodes that hold graphs of their own: ``If``, ``Loop``, ``Scan``."""
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        return frozenset(
            node.op_type for node in self._nodes if any(a.type in graphs for a in node.attributes.values())
        )

    def bodies(self) -> list[tuple[str, tuple[str, ...]]]:
        """Operator and outputs of every node that has or had a body of its own, in the graph's order."""
        kinds = self.operators_with_bodies()
        there = [(node.op_type, node.outputs) for node in self.graph.nodes if node.op_type in kinds and not node.domain]

        def place(found: tuple[str, tuple[str, ...]]) -> int:
            return min((self.makers.get(name, -1) for name in found[1] if name), default=-1)

        return sorted([*there, *self._former_bodies], key=place)

    def functions(self) -> frozenset[str]:
        """Names of the model's own functions."""
        return frozenset(function.name for function in self._model.functions.values())

    def ir_nodes(self) -> Sequence[ir.Node]:
        """Nodes as onnx_ir has them, in the order of ``graph.nodes``; not to be changed."""
        return self._nodes

    def take_model(self) -> ir.Model:
        """The model, for whoever changes it: this program is of no use then."""
        return self._model

    @functools.cached_property
    def cast_weights(self) -> Mapping[str, str]:
        """Weights by the value that a ``Cast`` makes of one: it is stored in another type than it is computed with."""
        return {
            node.outputs[0]: node.inputs[0]
            for node in self.graph.nodes
            if node.op_type == "Cast" and not node.domain and node.inputs[0] in self.graph.initializers
        }

    @functools.cached_property
    def reading_weights(self) -> Sequence[OnnxNode]:
        """The nodes, as if they read their weights themselves where a ``Cast`` stands between."""
        known = self.cast_weights
        if not known:
            return self.graph.nodes
        return [
            replace(node, inputs=tuple(known.get(name, name) for name in node.inputs))
            if set(node.inputs) & known.keys()
            else node
            for node in self.graph.nodes
        ]

    def is_weight(self, name: str) -> bool:
        """Whether :meth:`weight` has it."""
        return name in self.graph.initializers or name in self._constants

    def details(self, names: Sequence[str]) -> tuple[NodeDetail, ...]:
        """Attributes of nodes, and where the exporter says they come from."""
        wanted = set(names)
        return tuple(
            NodeDetail(
                node.name,
                node.op_type,
                {a.name: _text_of(a) for a in own.attributes.values()},
                node.source,
                node.inputs,
                node.outputs,
            )
            for node, own in zip(self.graph.nodes, self._nodes, strict=True)
            if node.name in wanted
        )

    def attributes(self, name: str) -> dict[str, Any]:
        """Plain attributes of a node: numbers, texts and lists of them."""
        plain = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
        lists = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
        own = self._own[name]
        return {
            a.name: list(a.value) if a.type in lists else a.value
            for a in own.attributes.values()
            if a.type in (*plain, *lists)
        }

    def part(self, names: Sequence[str]) -> Segment:
        """Some nodes, by name, as a segment of their own."""
        wanted = set(names)
        return self._segment(0, [i for i, node in enumerate(self.graph.nodes) if node.name in wanted])

    def _is_constant(self, name: str) -> bool:
        if name in self.graph.initializers:
            return True
        maker = self.makers.get(name)
        return maker is not None and maker in self._constant

    # -- surgery ------------------------------------------------------------------------------------------------------

    def build(
        self,
        segment: Segment,
        wanted: Iterable[str],
        types: Mapping[str, ValueType],
        forced: Set[str] = frozenset(),
    ) -> BuiltGraph:
        """One segment as a model of its own.

        Args:
            segment: from ``segments``.
            wanted: values to come out; those that the segment does not make are left out.
            types: element type and shape of every value that the segment reads or that is forced in it.
            forced: values whose consumers read a given tensor.
        """
        nodes = list(segment.nodes)
        constants = {self.makers[n] for i in nodes for n in self.graph.nodes[i].inputs if self._is_made_constant(n)}
        chosen = [self._nodes[i] for i in sorted({*nodes, *constants})]
        reads = [self._values[name] for name in segment.reads]
        outputs = [name for name in dict.fromkeys(wanted) if name in segment.makes]
        weights = self._weights_of(segment)
        graph = self._model.graph
        view = ir.GraphView(
            [value for value in reads if not value.is_initializer()],
            [self._values[name] for name in outputs],
            nodes=chosen,
            initializers=weights,
            opset_imports=graph.opset_imports,
            name=graph.name or "segment",
        )
        cut = view.clone()
        for value in cut.inputs:
            kind = types[value.name or ""]
            value.type, value.shape = ir.TensorType(kind.dtype), ir.Shape(kind.shape)
        feeds = {value.name or "": value.name or "" for value in cut.inputs}
        made = {value.name: value for node in cut for value in node.outputs}
        for name in sorted(forced & segment.makes):
            value = made[name]
            if not value.uses():
                continue
            given = ir.Value(
                name=name + GIVEN, type=ir.TensorType(types[name].dtype), shape=ir.Shape(types[name].shape)
            )
            for user, place in list(value.uses()):
                user.replace_input_with(place, given)
            cut.inputs.append(given)
            feeds[name + GIVEN] = name
        return BuiltGraph(self._serialize(cut), feeds, tuple(outputs))

    def _is_made_constant(self, name: str) -> bool:
        return bool(name) and name not in self.graph.initializers and self._is_constant(name)

    def _weights_of(self, segment: Segment) -> list[ir.Value]:
        names: dict[str, None] = {}
        for i in segment.nodes:
            for name in self.graph.nodes[i].inputs:
                if name in self.graph.initializers:
                    names[name] = None
        return [self._values[name] for name in names]

    def _serialize(self, graph: ir.Graph) -> bytes:
        # The largest IR version of the opset's age; the file's own is right for its own nodes.
        model = ir.Model(graph, ir_version=self._model.ir_version, functions=list(self._model.functions.values()))
        return bytes(ir.to_proto(model).SerializeToString())

    def untouched(self) -> bytes:
        """The whole graph as it was given, with references to its weights."""
        if self._bytes is not None:
            return self._bytes
        return bytes(ir.to_proto(self._given).SerializeToString())

    def own_nodes(self) -> tuple[OnnxNode, ...]:
        """Nodes of the file, without those that were put in."""
        return tuple(node for node in self.graph.nodes if node.name not in self._put_in)

    def nodes_between(self, value: str, cuts: Set[str], *, moving: bool = False) -> tuple[str, ...]:
        """Names of the nodes that compute ``value`` from the nearest values in ``cuts``, in topological order.

        ``moving``: with the nodes that were put in for the sake of a plain layout.
        """
        found: set[int] = set()
        stack = [value]
        while stack:
            name = stack.pop()
            maker = self.makers.get(name)
            if maker is None or maker in found or (name != value and name in cuts):
                continue
            if maker in self._constant:
                continue
            found.add(maker)
            stack.extend(n for n in self.graph.nodes[maker].inputs if n)
        names = (self.graph.nodes[i].name for i in sorted(found))
        hidden = self._put_in - self.moving if moving else self._put_in
        return tuple(name for name in names if name not in hidden)

    def reads(self, nodes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Types of the named nodes, and the initialisers that they read, floating ones first.

        Whole numbers that only say how to shape or pick (sizes, axes, starts) are left out where there are floating ones.
        """
        found = [self._by_name[name] for name in nodes]
        weights = dict.fromkeys(name for node in found for name in node.inputs if name in self.graph.initializers)
        dtypes = self.graph.dtypes
        floating = [name for name in weights if "float" in dtypes.get(name, "")]
        data = {
            name
            for node in found
            for place, name in enumerate(node.inputs)
            if place == 0 or node.op_type not in _SHAPED_BY_INPUTS
        }
        rest = [name for name in weights if name in data or not floating]
        return tuple(node.op_type for node in found), tuple(dict.fromkeys([*floating, *rest]))


_SHAPED_BY_INPUTS = {
    *("Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze"),
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"),
}
"""Operators whose inputs behind the first are sizes, axes and the like."""


def _text_of(attribute: ir.Attr) -> str:
    """An attribute's value, shortened; tensors and subgraphs by their kind."""
    if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.SPARSE_TENSOR):
        tensor = attribute.value
        return (
            f"{tensor.dtype.name.lower()}{list(tensor.shape.numpy())}"
            if tensor.size > 8
            else str(tensor.numpy().tolist())
        )
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "subgraph"
    value = attribute.value
    text = str(list(value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _itemsize(dtype: str) -> int:
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 2 if "16" in dtype else 1


def type_of_array(dtype: np.dtype[np.generic], shape: Sequence[int]) -> ValueType:
    """The ONNX type of a numpy array."""
    return ValueType(ir.DataType.from_numpy(dtype), tuple(int(d) for d in shape))
