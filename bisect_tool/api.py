"""The commands as functions: models and inputs in memory or in files, and records instead of output.

Nothing heavy is imported before a function is called. Whatever the user can mend is raised as a
:class:`~bisect_tool.errors.BisectError` (its ``hint`` is the remedy), no verdict at all as an
:class:`~bisect_tool.errors.InconclusiveError`. Nothing is printed, and nothing written unless a place is given.

Wherever a ``model`` is taken, it is an ``nn.Module`` (judged in eval mode, and left in the mode that it had), or what the
command line takes for MODEL: ``model.py``, ``package.module:NAME``, a TorchScript archive, a ``.pt2`` program. ``inputs``
are those of one call of ``forward``: a tensor, a numpy array, a tuple of them, a dictionary of keyword arguments, or
``{"args": (...), "kwargs": {...}}``; or paths of sample files and folders, where several make several samples.
Sizes are in bytes or text like ``"2GiB"``, times in seconds, errors relative to the reference's norm unless a name says
otherwise.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from bisect_tool.errors import BisectError
from bisect_tool.temporary import temporary_folder
from bisect_tool.whole_files import write_whole

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypedDict, Unpack

    from bisect_tool.calibration.tolerance_table import ToleranceTable
    from bisect_tool.data.records import DataComparison
    from bisect_tool.determinism import Determinism
    from bisect_tool.environments.diff import EnvironmentDiff
    from bisect_tool.inspection import Inspection
    from bisect_tool.pipeline import LoadedCase, Options
    from bisect_tool.records import Report
    from bisect_tool.verification import Function

    Model = torch.nn.Module | str | os.PathLike[str]

    class CompareOptions(TypedDict, total=False):
        """Keyword arguments of :func:`bisect` that other functions hand on."""

        checkpoint: PathLike | None
        entry: str | None
        entry_args: Mapping[str, Any] | None
        allow_pickle: bool
        name: str | None
        max_abs: float | None
        atol: float | None
        rtol: float | None
        min_sqnr: float | None
        level: str | None
        stages: Sequence[str]
        groups: Sequence[str]
        min_coverage: float
        optimizations: Sequence[Optimization]
        exporter: Literal["dynamo", "torchscript"] | None
        opset: int | None
        keep_onnx: PathLike | None
        threads: int
        memory_budget: int | str
        report: PathLike | None
        force: bool


PathLike = str | os.PathLike[str]
Progress = Callable[[str], None]
Optimization = Literal["off", "basic", "extended", "layout", "all"]


@overload
def bisect(
    model: LoadedCase, inputs: Options, onnx: Progress | None = None, *, progress: Progress | None = None
) -> Report: ...


@overload
def bisect(
    model: Model,
    inputs: Any,
    onnx: PathLike | None = None,
    *,
    tolerances: PathLike | ToleranceTable | None = None,
    progress: Progress | None = None,
    **options: Unpack[CompareOptions],
) -> Report: ...


def bisect(
    model: Any, inputs: Any = None, onnx: Any = None, *, progress: Progress | None = None, **options: Any
) -> Report:
    """Finds the first stage where an ONNX graph leaves its PyTorch model, and where the error is made.

    >>> import torch, bisect_tool
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> report = bisect_tool.bisect(model, torch.ones(2, 4), exporter="torchscript")
    >>> report.verdict.status
    'agrees'
    >>> [(row.stage, row.shape, row.results["ort-cpu-off"].judgement) for row in report.stages]
    [('0', (2, 3), 'pass'), ('1', (2, 3), 'pass')]

    Args:
        model: see the module's own text; or a :class:`LoadedCase`, then ``inputs`` are :class:`Options`.
        inputs: of ``forward``, or paths.
        onnx: the file to judge; ``None``: the model is exported.
        checkpoint, entry, entry_args: of a model in a file: its weights, what makes it, and with which arguments.
        name: of the case.
        tolerances: calibrated limits, a table or its file.
        max_abs: largest absolute difference, in the tensor's unit. atol, rtol: as in ``allclose``, both or none.
            min_sqnr: least SQNR in dB. Without any of these, noise floors decide.
        level: of the stages, ``op``, ``leaf`` or ``container``; ``None``: ``leaf``, or that of the table.
        stages: globs; only these stages. groups: globs; containers that are shown too.
        min_coverage: share of stages, 0 to 1, that must have a value in the graph; under it nothing agrees.
        optimizations: levels of ONNX Runtime's optimiser to judge.
        exporter, opset: of an export. keep_onnx: where to leave it.
        threads: of both sides; 0: as many as each library takes.
        memory_budget: of activations that are kept at once.
        report: folder for the report; it is only made if it is given. force: replace what is there.
        progress: called with one line whenever a step begins.

    Returns:
        The report; of several samples that of the worst one, with a line on each in ``samples``.

    Raises:
        BisectError: unusable model, inputs or file; an option that does not fit; a table for another model.
        InconclusiveError: nothing could be compared.
    """
    from bisect_tool import pipeline

    if isinstance(model, pipeline.LoadedCase):
        told = progress or onnx
        return pipeline.bisect(model, inputs, told) if told is not None else pipeline.bisect(model, inputs)
    return _compare(pipeline.bisect, model, inputs, onnx, progress, options)


def verify(
    model: Model,
    inputs: Any,
    onnx: PathLike | None = None,
    *,
    tolerances: PathLike | ToleranceTable | None = None,
    top_k: int = 5,
    class_axis: int | Mapping[str, int | None] | None = None,
    metric: str | Function | None = None,
    metric_limits: Mapping[str, float | str] | None = None,
    junit: PathLike | None = None,
    progress: Progress | None = None,
    **options: Unpack[CompareOptions],
) -> Report:
    """Checks an ONNX file as a pipeline would: stages against their limits, and outputs as their users read them.

    >>> import numpy, torch, bisect_tool
    >>> def drift(expected, actual):
    ...     return max(numpy.abs(expected[name] - actual[name]).max() for name in expected)
    >>> report = bisect_tool.verify(
    ...     torch.nn.Linear(4, 3), torch.ones(2, 4), exporter="torchscript",
    ...     metric=drift, metric_limits={"drift": 1e-4, "argmax": 1.0},
    ... )
    >>> report.verdict.status
    'agrees'
    >>> [(each.name, each.judgement) for each in report.user_metrics if each.config == "ort-cpu-all"]
    [('argmax', 'pass'), ('drift', 'pass')]
    >>> report.configs[0].outputs[0].agreement.classes
    3

    Args:
        model, inputs, onnx, tolerances: as for :func:`bisect`.
        top_k: best classes that both sides should have in common.
        class_axis: of the classes; by output where they differ, ``None``: it has none. Without it: axis 1 of outputs
            with 4 or 5 dimensions, else the last one.
        metric: called with PyTorch's and ONNX Runtime's final outputs, dictionaries of numpy arrays by the outputs'
            keys as text, for each sample and configuration; gives a number, or a dictionary of numbers. Or its place,
            ``module:function``.
        metric_limits: by name: the largest number that passes; ``">= 0.4"``: the smallest. ``argmax`` and ``top_k``
            have limits too: the smallest share, 0 to 1. They replace those under ``[metrics]`` of the table.
        junit: file for JUnit XML; an older one is replaced.
        progress: called with one line whenever a step begins.
        options: all others of :func:`bisect`.

    Returns:
        The report, with ``user_metrics`` and ``configs[].outputs[].agreement``.

    Raises:
        BisectError: as for :func:`bisect`; or the metric raises, gives no number, or a limit has no number.
        InconclusiveError: nothing could be compared.
    """
    from bisect_tool.calibration.tolerance_table import read_table
    from bisect_tool.verification import limit_texts, make_questions, with_table
    from bisect_tool.verifying import verify_case

    if isinstance(tolerances, (str, os.PathLike)):
        metrics = read_table(Path(tolerances)).metrics
    else:
        metrics = {} if tolerances is None else tolerances.metrics

    axes = class_axis if isinstance(class_axis, Mapping) else {} if class_axis is None else {"": class_axis}
    texts = [f"{key}={axis}".lstrip("=") if axis is not None else f"{key}=none" for key, axis in axes.items()]
    limits = with_table(limit_texts(metric_limits or {}), metrics)
    questions = make_questions(top_k, texts, metric, limits)
    single: list[tuple[str, Report]] = []
    given = {**options, "tolerances": tolerances}
    found = _compare(
        functools.partial(verify_case, questions),
        model,
        inputs,
        onnx,
        progress,
        given,
        lambda report, folder: single.append((folder, report)),
    )
    if junit is not None:
        _write_junit(Path(junit), found, single)
    return found


def inspect(
    model: Model,
    inputs: Any,
    onnx: PathLike | None = None,
    *,
    progress: Progress | None = None,
    **options: Unpack[CompareOptions],
) -> Inspection:
    """Says which value of the graph stands for which stage; nothing is compared.

    >>> import torch, bisect_tool
    >>> found = bisect_tool.inspect(torch.nn.Linear(4, 3), torch.ones(2, 4), exporter="torchscript")
    >>> found.alignment.coverage
    1.0

    Args:
        model, inputs, onnx: as for :func:`bisect`; one sample.
        progress: called with one line whenever a step begins.
        options: of :func:`bisect` those that say what is loaded, exported and aligned.

    Raises:
        BisectError: as for :func:`bisect`. InconclusiveError: no stage has a value in the graph.
    """
    from bisect_tool.cases import loaded_cases
    from bisect_tool.pipeline import inspect_case

    case, chosen = _split(options)
    with loaded_cases(model, inputs, case, _description(model, inputs, onnx, options)) as (cases, _):
        _one(cases)
        return inspect_case(cases[0], _options(cases[0], onnx, chosen), progress or _silent)


def calibrate(
    model: Model,
    inputs: Any,
    output: PathLike | None = None,
    *,
    onnx: PathLike | None = None,
    with_onnx: bool = True,
    checkpoint: PathLike | None = None,
    entry: str | None = None,
    entry_args: Mapping[str, Any] | None = None,
    false_alarm: float = 0.01,
    copies: int = 1,
    accept: Sequence[str] = (),
    level: str = "leaf",
    stages: Sequence[str] = (),
    exporter: Literal["dynamo", "torchscript"] | None = None,
    threads: int = 0,
    memory_budget: int | str = "2GiB",
    force: bool = False,
    progress: Progress | None = None,
) -> ToleranceTable:
    """Measures what error each stage of a correct model has, and gives each a limit.

    Args:
        model, inputs: as for :func:`bisect`; each path is a sample.
        output: file for the table; it is only written if it is given. force: replace what is there.
        onnx: a file whose runs count where its errors are rounding. with_onnx: ``False``: PyTorch's runs only.
        checkpoint, entry, entry_args, exporter, threads, memory_budget: as for :func:`bisect`.
        false_alarm: share of correct runs, 0 to 1, that may be over any limit.
        copies: of each sample with slightly other numbers, which are run too.
        accept: reductions of precision that count as correct, ``tf32`` and ``bf16``.
        level, stages: which stages have limits.
        progress: called with one line whenever a step begins.

    Raises:
        BisectError: unusable model or inputs, or a place that is taken.
        InconclusiveError: no sample could be run.
    """
    from bisect_tool.calibrate import Plan
    from bisect_tool.calibrate import calibrate as run
    from bisect_tool.calibration.tolerance_table import check_place, write_table
    from bisect_tool.cases import Case, loaded_cases

    target = None if output is None else Path(output)
    if target is not None:
        check_place(target, force=force)
    case = Case(checkpoint=checkpoint, entry=entry, entry_args=entry_args)
    with loaded_cases(model, inputs, case, _description(model, inputs, onnx, {"checkpoint": checkpoint})) as (cases, _):
        plan = Plan(
            false_alarm=false_alarm,
            onnx=None if onnx is None else Path(onnx),
            with_onnx=with_onnx,
            export=_export(cases[0].module, exporter, None),
            level=level,
            stages=tuple(stages),
            copies=copies,
            accepted=tuple(accept),
            memory_budget=_size(memory_budget),
            threads=threads,
        )
        table = run(cases, plan, progress=progress or _silent).made.table
    if target is not None:
        write_table(target, table, force=force)
    return table


def record(
    model: Any,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    output: PathLike = "run.trace",
    summary: bool = False,
    stages: Sequence[str] = (),
    force: bool = False,
    folder: bool = False,
    files: Sequence[tuple[str, str]] = (),
    *,
    checkpoint: PathLike | None = None,
    entry: str | None = None,
    entry_args: Mapping[str, Any] | None = None,
) -> str:
    """Records every stage of one run of a model, and what the run depends on, for :func:`compare`.

    >>> import os, tempfile, torch, bisect_tool
    >>> place = os.path.join(tempfile.mkdtemp(), "a.trace")
    >>> bisect_tool.record(torch.nn.Linear(4, 3), torch.ones(2, 4), output=place) == place
    True

    Args:
        model: an ``nn.Module`` in the mode and on the device that it is to run in, or as for :func:`bisect`.
        args, kwargs: inputs of ``forward``; a single tensor stands for itself. For a model in a file, or as a path, one
            sample as for :func:`bisect`.
        output: path of the recording. force: replace a recording that is there.
        summary: kilobytes: statistics, digests and projections instead of tensors.
        stages: globs; keep the tensors of these only. folder: write a folder instead of one file.
        files: (role, path) of files that the model or its input were read from.
        checkpoint, entry, entry_args: of a model in a file.

    Returns:
        The path.

    Raises:
        BisectError: unusable model or inputs, the place is taken, or ``forward`` raised.
    """
    import torch

    from bisect_tool.recorder import RecordError
    from bisect_tool.recorder import record as run

    settings = (os.fspath(output), summary, tuple(stages), force, folder)
    try:
        if isinstance(model, torch.nn.Module) and not isinstance(args, (str, os.PathLike)):
            return str(run(model, args, kwargs, *settings, tuple(files)))
        from bisect_tool.cases import Case, loaded_cases

        read = [("checkpoint", checkpoint), *([("input", args)] if isinstance(args, (str, os.PathLike)) else [])]
        named = [*files, *((role, os.fspath(path)) for role, path in read if path is not None)]
        inputs = args if kwargs is None else {"args": args, "kwargs": kwargs}
        with loaded_cases(model, inputs, Case(checkpoint, entry, entry_args), {}) as (cases, _):
            case = _one(cases)
            return str(run(case.module, case.args, case.kwargs, *settings, tuple(named)))
    except RecordError as error:
        raise BisectError(error.message, hint=error.hint) from error


def compare(
    expected: PathLike,
    actual: PathLike,
    *,
    max_abs: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    level: str = "leaf",
    stages: Sequence[str] = (),
    min_coverage: float = 0.9,
    separator: str | None = None,
) -> Report | DataComparison:
    """Says what differs between two recordings, or two data files.

    >>> import os, tempfile, numpy, bisect_tool
    >>> names = [os.path.join(tempfile.mkdtemp(), "a.npy") for _ in range(2)]
    >>> for name, last in zip(names, (2.0, 2.5)):
    ...     numpy.save(name, numpy.array([1.0, last]))
    >>> bisect_tool.compare(*names).status
    'different'
    >>> bisect_tool.compare(*names, max_abs=0.5).status
    'equal'

    Args:
        expected, actual: both recordings, or both files of tables, arrays or images.
        max_abs: largest absolute difference. atol, rtol: as in ``allclose``, both or none. Without, data files must be
            equal, and recordings are judged by the default limits.
        level, stages, min_coverage: of recordings, as for :func:`bisect`.
        separator: of tables; ``None``: found out.

    Returns:
        A :class:`Report` of two recordings, a :class:`DataComparison` of two data files.

    Raises:
        BisectError: a file can't be read, or the two are of different kinds.
        InconclusiveError: recordings with nothing in common.
    """
    from bisect_tool.backends.data_reading import read_data
    from bisect_tool.recordings.bundles import is_bundle

    paths = Path(expected), Path(actual)
    bundles = [is_bundle(path) for path in paths]
    if bundles[0] != bundles[1]:
        recording, other = paths if bundles[0] else reversed(paths)
        read_data(other)  # what is missing, empty or damaged is told as such
        raise BisectError(f"{recording} is a recording, {other} is none", hint="compare two of the same kind")
    if bundles[0]:
        from bisect_tool.recordings.compare_traces import compare_recordings
        from bisect_tool.tolerances import make_tolerance

        tolerance = make_tolerance(max_abs, atol, rtol)
        return compare_recordings(*paths, tolerance, level=level, stages=stages, min_coverage=min_coverage)
    from bisect_tool.data.comparison import compare_files
    from bisect_tool.data.files import make_limits

    limits = make_limits(max_abs, atol, rtol)
    one, other_ = (read_data(path, separator=separator) for path in paths)
    if one.kind != other_.kind:
        raise BisectError(f"{paths[0]} and {paths[1]} are of different kinds", hint="compare two files of one kind")
    return compare_files(one, other_, limits)


def determinism(
    model: Model,
    inputs: Any,
    onnx: PathLike | None = None,
    *,
    runs: int = 5,
    mode: Literal["eval", "train"] = "eval",
    level: Literal["leaf", "op"] = "leaf",
    threads: int = 0,
    with_onnx: bool = True,
    checkpoint: PathLike | None = None,
    entry: str | None = None,
    entry_args: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Determinism:
    """Runs a model again and again, and says which stage first differs from run to run, and what makes it stable.

    Args:
        model, inputs, onnx, checkpoint, entry, entry_args: as for :func:`bisect`; one sample. Fresh processes are part
            of it, so that a model that is given as an object must be possible to pickle.
        runs: in each series, 2 or more.
        mode: of the model.
        level: ``op``: operations inside leaf modules too.
        threads: 0: as many as PyTorch takes.
        with_onnx: ``False``: ONNX Runtime is left out.
        progress: called with one line whenever a step begins.

    Raises:
        BisectError: unusable model or inputs. InconclusiveError: it does not run at all.
    """
    import pickle

    from bisect_tool.cases import Case
    from bisect_tool.determinism import How, examine

    if runs < 2:
        raise BisectError(f"runs {runs}: two at least are compared", hint="for example runs=5")
    load = functools.partial(_load_one, model, inputs, Case(checkpoint, entry, entry_args))
    try:
        pickle.dumps(load)
    except Exception as error:  # pickle raises whatever an object's own code does
        raise BisectError(
            f"the model can't be given to another process: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="give its file instead of the object",
        ) from error
    given = None if onnx is None else Path(onnx)
    how = How(threads=threads, mode=mode, level=level)
    with temporary_folder() as folder:
        return examine(load, Path(folder), how, runs, onnx=given, with_onnx=with_onnx, say=progress or _silent)


def _load_one(model: Any, inputs: Any, how: Any) -> LoadedCase:
    """In any process: the case of the only sample."""
    from bisect_tool.cases import loaded_cases

    with loaded_cases(model, inputs, how, _description(model, inputs, None, {"checkpoint": how.checkpoint})) as (
        cases,
        _,
    ):
        case = _one(cases)
    case.module.eval()
    return case


def environment(binaries: Sequence[str] = ()) -> dict[str, Any]:
    """What numbers are made with here: versions, processor, GPU, threads, variables, flags; no secrets.

    >>> import bisect_tool
    >>> bisect_tool.environment()["environment_version"]
    1

    Args:
        binaries: programs whose version is asked for too, by name or path.

    Returns:
        Plain values, as ``environment.schema.json`` has them.

    Raises:
        BisectError: one of these programs is not there.
    """
    from bisect_tool.backends.environment_facts import snapshot

    return snapshot(binaries)


def env_diff(expected: PathLike | Mapping[str, Any], actual: PathLike | Mapping[str, Any]) -> EnvironmentDiff:
    """Says what differs between two environments, ranked by how likely it changes numbers, and what to do.

    >>> import bisect_tool
    >>> here = bisect_tool.environment()
    >>> bisect_tool.env_diff(here, {**here, "python": "3.8.1"}).status
    'different'

    Args:
        expected, actual: what :func:`environment` gave; or files: snapshots, reports, recordings, ``pip freeze``,
            requirements, lock files, ``environment.yml``, ``conda list``.

    Raises:
        BisectError: a file can't be read, or tells nothing of an environment.
    """
    from bisect_tool.environments.diff import diff
    from bisect_tool.environments.files import of_snapshot, read_facts

    sides = [
        of_snapshot(side, "snapshot", given) if isinstance(given, Mapping) else read_facts(Path(given))
        for side, given in (("expected", expected), ("actual", actual))
    ]
    return diff(*sides)


# -- what several of them need ----------------------------------------------------------------------------------------

_OF_CASE = ("checkpoint", "entry", "entry_args", "allow_pickle", "name")


def _silent(_: str) -> None:
    pass


def _compare(
    run: Callable[..., Report],
    model: Any,
    inputs: Any,
    onnx: PathLike | None,
    progress: Progress | None,
    options: Mapping[str, Any],
    on_report: Callable[[Report, str], None] = lambda _report, _folder: None,
) -> Report:
    """Loads, compares each sample, and writes what is to be written."""
    from dataclasses import replace

    from bisect_tool.cases import compare_all, loaded_cases
    from bisect_tool.store import check_report_folder

    case, chosen = _split(options)
    place, force = chosen.pop("report", None), bool(chosen.get("force"))
    if place is not None:
        check_report_folder(place, force=force)
    replays: dict[str, Any] = {}
    made: dict[str, dict[str, Any]] = {}

    def compare_one(loaded: LoadedCase, settings: Options, tell: Progress) -> Report:
        replays.clear()
        if place is not None:
            settings = replace(settings, keep_replay=functools.partial(_collect, replays))
        return run(loaded, settings, tell)

    def written(report: Report, folder: str) -> None:
        on_report(report, folder)
        if place is None:
            return
        from bisect_tool.reporters.folder import files_of
        from bisect_tool.store import write_report_folder

        # The report on everything is that of the worst sample, with what belongs to it.
        own = folder or next((s.folder for s in report.samples if s.index == report.case.get("sample_index")), "")
        again = force or bool(report.samples) or own in made
        kept = made.setdefault(own, dict(replays))
        write_report_folder(report, Path(place) / folder, force=again, files=files_of(report, kept))

    with loaded_cases(model, inputs, case, _description(model, inputs, onnx, options)) as (cases, sources):
        settings = _options(cases[0], onnx, chosen)
        return compare_all(cases, sources, settings, compare_one, progress or _silent, written)


def _collect(into: dict[str, Any], folder: str, files: Mapping[str, bytes | str]) -> None:
    into.update({f"{folder}/{name}": content for name, content in files.items()})


def _split(options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What says how the model is found, and all the rest."""
    from bisect_tool.cases import Case

    return Case(**{key: options[key] for key in _OF_CASE if key in options}), {
        key: value for key, value in options.items() if key not in _OF_CASE
    }


