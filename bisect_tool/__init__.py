"""Layer-wise numerical divergence bisector for PyTorch against ONNX.

Names are imported lazily: importing the package loads neither torch nor onnxruntime.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bisect_tool.api import (
        bisect,
        calibrate,
        compare,
        determinism,
        env_diff,
        environment,
        inspect,
        record,
        verify,
    )
    from bisect_tool.backends.exporting import ExportSettings
    from bisect_tool.calibration.tolerance_table import read_table, write_table
    from bisect_tool.errors import BisectError, InconclusiveError
    from bisect_tool.experiments import run_matrix
    from bisect_tool.matrix import read_matrix
    from bisect_tool.metrics import measure
    from bisect_tool.parts import bisect_parts
    from bisect_tool.pipeline import LoadedCase, Options, inspect_case
    from bisect_tool.recorder import Recorder
    from bisect_tool.recordings.compare_traces import compare_recordings
    from bisect_tool.recordings.traces import Trace, read_trace
    from bisect_tool.records import Report
    from bisect_tool.store import read_report
    from bisect_tool.taps import tap
    from bisect_tool.tolerances import make_tolerance

_HOMES = {
    "bisect": "bisect_tool.api",
    "calibrate": "bisect_tool.api",
    "compare": "bisect_tool.api",
    "determinism": "bisect_tool.api",
    "env_diff": "bisect_tool.api",
    "environment": "bisect_tool.api",
    "inspect": "bisect_tool.api",
    "record": "bisect_tool.api",
    "verify": "bisect_tool.api",
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
    "read_table": "bisect_tool.calibration.tolerance_table",
    "write_table": "bisect_tool.calibration.tolerance_table",
    "run_matrix": "bisect_tool.experiments",
    "compare_recordings": "bisect_tool.recordings.compare_traces",
    "tap": "bisect_tool.taps",
    "read_report": "bisect_tool.store",
    "read_trace": "bisect_tool.recordings.traces",
    "Trace": "bisect_tool.recordings.traces",
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
    "bisect_parts",
    "calibrate",
    "compare",
    "compare_recordings",
    "determinism",
    "env_diff",
    "environment",
    "inspect",
    "inspect_case",
    "make_tolerance",
    "measure",
    "read_matrix",
    "read_table",
    "record",
    "run_matrix",
    "tap",
    "verify",
    "write_table",
    "read_report",
    "read_trace",
    "Trace",
]


class _Package(types.ModuleType):
    """The package itself. Files such as ``compare.py`` do not take the place of the public function of that name.

    Python makes a module an attribute of its package as soon as anybody imports it; ``import bisect_tool.compare`` and
    ``from bisect_tool.compare import ...`` find the module all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
