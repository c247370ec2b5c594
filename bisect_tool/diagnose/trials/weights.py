"""Trials with weights: as PyTorch has them, exchanged, in another form."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Edit, Node, Step
from bisect_tool.diagnose.causes import OPERANDS, ROUNDED, WEIGHT
from bisect_tool.diagnose.trial import Trial
from bisect_tool.diagnose.trials.editing import are_equal_arrays, with_changes
from bisect_tool.diagnose.weight_forms import (
    GATES,
    Static,
    WeightForm,
    first_weight,
    layouts_of,
    nearest_weight,
    weight_forms,
)
from bisect_tool.precision import HALF

Array = NDArray[Any]


def weight_trials(
    node: Node, nodes: Sequence[Node], statics: Sequence[Static], parameters: frozenset[str] = frozenset()
) -> Iterator[Trial]:
    """Each weight as PyTorch has it, and then all of the node together.

    What several of the ``nodes`` read, as the steps of a recurrence do, is first tried for all of them, with the first one.
    """
    nearest: dict[str, Trial] = {}
    arrays: dict[str, Array] = {}
    texts: dict[str, str] = {}
    for trial, name, form in _each_weight(node, nodes, statics, parameters):
        nearest.setdefault(name, trial)
        arrays.setdefault(name, form.array)
        texts.setdefault(name, f"{name} {form.text}")
        yield trial
    if len(nearest) > 1:
        others = _other_readers(node, nodes, arrays)
        yield Trial(
            next(iter(nearest.values())).code,
            node.name,
            f"weights that {_listed(node, others)}: {'; '.join(texts.values())}",
            "export the file again from this checkpoint",
            _with_weights([node, *others], arrays),
            thing="; ".join(trial.thing for trial in nearest.values()),
        )


def widened_weights(nodes: Sequence[Node], statics: Sequence[Static]) -> Iterator[Trial]:
    """Weights that are stored in a narrower type, and cast before they are read, as PyTorch has them."""
    edits: list[Edit] = []
    texts: list[str] = []
    types: dict[str, None] = {}
    for node in nodes:
        found = _before_rounding(node, statics)
        if found is not None:
            name, array = found
            edits.append(Edit(node.output, (Step("Identity", (array,), {}),)))
            types[node.constants[0].dtype.name] = None
            texts.append(f"{node.inputs[0]} is the model's {name}")
    if edits:
        yield Trial(
            ROUNDED,
            next(node.name for node in nodes if node.output == edits[0].output),
            f"weights are stored in {' and '.join(types)}: {'; '.join(texts)}",
            "export the file with its weights in PyTorch's type, or accept what the type rounds off",
            replace(edits[0], more=tuple(edits[1:])),
        )


def _before_rounding(node: Node, statics: Sequence[Static]) -> tuple[str, Array] | None:
    have = node.constants.get(0)
    wide = _WIDE.get(node.attributes.get("to", 0))
    if node.op != "Cast" or wide is None or have is None or have.size < 2 or have.dtype.name not in HALF:
        return None
    for static in statics:
        if static.array.dtype.kind != "f" or static.array.dtype.itemsize <= have.dtype.itemsize:
            continue
        for name, array in layouts_of(have.shape, static):
            if _is_rounded(array, have):
                return name, np.ascontiguousarray(array, dtype=wide)
    return None


_WIDE = {1: np.float32, 11: np.float64}
"""Element types of ONNX that half precision is cast to, by number."""


def _is_rounded(array: Array, have: Array) -> bool:
    """Whether numbers differ by rounding to a narrower type, or by cutting digits off."""
    about = ml_dtypes.finfo(have.dtype)
    with np.errstate(all="ignore"):
        apart = np.abs(array.astype(np.float64) - have.astype(np.float64))
        bound = float(about.eps) * np.abs(array.astype(np.float64)) + float(about.smallest_subnormal)
        return bool((apart <= bound).all())


def _listed(node: Node, others: Sequence[Node]) -> str:
    return f"{node.name} and {len(others)} more read" if others else f"{node.name} reads"


def _other_readers(node: Node, nodes: Sequence[Node], names: Collection[str]) -> list[Node]:
    """Nodes behind one that read one of its weights too; none for what one before it reads, which goes with that."""
    at = next(place for place, each in enumerate(nodes) if each is node)
    if any(_reads(each, node, names) for each in nodes[:at]):
        return []
    return [each for each in nodes[at + 1 :] if _reads(each, node, names)]


def _reads(one: Node, other: Node, names: Collection[str]) -> bool:
    """Whether a node reads some weights as another does."""
    return one.op == other.op and any(one.inputs[place] in names for place in _weight_places(one))


def _with_weights(nodes: Sequence[Node], arrays: Mapping[str, Array]) -> Edit:
    """Nodes with other weights, by the names of those."""
    edits = []
    for node in nodes:
        inputs = {p: arrays[node.inputs[p]] for p in _weight_places(node) if node.inputs[p] in arrays}
        edits.append(with_changes(node, inputs=inputs))
    return replace(edits[0], more=tuple(edits[1:]))


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
        known: dict[str, Array | None] = {}
        edits: list[Edit] = []
        for node in readers:
            inputs: dict[int, Array] = {}
            for place in _weight_places(node):
                have = node.constants[place]
                gates = GATES.get(node.op, 0)
                name = node.inputs[place]
                if name not in known:
                    found = (nearest_weight if nearest else first_weight)(have, left, gates=gates)
                    array, used = found if found is not None else (have, ())
                    left = [each for each in left if each.name not in used]
                    equal = are_equal_arrays(have.astype(np.float64), array.astype(np.float64))
                    known[name] = None if equal else array
                changed = known[name]
                if changed is not None:
                    inputs[place] = changed
            if inputs:
                edits.append(with_changes(node, inputs=inputs))
        names = [name for name, array in known.items() if array is not None]
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


def _each_weight(
    node: Node, nodes: Sequence[Node], statics: Sequence[Static], parameters: frozenset[str]
) -> Iterator[tuple[Trial, str, WeightForm]]:
    """Trials, each with the name of the weight and what it becomes."""
    if node.op in _NO_WEIGHTS:
        return
    for place in _weight_places(node):
        have, name = node.constants[place], node.inputs[place]
        others = _other_readers(node, nodes, [name])
        for number, form in enumerate(weight_forms(have, statics, gates=GATES.get(node.op, 0))):
            another = name != form.name and {name, form.name} <= parameters
            # That one of them reads another's weight is likely only of the nearest, and where both have names.
            alone = [[node]] if not others or another or not number else []
            for readers in [[node, *others], *alone] if others else alone:
                which = _listed(node, readers[1:])
                yield (
                    Trial(
                        form.code,
                        node.name,
                        f"{which} {name} where PyTorch reads {form.name}"
                        if another
                        else f"{name}, which {which}, {form.text}",
                        "export the file again from this checkpoint",
                        _with_weights(readers, {name: form.array}),
                        thing=f"{name} as {form.name}",
                    ),
                    name,
                    form,
                )
