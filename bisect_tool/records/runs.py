"""What running a configuration, a sample or a part came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bisect_tool.records.calibration import Agreement, LimitUse
from bisect_tool.records.causes import FirstOverTolerance
from bisect_tool.records.configs import NumericConfig
from bisect_tool.records.measured import ErrorMetrics
from bisect_tool.records.stages import OutputKey, StageRef
from bisect_tool.records.words import ConfigStatus, Judgement, Status


@dataclass(frozen=True, slots=True)
class OutputResult:
    """One final output of the untouched graph under one configuration pair.

    Attributes:
        limit: the calibrated limit that decides, where the table has the stage that makes the output; else ``None``.
        agreement: how far both sides choose the same classes; ``None`` where nobody asked, or it has no classes.
    """

    output: OutputKey
    onnx_value: str
    total: ErrorMetrics
    judgement: Judgement
    limit: LimitUse | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True, slots=True)
class SideCost:
    """What one run of one side costs, apart from everything that is done to look into it.

    Attributes:
        seconds: of one run, the median of ``repeats`` after a warm-up. fastest, slowest: their range.
        device_mb: peak memory on the GPU, in MB; ``None`` on the CPU.
    """

    seconds: float
    fastest: float
    slowest: float
    repeats: int
    device_mb: float | None


@dataclass(frozen=True, slots=True)
class ConfigRun:
    """What became of one configuration pair.

    Attributes:
        effective: what was read back after the run (node counts of the optimised graph, providers, threads).
        observer_effect: relative L2 difference of the final outputs, exposed against untouched; the largest of them.
        outputs: final outputs of the *untouched* graph against PyTorch; the verdict of the pair rests on them.
        seconds: wall time of the pair's own runs, with all that is done to look into them. peak_rss_mb: of the process
            so far, both sides and the comparison included.
        expected_cost, actual_cost: of a plain run of either side; ``None`` where it was not measured.
    """

    name: str
    expected: NumericConfig
    actual: NumericConfig
    effective: Mapping[str, Any]
    gating: bool
    status: ConfigStatus
    observer_effect: float | None
    outputs: tuple[OutputResult, ...]
    seconds: float
    peak_rss_mb: float
    skipped_reason: str | None = None
    expected_cost: SideCost | None = None
    actual_cost: SideCost | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What became of one of several samples.

    Attributes:
        index: place among the samples, from 0.
        source: file that it came from.
        status: verdict on this sample.
        worst_output: largest error of a final output under a configuration that counts: relative L2, or what the
            tolerance limits; ``None`` where none was compared.
        over_limit: that error in units of its limit; ``None`` where no single number is the limit.
        noise_ratio: the largest of the origins', in units of their noise floors; ``None`` without one.
        first_over_tolerance: as in the sample's own verdict.
        folder: of the sample's own report, relative to that of all samples.
        exported_from: index of the sample that the graph was exported with; ``None`` for a given file.
        reason: why there is no answer; ``None`` where there is one.
    """

    index: int
    source: str
    status: Status
    worst_output: float | None
    over_limit: float | None
    noise_ratio: float | None
    first_over_tolerance: FirstOverTolerance | None
    folder: str
    exported_from: int | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One aten operation of a PyTorch run, without its tensors.

    Attributes:
        name: short, ``mul``.
        module, call: the innermost module call that ran it.
        source: ``file:line`` in the user's code.
        constants: numbers and small constant tensors among its arguments, as text, by place or name.
    """

    name: str
    module: str
    call: int
    source: str | None
    constants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PartOutput:
    """One output of a part in one call.

    Attributes:
        onnx_value: the output of the part's graph; empty where it has none.
        local: the untouched graph on PyTorch's own inputs, against PyTorch. judgement: of that.
        total: in the chained run, fed with what the chain had made so far; ``None`` if the chain did not get here.
    """

    output: OutputKey
    onnx_value: str
    local: ErrorMetrics
    judgement: Judgement
    total: ErrorMetrics | None


@dataclass(frozen=True, slots=True)
class PartCall:
    """One call of a part under one configuration pair.

    Attributes:
        call: of the part, from 0.
        status: of the part alone, on PyTorch's inputs.
        input_error: relative error of the chained run's inputs, taken together as one vector; ``None`` if unknown.
    """

    call: int
    config: str
    status: ConfigStatus
    input_error: float | None
    outputs: tuple[PartOutput, ...]


@dataclass(frozen=True, slots=True)
class PartResult:
    """A part of the model that has an ONNX file of its own.

    Attributes:
        part: the submodule; several that share a file are joined with ``+``.
        onnx: the file.
        calls: how often the model calls it. compared: how many of these calls were compared, the first ones.
        status: of the part alone, on the inputs that PyTorch gives it. reason: why it is inconclusive.
        stages, aligned, coverage: as in ``Alignment``, over all compared calls.
        runs: each compared call under each configuration pair.
    """

    part: str
    onnx: str
    calls: int
    compared: int
    status: Status
    reason: str | None
    stages: int
    aligned: int
    coverage: float | None
    runs: tuple[PartCall, ...]


@dataclass(frozen=True, slots=True)
class GlueStage:
    """A stage that lies in no part: PyTorch computes it on both sides, so that it is not compared.

    ``after``: the part that was called last before it; ``None`` before all parts.
    """

    ref: StageRef
    type: str
    source: str | None
    after: str | None
