"""What a model and a graph are, weights left aside: the parts of a tolerance table's fingerprint that need PyTorch."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_options import dtype_in_effect
from bisect_tool.precision import quantized_nodes


def modules_of(module: torch.nn.Module) -> dict[str, str]:
    """Each module by its path: ``Conv2d(weight float32[8, 3, 3, 3], bias float32[8])``.

    Buffers that are no part of a checkpoint are left out: tables of positions and caches grow with the sample.
    """
    found = {}
    for path, child in module.named_modules(remove_duplicate=False):
        temporary: set[str] = getattr(child, "_non_persistent_buffers_set", set())
        tensors = [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]
        own = ", ".join(f"{name} {_form(tensor)}" for name, tensor in tensors if name not in temporary)
        found[path] = f"{_type(child)}({own})" if own else _type(child)
    return found


def _type(module: torch.nn.Module) -> str:
    # A scripted module's own class is the same for all.
    return str(getattr(module, "original_name", None) or type(module).__name__)


def _form(tensor: torch.Tensor) -> str:
    if torch.nn.parameter.is_lazy(tensor):
        return "uninitialised"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def graph_of(program: OnnxProgram) -> dict[str, str]:
    """What of a graph a table is for: its inputs, how many outputs it has, and the precision that it computes in.

    Exporter, opset, nodes and names are left out: they may change from one export to the next, which is what a table is for.
    """
    graph = program.graph
    shapes = program.header().input_shapes

    def inputs() -> Iterable[str]:
        for name in graph.inputs:
            rank = f" {len(shapes[name])}-d" if name in shapes else ""
            yield f"{graph.dtypes.get(name, '?')}{rank}"

    return {
        "inputs": ", ".join(inputs()),
        "outputs": str(len(graph.outputs)),
        "precision": "quantised" if quantized_nodes(graph) else str(dtype_in_effect(graph) or "unknown"),
    }
