"""Trials for the mask of an attention: PyTorch's own, in the place of what the graph adds, chooses by, or leaves out.

PyTorch has one call with a mask of truth values, a mask that is added, or a flag; a graph has nodes between the product of
queries and keys and the softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import BEFORE, Call, Edit, Node, Step
from bisect_tool.diagnose.causes import CONSTANT, EXTRA, MISSING, OPERATOR
from bisect_tool.diagnose.trial import Trial

Array = NDArray[Any]

HIDDEN = -1e4
"""What is added where a place is hidden lies below."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What PyTorch's attention adds to its scores, and in words where it comes from."""

    added: Array
    text: str

    @property
    def shown(self) -> NDArray[np.bool_]:
        """The places that are not hidden."""
        return np.asarray(self.added > HIDDEN)

    @property
    def of_truth(self) -> bool:
        """Whether it only hides and shows."""
        return bool(((self.added == 0) | ~self.shown).all())


def mask_of(call: Call) -> Mask | None:
    """The mask of an attention call; zeros where it has none. ``None``: the call is none, or tells too little."""
    query, key = call.operand("query"), call.operand("key")
    if "scaled_dot_product" not in call.name or query is None or key is None:
        return None
    places = (query.array.shape[-2], key.array.shape[-2])
    added = np.zeros(places, np.float32)
    text = "no mask"
    given = call.operand("attn_mask", "attn_bias")
    if given is not None and given.array.ndim >= 2:
        array = given.array
        added = np.where(array, 0.0, -np.inf) if array.dtype.kind == "b" else array
        added = added.astype(np.float32)
        text = "its mask"
    if call.arguments.get("is_causal"):
        added = added + np.where(np.tril(np.ones(places, bool)), 0.0, -np.inf).astype(np.float32)
        text = "its mask and a causal one" if given is not None else "a causal mask"
    return Mask(added, text)


def masks(nodes: Sequence[Node], stage: Sequence[Node], calls: Sequence[Call]) -> Iterator[Trial]:
    """Trials for the nodes around a softmax, one after the other.

    Args:
        nodes: of the origin.
        stage: all of the stage's.
        calls: PyTorch's, of the stage.
    """
    for call in calls:
        yield from _unscaled(nodes, call)
    own = {node.name for node in nodes}
    for call in calls:
        mask = mask_of(call)
        if mask is None:
            continue
        for softmax in stage:
            if softmax.op != "Softmax" or not softmax.inputs:
                continue
            scores = softmax.shapes.get(softmax.inputs[0], ())
            if scores[-2:] != mask.added.shape[-2:]:
                continue
            before = next((node for node in stage if softmax.inputs[0] in node.outputs), None)
            near = [node for node in (before, softmax) if node is not None and node.name in own]
            for node in near:
                yield from _at(node, softmax, mask, call)


def _at(node: Node, softmax: Node, mask: Mask, call: Call) -> Iterator[Trial]:
    if node.op == "Add":
        yield from _added(node, mask, call)
    elif node.op == "Where":
        yield from _chosen(node, mask, call)
    elif node.op in _NOT_A_SUM:
        yield from _summed(node, mask, call)
    if node is softmax and mask.added.any():
        # The graph has none at all, or another than this one that is not in the way of it.
        steps = (_sum(softmax.inputs[0], mask, softmax, _MASKED), Step("Softmax", (_MASKED,), softmax.attributes))
        text = f"PyTorch's {call.name} has {mask.text}, which is missing in front of {softmax.name}"
        remedy = f"add {mask.text} to the scores: export it again, or with another exporter or opset"
        yield Trial(MISSING, softmax.name, text, remedy, Edit(softmax.output, steps))


_MASKED = "<masked>"

_NOT_A_SUM = ("Sub", "Mul", "Div", "Max", "Min")


def _summed(node: Node, mask: Mask, call: Call) -> Iterator[Trial]:
    """Another operator in the place of the sum of scores and mask."""
    if len(node.inputs) != 2 or not mask.added.any():
        return
    # A mask that is computed is told by its shape alone, and stands behind the scores.
    place = next(iter(node.constants), 1)
    have, name = node.constants.get(place), node.inputs[place]
    if not _spreads(node.shapes.get(name, ()), mask.added.shape) or (have is not None and _differing(have, mask.added)):
        return
    text = f"{node.op} {node.name} puts {name} to the scores, where PyTorch's {call.name} adds {mask.text}"
    remedy = "the graph needs an Add there: export it again, or with another exporter or opset"
    yield Trial(
        OPERATOR, node.name, text, remedy, Edit(node.output, (Step("Add", (node.inputs[1 - place], name), {}),))
    )


