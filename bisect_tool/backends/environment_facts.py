"""What only PyTorch and ONNX Runtime know of the environment: builds, providers, and every flag that changes numbers.

Each of the two may be missing, or broken: then the snapshot says so in its place. Nothing here makes a CUDA context.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from bisect_tool.environments.snapshot import binary_versions
from bisect_tool.environments.snapshot import snapshot as plain_snapshot
from bisect_tool.environments.variables import safe_text

_MATMUL = "torch.backends.cuda.matmul"
TORCH_ATTRIBUTES = (
    "torch.backends.fp32_precision",
    f"{_MATMUL}.fp32_precision",
    f"{_MATMUL}.allow_tf32",
    f"{_MATMUL}.allow_fp16_reduced_precision_reduction",
    f"{_MATMUL}.allow_fp16_reduced_precision_reduction_split_k",
    f"{_MATMUL}.allow_bf16_reduced_precision_reduction",
    f"{_MATMUL}.allow_bf16_reduced_precision_reduction_split_k",
    f"{_MATMUL}.allow_fp16_accumulation",
    "torch.backends.cudnn.enabled",
    "torch.backends.cudnn.benchmark",
    "torch.backends.cudnn.benchmark_limit",
    "torch.backends.cudnn.deterministic",
    "torch.backends.cudnn.allow_tf32",
    "torch.backends.cudnn.fp32_precision",
    "torch.backends.cudnn.conv.fp32_precision",
    "torch.backends.cudnn.rnn.fp32_precision",
    "torch.backends.mkldnn.enabled",
    "torch.backends.mkldnn.deterministic",
    "torch.backends.mkldnn.allow_tf32",
    "torch.backends.mkldnn.fp32_precision",
    "torch.backends.mkldnn.matmul.fp32_precision",
    "torch.backends.mkldnn.conv.fp32_precision",
    "torch.backends.mkldnn.rnn.fp32_precision",
    "torch.backends.opt_einsum.enabled",
    "torch.backends.opt_einsum.strategy",
    "torch.backends.quantized.engine",
    "torch.backends.miopen.immediate",
    "torch.utils.deterministic.fill_uninitialized_memory",
)
"""Flags that are attributes. What a version does not have is left out."""

TORCH_CALLS = (
    "torch.get_float32_matmul_precision",
    "torch.get_default_dtype",
    "torch.are_deterministic_algorithms_enabled",
    "torch.is_deterministic_algorithms_warn_only_enabled",
    "torch.get_num_threads",
    "torch.get_num_interop_threads",
    "torch.backends.cuda.preferred_blas_library",
    "torch.backends.cuda.preferred_linalg_library",
    "torch.backends.cuda.flash_sdp_enabled",
    "torch.backends.cuda.mem_efficient_sdp_enabled",
    "torch.backends.cuda.math_sdp_enabled",
    "torch.backends.cuda.cudnn_sdp_enabled",
    "torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed",
    "torch.backends.mha.get_fastpath_enabled",
    "torch.backends.nnpack.is_available",
)
"""Flags that a function without arguments tells."""

TORCH_CALLS_BY_DEVICE = ("torch.is_autocast_enabled", "torch.get_autocast_dtype")
_DEVICES = ("cpu", "cuda")


def snapshot(binaries: Sequence[str] = ()) -> dict[str, Any]:
    """The whole environment (``environment.schema.json``).

    Args:
        binaries: programs whose version is asked for, by name or path.

    Raises:
        BisectError: one of these programs is not there.
    """
    asked = binary_versions(binaries)
    # Before the libraries are listed that are in the process.
    libraries = {"torch": torch_facts(), "onnxruntime": onnxruntime_facts()}
    return {**plain_snapshot(), **libraries, "binaries": asked}


def torch_facts() -> dict[str, Any]:
    """PyTorch's build and flags; ``{"absent": reason}`` without it."""
    torch = _module("torch")
    if isinstance(torch, str):
        return {"absent": torch}
    facts: dict[str, Any] = {
        "version": str(torch.__version__),
        "git": getattr(torch.version, "git_version", None),
        "cuda": getattr(torch.version, "cuda", None),
        "hip": getattr(torch.version, "hip", None),
        "cudnn": _cudnn(torch),
        "cpu_capability": _value(torch, "torch.backends.cpu.get_cpu_capability", call=True),
    }
    return {**facts, **_build(torch), "flags": flags(torch)}


