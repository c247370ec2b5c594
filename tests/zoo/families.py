"""Small but realistic models of many kinds, with frozen weights whose activations stay alive; plain torch, no downloads."""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any.

from __future__ import annotations

import functools
import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPORTERS = ("dynamo", "torchscript")


@dataclass(frozen=True)
class Family:
    """A kind of model: ``build()`` gives it in eval mode, ``inputs(seed)`` its positional arguments."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]


def _awake(model: nn.Module, seed: int) -> nn.Module:
    """Weights from a seed that keep the scale of activations, and normalisations that do something."""
    source = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=source) * deviation + mean)

    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            kind = name.rsplit(".", 1)[-1]
            if not tensor.is_floating_point() or kind in ("cosine", "sine"):
                continue
            if kind == "running_var":
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
            elif kind == "running_mean":
                normal(tensor, 0.1, 0.2)
            elif kind == "scale":
                normal(tensor, 0.5, 0.2)
            elif tensor.ndim > 1:
                gain = 1.0 if "emb" in name else math.sqrt(1.6 / (tensor.numel() // tensor.shape[0]))
                normal(tensor, 0.0, gain)
            elif kind == "weight":
                # Of normalisations and PReLU: nothing else has a vector as its weight.
                normal(tensor, 0.3 if tensor.numel() == 1 else 1.0, 0.15)
            else:
                normal(tensor, 0.0, 0.1)
    return model.eval()


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _integers(seed: int, limit: int, *shape: int) -> Tensor:
    return torch.randint(0, limit, shape, generator=torch.Generator().manual_seed(seed))


# -- convolutional networks -------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        # Several BasicBlocks share one in-place module, as torchvision's do.
        self.relu = nn.ReLU(inplace=True)
        self.down: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.down = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.down is None else self.down(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += kept
        return self.relu(y)


class Residual(nn.Module):
    """A residual CNN; a BatchNorm on the input and one before the pooling stay BatchNorms in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, eps=1e-3)
        self.conv = nn.Conv2d(3, 16, 5, 1, 2)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1))
        self.layer2 = BasicBlock(16, 32, 2)
        self.last = nn.BatchNorm2d(32)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 24)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.conv(self.norm(image)))))
        x = self.last(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.expand = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.expand(s))


class InvertedBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int, act: type[nn.Module], squeeze: bool):
        super().__init__()
        wide = inner * 3
        layers: list[nn.Module] = [nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide), act()]
        layers += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), act()]
        if squeeze:
            layers.append(SqueezeExcite(wide))
        layers += [nn.Conv2d(wide, outer, 1, bias=False), nn.BatchNorm2d(outer)]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class Inverted(nn.Module):
    """Inverted residuals with ReLU6, hard swish and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.blocks = nn.Sequential(
            InvertedBlock(16, 16, 1, nn.ReLU6, False),
            InvertedBlock(16, 24, 2, nn.ReLU6, True),
            InvertedBlock(24, 24, 1, nn.Hardswish, True),
        )
        self.head = nn.Sequential(nn.Conv2d(24, 64, 1), nn.Hardswish())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 20))

    def forward(self, image: Tensor) -> Tensor:
        # Reaching the bound of ReLU6 is what makes it one.
        x = self.head(self.blocks(2.5 * self.stem(image)))
        return self.classifier(x.mean([2, 3]))


def _double_conv(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, 1, 1),
        nn.BatchNorm2d(outer),
        nn.LeakyReLU(0.1),
        nn.Conv2d(outer, outer, 3, 1, 1),
        nn.LeakyReLU(0.1),
    )


class UNet(nn.Module):
    """A U-Net: average and max pooling, a transposed convolution, a bilinear resize, skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = _double_conv(3, 12)
        self.down2 = _double_conv(12, 24)
        self.bottom = _double_conv(24, 32)
        self.avg = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.max = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(32, 24, 2, 2)
        self.resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.mid = _double_conv(48, 12)
        self.top = _double_conv(24, 12)
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        a = self.down1(image)
        b = self.down2(self.avg(a))
        c = self.bottom(self.max(b))
        b = self.mid(torch.cat([self.up(c), b], 1))
        a = self.top(torch.cat([self.resize(b), a], 1))
        return torch.softmax(self.out(a), dim=1)


