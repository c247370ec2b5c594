"""The one file that knows the order of things: load, export, capture, align, expose, force, compare, localize."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from bisect_tool.align import VALUE_LIMIT, Match, match_values, summarize
from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.inputs import bind_inputs, sample_tensors
from bisect_tool.backends.memory import map_big_blocks, return_free_memory
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram, ValueType, type_of_array
from bisect_tool.backends.ort_runner import SegmentedRun, UntouchedRun
from bisect_tool.backends.preflight import explain_forward_error
from bisect_tool.backends.stream import Lane, OnPair, run_lanes
from bisect_tool.backends.structures import map_tensors
from bisect_tool.backends.torch_runner import TorchRun, float_dtype_of, to_numpy
from bisect_tool.compare import Ledger, compare_stage, hands_on, stage_inputs
from bisect_tool.environment import peak_rss_mb, snapshot
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.globs import matches as glob_matches
from bisect_tool.localize import localize
from bisect_tool.metrics import judge, kind_of, relative_difference
from bisect_tool.recorder import Value
from bisect_tool.records import (
    Alignment,
    Comparison,
    ConfigPair,
    ConfigRun,
    ConfigStatus,
    Localization,
    NumericConfig,
    OutputKey,
    OutputResult,
    Report,
    Role,
    Stage,
    StageRef,
    StageRow,
    Status,
    Tolerance,
    TorchTrace,
    Verdict,
)
from bisect_tool.signatures import Signature, distance, permuted_signatures, signature_of
from bisect_tool.verdicts import kept_stages_line, summarize_verdict

Array = NDArray[Any]
Progress = Callable[[str], None]

MAX_ALIGNMENT_ROUNDS = 6
"""Forced passes at most while looking for the pairs behind broken stages; each one settles at least one stage."""

MAIN = "main"


@dataclass(frozen=True, slots=True)
class LoadedCase:
    """A model that is ready to run.

    Attributes:
        name: of the report folder.
        module: with its weights, in eval mode.
        args, kwargs: inputs of ``module.forward``.
        description: what the report says about the case: paths and the command.
        notes: from loading and from the preflight.
    """

    name: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    description: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """What to do with a case.

    Attributes:
        onnx: a given file; ``None``: export.
        export: how to export.
        keep_onnx: where to leave the exported file.
        tolerance: in force.
        level: of the stages that are judged.
        stages: globs; the stages that are judged, at any level, instead of a whole level.
        groups: globs; containers that are shown beside them, each as one stage.
        memory_budget: bytes of activations that may be kept at once.
        min_coverage: under this share of aligned outputs nothing is called agreeing.
        forced: make the forced run, which local errors need.
        observe: run the untouched graph too, which the verdict on an optimised configuration needs.
        optimizations: ONNX Runtime's levels to run; the first must be ``off``, it serves to align.
        threads: of both sides; 0 is each library's default.
    """

    tolerance: Tolerance
    onnx: Path | None = None
    export: ExportSettings = ExportSettings()
    keep_onnx: Path | None = None
    level: str = "leaf"
    stages: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    memory_budget: int = 2 << 30
    min_coverage: float = 0.9
    forced: bool = True
    observe: bool = True
    optimizations: tuple[str, ...] = ("off", "all")
    threads: int = 0


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
    timings: dict[str, float] = {}

    @contextlib.contextmanager
    def step(name: str, text: str) -> Iterator[None]:
        progress(text)
        began = time.perf_counter()
        yield
        timings[name] = timings.get(name, 0.0) + time.perf_counter() - began

    with tempfile.TemporaryDirectory(prefix="bisect-divergence-") as folder:
        path = options.onnx
        if path is None:
            path = Path(folder) / "model.onnx"
            with step("export", f"exporting with the {options.export.exporter} exporter"):
                _export(case, path, options.export)
                _keep(path, options.keep_onnx)
        with step("load", "reading the ONNX graph"):
            model = load_onnx(path)
            if options.onnx is None:
                _check_opset(model.opset_imports.get(""), options.export)
            program = OnnxProgram(model, path)
        comparison = _Bisection(case, options, program, step)
        try:
            report = comparison.report(timings)
        finally:
            comparison.release()
    folded = any(not stage.in_graph for stage in report.alignment.unaligned)
    if options.onnx is None and report.verdict.status == "diverges" and folded and not options.export.keep_stages:
        return _with_kept_stages(report, case, options, progress)
    return report


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


def _export(case: LoadedCase, path: Path, settings: ExportSettings) -> None:
    try:
        export_onnx(case.module, case.args, case.kwargs, path, settings)
    except BisectError:
        # Exporters run the model too: if it fails on its own, that is the error to tell.
        _check_forward(case)
        raise


def _check_forward(case: LoadedCase) -> None:
    try:
        with torch.no_grad():
            case.module(*_copies(case.args), **_copies(case.kwargs))
    except Exception as error:  # anything may come out of a user's forward
        raise explain_forward_error(error, case.module, case.args, case.kwargs) from error


def _check_opset(written: int | None, settings: ExportSettings) -> None:
    """Exporters may write another opset than was asked for, and say so in a log at most."""
    if settings.opset is not None and written != settings.opset:
        raise BisectError(
            f"--opset {settings.opset}: the {settings.exporter} exporter wrote opset {written} instead",
            hint=f"leave --opset out, or ask for {written}",
        )


def _keep(path: Path, target: Path | None) -> None:
    if target is None:
        return
    for file in sorted(path.parent.iterdir()):
        # External data is found by its name beside the model, so only the model itself may be renamed.
        shutil.copyfile(file, target if file == path else target.parent / file.name)


class _Bisection:
    """State of one comparison. The methods are in the order in which they run."""

    def __init__(self, case: LoadedCase, options: Options, program: OnnxProgram, step: Any):
        self.case = case
        self.options = options
        self.program = program
        self.step = step
        self.graph = program.graph
        bound = bind_inputs(self.graph, sample_tensors(case.module, case.args, case.kwargs))
        self.feeds = dict(bound.feeds)
        program.assume_shapes({name: array.shape for name, array in self.feeds.items()})
        self.graph = program.graph
        self.notes = [*case.notes, *bound.notes]
        # Each value is held on both sides.
        self.in_memory = 2 * program.activation_bytes() <= options.memory_budget
        if not self.in_memory:
            map_big_blocks()
        self.buffers = BufferPool()
        self.activations: ActivationStore | None = None
        self.torch_outputs: list[tuple[OutputKey, Array]] = []
        self.bound_outputs: list[str | None] = []
        self.failed: dict[str, str] = {}
        self.torch_signatures: dict[int, Signature] = {}
        self.permuted: dict[int, Mapping[tuple[int, ...], Signature]] = {}
        self.onnx_signatures: dict[str, Signature] = {}
        self.types: dict[str, ValueType] = {}
        self.chained: dict[str, Array | None] = {}
        self.configs = [self._pair(level) for level in options.optimizations]
        self.ledger = Ledger(options.tolerance, {pair.name for pair in self.configs})
        self.untouched: dict[str, _Untouched] = {}
        self.observer: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def release(self) -> None:
        """Frees the tensors now; a traceback or a cycle may keep this object alive for longer."""
        if self.activations is not None:
            self.activations.close()
        self.chained.clear()
        self.untouched.clear()
        self.torch_outputs.clear()

    # -- configurations -----------------------------------------------------------------------------------------------

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

    # -- the whole ----------------------------------------------------------------------------------------------------

    def report(self, timings: dict[str, float]) -> Report:
        if self.options.observe:
            for pair in self.configs:
                with self.step(f"untouched {pair.name}", f"running the untouched graph ({pair.name})"):
                    self._run_untouched(pair)
        with self.step("capture", "running PyTorch"):
            trace = self._capture()
        self._bind_outputs()
        with self.step("align", "aligning stages with ONNX values"):
            matches = self._align(trace)
        selection = _select(trace, self.options, matches)
        alignment = self._alignment(trace, matches, selection)
        with self.step("compare", "comparing stage by stage"):
            self._compare(trace, matches, selection)
        rows = self._rows(trace, matches, selection)
        runs = tuple(self._config_run(pair, rows) for pair in self.configs)
        verdict = self._verdict(rows, runs, alignment)
        if verdict.status == "diverges":
            with self.step("repeat", "running PyTorch once more, to see whether it repeats itself"):
                verdict = self._without_chance(verdict, trace, rows)
        return Report(
            case={"name": self.case.name, **self.case.description},
            verdict=verdict,
            tolerance=self.options.tolerance,
            alignment=alignment,
            configs=runs,
            stages=tuple(rows),
            environment=snapshot(),
            timings=timings,
            notes=tuple(self.notes),
        )

    # -- running ------------------------------------------------------------------------------------------------------

    def _run_untouched(self, pair: ConfigPair) -> None:
        began = time.perf_counter()
        try:
            run = UntouchedRun(self.program, pair.actual)
            outputs = run.run(self.feeds)
        except InconclusiveError as error:
            if pair is self.configs[0]:
                raise
            # The others still have an answer to give.
            self.failed[pair.name] = error.message
            return
        self.untouched[pair.name] = _Untouched(outputs, tuple(run.providers))
        del run
        return_free_memory()
        self._spend(pair.name, began)

    def _bind_outputs(self) -> None:
        """Which graph output is which output of the model: by place; keys of dictionaries may be sorted, and are then
        found by value, which a note says. None: the graph has no such output."""
        names = list(self.graph.outputs)
        keys = [key for key, _ in self.torch_outputs]
        if len(names) != len(keys):
            self.bound_outputs = [str(key) if str(key) in names else None for key in keys]
            if not any(self.bound_outputs):
                self.bound_outputs = [*names[: len(keys)], *([None] * (len(keys) - len(names)))]
            self.notes.append(f"the model has {len(keys)} outputs and the graph {len(names)}")
            return
        self.bound_outputs = list(names)
        untouched = self.untouched.get(self.configs[0].name)
        if untouched is None or not all(isinstance(key, str) for key in keys):
            return

        def agrees(place: int, name: str) -> bool:
            array = untouched.outputs.get(name)
            return judge(self.torch_outputs[place][1], array, self.options.tolerance)[1] == "pass"

        wrong = [i for i, name in enumerate(names) if not agrees(i, name)]
        for place in wrong:
            fitting = [name for other in wrong if (name := names[other]) != names[place] and agrees(place, name)]
            if len(fitting) == 1:
                self.bound_outputs[place] = fitting[0]
        if len(set(self.bound_outputs)) != len(names):
            self.bound_outputs = list(names)
        elif self.bound_outputs != names:
            self.notes.append("the graph has the outputs of the model's dictionary in another order; found by value")

    def _spend(self, config: str, began: float) -> None:
        self.seconds[config] = self.seconds.get(config, 0.0) + time.perf_counter() - began

    def _capture(self) -> TorchTrace:
        """PyTorch's run: structure, signatures, and the tensors themselves."""

        def on_value(value: Value, tensor: torch.Tensor) -> None:
            array = to_numpy(tensor)
            self.torch_signatures[value.id] = signature_of(array, kind_of(array.dtype))
            store.keep(value.id, tensor)

        run = self._torch_run(on_value)
        # Of a small budget little is left beside what both sides need to run at all.
        budget = self.options.memory_budget
        limit = budget // 2 if self.in_memory else budget // 8
        store = self.activations = ActivationStore(run.recorder, limit, self.buffers)
        self._start(run)
        return_free_memory()
        return run.trace

    def _torch_run(self, on_value: Callable[[Value, torch.Tensor], None]) -> TorchRun:
        # A model may write into its inputs; every run gets its own.
        args, kwargs = _copies(self.case.args), _copies(self.case.kwargs)
        return TorchRun(self.case.module, args, kwargs, on_value, every_op=self.options.level == "op")

    def _start(self, run: TorchRun) -> None:
        try:
            output = run.start()
        except BisectError:
            raise
        except Exception as error:  # anything may come out of a user's forward
            raise explain_forward_error(error, self.case.module, self.case.args, self.case.kwargs) from error
        from bisect_tool.recorder import flatten_tensors

        self.torch_outputs = [(key, to_numpy(tensor).copy()) for key, tensor in flatten_tensors(output)]

    def _segment_budget(self) -> int | None:
        # Held at once: PyTorch's tensors for the segment, the chained and the forced outputs, and what crosses the cut.
        return None if self.in_memory else max(self.options.memory_budget // 6, 1)

    # -- aligning -----------------------------------------------------------------------------------------------------

    def _align(self, trace: TorchTrace) -> dict[int, Match]:
        self._probe_chained()
        matches = match_values(trace, self.graph, self.torch_signatures, self.onnx_signatures, {}, self._permuted)
        for _ in range(MAX_ALIGNMENT_ROUNDS):
            if all(match.confirmed for match in matches.values()):
                break
            signatures = self._probe_forced(matches)
            confirmed = {value: match for value, match in matches.items() if match.confirmed}
            # A stage that was broken keeps its pair by name; what is behind it is looked at anew.
            merged = {**self.onnx_signatures, **signatures}
            again = match_values(
                trace, self.graph, self.torch_signatures, merged, confirmed, self._permuted, forced=True
            )
            if {v: m.onnx for v, m in again.items()} == {v: m.onnx for v, m in matches.items()}:
                matches = again
                break
            matches = again
        if not matches:
            raise InconclusiveError(
                "no PyTorch stage could be matched with a value of the ONNX graph: nothing to compare",
                hint="is this the ONNX file of this model?",
            )
        return matches

    def _permuted(self, value: int) -> Mapping[tuple[int, ...], Signature]:
        """Signatures with axes permuted, made when asked for."""
        if value not in self.permuted and self.activations is not None:
            array = self.activations.fetch(value)
            self.permuted[value] = permuted_signatures(array, kind_of(array.dtype))
            self.activations.retain(())
        return self.permuted.get(value, {})

    def _probe_chained(self) -> None:
        """Signatures of everything in the graph, from an unoptimised run."""
        began = time.perf_counter()
        off = self.configs[0]
        segments = self.program.segments(self._segment_budget())
        exposed = {name for segment in segments for name in segment.makes}
        run = SegmentedRun(self.program, off.actual, segments, exposed, None, self.feeds, buffers=self.buffers)
        while not run.done:
            chained, _ = run.step(lambda name, kind: self.feeds[name])
            for name, array in chained.items():
                if array is not None:
                    self.onnx_signatures[name] = signature_of(array, kind_of(array.dtype))
                    self.types[name] = type_of_array(array.dtype, array.shape)
            if self.in_memory:
                self.chained.update(chained)
            else:
                del chained
                return_free_memory()
        self._spend(off.name, began)

    def _probe_forced(self, matches: Mapping[int, Match]) -> dict[str, Signature]:
        """Signatures again, with PyTorch's values fed in at every pair: each value from its true inputs."""
        pairs = {match.onnx: value for value, match in matches.items()}
        segments = self.program.segments(self._segment_budget(), pairs.keys())
        exposed = {name for segment in segments for name in segment.makes}
        config = self.configs[0].actual
        feeds, types = self.feeds, self.types
        run = SegmentedRun(self.program, config, segments, exposed, set(pairs), feeds, {}, types, self.buffers)
        found: dict[str, Signature] = {}

        def on_values(_: Mapping[str, Array | None], forced: Mapping[str, Array | None]) -> None:
            for name, array in forced.items():
                if array is not None:
                    found[name] = signature_of(array, kind_of(array.dtype))

        orders = _permutations(matches.values())
        self._drive([Lane(MAIN, run, pairs, orders, on_values)], lambda *_: None)
        return found

    def _drive(self, lanes: Sequence[Lane], on_pair: OnPair) -> None:
        """Runs lanes over PyTorch's values."""
        assert self.activations is not None
        run_lanes(lanes, self.activations, on_pair, lambda: None if self.in_memory else return_free_memory())

    def _alignment(self, trace: TorchTrace, matches: Mapping[int, Match], selection: _Selection) -> Alignment:
        judged = {stage.ref for stage in selection.judged}
        return summarize(trace, self.graph, matches, self.torch_signatures, lambda stage: stage.ref in judged)

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _compare(self, trace: TorchTrace, matches: Mapping[int, Match], selection: _Selection) -> None:
        cuts = {v for v in (s.value for s in selection.outermost) if v in matches}
        cuts |= self._ancestors(trace, matches, selection.outermost)
        shown = (*selection.judged, *selection.groups)
        wanted = cuts | {v for v in (s.value for s in shown) if v in matches}
        wanted |= self._ancestors(trace, matches, shown)
        wanted |= {value for _, value in trace.outputs if value in matches}
        pairs = {matches[value].onnx: value for value in wanted}
        orders = _permutations(matches.values())
        lanes = []
        for pair in self._running():
            first = pair is self.configs[0]
            if not first and not self.in_memory and not self._fails_untouched(pair):
                # Its verdict rests on the untouched graph; inner values would only cost memory that was not allowed.
                self.notes.append(f"{pair.name}: stages are not compared within this memory budget, only final outputs")
                continue
            forced = {matches[value].onnx for value in cuts} if first and self.options.forced else None
            lanes.append(self._lane(pair, pair.name, pairs, orders, forced, reuse=first))
        for name, stages in selection.nested.items():
            if self.options.forced:
                inner = {v for v in (s.value for s in stages) if v in matches}
                inner |= self._ancestors(trace, matches, stages)
                forced = {matches[value].onnx for value in inner}
                inner_pairs = {matches[value].onnx: value for value in inner}
                lanes.append(self._lane(self.configs[0], name, inner_pairs, orders, forced, reuse=True))
        finals = {value: matches[value].onnx for _, value in trace.outputs if value in matches}

        def on_pair(lane: str, value: int, expected: Array, chained: Array | None, forced: Array | None) -> None:
            self.ledger.record(lane, value, expected, chained, forced)
            if value in finals and lane in self.untouched and chained is not None:
                self._observe(lane, self.untouched[lane].outputs.get(finals[value]), chained)

        self._drive(lanes, on_pair)
        for lane in lanes:
            if lane.name in self.ledger.chained_lanes:
                self._note_missing(lane.name, pairs)

    def _fails_untouched(self, pair: ConfigPair) -> bool:
        untouched = self.untouched.get(pair.name)
        return untouched is None or any(out.judgement == "fail" for out in self._output_results(untouched))

    def _running(self) -> list[ConfigPair]:
        return [pair for pair in self.configs if pair.name not in self.failed]

    def _observe(self, config: str, untouched: Array | None, exposed: Array) -> None:
        """Exposing values may stop fusions: how far the exposed run's final outputs lie from the untouched run's."""
        if untouched is not None and untouched.size == exposed.size:
            effect = relative_difference(untouched, exposed.reshape(untouched.shape))
            self.observer[config] = max(self.observer.get(config, 0.0), effect)

    def _ancestors(self, trace: TorchTrace, matches: Mapping[int, Match], stages: Iterable[Stage]) -> set[int]:
        known = matches.keys()
        return {value for stage in stages for value in stage_inputs(stage, trace.parents, known)}

    def _lane(
        self,
        pair: ConfigPair,
        name: str,
        pairs: Mapping[str, int],
        orders: Mapping[str, tuple[int, ...]],
        forced: Set[str] | None,
        *,
        reuse: bool,
    ) -> Lane:
        segments = self.program.segments(self._segment_budget(), forced or frozenset())
        computed = self.chained if reuse and self.in_memory else None
        feeds, types, exposed = self.feeds, self.types, set(pairs)
        run = SegmentedRun(self.program, pair.actual, segments, exposed, forced, feeds, computed, types, self.buffers)
        return Lane(name, run, pairs, orders)

    def _note_missing(self, config: str, pairs: Mapping[str, int]) -> None:
        for name, value in pairs.items():
            if (config, value) not in self.ledger.totals:
                self.notes.append(f"{config}: ONNX Runtime returned nothing for {name}; it is not compared there")

    # -- the report's parts -------------------------------------------------------------------------------------------

    def _rows(self, trace: TorchTrace, matches: Mapping[int, Match], selection: _Selection) -> list[StageRow]:
        model_inputs = {value for _, value in trace.inputs}
        shown = sorted([*selection.judged, *selection.outputs, *selection.groups], key=lambda s: s.order)
        lane_of = {s.ref: name for name, stages in selection.nested.items() for s in stages}
        cuts = {
            name: self._cut(trace, matches, stages, model_inputs)
            for name, stages in {MAIN: selection.outermost, **selection.nested}.items()
        }
        roles: dict[StageRef, Role] = {stage.ref: "group" for stage in selection.groups}
        roles.update((stage.ref, "judged") for stage in selection.judged)
        rows: list[StageRow] = []
        by_value: dict[int, int] = {}
        for stage in shown:
            lane = lane_of.get(stage.ref, MAIN)
            role = roles.get(stage.ref, "output")
            start = replace(stage, inputs=trace.parents.get(stage.value, ())) if role == "output" else stage
            # An output of the model is what came after the judged stages, not the whole model.
            inputs = stage_inputs(start, trace.parents, cuts[lane].values)
            match = matches.get(stage.value)
            results = {}
            for pair in self.configs:
                result = self._result(pair, stage, inputs, model_inputs, lane)
                if result is not None:
                    results[pair.name] = result
            nodes: tuple[str, ...] = ()
            if match is not None and not hands_on(stage):
                nodes = self.program.nodes_between(match.onnx, cuts[lane].names)
            row = StageRow(
                index=len(rows),
                stage=stage.ref.stage,
                call=stage.ref.call,
                output=stage.ref.output,
                level=stage.level,
                type=stage.type,
                source=_from_here(stage.source),
                shape=stage.shape,
                dtype=stage.dtype,
                group=_group_of(stage.ref.stage),
                inputs=tuple(by_value[v] for v in inputs if v in by_value),
                alias_of=stage.alias_of,
                onnx_value=match.onnx if match else None,
                onnx_nodes=nodes,
                results=results,
                role=role,
            )
            rows.append(row)
            if row.role != "group":
                by_value.setdefault(stage.value, row.index)
        return rows

    def _cut(
        self, trace: TorchTrace, matches: Mapping[int, Match], stages: Sequence[Stage], model_inputs: Set[int]
    ) -> _Cut:
        values = {s.value for s in stages if s.value in matches} | self._ancestors(trace, matches, stages)
        return _Cut(frozenset(values | model_inputs), frozenset(matches[v].onnx for v in values))

    def _result(
        self, pair: ConfigPair, stage: Stage, inputs: tuple[int, ...], model_inputs: Set[int], lane: str
    ) -> Comparison | None:
        local_lane = None
        if pair is self.configs[0] and self.options.forced:
            local_lane = pair.name if lane == MAIN else lane
        return compare_stage(self.ledger, stage, pair.name, local_lane, inputs, model_inputs)

    def _config_run(self, pair: ConfigPair, rows: Sequence[StageRow]) -> ConfigRun:
        untouched = self.untouched.get(pair.name)
        outputs = self._output_results(untouched) if untouched else ()
        status: ConfigStatus
        failing = any(result.judgement == "fail" for result in outputs)
        if pair.actual.optimization == "off" or not outputs:
            # Nothing is fused here, so that exposing changes nothing, and inner stages count too.
            judged = [row.results[pair.name] for row in rows if row.role != "group" and pair.name in row.results]
            failing = failing or any(result.judgement == "fail" for result in judged)
        status = "failed" if pair.name in self.failed else "diverges" if failing else "agrees"
        return ConfigRun(
            name=pair.name,
            expected=pair.expected,
            actual=pair.actual,
            effective={"providers": list(untouched.providers) if untouched else ["CPUExecutionProvider"]},
            gating=pair.gating,
            status=status,
            observer_effect=self.observer.get(pair.name),
            outputs=outputs,
            seconds=self.seconds.get(pair.name, 0.0),
            peak_rss_mb=peak_rss_mb(),
            skipped_reason=self.failed.get(pair.name),
        )

    def _output_results(self, untouched: _Untouched) -> tuple[OutputResult, ...]:
        """Every output of the model against the untouched graph; here a shape must be exactly the same."""
        results = []
        for (key, array), name in zip(self.torch_outputs, self.bound_outputs, strict=True):
            metrics, judgement = judge(array, untouched.outputs.get(name) if name else None, self.options.tolerance)
            if name is None:
                judgement = "not compared"
            results.append(OutputResult(key, name or "", metrics, judgement))
            if metrics.nonfinite_expected and not metrics.nonfinite_mismatch:
                note = f"output {key} holds {metrics.nonfinite_expected} NaN or infinite values, the same on both sides"
                if note not in self.notes:
                    self.notes.append(note)
        return tuple(results)

    def _without_chance(self, verdict: Verdict, trace: TorchTrace, rows: Sequence[StageRow]) -> Verdict:
        """A model that differs from itself when run twice can't be judged by one run against another."""
        names = {stage.value: stage.ref for stage in reversed(trace.stages)}
        differing: list[int] = []
        limit = VALUE_LIMIT / 10

        def on_value(value: Value, tensor: torch.Tensor) -> None:
            known = self.torch_signatures.get(value.id)
            array = to_numpy(tensor)
            again = signature_of(array, kind_of(array.dtype))
            # Another order of sums from run to run is noise; random numbers are far beyond it.
            if known is None or distance(known, again) > limit:
                differing.append(value.id)

        self._start(self._torch_run(on_value))
        upstream = self._upstream(trace, rows)
        differing = [value for value in differing if value in upstream]
        if not differing:
            return verdict
        where = next((names[value] for value in differing if value in names), "the model")
        line = f"PyTorch does not repeat itself: {where} differs from one run to the next (random numbers in forward?)"
        return Verdict("inconclusive", (line, *verdict.summary), verdict.first_over_tolerance, (), ())

    @staticmethod
    def _upstream(trace: TorchTrace, rows: Sequence[StageRow]) -> set[int]:
        """Values that the failing stages and the model's outputs come from, their own included."""
        failing = {row.ref for row in rows if any(result.judgement == "fail" for result in row.results.values())}
        stack = [stage.value for stage in trace.stages if stage.ref in failing]
        stack += [value for _, value in trace.outputs]
        seen: set[int] = set()
        while stack:
            value = stack.pop()
            if value not in seen:
                seen.add(value)
                stack.extend(trace.parents.get(value, ()))
        return seen

    def _verdict(self, rows: Sequence[StageRow], runs: Sequence[ConfigRun], alignment: Alignment) -> Verdict:
        judged = [row for row in rows if row.results and row.role != "group"]
        found = Localization(None, (), ())
        for run in runs:
            if run.gating and run.status == "diverges":
                found = localize(judged, run.name)
                if found.first_over_tolerance is not None:
                    break
        status: Status
        diverging = [run for run in runs if run.gating and run.status == "diverges"]
        covered = alignment.coverage is not None and alignment.coverage >= self.options.min_coverage
        whole = all(out.judgement != "not compared" for run in runs for out in run.outputs if out.total.count)
        if diverging:
            status = "diverges"
        elif not covered or not whole or any(run.status != "agrees" for run in runs if run.gating):
            status = "inconclusive"
        else:
            status = "agrees"
        summary = summarize_verdict(status, found, runs, alignment, rows, self.options.min_coverage)
        return Verdict(status, summary, found.first_over_tolerance, found.origins, found.amplifiers)


@dataclass(frozen=True, slots=True)
class _Untouched:
    outputs: Mapping[str, Array | None]
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where one forced run is cut: PyTorch values (the model's inputs too), and the ONNX names of those that have one."""

    values: frozenset[int]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Selection:
    """Stages to show. One forced graph serves stages of which none lies inside another: forcing the inner ones would
    make the outer one's local error nothing. ``nested`` holds the others, by the name of their own forced run.
    """

    judged: tuple[Stage, ...]
    outputs: tuple[Stage, ...]
    groups: tuple[Stage, ...]
    outermost: tuple[Stage, ...]
    nested: Mapping[str, tuple[Stage, ...]]


def _select(trace: TorchTrace, options: Options, matches: Mapping[int, Match]) -> _Selection:
    """The stages to judge, the model's outputs that are none of them, and the containers to show beside them."""
    if options.stages:
        judged = _picked(trace, options.stages, "--stages")
    else:
        judged = tuple(s for s in trace.stages if _at_level(s, options.level))
    if not judged:
        raise InconclusiveError(
            f"the model has no stage at level {options.level}",
            hint="try --level leaf, or --level op for functional code",
        )
    values = {stage.value for stage in judged}
    finals = {value for _, value in trace.outputs} - values
    outputs = tuple(s for s in trace.stages if s.ref.stage == "" and s.value in finals)
    groups = _picked(trace, options.groups, "--group") if options.groups else ()
    known = {stage.ref for stage in judged}
    groups = tuple(stage for stage in groups if stage.ref not in known)
    depths = _nesting(judged)
    nested: dict[str, list[Stage]] = {}
    for prefix, stages, depth_of in (("nested", judged, depths), ("groups", groups, _nesting(groups))):
        for stage in stages:
            depth = depth_of[stage.ref.stage]
            if depth or prefix == "groups":
                nested.setdefault(f"{prefix}{depth}", []).append(stage)
    outermost = tuple(s for s in judged if not depths[s.ref.stage])
    return _Selection(judged, outputs, groups, outermost, {name: tuple(stages) for name, stages in nested.items()})


def _nesting(stages: Iterable[Stage]) -> dict[str, int]:
    """How many of the other stages' paths each path lies inside."""
    paths = {stage.ref.stage for stage in stages}
    depths = {}
    for path in paths:
        parts = path.replace("/", ".").split(".")
        outer = {".".join(parts[:i]) for i in range(1, len(parts))} | {""}
        depths[path] = sum(other in paths and other != path for other in outer)
    return depths


def _permutations(matches: Iterable[Match]) -> dict[str, tuple[int, ...]]:
    return {match.onnx: match.permutation for match in matches if match.permutation is not None}


def _at_level(stage: Stage, level: str) -> bool:
    if level == "op":
        return "#" in stage.ref.stage
    return stage.level == level and stage.ref.stage != ""


def _picked(trace: TorchTrace, globs: Sequence[str], option: str) -> tuple[Stage, ...]:
    found: dict[Any, Stage] = {}
    for glob in globs:
        hits = [s for s in trace.stages if glob_matches(s.ref.stage, glob)]
        if not hits:
            import difflib

            paths = sorted({s.ref.stage for s in trace.stages if s.ref.stage})
            near = difflib.get_close_matches(glob, paths, n=3, cutoff=0.3) or paths[:3]
            raise BisectError(
                f"{option} {glob!r}: no stage of the model matches", hint=f"stages look like: {', '.join(near)}"
            )
        found.update((s.ref, s) for s in hits)
    return tuple(sorted(found.values(), key=lambda s: s.order))


def _group_of(path: str) -> str:
    """The container that a stage is listed under."""
    if "/" in path:
        return path.rpartition("/")[0]
    return path.rpartition(".")[0]


def _from_here(source: str | None) -> str | None:
    """``file:line`` as one would type it here: relative for files below the working directory."""
    here = os.getcwd() + os.sep
    return source[len(here) :] if source is not None and source.startswith(here) else source


def _copies(value: Any) -> Any:
    return map_tensors(value, torch.Tensor.clone)
