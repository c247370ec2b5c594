"""What was measured at one stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bisect_tool.records.calibration import LimitUse
from bisect_tool.records.stages import OutputKey, StageRef
from bisect_tool.records.words import Judgement, Level, Role
from bisect_tool.views import frame_of, html_of


@dataclass(frozen=True, slots=True)
class ErrorMetrics:
    """How far ``actual`` lies from ``expected``; every number is over all elements unless said otherwise.

    Real and imaginary parts of complex numbers count as elements of their own.

    Attributes:
        count: number of elements.
        max_abs, mean_abs: of ``|actual - expected|``.
        rel_l2: ``||actual - expected|| / ||expected||``; 0 if both norms are zero, ``inf`` if only the reference's is.
        max_rel: largest ``|actual - expected| / |expected|`` over elements whose reference is not zero;
            ``inf`` if a zero reference meets a value that is not.
        cosine: of the two flattened tensors; 1 if both are zero, 0 if one is.
        sqnr_db: ``-20 log10(rel_l2)``; ``inf`` where nothing differs.
        max_ulp: greatest distance in units of the last place of the dtype, over the elements of ``p99_abs`` and the
            worst one; ``None`` for integers and booleans.
        p99_abs: 99th percentile of ``|actual - expected|``, over at most 16,384 elements, spread evenly in runs of 16.
        nonfinite_expected, nonfinite_actual: how many elements are NaN or infinite.
        nonfinite_mismatch: elements where the two sides do not hold the same NaN or infinity.
        differing: elements that are not equal.
        worst_index: index of ``max_abs`` (or of the first non-finite mismatch); ``None`` for empty tensors.
        worst_expected, worst_actual: the two values there; whole numbers beyond 2**53 in all their digits.
        problem: why values could not be compared at all (shape, dtype, missing); then the numbers are NaN.
    """

    count: int
    max_abs: float
    mean_abs: float
    rel_l2: float
    max_rel: float
    cosine: float
    sqnr_db: float
    max_ulp: float | None
    p99_abs: float
    nonfinite_expected: int
    nonfinite_actual: int
    nonfinite_mismatch: int
    differing: int
    worst_index: tuple[int, ...] | None
    worst_expected: float | None
    worst_actual: float | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """A stage's rounding: how far each side lies from float64 on the same inputs. See :mod:`bisect_tool.noise`.

    Attributes:
        floor: what rounding explains, relative to the norm of the float64 result; ``None`` if it was not measured.
        expected, actual: error of each side against float64 in units of the floor, of whole numbers also by how many are
            others; ``None`` if not measured.
        settled: the local error is so small that nothing had to be measured.
        unknown: why the floor could not be measured, though it was needed.
        dtype: the half precision whose rounding was allowed, where the graph as a whole computes in one and PyTorch does
            not; ``None``: the stage's own dtype.
    """

    floor: float | None = None
    expected: float | None = None
    actual: float | None = None
    settled: bool = False
    unknown: str | None = None
    dtype: str | None = None

    @property
    def ratio(self) -> float | None:
        """The larger of both sides' errors in units of the floor."""
        if self.expected is None or self.actual is None:
            return None
        return max(self.expected, self.actual)


@dataclass(frozen=True, slots=True)
class Spread:
    """Where in a tensor the two sides differ.

    Attributes:
        limit: absolute difference from which on an element counts: the user's, or the default relative limit times the
            root mean square of the reference; ``None`` under ``atol``/``rtol``, which differ from element to element.
        beyond: how many elements differ by more.
        axis, index, share: the one index of one axis that holds nearly all of the squared error, and its share of it;
            ``None`` if there is none.
    """

    limit: float | None
    beyond: int
    axis: int | None
    index: int | None
    share: float | None


@dataclass(frozen=True, slots=True)
class QuantisedStage:
    """What quantisation costs in one stage by itself, on PyTorch's inputs, in dB of SQNR. See :mod:`bisect_tool.quantised`.

    Attributes:
        limit_db: least SQNR that it may have.
        local_sqnr_db: SQNR that it has, or that of numbers which a norm over the whole tensor does not see.
        hidden: such numbers have less than the whole.
        pair_sqnr_db: of quantising its value and turning it back alone, by the graph's scale; ``None`` where the value
            passes no such pair of nodes, or one with a scale for each channel.
        best_sqnr_db: the same by a scale that fits the value at hand.
        clipped: share of the elements that are out of the pair's range.
    """

    limit_db: float
    local_sqnr_db: float
    hidden: bool
    pair_sqnr_db: float | None
    best_sqnr_db: float | None
    clipped: float | None


