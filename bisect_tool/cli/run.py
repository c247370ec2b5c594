"""``bisect-divergence MODEL [CKPT] --input SAMPLE``: the main job."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from bisect_tool.cli import interrupts
from bisect_tool.cli.loading import case_name, load, load_case, make_case
from bisect_tool.cli.process import load_libraries, no_collection
from bisect_tool.cli.settings import parse_size, read_case_file
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, EXIT_INCONCLUSIVE, BisectError
from bisect_tool.matrix import read_matrix
from bisect_tool.tolerances import make_tolerance

if TYPE_CHECKING:
    from bisect_tool.experiments import MatrixGraphs
    from bisect_tool.pipeline import LoadedCase, Options
    from bisect_tool.records import Report

_EXIT = {"agrees": EXIT_AGREES, "diverges": EXIT_DIVERGES, "inconclusive": EXIT_INCONCLUSIVE}

_TOLERANCES = ("max_abs", "atol", "rtol", "min_sqnr")

_DEFAULTS: Mapping[str, Any] = {
    "constant_folding": True,
    "level": "leaf",
    "memory_budget": "2GiB",
    "min_coverage": 0.9,
    "threads": 0,
    "matrix": None,
    "inputs": (),
    "raw": (),
    "groups": (),
    "stages": (),
    "allow_pickle": False,
    "allow_missing": False,
    "allow_unexpected": False,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", required=False)
@click.argument("checkpoint", required=False, type=click.Path())
@click.option(
    "--input", "inputs", multiple=True, metavar="PATH", help="Sample: .pt .npz .npy .safetensors, or a folder."
)
@click.option("--onnx", type=click.Path(), help="ONNX file to judge; without it the model is exported.")
@click.option("--config", type=click.Path(), help="Case file (TOML); the command line overrides it.")
@click.option("--entry", metavar="NAME", help="Function, class or instance in MODEL [default: build_model].")
@click.option("--entry-args", type=click.Path(), help="TOML or JSON file with arguments for the entry.")
@click.option("--preprocess", metavar="MODULE:FUNCTION", help="Makes the sample from --raw.")
@click.option("--raw", multiple=True, type=click.Path(), help="File given to --preprocess; repeatable.")
@click.option(
    "--exporter",
    type=click.Choice(["dynamo", "torchscript"]),
    help="Which exporter [default: dynamo; torchscript for TorchScript archives].",
)
@click.option("--opset", type=int, help="Opset version [default: the exporter's].")
@click.option("--constant-folding/--no-constant-folding", default=None, help="The exporter's graph optimisation.")
@click.option(
    "--keep-onnx", type=click.Path(), metavar="FILE", help="Leave the exported file here; those of a matrix beside it."
)
@click.option("--max-abs", type=float, help="Tolerance: largest absolute difference.")
@click.option("--atol", type=float, help="Tolerance as in allclose, together with --rtol.")
@click.option("--rtol", type=float, help="Tolerance as in allclose, together with --atol.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Tolerance: least signal-to-noise ratio, in dB.")
@click.option("--level", type=click.Choice(["op", "leaf", "container"]), help="Level of the stages [default: leaf].")
@click.option("--stages", multiple=True, metavar="GLOB", help="Judge these stages only, as `backbone.blocks.*`.")
@click.option("--group", "groups", multiple=True, metavar="GLOB", help="Also show these containers as one stage each.")
@click.option("--all-stages", is_flag=True, help="Print every row of the stage table.")
@click.option("--min-coverage", type=float, help="Share of stages that must be aligned [default: 0.9].")
@click.option("--memory-budget", metavar="SIZE", help="Activations kept at once [default: 2GiB].")
@click.option(
    "--matrix", metavar="NAME", help="Run many configurations: quick, full, strict, deploy, or a matrix file (TOML)."
)
@click.option("--threads", type=click.IntRange(min=0), help="Threads of both sides; 0 is each library's default.")
@click.option("--allow-pickle", is_flag=True, default=None, help="Unpickle the checkpoint: runs code in it.")
@click.option("--allow-missing", is_flag=True, default=None, help="Accept a checkpoint without some of the keys.")
@click.option("--allow-unexpected", is_flag=True, default=None, help="Accept a checkpoint with keys the model lacks.")
@click.option("--name", help="Name of the case [default: the model file's].")
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Report folder [default: reports/NAME/TIME].")
@click.option("--force", is_flag=True, help="Replace a report, and a file of --keep-onnx, that is there.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What stdout gets.")
@click.option("--exit-zero", is_flag=True, help="Exit 0 on divergence too.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.version_option(package_name="bisect-divergence")
def run(form: str, force: bool, exit_zero: bool, verbose: bool, quiet: bool, all_stages: bool, **given: Any) -> int:
    """Find the first stage where an ONNX graph leaves its PyTorch model, and where the error is made.

    MODEL is a Python file with build_model(), package.module:NAME, a TorchScript archive or a .pt2 program; CHECKPOINT
    its weights. Exit codes: 0 agree, 1 divergence, 2 bad usage or unreadable input, 3 inconclusive.
    """
    settings = _settings(given)
    say = _progress(quiet)
    folders = _report_folder(settings, force)
    if settings["keep_onnx"]:
        _check_kept_file(Path(settings["keep_onnx"]), force)
    detail = functools.partial(click.echo, err=True) if verbose else (lambda _: None)
    reports: dict[Path, Report] = {}
    for report, target, whole in _run_samples(settings, folders, force, say, detail):
        if whole and form == "text":
            from bisect_tool.reporters.terminal import print_report

            print_report(report, all_stages=all_stages, report_dir=target)
        if report.samples:
            continue
        if verbose and target not in reports:
            for step, seconds in report.timings.items():
                click.echo(f"{seconds:8.2f} s  {step}", err=True)
        reports[target] = report
    if form == "json":
        _print_json([*reports.values()])
    code = max((_EXIT[report.verdict.status] for report in reports.values()), key=_severity)
    return EXIT_AGREES if exit_zero and code == EXIT_DIVERGES else code


def _severity(code: int) -> int:
    return {EXIT_AGREES: 0, EXIT_INCONCLUSIVE: 1, EXIT_DIVERGES: 2}[code]


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the case file, then the command line."""
    settings = {**dict.fromkeys(given), **_DEFAULTS}
    if given["config"]:
        settings.update(read_case_file(Path(given["config"])))
    settings.update({key: value for key, value in given.items() if value is not None and value != ()})
    if any(given[name] is not None for name in _TOLERANCES):
        # A tolerance on the command line replaces the file's, not only the option of the same name.
        settings.update({name: given[name] for name in _TOLERANCES})
    if not settings["model"]:
        raise BisectError("no model given", hint="bisect-divergence model.py ckpt.pth --input sample.pt")
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
    _check_export_options(given, settings)
    return settings


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


