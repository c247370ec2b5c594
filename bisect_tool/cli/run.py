"""``bisect-divergence MODEL [CKPT] --input SAMPLE``: the main job."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from bisect_tool.cli import interrupts
from bisect_tool.cli import options as shared
from bisect_tool.cli.loading import case_name, load, load_case, make_case
from bisect_tool.cli.overlay import kept_for_overlays, overlays_of_run
from bisect_tool.cli.process import is_all_of_process, load_libraries, no_collection
from bisect_tool.cli.progress import Progress, progress
from bisect_tool.cli.settings import check_parts, read_case_file
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, EXIT_INCONCLUSIVE, BisectError, InconclusiveError
from bisect_tool.matrix import read_matrix
from bisect_tool.picture_formats import read_formats
from bisect_tool.sizes import parse_size
from bisect_tool.temporary import claim
from bisect_tool.tolerances import make_tolerance

if TYPE_CHECKING:
    from bisect_tool.calibration.calibrated import TableInForce
    from bisect_tool.experiments import MatrixGraphs
    from bisect_tool.pipeline import LoadedCase, Options
    from bisect_tool.records import Report
    from bisect_tool.reporters.layout import Page

    Show = Callable[[Report], None]
    Compare = Callable[[LoadedCase, Options, Callable[[str], None]], Report]

_EXIT = {"agrees": EXIT_AGREES, "diverges": EXIT_DIVERGES, "inconclusive": EXIT_INCONCLUSIVE}

_LIMITS = ("max_abs", "atol", "rtol", "min_sqnr")
_TOLERANCES = (*_LIMITS, "tolerances")
"""Forms of a tolerance; one replaces another."""

_DEFAULTS: Mapping[str, Any] = {
    "constant_folding": True,
    "level": "leaf",
    "memory_budget": "2GiB",
    "min_coverage": 0.9,
    **dict.fromkeys(_TOLERANCES),
    "threads": 0,
    "matrix": None,
    "runner": None,
    "totals_only": False,
    "plots": None,
    "overlays": False,
    "max_abs": None,
    "atol": None,
    "rtol": None,
    "inputs": (),
    "raw": (),
    "parts": (),
    "groups": (),
    "stages": (),
    "allow_pickle": False,
    "allow_missing": False,
    "allow_unexpected": False,
}


@shared.reworded(keep_onnx="Leave the exported file here; those of a matrix's pairs beside it, as FILE-PAIR.")
@click.command(context_settings=shared.SETTINGS)
@shared.loading
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="SUBMODULE=FILE",
    help="ONNX file of one submodule, or of several as a+b+c; the others stay in PyTorch. Repeatable.",
)
@shared.exporting
@shared.judging
@shared.selecting
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="GLOB",
    help="Also show these containers as one stage each; they do not count. Repeatable.",
)
@click.option("--all-stages", is_flag=True, help="Print every row of the stage table.")
@click.option(
    "--matrix",
    metavar="NAME",
    help="Run many configurations: quick, full, strict, deploy, or a matrix file (TOML); not with --part.",
)
@click.option(
    "--runner",
    type=click.Choice(["onnxruntime", "onnx-reference"]),
    help="What runs the graph; onnx-reference is ONNX's own evaluator, slow, and not with --matrix [default: onnxruntime].",
)
@click.option(
    "--totals-only",
    is_flag=True,
    default=None,
    help="A quick look: only how far each stage is off in one plain run, not where error is made.",
)
@shared.running
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Report folder [default: reports/NAME/TIME].")
@shared.drawing
@click.option(
    "--overlays",
    is_flag=True,
    default=None,
    help="Also an annotated copy of the graph, and node data, for viewers, in DIR/overlay.",
)
@click.option("--exit-zero", is_flag=True, help="Exit 0 on divergence too.")
@shared.reporting
def run(form: str, force: bool, exit_zero: bool, verbose: bool, quiet: bool, all_stages: bool, **given: Any) -> int:
    """Find the first stage where an ONNX graph leaves its PyTorch model, and where the error is made.

    MODEL is a Python file with build_model(), package.module:NAME, a TorchScript archive or a .pt2 program; CHECKPOINT
    its weights. Exit codes: 0 agree, 1 divergence, 2 bad usage or unreadable input, 3 inconclusive.
    """
    settings = settings_of(given)
    read_formats(settings["plots"])
    say = progress(quiet, verbose)
    folders = report_folder(settings, force)
    if settings["keep_onnx"]:
        check_kept_file(Path(settings["keep_onnx"]), force, settings)
    detail = functools.partial(click.echo, err=True) if verbose else (lambda _: None)
    reports: dict[Path, Report] = {}
    pages: list[Page] = []

    def show(report: Report) -> None:
        say.close()
        if form == "text":
            from bisect_tool.reporters.terminal import print_report

            pages.append(print_report(report, all_stages=all_stages))

    with kept_for_overlays(settings) as settings:
        for report, target, whole in run_samples(settings, folders, force, say, detail, show=show):
            if whole and settings["overlays"]:
                overlays_of_run(settings, report, target, force, say)
            say.close()
            if whole and pages:
                from bisect_tool.reporters.terminal import name_folder

                name_folder(pages[-1], target)
            if report.samples:
                continue
            if verbose and target not in reports:
                tell_times(report)
            reports[target] = report
    if form == "json":
        print_json([*reports.values()])
    code = exit_code([*reports.values()])
    return EXIT_AGREES if exit_zero and code == EXIT_DIVERGES else code


def tell_times(report: Report) -> None:
    """On stderr, what each step took."""
    for step, seconds in report.timings.items():
        click.echo(f"{seconds:8.2f} s  {step}", err=True)


def _severity(code: int) -> int:
    return {EXIT_AGREES: 0, EXIT_INCONCLUSIVE: 1, EXIT_DIVERGES: 2}[code]


def exit_code(reports: Sequence[Report]) -> int:
    """That of the gravest verdict."""
    return max((_EXIT[report.verdict.status] for report in reports), key=_severity)


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the case file, then the command line.

    Args:
        given: by the command line; what a command has no option for may still be in the case file.

    Raises:
        BisectError: something is missing, or excludes something else.
    """
    settings = {**dict.fromkeys(given), **_DEFAULTS}
    from_file: dict[str, Any] = {}
    if given["config"]:
        from_file = read_case_file(Path(given["config"]))
        settings.update(from_file)
    settings.update({key: value for key, value in given.items() if value is not None and value != ()})
    asked = given.get("level") or from_file.get("level")
    if any(given.get(name) is not None for name in _TOLERANCES):
        # A tolerance on the command line replaces the file's, not only the option of the same name.
        settings.update({name: given.get(name) for name in _TOLERANCES})
    if not settings["model"]:
        raise BisectError("no model given", hint=f"{_called()} model.py ckpt.pth --input sample.pt")
    if not settings["inputs"] and not settings["preprocess"]:
        raise BisectError("no sample given", hint="--input sample.pt: the tensors that forward is called with")
    if settings["inputs"] and settings["preprocess"]:
        raise BisectError(
            "--input and --preprocess exclude each other", hint="give a ready sample, or --raw and its maker"
        )
    if bool(settings["preprocess"]) != bool(settings["raw"]):
        raise BisectError("--preprocess and --raw go together", hint="--preprocess module:function --raw FILE")
    if settings["onnx"] and settings["keep_onnx"]:
        raise BisectError("--keep-onnx keeps an export, and --onnx makes none", hint="give one of the two")
    if settings["matrix"] and settings["runner"]:
        raise BisectError(
            "--runner and --matrix exclude each other",
            hint='in a matrix file each pair names its own: backend = "onnx-reference" in [pair.actual]',
        )
    if settings["totals_only"]:
        _check_beside_totals(settings)
    _check_export_options(given, settings)
    if settings["tolerances"] and "tolerances" in given:
        _take_table(settings, asked)
    settings["parts"] = check_parts(settings["parts"])
    if settings["parts"]:
        _check_beside_parts(given, settings)
    return settings


