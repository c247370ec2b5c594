"""Runs a matrix: every configuration pair in a process of its own, then one report, and what separates failing pairs
from passing ones.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bisect_tool.backends.case import LoadedCase, check_free, export_case, keep_file
from bisect_tool.backends.exporting import ExportSettings
from bisect_tool.backends.isolation import CrashedError, InternalError, run_isolated
from bisect_tool.backends.onnx_graph import describe as describe_graph
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.ort_options import dtype_in_effect, require_config
from bisect_tool.backends.reproducing import numbers_digest, seeded
from bisect_tool.backends.torch_runner import float_dtype_of
from bisect_tool.backends.torch_switches import applied, placed
from bisect_tool.diagnose.optimiser import CODE as OPTIMISER
from bisect_tool.diagnose.optimiser import finding_of, with_finding
from bisect_tool.diagnose.unexplained import with_what_is_known
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.hypotheses import (
    Finding,
    exported_afresh,
    given_graph,
    lowers,
    mends,
    nearest_passing,
    of_export,
    pair_of,
    separate,
    suspects,
)
from bisect_tool.matrix import Matrix, read_matrix
from bisect_tool.numerics import environment
from bisect_tool.pipeline import Options, Progress, bisect
from bisect_tool.precision import OPENINGS
from bisect_tool.quantised import JUDGED
from bisect_tool.records import (
    ConfigPair,
    ConfigRun,
    ConfigStatus,
    NumericConfig,
    Origin,
    Report,
    StageRef,
    StageRow,
    Verdict,
)
from bisect_tool.remedies import NO_SWITCH, describe, explored, hypotheses, no_switch
from bisect_tool.store import read_report, report_text
from bisect_tool.temporary import temporary_folder
from bisect_tool.verdicts import decide
from bisect_tool.weights import CODE as OTHER_CHECKPOINT
from bisect_tool.weights import checkpoint_line

Load = Callable[[], LoadedCase]

SEED = 0
"""Of random numbers while a model is made: each process makes its own, and all must be the same."""

MOST_FINDINGS = 4
"""Failing pairs that are explained by trying switches; each may take some dozen runs, unless there is one suspect."""


_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|can(?:'t|not) allocate memory|(?:failed|unable) to allocate|bad_alloc"
    r"|\b(?:\w*MemoryError)\b",
    re.IGNORECASE,
)
"""What Python, numpy, PyTorch, CUDA and ONNX Runtime say when there is no more memory."""

_REFUSAL = re.compile(r"NOT_IMPLEMENTED|INVALID_GRAPH|Could not find an implementation|not implemented", re.IGNORECASE)
"""What ONNX Runtime says of a graph that it has no kernels for, such as convolutions in bfloat16."""


class UnavailableError(InconclusiveError):
    """What a pair asks for is not on this machine, whatever the model is."""


class RefusedError(InconclusiveError):
    """What a pair asks for, and the exporter does not do with this model."""


class OtherModelError(BisectError):
    """A process made another model than the first one did: no two pairs would be about the same thing."""


@dataclass(frozen=True, slots=True)
class SameModel:
    """Makes a case in any process, with random numbers that start alike, and makes sure that it is the same one.

    Attributes:
        load: makes the case.
        digest: of the model's numbers, as the first process has them; ``None`` in that process.
    """

    load: Load
    digest: str | None = None

    def __call__(self) -> LoadedCase:
        with seeded(SEED):
            case = self.load()
        if self.digest is not None and numbers_digest(case.module) != self.digest:
            raise OtherModelError(
                "the model has other weights each time that it is made, even from the same seed",
                hint='save them once, torch.save(model.state_dict(), "ckpt.pth"), and give that file as CHECKPOINT',
            )
        return case


@dataclass(frozen=True, slots=True)
class _Graph:
    """How a pair's graph is exported; ``dtype`` is ``None`` for that of the model."""

    settings: ExportSettings
    dtype: str | None