class Detector(nn.Module):
    """CenterPoint in small: points to pillars, scattered into a grid; a feature pyramid; heads in a dictionary."""

    def __init__(self, side: int = 24) -> None:
        super().__init__()
        self.side = side
        self.encode = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU())
        self.block1 = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(24, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.lateral1 = nn.Conv2d(24, 24, 1)
        self.lateral2 = nn.Conv2d(32, 24, 1)
        self.smooth = nn.Conv2d(24, 24, 3, 1, 1)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(24, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, width, 1))
                for name, width in (("heatmap", 3), ("box", 4), ("height", 1))
            }
        )

    def forward(self, points: Tensor, cells: Tensor) -> dict[str, Tensor]:
        # points: pillars × points × 6; cells: one different cell of the grid for each pillar
        pillars = self.encode(points).max(1).values
        canvas = torch.zeros(16, self.side * self.side, dtype=points.dtype)
        canvas = canvas.scatter(1, cells.unsqueeze(0).expand(16, -1), pillars.t())
        one = self.block1(canvas.view(1, 16, self.side, self.side))
        two = self.lateral2(self.block2(one))
        x = self.smooth(self.lateral1(one) + F.interpolate(two, scale_factor=2.0, mode="nearest"))
        out = {name: head(x) for name, head in self.heads.items()}
        out["heatmap"] = torch.sigmoid(out["heatmap"])
        out["box"] = torch.cat([torch.exp(0.2 * out["box"][:, :2]), out["box"][:, 2:]], 1)
        flat = x.flatten(2).transpose(1, 2)
        # Features at the first pillars' places, as a second stage reads them.
        places = torch.div(cells[:8], 4, rounding_mode="floor")
        out["features"] = flat.gather(1, places.view(1, -1, 1).expand(-1, -1, 24))
        return out


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.scale * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """LayerNorm over channels written by hand, as ConvNeXt has it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), ChannelNorm(16))
        self.stage1 = nn.Sequential(ConvNeXtBlock(16), ConvNeXtBlock(16))
        self.down = nn.Sequential(ChannelNorm(16), nn.Conv2d(16, 32, 2, 2))
        self.stage2 = ConvNeXtBlock(32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 20)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(image))))
        return self.head(self.norm(x.mean([-2, -1])))


# -- attention --------------------------------------------------------------------------------------------------------


class HandAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, by_hand: bool):
        super().__init__()
        self.by_hand = by_hand
        self.norm1 = nn.LayerNorm(width)
        self.attention: nn.Module = (
            HandAttention(width, 4) if by_hand else nn.MultiheadAttention(width, 4, batch_first=True)
        )
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.by_hand:
            y = self.attention(y, mask)
        else:
            y = self.attention(y, y, y, key_padding_mask=~mask, need_weights=False)[0]
        x = x + y
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """A transformer encoder with padding: one block's attention is PyTorch's module, the other's is written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(100, 32)
        self.pos_emb = nn.Parameter(torch.zeros(1, 16, 32))
        self.norm = nn.LayerNorm(32)
        self.block1 = EncoderBlock(32, False)
        self.block2 = EncoderBlock(32, True)
        self.pooler = nn.Linear(32, 32)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        keep = mask.to(torch.bool)
        x = self.norm(self.emb(tokens) + self.pos_emb)
        x = self.block2(self.block1(x, keep), keep)
        weights = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return x, F.normalize(torch.tanh(self.pooler(mean)), dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cosine + turned * sine


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = RMSNorm(width)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
        scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5) + mask
        y = torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), v)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """A Llama in small: rotary embeddings, RMSNorm in float32, SwiGLU, a causal mask."""

    def __init__(self, length: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 32)
        self.blocks = nn.ModuleList([DecoderBlock(32, 4) for _ in range(2)])
        self.norm = RMSNorm(32)
        self.head = nn.Linear(32, 80, bias=False)
        angles = torch.arange(length)[:, None] / (100.0 ** (torch.arange(0, 8, 2) / 8))[None]
        self.register_buffer("cosine", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sine", torch.cat([angles, angles], -1).sin())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        length = tokens.shape[1]
        mask = torch.full((length, length), -1e4).triu(1)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine, mask)
        return self.head(self.norm(x))


