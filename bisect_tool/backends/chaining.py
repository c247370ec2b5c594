"""The whole model run with something else in the place of its parts: their ONNX files, or themselves with random errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from bisect_tool.backends.parts import Call, Part, Step, exchanged_forwards
from bisect_tool.backends.structures import map_tensors
from bisect_tool.backends.torch_runner import complex_like, from_numpy
from bisect_tool.errors import BisectError
from bisect_tool.recorder import flatten_tensors
from bisect_tool.records import OutputKey

Array = NDArray[Any]

Compute = Callable[[Part, int, Call, Mapping[int, torch.Tensor]], Mapping[int, torch.Tensor]]
"""Part, number of the call, the captured call that it is like, the tensors that it is given now, by ``id`` of the captured
ones → tensors that it returns, by ``id`` of the captured ones."""


def run_exchanged(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parts: Sequence[Part],
    calls: Mapping[str, list[Call]],
    compute: Compute,
) -> list[tuple[OutputKey, torch.Tensor]]:
    """Runs the model with something else in place of its parts.

    What raises, raises. A part that is called more often than was captured is taken to return what it returned last.
    """
    collected: dict[str, dict[int, torch.Tensor]] = {part.name: {} for part in parts}
    counts: Counter[str] = Counter()
    owner = {path: part for part in parts for path in part.members}

    def wrap(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        part = owner[path]

        def exchanged(*args: Any, **kwargs: Any) -> Any:
            number = counts[path]
            counts[path] += 1
            call = calls[part.name][min(number, len(calls[part.name]) - 1)]
            step = next(step for step in call.steps if step.path == path)
            now = Step(path, args, kwargs).given()
            if len(now) != len(step.given()):
                raise BisectError(
                    f"{part.name} was called with {len(step.given())} tensors by PyTorch, and is with {len(now)} here"
                )
            given = collected[part.name]
            given.update((id(old), new) for old, new in zip(step.given(), now, strict=True) if id(old) in call.starts)
            if step is not call.steps[-1]:
                # The file computes this too; the last submodule returns what comes of it.
                return step.output
            collected[part.name] = {}
            made = compute(part, number, call, given)
            return map_tensors(call.output, lambda tensor: made.get(id(tensor), tensor))

        return exchanged

    args, kwargs = map_tensors(args, torch.Tensor.clone), map_tensors(kwargs, torch.Tensor.clone)
    with torch.no_grad(), exchanged_forwards(parts, wrap):
        outputs: list[tuple[OutputKey, torch.Tensor]] = flatten_tensors(module(*args, **kwargs))
    return outputs


def as_torch(array: Array | None, like: torch.Tensor) -> torch.Tensor:
    """An output of a graph as the code around it would have it: floating numbers in PyTorch's own type.

    What the graph does not put out at all is PyTorch's own.
    """
    if array is None:
        return like.clone()
    tensor = complex_like(from_numpy(array), like)
    return tensor.to(like.dtype) if tensor.is_floating_point() and like.is_floating_point() else tensor


def noisy(tensor: torch.Tensor, error: float, generator: torch.Generator) -> torch.Tensor:
    """A tensor with random error of this relative L2."""
    if not tensor.is_floating_point() or not tensor.numel() or not error:
        return tensor
    rms = tensor.double().square().mean().sqrt()
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return (tensor.double() + noise * (error * rms)).to(tensor.dtype)


def run_noisy(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parts: Sequence[Part],
    calls: Mapping[str, list[Call]],
    disturb: Callable[[Part, int, OutputKey, torch.Tensor], torch.Tensor],
) -> list[tuple[OutputKey, torch.Tensor]]:
    """Runs the model in PyTorch, with ``disturb`` applied to each tensor that a part returns."""
    last = {calls[part.name][0].steps[-1].path: part for part in parts}
    counts: Counter[str] = Counter()

    def wrap(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def disturbed(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if path not in last:
                return output
            number = counts[path]
            counts[path] += 1
            made = {id(old): disturb(last[path], number, key, old) for key, old in flatten_tensors(output)}
            return map_tensors(output, lambda tensor: made.get(id(tensor), tensor))

        return disturbed

    args, kwargs = map_tensors(args, torch.Tensor.clone), map_tensors(kwargs, torch.Tensor.clone)
    with torch.no_grad(), exchanged_forwards(parts, wrap):
        outputs: list[tuple[OutputKey, torch.Tensor]] = flatten_tensors(module(*args, **kwargs))
    return outputs
