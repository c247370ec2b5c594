"""PyTorch's switches: set for the duration of a run, read back, and restored whatever happens.

TF32 has two interfaces since torch 2.9: ``allow_tf32`` and ``set_float32_matmul_precision`` keep flags of their own, and
reading them raises once ``fp32_precision`` says something else. The global ``fp32_precision`` does not reach cuDNN's
convolutions and recurrences, whose own value is set from the start. So each operation's own ``fp32_precision`` is set,
and the old flags to the same, where they can still be read: models that read those then go on working.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bisect_tool.backends.emulation import Emulation, paused
from bisect_tool.backends.structures import map_tensors
from bisect_tool.errors import InconclusiveError
from bisect_tool.numerics import check_config, lookup
from bisect_tool.recorder import flatten_tensors
from bisect_tool.records import NumericConfig
from bisect_tool.switches import TORCH, Value

_PRECISIONS = (
    ("cuda", "matmul"),
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("mkldnn", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)
_PARENTS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_KERNELS = ("flash", "mem_efficient", "math", "cudnn")
_KERNEL_NAMES = {
    "flash": "flash_attention",
    "mem_efficient": "efficient_attention",
    "math": "math",
    "cudnn": "cudnn_attention",
}


@contextlib.contextmanager
def applied(config: NumericConfig) -> Iterator[Mapping[str, Any]]:
    """PyTorch as a configuration wants it; afterwards its global state is what it was, on error too.

    Enter it before the recorder. Device, dtype and memory layout are the model's: see ``placed``.

    Args:
        config: of PyTorch's side; what it does not name is left alone.

    Yields:
        What is in effect, read back: the switches that were set, ``device``, ``threads``; on CUDA also whether products
        round to TF32 (``matmul_tf32_seen``, ``conv_tf32_seen``). With ``emulate`` the counts
        ``emulate_rounded`` and ``emulate_unreached`` (operation → how often) are complete when the run is over.

    Raises:
        BisectError: the configuration is not valid.
        InconclusiveError: it is, but it cannot be had here; the message says what is missing.
    """
    check_config(config)
    require_device(config.device)
    switches = dict(config.switches)
    effective: dict[str, Any] = {"device": config.device}
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, _save())
        if config.threads:
            torch.set_num_threads(config.threads)
        effective["threads"] = torch.get_num_threads()
        for name, value in switches.items():
            if name in _FLAGS:
                _set_flag(name, value, config)
                effective[name] = _FLAGS[name].read()
            elif lookup("torch", name).home == "environment":
                effective[name] = _set_variable(name, str(value))
        if config.device == "cuda":
            effective.update(_seen_tf32())
        if "autocast" in switches:
            stack.enter_context(_autocast(config.device, str(switches["autocast"])))
            on, dtype = _autocast_state(config.device)
            effective["autocast"] = _name(dtype) if on else "off"
        if "emulate" in switches:
            emulation: Any = Emulation(switches["emulate"])  # type: ignore[arg-type]
            stack.enter_context(emulation)
            effective["emulate"] = emulation.format
            effective["emulate_rounded"], effective["emulate_unreached"] = emulation.rounded, emulation.unreached
        yield effective


@contextlib.contextmanager
def neutral() -> Iterator[None]:
    """Neither autocast nor emulation inside: for reference computations while a model runs under ``applied``."""
    with paused(), _no_autocast("cpu"), _no_autocast("cuda"):
        yield


def placed(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], config: NumericConfig
) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Model and inputs on the configuration's device, in its dtype and memory layout.

    Args:
        module: left alone; where something changes, a copy comes back.
        args, kwargs: inputs of ``forward``; left alone too. Floating tensors take the dtype, all others keep theirs.
        config: of PyTorch's side.

    Raises:
        InconclusiveError: there is no such device here, or the model cannot be copied.
    """
    require_device(config.device)
    dtype = getattr(torch, config.dtype) if config.dtype else None
    last = bool(config.switches.get("channels_last"))

    def move(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(config.device, dtype if tensor.is_floating_point() else None)
        return tensor.to(memory_format=torch.channels_last) if last and tensor.ndim == 4 else tensor

    tensors = [*module.parameters(), *module.buffers()]
    as_it_is = all(
        t.device.type == config.device and (dtype is None or not t.is_floating_point() or t.dtype == dtype)
        for t in tensors
    )
    if last or not as_it_is:
        try:
            module = copy.deepcopy(module)
        except Exception as error:  # a module may hold anything
            raise InconclusiveError(
                f"the model cannot be copied to run otherwise ({type(error).__name__}: {error})",
                hint="leave dtype, device and channels_last as the model has them",
            ) from error
        module = module.to(config.device, dtype) if dtype is not None else module.to(config.device)
        if last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module, map_tensors(args, move), map_tensors(dict(kwargs), move)


def layout_in_effect(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], config: NumericConfig
) -> dict[str, bool]:
    """The memory layout that a run really starts from, if the configuration says anything about it.

    Args:
        module, args, kwargs: as ``placed`` gave them.
        config: of PyTorch's side.

    Returns:
        ``channels_last``; nothing where no tensor of four dimensions tells.

    Raises:
        InconclusiveError: it is another one than was asked for.
    """
    if "channels_last" not in config.switches:
        return {}
    tensors = [*module.parameters(), *module.buffers(), *(tensor for _, tensor in flatten_tensors((args, kwargs)))]
    # With one channel, or one pixel, a tensor is both.
    layouts = [(t.is_contiguous(), t.is_contiguous(memory_format=torch.channels_last)) for t in tensors if t.ndim == 4]
    telling = [last for plain, last in layouts if not (plain and last)]
    if not telling:
        return {}
    wanted, found = bool(config.switches["channels_last"]), all(telling)
    if found != wanted:
        raise InconclusiveError(
            f"channels_last was set to {wanted}, and weights and inputs say {found}", hint="leave it out"
        )
    return {"channels_last": found}


