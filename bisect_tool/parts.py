"""A model in several ONNX files: each part judged by itself, then all of them chained with PyTorch between them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from bisect_tool.backends.case import LoadedCase
from bisect_tool.backends.chaining import as_torch, noisy, run_exchanged, run_noisy
from bisect_tool.backends.files import reason_of
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_runner import UntouchedRun
from bisect_tool.backends.parts import (
    Call,
    Part,
    capture,
    feeds_of,
    find_parts,
    part_inputs,
    part_module,
)
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.compare import input_error
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.globs import matches as glob_matches
from bisect_tool.judging import OPTIMISED_SPREAD
from bisect_tool.merging import (
    CallReport,
    Chain,
    config_of,
    merged_alignment,
    merged_config,
    merged_rows,
    merged_verdict,
    part_results,
    renamer,
)
from bisect_tool.metrics import judge, measure
from bisect_tool.pipeline import Options, Progress, bisect
from bisect_tool.recorder import flatten_tensors
from bisect_tool.records import ConfigRun, ErrorMetrics, Finding, NumericConfig, OutputKey, OutputResult, Report
from bisect_tool.ticks import Labelled
from bisect_tool.verdicts import decide

Array = NDArray[Any]

MOST_CALLS = 8
"""Calls of a part that are compared, the first ones: each takes the time of a run of its own."""

SEED = 0
"""Of the random errors that PyTorch's own parts are given."""


def bisect_parts(
    case: LoadedCase, files: Mapping[str, Path], options: Options, progress: Progress = lambda _: None
) -> Report:
    """Compares a model with ONNX files of its parts.

    Args:
        case: the whole model and its inputs.
        files: by submodule; several that share a file are joined with ``+``. What lies in none of them is computed by
            PyTorch on both sides.
        options: as for :func:`bisect_tool.pipeline.bisect`; globs are of paths in the whole model. Nothing is exported.
        progress: called with one line whenever a step begins.

    Returns:
        One report: the stages of all parts, each part on PyTorch's own inputs; ``parts`` with what becomes of errors in
        the chain; final outputs of the chain.

    Raises:
        BisectError: a submodule that is not there or not called, a file that does not fit.
        InconclusiveError: no part could be compared.
    """
    return _Parts(case, files, options, progress).report()


@dataclass(slots=True)
class _File:
    """A part's file, and a session for each configuration."""

    path: Path
    program: OnnxProgram
    sessions: dict[str, UntouchedRun] = field(default_factory=dict)

    def run(self, config: str, actual: NumericConfig, feeds: Mapping[str, Array]) -> dict[str, Array | None]:
        if config not in self.sessions:
            self.sessions[config] = UntouchedRun(self.program, actual)
        return self.sessions[config].run(feeds)

    def names(self) -> frozenset[str]:
        graph = self.program.graph
        own = {name for node in graph.nodes for name in (node.name, *node.outputs) if name}
        return frozenset(own | graph.initializers | set(graph.inputs))


def _preflight(reports: Sequence[CallReport]) -> tuple[Finding, ...]:
    """What was found before the parts ran, each with the part's name; several calls of a part find the same."""
    found = [
        replace(finding, text=f"{each.part}: {finding.text}")
        for each in reports
        for finding in (each.report.preflight if each.report is not None else ())
    ]
    return tuple(dict.fromkeys(found))


