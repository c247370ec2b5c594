"""A whole job: a case and its options in, a report or an inspection out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bisect_tool.backends.case import LoadedCase, check_forward, check_opset, export_case, keep_file
from bisect_tool.backends.compiled import compiled_note, original
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.errors import BisectError
from bisect_tool.inspection import Inspection
from bisect_tool.pipeline.bisection import Bisection
from bisect_tool.pipeline.options import Options, Progress
from bisect_tool.records import Report
from bisect_tool.temporary import temporary_folder
from bisect_tool.ticks import tell_count
from bisect_tool.verdicts import kept_stages_line


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
def _opened(case: LoadedCase, options: Options, steps: _Steps) -> Iterator[Bisection]:
    """The given graph, or one that is exported and goes when this ends, ready to be aligned."""
    with temporary_folder() as folder:
        path = options.onnx
        if path is None and options.graphs is not None:
            path = options.graphs.path(case, options.export, steps.step)
        if path is None:
            path = Path(folder) / (options.keep_onnx.name if options.keep_onnx else "model.onnx")
            with steps.step("export", f"exporting with the {options.export.exporter} exporter"):
                export_case(case, path, options.export)
                keep_file(path, options.keep_onnx, overwrite=options.overwrite)
        with steps.step("load", "reading the ONNX graph"):
            try:
                model = load_onnx(path)
            except BisectError:
                if options.onnx is None:
                    # What the user never gave is not to be complained of.
                    check_forward(case)
                raise
            if options.onnx is None:
                check_opset(model.opset_imports.get(""), options.export)
            program = OnnxProgram(model, path)
        yield Bisection(case, options, program, steps.step, steps.count)


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