def require_device(device: str) -> None:
    """Does nothing if PyTorch can compute there.

    Raises:
        InconclusiveError: it cannot; the message says whether the build, the driver or the device is missing.
    """
    if device != "cuda" or torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise InconclusiveError(
            f"PyTorch {torch.__version__} is a build without CUDA", hint="install a CUDA build of torch, or use the CPU"
        )
    try:
        torch.zeros(1, device="cuda")
        reason = "no device"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
    raise InconclusiveError(
        f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU: {reason}",
        hint="nvidia-smi shows driver and devices; CUDA_VISIBLE_DEVICES may hide them",
    )


def snapshot() -> dict[str, Any]:
    """All global state of PyTorch, and of the environment, that the switches touch; equal values mean equal state."""
    state: dict[str, Any] = {"threads": torch.get_num_threads(), "tf32": _Precision.now()}
    state.update({name: flag.read() for name, flag in _FLAGS.items()})
    state.update({kernel: _kernel_enabled(kernel) for kernel in _KERNELS})
    for device in ("cpu", "cuda"):
        state[f"autocast {device}"] = _autocast_state(device)
    state["modes"] = torch._C._len_torch_dispatch_stack()
    state["environment"] = {name: os.environ.get(name) for name in _VARIABLES}
    return state


def tf32_seen(kind: str, device: str) -> bool:
    """Whether a product on the device really rounds its operands to TF32.

    Args:
        kind: ``matmul`` | ``conv``.
        device: ``cuda``; on the CPU only emulation does so.
    """
    # 1 + 2**-12 is no TF32 number, and every other product is exact. Large enough for the usual kernels.
    ones = torch.ones(1, 64, 32, 32, device=device)
    fine = ones + 2.0**-12
    if kind == "matmul":
        result = fine.view(256, 256) @ torch.eye(256, device=device)
    else:
        weight = torch.eye(64, device=device).view(64, 64, 1, 1).expand(64, 64, 3, 3).clone()
        weight[:, :, torch.arange(3) != 1] = 0
        weight[:, :, :, torch.arange(3) != 1] = 0
        result = torch.nn.functional.conv2d(fine, weight, padding=1)
    return bool((result != 1 + 2.0**-12).any())


