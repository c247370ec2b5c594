"""Why a comparison diverges: what is looked into, tried and ruled out, in this order."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from bisect_tool.align.matches import VALUE_LIMIT, Match
from bisect_tool.backends.branches import exchanged_branches
from bisect_tool.backends.captured import OnValue, Outputs, Reference, output_error, repeats_not
from bisect_tool.backends.case import LoadedCase
from bisect_tool.backends.crossings import crossing_of
from bisect_tool.backends.graph_runs import GraphRuns, permutations
from bisect_tool.backends.inside import Opened, Surroundings, look_inside, open_stage
from bisect_tool.backends.lower_precision import reduced
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.pairing import check_weights
from bisect_tool.backends.passes import explain_optimised
from bisect_tool.backends.replay import CannotReplayError
from bisect_tool.backends.replay_folder import Told, replay_files
from bisect_tool.backends.runners import untouched_run
from bisect_tool.backends.stream import Lane
from bisect_tool.backends.testimony import ask
from bisect_tool.backends.trials import Elsewhere, find_cause, parameter_names
from bisect_tool.backends.variants import variants
from bisect_tool.baked import with_baked
from bisect_tool.compare import MAIN_LAYER
from bisect_tool.diagnose.causes import BAKED
from bisect_tool.diagnose.findings import (
    MAY_BE_BAKED,
    by_clue,
    chance,
    diagnoses,
    diagnosis_of,
    ledger,
    may_be_order,
    no_chance,
    no_order,
    not_baked,
    runtime_ruled_out,
    with_order,
)
from bisect_tool.diagnose.grown import Crossing, grown
from bisect_tool.diagnose.input_orders import CLEARLY, branches_diagnosis, order_diagnosis, other_orders, with_branches
from bisect_tool.diagnose.optimiser import is_optimised, with_finding
from bisect_tool.diagnose.trial import Trial
from bisect_tool.diagnose.trying import MAX_SECONDS, Outcome
from bisect_tool.diagnose.unexplained import without_optimiser_too
from bisect_tool.drilldown import first_mending, note_shared, proven_right, without_proven
from bisect_tool.errors import InconclusiveError
from bisect_tool.layouts import in_order
from bisect_tool.metrics import kind_of
from bisect_tool.outputs import worst_error
from bisect_tool.pipeline.options import Array, Options, Step
from bisect_tool.pipeline.outputs import FinalOutputs, Untouched
from bisect_tool.pipeline.pairs import is_plain
from bisect_tool.recorder import Trace
from bisect_tool.records import (
    Comparison,
    ConfigPair,
    ConfigRun,
    Diagnosis,
    HandOver,
    Origin,
    OutputResult,
    Stage,
    StageRef,
    StageRow,
    Verdict,
)
from bisect_tool.rows import first_stage_by_value, upstream
from bisect_tool.selection import Cut, Selection
from bisect_tool.signatures import distance, signature_of
from bisect_tool.store import REPLAY_FOLDER
from bisect_tool.weights import WeightReport, with_weights

MAX_DRILLED = 24
"""Origins that are looked into, in causal order: beyond that many the graph is broken throughout."""

MAX_EXPLAINED = 8
"""Origins whose cause is looked for by trying."""

FEW_ORIGINS = 3
"""So many origins may come from single casts; more of them are a graph in another precision."""

MAX_REPLAYS = 8
"""Origins that get a replay folder, in causal order."""

EXPLAIN_SECONDS = 20.0
"""Time that all trials together may take."""

SECONDS_FOR_ORDERS = 10.0
"""Time for runs of the whole graph on its inputs in other orders; what runs then is finished."""

REPLAY_NAME = 48
"""Characters of a stage's name in that of its folder: the line that runs it fits a terminal."""

MAX_DETAILED = 12
"""Nodes of an origin whose attributes go into the report."""

_NO_REPEAT = "PyTorch does not repeat itself"


@dataclass(slots=True)
class _Search:
    """The search for causes: the names of the model's parameters by address, when it ends, and what came of it.

    ``allowed``: no cause is looked for otherwise.
    """

    parameters: dict[int, str]
    ends: float
    allowed: bool
    outcomes: dict[tuple[StageRef, str], Outcome] = field(default_factory=dict)

    def mending(self, config: str) -> list[Trial]:
        """What has mended origins under a configuration."""
        found = [outcome.cause for (_, name), outcome in self.outcomes.items() if name == config]
        return [cause.trial for cause in found if cause is not None and cause.mends]

    def seconds_left(self) -> float:
        """0 and less: no more causes are looked for."""
        return self.ends - time.perf_counter() if self.allowed and len(self.outcomes) < MAX_EXPLAINED else 0.0


