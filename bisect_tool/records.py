"""The nouns of the project: frozen dataclasses, with no torch, onnxruntime or rich inside.

Field names are the keys of ``report.json`` (``docs/report.md``); sides are always ``expected`` (the reference,
PyTorch) and ``actual`` (what is judged, ONNX Runtime).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bisect_tool.views import frame_of, html_of

Level = Literal["op", "leaf", "container"]
Role = Literal["judged", "output", "group"]
Judgement = Literal["pass", "fail", "not compared"]
Status = Literal["agrees", "diverges", "inconclusive"]
Side = Literal["expected", "actual"]
Conclusion = Literal["culprit", "contributes", "ruled out", "no answer"]
TrialConclusion = Literal["cause", "contributes", "ruled out", "no answer"]
Severity = Literal["fault", "suspicion", "fact"]
Testimony = Literal["export", "runtime", "neither", "unknown"]
ConfigStatus = Literal["agrees", "diverges", "perturbed", "skipped", "failed", "crashed"]
Reach = Literal["any", "reduced", "rounding", "possible", "none"]
LinkStatus = Literal["same", "differs", "unknown"]
OutputKey = int | str

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class StageRef:
    """Names one tensor of one run: module path, number of the call (from 0), output index or key."""

    stage: str
    call: int
    output: OutputKey

    def __str__(self) -> str:
        text = self.stage or "(model)"
        if self.call:
            text += f"@{self.call}"
        return text if self.output == 0 else f"{text}[{self.output}]"


@dataclass(frozen=True, slots=True)
class Stage:
    """One tensor that PyTorch computed, at one level.

    Attributes:
        ref: its name.
        level: ``op`` (an aten operation), ``leaf`` (a module without children, or an operation between modules),
            ``container`` (a module with children; the whole model has the path ``""``).
        type: class name of the module, or the operation's name.
        source: ``file:line`` in the user's code that called it, if known.
        shape: as PyTorch made it.
        dtype: short name, ``float32``.
        value: identity of the tensor in its trace; two stages with one value are aliases.
        inputs: values that the stage reads and that were made outside it, in the order of first use.
        order: when its value was complete, counted in operations; a topological order of the run.
        alias_of: the stage whose value this one hands on unchanged (dropout in ``eval()``, a container's last child).
    """

    ref: StageRef
    level: Level
    type: str
    source: str | None
    shape: tuple[int, ...]
    dtype: str
    value: int
    inputs: tuple[int, ...]
    order: int
    alias_of: StageRef | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a model lies in it, so that its stages can bear the names that they have in the whole.

    Attributes:
        paths: of the part's modules, as ``named_modules()`` of the part and of the whole model have them.
        calls: how often each module (path in the whole model) was called before the part was.
    """

    paths: Mapping[str, str]
    calls: Mapping[str, int]

    def ref(self, ref: StageRef) -> StageRef:
        """A stage's name in the whole model."""
        module, slash, operation = ref.stage.partition("/")
        if module not in self.paths:
            return ref
        path = self.paths[module]
        return StageRef(path + slash + operation, ref.call + self.calls.get(path, 0), ref.output)


@dataclass(frozen=True, slots=True)
class TorchTrace:
    """Structure of a PyTorch run; the tensors themselves are elsewhere.

    Attributes:
        stages: at every level, in the order in which their values were complete.
        parents: for each value the values that its operation read and that depend on an input of the run.
        inputs, outputs: keys and values of the run's own inputs and outputs.
        modules: paths of all modules, also of those that never ran; a module registered at several places has one path
            here for each, all mapped to the first.
    """

    stages: tuple[Stage, ...]
    parents: Mapping[int, tuple[int, ...]]
    inputs: tuple[tuple[OutputKey, int], ...]
    outputs: tuple[tuple[OutputKey, int], ...]
    modules: Mapping[str, str]


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
        p99_abs: 99th percentile of ``|actual - expected|``, over at most 16,384 evenly spaced elements.
        nonfinite_expected, nonfinite_actual: how many elements are NaN or infinite.
        nonfinite_mismatch: elements where the two sides do not hold the same NaN or infinity.
        differing: elements that are not equal.
        worst_index: index of ``max_abs`` (or of the first non-finite mismatch); ``None`` for empty tensors.
        worst_expected, worst_actual: the two values there.
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
class Tolerance:
    """What is allowed, and where it comes from. Exactly one of the three forms is filled in.

    Attributes:
        source: ``default`` | ``user`` | ``quantised`` (the defaults for a quantised graph) | ``calibrated``: stages that
            the table has are judged by its limits, the others as by default.
        rel_l2: limits by dtype kind (``float32``, ``float16`` …) for the default judgement.
        max_abs: limit on ``max_abs`` alone.
        atol, rtol: as in ``allclose``: ``|actual - expected| <= atol + rtol * |expected|`` for every element.
        min_sqnr: least SQNR in dB, which ``rel_l2`` says in its own unit; it holds for integers too.
        table: what the calibrated limits rest on; ``None`` without them.
    """

    source: Literal["default", "user", "quantised", "calibrated"]
    rel_l2: Mapping[str, float] | None = None
    max_abs: float | None = None
    atol: float | None = None
    rtol: float | None = None
    min_sqnr: float | None = None
    table: TableSource | None = None


@dataclass(frozen=True, slots=True)
class NumericConfig:
    """One side's switches that can change a number.

    Attributes:
        backend: ``torch`` | ``onnxruntime`` | ``onnx-reference`` (ONNX's own evaluator).
        device: ``cpu`` | ``cuda``.
        dtype: the dtype the model is run in, as declared by its weights.
        optimization: ONNX Runtime's graph optimisation level (``off``, ``basic``, ``extended``, ``layout``, ``all``).
        threads: intra-op threads; 0 is the library's default.
        exporter, opset, constant_folding: how the graph was made. For a given file ``exporter`` is what its producer
            entry tells, and the others are ``None`` unless they were asked for.
        switches: everything else that is set, by the names in ``numerics.py``; what is not here is left as it is.
    """

    backend: Literal["torch", "onnxruntime", "onnx-reference"]
    device: str = "cpu"
    dtype: str | None = None
    optimization: str | None = None
    threads: int = 0
    exporter: str | None = None
    opset: int | None = None
    constant_folding: bool | None = None
    switches: Mapping[str, str | int | bool] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ConfigPair:
    """A comparison to make: two sides, and whether it counts for the exit code."""

    name: str
    expected: NumericConfig
    actual: NumericConfig
    gating: bool = True


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """A node of the given graph.

    Attributes:
        name: as in the file; a stable invented one (``Conv_17``, the number is the place) where the file has none.
        op_type, domain: the operator.
        inputs, outputs: value names; values that only a subgraph (``If``, ``Loop``) reads count as inputs of its node.
        scopes: module scopes, outermost first, as the exporter wrote them; () where there are none.
        call: the exporter's own name for the aten call (an FX node's name); ``None`` where there is none.
        target: aten operation that the node was made from; ``None`` if unknown.
        source: ``file:line`` from the exporter's stack trace.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scopes: tuple[str, ...]
    call: str | None
    target: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """Structure of an ONNX graph, nodes in a topological order; initialisers are values without a producer.

    Attributes:
        inputs, outputs: names, initialisers left out.
        nodes: in a topological order.
        shapes: of values whose shape is static, by name.
        dtypes: short names (``float32``), by value name, where the file says so.
        exporter: ``dynamo`` | ``torchscript`` | the producer's name.
        input_dims: of inputs whose rank the file says: sizes, and the names (or "?") of dynamic ones.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    initializers: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    exporter: str
    input_dims: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A stage and the ONNX value that stands for it, with the evidence that they belong together."""

    ref: StageRef
    onnx_value: str
    evidence: tuple[str, ...]
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Unaligned:
    """A stage without an ONNX value.

    Attributes:
        reason: one sentence.
        in_graph: false where the graph holds no value for the stage at all (folded or fused away by the exporter):
            such stages do not count against coverage.
    """

    ref: StageRef
    reason: str
    in_graph: bool


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which ONNX value stands for which stage, and what was left over on both sides."""

    pairs: tuple[Pair, ...]
    unaligned: tuple[Unaligned, ...]
    unmatched_onnx: tuple[str, ...]
    stages: int
    aligned: int
    coverage: float | None


@dataclass(frozen=True, slots=True)
class Noise:
    """A stage's rounding: how far each side lies from float64 on the same inputs. See :mod:`bisect_tool.noise`.

    Attributes:
        floor: what rounding explains, relative to the norm of the float64 result; ``None`` if it was not measured.
        expected, actual: error of each side against float64 in units of the floor; ``None`` if not measured.
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


@dataclass(frozen=True, slots=True)
class FirstOverTolerance:
    stage: str
    call: int
    output: OutputKey
    config: str

    @property
    def ref(self) -> StageRef:
        return StageRef(self.stage, self.call, self.output)


@dataclass(frozen=True, slots=True)
class NodeDetail:
    """A node of the given graph: its attributes as text, and ``file:line`` from the exporter's stack trace, if it has one.

    ``inputs`` and ``outputs`` are names of values; optional ones that are left out are empty.
    """

    name: str
    op_type: str
    attributes: Mapping[str, str]
    source: str | None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Witness:
    """What another runner makes of the nodes of an origin, from the same inputs.

    Attributes:
        runner, version: that was asked.
        against_expected_rel_l2, against_actual_rel_l2: how far its value of the stage lies from PyTorch's and from the
            judged runner's; ``None`` if it has none. Over everything, or the group of numbers where that is largest.
        says: ``export``: it gives the judged runner's value, the graph is off; ``runtime``: it gives PyTorch's, the
            judged runner is off; ``neither``; ``unknown``: no answer.
        reason: for ``unknown``.
    """

    runner: str
    version: str
    against_expected_rel_l2: float | None
    against_actual_rel_l2: float | None
    says: Testimony
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A stage where error is made.

    Attributes:
        onnx_nodes: the fewest nodes that certainly hold the fault; the stage's row has all of its nodes.
        local_rel_l2: relative L2 of the local error.
        noise_ratio: the larger of both sides' errors against float64, in units of the noise floor.
        side: which side is off against float64, once that was measured.
        operation: PyTorch's operation behind the nodes, with ``file:line`` where that is known, if it is not all of the
            stage.
        evidence: what showed that other nodes of the stage are right, and which other origins name the same nodes.
        onnx_details: of the first nodes: attributes, and the line that the exporter says they come from.
        replay: folder beside ``report.json`` that shows the error with ONNX Runtime and numpy alone; ``None``: not made.
        witness: what another runner makes of the nodes; ``None`` where none was asked: PyTorch is off, or not looked into.
        part: that the stage belongs to; ``None`` where the model is one graph.
    """

    stage: str
    call: int
    output: OutputKey
    type: str
    source: str | None
    onnx_value: str
    onnx_nodes: tuple[str, ...]
    config: str
    local_rel_l2: float
    noise_ratio: float | None
    side: Side | None
    operation: str | None = None
    evidence: tuple[str, ...] = ()
    onnx_details: tuple[NodeDetail, ...] = ()
    onnx_ops: tuple[str, ...] = ()
    onnx_weights: tuple[str, ...] = ()
    replay: str | None = None
    witness: Witness | None = None
    part: str | None = None

    @property
    def ref(self) -> StageRef:
        return StageRef(self.stage, self.call, self.output)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why something diverges. ``gating``: a configuration that counts; else it explains what was only explored.

    ``origin``: the stage that it explains, if it is about one; ``error_before`` and ``error_after`` are relative L2 of that
    stage's local error without and with the remedy, ``None`` where that was not tried; for a pass of the optimiser (BD302)
    they are those of the worst final output.
    """

    code: str
    title: str
    evidence: tuple[str, ...]
    remedy: str
    remedy_verified: bool | None
    cost: str | None
    gating: bool = True
    origin: StageRef | None = None
    error_before: float | None = None
    error_after: float | None = None


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One hypothesis: a change that was tried in an origin's nodes, a rule's, or a pass of the optimiser left out.

    Attributes:
        ref, config: of the origin.
        code: of the cause that it stands for.
        node: that was changed.
        change: what would be wrong if it mends, in words.
        error_before, error_after: relative L2 of the stage's local error; ``None``: ONNX Runtime did not run it.
        conclusion: ``cause``: only rounding is left, or, without a node, PyTorch's call changed so gives ONNX's value;
            ``contributes``: most of the error goes, and no other change removes all of it, or it would mend as well and is
            less likely meant; ``ruled out``; ``no answer``.
        tried: something was changed and ran; else ``change`` is what was seen, and ``error_after`` is ``None``.
    """

    ref: StageRef
    config: str
    code: str
    node: str
    change: str
    error_before: float
    error_after: float | None
    conclusion: TrialConclusion
    tried: bool = True


@dataclass(frozen=True, slots=True)
class RuledOut:
    code: str
    title: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """Second witness for a single fault, which needs no local errors: where PyTorch's values mend the final outputs.

    With PyTorch's values up to and including a stage handed to the graph, what follows gives ``error_after``; up to the
    stage before it, ``error_before``. Errors are the largest relative L2 of the final outputs.
    """

    ref: StageRef
    config: str
    error_before: float
    error_after: float


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage of a quantised graph costs: its share of the final error, and SQNR by itself and in total, in dB.

    ``fitting_db``: of quantising its value by a scale that fits, where the graph's own costs much more; else ``None``.
    """

    ref: StageRef
    config: str
    share: float | None
    local_sqnr_db: float
    sqnr_db: float
    fitting_db: float | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A switch that may be why one pair fails and another passes, and what trying it showed.

    Errors are relative L2 of the worst final output; ``None``: no answer.

    Attributes:
        side: ``torch`` | ``onnxruntime`` | ``export``.
        switch, title: as in ``docs/switches.md``, and in words.
        before, after: its value in the failing pair and the one that was tried there, as matrix files write them;
            ``None``: left unset.
        failing, passing: the two pairs that differ in it.
        tried: the run that is the failing pair with this switch alone set otherwise.
        error_before, error_after: of the failing pair, and of ``tried``.
        error_passing, error_back: of the passing pair, and of the passing pair with the failing one's value.
        time_cost: of the sides that the switch changes, in ``tried`` relative to the failing pair: 0.04 is 4 % more,
            0 no difference beyond the spread of the repeats.
        conclusion: ``culprit``: in the smallest set of switches that removes the divergence; ``contributes``: changes
            whether a pair agrees, and is not in that set; ``ruled out``: changes it neither way; ``no answer``.
    """

    side: str
    switch: str
    title: str
    before: str | None
    after: str | None
    failing: str
    passing: str
    tried: str
    error_before: float | None
    error_after: float | None
    error_passing: float | None
    error_back: float | None
    time_cost: float | None
    conclusion: Conclusion


@dataclass(frozen=True, slots=True)
class Localization:
    """Where a divergence shows first, where error is made, and which stages only hand it on."""

    first_over_tolerance: FirstOverTolerance | None
    origins: tuple[Origin, ...]
    amplifiers: tuple[StageRef, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs between two recordings.

    Attributes:
        what: it is, in words.
        expected, actual: on both sides, in words; ``None``: it is not there.
        reach: what it can do to numbers. ``any``: explains differences of every size; ``reduced``: as large as a reduced
            precision makes them; ``rounding``; ``possible``: may explain anything, and mostly changes nothing; ``none``:
            it did not, or cannot, reach them.
        acts_on: of ``data``, ``weights`` and ``stages`` those that it can change.
        note: why, or what came of it.
        error: relative L2, of what is made of numbers.
    """

    what: str
    expected: str | None
    actual: str | None
    reach: Reach
    acts_on: tuple[str, ...] = ()
    note: str | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain from code to outputs, along which two recordings are compared.

    ``checked``: what was compared, in words. ``unknown``: one side has nothing there.
    """

    link: str
    status: LinkStatus
    checked: str
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class FirstCause:
    """The difference that explains the first numbers that differ, and where those are; ``numbers`` is ``None`` if none do.

    ``link``: that of the difference; ``others``: differences that explain them as well, or not all of what is seen.
    """

    link: str
    difference: Difference
    numbers: str | None
    others: tuple[str, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Finding:
    """What the files tell before anything runs.

    Attributes:
        code: of the page that explains it.
        severity: ``fault``: the graph is not the model; ``suspicion``: known to change results, and may be meant;
            ``fact``: what was done on purpose, rounding to half precision for one.
        text: in words, with the names.
        names: the initialisers, parameters or nodes that it is about.
    """

    code: str
    severity: Severity
    text: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableSource:
    """What calibrated limits rest on, from the table's own ``[calibration]``.

    Attributes:
        file: path of the table.
        created: date and time, UTC. tool: version that made it.
        false_alarm: probability that a sample of a correct graph is over any limit.
        samples, runs: known-good ones.
        tail: ``measured`` | ``extrapolated`` | ``too few``: how firmly the limits are known.
        hardware: kind of machine whose own limits were taken; ``None``: the pooled ones.
        stages: how many stages have limits.
        variations: which known-good runs were made.
    """

    file: str
    created: str
    tool: str
    false_alarm: float
    samples: int
    runs: int
    tail: str
    hardware: str | None
    stages: int
    variations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitUse:
    """Of the calibrated limits of a stage the one that its errors come nearest to, or are furthest over.

    ``metric``: a field of :class:`ErrorMetrics` of the total error, with ``local_`` before it of the local one.
    """

    metric: str
    value: float
    limit: float

    @property
    def ratio(self) -> float:
        """The value in units of its limit; over 1 fails."""
        if self.limit == 0:
            return 0.0 if self.value == 0 else float("inf")
        # NaN is no number that could be under a limit.
        return float("inf") if self.value != self.value else self.value / self.limit


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far both sides of a final output choose the same classes.

    Attributes:
        axis: of the classes; ``None``: the output holds whole numbers, the classes themselves.
        classes: how many; 0 for whole numbers.
        positions: choices that were compared: elements of the output over ``classes``.
        argmax: share of them where both sides choose the same class.
        k: classes in ``top_k``. top_k: mean share of the ``k`` best classes that both sides have in common; ``None``
            where there are no more than ``k`` classes.
        widest_lead: how far, in the output's unit, the class that PyTorch chooses lies before the one that ONNX Runtime
            chooses, in PyTorch's own numbers; the largest of all positions, 0 where all choices are the same.
    """

    axis: int | None
    classes: int
    positions: int
    argmax: float
    k: int
    top_k: float | None
    widest_lead: float | None


@dataclass(frozen=True, slots=True)
class UserMetric:
    """One number about the final outputs that was asked for.

    Attributes:
        name: as the function calls it, or ``argmax`` and ``top_k``.
        source: ``module:function``, or ``agreement``.
        config: name of the configuration pair.
        value: what came out.
        limit: ``None``: it is only told. least: the limit is the least that passes, not the most.
        judgement: ``not compared``: without a limit, or without an output on one side.
    """

    name: str
    source: str
    config: str
    value: float
    limit: float | None
    least: bool
    judgement: Judgement


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