# Flags: each can be read, and set to what was read


@dataclass(frozen=True, slots=True)
class _Flag:
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _attribute(path: str, name: str) -> _Flag:
    """An attribute of ``torch.backends``; ``None`` where this torch has none."""

    def home() -> Any:
        found: Any = torch.backends
        for part in path.split("."):
            found = getattr(found, part)
        return found

    def read() -> Any:
        try:
            return getattr(home(), name)
        except (AttributeError, AssertionError):  # older modules of switches assert that they know a name
            return None

    return _Flag(read, lambda value: setattr(home(), name, value))


def _read_determinism() -> Value:
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True


def _write_determinism(value: Value) -> None:
    torch.use_deterministic_algorithms(bool(value), warn_only=value == "warn")


def _functions(home: str, read: str, write: str) -> _Flag:
    """Two functions of a module below ``torch.backends``; reads as ``None`` where this torch lacks one of them."""

    def function(name: str) -> Any:
        return getattr(getattr(torch.backends, home, None), name, None)

    def value() -> Any:
        found = function(read)
        return None if found is None or function(write) is None else found()

    return _Flag(value, lambda wanted: function(write)(wanted))


def _kernel_enabled(kernel: str) -> bool | None:
    """``None`` where this torch has no such switch."""
    read = getattr(torch.backends.cuda, f"{kernel}_sdp_enabled", None)
    return None if read is None else bool(read())


def _read_kernels() -> str:
    there = [kernel for kernel in _KERNELS if _kernel_enabled(kernel) is not None]
    on = [_KERNEL_NAMES[kernel] for kernel in there if _kernel_enabled(kernel)]
    return "default" if len(on) == len(there) else "+".join(on)


def _write_kernels(value: str) -> None:
    wanted = set(_KERNEL_NAMES.values()) if value == "default" else set(value.split("+"))
    for kernel in _KERNELS:
        if _kernel_enabled(kernel) is not None:
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(_KERNEL_NAMES[kernel] in wanted)


def _read_flush() -> bool:
    # There is no getter. Numpy computes on the same thread, and no recorder sees it.
    return bool(np.float32(1e-39) * np.float32(1) == 0)


def _write_flush(value: bool) -> None:
    if not torch.set_flush_denormal(value) and value:
        raise InconclusiveError("this processor cannot flush denormals in PyTorch", hint="leave flush_denormal out")


def _read_blas() -> str | None:
    if not hasattr(torch.backends.cuda, "preferred_blas_library"):
        return None
    return str(torch.backends.cuda.preferred_blas_library()).rpartition(".")[2].lower()


def _read_linalg() -> str | None:
    if not hasattr(torch.backends.cuda, "preferred_linalg_library"):
        return None
    return str(torch.backends.cuda.preferred_linalg_library()).rpartition(".")[2].lower()


def _write_linalg(value: str) -> None:
    try:
        torch.backends.cuda.preferred_linalg_library(value)
    except RuntimeError as error:
        raise InconclusiveError(f"this PyTorch has no {value}: {error}", hint="leave it out") from error


def _read_matmul_precision() -> str | None:
    found = _old(torch.get_float32_matmul_precision)
    return None if found is None else str(found)


def _write_matmul_precision(value: str) -> None:
    _quietly(torch.set_float32_matmul_precision, value)


def _write_blas(value: str) -> None:
    try:
        torch.backends.cuda.preferred_blas_library(value)
    except RuntimeError as error:
        raise InconclusiveError(f"this PyTorch has no {value}: {error}", hint="leave it out") from error


