"""What ONNX Runtime computes in a graph, as stages of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.backends.inputs import bind_inputs
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram, type_of_array
from bisect_tool.backends.ort_runner import OrtRunner, UntouchedRun, make_session, run_session
from bisect_tool.backends.unfold import unfold
from bisect_tool.errors import InconclusiveError
from bisect_tool.inspection import Inspection
from bisect_tool.records import NumericConfig

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class OnnxRun:
    """Stages, outputs and inputs as ``recorder.Recording.put_stages`` takes them.

    Attributes:
        configuration: what ran, and what of it was read back.
        notes: on inputs that were bound or converted, and on what was taken apart.
    """

    stages: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    inputs: tuple[Mapping[str, Any], ...]
    configuration: Mapping[str, Any]
    notes: tuple[str, ...]


def run_onnx(
    path: Path, tensors: Sequence[tuple[str, Any]], config: NumericConfig, inspection: Inspection | None = None
) -> OnnxRun:
    """Runs a graph as given for its outputs, and once more with its inner values exposed for the stages.

    Args:
        path: of the file.
        tensors: of the sample, with their names.
        config: of ONNX Runtime's side.
        inspection: of the model behind it; then stages have that model's names and layout. Without it they are the
            graph's own values.

    Raises:
        BisectError: the sample does not fit, or the file can't be read.
        InconclusiveError: ONNX Runtime does not run it.
    """
    program = OnnxProgram(load_onnx(path), path)
    bound = bind_inputs(program.graph, tensors)
    feeds = dict(bound.feeds)
    untouched = UntouchedRun(program, config)
    results = untouched.run(feeds)
    program, taken_apart = unfold(program, feeds, replace(config, optimization="off"))
    program.assume_shapes({name: array.shape for name, array in feeds.items()})
    outputs: list[dict[str, Any]]
    values = _exposed(program, feeds, config, None if inspection is None else _wanted(inspection))
    if inspection is None:
        stages = _own_stages(program, values)
        outputs = [{"key": name, "array": array} for name, array in results.items() if array is not None]
    else:
        stages = _model_stages(inspection, values)
        names = {bound_output.output: bound_output.onnx_output for bound_output in inspection.outputs}
        outputs = [{"key": key, "array": results[n]} for key, n in names.items() if n and results.get(n) is not None]
    configuration = {
        "backend": "onnxruntime",
        "runtime": OrtRunner().version,
        "device": config.device,
        "optimization": config.optimization,
        "provider": ", ".join(untouched.effective.get("providers", ())),
        "threads": config.threads or None,
    }
    inputs = tuple({"key": name, "array": array} for name, array in feeds.items())
    return OnnxRun(tuple(stages), tuple(outputs), inputs, configuration, (*bound.notes, *taken_apart))


def _exposed(
    program: OnnxProgram, feeds: Mapping[str, Array], config: NumericConfig, wanted: Sequence[str] | None
) -> dict[str, Array]:
    types = {name: type_of_array(array.dtype, array.shape) for name, array in feeds.items()}
    found: dict[str, Array] = dict(feeds)
    for segment in program.segments(None):
        kept = program.exposable([segment])
        names = [name for node in segment.nodes for name in program.graph.nodes[node].outputs if name in kept]
        names = [name for name in names if wanted is None or name in wanted]
        built = program.build(segment, names, types)
        session = make_session(built.model, config, str(program.weights_folder))
        given = {name: found[value] for name, value in built.feeds.items()}
        for name, array in zip(built.outputs, run_session(session, built.outputs, given), strict=True):
            if array is not None:
                found[name] = array
    if len(found) == len(feeds):
        raise InconclusiveError(
            "ONNX Runtime returned no inner value of the graph", hint="record its outputs by another tool"
        )
    return {name: array for name, array in found.items() if name not in feeds}


def _wanted(inspection: Inspection) -> list[str]:
    return [row.onnx_value for row in inspection.stages if row.onnx_value is not None]


def _own_stages(program: OnnxProgram, values: Mapping[str, Array]) -> list[dict[str, Any]]:
    """One for each value that a node makes, under its own name."""
    numbers = {name: number for number, name in enumerate(values)}
    inputs = set(program.graph.inputs)
    stages = []
    for node in program.plain.nodes:
        for name in node.outputs:
            if name in values:
                stages.append(
                    {
                        "stage": name,
                        "call": 0,
                        "output": 0,
                        "level": "leaf",
                        "type": node.op_type,
                        "source": node.source,
                        "value": numbers[name],
                        "reads": [numbers[read] for read in node.inputs if read in numbers],
                        "reads_inputs": [read for read in node.inputs if read in inputs],
                        "alias_of": None,
                        "onnx_value": name,
                        "array": values[name],
                    }
                )
    return stages


def _model_stages(inspection: Inspection, values: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The stages of the model that have a value in the graph, in the model's layout."""
    orders = {pair.ref: pair.permutation for pair in inspection.alignment.pairs}
    stages = []
    for row in inspection.stages:
        if row.onnx_value is None or row.onnx_value not in values:
            continue
        array, order = values[row.onnx_value], orders.get(row.ref)
        if order is not None:
            array = array.transpose(np.argsort(order))
        if array.shape != row.shape and array.size == np.prod(row.shape, dtype=np.int64):
            array = array.reshape(row.shape)
        stages.append(
            {
                "stage": row.stage,
                "call": row.call,
                "output": row.output,
                "level": row.level,
                "type": row.type,
                "source": row.source,
                "value": row.index,
                "reads": list(row.inputs),
                "reads_inputs": [],
                "alias_of": [row.alias_of.stage, row.alias_of.call, row.alias_of.output] if row.alias_of else None,
                "onnx_value": row.onnx_value,
                "array": array,
            }
        )
    return stages
