"""Healthy models at the edges of floating point, where a noise floor is easily wrong.

Each is one or a few operations with inputs that hurt: tails, cancellation, ties, long sums, nearly constant data, single
numbers, half precision. Nothing is wrong with any of them, and every answer but agreement is a false alarm.
"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any.

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = tuple[Tensor, ...]


class Part(nn.Module):
    """A function of the input, with modules that it may use: ``f(modules, *inputs)``."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.parts, *inputs)


@dataclass(frozen=True)
class Nasty:
    """A model: ``build()`` gives it in eval mode, with its inputs.

    Attributes:
        about: what is nasty about it.
        exporters: that can export it.
        half: it is in float16 throughout.
    """

    name: str
    about: str
    make: Callable[[], tuple[nn.Module, Inputs]]
    exporters: tuple[str, ...] = ("dynamo", "torchscript")
    half: bool = False

    def build(self) -> tuple[nn.Module, Inputs]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            model, inputs = self.make()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
        if self.half:
            model, inputs = model.half(), tuple(x.half() if x.is_floating_point() else x for x in inputs)
        return model.eval(), inputs


NASTY: dict[str, Nasty] = {}


def _add(name: str, about: str, make: Callable[[], tuple[nn.Module, Inputs]], **settings: Any) -> None:
    NASTY[name] = Nasty(name, about, make, **settings)


def _behind(function: Callable[[Tensor], Any], *, width: int = 16, rows: int = 4) -> tuple[nn.Module, Inputs]:
    """A function of what a linear layer puts out: its input is not round."""
    return Part(lambda parts, x: function(parts[0](x)), nn.Linear(width, width)), (torch.randn(rows, width),)


def _of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> tuple[nn.Module, Inputs]:
    return Part(lambda parts, *inputs: function(*inputs)), tuple(torch.randn(shape) for shape in shapes)


def _then(function: Callable[[Tensor], Tensor], module: nn.Module, *shape: int) -> tuple[nn.Module, Inputs]:
    """A module behind a function of the input."""
    return nn.Sequential(Part(lambda parts, x: function(x)), module), (torch.randn(shape),)


def _activation(shift: float, scale: float, module: nn.Module) -> Callable[[], tuple[nn.Module, Inputs]]:
    def make() -> tuple[nn.Module, Inputs]:
        moved = Part(lambda parts, x: x * scale + shift)
        return nn.Sequential(nn.Linear(16, 16), moved, module), (torch.randn(4, 16),)

    return make


# -- activations in their tails, and near zero ------------------------------------------------------------------------

_add("sigmoid, saturated", "nearly 0: 1e-26", lambda: _behind(lambda x: torch.sigmoid(x * 20 - 60)))
_add("sigmoid, tail", "6e-6, beside values of 1 in the same kernel", _activation(-12, 0.1, nn.Sigmoid()))
_add("silu, tail", "-15 * 3e-7", _activation(-15, 1, nn.SiLU()))
_add("gelu, tail", "a difference of nearly equal numbers", _activation(-5, 0.2, nn.GELU()))
_add("gelu tanh, tail", "1 + tanh cancels", _activation(-5, 0.2, nn.GELU(approximate="tanh")))
_add("mish, tail", "tanh of a logarithm near 1", _activation(-12, 0.2, nn.Mish()))
_add("hardswish, edge", "zero from -3 on", _activation(-3, 1e-3, nn.Hardswish()))
_add("elu near zero", "exp(x) - 1 of -1e-4", lambda: _then(lambda x: -x.abs() * 1e-4, nn.ELU(), 4, 16))
_add("celu and selu near zero", "the same", lambda: _of(lambda x: (F.celu(x * 1e-4), F.selu(x * 1e-4)), (4, 16)))
_add("softplus, tails", "log(1 + exp(x)) at both ends", lambda: _of(lambda x: F.softplus(x * 30), (4, 16)))
_add("logsigmoid", "log of a sigmoid", lambda: _of(lambda x: F.logsigmoid(x), (4, 16)))
_add(
    "tanh and erf near zero",
    "as small as their argument",
    lambda: _of(lambda x: (torch.tanh(x * 1e-5), torch.erf(x * 1e-5)), (4, 16)),
)
_add(
    "expm1 near zero",
    "no such operator in ONNX: exp and minus",
    lambda: _of(lambda x: torch.expm1(x * 1e-4), (4, 16)),
    exporters=("dynamo",),
)
_add(
    "log1p near zero",
    "no such operator in ONNX: plus and log",
    lambda: _of(lambda x: torch.log1p(x.abs() * 1e-4), (4, 16)),
)
_add(
    "acosh near one",
    "the root of a difference",
    lambda: _of(lambda x: torch.acosh(1 + x.abs() * 1e-4), (4, 16)),
    exporters=("dynamo",),
)
_add(
    "atanh and asin near the edge",
    "steep",
    lambda: _of(lambda x: (torch.atanh(x.tanh()), torch.asin(x.sin())), (4, 16)),
    exporters=("dynamo",),
)
_add("sine of a large number", "a turn is 6 of 10,000", lambda: _of(lambda x: torch.sin(x * 1e4), (4, 16)))
_add(
    "exponential of a large number", "rounding of the argument, times 20", lambda: _behind(lambda x: torch.exp(x * 20))
)
_add("power", "exp and log inside", lambda: _of(lambda x: x.abs() ** 2.37, (4, 16)))
_add("dead relu", "zeros all the way", lambda: _behind(lambda x: F.relu(x - 50) @ torch.ones(16, 4)))
_add("half dead relu", "exact zeros on one side are zeros on the other", lambda: _behind(lambda x: F.relu(x).sqrt()))

