"""The one file that knows the order of things: load, export, capture, align, expose, force, compare, localize."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from numpy.typing import NDArray

from bisect_tool.align import (
    AMBIGUOUS,
    NARROW_VALUE_LIMIT,
    STRUCTURE,
    VALUE_LIMIT,
    Hints,
    Match,
    Sides,
    ambiguity_lines,
    match_values,
    summarize,
    trusted,
)
from bisect_tool.backends.abreast import buffers_put_back
from bisect_tool.backends.activations import ActivationStore, GoneError
from bisect_tool.backends.ahead import Ahead
from bisect_tool.backends.architecture import graph_of
from bisect_tool.backends.before import look_before
from bisect_tool.backends.both_sides import BothSides, both_sides, finished, graph_ahead, has_room, measured
from bisect_tool.backends.branches import exchanged_branches
from bisect_tool.backends.captured import OnValue, Outputs, Reference, output_error, repeats_not, same_stages, within
from bisect_tool.backends.case import LoadedCase, check_forward, check_opset, copies_of, export_case, keep_file
from bisect_tool.backends.compiled import compiled_note, original
from bisect_tool.backends.costs import ort_cost, torch_cost
from bisect_tool.backends.crossings import crossing_of
from bisect_tool.backends.environment_facts import snapshot
from bisect_tool.backends.exporting import ExportSettings
from bisect_tool.backends.facts import fed_inputs, graph_facts
from bisect_tool.backends.floors import TapedRun, noise_of
from bisect_tool.backends.fresh import MOST_EXPORTED, most_alike, outline
from bisect_tool.backends.fresh_weights import compare_beside
from bisect_tool.backends.graph_runs import GraphRuns, permutations
from bisect_tool.backends.inputs import bind_inputs, sample_tensors
from bisect_tool.backends.inside import Opened, Surroundings, look_inside, open_stage
from bisect_tool.backends.lower_precision import reduced
from bisect_tool.backends.memory import freed_memory_is_kept, map_big_blocks, return_free_memory
from bisect_tool.backends.onnx_graph import dtype_name, load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.pairing import check_weights
from bisect_tool.backends.passes import explain_optimised
from bisect_tool.backends.preflight import explain_forward_error, require_one_device
from bisect_tool.backends.replay import CannotReplayError
from bisect_tool.backends.replay_folder import Told, replay_files
from bisect_tool.backends.runners import WholeRun, untouched_run
from bisect_tool.backends.stream import Lane
from bisect_tool.backends.testimony import ask
from bisect_tool.backends.torch_runner import TorchRun, float_dtype_of, nested_note, to_numpy
from bisect_tool.backends.torch_switches import applied, layout_in_effect, placed, require_device
from bisect_tool.backends.trials import find_cause, parameter_names
from bisect_tool.backends.unfold import unfold
from bisect_tool.backends.variants import variants
from bisect_tool.backends.weights import modules_by_weights
from bisect_tool.baked import with_baked
from bisect_tool.bodies import leave_out_bodies, match_bodies
from bisect_tool.calibrated import (
    TableInForce,
    judge_outputs,
    judge_rows,
    refuse_other_stages,
    table_lines,
    with_table,
)
from bisect_tool.compare import MAIN_LAYER, Ledger, lane_name
from bisect_tool.diagnose.causes import BAKED
from bisect_tool.diagnose.costs import with_work
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
    placement,
    runtime_ruled_out,
    with_order,
)
from bisect_tool.diagnose.grown import Crossing, grown
from bisect_tool.diagnose.input_orders import (
    CLEARLY,
    branches_diagnosis,
    order_diagnosis,
    other_orders,
    with_branches,
)
from bisect_tool.diagnose.optimiser import is_optimised, with_finding
from bisect_tool.diagnose.trying import MAX_SECONDS, Outcome
from bisect_tool.diagnose.unexplained import with_what_is_known, without_optimiser_too
from bisect_tool.drilldown import first_mending, note_shared
from bisect_tool.environment import peak_rss_mb
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.in_parts import with_parts
from bisect_tool.inspection import BoundOutput, Inspection, evidence_counts, level_counts
from bisect_tool.judging import growth_lines, is_explained, judge_by_noise
from bisect_tool.layouts import describe_order, in_layout, in_order, layout_of
from bisect_tool.localize import with_shares
from bisect_tool.metrics import judge, kind_of, relative_difference
from bisect_tool.other_sizes import called_so, of_other_size
from bisect_tool.outputs import bind_outputs, exchanged, worst_error
from bisect_tool.pictures import KEPT, with_few
from bisect_tool.placing import is_open, placed_by_structure, with_missing
from bisect_tool.precision import (
    half_precision,
    held_line,
    held_values,
    precision_lines,
    saturated,
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
    Diagnosis,
    ErrorMetrics,
    Finding,
    HandOver,
    Noise,
    NumericConfig,
    Origin,
    OutputKey,
    OutputResult,
    QuantisedStage,
    Report,
    SideCost,
    StageRef,
    StageRow,
    Tolerance,
    TorchTrace,
    Verdict,
)
from bisect_tool.rows import build_rows, first_stage_by_value, output_stages, upstream
from bisect_tool.sample_values import odd_inputs, with_odd_inputs
from bisect_tool.selection import Cut, Selection, ancestors, cut_of, select
from bisect_tool.signatures import Signature, distance, permuted_signatures, signature_of, split_signatures
from bisect_tool.store import REPLAY_FOLDER
from bisect_tool.ticks import tell_count
from bisect_tool.tolerances import sqnr_tolerance
from bisect_tool.twins import merge_twins
from bisect_tool.verdicts import decide, kept_stages_line
from bisect_tool.weights import WeightReport, with_weights

__all__ = ["GraphSource", "LoadedCase", "Options", "bisect", "export_case", "inspect_case", "keep_file"]

Array = NDArray[Any]
Progress = Callable[[str], None]
Runner = Literal["onnxruntime", "onnx-reference"]
Step = Callable[[str, str], AbstractContextManager[None]]
"""``step(name, text)`` times what is done inside, and tells about it."""

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

MAX_TOLD = 5
"""Findings of the preflight that are told while it runs."""

MOST_MISSING = 5
"""Notes on stages that a file leaves out."""

MAX_DETAILED = 12
"""Nodes of an origin whose attributes go into the report."""

_NO_REPEAT = "PyTorch does not repeat itself"

MAX_ALIGNMENT_ROUNDS = 6
"""Forced passes at most while looking for the pairs behind broken stages; each one settles at least one stage."""

MOST_OTHER_SIZES = 4
"""Times that stages are looked for whose value the graph has in another size; each may show what lies behind it."""


class GraphSource(Protocol):
    """Hands out graphs that were exported with this case, or with another one that has inputs of the same form."""

    def path(self, case: LoadedCase, settings: ExportSettings, step: Step) -> Path:
        """The exported file; ``step`` is told when an export is made."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What to do with a case.

    Attributes:
        onnx: a given file; ``None``: export.
        export: how to export.
        keep_onnx: where to leave the exported file.
        overwrite: what is there may be replaced.
        tolerance: in force.
        level: of the stages that are judged.
        stages: globs; the stages that are judged, at any level, instead of a whole level.
        groups: globs; containers that are shown beside them, each as one stage.
        memory_budget: bytes of activations that may be kept at once.
        min_coverage: under this share of aligned outputs nothing is called agreeing.
        forced: make the forced run, which local errors need.
        observe: run the untouched graph too, which the verdict on an optimised configuration needs.
        optimizations: ONNX Runtime's levels to run, both sides on the CPU, when no ``pairs`` are given.
        pairs: configuration pairs to run. Their ``exporter``, ``opset`` and the like say how the given graph was made,
            and ``dtype`` what the given model is in: nothing is exported or converted for them here.
        look: read back what is in effect in ONNX Runtime, its optimised graph too.
        measure: time plain runs of both sides, after everything else.
        threads: of both sides; 0 is each library's default.
        keep_replay: called with the name of an origin's replay folder and its files; ``None``: none are made.
        runner: what computes the graph when no ``pairs`` are given. With ``onnx-reference`` there is one pair: nothing is
            optimised. Stages are aligned with ONNX Runtime all the same.
        graphs: where exported graphs come from that several cases share; ``None``: this case exports its own.
        passes: where an optimised run is wrong and the unoptimised one is not, look for the passes that do it.
        table: calibrated limits, which decide wherever they say something; then ``tolerance`` is the default.
        keep_outputs: called with a configuration and its final outputs on both sides, by their keys as text: PyTorch's,
            and the untouched graph's where it has them.
        explain: look for why something diverges; else the report only says where.
    """

    tolerance: Tolerance
    onnx: Path | None = None
    export: ExportSettings = ExportSettings()
    keep_onnx: Path | None = None
    overwrite: bool = False
    level: str = "leaf"
    stages: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    memory_budget: int = 2 << 30
    min_coverage: float = 0.9
    forced: bool = True
    observe: bool = True
    optimizations: tuple[str, ...] = ("off", "all")
    pairs: tuple[ConfigPair, ...] = ()
    look: bool = False
    measure: bool = False
    threads: int = 0
    keep_replay: Callable[[str, Mapping[str, bytes | str]], None] | None = None
    runner: Runner = "onnxruntime"
    graphs: GraphSource | None = None
    passes: bool = True
    table: TableInForce | None = None
    keep_outputs: Callable[[str, Mapping[str, Array], Mapping[str, Array]], None] | None = None
    explain: bool = True


def bisect(case: LoadedCase, options: Options, progress: Progress = lambda _: None) -> Report:
    """Compares a PyTorch model with its ONNX graph, stage by stage.

    Args:
        case: model and inputs.
        options: what to judge and how.
        progress: called with one line whenever a step begins.

    Raises:
        BisectError: unusable input, a failing export, a graph that does not fit the sample.
        InconclusiveError: nothing could be compared.
    """
    module, compiled, put_back = original(case.module)
    if compiled:
        case = replace(case, module=module, notes=(*case.notes, *compiled_note(compiled)))
        try:
            return bisect(case, options, progress)
        finally:
            put_back()
    steps = _Steps(progress)
    step = steps.step
    with _opened(case, options, steps) as comparison:
        try:
            report = comparison.report(steps.timings)
        finally:
            comparison.release()
        if options.measure:
            with step("measure", "timing plain runs of both sides"):
                report = replace(report, configs=tuple(map(comparison.with_costs, report.configs)))
    folded = any(not stage.in_graph for stage in report.alignment.unaligned)
    # It is made at this level alone: what only a higher one gets wrong is the optimiser's, and no export's.
    level = options.optimizations[0]
    own = any(run.status == "diverges" and run.actual.optimization == level for run in report.configs)
    if options.onnx is None and own and folded and not options.export.keep_stages:
        return _with_kept_stages(report, case, options, progress)
    return report


def inspect_case(case: LoadedCase, options: Options, progress: Progress = lambda _: None) -> Inspection:
    """Aligns a PyTorch model with its ONNX graph, as :func:`bisect` does, and compares nothing.

    Args:
        case: model and inputs.
        options: of them those that say what is loaded, exported and aligned.
        progress: called with one line whenever a step begins.

    Raises:
        BisectError: unusable input, a failing export, a graph that does not fit the sample.
        InconclusiveError: no stage has a value in the graph.
    """
    steps = _Steps(progress)
    with _opened(case, replace(options, optimizations=("off",), pairs=()), steps) as comparison:
        try:
            return comparison.inspection(steps.timings)
        finally:
            comparison.release()


class _Steps:
    """Tells each step as it begins, and how long it took."""

    def __init__(self, progress: Progress):
        self.timings: dict[str, float] = {}
        self._progress = progress

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        self._progress(text)
        began = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - began

    def count(self, done: int, total: int) -> None:
        """How far the step is, for those who want to know; ``total`` is 0 where nobody knows."""
        tell_count(self._progress, done, total)


@contextlib.contextmanager
def _opened(case: LoadedCase, options: Options, steps: _Steps) -> Iterator[_Bisection]:
    """The given graph, or one that is exported and goes when this ends, ready to be aligned."""
    with tempfile.TemporaryDirectory(prefix="bisect-divergence-") as folder:
        path = options.onnx
        if path is None and options.graphs is not None:
            path = options.graphs.path(case, options.export, steps.step)
        if path is None:
            path = Path(folder) / (options.keep_onnx.name if options.keep_onnx else "model.onnx")
            with steps.step("export", f"exporting with the {options.export.exporter} exporter"):
                export_case(case, path, options.export)
                keep_file(path, options.keep_onnx, overwrite=options.overwrite)
        with steps.step("load", "reading the ONNX graph"):
            model = load_onnx(path)
            if options.onnx is None:
                check_opset(model.opset_imports.get(""), options.export)
            program = OnnxProgram(model, path)
        bisection = _Bisection(case, options, program, steps.step)
        bisection.count = steps.count
        yield bisection


def _with_kept_stages(report: Report, case: LoadedCase, options: Options, progress: Progress) -> Report:
    """Adds what an export with all stages kept apart shows: stages that the judged export folded, or that it agrees."""
    progress("exporting once more, with stages kept apart, to localise")
    settings = replace(options.export, keep_stages=True)
    level = options.optimizations[0]
    again = replace(options, export=settings, optimizations=(level,), observe=False, keep_onnx=None, min_coverage=0.0)
    try:
        kept = bisect(case, again, progress)
    except BisectError as error:
        note = f"the export with stages kept apart did not work: {error.message.splitlines()[0]}"
        return replace(report, notes=(*report.notes, note))
    name = "stages kept apart"
    results = {row.ref: row.results[run.name] for run in kept.configs for row in kept.stages if run.name in row.results}
    rows = tuple(
        replace(row, results={**row.results, name: results[row.ref]}) if row.ref in results else row
        for row in report.stages
    )
    run = replace(kept.configs[0], name=name, gating=False)
    verdict = replace(report.verdict, summary=(*report.verdict.summary, kept_stages_line(kept.verdict)))
    return replace(report, stages=rows, configs=(*report.configs, run), verdict=verdict)


class _Bisection:
    """State of one comparison. The methods are in the order in which they run."""

    def __init__(self, case: LoadedCase, options: Options, program: OnnxProgram, step: Any, *, is_fresh: bool = False):
        self.is_fresh = is_fresh
        self.case = case
        self.options = options
        self.program = program
        self.step = step
        self.count: Callable[[int, int], None] = lambda done, total: None
        self.graph = program.graph
        bound = bind_inputs(self.graph, sample_tensors(case.module, case.args, case.kwargs))
        self.bound_inputs = bound
        self.feeds, self.sources = dict(bound.feeds), bound.sources
        self.other_layout = bool(bound.orders)
        self.configs = list(options.pairs) or self._own_pairs()
        self.base = self._base()
        program, unfolded = unfold(program, self.feeds, self.base.actual)
        self.program = program
        program.assume_shapes({name: array.shape for name, array in self.feeds.items()})
        self.graph = program.graph
        # The half precision that the graph is in while PyTorch is not, and the stages that it computes in it.
        autocast = any("autocast" in pair.expected.switches for pair in options.pairs)
        own = None if autocast else float_dtype_of(case.module)
        self.half = half_precision(self.graph, self.graph.dtypes, own)
        self.held: Set[int] = frozenset()
        self.options = options = replace(options, tolerance=tolerance_for(options.tolerance, self.half))
        self.notes = [*case.notes, *bound.notes, *unfolded]
        self.onnx = GraphRuns(program, self.base.actual, self.feeds, options.memory_budget)
        self.in_memory, self.buffers = self.onnx.in_memory, self.onnx.buffers
        self.abreast: BothSides | None = None
        self.ahead: Ahead | None = None
        if not self.in_memory and not self._can_go_abreast():
            map_big_blocks()
        self.reference: Reference | None = None
        self.bound_outputs: list[str | None] = []
        self.exchanged: list[str] = []
        self.failed: dict[str, str] = {}
        self.hint: str | None = None
        self.misplaced: dict[str, str] = {}
        self.torch_signatures: Mapping[int, Signature] = {}
        self.permuted: dict[tuple[int, tuple[int, ...] | None], Mapping[tuple[int, ...], Signature]] = {}
        # What the graph's own run left, under one name for all that follows.
        self.onnx_signatures, self.types, self.chained = self.onnx.signatures, self.onnx.types, self.onnx.arrays
        self.ledger = Ledger(options.tolerance, {pair.name for pair in self.configs})
        # Between fused nodes there is no value to force.
        unfused = {pair.name for pair in self.configs if pair.actual.optimization == "off"}
        self.forced = unfused if options.forced else set()
        self.effective: dict[str, dict[str, Any]] = {}
        self.torch_outputs: dict[str, list[tuple[OutputKey, Array]]] = {}
        self.untouched: dict[str, _Untouched] = {}
        self.observer: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.floor_seconds = 0.0
        self.quantised = False
        self.quantisation: Quantisation | None = None
        self.weights_beside: WeightReport | None = None
        self.missing: Mapping[int, str] = {}
        self.fresh_how = ""

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

    # -- configurations -----------------------------------------------------------------------------------------------

    def _own_pairs(self) -> list[ConfigPair]:
        runner = self.options.runner
        if runner == "onnxruntime":
            return [self._pair(level) for level in self.options.optimizations]
        pair = self._pair("off")
        return [replace(pair, name=runner, actual=replace(pair.actual, backend=runner, threads=0))]

    def _pair(self, optimization: str) -> ConfigPair:
        dtype = float_dtype_of(self.case.module)
        made = self.options.onnx is None
        export = self.options.export
        return ConfigPair(
            name=f"ort-cpu-{optimization}",
            expected=NumericConfig("torch", dtype=dtype, threads=torch.get_num_threads()),
            actual=NumericConfig(
                "onnxruntime",
                dtype=dtype,
                optimization=optimization,
                threads=self.options.threads,
                exporter=export.exporter if made else self.graph.exporter,
                opset=export.opset,
                constant_folding=export.constant_folding if made else None,
            ),
        )

    def _base(self) -> ConfigPair:
        """The pair that serves to align: both sides on the CPU, plain, nothing fused. It need not be one of the report's."""
        plain = self._pair("off")
        for pair in self.configs:
            own = pair.actual.backend == "onnxruntime" and pair.actual.optimization == "off"
            if own and self._is_plain(pair.expected) and self._is_plain(pair.actual):
                return pair
        return replace(plain, name="(alignment)", gating=False)

    def _is_plain(self, config: NumericConfig) -> bool:
        default = self.options.threads if config.backend == "onnxruntime" else torch.get_num_threads()
        return config.device == "cpu" and not config.switches and config.threads in (0, default)

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
            with buffers_put_back(self.case.module) as put_back, freed_memory_is_kept():
                try:
                    return self._aligned_run(abreast=True)
                except GoneError:
                    put_back()
            self.release_run()
            self.notes = notes
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
            fetch, limit = reference.activations.fetch, VALUE_LIMIT if self.half is None else NARROW_VALUE_LIMIT
            alignment = with_parts(alignment, trace, self.onnx_signatures, fetch, limit)
            reference.activations.retain(())
        self.notes += ambiguity_lines(alignment)
        alignment = leave_out_bodies(alignment, reference.stages_in_bodies(), self.program.operators_with_bodies())
        cuts = {layer: cut_of(stages, trace, matches) for layer, stages in selection.layers.items()}
        return _Aligned(reference, matches, selection, alignment, cuts)

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
            inputs=fed_inputs(self.program, self.feeds, self.sources),
            outputs=tuple(BoundOutput(key, name) for key, name in zip(keys, self.bound_outputs, strict=True)),
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

    def report(self, timings: dict[str, float]) -> Report:
        if self._can_go_abreast():
            # Beside the preflight, which keeps one core busy.
            self.ahead = graph_ahead(self.program, self.base.actual, self.feeds, self.options.memory_budget)
        preflight = self._look_before()
        aligned = self._aligned()
        reference, matches, selection, cuts = aligned.reference, aligned.matches, aligned.selection, aligned.cuts
        trace, alignment = reference.trace, aligned.alignment
        with self.step("compare", "comparing stage by stage"):
            for expected, pairs in self._by_expected():
                self._compare_with(expected, pairs, reference, matches, selection, cuts)
            if self._lacks_baseline():
                self.forced.add(self.base.name)
                self.ledger.chained_lanes |= {self.base.name}
                self._compare(reference, [self.base], reference, matches, selection, cuts)
        names = [pair.name for pair in self.configs]
        measured = [*names, self.base.name] if self.base.name in self.forced - set(names) else names
        nodes_between = self.program.nodes_between
        rows = build_rows(trace, selection, matches, cuts, self.ledger, measured, self.forced, nodes_between)
        rows = [self._with_nodes(row) for row in rows]
        table = self.options.table
        if table is not None:
            refuse_other_stages(table, rows, selected=bool(self.options.stages), graph=graph_of(self.program))
        for name in self.forced:
            rows = with_shares(rows, name, output_stages(trace))
        rows = self._judge(rows, output_stages(trace))
        runs = tuple(self._config_run(pair, rows) for pair in self.configs)
        self._hand_out_outputs()
        rows = [
            replace(row, results={name: row.results[name] for name in names if name in row.results}) for row in rows
        ]
        verdict = decide(rows, runs, alignment, self.options.min_coverage, selected=bool(self.options.stages))
        if table is not None:
            told = table_lines(rows, table, verdict.first_over_tolerance)
            verdict = replace(verdict, summary=(*verdict.summary, *told))
        timings["floor"] = self.floor_seconds
        plain = next((name for name in names if name in self.forced and name not in self.failed), None)
        if plain is not None:
            lines = growth_lines(rows, plain, self.options.tolerance)
            verdict = replace(verdict, summary=(*verdict.summary, *lines))
        paired = {value: match.onnx for value, match in matches.items()}
        other_precision = precision_lines(self.graph, self._dtypes(), trace.stages, paired)
        if self.half is not None and self.options.tolerance.source == "default":
            other_precision = (*other_precision, held_line(self.half))
        verdict = replace(verdict, summary=(*verdict.summary, *other_precision))
        if self.quantised:
            verdict = self._with_costs_of_bits(verdict, rows, runs, plain)
        if verdict.origins and self.options.explain:
            with self.step("drill", "looking inside the stages that make error"):
                # A graph in another precision throughout needs no cause for each stage; one cast pair is a cause.
                explain = not self.quantised and (not other_precision or len(verdict.origins) <= FEW_ORIGINS)
                verdict = self._drill(verdict, rows, reference, matches, selection, cuts, explain=explain)
                # No single stage mends a quantised graph: each of them is off.
                verdict = verdict if self.quantised else self._hand_over(verdict, reference, matches)
        if verdict.status == "diverges" and self.options.explain:
            with self.step("weights", "comparing the graph's weights with the model's"):
                weights = check_weights(self.case.module, self.program, rows, self.case.place)
                if self.weights_beside is not None and self.weights_beside.compared > weights.compared:
                    weights = self.weights_beside
                verdict = with_weights(verdict, weights)
            with self.step("repeat", "running PyTorch once more, to see whether it repeats itself"):
                chance_text = self._chance(reference, rows)
            if chance_text is None:
                ruled_out = (*verdict.ruled_out, no_chance())
                verdict = replace(verdict, summary=(*verdict.summary, *self.exchanged), ruled_out=ruled_out)
                verdict = self._with_passes(verdict, rows, runs)
            else:
                # One run against another tells nothing then: neither where error is made, nor that a file is wrong.
                line = f"{_NO_REPEAT}: {chance_text}"
                verdict = Verdict("inconclusive", (line,), None, (), (), diagnoses=(chance(chance_text),))
                # Pairs of a matrix have nothing but their reason; elsewhere the verdict stands below.
                reason = line if self.options.pairs else _NO_REPEAT
                runs = tuple(
                    replace(run, status="failed", skipped_reason=reason) if run.status == "diverges" else run
                    for run in runs
                )
        elif self.options.explain and any(run.status == "failed" for run in runs):
            verdict = self._with_passes(verdict, rows, runs)
        # Only now: what a model keeps from run to run must not look like chance.
        if verdict.status == "diverges" and self.options.explain and not self.quantised:
            verdict = self._explain_whole(verdict, rows, trace, matches, plain)
        verdict = replace(verdict, diagnoses=with_work((*verdict.diagnoses, *placement(self.misplaced))))
        verdict = with_odd_inputs(verdict, preflight)
        # Of a pair of a matrix the whole matrix says more.
        if not self.quantised and not self.options.pairs:
            verdict = with_what_is_known(verdict, rows, runs)
        # A matrix joins the reports of its pairs.
        rows = with_few(rows, verdict, 1 if self.options.pairs else KEPT)
        return Report(
            case={"name": self.case.name, **self.case.description},
            verdict=verdict,
            tolerance=with_table(self.options.tolerance, table),
            alignment=alignment,
            configs=runs,
            stages=tuple(rows),
            environment=snapshot(),
            timings=timings,
            notes=tuple(self.notes),
            preflight=preflight,
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
            self.ledger.tolerance = self.options.tolerance

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
        self.untouched[pair.name] = _Untouched(dict(outputs), run.effective)
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
        try:
            run, effective, outputs = self._run_torch(config, on_value, store.attach, tape=tape)
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
    ) -> tuple[TorchRun, dict[str, Any], list[tuple[OutputKey, Array]]]:
        """Runs the model; what was in effect, and the outputs."""
        # A model may write into its inputs; every run gets its own.
        args, kwargs = copies_of(self.case.args), copies_of(self.case.kwargs)
        module = self.case.module
        if self._is_plain(config):
            every_op, place = self.options.level == "op", self.case.place
            run = TorchRun(module, args, kwargs, on_value, every_op=every_op, tape=tape, place=place)
            before(run.recorder)
            return run, {"device": "cpu", "threads": torch.get_num_threads()}, self._start(run)
        module, args, kwargs = placed(module, args, kwargs, config)
        require_one_device(module, args, kwargs, config.device)
        layout = layout_in_effect(module, args, kwargs, config)
        with applied(config) as effective:
            every_op = self.options.level == "op"
            run = TorchRun(module, args, kwargs, on_value, every_op=every_op, place=self.case.place)
            before(run.recorder)
            return run, {**effective, **layout}, self._start(run)

    def _start(self, run: TorchRun) -> list[tuple[OutputKey, Array]]:
        """Runs the model; its outputs."""
        try:
            output = run.start()
        except BisectError:
            raise
        except Exception as error:  # anything may come out of a user's forward
            # What ran may be a copy of the case's model: paths are those of its own modules.
            failure = run.recorder.failure
            raise explain_forward_error(error, run.module, run.args, run.kwargs, failure) from error
        return [(key, to_numpy(tensor).copy()) for key, tensor in flatten_tensors(output)]

    def _bind_outputs(self, outputs: Sequence[tuple[OutputKey, Array]]) -> None:
        """Which graph output is which output of the model. None: the graph has no such output."""
        self._name_outputs(outputs)
        if not self.other_layout:
            return
        # A graph whose inputs are in another layout has its outputs in it too.
        for (key, array), name in zip(outputs, self.bound_outputs, strict=True):
            given = [run.outputs.get(name) for run in self.untouched.values()] if name else []
            shown = next((found for found in given if found is not None), None)
            order = None if shown is None else layout_of(array, shown)
            if name is not None and shown is not None and order is not None:
                self.notes.append(
                    f"the graph's output {name} {list(shown.shape)} was compared with {key} {list(array.shape)}, "
                    f"its axes in the order {describe_order(order)}"
                )
                for run in self.untouched.values():
                    run.outputs[name] = in_layout(run.outputs[name], array.shape, order)

    def _settle_inputs(self, outputs: Sequence[tuple[OutputKey, Array]]) -> None:
        """Where order alone says which input is which and the outputs disagree, another order is taken if they agree then."""
        untouched = self.untouched.get(self.base.name)
        if untouched is None or all(out.judgement == "pass" for out in self._output_results(untouched, outputs)):
            return
        for group, feeds in self.bound_inputs.exchanges():
            try:
                found = _Untouched(dict(untouched_run(self.program, self.base.actual).run(feeds)), {})
            except InconclusiveError:
                continue
            if all(out.judgement == "pass" for out in self._output_results(found, outputs)):
                self.feeds = self.onnx.feeds = feeds
                self.notes = [
                    note for note in self.notes if not any(f"ONNX input {name} was given" in note for name in group)
                ]
                self.notes.append(
                    f"ONNX inputs {', '.join(group)} fit equally; the outputs agree in one order only, which was taken"
                )
                for pair in self.configs:
                    self._run_untouched(pair)
                self._bind_outputs(outputs)
                self.notes = list(dict.fromkeys(self.notes))
                return

    def _name_outputs(self, outputs: Sequence[tuple[OutputKey, Array]]) -> None:
        names = list(self.graph.outputs)
        keys = [key for key, _ in outputs]
        if len(names) != len(keys):
            self.bound_outputs = [str(key) if str(key) in names else None for key in keys]
            if not any(self.bound_outputs):
                self.bound_outputs = [*names[: len(keys)], *([None] * (len(keys) - len(names)))]
            self.notes.append(f"the model has {len(keys)} outputs and the graph {len(names)}")
            return
        untouched = self.untouched.get(self.base.name)

        def agrees(place: int, name: str) -> bool:
            if untouched is None:
                return names[place] == name
            array = untouched.outputs.get(name)
            return judge(outputs[place][1], array, self.options.tolerance)[1] == "pass"

        bound = bind_outputs(keys, names, agrees)
        self.bound_outputs = list(bound.names)
        if bound.by == "value":
            self.notes.append("the graph has the outputs of the model's dictionary in another order; found by value")
        else:
            self.exchanged = [
                f"the graph's output {bound.names[place]} stands for {keys[place]} and holds the value of {keys[other]}: "
                "are outputs exchanged?"
                for place, other in exchanged(bound.names, agrees).items()
            ]

    # -- aligning -----------------------------------------------------------------------------------------------------

    def _align(self, reference: Reference) -> dict[int, Match]:
        trace = reference.trace
        self.torch_signatures = reference.signatures

        def permuted(value: int, shape: tuple[int, ...] | None) -> Mapping[tuple[int, ...], Signature]:
            if (value, shape) not in self.permuted:
                array = reference.activations.fetch(value)
                kind, known = kind_of(array.dtype), self.torch_signatures.get(value)
                self.permuted[value, shape] = (
                    permuted_signatures(array, kind, known)
                    if shape is None
                    else split_signatures(array, kind, shape, known)
                )
                reference.activations.retain(())
            return self.permuted[value, shape]

        if self.abreast is None:
            began = time.perf_counter()
            self.onnx.see_all()
            self._spend(self.base.name, began)
        staged = {stage.value for stage in trace.stages}

        def with_bodies(matches: Mapping[int, Match]) -> dict[int, Match]:
            return match_bodies(matches, self.program.bodies(), reference.tape.bodies, staged)

        sides = Sides(trace, self.graph, self.torch_signatures, self.onnx_signatures, permuted)
        matches = match_values(sides)
        # Beyond the memory budget one more run of both sides is dear.
        if self.in_memory and any(AMBIGUOUS in match.evidence for match in matches.values()):
            second = self.onnx.second_draw(self.case, trace, every_op=self.options.level == "op")
            if second is not None:
                matches = match_values(sides, Hints(second=second))
        modules: Mapping[str, str] = {}
        if self._is_nameless() and not all(match.confirmed for match in matches.values()):
            modules = modules_by_weights(self.case.module, self.program)
            sure = {value: match for value, match in matches.items() if match.confirmed}
            matches = match_values(sides, Hints(sure, modules=modules))
        matches = with_bodies(matches)

        first = matches
        matches = self._settled(reference, sides, first, with_bodies, Hints(modules=modules))
        placed = self._placed(reference, matches)
        if placed:
            # What was fed at a wrong place has told nothing.
            known = {value: match for value, match in {**first, **placed}.items() if match.confirmed}
            hints = Hints(known, modules=modules, placed=placed)
            matches = with_bodies(match_values(sides, hints))
            matches = self._settled(reference, sides, matches, with_bodies, hints)
            told = sum(STRUCTURE in match.evidence for match in matches.values())
            self.notes.append(
                f"{told} stage{'' if told == 1 else 's'} found by structure: the model was exported once more "
                f"({self.fresh_how}) and laid beside the ONNX file"
            )
        matches = self._with_other_sizes(reference, sides, matches, with_bodies, Hints(modules=modules, placed=placed))
        if not matches:
            raise InconclusiveError(
                "no PyTorch stage could be matched with a value of the ONNX graph: nothing to compare",
                hint="is this the ONNX file of this model?",
            )
        return matches

    def _settled(
        self,
        reference: Reference,
        sides: Sides,
        matches: dict[int, Match],
        with_bodies: Callable[[Mapping[int, Match]], dict[int, Match]],
        hints: Hints,
    ) -> dict[int, Match]:
        """The pairs after runs in which each stage works on PyTorch's values, until no pair changes."""
        fed: Mapping[int, Match] = {}
        same = False
        for _ in range(MAX_ALIGNMENT_ROUNDS):
            if all(match.confirmed for match in matches.values()) or (same and len(fed) == len(matches)):
                break
            fed = matches if same else trusted(reference.trace, matches)
            signatures = self._probe_forced(reference, fed)
            confirmed = {value: match for value, match in matches.items() if match.confirmed}
            # A stage that was broken keeps its pair by name; what is behind it is looked at anew.
            merged = {**sides.onnx, **signatures}
            now = replace(hints, known=confirmed, fed=fed, chained=sides.onnx)
            again = with_bodies(match_values(replace(sides, onnx=merged), now))
            same = {v: m.onnx for v, m in again.items()} == {v: m.onnx for v, m in matches.items()}
            matches = again
        return matches

    def _with_other_sizes(
        self,
        reference: Reference,
        sides: Sides,
        matches: dict[int, Match],
        with_bodies: Callable[[Mapping[int, Match]], dict[int, Match]],
        hints: Hints,
    ) -> dict[int, Match]:
        """The pairs with stages whose value the graph has in another size, where the final outputs are wrong."""
        trace, ops = reference.trace, reference.tape.ops
        operations = {value: (op.name, number) for op in ops for number, value in enumerate(op.outputs)}
        known: dict[int, Match] = {}
        asked = self.options.forced and not self.is_fresh and self._outputs_are_off(trace)
        for _ in range(MOST_OTHER_SIZES if asked else 0):
            signatures = {**self.onnx_signatures, **(self._probe_forced(reference, matches) if known else {})}
            others = of_other_size(trace, self.graph, matches, signatures, operations)
            if not others:
                break
            known |= others
            both = replace(hints, placed={**hints.placed, **known})
            matches = self._settled(reference, sides, {**matches, **others}, with_bodies, both)
        return called_so(matches, known)

    def _outputs_are_off(self, trace: TorchTrace) -> bool:
        for (_, value), name in zip(trace.outputs, self.bound_outputs, strict=True):
            expected, actual = self.torch_signatures.get(value), self.onnx_signatures.get(name or "")
            if expected is not None and actual is not None and distance(expected, actual) > VALUE_LIMIT:
                return True
        return False

    def _placed(self, reference: Reference, matches: Mapping[int, Match]) -> dict[int, Match]:
        """Pairs by structure, from an export that is made for it, where values and names leave a file's stages open."""
        nameless = self._is_nameless()
        nodes_between = self.program.nodes_between
        if self.options.onnx is None or not self.in_memory or self.is_fresh:
            return {}
        if not is_open(reference.trace, matches, nodes_between, nameless=nameless):
            return {}
        if self.program.weight_bytes() > MOST_EXPORTED:
            self.notes.append("too many weights to export the model once more, and so to tell stages by structure")
            return {}
        with (
            tempfile.TemporaryDirectory(prefix="bisect-divergence-") as folder,
            self.step("structure", "exporting the model once more, to find stages by structure"),
        ):
            copies = copies_of(self.case.args), copies_of(self.case.kwargs)
            fresh = most_alike(self.case.module, *copies, self.program, Path(folder))
            if fresh is None:
                self.notes.append("stages could not be told by structure: no fresh export is like the ONNX file")
                return {}
            try:
                beside = _Bisection(self.case, self.options, fresh.program, self.step, is_fresh=True)
                own = beside._align(reference)
            except (BisectError, InconclusiveError):
                return {}
            if nameless:
                self.weights_beside = compare_beside(self.case.module, beside.program, self.program)
            given = outline(self.program, self.onnx_signatures.get)
            there = {source: name for name, source in self.sources.items()}
            inputs = {name: there[source] for name, source in beside.sources.items() if source in there}

            def agrees(value: int, name: str) -> bool:
                first, second = self.torch_signatures.get(value), self.onnx_signatures.get(name)
                return first is not None and second is not None and distance(first, second) <= VALUE_LIMIT

            found, self.missing = placed_by_structure(
                outline(beside.program, beside.onnx_signatures.get),
                given,
                own,
                matches,
                inputs,
                agrees,
                narrow=self.half is not None,
            )
        first = first_stage_by_value(reference.trace)
        self.notes += [f"{first[value].ref}: {text}" for value, text in list(self.missing.items())[:MOST_MISSING]]
        self.fresh_how = fresh.how
        return found

    def _is_nameless(self) -> bool:
        """Whether most nodes that read weights carry no name of a module."""
        weights = self.program.floating_weights().keys()
        reading = [node for node in self.graph.nodes if not weights.isdisjoint(node.inputs)]
        return 2 * sum(bool(node.scopes) or node.call is not None for node in reading) < len(reading)

    def _probe_forced(self, reference: Reference, matches: Mapping[int, Match]) -> dict[str, Signature]:
        """Signatures again, with PyTorch's values fed in at every pair: each value from its true inputs."""
        return self.onnx.forced_signatures(reference.activations, matches)

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _by_expected(self) -> list[tuple[NumericConfig, list[ConfigPair]]]:
        """Pairs that can be compared with one and the same PyTorch run, the one that served to align first."""
        groups: list[tuple[NumericConfig, list[ConfigPair]]] = [(self.base.expected, [])]
        for pair in self.configs:
            for expected, pairs in groups:
                if expected == pair.expected or (self._is_plain(expected) and self._is_plain(pair.expected)):
                    pairs.append(pair)
                    break
            else:
                groups.append((pair.expected, [pair]))
        return groups

    def _compare_with(
        self,
        expected: NumericConfig,
        pairs: Sequence[ConfigPair],
        reference: Reference,
        matches: Mapping[int, Match],
        selection: Selection,
        cuts: Mapping[str, Cut],
    ) -> None:
        """Compares some pairs with PyTorch under their configuration; what can't run there fails them alone."""
        running = [pair for pair in pairs if pair.name not in self.failed]
        if not running:
            return
        if expected is reference.config:
            self._compare(reference, running, reference, matches, selection, cuts)
            return
        try:
            other = self._capture(expected)
            try:
                self._compare(other, running, reference, matches, selection, cuts)
            finally:
                other.activations.close()
        except InconclusiveError as error:
            self.failed.update((pair.name, error.message) for pair in running)

    def _compare(
        self,
        run: Reference,
        configs: Sequence[ConfigPair],
        reference: Reference,
        matches: Mapping[int, Match],
        selection: Selection,
        cuts: Mapping[str, Cut],
    ) -> None:
        trace = reference.trace
        wanted = {stage.value for stage in selection.shown if stage.value in matches}
        wanted |= ancestors([*selection.judged, *selection.groups], trace, matches.keys())
        wanted |= {value for _, value in trace.outputs if value in matches}
        # The measurements are kept under the values of the run that was aligned.
        there = same_stages(trace, run.trace) if run is not reference else {value: value for value in matches}
        here = {value: known for known, value in there.items()}
        if run is not reference:
            # Another kernel of attention runs other operations: what this run does not have can't be handed over.
            cuts = {layer: within(cut, there, matches) for layer, cut in cuts.items()}
        pairs = {matches[value].onnx: there[value] for value in wanted if value in there}
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
            if not self.in_memory and pair.name not in self.forced and not self._fails_untouched(pair, run):
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
        finals = {value: matches[value].onnx for _, value in trace.outputs if value in matches}

        shown = {stage.value for stage in selection.shown}
        done, pairs_in_all = itertools.count(1), sum(len(lane.pairs) for _, lane in lanes)

        def on_pair(lane: str, value: int, expected: Array, chained: Array | None, forced: Array | None) -> None:
            value = here[value]
            self.count(next(done), pairs_in_all)
            if self.half is not None and value in self.held:
                expected = saturated(expected, self.half)
            self.ledger.record(lane, value, expected, chained, forced)
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
                self.onnx.drive([lane], run.activations, on_pair)
            except InconclusiveError as error:
                if pair is self.base:
                    raise
                self.failed[pair.name] = error.message
                continue
            self._spend(pair.name, began)
            if lane.name in self.ledger.chained_lanes:
                self._note_missing(lane.name, {name: here[value] for name, value in pairs.items()})

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
        for pair in self.configs:
            untouched, outputs = self.untouched.get(pair.name), self.torch_outputs.get(pair.name)
            if pair.name in self.failed or untouched is None or outputs is None or not self._is_plain(pair.expected):
                continue
            results = self._output_results(untouched, outputs)
            if self._baseline(pair) is None and any(out.judgement == "fail" for out in results):
                return True
        return False

    def _baseline(self, pair: ConfigPair) -> str | None:
        """The pair with local errors whose PyTorch side is the same."""
        for other in [*self.configs, self.base]:
            if other.name in self.forced and other.name not in self.failed:
                same = self._is_plain(other.expected) and self._is_plain(pair.expected)
                if same or other.expected == pair.expected:
                    return other.name
        return None

    def _fails_untouched(self, pair: ConfigPair, reference: Reference) -> bool:
        untouched = self.untouched.get(pair.name)
        if untouched is None:
            return True
        return any(out.judgement == "fail" for out in self._output_results(untouched, reference.outputs))

    def _observe(self, config: str, untouched: Array | None, exposed: Array) -> None:
        """Exposing values may stop fusions: how far the exposed run's final outputs lie from the untouched run's."""
        if untouched is not None and untouched.size == exposed.size:
            effect = relative_difference(untouched, exposed.reshape(untouched.shape))
            self.observer[config] = max(self.observer.get(config, 0.0), effect)

    def _note_missing(self, config: str, pairs: Mapping[str, int]) -> None:
        for name, value in pairs.items():
            if (config, value) not in self.ledger.totals:
                self.notes.append(f"{config}: ONNX Runtime returned nothing for {name}; it is not compared there")

    # -- inside origins -----------------------------------------------------------------------------------------------

    def _drill(
        self,
        verdict: Verdict,
        rows: Sequence[StageRow],
        reference: Reference,
        matches: Mapping[int, Match],
        selection: Selection,
        cuts: Mapping[str, Cut],
        *,
        explain: bool,
    ) -> Verdict:
        """Names the fewest nodes of each origin that certainly hold its fault, and looks for the cause.

        ``explain``: no cause is looked for where the whole graph is in another precision: that is the cause.
        """
        layers = {stage.ref: cuts.get(name) for name, stages in selection.layers.items() for stage in stages}
        shown = {stage.ref: stage for stage in selection.shown}
        pairs = {pair.name: pair for pair in self.configs}
        floors = {(row.ref, name): result.floor for row in rows for name, result in row.results.items()}
        locals_ = {(row.ref, name): result.local for row in rows for name, result in row.results.items()}
        around = Surroundings(
            self.program,
            reference.tape,
            reference.activations,
            matches,
            self.types,
            self.feeds,
            self.options.memory_budget,
            self.bound_inputs.rounded,
        )
        origins = []
        outcomes: dict[tuple[StageRef, str], Outcome] = {}
        of_torch: tuple[Diagnosis, ...] = ()
        names = parameter_names(self.case.module)
        ends = time.perf_counter() + EXPLAIN_SECONDS
        for number, origin in enumerate(verdict.origins):
            stage, pair = shown[origin.ref], pairs[origin.config]
            cut = layers.get(origin.ref) or cuts.get(MAIN_LAYER)
            # Inner values of a quantised stage are off as well: what its own numbers tell was told.
            exact = not self.quantised
            if (
                exact
                and origin.side != "expected"
                and self._is_plain(pair.expected)
                and cut is not None
                and number < MAX_DRILLED
            ):
                floor = floors.get((origin.ref, origin.config))
                whole = origin
                # The stage's own nodes stay named where nothing can be shown; that is certain too.
                with contextlib.suppress(CannotReplayError, InconclusiveError):
                    opened = open_stage(around, origin, stage, cut.known, floor)
                    whole = origin
                    origin = look_inside(around, opened, whole, stage, pair.actual)
                    origin = replace(origin, witness=ask(around, origin, opened, stage, pair.actual))
                    left = ends - time.perf_counter()
                    if explain and left > 0 and len(outcomes) < MAX_EXPLAINED:
                        seconds = min(left, MAX_SECONDS)
                        cause = find_cause(around, opened, stage, origin.onnx_nodes, names, pair.actual, seconds)
                        outcomes[origin.ref, origin.config] = cause
                    tried = outcomes.get((origin.ref, origin.config))
                    why = None if tried is None else diagnosis_of(origin, tried)
                    told = Told(why, locals_.get((origin.ref, origin.config)))
                    origin = self._with_replay(around, opened, origin, pair, number, told)
            elif explain and exact and cut is not None and number < MAX_EXPLAINED and self._is_plain(pair.expected):
                fetch, off = reference.activations.tensor, reference.activations.fetch(stage.value)
                clue = reduced(reference.tape, stage.value, cut.known - {stage.value}, fetch, off, "expected")
                of_torch += () if clue is None else (by_clue(origin, clue),)
                reference.activations.retain(())
            ops, weights = self.program.reads(origin.onnx_nodes)
            details = self.program.details(origin.onnx_nodes[:MAX_DETAILED])
            origins.append(replace(origin, onnx_ops=ops, onnx_weights=weights, onnx_details=details))
        return replace(
            verdict,
            origins=note_shared(origins),
            diagnoses=(*verdict.diagnoses, *diagnoses(origins, outcomes), *of_torch),
            ledger=ledger(origins, outcomes),
        )

    def _with_passes(self, verdict: Verdict, rows: Sequence[StageRow], runs: Sequence[ConfigRun]) -> Verdict:
        """The verdict with what the optimiser does wrong, where the unoptimised graph is right.

        Configurations that count go first, and one is enough: what is wrong at one level is at the next.
        """
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
            if expected is None and self._is_plain(pair.expected) and self.reference is not None:
                expected = self.reference.outputs  # it failed before anything was compared
            if run.status not in ("diverges", "failed") or not is_optimised(pair) or expected is None:
                continue
            judge = functools.partial(self._judge_run, pair, expected, rows)
            with contextlib.suppress(InconclusiveError), self.step("passes", "trying the optimiser's passes"):
                if judge(dict(untouched_run(self.program, plain).run(self.feeds)))[1]:
                    found = explain_optimised(self.program, pair, plain, self.feeds, judge, rows, rows[-1].ref)
                    return verdict if found is None else with_finding(verdict, found)
                if run.status == "diverges":
                    return replace(verdict, ruled_out=(*verdict.ruled_out, without_optimiser_too(pair.name)))
        return verdict

    def _judge_run(
        self,
        pair: ConfigPair,
        expected: Sequence[tuple[OutputKey, Array]],
        rows: Sequence[StageRow],
        outputs: dict[str, Array | None],
    ) -> tuple[float | None, bool]:
        """Error of the worst final output of an untouched graph, and whether all of them pass."""
        results = self._judge_outputs(pair, self._output_results(_Untouched(outputs, {}), expected), rows)
        return worst_error(results), bool(results) and all(out.judgement != "fail" for out in results)

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

    def _hand_over(self, verdict: Verdict, reference: Reference, matches: Mapping[int, Match]) -> Verdict:
        """Looks for the first stage at which handing PyTorch's values over mends the outputs, on the plain configuration."""
        pair = self.base
        finals = {matches[value].onnx: value for _, value in reference.trace.outputs if value in matches}
        if pair.name not in self.forced or pair.name not in self.untouched or not finals:
            return verdict
        first = first_stage_by_value(reference.trace)
        used = upstream(reference.trace, ())
        places = sorted((v for v in matches if v in used and v in first), key=lambda v: first[v].order)

        def error_of(place: int) -> float:
            names = {matches[value].onnx: value for value in places[: place + 1]}
            segments = self.onnx.segments(names)
            run = self.onnx.segmented(pair.actual, segments, set(finals), set(names), {})
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
            self.onnx.drive([lane], reference.activations, lambda *_: None)
            return worst

        found = first_mending(len(places), error_of)
        if found is None:
            return verdict
        place, before, after = found
        return replace(verdict, hand_over=HandOver(first[places[place]].ref, pair.name, before, after))

    def _explain_whole(
        self,
        verdict: Verdict,
        rows: Sequence[StageRow],
        trace: TorchTrace,
        matches: Mapping[int, Match],
        plain: str | None,
    ) -> Verdict:
        """What no single stage's nodes tell: inputs in another order, what tracing baked in, rounding that grew."""
        found = list(verdict.diagnoses)
        reference = self.reference
        if plain is not None and not verdict.origins and reference is not None:
            names = {value: match.onnx for value, match in matches.items() if match.permutation is None}
            stages = {stage.ref: stage for stage in trace.stages}

            def crossing(row: StageRow) -> Crossing | None:
                return crossing_of(stages[row.ref], reference.tape, reference.activations, names, self.chained)

            found += grown(rows, plain, crossing)
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
        before = worst_error(self._output_results(self.untouched[pair.name], outputs))
        if before is None:
            return None, 0
        run = untouched_run(self.program, pair.actual)
        tried = 0
        for order in other_orders(self.feeds):
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
        before = worst_error(self._output_results(self.untouched[pair.name], outputs))
        for name, graph in exchanged_branches(self.program, pair.actual) if before is not None else ():
            with contextlib.suppress(InconclusiveError):
                made = graph.run(graph.output_names, self.feeds)
                error = self._mended(dict(zip(graph.output_names, made, strict=True)), outputs, before or 0.0)
                if error is not None:
                    return branches_diagnosis(name, before or 0.0, error, pair.name)
        return None

    def _mended(
        self, made: dict[str, Array | None], outputs: Sequence[tuple[OutputKey, Array]], before: float
    ) -> float | None:
        """The error of the worst output where all of them agree now, and clearly: ``None`` otherwise."""
        results = self._output_results(_Untouched(made, {}), outputs)
        # Outputs that hardly differed as they were say nothing for a change under which they hardly differ either.
        error = worst_error(results)
        clear = error is not None and error * CLEARLY <= before
        return error if clear and all(out.judgement == "pass" for out in results) else None

    # -- the report's parts -------------------------------------------------------------------------------------------

    def _config_run(self, pair: ConfigPair, rows: Sequence[StageRow]) -> ConfigRun:
        untouched = self.untouched.get(pair.name)
        expected = self.torch_outputs.get(pair.name)
        outputs = self._output_results(untouched, expected) if untouched and expected is not None else ()
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
            observer_effect=self.observer.get(pair.name),
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
            for (key, _), name in zip(expected, self.bound_outputs, strict=True):
                array = untouched.outputs.get(name) if name is not None else None
                if array is not None:
                    actual[str(key)] = array
            keep(pair.name, {str(key): array for key, array in expected}, actual)

    def _output_results(
        self, untouched: _Untouched, expected: Sequence[tuple[OutputKey, Array]]
    ) -> tuple[OutputResult, ...]:
        """Every output of the model against the untouched graph; here a shape must be exactly the same."""
        results = []
        for (key, array), name in zip(expected, self.bound_outputs, strict=True):
            metrics, judgement = judge(array, untouched.outputs.get(name) if name else None, self.options.tolerance)
            if name is None or _holds_nothing(metrics):
                judgement = "not compared"
            results.append(OutputResult(key, name or "", metrics, judgement))
            if metrics.nonfinite_expected and not metrics.nonfinite_mismatch:
                note = f"output {key} holds {metrics.nonfinite_expected} NaN or infinite values, the same on both sides"
                if note not in self.notes:
                    self.notes.append(note)
        return tuple(results)

    def _chance(self, reference: Reference, rows: Sequence[StageRow]) -> str | None:
        """Where a model differs from itself when run twice; ``None`` if it does not in what failed or is put out."""

        def again(on_value: OnValue) -> tuple[Trace, Outputs]:
            run, _, outputs = self._run_torch(self.base.expected, on_value)
            return run.recorder.trace, outputs

        return repeats_not(reference, rows, self.torch_signatures, again)


@dataclass(frozen=True, slots=True)
class _Aligned:
    """PyTorch's run beside the graph; ``cuts`` say by layer where the graph has to be cut for the stages."""

    reference: Reference
    matches: Mapping[int, Match]
    selection: Selection
    alignment: Alignment
    cuts: Mapping[str, Cut]


@dataclass(frozen=True, slots=True)
class _Untouched:
    outputs: dict[str, Array | None]
    effective: Mapping[str, Any]


def _holds_nothing(metrics: ErrorMetrics) -> bool:
    """Whether both sides hold the same NaN and infinities and no number at all: that is no agreement to rely on."""
    return 0 < metrics.count == metrics.nonfinite_expected and not metrics.nonfinite_mismatch and not metrics.problem
