"""Runs of the unoptimised graph, segment by segment, and what they leave for later ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from numpy.typing import NDArray

from bisect_tool.align.matches import Match, SecondDraw
from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.case import LoadedCase, copies_of
from bisect_tool.backends.inputs import bind_inputs, sample_tensors
from bisect_tool.backends.memory import return_free_memory
from bisect_tool.backends.onnx_program import OnnxProgram, Segment, ValueType, type_of_array
from bisect_tool.backends.ort_runner import Reuse, SegmentedRun
from bisect_tool.backends.second_draw import random_like, torch_signatures
from bisect_tool.backends.stream import Lane, OnPair, run_lanes
from bisect_tool.errors import BisectError
from bisect_tool.metrics import kind_of
from bisect_tool.records import NumericConfig, TorchTrace
from bisect_tool.signatures import Signature, signature_of

Array = NDArray[Any]

LONGEST_STRETCH = 128 << 20
"""Bytes that a segment makes at most, if it has two nodes: what comes later finds memory that was used before."""


class GraphRuns:
    """The graph on one sample.

    Args:
        program: the graph, shapes of its inputs known.
        config: of its plain runs: on the CPU, nothing optimised.
        feeds: the sample's tensors by the graph's input.
        budget: bytes of activations that may be kept at once.

    Attributes:
        feeds: as given; others may be put in their place.
        in_memory: whether all values of both sides fit into the budget.
        is_roomy: whether it has room for what only saves time.
        buffers: for big outputs.
        signatures: of all values in the graph's own run.
        types: of these values.
        arrays: the values themselves, if they fit.
    """

    def __init__(self, program: OnnxProgram, config: NumericConfig, feeds: Mapping[str, Array], budget: int):
        self._program = program
        self._config = config
        self._budget = budget
        self.feeds = feeds
        # Each value is held on both sides.
        self.in_memory = 2 * program.activation_bytes() <= budget
        self.is_roomy = self._piece() >= 2 * LONGEST_STRETCH
        self.buffers = BufferPool(2 * LONGEST_STRETCH if self.is_roomy else 0)
        self.signatures: dict[str, Signature] = {}
        self.types: dict[str, ValueType] = {}
        self.arrays: dict[str, Array | None] = {}

    def forget(self) -> None:
        """Frees what was kept, to run anew."""
        for kept in (self.arrays, self.signatures, self.types):
            kept.clear()

    def segments(self, cut: Iterable[str] = (), optimization: str | None = None) -> list[Segment]:
        """The graph in pieces that fit into the budget, values of ``cut`` given from outside.

        Of an optimised one that fits as a whole, a whole: nodes of two pieces cannot be fused.
        """
        whole = self.in_memory and optimization not in (None, "off")
        return self._program.segments(None if whole else min(self._piece(), LONGEST_STRETCH), frozenset(cut))

    def segmented(
        self,
        config: NumericConfig,
        segments: Sequence[Segment],
        exposed: Set[str],
        forced: Set[str] | None,
        computed: Mapping[str, Array | None] | None,
    ) -> SegmentedRun:
        """A run on the sample; see :class:`bisect_tool.backends.ort_runner.SegmentedRun`."""
        reuse = Reuse(computed, self.types, self.buffers)
        return SegmentedRun(self._program, config, segments, exposed, forced, self.feeds, reuse)

    def drive(self, lanes: Sequence[Lane], activations: ActivationStore, on_pair: OnPair) -> None:
        """Runs lanes against PyTorch's tensors; memory goes back to the system between segments if it is scarce."""
        after_step = (lambda: None) if self.in_memory else return_free_memory
        run_lanes(lanes, activations, on_pair, after_step, prefetch=self.is_roomy)

    def lane(
        self,
        config: NumericConfig,
        name: str,
        pairs: Mapping[str, int],
        orders: Mapping[str, tuple[int, ...]],
        forced: Set[str] | None,
        *,
        reuse: bool,
    ) -> Lane:
        """A run whose values ``pairs`` are compared; ``reuse``: its chained values are those of the plain run."""
        computed = self.arrays if reuse and pairs.keys() <= self.arrays.keys() else None
        segments = self.segments(forced or (), config.optimization)
        return Lane(name, self.segmented(config, segments, set(pairs), forced, computed), pairs, orders)

    def see_all(self) -> None:
        """Signatures and types of everything in the graph, from its own run."""

        def on_value(name: str, array: Array) -> None:
            self.signatures[name] = signature_of(array, kind_of(array.dtype))
            self.types[name] = type_of_array(array.dtype, array.shape)

        self._run(self.feeds, self.segments(), on_value, self.arrays if self.in_memory else None)

    def second_draw(self, case: LoadedCase, trace: TorchTrace, *, every_op: bool) -> SecondDraw | None:
        """Signatures of both sides on a made-up input; ``None`` if one side cannot run on it."""
        args, kwargs = random_like(case.args, case.kwargs)
        expected = torch_signatures(case.module, copies_of(args), copies_of(kwargs), trace, every_op=every_op)
        if expected is None:
            return None
        found: dict[str, Signature] = {}

        def on_value(name: str, array: Array) -> None:
            found[name] = signature_of(array, kind_of(array.dtype))

        try:
            feeds = bind_inputs(self._program.graph, sample_tensors(case.module, args, kwargs)).feeds
            # The sample's own values stay in memory beside these.
            self._run(feeds, self._program.segments(self._piece()), on_value)
        except BisectError:
            return None
        return expected, found

    def forced_signatures(self, activations: ActivationStore, matches: Mapping[int, Match]) -> dict[str, Signature]:
        """Signatures again, with PyTorch's values fed in at every pair: each value from its true inputs."""
        pairs = {match.onnx: value for value, match in matches.items()}
        found: dict[str, Signature] = {}

        def on_values(_: Mapping[str, Array | None], forced: Mapping[str, Array | None]) -> None:
            for name, array in forced.items():
                if array is not None:
                    found[name] = signature_of(array, kind_of(array.dtype))

        segments = self.segments(pairs)
        exposed = self._program.exposable(segments)
        run = self.segmented(self._config, segments, exposed, set(pairs), {})
        self.drive([Lane("probe", run, pairs, permutations(matches), on_values)], activations, lambda *_: None)
        return found

    def _piece(self) -> int:
        # Held at once: PyTorch's tensors for the segment, the chained and the forced outputs, and what crosses the cut.
        return max(self._budget // 6, 1)

    def _run(
        self,
        feeds: Mapping[str, Array],
        segments: Sequence[Segment],
        on_value: Callable[[str, Array], None],
        kept: dict[str, Array | None] | None = None,
    ) -> None:
        """Runs the graph with everything exposed, segment by segment; ``kept``: where the arrays stay."""
        exposed = self._program.exposable(segments)
        reuse = Reuse(buffers=self.buffers)
        run = SegmentedRun(self._program, self._config, segments, exposed, None, feeds, reuse)
        while not run.done:
            chained, _ = run.step(lambda name, kind: feeds[name])
            for name, array in chained.items():
                if array is not None:
                    on_value(name, array)
            if kept is not None:
                kept.update(chained)
            else:
                array = None
                del chained
                return_free_memory()


def permutations(matches: Mapping[int, Match]) -> dict[str, tuple[int, ...]]:
    """Orders of axes, by the name of the graph's value that has them in another one."""
    return {match.onnx: match.permutation for match in matches.values() if match.permutation is not None}
