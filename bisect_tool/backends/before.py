"""The graph beside the model before anything runs: weights, training mode, and settings that change results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from bisect_tool.backends.files import some
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.pairing import Paired, module_of, paired
from bisect_tool.backends.preflight import non_finite_weights
from bisect_tool.backends.torch_runner import to_numpy
from bisect_tool.backends.weights import foldings_of
from bisect_tool.diagnose.causes import LAYOUT, NOT_FINITE, ROUNDED, WEIGHT
from bisect_tool.diagnose.suspicions import Described, suspicions
from bisect_tool.diagnose.weight_forms import GATE_ORDER, difference
from bisect_tool.precision import quantized_nodes
from bisect_tool.records import Finding, OnnxNode, Severity
from bisect_tool.weights import (
    CODE,
    FOLDED,
    Folding,
    WeightDifference,
    WeightPair,
    WeightReport,
    compare_weights,
    is_moved,
    relative,
)

Array = NDArray[Any]

MOST_NAMED = 5
"""Weights that are told one by one; more of them are another checkpoint."""

_BLOCK = 1 << 20


def look_before(module: torch.nn.Module, program: OnnxProgram) -> tuple[Finding, ...]:
    """What is wrong, odd or worth knowing, the gravest first.

    Args:
        module: in eval mode, with its weights.
        program: the graph; its weights are read where they lie.
    """
    modules = dict(module.named_modules())
    sound = _Sound()
    found = [*_weights(module, program, sound), *_not_finite(module, program, sound)]
    found += _nodes(program, modules)
    program.release_pages()
    order = ("fault", "suspicion", "fact")
    return tuple(sorted(found, key=lambda each: order.index(each.severity)))


# -- weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sound:
    """What the comparison has told by the way, so that big weights are not read twice.

    Attributes:
        without_nan: the graph's weights that are known to hold none.
        finite: the model's that are known to hold neither NaN nor infinities.
    """

    without_nan: set[str] = field(default_factory=set)
    finite: set[str] = field(default_factory=set)


def _weights(module: torch.nn.Module, program: OnnxProgram, sound: _Sound) -> Iterator[Finding]:
    """``sound`` gets what turns out to be."""
    both = paired(module, program)
    tensors, foldings = both.tensors, foldings_of(module)

    def parameter(name: str) -> Array:
        return to_numpy(tensors[name])

    report = compare_weights(both.certain, program.weight, parameter, foldings)
    likely = compare_weights(both.likely, program.weight, parameter, foldings)
    for each in (report, likely):
        sound.without_nan.update(each.without_nan)
        sound.finite.update(each.finite)
    yield from _differing(report, "fault", program, both, foldings)
    yield from _differing(likely, "suspicion", program, both, foldings)
    linear = {path for path, child in module.named_modules() if type(child) is torch.nn.Linear}
    yield from _turned(report, both.certain, program, tensors, both.readers, linear)
    rounded = (*report.rounded, *likely.rounded)
    if rounded:
        types = " and ".join(dict.fromkeys(str(each.rounded) for each in rounded))
        names = tuple(each.pair.onnx for each in rounded)
        compared = report.compared + likely.compared
        text = f"{len(names)} of {compared} weights are the model's rounded to {types}: {some(list(names))}"
        # All of them were converted; a single one was hardly meant to.
        meant = 2 * len(names) >= compared or len(names) > MOST_NAMED
        yield Finding(ROUNDED, "fact" if meant else "suspicion", text, names)
    quantised = quantized_nodes(program.graph)
    if quantised:
        yield Finding(ROUNDED, "fact", f"the graph is quantised: {len(quantised)} nodes work with few bits", ())


def _differing(
    report: WeightReport, severity: Severity, program: OnnxProgram, both: Paired, foldings: Sequence[Folding]
) -> Iterator[Finding]:
    names = tuple(each.pair.onnx for each in report.differing)
    if report.is_another_checkpoint:
        worst = max(report.differing, key=lambda each: each.rel_l2 if math.isfinite(each.rel_l2) else 0.0)
        text = (
            f"{len(names)} of {report.compared} weights differ from the model's, most in {worst.pair.onnx} "
            f"({relative(worst.rel_l2, worst.max_abs)}): another checkpoint?"
        )
        yield Finding(CODE, severity, text, names)
        return
    for each in report.differing[:MOST_NAMED]:
        code, text = _difference(each, program, both, foldings)
        yield Finding(code, severity, text, (each.pair.onnx,))
    if len(names) > MOST_NAMED:
        rest = names[MOST_NAMED:]
        text = f"{len(rest)} more weights differ from the model's: {some(list(rest))}"
        yield Finding(WEIGHT, severity, text, rest)


def _difference(
    each: WeightDifference, program: OnnxProgram, both: Paired, foldings: Sequence[Folding]
) -> tuple[str, str]:
    """The code, and in words how many elements differ, how far, and where."""
    name = each.pair.onnx
    have = np.asarray(program.weight(name))
    should = to_numpy(both.tensors[each.pair.parameter])
    count = ""
    other = "" if name == each.pair.parameter else f" ({each.pair.parameter})"
    folded = _nearest_folded(have, should, foldings)
    if folded is not None:
        moved = int((np.abs(have - folded) > FOLDED * np.abs(folded)).sum())
        return WEIGHT, (
            f"weight {name}{other} differs from the model's with a BatchNorm folded in: {moved} of {have.size} "
            f"numbers, {difference(have, folded.astype(have.dtype))}"
        )
    order = _other_order(have, should, both.gates.get(name, 0))
    if order is not None:
        return LAYOUT, f"weight {name}{other} holds the model's numbers in another order{order}"
    if have.size == should.size and have.squeeze().shape == should.squeeze().shape:
        moved = int((have.squeeze() != should.squeeze()).sum())
        count = f": {moved} of {have.size} numbers"
    place = "" if each.axis is None else f", all of it at index {each.index} of axis {each.axis}"
    fold = " with a BatchNorm folded in" if each.folded else ""
    text = f"weight {name}{other} differs from the model's{fold}{count}, {relative(each.rel_l2, each.max_abs)}{place}"
    return WEIGHT, text


def _other_order(have: Array, should: Array, gates: int) -> str | None:
    """How a weight holds the right numbers at wrong places, in words; ``None``: its numbers are not the right ones."""
    if not is_moved(have, should):
        return None
    if gates and have.shape == should.shape:
        if have.shape[0] > 1 and np.array_equal(have, should[::-1]):
            return ": its directions are exchanged"
        blocks = should.shape[1] // gates
        # The biases of inputs and of states lie one behind the other.
        halves = 2 if have.ndim == 2 else 1
        parts = should.reshape(should.shape[0], halves, gates, blocks // halves, -1)
        for order in itertools.permutations(range(gates)):
            if np.array_equal(have.reshape(parts.shape), parts[:, :, list(order)]):
                of_torch = order == tuple(int(i) for i in np.argsort(GATE_ORDER[gates]))
                return f": its gates as PyTorch has them, {_GATES[gates]}" if of_torch else ": its gates are exchanged"
    return ""


_GATES = {4: "i f g o, where ONNX has i o f c", 3: "r z n, where ONNX has z r h", 1: ""}


def _nearest_folded(have: Array, should: Array, foldings: Sequence[Folding]) -> Array | None:
    """The model's weight with the BatchNorm that at least half of the channels have folded in; ``None``: there is none."""
    if have.shape != should.shape or have.ndim < 2:
        return None
    for folding in foldings:
        for axis in (0, 1):
            if have.shape[axis] != folding.scale.size:
                continue
            folded = folding.weight(should, axis)
            rest = tuple(i for i in range(have.ndim) if i != axis)
            apart, norm = (np.sqrt((a * a).sum(axis=rest)) for a in (have - folded, folded))
            if 2 * int((apart <= FOLDED * norm).sum()) >= folding.scale.size:
                return folded
    return None


