"""Asks a second runner about an origin: the nodes that hold the fault are computed by it, all others as before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bisect_tool.backends.inside import Opened, Surroundings
from bisect_tool.backends.onnx_graph import dtype_name
from bisect_tool.backends.onnx_program import Segment, ValueType, type_of_array
from bisect_tool.backends.ort_runner import PartRuns
from bisect_tool.backends.reference_runner import expected_seconds
from bisect_tool.backends.replay import CannotReplayError
from bisect_tool.backends.runners import Runner, runner_of
from bisect_tool.drilldown import LEAST_DROP
from bisect_tool.errors import InconclusiveError
from bisect_tool.noise import epsilon
from bisect_tool.records import NumericConfig, Origin, Stage, Witness
from bisect_tool.witnesses import MOST_SECONDS, heard, silent

Array = NDArray[Any]

WITNESS = NumericConfig("onnx-reference", optimization="off")
"""The configuration that is asked."""

MOST_SETTINGS = 100
"""Attributes and optional inputs that are tried before a runtime is blamed."""


def ask(
    around: Surroundings,
    origin: Origin,
    part: Opened,
    stage: Stage,
    config: NumericConfig,
    runner: Runner | None = None,
) -> Witness | None:
    """What a second runner makes of an origin's nodes, from the same inputs.

    Args:
        around: the run.
        origin: with the fewest nodes that certainly hold the fault.
        part: its whole stage, ready to run.
        stage: the origin's.
        config: of the judged side.
        runner: that is asked; ``None``: ONNX's reference evaluator.

    Returns:
        ``None`` where the judged side is that very runner.
    """
    if config.backend == WITNESS.backend and runner is None:
        return None
    runner = runner or runner_of(WITNESS)
    try:
        return _answer(around, origin, part, stage, config, runner)
    except (CannotReplayError, InconclusiveError) as error:
        return silent(runner.name, runner.version, str(error).splitlines()[0])


def _answer(
    around: Surroundings,
    origin: Origin,
    part: Opened,
    stage: Stage,
    config: NumericConfig,
    runner: Runner,
) -> Witness:
    program, types = around.program, around.types
    nodes = [node for node in program.graph.nodes if node.name in set(origin.onnx_nodes)]
    seconds, slowest = expected_seconds(nodes, lambda name: math.prod(types[name].shape) if name in types else 0)
    if seconds > MOST_SECONDS:
        text = f"not asked: it would take it about {seconds:.0f} s, most of it for {slowest}"
        return silent(runner.name, runner.version, text)
    own = program.part(origin.onnx_nodes)
    judged = PartRuns(program, config, program.part(part.nodes), part.feeds, types)
    inner = [name for name in own.reads if name not in part.feeds]
    values = judged.run({}, [part.output, *inner])
    actual = values[part.output]
    read = {name: part.feeds[name] if name in part.feeds else values[name] for name in own.reads}
    feeds = {name: array for name, array in read.items() if array is not None}
    # What the rest of the stage reads of these nodes.
    rest = [node for node in program.graph.nodes if node.name in set(part.nodes) - set(origin.onnx_nodes)]
    wanted = sorted(own.makes & {part.output, *(name for node in rest for name in node.inputs)})
    built = program.build(own, wanted, {**types, **{n: type_of_array(a.dtype, a.shape) for n, a in feeds.items()}})
    folder = str(program.weights_folder)

    def computed(by: Runner, model: bytes) -> list[Array | None]:
        return by.load(model, WITNESS if by is runner else config, folder).run(built.outputs, feeds)

    def result_with(made: list[Array | None]) -> Array:
        """The stage's value, with the nodes' own values given."""
        given = {name: array for name, array in zip(built.outputs, made, strict=True) if array is not None}
        value = given.get(part.output)
        value = judged.run(given, [part.output])[part.output] if value is None else value
        if value is None:
            raise InconclusiveError(f"{part.output} was not computed")
        return value

    def says(actual: Array, value: Array) -> Witness:
        name, version = runner.name, runner.version
        return heard(name, version, part.expected, actual, value, stage.dtype, part.floor, _rounding(own, types))

    if actual is None:
        raise InconclusiveError(f"{part.output} was not computed")
    made = computed(runner, built.model)
    value = result_with(made)
    witness = says(actual, value)
    if witness.says == "runtime":
        own_runner = runner_of(config)
        reason = _deaf_to(
            built.model,
            lambda model: _same(made, computed(runner, model)),
            lambda model: says(result_with(computed(own_runner, model)), value).against_actual_rel_l2,
            witness.against_actual_rel_l2,
        )
        if reason is not None:
            return replace(witness, says="unknown", reason=reason)
    return witness


def _rounding(part: Segment, types: Mapping[str, ValueType]) -> float:
    """Eps of the narrowest floating dtype among what a part reads and makes."""
    kinds = {types[name].dtype for name in (*part.reads, *part.makes) if name in types}
    return max((epsilon(dtype_name(kind)) for kind in kinds), default=0.0)


def _deaf_to(
    model: bytes, unheard: Callable[[bytes], bool], distance: Callable[[bytes], float | None], before: float | None
) -> str | None:
    """A setting that the witness leaves out of account and the judged runner does not, in words.

    Evaluators do not know every attribute of every operator. One that is wrong in the graph, and unknown to the witness,
    would put the blame on the runtime that heeds it. So each attribute and each optional input is left out: where that
    changes nothing for the witness, and takes the judged runner to the witness' value, the witness is none.
    """
    tried = 0
    for what, variant in _without_settings(model):
        tried += 1
        if tried > MOST_SETTINGS:
            return f"more than {MOST_SETTINGS} attributes would have to be tried before the runtime is blamed"
        try:
            closer = distance(variant) if unheard(variant) else None
        except InconclusiveError:
            continue  # it cannot be left out
        if closer is not None and before is not None and closer * LEAST_DROP < before:
            return f"it may not know {what}: without it both runners give one value"
    return None


def _without_settings(model: bytes) -> Iterator[tuple[str, bytes]]:
    """The model with one attribute, or one optional input, left out, and which."""
    nodes = onnx.ModelProto.FromString(model).graph.node
    for place, node in enumerate(nodes):
        name = f"of {node.name} ({node.op_type})"
        for number, attribute in enumerate(node.attribute):
            if attribute.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                variant = onnx.ModelProto.FromString(model)
                del variant.graph.node[place].attribute[number]
                yield f"{attribute.name} {name}", variant.SerializeToString()
        for number in range(1, len(node.input)):
            if node.input[number]:
                variant = onnx.ModelProto.FromString(model)
                variant.graph.node[place].input[number] = ""
                yield f"input {number} {name}", variant.SerializeToString()


def _same(first: list[Array | None], second: list[Array | None]) -> bool:
    return all(
        one is not None and other is not None and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
        for one, other in zip(first, second, strict=True)
    )
