"""A graph with the two branches of an ``If`` in each other's place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx

from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.runners import LoadedGraph, runner_of
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import NumericConfig

MOST_BRANCHES = 8
"""Nodes that are tried."""

_OTHER = {"then_branch": "else_branch", "else_branch": "then_branch"}


def exchanged_branches(program: OnnxProgram, config: NumericConfig) -> Iterator[tuple[str, LoadedGraph]]:
    """Name of each ``If`` of the file's own graph, those inside others too, with the graph in which it has its branches
    exchanged; nothing where ONNX Runtime does not take that.
    """
    model = onnx.load_model_from_string(program.untouched())
    for node in list(_branching(model.graph))[:MOST_BRANCHES]:
        _exchange(node)
        with contextlib.suppress(InconclusiveError):
            graph = runner_of(config).load(model.SerializeToString(), config, str(program.weights_folder))
            yield node.name or node.output[0], graph
        _exchange(node)


def _branching(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if node.op_type == "If" and not node.domain:
            yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _branching(attribute.g)


def _exchange(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        attribute.name = _OTHER.get(attribute.name, attribute.name)
