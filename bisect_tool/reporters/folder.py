"""The files of a report folder beside ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bisect_tool.records import Report
from bisect_tool.reporters import csv_table, html, plots


def files_of(report: Report, replays: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Table, plots and page by name, for :func:`bisect_tool.store.write_report_folder`; ``replays`` go along."""
    plot = plots.images(report)
    files: dict[str, Any] = {
        "stages.csv": csv_table.csv_text(report),
        "amplification.png": plot.png,
        "amplification.svg": plot.light,
        "index.html": html.html_text(report, plot=(plot.light, plot.dark)),
        **(replays or {}),
    }
    if report.samples:
        files["samples.csv"] = csv_table.samples_csv_text(report)
    return files