def flags(torch: Any) -> dict[str, Any]:
    """Every global switch of PyTorch that can change a number, by the name that reads it."""
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in TORCH_ATTRIBUTES:
            found[name] = _value(torch, name)
        for name in TORCH_CALLS:
            found[f"{name}()"] = _value(torch, name, call=True)
        for name in TORCH_CALLS_BY_DEVICE:
            for device in _DEVICES:
                found[f"{name}({device!r})"] = _value(torch, name, device, call=True)
        found["flush_denormal"] = _flushes(torch)
    return {name: value for name, value in found.items() if value is not None}


def _value(torch: Any, name: str, *arguments: str, call: bool = False) -> Any:
    thing: Any = torch
    try:
        for part in name.split(".")[1:]:
            thing = getattr(thing, part)
        if call:
            thing = thing(*arguments)
    except (
        AttributeError,
        ImportError,
        TypeError,
        AssertionError,
    ):  # old modules of switches assert that they know a name
        return None
    except Exception as error:
        # Old and new switches for TF32 mixed: reading one of them raises, which is worth telling.
        return f"unreadable: {safe_text(str(error), 80)}"
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    return str(thing).rpartition(".")[2] if "." in str(thing) else str(thing)


def _flushes(torch: Any) -> bool | None:
    """There is no getter: half of the smallest normal number is zero, or not."""
    with contextlib.suppress(Exception):
        return bool((torch.full((1,), 2.0**-126) * 0.5 == 0).item())
    return None


def _cudnn(torch: Any) -> int | None:
    with contextlib.suppress(Exception):
        version = torch.backends.cudnn.version()
        return None if version is None else int(version)
    return None


@functools.cache
def _build_text(torch: Any) -> str:
    with contextlib.suppress(Exception):
        return str(torch.__config__.show())
    return ""


def _build(torch: Any) -> dict[str, str | None]:
    """Libraries that it was built with, from its own description."""
    text = _build_text(torch)
    patterns = {
        "mkl": r"Math Kernel Library Version (\S+)",
        "onednn": r"MKL-DNN v(\S+)",
        "openmp": r"OpenMP (\d+)",
        "blas": r"BLAS_INFO=(\w+)",
    }
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {name: match.group(1) if match else None for name, match in found.items()}


def onnxruntime_facts() -> dict[str, Any]:
    """ONNX Runtime's build and providers; ``{"absent": reason}`` without it."""
    ort = _module("onnxruntime")
    if isinstance(ort, str):
        return {"absent": ort}

    def ask(name: str) -> Any:
        try:
            return getattr(ort, name)()
        except Exception:
            return None

    info = _module("onnxruntime.capi.build_and_package_info")
    return {
        "version": str(getattr(ort, "__version__", "") or ask("get_version_string") or "unknown"),
        "build": safe_build(ask("get_build_info")),
        "providers": list(ask("get_available_providers") or ()),
        "device": ask("get_device"),
        "package": None if isinstance(info, str) else getattr(info, "package_name", None),
        "cuda": None if isinstance(info, str) else getattr(info, "cuda_version", None),
    }


def safe_build(text: str | None) -> str | None:
    """A build's description: commit and type; it names no user."""
    return None if text is None else " ".join(str(text).split())[:500]


def _module(name: str) -> Any:
    """The module, or the reason why it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError:
        return "not installed"
    except Exception as error:  # a missing CUDA library is an OSError or an ImportError
        return f"cannot be imported: {safe_text(str(error), 160)}"


def absent(facts: Mapping[str, Any]) -> str | None:
    """Why a library is not there; None if it is."""
    reason = facts.get("absent")
    return None if reason is None else str(reason)
