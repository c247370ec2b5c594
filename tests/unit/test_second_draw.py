"""``second_draw``: another input of the same form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bisect_tool.backends.second_draw import random_like, torch_signatures
from bisect_tool.backends.torch_runner import TorchRun


def test_inputs_have_the_same_form() -> None:
    """Shapes and dtypes stay, integers stay within their range, and what all differs goes on differing."""
    sample = (
        torch.full((2, 3), 5.0),
        {"ids": torch.tensor([3, 3, 9, 7]), "cells": torch.tensor([4, 2, 8]), "mask": torch.tensor([True] * 20)},
    )
    (x, rest), kwargs = random_like(sample, {"half": torch.zeros(4, dtype=torch.float16)})
    assert (x.shape, x.dtype) == ((2, 3), torch.float32) and len(x.unique()) == 6
    assert set(rest["ids"].tolist()) <= set(range(3, 10))
    assert sorted(rest["cells"].tolist()) == [2, 4, 8]
    assert rest["mask"].dtype is torch.bool and not rest["mask"].all()
    assert kwargs["half"].dtype is torch.float16 and kwargs["half"].abs().sum() > 0


def test_the_same_every_time() -> None:
    """A report is that of the run before."""
    (first,), _ = random_like((torch.ones(50),), {})
    (again,), _ = random_like((torch.ones(50),), {})
    assert torch.equal(first, again)


class Counting(nn.Module):
    """Remembers what it saw, and cannot do without positive numbers if it is told so."""

    def __init__(self, strict: bool = False, branches: bool = False):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.strict, self.branches = strict, branches

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum()
        if self.strict and (x < 0).any():
            raise ValueError("negative")
        return x.relu() * 2 if self.branches and (x >= 0).all() else x.relu()


def drawn(module: nn.Module) -> object:
    sample = torch.arange(40.0)
    run = TorchRun(module, (sample,), {}, lambda *_: None)
    run.start()
    args, kwargs = random_like((sample - 20,), {})
    return torch_signatures(module, args, kwargs, run.trace, every_op=False)


def test_a_model_s_memory_is_left_as_it_was() -> None:
    """What the model keeps from call to call does not know of this one."""
    module = Counting()
    assert drawn(module)
    assert torch.equal(module.seen, torch.arange(40.0).sum().reshape(1))


def test_a_model_that_cannot_or_goes_another_way_tells_nothing() -> None:
    """An exception, and another branch."""
    assert drawn(Counting(strict=True)) is None
    assert drawn(Counting(branches=True)) is None
