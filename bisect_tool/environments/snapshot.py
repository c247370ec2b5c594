"""What the numbers were made with: versions, processor, threads, GPU, variables. All plain values, no secrets, no names.

Nothing here loads PyTorch or ONNX Runtime; what only they know is added by ``backends/environment_facts.py``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bisect_tool.environments.variables import safe_text, telling_variables
from bisect_tool.errors import BisectError

ENVIRONMENT_VERSION = 1

_DISTRIBUTIONS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "ml-dtypes")

_INSTRUCTION_SETS = re.compile(
    r"sse4_[12]|ssse3|avx|avx2|fma|f16c|avx512\w*|avx_\w+|avx10\w*|amx_\w+|neon|asimd\w*|fphp|sve\w*|sme|sme2\w*|sme_\w+|bf16|i8mm"
)
_LIBRARIES = re.compile(
    r"(lib)?(mkl_rt|mkl_core|openblas|scipy_openblas|blis|iomp5|omp|gomp|dnnl|mkldnn|cublas|cublasLt|cudnn|cudart|"
    r"jpeg|turbojpeg|png16|avcodec|swscale)[\w.-]*\.(so|dylib|dll|pyd)[\w.]*$"
)


def snapshot() -> dict[str, Any]:
    """Versions and hardware, all as plain values; nothing that names a user or a place."""
    distributions = _distributions()
    wanted = ("bisect-divergence", *_DISTRIBUTIONS)
    return {
        "environment_version": ENVIRONMENT_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count() or 0,
        "versions": {name: distributions[name] for name in wanted if name in distributions},
        "python_implementation": platform.python_implementation(),
        "os": _os(),
        "cpu": _cpu(),
        "blas": _blas(),
        "loaded_libraries": _loaded_libraries(),
        "gpu": _gpu(),
        "variables": telling_variables(os.environ),
        "distributions": dict(distributions),
    }


def hardware() -> dict[str, Any]:
    """What of the machine changes numbers: processor, instruction sets, and the models of its GPUs, each once."""
    devices = _gpu()["devices"]
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "instruction_sets": list(_instruction_sets()),
        "gpus": sorted({f"{device['name']} ({device['compute_capability']})" for device in devices}),
    }


def normalised(name: str) -> str:
    """A distribution's name as PEP 503 writes it: ``Foo.Bar_baz`` and ``foo-bar-baz`` are the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _distributions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        try:
            name, version = _name_and_version(distribution)
        except Exception:  # half-removed packages leave folders without metadata
            continue
        if name and version:
            # The first on the path is the one that is imported.
            found.setdefault(normalised(name), str(version))
    return dict(sorted(found.items()))


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str | None, str | None]:
    """By the head of its metadata alone: parsing all of it takes most of a second where many packages are installed."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
    if text is None:
        return distribution.metadata["Name"], distribution.version
    head = text[: found.start()] if (found := _END_OF_HEAD.search(text)) else text
    name, version = (re.search(rf"^{field}:[ \t]*(.*?)[ \t\r]*$", head, _FLAGS) for field in ("Name", "Version"))
    return name and name[1], version and version[1]


_END_OF_HEAD = re.compile(r"^\r?$", re.MULTILINE)
_FLAGS = re.MULTILINE | re.IGNORECASE


@functools.cache
def _os() -> Mapping[str, str]:
    found = {"system": platform.system(), "release": platform.release()}
    try:
        found["distribution"] = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except (OSError, AttributeError):
        found["distribution"] = platform.mac_ver()[0] or platform.win32_ver()[1]
    libc = " ".join(part for part in platform.libc_ver() if part)
    return {key: value for key, value in {**found, "libc": libc}.items() if value}


def _cpu() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "model": _processor(),
        "instruction_sets": list(_instruction_sets()),
        "available": len(affinity(0)) if affinity else os.cpu_count() or 0,
        "quota": _quota(),
    }


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def _instruction_sets() -> tuple[str, ...]:
    """Those that libraries choose their code by."""
    text = ""
    if sys.platform == "linux":
        line = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
        text = line.group(1) if line else ""
    elif sys.platform == "darwin":
        text = _output(["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]) or ""
        text = text.lower().replace(".", "_")
    return tuple(sorted({word for word in text.split() if _INSTRUCTION_SETS.fullmatch(word)}))


def _quota() -> float | None:
    """Processors that a container may use, where it is limited."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


@functools.cache
def _processor() -> str:
    if sys.platform == "linux":
        line = re.search(r"^model name\s*:(.*)$", _cpuinfo(), re.MULTILINE)
        if line:
            return line.group(1).strip()
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return platform.processor()


@functools.cache
def _blas() -> Mapping[str, str]:
    """What NumPy multiplies matrices with, as it was built."""
    try:
        import numpy

        config: Any = numpy.show_config(mode="dicts")  # type: ignore[call-overload,unused-ignore]
        blas = config["Build Dependencies"]["blas"]
        return {"numpy": safe_text(f"{blas.get('name', '')} {blas.get('version', '')}")}
    except Exception:  # numpy before 1.25 prints in place of returning; numpy may be missing or broken
        return {}


def _loaded_libraries() -> list[str]:
    """Numeric libraries in this process, by file name; two OpenMP runtimes at once are a known trouble."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    names = {os.path.basename(line.rpartition(" ")[2]) for line in lines if "/" in line}
    return sorted(name for name in names if _LIBRARIES.match(name))


@functools.cache
def _gpu() -> Mapping[str, Any]:
    """NVIDIA devices and their driver, as the driver's own tool tells; no CUDA context is made for it."""
    text = _output(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    )
    if not text:
        return {"devices": [], "driver": None}
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.count(",") >= 3]
    devices = [
        {"name": name, "memory_mib": int(memory) if memory.isdigit() else None, "compute_capability": capability}
        for name, _, memory, capability in (row[:4] for row in rows)
    ]
    return {"devices": devices, "driver": rows[0][1] if rows else None}


def _output(command: Sequence[str], seconds: float = 10) -> str | None:
    """What a program prints; None if it is not there or fails."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or done.stderr.strip() if done.returncode == 0 else None


def binary_versions(names: Sequence[str]) -> dict[str, str]:
    """The first line that programs say of their version.

    Raises:
        BisectError: there is no such program.
    """
    found = {}
    for name in names:
        if shutil.which(name) is None:
            raise BisectError(f"--binary {name}: no such program", hint="name one that is on the PATH, or its path")
        # Most know the first; ffmpeg and java the second; ssh the third.
        texts = (_output([name, option]) for option in ("--version", "-version", "-V"))
        text = next((text for text in texts if text), None)
        found[os.path.basename(name)] = safe_text(text.splitlines()[0]) if text else "does not tell its version"
    return found


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, in MB (10^6 bytes); 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
