"""The weights of both sides, as the comparison of :mod:`bisect_tool.weights` wants them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.fingerprints import places_by_weights, weight_owners
from bisect_tool.records import Place, StageRow
from bisect_tool.weights import Folding, WeightReport, compare_weights, pair_weights

_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm"}


def check_weights(
    module: torch.nn.Module, program: OnnxProgram, rows: Sequence[StageRow], place: Place | None = None
) -> WeightReport:
    """Compares the graph's initialisers with the model's parameters and buffers.

    Args:
        module: the model.
        program: the graph; its weights are read where they lie.
        rows: of the report; they say which module a product belongs to.
        place: of the module in a larger model, after which the rows are named.
    """
    tensors = tensors_of(module)
    shapes = program.floating_weights()
    pairs = pair_weights(
        shapes, {name: tuple(t.shape) for name, t in tensors.items()}, _products(program, rows, module, place)
    )
    return compare_weights(pairs, program.weight, lambda name: to_numpy(tensors[name]), foldings_of(module))


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Floating parameters and buffers that hold data, by dotted name; shared ones under all their names."""
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {
        name: tensor
        for name, tensor in named
        if tensor.is_floating_point() and not tensor.is_meta and tensor.layout is torch.strided
    }


def _products(
    program: OnnxProgram, rows: Sequence[StageRow], module: torch.nn.Module, place: Place | None
) -> Mapping[str, list[str]]:
    names = {} if place is None else place.paths
    linear = {names.get(path, path): path for path, m in module.named_modules() if type(m) is torch.nn.Linear}
    readers: dict[str, list[str]] = {}
    for row in rows:
        if row.stage in linear:
            nodes = set(row.onnx_nodes)
            for node in program.graph.nodes:
                if node.name in nodes and node.op_type in _PRODUCTS and len(node.inputs) > 1:
                    readers.setdefault(node.inputs[1], []).append(linear[row.stage])
    return readers


def foldings_of(module: torch.nn.Module) -> list[Folding]:
    """What each BatchNorm of a model does to a channel."""
    found = []
    for child in module.modules():
        if not isinstance(child, _BatchNorm) or child.running_mean is None or child.running_var is None:
            continue
        mean, variance = (to_numpy(t).astype(np.float64) for t in (child.running_mean, child.running_var))
        weight = np.ones_like(mean) if child.weight is None else to_numpy(child.weight).astype(np.float64)
        shift = np.zeros_like(mean) if child.bias is None else to_numpy(child.bias).astype(np.float64)
        found.append(Folding(weight / np.sqrt(variance + child.eps), mean, shift))
    return found


def modules_by_weights(module: torch.nn.Module, program: OnnxProgram) -> dict[str, str]:
    """Module path by name of a node that reads the module's weights, told by what these hold.

    Every weight of both sides is read once: for graphs whose names say nothing.
    """
    sizes = {name: math.prod(shape) for name, shape in program.floating_weights().items()}
    nodes = [(node.name, node.op_type, node.inputs, node.outputs) for node in program.graph.nodes]
    return places_by_weights(nodes, owners_of(module, program), sizes, program.graph.outputs)


def owners_of(module: torch.nn.Module, program: OnnxProgram) -> dict[str, tuple[str, ...]]:
    """Parameters and buffers that hold what an initialiser holds, by its name."""
    tensors = tensors_of(module)
    shapes = program.floating_weights()
    return weight_owners(
        {name: functools.partial(program.weight, name) for name in shapes},
        {name: math.prod(shape) for name, shape in shapes.items()},
        {name: functools.partial(to_numpy, tensor) for name, tensor in tensors.items()},
        {name: tensor.numel() for name, tensor in tensors.items()},
        [folding.scale for folding in foldings_of(module)],
    )
