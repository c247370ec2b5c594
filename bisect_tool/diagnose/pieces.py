"""Trials for a ``Split``: its pieces under each other's names, alone or together with their sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Call, Edit, Node, Step
from bisect_tool.diagnose.causes import OPERANDS
from bisect_tool.diagnose.onnx_forms import forms
from bisect_tool.diagnose.trial import Trial

MOST_PIECES = 4
"""Pieces up to which all orders of them are tried."""

MOST_SIZES = 3
"""Ways to cut that PyTorch's calls have, and that are tried beside the node's own."""


def pieces(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """The pieces in other orders, cut as the node cuts them and as PyTorch's calls do."""
    count = len(node.outputs)
    if node.op != "Split" or not 1 < count <= MOST_PIECES or not all(node.outputs):
        return
    own = _sizes(node.attributes.get("split", node.constants.get(1)))
    cuts: list[list[int] | None] = [None]
    for call in calls:
        for form in forms(call, opset):
            given = form.attributes.get("split", form.inputs[1] if len(form.inputs) > 1 else None)
            sizes = _sizes(given) if form.op == "Split" and not hasattr(given, "static") else None
            if sizes is not None and len(sizes) == count and sizes not in (own, *cuts):
                cuts.append(sizes)
    for cut in cuts[: 1 + MOST_SIZES]:
        for order in itertools.islice(itertools.permutations(range(count)), 1, None):
            yield _trial(node, own, cut, order)


def _sizes(given: Any) -> list[int] | None:
    return None if given is None else [int(each) for each in np.asarray(given).reshape(-1)]


def _trial(node: Node, own: list[int] | None, cut: list[int] | None, order: tuple[int, ...]) -> Trial:
    """``cut``: other sizes than the node's ``own``; ``order``: which output each piece goes to."""
    names = ", ".join(node.outputs[i] for i in order)
    attributes: dict[str, Any] = dict(node.attributes)
    inputs: list[str | NDArray[Any] | None] = [name or None for name in node.inputs]
    sizes = ""
    if cut is not None:
        sizes = f", and cuts {own or 'equal pieces'} where PyTorch cuts {cut}"
        # Instead of sizes; None: left out.
        attributes.update({name: None for name in ("num_outputs",) if name in attributes})
        if "split" in attributes:
            attributes["split"] = cut
        else:
            inputs = [inputs[0], np.asarray(cut, np.int64)]
    edit = Edit(node.output, (Step(node.op, tuple(inputs), attributes, order=order),))
    text = f"Split {node.name} hands out its pieces in the wrong order{sizes}"
    remedy = f"let its outputs be {names}" + (f" with sizes {cut}" if cut is not None else "")
    return Trial(OPERANDS, node.name, text, remedy, edit)
