"""An origin's stage as trials need it: PyTorch's calls, the graph's nodes, and runs of the stage with nodes edited."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bisect_tool.backends import plain_layout
from bisect_tool.backends.costs import run_cost
from bisect_tool.backends.inside import Opened, Surroundings
from bisect_tool.backends.lower_precision import reduced
from bisect_tool.backends.onnx_program import Segment, type_of_array
from bisect_tool.backends.ort_runner import PartRuns
from bisect_tool.backends.otherwise import find_otherwise
from bisect_tool.backends.replay import AS_RUN, CannotReplayError, replay_values, slice_of
from bisect_tool.backends.runners import runner_of
from bisect_tool.backends.stream import in_onnx_form
from bisect_tool.backends.torch_runner import FACTORY_OPS, LAYOUT_OPS, to_numpy
from bisect_tool.backends.widening import widened
from bisect_tool.diagnose.calls import BEFORE, Call, Edit, Node, Operand, Step, Widened
from bisect_tool.diagnose.costs import stage_cost
from bisect_tool.diagnose.rules import Clue, Facts, answers
from bisect_tool.diagnose.trial import Fit, Trial
from bisect_tool.diagnose.trials import propose
from bisect_tool.diagnose.trials.numbers import read_elsewhere
from bisect_tool.diagnose.trying import Outcome, try_all
from bisect_tool.diagnose.weight_forms import Static
from bisect_tool.errors import InconclusiveError
from bisect_tool.recorder import Op, Ref
from bisect_tool.records import NumericConfig, SideCost, Stage
from bisect_tool.rows import from_here
from bisect_tool.weights import folding

Array = NDArray[Any]

_NOTHING = np.zeros(0, np.int8)

_FEW = 12
"""Nodes of a stage up to which those that were shown to be right are tried as well, should the others not be it."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What other stages tell of nodes that they share with an origin.

    Attributes:
        proven: names of nodes that are right, and so not to be changed.
        mending: what has mended them.
    """

    proven: Set[str] = frozenset()
    mending: Sequence[Trial] = ()


def find_cause(
    around: Surroundings,
    opened: Opened,
    stage: Stage,
    suspects: Sequence[str],
    parameters: Mapping[int, str],
    config: NumericConfig,
    seconds: float,
    elsewhere: Elsewhere | None = None,
) -> Outcome:
    """What mends an origin.

    Args:
        around, opened: the run and the stage.
        stage: the origin's.
        suspects: names of the nodes that hold the fault.
        parameters: names of the model's parameters and buffers by the address of their data.
        config: of ONNX Runtime's side.
        seconds: to spend at most.
        elsewhere: what other stages tell.

    Raises:
        CannotReplayError: PyTorch's side can't be computed again.
        InconclusiveError: ONNX Runtime refuses the stage on its own.
    """
    program = around.program
    part = program.part(opened.nodes)
    computed = [name for i in part.nodes for name in program.graph.nodes[i].outputs if name]
    runs = PartRuns(program, config, part, opened.feeds, around.types)
    made = runs.run({}, computed)
    # In topological order: of several values that are the same the first one is meant.
    values = {**opened.feeds, **{name: array for name, array in made.items() if array is not None}}
    calls, statics = _calls(around, opened, stage, parameters, values)
    bench = _Bench(around, opened, config, part, statics)
    nodes = _nodes(around, bench.model, values, bench.opset)
    first = [node for node in nodes if node.name in set(suspects)]
    actual = _in_shape(values.get(opened.output), opened)
    facts = Facts(first, nodes, calls, opened.expected, actual, bench.twice, bench.rounded)
    seen = list(answers(facts))
    clues = tuple(each for each in seen if isinstance(each, Clue))
    made_here = {name for node in nodes for name in node.outputs}
    elsewhere = elsewhere or Elsewhere()
    proposals: list[Trial | Fit] = [trial for trial in elsewhere.mending if _changes(trial.edit) <= made_here]
    proposals += [each for each in seen if isinstance(each, Trial)]
    named = frozenset(parameters.values())
    proposals += propose(first, calls, statics, bench.opset, nodes, named)
    if len(nodes) <= _FEW and len(first) < len(nodes):
        left_alone = program.moving | elsewhere.proven
        others = [node for node in nodes if node not in first and node.name not in left_alone]
        proposals += propose(others, calls, statics, bench.opset, nodes, named)
    proposals += read_elsewhere(first, calls, around.holding)

    began = time.perf_counter()
    outcome = try_all(proposals, bench.run, opened.expected, bench.is_right, seconds)
    otherwise = None
    if outcome.cause is None and actual is not None:
        off = actual
        match = around.matches[stage.value]
        if match.permutation is not None:
            off = off.transpose(np.argsort(match.permutation))
        rounds = reduced(around.tape, stage.value, opened.known, around.activations.tensor, off, "actual")
        clues += () if rounds is None else (rounds,)
        left = max(seconds - (time.perf_counter() - began), seconds / 4)
        with contextlib.suppress(CannotReplayError):
            otherwise = find_otherwise(around, opened, stage, actual, left)
    keys = frozenset(call.key for call in calls if call.key is not None)
    cost = None
    if outcome.cause is not None:
        with contextlib.suppress(InconclusiveError, ValueError, TypeError):
            cost = stage_cost(*_costs(bench.loaded(None), bench.loaded(outcome.cause.trial.edit)))
    return replace(outcome, clues=clues, calls=keys, otherwise=otherwise, cost=cost)


class _Bench:
    """A stage as a model of its own, which runs as it is and with edits.

    Args:
        around, opened: the run and the stage.
        config: of ONNX Runtime's side.
        part: the stage's nodes.
        statics: PyTorch's tensors of the stage that do not depend on the inputs.

    Attributes:
        model: the stage alone; its weights lie in the graph's folder.
        opset: of the graph.
        rounded: inputs that the graph takes in a narrower type, as the sample has them, by the model's input.
    """

    def __init__(
        self, around: Surroundings, opened: Opened, config: NumericConfig, part: Segment, statics: Sequence[Static]
    ):
        program = around.program
        types = {name: type_of_array(array.dtype, array.shape) for name, array in opened.feeds.items()}
        self._built = program.build(part, [opened.output], types)
        self.model = onnx.load_model_from_string(self._built.model)
        self.opset = next((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), 17)
        self.rounded = {
            name: around.rounded[value]
            for name, value in self._built.feeds.items()
            if value in around.rounded and value not in opened.cuts
        }
        self._around, self._opened, self._config, self._statics = around, opened, config, statics
        self._folder = str(program.weights_folder)
        self._feeds = {name: opened.feeds[value] for name, value in self._built.feeds.items()}

    def loaded(self, edit: Edit | Widened | None) -> _Loaded:
        """The stage with an edit, or as it is.

        Raises:
            InconclusiveError, ValueError, TypeError: no runtime takes it.
        """
        if isinstance(edit, Widened):
            arrays = [static.array for static in self._statics]
            edited = widened(self.model, edit.narrow, self._around.program.weight, arrays)
            given = self._wide_feeds(edit.narrow)
        else:
            edited = self.model if edit is None else _edited(self.model, edit)
            more = {} if edit is None else _new_inputs(self._around, self._opened, edited, edit)
            for name, array in more.items():
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                edited.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
            _check_sums(edited)
            given = {**self._feeds, **more}
        graph = runner_of(self._config).load(edited.SerializeToString(), self._config, self._folder)
        return _Loaded(lambda: graph.run([self._opened.output], given)[0], _weight_bytes(edited))

    def run(self, edit: Edit | Widened | None) -> Array | None:
        """The stage's value; ``None`` where no runtime takes the edit: that is an answer too."""
        with contextlib.suppress(InconclusiveError, ValueError, TypeError):
            return self.loaded(edit).run()
        return None

    def twice(self) -> tuple[Array, Array] | None:
        """Two runs of the stage as it is. In one session: each new one may start its random numbers alike."""
        with contextlib.suppress(InconclusiveError):
            loaded = runner_of(self._config).load(self._built.model, self._config, self._folder)
            one, two = (loaded.run([self._opened.output], self._feeds)[0] for _ in range(2))
            return None if one is None or two is None or one.size != two.size else (one, two)
        return None

    def is_right(self, made: Array) -> bool:
        """Whether a value is PyTorch's but for rounding."""
        expected = self._opened.expected
        if expected.dtype.kind in "fcV":
            return self._opened.close(expected, made)
        return bool(np.array_equal(expected, made))

    def _wide_feeds(self, narrow: str) -> dict[str, Array]:
        """The inputs in float32, as PyTorch has them, in place of those of a narrow type."""
        given = {}
        for name, have in self._feeds.items():
            array = have
            if have.dtype.name == narrow:
                match = self._opened.cuts.get(self._built.feeds[name])
                own = self.rounded.get(name) if match is None else self._around.activations.fetch(match.value)
                if own is not None and match is not None and match.permutation is not None:
                    own = own.transpose(match.permutation)
                array = np.ascontiguousarray(have if own is None else own, dtype=np.float32)
            given[name] = array
        return given


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The stage, edited or not, ready to run; ``weights``: their size in bytes."""

    run: Callable[[], Array | None]
    weights: int


def _costs(before: _Loaded, after: _Loaded) -> tuple[SideCost, SideCost, int, int]:
    return run_cost(before.run), run_cost(after.run), before.weights, after.weights


def _weight_bytes(model: onnx.ModelProto) -> int:
    read = {name for node in model.graph.node for name in node.input}
    return sum(
        math.prod(each.dims) * int(helper.tensor_dtype_to_np_dtype(each.data_type).itemsize)
        for each in model.graph.initializer
        if each.name in read
    )


def _in_shape(array: Array | None, opened: Opened) -> Array | None:
    return None if array is None or array.size != opened.expected.size else array.reshape(opened.expected.shape)


def _check_sums(edited: onnx.ModelProto) -> None:
    """Refuses an ``Einsum`` whose operands have other ranks than its equation: ONNX Runtime ends the process there.

    Raises:
        ValueError: there is one.
    """
    sums = [node for node in edited.graph.node if node.op_type == "Einsum"]
    if not sums:
        return
    bare = onnx.ModelProto()
    bare.CopyFrom(edited)
    # What stands there is of the stage as it was.
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*inferred.value_info, *inferred.input]
        if value.type.tensor_type.HasField("shape")
    }
    ranks |= {tensor.name: len(tensor.dims) for tensor in inferred.initializer}
    for node in sums:
        equation = next(each.s.decode() for each in node.attribute if each.name == "equation")
        terms = equation.replace(" ", "").partition("->")[0].split(",")
        for name, term in zip(node.input, terms, strict=False):
            if "..." not in term and ranks.get(name, len(term)) != len(term):
                raise ValueError(f"{node.name} takes {term!r}, and {name} has {ranks[name]} axes")


def _new_inputs(around: Surroundings, opened: Opened, edited: onnx.ModelProto, edit: Edit) -> dict[str, Array]:
    """Values at the stage's border that only the edit reads: the graph, as it is, has no use for them there."""
    graph = edited.graph
    there = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    there |= {name for node in graph.node for name in node.output}
    found: dict[str, Array] = {}
    for name in {given for step in edit.steps for given in step.inputs if isinstance(given, str)} - there:
        if name in opened.cuts:
            match = opened.cuts[name]
            array = around.activations.fetch(match.value)
            found[name] = in_onnx_form(array, match.permutation, around.types.get(name))
    return found


