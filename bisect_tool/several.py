"""Runs many samples: one export serves all that have inputs of the same form, and what tracing baked in is diagnosed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bisect_tool.backends.case import LoadedCase, export_case, keep_file
from bisect_tool.backends.environment_facts import snapshot
from bisect_tool.backends.exporting import ExportSettings
from bisect_tool.backends.inputs import bind_inputs, sample_tensors
from bisect_tool.backends.onnx_graph import describe, load_onnx
from bisect_tool.backends.operations import operations_of
from bisect_tool.backends.ort_runner import keep_sessions
from bisect_tool.backends.structures import bytes_of_weights, form_of
from bisect_tool.baked import diagnose
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.many import report_on_all, sample_name, sample_result, worst_sample
from bisect_tool.pipeline import Step
from bisect_tool.records import Alignment, Diagnosis, Operation, Report, SampleResult, Tolerance, Verdict
from bisect_tool.temporary import temporary_folder

_WEIGHTS_OF_KEPT_SESSIONS = 256 << 20
"""Bytes of weights up to which sessions are kept from sample to sample: each may hold a packed copy of them."""


class SharedGraphs:
    """Exports of one model, each made once with the first sample of its form.

    Args:
        folder: where they lie; it outlives all runs.
        keep_onnx: where to leave the first one that is asked for.
        overwrite: what is there may be replaced.
    """

    def __init__(self, folder: Path, keep_onnx: Path | None = None, *, overwrite: bool = False):
        self._folder = folder
        self._keep = keep_onnx
        self._overwrite = overwrite
        self._cases: dict[str, LoadedCase] = {}
        self._made: dict[tuple[str, ExportSettings], Path | BisectError] = {}

    def path(self, case: LoadedCase, settings: ExportSettings, step: Step) -> Path:
        """The graph for a case; an export that failed once fails again.

        Raises:
            BisectError: the export failed.
        """
        form = form_of(case.args, case.kwargs)
        # A second export of that form, with other settings, must follow the same run.
        first = self._cases.setdefault(form, case)
        key = form, settings
        if key not in self._made:
            try:
                self._made[key] = self._export(first, settings, step)
            except BisectError as error:
                self._made[key] = error
        found = self._made[key]
        if isinstance(found, BisectError):
            raise found
        return found

    def folder_for_matrix(self, index: int) -> Path:
        """A folder for the graphs of a matrix that are exported with one of the samples."""
        folder = self._folder / f"matrix-{index}"
        folder.mkdir()
        return folder

    def _export(self, case: LoadedCase, settings: ExportSettings, step: Step) -> Path:
        folder = self._folder / f"graph-{len(self._made)}"
        folder.mkdir()
        keep = self._keep if not self._made else None
        path = folder / (keep.name if keep else "model.onnx")
        with step("export", f"exporting with the {settings.exporter} exporter"):
            export_case(case, path, settings)
            keep_file(path, keep, overwrite=self._overwrite)
        return path


@dataclass(frozen=True, slots=True)
class Judged:
    """One sample's report, and its line."""

    report: Report
    result: SampleResult


