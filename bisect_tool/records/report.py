"""The report, which holds all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bisect_tool.records.calibration import UserMetric
from bisect_tool.records.causes import (
    Diagnosis,
    Finding,
    FirstCause,
    FirstOverTolerance,
    HandOver,
    Hypothesis,
    LedgerEntry,
    Link,
    Origin,
    RuledOut,
    StageCost,
)
from bisect_tool.records.configs import Tolerance
from bisect_tool.records.measured import StageRow, StageRows
from bisect_tool.records.runs import ConfigRun, GlueStage, PartResult, SampleResult
from bisect_tool.records.stages import Alignment, StageRef
from bisect_tool.records.words import Status
from bisect_tool.views import frame_of, html_of

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. ``summary`` is its wording in one or a few plain lines, the same in every reporter.

    ``costs``: of a quantised graph the stages that cost most, the dearest first. ``first_cause``: of two recordings why they
    differ; ``None`` where nothing does, and for every other report.
    """

    status: Status
    summary: tuple[str, ...]
    first_over_tolerance: FirstOverTolerance | None
    origins: tuple[Origin, ...]
    amplifiers: tuple[StageRef, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    hand_over: HandOver | None = None
    hypotheses: tuple[Hypothesis, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()
    costs: tuple[StageCost, ...] = ()
    first_cause: FirstCause | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one command found; every reporter prints this and nothing else.

    Attributes:
        case: name, model, checkpoint, onnx, inputs, exporter, command.
        notes: warnings from loading and from the preflight, one line each.
        timings: seconds by step, in the order they ran.
        samples: what became of each sample, where there were several and this is the report on all of them; the rest is
            that of the worst one.
        parts: of a model in several ONNX files, in the order in which PyTorch calls them; () where it is one graph.
        glue: what PyTorch computes between the parts.
        preflight: what the files told before anything ran.
        chain: of two recordings, link by link in causal order; () for every other report.
        user_metrics: what `verify` was asked to judge outputs by beside their errors; () elsewhere.
    """

    case: Mapping[str, Any]
    verdict: Verdict
    tolerance: Tolerance
    alignment: Alignment
    configs: tuple[ConfigRun, ...]
    stages: tuple[StageRow, ...]
    environment: Mapping[str, Any]
    timings: Mapping[str, float]
    notes: tuple[str, ...] = ()
    samples: tuple[SampleResult, ...] = ()
    parts: tuple[PartResult, ...] = ()
    glue: tuple[GlueStage, ...] = ()
    preflight: tuple[Finding, ...] = ()
    chain: tuple[Link, ...] = ()
    user_metrics: tuple[UserMetric, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    def __post_init__(self) -> None:
        # Any sequence of rows will do to make a report; what is read from it knows how to show itself.
        if not isinstance(self.stages, StageRows):
            object.__setattr__(self, "stages", StageRows(self.stages))

    def to_frame(self) -> Any:
        """The stage table as a pandas DataFrame: one row for each stage and configuration, columns as in ``stages.csv``."""
        return frame_of("report", self)

    def _repr_html_(self) -> str:
        return html_of("report", self)
