"""Any part of a recorded PyTorch run again: in float64, in strict float32, or in float64 with made-up rounding.

The recorder's tape says what each aten operation was called with. A stage is the slice of the tape between its inputs and
its output; it runs here on given inputs, without the model's code. Casting a module with ``.double()`` instead would lie:
a norm that casts to float32 inside stays one, and constants written down in float32 raise. Here every floating operand,
every dtype among the arguments and every result is promoted.

Made-up rounding is Monte Carlo arithmetic (D. S. Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point
arithmetic", UCLA CSD-970002, 1997): each result is disturbed at random by as much as rounding to its dtype may disturb it,
and operations that round many times inside get disturbed operands too (a backward stable kernel returns the exact result
of slightly other operands). The spread of the stage's output is what rounding can do to it, in whatever order it sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bisect_tool.backends.emulation import PRODUCT_OPERANDS, recompute
from bisect_tool.backends.torch_runner import FACTORY_OPS, LAYOUT_OPS, to_numpy
from bisect_tool.recorder import Op, Ref, Trace

Array = NDArray[Any]

PROMOTED = {torch.float16, torch.bfloat16, torch.float32}


class CannotReplayError(Exception):
    """A part of the run that can't be computed again; the text says what and why, in a few words."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a slice is computed.

    Attributes:
        dtype: that everything floating is promoted to; what is wider already stays. ``None``: nothing is promoted.
        noise: seed of the made-up rounding; ``None``: none.
        held: a narrower dtype that everything given is rounded to beforehand, and every result by the made-up rounding.
        ties: the made-up rounding disturbs also the operands of what only orders numbers.
        leaning: all that goes into a step (``floor``, a comparison, a cast to whole numbers) is moved by so many units in
            the last place, the second operand of a comparison the other way.
    """

    dtype: torch.dtype | None
    noise: int | None = None
    held: torch.dtype | None = None
    ties: bool = True
    leaning: float = 0.0


EXACT = Arithmetic(torch.float64)
STRICT = Arithmetic(torch.float32)
AS_RUN = Arithmetic(None)


def leaning(units: float, held: str | None = None) -> Arithmetic:
    """Float64, with the operands of every step moved by units in the last place, up or down."""
    return Arithmetic(torch.float64, held=getattr(torch, held) if held else None, leaning=units)


def has_steps(trace: Trace, ops: list[Op]) -> bool:
    """Whether numbers that hardly differ may come out far apart: there is an operation of no continuous function."""
    return any(_is_step(trace, op) for op in ops)


def _is_step(trace: Trace, op: Op) -> bool:
    made = {trace.values[value].dtype for value in op.outputs}
    read = {trace.values[value].dtype for value in op.inputs}
    floating = any(dtype.startswith(("float", "bfloat")) for dtype in read)
    if op.name == "_to_copy":
        return floating and not any(dtype.startswith(("float", "bfloat", "complex")) for dtype in made)
    if op.name == "div":
        return floating and op.call is not None and bool(op.call[2].get("rounding_mode"))
    return floating and op.name in _STEPS


def rounded(seed: int, held: str | None = None, *, ties: bool = True) -> Arithmetic:
    """Float64 with made-up rounding, to a narrower dtype than the run's if one is named; each seed is one draw."""
    return Arithmetic(torch.float64, seed, getattr(torch, held) if held else None, ties)


def slice_of(trace: Trace, target: int, known: Set[int]) -> list[Op]:
    """Operations that make a value from the values in ``known`` and from what the run starts with, in order.

    Raises:
        CannotReplayError: an operation in it that was not taped.
    """
    return slice_of_all(trace, {target}, known)


def slice_of_all(trace: Trace, targets: Set[int], known: Set[int]) -> list[Op]:
    """The same for several values at once."""
    found: dict[int, Op] = {}
    stack = list(targets)
    while stack:
        value = stack.pop()
        producer = trace.values[value].producer
        if (value in known and value not in targets) or producer < 0 or producer in found:
            continue
        op = found[producer] = trace.ops[producer]
        if op.call is None:
            raise CannotReplayError(f"{op.name} was not recorded")
        if op.name not in FACTORY_OPS:
            stack.extend(op.inputs)
    return [found[index] for index in sorted(found)]


