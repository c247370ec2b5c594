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
from bisect_tool.cli.settings import check_parts, parse_size, read_case_file
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, EXIT_INCONCLUSIVE, BisectError
from bisect_tool.matrix import read_matrix
from bisect_tool.tolerances import make_tolerance

if TYPE_CHECKING:
    from bisect_tool.pipeline import Options
    from bisect_tool.records import Report

_EXIT = {"agrees": EXIT_AGREES, "diverges": EXIT_DIVERGES, "inconclusive": EXIT_INCONCLUSIVE}

_DEFAULTS: Mapping[str, Any] = {
    "constant_folding": True,
    "level": "leaf",
    "memory_budget": "2GiB",
    "min_coverage": 0.9,
    "threads": 0,
    "matrix": None,
    "inputs": (),
    "parts": (),
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
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="SUBMODULE=FILE",
    help="ONNX file of one submodule, or of several as a+b+c; the others stay in PyTorch. Repeatable.",
)
@click.option("--config", type=click.Path(), help="Case file (TOML); the command line overrides it.")
@click.option("--entry", metavar="NAME", help="Function, class or instance in MODEL [default: build_model].")
@click.option("--entry-args", type=click.Path(), help="TOML or JSON file with arguments for the entry.")
@click.option("--preprocess", metavar="MODULE:FUNCTION", help="Makes the sample from --raw.")
@click.option("--raw", type=click.Path(), help="File given to --preprocess.")
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
    reports: list[Report] = []
    detail = functools.partial(click.echo, err=True) if verbose else (lambda _: None)
    for report, folder in _run_samples(settings, folders, force, say, detail):
        reports.append(report)
        if form == "text":
            from bisect_tool.reporters.terminal import print_report

            print_report(report, all_stages=all_stages, report_dir=folder)
        if verbose:
            for step, seconds in report.timings.items():
                click.echo(f"{seconds:8.2f} s  {step}", err=True)
    if form == "json":
        _print_json(reports)
    code = max((_EXIT[report.verdict.status] for report in reports), key=_severity)
    return EXIT_AGREES if exit_zero and code == EXIT_DIVERGES else code


def _severity(code: int) -> int:
    return {EXIT_AGREES: 0, EXIT_INCONCLUSIVE: 1, EXIT_DIVERGES: 2}[code]


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the case file, then the command line."""
    settings = {**dict.fromkeys(given), **_DEFAULTS}
    if given["config"]:
        settings.update(read_case_file(Path(given["config"])))
    settings.update({key: value for key, value in given.items() if value is not None and value != ()})
    tolerances = ("max_abs", "atol", "rtol")
    if any(given[name] is not None for name in tolerances):
        # A tolerance on the command line replaces the file's, not only the option of the same name.
        settings.update({name: given[name] for name in tolerances})
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
    settings["parts"] = check_parts(settings["parts"])
    if settings["parts"]:
        _check_beside_parts(given, settings)
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
    """Yields each sample's report and its folder; the model is loaded once."""
    matrix = read_matrix(settings["matrix"]) if settings["matrix"] else None
    # Told before the model is loaded, which may take long.
    make_tolerance(settings["max_abs"], settings["atol"], settings["rtol"])
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
    for number, sample in enumerate(bound):
        case = make_case(settings, loaded, sample)
        # Each sample gets an export of its own: shapes are baked in.
        chosen = options if number == 0 else replace(options, keep_onnx=None)
        if settings["parts"]:
            from bisect_tool.parts import bisect_parts

            report = bisect_parts(case, settings["parts"], chosen, say)
        elif matrix is None:
            report = bisect(case, chosen, say)
            if chosen.keep_onnx is not None:
                say(f"the exported file is kept at {chosen.keep_onnx}")
        else:
            from bisect_tool.experiments import run_matrix

            given = {**settings, "command": case.description["command"]}
            report = run_matrix(functools.partial(load_case, given, number), chosen, matrix, say, detail)
        target = folder if len(bound) == 1 else folder / f"{number:03d}-{Path(sample.source).stem}"
        _write(report, target, force, say)
        yield report, target


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
        tolerance=make_tolerance(settings["max_abs"], settings["atol"], settings["rtol"]),
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
