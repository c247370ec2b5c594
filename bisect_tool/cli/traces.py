"""``bisect-tool compare`` for two recordings: from their paths to a printed report. torch is not loaded."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from bisect_tool.cli import interrupts
from bisect_tool.cli.progress import Progress
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, EXIT_INCONCLUSIVE, BisectError
from bisect_tool.tolerances import make_tolerance

_EXIT = {"agrees": EXIT_AGREES, "diverges": EXIT_DIVERGES, "inconclusive": EXIT_INCONCLUSIVE}


def compare_recordings(
    expected: Path,
    actual: Path,
    *,
    form: str,
    level: str,
    stages: Sequence[str],
    min_coverage: float,
    all_stages: bool,
    output: str | None,
    force: bool,
    plots: str | None,
    say: Progress,
    max_abs: float | None,
    atol: float | None,
    rtol: float | None,
    **_: Any,
) -> int:
    """Compares two recordings, prints the report, and writes it where a folder is named. Returns the exit code.

    Raises:
        BisectError: a recording can't be read, or an option does not fit.
    """
    from bisect_tool.picture_formats import read_formats
    from bisect_tool.recordings.bundles import open_bundle
    from bisect_tool.recordings.compare_traces import compare_traces
    from bisect_tool.store import check_report_folder, report_text

    formats = read_formats(plots)

    tolerance = make_tolerance(max_abs, atol, rtol)
    if not 0 <= min_coverage <= 1:
        raise BisectError(f"--min-coverage {min_coverage}: a share from 0 to 1", hint="for example 0.9")
    if output:
        check_report_folder(output, force=force)
    with ExitStack() as stack:
        sides = [stack.enter_context(open_bundle(path)) for path in (expected, actual)]
        report = compare_traces(
            sides[0],
            sides[1],
            tolerance,
            level=level,
            stages=stages,
            min_coverage=min_coverage,
            command=shlex.join(["bisect-tool", *sys.argv[1:]]),
        )
    interrupts.check()
    if output:
        _write(report, Path(output), force, formats)
    say.close()
    if form == "json":
        click.echo(report_text(report), nl=False)
    else:
        from bisect_tool.reporters.terminal import print_report

        print_report(report, all_stages=all_stages, report_dir=output)
    return _EXIT[report.verdict.status]


def _write(report: Any, folder: Path, force: bool, formats: tuple[str, ...]) -> None:
    from bisect_tool.reporters import csv_table, html, plot_files
    from bisect_tool.store import write_report_folder

    files: dict[str, Any] = {
        "stages.csv": csv_table.csv_text(report),
        **plot_files.plot_files(report, formats),
        "index.html": html.html_text(report),
    }
    write_report_folder(report, folder, force=force, files=files)
    interrupts.wrote(folder)
