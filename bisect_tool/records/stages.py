"""Both sides' structure: stages of the model, nodes of the graph, and which belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bisect_tool.records.words import Level

OutputKey = int | str


@dataclass(frozen=True, slots=True)
class StageRef:
    """Names one tensor of one run: module path, number of the call (from 0), output index or key."""

    stage: str
    call: int
    output: OutputKey

    def __str__(self) -> str:
        text = self.stage or "(model)"
        if self.call:
            text += f"@{self.call}"
        return text if self.output == 0 else f"{text}[{self.output}]"


@dataclass(frozen=True, slots=True)
class Stage:
    """One tensor that PyTorch computed, at one level.

    Attributes:
        ref: its name.
        level: ``op`` (an aten operation), ``leaf`` (a module without children, or an operation between modules),
            ``container`` (a module with children; the whole model has the path ``""``).
        type: class name of the module, or the operation's name.
        source: ``file:line`` in the user's code that called it, if known.
        shape: as PyTorch made it.
        dtype: short name, ``float32``.
        value: identity of the tensor in its trace; two stages with one value are aliases.
        inputs: values that the stage reads and that were made outside it, in the order of first use.
        order: when its value was complete, counted in operations; a topological order of the run.
        alias_of: the stage whose value this one hands on unchanged (dropout in ``eval()``, a container's last child).
    """

    ref: StageRef
    level: Level
    type: str
    source: str | None
    shape: tuple[int, ...]
    dtype: str
    value: int
    inputs: tuple[int, ...]
    order: int
    alias_of: StageRef | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a model lies in it, so that its stages can bear the names that they have in the whole.

    Attributes:
        paths: of the part's modules, as ``named_modules()`` of the part and of the whole model have them.
        calls: how often each module (path in the whole model) was called before the part was.
    """

    paths: Mapping[str, str]
    calls: Mapping[str, int]

    def ref(self, ref: StageRef) -> StageRef:
        """A stage's name in the whole model."""
        module, slash, operation = ref.stage.partition("/")
        if module not in self.paths:
            return ref
        path = self.paths[module]
        return StageRef(path + slash + operation, ref.call + self.calls.get(path, 0), ref.output)


@dataclass(frozen=True, slots=True)
class TorchTrace:
    """Structure of a PyTorch run; the tensors themselves are elsewhere.

    Attributes:
        stages: at every level, in the order in which their values were complete.
        parents: for each value the values that its operation read and that depend on an input of the run.
        inputs, outputs: keys and values of the run's own inputs and outputs.
        modules: paths of all modules, also of those that never ran; a module registered at several places has one path
            here for each, all mapped to the first.
    """

    stages: tuple[Stage, ...]
    parents: Mapping[int, tuple[int, ...]]
    inputs: tuple[tuple[OutputKey, int], ...]
    outputs: tuple[tuple[OutputKey, int], ...]
    modules: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """A node of the given graph.

    Attributes:
        name: as in the file; a stable invented one (``Conv_17``, the number is the place) where the file has none.
        op_type, domain: the operator.
        inputs, outputs: value names; values that only a subgraph (``If``, ``Loop``) reads count as inputs of its node.
        scopes: module scopes, outermost first, as the exporter wrote them; () where there are none.
        call: the exporter's own name for the aten call (an FX node's name); ``None`` where there is none.
        target: aten operation that the node was made from; ``None`` if unknown.
        source: ``file:line`` from the exporter's stack trace.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scopes: tuple[str, ...]
    call: str | None
    target: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """Structure of an ONNX graph, nodes in a topological order; initialisers are values without a producer.

    Attributes:
        inputs, outputs: names, initialisers left out.
        nodes: in a topological order.
        shapes: of values whose shape is static, by name.
        dtypes: short names (``float32``), by value name, where the file says so.
        exporter: ``dynamo`` | ``torchscript`` | the producer's name.
        input_dims: of inputs whose rank the file says: sizes, and the names (or "?") of dynamic ones.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    initializers: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    exporter: str
    input_dims: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A stage and the ONNX value that stands for it, with the evidence that they belong together."""

    ref: StageRef
    onnx_value: str
    evidence: tuple[str, ...]
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Unaligned:
    """A stage without an ONNX value.

    Attributes:
        reason: one sentence.
        in_graph: false where the graph holds no value for the stage at all (folded or fused away by the exporter):
            such stages do not count against coverage.
    """

    ref: StageRef
    reason: str
    in_graph: bool


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which ONNX value stands for which stage, and what was left over on both sides."""

    pairs: tuple[Pair, ...]
    unaligned: tuple[Unaligned, ...]
    unmatched_onnx: tuple[str, ...]
    stages: int
    aligned: int
    coverage: float | None
