"""Indices that come twice, or count from the end (``BD113``)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bisect_tool.diagnose.calls import Edit, Node, Step
from bisect_tool.diagnose.causes import INDICES
from bisect_tool.diagnose.rules.facts import Array, Clue, Facts, place_text, value_of
from bisect_tool.diagnose.trial import Trial

_PLACE = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "ScatterElements": 1, "ScatterND": 1, "Scatter": 1}
_ALONG_AXIS = {"Gather", "GatherElements", "ScatterElements", "Scatter"}


def look(facts: Facts) -> Iterator[Trial | Clue]:
    for node in facts.nodes:
        indices = value_of(node, _PLACE[node.op]) if node.op in _PLACE else None
        if indices is None or indices.dtype.kind not in "iu" or not indices.size:
            continue
        yield from _twice(node, indices)
        yield from _negative(node, indices)


def _twice(node: Node, indices: Array) -> Iterator[Clue]:
    if not node.op.startswith("Scatter") or node.attributes.get("reduction", "none") != "none":
        return
    count, first = duplicates(node, indices)
    if count:
        yield Clue(
            INDICES,
            (
                f"{count} of the places that {node.op} {node.name} writes to are written more than once, "
                f"the first{place_text(first)}: without a reduction ONNX leaves open which write stays",
            ),
            "write each place once, or accumulate (scatter_add, index_put with accumulate=True)",
            node=node.name,
        )


def duplicates(node: Node, indices: Array) -> tuple[int, tuple[int, ...]]:
    """How many places are written again, and the first of them in the order of writing."""
    if node.op == "ScatterND":
        places = indices.reshape(-1, indices.shape[-1])
    else:
        axis = int(node.attributes.get("axis", 0)) % indices.ndim
        grid = np.indices(indices.shape).reshape(indices.ndim, -1).T.copy()
        shape = node.shapes.get(node.inputs[0])
        size = shape[axis] if shape is not None else None
        grid[:, axis] = indices.reshape(-1) if size is None else indices.reshape(-1) % size
        places = grid
    unique, first = np.unique(places, axis=0, return_index=True)
    again = np.ones(len(places), bool)
    again[first] = False
    found = tuple(int(n) for n in places[again][0]) if again.any() else ()
    return len(places) - len(unique), found


def _negative(node: Node, indices: Array) -> Iterator[Trial]:
    below = indices < 0
    shape = node.shapes.get(node.inputs[0])
    if not below.any() or shape is None:
        return
    place = tuple(np.argwhere(below)[0])
    if node.op in _ALONG_AXIS:
        sizes = np.asarray(shape[int(node.attributes.get("axis", 0))], indices.dtype)
    else:
        # The last axis of the indices goes along the first axes of the data, behind the batch's.
        start = int(node.attributes.get("batch_dims", 0))
        sizes = np.asarray(shape[start : start + indices.shape[-1]], indices.dtype)
    told = f"{int(below.sum())} of {below.size} indices of {node.op} {node.name} are negative, the first{place_text(place)}"
    remedy = "count them from the front before they are used: index % size"
    # That there are some is no fault: the trial says whether they are counted from the end.
    names: list[str | Array | None] = [name or None for name in node.inputs]
    names[_PLACE[node.op]] = "<from the front>"
    steps = (
        Step("Mod", (node.inputs[_PLACE[node.op]], sizes), {}, "<from the front>"),
        Step(node.op, tuple(names), node.attributes),
    )
    yield Trial(INDICES, node.name, f"{told}, and are not counted from the end", remedy, Edit(node.output, steps))
