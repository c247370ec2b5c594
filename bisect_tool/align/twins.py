"""What PyTorch computes twice and the graph once: exporters and optimisers merge equal subexpressions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import replace

from bisect_tool.align.matches import Match
from bisect_tool.records import OnnxGraph, OnnxNode, Stage, TorchTrace
from bisect_tool.signatures import Signature, mark_of


def computed_before(trace: TorchTrace, signatures: Mapping[int, Signature]) -> dict[int, int]:
    """Values of stages that repeat an earlier one, with the first that did the same.

    They are of one kind, made of the same values, through whatever views, and made the same numbers.

    Args:
        trace: of PyTorch's run.
        signatures: of PyTorch's values.
    """
    first: dict[int, Stage] = {}
    for stage in trace.stages:
        first.setdefault(stage.value, stage)
    same: dict[int, int] = {}
    made_of: dict[int, int] = {}
    known: dict[tuple[object, ...], int] = {}
    for value in sorted({*first, *trace.parents}):
        parents = trace.parents.get(value, ())
        roots = tuple(made_of.get(parent, parent) for parent in parents)
        if value not in first:
            # A view is no stage.
            made_of[value] = roots[0] if len(roots) == 1 else value
            continue
        stage = first[value]
        if stage.level == "container" or stage.alias_of is not None or not parents or value not in signatures:
            continue
        other = known.setdefault((stage.type, roots, stage.shape, mark_of(signatures[value])), value)
        if other != value:
            same[value] = other
            made_of[value] = other
    return same


def merge_twins(
    trace: TorchTrace, graph: OnnxGraph, matches: Mapping[int, Match], signatures: Mapping[int, Signature]
) -> TorchTrace:
    """The trace with the second of two equal computations as another name of the first, where the graph has only one.

    Equal are operations of one kind that read the same values and made the same numbers. That the graph has merged them
    shows where what is made of the second comes from the ONNX value of the first.

    Args:
        trace: of PyTorch's run.
        graph: of ONNX.
        matches: all pairs, by PyTorch value.
        signatures: of PyTorch's values.
    """
    first: dict[int, Stage] = {}
    for stage in trace.stages:
        first.setdefault(stage.value, stage)
    children: dict[int, list[int]] = defaultdict(list)
    for child, parents in trace.parents.items():
        for parent in parents:
            children[parent].append(child)
    makers = {output: node for node in graph.nodes for output in node.outputs if output}
    paired = {match.onnx for match in matches.values()}
    same = {
        value: other
        for value, other in computed_before(trace, signatures).items()
        if value not in matches
        and (found := matches.get(other)) is not None
        and _is_read(found.onnx, value, makers, paired, matches, children)
    }
    if not same:
        return trace

    def renamed(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(same.get(value, value) for value in values))

    def merged(stage: Stage) -> Stage:
        stage = replace(stage, inputs=renamed(stage.inputs))
        if stage.value not in same:
            return stage
        other = same[stage.value]
        return replace(stage, value=other, alias_of=first[other].ref)

    return replace(
        trace,
        stages=tuple(merged(stage) for stage in trace.stages),
        parents={value: renamed(parents) for value, parents in trace.parents.items() if value not in same},
        outputs=tuple((key, same.get(value, value)) for key, value in trace.outputs),
    )


def _is_read(
    name: str,
    value: int,
    makers: Mapping[str, OnnxNode],
    paired: Set[str],
    matches: Mapping[int, Match],
    children: Mapping[int, list[int]],
) -> bool:
    """Whether something that PyTorch makes of a value is made of ``name`` in the graph, without a pair in between."""
    pending, seen = list(children.get(value, ())), set[int]()
    while pending:
        child = pending.pop()
        if child in seen:
            continue
        seen.add(child)
        if child not in matches:
            pending += children.get(child, ())
            continue
        stack, visited = [matches[child].onnx], set[str]()
        while stack:
            at = stack.pop()
            for read in makers[at].inputs if at in makers else ():
                if read == name:
                    return True
                if read and read not in visited and read not in paired:
                    visited.add(read)
                    stack.append(read)
    return False