def run_matrix(
    load: Load,
    options: Options,
    matrix: Matrix,
    progress: Progress = lambda _: None,
    detail: Progress = lambda _: None,
    graphs: MatrixGraphs | None = None,
) -> Report:
    """Runs every pair of a matrix, and explains those that fail.

    Args:
        load: makes the case, in every process anew, from the same seed; it must be possible to pickle it.
        options: as for :func:`bisect_tool.pipeline.bisect`; ``pairs`` and ``optimizations`` are the matrix's.
        matrix: the pairs.
        progress: called with one line whenever a step begins.
        detail: called with the traceback of a pair in which the tool itself is at fault.
        graphs: exported graphs that several samples share.

    Returns:
        One report: rows of the stages with the results of all pairs, ``verdict.diagnoses`` and ``verdict.ruled_out``
        from the comparison of failing and passing pairs.

    Raises:
        BisectError: the model or the sample is unusable, or the model comes out otherwise each time.
        InconclusiveError: no pair could run.
        InternalError: no pair could run, and the tool itself is at fault.
    """
    with temporary_folder() as folder:
        shared = graphs or MatrixGraphs(load, Path(folder))
        return _Matrix(load, options, matrix, Path(folder), progress, detail, shared).report()


@dataclass(frozen=True, slots=True)
class MatrixGraphs:
    """Graphs of a matrix, exported with one sample and used for all that have inputs of the same form.

    Attributes:
        load: makes the case that they are exported with.
        folder: where they are; it must stay until the last of the samples is done.
        made: what was exported so far.
    """

    load: Load
    folder: Path
    made: dict[_Graph, Path | BisectError] = field(default_factory=dict)


