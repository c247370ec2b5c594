"""The memory budget decides how much is held at once, and no number of the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Outcome, command

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.SiLU()

    def forward(self, x):
        return x + self.act(self.norm(self.conv(x)))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(16) for _ in range(4)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

def build_model():
    return Net()
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional net whose activations take some 1 MiB each, and its graph."""
    folder = tmp_path_factory.mktemp("budget")
    (folder / "model.py").write_text(MODEL)
    torch.manual_seed(0)
    torch.save(torch.randn(1, 3, 128, 128), folder / "x.pt")
    made = command(
        folder / "model.py", "--input", folder / "x.pt", "--keep-onnx", folder / "m.onnx", folder=folder / "made"
    )
    assert 0 == made.code, made.err
    return folder


def _judge(material: Path, budget: str, folder: Path, *more: str) -> Outcome:
    given = (material / "model.py", "--input", material / "x.pt", "--onnx", material / "m.onnx")
    options = ("--group", "blocks.*", "--format", "json", "--memory-budget", budget)
    return command(*given, *options, *more, folder=folder)


def _results(outcome: Outcome) -> dict[tuple[Any, ...], Any]:
    rows = outcome.report["stages"]
    return {(row["stage"], row["call"], row["output"]): row["results"].get("ort-cpu-off") for row in rows}


@pytest.fixture(scope="module")
def whole(material: Path) -> dict[tuple[Any, ...], Any]:
    """Results of the run that holds everything: one segment."""
    return _results(_judge(material, "2GiB", material / "whole"))


@pytest.mark.parametrize("budget", ["12MiB", "1MiB", "1000"])
def test_segments_change_no_number(
    material: Path, whole: dict[tuple[Any, ...], Any], budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streaming in many segments gives every metric of every stage bit for bit as one segment does."""
    from bisect_tool.backends.onnx_program import OnnxProgram

    counts = []
    segments = OnnxProgram.segments

    def counted(self: OnnxProgram, *arguments: Any, **options: Any) -> Any:
        found = segments(self, *arguments, **options)
        counts.append(len(found))
        return found

    monkeypatch.setattr(OnnxProgram, "segments", counted)
    outcome = _judge(material, budget, tmp_path / "report")
    assert 0 == outcome.code, outcome.err
    assert min(counts) > 1
    found = _results(outcome)
    assert whole.keys() == found.keys()
    for key, result in whole.items():
        assert result == found[key], key


@pytest.mark.parametrize("budget", ["2GiB", "1MiB"])
def test_totals_alone_are_the_same_numbers(
    material: Path, whole: dict[tuple[Any, ...], Any], budget: str, tmp_path: Path
) -> None:
    """Also where the two sides do not fit abreast, and run one after the other."""
    outcome = _judge(material, budget, tmp_path / "report", "--totals-only")
    assert 0 == outcome.code, outcome.err
    found = _results(outcome)
    assert whole.keys() == found.keys()
    for key, result in whole.items():
        assert (result and result["total"]) == (found[key] and found[key]["total"]), key


def test_everything_is_compared(whole: dict[tuple[Any, ...], Any]) -> None:
    """The comparison above is not an empty one: stages and groups have total and local errors."""
    assert sum(result is not None and result["local"] is not None for result in whole.values()) >= 10
    assert whole["blocks.3", 0, 0]["local"]["rel_l2"] > 0