class _Parts:
    def __init__(self, case: LoadedCase, files: Mapping[str, Path], options: Options, progress: Progress):
        self.case = case
        self.options = options
        self.progress = progress
        self.timings: dict[str, float] = {}
        self.notes: list[str] = list(case.notes)
        if not files:
            raise BisectError("no part is given", hint="a submodule and its ONNX file, for one part at least")
        self.parts = find_parts(case.module, list(files))
        self.files = {part.name: self._file(part, files[part.name]) for part in self.parts}
        self.rename = renamer({name: file.names() for name, file in self.files.items()})

    def report(self) -> Report:
        began = time.perf_counter()
        self.progress("running PyTorch, to see what the parts are called with")
        self.captured = capture(self.case.module, self.case.args, self.case.kwargs, self.parts, MOST_CALLS)
        self._spend("capture the parts' inputs", began)
        for part in self.parts:
            self._check_fits(part)
        self._check_globs()
        calls = [(call.order, part, number) for part in self.parts for number, call in enumerate(self._calls(part))]
        reports = [self._judge(part, number) for _, part, number in sorted(calls, key=lambda item: item[0])]
        first = next((each.report for each in reports if each.report is not None), None)
        if first is None:
            raise InconclusiveError("; ".join(dict.fromkeys(f"{each.part}: {each.reason}" for each in reports)))
        chains = {run.name: self._chain(run, reports) for run in first.configs}
        self.notes += [f"{name}: {chain.failed}" for name, chain in chains.items() if chain.failed]
        for part in self.parts:
            count, compared = self.captured.counts[part.name], len(self._calls(part))
            if count > compared:
                told = f"{part.name} is called {count} times; the first {compared} calls are compared"
                self.notes.append(f"{told}, the others only run in the chain")
        rename = self.rename
        rows = merged_rows(reports, rename)
        alignment = merged_alignment(reports, rename)
        runs = tuple(merged_config(run.name, reports, chains[run.name]) for run in first.configs)
        names = {name: str(file.path) for name, file in self.files.items()}
        parts = part_results(reports, names, self.captured.counts, chains)
        least, selected = self.options.min_coverage, bool(self.options.stages)
        verdict = decide(rows, runs, alignment, least, selected=selected)
        verdict = merged_verdict(verdict, reports, runs, parts, chains, rename, least, selected=selected)
        return Report(
            case={"name": self.case.name, **self.case.description, "parts": names},
            verdict=verdict,
            tolerance=self.options.tolerance,
            alignment=alignment,
            configs=runs,
            stages=tuple(rows),
            environment=first.environment,
            timings=self.timings,
            notes=tuple(dict.fromkeys(self.notes)),
            parts=parts,
            glue=self.captured.glue,
            preflight=_preflight(reports),
        )

    def _calls(self, part: Part) -> list[Call]:
        return self.captured.calls[part.name]

    def _spend(self, step: str, began: float) -> None:
        self.timings[step] = self.timings.get(step, 0.0) + time.perf_counter() - began

    def _file(self, part: Part, path: Path) -> _File:
        with self._told(part, path):
            return _File(path, OnnxProgram(load_onnx(path), path))

    def _told(self, part: Part, path: Path | None = None) -> _Told:
        return _Told(f"--part {part.name}={path or self.files[part.name].path}")

    # -- one part -----------------------------------------------------------------------------------------------------

    def _check_globs(self) -> None:
        """Refuses globs that no part has a stage for, before anything is compared."""
        inside = set().union(*self.captured.stages.values())
        glue = {stage.ref.stage for stage in self.captured.glue}
        for option, globs in (("--stages", self.options.stages), ("--group", self.options.groups)):
            for glob in globs:
                if any(glob_matches(path, glob) for path in inside) or glob == "(model)":
                    continue
                if any(glob_matches(path, glob) for path in glue):
                    raise BisectError(
                        f"{option} {glob!r}: lies in no part, PyTorch computes it on both sides",
                        hint="name stages of the parts",
                    )
                looks = ", ".join(sorted(inside)[:3])
                raise BisectError(f"{option} {glob!r}: no stage of a part matches", hint=f"stages look like: {looks}")

    def _check_fits(self, part: Part) -> None:
        """Refuses a file that does not take what its part is called with, before anything is compared."""
        graph = self.files[part.name].program.graph
        for number, call in enumerate(self._calls(part)):
            try:
                feeds_of(part, call, graph, call.starts)
            except BisectError as error:
                where = f"{self._told(part).where}, call {number}" if number else self._told(part).where
                hint = f"is this the file of {part.name}? its inputs are those that {part.name} has in the model"
                if number:
                    hint = f"{part.name} is called with several shapes: export it with dynamic axes"
                raise BisectError(f"{where}: {error.message}", hint=hint) from error

    def _judge(self, part: Part, number: int) -> CallReport:
        """One call of a part, on PyTorch's inputs."""
        call = self._calls(part)[number]
        label = f"{part.name}@{number}" if number else part.name
        args, kwargs = part_inputs(part, call, call.starts)
        case = LoadedCase(part.name, part_module(part, call), args, kwargs, place=call.place)
        own = self.captured.stages[part.name]
        stages, groups = (
            tuple(glob for glob in globs if glob == "(model)" or any(glob_matches(path, glob) for path in own))
            for globs in (self.options.stages, self.options.groups)
        )
        if self.options.stages and not stages:
            # Nothing in it was asked for; then its outputs are what counts.
            paths = call.place.paths
            stages = (paths.get("") or next(iter(paths.values())),) if len(part.members) == 1 else ("(model)",)
        options = replace(
            self.options, onnx=self.files[part.name].path, keep_onnx=None, stages=stages, groups=groups, measure=False
        )
        began = time.perf_counter()
        with self._told(part):
            try:
                report = bisect(case, options, Labelled(self.progress, label))
            except InconclusiveError as error:
                return CallReport(part.name, number, None, error.message)
            finally:
                self._spend(f"part {label}", began)
        self.notes += [f"{part.name}: {note}" for note in report.notes]
        return CallReport(part.name, number, report)

    # -- the chain ----------------------------------------------------------------------------------------------------

    def _chain(self, config: ConfigRun, reports: Sequence[CallReport]) -> Chain:
        """The model with every part's file in its place, each fed with what the chain has made so far."""
        runs = {(each.part, each.call): run for each in reports if (run := config_of(each, config.name)) is not None}
        for part in self.parts:
            if (part.name, 0) not in runs or not runs[part.name, 0].outputs:
                return Chain((), {}, f"the chain was not run, since {part.name} has no answer")
        self.progress(f"chaining the parts ({config.name})")
        began = time.perf_counter()
        measured: dict[tuple[str, int], tuple[float | None, Mapping[Any, ErrorMetrics]]] = {}
        sources: dict[int, tuple[str, torch.Tensor]] = {}
        rename = self.rename
        called: Counter[str] = Counter()

        def compute(part: Part, number: int, call: Call, given: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            called[part.name] += 1
            file = self.files[part.name]
            errors = {key: _metrics(call.starts[key], given[key]).rel_l2 for key in call.starts}
            run = runs.get((part.name, number), runs[part.name, 0])
            with self._told(part):
                feeds = feeds_of(part, call, file.program.graph, given)
                results = file.run(config.name, run.actual, feeds)
            bound = {out.output: out.onnx_value for out in run.outputs}
            kept = call.steps[-1].results
            made = {}
            totals = {}
            for key, old in flatten_tensors(call.output):
                array = results.get(bound.get(key, ""))
                made[id(old)] = tensor = as_torch(array, kept[id(old)])
                sources[id(tensor)] = rename(part.name, bound.get(key, "")), tensor
                totals[key] = judge(to_numpy(kept[id(old)]), array, self.options.tolerance)[0]
            if (part.name, number) in runs:
                measured[part.name, number] = input_error(call.starts, errors.get), totals
            return made

        args, kwargs, module = self.case.args, self.case.kwargs, self.case.module
        try:
            outputs = run_exchanged(module, args, kwargs, self.parts, self.captured.calls, compute)
        except (Exception, SystemExit) as error:  # the user's code meets tensors that it has never seen
            # On one line, as a note has to be.
            reason = " ".join(error.message.split()) if isinstance(error, BisectError) else reason_of(error)
            return Chain((), measured, f"the model fails with the files in its parts' place: {reason}")
        finally:
            self._spend(f"chain {config.name}", began)
        for part in self.parts:
            if called[part.name] != self.captured.counts[part.name]:
                self.notes.append(
                    f"{config.name}: the chain calls {part.name} {called[part.name]} times, PyTorch "
                    f"{self.captured.counts[part.name]} times"
                )
        names = {key: sources[id(tensor)][0] for key, tensor in outputs if id(tensor) in sources}
        found = self._results({key: to_numpy(tensor) for key, tensor in outputs}, names)
        return self._explained(config.name, Chain(found, measured), runs)

    def _results(self, arrays: Mapping[OutputKey, Array], names: Mapping[OutputKey, str]) -> tuple[OutputResult, ...]:
        results = []
        for key, expected in self.captured.outputs:
            total, judgement = judge(expected, arrays.get(key), self.options.tolerance)
            if 0 < total.count == total.nonfinite_expected and not total.nonfinite_mismatch and not total.problem:
                judgement = "not compared"
            results.append(OutputResult(key, names.get(key, "(PyTorch)"), total, judgement))
        return tuple(results)

    def _explained(self, config: str, chain: Chain, runs: Mapping[tuple[str, int], ConfigRun]) -> Chain:
        """Whether outputs over the default limit, of parts that all agree, are rounding that grew on its way.

        PyTorch's own parts are given random errors of the size that the files made: what the model makes of these is
        what it may make of the files' rounding. With no error at all it shows whether PyTorch repeats itself.
        """
        failing = [out for out in chain.outputs if out.judgement == "fail"]
        if not failing or any(run.status != "agrees" for run in runs.values()):
            return chain
        again = self._noisy(lambda part, number, key: 0.0)
        if any(out.judgement == "fail" for out in self._results(again, {})):
            return replace(chain, random=True)
        if self.options.tolerance.source != "default":
            return chain
        errors = {
            (part, number, out.output): out.total.rel_l2 for (part, number), run in runs.items() for out in run.outputs
        }
        noise = self._noisy(lambda part, number, key: errors.get((part, number, key), errors.get((part, 0, key), 0.0)))
        reached = {out.output: out.total.rel_l2 for out in self._results(noise, {})}
        grown = [
            out
            for out in failing
            if not out.total.problem
            and not out.total.nonfinite_mismatch
            and out.total.rel_l2 <= OPTIMISED_SPREAD * reached[out.output]
        ]
        outputs = tuple(replace(out, judgement="pass") if out in grown else out for out in chain.outputs)
        return replace(chain, outputs=outputs, grown=tuple(grown))

    def _noisy(self, error: Callable[[str, int, OutputKey], float]) -> dict[OutputKey, Array]:
        generator = torch.Generator().manual_seed(SEED)

        def disturb(part: Part, number: int, key: OutputKey, tensor: torch.Tensor) -> torch.Tensor:
            return noisy(tensor, error(part.name, number, key), generator)

        outputs = run_noisy(
            self.case.module, self.case.args, self.case.kwargs, self.parts, self.captured.calls, disturb
        )
        return {key: to_numpy(tensor) for key, tensor in outputs}


def _metrics(expected: torch.Tensor, actual: torch.Tensor) -> ErrorMetrics:
    return measure(to_numpy(expected), to_numpy(actual))


@dataclass(frozen=True, slots=True)
class _Told:
    """Errors inside say which part they are about."""

    where: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, BisectError) and not error.message.startswith("--part"):
            error.message = f"{self.where}: {error.message}"