def _take_table(settings: dict[str, Any], level: str | None) -> None:
    """Reads the calibrated limits, and takes the level that they are for.

    Args:
        settings: of the command; ``table`` and ``level`` are put in.
        level: that the user asked for, if any.

    Raises:
        BisectError: the table can't be read, or something else excludes it.
    """
    from bisect_tool.calibration.tolerance_table import read_table

    path = settings["tolerances"]
    others = [f"--{name.replace('_', '-')}" for name in _LIMITS if settings[name] is not None]
    if others:
        raise BisectError(
            f"--tolerances and {', '.join(others)} exclude each other", hint="the table has a limit for each stage"
        )
    if settings["parts"]:
        raise BisectError(
            "--tolerances and --part do not go together yet", hint="check each part as a model of its own, with --onnx"
        )
    table = read_table(Path(path))
    known = table.calibration.level
    if level is not None and level != known:
        raise BisectError(
            f"--level {level}: tolerances {path} are those of {known} stages",
            hint=f"leave --level out, or calibrate with --level {level}",
        )
    settings.update(table=table, level=known)


def _called() -> str:
    """The command that is running, with what stands before its model."""
    context = click.get_current_context(silent=True)
    name = "bisect-divergence" if context is None else context.command_path
    own = context.params if context is not None else {}
    return f"{name} {own['package']} {own['versions']} --" if "versions" in own else name


