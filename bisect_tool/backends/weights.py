"""The model's tensors, and whose an initialiser is by what it holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bisect_tool.align.fingerprints import places_by_weights, weight_owners
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.plain_layout import BlockedWeight, block_size, out_of_blocks
from bisect_tool.backends.torch_runner import to_numpy
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
    """What each BatchNorm of a model does to a channel."""
    found = []
    for child in module.modules():
        if not isinstance(child, _BatchNorm) or child.running_mean is None or child.running_var is None:
            continue
        weight, bias = (None if each is None else to_numpy(each) for each in (child.weight, child.bias))
        found.append(folding(to_numpy(child.running_mean), to_numpy(child.running_var), weight, bias, child.eps))
    return found


def modules_by_weights(module: torch.nn.Module, program: OnnxProgram) -> dict[str, str]:
    """Module path by name of a node that reads the module's weights, told by what these hold.

    Every weight of both sides is read once: for graphs whose names say nothing.
    """
    sizes = {name: math.prod(shape) for name, shape in program.floating_weights().items()}
    nodes = [(node.name, node.op_type, node.inputs, node.outputs) for node in program.plain.nodes]
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
