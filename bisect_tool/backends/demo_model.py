"""A small network for images; ``bisect-tool demo`` writes a copy of this file."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A convolution in each channel, and one across them, beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(4, width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(self.act(self.norm(self.depthwise(x))))


class Net(nn.Module):
    """image (1, 3, 32, 32) -> scores (1, 10)."""

    def __init__(self, width: int = 16, depth: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.classifier = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(image)).mean((2, 3)))


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return Net()
