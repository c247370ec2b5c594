"""What an ONNX graph is, apart from any comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_options import dtype_in_effect
from bisect_tool.inspection import FedInput, GraphFacts
from bisect_tool.precision import quantized_nodes


def graph_facts(program: OnnxProgram, file: str | None) -> GraphFacts:
    """Counts and versions.

    Args:
        program: the graph.
        file: as the user named it; ``None``: it was exported.
    """
    graph, header, nodes = program.graph, program.header(), program.own_nodes()
    return GraphFacts(
        file=file,
        exporter=graph.exporter,
        producer=header.producer,
        ir_version=header.ir_version,
        opsets=header.opsets,
        nodes=len(nodes),
        operators=dict(Counter(node.op_type for node in nodes).most_common()),
        weights=len(graph.initializers),
        weight_bytes=program.weight_bytes(),
        functions=header.functions,
        operators_with_bodies=tuple(sorted(program.operators_with_bodies())),
        quantized=len(quantized_nodes(graph)),
        dtype=dtype_in_effect(graph),
    )


def fed_inputs(
    program: OnnxProgram, feeds: Mapping[str, NDArray[Any]], sources: Mapping[str, tuple[str, str]]
) -> tuple[FedInput, ...]:
    """The graph's inputs with what feeds them.

    Args:
        program: the graph.
        feeds: arrays by input.
        sources: the sample's tensor by input: its name, and its dtype.
    """
    shapes = program.header().input_shapes
    found = []
    for name in program.graph.inputs:
        dtype = program.graph.dtypes.get(name)
        source, given = sources[name]
        cast_from = given if given != feeds[name].dtype.name else None
        found.append(FedInput(name, dtype, shapes.get(name, ()), source, feeds[name].shape, cast_from))
    return tuple(found)
