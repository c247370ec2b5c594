"""Why an optimised graph is wrong while the same graph unoptimised is right: which passes, and where."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

from bisect_tool.backends.costs import ort_cost
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.optimised import SWITCH, Array, Optimised, OptimisedRuns, Outputs
from bisect_tool.backends.ort_options import require_config
from bisect_tool.diagnose.optimiser import OptimiserFinding, Spot, diagnosis, ledger, line
from bisect_tool.errors import BisectError
from bisect_tool.metrics import relative_difference
from bisect_tool.numerics import code_for
from bisect_tool.observation import Observed, Seen, first_deviating
from bisect_tool.passes import Budget, PassRun, PassSearch, mends, search_passes
from bisect_tool.records import ConfigPair, NumericConfig, OnnxGraph, OnnxNode, Origin, StageRef, StageRow
from bisect_tool.remedies import time_text

MOST_RUNS = 120
"""Runs over levels and passes, of one configuration."""

MOST_LOOKS = 60
"""Runs under observation, of one configuration."""

MOST_SECONDS = 30.0
"""Time for either of them."""

MOST_SPOTS = 3
"""Places that are looked for, one after the other."""

LEVELS = ("basic", "extended", "layout", "all")

LEAST_ERROR = 2.0**-20
"""Healthy runs that differ by less are taken to differ by this: 16 units of the last place of float32."""

Judge = Callable[[Outputs], tuple[float | None, bool]]
"""Relative L2 of the worst final output, ``None`` where it cannot be had, and whether all of them pass."""


def explain_optimised(
    program: OnnxProgram,
    pair: ConfigPair,
    plain: NumericConfig,
    feeds: Mapping[str, Array],
    judge: Judge,
    rows: Sequence[StageRow],
    where: StageRef,
) -> OptimiserFinding | None:
    """Looks for the passes that make an optimised run wrong, and for the place where they do.

    Args:
        program: the graph.
        pair: whose run is wrong.
        plain: configuration of ONNX Runtime in which the unoptimised graph is right.
        feeds: inputs by name.
        judge: says how far final outputs are off, and whether that is allowed.
        rows: of the report, for the stages that nodes belong to.
        where: stage of entries whose place is not found.

    Returns:
        ``None`` if the run cannot be repeated, or is right when it is.
    """
    runs = OptimisedRuns(program, pair.actual, feeds)
    level = pair.actual.optimization or "all"
    deployed, before = _deployed(runs, level, judge)
    if before is not None and judge(deployed)[1]:
        return None
    whole = runs.look(level)

    def attempt(at: str, disabled: tuple[str, ...]) -> PassRun:
        try:
            outputs, seen = runs.run_and_look(at, disabled)
        except BisectError:
            return PassRun(None, False)
        error, agrees = judge(outputs)
        return PassRun(error, agrees, whole.changed(seen) if whole is not None and seen is not None else None)

    lower = LEVELS[: LEVELS.index(level)] if level in LEVELS else ()
    lower = tuple(at for at in lower if _has_level(runs, at))
    changing = functools.partial(runs.changing, level)
    search = search_passes(level, lower, changing, before, attempt, Budget(MOST_RUNS, MOST_SECONDS))
    spots: list[Spot] = []
    if before is not None:
        spots = _Watch(program, runs, plain, feeds, judge, search, whole, rows).spots(deployed)
    without = runs.look(level, search.found) if search.found else None
    remedy, fixed = _remedy(runs, search)
    return OptimiserFinding(
        diagnosis(pair, search, spots, _made(whole, without), remedy, _cost(program, pair.actual, fixed, feeds)),
        ledger(pair, search, spots, spots[0].stages[-1] if spots and spots[0].stages else where),
        _origins(pair, spots, rows),
        line(pair, search, spots),
    )


def _deployed(runs: OptimisedRuns, level: str, judge: Judge) -> tuple[Outputs, float | None]:
    """Final outputs as deployed, and their error; ``None``: it does not run."""
    try:
        outputs = runs.run(level)
    except BisectError:
        return {}, None
    error = judge(outputs)[0]
    return outputs, math.inf if error is None else error


def _has_level(runs: OptimisedRuns, level: str) -> bool:
    try:
        require_config(runs.config(level, ()))
    except BisectError:
        return False
    return True


def _made(whole: Optimised | None, without: Optimised | None) -> int | None:
    """Nodes that are only there, or there in this form, because of the passes."""
    if whole is None or without is None:
        return None
    return (whole.keys - without.keys).total()


def _remedy(runs: OptimisedRuns, search: PassSearch) -> tuple[str, NumericConfig]:
    if search.found:
        config = runs.config(search.level, search.found)
        return code_for("onnxruntime", SWITCH, config.switches[SWITCH]), config
    level = search.best_level or "off"
    return code_for("onnxruntime", "optimization", level), runs.config(level, ())


def _cost(program: OnnxProgram, config: NumericConfig, fixed: NumericConfig, feeds: Mapping[str, Array]) -> str | None:
    """What the remedy costs; ``None`` where there is nothing to compare it with."""
    try:
        return time_text("ONNX Runtime", ort_cost(program, config, feeds), ort_cost(program, fixed, feeds))
    except BisectError:  # the deployed graph does not run
        return None


# Where


class _Watch:
    """Looks for places where the error begins, one after the other: each one that is found is kept from the optimiser
    while the next is looked for.
    """

    def __init__(
        self,
        program: OnnxProgram,
        runs: OptimisedRuns,
        plain: NumericConfig,
        feeds: Mapping[str, Array],
        judge: Judge,
        search: PassSearch,
        whole: Optimised | None,
        rows: Sequence[StageRow],
    ):
        self._program, self._runs, self._level, self._judge = program, runs, search.level, judge
        self._before, self._first_level, self._rows = search.before, search.first_level, rows
        self._plain = OptimisedRuns(program, plain, feeds)
        self._limit = _limit(search)
        self._budget = Budget(MOST_LOOKS, MOST_SECONDS)
        # Values that the optimiser has done away with cannot be looked at without bringing them back.
        self._whole = whole
        self._graph = whole.graph if whole is not None else program.graph
        self._inputs = {out: node.inputs for node in self._graph.nodes for out in node.outputs if out}
        finals = set(runs.names)
        self._candidates = {name for name in self._inputs if name in program.makers and name not in finals}
        self._varying = _varying(program.graph)

    def spots(self, deployed: Outputs) -> list[Spot]:
        reference = self._plain.run("off")
        found: list[Spot] = []
        pinned: tuple[str, ...] = ()
        outputs = deployed
        while len(found) < MOST_SPOTS and not self._budget.exhausted:
            wrong = [n for n in self._runs.names if not distance(reference.get(n), outputs.get(n)) <= self._limit]
            if not wrong:
                break
            probe = functools.partial(self._probe, outputs, pinned)
            seen = first_deviating(wrong[0], self._inputs, self._candidates, probe, self._budget)
            if any(spot.value == seen.first for spot in found):
                break
            error = distance(reference[wrong[0]], outputs[wrong[0]])
            spot = self._spot(self._narrowed(seen, probe), error)
            if spot.inner and self._budget.take():
                # Between the nodes again, what the optimiser made one of: is the value right then?
                with contextlib.suppress(BisectError):
                    opened = self._runs.run(self._level, (), (*pinned, *spot.inner, spot.value))
                    healed = distance(self._right(spot.value), opened.get(spot.value))
                    if healed <= self._limit:
                        outputs, pinned = opened, (*pinned, *spot.inner)
                        spot = replace(spot, healed=healed)
            found.append(spot)
            if spot.healed is None:
                break
        return found

    def _probe(self, now: Outputs, pinned: tuple[str, ...], name: str) -> Seen:
        """Looks at one value."""
        try:
            outputs = self._runs.run(self._level, (), (*pinned, name))
            expected = self._right(name)
        except BisectError:
            return Seen(False, True, None, False)
        neutral = all(same_bits(now[output], outputs.get(output)) for output in self._runs.names)
        faulty = not mends(self._before, PassRun(*self._judge(outputs)))
        value = outputs.get(name)
        if value is None or expected is None:
            return Seen(neutral, faulty, None, False)
        apart = distance(expected, value)
        return Seen(neutral, faulty, apart, not apart <= self._limit)

    def _right(self, name: str) -> Array | None:
        """A value in the unoptimised run."""
        return self._plain.run("off", (), (name,)).get(name)

    def _narrowed(self, seen: Observed, probe: Callable[[str], Seen]) -> Observed:
        """The same, looked at more closely where several optimised nodes lie before the value.

        Between them the optimiser has values of its own, such as maps in another layout. To look at what they stand for
        adds nodes, and may change nothing of the rest.
        """
        borders = self._borders(seen)
        if len(self._instead(seen.first, borders)) < 2:
            return seen
        nodes = self._nodes_between(seen.first, borders)
        inputs = {out: node.inputs for node in nodes for out in node.outputs if out}
        closer = first_deviating(seen.first, inputs, inputs.keys() - self._inputs.keys(), probe, self._budget)
        return Observed(
            first=closer.first,
            seen=closer.seen or seen.seen,
            good=(*seen.good, *closer.good),
            hidden=closer.hidden or seen.hidden,
            healing=closer.healing or seen.healing,
            runs=seen.runs + closer.runs,
            complete=seen.complete and closer.complete,
        )

    def _borders(self, seen: Observed) -> set[str]:
        """Values that are known to be right, or at which the optimised graph can be cut all the same."""
        # What was looked at and changed the outputs is no border: the fault may lie on either side of it.
        there = self._candidates | set(self._program.graph.inputs) | set(seen.good)
        return there - set(seen.hidden) - {seen.first}

    def _nodes_between(self, value: str, borders: Set[str]) -> list[OnnxNode]:
        """Nodes of the given graph that compute a value from others; those that compute constants are left out."""
        names = set(self._program.nodes_between(value, borders))
        return [
            node
            for node in self._program.graph.nodes
            if node.name in names and not self._varying.isdisjoint(node.outputs)
        ]

    def _spot(self, observed: Observed, error: float) -> Spot:
        borders = self._borders(observed)
        nodes = self._nodes_between(observed.first, borders)
        names = {node.name for node in nodes}
        made = [name for node in nodes for name in node.outputs if name and name != observed.first]
        stages = [row for row in self._rows if row.role != "group" and not names.isdisjoint(row.onnx_nodes)]
        return Spot(
            value=observed.first,
            error=observed.seen.error if observed.seen is not None else error,
            nodes=tuple(f"{node.name} ({node.op_type})" for node in nodes),
            instead=self._instead(observed.first, borders),
            reads=tuple(dict.fromkeys(n for node in nodes for n in node.inputs if n in borders)),
            stages=tuple(dict.fromkeys(row.ref for row in stages)),
            good=len(observed.good),
            inner=tuple(name for name in made if name not in self._inputs),
            healed=None,
            rewritten=self._whole is None or any(self._whole.keys[key] == 0 for key in self._runs.keys_of(nodes)),
            hidden=observed.hidden,
            runs=observed.runs,
            complete=observed.complete,
        )

    def _instead(self, value: str, borders: Set[str]) -> tuple[str, ...]:
        """Operators of the optimised graph between a value and those that are known to be right.

        Where it has the value no more, as in another layout, the lowest wrong level is asked: it has fewer names of its
        own.
        """
        graph = self._graph
        if value not in self._inputs:
            lowest = self._runs.look(self._first_level)
            graph = lowest.graph if lowest is not None else graph
        makers = {out: node for node in graph.nodes for out in node.outputs if out}
        found: dict[str, str] = {}
        stack = [value]
        while stack:
            name = stack.pop()
            node = makers.get(name)
            if node is None or node.name in found or (name != value and name in borders):
                continue
            found[node.name] = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            stack.extend(node.inputs)
        return tuple(reversed(found.values()))


def _varying(graph: OnnxGraph) -> set[str]:
    """Values that depend on the graph's inputs."""
    found = set(graph.inputs)
    for node in graph.nodes:
        if not found.isdisjoint(node.inputs):
            found.update(name for name in node.outputs if name)
    return found