def _unscaled(nodes: Sequence[Node], call: Call) -> Iterator[Trial]:
    """The factor of the scores where the graph has none: all of it, or the root of it, as exporters scale both operands."""
    query = call.operand("query")
    if "scaled_dot_product" not in call.name or query is None:
        return
    given = call.arguments.get("scale")
    scale = float(given) if given is not None else query.array.shape[-1] ** -0.5
    for node in nodes:
        for factor in (scale, abs(scale) ** 0.5) if node.op in ("Identity", "MatMul") else ():
            kind = node.values[node.output].dtype if node.output in node.values else np.dtype(np.float32)
            text = (
                f"the factor {factor:.7g} by which PyTorch's {call.name} scales is missing behind {node.op} {node.name}"
            )
            remedy = "the graph needs a Mul there: export it again, or with another exporter or opset"
            step = Step("Mul", (BEFORE, np.asarray(factor, kind)), {})
            yield Trial(MISSING, node.name, text, remedy, Edit(node.output, (step,), keep=True))


def _added(node: Node, mask: Mask, call: Call) -> Iterator[Trial]:
    """A sum of scores and a mask, with PyTorch's for it."""
    for place, name in enumerate(node.inputs):
        constant = node.constants.get(place)
        other = node.inputs[1 - place]
        shape = node.shapes.get(name, ())
        if not _spreads(shape, mask.added.shape) or (1 - place) in node.constants:
            continue
        differing = None if constant is None else _differing(constant, mask.added)
        if differing == 0:
            continue
        what = f"{name or f'input {place}'}, which {node.op} {node.name} adds to the scores,"
        if constant is not None:
            places = "" if differing is None else f": {differing} of {mask.added.size} places differ"
            code, text = CONSTANT, f"{what} is not PyTorch's mask{places}"
        else:
            code, text = OPERATOR, f"{what} is not what PyTorch's {call.name} adds ({mask.text})"
        if not mask.added.any():
            code, text = EXTRA, f"{what} has nothing in PyTorch's {call.name}, which has no mask"
        remedy = f"add what PyTorch's {call.name} adds: {_remedy(mask)}"
        yield Trial(code, node.name, text, remedy, Edit(node.output, (_sum(other, mask, node),)))


def _chosen(node: Node, mask: Mask, call: Call) -> Iterator[Trial]:
    """A choice between scores and their filling, by PyTorch's mask, either way round."""
    if not mask.of_truth or not _spreads(node.shapes.get(node.inputs[0], ()), mask.added.shape):
        return
    have = node.constants.get(0)
    for shown, how in ((mask.shown, ""), (~mask.shown, ", the other way round")):
        if have is not None and _differing(have, shown) == 0:
            continue
        text = f"{node.inputs[0]}, by which Where {node.name} hides scores, is not PyTorch's mask ({mask.text}{how})"
        remedy = f"hide what PyTorch's {call.name} hides: {_remedy(mask)}"
        step = Step("Where", (shown, *(name or None for name in node.inputs[1:])), node.attributes)
        yield Trial(CONSTANT if have is not None else OPERATOR, node.name, text, remedy, Edit(node.output, (step,)))


def _sum(scores: str, mask: Mask, node: Node, output: str | None = None) -> Step:
    kind = node.values[scores].dtype if scores in node.values else np.dtype(np.float32)
    return Step("Add", (scores, mask.added.astype(kind)), {}, output)


def _remedy(mask: Mask) -> str:
    if mask.text == "no mask":
        return "nothing"
    return f"{mask.text}, 0 where a place is seen and -inf where it is not" if mask.of_truth else mask.text


def _spreads(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether an array of a shape may be a mask: it has both of its last axes, or less, and does not come out larger."""
    if not shape or len(shape) < 2:
        return False
    return all(n in (1, m) for n, m in zip(shape[-2:], whole[-2:], strict=True))


def _differing(have: Array, should: Array) -> int | None:
    """How many places of a mask are another's; ``None``: they don't fit together."""
    try:
        one, other = np.broadcast_arrays(have, should)
    except ValueError:
        return None
    if one.dtype.kind == "b" and other.dtype.kind == "b":
        return int((one != other).sum())
    hidden = (one < HIDDEN) & (other < HIDDEN)
    return int((~(hidden | np.isclose(one, other))).sum())
