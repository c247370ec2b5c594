"""Values that a graph hands on in two orders of axes, each read by somebody: the pair belongs where both begin.

An exporter cancels two transpositions, the one behind a recurrence and the one before an attention. PyTorch's value stands
behind the first of them, for those that still read it there; the attention reads what is before it. Given at its own place
PyTorch's value would not reach all that is made of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bisect_tool.align.matches import Match
from bisect_tool.records import OnnxGraph

FORKED = "before a transposition"
"""Evidence of a pair that was moved there: the axes are turned, as PyTorch's own are."""


def at_forks(
    graph: OnnxGraph, matches: Mapping[int, Match], order_of: Callable[[str], Sequence[int] | None]
) -> dict[int, Match]:
    """The pairs, moved up a ``Transpose`` where other nodes read its operand too.

    Args:
        graph: its structure.
        matches: all pairs.
        order_of: axes of a ``Transpose``, by its node's name; ``None``: reversed.
    """
    makers = {name: node for node in graph.nodes for name in node.outputs if name}
    readers: dict[str, int] = defaultdict(int)
    for node in graph.nodes:
        for name in set(node.inputs):
            readers[name] += 1
    taken = {match.onnx for match in matches.values()} | set(graph.outputs) | set(graph.inputs)
    found = dict(matches)
    for value, match in matches.items():
        maker = makers.get(match.onnx)
        if maker is None or maker.op_type != "Transpose" or match.onnx in graph.outputs:
            continue
        source, shape = maker.inputs[0], graph.shapes.get(match.onnx)
        order = order_of(maker.name)
        rank = len(order) if order is not None else len(shape) if shape is not None else 0
        if source in taken or source in graph.initializers or readers[source] < 2 or not rank:
            continue
        axes = list(order) if order is not None else list(reversed(range(rank)))
        own = match.permutation or tuple(range(rank))
        if len(own) != rank:
            continue
        # The transposed one's axis i is the source's axis axes[i].
        turned = tuple(own[axes.index(i)] for i in range(rank))
        taken.add(source)
        found[value] = replace(match, onnx=source, evidence=(*match.evidence, FORKED), permutation=turned)
    return found
