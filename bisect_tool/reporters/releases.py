"""A release bisect on a terminal."""

from __future__ import annotations

from typing import IO

from rich.console import Console

from bisect_tool.releases import Release, ReleaseReport, limit_for
from bisect_tool.reporters import wording
from bisect_tool.reporters.layout import Column, Page, PipedConsole, Row


def print_releases(report: ReleaseReport, *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print a release bisect to stdout, or to ``file``."""
    render(report, PipedConsole(file=file, width=width))


def render(report: ReleaseReport, console: Console) -> None:
    """Print the versions that were tried, and where numbers changed."""
    page = Page(console)
    columns = (
        Column(report.package, minimum=10),
        Column("rel-L2", right=True),
        Column("max abs", right=True),
        Column("", minimum=20, cut="end"),
    )
    page.table(columns, [_row(release) for release in report.releases if release.state != "not tried"])
    untried = [release.version for release in report.releases if release.state == "not tried"]
    if untried:
        page.prose(f"not tried: {wording.names_text(untried, 8)}", style="dim", indent="  ")
    what = "the same ONNX file each time" if report.what == "graph" else "the model in PyTorch"
    floor = "the noise floor is not known" if report.floor is None else f"noise floor {wording.sci(report.floor)}"
    page.prose(
        f"against the outputs of {report.change.reference or 'none'}; {what}; {floor}, limit {wording.sci(report.limit)}",
        style="dim",
        indent="  ",
    )
    page.line()
    _verdict(page, report)


def _row(release: Release) -> Row:
    word = {"changed": "CHANGED", "failed": "could not be tried"}.get(release.state, release.state)
    note = f"{word}{' (of an earlier run)' if release.cached else ''}{': ' + release.why if release.why else ''}"
    return Row((release.version, wording.sci(release.rel_l2), wording.sci(release.max_abs), note))


def _verdict(page: Page, report: ReleaseReport) -> None:
    change = report.change
    if change.status == "untestable":
        text = "fewer than two versions could be tried"
        page.prose(text, label=("INCONCLUSIVE  ", "bold yellow"))
    elif change.status == "unchanged":
        text = f"{change.last_same} gives the numbers of {change.reference}, up to rounding"
        page.prose(text, label=("UNCHANGED  ", "bold green"))
    else:
        text = f"{report.package} {change.first_changed} gives other numbers than {change.last_same}"
        first = next(release for release in report.releases if release.version == change.first_changed)
        if first.rel_l2 is not None and report.floor is not None and first.rel_l2 <= limit_for(report.floor):
            text += f"; relative L2 {wording.sci(first.rel_l2)} is of the size of rounding"
        if change.between:
            text += f"; between them, could not be tried: {', '.join(change.between)}"
        page.prose(text, label=("CHANGED  ", "bold red"))
    for release in report.releases:
        if release.state == "failed" and release.why:
            page.prose(f"{release.version}: {release.why}", indent="  ", style="dim")
