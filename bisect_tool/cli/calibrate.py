"""``bisect-tool calibrate MODEL [CKPT] --input DIR -o tolerances.toml``: limits for each stage, from known-good runs."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bisect_tool.calibration.tolerance_table import check_place, read_table, write_table
from bisect_tool.cli import interrupts
from bisect_tool.cli import options as shared
from bisect_tool.cli.loading import Loaded, load, make_case
from bisect_tool.cli.progress import progress
from bisect_tool.cli.run import cases, check_kept_file, settings_of
from bisect_tool.errors import EXIT_AGREES, BisectError
from bisect_tool.executors import check_executor
from bisect_tool.matrix import read_matrix
from bisect_tool.whole_files import write_whole

if TYPE_CHECKING:
    from bisect_tool.pipeline import LoadedCase


@shared.reworded(force="Replace a table, its plots, and a file of --keep-onnx, that are there.", name=shared.NO_EFFECT)
@click.command(context_settings=shared.SETTINGS)
@shared.loading
@shared.exporting
@click.option("--no-onnx", is_flag=True, help="PyTorch's own runs only: neither --onnx nor an export runs.")
@click.option(
    "--matrix",
    metavar="NAME",
    help="Also run these configurations, a preset or a file; those that do more than round are left out.",
)
@click.option(
    "--accept",
    multiple=True,
    metavar="NAME",
    help="A reduction of precision that counts as correct: tf32, bf16 or fp16. Repeatable.",
)
@click.option(
    "--false-alarm",
    type=float,
    default=0.01,
    metavar="RATE",
    help="Correct runs, of all stages together, that may be over a limit [default: 0.01].",
)
@click.option(
    "--copies",
    type=click.IntRange(min=0),
    default=1,
    metavar="N",
    help="Runs of each sample with slightly other numbers, beside its own [default: 1].",
)
@click.option("--executor", default="local", metavar="NAME", help="local, or dask://HOST:PORT [default: local].")
@click.option("--jobs", type=int, metavar="N", default=1, help="Local processes; not with dask [default: 1].")
@click.option(
    "--journal",
    type=click.Path(),
    metavar="FILE",
    help="What is done, to go on from after an interruption [default: OUTPUT.journal, gone at the end].",
)
@shared.choosing
@shared.running
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    default="tolerances.toml",
    help="The table to write [default: tolerances.toml].",
)
@click.option("--no-plots", is_flag=True, help="Leave out the plots of errors and sensitivity beside the table.")
@shared.reporting
def calibrate(
    form: str,
    force: bool,
    verbose: bool,
    quiet: bool,
    no_onnx: bool,
    accept: tuple[str, ...],
    false_alarm: float,
    copies: int,
    executor: str,
    jobs: int,
    journal: str | None,
    output: str,
    no_plots: bool,
    **given: Any,
) -> int:
    """Measure what error each stage of a correct model has, and write a limit for each into a table.

    Only known-good runs count: PyTorch against float64, under its own variations, on slightly other inputs; and ONNX Runtime
    where all error up to a stage is rounding. So a fault in the ONNX file widens no limit. The table is for `bisect-tool
    verify --tolerances`. Exit codes: 0 done, 2 bad usage or unreadable input, 3 no sample could be run.
    """
    settings = settings_of({**given, "output": None})
    if no_onnx and settings["onnx"]:
        raise BisectError("--no-onnx and --onnx exclude each other", hint="leave one of the two out")
    if settings["parts"]:
        raise BisectError("a model in several ONNX files has no table yet", hint="leave [parts] out of the case file")
    target = Path(output)
    # Told before the runs, not after them.
    check_place(target, force=force)
    plots = [] if no_plots else _plot_names(target, force)
    check_executor(executor, jobs)
    if not 0 < false_alarm < 1:
        raise BisectError(
            f"--false-alarm {false_alarm}: a probability between 0 and 1", hint="for example --false-alarm 0.01"
        )
    if settings["keep_onnx"]:
        check_kept_file(Path(settings["keep_onnx"]), force, settings)
    matrix = read_matrix(settings["matrix"]) if settings["matrix"] else None
    say = progress(quiet, verbose)
    detail = functools.partial(click.echo, err=True) if verbose else (lambda _: None)
    items = list(cases(settings, force, say, detail))

    from bisect_tool.calibrate import How, Plan
    from bisect_tool.calibrate import calibrate as run
    from bisect_tool.reporters.calibration import as_json, print_calibration

    options = items[0].options
    plan = Plan(
        false_alarm=false_alarm,
        onnx=options.onnx,
        with_onnx=not no_onnx,
        export=options.export,
        keep_onnx=options.keep_onnx,
        overwrite=force,
        level=options.level,
        stages=options.stages,
        copies=copies,
        accepted=accept,
        matrix=matrix,
        memory_budget=options.memory_budget,
        threads=options.threads,
    )
    # Limits of outputs are nobody's but the user's.
    by_hand = _limits_by_hand(target) if target.exists() else {}
    kept = Path(journal) if journal else target.with_name(f"{target.name}.journal")
    how = How(executor, jobs, kept, None if executor == "local" else target.absolute().parent)
    loaded = [item.case for item in items]
    alone = executor == "local" and jobs == 1
    # Whoever is interrupted has to know what the same command goes on with.
    interrupts.wrote(kept)
    done = run(loaded, plan, how, say, None if alone else functools.partial(load_again, _absolute(settings)))
    interrupts.check()
    write_table(target, replace(done.made.table, metrics=by_hand), force=force)
    interrupts.wrote(target)
    if plots:
        from bisect_tool.reporters import calibration_plots

        drawn = calibration_plots.files(done.made, target.stem)
        try:
            write_whole({target.parent / name: content for name, content in drawn.items()})
        except OSError as error:
            raise BisectError(
                f"plots cannot be written beside {target}: {error.strerror or error}; the limits themselves are there",
                hint="--no-plots leaves plots out",
            ) from error
    if not journal:
        # Its own place; one that the user named stays.
        kept.unlink(missing_ok=True)
    written = [str(target), *map(str, plots)]
    failed = {items[number].source: reason for number, reason in done.failed.items()}
    if form == "json":
        click.echo(json.dumps(as_json(done.made, written, failed), indent=1, allow_nan=False))
    else:
        print_calibration(done.made, written, failed)
    return EXIT_AGREES


def _limits_by_hand(target: Path) -> Mapping[str, float | str]:
    """Of the table that is to be replaced."""
    try:
        return read_table(target).metrics
    except BisectError as error:
        reason = f"{error.message}; limits by hand ([metrics]) are taken over from the file that is replaced"
        raise BisectError(reason, hint="move that file away, or name another one with -o") from error


def _plot_names(target: Path, force: bool) -> list[Path]:
    """Where the plots go; refused where a file is."""
    from bisect_tool.reporters.calibration_plots import names

    found = [target.parent / name for name in names(target.stem)]
    for path in found:
        if path.exists() and not force:
            raise BisectError(
                f"{path}: the file exists and is not overwritten",
                hint="--force replaces it; --no-plots leaves plots out; or choose another place with -o",
            )
    return found


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that mean the same in a process with another working directory."""

    def path(value: str) -> str:
        # A model may be package.module:NAME.
        return os.path.abspath(value) if os.path.exists(value) else value

    found = {**settings, "inputs": [path(str(each)) for each in settings["inputs"]]}
    found["raw"] = [path(str(each)) for each in settings["raw"]]
    for key in ("model", "checkpoint", "onnx", "entry_args"):
        if settings[key]:
            found[key] = path(str(settings[key]))
    return found


@functools.lru_cache(maxsize=1)
def _loaded(settings: str) -> tuple[Mapping[str, Any], Loaded]:
    """The model and all samples, once in a process."""
    plain = json.loads(settings)
    return plain, load(plain)


def load_again(settings: dict[str, Any], number: int) -> LoadedCase:
    """A sample's case in another process."""
    from bisect_tool.backends.samples import bind_sample

    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    known, loaded = _loaded(json.dumps(plain, default=str))
    return make_case(known, loaded, bind_sample(loaded.module, loaded.samples[number]))