def parameter_names(module: torch.nn.Module) -> dict[int, str]:
    """Names of a model's parameters and buffers, by the address of their data."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {tensor.data_ptr(): name for name, tensor in named if tensor.layout is torch.strided and tensor.numel()}


# -- PyTorch's side ---------------------------------------------------------------------------------------------------


def _calls(
    around: Surroundings,
    opened: Opened,
    stage: Stage,
    parameters: Mapping[int, str],
    values: Mapping[str, Array],
) -> tuple[list[Call], list[Static]]:
    tape = around.tape
    ops = slice_of(tape, stage.value, opened.known)
    arrays: dict[int, Array] = {}
    left = around.budget

    def keep(value: int, tensor: torch.Tensor) -> None:
        nonlocal left
        # No trial has pairs of numbers for operands.
        if tensor.is_nested or tensor.is_complex():
            return
        size = tensor.numel() * tensor.element_size()
        if value not in arrays and size <= left and tensor.layout is torch.strided:
            left -= size
            arrays[value] = to_numpy(tensor.detach().clone())

    def after(op: Op, results: list[torch.Tensor]) -> None:
        for value, tensor in zip(op.outputs, results, strict=True):
            keep(value, tensor)

    replay_values(tape, {stage.value}, ops, around.activations.tensor, AS_RUN, None, after)
    statics: dict[int, Static] = {}
    names = {match.value: name for name, match in opened.cuts.items() if match.permutation is None}
    made = {value for op in ops for value in op.outputs}
    for op in ops:
        for value in op.inputs if op.name not in FACTORY_OPS else ():
            if value not in made:
                tensor = around.activations.tensor(value)
                keep(value, tensor)
                if not tape.values[value].dynamic and value in arrays:
                    name = parameters.get(tensor.data_ptr(), "PyTorch's constant")
                    statics[value] = Static(name, arrays[value])
    for op in ops:
        for value in op.outputs:
            have = arrays.get(value, _NOTHING)
            # A view of all of a weight is the weight in other layouts; a part of it is another one.
            part = any(arrays.get(each, have).size != have.size for each in op.inputs)
            computed = have.dtype.kind == "f" and (part or op.name not in LAYOUT_OPS)
            if computed and not tape.values[value].dynamic:
                known = [statics[each].name for each in op.inputs if each in statics]
                statics[value] = Static(f"{op.name} of {', '.join(known) or 'constants'}", arrays[value])

    def operand(value: int) -> Operand | None:
        if value not in arrays:
            return None
        static = not tape.values[value].dynamic
        return Operand(arrays[value], static, None if static else names.get(value) or _same(arrays[value], values))

    calls = [call for op in ops if (call := _call(op, operand, arrays)) is not None]
    found = [*statics.values(), *_folded(calls, statics)]
    return calls, [*found, *_in_blocks(found)] if around.program.moving else found


def _same(array: Array, values: Mapping[str, Array]) -> str | None:
    """The ONNX value that holds a tensor."""
    if array.dtype.kind != "f" or not array.size:
        return None
    for name, value in values.items():
        if (
            value.shape == array.shape
            and value.dtype == array.dtype
            and np.allclose(value, array, rtol=1e-4, atol=1e-6)
        ):
            return name
    return None


def _call(op: Op, operand: Any, arrays: Mapping[int, Array]) -> Call | None:
    if op.call is None or op.name == "alias_update":
        return None
    func, args, kwargs = op.call
    schema = getattr(func, "_schema", None)
    if schema is None:
        return None

    def plain(item: Any) -> Any:
        if isinstance(item, Ref):
            return operand(item.id)
        if isinstance(item, (list, tuple)):
            return [plain(each) for each in item]
        return item

    arguments: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        given = args[place] if place < len(args) else kwargs.get(argument.name, inspect.Parameter.empty)
        if given is inspect.Parameter.empty:
            given = argument.default_value if argument.has_default_value() else None
        arguments[argument.name] = plain(given)
    result = next((arrays[v] for v in op.outputs if v in arrays), None)
    return Call(op.name, arguments, result, from_here(op.source), op.outputs[0] if op.outputs else None)


def _in_blocks(statics: Sequence[Static]) -> list[Static]:
    """The same tensors as ONNX Runtime's blocked layout has them."""
    block = plain_layout.block_size()
    floats = [static for static in statics if static.array.dtype.kind == "f"]
    return [Static(each.name, array) for each in floats for array in plain_layout.in_blocks(each.array, block)]


