"""Runs the PyTorch side under the recorder, and turns what was recorded into stages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.compiled import eagerly
from bisect_tool.recorder import (
    FACTORY_OPS,
    LAYOUT_OPS,
    Recorder,
    StageEntry,
    Trace,
    Value,
    parents_of,
    stages_of,
)
from bisect_tool.records import Place, Stage, StageRef, TorchTrace

__all__ = [
    "FACTORY_OPS",
    "LAYOUT_OPS",
    "TorchRun",
    "build_trace",
    "complex_like",
    "float_dtype_of",
    "from_numpy",
    "nested_note",
    "state_kept",
    "to_numpy",
]

_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A numpy view (or a copy, where the tensor is not on the CPU or not dense); bfloat16 and float8 through ml_dtypes.

    Complex numbers are pairs along one more axis, as graphs have them: ONNX Runtime computes with no others.
    """
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.resolve_conj().resolve_neg().cpu()
    special = _ML_DTYPES.get(tensor.dtype)
    if special is not None:
        bits = torch.int16 if tensor.element_size() == 2 else torch.uint8
        return tensor.contiguous().view(bits).numpy().view(special)
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).numpy()


_ML_DTYPES: dict[torch.dtype, Any] = {torch.bfloat16: ml_dtypes.bfloat16}
for _name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
    if hasattr(torch, _name) and hasattr(ml_dtypes, _name):
        _ML_DTYPES[getattr(torch, _name)] = getattr(ml_dtypes, _name)


_TORCH_DTYPES = {np.dtype(special): dtype for dtype, special in _ML_DTYPES.items()}


def from_numpy(array: NDArray[Any]) -> torch.Tensor:
    """The inverse of :func:`to_numpy`, but for complex numbers; shares memory where the array can be written to."""
    special = _TORCH_DTYPES.get(array.dtype)
    if special is None:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    bits = np.int16 if array.dtype.itemsize == 2 else np.uint8
    return torch.from_numpy(np.ascontiguousarray(array).view(bits).copy()).view(special)


def complex_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Pairs of real numbers as the complex numbers that they stand for, where ``like`` holds such; else as they are."""
    if not like.is_complex() or tensor.is_complex() or tuple(tensor.shape) != (*like.shape, 2):
        return tensor
    parts = torch.view_as_real(like)
    return torch.view_as_complex(tensor.to(parts.dtype).contiguous())


def state_kept(module: torch.nn.Module) -> Callable[[Callable[[torch.Tensor], None]], None]:
    """What undoes the changes that later runs make to a model's buffers: caches, counters, averages.

    It is given what is to be called with each buffer before that is written to.
    """
    kept = [(buffer, buffer.detach().clone()) for buffer in module.buffers() if _can_be_compared(buffer)]

    def put_back(about_to_write: Callable[[torch.Tensor], None]) -> None:
        with torch.no_grad():
            for buffer, before in kept:
                if buffer.shape == before.shape and not torch.equal(buffer, before):
                    about_to_write(buffer)
                    buffer.copy_(before)

    return put_back


def own_memory(tensors: Iterable[torch.Tensor]) -> set[int]:
    """Where the memory of tensors begins, views' that of what they are views of; that of tensors without any is left out."""
    found = set()
    for tensor in tensors:
        # Lazy, sparse, meta and wrapped tensors.
        with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):
            found.add(tensor.untyped_storage().data_ptr())
    return found


def _can_be_compared(buffer: torch.Tensor) -> bool:
    """Torch itself compares no others; nor do models write to them."""
    if torch.nn.parameter.is_lazy(buffer) or buffer.layout is not torch.strided or buffer.is_quantized:
        return False
    return not (buffer.is_meta or (buffer.is_floating_point() and buffer.element_size() == 1))


class TorchRun:
    """One run of the PyTorch side: ``start`` it once, then read ``trace`` and the kept tensors.

    Args:
        module: in the mode it is to be judged in.
        args, kwargs: inputs of ``module.forward``.
        on_value: called with each stage's value and its tensor while the model is paused there.
        every_op: report operations inside leaf modules too.
        tape: keep what is needed to compute any stage again, see :mod:`bisect_tool.backends.replay`.
        place: of the module in a larger model; its stages are named as there.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_value: Callable[[Value, torch.Tensor], None],
        *,
        every_op: bool = False,
        tape: bool = False,
        place: Place | None = None,
    ):
        self.place = place
        self.module = module
        self.args = args
        self.kwargs = kwargs
        self.recorder: Recorder = Recorder(module, on_value, every_op, tape)
        self.every_op = every_op

    def start(self) -> Any:
        """Runs the model without gradients, as in deployment. Returns its output."""
        # TorchScript rewrites its graphs after the first runs: later ones would have other operations.
        plainly = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with torch.no_grad(), plainly, eagerly(), self.recorder:
            return self.recorder.run(*self.args, **self.kwargs)

    @property
    def trace(self) -> TorchTrace:
        first = {id(child): path for path, child in self.module.named_modules()}
        paths = {path: first[id(child)] for path, child in self.module.named_modules(remove_duplicate=False)}
        trace = build_trace(self.recorder.trace, paths, every_op=self.every_op)
        return trace if self.place is None else _placed(trace, self.place)


def _placed(trace: TorchTrace, place: Place) -> TorchTrace:
    """The trace with the names of the whole model. A graph may be tagged with either: both lead to the same path."""

    def renamed(stage: Stage) -> Stage:
        alias = None if stage.alias_of is None else place.ref(stage.alias_of)
        # The roof over several submodules is this package's; nobody looks for a fault there.
        own = stage.source is not None and stage.source.startswith(_PACKAGE)
        return replace(stage, ref=place.ref(stage.ref), alias_of=alias, source=None if own else stage.source)

    own = {name: place.paths.get(path, path) for name, path in trace.modules.items()}
    whole = {path: path for path in own.values()}
    return replace(trace, stages=tuple(map(renamed, trace.stages)), modules={**whole, **own})


def build_trace(trace: Trace, modules: Mapping[str, str], *, every_op: bool = False) -> TorchTrace:
    """Stages of all levels, with their true inputs, from what the recorder saw."""
    return TorchTrace(
        stages=tuple(map(_stage, stages_of(trace, every_op))),
        parents=parents_of(trace),
        inputs=tuple(trace.inputs),
        outputs=tuple(trace.outputs),
        modules=modules,
    )


def _stage(entry: StageEntry) -> Stage:
    alias = None if entry.alias is None else StageRef(*entry.alias)
    # As to_numpy has it.
    pairs = (2,) if entry.dtype.startswith("complex") else ()
    return Stage(
        StageRef(*entry.ref),
        entry.level,
        entry.type,
        entry.source,
        (*entry.shape, *pairs),
        entry.dtype,
        entry.value,
        entry.inputs,
        entry.order,
        alias,
    )


def nested_note(trace: Trace) -> tuple[str, ...]:
    """What the report says about a run that worked on nested tensors; nothing for others."""
    if all(value.shape is not None for value in trace.values):
        return ()
    return (
        "PyTorch worked on nested tensors, as nn.TransformerEncoder's fast path does where there is padding: inside there "
        "are no stages to compare, and padded places are zero behind it, while a graph computes them. Compare other places "
        "only, or build the encoder with enable_nested_tensor=False",
    )


def float_dtype_of(module: torch.nn.Module) -> str | None:
    """The dtype that most floating weights have, as a short name; ``None`` without any."""
    counts: dict[str, int] = {}
    for tensor in module.parameters():
        if tensor.is_floating_point():
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + tensor.numel()
    return max(counts, key=lambda name: counts[name]) if counts else None
