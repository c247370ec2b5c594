"""Trials with weights: as PyTorch has them, exchanged, in another form."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Edit, Node, Step
from bisect_tool.diagnose.causes import OPERANDS, WEIGHT
from bisect_tool.diagnose.trial import Trial
from bisect_tool.diagnose.trials.editing import are_equal_arrays, with_changes
from bisect_tool.diagnose.weight_forms import GATES, Static, first_weight, nearest_weight, weight_forms

Array = NDArray[Any]


def weight_trials(node: Node, statics: Sequence[Static], parameters: frozenset[str] = frozenset()) -> Iterator[Trial]:
    """Each weight as PyTorch has it, and then all of the node together."""
    nearest: dict[int, Trial] = {}
    for trial in _each_weight(node, statics, parameters):
        assert isinstance(trial.edit, Edit)
        (place,) = (i for i, given in enumerate(trial.edit.steps[0].inputs) if isinstance(given, np.ndarray))
        nearest.setdefault(place, trial)
        yield trial
    if len(nearest) > 1:
        edits = {place: trial.edit for place, trial in nearest.items() if isinstance(trial.edit, Edit)}
        arrays = {place: edit.steps[0].inputs[place] for place, edit in edits.items()}
        texts = [trial.text.replace(f", which {node.name} reads,", "") for trial in nearest.values()]
        yield Trial(
            next(iter(nearest.values())).code,
            node.name,
            f"weights that {node.name} reads: {'; '.join(texts)}",
            "export the file again from this checkpoint",
            with_changes(
                node, inputs={place: array for place, array in arrays.items() if isinstance(array, np.ndarray)}
            ),
            thing="; ".join(trial.thing for trial in nearest.values()),
        )


_NO_WEIGHTS = {"Resize", "Upsample"}
"""Their constants are sizes and scales."""

MAX_EXCHANGES = 10
"""Pairs of a node's weights that are exchanged."""


def exchanged_weights(node: Node) -> Iterator[Trial]:
    """Two weights of one shape in each other's place: each is one of PyTorch's, and yet both are wrong."""
    places = _weight_places(node)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(sorted(places), 2)
        if node.constants[one].shape == node.constants[other].shape
        and not np.array_equal(node.constants[one], node.constants[other])
    ]
    for one, other in pairs[:MAX_EXCHANGES]:
        inputs = list(node.inputs)
        inputs[one], inputs[other] = inputs[other], inputs[one]
        yield Trial(
            OPERANDS,
            node.name,
            f"{node.op} {node.name} reads {node.inputs[one]} and {node.inputs[other]} in each other's place",
            "exchange them",
            Edit(node.output, (Step(node.op, tuple(name or None for name in inputs), node.attributes),)),
        )


def all_weights(nodes: Sequence[Node], statics: Sequence[Static]) -> Iterator[Trial]:
    """The weights of all nodes at once: each as the tensor of PyTorch's that it is nearest to, and in PyTorch's order."""
    readers = [node for node in nodes if node.op not in _NO_WEIGHTS and _weight_places(node)]
    if len(readers) < 2:
        return
    for nearest in (True, False):
        # Each tensor is one node's only, and so the next best is left for the next node.
        left = list(statics)
        edits: list[Edit] = []
        names: list[str] = []
        for node in readers:
            inputs: dict[int, Array] = {}
            for place in _weight_places(node):
                have = node.constants[place]
                gates = GATES.get(node.op, 0)
                found = nearest_weight(have, left, gates=gates) if nearest else first_weight(have, left, gates=gates)
                if found is None:
                    continue
                array, used = found
                left = [each for each in left if each.name not in used]
                if not are_equal_arrays(have.astype(np.float64), array.astype(np.float64)):
                    inputs[place] = array
                    names.append(node.inputs[place])
            if inputs:
                edits.append(with_changes(node, inputs=inputs))
        if len(edits) > 1:
            listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            yield Trial(
                WEIGHT,
                readers[0].name,
                f"{len(names)} weights of the stage's nodes are not PyTorch's: {listed}",
                "export the file again from this checkpoint",
                replace(edits[0], more=tuple(edits[1:])),
            )


def _weight_places(node: Node) -> list[int]:
    return [place for place, have in node.constants.items() if have.size > 1 and have.dtype.kind in "fV"]


def _each_weight(node: Node, statics: Sequence[Static], parameters: frozenset[str]) -> Iterator[Trial]:
    if node.op in _NO_WEIGHTS:
        return
    for place, have in node.constants.items():
        if have.size > 1 and have.dtype.kind in "fV":
            for form in weight_forms(have, statics, gates=GATES.get(node.op, 0)):
                name = node.inputs[place]
                another = name != form.name and {name, form.name} <= parameters
                yield Trial(
                    form.code,
                    node.name,
                    f"{node.name} reads {name} where PyTorch reads {form.name}"
                    if another
                    else f"{name}, which {node.name} reads, {form.text}",
                    "export the file again from this checkpoint",
                    with_changes(node, inputs={place: form.array}),
                    thing=f"{name} as {form.name}",
                )