_KNOWN = (
    "tolerances", "max_abs", "atol", "rtol", "min_sqnr", "level", "stages", "groups", "min_coverage", "optimizations",
    "exporter", "opset", "keep_onnx", "threads", "memory_budget", "force",
)  # fmt: skip


def _options(case: LoadedCase, onnx: PathLike | None, given: Mapping[str, Any]) -> Options:
    """The pipeline's options from a function's."""
    from bisect_tool.pipeline import Options
    from bisect_tool.tolerances import make_tolerance

    unknown = [key for key in given if key not in _KNOWN]
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    limits = [given.get(key) for key in ("max_abs", "atol", "rtol", "min_sqnr")]
    tolerance = make_tolerance(*limits)
    level, table = given.get("level"), None
    if given.get("tolerances") is not None:
        if any(limit is not None for limit in limits):
            raise BisectError(
                "tolerances and max_abs, atol, rtol, min_sqnr exclude each other",
                hint="the table has a limit for each stage",
            )
        table = _table(given["tolerances"], case)
        level = level or table.table.calibration.level
    keep = given.get("keep_onnx")
    return Options(
        tolerance=tolerance,
        onnx=None if onnx is None else Path(onnx),
        export=_export(case.module, given.get("exporter"), given.get("opset")),
        keep_onnx=None if keep is None else Path(keep),
        overwrite=bool(given.get("force")),
        level=level or "leaf",
        stages=_texts(given.get("stages", ())),
        groups=_texts(given.get("groups", ())),
        min_coverage=given.get("min_coverage", 0.9),
        optimizations=_texts(given.get("optimizations", ("off", "all"))),
        threads=given.get("threads", 0),
        memory_budget=_size(given.get("memory_budget", "2GiB")),
        table=table,
    )


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _table(given: Any, case: LoadedCase) -> Any:
    """Calibrated limits for the model at hand."""
    from bisect_tool.backends.architecture import modules_of
    from bisect_tool.calibration.calibrated import in_force
    from bisect_tool.calibration.tolerance_table import read_table
    from bisect_tool.hardware import this_hardware

    is_path = isinstance(given, (str, os.PathLike))
    path, table = (os.fspath(given), read_table(Path(given))) if is_path else ("the table", given)
    return in_force(path, table, modules_of(case.module), this_hardware().name)


