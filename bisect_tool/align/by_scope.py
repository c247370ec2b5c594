"""Pairs stages that no value fits: by a fresh export's structure, or by the scopes alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import replace

from bisect_tool.align.activated import ACTIVATED, match_activated
from bisect_tool.align.board import Board
from bisect_tool.align.families import SHAPING, family
from bisect_tool.align.matches import STRUCTURE, Match, Permuted
from bisect_tool.align.surroundings import is_passed_by
from bisect_tool.layouts import axis_order
from bisect_tool.signatures import Signature, distance

_BIASED = frozenset(["addmm", "baddbmm", "addmv", "linear"])
"""Operations that add a bias: a node of its own in the graph."""


_NEARER = 2.0
"""So many times nearer than in any other order the numbers of a value must be, where they are off in all of them."""


def match_placed(board: Board, placed: Mapping[int, Match]) -> None:
    """Stages whose place a fresh export tells, as far as no value says otherwise."""
    for value, match in placed.items():
        if value in board.matches or match.onnx in board.taken or not board.lies_right(value, match.onnx):
            continue
        agrees = match.permutation is None and board.agrees(value, match.onnx) and not board.circular(value, match.onnx)
        evidence = (STRUCTURE, board.value_evidence) if agrees else (STRUCTURE,)
        board.take(replace(match, evidence=evidence, confirmed=agrees))


def match_by_scope(board: Board, permuted: Permuted) -> None:
    """Stages that no value fits: the name is all there is, so the pair stays unconfirmed."""
    leaves: dict[str, list[int]] = defaultdict(list)
    calls: dict[tuple[str, str], list[int]] = defaultdict(list)
    for value, stage in board.first_stage.items():
        if stage.level == "container" or value in board.matches or value in board.merged or value not in board.torch:
            continue
        if value not in board.used:
            # A node of its kind is another's: exporters leave out what nothing uses.
            continue
        path, separator, _ = stage.ref.stage.rpartition("/")
        if separator and "#" in stage.ref.stage:
            calls[path, family(stage.type)].append(value)
        else:
            leaves[stage.ref.stage].append(value)
    activated = match_activated(board)
    for path in activated:
        leaves.pop(path, None)
    folded = _folded_into(board, leaves)
    # The producer's node holds the normalisation's value: nothing in its scope is the producer's own.
    taken = {board.folded_scope(board.first_stage[value]) for value in board.matches}
    for path, values in leaves.items():
        if path in folded.values() or path in taken:
            continue
        names = board.scopes.leaving(folded.get(path, path))
        if all(_is_passed_by(board, value) for value in values):
            # What an activation was fused into has the value behind that; the module's own is nowhere.
            names = [n for n in names if board.graph.nodes[board.place[n]].op_type not in ACTIVATED]
        _match_group(board, values, names, permuted)
    for (path, kind), values in calls.items():
        names = board.scopes.calls(path, kind)
        if all(board.first_stage[value].type in _BIASED for value in values):
            following = {family(stage.type) for v in values for stage in board.stages_after(v)}
            # A bias of zeros leaves the product equal: a sum behind one that has a pair is no other operation's.
            sums = (_with_bias(board, name, following) for name in names if name not in board.taken)
            names = [name for name in sums if name is not None]
        _match_group(board, values, names, permuted, operations=True)
    members = {stage.ref.stage for stage in board.first_stage.values() if "#" not in stage.ref.stage}
    whole: dict[str, list[int]] = defaultdict(list)
    for value, stages in board.stages_of.items():
        # One operation of PyTorch's may be all of a module, as in attention's fast path, and many nodes.
        for path in {s.ref.stage for s in stages if s.level == "container" and s.alias_of is not None}:
            if value not in board.matches and value in board.torch:
                whole[path].append(value)
    for path, values in whole.items():
        # A module that is called several times has as many.
        own = [v for v in values if not board.scopes.calls(path, family(board.first_stage[v].type))]
        left = [v for v in own if v not in board.matches]
        # What a member of its own makes is that member's.
        names = [name for name in board.scopes.leaving_tree(path) if board.scopes.path_of(name) not in members]
        _match_group(board, left, [n for n in names if any(board.lies_right(v, n) for v in left)], permuted)


def _with_bias(board: Board, name: str, following: Set[str]) -> str | None:
    """The sum behind a product: one operation in PyTorch, two nodes here, or three with a factor.

    ``None``: the sum has a pair, as the same numbers in another shape, and the bare product is no value of PyTorch's.

    ``following``: kinds of the operations that come next in PyTorch; a node of their kind is theirs.
    """
    if board.graph.nodes[board.place[name]].op_type != "MatMul":
        return name
    at, path = name, board.scopes.path_of(name)
    while len(readers := set(board.scopes.readers[at])) == 1 and at not in board.scopes.outputs:
        node = board.graph.nodes[readers.pop()]
        if node.op_type not in ("Mul", "Add", "Identity") or family(node.op_type) in following:
            break
        if board.scopes.path_of(node.outputs[0]) != path:
            break
        if node.outputs[0] in board.taken:
            return None if node.op_type == "Add" else name
        at = node.outputs[0]
        if node.op_type == "Add":
            return at
    return at if board.graph.nodes[board.place[at]].op_type == "Identity" else name


def _match_group(
    board: Board, values: list[int], names: list[str], permuted: Permuted, *, operations: bool = False
) -> None:
    """Pairs what a scope has in PyTorch with what it has in the graph, where the numbers on both sides are equal.

    A module's value is the last of its scope; ``operations`` of one kind are told apart by what they read.
    """
    values = sorted(values, key=lambda v: board.first_stage[v].order)
    if operations:
        values = [v for v in values if not _computed_otherwise(board, v)]
    free = [n for n in names if n not in board.taken and any(board.lies_right(v, n) for v in values)]
    sizes = {math.prod(board.first_stage[v].shape) for v in values}
    for size in sizes:
        members = [v for v in values if math.prod(board.first_stage[v].shape) == size]
        read = set().union(*(_parents(board, v) for v in members)) if operations else set()
        usable = [n for n in free if not read or read & _read_by(board, n)]
        options = [n for n in usable if board.fits(members[0], n)]
        if operations and len(options) > len(members) and not any(_has_paired_source(board, v) for v in members):
            # Nothing tells what they read, and one too many of them stands for something else.
            continue
        # Optimisers sort graphs anew: of several operations of one kind the order alone does not tell which is which.
        if operations and len(options) >= max(len(members), 2):
            options = _most_alike(board, members, options)
        if len(members) == 1 and len(options) > 1:
            options = options[-1:]
        if not options and len(members) == 1:
            _match_by_axes(board, members[0], usable, permuted)
        if len(options) != len(members):
            continue
        for value, name in zip(members, options, strict=True):
            agrees = board.agrees(value, name) and not board.circular(value, name)
            named = board.named(name)
            evidence = (named, board.value_evidence) if agrees else (named,)
            board.take(_follow_unconfirmed(board, Match(value, name, evidence, agrees)))


def _most_alike(board: Board, values: list[int], names: list[str]) -> list[str]:
    """As many names as values, in their order, if reading and numbers tell; all names otherwise."""
    chosen: list[str] = []
    for value in values:
        parents = _parents(board, value)
        reading = [n for n in names if parents <= _read_by(board, n)] if parents else []
        # What another operation's nodes lie between is further down.
        reading = [n for n in reading if parents & _read_by(board, n, SHAPING)] or reading
        near = {n: _apart(board, value, n) for n in reading or names}
        clear = min(near.values()) * board.clearly_nearer
        found = [n for n, apart in near.items() if apart <= clear]
        if len(found) != 1 or found[0] in chosen:
            return reading if len(values) == 1 and reading else names
        chosen += found
    return chosen


def _computed_otherwise(board: Board, value: int) -> bool:
    """Whether the graph gets to what is made of an operation without it, and nothing that it reads has a pair."""
    return not _has_paired_source(board, value) and _is_passed_by(board, value)


def _is_passed_by(board: Board, value: int) -> bool:
    return is_passed_by(value, board.trace, board.children, board.matches, board.torch, board.chained)


def _parents(board: Board, value: int) -> set[str]:
    """The graph's values of what a value is computed from, where they have a pair."""
    return {board.matches[v].onnx for v in board.trace.parents.get(value, ()) if v in board.matches}