# -- normalisations ---------------------------------------------------------------------------------------------------

_add(
    "layer norm, constant",
    "variance 0: the result is rounding",
    lambda: _then(lambda x: x * 0 + 3.3333, nn.LayerNorm(16), 4, 16),
)
_add("layer norm, nearly constant", "100 plus 0.01", lambda: _then(lambda x: x * 1e-2 + 100, nn.LayerNorm(16), 4, 16))
_add(
    "group norm, nearly constant",
    "100 plus 0.01",
    lambda: _then(lambda x: x * 1e-2 + 100, nn.GroupNorm(2, 8), 2, 8, 6, 6),
)
_add(
    "instance norm, nearly constant",
    "100 plus 0.01",
    lambda: _then(lambda x: x * 1e-2 + 100, nn.InstanceNorm2d(8, affine=True), 2, 8, 6, 6),
)
_add(
    "layer norm, tiny",
    "1e-30: eps is all of the denominator",
    lambda: _then(lambda x: x * 1e-30, nn.LayerNorm(16), 4, 16),
)
_add(
    "batch norm, folded",
    "weights are scaled before they are summed",
    lambda: (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (torch.randn(2, 3, 8, 8),)),
)
_add("normalize", "a long norm", lambda: _of(lambda x: F.normalize(x, dim=1), (4, 1000)))


class _Products(nn.Module):
    """Many heads, each with terms of both signs and of one sign."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(4))

    def forward(self, x: Tensor, positive: Tensor) -> tuple[Tensor, ...]:
        found = [head(x) for head in self.heads]
        return *found, *(F.linear(positive, head.weight.abs()) for head in self.heads)


class _Rms(nn.Module):
    """As LLaMA has it: in float32 whatever comes in."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


_add(
    "rms norm",
    "casts to float32 inside",
    lambda: (nn.Sequential(nn.Linear(16, 16), _Rms(16), nn.Linear(16, 16), _Rms(16)), (torch.randn(4, 16),)),
)

# -- sums, means, cancellation ----------------------------------------------------------------------------------------

_add("sum of 1e5", "depends on the order", lambda: _of(lambda x: x.sum(1), (4, 100000)))
_add("mean of 1e5", "the same, near zero", lambda: _of(lambda x: x.mean(1), (4, 100000)))
_add(
    "mean of centred data",
    "nothing but rounding",
    lambda: _of(lambda x: (x - x.mean(1, keepdim=True)).mean(1), (4, 1000)),
)
_add("cumulative sum", "passes near zero", lambda: _of(lambda x: x.cumsum(1), (4, 10000)))
_add("std, nearly constant", "30 plus 0.01", lambda: _of(lambda x: (x * 1e-2 + 30).std(1), (4, 1000)))
_add("var, nearly constant", "30 plus 0.001", lambda: _of(lambda x: (x * 1e-3 + 30).var(1), (4, 1000)))
_add(
    "residual sum near zero",
    "all but 1e-5 cancels",
    lambda: (Part(lambda parts, x: parts[0](x) - (parts[0](x) + 1e-5 * x), nn.Linear(16, 16)), (torch.randn(4, 16),)),
)
_add("residual sum of exact opposites", "0", lambda: _behind(lambda x: x + x * -1))
_add(
    "long product",
    "512 factors to a single number",
    lambda: (nn.Sequential(nn.Linear(512, 1), nn.Tanh(), nn.Linear(1, 1), nn.Sigmoid()), (torch.randn(1, 512),)),
)
for _width in (4096, 200_000):
    _add(
        f"sum of {_width} products",
        "one number of each: what rounding did is luck, and ONNX Runtime adds in another order",
        lambda width=_width: (_Products(width), (torch.randn(1, width), torch.rand(1, width))),
    )
