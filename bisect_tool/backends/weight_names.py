"""Other names for a graph's weights, where ONNX Runtime stumbles over those it has.

What its optimiser adds to a graph it gives names of its own, and a file that it has saved keeps them: when that file is
optimised again, it makes some of them a second time, and refuses its own work. Names of weights mean nothing to a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    taken = fixed | {name for node in graph.node for name in node.output}
    names = {}
    for number, tensor in enumerate(graph.initializer):
        if tensor.name not in fixed:
            names[tensor.name] = _free(f"{_PREFIX}{number}", taken)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    _rename(graph, names)
    return bytes(proto.SerializeToString())


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """In what the nodes of a graph read; a body's own values hide those around it."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
                own |= {name for each in body.node for name in each.output}
                inner = {old: new for old, new in names.items() if old not in own}
                _rename(body, inner)
                for value in body.output:
                    value.name = inner.get(value.name, value.name)
