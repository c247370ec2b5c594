"""Graphs that no exporter would own to: converters' work on the zoo, and the truth about what became of each value.

The truth is not the tool's. The same converter is put to the same model with other weights, and both files have the same
nodes under the same names. On other weights and other inputs, plain ONNX Runtime and PyTorch then tell which value of
the graph is which stage's tensor: what two unrelated draws agree on is so by structure.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import truth
from families import FAMILIES, built_with, export_to, exported, name_nodes
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

Array = NDArray[Any]
Named = tuple[str, int, "int | str"]

OTHER_SEEDS = (101, 202)
"""Of weights and inputs that the tool never sees."""

ROUNDING = 2e-4
"""Relative L2 up to which two tensors are one value."""


# -- conversions ------------------------------------------------------------------------------------------------------


def _as_exported(model: ModelProto) -> ModelProto:
    return model


def _simplified(model: ModelProto) -> ModelProto:
    import onnxsim

    with _silence():
        found, checked = onnxsim.simplify(model)
    assert checked
    return found


def _slimmed(model: ModelProto) -> ModelProto:
    import onnxslim

    with _silence():
        found = onnxslim.slim(model)
    assert found is not None
    return found


def _optimised(level: ort.GraphOptimizationLevel) -> Callable[[ModelProto], ModelProto]:
    def convert(model: ModelProto) -> ModelProto:
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            target = Path(folder) / "optimised.onnx"
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            options.optimized_model_filepath = str(target)
            options.log_severity_level = 4
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(target)

    return convert


def scrambled(model: ModelProto) -> ModelProto:
    """All names are numbers; metadata, doc strings, types of inner values and the producer are gone."""
    copied = ModelProto()
    copied.CopyFrom(model)
    numbers: dict[str, str] = {"": ""}

    def named(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    def graph(inner: onnx.GraphProto) -> None:
        for value in [*inner.input, *inner.initializer, *inner.output]:
            value.name = named(value.name)
            value.doc_string = ""
        for node in inner.node:
            node.input[:] = [named(name) for name in node.input]
            node.output[:] = [named(name) for name in node.output]
            node.name, node.doc_string = "", ""
            del node.metadata_props[:]
            for attribute in node.attribute:
                for sub in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                    graph(sub)
        del inner.value_info[:]
        del inner.metadata_props[:]
        inner.name, inner.doc_string = "g", ""

    graph(copied.graph)
    copied.producer_name = copied.producer_version = copied.doc_string = ""
    del copied.metadata_props[:]
    return copied


def _halved(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    copied = ModelProto()
    copied.CopyFrom(model)
    with _silence():
        # ONNX Runtime's CPU kernel cannot add into float16.
        blocked = [*DEFAULT_OP_BLOCK_LIST, "ScatterElements"]
        return convert_float_to_float16(copied, keep_io_types=False, op_block_list=blocked)


CONVERSIONS: dict[str, Callable[[ModelProto], ModelProto]] = {
    "as exported": _as_exported,
    "onnxsim": _simplified,
    "onnxslim": _slimmed,
    "ort basic": _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "ort extended": _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    "scrambled": scrambled,
    "float16": _halved,
    "ort extended, scrambled": lambda model: scrambled(CONVERSIONS["ort extended"](model)),
}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(io.StringIO()):
        yield


def converted(family: str, exporter: str, conversion: str, folder: Path | None = None) -> ModelProto:
    """A family's file after a conversion, with a name for every node."""
    return _converted(onnx.load(exported(family, exporter, folder)), conversion)


def _converted(model: ModelProto, conversion: str) -> ModelProto:
    found = CONVERSIONS[conversion](model)
    name_nodes(found)
    return found


# -- the truth --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """All tensors of one draw of weights and inputs, on both sides: stages of PyTorch's, and values of the graph."""

    stages: Mapping[Named, Array]
    values: Mapping[str, Array]


@functools.cache
def _other_model(family: str, seed: int) -> torch.nn.Module:
    return built_with(family, seed)


@functools.cache
def _other_stages(family: str, seed: int) -> Mapping[Named, Array]:
    """PyTorch's tensors by stage: what a stage is, the recorder says; modules are checked against plain hooks in a test."""
    from bisect_tool.backends.torch_runner import TorchRun

    tensors: dict[int, Array] = {}
    run = TorchRun(
        _other_model(family, seed),
        FAMILIES[family].inputs(seed),
        {},
        lambda value, tensor: tensors.__setitem__(value.id, tensor.detach().clone().numpy()),
    )
    run.start()
    return {
        (stage.ref.stage, stage.ref.call, stage.ref.output): tensors[stage.value]
        for stage in run.trace.stages
        if stage.value in tensors
    }


@functools.cache
def _other_file(family: str, exporter: str, seed: int, folder: Path | None) -> ModelProto:
    place = folder or Path(tempfile.mkdtemp(prefix="zoo-"))
    path = place / f"{family}-{exporter}-{seed}.onnx"
    if not path.exists():
        export_to(path, _other_model(family, seed), family, exporter)
    return onnx.load(path)


