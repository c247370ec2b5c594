"""Mismatches of today's exporters and runtime that nobody planted, each between healthy layers.

A case is a network of at least ten layers; one module in the middle, ``wild``, does what the exporter or the runtime gets
wrong on these inputs. Most have a report in a tracker; ``issue`` is its number, or ``None`` where a search found none.
The last ones are no faults: what differs there is allowed to, or stays within rounding.
"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any.

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = tuple[Tensor, ...]


class Wild(nn.Module):
    """A function between the healthy layers."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class Image(nn.Module):
    """Convolutions before and behind; ``wild`` sees (2, 8, 8, 8) and hands on any map of ``channels``."""

    def __init__(self, wild: nn.Module, channels: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.GELU()
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.group = nn.GroupNorm(2, 8)
        self.wild = wild
        self.neck = nn.Conv2d(channels, 8, 1)
        self.norm2 = nn.GroupNorm(4, 8)
        self.act2 = nn.SiLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.wild(self.group(self.mix(x)), *others)
        x = self.act2(self.norm2(self.neck(x)))
        return self.head(self.pool(x).flatten(1))


class Tokens(nn.Module):
    """Linear layers before and behind; ``wild`` sees (2, 6, 8) and hands on anything of ``width``."""

    def __init__(self, wild: nn.Module, width: int = 8):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.act = nn.GELU()
        self.up = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8)
        self.wild = wild
        self.down = nn.Linear(width, 8)
        self.norm3 = nn.LayerNorm(8)
        self.act2 = nn.SiLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        x = self.norm2(self.up(self.act(self.norm(self.embed(x)))))
        x = self.wild(x, *others)
        return self.head(self.act2(self.norm3(self.down(x))))


@dataclass(frozen=True)
class Case:
    """A network in which one module is got wrong, or seems to be.

    Attributes:
        about: what is wrong, or why nothing is.
        issue: where it is reported, ``owner/repository#number``; ``None``: no report was found.
        exporters: whose export shows it.
        make: the network and its inputs.
        stage: the origin's path; what begins with it counts too, as ``wild`` for ``wild/sort#0``.
        codes: causes that fit; none: the right answer is agreement.
    """

    name: str
    about: str
    issue: str | None
    exporters: tuple[str, ...]
    make: Callable[[], tuple[nn.Module, Inputs]]
    stage: str = "wild"
    codes: tuple[str, ...] = ()

    def build(self) -> tuple[nn.Module, Inputs]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            model, inputs = self.make()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
        return model.eval(), inputs


CASES: dict[str, Case] = {}
BOTH = ("torchscript", "dynamo")
TS = ("torchscript",)
DYNAMO = ("dynamo",)


def _add(
    name: str,
    about: str,
    issue: str | None,
    exporters: tuple[str, ...],
    make: Callable[[], tuple[nn.Module, Inputs]],
    *codes: str,
    stage: str = "wild",
) -> None:
    CASES[name] = Case(name, about, issue, exporters, make, stage, codes)


def _image(function: Callable[..., Tensor], *others: Tensor, channels: int = 8) -> tuple[nn.Module, Inputs]:
    return Image(Wild(function), channels), (torch.randn(2, 3, 8, 8), *others)


def _tokens(function: Callable[..., Tensor], *others: Tensor, width: int = 8) -> tuple[nn.Module, Inputs]:
    return Tokens(Wild(function), width), (torch.randn(2, 6, 6), *others)


def _hole(x: Tensor) -> Tensor:
    """NaN at one place."""
    return torch.where(torch.arange(x.numel()).reshape(x.shape) == 17, float("nan"), x)


_TWICE = torch.tensor([0, 2, 0, 1, 2, 5])

# -- indices that come twice ------------------------------------------------------------------------------------------

_add(
    "index_put, accumulate",
    "of values for one place the last is written instead of their sum",
    "pytorch/pytorch#61034",
    TS,
    lambda: _tokens(lambda x, i: torch.zeros_like(x[0]).index_put((i,), x[0], accumulate=True)[None], _TWICE),
    *("BD101", "BD113"),
)
_add(
    "index_add, an index twice",
    "ScatterElements without a reduction",
    "pytorch/pytorch#111159",
    TS,
    lambda: _tokens(lambda x, i: torch.zeros_like(x).index_add(1, i, x), _TWICE),
    *("BD101", "BD113"),
)
_add(
    "scatter_reduce, mean",
    "no mean in ONNX: the last value is written",
    "onnx/onnx#5100",
    DYNAMO,
    lambda: _tokens(lambda x, i: x.scatter_reduce(1, i[None, :, None].expand(2, 6, 8), x.flip(1), "mean"), _TWICE),
    *("BD101", "BD113"),
)

