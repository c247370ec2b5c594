"""Both sides' run abreast: when it serves, what it is made of, and what it measured of each pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from bisect_tool.align.matches import Match, is_narrow, value_limit
from bisect_tool.backends.abreast import LEAST_ROOM, Abreast, stretch
from bisect_tool.backends.activations import ActivationStore, GoneError
from bisect_tool.backends.ahead import Ahead
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_runner import SegmentedRun
from bisect_tool.compare import Total, total_of
from bisect_tool.metrics import kind_of
from bisect_tool.quantised import quantised_counts
from bisect_tool.records import NumericConfig, Tolerance
from bisect_tool.signatures import Signature, signature_of

Array = NDArray[Any]
BothSides = Abreast[Total]

_MOST_AHEAD = 4
"""Segments that run before they are asked for: small graphs are through by the time that PyTorch begins."""


def has_room(program: OnnxProgram, budget: int) -> bool:
    """Whether both sides fit abreast into a memory budget, of a graph whose values can be judged as they come.

    Rules for quantised graphs look at the finished alignment first.
    """
    return not quantised_counts(program.graph) and LEAST_ROOM * program.largest_bytes() <= budget


def graph_ahead(
    program: OnnxProgram, config: NumericConfig, feeds: Mapping[str, Array], budget: int
) -> Ahead[Signature]:
    """The graph's run, which needs nothing of PyTorch's: its first segments begin at once.

    Args:
        program, config, feeds: of the run.
        budget: bytes of activations that may be kept at once.
    """
    length = stretch(program.largest_bytes())
    segments = program.segments(length)
    exposed = program.exposable(segments)
    # A segment of one big value keeps all cores busy by itself, and one more of them in memory would be seen.
    most = 0 if program.largest_bytes() > length else min(max(budget // (LEAST_ROOM * length), 1), _MOST_AHEAD)
    run = SegmentedRun(program, config, segments, exposed, None, feeds)
    return Ahead(run, lambda array: signature_of(array, kind_of(array.dtype)), most=most)


def both_sides(
    graph: Ahead[Signature],
    program: OnnxProgram,
    store: ActivationStore,
    tolerance: Tolerance,
    lost: Callable[[int, Array, Signature], None],
    *,
    keep_rest: bool,
) -> BothSides:
    """The graph beside PyTorch's run, ready to be told PyTorch's values.

    Args:
        graph: from :func:`graph_ahead`.
        program: its graph.
        store, lost, keep_rest: as for :class:`bisect_tool.backends.abreast.Abreast`.
        tolerance: that pairs are judged by.
    """
    narrow = is_narrow(program.graph)
    return Abreast(
        graph,
        store,
        lambda expected, actual: total_of(expected, actual, tolerance),
        lost,
        lambda dtype: value_limit(dtype, narrow=narrow),
        stretch(program.largest_bytes()),
        keep_rest=keep_rest,
        outputs=set(program.graph.outputs),
    )


def finished(both: BothSides) -> BothSides:
    """After PyTorch's run: the rest of the graph's.

    Raises:
        GoneError: the graph did not run; why is said where it runs alone.
    """
    both.finish()
    if both.failed:
        raise GoneError
    return both


def measured(both: BothSides | None, match: Match) -> Total | None:
    """What was measured of a pair while both sides ran."""
    if both is None or match.permutation is not None:
        return None
    return both.results.get((match.value, match.onnx))