_add("single number, cancelled", "one element, all luck", lambda: _of(lambda x: (x - x.mean()).sum(), (1, 7)))
_add("matrix products in a row", "rounding grows", lambda: _of(lambda x: x @ x.transpose(1, 2) @ x, (2, 30, 16)))
_add(
    "einsum",
    "several ways to sum",
    lambda: (
        Part(lambda parts, x: torch.einsum("bij,bkj->bik", parts[0](x), x), nn.Linear(16, 16)),
        (torch.randn(2, 30, 16),),
    ),
)
_add(
    "cosine similarity",
    "an exporter multiplies first and divides then: no product of the graph is PyTorch's",
    lambda: (
        Part(lambda parts, x: F.cosine_similarity(parts[0](x), parts[1](x), -1), nn.Linear(16, 16), nn.Linear(16, 16)),
        (torch.randn(8, 16),),
    ),
)
_add(
    "einsum alone",
    "no stage at all: PyTorch's bmm is not in the graph, and only the output is compared",
    lambda: _of(lambda x: torch.einsum("bij,bkj->bik", x, x), (2, 30, 16)),
)
_add(
    "distances of near points",
    "|a|² + |b|² - 2ab",
    lambda: _of(lambda x: torch.cdist(x, x + 1e-3), (40, 16)),
    exporters=("torchscript",),
)


def _growing() -> tuple[nn.Module, Inputs]:
    layers = [nn.Sequential(nn.Linear(64, 64)) for _ in range(6)]
    for layer in layers:
        layer[0].weight.data.mul_(12)
    return nn.Sequential(*layers), (torch.randn(4, 64),)


_add("chain that grows", "each stage about x8", _growing)
_add(
    "denormal numbers",
    "1e-41",
    lambda: (Part(lambda parts, x: parts[0](x * 1e-38) * 1e-3, nn.Linear(16, 16, bias=False)), (torch.randn(4, 16),)),
)

# -- softmax ----------------------------------------------------------------------------------------------------------

_add(
    "softmax, sharp", "logits of 300: their rounding is a factor", lambda: _behind(lambda x: torch.softmax(x * 300, -1))
)
_add("log softmax, sharp", "the same", lambda: _behind(lambda x: torch.log_softmax(x * 300, -1)))
_add("logsumexp", "the same", lambda: _behind(lambda x: torch.logsumexp(x * 30, -1)))
_add("softmax, flat", "logits of 1e-6", lambda: _behind(lambda x: torch.softmax(x * 1e-6, -1)))


def _masked() -> tuple[nn.Module, Inputs]:
    model = Part(lambda parts, x, mask: parts[0](x).masked_fill(mask, float("-inf")).softmax(-1), nn.Linear(8, 8))
    return model, (torch.randn(2, 8), torch.rand(2, 8) > 0.5)


_add("softmax, masked by a boolean input", "-inf before, exact zeros behind", _masked)

# -- resize, pooling, sampling ----------------------------------------------------------------------------------------


def _resized(**settings: Any) -> Callable[[], tuple[nn.Module, Inputs]]:
    def make() -> tuple[nn.Module, Inputs]:
        model = Part(lambda parts, x: F.interpolate(parts[0](x), **settings), nn.Conv2d(3, 4, 3))
        return model, (torch.randn(1, 3, 16, 14),)

    return make


for _mode in ("nearest", "bilinear", "bicubic"):
    _add(f"resize {_mode}, odd size", "steps are no fractions of 2", _resized(size=(37, 23), mode=_mode))
    _add(f"resize {_mode}, odd factor", "1.7", _resized(scale_factor=1.7, mode=_mode))
_add("resize, aligned corners", "other steps", _resized(size=(137, 93), mode="bilinear", align_corners=True))
_add(
    "resize, large",
    "coordinates of 700 lose bits",
    lambda: _of(lambda x: F.interpolate(x, size=(700, 701), mode="bilinear"), (1, 2, 300, 301)),
)


def _pools(parts: nn.ModuleList, x: Tensor) -> Inputs:
    return (
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        F.max_pool2d(x, 3, 2, 1),
        F.adaptive_avg_pool2d(x, 1),
    )


_add("pooling", "windows over the edge", lambda: (Part(_pools), (torch.randn(1, 3, 16, 14),)))
_add(
    "grid sample",
    "coordinates are computed",
    lambda: _of(
        lambda x: F.grid_sample(
            x, F.affine_grid(torch.eye(2, 3)[None] * 0.7, [1, 3, 9, 9], align_corners=False), align_corners=False
        ),
        (1, 3, 16, 14),
    ),
)
_add(
    "transposed convolution",
    "sums of unlike length",
    lambda: (nn.ConvTranspose2d(8, 4, 3, 2, 1, 1), (torch.randn(1, 8, 9, 9),)),
)

# -- order, integers, steps -------------------------------------------------------------------------------------------