class _Matrix:
    def __init__(
        self,
        load: Load,
        options: Options,
        matrix: Matrix,
        folder: Path,
        progress: Progress,
        detail: Progress,
        shared: MatrixGraphs,
    ):
        self.case = SameModel(load)()
        self._load = SameModel(load, numbers_digest(self.case.module))
        self.options = options
        self.matrix = matrix
        self.folder = folder
        self.progress = progress
        self.detail = detail
        self.dtype = float_dtype_of(self.case.module)
        self.graphs = shared.made
        self.shared = shared
        self.reports: dict[str, Report] = {}
        self.runs: dict[str, ConfigRun] = {}
        self.timings: dict[str, float] = {}
        self.kept = self._kept()
        self.exhausted: ConfigRun | None = None
        self.fresh: ConfigRun | None = None
        self.fault: InternalError | None = None

    def report(self) -> Report:
        pairs = self.matrix.pairs
        for number, pair in enumerate(pairs, 1):
            self.progress(f"pair {number} of {len(pairs)}: {pair.name}")
            self.runs[pair.name] = self._run(pair)
        if not self.reports:
            if self.fault is not None:
                raise self.fault
            reasons = "; ".join(f"{run.name}: {run.skipped_reason}" for run in self.runs.values())
            raise InconclusiveError(f"no pair of matrix {self.matrix.source} could run: {reasons}")
        findings = self._findings()
        base = self._base()
        rows = self._merged(base)
        runs = tuple(self.runs.values())
        verdict = decide(rows, runs, base.alignment, self.options.min_coverage, selected=bool(self.options.stages))
        verdict = self._with_passes(verdict, findings)
        diagnoses, ruled_out, sides = describe(findings, list(self.runs.values()))
        if self.exhausted is not None:
            ruled_out.append(no_switch(self.exhausted, self.fresh))
        # What was measured against float64 counts more than what trying switches suggests.
        origins = tuple(replace(o, side=o.side or sides.get(o.config)) for o in map(self._own, verdict.origins))
        first = verdict.first_over_tolerance
        hand_over = self.reports[first.config].verdict.hand_over if first is not None else None
        of_graph = self.reports[first.config].verdict if first is not None else None
        # What is about the optimiser is in the verdict already, as far as no switch explains it.
        causes = [each for each in of_graph.diagnoses if each.code != OPTIMISER] if of_graph is not None else []
        tried = [each for each in of_graph.ledger if each.code != OPTIMISER] if of_graph is not None else []
        named = [f"{d.code}: {d.title} separates failing from passing" for d in diagnoses if d.gating]
        own = [self.runs[pair.name] for pair in self.matrix.pairs]
        summary = (*verdict.summary, *named, *explored(findings, own, {run.name: self._worst(run.name) for run in own}))
        told = dict.fromkeys(line for report in self.reports.values() for line in report.verdict.summary)
        summary = (
            *summary,
            *(line for line in told if line.startswith((*OPENINGS, JUDGED))),
            *(
                checkpoint_line(each)
                for each in (of_graph.diagnoses if of_graph is not None else ())
                if each.code == OTHER_CHECKPOINT
            ),
        )
        if self.exhausted is not None:
            summary = (*summary, f"no switch explains it: {NO_SWITCH}")
        elif any(given_graph(step) for finding in findings for step in finding.fix):
            summary = (*summary, "the given file differs from what the model exports to, not how it is run")
        kept = self._kept_notes()
        for line in kept:
            self.progress(line)
        notes = dict.fromkeys([*(note for report in self.reports.values() for note in report.notes), *kept])
        verdict = replace(
            verdict,
            summary=summary,
            origins=origins,
            diagnoses=(*diagnoses, *causes, *verdict.diagnoses),
            ledger=(*tried, *verdict.ledger),
            ruled_out=tuple(ruled_out),
            hand_over=hand_over,
            hypotheses=hypotheses(findings),
            costs=base.verdict.costs,
        )
        return replace(
            base,
            verdict=with_what_is_known(verdict, rows, runs),
            configs=runs,
            stages=tuple(rows),
            timings=self.timings,
            notes=tuple(notes),
        )

    # -- one pair -----------------------------------------------------------------------------------------------------

    def _run(self, pair: ConfigPair) -> ConfigRun:
        began = time.perf_counter()
        try:
            graph = self._graph(pair)
            run = self._in_a_process(self._completed(pair), graph)
        except OtherModelError:
            raise
        except BisectError as error:
            run = self._not_run(pair, self._status_without_answer(pair, error), error.message, began)
        except InternalError as error:
            if not _OUT_OF_MEMORY.search(error.reason):
                self.fault = error
                self.detail(f"pair {pair.name}: {error}")
            run = self._not_run(pair, "failed", f"internal error: {error.reason}", began)
        if run.status == "failed" and _OUT_OF_MEMORY.search(run.skipped_reason or ""):
            # As if the system had killed it: this says nothing about the pair.
            reason = (run.skipped_reason or "").removeprefix("internal error: ")
            run = replace(run, status="crashed", skipped_reason=f"out of memory: {reason}")
        self.timings[f"pair {pair.name}"] = time.perf_counter() - began
        return run

    def _status_without_answer(self, pair: ConfigPair, error: BisectError) -> ConfigStatus:
        """Whether a pair crashed, is left out, or owes an answer."""
        if isinstance(error, CrashedError):
            return "crashed"
        # Nobody named the pairs of a preset: what can't be had here is left out. One that counts and can be had must
        # give an answer all the same, and so must one that nothing is known to refuse.
        refused = isinstance(error, RefusedError) or (
            isinstance(error, InconclusiveError) and _REFUSAL.search(error.message) is not None
        )
        skipped = isinstance(error, UnavailableError) or (refused and not pair.gating)
        return "skipped" if self.matrix.preset and skipped else "failed"

    def _in_a_process(self, pair: ConfigPair, graph: Path) -> ConfigRun:
        target = self.folder / f"pair-{len(self.timings)}.json"
        # In its own process it is all there is; whether it counts is decided here.
        alone = replace(pair, gating=True)
        # Why is asked of the matrix's own pairs that count; the others only serve to explain those.
        asked = pair.gating and any(pair.name == own.name for own in self.matrix.pairs)
        options = replace(
            self.options, onnx=graph, keep_onnx=None, pairs=(alone,), look=True, measure=True, passes=asked
        )
        run_isolated(run_pair, self._load, options, target, folder=self.folder, environment=environment(pair))
        report = read_report(target)
        run = replace(report.configs[0], gating=pair.gating)
        if self.options.onnx is not None and graph != self.options.onnx:
            run = replace(run, effective={**run.effective, "graph": "exported afresh"})
        if report.verdict.status == "inconclusive" and run.status in ("agrees", "diverges"):
            run = replace(run, status="failed", skipped_reason=report.verdict.summary[0])
        self.reports[pair.name] = report
        return run

    def _not_run(self, pair: ConfigPair, status: ConfigStatus, reason: str, began: float) -> ConfigRun:
        return ConfigRun(
            name=pair.name,
            expected=pair.expected,
            actual=pair.actual,
            effective={},
            gating=pair.gating,
            status=status,
            observer_effect=None,
            outputs=(),
            seconds=time.perf_counter() - began,
            peak_rss_mb=0.0,
            skipped_reason=reason,
        )

    def _completed(self, pair: ConfigPair) -> ConfigPair:
        """With what the pair leaves open as the case and the command line have it."""
        dtype, export = pair.expected.dtype or self.dtype, self.options.export
        threads = self.options.threads
        actual = replace(pair.actual, dtype=dtype, threads=pair.actual.threads or threads)
        if not self._is_given(pair):
            actual = replace(
                actual,
                exporter=actual.exporter or export.exporter,
                opset=actual.opset if actual.opset is not None else export.opset,
                constant_folding=export.constant_folding
                if actual.constant_folding is None
                else actual.constant_folding,
            )
        return replace(
            pair, expected=replace(pair.expected, dtype=dtype, threads=pair.expected.threads or threads), actual=actual
        )

    # -- graphs -------------------------------------------------------------------------------------------------------

    def _is_given(self, pair: ConfigPair) -> bool:
        """Whether a pair is about the ONNX file that the user gave."""
        actual = pair.actual
        own = actual.exporter is not None or actual.opset is not None or actual.constant_folding is not None
        own = own or any(map(of_export, actual.switches))
        return self.options.onnx is not None and not own and pair.expected.dtype in (None, self.dtype)

    def _graph(self, pair: ConfigPair) -> Path:
        if self._is_given(pair):
            assert self.options.onnx is not None
            return self.options.onnx
        wanted = self._wanted(pair)
        if wanted not in self.graphs:
            try:
                self.graphs[wanted] = self._export(wanted, len(self.graphs))
            except OtherModelError:
                raise
            except BisectError as error:
                self.graphs[wanted] = error
        graph = self.graphs[wanted]
        if isinstance(graph, BisectError):
            raise graph
        return graph

    def _wanted(self, pair: ConfigPair) -> _Graph:
        default, actual = self.options.export, pair.actual
        settings = ExportSettings(
            exporter=actual.exporter or default.exporter,  # type: ignore[arg-type]
            opset=actual.opset if actual.opset is not None else default.opset,
            constant_folding=default.constant_folding if actual.constant_folding is None else actual.constant_folding,
            batchnorm_folding=bool(actual.switches.get("batchnorm_folding", default.batchnorm_folding)),
            keep_stages=bool(actual.switches.get("keep_stages")),
            dynamic_shapes=bool(actual.switches.get("dynamic_shapes")),
        )
        return _Graph(settings, pair.expected.dtype if pair.expected.dtype != self.dtype else None)

    def _kept(self) -> dict[_Graph, Path]:
        """Where ``--keep-onnx`` leaves the graphs of the matrix: that of the command line's own export under the name
        that was given, each other one beside it, with the first pair's name that is about it.

        Raises:
            BisectError: one of the files is there already; told before anything runs.
        """
        keep = self.options.keep_onnx
        found: dict[_Graph, Path] = {}
        for pair in self.matrix.pairs if keep is not None else ():
            assert keep is not None
            wanted = self._wanted(pair)
            own = wanted == _Graph(self.options.export, None)
            found.setdefault(wanted, keep if own else keep.with_name(f"{keep.stem}-{pair.name}{keep.suffix}"))
        for target in () if self.options.overwrite else found.values():
            check_free(target)
        return found

    def _kept_notes(self) -> list[str]:
        """What ``--keep-onnx`` left elsewhere than was said, and what it did not leave at all."""
        keep = self.options.keep_onnx
        names = ", ".join(str(target) for target in self.kept.values() if target != keep and target.exists())
        lost = ", ".join(str(target) for target in self.kept.values() if not target.exists())
        found = [f"--keep-onnx left {names} too, since those pairs have graphs of their own"] if names else []
        if keep is not None and keep not in self.kept.values():
            found = [f"--keep-onnx did not write {keep}: each pair has a graph of its own; there is {names or 'none'}"]
        return [*found, f"--keep-onnx did not write {lost}: the export failed"] if lost else found

    def _export(self, wanted: _Graph, number: int) -> Path:
        folder = self.shared.folder / f"graph-{number}"
        folder.mkdir()
        target = self.kept.get(wanted)
        path = folder / (target.name if target else "model.onnx")
        self.progress(f"exporting with the {wanted.settings.exporter} exporter{_how(wanted)}")
        began = time.perf_counter()
        # Exporters run the model, which may crash in this dtype or this form of it.
        load = replace(self._load, load=self.shared.load)
        run_isolated(export_graph, load, wanted.dtype, path, wanted.settings, tempfile.gettempdir(), folder=self.folder)
        _check_graph(path, wanted)
        self.timings["export"] = self.timings.get("export", 0.0) + time.perf_counter() - began
        keep_file(path, target, overwrite=self.options.overwrite)
        return path

    # -- together -----------------------------------------------------------------------------------------------------

    def _base(self) -> Report:
        """The report that rows and alignment come from: that of the given file or the plain export, of the first pair
        that counts. Another graph may show more stages, and is not what is judged.
        """
        plain = _Graph(self.options.export, None)

        def place(name: str) -> tuple[bool, bool]:
            pair = pair_of(self.runs[name])
            judged = self._is_given(pair) if self.options.onnx is not None else self._wanted(pair) == plain
            return not judged, not self.runs[name].gating

        return self.reports[min(self.reports, key=place)]

    def _own(self, origin: Origin) -> Origin:
        """An origin with the names of its own pair's graph, and with what was found inside it there."""
        report = self.reports[origin.config]
        known = next((o for o in report.verdict.origins if (o.ref, o.config) == (origin.ref, origin.config)), None)
        if known is not None:
            return known
        row = next(row for row in report.stages if row.ref == origin.ref)
        return replace(origin, onnx_value=row.onnx_value or "", onnx_nodes=row.onnx_nodes)

    def _with_passes(self, verdict: Verdict, findings: Sequence[Finding]) -> Verdict:
        """The verdict with what was found about the optimiser, of the first pair that counts and has such a finding.

        A pass that a switch of the pair brings in is explained by the switch.
        """
        of_switches = {
            finding.failing.name for finding in findings if all(step.name != "optimization" for step in finding.fix)
        }
        for pair in self.matrix.pairs:
            report = self.reports.get(pair.name)
            if report is None or not pair.gating or pair.name in of_switches:
                continue
            found = finding_of(report.verdict)
            if found is not None:
                return with_finding(verdict, found)
        return verdict

    def _worst(self, name: str) -> StageRef | None:
        """Where a pair's error comes from: the stage that makes most of it, or, where the stages' own errors cannot be
        measured since nodes are fused, the first one over tolerance.
        """
        if name not in self.reports:
            return None
        verdict = self.reports[name].verdict
        if verdict.origins:
            return max(verdict.origins, key=lambda origin: origin.local_rel_l2).ref
        return verdict.first_over_tolerance.ref if verdict.first_over_tolerance is not None else None

    def _merged(self, base: Report) -> list[StageRow]:
        results: dict[Any, dict[str, Any]] = {}
        for name, report in self.reports.items():
            for row in report.stages:
                if name in row.results:
                    results.setdefault(row.ref, {})[name] = row.results[name]
        return [replace(row, results=results.get(row.ref, {})) for row in base.stages]

    def _findings(self) -> list[Finding]:
        failing = sorted((r for r in self.runs.values() if r.status == "diverges"), key=lambda run: not run.gating)
        findings: list[Finding] = []
        tried = 0
        for run in failing:
            start, passing = run, nearest_passing(run, [*self.runs.values()])
            if self._is_given(pair_of(run)) and (passing is None or not self._is_given(pair_of(passing))):
                # Before anything more special about the export: is it the file?
                if tried == MOST_FINDINGS:
                    continue
                tried += 1
                start, passing = self._against_fresh(run, passing)
            elif passing is not None and len(suspects(pair_of(run), pair_of(passing))) > 1:
                if tried == MOST_FINDINGS:
                    continue
                tried += 1
            if passing is None and run is failing[0]:
                self._try_strict(run)
                start, passing = run, nearest_passing(run, [*self.runs.values()])
            if passing is not None:
                findings.append(separate(start, passing, self._attempt))
        return findings

    def _against_fresh(self, failing: ConfigRun, passing: ConfigRun | None) -> tuple[ConfigRun, ConfigRun | None]:
        """The two runs that tell whether the given file is why a pair fails, or, if a plain export of the model fails
        as well, that export and the passing one.
        """
        exporter = passing.actual.exporter if passing is not None else None
        fresh = self._attempt(exported_afresh(pair_of(failing), exporter or self.options.export.exporter))
        if mends(failing, fresh):
            return failing, fresh
        if fresh.status != "diverges":
            return failing, None
        if lowers(failing, fresh):
            # The file makes most of it, and a switch the rest: only both of them together mend the pair.
            better = [run for run in self.runs.values() if not self._is_given(pair_of(run))]
            passing = nearest_passing(failing, better)
            if passing is not None:
                return failing, passing
        self.fresh = fresh
        # It stands for the pair that it was made for.
        fresh = replace(fresh, gating=failing.gating)
        return fresh, passing if passing is not None and mends(fresh, passing) else None

    def _try_strict(self, failing: ConfigRun) -> None:
        """Where nothing shows how to mend a pair, there is nothing to compare with, unless what aligns both sides best."""
        strict = next(p for p in read_matrix("strict").pairs if p.actual.device == failing.actual.device)
        actual = failing.actual
        export = {name: value for name, value in actual.switches.items() if of_export(name)}
        pair = ConfigPair(
            strict.name,
            replace(strict.expected, dtype=failing.expected.dtype),
            replace(
                strict.actual,
                dtype=actual.dtype,
                exporter=actual.exporter,
                opset=actual.opset,
                constant_folding=actual.constant_folding,
                switches={**strict.actual.switches, **export},
            ),
        )
        run = self._attempt(pair)
        if run.status == "diverges":
            self.exhausted = run

    def _attempt(self, pair: ConfigPair) -> ConfigRun:
        """A run that only serves to explain another one."""
        pair = self._completed(pair)
        same = [r for r in self.runs.values() if (r.expected, r.actual) == (pair.expected, pair.actual)]
        if same:
            return same[0]
        number = sum(name.startswith(f"{pair.name}-try-") for name in self.runs) + 1
        attempt = replace(pair, name=f"{pair.name}-try-{number}", gating=False)
        self.progress(f"trying switches: {attempt.name}")
        run = self.runs[attempt.name] = self._run(attempt)
        return run


