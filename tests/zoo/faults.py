"""Kinds of faults that are planted into an ONNX graph, from gross to tiny, each where it applies."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import truth
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from truth import LEAST_MOVE, Healthy

Array = NDArray[Any]

WEIGHTS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 0, "LSTM": 1, "GRU": 1, "Gather": 1, "Einsum": 0}
"""Operators with a weight → the axis of its output channels."""

BIASES = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LayerNormalization": 2, "BatchNormalization": 2, "LSTM": 3}
BIASES.update({"InstanceNormalization": 2, "GroupNormalization": 2, "GRU": 3})
"""Operators with a bias → its input."""

NORMS = {"LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"}

# Results of these are arithmetic; what only moves numbers about, or handles shapes and masks, is left alone.
ARITHMETIC = {*WEIGHTS, *NORMS, "Relu", "Clip", "Gelu", "Erf", "Add", "Sub", "Mul", "Div", "Softmax", "LogSoftmax"}
ARITHMETIC |= {"Tanh", "Sigmoid", "LeakyRelu", "PRelu", "Elu", "HardSwish", "HardSigmoid", "Softplus", "AveragePool"}
ARITHMETIC |= {"GlobalAveragePool", "MaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "Sqrt", "Pow", "Exp"}
ARITHMETIC |= {
    "Resize",
    "CumSum",
    "Reciprocal",
    "ScatterElements",
    "ScatterND",
    "RMSNormalization",
    "Attention",
    "Swish",
}
ARITHMETIC -= {"Gather"}

OTHER_ACTIVATION = {
    "Relu": "Elu",
    "LeakyRelu": "Relu",
    "PRelu": "Relu",
    "Elu": "Relu",
    "Clip": "Relu",
    "Gelu": "Relu",
    "Swish": "Relu",
    "Erf": "Tanh",
    "Tanh": "Softsign",
    "Sigmoid": "HardSigmoid",
    "HardSigmoid": "Sigmoid",
    "HardSwish": "Relu",
    "Softplus": "Relu",
    "Softmax": "LogSoftmax",
    "LogSoftmax": "Softmax",
}

OTHER_REDUCTION = {
    "ReduceMean": "ReduceMax",
    "ReduceSum": "ReduceMean",
    "ReduceMax": "ReduceMean",
    "ReduceMin": "ReduceMean",
    "GlobalAveragePool": "GlobalMaxPool",
    "GlobalMaxPool": "GlobalAveragePool",
}


@dataclass(frozen=True)
class Fault:
    """A faulty graph.

    Attributes:
        model: the whole graph with its fault.
        kind: of the fault.
        place: name of the node it was planted at.
        nodes: names of the nodes of the faulty graph that hold it.
        before: value of the healthy graph that it moves first.
        after: the same value in the faulty graph.
        moved: how far, relative L2, on the same inputs; inf for NaN.
    """

    model: ModelProto
    kind: str
    place: str
    nodes: tuple[str, ...]
    before: str
    after: str
    moved: float


@dataclass(frozen=True)
class Edit:
    """What an edit changed: the nodes that hold it, and the value in the edited graph that tells."""

    nodes: tuple[str, ...]
    after: str


class Graph:
    """A graph that is being edited, with what its healthy run says about shapes and values."""

    def __init__(self, model: ModelProto, values: Mapping[str, Array]):
        self.model = model
        self.values = values
        self.nodes: dict[str, NodeProto] = {node.name: node for node in model.graph.node}
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made_by = {name: node for node in model.graph.node for name in node.output if name}
        self.live = self._live()

    def _live(self) -> frozenset[str]:
        """Values that depend on an input of the graph; the rest are constants, however they are written."""
        found = {value.name for value in self.model.graph.input} - self.initializers.keys()
        for node in self.model.graph.node:
            if any(name in found for name in node.input):
                found.update(name for name in node.output if name)
        return frozenset(found)

    def constant(self, name: str) -> Array | None:
        """The array of an initialiser or of a constant expression."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        if not name or name in self.live or name not in self.values:
            return None
        return self.values[name]

    def floats(self, name: str) -> Array | None:
        """A constant of floats."""
        array = self.constant(name)
        return array if array is not None and array.dtype == np.float32 else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        array = self.values.get(name)
        return None if array is None else array.shape

    def set_constant(self, node: NodeProto, place: int, array: Array | np.generic) -> Edit:
        """Gives a node a constant of its own: what other nodes read stays as it was."""
        name = self.free(f"{node.input[place]}_planted")
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        node.input[place] = name
        return Edit((node.name,), node.output[0])

    def add_constant(self, array: Array | np.generic) -> str:
        name = self.free("planted_constant")
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def free(self, name: str) -> str:
        taken = {*self.values, *self.nodes, *(tensor.name for tensor in self.model.graph.initializer)}
        taken |= {output for node in self.model.graph.node for output in node.output}
        taken |= {node.name for node in self.model.graph.node}
        number = 0
        while (found := f"{name}_{number}") in taken:
            number += 1
        return found

    def insert(
        self, node: NodeProto, op: str, inputs: Sequence[str], output: str, after: bool, **attributes: Any
    ) -> str:
        """Puts a node directly before or after another; returns its name. Several after one come in reverse order."""
        name = self.free(f"planted_{op}")
        made = helper.make_node(op, list(inputs), [output], name=name, **attributes)
        place = next(i for i, other in enumerate(self.model.graph.node) if other.name == node.name)
        self.model.graph.node.insert(place + after, made)
        return name

    def behind(self, node: NodeProto, steps: Sequence[tuple[str, Sequence[str], Mapping[str, Any]]]) -> Edit:
        """Sends a node's result through more nodes, whose last output takes the old name.

        Args:
            steps: operator, further inputs, attributes.
        """
        old = node.output[0]
        current = self.free(f"{old}_planted")
        names: list[str] = []
        node.output[0] = current
        last = node
        for number, (op, more, attributes) in enumerate(steps):
            target = old if number == len(steps) - 1 else self.free(f"{old}_planted")
            names.append(self.insert(last, op, [current, *more], target, True, **attributes))
            last = next(other for other in self.model.graph.node if other.name == names[-1])
            current = target
        return Edit(tuple(names), old)

    def before(self, node: NodeProto, place: int, op: str, more: Sequence[str], **attributes: Any) -> Edit:
        """Sends one input of a node through another node first; other readers of that value are left alone."""
        target = self.free(f"{node.input[place]}_planted")
        name = self.insert(node, op, [node.input[place], *more], target, False, **attributes)
        node.input[place] = target
        return Edit((name, node.name), node.output[0])


