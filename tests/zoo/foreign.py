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
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import judging
import numpy as np
import onnx
import onnxruntime as ort
import torch
import truth
from families import FAMILIES, built_with, export_to, exported, name_nodes
from faults import KINDS, Fault, faults
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

Array = NDArray[Any]
Named = tuple[str, int, "int | str"]

OTHER_SEEDS = (101, 202)
"""Of weights and inputs that the tool never sees."""

LEAST_COVERAGE = 0.98
"""Of stages that have a value in the graph."""

GROSS = 5e-2
"""Relative L2 by which a fault must move its own value in a graph that is to be converted to float16."""

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


_BLOCKED = "com.microsoft.nchwc"

CONVERSIONS: dict[str, Callable[[ModelProto], ModelProto]] = {
    "as exported": _as_exported,
    "onnxsim": _simplified,
    "onnxslim": _slimmed,
    "ort basic": _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "ort extended": _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    "scrambled": scrambled,
    "float16": _halved,
    "ort extended, scrambled": lambda model: scrambled(CONVERSIONS["ort extended"](model)),
    "ort all": _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
    "ort all, scrambled": lambda model: scrambled(CONVERSIONS["ort all"](model)),
}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(io.StringIO()):
        yield


@functools.cache
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
    """All tensors of one draw of weights and inputs, on both sides: stages of PyTorch's, and values of the graph.

    ``filled``: values of a blocked layout, which may have more channels than PyTorch's, up to a whole block.
    """

    stages: Mapping[Named, Array]
    values: Mapping[str, Array]
    filled: frozenset[str] = frozenset()

    def value(self, name: str, stage: Array) -> Array:
        """A value of the graph, without the channels that only fill its last block."""
        array = self.values[name]
        if name in self.filled and array.ndim == stage.ndim and array.shape[1] > stage.shape[1]:
            return array[:, : stage.shape[1]]
        return array


@functools.cache
def other_model(family: str, seed: int) -> torch.nn.Module:
    return built_with(family, seed)


