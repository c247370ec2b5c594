"""Runs the PyTorch side under the recorder, and turns what was recorded into stages."""

from __future__ import annotations

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
from bisect_tool.recorder import Frame, Op, Recorder, Trace, Value
from bisect_tool.records import Place, Stage, StageRef, TorchTrace

_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep

# Operations that only say how memory is read, or copy it: they make no numbers, so they are no stages.
LAYOUT_OPS = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "t",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "clone",
        "contiguous",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "as_strided",
        "diagonal",
        "narrow",
        "copy",
        "lift_fresh",
        "alias_update",
        "lift_fresh_copy",
        "_conj",
        "_neg_view",
        "view_as_real",
        "view_as_complex",
        "unsafe_split",
        "unsafe_chunk",
        "unfold",
        "split_with_sizes_copy",
        "swapaxes",
        "movedim",
        "flatten",
    ]
)
# Operations whose operand gives only a shape.
FACTORY_OPS = frozenset(
    [
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_empty_strided",
        "empty_strided",
    ]
)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A numpy view (or a copy, where the tensor is not on the CPU or not dense); bfloat16 and float8 through ml_dtypes."""
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
    return tensor.numpy()


_ML_DTYPES: dict[torch.dtype, Any] = {torch.bfloat16: ml_dtypes.bfloat16}
for _name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
    if hasattr(torch, _name) and hasattr(ml_dtypes, _name):
        _ML_DTYPES[getattr(torch, _name)] = getattr(ml_dtypes, _name)


_TORCH_DTYPES = {np.dtype(special): dtype for dtype, special in _ML_DTYPES.items()}


def from_numpy(array: NDArray[Any]) -> torch.Tensor:
    """The inverse of :func:`to_numpy`; shares memory where the array can be written to."""
    special = _TORCH_DTYPES.get(array.dtype)
    if special is None:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    bits = np.int16 if array.dtype.itemsize == 2 else np.uint8
    return torch.from_numpy(np.ascontiguousarray(array).view(bits).copy()).view(special)


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
    stages = _Stages(trace)
    by_frame_stop: dict[int, list[Frame]] = {}
    for frame in trace.frames:
        stop = frame.stop if frame.stop is not None else len(trace.ops)
        by_frame_stop.setdefault(stop, []).append(frame)
    for place in range(len(trace.ops) + 1):
        if place:
            stages.add_op(trace.ops[place - 1], every_op)
        # In the order in which they ended: children before parents, and before the next sibling.
        for frame in sorted(by_frame_stop.get(place, []), key=lambda f: (f.end is None, f.end)):
            stages.add_frame(frame)
    parents = {
        output: tuple(i for i in dict.fromkeys(op.inputs) if trace.values[i].dynamic)
        for op in trace.ops
        for output in op.outputs
        if op.name not in FACTORY_OPS
    }
    return TorchTrace(
        stages=tuple(sorted(stages.found, key=lambda stage: stage.order)),
        parents=parents,
        inputs=tuple(trace.inputs),
        outputs=tuple(trace.outputs),
        modules=modules,
    )


class _Stages:
    def __init__(self, trace: Trace):
        self.trace = trace
        self.found: list[Stage] = []
        self.by_value: dict[int, StageRef] = {}
        self.counts: dict[tuple[int, str], int] = {}
        self.used = {i for op in trace.ops for i in op.inputs}
        self.used |= {value for frame in trace.frames for _, value in frame.outputs}
        self.used |= {value for _, value in trace.outputs}

    def add_op(self, op: Op, every_op: bool) -> None:
        if op.frame < 0 or op.name in LAYOUT_OPS or op.name in FACTORY_OPS:
            return
        frame = self.trace.frames[op.frame]
        if frame.opaque and not every_op:
            return
        inputs = self._dynamic(op.inputs)
        if not inputs or self._is_plain_cast(op):
            return
        number = self.counts.get((frame.index, op.name), 0)
        self.counts[frame.index, op.name] = number + 1
        path = f"{frame.path}/{op.name}#{number}"
        for key, value in enumerate(op.outputs):
            if value in self.used:
                level = "op" if frame.opaque else "leaf"
                self._add(StageRef(path, frame.call, key), level, op.name, op.source, value, inputs, op.index + 1)

    def _is_plain_cast(self, op: Op) -> bool:
        """``_to_copy`` that changes device or layout, but no number."""
        values = self.trace.values
        return bool(op.name == "_to_copy" and values[op.inputs[0]].dtype == values[op.outputs[0]].dtype)

    def add_frame(self, frame: Frame) -> None:
        stop = frame.stop if frame.stop is not None else len(self.trace.ops)
        if frame.leaf and self._inside_opaque(frame):
            return
        inside = self.trace.ops[frame.start : stop]
        made = {value for op in inside for value in op.outputs}
        read = [i for op in inside if op.name not in FACTORY_OPS for i in op.inputs if i not in made]
        read += [value for _, value in frame.outputs if value not in made]
        inputs = self._dynamic(read)
        level = "leaf" if frame.leaf else "container"
        for key, value in frame.outputs:
            if self.trace.values[value].dynamic:
                self._add(StageRef(frame.path, frame.call, key), level, frame.type, frame.source, value, inputs, stop)

    def _inside_opaque(self, frame: Frame) -> bool:
        return bool(frame.parent >= 0 and self.trace.frames[frame.parent].opaque)

    def _dynamic(self, values: Iterable[int]) -> tuple[int, ...]:
        return tuple(i for i in dict.fromkeys(values) if self.trace.values[i].dynamic)

    def _add(
        self,
        ref: StageRef,
        level: Any,
        type_name: str,
        source: str | None,
        value: int,
        inputs: tuple[int, ...],
        order: int,
    ) -> None:
        known = self.trace.values[value]
        if known.shape is None:
            return
        first = self.by_value.get(value)
        alias: StageRef | None = first
        if first is None and value in {v for _, v in self.trace.inputs}:
            alias = StageRef("(input)", 0, next(k for k, v in self.trace.inputs if v == value))
        self.found.append(Stage(ref, level, type_name, source, known.shape, known.dtype, value, inputs, order, alias))
        self.by_value.setdefault(value, ref)


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
