"""Stages whose value a graph has in parts: one projection to queries, keys and values here, three of them there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from bisect_tool.metrics import kind_of
from bisect_tool.records import Alignment, TorchTrace
from bisect_tool.signatures import Signature, distance, sampled_norm, signature_of

Array = NDArray[Any]

MOST_PARTS = 8
MOST_STAGES = 200
"""Stages that are looked at, each of which is read once: in bigger models they repeat themselves."""


def with_parts(
    alignment: Alignment,
    trace: TorchTrace,
    signatures: Mapping[str, Signature],
    fetch: Callable[[int], Array | None],
    limit: float,
) -> Alignment:
    """The alignment with the parts of stages that the graph has no single value for, in their reasons.

    Args:
        alignment: from :func:`bisect_tool.align.summary.summarize`.
        trace: of PyTorch's run.
        signatures: of the graph's values, by name, of a run on the same inputs.
        fetch: a PyTorch value's tensor; ``None`` where it was let go, as what has an equal one as a whole is.
        limit: relative difference up to which two tensors are one.
    """
    stages = {stage.ref: stage for stage in trace.stages}
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, signature in signatures.items():
        if signature.kind == "float" and signature.norm > 0:
            by_size[signature.size].append(name)
    found = []
    left = MOST_STAGES
    for item in alignment.unaligned:
        stage = stages[item.ref]
        if item.in_graph or left == 0 or len(stage.shape) < 2 or not stage.dtype.startswith(("float", "bfloat")):
            found.append(item)
            continue
        left -= 1
        array = fetch(stage.value)
        parts = None if array is None else _parts_of(array, by_size, signatures, limit)
        if parts is not None:
            axis, names = parts
            item = replace(item, reason=f"the graph has it in parts, along axis {axis}: {', '.join(names)}")
        found.append(item)
    return replace(alignment, unaligned=tuple(found))


def _parts_of(
    array: Array, by_size: Mapping[int, Collection[str]], signatures: Mapping[str, Signature], limit: float
) -> tuple[int, list[str]] | None:
    """The axis along which values of the graph, one after the other, are the array; and their names."""
    for axis in dict.fromkeys((array.ndim - 1, 1)):
        length = array.shape[axis]
        row = array.size // max(length, 1)
        # The graph has few sizes, and a stage may have thousands of channels.
        sizes = (size for size in by_size if row and size and size % row == 0)
        widths = sorted((size // row for size in sizes if size // row < length), reverse=True)
        names: list[str] = []
        start = 0
        while widths and start < length and len(names) < MOST_PARTS:
            name, width = _part_at(array, axis, start, widths, row, by_size, signatures, limit)
            if name is None:
                break
            names.append(name)
            start += width
        if start == length:
            return axis, names
    return None


def _part_at(
    array: Array,
    axis: int,
    start: int,
    widths: Sequence[int],
    row: int,
    by_size: Mapping[int, Collection[str]],
    signatures: Mapping[str, Signature],
    limit: float,
) -> tuple[str | None, int]:
    for width in widths:
        if start + width > array.shape[axis]:
            continue
        place = [slice(None)] * array.ndim
        place[axis] = slice(start, start + width)
        part = array[tuple(place)]
        # Reading all of a part is dear, and nearly all of them fit nothing.
        norm = sampled_norm(part)
        near = [name for name in by_size[width * row] if abs(signatures[name].norm - norm) <= 2 * limit * norm]
        if not near or norm == 0:
            continue
        own = signature_of(part, kind_of(part.dtype))
        hits = [name for name in near if distance(own, signatures[name]) <= limit]
        if hits:
            return hits[-1], width
    return None, 0
