"""Runs an origin's slice of PyTorch's tape with one call changed: which change gives ONNX's value?"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.inside import Opened, Surroundings
from bisect_tool.backends.replay import AS_RUN, CannotReplayError, replay_values, slice_of
from bisect_tool.backends.torch_runner import FACTORY_OPS, LAYOUT_OPS
from bisect_tool.diagnose.otherwise import MAX_CHANGES, Calling, Change, Parameter, changes
from bisect_tool.diagnose.trying import MOST_LEFT
from bisect_tool.metrics import relative_error
from bisect_tool.recorder import Op, Ref, Trace
from bisect_tool.records import Stage
from bisect_tool.rows import from_here

Array = NDArray[Any]

_WHOLE = ("int8", "int16", "int32", "int64", "uint8")


def find_otherwise(
    around: Surroundings, opened: Opened, stage: Stage, actual: Array, seconds: float
) -> tuple[Change, float] | None:
    """The change of one of PyTorch's calls that gives ONNX's value, and how far it is from it then, relative.

    Args:
        around, opened: the run and the stage.
        stage: the origin's.
        actual: ONNX Runtime's value of the stage on PyTorch's inputs, in the form of ``opened.expected``.
        seconds: to spend at most.

    Returns:
        ``None`` if none does.

    Raises:
        CannotReplayError: PyTorch's side can't be computed again.
    """
    end = time.perf_counter() + seconds
    tape, permutation = around.tape, around.matches[stage.value].permutation
    ops = slice_of(tape, stage.value, opened.known)
    shown = [op for op in ops if op.call is not None and op.name not in LAYOUT_OPS | FACTORY_OPS | {"alias_update"}]
    calls = [_calling(tape, op) for op in shown]
    for tried, change in enumerate(changes(calls)):
        if tried >= MAX_CHANGES or time.perf_counter() > end:
            break
        op = shown[change.call]
        changed = [_changed(tape, each, change) if each is op else each for each in ops]
        try:
            made = replay_values(tape, {stage.value}, changed, around.activations.tensor, AS_RUN)[stage.value]
        except (CannotReplayError, KeyError):
            # Another shape, or an argument that the operator does not take.
            continue
        if permutation is not None and made.ndim == len(permutation):
            made = made.transpose(permutation)
        apart = _apart(actual, made, opened)
        if apart is not None:
            return change, apart
    return None


def _apart(actual: Array, made: Array, opened: Opened) -> float | None:
    """How far the changed call's value is from ONNX's; ``None`` where that is more than rounding."""
    if made.shape != actual.shape:
        return None
    if actual.dtype.kind not in "fV" or made.dtype.kind not in "fV":
        return 0.0 if np.array_equal(actual, made) else None
    one, other = actual.astype(np.float64), made.astype(np.float64)
    odd = ~np.isfinite(one) | ~np.isfinite(other)
    if not np.array_equal(one[odd], other[odd], equal_nan=True):
        return None
    one, other = np.where(odd, 0.0, one), np.where(odd, 0.0, other)
    apart = relative_error(one, other)
    near = apart <= MOST_LEFT and opened.close(one.astype(actual.dtype), other.astype(actual.dtype))
    return apart if near else None


def _calling(tape: Trace, op: Op) -> Calling:
    assert op.call is not None
    func, args, kwargs = op.call
    schema = getattr(func, "_schema", None)
    parameters = []
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        value = args[place] if place < len(args) else kwargs.get(argument.name, _default(argument))
        kind = str(argument.type)
        optional = kind.startswith("Optional")
        kind = kind.removeprefix("Optional[").removesuffix("]") if optional else kind
        if "Tensor" in kind or _has_tensor(value):
            continue
        if "dtype" in argument.name:
            kind = "ScalarType"
        default = _default(argument) if argument.has_default_value() else value
        value, default = (
            str(each).removeprefix("torch.") if isinstance(each, torch.dtype) else each for each in (value, default)
        )
        parameters.append(Parameter(argument.name, kind, optional, value, default))
    first = next((tape.values[v] for v in op.inputs), None)
    result = tape.values[op.outputs[0]] if op.outputs else None
    passes = (
        first is not None
        and result is not None
        and (first.shape, first.dtype) == (result.shape, result.dtype)
        and (len(op.outputs) == 1 or op.in_place)
    )
    whole = (
        result is not None
        and result.dtype in _WHOLE
        and bool(op.inputs)
        and not op.in_place
        and all(tape.values[v].dtype in _WHOLE for v in op.inputs)
    )
    name = str(getattr(schema, "name", op.name)).partition("::")[2] or op.name
    module = tape.frames[op.frame].path if op.frame >= 0 else ""
    return Calling(name, tuple(parameters), passes, whole, from_here(op.source), module)


def _default(argument: Any) -> Any:
    return argument.default_value if argument.has_default_value() else None


def _has_tensor(item: Any) -> bool:
    if isinstance(item, (Ref, torch.Tensor)):
        return True
    return isinstance(item, (list, tuple)) and any(_has_tensor(each) for each in item)


def _changed(tape: Trace, op: Op, change: Change) -> Op:
    """The operation with the change; the tape's own stays as it is."""
    assert op.call is not None
    func, args, kwargs = op.call
    made = copy.copy(op)
    if change.kind == "argument":
        made.call = (func, *_with_arguments(func, args, kwargs, change))
    elif change.kind == "without":
        made.call = (_first_operand(op.in_place), args, kwargs)
    elif change.kind == "sister":
        made.call = (_sister(func, change.name), args, kwargs)
    else:
        given = getattr(torch, change.name)
        made.call = (_through(func, given, getattr(torch, tape.values[op.outputs[0]].dtype)), args, kwargs)
    return made


def _with_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], change: Change) -> tuple[Any, Any]:
    places = {argument.name: place for place, argument in enumerate(func._schema.arguments)}
    listed, named = list(args), dict(kwargs)
    for name, value in change.values.items():
        if isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype):
            value = getattr(torch, value)
        if places[name] < len(listed):
            listed[places[name]] = value
        else:
            named[name] = value
    return listed, named


def _first_operand(in_place: bool) -> Callable[..., Any]:
    def passed(*args: Any, **kwargs: Any) -> Any:
        first = next(_tensors([*args, *kwargs.values()]))
        return first if in_place else first.clone()

    return passed


def _sister(func: Any, name: str) -> Any:
    packet = getattr(torch.ops.aten, name, None)
    overload = getattr(func, "_overloadname", "default")
    sister = getattr(packet, overload, None)
    if sister is None:
        raise CannotReplayError(f"no {name}.{overload}")
    return sister


def _through(func: Any, dtype: torch.dtype, result: torch.dtype) -> Callable[..., Any]:
    def cast(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.to(dtype)
        return [cast(each) for each in item] if isinstance(item, list) else item

    def call(*args: Any, **kwargs: Any) -> Any:
        made = func(*[cast(each) for each in args], **{name: cast(each) for name, each in kwargs.items()})
        return made.to(result)

    return call


def _tensors(items: Any) -> Iterator[torch.Tensor]:
    for item in items:
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, (list, tuple)):
            yield from _tensors(item)


__all__ = ["find_otherwise"]
