"""The files of a report folder beside ``report.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bisect_tool.picture_formats import read_formats
from bisect_tool.records import Report
from bisect_tool.reporters import csv_table, drawing, html


def files_of(
    report: Report,
    replays: Mapping[str, Any] | None = None,
    formats: str | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Table, plots and page by name, for :func:`bisect_tool.store.write_report_folder`.

    Args:
        report: to be written.
        replays: folders of origins, by path, which go along.
        formats: of the plots, as for ``--plots``.
        meanwhile: called when the plots are being drawn, where there is a process for that.
    """
    plots = drawing.begin(report, read_formats(formats))
    meanwhile()
    table, page = csv_table.csv_text(report), html.html_text(report)
    files: dict[str, Any] = {"stages.csv": table, **plots(), "index.html": page, **(replays or {})}
    if report.samples:
        files["samples.csv"] = csv_table.samples_csv_text(report)
    return files