def _how(wanted: _Graph) -> str:
    settings = wanted.settings
    words = [f"opset {settings.opset}"] if settings.opset is not None else []
    words += [] if settings.constant_folding else ["no constant folding"]
    words += [] if settings.batchnorm_folding else ["no folding of BatchNorm"]
    words += ["stages kept apart"] if settings.keep_stages else []
    words += ["dynamic shapes"] if settings.dynamic_shapes else []
    words += [wanted.dtype] if wanted.dtype else []
    return f" ({', '.join(words)})" if words else ""


def _check_graph(path: Path, wanted: _Graph) -> None:
    """Exporters may write something else than they were asked for, and say so in a log at most.

    Raises:
        BisectError: another opset.
        RefusedError: another dtype, or fixed shapes.
    """
    settings, model = wanted.settings, load_onnx(path)
    written = model.opset_imports.get("")
    if settings.opset not in (None, written):
        raise BisectError(
            f"opset {settings.opset}: the {settings.exporter} exporter wrote opset {written} instead",
            hint=f"leave it out, or ask for {written}",
        )
    if settings.dynamic_shapes and all(v.shape is not None and v.shape.is_static() for v in model.graph.inputs):
        raise RefusedError(
            f"dynamic_shapes: the {settings.exporter} exporter fixed every size of the inputs",
            hint="leave it out: the model allows for one shape only, or ask the other exporter",
        )
    dtype = dtype_in_effect(describe_graph(model))
    if wanted.dtype is not None and dtype not in (None, wanted.dtype):
        raise RefusedError(
            f"dtype {wanted.dtype}: the {settings.exporter} exporter wrote a graph in {dtype} instead",
            hint="leave it out, or ask the other exporter",
        )


