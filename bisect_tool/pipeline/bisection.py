"""One comparison in the order of things: capture, align, expose, force, compare, localize, explain."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray

from bisect_tool.align.bodies import leave_out_bodies
from bisect_tool.align.in_parts import with_parts
from bisect_tool.align.matches import NARROW_VALUE_LIMIT, VALUE_LIMIT, Match
from bisect_tool.align.placing import with_missing
from bisect_tool.align.summary import ambiguity_lines, summarize
from bisect_tool.align.twins import merge_twins
from bisect_tool.backends.activations import ActivationStore, GoneError
from bisect_tool.backends.ahead import Ahead
from bisect_tool.backends.architecture import graph_of
from bisect_tool.backends.before import look_before
from bisect_tool.backends.both_sides import BothSides, both_sides, finished, graph_ahead, has_room, measured
from bisect_tool.backends.captured import OnValue, Outputs, Reference, same_stages, within
from bisect_tool.backends.case import LoadedCase, check_forward, copies_of
from bisect_tool.backends.costs import ort_cost, torch_cost
from bisect_tool.backends.environment_facts import snapshot
from bisect_tool.backends.facts import fed_inputs, graph_facts
from bisect_tool.backends.floors import TapedRun, noise_of
from bisect_tool.backends.graph_runs import permutations
from bisect_tool.backends.memory import freed_memory_is_kept, map_big_blocks, return_free_memory
from bisect_tool.backends.onnx_graph import dtype_name
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.preflight import explain_forward_error, require_one_device
from bisect_tool.backends.runners import WholeRun, untouched_run
from bisect_tool.backends.stream import Lane, OnPair
from bisect_tool.backends.torch_runner import TorchRun, float_dtype_of, nested_note, own_memory, state_kept, to_numpy
from bisect_tool.backends.torch_switches import applied, layout_in_effect, placed, require_device
from bisect_tool.calibration.calibrated import (
    judge_outputs,
    judge_rows,
    refuse_other_stages,
    table_lines,
    with_table,
)
from bisect_tool.compare import MAIN_LAYER, Ledger, lane_name
from bisect_tool.diagnose.costs import with_work
from bisect_tool.diagnose.findings import (
    placement,
)
from bisect_tool.diagnose.unexplained import with_what_is_known
from bisect_tool.environments.snapshot import peak_rss_mb
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.inspection import BoundOutput, Inspection, evidence_counts, level_counts
from bisect_tool.judging import growth_lines, is_explained, is_perturbed, judge_by_noise
from bisect_tool.localize import with_shares
from bisect_tool.metrics import kind_of, relative_difference
from bisect_tool.pictures import KEPT, with_few
from bisect_tool.pipeline.aligning import Aligner, PermutedKey
from bisect_tool.pipeline.explaining import Explainer
from bisect_tool.pipeline.options import Options, Step
from bisect_tool.pipeline.outputs import FinalOutputs, Untouched
from bisect_tool.pipeline.pairs import by_expected, is_plain
from bisect_tool.pipeline.prepared import ready_to_run
from bisect_tool.precision import (
    half_precision,
    held_line,
    held_values,
    precision_lines,
    saturated,
    saturated_fills,
    tolerance_for,
)
from bisect_tool.quantised import (
    TOTAL_SQNR,
    Quantisation,
    is_quantised,
    judge_quantised,
    quality_of,
    quantisation_of,
    summary_lines,
    with_stage_costs,
)
from bisect_tool.recorder import Recorder, Trace, Value, flatten_tensors
from bisect_tool.records import (
    Alignment,
    ConfigPair,
    ConfigRun,
    ConfigStatus,
    Finding,
    Noise,
    NumericConfig,
    OutputKey,
    OutputResult,
    QuantisedStage,
    Report,
    SideCost,
    StageRef,
    StageRow,
    TorchTrace,
    Verdict,
)
from bisect_tool.rows import build_rows, output_stages
from bisect_tool.sample_values import odd_inputs, with_odd_inputs
from bisect_tool.selection import Cut, Selection, ancestors, cut_of, select
from bisect_tool.signatures import Signature, permuted_signatures, signature_of
from bisect_tool.tolerances import sqnr_tolerance
from bisect_tool.verdicts import decide
from bisect_tool.weights import WeightReport

Array = NDArray[Any]
MAX_TOLD = 5
"""Findings of the preflight that are told while it runs."""


class Bisection:
    """State of one comparison. The methods are in the order in which they run.

    Args:
        case, options: the job.
        program: the graph, as in the file.
        step: tells about what takes long, and times it.
        count: told how far a step is; the second number is 0 where nobody knows how many there are.
    """

    def __init__(
        self,
        case: LoadedCase,
        options: Options,
        program: OnnxProgram,
        step: Step,
        count: Callable[[int, int], None],
    ):
        self.case = case
        self.put_back = state_kept(case.module)
        self.step = step
        self.count = count
        self.ready = ready = ready_to_run(case, options, program)
        self.program, self.graph = ready.program, ready.program.plain
        self.feeds: Mapping[str, Array] = ready.runs.feeds
        self.configs, self.base, self.onnx = ready.configs, ready.base, ready.runs
        # The half precision that the graph is in while PyTorch is not, and the stages that it computes in it.
        autocast = any("autocast" in pair.expected.switches for pair in options.pairs)
        own = None if autocast else float_dtype_of(case.module)
        self.half = half_precision(self.graph, self.graph.dtypes, own)
        self.held: Set[int] = frozenset()
        self.options = options = replace(options, tolerance=tolerance_for(options.tolerance, self.half))
        self.notes = [*case.notes, *ready.bound.notes, *ready.notes]
        self.in_memory, self.buffers = self.onnx.in_memory, self.onnx.buffers
        self.abreast: BothSides | None = None
        self.ahead: Ahead[Signature] | None = None
        if not self.in_memory and not self._can_go_abreast():
            map_big_blocks()
        self.reference: Reference | None = None
        self.final = FinalOutputs(self.graph.outputs, options.tolerance, self.notes)
        self.failed: dict[str, str] = {}
        self.hint: str | None = None
        self.misplaced: dict[str, str] = {}
        self.torch_signatures: Mapping[int, Signature] = {}
        self.permuted: dict[PermutedKey, Mapping[tuple[int, ...], Signature]] = {}
        # What the graph's own run left, under one name for all that follows.
        self.onnx_signatures, self.types, self.chained = self.onnx.signatures, self.onnx.types, self.onnx.arrays
        self.ledger = Ledger(options.tolerance, {pair.name for pair in self.configs})
        # Between fused nodes there is no value to force.
        unfused = {pair.name for pair in self.configs if pair.actual.optimization == "off"}
        self.forced = unfused if options.forced else set()
        self.not_forced: set[str] = set()
        self.effective: dict[str, dict[str, Any]] = {}
        self.torch_outputs: dict[str, Outputs] = {}
        self.untouched: dict[str, Untouched] = {}
        self.observer: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.floor_seconds = 0.0
        self.quantised = False
        self.quantisation: Quantisation | None = None
        self.missing: Mapping[int, str] = {}
        self.weights_beside: WeightReport | None = None

    def release(self) -> None:
        """Frees the tensors now; a traceback or a cycle may keep this object alive for longer."""
        if self.ahead is not None:
            self.ahead.close()
        if self.reference is not None:
            self.reference.activations.close()
        self.chained.clear()
        self.untouched.clear()
        self.reference = None

    def release_run(self) -> None:
        """Frees what both sides' run has left, to run them anew."""
        if self.ahead is not None:
            self.ahead.close()
        if self.reference is not None:
            self.reference.activations.close()
        self.reference = self.abreast = None
        self.onnx.forget()
        self.permuted.clear()
        if not self.in_memory:
            map_big_blocks()

    def with_costs(self, run: ConfigRun) -> ConfigRun:
        """A configuration with what plain runs of its sides cost; call it when all else is done and freed."""
        if run.status not in ("agrees", "diverges"):
            return run
        expected: SideCost | None = None
        actual: SideCost | None = None
        # What only serves the cost decides nothing: a side that does not run once more has none.
        if "emulate" not in run.expected.switches:  # emulation costs what no GPU would
            with contextlib.suppress(Exception):
                expected = torch_cost(self.case.module, self.case.args, self.case.kwargs, run.expected)
        if run.actual.backend == "onnxruntime":  # what it costs elsewhere interests nobody
            with contextlib.suppress(Exception):
                actual = ort_cost(self.program, run.actual, self.feeds)
        return replace(run, expected_cost=expected, actual_cost=actual)

    # -- the whole ----------------------------------------------------------------------------------------------------

    def _aligned(self) -> _Aligned:
        """Runs the graph and PyTorch, and finds out which value stands for which stage."""
        if self.options.observe:
            for pair in self.configs:
                with self.step(f"untouched {pair.name}", f"running the untouched graph ({pair.name})"):
                    self._run_untouched(pair)
        if all(pair.name in self.failed for pair in self.configs):
            raise InconclusiveError("; ".join(dict.fromkeys(self.failed.values())), hint=self.hint)
        if self._can_go_abreast():
            notes = list(self.notes)
            with freed_memory_is_kept(), contextlib.suppress(GoneError):
                return self._aligned_run(abreast=True)
            self.release_run()
            self.notes[:] = notes
        return self._aligned_run(abreast=False)

    def _aligned_run(self, *, abreast: bool) -> _Aligned:
        feeds = self.feeds
        with self.step("capture", "running PyTorch"):
            reference = self._capture(self.base.expected, tape=self.options.forced, abreast=abreast)
            self.reference = reference
        trace = reference.trace
        self.notes += nested_note(reference.tape)
        self._see_quantisation(trace)
        self._bind_outputs(reference.outputs)
        self._settle_inputs(reference.outputs)
        if abreast and self.feeds is not feeds:
            raise GoneError
        with self.step("align", "aligning stages with ONNX values"):
            matches = self._align(reference)
        if not all(self._is_at_hand(reference, match) for match in matches.values()):
            raise GoneError
        trace = reference.trace = merge_twins(trace, self.graph, matches, self.torch_signatures)
        if self.half is not None:
            paired = {value: match.onnx for value, match in matches.items()}
            self.held = held_values(self.graph, self._dtypes(), paired, self.half)
        selection = select(trace, self.options.level, self.options.stages, self.options.groups)
        judged = {stage.ref for stage in selection.judged}
        alignment = summarize(
            trace, self.graph, matches, self.torch_signatures, self.onnx_signatures, lambda stage: stage.ref in judged
        )
        alignment = with_missing(alignment, trace, self.missing)
        if self.in_memory:
            kept, limit = reference.activations, VALUE_LIMIT if self.half is None else NARROW_VALUE_LIMIT

            def fetch(value: int) -> Array | None:
                return None if kept.is_gone(value) else kept.fetch(value)

            alignment = with_parts(alignment, trace, self.onnx_signatures, fetch, limit)
            kept.retain(())
        self.notes += ambiguity_lines(alignment)
        alignment = leave_out_bodies(alignment, reference.stages_in_bodies(), self.program.operators_with_bodies())
        cuts = {layer: cut_of(stages, trace, matches) for layer, stages in selection.layers.items()}
        if MAIN_LAYER in cuts and not self.options.stages:
            # Of a whole level: what comes between two stages, as a container's own view, is the next one's.
            judged_values = {stage.value for stage in selection.judged}
            values = judged_values | {stage.value for stage in trace.stages if stage.level != "container"}
            own = {value: match for value, match in matches.items() if value in values}
            cuts[MAIN_LAYER] = cut_of(selection.layers[MAIN_LAYER], trace, own)
        return _Aligned(reference, matches, selection, alignment, cuts)

    def _align(self, reference: Reference) -> dict[int, Match]:
        self.torch_signatures = reference.signatures
        if self.abreast is None:
            began = time.perf_counter()
            self.onnx.see_all()
            self._spend(self.base.name, began)
        names, narrow = self.final.names, self.half is not None
        aligner = Aligner(
            self.case, self.options, self.ready, self.step, self.notes, self.permuted, names, narrow=narrow
        )
        matches = aligner.pairs(reference)
        self.missing, self.weights_beside = aligner.missing, aligner.weights_beside
        return matches

    def inspection(self, timings: Mapping[str, float]) -> Inspection:
        """What the alignment is, with nothing compared."""
        aligned = self._aligned()
        trace, matches = aligned.reference.trace, aligned.matches
        nodes_between = self.program.nodes_between
        rows = build_rows(trace, aligned.selection, matches, aligned.cuts, self.ledger, (), set(), nodes_between)
        keys = [key for key, _ in aligned.reference.outputs]
        return Inspection(
            case={"name": self.case.name, **self.case.description},
            graph=graph_facts(self.program, str(self.options.onnx) if self.options.onnx else None),
            inputs=fed_inputs(self.program, self.feeds, self.ready.bound.sources),
            outputs=tuple(BoundOutput(key, name) for key, name in zip(keys, self.final.names, strict=True)),
            alignment=aligned.alignment,
            min_coverage=self.options.min_coverage,
            levels=level_counts(trace, matches),
            evidence=evidence_counts(rows, aligned.alignment.pairs),
            stages=tuple(self._with_nodes(row) for row in rows),
            environment=snapshot(),
            timings=timings,
            notes=tuple(self.notes),
        )

    def _look_before(self) -> tuple[Finding, ...]:
        """What the files tell; the first things are told at once, as the run may take long."""
        with self.step("preflight", "comparing the file with the model, before anything runs"):
            found = (*look_before(self.case.module, self.program), *odd_inputs(self.feeds))
        for each in [each for each in found if each.severity != "fact"][:MAX_TOLD]:
            with self.step("preflight", f"preflight: {each.text}"):
                pass
        return found

    def _look_afterwards(self, rows: Sequence[StageRow], runs: Sequence[ConfigRun]) -> tuple[Finding, ...]:
        """The same after a quick look, where it may explain something: reading all weights takes as long as the look."""
        numbers = [result.total for row in rows for result in row.results.values()]
        odd = any(total.nonfinite_expected or total.nonfinite_actual for total in numbers)
        if odd or any(run.status != "agrees" for run in runs):
            return self._look_before()
        return odd_inputs(self.feeds)

    def report(self, timings: dict[str, float]) -> Report:
        """Compares, judges, and explains.

        Raises:
            BisectError: unusable input.
            InconclusiveError: nothing could be compared.
        """
        quick = self._can_go_abreast()
        if quick:
            self.ahead = graph_ahead(self.program, self.base.actual, self.feeds, self.options.memory_budget)
        preflight = () if quick else self._look_before()
        aligned = self._aligned()
        with self.step("compare", "comparing stage by stage"):
            self._compare_all(aligned)
        names = [pair.name for pair in self.configs]
        rows = self._rows(aligned)
        runs = tuple(self._config_run(pair, rows) for pair in self.configs)
        if quick:
            preflight = self._look_afterwards(rows, runs)
        self._hand_out_outputs()
        rows = [
            replace(row, results={name: row.results[name] for name in names if name in row.results}) for row in rows
        ]
        timings["floor"] = self.floor_seconds
        plain = next((name for name in names if name in self.forced and name not in self.failed), None)
        other_precision = self._other_precision(aligned)
        verdict = self._verdict(aligned, rows, runs, plain, other_precision)
        if self.options.explain:
            explainer = self._explainer(aligned, rows, plain)
            # What is more than half precision rounds off has a cause of its own.
            other = bool(other_precision) and self.half is None
            verdict, runs = explainer.explained(verdict, runs, other_precision=other)
        verdict = replace(verdict, diagnoses=with_work((*verdict.diagnoses, *placement(self.misplaced))))
        verdict = with_odd_inputs(verdict, preflight)
        # Of a pair of a matrix the whole matrix says more.
        if not self.quantised and not self.options.pairs:
            verdict = with_what_is_known(verdict, rows, runs, forced=self.options.forced)
        # A matrix joins the reports of its pairs.
        rows = with_few(rows, verdict, 1 if self.options.pairs else KEPT)
        return Report(
            case={"name": self.case.name, **self.case.description},
            verdict=verdict,
            tolerance=with_table(self.options.tolerance, self.options.table),
            alignment=aligned.alignment,
            configs=runs,
            stages=tuple(rows),
            environment=snapshot(),
            timings=timings,
            notes=tuple(self.notes),
            preflight=preflight,
        )

    def _compare_all(self, aligned: _Aligned) -> None:
        """All pairs against their PyTorch runs; the plain one too, where nothing else tells what rounding does."""
        for expected, pairs in by_expected(self.configs, self.base, self.options):
            self._compare_with(expected, pairs, aligned)
        if self._lacks_baseline():
            self.forced.add(self.base.name)
            self.ledger.chained_lanes |= {self.base.name}
            self._compare(aligned.reference, [self.base], aligned)

    def _rows(self, aligned: _Aligned) -> list[StageRow]:
        """The stage table, judged."""
        trace, nodes_between = aligned.reference.trace, self.program.nodes_between
        names = [pair.name for pair in self.configs]
        measured = [*names, self.base.name] if self.base.name in self.forced - set(names) else names
        selection, matches, cuts = aligned.selection, aligned.matches, aligned.cuts
        rows = build_rows(trace, selection, matches, cuts, self.ledger, measured, self.forced, nodes_between)
        rows = [self._with_nodes(row) for row in rows]
        table = self.options.table
        if table is not None:
            refuse_other_stages(table, rows, selected=bool(self.options.stages), graph=graph_of(self.program))
        for name in self.forced:
            rows = with_shares(rows, name, output_stages(trace))
        return self._judge(rows, output_stages(trace))

    def _other_precision(self, aligned: _Aligned) -> tuple[str, ...]:
        """Says where the graph is in another precision than the model; nothing if it is not."""
        paired = {value: match.onnx for value, match in aligned.matches.items()}
        lines = precision_lines(self.graph, self._dtypes(), aligned.reference.trace.stages, paired)
        if self.half is not None and self.options.tolerance.source == "default":
            return (*lines, held_line(self.half))
        return lines

    def _verdict(
        self,
        aligned: _Aligned,
        rows: Sequence[StageRow],
        runs: Sequence[ConfigRun],
        plain: str | None,
        other_precision: Sequence[str],
    ) -> Verdict:
        """The verdict as far as the measurements go. ``plain``: the first pair with local errors."""
        options = self.options
        verdict = decide(rows, runs, aligned.alignment, options.min_coverage, selected=bool(options.stages))
        lines: list[str] = []
        if options.table is not None:
            lines += table_lines(rows, options.table, verdict.first_over_tolerance)
        if plain is not None:
            lines += growth_lines(rows, plain, options.tolerance)
        verdict = replace(verdict, summary=(*verdict.summary, *lines, *other_precision))
        return self._with_costs_of_bits(verdict, rows, runs, plain) if self.quantised else verdict

    def _explainer(self, aligned: _Aligned, rows: Sequence[StageRow], plain: str | None) -> Explainer:
        def again(on_value: OnValue) -> tuple[Trace, Outputs]:
            # A model may hand out memory of its own, and write to it whenever it runs.
            first = aligned.reference.outputs
            first[:] = [(key, array.copy()) for key, array in first]
            run, _, outputs = self._run_torch(self.base.expected, on_value)
            return run.recorder.trace, outputs

        return Explainer(
            case=self.case,
            options=self.options,
            program=self.program,
            runs=self.onnx,
            rounded=self.ready.bound.rounded,
            configs=self.configs,
            base=self.base,
            plain=plain,
            forced=self.forced,
            untouched=self.untouched,
            torch_outputs=self.torch_outputs,
            final=self.final,
            reference=aligned.reference,
            matches=aligned.matches,
            selection=aligned.selection,
            cuts=aligned.cuts,
            rows=rows,
            quantised=self.quantised,
            weights_beside=self.weights_beside,
            step=self.step,
            judge_outputs=self._judge_outputs,
            again=again,
        )

    def _dtypes(self) -> dict[str, str]:
        """Of the graph's values, by name: as the file says, and as they were in the run."""
        return {**self.graph.dtypes, **{name: dtype_name(kind.dtype) for name, kind in self.types.items()}}

    # -- quantised graphs ---------------------------------------------------------------------------------------------

    def _see_quantisation(self, trace: TorchTrace) -> None:
        """A quantised graph is off by bits that were given up on purpose: SQNR judges it, and no noise floor."""
        self.quantised = is_quantised(self.graph, trace.stages)
        if self.quantised and self.options.tolerance.source == "default":
            self.options = replace(self.options, tolerance=sqnr_tolerance(TOTAL_SQNR, "quantised"))
            self.ledger.tolerance = self.final.tolerance = self.options.tolerance

    def _quality(self, value: int, expected: Array, forced: Array, names: Mapping[int, Match]) -> QuantisedStage:
        """What quantisation costs in one stage."""
        known = quantisation_of(self.graph) if self.quantisation is None else self.quantisation
        self.quantisation = known
        total = self.torch_signatures[value].total
        return quality_of(known, names[value].onnx, self.program.constant, expected, forced, total)

    def _with_costs_of_bits(
        self, verdict: Verdict, rows: Sequence[StageRow], runs: Sequence[ConfigRun], config: str | None
    ) -> Verdict:
        """The verdict with what costs most, and origins with why."""
        verdict = with_stage_costs(verdict, rows, quantisation_of(self.graph), config)
        lines = summary_lines(verdict, self.graph, self.options.tolerance, runs)
        return replace(verdict, summary=(*verdict.summary, *lines))

    # -- running ------------------------------------------------------------------------------------------------------

    def _run_untouched(self, pair: ConfigPair) -> None:
        began = time.perf_counter()
        try:
            require_device(pair.expected.device)
            run = untouched_run(self.program, pair.actual, look=self.options.look)
            outputs = run.run(self.feeds)
            self._check_placement(pair, run)
        except InconclusiveError as error:
            if pair is self.base:
                # Exporters trace without computing: what PyTorch would refuse may get as far as here.
                check_forward(self.case)
                raise
            # The others still have an answer to give.
            self.failed[pair.name] = error.message
            self.hint = error.hint
            return
        self.untouched[pair.name] = Untouched(dict(outputs), run.effective)
        del run
        return_free_memory()
        self._spend(pair.name, began)

    def _check_placement(self, pair: ConfigPair, run: WholeRun) -> None:
        """A CUDA run whose nodes sit on the CPU is no CUDA run."""
        if pair.actual.device == "cpu":
            return
        left = run.nodes_left_behind()
        if left is None:
            self.misplaced[pair.name] = (
                "node placement unknown: ONNX Runtime does not tell which provider ran which node"
            )
        elif left:
            self.misplaced[pair.name] = f"{len(left)} nodes ran on the CPU: {', '.join(left[:3])}"
            self.notes.append(f"{pair.name}: on the CPU are {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}")

    def _spend(self, config: str, began: float) -> None:
        self.seconds[config] = self.seconds.get(config, 0.0) + time.perf_counter() - began

    def _capture(self, config: NumericConfig, *, tape: bool = False, abreast: bool = False) -> Reference:
        """PyTorch's run under a configuration: structure, signatures, the tensors themselves, and what made them.

        ``abreast``: with the graph's own run, so that tensors that were compared need not stay.
        """
        signatures: dict[int, Signature] = {}

        def on_value(value: Value, tensor: torch.Tensor) -> None:
            array = to_numpy(tensor)
            signature = signatures[value.id] = signature_of(array, kind_of(array.dtype))
            self.count(len(signatures), 0)
            if both is None:
                store.keep(value.id, tensor)
            else:
                both.see(value, tensor, array, signature)

        # Of a small budget little is left beside what both sides need to run at all.
        budget = self.options.memory_budget
        store = ActivationStore(budget // 2 if self.in_memory else budget // 8, self.buffers, spill=not abreast)
        both = self._both_sides(store) if abreast else None
        keep_freed = self.onnx.is_roomy and not abreast  # else that is done around both sides
        try:
            last = abreast and self.options.keep_outputs is None
            with freed_memory_is_kept() if keep_freed else contextlib.nullcontext():
                run, effective, outputs = self._run_torch(config, on_value, store.attach, tape=tape, last=last)
            if keep_freed and not self.in_memory:
                map_big_blocks()
            if both is not None:
                self._finish_abreast(both)
            store.settle()
        except BaseException:
            store.close()
            raise
        if not abreast:  # else that comes last
            return_free_memory()
        return Reference(config, run.trace, run.recorder.trace, store, signatures, outputs, effective)

    # -- both sides abreast -------------------------------------------------------------------------------------------

    def _can_go_abreast(self) -> bool:
        """Whether each value is compared once, with nothing but the plain run: then no tensor has to be kept."""
        alone = self.configs == [self.base] and not self.options.forced
        # Rules for half precision look at the finished alignment first.
        return alone and self.half is None and has_room(self.program, self.options.memory_budget)

    def _both_sides(self, store: ActivationStore) -> BothSides:
        def lost(value: int, array: Array, signature: Signature) -> None:
            # Alignment may still ask for it with its axes in another order.
            self.permuted[value, None] = permuted_signatures(array, kind_of(array.dtype), signature)

        budget, tolerance = self.options.memory_budget, self.options.tolerance
        self.ahead = self.ahead or graph_ahead(self.program, self.base.actual, self.feeds, budget)
        self.abreast = both_sides(self.ahead, self.program, store, tolerance, lost, keep_rest=self.in_memory)
        return self.abreast

    def _finish_abreast(self, both: BothSides) -> None:
        done = finished(both)
        self.onnx_signatures.update(done.signatures)
        self.types.update(done.types)
        self.chained.update(done.arrays)
        self.seconds[self.base.name] = self.seconds.get(self.base.name, 0.0) + done.seconds

    def _is_at_hand(self, reference: Reference, match: Match) -> bool:
        """Whether a pair was compared, or can still be."""
        return not reference.activations.is_gone(match.value) or measured(self.abreast, match) is not None

    def _take_early(self, config: str, pairs: Mapping[str, int], matches: Mapping[int, Match]) -> dict[str, int]:
        """Enters what was measured while both sides ran; the pairs that are left."""
        left = {}
        for name, value in pairs.items():
            total = measured(self.abreast, matches[value])
            if total is None:
                left[name] = value
                continue
            self.ledger.enter(config, value, total)
            if config in self.untouched and name in self.chained:
                exposed = self.chained[name]
                if exposed is not None:
                    self._observe(config, self.untouched[config].outputs.get(name), exposed)
        return left

    def _run_torch(
        self,
        config: NumericConfig,
        on_value: Callable[[Value, torch.Tensor], None],
        before: Callable[[Recorder], None] = lambda _: None,
        *,
        tape: bool = False,
        last: bool = False,
    ) -> tuple[TorchRun, dict[str, Any], list[tuple[OutputKey, Array]]]:
        """Runs the model; what was in effect, and the outputs.

        ``last``: nobody runs the model again without having copied these outputs.
        """
        # A model may write into its inputs; every run gets its own.
        args, kwargs = copies_of(self.case.args), copies_of(self.case.kwargs)
        module = self.case.module
        if is_plain(config, self.options):
            every_op, place = self.options.level == "op", self.case.place
            run = TorchRun(module, args, kwargs, on_value, every_op=every_op, tape=tape, place=place)
            before(run.recorder)
            outputs = self._start(run, last=last)
            # The next run begins as this one did, and the file is laid beside the model as it was.
            self.put_back(run.recorder.copy_before_write)
            return run, {"device": "cpu", "threads": torch.get_num_threads()}, outputs
        module, args, kwargs = placed(module, args, kwargs, config)
        require_one_device(module, args, kwargs, config.device)
        layout = layout_in_effect(module, args, kwargs, config)
        with applied(config) as effective:
            every_op = self.options.level == "op"
            run = TorchRun(module, args, kwargs, on_value, every_op=every_op, place=self.case.place)
            before(run.recorder)
            return run, {**effective, **layout}, self._start(run)

    def _start(self, run: TorchRun, *, last: bool = False) -> list[tuple[OutputKey, Array]]:
        """Runs the model; its outputs, which no later run may write to."""
        try:
            output = run.start()
        except BisectError:
            raise
        except (Exception, SystemExit) as error:  # anything may come out of a user's forward
            # What ran may be a copy of the case's model: paths are those of its own modules.
            failure = run.recorder.failure
            raise explain_forward_error(error, run.module, run.args, run.kwargs, failure) from error
        # Buffers are put back as they were, and an output may be one.
        written = own_memory(run.module.buffers()) if last else None
        return [(key, _lasting(tensor, written)) for key, tensor in flatten_tensors(output)]

    def _bind_outputs(self, outputs: Outputs) -> None:
        """Which graph output is which output of the model."""
        self.final.bind(outputs, self.untouched.get(self.base.name))
        if self.ready.bound.orders:
            self.final.put_in_layout(outputs, self.untouched.values())

    def _settle_inputs(self, outputs: Outputs) -> None:
        """Where order alone says which input is which and the outputs disagree, another order is taken if they agree then."""
        untouched = self.untouched.get(self.base.name)
        if untouched is None or self.final.agree(untouched, outputs):
            return
        # Outputs that changed places as well are told; they are no reason for an order where this one explains them.
        ways = [self.final.agree, *([] if self.final.are_there(untouched, outputs) else [self.final.are_there])]
        for is_it, (group, feeds) in itertools.product(ways, list(self.ready.bound.exchanges())):
            try:
                found = Untouched(dict(untouched_run(self.program, self.base.actual).run(feeds)), {})
            except InconclusiveError:
                continue
            if is_it(found, outputs):
                self.feeds = self.onnx.feeds = feeds
                told = [
                    f"ONNX inputs {', '.join(group)} fit equally",
                    *(f"ONNX input {name} was given" for name in group),
                ]
                self.notes[:] = [note for note in self.notes if not any(text in note for text in told)]
                self.notes.append(
                    f"ONNX inputs {', '.join(group)} fit equally; the outputs agree in one order only, which was taken"
                )
                for pair in self.configs:
                    self._run_untouched(pair)
                self._bind_outputs(outputs)
                self.notes[:] = dict.fromkeys(self.notes)
                return

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _compare_with(
        self,
        expected: NumericConfig,
        pairs: Sequence[ConfigPair],
        aligned: _Aligned,
    ) -> None:
        """Compares some pairs with PyTorch under their configuration; what can't run there fails them alone."""
        running = [pair for pair in pairs if pair.name not in self.failed]
        if not running:
            return
        if expected is aligned.reference.config:
            self._compare(aligned.reference, running, aligned)
            return
        try:
            other = self._capture(expected)
            try:
                self._compare(other, running, aligned)
            finally:
                other.activations.close()
        except InconclusiveError as error:
            self.failed.update((pair.name, error.message) for pair in running)

    def _compare(self, run: Reference, configs: Sequence[ConfigPair], aligned: _Aligned) -> None:
        """Compares some pairs with a PyTorch run: the aligned one, or one under another configuration."""
        reference, matches, selection = aligned.reference, aligned.matches, aligned.selection
        # The measurements are kept under the values of the run that was aligned.
        there = same_stages(reference.trace, run.trace) if run is not reference else {value: value for value in matches}
        here = {value: known for known, value in there.items()}
        pairs = {matches[value].onnx: there[value] for value in self._wanted(aligned) if value in there}
        lanes, starts = self._lanes(run, configs, aligned, pairs, there)
        finals = {value: matches[value].onnx for _, value in reference.trace.outputs if value in matches}

        shown = {stage.value for stage in selection.shown}
        done, pairs_in_all = itertools.count(1), sum(len(lane.pairs) for _, lane in lanes)

        def on_pair(lane: str, value: int, expected: Array, chained: Array | None, forced: Array | None) -> None:
            value = here[value]
            self.count(next(done), pairs_in_all)
            wide = expected
            if self.half is not None and value in self.held:
                wide, expected = saturated_fills(wide, self.half), saturated(wide, self.half)
            self.ledger.record(lane, value, wide, chained, forced, expected)
            if forced is not None and value in shown and self.quantised:
                self.ledger.quantised[lane, value] = self._quality(value, expected, forced, matches)
            elif forced is not None and value in shown:
                known = starts[lane].known - {value}
                self.ledger.noise[lane, value] = self._noise(lane, value, known, expected, forced, run, there)
            if value in finals and lane in self.untouched and chained is not None:
                self._observe(lane, self.untouched[lane].outputs.get(finals[value]), chained)

        for pair, lane in lanes:
            if pair.name in self.failed:
                continue
            began = time.perf_counter()
            try:
                lane = self._drive(pair, lane, run, on_pair)
            except InconclusiveError as error:
                if pair is self.base:
                    raise
                self.failed[pair.name] = error.message
                continue
            self._spend(pair.name, began)
            if lane.name in self.ledger.chained_lanes:
                self._note_missing(lane.name, {name: here[value] for name, value in pairs.items()})

    def _drive(self, pair: ConfigPair, lane: Lane, run: Reference, on_pair: OnPair) -> Lane:
        """Runs a lane, without its forced run where PyTorch's values do not go into the graph; the lane that ran."""
        try:
            self.onnx.drive([lane], run.activations, on_pair)
            return lane
        except InconclusiveError as error:
            if not lane.run.is_forced:
                raise
            note = f"{lane.name}: no local errors, as the graph does not run on PyTorch's values: {error.message}"
        run.activations.retain(())
        if lane.name in self.ledger.chained_lanes:
            plain = self.onnx.lane(pair.actual, lane.name, lane.pairs, lane.permutations, None, reuse=pair is self.base)
            self.onnx.drive([plain], run.activations, on_pair)
            self.forced.discard(pair.name)
            self.not_forced.add(pair.name)
            lane = plain
        self.notes.append(note)
        return lane

    def _wanted(self, aligned: _Aligned) -> set[int]:
        """Values that are compared: of stages that are shown, of what the judged ones are made from, and outputs."""
        trace, matches, selection = aligned.reference.trace, aligned.matches, aligned.selection
        wanted = {stage.value for stage in selection.shown if stage.value in matches}
        wanted |= ancestors([*selection.judged, *selection.groups], trace, matches.keys())
        return wanted | {value for _, value in trace.outputs if value in matches}

    def _lanes(
        self,
        run: Reference,
        configs: Sequence[ConfigPair],
        aligned: _Aligned,
        pairs: Mapping[str, int],
        there: Mapping[int, int],
    ) -> tuple[list[tuple[ConfigPair, Lane]], dict[str, Cut]]:
        """The runs of the graph to make, and where those begin that are forced, by the lane's name.

        ``pairs``: the run's value by the graph's name. ``there``: the run's value by that of the aligned run.
        """
        cuts, matches = aligned.cuts, aligned.matches
        if run is not aligned.reference:
            # Another kernel of attention runs other operations: what this run does not have can't be handed over.
            cuts = {layer: within(cut, there, matches) for layer, cut in cuts.items()}
        orders = permutations(matches)
        lanes: list[tuple[ConfigPair, Lane]] = []
        starts: dict[str, Cut] = {}
        for pair in configs:
            self.torch_outputs[pair.name] = run.outputs
            self.effective[pair.name] = {"expected": run.effective}
            reuse = pair is self.base
            left = self._take_early(pair.name, pairs, matches) if reuse and self.abreast is not None else pairs
            if not left:
                continue
            unfused = pair.name in self.forced or pair.actual.optimization == "off"
            if not self.in_memory and not unfused and not self._fails_untouched(pair, run):
                # Its verdict rests on the untouched graph; inner values would only cost memory that was not allowed.
                self.notes.append(f"{pair.name}: stages are not compared within this memory budget, only final outputs")
                continue
            forced = pair.name in self.forced
            names = cuts[MAIN_LAYER].names if forced and MAIN_LAYER in cuts else None
            lanes.append((pair, self.onnx.lane(pair.actual, pair.name, left, orders, names, reuse=reuse)))
            if names is not None:
                starts[pair.name] = cuts[MAIN_LAYER]
            for layer, cut in cuts.items() if forced else ():
                if layer != MAIN_LAYER:
                    inner = {matches[value].onnx: there[value] for value in cut.values if value in there}
                    name = lane_name(pair.name, layer)
                    starts[name] = cut
                    lanes.append((pair, self.onnx.lane(pair.actual, name, inner, orders, cut.names, reuse=reuse)))
        return lanes, starts

    def _noise(
        self,
        lane: str,
        value: int,
        known: Set[int],
        expected: Array,
        forced: Array,
        run: Reference,
        there: Mapping[int, int],
    ) -> Noise:
        """How far both sides of a stage lie from float64, if its local error does not settle it."""
        reference = self.reference
        assert reference is not None

        def fetch(wanted: int) -> torch.Tensor:
            # What a run starts with is the same in every run, and held by the taped one.
            starts = reference.tape.values[wanted].producer < 0
            given = None if starts else there.get(wanted)
            return run.activations.tensor(given) if given is not None else reference.activations.tensor(wanted)

        taped = TapedRun(reference.tape, fetch, self.options.memory_budget, same_run=run is reference)
        local, total = self.ledger.locals[lane, value], self.torch_signatures[value].total
        held = self.half if value in self.held else None
        began = time.perf_counter()
        noise = noise_of(taped, value, known, expected, forced, local, total, held)
        self.floor_seconds += time.perf_counter() - began
        return noise

    def _with_nodes(self, row: StageRow) -> StageRow:
        ops, weights = self.program.reads(row.onnx_nodes)
        return replace(row, onnx_ops=ops, onnx_weights=weights)

    def _judge(self, rows: list[StageRow], outputs: Set[StageRef]) -> list[StageRow]:
        """Judges by noise floors, or a quantised graph by SQNR, where they are known and the user set no tolerance."""
        for pair in self.configs:
            baseline = None if pair.name in self.forced else self._baseline(pair)
            if pair.name in self.forced or baseline is not None:
                rows = judge_by_noise(rows, pair.name, self.options.tolerance, baseline)
            rows = judge_quantised(rows, pair.name, self.options.tolerance, outputs)
            if self.options.table is not None:
                rows = judge_rows(rows, pair.name, self.options.table, baseline)
        return rows

    def _lacks_baseline(self) -> bool:
        """Whether the outputs of an optimised pair are over the default limit, and no pair tells what rounding does."""
        if self.options.tolerance.source != "default" or not self.options.forced or not self.in_memory:
            return False
        if self.base.name in self.not_forced:
            return False
        for pair in self.configs:
            untouched, outputs = self.untouched.get(pair.name), self.torch_outputs.get(pair.name)
            if (
                pair.name in self.failed
                or untouched is None
                or outputs is None
                or not is_plain(pair.expected, self.options)
            ):
                continue
            if self._baseline(pair) is None and self.final.fail(untouched, outputs):
                return True
        return False

    def _baseline(self, pair: ConfigPair) -> str | None:
        """The pair with local errors whose PyTorch side is the same."""
        for other in [*self.configs, self.base]:
            if other.name in self.forced and other.name not in self.failed:
                same = is_plain(other.expected, self.options) and is_plain(pair.expected, self.options)
                if same or other.expected == pair.expected:
                    return other.name
        return None

    def _fails_untouched(self, pair: ConfigPair, reference: Reference) -> bool:
        untouched = self.untouched.get(pair.name)
        if untouched is None:
            return True
        return self.final.fail(untouched, reference.outputs)

    def _observe(self, config: str, untouched: Array | None, exposed: Array) -> None:
        """Exposing values may stop fusions: how far the exposed run's final outputs lie from the untouched run's."""
        if untouched is not None and untouched.size == exposed.size:
            effect = relative_difference(untouched, exposed.reshape(untouched.shape))
            self.observer[config] = max(self.observer.get(config, 0.0), effect)

    def _note_missing(self, config: str, pairs: Mapping[str, int]) -> None:
        for name, value in pairs.items():
            if (config, value) not in self.ledger.totals:
                self.notes.append(f"{config}: ONNX Runtime returned nothing for {name}; it is not compared there")

    # -- the report's parts -------------------------------------------------------------------------------------------

    def _config_run(self, pair: ConfigPair, rows: Sequence[StageRow]) -> ConfigRun:
        untouched = self.untouched.get(pair.name)
        expected = self.torch_outputs.get(pair.name)
        outputs = self.final.results(untouched, expected) if untouched and expected is not None else ()
        outputs = self._judge_outputs(pair, outputs, rows)
        status: ConfigStatus
        failing = any(result.judgement == "fail" for result in outputs)
        if pair.actual.optimization == "off" or not outputs:
            # Nothing is fused here, so that exposing changes nothing, and inner stages count too.
            judged = [row.results[pair.name] for row in rows if row.role != "group" and pair.name in row.results]
            failing = failing or any(result.judgement == "fail" for result in judged)
        reason = self.failed.get(pair.name)
        if reason is None and not failing:
            # That it agrees says nothing about the device that was asked for.
            reason = self.misplaced.get(pair.name)
        status = "failed" if reason is not None else "diverges" if failing else "agrees"
        effect = self.observer.get(pair.name)
        if status == "diverges" and is_perturbed(outputs, rows, pair.name, effect):
            status = "perturbed"
            reason = (
                f"its outputs are right as long as no inner value is asked for; asking moves them by {effect:.1e}, and "
                "no stage makes error on PyTorch's inputs"
            )
        return ConfigRun(
            name=pair.name,
            expected=pair.expected,
            actual=pair.actual,
            effective={
                **self.effective.get(pair.name, {}),
                "actual": dict(untouched.effective) if untouched else {},
            },
            gating=pair.gating,
            status=status,
            observer_effect=effect,
            outputs=outputs,
            seconds=self.seconds.get(pair.name, 0.0),
            peak_rss_mb=peak_rss_mb(),
            skipped_reason=reason,
        )

    def _judge_outputs(
        self, pair: ConfigPair, outputs: tuple[OutputResult, ...], rows: Sequence[StageRow]
    ) -> tuple[OutputResult, ...]:
        """Without the user's tolerance an output that rounding explains passes; calibrated limits decide over both."""
        baseline = pair.name if pair.name in self.forced else self._baseline(pair)
        if self.options.tolerance.source == "default" and baseline is not None:
            outputs = tuple(
                replace(out, judgement="pass")
                if out.judgement == "fail" and is_explained(out.total, rows, out.onnx_value, baseline)
                else out
                for out in outputs
            )
        table = self.options.table
        return outputs if table is None else judge_outputs(outputs, rows, pair.name, table, baseline)

    def _hand_out_outputs(self) -> None:
        """Gives both sides' final outputs to whoever wants them."""
        keep = self.options.keep_outputs
        for pair in self.configs if keep is not None else ():
            untouched, expected = self.untouched.get(pair.name), self.torch_outputs.get(pair.name)
            if keep is None or untouched is None or expected is None:
                continue
            actual: dict[str, Array] = {}
            for (key, _), name in zip(expected, self.final.names, strict=True):
                array = untouched.outputs.get(name) if name is not None else None
                if array is not None:
                    actual[str(key)] = array
            keep(pair.name, {str(key): array for key, array in expected}, actual)


def _lasting(output: torch.Tensor, written: Set[int] | None) -> Array:
    """An output's array; a copy where somebody may write to its memory, for fresh memory for a big one is dear.

    ``written``: from :func:`own_memory`, what is going to be written to; ``None``: anything may be.
    """
    array = to_numpy(output)
    own = own_memory([output])
    return array if written is not None and own and not own & written else array.copy()


@dataclass(frozen=True, slots=True)
class _Aligned:
    """PyTorch's run beside the graph; ``cuts`` say by layer where the graph has to be cut for the stages."""

    reference: Reference
    matches: Mapping[int, Match]
    selection: Selection
    alignment: Alignment
    cuts: Mapping[str, Cut]