@dataclass(slots=True)
class Samples:
    """All samples of a command, judged one after the other.

    Attributes:
        cases: the samples, in their order.
        sources: files that they came from.
        tolerance: in force.
        given: the graph is a given file, which serves all of them.
    """

    cases: Sequence[LoadedCase]
    sources: Sequence[str]
    tolerance: Tolerance
    given: bool
    judged: list[Judged] = field(default_factory=list)
    _operations: dict[int, tuple[Operation, ...]] = field(default_factory=dict)
    _same: bool = False

    def first_of_form(self, index: int) -> int:
        """The first sample with inputs of the same form: the one whose export serves."""
        forms = [form_of(case.args, case.kwargs) for case in self.cases[: index + 1]]
        return forms.index(forms[index])

    def note(self, index: int) -> str | None:
        """What to say about a sample that needs an export of its own."""
        if self.given or index == 0 or self.first_of_form(index) != index:
            return None
        case, first = self.cases[index], self.cases[0]
        return (
            f"exported anew for this sample: its inputs are {form_of(case.args, case.kwargs)}, "
            f"those of sample 0 {form_of(first.args, first.kwargs)}"
        )

    def judge(self, index: int, run: Callable[[LoadedCase], Report], folder: str) -> Judged:
        """One sample's report; no answer is an answer too, so that the other samples get theirs."""
        case = self.cases[index]
        note = self.note(index)
        if note is not None:
            case = replace(case, notes=(*case.notes, note))
        reason = None
        try:
            report = run(case)
        except InconclusiveError as error:
            reason = error.message
            report = self._without_answer(case, error)
        exported_from = None if self.given else self.first_of_form(index)
        result = sample_result(report, index, self.sources[index], folder, exported_from, reason)
        judged = Judged(report, result)
        self.judged.append(judged)
        diagnosis = self._diagnosis(index)
        if diagnosis is not None:
            judged = self.judged[-1] = Judged(_with(report, diagnosis), result)
        return judged

    def diagnosed_late(self) -> Iterator[Judged]:
        """Samples that diverged before one agreed, with what could be diagnosed only then."""
        for index, judged in enumerate(self.judged):
            if any(each.code == "BD401" for each in judged.report.verdict.diagnoses):
                continue
            diagnosis = self._diagnosis(index)
            if diagnosis is not None:
                self.judged[index] = Judged(_with(judged.report, diagnosis), judged.result)
                yield self.judged[index]

    @property
    def worst(self) -> SampleResult:
        """Of all samples that were judged."""
        return worst_sample([judged.result for judged in self.judged])

    def all_together(self) -> Report:
        """The report on all samples."""
        results = [judged.result for judged in self.judged]
        worst = self.judged[self.worst.index]
        baked = [d for judged in self.judged for d in judged.report.verdict.diagnoses if d.code == "BD401"]
        notes = [(judged.result, self.note(judged.result.index)) for judged in self.judged]
        lines = [
            f"{sample_name(result)}: {note}"
            for result, note in notes
            if note is not None and result is not worst.result
        ]
        return report_on_all(worst.report, results, baked, by_values=self._same and not baked, notes=lines)

    def _diagnosis(self, index: int) -> Diagnosis | None:
        result = self.judged[index].result
        failed = (
            result.status == "inconclusive" and result.reason is not None and "ONNX Runtime failed" in result.reason
        )
        if result.status != "diverges" and not failed:
            return None
        agreeing = self._agreeing(index)
        if agreeing is None:
            return None
        runs = [self._operations_of(number) for number in (agreeing, index)]
        if not all(runs):
            return None
        forms = [form_of(self.cases[number].args, self.cases[number].kwargs) for number in (agreeing, index)]
        first = result.first_over_tolerance
        found = diagnose(
            runs[0],
            runs[1],
            (sample_name(self.judged[agreeing].result), sample_name(result)),
            first.ref if first is not None else None,
            same_shapes=forms[0] == forms[1],
            failure=result.reason if failed else None,
            exported=not self.given,
        )
        self._same = self._same or found is None
        return found

    def _agreeing(self, index: int) -> int | None:
        """A sample on which the same graph agrees: the one that it was exported with, else the first."""
        result = self.judged[index].result
        fitting = [
            judged.result.index
            for judged in self.judged
            if judged.result.status == "agrees" and judged.result.exported_from == result.exported_from
        ]
        if result.exported_from in fitting:
            return result.exported_from
        return fitting[0] if fitting else None

    def _operations_of(self, index: int) -> tuple[Operation, ...]:
        if index not in self._operations:
            case = self.cases[index]
            try:
                self._operations[index] = operations_of(case.module, case.args, case.kwargs)
            except Exception:  # what only serves an explanation must not cost the report
                self._operations[index] = ()
        return self._operations[index]

    def _without_answer(self, case: LoadedCase, error: InconclusiveError) -> Report:
        lines = (error.message, *([error.hint] if error.hint else []))
        return Report(
            case={"name": case.name, **case.description},
            verdict=Verdict("inconclusive", lines, None, (), ()),
            tolerance=self.tolerance,
            alignment=Alignment((), (), (), 0, 0, None),
            configs=(),
            stages=(),
            environment=snapshot(),
            timings={},
            notes=case.notes,
        )


def _with(report: Report, diagnosis: Diagnosis) -> Report:
    line = f"{diagnosis.code}: {diagnosis.title}: the graph holds what PyTorch did on another sample"
    verdict = report.verdict
    # What a change of single nodes shows, or fails to show, is this: their remedy would break the other samples.
    others = [each for each in verdict.diagnoses if each.origin is None]
    # One sample by itself could not show it.
    ruled_out = tuple(each for each in verdict.ruled_out if each.code != diagnosis.code)
    verdict = replace(verdict, summary=(*verdict.summary, line), diagnoses=(diagnosis, *others), ruled_out=ruled_out)
    return replace(report, verdict=verdict)


def check_given_graph(path: Path, cases: Sequence[LoadedCase], sources: Sequence[str]) -> None:
    """Refuses samples that a given file can't take, before anything runs.

    Raises:
        BisectError: the first sample that does not fit, by name.
    """
    graph = describe(load_onnx(path))
    for case, source in zip(cases, sources, strict=True):
        try:
            bind_inputs(graph, sample_tensors(case.module, case.args, case.kwargs))
        except BisectError as error:
            raise BisectError(f"sample {source}: {error.message}", hint=error.hint) from error


@contextlib.contextmanager
def shared_work(module: Any, keep_onnx: Path | None, *, overwrite: bool) -> Iterator[SharedGraphs]:
    """What samples share while they run: exports, and sessions of ONNX Runtime where the weights are not too many."""
    sessions = keep_sessions() if bytes_of_weights(module) <= _WEIGHTS_OF_KEPT_SESSIONS else contextlib.nullcontext()
    with temporary_folder() as folder, sessions:
        yield SharedGraphs(Path(folder), keep_onnx, overwrite=overwrite)


def progress_line(number: int, count: int, source: str) -> str:
    """``sample frame.pt (2 of 5)``."""
    return f"sample {Path(source).name or source} ({number + 1} of {count})"
