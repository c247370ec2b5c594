"""What separates failing configuration pairs from passing ones, by trying one switch at a time.

Two pairs that differ in several switches, one of which fails: each switch is a suspect. It is tried both ways: alone in
the failing pair (does it mend it?) and alone in the passing one (does it break it?). Where no single switch mends the
failing pair, a smallest set is looked for by delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating
Failure-Inducing Input", IEEE Transactions on Software Engineering 28(2), 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bisect_tool.delta import smallest
from bisect_tool.numerics import Step, lookup, steps, take
from bisect_tool.records import ConfigPair, ConfigRun, Side

MOST_STEPS = 16
"""Switches that two pairs may differ in; beyond it too many runs would be needed to tell them apart."""

MARKED = 1 / 3
"""What is left of an error at most where something mends it."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One switch, and what trying it showed. Errors are relative L2 of the worst final output; ``None``: did not run.

    Attributes:
        step: from its value in the failing pair to that in the passing one.
        without: error of the failing pair with this step made; ``None`` unless that run agrees or diverges.
        alone: error of the passing pair with this step taken back; likewise.
        mends: whether that mends the failing pair. breaks: whether the passing one then diverges.
        tried: the failing pair with this step made, as it ran.
    """

    step: Step
    without: float | None
    alone: float | None
    mends: bool
    breaks: bool
    tried: ConfigRun


@dataclass(frozen=True, slots=True)
class Finding:
    """Which switches make a pair fail.

    Attributes:
        failing, passing: the two runs that were compared.
        fix: the smallest set of steps found that mends the failing pair.
        fixed: the failing pair with the fix, as it ran.
        suspicions: every switch in which the two differ.
    """

    failing: ConfigRun
    passing: ConfigRun
    fix: tuple[Step, ...]
    fixed: ConfigRun
    suspicions: tuple[Suspicion, ...]


Try = Callable[[ConfigPair], ConfigRun]


def error_of(run: ConfigRun) -> float | None:
    """Relative L2 of the worst final output; infinite where an output could not be measured."""
    if not run.outputs:
        return None
    errors = [output.total.rel_l2 for output in run.outputs]
    return max(math.inf if math.isnan(error) else error for error in errors)


def _measured(run: ConfigRun) -> float | None:
    # One that failed may have outputs all the same, of nodes that ran elsewhere, and they say nothing.
    return error_of(run) if run.status in ("agrees", "diverges") else None


def mends(failing: ConfigRun, run: ConfigRun) -> bool:
    """Whether a run shows how to mend a failing one: it agrees, with a much smaller error on the same outputs.

    Agreement alone says little. In less precision more is allowed, and a broken graph agrees there with the error that
    it had before, or with a larger one: such a run never mends one in more precision.
    """
    return run.status == "agrees" and lowers(failing, run)


def lowers(failing: ConfigRun, run: ConfigRun) -> bool:
    """Whether a run has a much smaller error than a failing one, on the same outputs, and not in less precision."""
    before, after = error_of(failing), error_of(run)
    if before is None or after is None:
        return False
    if {output.output for output in run.outputs} != {output.output for output in failing.outputs}:
        return False
    if any(step.coarser for step in steps(pair_of(failing), pair_of(run))):
        return False
    return after < before and after <= before * MARKED


def run_seconds(run: ConfigRun) -> float:
    """What one run of both sides costs; where that was not measured, what the pair took."""
    costs = [cost.seconds for cost in (run.expected_cost, run.actual_cost) if cost is not None]
    return sum(costs) if costs else run.seconds


def moved_sides(chosen: Sequence[Step]) -> tuple[Side, ...]:
    """The sides that steps change: the graph is exported from the model, so that PyTorch's dtype is that of both."""
    moved = {
        side
        for step in chosen
        for side in (_BOTH if (step.side, step.name) in OF_BOTH else (_BOTH[step.side != "torch"],))
    }
    return tuple(side for side in _BOTH if side in moved)


_BOTH: tuple[Side, Side] = ("expected", "actual")
OF_BOTH = frozenset([("torch", "dtype")])
"""What moves both sides: the graph is exported from the model in the dtype that PyTorch runs it in."""


