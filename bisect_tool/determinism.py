"""Does a model repeat itself? Several runs in one process, in fresh ones and with other threads, compared bit by bit.

Every run is a recording of its own, summaries only: digests say exactly which stage is the first to differ, projections by
how much. Where runs differ, the switches that may make them repeat are tried one by one.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bisect_tool.backends.case import LoadedCase, export_case
from bisect_tool.backends.isolation import InternalError, run_isolated
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.records import NumericConfig, Report

Load = Callable[[], LoadedCase]
Where = Literal["one process", "fresh processes"]

DETERMINISM_VERSION = 1


@dataclass(frozen=True, slots=True)
class How:
    """How runs are made.

    Attributes:
        runner: ``torch`` or ``onnxruntime``.
        threads: 0: as many as the library takes.
        seed: of every generator, before the model is built and before each run; ``None``: as they are.
        deterministic: PyTorch's deterministic algorithms.
        mode: of the model.
        level: ``op``: operations inside leaf modules too.
    """

    runner: Literal["torch", "onnxruntime"] = "torch"
    threads: int = 0
    seed: int | None = None
    deterministic: bool = False
    mode: str = "eval"
    level: str = "leaf"


@dataclass(frozen=True, slots=True)
class Series:
    """Runs that were compared with the first of them.

    Attributes:
        name: in words.
        runs: how many, the first included.
        counts: whether a difference counts for the verdict; other threads need not give the same bits.
        stable: bit-identical in every stage and output; ``None``: it could not run.
        differing: runs that differ from the first.
        first_stage, first_error: the first stage that differs, and its largest relative L2 over all runs.
        output_error: largest relative L2 of an output.
        cause: the first cause as ``compare`` tells it.
        problem: why it could not run.
    """

    name: str
    runs: int
    counts: bool
    stable: bool | None
    differing: int = 0
    first_stage: str | None = None
    first_error: float | None = None
    output_error: float | None = None
    cause: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A switch that was tried where runs differed. ``code``: what sets it; ``series``: what came of it."""

    switch: str
    code: str
    series: Series


@dataclass(frozen=True, slots=True)
class Determinism:
    """The answer: ``repeats`` | ``differs`` | ``inconclusive``, with what was run and tried."""

    status: Literal["repeats", "differs", "inconclusive"]
    summary: tuple[str, ...]
    series: tuple[Series, ...]
    tried: tuple[Tried, ...]
    determinism_version: int = DETERMINISM_VERSION


SWITCHES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("eval mode", "model.eval()", {"mode": "eval"}),
    (
        "a seed",
        "random.seed(0); numpy.random.seed(0); torch.manual_seed(0)  # before building and before each run",
        {"seed": 0},
    ),
    ("deterministic algorithms", "torch.use_deterministic_algorithms(True)", {"deterministic": True}),
    ("one thread", "torch.set_num_threads(1)", {"threads": 1}),
)
"""In the order in which they are tried: the cheapest first."""


def examine(
    load: Load, folder: Path, how: How, runs: int, *, onnx: Path | None, with_onnx: bool, say: Callable[[str], None]
) -> Determinism:
    """Runs a model again and again.

    Args:
        load: makes the case, in each process anew.
        folder: for recordings; they go with it.
        how: the runs are made otherwise than by a switch that is tried.
        runs: in each series.
        onnx: graph to run as well; ``None`` with ``with_onnx``: one is exported.
        with_onnx: whether ONNX Runtime is asked at all.
        say: told what is done.

    Raises:
        BisectError: the model can't be loaded or run.
    """
    say("loading the model")
    with contextlib.suppress(InternalError):  # told as what keeps the first runs from running
        run_isolated(_check, load, onnx if with_onnx else None, folder=folder)
    maker = _Maker(load, folder, onnx, say)
    found = [maker.series("one process", how, runs), maker.series("fresh processes", how, runs)]
    if all(series.stable is None for series in found):
        raise InconclusiveError(str(found[0].problem), hint="run the model on its own first")
    found += maker.thread_series(how)
    if with_onnx:
        runtime = replace(how, runner="onnxruntime", level="leaf")
        found += [maker.series("one process", runtime, runs), maker.series("fresh processes", runtime, runs)]
    tried = maker.try_switches([series for series in found if series.counts and series.stable is False], how, runs)
    counting = [series for series in found if series.counts]
    differing = [series for series in counting if series.stable is False]
    status: Literal["repeats", "differs", "inconclusive"] = "repeats"
    if differing:
        status = "differs"
    elif any(series.stable is None for series in counting):
        status = "inconclusive"
    return Determinism(status, tuple(_summary(found, tried)), tuple(found), tuple(tried))


