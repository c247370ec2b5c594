"""What a report says of calibrated limits, and of the user's own measures."""

from __future__ import annotations

from dataclasses import dataclass

from bisect_tool.records.words import Judgement


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

    ``metric``: a field of :class:`bisect_tool.records.measured.ErrorMetrics` of the total error, with ``local_`` before
    it of the local one.
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
