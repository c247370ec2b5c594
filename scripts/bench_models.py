"""The models of docs/performance.md: architectures with random weights, nothing downloaded.

Transformers come from their configurations; ResNet-50 and SECOND with an FPN neck are written out here from the
published architectures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a residual sum; the stride sits on the 3x3."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet50(nn.Module):
    """The classifier of 2015, with in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
            layer = nn.Sequential()
            for i in range(blocks):
                layer.append(Bottleneck(channels, width, 2 if i == 0 and number > 1 else 1))
                channels = 4 * width
            setattr(self, f"layer{number}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1000)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class SecondFPN(nn.Module):
    """SECOND's backbone (3, 5, 5 convolutions at 64, 128, 256 channels) and the FPN neck that joins its levels."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.necks = nn.ModuleList(), nn.ModuleList()
        channels = 64
        for layers, width, stride, up in ((3, 64, 2, 1), (5, 128, 2, 2), (5, 256, 2, 4)):
            block = nn.Sequential(*self._unit(nn.Conv2d(channels, width, 3, stride, 1, bias=False)))
            for _ in range(layers):
                block.extend(self._unit(nn.Conv2d(width, width, 3, 1, 1, bias=False)))
            self.blocks.append(block)
            self.necks.append(nn.Sequential(*self._unit(nn.ConvTranspose2d(width, 128, up, up, bias=False))))
            channels = width

    @staticmethod
    def _unit(conv: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
        return [conv, nn.BatchNorm2d(conv.out_channels, eps=1e-3), nn.ReLU(inplace=True)]

    def forward(self, canvas: Tensor) -> Tensor:
        """(B, 64, H, W) -> (B, 384, H / 2, W / 2)."""
        outputs = []
        for block, neck in zip(self.blocks, self.necks, strict=True):
            canvas = block(canvas)
            outputs.append(neck(canvas))
        return torch.cat(outputs, 1)


class Vit(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, tokens, hidden)."""
        return self.model(pixel_values=pixel_values, return_dict=True).last_hidden_state


class Text(nn.Module):
    def __init__(self, model: nn.Module, **settings: Any):
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, tokens) -> (B, tokens, hidden)."""
        return self.model(input_ids=input_ids, return_dict=True, **self.settings).last_hidden_state


def settle(model: nn.Module, sample: Tensor) -> nn.Module:
    """Gives BatchNorm statistics that fit the weights, so that activations neither vanish nor explode."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
    model.train()
    with torch.no_grad():
        model(sample)
    return model.eval()


def _resnet(shape: tuple[int, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return settle(ResNet50(), torch.randn(4, 3, 64, 64)), (torch.randn(*shape),)


def _second() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return settle(SecondFPN(), torch.randn(1, 64, 64, 64)), (torch.randn(1, 64, 512, 512),)


def _vit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import ViTConfig, ViTModel

    return Vit(ViTModel(ViTConfig())).eval(), (torch.randn(1, 3, 224, 224),)


def _bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import BertConfig, BertModel

    return Text(BertModel(BertConfig())).eval(), (torch.randint(0, 30000, (1, 128)),)


def _gpt2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    return Text(GPT2Model(config), use_cache=False).eval(), (torch.randint(0, 50000, (1, 256)),)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "resnet50": lambda: _resnet((1, 3, 224, 224)),
    "resnet50-8x512": lambda: _resnet((8, 3, 512, 512)),
    "vit-b16": _vit,
    "bert-base": _bert,
    "gpt2-medium": _gpt2,
    "second-fpn": _second,
}


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode and its positional inputs; the same every time."""
    torch.manual_seed(0)
    return MODELS[name]()
