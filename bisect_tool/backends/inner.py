"""What PyTorch computed inside a stage, operation by operation, and what big operations are made of."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bisect_tool.backends.emulation import rewritten
from bisect_tool.backends.replay import AS_RUN, replay_values, slice_of
from bisect_tool.backends.torch_runner import FACTORY_OPS, to_numpy
from bisect_tool.drilldown import Inner
from bisect_tool.recorder import Op, Trace, spare_compiler


def inner_values(
    trace: Trace, value: int, known: Set[int], fetch: Callable[[int], Tensor], budget: int
) -> tuple[Inner, ...]:
    """Floating values between a stage's inputs and its output, in order of execution; the output itself is left out.

    Operations that exporters write as several nodes (GELU, attention, norms) are taken apart.

    Args:
        trace, value, known, fetch: as in :func:`bisect_tool.backends.replay.replay`.
        budget: bytes; beyond it nothing more is kept.

    Raises:
        CannotReplayError: the stage can't be computed again.
    """
    found: list[Inner] = []
    left = budget

    def keep(op: Op, name: str, tensor: Tensor) -> None:
        nonlocal left
        if tensor.is_nested or not tensor.is_floating_point() or tensor.layout is not torch.strided:
            return
        size = tensor.numel() * tensor.element_size()
        if size <= left:
            left -= size
            found.append(Inner(name, op.source, to_numpy(tensor.detach().clone())))

    def before(op: Op, args: Any, kwargs: Any) -> None:
        parts = _parts_of(op)
        if parts is None:
            return
        capture = _Capture()
        # A decomposition may be one for other arguments; the operation itself is kept in any case.
        with contextlib.suppress(Exception), capture:
            parts(*args, **kwargs)
        # The last part is the operation's own result.
        for name, tensor in capture.found[:-1]:
            keep(op, name, tensor)

    def after(op: Op, results: list[Tensor]) -> None:
        if op.name not in FACTORY_OPS and value not in op.outputs:
            for tensor in results:
                keep(op, op.name, tensor)

    replay_values(trace, {value}, slice_of(trace, value, known), fetch, AS_RUN, before, after)
    return tuple(found)


class _Capture(TorchDispatchMode):
    """Collects the result of every operation that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Tensor]] = []

    @spare_compiler  # type: ignore[untyped-decorator]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.found.append((str(func).partition(".")[2].partition(".")[0], tensor))
        return result


def _parts_of(op: Op) -> Callable[..., Any] | None:
    """A computation of the same result in smaller operations; ``None`` for what is small already."""
    if op.call is None or op.in_place:
        return None
    if "scaled_dot_product" in op.name:
        return _attention
    if op.name in _FAST_PATHS:
        return functools.partial(_FAST_PATHS[op.name], rewritten(op.name))
    found: Callable[..., Any] | None = rewritten(op.name) or torch._decomp.decomposition_table.get(op.call[0])
    return found


def _multi_head_attention(whole: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> None:
    """The fast path of ``nn.MultiheadAttention`` as exporters see it, ``[L, N, E]``, and as a whole."""
    _, heads, in_weight, in_bias, out_weight, out_bias, mask, *others = (*rest, *(None,) * 8)[:11]
    _slow_path(query, key, value, heads, (in_weight, in_bias, out_weight, out_bias), mask, others[2])
    whole(query, key, value, *rest)


def _encoder_layer(whole: Callable[..., Any], src: Tensor, *rest: Any) -> None:
    """The fast path of ``nn.TransformerEncoderLayer``: its attention as exporters see it first, and the whole."""
    width, heads, in_weight, in_bias, out_weight, out_bias, _, norm_first, eps, scale, shift = rest[:11]
    mask, mask_type = (*rest[17:19], None, None)[:2]
    x = functional.layer_norm(src, (width,), scale, shift, eps) if norm_first else src
    _slow_path(x, x, x, heads, (in_weight, in_bias, out_weight, out_bias), mask, mask_type)
    whole(src, *rest)


_FAST_PATHS: Mapping[str, Callable[..., None]] = {
    "_native_multi_head_attention": _multi_head_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
}


def _slow_path(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    mask: Tensor | None,
    mask_type: int | None,
) -> None:
    in_weight, in_bias, out_weight, out_bias = weights
    # One order of the axes throughout; what equals the very input stays the same tensor, as self-attention is told by that.
    turned = {id(t): t.transpose(0, 1) for t in (query, key, value)}
    query, key, value = (turned[id(t)] for t in (query, key, value))
    for need_weights in (True, False):
        functional.multi_head_attention_forward(
            query,
            key,
            value,
            query.shape[-1],
            heads,
            in_weight,
            in_bias,
            None,
            None,
            False,
            0.0,
            out_weight,
            out_bias,
            training=False,
            key_padding_mask=mask if mask_type == 1 else None,
            attn_mask=mask if mask_type == 0 else None,
            need_weights=need_weights,
        )


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> None:
    """Attention in steps: the scale where exporters put it (scores, query, half on each operand), the mask either way."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    turned = key.transpose(-2, -1)
    torch.matmul(torch.mul(query, scale**0.5), torch.mul(turned, scale**0.5))
    torch.matmul(torch.mul(query, scale), turned)
    scores = torch.mul(torch.matmul(query, turned), scale)
    hidden = attn_mask.logical_not() if attn_mask is not None and attn_mask.dtype is torch.bool else None
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril().logical_not()
    if hidden is not None:
        # Filled in, or added.
        torch.add(scores, torch.zeros(hidden.shape, dtype=scores.dtype).masked_fill(hidden, float("-inf")))
        scores = scores.masked_fill(hidden, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    torch.softmax(scores, -1) @ value
