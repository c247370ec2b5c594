"""A branch, a size or a number that tracing fixed: the graph agrees on one sample and diverges on another (``BD401``).

An exporter that traces follows one run. What Python decided there (which side of an ``if``, how often a loop ran, what
``len`` or ``.item()`` gave) is in the graph as it was for that sample. So the operations of two PyTorch runs are set
against each other: of a sample on which the graph agrees, and of one on which it does not.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bisect_tool.align.families import family
from bisect_tool.diagnose.causes import CONSTANT as CONSTANT_CODE
from bisect_tool.diagnose.causes import EXTRA, MISSING, OPERANDS, OPERATOR, UNKNOWN
from bisect_tool.records import Diagnosis, Operation, StageRef
from bisect_tool.rows import from_here

CODE = "BD401"
BRANCH = "branch baked at trace time"
CONSTANT = "constant baked at trace time"

_LISTED = 3

SHAPING = frozenset(
    [
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "repeat", "flatten", "unflatten"),
        *("slice", "select", "as_strided", "split", "split_with_sizes", "narrow", "unfold", "chunk"),
        *("permute", "transpose", "squeeze", "unsqueeze"),
        *("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_strided"),
    ]
)
"""Operations whose numbers are sizes and places: with inputs of other sizes these differ, and are right."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two runs part.

    Attributes:
        here: operations that only the sample that agrees has run; or the one whose constants differ.
        there: the same of the sample that diverges.
        place: of the difference among the operations of the sample that diverges.
        branch: other operations ran; else the operations are the same, with other constants.
    """

    here: tuple[Operation, ...]
    there: tuple[Operation, ...]
    place: int
    branch: bool


@dataclass(frozen=True, slots=True)
class Variant:
    """PyTorch's run on some inputs; ``text``: which."""

    text: str
    run: tuple[Operation, ...]


def differences(agreeing: Sequence[Operation], diverging: Sequence[Operation]) -> list[Difference]:
    """Where two runs of one model part, in the order in which they ran."""
    first = [(op.module, op.call, op.name) for op in agreeing]
    second = [(op.module, op.call, op.name) for op in diverging]
    found = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if tag != "equal":
            found.append(Difference(tuple(agreeing[i:j]), tuple(diverging[k:m]), k, branch=True))
            continue
        for here, (place, there) in zip(agreeing[i:j], enumerate(diverging[k:m], k), strict=True):
            if here.constants != there.constants:
                found.append(Difference((here,), (there,), place, branch=False))
    return found


def diagnose(
    agreeing: Sequence[Operation],
    diverging: Sequence[Operation],
    names: tuple[str, str],
    first: StageRef | None,
    *,
    same_shapes: bool,
    exported: bool,
    failure: str | None = None,
) -> Diagnosis | None:
    """Why a graph agrees on one sample and not on another, if the two PyTorch runs differ in what tracing fixes.

    Args:
        agreeing, diverging: operations of both runs.
        names: of both samples, for the evidence.
        first: the first diverging stage; a difference behind it explains nothing. ``None``: unknown.
        same_shapes: both samples have inputs of the same shapes: then no size differs for a good reason.
        exported: the graph was exported with a sample of this form; else it is a given file.
        failure: why the graph does not run on the second sample at all, if so.

    Returns:
        ``None`` where the two runs do the same: then the divergence depends on the values alone.
    """
    last = _last_place(diverging, first)
    parts = [each for each in differences(agreeing, diverging) if last is None or each.place <= last]
    branches = [each for each in parts if each.branch]
    constants = [each for each in parts if not each.branch]
    if not same_shapes:
        # Sizes follow the input; they are named only where nothing else is, and the graph fails or diverges over them.
        constants = [each for each in constants if each.there[0].name not in SHAPING] or constants
    if not branches and not constants:
        return None
    here, there = names
    evidence = [
        f"agrees on {here}{', the sample of the export,' if exported else ''} and "
        + (f"does not run on {there}: {failure}" if failure else f"diverges on {there}")
    ]
    if first is not None:
        evidence.append(f"first diverging stage on {there}: {first}")
    for each in branches[:_LISTED]:
        evidence += [
            f"runs only on {name}: {_listed(ops)}" for name, ops in ((here, each.here), (there, each.there)) if ops
        ]
    for each in constants[:_LISTED] if not branches else ():
        evidence.append(_constant_line(each, here, there))
    left = len(branches or constants) - _LISTED
    if left > 0:
        evidence.append(f"and {left} more {'place' if left == 1 else 'places'} where the two runs of PyTorch differ")
    if branches:
        title = BRANCH
        remedy = _BRANCH_REMEDY
    elif same_shapes:
        title = CONSTANT
        remedy = _CONSTANT_REMEDY
    else:
        title = CONSTANT
        remedy = (
            "export with dynamic shapes (dynamic_shapes, or dynamic_axes), and compute what depends on a size from "
            "x.shape by tensor operations, not through Python's math, int() or float(); or export once for each shape"
        )
    return Diagnosis(CODE, title, tuple(evidence), remedy, None, None)