def pair_of(run: ConfigRun) -> ConfigPair:
    return ConfigPair(run.name, run.expected, run.actual, run.gating)


def suspects(start: ConfigPair, goal: ConfigPair) -> tuple[Step, ...]:
    """Switches that two pairs really set differently.

    ONNX Runtime's ``dtype`` is none: it follows PyTorch's, since the graph is exported from the model in that dtype. A
    given graph and an exported one are one suspect, whatever else is said about the export.
    """
    found = [
        step for step in steps(start, goal) if not step.idle and (step.side, step.name) != ("onnxruntime", "dtype")
    ]
    if any(concerns_given_graph(step) for step in found):
        found = [step for step in found if step.side != "export" or step.name not in ("opset", "constant_folding")]
    return tuple(found)


def concerns_given_graph(step: Step) -> bool:
    """Whether a step leads from a graph that was given to an exported one, or back."""
    return (step.side, step.name) == ("export", "exporter") and None in (step.before, step.after)


def given_graph(step: Step) -> bool:
    """Whether a step leads from a given graph to an exported one."""
    return concerns_given_graph(step) and step.before is None


def taken(start: ConfigPair, chosen: Sequence[Step]) -> ConfigPair:
    """The pair with some steps made; one that comes to the given graph has nothing of an export."""
    pair = take(start, chosen)
    if any(concerns_given_graph(step) and step.after is None for step in chosen):
        switches = {name: value for name, value in pair.actual.switches.items() if not of_export(name)}
        pair = replace(pair, actual=replace(pair.actual, opset=None, constant_folding=None, switches=switches))
    return pair


def of_export(name: str) -> bool:
    """Whether a switch of ONNX Runtime's side is the exporter's: whoever sets it has the graph exported anew."""
    return lookup("onnxruntime", name).side == "export"


def exported_afresh(pair: ConfigPair, exporter: str) -> ConfigPair:
    """A pair about a given graph, about a fresh export instead, with nothing else said about how it is made."""
    return replace(pair, actual=replace(pair.actual, exporter=exporter))


def nearest_passing(failing: ConfigRun, runs: Sequence[ConfigRun]) -> ConfigRun | None:
    """Of the runs that show how to mend a failing one, that which differs in the fewest switches; ``None`` if there is
    none near enough.
    """
    start = pair_of(failing)
    mending = [
        (len(suspects(start, pair_of(run))), place, run) for place, run in enumerate(runs) if mends(failing, run)
    ]
    mending = [item for item in mending if 0 < item[0] <= MOST_STEPS]
    return min(mending, key=lambda item: item[:2])[2] if mending else None


def separate(failing: ConfigRun, passing: ConfigRun, attempt: Try) -> Finding:
    """Tries what the two pairs differ in.

    Args:
        failing: a run that diverges.
        passing: a run that shows how to mend it (:func:`mends`).
        attempt: runs a pair; asked once for each.
    """
    start, goal = pair_of(failing), pair_of(passing)
    differing = suspects(start, goal)
    known: dict[frozenset[Step], ConfigRun] = {frozenset(): failing, frozenset(differing): passing}

    def made(chosen: Sequence[Step]) -> ConfigRun:
        key = frozenset(chosen)
        if key not in known:
            known[key] = attempt(taken(start, chosen))
        return known[key]

    def mended(chosen: Sequence[Step]) -> bool:
        return mends(failing, made(chosen))

    suspicions = []
    for step in differing:
        with_it = made([step])
        rest = [other for other in differing if other != step]
        back = made(rest)
        without, alone = _measured(with_it), _measured(back)
        suspicions.append(Suspicion(step, without, alone, mends(failing, with_it), back.status == "diverges", with_it))
    single = [s.step for s in suspicions if s.mends]
    if single:
        # Of several the most specific one, a key of its own rather than a whole level or device; then the cheapest.
        fix = [min(single, key=lambda step: (lookup(step.side, step.name).home == "field", run_seconds(made([step]))))]
    else:
        fix = smallest(differing, mended)
    return Finding(failing, passing, tuple(fix), made(fix), tuple(suspicions))
