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
