"""Calibration: known-good runs of several samples → limits for each stage of a model."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bisect_tool import __version__
from bisect_tool.backends.architecture import graph_of, modules_of
from bisect_tool.backends.exporting import ExportSettings
from bisect_tool.backends.known_good_runs import (
    Sample,
    Variations,
    perturbed,
    torch_errors,
    usual_variations,
    with_matrix,
)
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_runner import keep_sessions
from bisect_tool.backends.reproducing import numbers_digest
from bisect_tool.backends.structures import bytes_of_weights, form_of
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.calibration.known_good import SampleErrors, add_report, with_copy
from bisect_tool.calibration.table_from_runs import Known, Made, table_of
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.executors import LOCAL, check_executor, run_tasks
from bisect_tool.matrix import Matrix
from bisect_tool.pipeline import LoadedCase, Options, Progress, bisect, export_case, keep_file
from bisect_tool.recorder import flatten_tensors
from bisect_tool.several import check_given_graph
from bisect_tool.tasks import Result, Task, task_key
from bisect_tool.temporary import temporary_folder
from bisect_tool.tolerances import make_tolerance

Load = Callable[[int], LoadedCase]
"""Makes the case of a sample by its number; for other processes it has to be possible to pickle."""

_WEIGHTS_OF_KEPT_SESSIONS = 256 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run for each sample.

    Attributes:
        false_alarm: that is asked for, for a whole run.
        onnx: a given file; it never widens a limit by more than rounding.
        with_onnx: run ONNX Runtime too; without ``onnx`` on an export.
        export: how to export.
        keep_onnx: where to leave the exported file. overwrite: what is there may be replaced.
        level, stages: which stages.
        draws: of made-up rounding, for each run of PyTorch.
        copies: of each sample with slightly other numbers, which are run too.
        perturbation: by what share the numbers of a copy differ at most.
        accepted: reductions of precision that count as correct (``tf32``, ``bf16``, ``fp16``).
        matrix: configurations that count as correct too, as far as they only round.
        memory_budget: bytes of activations that may be kept at once.
        threads: of both sides; 0 is each library's default.
    """

    false_alarm: float = 0.01
    onnx: Path | None = None
    with_onnx: bool = True
    export: ExportSettings = ExportSettings()
    keep_onnx: Path | None = None
    overwrite: bool = False
    level: str = "leaf"
    stages: tuple[str, ...] = ()
    draws: int = 2
    copies: int = 1
    perturbation: float = 1e-3
    accepted: tuple[str, ...] = ()
    matrix: Matrix | None = None
    memory_budget: int = 2 << 30
    threads: int = 0


