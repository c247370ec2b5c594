"""The graph beside the model before anything runs: weights, training mode, and settings that change results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from bisect_tool.backends.files import some
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.preflight import non_finite_weights
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.backends.weights import foldings_of, tensors_of
from bisect_tool.diagnose.causes import LAYOUT, NOT_FINITE, ROUNDED, WEIGHT
from bisect_tool.diagnose.suspicions import Described, suspicions
from bisect_tool.diagnose.weight_forms import difference
from bisect_tool.precision import quantized_nodes
from bisect_tool.records import Finding, OnnxNode
from bisect_tool.weights import (
    CODE,
    FOLDED,
    Folding,
    WeightDifference,
    WeightPair,
    WeightReport,
    compare_weights,
    pair_weights,
    relative,
)

Array = NDArray[Any]

MOST_NAMED = 5
"""Weights that are told one by one; more of them are another checkpoint."""

_PRODUCTS = {"MatMul", "Gemm"}
_BLOCK = 1 << 20
_RESIDENT = 32 << 20
"""Bytes of weights that are read before those from the file leave memory again."""


def look_before(module: torch.nn.Module, program: OnnxProgram) -> tuple[Finding, ...]:
    """What is wrong, odd or worth knowing, the gravest first.

    Args:
        module: in eval mode, with its weights.
        program: the graph; its weights are read where they lie.
    """
    modules = dict(module.named_modules())
    weight = _sparing(program)
    found = [
        *_weights(module, program, modules, weight),
        *_not_finite(module, program, weight),
        *_nodes(program, modules),
    ]
    program.release_pages()
    order = ("fault", "suspicion", "fact")
    return tuple(sorted(found, key=lambda each: order.index(each.severity)))


def _sparing(program: OnnxProgram) -> Callable[[str], Array]:
    """Reads weights where they lie, and keeps few of them in memory: the model's own are there, and runs are to come."""
    read = 0

    def weight(name: str) -> Array:
        nonlocal read
        if read > _RESIDENT:
            program.release_pages()
            read = 0
        array = np.asarray(program.weight(name))
        read += array.nbytes
        return array

    return weight


# -- weights ----------------------------------------------------------------------------------------------------------


def _weights(
    module: torch.nn.Module,
    program: OnnxProgram,
    modules: Mapping[str, torch.nn.Module],
    weight: Callable[[str], Array],
) -> Iterator[Finding]:
    tensors = tensors_of(module)
    shapes = program.floating_weights()
    linear = {path for path, child in modules.items() if type(child) is torch.nn.Linear}
    readers = _readers(program, modules)
    products = {name: [path for _, path, _ in read if path in linear] for name, read in readers.items()}
    pairs = pair_weights(
        shapes,
        {name: tuple(t.shape) for name, t in tensors.items()},
        {name: paths for name, paths in products.items() if paths},
    )
    pairs += _by_scope(program, modules, tensors, pairs)
    foldings = foldings_of(module)
    report = compare_weights(pairs, weight, lambda name: to_numpy(tensors[name]), foldings)
    yield from _differing(report, weight, tensors, foldings)
    yield from _turned(report, pairs, program, weight, tensors, readers, linear)
    if report.rounded:
        types = " and ".join(dict.fromkeys(str(each.rounded) for each in report.rounded))
        names = tuple(each.pair.onnx for each in report.rounded)
        text = f"{len(names)} of {report.compared} weights are the model's rounded to {types}: {some(list(names))}"
        # All of them were converted; a single one was hardly meant to.
        meant = 2 * len(names) >= report.compared or len(names) > MOST_NAMED
        yield Finding(ROUNDED, "fact" if meant else "suspicion", text, names)
    quantised = quantized_nodes(program.graph)
    if quantised:
        yield Finding(ROUNDED, "fact", f"the graph is quantised: {len(quantised)} nodes work with few bits", ())


