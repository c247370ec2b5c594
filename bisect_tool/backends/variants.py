"""The model's operations on other inputs of the same form: which numbers and which branches follow the input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from bisect_tool.backends.operations import operations_of
from bisect_tool.backends.second_draw import random_like
from bisect_tool.backends.structures import map_tensors
from bisect_tool.baked import Variant

MOST_SECONDS = 10.0


def variants(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    longer: bool,
    seconds: float = MOST_SECONDS,
) -> tuple[Variant, ...]:
    """The run on the sample itself first, and then those on other inputs, as far as the model takes them.

    Args:
        module, args, kwargs: the case.
        longer: inputs of another size are asked too.
        seconds: to spend; what runs then is finished.
    """
    ends = time.perf_counter() + seconds
    found = []
    for text, given, named in _inputs(args, kwargs, longer):
        if time.perf_counter() > ends:
            break
        kept = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
        try:
            with torch.random.fork_rng(devices=[]):
                found.append(Variant(text, operations_of(module, given, named)))
        except (Exception, SystemExit):  # made-up inputs may break any assumption of a user's forward
            if not found:
                return ()
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    if buffer.shape == before.shape and not torch.equal(buffer, before):
                        buffer.copy_(before)
    return tuple(found)


def _inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], longer: bool
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    yield "the sample", args, kwargs
    yield "other numbers", *random_like(args, kwargs)
    for text, change in (("the sample with its sign turned", _negated), ("a sample twice as large", _doubled)):
        given, named = map_tensors((args, kwargs), change)
        yield text, given, named
    if longer:
        yield "the sample's first axis twice as long", *map_tensors((args, kwargs), _longer)


def _negated(tensor: torch.Tensor) -> torch.Tensor:
    return -tensor if tensor.is_floating_point() else tensor


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2 if tensor.is_floating_point() else tensor


def _longer(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor]) if tensor.ndim else tensor