@dataclass(frozen=True, slots=True)
class How:
    """Where the runs are made: see :func:`bisect_tool.executors.run_tasks`. ``folder``: for exports; all workers see it."""

    executor: str = LOCAL
    jobs: int = 1
    journal: Path | None = None
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of it.

    Attributes:
        made: the table and what it rests on.
        failed: why samples have no runs, by the sample's place.
        resumed: samples whose runs an earlier, interrupted command made.
    """

    made: Made
    failed: Mapping[int, str]
    resumed: int


def calibrate(
    cases: Sequence[LoadedCase],
    plan: Plan = Plan(),
    how: How = How(),
    progress: Progress = lambda _: None,
    load: Load | None = None,
) -> Calibrated:
    """Makes a tolerance table from known-good runs.

    Args:
        cases: samples of one model; each that differs from the others counts once.
        plan: what is run.
        how: where.
        progress: called with one line whenever something begins or ends.
        load: makes a case anew in another process; only in this one it may be left out.

    Raises:
        BisectError: unusable input, a model or a given file that does not run.
        InconclusiveError: no sample could be run.
    """
    if not 0 < plan.false_alarm < 1:
        raise BisectError(
            f"--false-alarm {plan.false_alarm}: a probability between 0 and 1", hint="for example --false-alarm 0.01"
        )
    if not cases:
        raise BisectError("no sample to calibrate with", hint="--input sample.pt, or a folder of samples")
    check_executor(how.executor, how.jobs)
    usual_variations(plan.accepted)
    module = cases[0].module
    if load is None:
        # Only this process has the cases.
        load = list(cases).__getitem__
    with temporary_folder(how.folder) as folder:
        files = _files(cases, plan, Path(folder), progress)
        identity = {"model": numbers_digest(module), "modules": _text_digest(modules_of(module)), **_facts(plan)}
        tasks: dict[str, tuple[int, Task]] = {}
        for number, case in enumerate(cases):
            inputs = inputs_digest(case)
            key = task_key(identity, inputs)
            # The same numbers in two files are one sample.
            tasks.setdefault(key, (number, Task(key, (load, number, int(inputs[:6], 16), plan, files[number]))))
        numbers = {key: number for key, (number, _) in tasks.items()}
        found: dict[int, Known] = {}
        failed: dict[int, str] = {}
        resumed = 0
        if len(tasks) < len(cases):
            progress(
                f"{len(cases) - len(tasks)} of {len(cases)} samples hold the same numbers as another: counted once"
            )

        def on_done(result: Result) -> None:
            done = len(found) + len(failed) + 1
            what = "resumed" if result.resumed else f"{result.seconds:.1f} s"
            progress(
                f"sample {numbers[result.key] + 1} ({what if result.error is None else result.error}): {done} of {len(tasks)}"
            )

        sessions = bytes_of_weights(module) <= _WEIGHTS_OF_KEPT_SESSIONS
        with _sessions(sessions):
            for result in run_tasks(
                [task for _, task in tasks.values()],
                sample_errors,
                how.executor,
                how.jobs,
                how.journal,
                on_done,
                about=identity,
            ):
                number = numbers[result.key]
                resumed += result.resumed
                if result.error is not None or result.hardware is None:
                    failed[number] = result.error or "its process was lost"
                else:
                    found[number] = Known(result.hardware.name, SampleErrors.from_json(result.value))
    if not found:
        number, reason = next(iter(failed.items()))
        name = cases[number].description.get("sample", cases[number].name)
        raise InconclusiveError(f"no sample could be run; the first, {name}: {reason}")
    known = [found[number] for number in sorted(found)]
    graph = next((each.errors.graph for each in known if each.errors.graph), {})
    about = {
        "level": plan.level,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tool": __version__,
        "accepted": tuple(plan.accepted),
    }
    return Calibrated(table_of(known, modules_of(module), graph, plan.false_alarm, about), failed, resumed)


def _sessions(keep: bool) -> contextlib.AbstractContextManager[None]:
    return keep_sessions() if keep else contextlib.nullcontext()


def _facts(plan: Plan) -> dict[str, Any]:
    """What of a plan changes a sample's runs, in plain values. The rate of false alarms does not."""
    return {
        "tool": __version__,
        "torch": torch.__version__,
        "onnx": _file_digest(plan.onnx) if plan.onnx is not None else "exported" if plan.with_onnx else "none",
        "export": asdict(plan.export) if plan.with_onnx and plan.onnx is None else None,
        "level": plan.level,
        "stages": list(plan.stages),
        "draws": plan.draws,
        "copies": plan.copies,
        "perturbation": plan.perturbation,
        "accepted": list(plan.accepted),
        "matrix": repr(plan.matrix.pairs) if plan.matrix is not None else None,
        "threads": plan.threads,
    }