def replay_bytes(trace: Trace, ops: list[Op]) -> int:
    """About what computing a slice in float64 holds at once: its largest operation, operands and results."""

    def size(value: int) -> int:
        shape = trace.values[value].shape
        return 8 * int(np.prod(shape)) if shape is not None else 0

    return max((sum(size(v) for v in {*op.inputs, *op.outputs}) for op in ops), default=0)


def work_of(trace: Trace, ops: list[Op]) -> float:
    """About how many multiplications, or operations of one element, computing a slice takes."""
    total = 0.0
    for op in ops:
        if op.name not in LAYOUT_OPS and op.name not in FACTORY_OPS:
            shapes = [trace.values[value].shape for value in op.outputs]
            total += sum(math.prod(shape) for shape in shapes if shape is not None) * max(1.0, _terms(trace, op))
    return total


def replay(
    trace: Trace, target: int, known: Set[int], fetch: Callable[[int], Tensor], arithmetic: Arithmetic
) -> dict[int, Array]:
    """Computes a slice; ``{target: …}``.

    Args:
        trace: with a tape.
        target: value to compute.
        known: values that ``fetch`` has; the slice starts from the nearest of them.
        fetch: tensor of a value in ``known``, or of an input, weight or constant, as it stood in the run.
        arithmetic: in which.

    Raises:
        CannotReplayError: an operation can't be promoted, or draws random numbers.
    """
    return replay_values(trace, {target}, slice_of(trace, target, known), fetch, arithmetic)


def replay_values(
    trace: Trace,
    wanted: Set[int],
    ops: list[Op],
    fetch: Callable[[int], Tensor],
    arithmetic: Arithmetic,
    before: Callable[[Op, Any, Any], None] | None = None,
    after: Callable[[Op, list[Tensor]], None] | None = None,
) -> dict[int, Array]:
    """Computes operations in order; the values in ``wanted`` as they stood when they were made.

    Args:
        wanted: results to return; what no operation makes is handed on as it was given.
        ops: from :func:`slice_of`.
        before: called with each operation, its arguments and its keyword arguments.
        after: called with each operation and its results.

    Raises:
        CannotReplayError: see :func:`replay`.
    """
    made = {value for op in ops for value in op.outputs}
    last = {value: place for place, op in enumerate(ops) for value in op.inputs}
    writes = any(op.in_place for op in ops)
    env: dict[int, Tensor] = {}
    found: dict[int, Array] = {}

    def operand(ref: Ref, like: bool = False) -> Tensor:
        value = ref.id
        if value not in env:
            if like:
                known = trace.values[value]
                if known.shape is None:
                    raise CannotReplayError("a nested tensor")
                return torch.zeros(known.shape, dtype=getattr(torch, known.dtype), device="cpu")
            if value in made:
                raise CannotReplayError("operations out of order")
            given = promote(fetch(value), arithmetic.dtype, copy=writes)
            env[value] = given if arithmetic.held is None else _held(given, arithmetic.held)
        return env[value]

    with torch.no_grad():
        for place, op in enumerate(ops):
            if op.name == "alias_update":
                results = [_updated(op, *(operand(Ref(value)) for value in op.inputs))]
            else:
                given = functools.partial(operand, like=op.name in FACTORY_OPS)
                results = _run(trace, op, given, arithmetic, before)
            if after is not None:
                after(op, results)
            for value, tensor in zip(op.outputs, results, strict=True):
                env[value] = tensor
                if value in wanted:
                    array = to_numpy(tensor)
                    found[value] = array.copy() if writes else array
            for value in op.inputs:
                if last[value] == place:
                    env.pop(value, None)
        for value in wanted - made:
            found[value] = to_numpy(operand(Ref(value)))
    return found


def _updated(op: Op, base: Tensor, written: Tensor) -> Tensor:
    """A tensor after a write through a view of it; the view may have been made before the slice begins."""
    if base.untyped_storage().data_ptr() == written.untyped_storage().data_ptr():
        return base
    assert op.call is not None
    whole, part = op.call
    if whole is None or part is None or tuple(base.stride()) != whole[1] or base.storage_offset() or part[2] < whole[2]:
        raise CannotReplayError("a write through a view that begins outside the stage")
    updated = base.clone(memory_format=torch.preserve_format)
    if tuple(updated.stride()) != whole[1]:
        raise CannotReplayError("a write through a view that begins outside the stage")
    size, stride, offset = part
    reach = offset - whole[2] + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if reach >= updated.untyped_storage().nbytes() // updated.element_size():
        raise CannotReplayError("a write through a view that reaches beyond the tensor")
    updated.as_strided(size, stride, offset - whole[2]).copy_(written)
    return updated