@dataclass(frozen=True, slots=True)
class Explainer:
    """A finished comparison, and what is needed to try things on it.

    Attributes:
        case, options, program: the job.
        runs: of the unoptimised graph.
        rounded: inputs of the graph as the sample has them, where the graph takes a narrower type.
        configs, base: the pairs that ran, and the plain one; ``plain``: the first that has local errors.
        forced: names of pairs with local errors.
        untouched, torch_outputs: final outputs of both sides, by the pair's name.
        final: which output is which.
        reference, matches, selection, cuts, rows: what was measured where.
        quantised: the graph is quantised.
        weights_beside: the weights beside those of a fresh export.
        step: tells about what takes long.
        judge_outputs: judges the outputs of a pair by all that is known of it.
        again: runs the model once more as it ran for the reference.
    """

    case: LoadedCase
    options: Options
    program: OnnxProgram
    runs: GraphRuns
    rounded: Mapping[str, Array]
    configs: Sequence[ConfigPair]
    base: ConfigPair
    plain: str | None
    forced: Set[str]
    untouched: Mapping[str, Untouched]
    torch_outputs: Mapping[str, Outputs]
    final: FinalOutputs
    reference: Reference
    matches: Mapping[int, Match]
    selection: Selection
    cuts: Mapping[str, Cut]
    rows: Sequence[StageRow]
    quantised: bool
    weights_beside: WeightReport | None
    step: Step
    judge_outputs: Callable[[ConfigPair, tuple[OutputResult, ...], Sequence[StageRow]], tuple[OutputResult, ...]]
    again: Callable[[OnValue], tuple[Trace, Outputs]]

    def explained(
        self, verdict: Verdict, runs: tuple[ConfigRun, ...], *, other_precision: bool
    ) -> tuple[Verdict, tuple[ConfigRun, ...]]:
        """The verdict with causes and with what was ruled out; the runs, which fail where PyTorch does not repeat itself.

        ``other_precision``: the graph is in another one than the model, and is not judged by it.
        """
        rows = self.rows
        if verdict.origins:
            with self.step("drill", "looking inside the stages that make error"):
                # A graph in another precision throughout needs no cause for each stage; one cast pair is a cause.
                try_causes = not self.quantised and (not other_precision or len(verdict.origins) <= FEW_ORIGINS)
                verdict = self._drill(verdict, try_causes=try_causes)
                # No single stage mends a quantised graph: each of them is off.
                verdict = verdict if self.quantised else self._hand_over(verdict)
        if verdict.status == "diverges":
            with self.step("weights", "comparing the graph's weights with the model's"):
                weights = check_weights(self.case.module, self.program, rows, self.case.place)
                if self.weights_beside is not None and self.weights_beside.compared > weights.compared:
                    weights = self.weights_beside
                verdict = with_weights(verdict, weights)
            with self.step("repeat", "running PyTorch once more, to see whether it repeats itself"):
                chance_text = repeats_not(self.reference, rows, self.reference.signatures, self.again)
            if chance_text is None:
                ruled_out = (*verdict.ruled_out, no_chance())
                verdict = replace(verdict, summary=(*verdict.summary, *self.final.exchanged), ruled_out=ruled_out)
                verdict = self._with_passes(verdict, runs)
            else:
                verdict, runs = self._by_chance(chance_text, runs)
        elif any(run.status == "failed" for run in runs):
            verdict = self._with_passes(verdict, runs)
        # Only now: what a model keeps from run to run must not look like chance.
        if verdict.status == "diverges" and not self.quantised:
            verdict = self._explain_whole(verdict)
        return verdict, runs

    def _by_chance(self, text: str, runs: tuple[ConfigRun, ...]) -> tuple[Verdict, tuple[ConfigRun, ...]]:
        """One run against another tells nothing then: neither where error is made, nor that a file is wrong."""
        line = f"{_NO_REPEAT}: {text}"
        verdict = Verdict("inconclusive", (line,), None, (), (), diagnoses=(chance(text),))
        # Pairs of a matrix have nothing but their reason; elsewhere the verdict stands below.
        reason = line if self.options.pairs else _NO_REPEAT
        failed = (
            replace(run, status="failed", skipped_reason=reason) if run.status == "diverges" else run for run in runs
        )
        return verdict, tuple(failed)

    # -- inside origins -----------------------------------------------------------------------------------------------

    def _drill(self, verdict: Verdict, *, try_causes: bool) -> Verdict:
        """Names the fewest nodes of each origin that certainly hold its fault, and looks for the cause.

        ``try_causes``: no cause is looked for where the whole graph is in another precision: that is the cause.
        """
        reference, selection = self.reference, self.selection
        layers = {stage.ref: self.cuts.get(name) for name, stages in selection.layers.items() for stage in stages}
        shown = {stage.ref: stage for stage in selection.shown}
        pairs = {pair.name: pair for pair in self.configs}
        measured = {(row.ref, name): result for row in self.rows for name, result in row.results.items()}
        around = Surroundings(
            self.program,
            reference.tape,
            reference.activations,
            self.matches,
            self.runs.types,
            self.runs.feeds,
            self.options.memory_budget,
            self.rounded,
            self._holding,
        )
        search = _Search(parameter_names(self.case.module), time.perf_counter() + EXPLAIN_SECONDS, try_causes)
        origins = []
        of_torch: tuple[Diagnosis, ...] = ()
        for number, origin in enumerate(verdict.origins):
            stage, pair = shown[origin.ref], pairs[origin.config]
            cut = layers.get(origin.ref) or self.cuts.get(MAIN_LAYER)
            # Inner values of a quantised stage are off as well: what its own numbers tell was told.
            if cut is not None and not self.quantised and is_plain(pair.expected, self.options):
                if origin.side != "expected" and number < MAX_DRILLED:
                    known = measured.get((origin.ref, origin.config))
                    origin = self._looked_into(origin, number, stage, pair, cut, around, known, search)
                elif origin.side == "expected" and try_causes and number < MAX_EXPLAINED:
                    of_torch += self._of_torch(origin, stage, cut)
            ops, weights = self.program.reads(origin.onnx_nodes)
            details = self.program.details(origin.onnx_nodes[:MAX_DETAILED])
            origins.append(replace(origin, onnx_ops=ops, onnx_weights=weights, onnx_details=details))
        return replace(
            verdict,
            origins=note_shared(origins),
            diagnoses=(
                *verdict.diagnoses,
                *diagnoses(origins, search.outcomes, has_copies=self.program.has_copies),
                *of_torch,
            ),
            ledger=ledger(origins, search.outcomes),
        )

    def _holding(self, array: Array) -> str | None:
        """The value of the graph's own run that holds a tensor: behind an error none does."""
        own = signature_of(array, kind_of(array.dtype))
        alike = ((name, each) for name, each in self.runs.signatures.items() if each.shape == own.shape)
        apart, name = min(((distance(own, each), name) for name, each in alike), default=(math.inf, ""))
        return name if apart <= VALUE_LIMIT / 100 else None

    def _looked_into(
        self,
        origin: Origin,
        number: int,
        stage: Stage,
        pair: ConfigPair,
        cut: Cut,
        around: Surroundings,
        known: Comparison | None,
        search: _Search,
    ) -> Origin:
        """An origin with what its nodes tell, as far as anything can be shown; its own nodes stay named otherwise.

        ``known``: what was measured at its stage.
        """
        key = origin.ref, origin.config
        with contextlib.suppress(CannotReplayError, InconclusiveError):
            opened = open_stage(around, origin, stage, cut.known, None if known is None else known.floor)
            stage_nodes, proven = origin.onnx_nodes, proven_right(origin, self.rows, self.program.graph)
            origin = without_proven(look_inside(around, opened, origin, stage, pair.actual), stage_nodes, proven)
            origin = replace(origin, witness=ask(around, origin, opened, stage, pair.actual))
            left = search.seconds_left()
            if left > 0:
                nodes, names = origin.onnx_nodes, search.parameters
                seconds = min(left, MAX_SECONDS)
                elsewhere = Elsewhere(proven.keys(), search.mending(origin.config))
                cause = find_cause(around, opened, stage, nodes, names, pair.actual, seconds, elsewhere)
                search.outcomes[key] = cause
            tried = search.outcomes.get(key)
            why = None if tried is None else diagnosis_of(origin, tried)
            told = Told(why, None if known is None else known.local)
            origin = self._with_replay(around, opened, origin, pair, number, told)
        return origin

    def _of_torch(self, origin: Origin, stage: Stage, cut: Cut) -> tuple[Diagnosis, ...]:
        """What the tape tells of a stage that PyTorch itself gets wrong."""
        tape, activations = self.reference.tape, self.reference.activations
        off = activations.fetch(stage.value)
        clue = reduced(tape, stage.value, cut.known - {stage.value}, activations.tensor, off, "expected")
        activations.retain(())
        return () if clue is None else (by_clue(origin, clue),)

    def _with_replay(
        self, around: Surroundings, opened: Opened, origin: Origin, pair: ConfigPair, number: int, known: Told
    ) -> Origin:
        """The origin with a folder that shows its error without this tool, if they are wanted."""
        keep = self.options.keep_replay
        if keep is None or number >= MAX_REPLAYS:
            return origin
        details = self.program.details(origin.onnx_nodes[:MAX_DETAILED])
        told = replace(origin, onnx_details=details)
        files = replay_files(around, opened, told, pair.actual, self.case.name, known)
        if files is None:
            return origin
        name = f"{REPLAY_FOLDER}/{number + 1:02d}-{re.sub('[^A-Za-z0-9._-]+', '_', str(origin.ref))[:REPLAY_NAME]}"
        keep(name, files)
        return replace(origin, replay=name)

    def _hand_over(self, verdict: Verdict) -> Verdict:
        """Looks for the first stage at which handing PyTorch's values over mends the outputs, on the plain configuration."""
        pair, reference, matches = self.base, self.reference, self.matches
        finals = {matches[value].onnx: value for _, value in reference.trace.outputs if value in matches}
        if pair.name not in self.forced or pair.name not in self.untouched or not finals:
            return verdict
        first = first_stage_by_value(reference.trace)
        used = upstream(reference.trace, ())
        places = sorted((v for v in matches if v in used and v in first), key=lambda v: first[v].order)

        def error_of(place: int) -> float:
            names = {matches[value].onnx: value for value in places[: place + 1]}
            segments = self.runs.segments(names)
            run = self.runs.segmented(pair.actual, segments, set(finals), set(names), {})
            worst = 0.0

            def on_values(_: Mapping[str, Array | None], forced: Mapping[str, Array | None]) -> None:
                nonlocal worst
                for name, array in forced.items():
                    # What is handed over itself is right.
                    if name not in names:
                        expected = reference.activations.fetch(finals[name])
                        order = matches[finals[name]].permutation
                        shape = None if array is None else array.shape
                        worst = max(
                            worst, output_error(expected if order is None else in_order(expected, order, shape), array)
                        )

            lane = Lane("hand-over", run, names, permutations(matches), on_values)
            self.runs.drive([lane], reference.activations, lambda *_: None)
            return worst

        found = None
        # Values of other sizes on both sides may not fit together in one run: then this witness has nothing to say.
        with contextlib.suppress(InconclusiveError):
            found = first_mending(len(places), error_of)
        if found is None:
            return verdict
        place, before, after = found
        return replace(verdict, hand_over=HandOver(first[places[place]].ref, pair.name, before, after))

    def _with_passes(self, verdict: Verdict, runs: Sequence[ConfigRun]) -> Verdict:
        """The verdict with what the optimiser does wrong, where the unoptimised graph is right.

        Configurations that count go first, and one is enough: what is wrong at one level is at the next.
        """
        rows, feeds = self.rows, self.runs.feeds
        if not self.options.passes or not self.options.observe or not rows:
            return verdict
        pairs = {pair.name: pair for pair in self.configs}
        wrong = [pairs[run.name] for run in runs if run.status == "diverges"]
        for run in sorted(runs, key=lambda run: not run.gating):
            pair = pairs[run.name]
            plain = replace(pair.actual, optimization="off")
            if any(each.actual == plain and each.expected == pair.expected for each in wrong):
                continue  # wrong without the optimiser too
            expected = self.torch_outputs.get(pair.name)
            if expected is None and is_plain(pair.expected, self.options):
                expected = self.reference.outputs  # it failed before anything was compared
            if run.status not in ("diverges", "failed") or not is_optimised(pair) or expected is None:
                continue
            judge = functools.partial(self._judge_run, pair, expected)
            with contextlib.suppress(InconclusiveError), self.step("passes", "trying the optimiser's passes"):
                if judge(dict(untouched_run(self.program, plain).run(feeds)))[1]:
                    found = explain_optimised(self.program, pair, plain, feeds, judge, rows, rows[-1].ref)
                    return verdict if found is None else with_finding(verdict, found)
                if run.status == "diverges":
                    return replace(verdict, ruled_out=(*verdict.ruled_out, without_optimiser_too(pair.name)))
        return verdict

    def _judge_run(
        self, pair: ConfigPair, expected: Outputs, outputs: dict[str, Array | None]
    ) -> tuple[float | None, bool]:
        """Error of the worst final output of an untouched graph, and whether all of them pass."""
        results = self.judge_outputs(pair, self.final.results(Untouched(outputs, {}), expected), self.rows)
        return worst_error(results), bool(results) and all(out.judgement != "fail" for out in results)

    # -- the whole graph ----------------------------------------------------------------------------------------------

    def _explain_whole(self, verdict: Verdict) -> Verdict:
        """What no single stage's nodes tell: inputs in another order, what tracing baked in, rounding that grew."""
        found = list(verdict.diagnoses)
        reference, plain = self.reference, self.plain
        if plain is not None and not verdict.origins:
            names = {value: match.onnx for value, match in self.matches.items() if match.permutation is None}
            stages = {stage.ref: stage for stage in reference.trace.stages}

            def crossing(row: StageRow) -> Crossing | None:
                return crossing_of(stages[row.ref], reference.tape, reference.activations, names, self.runs.arrays)

            found += grown(self.rows, plain, crossing)
        ruled_out = [*verdict.ruled_out, *runtime_ruled_out(verdict.origins)]
        failing = next((pair for pair in self.configs if pair.gating and pair.name in self.untouched), None)
        if failing is not None and verdict.origins and may_be_order(found):
            with self.step("inputs", "trying the inputs in other orders"):
                order, tried = self._in_other_orders(failing)
            found = with_order(found, order)
            ruled_out += [no_order(tried)] if order is None and tried else []
        if failing is not None and verdict.origins and any(op == "If" for op, _ in self.program.bodies()):
            found = with_branches(found, self._with_other_branches(failing))
        if any(each.code in MAY_BE_BAKED for each in found):
            with self.step("variants", "running PyTorch on other inputs, to see what follows them"):
                runs = variants(self.case.module, self.case.args, self.case.kwargs, longer=self._takes_other_sizes())
            found = list(with_baked(found, runs, {origin.ref: origin.onnx_ops for origin in verdict.origins}))
            ruled_out += [not_baked(len(runs) - 1)] if len(runs) > 1 and all(d.code != BAKED for d in found) else []
        return replace(verdict, diagnoses=tuple(found), ruled_out=tuple(ruled_out))

    def _takes_other_sizes(self) -> bool:
        """Whether the file leaves an input's first size open: else it was made for this one, and no size was baked in."""
        sizes = self.program.header().input_shapes.values()
        return any(shape and not shape[0].isdigit() for shape in sizes)

    def _in_other_orders(self, pair: ConfigPair) -> tuple[Diagnosis | None, int]:
        """An order of the inputs under which the outputs agree, and how many were tried."""
        ends = time.perf_counter() + SECONDS_FOR_ORDERS
        outputs = self.torch_outputs.get(pair.name, [])
        before = worst_error(self.final.results(self.untouched[pair.name], outputs))
        if before is None:
            return None, 0
        run = untouched_run(self.program, pair.actual)
        tried = 0
        for order in other_orders(self.runs.feeds):
            if time.perf_counter() > ends:
                break
            try:
                error = self._mended(dict(run.run(order.feeds)), outputs, before)
            except InconclusiveError:
                continue
            tried += 1
            if error is not None:
                return order_diagnosis(order, before, error, tried, pair.name), tried
        return None, tried

    def _with_other_branches(self, pair: ConfigPair) -> Diagnosis | None:
        """An ``If`` with whose branches exchanged the outputs agree."""
        outputs = self.torch_outputs.get(pair.name, [])
        before = worst_error(self.final.results(self.untouched[pair.name], outputs))
        for name, graph in exchanged_branches(self.program, pair.actual) if before is not None else ():
            with contextlib.suppress(InconclusiveError):
                made = graph.run(graph.output_names, self.runs.feeds)
                error = self._mended(dict(zip(graph.output_names, made, strict=True)), outputs, before or 0.0)
                if error is not None:
                    return branches_diagnosis(name, before or 0.0, error, pair.name)
        return None

    def _mended(self, made: dict[str, Array | None], outputs: Outputs, before: float) -> float | None:
        """The error of the worst output where all of them agree now, and clearly: ``None`` otherwise."""
        results = self.final.results(Untouched(made, {}), outputs)
        # Outputs that hardly differed as they were say nothing for a change under which they hardly differ either.
        error = worst_error(results)
        clear = error is not None and error * CLEARLY <= before
        return error if clear and all(out.judgement == "pass" for out in results) else None