@dataclass(frozen=True, slots=True)
class ErrorPicture:
    """What the error of one tensor looks like, small enough to be kept. See :mod:`bisect_tool.pictures`.

    Attributes:
        of: which error: ``local`` or ``total``.
        axes: axes of the tensor that are the rows and columns of the maps, one for a strip. A cell stands for a block of
            them, and for all of the other axes.
        rows, columns: of the maps, at most 64.
        high: largest absolute difference, of those that are finite.
        error: largest absolute difference in each cell, row by row: a byte each in base64. 0: none; 254: ``high``, and
            253 steps make eight powers of ten; 255: not finite.
        expected_low, expected_high: smallest and largest mean of the reference in a cell.
        expected: that mean in each cell, in equal steps from 0 to 254; 255: not finite.
        histogram: 64 counts of elements by the logarithm of their absolute difference, up to ``high``, an eighth of a
            power of ten each; the first one has all smaller ones too.
        equal, nonfinite: elements without a difference, and those whose difference is not finite; they are not in it.
    """

    of: Literal["local", "total"]
    axes: tuple[int, ...]
    rows: int
    columns: int
    high: float
    error: str
    expected_low: float
    expected_high: float
    expected: str
    histogram: tuple[int, ...]
    equal: int
    nonfinite: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One stage under one configuration pair.

    Attributes:
        total: the exposed ONNX run against PyTorch.
        local: the forced ONNX run (the stage on PyTorch's own inputs) against PyTorch; ``None`` if not run.
        input_error: relative error of the stage's inputs, taken together as one vector; ``None`` if unknown.
        growth: ``rel(total) / input_error``; ``None`` when the input error is zero or unknown.
        amplification: ``rel(propagated) / input_error``; needs the forced run.
        floor, noise_ratio: the stage's noise floor and the local error in units of it; ``None`` when not measured. Of two
            recordings, from the model's inputs on and of the total error.
        judgement: of the total, under the tolerance in force.
        noise: both sides against float64; ``None`` without a forced run.
        share: of the squared error of the model's outputs, as far as it was made in this stage, 0 to 1; ``None`` without
            a forced run. See :func:`bisect_tool.localize.with_shares`.
        outside_error: the largest relative error among the stage's inputs that come from outside the report's stages;
            ``None`` if there are none. Where it was made was not measured.
        spread: of the total error, where that is over tolerance; ``None`` elsewhere, and for very large tensors.
        quantised: what quantisation costs; ``None`` for float graphs, and without a forced run.
        limit: the calibrated limit that decides, where the table has the stage; else ``None``.
        picture: of the error; ``None`` for all but a few stages of a report.
    """

    total: ErrorMetrics
    local: ErrorMetrics | None
    input_error: float | None
    growth: float | None
    amplification: float | None
    floor: float | None
    noise_ratio: float | None
    judgement: Judgement
    share: float | None = None
    noise: Noise | None = None
    outside_error: float | None = None
    spread: Spread | None = None
    quantised: QuantisedStage | None = None
    limit: LimitUse | None = None
    picture: ErrorPicture | None = None


@dataclass(frozen=True, slots=True)
class StageRow:
    """One row of the stage table: a stage, its ONNX value, and the result of each configuration pair.

    ``onnx_nodes`` are in a topological order, the last one makes the value; ``onnx_ops`` are their types, and
    ``onnx_weights`` the initialisers that they read. ``role``: ``judged`` rows and ``output`` rows (outputs of the model
    that are no judged stage) count for the verdict, ``group`` rows are containers shown beside them. ``part``: that the
    stage belongs to; ``None`` where the model is one graph.
    """

    index: int
    stage: str
    call: int
    output: OutputKey
    level: Level
    type: str
    source: str | None
    shape: tuple[int, ...]
    dtype: str
    group: str
    inputs: tuple[int, ...]
    alias_of: StageRef | None
    onnx_value: str | None
    onnx_nodes: tuple[str, ...]
    results: Mapping[str, Comparison]
    role: Role = "judged"
    onnx_ops: tuple[str, ...] = ()
    onnx_weights: tuple[str, ...] = ()
    part: str | None = None

    @property
    def ref(self) -> StageRef:
        return StageRef(self.stage, self.call, self.output)


class StageRows(tuple[StageRow, ...]):
    """The rows of a report: a tuple, which notebooks show as a table, and which becomes a DataFrame."""

    __slots__ = ()

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row for each stage and configuration, and the columns of ``stages.csv``."""
        return frame_of("stages", self)

    def _repr_html_(self) -> str:
        return html_of("stages", self)