def _has_paired_source(board: Board, value: int) -> bool:
    """Whether something that an operation reads has a pair, itself or before it was laid out otherwise."""
    stack, seen = list(board.trace.parents.get(value, ())), set[int]()
    while stack:
        at = stack.pop()
        if at in board.matches:
            return True
        # A view is no stage, and so has no pair of its own.
        if at not in seen and at not in board.first_stage:
            stack.extend(board.trace.parents.get(at, ()))
        seen.add(at)
    return False


def _apart(board: Board, value: int, name: str) -> float:
    first, second = board.torch.get(value), board.onnx.get(name)
    return distance(first, second) if first is not None and second is not None else math.inf


def _read_by(board: Board, name: str, ways: Set[str] | None = None) -> set[str]:
    """Paired values that a node reads, itself or by way of nodes that belong to nobody, all of them of kinds in ``ways``."""
    found: set[str] = set()
    seen: set[str] = set()
    stack = list(board.graph.nodes[board.place[name]].inputs)
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        if at in board.taken:
            found.add(at)
        elif at in board.place and (ways is None or board.graph.nodes[board.place[at]].op_type in ways):
            stack.extend(board.graph.nodes[board.place[at]].inputs)
    return found


def _match_by_axes(board: Board, value: int, names: list[str], permuted: Permuted) -> None:
    shape = board.first_stage[value].shape
    for name in reversed(names):
        signature = board.onnx.get(name)
        own = board.torch.get(value)
        if signature is None or (own is not None and own.kind != signature.kind) or board.lacks_bias(value, name):
            continue
        if name in board.taken:
            continue
        order = axis_order(shape, signature.shape) or _nearest_order(signature, permuted(value, None))
        if order is not None:
            board.take(Match(value, name, ("scope", "permuted"), False, order))
            return


def _nearest_order(wanted: Signature, orders: Mapping[tuple[int, ...], Signature]) -> tuple[int, ...] | None:
    """Of several orders of axes that give a shape the one whose numbers are nearer: behind a fault none is near."""
    near = sorted((distance(each, wanted), order) for order, each in orders.items() if each.shape == wanted.shape)
    if not near or not math.isfinite(near[0][0]):
        return None
    return near[0][1] if len(near) == 1 or near[0][0] * _NEARER < near[1][0] else None


def _follow_unconfirmed(board: Board, match: Match) -> Match:
    """Untagged nodes behind a broken stage that hand *its* value on belong to it too."""
    own = board.onnx.get(match.onnx)
    return board.follow(match, own) if own is not None and own.norm else match


def _folded_into(board: Board, leaves: Mapping[str, list[int]]) -> dict[str, str]:
    """Normalisations that have no node while their producer has one: the exporter folded them into it.

    The producer's node then holds the normalisation's value, under the producer's name.
    """
    result: dict[str, str] = {}
    for path, values in leaves.items():
        producer = board.folded_scope(board.first_stage[values[0]])
        if producer is not None:
            result[path] = producer
    return result
