"""Runs of a whole graph as it is deployed: at another level, without some passes, with a few values looked at."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bisect_tool.backends.onnx_graph import describe, name_everything
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_options import changing_passes, providers, session_log
from bisect_tool.backends.ort_runner import make_session, run_session
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import NumericConfig, OnnxGraph, OnnxNode
from bisect_tool.switches import PASSES
from bisect_tool.temporary import temporary_folder

Array = NDArray[Any]
Outputs = dict[str, Array | None]

SWITCH = "disabled_passes"
MOST_WEIGHTS = 500_000_000
"""Bytes of weights up to which the optimised graph is written and read: its file holds them."""

NodeKey = tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class Optimised:
    """A graph as the optimiser left it.

    Attributes:
        graph: its structure.
        keys: of each node, the same in every session: names that the optimiser invents are left out.
    """

    graph: OnnxGraph
    keys: Counter[NodeKey]

    def changed(self, other: Optimised) -> int:
        """Nodes that only one of the two has."""
        return ((self.keys - other.keys) + (other.keys - self.keys)).total()


class OptimisedRuns:
    """One graph under one configuration of ONNX Runtime, again and again.

    Args:
        program: the graph; it runs as its file has it.
        config: of ONNX Runtime's side, as deployed.
        feeds: inputs by name.
    """

    def __init__(self, program: OnnxProgram, config: NumericConfig, feeds: Mapping[str, Array]):
        self._program = program
        self._config = config
        self._feeds = feeds
        self._model = program.untouched()
        self._folder = str(program.weights_folder)
        self._readable = program.weight_bytes() < MOST_WEIGHTS
        self.names: tuple[str, ...] = tuple(program.graph.outputs)
        own = config.switches.get(SWITCH)
        self._own = tuple(str(own).split(";")) if own else ()

    def config(self, level: str, disabled: Sequence[str]) -> NumericConfig:
        """The deployed configuration at a level, without some passes more."""
        left_out = ";".join(dict.fromkeys([*self._own, *disabled]))
        switches = {**self._config.switches, SWITCH: left_out} if left_out else dict(self._config.switches)
        return replace(self._config, optimization=level, switches=switches)

    def changing(self, level: str, disabled: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Passes that change this graph and can be left out, each with its level, in the order in which they run.

        ONNX Runtime's log says which; of rules it names only the group, so that all rules of that group stand for it.

        Args:
            level: of optimisation.
            disabled: passes that are left out.
        """
        config = self.config(level, disabled)
        key = "session.model_external_initializers_file_folder_path"
        log = session_log(self._model, providers(config), {key: self._folder}, config)
        levels = {known.name: known.level for known in PASSES}
        left_out = {*self._own, *disabled}
        names = [name for name in changing_passes(log) if name not in left_out]
        return [(name, levels.get(name, "extended")) for name in names]

    def run(self, level: str, disabled: Sequence[str] = (), exposed: Sequence[str] = ()) -> Outputs:
        """Final outputs, and the values that are to be looked at.

        Raises:
            InconclusiveError: it does not load or does not run.
        """
        model = self._with_outputs(exposed) if exposed else self._model
        session = make_session(model, self.config(level, disabled), self._folder)
        wanted = list(dict.fromkeys([output.name for output in session.get_outputs()]))
        return dict(zip(wanted, run_session(session, wanted, self._feeds), strict=True))

    def run_and_look(self, level: str, disabled: Sequence[str] = ()) -> tuple[Outputs, Optimised | None]:
        """As :meth:`run`, and the optimised graph; ``None`` in its place where its weights are too many.

        Raises:
            InconclusiveError: as there.
        """
        if not self._readable:
            return self.run(level, disabled), None
        with temporary_folder() as folder:
            path = Path(folder) / "optimized.onnx"
            session = make_session(self._model, self.config(level, disabled), self._folder, optimized=path)
            wanted = list(dict.fromkeys([output.name for output in session.get_outputs()]))
            seen = self._read(path)
        return dict(zip(wanted, run_session(session, wanted, self._feeds), strict=True)), seen

    def look(self, level: str, disabled: Sequence[str] = ()) -> Optimised | None:
        """The optimised graph alone, also where it does not run; ``None`` where it cannot be had."""
        with contextlib.suppress(InconclusiveError), temporary_folder() as folder:
            path = Path(folder) / "optimized.onnx"
            if self._readable:
                make_session(self._model, self.config(level, disabled), self._folder, optimized=path)
                return self._read(path)
        return None

    def _read(self, path: Path) -> Optimised:
        proto = onnx.load(str(path), load_external_data=False)
        known = self.given_values()
        keys = Counter(_key(node, known, _opsets(proto)) for node in proto.graph.node)
        # Only the structure counts; weights may be large.
        del proto.graph.value_info[:]
        for tensor in proto.graph.initializer:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            del tensor.dims[:]
            tensor.dims.append(0)
        model = ir.from_proto(proto)
        name_everything(model.graph)
        return Optimised(describe(model), keys)

    def keys_of(self, nodes: Sequence[OnnxNode]) -> list[NodeKey]:
        """Nodes of the given graph as :class:`Optimised` tells them, where they would be left as they are."""
        known = self.given_values()
        wanted = {name for node in nodes for name in node.outputs if name}
        model = onnx.ModelProto.FromString(self._model)
        return [_key(node, known, _opsets(model)) for node in model.graph.node if not wanted.isdisjoint(node.output)]

    def given_values(self) -> Set[str]:
        """Names that the file itself gives: the optimiser may invent others."""
        graph = self._program.graph
        return {*self._program.makers, *graph.inputs, *graph.initializers}

    def _with_outputs(self, exposed: Sequence[str]) -> bytes:
        """The model with more outputs; ONNX Runtime infers their types."""
        model = onnx.ModelProto.FromString(self._model)
        there = {output.name for output in model.graph.output}
        for name in exposed:
            if name not in there:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        return bytes(model.SerializeToString())


def _key(node: onnx.NodeProto, known: Set[str], opsets: Mapping[str, int]) -> NodeKey:
    return (
        node.op_type,
        node.domain,
        tuple(name for name in node.input if name in known),
        tuple(name for name in node.output if name in known),
        tuple(
            sorted(
                attribute.SerializeToString(deterministic=True)
                for attribute in node.attribute
                if not _is_default(node, attribute, opsets.get(node.domain, 1))
            )
        ),
    )


def _is_default(node: onnx.NodeProto, attribute: onnx.AttributeProto, opset: int) -> bool:
    """Whether an attribute says what would hold without it: ONNX Runtime writes some out once anything has changed."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    declared = schema.attributes.get(attribute.name)
    if declared is None or declared.default_value.type == onnx.AttributeProto.UNDEFINED:
        return False
    value, default = (onnx.helper.get_attribute_value(each) for each in (attribute, declared.default_value))
    return bool(value == default)


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {"" if each.domain == "ai.onnx" else each.domain: each.version for each in model.opset_import}