def _progress(quiet: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        # Called whenever a step begins: libraries may have caught a Ctrl-C in the one before.
        interrupts.check()
        if not quiet:
            click.echo(click.style(f"· {text}", dim=True), err=True)

    return say


def _report_folder(settings: Mapping[str, Any], force: bool) -> Path:
    from bisect_tool.store import check_report_folder

    if settings["output"]:
        folder = Path(settings["output"])
    else:
        base = Path("reports") / case_name(settings)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder, number = base / stamp, 1
        while os.path.exists(folder):
            number += 1
            folder = base / f"{stamp}-{number}"
    # Told before the long run, not after it.
    check_report_folder(folder, force=force)
    return folder


def _check_kept_file(file: Path, force: bool) -> None:
    """Refuses a place for the exported file that can't take it, before the work and not after the export."""
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


def _run_samples(
    settings: Mapping[str, Any],
    folder: Path,
    force: bool,
    say: Callable[[str], None],
    detail: Callable[[str], None],
) -> Any:
    """Yields reports with their folders, and whether they are to be printed; the model is loaded once.

    Of several samples each has a report; the last one is that on all of them, and the one to print.
    """
    matrix = read_matrix(settings["matrix"]) if settings["matrix"] else None
    # Told before the model is loaded, which may take long.
    make_tolerance(*(settings[name] for name in _TOLERANCES))
    parse_size(str(settings["memory_budget"]))
    _check_share(settings["min_coverage"])
    say("loading the model")
    began = time.perf_counter()
    load_libraries()
    detail(f"{time.perf_counter() - began:8.2f} s  imports")
    interrupts.work_begins()

    from bisect_tool.backends.samples import bind_sample
    from bisect_tool.pipeline import bisect

    loaded = load(settings)
    options = replace(_options(settings, loaded.module), overwrite=force)
    # All samples are checked before the first one runs.
    bound = [bind_sample(loaded.module, sample) for sample in loaded.samples]
    cases = [make_case(settings, loaded, sample) for sample in bound]

    def judge(number: int, case: LoadedCase, chosen: Options, graphs: MatrixGraphs | None = None) -> Report:
        if matrix is None:
            return bisect(case, chosen, say)
        from bisect_tool.experiments import run_matrix

        load_one = _loader(settings, case, number)
        report = run_matrix(load_one, chosen, matrix, say, detail, graphs)
        # What is said about this sample alone is not known to the processes that load it anew.
        return replace(report, notes=tuple(dict.fromkeys((*report.notes, *case.notes))))

    if len(cases) > 1:
        yield from _run_many(settings, cases, [s.source for s in bound], options, judge, folder, force, say)
        return
    report = judge(0, cases[0], options)
    if options.keep_onnx is not None and matrix is None:
        say(f"the exported file is kept at {options.keep_onnx}")
    _write(report, folder, force, say)
    yield report, folder, True


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
    say: Callable[[str], None],
) -> Any:
    """Several samples: one report each, as soon as it is there, and one on all of them at the end."""
    from bisect_tool.several import Samples, check_given_graph, progress_line, shared_work

    if options.onnx is not None:
        check_given_graph(options.onnx, cases, sources)
    samples = Samples(cases, sources, options.tolerance, given=options.onnx is not None)
    matrix = bool(settings["matrix"])
    shared: dict[int, MatrixGraphs] = {}
    with shared_work(cases[0].module, options.keep_onnx, overwrite=options.overwrite) as graphs:

        def run(number: int, case: LoadedCase) -> Report:
            first = samples.first_of_form(number)
            if not matrix:
                return judge(number, case, replace(options, graphs=graphs))
            from bisect_tool.experiments import MatrixGraphs

            if first not in shared:
                shared[first] = MatrixGraphs(_loader(settings, cases[first], first), graphs.folder_for_matrix(first))
            chosen = options if number == 0 else replace(options, keep_onnx=None)
            return judge(number, case, chosen, shared[first])

        for number, source in enumerate(sources):
            say(progress_line(number, len(cases), source))
            target = f"{number:03d}-{Path(source).stem}"
            judged = samples.judge(number, functools.partial(run, number), target)
            if number == 0 and options.keep_onnx is not None and not matrix:
                say(f"the exported file is kept at {options.keep_onnx}")
            _write(judged.report, folder / target, force, say)
            yield judged.report, folder / target, False
    for judged in samples.diagnosed_late():
        _write(judged.report, folder / judged.result.folder, True, say)
        yield judged.report, folder / judged.result.folder, False
    report = samples.all_together()
    # The samples' own folders are in it already; what else was there was refused at the start.
    _write(report, folder, True, say)
    yield report, folder, True


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise BisectError(f"--min-coverage {share}: a share from 0 to 1", hint="for example 0.9")