def draws_of(
    family: str, exporter: str, conversion: str, like: ModelProto, folder: Path | None = None
) -> tuple[Draw, ...]:
    """What both sides compute with other weights, on other inputs, under the same names.

    Args:
        like: the file that the tool is given; the others must be the same but for their weights.
    """
    found = []
    for seed in OTHER_SEEDS:
        file = _other_file(family, exporter, seed, folder)
        model = _converted(file, conversion)
        assert _structure(model) == _structure(like), f"{family} {exporter} {conversion}: names depend on the weights"
        # Half precision picks other neighbours where two are equally near: what a name stood for before tells what it is.
        shown = file if conversion == "float16" else model
        feeds = feeds_of(shown, FAMILIES[family].inputs(seed))
        names = [name for node in shown.graph.node for name in node.output if name]
        values = {**feeds, **truth.values_of(shown, names, feeds)}
        # The converter's own casts have the old name on one of their sides.
        casts = [(node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "Cast"]
        for one, other in [*casts, *reversed(casts)]:
            for known, new in ((one, other), (other, one)):
                if known in values and new not in values:
                    values[new] = values[known]
        found.append(Draw(_other_stages(family, seed), values))
    return tuple(found)


def _structure(model: ModelProto) -> list[tuple[str, list[str], list[str]]]:
    return [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node]


def feeds_of(model: ModelProto, tensors: Sequence[torch.Tensor]) -> dict[str, Array]:
    """The positional inputs of a PyTorch model for its graph, whose inputs stand in the same order."""
    feeds = truth.feeds_of(model, [tensor.numpy() for tensor in tensors])
    half = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return {name: array.astype(np.float16) if name in half else array for name, array in feeds.items()}


def is_value(stage: Array, value: Array, order: Sequence[int] | None, limit: float) -> bool:
    """Whether the graph's value is PyTorch's tensor with its axes in that order, reshaped."""
    if order is not None:
        stage = stage.transpose(order)
    return stage.size == value.size and truth.relative(stage.reshape(-1), value.reshape(-1)) <= limit


def wrong_pairs(report: Mapping[str, Any], draws: Sequence[Draw]) -> list[str]:
    """Pairs whose two tensors are not one and the same with other weights and inputs, and how far apart they are."""
    found = []
    for pair in report["alignment"]["pairs"]:
        name = (pair["stage"], pair["call"], pair["output"])
        for draw in draws:
            stage, value = draw.stages[name], draw.values[pair["onnx_value"]]
            if not is_value(stage, value, pair["permutation"], ROUNDING):
                found.append(f"{name} = {pair['onnx_value']} by {', '.join(pair['evidence'])}")
                break
    return found


@dataclass(frozen=True)
class Covered:
    """Stages that have a value in the graph, by the truth; those without a pair; where theirs are."""

    there: int
    missed: tuple[str, ...]

    @property
    def share(self) -> float:
        return 1 - len(self.missed) / self.there if self.there else 1.0


def coverage(report: Mapping[str, Any], draws: Sequence[Draw]) -> Covered:
    """How many of the stages whose value the graph holds have a pair, whatever the tool says of the others."""
    paired = {(pair["stage"], pair["call"], pair["output"]) for pair in report["alignment"]["pairs"]}
    counted = [(row["stage"], row["call"], row["output"]) for row in report["stages"] if row["role"] == "judged"]
    missed = []
    for name in counted:
        if name not in paired:
            holders = [_holders(draw, name, ROUNDING) for draw in draws]
            both = [value for value in holders[0] if value in holders[1]]
            if both:
                missed.append(f"{name} is {', '.join(both[:4])}")
    there = sum(name in paired for name in counted) + len(missed)
    return Covered(there, tuple(missed))


def _holders(draw: Draw, name: Named, limit: float) -> list[str]:
    stage = draw.stages[name]
    if stage.size < 2 or not np.any(stage):
        return []
    orders = list(itertools.permutations(range(stage.ndim))) if stage.ndim <= 4 else [tuple(range(stage.ndim))]
    found = []
    for value, array in draw.values.items():
        if array.size == stage.size and _same_kind(array, stage):
            near = abs(np.linalg.norm(array.astype(np.float64)) / np.linalg.norm(stage.astype(np.float64)) - 1) < 0.1
            if near and any(is_value(stage, array, order, limit) for order in orders):
                found.append(value)
    return found


def _same_kind(one: Array, other: Array) -> bool:
    return (one.dtype.kind == "f") == (other.dtype.kind == "f")


def healthy(model: ModelProto, family: str) -> truth.Healthy:
    """The converted graph with all values that it computes from the family's own sample."""
    return truth.healthy(model, feeds_of(model, FAMILIES[family].inputs(0)))
