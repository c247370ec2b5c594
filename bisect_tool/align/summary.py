"""The public view of an alignment: pairs, left-overs with their reasons, coverage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from bisect_tool.align.families import SHAPING, family
from bisect_tool.align.matches import AMBIGUOUS, Match
from bisect_tool.align.scopes import Scopes
from bisect_tool.align.surroundings import children_of, is_passed_by
from bisect_tool.records import Alignment, OnnxGraph, Pair, Stage, TorchTrace, Unaligned
from bisect_tool.rows import used_values
from bisect_tool.signatures import Signature

_SAME_TENSOR = "same tensor as"


def summarize(
    trace: TorchTrace,
    graph: OnnxGraph,
    matches: Mapping[int, Match],
    torch_signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
    counts: Callable[[Stage], bool],
) -> Alignment:
    """The public view of an alignment: pairs of all stages; left-overs and coverage of those that ``counts``.

    Coverage is aligned outputs over outputs that have a value in the graph at all; the folded ones are left out of both
    and listed with their reason.
    """
    scopes, children, used = Scopes(graph, trace, {}), children_of(trace), used_values(trace)
    taken = {match.onnx for match in matches.values()}
    taken |= {back for name, back in scopes.back.items() if name in taken}
    pairs, unaligned = [], []
    counted = aligned = 0
    for stage in trace.stages:
        match = matches.get(stage.value)
        if match is not None:
            evidence = match.evidence
            if stage.alias_of is not None:
                evidence = (*evidence, f"{_SAME_TENSOR} {stage.alias_of}")
            pairs.append(Pair(stage.ref, match.onnx, evidence, match.permutation))
        if not counts(stage):
            continue
        counted += 1
        if match is not None:
            aligned += 1
        else:
            left = _reason(stage, scopes, taken, torch_signatures, chained)
            if left.in_graph and is_passed_by(stage.value, trace, children, matches, torch_signatures, chained):
                left = replace(left, reason="the graph computes what is made of it in another way", in_graph=False)
            if left.in_graph and stage.value not in used:
                # As a recurrence's last state, which exporters leave out.
                left = replace(
                    left,
                    reason="no tensor among the outputs comes from it, and no value of the graph equals it",
                    in_graph=False,
                )
            unaligned.append(left)
    in_graph = aligned + sum(left.in_graph for left in unaligned)
    inner = [name for node in graph.nodes for name in node.outputs if name and name not in taken]
    return Alignment(
        pairs=tuple(pairs),
        unaligned=tuple(unaligned),
        unmatched_onnx=tuple(inner),
        stages=counted,
        aligned=aligned,
        coverage=aligned / in_graph if in_graph else None,
    )


def _reason(
    stage: Stage,
    scopes: Scopes,
    taken: set[str],
    signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
) -> Unaligned:
    ref = stage.ref
    if stage.alias_of is not None and stage.alias_of.stage == "(input)":
        return Unaligned(ref, "hands an input of the model on unchanged", False)
    if stage.value not in signatures:
        return Unaligned(ref, "its tensor could not be captured", False)
    path, separator, _ = ref.stage.rpartition("/")
    if separator and "#" in ref.stage:
        names = scopes.calls(path, family(stage.type))
        what = f"no value of the graph equals it, and no {stage.type} is left in its scope: fused or computed otherwise"
    else:
        names = scopes.leaving(ref.stage)
        what = "no value of the graph equals it, and no node carries its scope: folded away by the exporter"
    kind = signatures[stage.value].kind
    # Bytes of a quantised graph are no values of a float stage.
    fitting = [name for name in names if name not in chained or chained[name].kind == kind]
    free = [name for name in fitting if not _is_taken(name, scopes, taken)]
    if not free:
        if names and "#" not in ref.stage:
            what = f"no value of the graph equals it; its node's value {names[-1]} is that of a later stage: folded"
        return Unaligned(ref, what, False)
    # What the file leaves open, the run has told.
    size, shapes = math.prod(stage.shape), {**scopes.graph.shapes, **{n: s.shape for n, s in chained.items()}}
    sized = [n for n in free if n not in shapes or math.prod(shapes[n]) == size]
    if not sized:
        return Unaligned(ref, f"the values in its scope ({', '.join(free[:3])}) have other sizes", False)
    return Unaligned(ref, f"several values fit its scope and none fits by value: {', '.join(sized[:4])}", True)


def _is_taken(name: str, scopes: Scopes, taken: set[str]) -> bool:
    """Whether a value has a pair, or is one that has, in another shape."""
    while name not in taken:
        maker = scopes.makers.get(name)
        if maker is None or scopes.graph.nodes[maker].op_type not in SHAPING:
            return False
        name = scopes.graph.nodes[maker].inputs[0]
    return True


def ambiguity_lines(alignment: Alignment) -> tuple[str, ...]:
    """Says which stages' pairs are no more than a choice; nothing if there are none."""
    # What hands another stage's tensor on has its pair.
    refs = [
        str(pair.ref)
        for pair in alignment.pairs
        if AMBIGUOUS in pair.evidence and not any(line.startswith(_SAME_TENSOR) for line in pair.evidence)
    ]
    if not refs:
        return ()
    named = ", ".join(refs[:4]) + (" ..." if len(refs) > 4 else "")
    stages = f"{len(refs)} stage{'s' if len(refs) > 1 else ''}"
    return (f"several values of the graph fit {stages} equally, and the order of computation chose: {named}",)