# Precision of float32 products


def _has_fp32_precision() -> bool:
    """Whether each operation has a ``fp32_precision`` of its own (torch 2.9)."""
    return hasattr(torch._C, "_get_fp32_precision_getter")


def _precision(backend: str, operation: str) -> str:
    return str(torch._C._get_fp32_precision_getter(backend, operation))


@dataclass(frozen=True, slots=True)
class _Precision:
    """Both interfaces at once.

    Attributes:
        matmul: ``get_float32_matmul_precision()``; ``None`` if it cannot be read for being contradicted.
        cudnn: ``cudnn.allow_tf32``; likewise.
        own: ``fp32_precision`` by backend and operation; empty before torch 2.9.
        parents: those that an operation follows whose own is ``none``.
    """

    matmul: str | None
    cudnn: bool | None
    own: Mapping[tuple[str, str], str]
    parents: Mapping[tuple[str, str], str]

    @classmethod
    def now(cls) -> _Precision:
        has = _has_fp32_precision()
        return cls(
            matmul=_old(torch.get_float32_matmul_precision),
            cudnn=_old(torch._C._get_cudnn_allow_tf32),
            own={key: _precision(*key) for key in _PRECISIONS} if has else {},
            parents={key: _precision(*key) for key in _PARENTS} if has else {},
        )

    def restore(self) -> None:
        if _Precision.now() == self:
            return
        if self.matmul is not None:
            _quietly(torch.set_float32_matmul_precision, self.matmul)
        if self.cudnn is not None:
            _quietly(torch._C._set_cudnn_allow_tf32, self.cudnn)
        # After the old flags, whose setters write these too.
        for (backend, operation), value in self.own.items():
            parent = self.parents[backend, "all"]
            # Read values include the parent's: one that only follows must go on following.
            torch._C._set_fp32_precision_setter(backend, operation, "none" if value == parent else value)


def _old(read: Callable[[], Any]) -> Any:
    """A flag of the old interface; ``None`` once the new one contradicts it."""
    try:
        return _quietly(read)
    except RuntimeError:
        return None


def _quietly(call: Callable[..., Any], *args: Any) -> Any:
    with warnings.catch_warnings():  # torch 2.9 calls the old interface deprecated
        warnings.simplefilter("ignore")
        return call(*args)


def _write_matmul_tf32(value: bool) -> None:
    if not _has_fp32_precision() or _old(torch.get_float32_matmul_precision) is not None:
        _quietly(torch._C._set_cublas_allow_tf32, value)
    if _has_fp32_precision():
        torch._C._set_fp32_precision_setter("cuda", "matmul", "tf32" if value else "ieee")


def _read_matmul_tf32() -> bool:
    if _has_fp32_precision():
        return _precision("cuda", "matmul") == "tf32"
    return bool(torch.backends.cuda.matmul.allow_tf32)


def _write_cudnn_tf32(wanted: Mapping[str, bool]) -> None:
    """Sets operations (``conv``, ``rnn``) together: one old flag stands for both, and says what is so only if they agree."""
    if not _has_fp32_precision():
        for value in wanted.values():
            _quietly(torch._C._set_cudnn_allow_tf32, value)
        return
    now = {operation: _precision("cuda", operation) for operation in ("conv", "rnn")}
    now.update({operation: "tf32" if value else "ieee" for operation, value in wanted.items()})
    agree = (now["conv"] == "tf32") == (now["rnn"] == "tf32")
    if agree and _old(torch._C._get_cudnn_allow_tf32) is not None:
        _quietly(torch._C._set_cudnn_allow_tf32, now["conv"] == "tf32")
    for operation, precision in now.items():
        torch._C._set_fp32_precision_setter("cuda", operation, precision)


def _read_cudnn_tf32(operation: str) -> Callable[[], bool]:
    def read() -> bool:
        if _has_fp32_precision():
            return _precision("cuda", operation) == "tf32"
        return bool(torch.backends.cudnn.allow_tf32)

    return read