class ViT(nn.Module):
    """A vision transformer: patches, a class token, scaled_dot_product_attention, GELU by tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.cls_emb = nn.Parameter(torch.zeros(1, 1, 32))
        self.pos_emb = nn.Parameter(torch.zeros(1, 17, 32))
        self.norm1 = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.norm2 = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 32))
        self.norm3 = nn.LayerNorm(32)
        self.head = nn.Linear(32, 16)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_emb.expand(x.shape[0], -1, -1), x], 1) + self.pos_emb
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x)[:, 0])


# -- sequences --------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Audio features through a convolution, a bidirectional LSTM and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(20, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.lstm = nn.LSTM(24, 16, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(32, 24, batch_first=True)
        self.fc = nn.Linear(24, 12)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.norm(self.conv(features)))
        x, _ = self.lstm(x.transpose(1, 2))
        x, last = self.gru(x)
        return F.log_softmax(self.fc(x), -1), last


class SpeechBlock(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.GroupNorm(4, 2 * width)
        self.glu = nn.GLU(1)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.glu(self.norm(self.conv(x))))


class Speech(nn.Module):
    """One-dimensional convolutions with group and instance norm, ELU, softplus, pooled statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad1d(4)
        self.front = nn.Conv1d(1, 16, 9, stride=4)
        self.norm = nn.InstanceNorm1d(16, affine=True)
        self.act = nn.ELU()
        self.blocks = nn.Sequential(SpeechBlock(16, 1), SpeechBlock(16, 2))
        self.pool = nn.AvgPool1d(3, 2, 1)
        self.attend = nn.Conv1d(16, 16, 1)
        self.fc = nn.Linear(32, 16)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.act(self.norm(self.front(self.pad(wave.unsqueeze(1)))))
        x = self.pool(self.blocks(x))
        w = torch.softmax(self.attend(x), dim=2)
        mean = (w * x).sum(2)
        deviation = torch.sqrt(((w * x * x).sum(2) - mean * mean).clamp(min=1e-4))
        return F.softplus(self.fc(torch.cat([mean, deviation], 1)))


# -- glue -------------------------------------------------------------------------------------------------------------


class EdgeConv(nn.Module):
    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * inner, outer), nn.LeakyReLU(0.2), nn.Linear(outer, outer))

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        other = x[near]
        own = x.unsqueeze(1).expand(-1, near.shape[1], -1)
        return self.mlp(torch.cat([own, other - own], -1)).amax(1)


class Points(nn.Module):
    """A network of points: nearest neighbours by topk, gather, maxima over edges, sums scattered to nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.edge1 = EdgeConv(3, 24)
        self.edge2 = EdgeConv(24, 32)
        self.norm = nn.LayerNorm(32)
        self.message = nn.Linear(32, 24)
        self.update = nn.Linear(56, 32)
        self.head = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, cloud: Tensor, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        squares = (cloud * cloud).sum(1)
        distances = squares[:, None] + squares[None, :] - 2 * cloud @ cloud.t()
        near = torch.topk(distances, 6, dim=1, largest=False).indices
        x = self.norm(self.edge2(F.relu(self.edge1(cloud, near)), near))
        sent = torch.tanh(self.message(torch.index_select(x, 0, sources)))
        got = torch.zeros(x.shape[0], 24).scatter_add(0, targets.unsqueeze(1).expand(-1, 24), sent)
        x = F.relu(self.update(torch.cat([x, got], 1)))
        best, _ = torch.topk(x[:, 0], 8)
        return self.head(torch.cat([x.mean(0), x.amax(0)]).unsqueeze(0)), best


class Mixer(nn.Module):
    """Functional code in one module: einsum, a running sum, where, norms and linear maps without modules."""

    def __init__(self) -> None:
        super().__init__()

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape))

        self.patch = weight(32, 48)
        self.patch_bias = weight(32)
        self.tokens1, self.tokens2 = weight(48, 16), weight(16, 48)
        self.channels1, self.channels2 = weight(64, 32), weight(32, 64)
        self.channels_bias = weight(64)
        self.norm = nn.ParameterDict({"weight": nn.Parameter(torch.ones(32)), "bias": weight(32)})
        self.decay = weight(32)
        self.out = weight(10, 32)

    def forward(self, image: Tensor) -> Tensor:
        batch = image.shape[0]
        x = image.reshape(batch, 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(batch, 16, 48)
        x = F.linear(x, self.patch, self.patch_bias)
        y = F.layer_norm(x, (32,), self.norm["weight"], self.norm["bias"])
        y = torch.einsum("ts,bsc->btc", self.tokens1, y)
        x = x + torch.einsum("st,btc->bsc", self.tokens2, F.gelu(y))
        y = F.layer_norm(x, (32,))
        y = F.gelu(F.linear(y, self.channels1, self.channels_bias))
        x = x + F.linear(y, self.channels2)
        y = torch.cumsum(x * torch.sigmoid(self.decay), 1) / 4
        x = torch.where(y > 0, y, 0.3 * x)
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        return F.log_softmax(F.linear(x.abs().mean(1), self.out), -1)


class SharedStep(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        y = self.norm(x + seen)
        return x + torch.sigmoid(self.gate(y)) * self.act(self.fc(y))


class Shared(nn.Module):
    """One module called four times, and a weight that serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(40, 32)
        self.step = SharedStep(32)
        self.middle = nn.Linear(32, 32)
        self.outer = nn.Linear(32, 40)
        self.outer.weight = nn.Parameter(self.inner.weight.t())

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.relu(self.inner(x))
        x = self.step(self.step(seen, seen), seen)
        x = self.step(self.step(self.middle(x), seen), seen)
        return self.outer(x)


