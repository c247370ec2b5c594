"""What ``bisect-tool inspect`` tells: which value of the graph stands for which stage, how that was found, and what the
graph is. Nothing is compared and nothing judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bisect_tool.records import Alignment, OutputKey, Pair, StageRow, TorchTrace

INSPECTION_VERSION = 1


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The ONNX graph itself.

    Attributes:
        file: the given file; ``None``: it was exported.
        exporter: ``dynamo`` | ``torchscript`` | the producer's name.
        producer: name and version of the file's producer entry.
        ir_version, opsets: of the file; opset versions by domain, that of ONNX itself as ``ai.onnx``.
        nodes: how many, those in bodies left out.
        operators: how many of each type, most first.
        weights, weight_bytes: initialisers, and their size.
        functions: local functions.
        operators_with_bodies: types of nodes that hold graphs of their own (``If``, ``Loop``, ``Scan``).
        quantized: nodes that quantise, dequantise or compute in integers.
        dtype: that most numbers of the weights have, or of the inputs where no weight is floating.
    """

    file: str | None
    exporter: str
    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    nodes: int
    operators: Mapping[str, int]
    weights: int
    weight_bytes: int
    functions: int
    operators_with_bodies: tuple[str, ...]
    quantized: int
    dtype: str | None


@dataclass(frozen=True, slots=True)
class FedInput:
    """An input of the graph, and the tensor of the sample that feeds it.

    Attributes:
        shape: as the file declares it; names of sizes that are not fixed, ``?`` where they have none.
        fed_by: name of the sample's tensor.
        fed_shape: of that tensor.
        cast_from: its dtype, where it was converted to the input's.
    """

    onnx_input: str
    dtype: str | None
    shape: tuple[str, ...]
    fed_by: str
    fed_shape: tuple[int, ...]
    cast_from: str | None


@dataclass(frozen=True, slots=True)
class BoundOutput:
    """An output of the model, and the output of the graph that is judged as it; ``None``: there is none."""

    output: OutputKey
    onnx_output: str | None


@dataclass(frozen=True, slots=True)
class LevelCount:
    """Stages of one level, and how many of them have a value in the graph."""

    stages: int
    aligned: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that ``inspect`` found; the text and the JSON print this.

    Attributes:
        case: as in a report.
        alignment: as in a report: coverage and left-overs of the chosen stages, pairs of all.
        min_coverage: under this share the graph cannot be judged.
        levels: of all stages of the model.
        evidence: chosen stages by how their value was found.
        stages: the chosen ones, as in a report, without results.
    """

    case: Mapping[str, Any]
    graph: GraphFacts
    inputs: tuple[FedInput, ...]
    outputs: tuple[BoundOutput, ...]
    alignment: Alignment
    min_coverage: float
    levels: Mapping[str, LevelCount]
    evidence: Mapping[str, int]
    stages: tuple[StageRow, ...]
    environment: Mapping[str, Any]
    timings: Mapping[str, float]
    notes: tuple[str, ...] = ()
    inspection_version: int = field(default=INSPECTION_VERSION)

    @property
    def enough(self) -> bool:
        """Whether so much is aligned that a comparison could agree or diverge."""
        coverage = self.alignment.coverage
        return self.alignment.aligned > 0 and coverage is not None and coverage >= self.min_coverage


def level_counts(trace: TorchTrace, matched: Iterable[int]) -> dict[str, LevelCount]:
    """How many stages there are on each level, and how many have a value in the graph.

    Args:
        trace: of the model.
        matched: values of PyTorch's that have one.
    """
    known = set(matched)
    found = {}
    for level in ("op", "leaf", "container"):
        stages = [stage for stage in trace.stages if stage.level == level]
        found[level] = LevelCount(len(stages), sum(stage.value in known for stage in stages))
    return found


def evidence_counts(rows: Sequence[StageRow], pairs: Sequence[Pair]) -> dict[str, int]:
    """Chosen stages by how their value was found, most first; what belongs together is joined by ``+``."""
    by_ref = {pair.ref: pair for pair in pairs}
    kinds = Counter(evidence_text(by_ref[row.ref]) for row in rows if row.role != "group" and row.ref in by_ref)
    return dict(kinds.most_common())


def evidence_text(pair: Pair) -> str:
    """How a pair was found, in one line: ``value + scope``; names of other stages are left out."""
    return " + ".join(text.partition(" as ")[0] for text in pair.evidence)