def _folded(calls: Sequence[Call], statics: Mapping[int, Static]) -> list[Static]:
    """Weights with a BatchNorm folded in, and a BatchNorm as one factor and one summand for each channel."""
    names = {id(static.array): static.name for static in statics.values()}
    found: list[Static] = []
    products = [call for call in calls if call.name in ("convolution", "_convolution", "addmm", "mm", "linear")]
    for call in calls:
        mean, variance = call.operand("running_mean"), call.operand("running_var")
        if "batch_norm" not in call.name or mean is None or variance is None:
            continue
        eps = float(call.arguments.get("eps", call.arguments.get("epsilon", 1e-5)))
        weight, bias = (None if each is None else each.array for each in (call.operand("weight"), call.operand("bias")))
        norm = folding(mean.array, variance.array, weight, bias, eps)
        found += [Static("the BatchNorm's factor", norm.scale), Static("the BatchNorm's summand", norm.bias())]
        for product in products:
            kernel, summand = product.operand("weight", "mat2"), product.operand("bias")
            if kernel is None or kernel.array.ndim < 2:
                continue
            name = names.get(id(kernel.array), "the weight")
            axis = 1 if product.arguments.get("transposed") else 0
            if kernel.array.shape[axis] == norm.scale.size:
                base = 0.0 if summand is None else summand.array
                found.append(Static(f"{name} with the BatchNorm folded in", norm.weight(kernel.array, axis)))
                found.append(Static(f"the bias of {name} with the BatchNorm folded in", norm.bias(base)))
    return found


