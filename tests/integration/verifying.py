"""A small classifier in files, its ONNX graph, and a faulty one: what tests of ``verify`` work on."""

from __future__ import annotations

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

MODEL = '''"""A classifier of three classes."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.act = nn.ReLU()
        self.last = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.first(x))
        return self.last(x)


def build_model() -> nn.Module:
    return Net()


def wider() -> nn.Module:
    return Net(24)
'''

METRICS = '''"""How far the scores moved."""

import numpy as np


def drift(expected, actual):
    return {"drift": max(float(np.abs(expected[k] - actual[k]).max()) for k in expected), "classes": 3}
'''


@dataclass(frozen=True)
class Project:
    """What a team has in its repository: model, checkpoint, samples, a right ONNX file and a wrong one."""

    folder: Path

    def copy(self, target: Path) -> Path:
        """The files in a folder of the caller's own."""
        shutil.copytree(self.folder, target, dirs_exist_ok=True)
        return target


def make_project(folder: Path) -> Project:
    """Writes the files."""
    from bisect_tool.backends.models import load_model

    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    (folder / "quality.py").write_text(METRICS, encoding="utf-8")
    torch.manual_seed(0)
    module = load_model(str(folder / "model.py")).module
    torch.save(module.state_dict(), folder / "ckpt.pth")
    (folder / "samples").mkdir()
    for number in range(2):
        torch.save(torch.randn(4, 8), folder / "samples" / f"{number}.pt")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(module, (torch.randn(4, 8),), str(folder / "model.onnx"), dynamo=False)
    plant(folder / "model.onnx", folder / "broken.onnx")
    return Project(folder)


def plant(source: Path, target: Path, factor: float = 1.01) -> None:
    """The same graph with one row of the first layer's weights a little larger."""
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.name == "first.weight":
            weight = np.array(numpy_helper.to_array(tensor))
            weight[0] *= factor
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
            break
    else:
        raise AssertionError("no weight to plant a fault in")
    onnx.save(model, str(target))


def without_plots(monkeypatch: Any) -> None:
    """Leaves out of report folders what takes longest to make, and is tested elsewhere."""
    from bisect_tool.reporters import plots

    drawn = plots.Images(b"", "<svg/>")
    monkeypatch.setattr(plots, "images", lambda *_, **__: drawn)


def run(program: str, *arguments: Any) -> tuple[int, str, str]:
    """A command in this process: exit code, stdout, stderr."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.run import run as bisect_divergence
    from bisect_tool.cli.tool import tool

    command = {"bisect-divergence": bisect_divergence, "bisect-tool": tool}[program]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(command, program, [*map(str, arguments)])
    return code, out.getvalue(), err.getvalue()
