"""``bisect-tool verify MODEL [CKPT] --onnx FILE --input SAMPLE``: may this file go out? For pipelines."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bisect_tool.cli import interrupts
from bisect_tool.cli import options as shared
from bisect_tool.cli.loading import case_name
from bisect_tool.cli.progress import progress
from bisect_tool.cli.run import (
    check_kept_file,
    exit_code,
    print_json,
    refuse_inputs,
    report_folder,
    run_samples,
    settings_of,
    tell_times,
)
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, BisectError
from bisect_tool.whole_files import write_whole

if TYPE_CHECKING:
    from bisect_tool.records import Report


@click.command(context_settings=shared.SETTINGS)
@shared.loading
@shared.exporting
@shared.judging
@click.option("--top-k", type=int, metavar="K", help="How many of the best classes are compared as a set [default: 5].")
@click.option(
    "--class-axis",
    "class_axes",
    multiple=True,
    metavar="[OUTPUT=]AXIS",
    help="Of the classes; `none` for an output without any [default: 1 of 4 and 5 dimensions, else the last].",
)
@click.option(
    "--metric", metavar="MODULE:FUNCTION", help="Called with both sides' outputs by name; gives a number, or several."
)
@click.option(
    "--metric-limit",
    "metric_limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Largest number that passes; NAME>=VALUE: the smallest. Also of argmax and top_k: their smallest share.",
)
@shared.selecting
@shared.running
@click.option("--junit", type=click.Path(), metavar="FILE", help="Also write JUnit XML, a test case a stage.")
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Report folder [default: reports/NAME/TIME].")
@click.option("--exit-zero", is_flag=True, help="Exit 0 on divergence too.")
@shared.reporting
def verify(
    form: str,
    force: bool,
    exit_zero: bool,
    verbose: bool,
    quiet: bool,
    junit: str | None,
    top_k: int | None,
    class_axes: Sequence[str],
    metric: str | None,
    metric_limits: Sequence[str],
    **given: Any,
) -> int:
    """Check an ONNX file against its PyTorch model in a pipeline: short output, JUnit, annotations, exit codes.

    With --tolerances each stage has the limit that was calibrated for it; without, noise floors decide as in
    bisect-divergence. Exit codes: 0 agree, 1 divergence, 2 bad usage or unreadable input, 3 inconclusive.
    """
    settings = settings_of({**dict.fromkeys(("matrix", "runner", "totals_only")), "parts": (), "groups": (), **given})
    _check_settings(settings)
    say = progress(quiet, verbose)
    folder = report_folder(settings, force)
    if settings["keep_onnx"]:
        check_kept_file(Path(settings["keep_onnx"]), force, settings)
    if junit is not None:
        refuse_inputs("--junit", Path(junit), settings)
        _check_file(Path(junit))
    from bisect_tool.agreement import DEFAULT_K
    from bisect_tool.verification import make_questions, with_table

    limits = with_table(metric_limits, settings["table"].metrics if settings.get("table") else {})
    questions = make_questions(DEFAULT_K if top_k is None else top_k, class_axes, metric, limits)

    def compare(case: Any, options: Any, tell: Any) -> Report:
        from bisect_tool.verifying import verify_case

        return verify_case(questions, case, options, tell)

    detail = functools.partial(click.echo, err=True) if verbose else (lambda _: None)
    single: dict[Path, Report] = {}
    shown: Report | None = None
    try:
        for report, target, whole in run_samples(settings, folder, force, say, detail, compare):
            if whole:
                shown = report
            if not report.samples:
                single[target] = report
    except BisectError as error:
        _tell_failure(settings, junit, error)
        raise
    assert shown is not None  # run_samples ends with it, or raises
    reports = [*single.values()]
    if junit is not None:
        from bisect_tool.reporters.junit import junit_text

        names = [_suite_name(report, len(reports)) for report in reports]
        _write(Path(junit), junit_text([*zip(names, reports, strict=True)]))
    _annotate(reports)
    say.close()
    for report in reports if verbose else ():
        tell_times(report)
    if form == "json":
        print_json(reports)
    else:
        from bisect_tool.reporters.verification import print_verification

        files = [("report", os.path.join(folder, "index.html")), *([("junit", junit)] if junit else [])]
        print_verification(shown, files=files)
    code = exit_code(reports)
    return EXIT_AGREES if exit_zero and code == EXIT_DIVERGES else code


def _check_settings(settings: dict[str, Any]) -> None:
    """Refuses what a case file may hold and this command does not do."""
    for name, what in (("matrix", "a matrix"), ("parts", "files of parts"), ("runner", "another runner")):
        if settings.get(name):
            raise BisectError(f"verify does not take {what}", hint="bisect-divergence does; leave it out here")


def _check_file(file: Path) -> None:
    """Refuses a place for the JUnit file that can't take it, before the work."""
    if file.is_dir():
        raise BisectError(f"--junit {file}: is a folder", hint=f"name the file in it: --junit {file / 'verify.xml'}")
    if not file.parent.is_dir():
        raise BisectError(f"--junit {file}: there is no folder {file.parent}", hint="make it first")


def _write(file: Path, text: str) -> None:
    """A JUnit file is made anew by each run, as test runners do it; readers see a whole one."""
    interrupts.check()
    try:
        write_whole({file: text})
    except OSError as error:
        reason = error.strerror or str(error)
        raise BisectError(f"--junit {file}: cannot be written ({reason})", hint="choose another place") from error


def _tell_failure(settings: dict[str, Any], junit: str | None, error: BisectError) -> None:
    """A run without an answer is told as well: the file of an earlier run must not stand for this one."""
    from bisect_tool.reporters import github
    from bisect_tool.reporters.junit import failure_text

    if junit is not None:
        _write(Path(junit), failure_text(case_name(settings), error))
    if github.runs_there(os.environ):
        click.echo(github.failure(error), err=True)


def _suite_name(report: Report, count: int) -> str:
    name = str(report.case.get("name") or "model")
    return name if count == 1 else f"{name} {report.case.get('sample', '')}".strip()


def _annotate(reports: Sequence[Report]) -> None:
    """Marks beside the code where this is a step of GitHub Actions; stdout is left to the answer."""
    from bisect_tool.reporters import github

    if not github.runs_there(os.environ):
        return
    lines = [line for report in reports for line in github.marks(report, os.environ)]
    for line in list(dict.fromkeys(lines))[: github.MOST]:
        click.echo(line, err=True)
