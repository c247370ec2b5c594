"""Where an error is made, why, and what was ruled out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bisect_tool.records.stages import OutputKey, StageRef
from bisect_tool.records.words import Conclusion, LinkStatus, Reach, Severity, Side, Testimony, TrialConclusion


@dataclass(frozen=True, slots=True)
class FirstOverTolerance:
    """The first stage in causal order that fails, and the configuration in which it does."""

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
    """A cause that was looked for and is none, with what speaks against it."""

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
