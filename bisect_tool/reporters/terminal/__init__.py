"""The report on a terminal."""

from __future__ import annotations

from bisect_tool.reporters.terminal.page import print_report, render

__all__ = ["print_report", "render"]