# -- the graph's side -------------------------------------------------------------------------------------------------


def _nodes(around: Surroundings, model: onnx.ModelProto, values: Mapping[str, Array], opset: int) -> list[Node]:
    """The stage's nodes, in topological order."""
    program = around.program
    names = {name: node.name for node in program.graph.nodes for name in node.outputs if name}
    made = {output: node for node in model.graph.node for output in node.output if output}
    constants: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type == "Constant" and not node.domain:
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = numpy_helper.to_array(attribute.t)
    for tensor in model.graph.initializer:
        constants[tensor.name] = program.weight(tensor.name)
    shapes = {name: tuple(array.shape) for name, array in {**constants, **values}.items()}
    floats = {name: array for name, array in values.items() if array.dtype.kind in "fV"}
    others = {name: array for name, array in values.items() if array.dtype.kind in "iub"}
    found = []
    for node in model.graph.node:
        if node.op_type == "Constant" or not any(node.output):
            continue
        output = next(name for name in node.output if name)
        assert made[output] is node or made[output].output[0] == node.output[0]
        used = {name: floats[name] for name in [*node.input, *node.output] if name in floats}
        found.append(
            Node(
                name=names[output],
                op=f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type,
                attributes=_attributes(node, opset),
                inputs=tuple(node.input),
                constants={place: constants[name] for place, name in enumerate(node.input) if name in constants},
                outputs=tuple(node.output),
                values=used,
                shapes={name: shapes[name] for name in [*node.input, *node.output] if name in shapes},
                others={name: others[name] for name in [*node.input, *node.output] if name in others},
            )
        )
    return found