def _turned(
    report: WeightReport,
    pairs: Sequence[WeightPair],
    program: OnnxProgram,
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
        have, should = np.asarray(program.weight(pair.onnx)), to_numpy(tensors[pair.parameter])
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


def _not_finite(module: torch.nn.Module, program: OnnxProgram, sound: _Sound) -> Iterator[Finding]:
    named = non_finite_weights(module, sound.finite)
    if named:
        text = f"the model's weights hold NaN or infinities: {some([f'{name} ({count})' for name, count in named])}"
        yield Finding(NOT_FINITE, "suspicion", text, tuple(name for name, _ in named))
    found = []
    for name in program.floating_weights():
        if name in sound.without_nan:
            continue
        # Masks are constants of minus infinity on purpose; NaN never is.
        count = _count_nan(np.asarray(program.weight(name)).reshape(-1))
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
                attributes=_with_defaults(node, _settings(node, child, program), opset),
                constants=constants,
                module=path,
                kind=type(child).__name__ if own else None,
                settings={k: v for k, v in vars(child).items() if not k.startswith("_")} if own else None,
                rank=None if first is None else len(first),
            )
        )
    return suspicions(described, opset, frozenset(kinds))


def _settings(node: OnnxNode, child: torch.nn.Module | None, program: OnnxProgram) -> Mapping[str, Any]:
    """Attributes of a node, but for a training mode that its module's own code must have asked for."""
    found = program.attributes(node.name)
    if node.op_type != "BatchNormalization" or child is None or any(isinstance(m, _BatchNorm) for m in child.modules()):
        return found
    return {name: value for name, value in found.items() if name != "training_mode"}


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
