"""A net's file, changed by hand, and what the tool says of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto
from torch import Tensor, nn

from bisect_tool import bisect
from bisect_tool.backends.exporting import Exporter, ExportSettings, export_onnx
from bisect_tool.records import Report

EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")


def exported(
    module: nn.Module, inputs: tuple[Tensor, ...], exporter: Exporter, folder: Path, opset: int | None = None
) -> ModelProto:
    """The healthy graph, which also lies in the folder as ``healthy.onnx``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(module, inputs, {}, folder / "healthy.onnx", ExportSettings(exporter, opset))
    return onnx.load(folder / "healthy.onnx")


def judged(module: nn.Module, inputs: tuple[Tensor, ...], model: ModelProto, folder: Path, **options: object) -> Report:
    """The report on a graph, which is saved in the folder as ``model.onnx``."""
    onnx.save(model, folder / "model.onnx")
    return bisect(module, inputs, folder / "model.onnx", **options)  # type: ignore[arg-type]


def first_node(model: ModelProto, *kinds: str) -> NodeProto:
    """The first node of one of some types."""
    return next(node for node in model.graph.node if node.op_type in kinds)
