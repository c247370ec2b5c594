"""The files of ``bisect-tool demo``: a small model, and an ONNX file of it with one fault."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from bisect_tool.backends import demo_model
from bisect_tool.backends.exporting import ExportSettings, default_exporter, export_onnx

WEIGHT = "blocks.2.pointwise.weight"
CHANNEL = 5
FACTOR = 1.1


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """What was written: a model's three files, its export, and the same export with the fault."""

    model: Path
    checkpoint: Path
    sample: Path
    right: Path
    broken: Path


def write_demo(folder: Path) -> DemoFiles:
    """Writes the files into a folder that is there."""
    files = DemoFiles(*(folder / name for name in ("model.py", "ckpt.pt", "sample.pt", "right.onnx", "broken.onnx")))
    shutil.copyfile(demo_model.__file__, files.model)
    model = demo_model.build_model().eval()
    torch.save(model.state_dict(), files.checkpoint)
    sample = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.save(sample, files.sample)
    export_onnx(model, (sample,), {}, files.right, ExportSettings(default_exporter()))
    graph = onnx.load(files.right)
    (weight,) = (each for each in graph.graph.initializer if each.name == WEIGHT)
    array = numpy_helper.to_array(weight).copy()
    array[CHANNEL] *= FACTOR
    weight.CopyFrom(numpy_helper.from_array(array, WEIGHT))
    onnx.save(graph, files.broken)
    return files
