"""A nameless file's weights beside those of a fresh export, which has them in the same form: folded, turned and all."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch

from bisect_tool.align.weight_places import WeightUse, pair_by_place
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.weights import owners_of
from bisect_tool.weights import WeightPair, WeightReport, compare_weights


def compare_beside(module: torch.nn.Module, fresh: OnnxProgram, given: OnnxProgram) -> WeightReport:
    """Compares weights of a file with those that a fresh export of the model has in their place.

    Args:
        module: the model; it has the names.
        fresh: the export that is most like the file.
        given: the file.
    """
    places = pair_by_place(_uses(fresh), _uses(given))
    owners = owners_of(module, fresh)
    known = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    labels = {}
    for name in places.values():
        owner = owners.get(name, ())
        labels[name] = name if name in known or len(owner) != 1 else owner[0]
    # Where two parts of one parameter are two weights here, a label is no name.
    unique = {label: name for name, label in labels.items()}
    back = {name: label if unique[label] == name else name for name, label in labels.items()}
    arrays = {label: name for name, label in back.items()}
    # As sure as a name: nothing was done to one of the two that was not done to the other.
    pairs = [WeightPair(name, back[other]) for name, other in places.items()]
    return compare_weights(pairs, given.weight, lambda label: fresh.weight(arrays[label]))


def _uses(program: OnnxProgram) -> list[WeightUse]:
    shapes = program.floating_weights()
    found: dict[str, WeightUse] = {}
    for node in program.graph.nodes:
        for place, name in enumerate(node.inputs):
            if name in shapes and math.prod(shapes[name]) > 1 and name not in found:
                shape = tuple(size for size in shapes[name] if size != 1)
                key = (node.domain, node.op_type, place, shape)
                found[name] = WeightUse(name, key, _content(program, name, shape))
    return list(found.values())


def _content(program: OnnxProgram, name: str, shape: tuple[int, ...]) -> object | None:
    array = np.asarray(program.weight(name)).reshape(-1)
    if bool((array == array[0]).all()):
        return None
    return shape, array.dtype.name, hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
