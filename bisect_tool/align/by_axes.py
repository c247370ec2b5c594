"""Pairs values that the graph has with their axes in another order."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from bisect_tool.align.board import Board
from bisect_tool.align.matches import SPLIT, Match, Permuted
from bisect_tool.layouts import same_data_order
from bisect_tool.signatures import Signature, distance


def match_permuted(board: Board, permuted: Permuted) -> None:
    """Values whose axes the exporter put in another order, as for recurrences, or split as well, as for heads."""
    free: dict[tuple[str, int], list[tuple[float, str]]] = defaultdict(list)
    for name, signature in board.onnx.items():
        if name not in board.taken and name in board.place and signature.size > 1 and math.isfinite(signature.total):
            free[signature.kind, signature.size].append((signature.total, name))
    for bucket in free.values():
        bucket.sort()
    for value in board.first_stage:
        own = board.torch.get(value)
        if value in board.matches or value in board.merged or own is None or not 0 < own.total < math.inf:
            continue
        # The order of axes leaves the norm of the whole as it is, though not that of a sample.
        near = _of_norm(board, value, own.total, free.get((own.kind, own.size), []))
        names = [
            n
            for n in sorted(near, key=lambda n: board.place[n])
            if n not in board.taken and not board.lacks_bias(value, n)
        ]
        if not names or _take_permuted(board, value, names, permuted(value, None), ()):
            continue
        by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name in names:
            by_shape[board.onnx[name].shape].append(name)
        any(_take_permuted(board, value, some, permuted(value, shape), (SPLIT,)) for shape, some in by_shape.items())


def _take_permuted(
    board: Board, value: int, names: Sequence[str], orders: Mapping[tuple[int, ...], Signature], tag: tuple[str, ...]
) -> bool:
    """Pairs a value with the last of the names that has it in one of some orders, those of its scope first."""
    for order, signature in orders.items():
        hits = [
            n
            for n in names
            if same_data_order(signature.shape, board.onnx[n].shape)
            and (apart := distance(signature, board.onnx[n])) <= board.limit(value)
            # Of a map that is nearly even every order is near, where a limit is wide.
            and apart * board.clearly_nearer <= distance(board.torch[value], board.onnx[n])
            and not board.circular(value, n)
        ]
        scoped = [n for n in hits if board.same_scope(value, n)]
        if hits:
            chosen = max(scoped or hits, key=lambda n: board.place[n])
            named = (board.named(chosen),) if scoped else ()
            board.take(Match(value, chosen, (board.value_evidence, "permuted", *tag, *named), True, order))
            return True
    return False


def _of_norm(board: Board, value: int, norm: float, bucket: Sequence[tuple[float, str]]) -> list[str]:
    """Names in a bucket, sorted by norms, whose norm is near that of a value."""
    width = 2 * board.limit(value) * max(norm, 1e-30)
    low = bisect.bisect_left(bucket, (norm - width, ""))
    high = bisect.bisect_right(bucket, (norm + width, "\U0010ffff"))
    return [name for _, name in bucket[low:high]]