def inputs_digest(case: LoadedCase) -> str:
    """Of the sample's tensors, and of whatever else it gives the model."""
    digest = hashlib.blake2b(form_of(case.args, case.kwargs).encode(), digest_size=16)
    for key, tensor in flatten_tensors((case.args, case.kwargs)):
        array = to_numpy(tensor)
        digest.update(f"{key} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return "unreadable"  # told where the file is read
    return digest.hexdigest()


def _text_digest(texts: Mapping[str, str]) -> str:
    return hashlib.blake2b(repr(sorted(texts.items())).encode(), digest_size=16).hexdigest()


def _files(cases: Sequence[LoadedCase], plan: Plan, folder: Path, progress: Progress) -> list[Path | None]:
    """The ONNX file for each sample; one export serves all samples of one form."""
    if not plan.with_onnx:
        return [None] * len(cases)
    if plan.onnx is not None:
        sources = [str(case.description.get("sample", case.name)) for case in cases]
        check_given_graph(plan.onnx, cases, sources)
        return [plan.onnx] * len(cases)
    made: dict[str, Path] = {}
    found: list[Path | None] = []
    for case in cases:
        form = form_of(case.args, case.kwargs)
        if form not in made:
            keep = plan.keep_onnx if not made else None
            own = folder / f"graph-{len(made)}"
            own.mkdir()
            path = own / (keep.name if keep else "model.onnx")
            progress(f"exporting with the {plan.export.exporter} exporter")
            export_case(case, path, plan.export)
            keep_file(path, keep, overwrite=plan.overwrite)
            made[form] = path
        found.append(made[form])
    return found


def sample_errors(load: Load, number: int, seed: int, plan: Plan, onnx: Path | None) -> dict[str, Any]:
    """All known-good runs of one sample, as plain values: what a worker does.

    Args:
        load: makes the case.
        number: of the sample.
        seed: of its made-up rounding and its copies. It follows from the sample, so that these are the same wherever it
            runs, and with or without an ONNX file.
        plan: what is run.
        onnx: the graph; ``None``: none.
    """
    case = load(number)
    if plan.threads:
        torch.set_num_threads(plan.threads)
    sample = Sample(case.module, case.args, case.kwargs, case.place)
    variations = replace(usual_variations(plan.accepted), draws=plan.draws)
    if plan.matrix is not None:
        variations = with_matrix(variations, plan.matrix)
    errors = torch_errors(sample, variations, plan.level, plan.stages, plan.memory_budget, seed)
    for copy in range(plan.copies):
        other = perturbed(sample, seed + 1 + copy, plan.perturbation)
        rounding = Variations(draws=plan.draws, batch=False)
        try:
            shown = torch_errors(other, rounding, plan.level, plan.stages, plan.memory_budget, seed + 1 + copy)
        except BisectError as error:
            # Numbers that are codes, or have to add up, can't be changed.
            errors.left_out.append(f"slightly other inputs: {error.message.splitlines()[0]}")
            continue
        shown.runs = {f"{name}, slightly other inputs": count for name, count in shown.runs.items()}
        with_copy(errors, shown)
    if onnx is not None:
        _with_onnx(case, errors, plan, onnx)
    return errors.as_json()


def _with_onnx(case: LoadedCase, errors: SampleErrors, plan: Plan, onnx: Path) -> None:
    """Adds what ONNX Runtime's runs show, as far as it is rounding."""
    levels = _levels(plan.matrix)
    options = Options(
        tolerance=make_tolerance(None, None, None),
        onnx=onnx,
        level=plan.level,
        stages=plan.stages,
        memory_budget=plan.memory_budget,
        threads=plan.threads,
        optimizations=("off", *levels),
        min_coverage=0.0,
        explain=False,
    )
    errors.graph = graph_of(OnnxProgram(load_onnx(onnx), onnx))
    try:
        add_report(errors, bisect(case, options), "ort-cpu-off", plan.accepted)
    except InconclusiveError as error:
        errors.left_out.append(f"ONNX Runtime: {error.message.splitlines()[0]}")


def _levels(matrix: Matrix | None) -> tuple[str, ...]:
    """Optimised levels that run untouched."""
    if matrix is None:
        return ("all",)
    found = [pair.actual.optimization for pair in matrix.pairs if pair.actual.device == "cpu"]
    return tuple(dict.fromkeys(level for level in found if level not in (None, "off")))