def _origins(pair: ConfigPair, spots: Sequence[Spot], rows: Sequence[StageRow]) -> tuple[Origin, ...]:
    """Each place as an origin of the optimised run: there is no local error, but what it reads was seen to be right."""
    by_ref = {row.ref: row for row in rows if row.role != "group"}
    found = []
    for spot in spots:
        if not spot.stages or not spot.rewritten:
            continue
        row = by_ref[spot.stages[-1]]
        others = [str(ref) for ref in spot.stages[:-1]]
        evidence = [f"the optimiser has {', '.join(spot.instead)} in place of these nodes"] if spot.instead else []
        evidence += [f"nodes of {', '.join(others)} are among them"] if others else []
        found.append(
            Origin(
                stage=row.stage,
                call=row.call,
                output=row.output,
                type=row.type,
                source=row.source,
                onnx_value=spot.value,
                onnx_nodes=tuple(text.rpartition(" (")[0] for text in spot.nodes),
                config=pair.name,
                local_rel_l2=math.inf if spot.error is None else spot.error,
                noise_ratio=None,
                side="actual",
                evidence=tuple(evidence),
                onnx_ops=tuple(text.rpartition(" (")[2].rstrip(")") for text in spot.nodes),
            )
        )
    return tuple(found)


def _limit(search: PassSearch) -> float:
    """How far a value may lie from the unoptimised run's: halfway, in orders of magnitude, between right and wrong."""
    healthy = [trial.run.error for trial in search.trials if trial.mends and trial.run.error is not None]
    least = max(min(healthy, default=LEAST_ERROR), LEAST_ERROR)
    worst = search.before if search.before is not None and math.isfinite(search.before) else 1.0
    return math.sqrt(least * max(min(worst, 1.0), least))


def distance(expected: Array | None, actual: Array | None) -> float:
    """Relative L2; infinite where the two can't be compared."""
    if expected is None or actual is None or expected.shape != actual.shape or expected.dtype != actual.dtype:
        return math.inf
    if expected.size == 0:
        return 0.0
    error = relative_difference(expected, actual)
    return math.inf if math.isnan(error) else error


def same_bits(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