def _check_beside_totals(settings: Mapping[str, Any]) -> None:
    """Refuses what one plain run has no answer for."""
    for name, option in (("matrix", "--matrix"), ("runner", "--runner"), ("parts", "--part")):
        if settings.get(name):
            raise BisectError(
                f"--totals-only and {option} exclude each other: the one makes a single plain run",
                hint="leave one of the two out",
            )


def _check_export_options(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuses options of an export that nobody makes; in a case file they may wait for a run without --onnx.

    Pairs of a matrix may be about exports of their own beside the given file.
    """
    if not settings["onnx"] or settings["matrix"]:
        return
    options = {
        "exporter": "--exporter",
        "opset": "--opset",
        "constant_folding": "--constant-folding" if given["constant_folding"] else "--no-constant-folding",
    }
    useless = [option for name, option in options.items() if given[name] is not None]
    if useless:
        raise BisectError(
            f"{', '.join(useless)}: for an export, and --onnx makes none",
            hint=f"leave {'it' if len(useless) == 1 else 'them'} out, or --onnx",
        )


def _check_beside_parts(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuses what a model in several files leaves no room for."""
    if settings["onnx"]:
        raise BisectError(
            "--part and --onnx exclude each other: the one is about files of submodules, the other about one of all",
            hint="give one of the two",
        )
    if settings["matrix"]:
        raise BisectError(
            "--part and --matrix do not go together yet",
            hint="leave --matrix out; or run it on one part, as a model of its own with --onnx",
        )
    exports = ("exporter", "opset", "constant_folding", "keep_onnx")
    useless = [f"--{name.replace('_', '-')}" for name in exports if given[name] is not None]
    if useless:
        raise BisectError(f"{', '.join(useless)}: for an export, and --part makes none", hint="leave it out, or --part")


def report_folder(settings: Mapping[str, Any], force: bool) -> Path:
    from bisect_tool.store import check_report_folder

    if settings["output"]:
        folder = Path(settings["output"])
    else:
        base = Path("reports") / case_name(settings)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder, number = base / stamp, 1
        # Another run of this second may not have written its report yet.
        while os.path.exists(folder) or not claim(hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:24]):
            number += 1
            folder = base / f"{stamp}-{number}"
    # Told before the long run, not after it.
    check_report_folder(folder, force=force)
    return folder


_READ = ("model", "checkpoint", "onnx", "config", "matrix", "tolerances", "inputs", "raw", "preprocess", "metric")
"""Settings that name files, folders or modules which a command reads."""


def refuse_inputs(option: str, file: Path, settings: Mapping[str, Any]) -> None:
    """Refuses to write over what is read: no option to replace files is meant for those."""
    if not file.exists():
        return
    for name in _READ:
        given = settings.get(name) or ()
        for path in [given] if isinstance(given, (str, os.PathLike)) else given:
            for read in _files_of(path):
                with contextlib.suppress(OSError):
                    if os.path.samefile(file, read):
                        raise BisectError(f"{option} {file}: this run reads that file", hint="choose another place")


