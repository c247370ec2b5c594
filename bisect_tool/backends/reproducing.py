"""The same model in every process: random numbers that start alike, and a digest that tells whether that was enough."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of Python, numpy and PyTorch from a seed; afterwards they go on as if nothing had been.

    Memory that PyTorch is asked for without a content is filled inside: what lay there before differs as well.
    """
    python, numpy = random.getstate(), np.random.get_state()
    determinism = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.use_deterministic_algorithms(determinism[0], warn_only=determinism[1])


def numbers_digest(module: torch.nn.Module) -> str:
    """A digest of all tensors that a model holds: parameters, buffers, and plain attributes of its modules."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _tensors(module):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel() and not tensor.is_meta and tensor.layout == torch.strided:
            plain = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
    for path, child in module.named_modules():
        for name, value in vars(child).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name}", value
