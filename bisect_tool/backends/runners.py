"""What computes the actual side: a runner loads a graph, and the loaded graph computes values from feeds.

Everything above it (untouched runs, segments, parts of a stage) needs no more than this. ONNX Runtime is the first
implementation; ONNX's own reference evaluator is the second: slow, and independent of every runtime's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.onnx_program import OnnxProgram, ValueType
from bisect_tool.errors import BisectError
from bisect_tool.records import NumericConfig

Array = NDArray[Any]


class LoadedGraph(Protocol):
    """A graph that is ready to run, any number of times."""

    @property
    def output_names(self) -> Sequence[str]:
        """Of the graph's own outputs, in its order."""

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, Array],
        types: Mapping[str, ValueType] | None = None,
        buffers: BufferPool | None = None,
    ) -> list[Array | None]:
        """Computes outputs from arrays on the CPU.

        Args:
            outputs: names of outputs of the graph.
            feeds: its inputs, by name.
            types: of outputs, as far as they are known; a runner may do without.
            buffers: memory for big outputs of known type; a runner may do without.

        Returns:
            An array for each name, ``None`` for what is no tensor or was not computed.

        Raises:
            InconclusiveError: the run failed; the reason is in the message.
        """


class Runner(Protocol):
    """Something that computes ONNX graphs."""

    @property
    def name(self) -> str:
        """As ``NumericConfig.backend`` has it."""

    @property
    def title(self) -> str:
        """In words."""

    @property
    def version(self) -> str: ...

    def load(self, model: bytes, config: NumericConfig, weights_folder: str) -> LoadedGraph:
        """Makes a graph ready to run.

        Args:
            model: serialised; its weights may be external.
            config: the actual side's switches.
            weights_folder: where external weights are.

        Raises:
            InconclusiveError: the runner has no way to compute this graph, or not in this configuration.
        """


class WholeRun(Protocol):
    """The whole graph as it was given, under one configuration."""

    @property
    def effective(self) -> Mapping[str, Any]:
        """What was read back."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array | None]: ...

    def nodes_left_behind(self) -> tuple[str, ...] | None:
        """Nodes that another device computes than was asked for; ``None``: nobody tells."""


def _onnxruntime() -> Runner:
    from bisect_tool.backends.ort_runner import OrtRunner

    return OrtRunner()


def _reference() -> Runner:
    from bisect_tool.backends.reference_runner import ReferenceRunner

    return ReferenceRunner()


RUNNERS: dict[str, Callable[[], Runner]] = {"onnxruntime": _onnxruntime, "onnx-reference": _reference}
"""By name; made when asked for, so that one can be had without the other's library."""


def runner_of(config: NumericConfig) -> Runner:
    """The runner that a configuration of the actual side names.

    Raises:
        BisectError: there is none of that name.
    """
    if config.backend not in RUNNERS:
        raise BisectError(f"there is no runner {config.backend!r}", hint=f"runners are: {', '.join(RUNNERS)}")
    return RUNNERS[config.backend]()


def untouched_run(program: OnnxProgram, config: NumericConfig, *, look: bool = False) -> WholeRun:
    """The whole graph, ready to run as given.

    Args:
        program: the graph.
        config: of the actual side.
        look: read back what is in effect, as far as the runner tells.

    Raises:
        InconclusiveError: the runner cannot compute this graph.
    """
    if config.backend == "onnxruntime":
        from bisect_tool.backends.ort_runner import UntouchedRun

        return UntouchedRun(program, config, look=look)
    if config.backend == "onnx-reference":
        from bisect_tool.backends.reference_runner import require_affordable

        require_affordable(program)
    return _PlainRun(program, config)


class _PlainRun:
    """The whole graph in a runner that has nothing to read back."""

    def __init__(self, program: OnnxProgram, config: NumericConfig):
        runner = runner_of(config)
        self._graph = runner.load(program.untouched(), config, str(program.weights_folder))
        self.effective: Mapping[str, Any] = {"runner": runner.name, "version": runner.version}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array | None]:
        names = list(self._graph.output_names)
        return dict(zip(names, self._graph.run(names, feeds), strict=True))

    def nodes_left_behind(self) -> tuple[str, ...] | None:
        return ()