def _mkldnn_precision(operation: str) -> _Flag:
    def read() -> str | None:
        if not _has_fp32_precision():
            return None
        found = _precision("mkldnn", operation)
        return "ieee" if found == "none" else found

    return _Flag(read, lambda value: torch._C._set_fp32_precision_setter("mkldnn", operation, value))


_FLAGS: Mapping[str, _Flag] = {
    "matmul_tf32": _Flag(_read_matmul_tf32, _write_matmul_tf32),
    "cudnn_conv_tf32": _Flag(_read_cudnn_tf32("conv"), lambda value: _write_cudnn_tf32({"conv": value})),
    "cudnn_rnn_tf32": _Flag(_read_cudnn_tf32("rnn"), lambda value: _write_cudnn_tf32({"rnn": value})),
    "cudnn_enabled": _attribute("cudnn", "enabled"),
    "cudnn_deterministic": _attribute("cudnn", "deterministic"),
    "cudnn_benchmark": _attribute("cudnn", "benchmark"),
    "deterministic_algorithms": _Flag(_read_determinism, _write_determinism),
    "sdpa_kernel": _Flag(_read_kernels, _write_kernels),
    "mha_fastpath": _functions("mha", "get_fastpath_enabled", "set_fastpath_enabled"),
    "fp16_reduced_precision_reduction": _attribute("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    "bf16_reduced_precision_reduction": _attribute("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
    "fp16_accumulation": _attribute("cuda.matmul", "allow_fp16_accumulation"),
    "fp16_bf16_reduction_math_sdp": _functions(
        "cuda", "fp16_bf16_reduction_math_sdp_allowed", "allow_fp16_bf16_reduction_math_sdp"
    ),
    "preferred_blas_library": _Flag(_read_blas, _write_blas),
    "preferred_linalg_library": _Flag(_read_linalg, _write_linalg),
    "float32_matmul_precision": _Flag(_read_matmul_precision, _write_matmul_precision),
    "mkldnn": _attribute("mkldnn", "enabled"),
    "mkldnn_deterministic": _attribute("mkldnn", "deterministic"),
    "mkldnn_matmul_fp32_precision": _mkldnn_precision("matmul"),
    "mkldnn_conv_fp32_precision": _mkldnn_precision("conv"),
    "mkldnn_rnn_fp32_precision": _mkldnn_precision("rnn"),
    "flush_denormal": _Flag(_read_flush, _write_flush),
}
_CUDNN_TF32 = {"cudnn_conv_tf32": "conv", "cudnn_rnn_tf32": "rnn"}
_OF_PRECISION = frozenset(name for name in _FLAGS if "tf32" in name or "fp32" in name or "float32" in name)
_VARIABLES = tuple(switch.name for switch in TORCH if switch.home == "environment")


def _set_flag(name: str, value: Value, config: NumericConfig) -> None:
    flag = _FLAGS[name]
    if name == "sdpa_kernel" and config.device == "cpu" and value in ("efficient_attention", "cudnn_attention"):
        raise InconclusiveError(f"the CPU has no attention kernel {value}", hint="it has math and flash_attention")
    if name == "float32_matmul_precision" and flag.read() is None:
        raise InconclusiveError(
            "float32_matmul_precision cannot be set: fp32_precision was set in this process before, and PyTorch"
            f" {torch.__version__} refuses to mix the two",
            hint="set matmul_tf32 or mkldnn_matmul_fp32_precision in its place",
        )
    if flag.read() is None:
        since = lookup("torch", name).since
        came = f"; it came with PyTorch {since}" if since else ""
        raise InconclusiveError(f"PyTorch {torch.__version__} has no switch {name}{came}", hint="leave it out")
    if name in _CUDNN_TF32:
        # Both of them, once for each. One old flag stands for both: where nothing is said about recurrences they follow.
        wanted = {_CUDNN_TF32[key]: bool(config.switches[key]) for key in _CUDNN_TF32 if key in config.switches}
        if "conv" in wanted:
            wanted.setdefault("rnn", wanted["conv"])
        if not _has_fp32_precision() and len(set(wanted.values())) > 1:
            raise InconclusiveError(
                f"PyTorch {torch.__version__} has one flag for TF32 in convolutions and in recurrences",
                hint=f"set {' and '.join(_CUDNN_TF32)} alike",
            )
        _write_cudnn_tf32(wanted)
    else:
        flag.write(value)
    if flag.read() != value:
        raise InconclusiveError(
            f"{name} was set to {value}, and PyTorch {torch.__version__} says {flag.read()}", hint="leave it out"
        )


def _set_variable(name: str, value: str) -> str:
    """Sets what CUDA's libraries read when they start; what PyTorch read when it was loaded must be there already."""
    if os.environ.get(name) != value:
        if "cuda" not in lookup("torch", name).devices or torch.cuda.is_initialized():
            raise InconclusiveError(
                f"{name}={value} comes too late for this process", hint="it must be set before PyTorch starts to work"
            )
        os.environ[name] = value
    return value


def _autocast_state(device: str) -> tuple[bool, torch.dtype]:
    """Whether autocast is on for a device, and to which dtype; older versions ask each device by a function of its own."""
    if hasattr(torch, "get_autocast_dtype"):
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    of_cpu = device == "cpu"
    on: Any = torch.is_autocast_cpu_enabled if of_cpu else torch.is_autocast_enabled
    dtype: Any = torch.get_autocast_cpu_dtype if of_cpu else torch.get_autocast_gpu_dtype
    return on(), dtype()


def _no_autocast(device: str) -> Any:
    with warnings.catch_warnings():  # some versions tell that there is no GPU to switch it off for
        warnings.simplefilter("ignore")
        return torch.autocast(device, enabled=False)


def _autocast(device: str, value: str) -> Any:
    if value == "off":
        return torch.autocast(device, enabled=False)
    return torch.autocast(device, dtype=getattr(torch, value))


def _seen_tf32() -> dict[str, bool]:
    try:
        return {f"{kind}_tf32_seen": tf32_seen(kind, "cuda") for kind in ("matmul", "conv")}
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InconclusiveError(f"the GPU refuses plain products under these switches: {reason}") from error


# Saving and restoring


@dataclass(frozen=True, slots=True)
class _Saved:
    threads: int
    precision: _Precision
    kernels: Mapping[str, bool | None]
    flags: Mapping[str, Any]
    environment: Mapping[str, str | None]


def _save() -> _Saved:
    others = [name for name in _FLAGS if name not in _OF_PRECISION and name != "sdpa_kernel"]
    return _Saved(
        threads=torch.get_num_threads(),
        precision=_Precision.now(),
        kernels={kernel: _kernel_enabled(kernel) for kernel in _KERNELS},
        flags={name: _FLAGS[name].read() for name in others},
        environment={name: os.environ.get(name) for name in _VARIABLES},
    )


def _restore(saved: _Saved) -> None:
    """Writes what has changed, and nothing else; one that fails leaves none of the others out."""
    with contextlib.ExitStack() as stack:
        if torch.get_num_threads() != saved.threads:
            stack.callback(torch.set_num_threads, saved.threads)
        stack.callback(saved.precision.restore)
        for kernel, on in saved.kernels.items():
            if on is not None and _kernel_enabled(kernel) != on:
                stack.callback(getattr(torch.backends.cuda, f"enable_{kernel}_sdp"), on)
        for name, value in saved.flags.items():
            if _FLAGS[name].read() != value:
                stack.callback(_FLAGS[name].write, value)
        stack.callback(_restore_environment, os.environ, saved.environment)


def _restore_environment(environment: MutableMapping[str, str], saved: Mapping[str, str | None]) -> None:
    for name, value in saved.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
