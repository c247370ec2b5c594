"""Layer-wise numerical divergence bisector for PyTorch against ONNX.

Names are imported lazily: importing the package loads neither torch nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bisect_tool.backends.exporting import ExportSettings
    from bisect_tool.compare_traces import compare_recordings
    from bisect_tool.errors import BisectError, InconclusiveError
    from bisect_tool.experiments import run_matrix
    from bisect_tool.matrix import read_matrix
    from bisect_tool.metrics import measure
    from bisect_tool.parts import bisect_parts
    from bisect_tool.pipeline import LoadedCase, Options, bisect, inspect_case
    from bisect_tool.recorder import Recorder, record
    from bisect_tool.records import Report
    from bisect_tool.store import read_report
    from bisect_tool.taps import tap
    from bisect_tool.tolerances import make_tolerance
    from bisect_tool.traces import Trace, read_trace

_HOMES = {
    "bisect": "bisect_tool.pipeline",
    "inspect_case": "bisect_tool.pipeline",
    "bisect_parts": "bisect_tool.parts",
    "LoadedCase": "bisect_tool.pipeline",
    "Options": "bisect_tool.pipeline",
    "ExportSettings": "bisect_tool.backends.exporting",
    "Recorder": "bisect_tool.recorder",
    "Report": "bisect_tool.records",
    "BisectError": "bisect_tool.errors",
    "InconclusiveError": "bisect_tool.errors",
    "measure": "bisect_tool.metrics",
    "make_tolerance": "bisect_tool.tolerances",
    "read_matrix": "bisect_tool.matrix",
    "run_matrix": "bisect_tool.experiments",
    "record": "bisect_tool.recorder",
    "compare_recordings": "bisect_tool.compare_traces",
    "tap": "bisect_tool.taps",
    "read_report": "bisect_tool.store",
    "read_trace": "bisect_tool.traces",
    "Trace": "bisect_tool.traces",
}

__version__ = "0.1.0"
__all__ = [
    "BisectError",
    "ExportSettings",
    "InconclusiveError",
    "LoadedCase",
    "Options",
    "Recorder",
    "Report",
    "bisect",
    "compare_recordings",
    "inspect_case",
    "bisect_parts",
    "make_tolerance",
    "measure",
    "read_matrix",
    "record",
    "run_matrix",
    "tap",
    "read_report",
    "read_trace",
    "Trace",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