def _options(settings: Mapping[str, Any], module: Any) -> Options:
    import torch

    from bisect_tool.backends.exporting import ExportSettings
    from bisect_tool.pipeline import Options

    # Scripted modules are no Python any more: only the older exporter takes them.
    default: Literal["dynamo", "torchscript"] = (
        "torchscript" if isinstance(module, torch.jit.ScriptModule) else "dynamo"
    )
    return Options(
        tolerance=make_tolerance(*(settings[name] for name in _TOLERANCES)),
        onnx=Path(settings["onnx"]) if settings["onnx"] else None,
        export=ExportSettings(settings["exporter"] or default, settings["opset"], settings["constant_folding"]),
        keep_onnx=Path(settings["keep_onnx"]) if settings["keep_onnx"] else None,
        level=settings["level"],
        stages=tuple(settings["stages"]),
        groups=tuple(settings["groups"]),
        memory_budget=parse_size(str(settings["memory_budget"])),
        min_coverage=settings["min_coverage"],
        threads=settings["threads"],
    )


@no_collection()
def _write(report: Report, folder: Path, force: bool, say: Callable[[str], None]) -> None:
    from bisect_tool.reporters import csv_table, html, plots
    from bisect_tool.store import write_report_folder

    say("writing the report")
    plot = plots.images(report)
    files: dict[str, Any] = {
        "stages.csv": csv_table.csv_text(report),
        "amplification.png": plot.png,
        "amplification.svg": plot.light,
        "index.html": html.html_text(report, plot=(plot.light, plot.dark)),
    }
    if report.samples:
        files["samples.csv"] = csv_table.samples_csv_text(report)
    interrupts.check()
    write_report_folder(report, folder, force=force, files=files)
    interrupts.wrote(folder)


def _print_json(reports: list[Report]) -> None:
    import json

    from bisect_tool.store import report_text, report_to_json

    if len(reports) == 1:
        click.echo(report_text(reports[0]))
    else:
        click.echo(json.dumps([report_to_json(report) for report in reports], indent=2, allow_nan=False))