def in_dtype(case: LoadedCase, dtype: str | None) -> LoadedCase:
    """The case with a copy of the model, and its inputs, in another dtype."""
    if dtype is None or dtype == float_dtype_of(case.module):
        return case
    module, args, kwargs = placed(case.module, case.args, case.kwargs, NumericConfig("torch", dtype=dtype))
    return replace(case, module=module, args=args, kwargs=kwargs)


def export_graph(load: Load, dtype: str | None, path: Path, settings: ExportSettings, logs: str) -> None:
    """What the process of an export does.

    Args:
        load: makes the case.
        dtype: of the model; ``None``: its own.
        path: where the graph goes.
        settings: how to export.
        logs: folder for the exporter's log, which outlives this process' own temporary files.

    Raises:
        BisectError: the export failed.
    """
    try:
        export_case(in_dtype(load(), dtype), path, settings)
    except BisectError as error:
        for log in Path(tempfile.gettempdir()).glob("bisect-divergence-export-*.log"):
            kept = shutil.move(log, Path(logs) / log.name)
            error.message = error.message.replace(str(log), str(kept))
        raise


def run_pair(load: Load, options: Options, target: Path) -> None:
    """What a pair's own process does: loads, compares, and leaves the report as a file.

    Raises:
        UnavailableError: there is no such device, provider, version or switch here.
        BisectError: whatever else stops the comparison.
    """
    (pair,) = options.pairs
    _require(pair)
    report = bisect(in_dtype(load(), pair.expected.dtype), options)
    target.write_text(report_text(report), encoding="utf-8")


def _require(pair: ConfigPair) -> None:
    try:
        with applied(pair.expected):
            if pair.actual.backend == "onnxruntime":
                require_config(pair.actual)
    except InconclusiveError as error:
        raise UnavailableError(error.message, hint=error.hint) from error