_add("topk with ties", "zeros of a relu", lambda: _of(lambda x: F.relu(x).topk(12, dim=-1).values, (4, 16)))
_add("sort with ties", "zeros of a relu", lambda: _of(lambda x: F.relu(x).sort(dim=-1).values, (4, 16)))
_add(
    "integer input",
    "embedding",
    lambda: (nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 4)), (torch.randint(0, 20, (2, 5)),)),
)
_add(
    "integer arithmetic",
    "division and remainder",
    lambda: (Part(lambda parts, i: (i // 3, i % 3, i * i)), (torch.randint(0, 40, (2, 50)),)),
)
_add("comparison", "booleans", lambda: _of(lambda x: ((x > 0) & (x < 1), torch.where(x > 0, x, -x)), (4, 16)))
_add(
    "in-place operations",
    "on a view too",
    lambda: (
        Part(
            lambda parts, x: parts[1](parts[0](x)).add_(1).mul_(x[:, :1]),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        ),
        (torch.randn(2, 3, 8, 8),),
    ),
)
_add("cast inside", "float16 and back", lambda: _of(lambda x: x.half().float() * 2, (4, 16)))
_add(
    "float64",
    "wider than the floor's float32",
    lambda: (nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).double(), (torch.randn(4, 32).double(),)),
)

# -- recurrences and attention ----------------------------------------------------------------------------------------

_add(
    "lstm, saturated",
    "gates at 0 and 1",
    lambda: (Part(lambda parts, x: parts[0](x * 30)[0], nn.LSTM(8, 16, batch_first=True)), (torch.randn(2, 20, 8),)),
)
_add(
    "gru, two ways",
    "two layers",
    lambda: (
        Part(lambda parts, x: parts[0](x)[0], nn.GRU(8, 16, 2, batch_first=True, bidirectional=True)),
        (torch.randn(2, 20, 8),),
    ),
)
_add(
    "attention, one token",
    "softmax of a single number",
    lambda: _of(lambda x: F.scaled_dot_product_attention(x, x, x), (1, 2, 1, 8)),
)

# -- half precision ---------------------------------------------------------------------------------------------------

_add(
    "half: layers",
    "linear, norm, gelu",
    lambda: (nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8)), (torch.randn(4, 32),)),
    half=True,
)
_add(
    "half: convolutions",
    "batch norm folded",
    lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        (torch.randn(1, 3, 12, 12),),
    ),
    half=True,
)
_add(
    "half: norm by hand",
    "each step rounds",
    lambda: _of(lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-3).sqrt(), (4, 32)),
    half=True,
)
_add(
    "half: rms norm",
    "in float32 inside",
    lambda: (nn.Sequential(nn.Linear(16, 16), _Rms(16), nn.Linear(16, 16)), (torch.randn(4, 16),)),
    half=True,
)
_add("half: long sum", "4096 numbers", lambda: _of(lambda x: x.sum(-1), (4, 4096)), half=True)
_add("half: softmax", "small parts", lambda: _behind(lambda x: torch.softmax(x * 4, -1)), half=True)
_add(
    "half: encoder layer",
    "attention",
    lambda: (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (torch.randn(2, 7, 32),)),
    exporters=("dynamo",),
    half=True,
)

# -- faults of exporters, nasty but not healthy -----------------------------------------------------------------------

FAULTY: dict[str, Nasty] = {
    name: Nasty(name, about, make, exporters)
    for name, about, make, exporters in (
        (
            "logsigmoid, tails",
            "exported as the logarithm of a sigmoid, which is 0 from -104 on: -inf, and wrong by 1e-3 from -12 on",
            lambda: _of(lambda x: F.logsigmoid(x * 60), (4, 16)),
            ("dynamo", "torchscript"),
        ),
        (
            "integer division of negative numbers",
            "exported as Div, which rounds towards zero, where // rounds down",
            lambda: (Part(lambda parts, i: i // 3), (torch.randint(-20, 20, (2, 50)),)),
            ("torchscript",),
        ),
    )
}
"""What looks like a false alarm and is none."""


def report_on(nasty: Nasty, exporter: str) -> Any:
    """The tool's report on a model as exported, without a tolerance."""
    from bisect_tool import ExportSettings, LoadedCase, Options, bisect, make_tolerance

    model, inputs = nasty.build()
    settings = ExportSettings(exporter=exporter)  # type: ignore[arg-type]
    return bisect(
        LoadedCase(nasty.name, model, inputs, {}), Options(make_tolerance(None, None, None), export=settings, threads=1)
    )


def cases(names: Iterable[str] = ()) -> list[tuple[Nasty, str]]:
    """Every model with every exporter that can export it."""
    return [(NASTY[name], exporter) for name in names or NASTY for exporter in NASTY[name].exporters]
