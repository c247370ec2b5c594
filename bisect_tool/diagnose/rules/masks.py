"""Rows of a softmax in which everything is masked (``BD114``): NaN, zeros or equal weights, as each side likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bisect_tool.diagnose.calls import BEFORE, Edit, Node, Step
from bisect_tool.diagnose.causes import MASKED
from bisect_tool.diagnose.rules.facts import Array, Clue, Facts, number, place_text, value_of
from bisect_tool.diagnose.trial import Trial

HIDDEN = -9000.0
"""What masks are filled with lies below: -inf, the lowest number of a type, -1e9, -1e4 with a score added."""

_REMEDY = (
    "let each row keep at least one place, or write what a row without any is to give: "
    "torch.where(mask.any(-1, keepdim=True), result, 0)"
)


def look(facts: Facts) -> Iterator[Trial | Clue]:
    for node in facts.stage:
        rows = masked_rows(node)
        if rows is None or not rows.any():
            continue
        count = int(rows.sum())
        head = f"{count} of {rows.size} rows of {node.op} {node.name} are masked throughout"
        yield Clue(
            MASKED,
            (f"{head}, the first{place_text(np.argwhere(rows)[0])}", *_both(facts, rows)),
            _REMEDY,
            node=node.name,
            strong=_only_there(facts, rows),
        )
        given = value_of(node, 0)
        assert given is not None
        axis = int(node.attributes.get("axis", -1)) % given.ndim
        where = np.expand_dims(rows, axis)
        for target in (node, *_behind(node, facts.stage)):
            for fill, text in ((0.0, "zeros"), (1 / given.shape[axis], "equal weights"), (np.nan, "NaN")):
                step = Step("Where", (where, np.asarray(fill, given.dtype), BEFORE), {})
                told = f"{head}; PyTorch gives {text} there, the graph does not"
                yield Trial(MASKED, node.name, told, _REMEDY, Edit(target.output, (step,), keep=True))


def masked_rows(node: Node) -> Array | None:
    """For each row of a softmax whether all of it is masked; nothing where that is every row, or no mask at all."""
    given = value_of(node, 0) if node.op == "Softmax" else None
    if given is None or given.dtype.kind != "f" or given.ndim == 0 or not given.size:
        return None
    values = given.astype(np.float64)
    rows = (values < HIDDEN).all(axis=int(node.attributes.get("axis", -1)))
    return None if rows.all() else np.asarray(rows)


def _behind(softmax: Node, stage: Sequence[Node]) -> list[Node]:
    """What puts something else in place of NaN."""
    return [node for node in stage if node.op == "Where" and softmax.output in node.inputs[1:]]


def _rows_of_result(facts: Facts, rows: Array) -> Array | None:
    """The masked rows among those of the stage's result, where its leading axes are the softmax's."""
    expected = facts.expected
    if expected.ndim == rows.ndim + 1 and expected.shape[: rows.ndim] == rows.shape:
        return rows
    return None


def _only_there(facts: Facts, rows: Array) -> bool:
    where = _rows_of_result(facts, rows)
    if where is None or facts.actual is None:
        return False
    one, other = facts.expected[~where], facts.actual[~where]
    scale = float(np.abs(one[np.isfinite(one)]).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-3 * scale, equal_nan=True))


def _both(facts: Facts, rows: Array) -> tuple[str, ...]:
    where = _rows_of_result(facts, rows)
    if where is None or facts.actual is None or not facts.expected[where].size:
        return ()
    one, other = facts.expected[where].reshape(-1)[0], facts.actual[where].reshape(-1)[0]
    return (f"there PyTorch gives {number(one)} ..., the graph {number(other)} ...",)
