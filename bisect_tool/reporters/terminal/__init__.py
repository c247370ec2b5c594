"""The report on a terminal."""

from __future__ import annotations

from bisect_tool.reporters.terminal.page import name_folder, print_report, render

__all__ = ["name_folder", "print_report", "render"]