def _family(
    name: str, model: Callable[[], nn.Module], seed: int, inputs: Callable[[int], tuple[Tensor, ...]]
) -> Family:
    return Family(name, lambda: _awake(model(), seed), inputs)


def _images(side: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda seed: (_noise(seed, 1, 3, side, side),)


def _pillars(seed: int) -> tuple[Tensor, ...]:
    cells = torch.randperm(24 * 24, generator=torch.Generator().manual_seed(seed))[:120]
    return _noise(seed, 120, 5, 6), cells


def _text(seed: int) -> tuple[Tensor, ...]:
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 11:] = 0
    return _integers(seed, 100, 2, 16), mask


def _graph(seed: int) -> tuple[Tensor, ...]:
    return _noise(seed, 48, 3), _integers(seed + 1, 48, 150), _integers(seed + 2, 48, 150)


FAMILIES = {
    family.name: family
    for family in (
        _family("residual", Residual, 1, _images(32)),
        _family("inverted", Inverted, 2, _images(32)),
        _family("unet", UNet, 3, _images(32)),
        _family("detector", Detector, 4, _pillars),
        _family("convnext", ConvNeXt, 5, _images(32)),
        _family("encoder", Encoder, 6, _text),
        _family("decoder", Decoder, 7, lambda seed: (_integers(seed, 80, 1, 12),)),
        _family("vit", ViT, 8, _images(16)),
        _family("recurrent", Recurrent, 9, lambda seed: (_noise(seed, 1, 20, 30),)),
        _family("speech", Speech, 10, lambda seed: (_noise(seed, 2, 400),)),
        _family("points", Points, 11, _graph),
        _family("mixer", Mixer, 12, _images(16)),
        _family("shared", Shared, 13, lambda seed: (_noise(seed, 4, 40),)),
    )
}


@functools.cache
def _cache_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="zoo-"))


@functools.cache
def built(name: str) -> nn.Module:
    """A family's model, once in a process."""
    return FAMILIES[name].build()


def built_with(name: str, seed: int) -> nn.Module:
    """A family's model with other weights, not cached: what is equal in both of them is so by structure, not by chance."""
    return _awake(FAMILIES[name].build(), seed)


@functools.cache
def exported(name: str, exporter: str, folder: Path | None = None) -> Path:
    """The ONNX file that an exporter makes of a family's model, with a name for every node; once in a process.

    Args:
        folder: where the files are kept from one process to the next; else in a temporary one.
    """
    path = (folder or _cache_folder()) / f"{name}-{exporter}.onnx"
    if not path.exists():
        export_to(path, built(name), name, exporter)
    return path


def export_to(path: Path, model: nn.Module, name: str, exporter: str) -> None:
    """Exports a family's model, whatever its weights, with a name for every node."""
    family = FAMILIES[name]
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            program = torch.onnx.export(model, family.inputs(0), dynamo=True, verbose=False)
            assert program is not None
            program.save(str(partial), external_data=False)
        else:
            names = list(FAMILIES[name].build().forward.__code__.co_varnames[1 : 1 + len(family.inputs(0))])
            torch.onnx.export(model, family.inputs(0), str(partial), dynamo=False, input_names=names)
    graph = onnx.load(partial)
    name_nodes(graph)
    onnx.save(graph, path)
    partial.unlink()


def name_nodes(model: onnx.ModelProto) -> None:
    """Gives nodes without a name one, and each a name of its own: planted faults are told by names."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)
