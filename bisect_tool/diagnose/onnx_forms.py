"""What PyTorch's calls are in ONNX: operator, operands and attributes, as the call's own arguments say.

Sources: the schemas of aten's operators and ONNX's operator documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Call, Operand

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Form:
    """A call as an ONNX node.

    Attributes:
        op: type of the node.
        inputs: operands in order; ``None`` for an optional one that is left out. Nothing: those that the node has.
        attributes: those that the call determines.
        operands: how many of the first inputs are the call's tensors; the others say how, as axes and bounds do.
    """

    op: str
    inputs: tuple[Operand | Array | None, ...]
    attributes: Mapping[str, Any]
    operands: int = 1


def forms(call: Call, opset: int) -> tuple[Form, ...]:
    """The nodes that a call may be written as, the usual one first; nothing for calls that are not known here."""
    found = _FORMS.get(call.name)
    if found is None and call.name.endswith("_"):
        found = _FORMS.get(call.name.removesuffix("_"))
    if found is None:
        return ()
    try:
        return tuple(found(call, opset))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        # An overload with other arguments than the usual ones.
        return ()


Make = Callable[[Call, int], Sequence[Form]]
_FORMS: dict[str, Make] = {}


def _form(*names: str) -> Callable[[Make], Make]:
    def enter(make: Make) -> Make:
        _FORMS.update(dict.fromkeys(names, make))
        return make

    return enter


def _first(call: Call) -> Operand:
    found = call.operand("self", "input", "x")
    if found is None:
        raise KeyError("self")
    return found


def _float(number: Any) -> Array:
    return np.asarray(number, dtype=np.float32)


def _ints(numbers: Any) -> Array:
    return np.asarray(numbers, dtype=np.int64).reshape(-1)


def _rank(call: Call) -> int:
    return int(_first(call).array.ndim)


def _axes(call: Call, name: str = "dim") -> list[int]:
    dims = call.arguments.get(name)
    rank = _rank(call)
    dims = list(range(rank)) if dims is None or dims == [] else dims
    return [int(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


# -- element by element -----------------------------------------------------------------------------------------------

_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "sqrt": "Sqrt",
    "erf": "Erf",
    "log": "Log",
    "neg": "Neg",
    "abs": "Abs",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "sgn": "Sign",
    "reciprocal": "Reciprocal",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "softsign": "Softsign",
    "logical_not": "Not",
    "isnan": "IsNaN",
}


def _unary(op: str) -> Make:
    return lambda call, opset: [Form(op, (_first(call),), {})]


_FORMS.update({name: _unary(op) for name, op in _UNARY.items()})


@_form("leaky_relu")
def _leaky_relu(call: Call, opset: int) -> Sequence[Form]:
    return [Form("LeakyRelu", (_first(call),), {"alpha": float(call.arguments["negative_slope"])})]


@_form("elu", "celu", "selu")
def _elu(call: Call, opset: int) -> Sequence[Form]:
    alpha, scale = float(call.arguments.get("alpha", 1)), float(call.arguments.get("scale", 1))
    if call.name == "selu" or scale != 1:
        return [Form("Selu", (_first(call),), {"alpha": alpha, "gamma": scale} if scale != 1 else {})]
    return [Form("Celu" if call.name == "celu" else "Elu", (_first(call),), {"alpha": alpha})]


@_form("hardsigmoid")
def _hardsigmoid(call: Call, opset: int) -> Sequence[Form]:
    return [Form("HardSigmoid", (_first(call),), {"alpha": 1 / 6, "beta": 0.5})]


@_form("softplus")
def _softplus(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Softplus", (_first(call),), {})]


@_form("gelu")
def _gelu(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Gelu", (_first(call),), {"approximate": str(call.arguments["approximate"])})]


@_form("silu")
def _silu(call: Call, opset: int) -> Sequence[Form]:
    # As one operator, and the sigmoid of it where exporters multiply by themselves.
    return [Form("Swish", (_first(call),), {"alpha": 1.0}), Form("Sigmoid", (_first(call),), {})]


@_form("mish")
def _mish(call: Call, opset: int) -> Sequence[Form]:
    # As one operator, and the first of those that old opsets have for it.
    return [Form("Mish", (_first(call),), {}), Form("Softplus", (_first(call),), {})]


@_form("hardswish")
def _hardswish(call: Call, opset: int) -> Sequence[Form]:
    gate = Form("HardSigmoid", (_first(call),), {"alpha": 1 / 6, "beta": 0.5})
    return [Form("HardSwish", (_first(call),), {}), gate]


@_form("_prelu_kernel", "prelu")
def _prelu(call: Call, opset: int) -> Sequence[Form]:
    return [Form("PRelu", (_first(call), call.operand("weight")), {})]


@_form("hardtanh", "clamp", "clamp_min", "clamp_max", "relu6")
def _clip(call: Call, opset: int) -> Sequence[Form]:
    low = call.arguments.get("min_val", call.arguments.get("min", 0.0 if call.name == "relu6" else None))
    high = call.arguments.get("max_val", call.arguments.get("max", 6.0 if call.name == "relu6" else None))
    if isinstance(low, Operand) or isinstance(high, Operand):
        return []
    bounds = [None if bound is None else _float(bound) for bound in (low, high)]
    return [Form("Clip", (_first(call), *bounds), {})]


@_form("_softmax", "softmax", "_safe_softmax")
def _softmax(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Softmax", (_first(call),), {"axis": _axes(call)[0]})]


@_form("_log_softmax", "log_softmax")
def _log_softmax(call: Call, opset: int) -> Sequence[Form]:
    return [Form("LogSoftmax", (_first(call),), {"axis": _axes(call)[0]})]


def _other(call: Call, name: str = "other") -> Operand | Array:
    other = call.arguments[name]
    return other if isinstance(other, Operand) else _float(other)


def _binary(op: str) -> Make:
    def make(call: Call, opset: int) -> Sequence[Form]:
        if float(call.arguments.get("alpha", 1)) != 1 or call.arguments.get("rounding_mode") is not None:
            return []
        return [Form(op, (_first(call), _other(call)), {}, 2)]

    return make


for _name, _op in {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "maximum": "Max",
    "minimum": "Min",
}.items():
    _FORMS[_name] = _binary(_op)


def _alike(call: Call) -> Operand | Array:
    """The other operand; a number in the type of the first one, if it fits."""
    other, kind = call.arguments["other"], _first(call).array.dtype
    if isinstance(other, Operand):
        return other
    whole = kind.kind in "iu" and float(other) == int(other)
    return np.asarray(other, kind if whole or kind.kind == "f" else np.float32)


def _compared(op: str) -> Make:
    return lambda call, opset: [Form(op, (_first(call), _alike(call)), {}, 2)]


for _name, _op in {
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "eq": "Equal",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
}.items():
    _FORMS[_name] = _compared(_op)


@_form("ne")
def _unequal(call: Call, opset: int) -> Sequence[Form]:
    # With a Not behind it: the operands can be compared, but the node alone does not stand for the call.
    return [Form("Equal", (None, _alike(call)), {})]


@_form("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
def _bits(call: Call, opset: int) -> Sequence[Form]:
    name = call.name.removeprefix("bitwise_").strip("_").capitalize()
    truth = _first(call).array.dtype.kind == "b"
    return [Form(name if truth else f"Bitwise{name}", (_first(call), _alike(call)), {}, 2)]


@_form("bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__")
def _shift(call: Call, opset: int) -> Sequence[Form]:
    direction = "LEFT" if call.name in ("bitwise_left_shift", "__lshift__") else "RIGHT"
    return [Form("BitShift", (_first(call), _alike(call)), {"direction": direction}, 2)]


@_form("remainder", "fmod")
def _mod(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Mod", (_first(call), _alike(call)), {}, 2)]


@_form("split", "split_with_sizes", "chunk")
def _split(call: Call, opset: int) -> Sequence[Form]:
    given = call.arguments
    axis = int(given.get("dim", 0)) % _rank(call)
    size = int(_first(call).array.shape[axis])
    sizes = given.get("split_sizes", given.get("split_size"))
    if sizes is None:
        sizes = -(-size // int(given["chunks"]))
    if not isinstance(sizes, (list, tuple)):
        step = int(sizes)
        sizes = [min(step, size - start) for start in range(0, size, step)]
    # It has several results: its sizes can be compared, but it stands for no other node.
    if opset < 13:
        return [Form("Split", (), {"axis": axis, "split": [int(each) for each in sizes]})]
    return [Form("Split", (None, _ints(sizes)), {"axis": axis})]


@_form("rsub")
def _rsub(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Sub", (_other(call), _first(call)), {}, 2)]


@_form("pow")
def _pow(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Pow", (_first(call), _other(call, "exponent")), {}, 2)]


@_form("where")
def _where(call: Call, opset: int) -> Sequence[Form]:
    chosen = [call.arguments[name] for name in ("self", "other")]
    values = [each if isinstance(each, Operand) else _float(each) for each in chosen]
    return [Form("Where", (call.operand("condition"), *values), {}, 3)]


@_form("masked_fill")
def _masked_fill(call: Call, opset: int) -> Sequence[Form]:
    value = call.arguments["value"]
    filling = value if isinstance(value, Operand) else _float(value)
    return [Form("Where", (call.operand("mask"), filling, _first(call)), {}, 3)]


# -- norms, reductions, windows ---------------------------------------------------------------------------------------


@_form(
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm", "_batch_norm_impl_index"),
    *("native_layer_norm", "layer_norm", "native_group_norm", "group_norm", "cudnn_batch_norm", "instance_norm"),
    *("rms_norm", "_fused_rms_norm"),
)
def _norm(call: Call, opset: int) -> Sequence[Form]:
    names = ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization")
    epsilon = call.arguments.get("eps", call.arguments.get("epsilon"))
    if epsilon is None:
        return []
    return [Form(op, (), {"epsilon": float(epsilon)}) for op in (*names, "RMSNormalization")]


_REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd"}
_REDUCTIONS |= {"max": "ReduceMax", "min": "ReduceMin"}


def _reduction(op: str) -> Make:
    def make(call: Call, opset: int) -> Sequence[Form]:
        if isinstance(call.arguments.get("other"), Operand):
            return [Form("Max" if op == "ReduceMax" else "Min", (_first(call), _other(call)), {}, 2)]
        axes, keep = _axes(call), int(bool(call.arguments.get("keepdim", False)))
        found = [_reduce(op, call, axes, keep, opset)]
        if op == "ReduceMean" and keep and axes == list(range(2, _rank(call))):
            found.append(Form("GlobalAveragePool", (_first(call),), {}))
        return found

    return make


def _reduce(op: str, call: Call, axes: list[int], keep: int, opset: int) -> Form:
    if opset >= (13 if op == "ReduceSum" else 18):
        return Form(op, (_first(call), _ints(axes)), {"keepdims": keep})
    return Form(op, (_first(call),), {"axes": axes, "keepdims": keep})


_FORMS.update({name: _reduction(op) for name, op in _REDUCTIONS.items()})


@_form("linalg_vector_norm", "norm", "logsumexp")
def _norms(call: Call, opset: int) -> Sequence[Form]:
    order = call.arguments.get("ord", call.arguments.get("p", 2))
    op = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(float(2 if order is None else order))
    op = "ReduceLogSumExp" if call.name == "logsumexp" else op
    keep = int(bool(call.arguments.get("keepdim", False)))
    return [] if op is None else [_reduce(op, call, _axes(call), keep, opset)]


@_form("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d")
def _adaptive_average(call: Call, opset: int) -> Sequence[Form]:
    if any(size != 1 for size in call.arguments["output_size"]):
        return []
    return [Form("GlobalAveragePool", (_first(call),), {})]


@_form("adaptive_max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool3d")
def _adaptive_max(call: Call, opset: int) -> Sequence[Form]:
    if any(size != 1 for size in call.arguments["output_size"]):
        return []
    return [Form("GlobalMaxPool", (_first(call),), {})]


def _spread(numbers: Any, rank: int) -> list[int]:
    listed = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
    return [int(number) for number in (listed * rank if len(listed) == 1 else listed)]


def _both_ranks(op: str, inputs: tuple[Operand, ...], attributes: dict[str, Any], rank: int) -> list[Form]:
    """A window over two axes, and over the last of them alone: PyTorch computes one as the other, exporters do not."""
    found = [Form(op, inputs, attributes)]
    if rank == 2:
        last = {
            name: ([value[1], value[3]] if name == "pads" else value[1:]) if isinstance(value, list) else value
            for name, value in attributes.items()
        }
        found.append(Form(op, inputs, last))
    return found


def _pool(op: str, rank: int) -> Make:
    def make(call: Call, opset: int) -> Sequence[Form]:
        given = call.arguments
        kernel = _spread(given["kernel_size"], rank)
        attributes: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": _spread(given["stride"], rank) if given.get("stride") else kernel,
            "pads": 2 * _spread(given["padding"], rank),
            "ceil_mode": int(bool(given["ceil_mode"])),
        }
        if op == "MaxPool":
            attributes["dilations"] = _spread(given["dilation"], rank)
        else:
            attributes["count_include_pad"] = int(bool(given["count_include_pad"]))
            if given.get("divisor_override") is not None:
                return []
        return _both_ranks(op, (_first(call),), attributes, rank)

    return make


for _rank_ in (1, 2, 3):
    _FORMS[f"max_pool{_rank_}d"] = _FORMS[f"max_pool{_rank_}d_with_indices"] = _pool("MaxPool", _rank_)
    _FORMS[f"avg_pool{_rank_}d"] = _pool("AveragePool", _rank_)


@_form("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution")
def _convolution(call: Call, opset: int) -> Sequence[Form]:
    given = call.arguments
    rank = _rank(call) - 2
    attributes: dict[str, Any] = {
        "strides": _spread(given["stride"], rank),
        "pads": 2 * _spread(given["padding"], rank),
        "dilations": _spread(given["dilation"], rank),
        "group": int(given.get("groups", 1)),
    }
    if given.get("transposed"):
        attributes["output_padding"] = _spread(given["output_padding"], rank)
        return _both_ranks("ConvTranspose", (), attributes, rank)
    return _both_ranks("Conv", (), attributes, rank)


_PAD_MODES = {"constant": "constant", "reflection": "reflect", "replication": "edge"}


@_form("constant_pad_nd", *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)))
def _pad(call: Call, opset: int) -> Sequence[Form]:
    rank = _rank(call)
    given = [int(number) for number in call.arguments.get("pad", call.arguments.get("padding"))]
    pads = [0] * (2 * rank)
    for place in range(len(given) // 2):
        # PyTorch counts from the last axis, and has both ends side by side.
        pads[rank - 1 - place], pads[2 * rank - 1 - place] = given[2 * place], given[2 * place + 1]
    mode = _PAD_MODES[call.name.partition("_pad")[0]]
    value = [_float(call.arguments.get("value") or 0.0)] if mode == "constant" else []
    return [Form("Pad", (_first(call), _ints(pads), *value), {"mode": mode})]


def _sizes(call: Call) -> tuple[Operand | Array | None, ...]:
    """The inputs of a Resize: scales and sizes, of which a node has one."""
    if call.result is None:
        return ()
    shape, made = _first(call).array.shape, call.result.shape
    named = ("scales_d", "scales_h", "scales_w")[-(len(shape) - 2) :]
    given = call.arguments.get("scale_factors") or [call.arguments.get(name) for name in named]
    ratios = [out / size for out, size in zip(made[2:], shape[2:], strict=True)]
    scales = [ratio if own is None else float(own) for own, ratio in zip(given, ratios, strict=True)]
    return (None, None, _float([1.0, 1.0, *scales]), _ints(made))


@_form(*(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d")))
def _nearest(call: Call, opset: int) -> Sequence[Form]:
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return [Form("Resize", _sizes(call), attributes)]


@_form("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
def _linear(call: Call, opset: int) -> Sequence[Form]:
    cubic = "bicubic" in call.name
    corners = bool(call.arguments["align_corners"])
    places = ["align_corners"] if corners else ["half_pixel", "pytorch_half_pixel"]
    more = {"cubic_coeff_a": -0.75} if cubic else {}
    mode = "cubic" if cubic else "linear"
    inputs = _sizes(call)
    return [Form("Resize", inputs, {"mode": mode, "coordinate_transformation_mode": place, **more}) for place in places]


@_form("grid_sampler_2d", "grid_sampler_3d", "grid_sampler")
def _grid(call: Call, opset: int) -> Sequence[Form]:
    old = opset < 20
    modes = ("bilinear", "nearest", "bicubic") if old else ("linear", "nearest", "cubic")
    return [
        Form(
            "GridSample",
            (),
            {
                "mode": modes[int(call.arguments["interpolation_mode"])],
                "padding_mode": ("zeros", "border", "reflection")[int(call.arguments["padding_mode"])],
                "align_corners": int(bool(call.arguments["align_corners"])),
            },
        )
    ]


# -- products ---------------------------------------------------------------------------------------------------------


def summand(call: Call) -> Operand | None:
    """The bias that a product or a convolution adds; ``None`` without one."""
    if call.name in ("addmm", "addmv", "baddbmm"):
        return call.operand("self")
    return call.operand("bias") if call.name in ("linear", "convolution", "_convolution") else None


@_form("mm", "bmm", "matmul")
def _product(call: Call, opset: int) -> Sequence[Form]:
    return [Form("MatMul", (_first(call), call.operand("mat2", "other")), {}, 2)]


# -- order and choice -------------------------------------------------------------------------------------------------


@_form("cat")
def _cat(call: Call, opset: int) -> Sequence[Form]:
    parts = tuple(each for each in call.arguments["tensors"] if isinstance(each, Operand) and each.array.size)
    rank = parts[0].array.ndim
    return [Form("Concat", parts, {"axis": int(call.arguments.get("dim", 0)) % rank}, len(parts))]


@_form("permute")
def _permute(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Transpose", (_first(call),), {"perm": _axes(call, "dims")})]


@_form("transpose", "t")
def _transpose(call: Call, opset: int) -> Sequence[Form]:
    perm = list(range(_rank(call)))
    one, other = (0, -1) if call.name == "t" else (int(call.arguments["dim0"]), int(call.arguments["dim1"]))
    perm[one], perm[other] = perm[other], perm[one]
    return [Form("Transpose", (_first(call),), {"perm": perm})]


@_form("tril", "triu")
def _triangle(call: Call, opset: int) -> Sequence[Form]:
    diagonal = np.asarray(int(call.arguments.get("diagonal", 0)), np.int64)
    return [Form("Trilu", (_first(call), diagonal), {"upper": int(call.name == "triu")})]


@_form("flip")
def _flip(call: Call, opset: int) -> Sequence[Form]:
    axes = _axes(call, "dims")
    ends = [np.iinfo(np.int64).min] * len(axes)
    return [
        Form("Slice", (_first(call), _ints([-1] * len(axes)), _ints(ends), _ints(axes), _ints([-1] * len(axes))), {})
    ]


@_form("slice", "narrow")
def _slice(call: Call, opset: int) -> Sequence[Form]:
    given = call.arguments
    start = int(given.get("start") or 0)
    end = start + int(given["length"]) if "length" in given else given.get("end")
    end = np.iinfo(np.int64).max if end is None else int(end)
    axis = int(given.get("dim", 0)) % _rank(call)
    return [Form("Slice", (_first(call), *map(_ints, (start, end, axis, given.get("step", 1)))), {})]


@_form("view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten")
def _reshape(call: Call, opset: int) -> Sequence[Form]:
    return [] if call.result is None else [Form("Reshape", (None, _ints(call.result.shape)), {})]


@_form("expand")
def _expand(call: Call, opset: int) -> Sequence[Form]:
    return [] if call.result is None else [Form("Expand", (None, _ints(call.result.shape)), {})]


@_form("select")
def _select(call: Call, opset: int) -> Sequence[Form]:
    axis = int(call.arguments["dim"]) % _rank(call)
    return [Form("Gather", (_first(call), np.asarray(int(call.arguments["index"]), np.int64)), {"axis": axis})]


@_form("index_select", "gather")
def _gather(call: Call, opset: int) -> Sequence[Form]:
    axis = int(call.arguments["dim"]) % _rank(call)
    op = "GatherElements" if call.name == "gather" else "Gather"
    return [Form(op, (_first(call), call.operand("index")), {"axis": axis}, 2)]


@_form("index")
def _index(call: Call, opset: int) -> Sequence[Form]:
    given = call.arguments["indices"]
    axes = [axis for axis, each in enumerate(given) if isinstance(each, Operand)]
    # Several tensors of indices, or a mask, have another operator.
    if len(axes) != 1 or given[axes[0]].array.dtype.kind not in "iu":
        return []
    return [Form("Gather", (_first(call), given[axes[0]]), {"axis": axes[0]}, 2)]


@_form("embedding")
def _embedding(call: Call, opset: int) -> Sequence[Form]:
    return [Form("Gather", (call.operand("weight"), call.operand("indices")), {"axis": 0}, 2)]


@_form("topk")
def _topk(call: Call, opset: int) -> Sequence[Form]:
    given = call.arguments
    return [
        Form(
            "TopK",
            (),
            {
                "axis": int(given.get("dim", -1)) % _rank(call),
                "largest": int(given.get("largest", True)),
                "sorted": int(given.get("sorted", True)),
            },
        )
    ]


@_form("sort")
def _sort(call: Call, opset: int) -> Sequence[Form]:
    axis = int(call.arguments.get("dim", -1)) % _rank(call)
    return [Form("TopK", (), {"axis": axis, "largest": int(bool(call.arguments.get("descending")))})]


@_form("argmax", "argmin")
def _argmax(call: Call, opset: int) -> Sequence[Form]:
    axis = call.arguments.get("dim")
    if axis is None:
        return []
    keep = int(bool(call.arguments.get("keepdim", False)))
    op = "ArgMax" if call.name == "argmax" else "ArgMin"
    return [Form(op, (_first(call),), {"axis": int(axis) % _rank(call), "keepdims": keep})]


@_form("cumsum")
def _cumsum(call: Call, opset: int) -> Sequence[Form]:
    axis = np.asarray(_axes(call)[0], np.int64)
    return [Form("CumSum", (_first(call), axis), {"exclusive": 0, "reverse": 0})]


@_form("scatter", "scatter_add", "scatter_reduce")
def _scatter(call: Call, opset: int) -> Sequence[Form]:
    reduction = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min", "add": "add", "multiply": "mul"}
    given = str(call.arguments.get("reduce") or ("add" if call.name == "scatter_add" else "none"))
    attributes = {"axis": int(call.arguments["dim"]) % _rank(call), "reduction": reduction.get(given, "none")}
    return [Form("ScatterElements", (), attributes)]


@_form("index_put", "_index_put_impl")
def _index_put(call: Call, opset: int) -> Sequence[Form]:
    return [Form("ScatterND", (), {"reduction": "add" if call.arguments.get("accumulate") else "none"})]


@_form("index_add")
def _index_add(call: Call, opset: int) -> Sequence[Form]:
    axis = int(call.arguments["dim"]) % _rank(call)
    return [
        Form("ScatterElements", (), {"axis": axis, "reduction": "add"}),
        Form("ScatterND", (), {"reduction": "add"}),
    ]


@_form("pixel_shuffle")
def _pixel_shuffle(call: Call, opset: int) -> Sequence[Form]:
    factor = int(call.arguments["upscale_factor"])
    return [Form("DepthToSpace", (_first(call),), {"blocksize": factor, "mode": "CRD"})]


def gelu_steps(approximate: str) -> tuple[tuple[str, tuple[float | str, ...]], ...]:
    """GELU in operators that every opset has: operator and inputs; ``x``, ``-1`` the step before, numbers are constants."""
    if approximate == "tanh":
        return (
            ("Pow", ("x", 3.0)),
            ("Mul", ("-1", 0.044715)),
            ("Add", ("x", "-1")),
            ("Mul", ("-1", math.sqrt(2 / math.pi))),
            ("Tanh", ("-1",)),
            ("Add", ("-1", 1.0)),
            ("Mul", ("x", "-1")),
            ("Mul", ("-1", 0.5)),
        )
    return (
        ("Mul", ("x", 1 / math.sqrt(2))),
        ("Erf", ("-1",)),
        ("Add", ("-1", 1.0)),
        ("Mul", ("x", "-1")),
        ("Mul", ("-1", 0.5)),
    )


def written_out(call: Call) -> Mapping[str, tuple[str, ...]]:
    """What exporters write a call as where they write several nodes: the operator it stands for, and theirs."""
    name = call.name.removesuffix("_")
    if name == "gelu":
        approximate = str(call.arguments.get("approximate", "none"))
        return {"Gelu": tuple(op for op, _ in gelu_steps(approximate))}
    known: Mapping[str, Mapping[str, tuple[str, ...]]] = {
        "silu": {"Swish": ("Sigmoid", "Mul")},
        "mish": {"Mish": ("Softplus", "Tanh", "Mul")},
        "log_sigmoid_forward": {"LogSigmoid": ("Sigmoid", "Log")},
        "logsumexp": {"LogSumExp": ("Exp", "ReduceSum", "Log")},
        "std": {"StandardDeviation": ("Sqrt",)},
        "native_layer_norm": {"LayerNormalization": ("Sqrt",)},
        "layer_norm": {"LayerNormalization": ("Sqrt",)},
    }
    return known.get(name, {})


@_form(
    *("scaled_dot_product_attention", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable"),
)
def _attention(call: Call, opset: int) -> Sequence[Form]:
    attributes: dict[str, Any] = {"is_causal": int(bool(call.arguments.get("is_causal")))}
    if call.arguments.get("scale") is not None:
        attributes["scale"] = float(call.arguments["scale"])
    return [Form("Attention", (), attributes)]