def _export(module: Any, exporter: Literal["dynamo", "torchscript"] | None, opset: int | None) -> Any:
    import torch

    from bisect_tool.backends.exporting import ExportSettings

    # Scripted modules are no Python any more: only the older exporter takes them.
    scripted = isinstance(module, torch.jit.ScriptModule)
    return ExportSettings(exporter or ("torchscript" if scripted else "dynamo"), opset, True)


def _size(given: int | str) -> int:
    from bisect_tool.sizes import parse_size

    return parse_size(str(given))


def _one(cases: Sequence[LoadedCase]) -> LoadedCase:
    if len(cases) != 1:
        raise BisectError(f"{len(cases)} samples given, where one is taken", hint="give one, or call it for each")
    return cases[0]


def _description(model: Any, inputs: Any, onnx: PathLike | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says about the case; objects by their class."""

    def text(thing: Any) -> str:
        return os.fspath(thing) if isinstance(thing, (str, os.PathLike)) else type(thing).__qualname__

    listed = isinstance(inputs, (list, tuple)) and all(isinstance(each, (str, os.PathLike)) for each in inputs)
    checkpoint = options.get("checkpoint")
    return {
        "model": text(model),
        "checkpoint": None if checkpoint is None else os.fspath(checkpoint),
        "inputs": [text(each) for each in inputs] if listed else [text(inputs)],
        "onnx": None if onnx is None else os.fspath(onnx),
        "command": "",
    }


def _write_junit(file: Path, found: Report, single: Sequence[tuple[str, Report]]) -> None:
    from bisect_tool.reporters.junit import junit_text

    reports = [(name, report) for name, report in single if not report.samples]
    latest = {name or str(found.case.get("name")): report for name, report in reports}
    try:
        write_whole({file: junit_text([*latest.items()])})
    except OSError as error:
        raise BisectError(
            f"junit {file}: cannot be written ({error.strerror or error})", hint="choose another place"
        ) from error
