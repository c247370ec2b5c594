"""``reproducing``: the same random numbers in every process, and a digest that tells one model from another."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from bisect_tool.backends.reproducing import numbers_digest, seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_same_numbers_from_the_same_seed() -> None:
    """Python's, numpy's and PyTorch's; and all three go on afterwards as if nothing had been, on error too."""
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    plain = draw(), draw()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = draw()
    with seeded(0):
        inside = draw()
    with pytest.raises(KeyError), seeded(0):
        assert inside == draw()
        raise KeyError
    assert plain == (first, draw())


def test_memory_without_content_is_the_same_too() -> None:
    """A buffer that nobody has written to yet makes no other model."""
    assert not torch.are_deterministic_algorithms_enabled()
    with seeded(0):
        assert bool(torch.empty(1000).isnan().all())
    assert not torch.are_deterministic_algorithms_enabled()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("kept", torch.zeros(2), persistent=False)
        self.table = torch.ones(2, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["layer.weight", "layer.bias", "kept", "table"])
def test_digest_sees_every_tensor(name: str) -> None:
    """Parameters, buffers that are not saved, and plain attributes."""
    with seeded(0):
        model, same = Model(), None
    with seeded(0):
        same = Model()
    assert numbers_digest(model) == numbers_digest(same)
    owner, _, attribute = name.rpartition(".")
    with torch.no_grad():
        getattr(model.get_submodule(owner), attribute).view(-1)[-1] += 1
    assert numbers_digest(model) != numbers_digest(same)


def test_digest_sees_shape_and_dtype() -> None:
    """The same bytes may be other numbers."""
    models = [Model() for _ in range(3)]
    models[1].table, models[2].table = models[1].table.view(1, 2), models[2].table.view(torch.int16)
    for model in models[1:]:
        model.layer.load_state_dict(models[0].layer.state_dict())
    assert 3 == len({numbers_digest(model) for model in models})