# -- whole numbers ----------------------------------------------------------------------------------------------------

_add(
    "floor_divide of negative numbers",
    "ONNX's Div cuts off, PyTorch rounds down",
    "pytorch/pytorch#78442",
    TS,
    lambda: _tokens(lambda x: ((x * 8).int() // 3).float() / 8),
    "BD111",
)
_add(
    "right shift of negative numbers",
    "written as a division, which cuts off",
    "pytorch/pytorch#191014",
    TS,
    lambda: _tokens(lambda x: ((x * 8).int() >> 1).float() / 8),
    "BD111",
)
_add(
    "cumsum of int32",
    "PyTorch sums in int64, the graph in int32",
    "pytorch/pytorch#77842",
    TS,
    lambda: _tokens(lambda x: (x * 1e9).int().cumsum(1).float() / 1e9),
    *("BD107", "BD111"),
)
_add(
    "sum of large int64",
    "ReduceSum goes through floating numbers",
    None,
    BOTH,
    lambda: _tokens(
        lambda x, base: (((x * 100).long() + base).sum(1, keepdim=True) - base * 6).float() / 100, torch.tensor(2**60)
    ),
    *("BD107", "BD111", "BD501"),
)
_add(
    "power of int32",
    "Pow goes through floating numbers and does not wrap",
    None,
    BOTH,
    lambda: _tokens(lambda x: torch.pow((x * 20).int(), 9).float() / 1e9),
    *("BD107", "BD111", "BD501"),
)
_add(
    "division cut off, of large numbers",
    "the quotient passes through int64",
    None,
    TS,
    lambda: _tokens(lambda x: torch.div(x * 3e19, 0.7, rounding_mode="trunc") / 1e19),
    "BD107",
)

# -- arguments that get lost ------------------------------------------------------------------------------------------

_add(
    "avg_pool2d, divisor_override",
    "the argument has no counterpart in AveragePool, and is dropped",
    "pytorch/pytorch#105349",
    BOTH,
    lambda: _image(lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5)),
    "BD101",
)
_add(
    "softplus, threshold",
    "ONNX's Softplus has no threshold",
    "onnx/onnx#5226",
    TS,
    lambda: _image(lambda x: F.softplus(x, 1, 0.5)),
    "BD101",
)
_add(
    "pairwise_distance, eps",
    "eps is not added; the review of the pull request asks for it",
    "pytorch/pytorch#75278",
    TS,
    lambda: _tokens(lambda x: F.pairwise_distance(x[:, :, None], x[:, :, None], eps=0.1) * x),
    *("BD103", "BD101"),
)
_add(
    "roll by more than the axis",
    "the slices end where the axis does; mended for the other exporter",
    "microsoft/onnxscript#3024",
    TS,
    lambda: _tokens(lambda x: x.roll((-2, 13), (1, 2))),
    "BD101",
)
_add(
    "antialiased resize by a factor",
    "Resize is given the size, whose ratio is another factor",
    "microsoft/onnxscript#2916",
    DYNAMO,
    lambda: _image(lambda x: F.interpolate(x, scale_factor=0.6, mode="bilinear", antialias=True)),
    "BD101",
)
_add(
    "antialiased resize, align_corners",
    "ONNX's antialiasing does nothing to a larger image",
    "microsoft/onnxscript#2916",
    DYNAMO,
    lambda: _image(lambda x: F.interpolate(x, (13, 20), mode="bilinear", antialias=True, align_corners=True)),
    "BD102",
)

# -- writes in place --------------------------------------------------------------------------------------------------


def _through_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    view = y.view(2, 3, 16)
    view.masked_fill_(view > 1, 0.0)
    return y


def _through_diagonal(x: Tensor) -> Tensor:
    y = x.clone()
    y.diagonal(0, 1, 2).fill_(3.0)
    return y


# The module's value is nowhere in the graph: the fault shows at the stage that reads it, and the cause names the module.
_add(
    "masked_fill_ through a view",
    "the write is left out",
    "pytorch/pytorch#95050",
    TS,
    lambda: _tokens(_through_a_view),
    "BD103",
    stage="down",
)
_add(
    "fill_ of a diagonal",
    "the write is left out",
    "pytorch/pytorch#95050",
    TS,
    lambda: _tokens(_through_diagonal),
    "BD103",
    stage="down",
)

# -- NaN and infinities -----------------------------------------------------------------------------------------------

_add(
    "amax of NaN",
    "ReduceMax passes over NaN, PyTorch hands it on",
    "microsoft/onnxruntime#10514",
    BOTH,
    lambda: _image(lambda x: x + _hole(x).amax((2, 3), keepdim=True)),
    *("BD501", "BD109"),
)
_add(
    "amax of NaN, then a number for it",
    "the same, and no NaN leaves the module",
    "microsoft/onnxruntime#10514",
    TS,
    lambda: _image(lambda x: _hole(x).amax((2, 3), keepdim=True).nan_to_num(9.0, 9.0, -9.0)),
    *("BD109", "BD501"),
)
_add(
    "topk of NaN",
    "TopK puts NaN elsewhere: ONNX says nothing about it",
    "onnx/onnx#4716",
    BOTH,
    lambda: _tokens(lambda x: _hole(x).topk(4, -1)[0].nan_to_num(9.0, 9.0, -9.0), width=4),
    *("BD501", "BD109"),
)
_add(
    "max_pool2d of NaN",
    "MaxPool passes over NaN, PyTorch hands it on",
    None,
    TS,
    lambda: _image(lambda x: F.max_pool2d(_hole(x), 2)),
    "BD109",
)
_add(
    "sign of NaN",
    "0 in PyTorch, NaN in ONNX Runtime",
    None,
    TS,
    lambda: _image(lambda x: torch.sign(_hole(x))),
    "BD109",
)
_add(
    "hardshrink of NaN",
    "written with comparisons, which NaN fails",
    None,
    TS,
    lambda: _image(lambda x: F.hardshrink(_hole(x), 0.3)),
    "BD109",
)
_add(
    "grid_sample at NaN",
    "GridSample takes a number for it, PyTorch gives NaN",
    None,
    TS,
    lambda: _image(
        lambda x, grid: F.grid_sample(x, _hole(grid), "bilinear", "zeros", False), torch.rand(2, 6, 5, 2) * 2 - 1
    ),
    "BD109",
)
_add(
    "lower clamp of infinity",
    "Clip without an upper bound gives the largest number for infinity",
    None,
    TS,
    lambda: _tokens(lambda x: F.normalize(x * float("inf"), p=1.0, dim=-1).nan_to_num(9.0, 9.0, -9.0)),
    "BD501",
)
_add(
    "attention, a row masked throughout",
    "PyTorch gives zeros, the exported softmax NaN",
    "microsoft/onnxscript#2479",
    TS,
    lambda: _tokens(
        lambda x, mask: F.scaled_dot_product_attention(x, x, x, mask),
        torch.zeros(6, 6).masked_fill(torch.arange(6)[:, None] == 2, -float("inf")),
    ),
    "BD114",
)
_add(
    "attention, a row masked throughout by truth values",
    "PyTorch gives zeros, the exported softmax equal weights",
    "microsoft/onnxscript#2479",
    DYNAMO,
    lambda: _tokens(
        lambda x, mask: F.scaled_dot_product_attention(*[x[:, None]] * 3, mask)[:, 0],
        torch.arange(6)[:, None].expand(6, 6) != 2,
    ),
    "BD114",
)
_add(
    "logaddexp of large numbers",
    "written as the logarithm of a sum of exponentials",
    None,
    DYNAMO,
    lambda: _tokens(lambda x: torch.logaddexp(x * 100, -x * 100) / 100),
    "BD109",
)
_add(
    "logsigmoid of large negative numbers",
    "written as the logarithm of a sigmoid that is 0",
    None,
    BOTH,
    lambda: _image(lambda x: F.logsigmoid(x * 60) / 60),
    "BD109",
)
_add(
    "baddbmm, beta 0",
    "what is multiplied by 0 may be infinite, and PyTorch ignores it",
    None,
    BOTH,
    lambda: _tokens(lambda x: torch.baddbmm(x * float("inf"), x[:, :, :6], x, beta=0)),
    *("BD104", "BD109"),
)

# -- no faults: the two sides differ, and may -------------------------------------------------------------------------

_add(
    "topk of ties, indices",
    "equal numbers have no order",
    "pytorch/pytorch#27542",
    BOTH,
    lambda: _tokens(lambda x: torch.round(x).topk(8, -1)[1].float()),
)
_add(
    "floor_divide by 0.1",
    "1 // 0.1 is 9 or 10, as rounding has it",
    None,
    BOTH,
    lambda: _tokens(lambda x: torch.floor_divide(torch.round(x * 10) / 10, 0.1)),
)
_add(
    "sigmoid far out",
    "0 instead of 2e-9 beside 1; closed as precision",
    "pytorch/pytorch#147508",
    BOTH,
    lambda: _tokens(lambda x: torch.sigmoid(x * 4 - 20) * 1e9),
)
_add(
    "group norm of large numbers",
    "the variance of numbers that are far from 0 cancels, on either side",
    None,
    BOTH,
    lambda: _image(lambda x: F.group_norm(x + 3e3, 2)),
)
