"""Other names for a graph's weights, where ONNX Runtime stumbles over those it has.

What its optimiser adds to a graph it gives names of its own, and a file that it has saved keeps them: when that file is
optimised again, it makes some of them a second time, and refuses its own work. Names of weights mean nothing to a run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx

_CLASH = re.compile(r"[Rr]eplace the existing tensor|initializer.* already exists")
_PREFIX = "weight."


def is_clash(reason: str) -> bool:
    """Whether ONNX Runtime's reason is a name that is there already."""
    return _CLASH.search(reason) is not None


def with_other_names(model: bytes) -> bytes:
    """The graph with its weights renamed, but for those that are inputs or outputs as well; bodies see the same ones.

    Args:
        model: serialised; weights that lie in files of their own stay there.
    """
    proto = onnx.ModelProto.FromString(model)
    graph = proto.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    prefix = _PREFIX
    while any(name.startswith(prefix) for name in _names(graph)):
        prefix += "_"
    weights = [tensor for tensor in graph.initializer if tensor.name not in fixed]
    names = {tensor.name: f"{prefix}{number}" for number, tensor in enumerate(weights)}
    for tensor in weights:
        tensor.name = names[tensor.name]
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    _rename(graph, names)
    return bytes(proto.SerializeToString())


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _own(graph: onnx.GraphProto) -> set[str]:
    """Values that a graph has itself, those that it is given among them."""
    found = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    found |= {tensor.values.name for tensor in graph.sparse_initializer}
    return found | {name for node in graph.node for name in node.output}


def _names(graph: onnx.GraphProto) -> set[str]:
    """The same, with those of all bodies."""
    return _own(graph).union(*(_names(body) for node in graph.node for body in _bodies(node)))


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """In what the nodes of a graph read; a body's own values hide those around it."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for body in _bodies(node):
            own = _own(body)
            inner = {old: new for old, new in names.items() if old not in own}
            _rename(body, inner)
            for value in body.output:
                value.name = inner.get(value.name, value.name)