class _Maker:
    def __init__(self, load: Load, folder: Path, onnx: Path | None, say: Callable[[str], None]):
        self.load = load
        self.folder = folder
        self.onnx = onnx
        self.say = say
        self._count = 0
        self._base: dict[str, Path] = {}

    def series(self, where: Where, how: How, runs: int, name: str | None = None, counts: bool = True) -> Series:
        title = f"{_runner(how)}, {name or where}"
        self.say(f"{title}: {runs} runs")
        try:
            paths = self._record(where, how, runs)
        except (BisectError, InternalError) as error:
            text = error.message if isinstance(error, BisectError) else error.reason
            return Series(title, runs, counts, None, problem=text.splitlines()[0])
        self._base.setdefault(how.runner, paths[0])
        return _compared(title, paths[0], paths[1:], counts)

    def thread_series(self, how: How) -> list[Series]:
        """One run for each other number of threads, against the first of the others; where there are other numbers."""
        base = self._base.get(how.runner)
        cores = os.cpu_count() or 1
        numbers = sorted({1, 2, max(1, cores // 2), cores} - {how.threads or torch.get_num_threads()})
        if base is None or cores == 1:
            return []
        found = []
        for number in numbers:
            self.say(f"{_runner(how)}, {number} thread{'s' if number > 1 else ''}")
            title = f"{_runner(how)}, {number} thread{'s' if number > 1 else ''} against {how.threads or 'the default'}"
            with contextlib.suppress(BisectError, InternalError):
                paths = self._record("fresh processes", replace(how, threads=number, seed=how.seed), 1)
                found.append(_compared(title, base, paths, counts=False))
        return found

    def try_switches(self, unstable: Sequence[Series], how: How, runs: int) -> list[Tried]:
        """Each switch alone, on the kind of runs that differ; if none helps, all of them."""
        own = [series for series in unstable if series.name.startswith("PyTorch")]
        if not own:
            return []
        where: Where = "one process" if own[0].name.endswith("one process") else "fresh processes"
        found = []
        every: dict[str, Any] = {}
        for switch, code, change in SWITCHES:
            if all(getattr(how, key) == value for key, value in change.items()):
                continue
            every.update(change)
            found.append(
                Tried(switch, code, self.series(where, replace(how, **change), runs, f"{where}, with {switch}"))
            )
        if not any(tried.series.stable for tried in found):
            series = self.series(where, replace(how, **every), runs, f"{where}, with all of them")
            found.append(Tried("all of them", "; ".join(code for _, code, _ in SWITCHES), series))
        return found

    def _record(self, where: Where, how: How, runs: int) -> list[Path]:
        self._count += 1
        place = self.folder / f"series-{self._count}"
        place.mkdir()
        if how.runner == "onnxruntime" and self.onnx is None:
            self.onnx = self.folder / "model.onnx"
            run_isolated(_export, self.load, self.onnx, folder=self.folder)
        if where == "one process":
            return run_isolated(record_runs, self.load, place, "run", runs, how, self.onnx, folder=self.folder)
        paths: list[Path] = []
        for number in range(runs):
            # With a variable of its own each interpreter is started anew, hash seed and generators included.
            fresh = {"BISECT_TOOL_RUN": str(number)}
            arguments = (self.load, place, f"run-{number}", 1, how, self.onnx)
            paths += run_isolated(record_runs, *arguments, folder=self.folder, environment=fresh)
        return paths


def _runner(how: How) -> str:
    return "PyTorch" if how.runner == "torch" else "ONNX Runtime"


def _check(load: Load, onnx: Path | None) -> None:
    """Whether there is a case at all: what is missing or does not fit is an error before any run, and no answer."""
    from bisect_tool.backends.onnx_graph import load_onnx

    if onnx is not None:
        load_onnx(onnx)
    load()


def _export(load: Load, path: Path) -> None:
    from bisect_tool.backends.exporting import ExportSettings

    export_case(load(), path, ExportSettings())


def record_runs(load: Load, folder: Path, prefix: str, runs: int, how: How, onnx: Path | None) -> list[Path]:
    """In a process of its own: loads the model once and records so many runs of it.

    Raises:
        BisectError: the model can't be run so.
    """
    from bisect_tool.backends.ort_runner import keep_sessions
    from bisect_tool.recorder import RecordError, random_state, seed_all

    if how.seed is not None:
        seed_all(how.seed)
    if how.threads:
        torch.set_num_threads(how.threads)
    if how.deterministic:
        torch.use_deterministic_algorithms(True)
    start = random_state()
    case = load()
    built = random_state()
    case.module.train(how.mode == "train")
    paths = []
    # A generator of ONNX Runtime's is seeded where a session is made, and goes on from run to run.
    sessions = keep_sessions() if how.runner == "onnxruntime" else contextlib.nullcontext()
    try:
        with sessions:
            for number in range(runs):
                if how.seed is not None:
                    seed_all(how.seed)
                path = folder / f"{prefix}-{number}.trace"
                _record_one(case, path, how, onnx, {"start": start, "built": built})
                paths.append(path)
    except RecordError as error:
        raise BisectError(error.message, hint=error.hint) from error
    return paths


def _record_one(case: LoadedCase, path: Path, how: How, onnx: Path | None, states: dict[str, Any]) -> None:
    from bisect_tool.backends.compiled import eagerly
    from bisect_tool.recorder import Recording, configuration_of

    with Recording(path, summary=True, every_op=how.level == "op") as recording:
        recording.states.update(states)
        recording.moment("sample")
        if how.runner == "onnxruntime":
            configuration = _run_onnx(recording, case, how, onnx)
        else:
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                recording.run(case.module, case.args, case.kwargs, eagerly())
            configuration = configuration_of(case.module, mode=how.mode)
        recording.states.setdefault("end", recording.states["sample"])
        recording.finish(configuration, surroundings={})


def _run_onnx(recording: Any, case: LoadedCase, how: How, onnx: Path | None) -> dict[str, Any]:
    from bisect_tool.backends.inputs import sample_tensors
    from bisect_tool.backends.onnx_recording import run_onnx

    assert onnx is not None
    config = NumericConfig("onnxruntime", optimization="off", threads=how.threads)
    found = run_onnx(onnx, sample_tensors(case.module, case.args, case.kwargs), config)
    recording.put_stages(found.stages, found.outputs, found.inputs)
    return dict(found.configuration)


def _compared(title: str, first: Path, others: Sequence[Path], counts: bool) -> Series:
    stage, cause, error, output, differing = None, None, 0.0, 0.0, 0
    for path in others:
        report = compare_recordings(first, path)
        links = {link.link: link for link in report.chain}
        apart = [name for name in ("data", "weights", "stages", "outputs") if links[name].status == "differs"]
        if not apart:
            continue
        differing += 1
        differences = links["stages"].differences
        if stage is None:
            stage = differences[0].what if differences else None
            cause = _cause(report)
        error = max(error, _error_at(report, stage))
        output = max(output, *(_number(out.total.rel_l2) for out in report.configs[0].outputs), 0.0)
    if not differing:
        return Series(title, len(others) + 1, counts, True)
    return Series(title, len(others) + 1, counts, False, differing, stage, error, output, cause)


def _number(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _error_at(report: Report, stage: str | None) -> float:
    name = report.configs[0].name
    for row in report.stages:
        if str(row.ref) == stage and name in row.results:
            return _number(row.results[name].total.rel_l2)
    return 0.0


def _cause(report: Report) -> str | None:
    cause = report.verdict.first_cause
    if cause is None:
        return None
    note = f" ({cause.difference.note})" if cause.difference.note else ""
    return f"{cause.link}: {cause.difference.what}{note}"


def _summary(series: Sequence[Series], tried: Sequence[Tried]) -> list[str]:
    differing = [each for each in series if each.counts and each.stable is False]
    lines = []
    if not differing:
        runs = sum(each.runs for each in series if each.counts and each.stable)
        lines.append(f"it repeats itself: {runs} runs, every stage and output the same bit for bit")
    for each in differing:
        where = (
            f"first at {each.first_stage} (relative L2 {each.first_error:.1e})"
            if each.first_stage
            else "in its outputs alone"
        )
        lines.append(f"{each.name}: {each.differing} of {each.runs - 1} runs differ from the first, {where}")
    helping = [each for each in tried if each.series.stable]
    if helping:
        lines.append(f"what makes it stable: {'; '.join(f'{each.switch} ({each.code})' for each in helping)}")
    elif tried:
        lines.append(f"nothing that was tried makes it stable: {', '.join(each.switch for each in tried)}")
    threads = [each for each in series if not each.counts and each.stable is False]
    if threads and not any(each.name.startswith("PyTorch") for each in differing):
        worst = max(threads, key=lambda each: each.output_error or 0.0)
        lines.append(
            f"other numbers of threads give other bits, up to {worst.output_error:.1e} in the outputs: rounding as a rule"
        )
    return lines
