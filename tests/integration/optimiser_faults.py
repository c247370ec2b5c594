"""Small networks that ONNX Runtime's optimiser gets wrong: nobody edited a file, the exported graph is right.

Each has healthy layers around it. They were true of onnxruntime 1.31.1 on the CPU; a version that has mended one makes its
tests skip.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Quartic(nn.Module):
    """A normalisation by the fourth moment: the fusion takes any power for a square."""

    def __init__(self, size: int = 16):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.bias = nn.Parameter(torch.randn(size) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / torch.sqrt((d**4).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class Reversed(nn.Module):
    """The mean minus the number: the fusion subtracts the other way round."""

    def __init__(self, size: int = 16):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.bias = nn.Parameter(torch.randn(size) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        d = x.mean(-1, keepdim=True) - x
        return d / torch.sqrt(d.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class Center(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


class Spread(nn.Module):
    def forward(self, d: Tensor) -> Tensor:
        return torch.sqrt((d**4).mean(-1, keepdim=True) + 1e-5)


class Affine(nn.Module):
    def __init__(self, size: int = 16):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.bias = nn.Parameter(torch.randn(size) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class InPieces(nn.Module):
    """The same in modules of their own: looking at any of their outputs keeps the fusion from happening."""

    def __init__(self, size: int = 16):
        super().__init__()
        self.center, self.spread, self.affine = Center(), Spread(), Affine(size)

    def forward(self, x: Tensor) -> Tensor:
        d = self.center(x)
        return self.affine(d / self.spread(d))


class Dropped(nn.Module):
    """Axes that a mean drops (onnxruntime#30513): what follows broadcasts otherwise, which the fusions do not see.

    ``center``, ``scale``: whether the mean that is subtracted, and the one that is divided by, keep their axis.
    """

    def __init__(self, center: bool = False, scale: bool = False, size: int = 16):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.bias = nn.Parameter(torch.randn(size) * 0.1)
        self.center, self.scale = center, scale

    def forward(self, x: Tensor) -> Tensor:
        d = x - x.mean(-1, keepdim=self.center)
        return d / torch.sqrt(d.pow(2).mean(-1, keepdim=self.scale) + 1e-5) * self.weight + self.bias


class DroppedRms(nn.Module):
    """Likewise, of a root mean square."""

    def __init__(self, size: int = 16):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1) + 1e-5) * self.weight


class Rank(nn.Module):
    """A constant of ones that gives its quotient another rank, which the fused division does not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.one / (x.abs() + 1) * x


class Between(nn.Module):
    """Healthy layers around a module that takes and gives 16 numbers."""

    def __init__(self, *middle: nn.Module):
        super().__init__()
        self.stem, self.act = nn.Linear(16, 16), nn.Tanh()
        self.middle = nn.Sequential(*middle)
        self.head, self.out = nn.Linear(16, 16), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(self.middle(self.act(self.stem(x)))))


class PadThenPool(nn.Module):
    """Zeros around a map of negative numbers win in a pooling; folded into it they become minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.Tanh()
        self.pad, self.pool = nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)
        self.head = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.stem.bias.sub_(1)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.pad(self.act(self.stem(x)))))


class Block(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(size, size, 3, padding=1), nn.BatchNorm2d(size), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(x)))


class PadAmongBlocks(nn.Module):
    """The same among convolutions, which ONNX Runtime computes in a layout and under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.before = nn.Conv2d(3, 16, 3, padding=1), nn.Sequential(Block(16), Block(16), nn.ELU())
        self.pad, self.pool = nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)
        self.after, self.head = nn.Sequential(Block(16), Block(16)), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.stem.bias.sub_(2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.pool(self.pad(self.before(self.stem(x))))))


NETS = {
    "quartic": lambda: Between(Quartic()),
    "reversed": lambda: Between(Reversed()),
    "pieces": lambda: Between(InPieces()),
    "two": lambda: Between(Quartic(), nn.Linear(16, 16), nn.Tanh(), Quartic()),
    "dropped_both": lambda: Between(Dropped()),
    "dropped_center": lambda: Between(Dropped(scale=True)),
    "dropped_rms": lambda: Between(DroppedRms()),
    "rank": lambda: Between(Rank()),
    "pad": PadThenPool,
    "pad_among": PadAmongBlocks,
    "healthy": lambda: Between(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()),
}


def make(name: str) -> nn.Module:
    """A network with the same numbers each time."""
    torch.manual_seed(0)
    return NETS[name]().eval()


def sample(name: str) -> Tensor:
    """An input for it."""
    torch.manual_seed(1)
    return torch.randn(2, 3, 9, 9) if name.startswith("pad") else torch.randn(16, 16)