@functools.cache
def other_stages(family: str, seed: int) -> Mapping[Named, Array]:
    """PyTorch's tensors by stage: what a stage is, the recorder says; modules are checked against plain hooks in a test."""
    from bisect_tool.backends.torch_runner import TorchRun

    tensors: dict[int, Array] = {}
    run = TorchRun(
        other_model(family, seed),
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
        export_to(path, other_model(family, seed), family, exporter)
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
        called = _counterparts(model, like)
        assert called is not None, f"{family} {exporter} {conversion}: the nodes depend on the weights"
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
        filled = _out_of_blocks(shown, values)
        # ONNX Runtime's optimiser numbers what it makes in an order of the moment.
        known = {called.get(name, name): array for name, array in {**values, **filled}.items()}
        found.append(Draw(other_stages(family, seed), known, frozenset(called.get(name, name) for name in filled)))
    return tuple(found)


def _out_of_blocks(model: ModelProto, values: Mapping[str, Array]) -> dict[str, Array]:
    """Values of ONNX Runtime's blocked layout with their channels in order, told by those that it turns back itself."""
    blocked: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "ReorderOutput" and (node.domain == _BLOCKED or not blocked.isdisjoint(node.input)):
            blocked.update(node.output)

    def turned(array: Array, size: int) -> Array:
        batch, channels, *rest = array.shape
        parts = array.reshape(batch, channels // size, *rest, size)
        return np.moveaxis(parts, -1, 2).reshape(array.shape)

    back = [node for node in model.graph.node if node.op_type == "ReorderOutput"]
    pairs = [
        (node.input[0], node.output[0])
        for node in back
        if not any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute)
    ]
    if not blocked:
        return {}
    for size in (16, 8):
        made = ((turned(values[one], size), values[two]) for one, two in pairs if values[one].shape[1] % size == 0)
        if all(np.array_equal(array[:, : plain.shape[1]], plain) for array, plain in made):
            return {name: turned(values[name], size) for name in blocked}
    raise AssertionError("no block size turns these values back")


def _counterparts(model: ModelProto, like: ModelProto) -> dict[str, str] | None:
    """Names of another file for the values of one, told by following both from their outputs; ``None``: they differ."""
    makers = [{name: node for node in file.graph.node for name in node.output} for file in (model, like)]
    found: dict[str, str] = {}
    left = [(one.name, two.name) for one, two in zip(model.graph.output, like.graph.output, strict=True)]
    while left:
        name, other = left.pop()
        if found.setdefault(name, other) != other:
            return None
        first, second = makers[0].get(name), makers[1].get(other)
        if first is None or second is None:
            if first is not second:
                return None
            continue
        if (first.op_type, len(first.input), len(first.output)) != (
            second.op_type,
            len(second.input),
            len(second.output),
        ):
            return None
        pairs = [*zip(first.input, second.input, strict=True), *zip(first.output, second.output, strict=True)]
        left += [pair for pair in pairs if pair[0] not in found]
    return found


def feeds_of(model: ModelProto, tensors: Sequence[torch.Tensor]) -> dict[str, Array]:
    """The positional inputs of a PyTorch model for its graph, whose inputs stand in the same order."""
    feeds = truth.feeds_of(model, [tensor.numpy() for tensor in tensors])
    half = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return {name: array.astype(np.float16) if name in half else array for name, array in feeds.items()}


def is_value(stage: Array, value: Array, order: Sequence[int] | None, limit: float) -> bool:
    """Whether the graph's value is PyTorch's tensor with its axes in that order, reshaped."""
    if order is not None and len(order) != stage.ndim and value.ndim == len(order) and stage.size == value.size:
        # Axes were split or merged first, so that in this order they have the value's shape.
        stage = stage.reshape([value.shape[place] for place in np.argsort(order)])
    if order is not None:
        stage = stage.transpose(order)
    return stage.size == value.size and truth.relative(stage.reshape(-1), value.reshape(-1)) <= limit


def wrong_pairs(report: Mapping[str, Any], draws: Sequence[Draw]) -> list[str]:
    """Pairs whose two tensors are not one and the same with other weights and inputs, and how far apart they are."""
    found = []
    for pair in report["alignment"]["pairs"]:
        name = (pair["stage"], pair["call"], pair["output"])
        for draw in draws:
            stage = draw.stages[name]
            value = draw.value(pair["onnx_value"], stage)
            if not is_value(stage, value, pair["permutation"], ROUNDING):
                found.append(f"{name} = {pair['onnx_value']} by {', '.join(pair['evidence'])}")
                break
    return found


def coverage(report: Mapping[str, Any], draws: Sequence[Draw]) -> tuple[int, list[str]]:
    """Number of stages whose value the graph holds, whatever the tool says of them, and those of them without a pair."""
    paired = {(pair["stage"], pair["call"], pair["output"]) for pair in report["alignment"]["pairs"]}
    counted = [(row["stage"], row["call"], row["output"]) for row in report["stages"] if row["role"] == "judged"]
    missed = []
    for name in counted:
        if name not in paired:
            holders = [_holders(draw, name, ROUNDING) for draw in draws]
            both = [value for value in holders[0] if value in holders[1]]
            if both:
                missed.append(f"{name} is {', '.join(both[:4])}")
    return sum(name in paired for name in counted) + len(missed), missed


def _holders(draw: Draw, name: Named, limit: float) -> list[str]:
    stage = draw.stages[name]
    if stage.size < 2 or not np.any(stage):
        return []
    orders = list(itertools.permutations(range(stage.ndim))) if stage.ndim <= 4 else [tuple(range(stage.ndim))]
    found = []
    for value in draw.values:
        array = draw.value(value, stage)
        if array.size == stage.size and _same_kind(array, stage):
            near = abs(np.linalg.norm(array.astype(np.float64)) / np.linalg.norm(stage.astype(np.float64)) - 1) < 0.1
            if near and any(is_value(stage, array, order, limit) for order in orders):
                found.append(value)
    return found


def _same_kind(one: Array, other: Array) -> bool:
    return (one.dtype.kind == "f") == (other.dtype.kind == "f")


# -- the tool's answers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aligned:
    """What the tool makes of a healthy file after a conversion.

    Attributes:
        status: the verdict.
        origins: how many stages it blames.
        pairs: how many it reports.
        wrong: those that are no pairs by the truth.
        there: stages to judge that have a value in the graph, by the truth.
        missed: those of them without a pair, and where theirs are.
        claimed: the tool's own coverage.
        ambiguous: pairs that it calls so.
        seconds: that it took.
        error: what it raised instead of an answer.
    """

    family: str
    exporter: str
    conversion: str
    status: str = ""
    origins: int = 0
    pairs: int = 0
    wrong: tuple[str, ...] = ()
    there: int = 0
    missed: tuple[str, ...] = ()
    claimed: float = 0.0
    ambiguous: int = 0
    seconds: float = 0.0
    error: str | None = None

    @property
    def coverage(self) -> float:
        return 1 - len(self.missed) / self.there if self.there else 0.0

    @property
    def right(self) -> bool:
        return self.status == "agrees" and not self.origins and not self.wrong and self.coverage >= LEAST_COVERAGE


def aligned(family: str, exporter: str, conversion: str, folder: Path | None = None) -> Aligned:
    """Puts the tool to a healthy file after a conversion, and its pairs to the truth."""
    blank = Aligned(family, exporter, conversion)
    model = converted(family, exporter, conversion, folder)
    draws = draws_of(family, exporter, conversion, model, folder)
    began = time.perf_counter()
    try:
        report = judging.report_on(family, model, threads=1)
    except Exception as error:  # anything: that is what is being measured
        return replace(blank, status="error", error=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    seconds = time.perf_counter() - began
    there, missed = coverage(report, draws)
    pairs = report["alignment"]["pairs"]
    return replace(
        blank,
        status=report["verdict"]["status"],
        origins=len(report["verdict"]["origins"]),
        pairs=len(pairs),
        wrong=tuple(wrong_pairs(report, draws)),
        there=there,
        missed=tuple(missed),
        claimed=report["alignment"]["coverage"] or 0.0,
        ambiguous=sum("ambiguous" in pair["evidence"] for pair in pairs),
        seconds=round(seconds, 3),
    )


def planted(family: str, exporter: str, conversion: str, count: int, folder: Path | None = None) -> Iterator[Fault]:
    """Faults of different kinds, from a frozen random order of them, in a file after a conversion.

    Of float16 the file before it gets the fault, a gross one: rounding moves every value by 1e-3.
    """
    narrow = conversion == "float16"
    model = converted(family, exporter, "as exported" if narrow else conversion, folder)
    feeds = feeds_of(model, FAMILIES[family].inputs(0))
    base = truth.healthy(model, feeds)
    seed = f"foreign {family} {exporter} {conversion}"
    kinds = sorted(KINDS)
    random.Random(seed).shuffle(kinds)
    for kind in kinds:
        for fault in faults(base, kind, seed, 1) if count else ():
            if not narrow:
                yield fault
                count -= 1
                continue
            found = _converted(fault.model, conversion)
            kept = set(fault.nodes) <= {node.name for node in found.graph.node}
            if fault.moved >= GROSS and kept and truth.can_run(found, feeds_of(found, FAMILIES[family].inputs(0))):
                yield replace(fault, model=found)
                count -= 1


def answer(family: str, exporter: str, conversion: str, fault: Fault, folder: Path | None = None) -> judging.Result:
    """The tool's answer on a fault in a file after a conversion."""
    base = truth.healthy(
        model := converted(family, exporter, conversion, folder), feeds_of(model, FAMILIES[family].inputs(0))
    )
    name = f"{family}/{exporter}/{conversion}/{fault.kind}"
    draws = draws_of(family, exporter, conversion, model, folder)

    def wrong(report: Mapping[str, Any]) -> list[str]:
        # Where a fault sits, a value keeps its name; what it put in besides stands for nothing, and has no truth.
        pairs = [pair for pair in report["alignment"]["pairs"] if pair["onnx_value"] in draws[0].values]
        return wrong_pairs({"alignment": {"pairs": pairs}}, draws)

    return judging.with_fault(family, exporter, fault, name, base, wrong, threads=1)