Apply = Callable[[Graph, NodeProto, random.Random], "Edit | None"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: in the table.
        applicable: whether a node of a graph can have it at all; cheap.
        apply: edits the graph; ``None``: not here after all.
    """

    name: str
    applicable: Callable[[NodeProto, Graph], bool]
    apply: Apply


KINDS: dict[str, Kind] = {}


def kind(name: str, *ops: str) -> Callable[[Apply], Apply]:
    """Enters an edit into ``KINDS``, for nodes of these types; without any: for arithmetic on floats."""
    allowed = frozenset(ops) or frozenset(ARITHMETIC)

    def applicable(node: NodeProto, graph: Graph) -> bool:
        value = graph.values.get(node.output[0])
        live = node.output[0] in graph.live and value is not None and value.dtype == np.float32
        return live and bool(value is not None and value.size) and node.op_type in allowed

    def enter(apply: Apply) -> Apply:
        KINDS[name] = Kind(name, applicable, apply)
        return apply

    return enter


def plant(base: Healthy, name: str, place: str, seed: str, model: ModelProto | None = None) -> Fault | None:
    """A fault of a kind at a node; ``None`` where it has no place there, or moves its value too little to count.

    Args:
        base: the healthy graph; it is not changed.
        name: of the kind.
        place: name of the node.
        seed: of what is left to chance.
        model: a graph that has another fault already; it is not changed either. How far this fault moves its value
            is measured on the healthy graph in any case.
    """
    alone = _edited(base, base.model, name, place, seed)
    if alone is None:
        return None
    faulty, edit, before = alone
    try:
        moved = truth.moved_by(base, faulty, before, edit.after)
    except Exception:  # ONNX Runtime has many kinds of no for a graph that is none
        return None
    value = base.values[before]
    if not moved > LEAST_MOVE or value.shape != truth.value_of(faulty, edit.after, base.feeds).shape:
        return None
    if model is not None:
        second = _edited(base, model, name, place, seed)
        if second is None:
            return None
        faulty, edit, before = second
    return Fault(faulty, name, place, edit.nodes, before, edit.after, moved)


def _edited(base: Healthy, model: ModelProto, name: str, place: str, seed: str) -> tuple[ModelProto, Edit, str] | None:
    copied = ModelProto()
    copied.CopyFrom(model)
    graph = Graph(copied, base.values)
    node = graph.nodes.get(place)
    if node is None or not KINDS[name].applicable(node, graph):
        return None
    before = node.output[0]
    edit = KINDS[name].apply(graph, node, random.Random(f"{seed} {name} {place}"))
    return None if edit is None else (copied, edit, before)


def places(base: Healthy, name: str, seed: str) -> list[str]:
    """Nodes that can have a kind of fault, in a frozen random order, in which each type of node comes early."""
    graph = Graph(base.model, base.values)
    order = random.Random(f"{seed} {name}")
    found = [node for node in base.model.graph.node if KINDS[name].applicable(node, graph)]
    order.shuffle(found)
    types = sorted({node.op_type for node in found})
    order.shuffle(types)
    counted: dict[str, int] = {}
    rank: dict[str, tuple[int, int]] = {}
    for node in found:
        number = counted[node.op_type] = counted.get(node.op_type, 0) + 1
        rank[node.name] = (number, types.index(node.op_type))
    return sorted(rank, key=rank.__getitem__)


def faults(base: Healthy, name: str, seed: str, count: int) -> Iterator[Fault]:
    """The first faults of a kind, at different nodes, that move their value far enough to count."""
    left = count
    for place in places(base, name, seed):
        if left == 0:
            return
        fault = plant(base, name, place, seed)
        if fault is not None:
            left -= 1
            yield fault


def scope_of(node: NodeProto) -> str:
    """Where in the model a node belongs, as the exporter tells: two faults in one model lie in different places."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            # The last entry is the call itself.
            return str(([""] + ast.literal_eval(entry.value))[-2])
    return node.name.rsplit("/", 1)[0]


def apart(base: Healthy, one: str, two: str) -> bool:
    """Whether two nodes surely lie in different stages: in different modules, or far apart where there are none."""
    places = {node.name: number for number, node in enumerate(base.model.graph.node)}
    scopes = {node.name: scope_of(node) for node in base.model.graph.node}
    if len({scope for scope in scopes.values() if scope}) > 4:
        return scopes[one] != scopes[two]
    return abs(places[one] - places[two]) > 12


def reach_outputs(model: ModelProto, names: Sequence[str]) -> bool:
    """Whether what these nodes compute still has a way to an output: another fault may have cut it off."""
    read = {value.name for value in model.graph.output}
    found = set()
    for node in reversed(model.graph.node):
        if any(name in read for name in node.output):
            found.add(node.name)
            read.update(node.input)
    return found.issuperset(names)


def two_faults(base: Healthy, seed: str) -> tuple[Fault, Fault] | None:
    """Two faults of different kinds in different stages of one graph; the model of the second has both."""
    order = random.Random(f"{seed} two")
    for _ in range(60):
        kinds = order.sample(sorted(KINDS), 2)
        spots = [places(base, name, seed) for name in kinds]
        if not all(spots):
            continue
        one, two = (order.choice(found) for found in spots)
        if not apart(base, one, two):
            continue
        first = plant(base, kinds[0], one, seed)
        second = plant(base, kinds[1], two, seed, first.model) if first is not None else None
        if first is None or second is None:
            continue
        if reach_outputs(second.model, [*first.nodes, *second.nodes]) and truth.can_run(second.model, base.feeds):
            return first, second
    return None


# -- weights ----------------------------------------------------------------------------------------------------------


def _weight(graph: Graph, node: NodeProto) -> tuple[int, Array] | None:
    """The place and the array of a node's weight."""
    # The table of an embedding is a Gather's first input; a product may have its constant on either side.
    for place in (0, 1) if node.op_type in ("MatMul", "Gather", "Einsum") else (1,):
        array = graph.floats(node.input[place]) if place < len(node.input) else None
        if array is not None and array.ndim > 1:
            return place, array.copy()
    return None


def _weight_kind(name: str, edit: Callable[[Array, int, random.Random], Array | None]) -> None:
    """A kind that changes the numbers of a weight; ``edit`` gets the array and the axis of output channels."""

    def apply(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
        found = _weight(graph, node)
        if found is None:
            return None
        axis = WEIGHTS[node.op_type]
        if node.op_type == "Gemm" and not _attribute(node, "transB", 0):
            axis = 1
        array = edit(found[1], axis, order)
        return None if array is None else graph.set_constant(node, found[0], array.astype(np.float32))

    kind(name, *WEIGHTS)(apply)


def _numbers(order: random.Random) -> np.random.Generator:
    return np.random.default_rng(order.getrandbits(32))


def _nan_element(array: Array, axis: int, order: random.Random) -> Array | None:
    array.flat[order.randrange(array.size)] = np.nan
    return array


def _transposed(array: Array, axis: int, order: random.Random) -> Array | None:
    if array.shape[-1] != array.shape[-2] or array.shape[-1] < 2:
        return None
    turned: Array = array.swapaxes(-1, -2)
    return turned


def _swapped_channels(array: Array, axis: int, order: random.Random) -> Array | None:
    if array.shape[axis] < 2:
        return None
    one, two = order.sample(range(array.shape[axis]), 2)
    moved = np.moveaxis(array, axis, 0)
    moved[[one, two]] = moved[[two, one]]
    return array


def _zeroed_channel(array: Array, axis: int, order: random.Random) -> Array | None:
    np.moveaxis(array, axis, 0)[order.randrange(array.shape[axis])] = 0
    return array


def _changed_element(array: Array, axis: int, order: random.Random) -> Array | None:
    array.flat[order.randrange(array.size)] += 2 * array.std()
    return array


def _stale(array: Array, axis: int, order: random.Random) -> Array | None:
    drawn: Array = _numbers(order).standard_normal(array.shape)
    made: Array = array.mean() + array.std() * drawn
    return made


def _int8(array: Array, axis: int, order: random.Random) -> Array | None:
    step = np.abs(array).max() / 127
    return np.round(array / step) * step if step else None


_weight_kind("weight: NaN", _nan_element)
_weight_kind("weight: transposed", _transposed)
_weight_kind("weight: channels swapped", _swapped_channels)
_weight_kind("weight: channel zeroed", _zeroed_channel)
_weight_kind("weight: one element", _changed_element)
_weight_kind("weight: stale", _stale)
_weight_kind("weight: a little stale", lambda a, *_: a + 1e-3 * a.std() * np.sin(np.arange(a.size)).reshape(a.shape))
_weight_kind("weight: × 1.00005", lambda a, *_: a * 1.00005)
_weight_kind("weight: float16", lambda a, *_: a.astype(np.float16))
_weight_kind("weight: bfloat16", lambda a, *_: a.astype(ml_dtypes.bfloat16))
_weight_kind("weight: int8", _int8)


@kind("bias: sign", *BIASES, "Add")
def _bias_sign(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    spots = range(len(node.input)) if node.op_type == "Add" else [BIASES[node.op_type]]
    for place in spots:
        array = graph.floats(node.input[place]) if place < len(node.input) else None
        if array is not None and array.size > 1:
            return graph.set_constant(node, place, -array)
    return None


@kind("bias: a little", *BIASES, "Add")
def _bias_moved(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    """As much as moves the result by 5e-5 of its size, on average."""
    spots = range(len(node.input)) if node.op_type == "Add" else [BIASES[node.op_type]]
    size = _size(graph.values[node.output[0]])
    for place in spots:
        array = graph.floats(node.input[place]) if place < len(node.input) else None
        if array is not None and array.size > 1 and 0 < size < np.inf:
            signs = np.where(np.arange(array.size) % 2, 1, -1).reshape(array.shape)
            return graph.set_constant(node, place, (array + 5e-5 * size * signs).astype(np.float32))
    return None


@kind("statistics: stale", "BatchNormalization")
def _stale_statistics(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    mean = graph.floats(node.input[3])
    return None if mean is None else graph.set_constant(node, 3, 0.9 * mean)


@kind("recurrence: gates", "LSTM", "GRU")
def _gates(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    array = graph.floats(node.input[1])
    if array is None:
        return None
    parts = np.split(array, 4 if node.op_type == "LSTM" else 3, axis=1)
    return graph.set_constant(node, 1, np.concatenate([parts[1], parts[0], *parts[2:]], axis=1))


@kind("recurrence: reset", "GRU")
def _reset(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    return _set(node, "linear_before_reset", 1 - int(_attribute(node, "linear_before_reset", 0)))


def _scalar_kind(name: str, factor: float) -> None:
    @kind(name, "Mul", "Div", "Add", "Sub", "Pow")
    def apply(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
        for place, value in enumerate(node.input):
            array = graph.floats(value)
            if array is not None and array.size == 1 and 1e-3 < abs(array.item()) < 1e3:
                return graph.set_constant(node, place, (array * factor).astype(np.float32))
        return None


_scalar_kind("constant: 2 %", 1.02)
_scalar_kind("constant: 0.005 %", 1.00005)


def _size(array: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


# -- results ----------------------------------------------------------------------------------------------------------


@kind("result: NaN")
def _nan_result(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    value = graph.values[node.output[0]]
    added = np.zeros(value.shape, np.float32)
    added.reshape(-1)[order.randrange(value.size)] = np.nan
    return graph.behind(node, [("Add", [graph.add_constant(added)], {})])


def _cast_kind(name: str, dtype: int) -> None:
    @kind(name)
    def apply(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
        return graph.behind(node, [("Cast", [], {"to": dtype}), ("Cast", [], {"to": TensorProto.FLOAT})])


_cast_kind("result: float16", TensorProto.FLOAT16)
_cast_kind("result: bfloat16", TensorProto.BFLOAT16)


def _scale_kind(name: str, factor: float) -> None:
    @kind(name)
    def apply(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
        return graph.behind(node, [("Mul", [graph.add_constant(np.float32(factor))], {})])


_scale_kind("result: × 1.001", 1.001)
_scale_kind("result: × 1.00005", 1.00005)


def _offset_kind(name: str, share: float) -> None:
    @kind(name)
    def apply(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
        size = _size(graph.values[node.output[0]])
        if not 0 < size < np.inf:
            return None
        return graph.behind(node, [("Add", [graph.add_constant(np.float32(share * size))], {})])


_offset_kind("result: offset 1e-3", 1e-3)
_offset_kind("result: offset 5e-5", 5e-5)


@kind("result: int8")
def _quantised(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    value = graph.values[node.output[0]]
    top = float(np.abs(value).max())
    if not 0 < top < np.inf:
        return None
    scale, zero = graph.add_constant(np.float32(top / 127)), graph.add_constant(np.int8(0))
    return graph.behind(node, [("QuantizeLinear", [scale, zero], {}), ("DequantizeLinear", [scale, zero], {})])


@kind("result: saturated")
def _saturated(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    value = graph.values[node.output[0]]
    low, high = float(value.min()), float(value.max())
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        return None
    bounds = [graph.add_constant(np.float32(0.8 * bound)) for bound in (low, high)]
    return graph.behind(node, [("Clip", bounds if low < 0 < high else ["", bounds[1]], {})])


# -- attributes and operators -----------------------------------------------------------------------------------------


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _set(node: NodeProto, name: str, value: Any) -> Edit:
    kept: list[AttributeProto] = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return Edit((node.name,), node.output[0])


def _become(node: NodeProto, op: str, inputs: int = 1, keep: Sequence[str] = ()) -> Edit:
    """Another operator on a node's first inputs."""
    kept = [a for a in node.attribute if a.name in keep]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.op_type = op
    del node.input[inputs:]
    return Edit((node.name,), node.output[0])


def _epsilon_kind(name: str, factor: float) -> None:
    @kind(name, *NORMS, "RMSNormalization", "Add", "Clip", "Max")
    def apply(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
        if node.op_type in NORMS or node.op_type == "RMSNormalization":
            return _set(node, "epsilon", factor * float(_attribute(node, "epsilon", 1e-5)))
        for place, value in enumerate(node.input):
            array = graph.floats(value)
            if array is not None and array.size == 1 and 0 < array.item() < 1e-3:
                return graph.set_constant(node, place, array * np.float32(factor))
        return None


_epsilon_kind("norm: epsilon × 1000", 1000)
_epsilon_kind("norm: epsilon × 10", 10)


@kind("gelu: approximation", "Gelu", "Erf")
def _gelu(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    if node.op_type == "Gelu":
        return _set(node, "approximate", "none" if _attribute(node, "approximate", "none") == "tanh" else "tanh")
    # Erf of x / √2, as GELU by tanh has it: tanh(√(2/π) (x + 0.044715 x³)).
    value, wide = node.input[0], float(np.sqrt(2.0))
    steps = [
        graph.free("planted_cube"),
        graph.free("planted_term"),
        graph.free("planted_sum"),
        graph.free("planted_arg"),
    ]
    scale = float(np.sqrt(2 / np.pi))
    constants = [graph.add_constant(np.float32(number)) for number in (3, 0.044715 * 2, wide * scale)]
    names = [
        graph.insert(node, "Pow", [value, constants[0]], steps[0], False),
        graph.insert(node, "Mul", [steps[0], constants[1]], steps[1], False),
        graph.insert(node, "Add", [value, steps[1]], steps[2], False),
        graph.insert(node, "Mul", [steps[2], constants[2]], steps[3], False),
    ]
    node.op_type = "Tanh"
    node.input[0] = steps[3]
    return Edit((*names, node.name), node.output[0])


@kind("activation: another", *OTHER_ACTIVATION)
def _activation(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    return _become(node, OTHER_ACTIVATION[node.op_type], keep=("axis",) if "oftmax" in node.op_type else ())


@kind("activation: slope", "LeakyRelu", "Elu", "HardSigmoid", "PRelu")
def _slope(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    if node.op_type == "PRelu":
        array = graph.floats(node.input[1])
        return None if array is None else graph.set_constant(node, 1, array * np.float32(1.05))
    default = {"LeakyRelu": 0.01, "Elu": 1.0, "HardSigmoid": 0.2}[node.op_type]
    return _set(node, "alpha", 1.05 * float(_attribute(node, "alpha", default)))


@kind("activation: bounds", "Clip")
def _bounds(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    for place, factor, more in ((2, 0.9, 0.0), (1, 1.0, 0.1)):
        array = graph.floats(node.input[place]) if place < len(node.input) else None
        if array is not None and abs(array.item()) < 100:
            return graph.set_constant(node, place, np.float32(factor * array.item() + more))
    return None


@kind("softmax: axis", "Softmax", "LogSoftmax")
def _softmax_axis(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    shape = graph.values[node.output[0]].shape
    axis = int(_attribute(node, "axis", -1)) % len(shape)
    others = [i for i, size in enumerate(shape) if i != axis and size > 1]
    return _set(node, "axis", order.choice(others)) if others else None


@kind("window: pads shifted", "Conv", "MaxPool", "AveragePool", "ConvTranspose", "Pad")
def _pads(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    if node.op_type == "Pad":
        array = graph.constant(node.input[1])
        pads = None if array is None else [int(number) for number in array]
    else:
        pads = [int(number) for number in _attribute(node, "pads", [])]
    if not pads:
        return None
    half = len(pads) // 2
    axes = [i for i in range(half) if pads[i] > 0]
    if not axes:
        return None
    axis = order.choice(axes)
    pads[axis] -= 1
    pads[axis + half] += 1
    if node.op_type == "Pad":
        return graph.set_constant(node, 1, np.asarray(pads, dtype=np.int64))
    return _set(node, "pads", pads)


@kind("window: padding counted", "AveragePool")
def _count_include_pad(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    return _set(node, "count_include_pad", 1 - int(_attribute(node, "count_include_pad", 0)))


@kind("window: ceil mode", "AveragePool", "MaxPool")
def _ceil_mode(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    # One more row at the end; what stands behind takes the old size, so that only the first rows' place could tell.
    pads = [int(number) for number in _attribute(node, "pads", [])]
    if not any(pads):
        return None
    half = len(pads) // 2
    _set(node, "pads", [0] * half + [2 * number for number in pads[:half]])
    return _set(node, "ceil_mode", 1 - int(_attribute(node, "ceil_mode", 0)))


@kind("pool: another", "MaxPool", "AveragePool")
def _pool(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    keep = ("kernel_shape", "pads", "strides", "ceil_mode", "auto_pad")
    if len([name for name in node.output if name]) > 1:
        return None
    return _become(node, "AveragePool" if node.op_type == "MaxPool" else "MaxPool", keep=keep)


@kind("pad: mode", "Pad")
def _pad_mode(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    mode = _attribute(node, "mode", "constant")
    del node.input[2:]
    return _set(node, "mode", "edge" if mode != "edge" else "constant")


@kind("resize: coordinates", "Resize")
def _coordinates(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    mode = _attribute(node, "coordinate_transformation_mode", "half_pixel")
    other = {"half_pixel": "align_corners", "pytorch_half_pixel": "asymmetric"}.get(mode, "half_pixel")
    return _set(node, "coordinate_transformation_mode", other)


@kind("resize: nearest", "Resize")
def _nearest(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    mode = _attribute(node, "nearest_mode", "round_prefer_floor")
    return _set(node, "nearest_mode", "ceil" if mode != "ceil" else "floor")


@kind("resize: mode", "Resize")
def _resize_mode(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    return _set(node, "mode", "cubic" if _attribute(node, "mode", "nearest") == "linear" else "linear")


@kind("order: axes", "Transpose")
def _axes(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    shape = graph.values[node.output[0]].shape
    perm = [int(axis) for axis in _attribute(node, "perm", range(len(shape))[::-1])]
    pairs = [(i, j) for i in range(len(shape)) for j in range(i) if shape[i] == shape[j] > 1]
    if not pairs:
        return None
    i, j = order.choice(pairs)
    perm[i], perm[j] = perm[j], perm[i]
    return _set(node, "perm", perm)


@kind("order: concat", "Concat")
def _concat(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    places = range(len(node.input))
    pairs = [(i, j) for i in places for j in range(i) if graph.shape(node.input[i]) == graph.shape(node.input[j])]
    if not pairs:
        # Of different sizes: the sum is the same, only the places of the parts are not.
        pairs = [(1, 0)] if len(node.input) == 2 else []
    if not pairs:
        return None
    i, j = order.choice(pairs)
    node.input[i], node.input[j] = node.input[j], node.input[i]
    return Edit((node.name,), node.output[0])


@kind("order: operands", "Sub", "Div", "Pow")
def _operands(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return Edit((node.name,), node.output[0])


@kind("order: input channels", "Conv", "MatMul", "Gemm", "BatchNormalization")
def _channels(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    """The channels of the graph's own input reversed, as RGB for BGR."""
    if node.input[0] not in {value.name for value in graph.model.graph.input}:
        return None
    shape = graph.shape(node.input[0])
    axis = 1 if node.op_type in ("Conv", "BatchNormalization") else -1
    if shape is None or shape[axis] < 2:
        return None
    backwards = graph.add_constant(np.arange(shape[axis] - 1, -1, -1, dtype=np.int64))
    return graph.before(node, 0, "Gather", [backwards], axis=axis % len(shape))


@kind("residual: dropped", "Add", "Sum")
def _residual(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    alive = [name in graph.live for name in node.input]
    shapes = [graph.shape(name) for name in node.input]
    if len(alive) != 2 or not all(alive) or shapes[0] != shapes[1]:
        return None
    if order.random() < 0.5:
        node.input[0] = node.input[1]
    return _become(node, "Identity")


@kind("mask: dropped", "Add", "Where")
def _mask(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    """Attention without its mask: additive, or by a choice."""
    shape = graph.shape(node.output[0])
    spots = (1, 2) if node.op_type == "Where" else (0, 1)
    for place, other in (spots, spots[::-1]):
        array = graph.values.get(node.input[place])
        array = graph.constant(node.input[place]) if array is None else array
        masks = array is not None and array.dtype == np.float32 and array.size > 0 and float(array.min()) < -1e3
        if masks and graph.shape(node.input[other]) == shape and node.input[other] in graph.live:
            node.input[0] = node.input[other]
            return _become(node, "Identity")
    return None


@kind("branch: other", "Where")
def _branch(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    node.input[1], node.input[2] = node.input[2], node.input[1]
    return Edit((node.name,), node.output[0])


@kind("index: off by one", "Gather", "GatherElements", "GatherND")
def _index(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    if node.input[0] not in graph.live and _weight(graph, node) is None:
        return None
    indices = graph.values.get(node.input[1])
    indices = graph.constant(node.input[1]) if indices is None else indices
    if indices is None or indices.size == 0:
        return None
    one = graph.add_constant(np.asarray(1, dtype=indices.dtype))
    # One less is always allowed while the least is not: -1 counts from the end.
    return graph.before(node, 1, "Sub", [one]) if indices.min() >= 0 else graph.before(node, 1, "Add", [one])


@kind("index: slice", "Slice")
def _slice(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    """A window of the same length, one further on or back."""
    starts, ends = graph.constant(node.input[1]), graph.constant(node.input[2])
    axes = graph.constant(node.input[3]) if len(node.input) > 3 else None
    shape = graph.shape(node.input[0])
    if starts is None or ends is None or axes is None or shape is None or starts.size != 1:
        return None
    size, start = shape[int(axes.item())], int(starts.item())
    length = graph.values[node.output[0]].shape[int(axes.item())]
    start = start % size if start < 0 else start
    step = 1 if start + length < size else -1
    if start + step < 0:
        return None
    graph.set_constant(node, 1, np.full_like(starts, start + step))
    return graph.set_constant(node, 2, np.full_like(ends, start + step + length))


@kind("scatter: reduction", "ScatterElements", "ScatterND")
def _scatter(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    return _set(node, "reduction", "none" if _attribute(node, "reduction", "none") != "none" else "add")


@kind("reduction: another", *OTHER_REDUCTION)
def _reduction(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    node.op_type = OTHER_REDUCTION[node.op_type]
    # Before opset 18 only sums take their axes as an input: then the checker of ONNX Runtime refuses, and it counts not.
    return Edit((node.name,), node.output[0])


@kind("reduction: running sum", "CumSum")
def _cumsum(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    return _set(node, order.choice(("exclusive", "reverse")), 1)


@kind("topk: other end", "TopK")
def _topk(graph: Graph, node: NodeProto, order: random.Random) -> Edit | None:
    return _set(node, "largest", 1 - int(_attribute(node, "largest", 1)))
