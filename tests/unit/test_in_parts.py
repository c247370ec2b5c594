"""``in_parts``: one projection to queries, keys and values, which the graph makes one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from test_align import noise, stage

from bisect_tool.align.in_parts import with_parts
from bisect_tool.records import Alignment, TorchTrace, Unaligned
from bisect_tool.signatures import signature_of

WHOLE = noise(1, 2, 30, 24)


def reason(*parts: NDArray[np.float32], in_graph: bool = False, whole: NDArray[np.float32] = WHOLE) -> str:
    """What is said of a stage without a pair, beside a graph that has these values: ``p0``, ``p1`` ..."""
    own = stage("qkv", 1, [0], shape=whole.shape)
    alignment = Alignment((), (Unaligned(own.ref, "no value equals it", in_graph),), (), 1, 0, None)
    trace = TorchTrace((own,), {}, (), (), {})
    signatures = {f"p{i}": signature_of(part, "float") for i, part in enumerate(parts)}
    return with_parts(alignment, trace, signatures, lambda value: whole, 1e-3).unaligned[0].reason


@pytest.mark.parametrize("axis", [2, 1])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (12, 6, 6), (23, 1)])
def test_parts_are_named_in_their_order(sizes: tuple[int, ...], axis: int) -> None:
    """Of equal sizes or, as where heads share their keys, of different ones; the last axis or the second."""
    ends = np.cumsum(sizes)[:-1] if axis == 2 else [10, 25]
    parts = np.split(WHOLE, ends, axis)
    names = [f"p{i}" for i in range(len(parts))][::-1]
    assert reason(*parts[::-1]) == f"the graph has it in parts, along axis {axis}: {', '.join(names)}"


def test_parts_that_are_missing_or_off_are_no_parts() -> None:
    first, second, third = np.split(WHOLE, 3, 2)
    assert reason(first, second) == "no value equals it"
    assert reason(first, second, third * np.float32(1.01)) == "no value equals it"
    assert reason(first, second, noise(5, 2, 30, 8)) == "no value equals it"


def test_a_stage_that_the_graph_has_is_left_alone() -> None:
    assert reason(*np.split(WHOLE, 3, 2), in_graph=True) == "no value equals it"


def test_zeros_tell_nothing() -> None:
    """Any stretch of them is any other."""
    zeros = np.zeros((2, 30, 24), np.float32)
    assert reason(*np.split(zeros, 3, 2), whole=zeros) == "no value equals it"