_MEND = frozenset([CONSTANT_CODE, OPERATOR, MISSING, EXTRA, OPERANDS, UNKNOWN])


def with_baked(
    found: Sequence[Diagnosis], variants: Sequence[Variant], nodes: Mapping[StageRef, Sequence[str]]
) -> tuple[Diagnosis, ...]:
    """Diagnoses of a single sample, those whose number or branch follows the input as what tracing baked in.

    Args:
        found: of the origins.
        variants: PyTorch's run on the sample, and on other inputs.
        nodes: types of the nodes that hold an origin's fault.
    """
    if len(variants) < 2:
        return tuple(found)
    own, *others = variants
    return tuple(_baked(each, own, others, nodes) or each if each.code in _MEND else each for each in found)


def _baked(
    each: Diagnosis, own: Variant, others: Sequence[Variant], nodes: Mapping[StageRef, Sequence[str]]
) -> Diagnosis | None:
    if each.origin is None:
        return None
    last = _last_place(own.run, each.origin)
    if last is None:
        return None
    ops = {family(op) for op in nodes.get(each.origin, ())}
    for other in others:
        for difference in differences(other.run, own.run):
            if difference.place > last:
                break
            if difference.branch:
                here, there = ({family(op.name) for op in side} for side in (difference.here, difference.there))
                if not (here - there) & ops or (there - here) & ops:
                    continue
                line = (
                    f"PyTorch runs {_listed(difference.there) if difference.there else 'nothing'} on the sample, "
                    f"and {_listed(difference.here)} on {other.text}: the graph has the latter for every input"
                )
                return _told(each, BRANCH, line, _BRANCH_REMEDY)
            if each.code == CONSTANT_CODE and difference.place == last and each.remedy_verified:
                if difference.there[0].name in SHAPING:
                    continue
                line = _constant_line(difference, other.text, "the sample")
                line += ": the number follows the input, and the graph has one for every input"
                return _told(each, CONSTANT, line, _CONSTANT_REMEDY)
    return None


def _told(each: Diagnosis, title: str, line: str, remedy: str) -> Diagnosis:
    return replace(each, code=CODE, title=title, evidence=(*each.evidence, line), remedy=remedy)


_BRANCH_REMEDY = (
    "make the choice part of the graph: torch.cond for the Python if, torch.where where both sides can be "
    "computed, torch.while_loop for a loop whose length varies; or export once for each branch"
)
_CONSTANT_REMEDY = (
    "keep the number a tensor: without .item(), float(), int() or len(), so that the graph computes it anew"
)


def _last_place(run: Sequence[Operation], first: StageRef | None) -> int | None:
    """Place of the last operation of a stage; what runs later cannot have changed it. ``None`` if it is not found."""
    if first is None:
        return None
    module, _, operation = first.stage.rpartition("/") if "#" in first.stage else (first.stage, "", "")
    kind, _, number = operation.partition("#")
    places = [
        place
        for place, op in enumerate(run)
        if (op.module == module and op.call == first.call and op.name == kind if kind else _inside(op, module))
    ]
    if kind:
        return places[int(number)] if number.isdigit() and int(number) < len(places) else None
    return places[-1] if places else None


def _inside(op: Operation, module: str) -> bool:
    return not module or op.module == module or op.module.startswith(f"{module}.")


def _listed(ops: Sequence[Operation]) -> str:
    """``neg, add in head (net.py:12)``."""
    names = [op.name for op in ops]
    shown = ", ".join(dict.fromkeys(names[:6]))
    if len(names) > 6 or len(set(names)) < len(names):
        counts = Counter(names)
        shown = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.most_common(4))
        shown += f" and {len(counts) - 4} kinds more" if len(counts) > 4 else ""
    return f"{shown}{_where(ops[0])}"


def _where(op: Operation) -> str:
    return f" in {op.module or '(model)'}" + (f" ({from_here(op.source)})" if op.source else "")


def _constant_line(each: Difference, here: str, there: str) -> str:
    (one,), (two,) = each.here, each.there
    pairs = [(a, b) for a, b in zip(one.constants, two.constants, strict=False) if a != b] or [("?", "?")]
    a, b = (", ".join(text.partition(": ")[2] or text for text in side) for side in zip(*pairs, strict=True))
    return f"{two.name}{_where(two)} works with {a} on {here} and with {b} on {there}"
