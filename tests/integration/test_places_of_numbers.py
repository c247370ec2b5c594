"""Orders and choices among equal numbers: judged by the numbers that the places point at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_hand import EXPORTERS, exported, first_node, judged
from onnx import NodeProto, helper
from torch import Tensor, nn

from bisect_tool.backends.exporting import Exporter
from bisect_tool.records import Report


class Net(nn.Module):
    """A function of the input's scores, in halves so that many are equal."""

    def __init__(self, function: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.names, self.function = nn.Linear(16, 32), nn.Embedding(32, 4), function

    def forward(self, x: Tensor) -> object:
        """``[N, 16]`` to whatever the function makes of it."""
        return self.function(self, x)

    def tied(self, x: Tensor) -> Tensor:
        """Scores of which many are equal, ``[N, 32]``."""
        return torch.round(self.scores(x) * 2)


def mixture(net: Net, x: Tensor) -> object:
    """Experts that are chosen in no certain order, as gates do, and weighed."""
    weight, chosen = net.scores(x).softmax(-1).topk(6, sorted=False)
    return (net.names(chosen) * (weight / weight.sum(-1, keepdim=True)).unsqueeze(-1)).sum(1), weight, chosen


HEALTHY: dict[str, Callable[[Net, Tensor], object]] = {
    "whole numbers": lambda net, x: torch.sort((x * 3).long(), -1),
    "an order of an order": lambda net, x: (x * 3).long().argsort(-1).argsort(-1),
    "what is chosen": lambda net, x: torch.nn.functional.one_hot((x * 3).long().topk(4)[1], 16).sum(1),
    "zeros": lambda net, x: net.names(torch.relu(net.scores(x)).topk(24)[1]),
    "no certain order": mixture,
    "the first of several": lambda net, x: (net.tied(x).argmax(-1), net.tied(x).min(-1), x.argmin(0, keepdim=True)),
    "behind saturation": lambda net, x: (net.scores(x) * 80).sigmoid().argmax(-1),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", HEALTHY)
def test_equal_numbers_may_stand_in_any_order(name: str, exporter: Exporter, tmp_path: Path) -> None:
    module, inputs = Net(HEALTHY[name]).eval(), (torch.randn(9, 16, generator=torch.Generator().manual_seed(1)),)
    report = judged(module, inputs, exported(module, inputs, exporter, tmp_path), tmp_path)
    assert report.verdict.status == "agrees", report.verdict.summary
    assert not any("rounding grows" in line for line in report.verdict.summary), "an order is no growth"


def attribute(node: NodeProto, name: str, value: int) -> None:
    kept = [given for given in node.attribute if given.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def from_below(node: NodeProto) -> None:
    attribute(node, "largest", 0)


def last(node: NodeProto) -> None:
    attribute(node, "select_last_index", 1)


def least(node: NodeProto) -> None:
    node.op_type = "ArgMin"


Fault = tuple[Callable[[Net, Tensor], object], str, Callable[[NodeProto], None], str]
FAULTS: dict[str, Fault] = {
    "order": (lambda net, x: torch.sort(net.tied(x), -1, descending=True)[1], "TopK", from_below, "/sort#0"),
    "zeros": (lambda net, x: torch.relu(net.scores(x)).topk(20)[1], "TopK", from_below, "/topk#0"),
    "unsorted": (lambda net, x: net.scores(x).topk(6, sorted=False)[0], "TopK", from_below, "/topk#0"),
    "what reads it": (
        lambda net, x: net.names(net.tied(x).argsort(-1, descending=True)),
        "TopK",
        from_below,
        "/sort#0",
    ),
    "whole numbers": (lambda net, x: torch.topk((x * 3).long(), 4)[1], "TopK", from_below, "/topk#0"),
    "least": (lambda net, x: net.tied(x).argmax(-1), "ArgMax", least, "/argmax#0"),
    "clamped": (lambda net, x: (net.scores(x) * 8).clamp(-1, 1).argmax(-1), "ArgMax", least, "/argmax#0"),
    "last": (lambda net, x: net.tied(x).argmax(-1), "ArgMax", last, "/argmax#0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_another_order_is_no_matter_of_ties(name: str, tmp_path: Path) -> None:
    """By their count, and by their norm, places of many equal numbers in another order look like rounding."""
    function, kind, fault, stage = FAULTS[name]
    module, inputs = Net(function).eval(), (torch.randn(24, 16, generator=torch.Generator().manual_seed(1)),)
    # Both exporters write one operator; this one is faster.
    model = exported(module, inputs, "torchscript", tmp_path)
    healthy = judged(module, inputs, model, tmp_path)
    assert healthy.verdict.status == "agrees", healthy.verdict.summary
    fault(first_node(model, kind))
    report: Report = judged(module, inputs, model, tmp_path)
    assert report.verdict.status == "diverges"
    assert [origin.ref.stage for origin in report.verdict.origins] == [stage]
