"""Another input of the same form: what two unrelated inputs agree on is hardly so by chance."""

from __future__ import annotations

from typing import Any

import torch

from bisect_tool.backends.structures import map_tensors
from bisect_tool.backends.torch_runner import TorchRun, to_numpy
from bisect_tool.metrics import kind_of
from bisect_tool.recorder import Value
from bisect_tool.records import TorchTrace
from bisect_tool.signatures import Signature, signature_of

_SEED = 20_240_229


def random_like(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the same shapes and dtypes: floats like the sample's in mean and spread, integers within its range."""
    source = torch.Generator().manual_seed(_SEED)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 0 or tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.clone()
        if tensor.is_floating_point() or tensor.is_complex():
            finite = tensor.detach().to("cpu", torch.complex128 if tensor.is_complex() else torch.float64)
            finite = torch.where(finite.isfinite(), finite, torch.zeros_like(finite))
            spread = float(finite.std()) if tensor.numel() > 1 else 0.0
            # Of a sample of zeros or of ones nothing is known but its size.
            spread = spread or max(float(finite.abs().mean()), 1.0)
            noise = torch.randn(tensor.shape, generator=source, dtype=finite.dtype)
            return (finite.mean() + spread * noise).to(tensor.device, tensor.dtype)
        if tensor.dtype is torch.bool:
            return (torch.rand(tensor.shape, generator=source) < 0.5).to(tensor.device)
        low, high = int(tensor.min()), int(tensor.max())
        # Indices that differ must go on differing: the sample's own numbers in another order.
        order = torch.randperm(tensor.numel(), generator=source)
        if tensor.unique().numel() == tensor.numel():
            return tensor.reshape(-1)[order.to(tensor.device)].reshape(tensor.shape)
        return torch.randint(low, high + 1, tensor.shape, generator=source).to(tensor.device, tensor.dtype)

    made: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors((args, kwargs), drawn)
    return made


def torch_signatures(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], like: TorchTrace, *, every_op: bool
) -> dict[int, Signature] | None:
    """Signatures by value of a run on other inputs; ``None`` if the model cannot, or takes another way through its code."""
    found: dict[int, Signature] = {}

    def on_value(value: Value, tensor: torch.Tensor) -> None:
        array = to_numpy(tensor)
        found[value.id] = signature_of(array, kind_of(array.dtype))

    run = TorchRun(module, args, kwargs, on_value, every_op=every_op)
    # What the model keeps from one call to the next is not to be this call's.
    kept = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            run.start()
    except (Exception, SystemExit):  # made-up inputs may break any assumption of a user's forward
        return None
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                if buffer.shape == before.shape and not torch.equal(buffer, before):
                    buffer.copy_(before)
    same = [(s.ref, s.value, s.shape) for s in run.trace.stages] == [(s.ref, s.value, s.shape) for s in like.stages]
    return found if same else None
