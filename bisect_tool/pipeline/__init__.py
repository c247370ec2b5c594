"""The one room that knows the order of things: load, export, capture, align, expose, force, compare, localize, explain."""

from __future__ import annotations

from bisect_tool.backends.case import LoadedCase, export_case, keep_file
from bisect_tool.pipeline.job import bisect, inspect_case
from bisect_tool.pipeline.options import GraphSource, Options, Progress, Step

__all__ = [
    "GraphSource",
    "LoadedCase",
    "Options",
    "Progress",
    "Step",
    "bisect",
    "export_case",
    "inspect_case",
    "keep_file",
]
