"""What a PyTorch run did, as a list of operations that can be set against that of another run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from bisect_tool.backends.structures import map_tensors
from bisect_tool.recorder import Recorder, Ref
from bisect_tool.records import Operation

_SMALL = 16
"""Elements up to which a constant tensor is a number among others; larger ones are left out."""


def operations_of(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Operation, ...]:
    """Runs the model once, without gradients, and lists what depends on its inputs or makes a constant.

    Bodies of ``torch.cond`` and the like are left out: their branches are in an exported graph.

    Raises:
        Exception: whatever ``forward`` raises.
    """
    # A model may write into its inputs; copied before anything is recorded.
    args, kwargs = map_tensors(args, torch.Tensor.clone), map_tensors(kwargs, torch.Tensor.clone)
    recorder = Recorder(module, tape=True)
    with torch.no_grad(), recorder:
        recorder.run(*args, **kwargs)
    trace = recorder.trace

    def constant(value: int) -> str | None:
        known = trace.values[value]
        if known.kind != "constant" or known.shape is None:
            return None
        tensor = recorder.held(value)
        return str(tensor.tolist()) if tensor.numel() <= _SMALL else None

    found = []
    for op in trace.ops:
        if op.body is not None or op.name == "alias_update":
            continue
        frame = trace.frames[op.frame] if op.frame >= 0 else None
        constants = tuple(_constants(op.call, constant)) if op.call is not None else ()
        path, call = (frame.path, frame.call) if frame is not None else ("", 0)
        found.append(Operation(op.name, path, call, op.source, constants))
    recorder.release_all()
    return tuple(found)


def _constants(call: Any, constant: Callable[[int], str | None]) -> Iterable[str]:
    """``1: 0.125``, ``dim: 2``: arguments that are numbers, lists of numbers, or small tensors that no input changes."""
    _, args, kwargs = call
    for name, value in [*enumerate(args), *kwargs.items()]:
        text = _text(value, constant)
        if text is not None:
            yield f"{name}: {text}"


def _text(value: Any, constant: Callable[[int], str | None]) -> str | None:
    if isinstance(value, Ref):
        return constant(value.id)
    if isinstance(value, (bool, int, float, complex)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        parts = [_text(item, constant) for item in value]
        return f"[{', '.join(part for part in parts if part is not None)}]" if any(parts) else None
    return None
