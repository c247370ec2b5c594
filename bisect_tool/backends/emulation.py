"""TF32, bfloat16 and float16 operands on the CPU: "would reduced precision explain this?" without a GPU.

Tensor cores round the operands of a product and sum in float32. ``Emulation`` does the same to PyTorch's matrix
products, convolutions and attention: float32 operands are rounded, nearest even, and the operation runs as ever. It is
no CUDA run: sums go in another order there, small and depthwise convolutions often use no tensor cores, and hardware
may round operands otherwise. Results are named ``tf32-emulated`` and so on, and never shown as CUDA.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bisect_tool.recorder import spare_compiler

Format = Literal["tf32", "bf16", "fp16"]

# Rounding


def round_tf32(tensor: Tensor) -> Tensor:
    """The nearest numbers with 10 bits of mantissa, ties to even, as float32 of the same shape.

    The exponent range stays that of float32: subnormals are rounded to multiples of 2**-136, and what rounds up beyond
    the largest number becomes infinite. NaN and infinities stay what they are. Complex numbers go part by part.
    """
    if tensor.is_complex():
        return torch.view_as_complex(round_tf32(torch.view_as_real(tensor.resolve_conj())))
    bits = tensor.resolve_neg().view(torch.int32)
    # Half of the last kept place less one, and one more if that place is odd: a tie then goes to the even neighbour.
    # A carry out of the mantissa raises the exponent, which is right.
    rounded = ((bits >> 13) & 1).add_(0x0FFF).add_(bits).bitwise_and_(~0x1FFF).view(torch.float32)
    # The bits of a NaN may be carried into another number, or be cut to those of an infinity.
    return torch.where(torch.isnan(tensor), tensor, rounded)


def round_bf16(tensor: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, ties to even, as float32 of the same shape (complex: part by part)."""
    return _through(tensor, torch.bfloat16)


def round_fp16(tensor: Tensor) -> Tensor:
    """The nearest float16 numbers, ties to even, as float32 of the same shape; beyond 65504 they are infinite."""
    return _through(tensor, torch.float16)


def _through(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return torch.view_as_complex(_through(torch.view_as_real(tensor.resolve_conj()), dtype))
    return tensor.to(dtype).to(torch.float32)


ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = {"tf32": round_tf32, "bf16": round_bf16, "fp16": round_fp16}

# Which operations, and which of their operands

PRODUCT_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "mm": (0, 1),
    "addmm": (1, 2),
    "_addmm_activation": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
    "dot": (0, 1),
    "vdot": (0, 1),
    "convolution": (0, 1),
    "_convolution": (0, 1),
    "convolution_overrideable": (0, 1),
    "mkldnn_convolution": (0, 1),
    "mkldnn_linear": (0, 1),
    "conv_tbc": (0, 1),
    "_slow_conv2d_forward": (0, 1),
    "_conv_depthwise2d": (0, 1),
}
"""Product or convolution → places of its two factors, which are rounded. What is added to the product is none."""

_FUSED = frozenset(
    [
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_flash_attention_forward",
        "_efficient_attention_forward",
        "_cudnn_rnn",
        "miopen_rnn",
        "_sparse_mm",
        "_sparse_addmm",
        "_sparse_mm_reduce_impl",
        "_grouped_mm",
        "_scaled_mm",
    ]
)
"""Operations with products inside that nothing here reaches."""

_SCORES = 1 << 24
"""Attention scores that are held at once."""

