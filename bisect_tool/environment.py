"""What the numbers were made with: versions, processor, threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

_DISTRIBUTIONS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "ml-dtypes")


def snapshot() -> dict[str, Any]:
    """Versions and hardware, all as plain values; nothing that names a user or a place."""
    versions: dict[str, str] = {}
    for name in ("bisect-divergence", *_DISTRIBUTIONS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count() or 0,
        "versions": versions,
    }


def _processor() -> str:
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:
                for line in file:
                    if line.startswith("model name"):
                        return line.split(":", 1)[1].strip()
        except OSError:
            return platform.processor()
    return platform.processor()


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, in MB (10^6 bytes); 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
