"""The model's tensors, and whose an initialiser is by what it holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bisect_tool.align.fingerprints import places_by_weights, weight_owners
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.plain_layout import BlockedWeight, block_size, out_of_blocks
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.records import Place, TorchTrace
from bisect_tool.weights import Folding, folding

Array = NDArray[Any]


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


def foldings_of(module: torch.nn.Module) -> list[Folding]:
    """What each BatchNorm of a model does to a channel.

    They are known by their tensors: in archives and exported programs their class is another one.
    """
    found = []
    for child in module.modules():
        mean, variance, weight, bias = (
            getattr(child, name, None) for name in ("running_mean", "running_var", "weight", "bias")
        )
        if not isinstance(mean, Tensor) or mean.ndim != 1 or not mean.is_floating_point():
            continue
        rest = [each for each in (variance, weight, bias) if each is not None]
        # A layer of the user's own may keep statistics beside weights of another shape.
        if variance is None or any(not isinstance(each, Tensor) or each.shape != mean.shape for each in rest):
            continue
        scale, shift = (None if each is None else to_numpy(each) for each in (weight, bias))
        found.append(folding(to_numpy(mean), to_numpy(variance), scale, shift, _eps_of(child)))
    return found


def _eps_of(norm: torch.nn.Module) -> float:
    """What a BatchNorm adds to the variance: its attribute, or what the program that it has become gives its operation."""
    eps = getattr(norm, "eps", None)
    if _is_number(eps):
        return float(eps)
    try:
        graph = getattr(norm, "graph", None)
    except RuntimeError:  # of a traced module that was never called
        return _EPS
    values: list[Any] = []
    if isinstance(graph, torch.fx.Graph):
        values = next(([*node.args] for node in graph.nodes if "batch_norm" in str(node.target)), [])
    elif graph is not None:  # traced: numbers are constants beside the operation
        nodes = (node for node in graph.nodes() if "batch_norm" in node.kind())
        values = next(([value.toIValue() for value in node.inputs()] for node in nodes), [])
    # The last number is eps, or stands before a flag.
    return float(next((each for each in reversed(values) if _is_number(each)), _EPS))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_EPS = 1e-5
"""PyTorch's default."""


def values_with_bias(trace: TorchTrace, module: torch.nn.Module, place: Place | None) -> frozenset[int]:
    """Values of a run that a product's module has added its bias to.

    ``place``: of the module in a larger model, after which the trace's stages are named.
    """
    paths = {} if place is None else place.paths
    biased = {
        paths.get(path, path)
        for path, child in module.named_modules(remove_duplicate=False)
        if isinstance(child, _PRODUCTS) and isinstance(getattr(child, "bias", None), Tensor)
    }
    return frozenset(stage.value for stage in trace.stages if stage.level == "leaf" and stage.ref.stage in biased)


_PRODUCTS = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)


def modules_by_weights(module: torch.nn.Module, program: OnnxProgram) -> dict[str, str]:
    """Module path by name of a node that reads the module's weights, told by what these hold.

    Every weight of both sides is read once: for graphs whose names say nothing.
    """
    sizes = {name: math.prod(shape) for name, shape in program.floating_weights().items()}
    known = program.cast_weights
    nodes = [
        (node.name, node.op_type, tuple(known.get(name, name) for name in node.inputs), node.outputs)
        for node in program.plain.nodes
        if node.outputs[:1] != () and node.outputs[0] not in known
    ]
    return places_by_weights(nodes, owners_of(module, program), sizes, program.graph.outputs)


def _plain(program: OnnxProgram, name: str, how: BlockedWeight) -> Array:
    return out_of_blocks(np.asarray(program.weight(name)), how, block_size())


def owners_of(module: torch.nn.Module, program: OnnxProgram) -> dict[str, tuple[str, ...]]:
    """Parameters and buffers that hold what an initialiser holds, by its name."""
    tensors = tensors_of(module)
    shapes = program.floating_weights()
    getters: dict[str, Callable[[], Array]] = {name: functools.partial(program.weight, name) for name in shapes}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, how in program.blocked_weights().items():
        getters[name] = functools.partial(_plain, program, name, how)
        sizes[name] = getters[name]().size
    return weight_owners(
        getters,
        sizes,
        {name: functools.partial(to_numpy, tensor) for name, tensor in tensors.items()},
        {name: tensor.numel() for name, tensor in tensors.items()},
        [each.scale for each in foldings_of(module)],
    )