def promote(tensor: Tensor, dtype: torch.dtype | None, *, copy: bool = False) -> Tensor:
    """A tensor in ``dtype``, if it is floating and narrower; complex numbers alike; everything else as it is, on the CPU.

    Raises:
        CannotReplayError: a layout or a dtype without float64.
    """
    tensor = tensor.detach()
    if dtype is None:
        return tensor.to("cpu", copy=copy)
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise CannotReplayError(
            f"a tensor in {tensor.layout} layout" if not tensor.is_quantized else "quantized tensors"
        )
    wanted = tensor.dtype
    if wanted in PROMOTED:
        wanted = dtype
    elif wanted in (torch.complex32, torch.complex64):
        wanted = torch.complex128 if dtype is torch.float64 else torch.complex64
    elif wanted.is_floating_point and wanted is not torch.float64:
        raise CannotReplayError(f"{wanted} tensors")
    return tensor.to("cpu", wanted, copy=copy)


def _held(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating tensor as a narrower dtype has it; what that cannot hold is its largest number, as converters write it."""
    if not tensor.is_floating_point():
        return tensor
    most = torch.finfo(dtype).max
    inside = torch.where(tensor.isfinite(), tensor.clamp(-most, most), tensor)
    return inside.to(dtype).to(tensor.dtype)


def _epsilons(trace: Trace, op: Op, held: torch.dtype | None) -> list[float]:
    """Unit in the last place of each result, in the dtype that the run had it in, or in a wider unit."""
    least = torch.finfo(held).eps if held is not None else 0.0
    found = []
    for value in op.outputs:
        dtype = getattr(torch, trace.values[value].dtype)
        # Of a complex dtype it is that of its parts.
        measured = dtype.is_floating_point or dtype.is_complex
        found.append(max(least, torch.finfo(dtype).eps) if measured else 0.0)
    return found


def _spacings(trace: Trace, op: Op, held: torch.dtype | None) -> list[float]:
    """How far apart the smallest numbers of each result are, where it is in float16: it is soon that small."""
    found = []
    for value in op.outputs:
        dtype = getattr(torch, trace.values[value].dtype)
        half = dtype is torch.float16 or (held is torch.float16 and dtype.is_floating_point)
        found.append(torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps if half else 0.0)
    return found


def _terms(trace: Trace, op: Op) -> float:
    """How many numbers are added for one, in a sum, a product of matrices or a convolution."""
    shapes: list[tuple[int, ...]]
    results: list[tuple[int, ...]]
    shapes, results = ([trace.values[v].shape or (1,) for v in values] for values in (op.inputs, op.outputs))
    if op.name in PRODUCT_OPERANDS:
        first, second = (_shape(trace, op, place) for place in PRODUCT_OPERANDS[op.name])
        # A weight's numbers are shared out among the channels, also if it is transposed or in groups.
        return math.prod(second) / max(1, results[0][1]) if op.name in _CONVOLUTIONS else float((first or (1,))[-1])
    if op.name not in _SUMS:
        return 1.0
    if "cum" in op.name:
        return float(max(shapes[0], default=1))
    return max(map(math.prod, shapes), default=1) / max(1, min(map(math.prod, results), default=1))


def _shape(trace: Trace, op: Op, place: int) -> tuple[int, ...]:
    assert op.call is not None
    operand = op.call[1][place]
    return (trace.values[operand.id].shape or ()) if isinstance(operand, Ref) else tuple(operand.shape)


# One operation

# Placing and picking numbers, and comparing them, rounds nothing.
_NO_ROUNDING = LAYOUT_OPS | {
    "_softmax_backward_data",
    "abs",
    "argmax",
    "argmin",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "cat",
    "ceil",
    "clamp",
    "clamp_max",
    "clamp_min",
    "constant_pad_nd",
    "embedding",
    "eq",
    "fill",
    "flip",
    "floor",
    "full",
    "gather",
    "ge",
    "gt",
    "hardtanh",
    "index",
    "index_put",
    "index_select",
    "isinf",
    "isnan",
    "le",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "masked_fill",
    "masked_scatter",
    "masked_select",
    "max",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "maximum",
    "min",
    "minimum",
    "ne",
    "neg",
    "nonzero",
    "one_hot",
    "pixel_shuffle",
    "pixel_unshuffle",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "relu",
    "repeat",
    "repeat_interleave",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "roll",
    "round",
    "scatter",
    "sign",
    "slice_scatter",
    "select_scatter",
    "stack",
    "topk",
    "tril",
    "triu",
    "trunc",
    "unfold",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "where",
    "zero",
}

# One correctly rounded result for each element, so that exact operands give half a unit in the last place at most.
_ROUNDED_ONCE = {
    "_to_copy",
    "add",
    "addcmul",
    "div",
    "dropout",
    "hardsigmoid",
    "hardswish",
    "leaky_relu",
    "mul",
    "native_dropout",
    "prelu",
    "reciprocal",
    "rsub",
    "sqrt",
    "square",
    "sub",
    "threshold",
}

_STEPS = {
    *(
        "ceil",
        "eq",
        "floor",
        "floor_divide",
        "fmod",
        "ge",
        "gt",
        "le",
        "lt",
        "ne",
        "remainder",
        "round",
        "sign",
        "trunc",
    ),
    *("bucketize", "frac", "heaviside", "searchsorted", "sgn"),
}
"""Functions that jump. So do a cast to whole numbers, and a division that rounds."""

# Which of several (nearly) equal numbers comes first is decided by the last bit.
_ORDERING = {"argmax", "argmin", "argsort", "kthvalue", "median", "mode", "sort", "topk"}

# Summed one after the other in some libraries and by halves in others; the first rounds more, the longer the sum.
_SUMS = {
    "cumsum",
    "linalg_vector_norm",
    "logcumsumexp",
    "logsumexp",
    "mean",
    "native_group_norm",
    "native_layer_norm",
    "norm",
    "prod",
    "std",
    "sum",
    "var",
    "var_mean",
}
_CONVOLUTIONS = {name for name in PRODUCT_OPERANDS if "convolution" in name or "conv2d" in name}
# The sums inside are of deviations from the mean, and the result is no sum.
_NORMALISED = {"native_group_norm", "native_layer_norm", "std", "var", "var_mean"}

_LANES = 16
"""Sums that even a plain loop keeps apart: one for each place of a vector register."""

# Computed by differences from 1 or by polynomials, these are accurate against the size given here, not against a result
# near zero: ONNX Runtime's Sigmoid is 8e-8 beside 0 where 4e-8 were right, its Elu takes 1 from exp(x). ONNX defines
# HardSigmoid as x / 6 + 1 / 2, so that beside -3 it is as accurate as its product; beyond 3 it is exact.
_SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.ones_like,
    "silu": torch.abs,
    "gelu": torch.abs,
    "mish": torch.abs,
    "hardsigmoid": lambda x: x.abs() / 6 * (x.abs() < 3.001),
    "hardswish": lambda x: x.square() / 6 * (x.abs() < 3.001),
    "elu": lambda x: (x < 0).to(x.dtype),
    "celu": lambda x: (x < 0).to(x.dtype),
    "selu": lambda x: 1.76 * (x < 0).to(x.dtype),
    "expm1": torch.ones_like,
    "log1p": torch.ones_like,
    "erf": torch.zeros_like,
    "erfc": torch.ones_like,
    "tanh": torch.zeros_like,
    "softplus": torch.ones_like,
    "log_sigmoid_forward": torch.ones_like,
}


def _run(
    trace: Trace,
    op: Op,
    operand: Callable[[Ref], Tensor],
    arithmetic: Arithmetic,
    before: Callable[[Op, Any, Any], None] | None,
) -> list[Tensor]:
    assert op.call is not None
    func, args, kwargs = op.call
    name = str(getattr(func, "_schema", func)).partition("(")[0]
    if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()) and not _without_chance(op.name, args, kwargs):
        raise CannotReplayError(f"{op.name} draws random numbers")
    if op.name == "view" and any(isinstance(arg, torch.dtype) for arg in args):
        raise CannotReplayError("a tensor's bits read as another dtype")
    args, kwargs = _filled(args, operand, arithmetic), _filled(kwargs, operand, arithmetic)
    if before is not None:
        before(op, args, kwargs)
    written = _written(func, args, kwargs)
    if arithmetic.leaning and not written and _is_step(trace, op):
        args = _leaned(args, arithmetic.leaning * torch.finfo(arithmetic.held or torch.float32).eps)
    noise = None
    if arithmetic.noise is not None and (arithmetic.ties or op.name not in _ORDERING):
        noise = _Noise(arithmetic.noise, trace, op, arithmetic.held)
    if noise is not None and noise.is_exact(args, kwargs):
        noise = None
    if noise is not None and noise.disturbs:
        args, kwargs = noise.operands(args, written), noise.operands(kwargs, written)
    try:
        result = _call(func, op.name, args, kwargs, arithmetic)
    except Exception as error:  # anything may come out of an operator of an extension
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CannotReplayError(f"{name} in {_short(arithmetic.dtype)}: {reason[:120]}") from error
    outputs = list(_tensors(result))
    outputs += [tensor for tensor in written if not any(tensor is other for other in outputs)]
    if len(outputs) != len(op.outputs):
        raise CannotReplayError(f"{op.name} returned {len(outputs)} tensors instead of {len(op.outputs)}")
    outputs = [promote(t, arithmetic.dtype) if t.dtype in PROMOTED else t for t in outputs]
    if noise is not None and noise.rounds:
        first = next(_tensors(args), None)
        outputs = [noise.result(t, first, place, written) for place, t in enumerate(outputs)]
    return outputs


def _leaned(args: Any, share: float) -> Any:
    """The first operand moved one way, and the second, if it is floating too, the other way."""
    found = list(args)
    way = share
    for place, item in enumerate(found[:2]):
        if isinstance(item, Tensor) and item.is_floating_point():
            found[place] = item + way * item.abs() + math.copysign(torch.finfo(torch.float32).tiny, way)
            way = -way
    return found


def _call(func: Any, name: str, args: Any, kwargs: Any, arithmetic: Arithmetic) -> Any:
    if arithmetic.dtype is torch.float64:
        # Kernels without float64 inside, such as oneDNN's recurrences.
        result = recompute(name, args, kwargs)
        if result is not NotImplemented:
            return result
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        # Promoted tensors need not lie in memory as the run's did.
        if name in ("view", "_unsafe_view"):
            return args[0].reshape(args[1])
        raise


def _filled(item: Any, operand: Callable[[Ref], Tensor], arithmetic: Arithmetic) -> Any:
    if isinstance(item, Ref):
        return operand(item)
    if isinstance(item, list):
        return [_filled(child, operand, arithmetic) for child in item]
    if isinstance(item, dict):
        return {key: _filled(child, operand, arithmetic) for key, child in item.items()}
    if isinstance(item, torch.dtype) and arithmetic.dtype is not None:
        if item in PROMOTED:
            return arithmetic.dtype
        if item in (torch.complex32, torch.complex64):
            return torch.complex128 if arithmetic.dtype is torch.float64 else torch.complex64
    if isinstance(item, torch.device):
        return torch.device("cpu")
    return item


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (list, tuple)):
        for child in item:
            yield from _tensors(child)


@functools.cache
def _written_places(func: Any) -> tuple[tuple[int, str], ...]:
    schema = getattr(func, "_schema", None)
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments if schema is not None else ())
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for place, name in _written_places(func):
        found += _tensors(args[place] if place < len(args) else kwargs.get(name))
    return found


def _without_chance(name: str, args: Any, kwargs: Any) -> bool:
    """Operators that could draw random numbers and did not: dropout in evaluation, attention without dropout."""
    if "dropout" in name:
        return args[-1] is False
    if "attention" in name:
        return not any(isinstance(arg, float) and arg > 0 for arg in args[3:5]) and not kwargs.get("dropout_p")
    return False


_OF_WHOLE_NUMBERS = {"_to_copy", "add", "arange", "cumsum", "mul", "neg", "rsub", "sub", "sum"}
"""Their results are whole where the operands are, and nothing is rounded."""

_LARGEST_WHOLE = 2.0**20
"""So that sums and products of a few stay below the whole numbers that float32 leaves out."""


def _are_whole(item: Any) -> bool:
    """Whether all operands are whole numbers: counters of windows and positions, from which masks are made."""
    if isinstance(item, Tensor):
        few = item.reshape(-1)[:8]
        if not item.is_floating_point() or not item.numel():
            return True
        whole = torch.equal(few, few.round()) and torch.equal(item, item.round())
        return whole and float(item.abs().max()) <= _LARGEST_WHOLE
    if isinstance(item, (list, tuple)):
        return all(map(_are_whole, item))
    if isinstance(item, dict):
        return all(map(_are_whole, item.values()))
    return not isinstance(item, float) or item.is_integer()


_FILLING = torch.finfo(torch.float32).max / 1024
"""What a mask hides scores with, and no result that was rounded: of a row masked throughout all of them stay equal."""


class _Noise:
    """Rounding of one operation, made up.

    Attributes:
        rounds: the operation's results are disturbed.
        disturbs: its operands are.
    """

    def __init__(self, seed: int, trace: Trace, op: Op, held: torch.dtype | None = None):
        self._name = op.name
        self._random = torch.Generator().manual_seed(seed * 1_000_003 + op.index)
        self._epsilons = _epsilons(trace, op, held)
        self._spacings = _spacings(trace, op, held)
        self._least = torch.finfo(held or torch.float32).eps
        # Disturbing each operand by so much disturbs the sum as adding them one after the other does.
        self._longer = max(1.0, math.sqrt(_terms(trace, op) / _LANES))
        # Where all terms have one sign the partial sums grow too, and so does what each addition rounds off.
        self._together = 1.0 if op.name in _NORMALISED else self._longer
        self._orders = op.name in _ORDERING
        self.rounds = op.name not in _NO_ROUNDING and op.name not in FACTORY_OPS
        # Functions of one element each have no sums inside.
        once = op.name in _ROUNDED_ONCE or op.name in _SCALES
        self.disturbs = op.name in _ORDERING or (self.rounds and not once)

    def is_exact(self, args: Any, kwargs: Any) -> bool:
        """Whether float32 has nothing to round here."""
        wide = max(self._epsilons, default=0.0) <= torch.finfo(torch.float32).eps
        return wide and self._name in _OF_WHOLE_NUMBERS and _are_whole((args, kwargs))

    def operands(self, item: Any, written: list[Tensor]) -> Any:
        if isinstance(item, Tensor):
            if not item.is_floating_point() or any(item is tensor for tensor in written):
                return item
            epsilon = max(self._epsilons, default=0.0) or self._least
            # A product: an infinity, as masks have them, stays one.
            draw = self._draw(item, epsilon * self._longer).masked_fill_(item.abs() >= _FILLING, 0.0)
            disturbed = item * (1 + draw)
            # Equal zeros have an order too.
            return disturbed + self._draw(item, torch.finfo(torch.float32).tiny) if self._orders else disturbed
        if isinstance(item, list):
            return [self.operands(child, written) for child in item]
        if isinstance(item, dict):
            return {key: self.operands(child, written) for key, child in item.items()}
        return item

    def result(self, tensor: Tensor, operand: Tensor | None, place: int, written: list[Tensor]) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        size = tensor.abs()
        scale = _SCALES.get(self._name)
        if scale is not None and operand is not None and operand.shape == tensor.shape:
            size = torch.maximum(size, scale(operand))
        size.masked_fill_(size >= _FILLING, 0.0)
        small = (
            self._draw(tensor, self._spacings[place]).masked_fill_(size == 0, 0.0) if self._spacings[place] else None
        )
        change = size.mul_(self._draw(tensor, self._epsilons[place] * self._together)).nan_to_num_(0.0, 0.0, 0.0)
        change = change if small is None else change.add_(small)
        return tensor.add_(change) if any(tensor is other for other in written) else tensor + change

    def _draw(self, like: Tensor, epsilon: float) -> Tensor:
        """Uniform between minus and plus one unit in the last place."""
        return torch.rand(like.shape, generator=self._random, dtype=like.dtype).mul_(2).sub_(1).mul_(epsilon)


def _short(dtype: torch.dtype | None) -> str:
    return "its own dtype" if dtype is None else str(dtype).removeprefix("torch.")
