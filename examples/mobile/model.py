"""A small inverted-residual image classifier whose blocks all use one activation object."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

CLASSES = 10
IMAGE_SIZE = 96
# Expansion, output channels, number of blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2), (4, 64, 2, 2))
STEM_CHANNELS = 16
LAST_CHANNELS = 256


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            norm=nn.BatchNorm2d(out_channels),
        )
    )


class InvertedResidual(nn.Module):
    """Expand, filter every channel on its own, project; with a residual where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, act: nn.Module) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = conv_norm(in_channels, hidden, 1) if expansion > 1 else None
        self.depthwise = conv_norm(hidden, hidden, 3, stride, groups=hidden)
        self.project = conv_norm(hidden, out_channels, 1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        hidden = x if self.expand is None else self.act(self.expand(x))
        # No activation after the projection: the narrow end of the block stays linear.
        hidden = self.project(self.act(self.depthwise(hidden)))
        return x + hidden if self.residual else hidden


class MobileNet(nn.Module):
    """Stem, inverted-residual blocks, last convolution, pooling and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        # One object for all blocks, as in many published implementations. `named_modules()` lists
        # it once, as `act`, but it is called many times, and exporters name each call after the
        # block (`blocks.1.act`): paths alone cannot match the two sides.
        self.act = nn.ReLU6(inplace=True)
        self.stem = conv_norm(3, STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.ModuleList()
        channels = STEM_CHANNELS
        for expansion, width, count, first_stride in STAGES:
            for i in range(count):
                stride = first_stride if i == 0 else 1
                self.blocks.append(InvertedResidual(channels, width, stride, expansion, self.act))
                channels = width
        self.last = conv_norm(channels, LAST_CHANNELS, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(LAST_CHANNELS, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) -> logits (B, CLASSES)."""
        x = self.act(self.stem(image))
        for block in self.blocks:
            x = block(x)
        x = self.pool(self.act(self.last(x))).flatten(1)
        return self.classifier(self.dropout(x))


def build_model() -> MobileNet:
    """The network with fresh weights; `make_data.py` writes a checkpoint for it."""
    return MobileNet()