def _files_of(given: Any) -> list[Path]:
    """Files that a setting names: itself, those of a folder, or the source of ``module:name``."""
    if not isinstance(given, (str, os.PathLike)):
        return []
    path, (module, separator, _) = Path(given), str(given).partition(":")
    if path.is_dir():
        return [*path.iterdir()]
    if separator and not path.exists():
        # As the loaders have it: a file beside the working folder, or a module from there.
        place = Path(module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
        return [place, Path(place.with_suffix(""), "__init__.py")]
    return [path, path.with_name(f"{path.name}.data")]


def check_kept_file(file: Path, force: bool, settings: Mapping[str, Any]) -> None:
    """Refuses a place for the exported file that can't take it, before the work and not after the export."""
    refuse_inputs("--keep-onnx", file, settings)
    if file.is_dir():
        raise BisectError(f"--keep-onnx {file}: is a folder", hint="name the file in it")
    if file.exists() and not force:
        raise BisectError(
            f"--keep-onnx {file}: the file exists and is not overwritten", hint="--force replaces it; or choose another"
        )
    if not file.parent.is_dir():
        raise BisectError(f"--keep-onnx {file}: there is no folder {file.parent}", hint="make it first")
    try:
        # Permissions alone do not tell: file systems may be read-only, and root is asked no questions.
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.exists():
            with file.open("ab"):
                pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise BisectError(f"--keep-onnx {file}: cannot be written ({reason})", hint="choose another place") from error


def run_samples(
    settings: Mapping[str, Any],
    folder: Path,
    force: bool,
    say: Progress,
    detail: Callable[[str], None],
    comparing: Compare | None = None,
    show: Show | None = None,
) -> Any:
    """Yields reports with their folders, and whether they are to be printed; the model is loaded once.

    Of several samples each has a report; the last one is that on all of them, and the one to print. ``comparing`` takes the
    place of :func:`bisect_tool.pipeline.bisect`, for a command that asks more of a comparison. ``show`` prints what is to
    be printed, while the plots of its folder are drawn.
    """
    matrix = read_matrix(settings["matrix"]) if settings["matrix"] else None
    if read_formats(settings["plots"]) and is_all_of_process():
        from bisect_tool.reporters import drawing

        drawing.prepare()
    cases, sources, options = _prepare(settings, force, say, detail)
    from bisect_tool.pipeline import bisect

    def judge(
        number: int, case: LoadedCase, chosen: Options, replays: dict[str, Any], graphs: MatrixGraphs | None = None
    ) -> Report:
        # What a model prints is not this command's answer.
        with contextlib.redirect_stdout(sys.stderr):
            return judged(number, case, chosen, replays, graphs)

    def judged(
        number: int, case: LoadedCase, chosen: Options, replays: dict[str, Any], graphs: MatrixGraphs | None
    ) -> Report:
        if matrix is None:
            chosen = replace(chosen, keep_replay=functools.partial(_collect, replays))
            if settings["parts"]:
                from bisect_tool.parts import bisect_parts

                return bisect_parts(case, settings["parts"], chosen, say)
            return (comparing or bisect)(case, chosen, say)
        from bisect_tool.experiments import run_matrix

        load_one = _loader(settings, case, number)
        report = run_matrix(load_one, chosen, matrix, say, detail, graphs)
        # What is said about this sample alone is not known to the processes that load it anew.
        return replace(report, notes=tuple(dict.fromkeys((*report.notes, *case.notes))))

    if len(cases) > 1:
        yield from _run_many(settings, cases, sources, options, judge, folder, force, say, show)
        return
    replays: dict[str, Any] = {}
    report = judge(0, cases[0], options, replays)
    if matrix is None and not settings.get("own_graph"):
        tell_kept(options, say)
    _write(report, folder, force, say, replays, settings["plots"], show)
    yield report, folder, True


def tell_kept(chosen: Options, say: Progress) -> None:
    """Where the exported file is."""
    if chosen.keep_onnx is not None:
        say.note(f"the exported file is kept at {chosen.keep_onnx}")


@dataclass(frozen=True, slots=True)
class Item:
    """One of ``count`` samples, ready to run; ``source`` is its file."""

    number: int
    count: int
    source: str
    case: LoadedCase
    options: Options


def cases(
    settings: Mapping[str, Any], force: bool, say: Callable[[str], None], detail: Callable[[str], None]
) -> Iterator[Item]:
    """Yields the samples one by one, each with an export of its own; the model is loaded once."""
    found, sources, options = _prepare(settings, force, say, detail)
    for number, (case, source) in enumerate(zip(found, sources, strict=True)):
        yield Item(number, len(found), source, case, options if number == 0 else replace(options, keep_onnx=None))


def _prepare(
    settings: Mapping[str, Any], force: bool, say: Callable[[str], None], detail: Callable[[str], None]
) -> tuple[list[LoadedCase], list[str], Options]:
    """The cases, the files that their samples are from, and what to do with them."""
    # Told before the model is loaded, which may take long.
    make_tolerance(*(settings[name] for name in _LIMITS))
    parse_size(str(settings["memory_budget"]))
    _check_share(settings["min_coverage"])
    say("loading the model")
    began = time.perf_counter()
    load_libraries()
    detail(f"{time.perf_counter() - began:8.2f} s  imports")
    interrupts.work_begins()

    from bisect_tool.backends.exporting import exporter_note
    from bisect_tool.backends.samples import bind_sample

    # What is imported and called here prints where it does no harm.
    with contextlib.redirect_stdout(sys.stderr):
        loaded = load(settings)
    if not settings["onnx"] and not settings["exporter"]:
        loaded = replace(loaded, notes=(*loaded.notes, *exporter_note(loaded.module)))
    options = replace(_options(settings, loaded.module), overwrite=force)
    # All samples are checked before the first one runs.
    bound = []
    for sample in loaded.samples:
        with _naming(sample.source, len(loaded.samples)):
            bound.append(bind_sample(loaded.module, sample))
    cases = []
    for sample in bound:
        with _naming(sample.source, len(bound)):
            cases.append(make_case(settings, loaded, sample))
    return cases, [sample.source for sample in bound], options


@contextlib.contextmanager
def _naming(source: str, count: int) -> Iterator[None]:
    """Errors inside name the sample, where there are several."""
    try:
        yield
    except InconclusiveError:
        raise
    except BisectError as error:
        if count == 1:
            raise
        raise BisectError(f"sample {source}: {error.message}", hint=error.hint) from error


def _loader(settings: Mapping[str, Any], case: LoadedCase, number: int) -> Callable[[], LoadedCase]:
    """Makes the case of a sample in another process."""
    given = {**settings, "command": case.description["command"]}
    return functools.partial(load_case, given, number)


def _run_many(
    settings: Mapping[str, Any],
    cases: list[LoadedCase],
    sources: list[str],
    options: Options,
    judge: Callable[..., Report],
    folder: Path,
    force: bool,
    say: Progress,
    show: Show | None,
) -> Any:
    """Several samples: one report each, as soon as it is there, and one on all of them at the end."""
    from bisect_tool.several import Samples, check_given_graph, progress_line, shared_work

    if options.onnx is not None:
        check_given_graph(options.onnx, cases, sources)
    samples = Samples(cases, sources, options.tolerance, given=options.onnx is not None or bool(settings["parts"]))
    matrix = bool(settings["matrix"])
    shared: dict[int, MatrixGraphs] = {}
    with shared_work(cases[0].module, options.keep_onnx, overwrite=options.overwrite) as graphs:

        def run(number: int, replays: dict[str, Any], case: LoadedCase) -> Report:
            first = samples.first_of_form(number)
            if not matrix:
                return judge(number, case, replace(options, graphs=graphs), replays)
            from bisect_tool.experiments import MatrixGraphs

            if first not in shared:
                shared[first] = MatrixGraphs(_loader(settings, cases[first], first), graphs.folder_for_matrix(first))
            chosen = options if number == 0 else replace(options, keep_onnx=None)
            return judge(number, case, chosen, replays, shared[first])

        for number, source in enumerate(sources):
            say.within(number, len(cases))
            say(progress_line(number, len(cases), source))
            target = f"{number:03d}-{Path(source).stem}"
            replays: dict[str, Any] = {}
            with _naming(source, len(cases)):
                judged = samples.judge(number, functools.partial(run, number, replays), target)
            if number == 0 and not matrix and not settings.get("own_graph"):
                tell_kept(options, say)
            _write(judged.report, folder / target, force, say, replays, settings["plots"])
            yield judged.report, folder / target, False
    for judged in samples.diagnosed_late():
        own = folder / judged.result.folder
        _write(judged.report, own, True, say, _replays_in(own), settings["plots"])
        yield judged.report, own, False
    report = samples.all_together()
    # The samples' own folders are in it already; what else was there was refused at the start.
    _write(report, folder, True, say, _replays_in(folder / samples.worst.folder), settings["plots"], show)
    yield report, folder, True


def _replays_in(folder: Path) -> dict[str, Any]:
    """Replay folders of a report that was written, to be copied from there."""
    files = (path for path in sorted(folder.glob("replay/*/*")) if path.is_file())
    return {str(path.relative_to(folder)): functools.partial(shutil.copyfile, path) for path in files}


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise BisectError(f"--min-coverage {share}: a share from 0 to 1", hint="for example 0.9")


def _options(settings: Mapping[str, Any], module: Any) -> Options:
    import torch

    from bisect_tool.backends.exporting import ExportSettings, default_exporter
    from bisect_tool.pipeline import Options

    # Scripted modules are no Python any more: only the older exporter takes them.
    default: Literal["dynamo", "torchscript"] = (
        "torchscript" if isinstance(module, torch.jit.ScriptModule) else default_exporter()
    )
    # Without the untouched run no one would know whether the file's own outputs have their shapes.
    alone: dict[str, Any] = {"forced": False, "optimizations": ("off",)} if settings["totals_only"] else {}
    return Options(
        tolerance=make_tolerance(*(settings[name] for name in _LIMITS)),
        table=_table_in_force(settings, module),
        onnx=Path(settings["onnx"]) if settings["onnx"] else None,
        export=ExportSettings(settings["exporter"] or default, settings["opset"], settings["constant_folding"]),
        keep_onnx=Path(settings["keep_onnx"]) if settings["keep_onnx"] else None,
        level=settings["level"],
        stages=tuple(settings["stages"]),
        groups=tuple(settings["groups"]),
        memory_budget=parse_size(str(settings["memory_budget"])),
        min_coverage=settings["min_coverage"],
        threads=settings["threads"],
        runner=settings["runner"] or "onnxruntime",
        **alone,
    )


def _table_in_force(settings: Mapping[str, Any], module: Any) -> TableInForce | None:
    """The calibrated limits, if any were given, for this model on this machine."""
    table = settings.get("table")
    if table is None:
        return None
    from bisect_tool.backends.architecture import modules_of
    from bisect_tool.calibration.calibrated import in_force
    from bisect_tool.hardware import this_hardware

    return in_force(str(settings["tolerances"]), table, modules_of(module), this_hardware().name)


def _collect(into: dict[str, Any], folder: str, files: Mapping[str, bytes | str]) -> None:
    into.update({f"{folder}/{name}": content for name, content in files.items()})


@no_collection()
def _write(
    report: Report,
    folder: Path,
    force: bool,
    say: Callable[[str], None],
    replays: Mapping[str, Any],
    formats: str | None,
    show: Show | None = None,
) -> None:
    """Writes a report's folder; ``show`` comes first, as nobody wants to wait for plots to read the verdict."""
    from bisect_tool.reporters.folder import files_of
    from bisect_tool.store import write_report_folder

    unread: list[OSError] = []

    def meanwhile() -> None:
        try:
            if show is not None:
                show(report)
        except OSError as error:  # a closed pipe, a full disk: the folder is written all the same
            unread.append(error)

    say("writing the report")
    files = files_of(report, replays, formats, meanwhile)
    interrupts.check()
    write_report_folder(report, folder, force=force, files=files)
    interrupts.wrote(folder)
    if unread:
        raise unread[0]


def print_json(reports: list[Report]) -> None:
    import json

    from bisect_tool.store import report_text, report_to_json

    if len(reports) == 1:
        click.echo(report_text(reports[0]))
    else:
        click.echo(json.dumps([report_to_json(report) for report in reports], indent=2, allow_nan=False))
