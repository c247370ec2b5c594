"""What to do with a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from bisect_tool.backends.case import LoadedCase
from bisect_tool.backends.exporting import ExportSettings
from bisect_tool.calibration.calibrated import TableInForce
from bisect_tool.records import ConfigPair, Tolerance

Array = NDArray[Any]
Progress = Callable[[str], None]
Runner = Literal["onnxruntime", "onnx-reference"]
Step = Callable[[str, str], AbstractContextManager[None]]
"""``step(name, text)`` times what is done inside, and tells about it."""


class GraphSource(Protocol):
    """Hands out graphs that were exported with this case, or with another one that has inputs of the same form."""

    def path(self, case: LoadedCase, settings: ExportSettings, step: Step) -> Path:
        """The exported file; ``step`` is told when an export is made."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What to do with a case.

    Attributes:
        onnx: a given file; ``None``: export.
        export: how to export.
        keep_onnx: where to leave the exported file.
        overwrite: what is there may be replaced.
        tolerance: in force.
        level: of the stages that are judged.
        stages: globs; the stages that are judged, at any level, instead of a whole level.
        groups: globs; containers that are shown beside them, each as one stage.
        memory_budget: bytes of activations that may be kept at once.
        min_coverage: under this share of aligned outputs nothing is called agreeing.
        forced: make the forced run, which local errors need.
        observe: run the untouched graph too, which the verdict on an optimised configuration needs.
        optimizations: ONNX Runtime's levels to run, both sides on the CPU, when no ``pairs`` are given.
        pairs: configuration pairs to run. Their ``exporter``, ``opset`` and the like say how the given graph was made,
            and ``dtype`` what the given model is in: nothing is exported or converted for them here.
        look: read back what is in effect in ONNX Runtime, its optimised graph too.
        measure: time plain runs of both sides, after everything else.
        threads: of both sides; 0 is each library's default.
        keep_replay: called with the name of an origin's replay folder and its files; ``None``: none are made.
        runner: what computes the graph when no ``pairs`` are given. With ``onnx-reference`` there is one pair: nothing is
            optimised. Stages are aligned with ONNX Runtime all the same.
        graphs: where exported graphs come from that several cases share; ``None``: this case exports its own.
        passes: where an optimised run is wrong and the unoptimised one is not, look for the passes that do it.
        table: calibrated limits, which decide wherever they say something; then ``tolerance`` is the default.
        keep_outputs: called with a configuration and its final outputs on both sides, by their keys as text: PyTorch's,
            and the untouched graph's where it has them.
        explain: look for why something diverges; else the report only says where.
    """

    tolerance: Tolerance
    onnx: Path | None = None
    export: ExportSettings = ExportSettings()
    keep_onnx: Path | None = None
    overwrite: bool = False
    level: str = "leaf"
    stages: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    memory_budget: int = 2 << 30
    min_coverage: float = 0.9
    forced: bool = True
    observe: bool = True
    optimizations: tuple[str, ...] = ("off", "all")
    pairs: tuple[ConfigPair, ...] = ()
    look: bool = False
    measure: bool = False
    threads: int = 0
    keep_replay: Callable[[str, Mapping[str, bytes | str]], None] | None = None
    runner: Runner = "onnxruntime"
    graphs: GraphSource | None = None
    passes: bool = True
    table: TableInForce | None = None
    keep_outputs: Callable[[str, Mapping[str, Array], Mapping[str, Array]], None] | None = None
    explain: bool = True