_PLAIN = (
    onnx.AttributeProto.INT,
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.STRINGS,
)


def _attributes(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """Attributes as Python values, defaults of the operator's schema filled in."""
    found: dict[str, Any] = {}
    # Operators of other domains have no schema here.
    with contextlib.suppress(onnx.defs.SchemaError):
        for name, attribute in onnx.defs.get_schema(node.op_type, opset, node.domain).attributes.items():
            if attribute.default_value.type in _PLAIN[:3]:
                found[name] = _value(attribute.default_value)
    for given in node.attribute:
        if given.type in _PLAIN:
            found[given.name] = _value(given)
    return found


def _value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [each.decode(errors="replace") for each in value]
    return list(value) if attribute.type in _PLAIN[3:] else value


def _changes(edit: Edit | Widened) -> set[str]:
    """Outputs of the nodes that an edit replaces; all of a stage is nobody else's."""
    if isinstance(edit, Widened):
        return {""}
    return {edit.output}.union(*(_changes(each) for each in edit.more))


def _edited(model: onnx.ModelProto, edit: Edit) -> onnx.ModelProto:
    """A copy of the model with a node replaced."""
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    graph = edited.graph
    place = next((i for i, node in enumerate(graph.node) if edit.output in node.output), None)
    if place is None:
        raise ValueError(f"no node makes {edit.output}")
    old = onnx.NodeProto()
    old.CopyFrom(graph.node[place])
    made: list[onnx.NodeProto] = []
    before = f"{edit.output}__before"
    for number, step in enumerate(edit.steps):
        last = number == len(edit.steps) - 1
        inputs = [_named(graph, given, before, f"{edit.output}__{number}_{i}") for i, given in enumerate(step.inputs)]
        outputs = list(old.output) if last and not edit.keep else [edit.output] if last else [step.output or ""]
        made.append(_node(step, inputs, [outputs[i] for i in step.order] or outputs, old))
        made[-1].name = f"{old.name}__tried_{number}"
    if edit.keep:
        kept = graph.node[place]
        kept.output[list(kept.output).index(edit.output)] = before
        place += 1
    else:
        del graph.node[place]
        if len(old.output) > 1 and edit.steps[-1].op != _op(old):
            # Another operator has but one result; what reads the others keeps what the node made.
            made[-1].output[:] = [edit.output]
    # What the steps read may be made further on.
    others = list(graph.node)
    ready = {name for node in others[:place] for name in node.output}
    later = {name for node in others[place:] for name in node.output}
    while any(name in later - ready for node in made for name in node.input) and place < len(others):
        ready |= set(others[place].output)
        place += 1
    del graph.node[:]
    graph.node.extend([*others[:place], *made, *others[place:]])
    for each in edit.more:
        edited = _edited(edited, each)
    return edited


def _op(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _named(graph: onnx.GraphProto, given: str | Array | None, before: str, name: str) -> str:
    if given is None:
        return ""
    if isinstance(given, str):
        return before if given == BEFORE else given
    graph.initializer.append(numpy_helper.from_array(np.asarray(given, order="C"), name))
    return name


def _node(step: Step, inputs: Sequence[str], outputs: Sequence[str], old: onnx.NodeProto) -> onnx.NodeProto:
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    domain, _, op = step.op.rpartition("::")
    node = helper.make_node(op, list(inputs), list(outputs), name=f"{old.name}__tried", domain=domain)
    if step.op == _op(old):
        known = {attribute.name: attribute for attribute in old.attribute}
        for name, value in step.attributes.items():
            if name in known and _value_of(known[name]) == value:
                continue
            if value is None:
                known.pop(name, None)
                continue
            known[name] = helper.make_attribute(name, value)
        node.attribute.extend(known.values())
    else:
        node.attribute.extend(helper.make_attribute(name, value) for name, value in step.attributes.items())
    return node


def _value_of(attribute: onnx.AttributeProto) -> Any:
    return _value(attribute) if attribute.type in _PLAIN else None


__all__ = ["CannotReplayError", "find_cause", "parameter_names"]