_OWN = {
    "Conv": {1: "weight"},
    "ConvTranspose": {1: "weight"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "InstanceNormalization": {1: "weight", 2: "bias"},
    "GroupNormalization": {1: "weight", 2: "bias"},
    "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
    "PRelu": {1: "weight"},
}
"""Tensors of the module that a node's inputs are. Not the bias of a convolution: what follows it is folded into that."""

_KINDS = {
    **dict.fromkeys(("Conv", "ConvTranspose"), ("Conv",)),
    "LayerNormalization": ("LayerNorm",),
    "InstanceNormalization": ("InstanceNorm",),
    "GroupNormalization": ("GroupNorm",),
    "BatchNormalization": ("BatchNorm", "SyncBatchNorm"),
    "PRelu": ("PReLU",),
}
"""Beginnings of the classes whose tensors these are."""


def _by_scope(
    program: OnnxProgram,
    modules: Mapping[str, torch.nn.Module],
    tensors: Mapping[str, torch.Tensor],
    known: Sequence[WeightPair],
) -> list[WeightPair]:
    """Weights that have lost their names, by the module that the node's name says."""
    named = {pair.onnx for pair in known}
    readers: dict[str, set[str]] = {}
    for node in program.graph.nodes:
        path = module_of(node, modules) if node.op_type in _OWN and not node.domain else None
        kind = type(modules[path]).__name__ if path else ""
        fits = (
            kind.startswith(("Conv", "Lazy")) if node.op_type.startswith("Conv") else "Norm" in kind or kind == "PReLU"
        )
        for place, own in _OWN.get(node.op_type, {}).items() if path and fits else ():
            name = node.inputs[place] if place < len(node.inputs) else ""
            if name and name not in named and program.is_weight(name) and f"{path}.{own}" in tensors:
                readers.setdefault(name, set()).add(f"{path}.{own}")
    found = []
    shapes = program.floating_weights()
    for name, parameters in readers.items():
        # One that several read was merged with its equals.
        (parameter, *others) = sorted(parameters)
        have = tuple(n for n in shapes.get(name, ()) if n != 1)
        if not others and have and have == tuple(n for n in tensors[parameter].shape if n != 1):
            # A convolution's weight may be scaled by what follows it; the numbers of a norm are its own.
            found.append(WeightPair(name, parameter, by_name=len(have) == 1))
    return found


def _differing(
    report: WeightReport,
    weight: Callable[[str], Array],
    tensors: Mapping[str, torch.Tensor],
    foldings: Sequence[Folding],
) -> Iterator[Finding]:
    names = tuple(each.pair.onnx for each in report.differing)
    if report.is_another_checkpoint:
        worst = max(report.differing, key=lambda each: each.rel_l2 if math.isfinite(each.rel_l2) else 0.0)
        text = (
            f"{len(names)} of {report.compared} weights differ from the model's, most in {worst.pair.onnx} "
            f"({relative(worst.rel_l2, worst.max_abs)}): another checkpoint?"
        )
        yield Finding(CODE, "fault", text, names)
        return
    for each in report.differing[:MOST_NAMED]:
        yield Finding(WEIGHT, "fault", _difference(each, weight, tensors, foldings), (each.pair.onnx,))
    if len(names) > MOST_NAMED:
        rest = names[MOST_NAMED:]
        yield Finding(WEIGHT, "fault", f"{len(rest)} more weights differ from the model's: {some(list(rest))}", rest)


def _difference(
    each: WeightDifference,
    weight: Callable[[str], Array],
    tensors: Mapping[str, torch.Tensor],
    foldings: Sequence[Folding],
) -> str:
    """How many elements differ, how far, and where."""
    have = weight(each.pair.onnx)
    should = to_numpy(tensors[each.pair.parameter])
    count = ""
    other = "" if each.pair.onnx == each.pair.parameter else f" ({each.pair.parameter})"
    folded = _nearest_folded(have, should, foldings)
    if folded is not None:
        moved = int((np.abs(have - folded) > FOLDED * np.abs(folded)).sum())
        return (
            f"weight {each.pair.onnx}{other} differs from the model's with a BatchNorm folded in: {moved} of {have.size} "
            f"numbers, {difference(have, folded.astype(have.dtype))}"
        )
    if have.size == should.size and have.squeeze().shape == should.squeeze().shape:
        moved = int((have.squeeze() != should.squeeze()).sum())
        count = f": {moved} of {have.size} numbers"
    place = "" if each.axis is None else f", all of it at index {each.index} of axis {each.axis}"
    return (
        f"weight {each.pair.onnx}{other} differs from the model's{count}, {relative(each.rel_l2, each.max_abs)}{place}"
    )


def _nearest_folded(have: Array, should: Array, foldings: Sequence[Folding]) -> Array | None:
    """The model's weight with the BatchNorm that at least half of the channels have folded in; ``None``: there is none."""
    if have.shape != should.shape or have.ndim < 2:
        return None
    for folding in foldings:
        for axis in (0, 1):
            if have.shape[axis] != folding.scale.size:
                continue
            shape = [1] * have.ndim
            shape[axis] = -1
            folded = should.astype(np.float64) * folding.scale.reshape(shape)
            rest = tuple(i for i in range(have.ndim) if i != axis)
            apart, norm = (np.sqrt((a * a).sum(axis=rest)) for a in (have - folded, folded))
            if 2 * int((apart <= FOLDED * norm).sum()) >= folding.scale.size:
                return folded
    return None


def _turned(
    report: WeightReport,
    pairs: Sequence[WeightPair],
    program: OnnxProgram,
    weight: Callable[[str], Array],
    tensors: Mapping[str, torch.Tensor],
    readers: Mapping[str, list[tuple[OnnxNode, str, int]]],
    linear: set[str],
) -> Iterator[Finding]:
    """Square weights of linear layers that lie the other way round: their shape does not tell."""
    differing = {each.pair.onnx for each in (*report.differing, *report.rounded)}
    for pair in pairs:
        path, _, last = pair.parameter.rpartition(".")
        if pair.onnx in differing or last != "weight" or path not in linear:
            continue
        have, should = weight(pair.onnx), to_numpy(tensors[pair.parameter])
        if have.ndim != 2 or have.shape[0] != have.shape[1] or have.shape != should.shape:
            continue
        plain, crossed = np.array_equal(have, should), np.array_equal(have, should.T)
        if plain == crossed:
            continue
        for node, _, place in readers.get(pair.onnx, ()):
            if place != 1:
                continue
            turns = node.op_type == "Gemm" and bool(program.attributes(node.name).get("transB"))
            if turns != plain:
                text = f"weight {pair.onnx} ({pair.parameter}) is transposed for the {node.op_type} {node.name} that reads it"
                yield Finding(LAYOUT, "fault", text, (pair.onnx,))
                break


def _readers(
    program: OnnxProgram, modules: Mapping[str, torch.nn.Module]
) -> dict[str, list[tuple[OnnxNode, str, int]]]:
    """Products that read a weight themselves: node, the module its name says, and the place."""
    found: dict[str, list[tuple[OnnxNode, str, int]]] = {}
    for node in program.graph.nodes:
        if node.op_type in _PRODUCTS and not node.domain:
            path = module_of(node, modules)
            for place, name in enumerate(node.inputs):
                if program.is_weight(name):
                    found.setdefault(name, []).append((node, path or "", place))
    return found


def _not_finite(module: torch.nn.Module, program: OnnxProgram, weight: Callable[[str], Array]) -> Iterator[Finding]:
    named = non_finite_weights(module)
    if named:
        text = f"the model's weights hold NaN or infinities: {some([f'{name} ({count})' for name, count in named])}"
        yield Finding(NOT_FINITE, "suspicion", text, tuple(name for name, _ in named))
    found = []
    for name in program.floating_weights():
        # Masks are constants of minus infinity on purpose; NaN never is.
        count = _count_nan(weight(name).reshape(-1))
        if count:
            found.append((name, count))
    if found:
        text = f"the file's weights hold NaN: {some([f'{name} ({count})' for name, count in found])}"
        yield Finding(NOT_FINITE, "fault", text, tuple(name for name, _ in found))


def _count_nan(flat: Array) -> int:
    """In blocks: weights that are mapped from a file are never in memory as a whole."""
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    wide = (b if b.dtype in (np.float32, np.float64) else b.astype(np.float32) for b in blocks)
    # A NaN stays in a sum of squares, and nothing else makes one there.
    with np.errstate(all="ignore"):
        return sum(int(np.isnan(b).sum()) for b in wide if np.isnan(np.dot(b, b)))


# -- nodes ------------------------------------------------------------------------------------------------------------


def _nodes(program: OnnxProgram, modules: Mapping[str, torch.nn.Module]) -> list[Finding]:
    opset = next((v for domain, v in program.header().opsets.items() if domain in ("", "ai.onnx")), 17)
    kinds = {type(child).__name__ for child in modules.values()}
    if any(isinstance(child, _BatchNorm) and child.running_mean is None for child in modules.values()):
        kinds.add("BatchNorm without statistics")
    shapes = program.graph.shapes
    described = []
    for node in program.graph.nodes:
        if node.domain:
            continue
        path = module_of(node, modules)
        child = modules[path] if path else None
        # A class of the user's own may use its settings as it likes.
        own = child is not None and type(child).__module__.startswith("torch.nn.")
        constants = {}
        if node.op_type == "Dropout":
            known = {place: program.constant(name) for place, name in enumerate(node.inputs) if name and place}
            constants = {place: array for place, array in known.items() if array is not None}
        first = shapes.get(node.inputs[0]) if node.inputs else None
        described.append(
            Described(
                name=node.name,
                op=node.op_type,
                attributes=_with_defaults(node, program.attributes(node.name), opset),
                constants=constants,
                module=path,
                kind=type(child).__name__ if own else None,
                settings={k: v for k, v in vars(child).items() if not k.startswith("_")} if own else None,
                rank=None if first is None else len(first),
            )
        )
    return suspicions(described, opset, frozenset(kinds))


def module_of(node: OnnxNode, modules: Mapping[str, torch.nn.Module]) -> str | None:
    """Path of the module that an exporter's name for a node says, if there is such a module."""
    if not node.scopes:
        return None
    if node.scopes[-1] in modules and node.call is not None:
        return node.scopes[-1] or None
    parts: list[str] = []
    for scope in node.scopes:
        if parts and scope.startswith(f"{parts[-1]}."):
            parts[-1] = scope
        elif scope:
            parts.append(scope)
    path = ".".join(parts)
    return path if path in modules and path else None


def _with_defaults(node: OnnxNode, given: Mapping[str, Any], opset: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return dict(given)
    for name, attribute in schema.attributes.items():
        value = onnx.helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
        if value is not None:
            found[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    # What is left out of a float is its default, and one that is no number says nothing.
    return {k: v for k, v in {**found, **given}.items() if not (isinstance(v, float) and math.isnan(v))}