_paused = 0


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Nothing is rounded inside, whatever emulation is on: for reference computations while a model is running."""
    global _paused
    _paused += 1
    try:
        yield
    finally:
        _paused -= 1


class Emulation(TorchDispatchMode):
    """Rounds the operands of matrix products, convolutions and attention while it is entered.

    Enter it before the recorder: the recorder then sees the very operations that it sees without emulation.

    Args:
        format: ``tf32`` | ``bf16`` | ``fp16``.

    Attributes:
        rounded: how often each operation was rounded.
        unreached: how often each operation ran whose inner products could not be rounded; a result with any is no
            full emulation, and must say so.
    """

    def __init__(self, format: Format):
        super().__init__()
        self.format = format
        self.rounded: Counter[str] = Counter()
        self.unreached: Counter[str] = Counter()

    @spare_compiler  # type: ignore[untyped-decorator]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _paused:
            return func(*args, **kwargs)
        schema = getattr(func, "_schema", None)
        namespace, _, name = schema.name.partition("::") if schema is not None else ("", "", str(func))
        if namespace != "aten":
            # Operators of extensions, and those that run other code: what they compute inside is not seen.
            if any(_is_float32(t) for t in _tensors(args, kwargs)) and namespace not in ("prim", "prims"):
                self.unreached[f"{namespace}::{name}".removeprefix("::")] += 1
            return func(*args, **kwargs)
        base = name[:-1] if name.endswith("_") and name[:-1] in PRODUCT_OPERANDS else name
        if base in PRODUCT_OPERANDS:
            return self._round(func, base, args, kwargs)
        if (name in _REWRITES or name in _FUSED) and any(_is_float32(t) for t in _tensors(args, kwargs)):
            # Without an overload's name it makes its own results; "out" writes into given ones.
            rewrite = _REWRITES.get(name) if func._overloadname == "default" else None
            result = rewrite(self, *args, **kwargs) if rewrite is not None else NotImplemented
            if result is NotImplemented:
                self.unreached[name] += 1
                return func(*args, **kwargs)
            self.rounded[name] += 1
            return result
        if _is_composite(func):
            # In inference mode composite operations arrive whole: take them apart, so that their parts are seen.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)

    def _round(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        operands = [args[place] for place in PRODUCT_OPERANDS[name] if place < len(args)]
        if not any(_is_float32(operand) for operand in operands):
            return func(*args, **kwargs)
        if any(operand.layout is not torch.strided and not operand.is_mkldnn for operand in operands):
            self.unreached[name] += 1
            return func(*args, **kwargs)
        changed = list(args)
        for place in PRODUCT_OPERANDS[name]:
            if place < len(args):
                changed[place] = self.round(args[place])
        self.rounded[name] += 1
        return func(*changed, **kwargs)

    def round(self, tensor: Tensor) -> Tensor:
        """A tensor in this format; what is not float32 (or complex64) is left alone."""
        if not _is_float32(tensor):
            return tensor
        if tensor.is_mkldnn:
            return ROUNDINGS[self.format](tensor.to_dense()).to_mkldnn()
        return ROUNDINGS[self.format](tensor)


def _is_float32(item: object) -> bool:
    return isinstance(item, Tensor) and item.dtype in (torch.float32, torch.complex64)


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (list, tuple)):
            yield from (child for child in item if isinstance(child, Tensor))


@functools.cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


# Fused operations, computed anew from their parts


def _attention(
    emulation: Emulation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Any:
    """``softmax(Q K^T * scale + mask) V`` with all four operands rounded: ``[N, H, L, E]`` → output, log-sum-exp."""
    if dropout_p:
        return NotImplemented
    # The kernel's own layouts: whether a view of the result is possible, or a copy is made, depends on them.
    output = torch.empty_like(query)
    log_sum = query.new_empty(query.shape[0], query.shape[2], query.shape[1]).transpose(1, 2)
    query, key, value = emulation.round(query), emulation.round(key), emulation.round(value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    length, columns = query.shape[2], key.shape[2]
    rows = max(1, _SCORES // max(1, query.shape[0] * query.shape[1] * columns))
    for start in range(0, length, rows):
        part = slice(start, min(start + rows, length))
        scores = (query[:, :, part] @ key.transpose(-2, -1)) * scale
        if is_causal:
            later = torch.ones(part.stop, columns, dtype=torch.bool, device=scores.device).tril()[part].logical_not_()
            scores.masked_fill_(later, float("-inf"))
        if attn_mask is not None:
            mask = attn_mask.expand(*attn_mask.shape[:-2], length, columns)[..., part, :]
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
        largest = scores.amax(-1, keepdim=True)
        # A row that is masked throughout has no largest number; its result is zero, as in PyTorch.
        largest = largest.masked_fill(largest == float("-inf"), 0)
        # As a fused kernel does it: weights are rounded before they are normalised, and the product is divided.
        weights = torch.exp(scores - largest)
        total = weights.sum(-1, keepdim=True)
        output[:, :, part] = emulation.round(weights) @ value / total.masked_fill(total == 0, 1)
        log_sum[:, :, part] = (largest + total.log()).squeeze(-1)
    return output, log_sum


def _lstm_layer(
    emulation: Emulation,
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    hidden: Tensor,
    cell: Tensor,
    reverse: bool,
    batch_sizes: Sequence[int],
    kind: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
    train: bool,
) -> Any:
    """oneDNN's LSTM layer in one direction: ``[T, N, in]`` → output ``[T, N, hidden]``, last states, workspace.

    The input comes time-major whatever ``batch_first`` says.
    """
    lstm = 2
    if kind != lstm or batch_sizes or input.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    weight_ih, weight_hh = emulation.round(weight_ih), emulation.round(weight_hh)
    bias = bias_ih + bias_hh if has_biases else 0
    from_input = emulation.round(input) @ weight_ih.t() + bias
    h, c = hidden.reshape(input.shape[1], hidden_size), cell.reshape(input.shape[1], hidden_size)
    outputs: list[Tensor] = []
    for step in reversed(from_input.unbind(0)) if reverse else from_input.unbind(0):
        i, f, g, o = (step + emulation.round(h) @ weight_hh.t()).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    output = torch.stack(outputs[::-1] if reverse else outputs)
    workspace = input.new_empty(0, dtype=torch.uint8) if torch.is_grad_enabled() else None
    return output, h.reshape(hidden.shape), c.reshape(cell.shape), workspace


def _multi_head_attention(
    emulation: Emulation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> Any:
    """The fast path of ``nn.MultiheadAttention``: ``[N, L, E]`` → output, weights or ``None``."""
    if any(t.is_nested or t.layout is not torch.strided for t in (query, key, value)):
        return NotImplemented
    # In this order PyTorch has the parts of its one weight.
    parts = []
    for tensor, weight, bias in zip((query, key, value), qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True):
        projected = emulation.round(tensor) @ emulation.round(weight).t() + bias
        parts.append(projected.unflatten(-1, (num_head, -1)).transpose(1, 2))
    q, k, v = parts
    scores = emulation.round(q * (embed_dim // num_head) ** -0.5) @ emulation.round(k).transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(_full_mask(mask, mask_type, scores), float("-inf"))
    weights = torch.softmax(scores, -1)
    heads = emulation.round(weights) @ emulation.round(v)
    output = emulation.round(heads.transpose(1, 2).flatten(-2)) @ emulation.round(proj_weight).t() + proj_bias
    if not need_weights:
        return output, None
    return output, weights.mean(1) if average_attn_weights else weights


def _full_mask(mask: Tensor, mask_type: int | None, scores: Tensor) -> Tensor:
    """A mask of the fast path as ``[N, heads, L, S]`` or what broadcasts to it; true is left out."""
    source, padding = 0, 1
    mask = mask.bool()
    if mask_type == source:
        return mask.expand(scores.shape)
    if mask_type == padding:
        return mask[:, None, None, :].expand(scores.shape)
    return mask.reshape(scores.shape)


def _encoder_layer(
    emulation: Emulation,
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Any:
    """The fast path of ``nn.TransformerEncoderLayer``: ``[N, L, E]`` → the same shape."""
    if src.is_nested or src.layout is not torch.strided:
        return NotImplemented
    attention = functools.partial(_multi_head_attention, emulation, need_weights=False, mask=mask, mask_type=mask_type)

    def attend(x: Tensor) -> Tensor:
        out = attention(x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias)
        return out[0]  # type: ignore[no-any-return]

    def feed_forward(x: Tensor) -> Tensor:
        inner = emulation.round(x) @ emulation.round(ffn_weight_1).t() + ffn_bias_1
        inner = F.gelu(inner) if use_gelu else F.relu(inner)
        return emulation.round(inner) @ emulation.round(ffn_weight_2).t() + ffn_bias_2

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed_forward(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed_forward(src), norm_weight_2, norm_bias_2)


def _euclidean_distance(emulation: Emulation, x1: Tensor, x2: Tensor) -> Any:
    """``cdist`` by one matrix product: ``[..., P, M]``, ``[..., R, M]`` → ``[..., P, R]``."""
    norms_1, norms_2 = x1.pow(2).sum(-1, keepdim=True), x2.pow(2).sum(-1, keepdim=True)
    left = torch.cat([x1 * -2, norms_1, torch.ones_like(norms_1)], -1)
    right = torch.cat([x2, torch.ones_like(norms_2), norms_2], -1)
    return (emulation.round(left) @ emulation.round(right).transpose(-2, -1)).clamp_min(0).sqrt()


_REWRITES: Mapping[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "mkldnn_rnn_layer": _lstm_layer,
    "_native_multi_head_attention": _multi_head_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_euclidean_dist": _euclidean_distance,
}


class _Unrounded(Emulation):
    """Leaves operands alone: then a rewrite is the operation itself, from parts that take float64."""

    def round(self, tensor: Tensor) -> Tensor:
        return tensor


_SINGLE_ONLY = frozenset(["mkldnn_rnn_layer"])
"""Operations whose kernels take no float64."""


def recompute(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation that has no float64 kernel, from its parts; ``NotImplemented`` for every other one."""
    return _REWRITES[name](_Unrounded("tf32"), *args, **kwargs) if name in _SINGLE_ONLY else NotImplemented


def rewritten(name: str) -> Callable[..., Any] | None:
    """A fused operation's computation from its parts, with nothing rounded; ``None`` for every other one."""
    rewrite = _REWRITES.get(name)
    return None if rewrite is None else functools.partial(rewrite, _Unrounded("tf32"))
