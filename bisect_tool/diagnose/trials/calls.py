"""Trials towards what PyTorch's calls say: attributes, constants, another operator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import BEFORE, Call, Edit, Node, Operand, Step
from bisect_tool.diagnose.causes import ATTRIBUTE, CONSTANT, MISSING, OPERANDS, OPERATOR
from bisect_tool.diagnose.onnx_forms import Form, forms, gelu_steps, summand, written_out
from bisect_tool.diagnose.trial import Trial
from bisect_tool.diagnose.trials.editing import (
    an,
    are_close,
    are_equal,
    are_equal_arrays,
    counted_as,
    holds_result,
    numbers_of,
    size_of,
    value_text,
    with_changes,
)

Array = NDArray[Any]


def towards_calls(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """The node's own operator with the attributes and constants of PyTorch's call."""
    for call in calls:
        for form in itertools.chain.from_iterable(_padded(call, form, calls) for form in forms(call, opset)):
            if form.op != node.op:
                continue
            if _rank_differs(node, form):
                continue
            attributes = {
                name: value
                for name, value in form.attributes.items()
                if (have := counted_as(node, name, value)) is not None and not are_equal(have, value)
            }
            constants = {
                place: _like(given, node.constants[place])
                for place, given in ((place, _constant(each)) for place, each in enumerate(form.inputs))
                if given is not None
                and place in node.constants
                and (node.constants[place].size == given.size or _is_list(node.constants[place], given))
                and not are_equal_arrays(node.constants[place], given)
            }
            if "pads" in attributes and node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
                attributes["auto_pad"] = "NOTSET"
            if attributes:
                text = ", ".join(
                    f"{name} is {value_text(counted_as(node, name, each))}" for name, each in attributes.items()
                )
                right = ", ".join(f"{name} {value_text(value)}" for name, value in attributes.items())
                code, text = ATTRIBUTE, f"{node.op} {node.name}: {text}; PyTorch's {call.name} has {right}"
            elif constants:
                parts = [
                    f"{node.inputs[place] or f'input {place}'} is {value_text(node.constants[place])}"
                    for place in constants
                ]
                right = ", ".join(value_text(value) for value in constants.values())
                code, text = CONSTANT, f"{node.op} {node.name}: {', '.join(parts)}; PyTorch's {call.name} has {right}"
            else:
                continue
            thing = f"{node.name} {sorted(attributes)}" if attributes and not constants else ""
            # The first screen shows the remedy and not the evidence: which attribute, and to what, belongs into it.
            to = ", ".join(f"{name} to {value_text(value)}" for name, value in attributes.items())
            remedy = f"set {to + ',' if to else 'it'} as PyTorch's {call.name} has it"
            yield Trial(code, node.name, text, remedy, with_changes(node, attributes, constants), thing=thing)


def _padded(call: Call, form: Form, calls: Sequence[Call]) -> Iterator[Form]:
    """A convolution with zeros around its input folded in, as exporters write it, and without."""
    own, given = form.attributes.get("pads"), call.operand("input")
    if own is not None and given is not None and form.op == "Conv":
        for before in calls:
            if before.name != "constant_pad_nd" or before.arguments.get("value") or before.result is None:
                continue
            if before.result.shape == given.array.shape and np.array_equal(before.result, given.array):
                pads = list(own)
                numbers = [int(number) for number in before.arguments["pad"]]
                rank = len(pads) // 2
                # From the last axis on, both ends side by side.
                for place in range(min(rank, len(numbers) // 2)):
                    pads[rank - 1 - place] += numbers[2 * place]
                    pads[2 * rank - 1 - place] += numbers[2 * place + 1]
                yield replace(form, attributes={**form.attributes, "pads": pads})
    yield form


def _constant(given: Operand | Array | None) -> Array | None:
    """What a call has as a constant: numbers, and whole numbers that it was given as a tensor; weights have their own."""
    if isinstance(given, Operand):
        return given.array if given.static and (given.array.dtype.kind in "iub" or given.array.size == 1) else None
    return given


def _like(given: Array, have: Array) -> Array:
    """Numbers of a call in the type and shape that the node's constant has."""
    with np.errstate(all="ignore"):
        return given.astype(have.dtype).reshape(have.shape if have.size == given.size else -1)


def _is_list(have: Array, given: Array) -> bool:
    """Whether a constant is a list of whole numbers, such as axes, of which there may be too many or too few."""
    return have.ndim == 1 and have.dtype.kind == "i" and given.dtype.kind == "i" and given.ndim == 1


def replaced_nodes(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """PyTorch's operation in the node's place: first on the node's own inputs, then on PyTorch's operands."""
    size = size_of(node, node.output)
    own: list[Trial] = []
    others: list[Trial] = []
    for call in calls:
        if call.result is None or (size is not None and call.result.size != size):
            continue
        for form in forms(call, opset):
            if not form.inputs or any(each is None for each in form.inputs[: form.operands]):
                continue
            if _rank_differs(node, form):
                continue
            same = form.op == node.op
            # What the node reads is this result already: nothing of the call is missing.
            if node.op in _PLAIN and any(holds_result(node.values.get(name), call.result) for name in node.inputs):
                continue
            inputs = tuple(resolved_input(each, node) for each in form.inputs)
            reads = [name for name in inputs[: form.operands] if isinstance(name, str)]
            if same and not _differs(node, inputs, form):
                continue
            # A tensor of PyTorch's in place of one that the graph computes would mend any fault before it.
            given = zip(form.inputs[: form.operands], inputs, strict=False)
            foreign = any(isinstance(one, Operand) and not one.static and not isinstance(to, str) for one, to in given)
            if foreign and not (reads and node.op in _PLAIN):
                continue
            # The same of one that is made of constants alone.
            if node.op in _PLAIN and not reads:
                continue
            found = own if reads and set(reads) <= set(node.inputs) else others
            found.append(_replacement(node, call, form, inputs, opset))
    yield from own
    yield from _without_bias(node, calls)
    yield from _without_affine(node, calls)
    yield from _without_step(node, calls)
    yield from others


def _without_bias(node: Node, calls: Sequence[Call]) -> Iterator[Trial]:
    """The bias of a product or a normalisation, where the graph has nothing in the place of its sum."""
    norm = node.op == "LayerNormalization" and not any(node.inputs[2:])
    product = norm or node.op in ("MatMul", "Conv", "ConvTranspose", "Gemm")
    if not node.inputs or not (product or node.op in _PLAIN):
        return
    shape = node.shapes.get(node.output, ())
    for call in calls:
        bias = summand(call)
        if norm:
            bias = call.operand("bias") if call.name in ("native_layer_norm", "layer_norm") else None
        if bias is None or not bias.static or bias.array.ndim != 1 or call.result is None:
            continue
        # Channels come last in products and second in convolutions.
        for axis in {len(shape) - 1, len(shape) - 1 if norm else 1}:
            if 0 <= axis < len(shape) and shape[axis] == bias.array.size:
                spread = bias.array.reshape([-1 if i == axis else 1 for i in range(len(shape))])
                where = f"behind {node.name}" if product else f"{node.name} is a mere {node.op}"
                read = BEFORE if product else node.inputs[0]
                yield Trial(
                    MISSING,
                    node.name,
                    f"the bias that PyTorch's {call.name} adds is missing: {where}",
                    "the graph needs an Add there: export it again, or with another exporter or opset",
                    Edit(node.output, (Step("Add", (read, spread), {}),), keep=product),
                )


def _without_affine(node: Node, calls: Sequence[Call]) -> Iterator[Trial]:
    """A factor or a summand by channel of a normalisation that the graph writes out in several nodes, and leaves one out."""
    shape = node.shapes.get(node.output, ())
    if len(shape) < 2 or not node.inputs or node.op not in _BEFORE_AFFINE | _PLAIN:
        return
    for call in calls:
        axis = _CHANNEL_AXIS.get(call.name, 0) % len(shape)
        for name, op in _AFFINE.get(call.name, _OF_NORM) if call.name in _CHANNEL_AXIS else ():
            given = call.operand(name)
            if given is None or not given.static or given.array.shape != (shape[axis],):
                continue
            spread = given.array.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            yield _missing(node, f"the {name} of PyTorch's {call.name}", op, spread)


def _missing(node: Node, what: str, op: str, *operands: Array) -> Trial:
    """A step put in behind a node, or in the place of one that hands on what it reads."""
    # A Reshape that does reshape is no step of PyTorch's by itself.
    plain = node.op in _PLAIN and node.shapes.get(node.inputs[0]) == node.shapes.get(node.output)
    where = f"{node.name} is a mere {node.op}" if plain else f"behind {node.name}"
    return Trial(
        MISSING,
        node.name,
        f"{what} is missing: {where}",
        f"the graph needs a node {op} there: export it again, or with another exporter or opset",
        Edit(node.output, (Step(op, (node.inputs[0] if plain else BEFORE, *operands), {}),), keep=not plain),
    )


_CHANNEL_AXIS = {
    **dict.fromkeys(("native_group_norm", "group_norm", "native_batch_norm", "batch_norm", "instance_norm"), 1),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "cudnn_batch_norm"), 1),
    **dict.fromkeys(
        ("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm", "_native_multi_head_attention"), -1
    ),
}
"""Axis of the channels, by PyTorch's operation."""

_OF_NORM = (("bias", "Add"), ("weight", "Mul"))
_AFFINE = {"_native_multi_head_attention": (("proj_bias", "Add"), ("qkv_bias", "Add"))}
"""Operands by channel and what is done with them, where these are not a normalisation's."""

_BEFORE_AFFINE = frozenset(["InstanceNormalization", "Reshape", "Div", "Mul", "Add", "MatMul", "Gemm"])
"""Nodes behind which the rest of an operation that is written out may be missing."""


def _without_step(node: Node, calls: Sequence[Call]) -> Iterator[Trial]:
    """A step without operands of its own that an operation is written out with, where the graph leaves it out."""
    for call in calls:
        for op in _STEPS.get(call.name, ()) if node.inputs and node.op != "Constant" else ():
            yield _missing(node, f"a {op} of PyTorch's {call.name}", op)


_STEPS = {
    "rsqrt": ("Sqrt", "Reciprocal"),
    **dict.fromkeys(("std", "std_mean", "norm", "linalg_vector_norm", "cdist", "_cdist_forward"), ("Sqrt",)),
    **dict.fromkeys(("logsumexp", "log_softmax", "_log_softmax", "log1p", "softplus"), ("Log", "Exp")),
}
"""Steps of PyTorch's operations that graphs write out."""


def _rank_differs(node: Node, form: Form) -> bool:
    """Whether a form is for windows of another number of axes than the node's input has."""
    pads, shape = form.attributes.get("pads"), node.shapes.get(node.inputs[0]) if node.inputs else None
    return isinstance(pads, list) and shape is not None and len(pads) != 2 * (len(shape) - 2)


def _replacement(node: Node, call: Call, form: Form, inputs: tuple[str | Array | None, ...], opset: int) -> Trial:
    missing = node.op in _PLAIN
    if form.op == node.op:
        code = OPERANDS
        text = f"{node.op} {node.name} reads other operands than PyTorch's {call.name}"
    elif missing:
        code = MISSING
        text = f"PyTorch's {call.name} is missing: {node.name} is a mere {node.op}"
    else:
        code = OPERATOR
        text = f"{node.name} is {an(node.op)}, where PyTorch computes {call.name}{numbers_of(call)}"
    attributes = dict(form.attributes)
    remedy = f"the graph needs {an(form.op)} there: export it again, or with another exporter or opset"
    edit = Edit(node.output, call_steps(form.op, inputs, attributes, opset))
    return Trial(code, node.name, text, remedy, edit, call.key if code == MISSING else None)


_PARTS: Mapping[str, frozenset[str]] = {
    "Gelu": frozenset(["Pow", "Mul", "Add", "Sum", "Tanh", "Erf", "Div", "Sqrt"]),
    "Mish": frozenset(["Softplus", "Exp", "Log", "Add", "Tanh", "Mul"]),
    "Swish": frozenset(["Sigmoid", "Mul", "Neg", "Exp", "Add", "Div", "Reciprocal"]),
    "HardSwish": frozenset(["HardSigmoid", "Add", "Clip", "Mul", "Div"]),
    "Softmax": frozenset(["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]),
    "LogSoftmax": frozenset(["ReduceMax", "ReduceLogSumExp", "Sub", "Exp", "ReduceSum", "Log"]),
    # With a factor: multiplied, and divided again.
    "Softplus": frozenset(["Exp", "Add", "Log", "Mul", "Div", "Where", "Softplus"]),
    "Softsign": frozenset(["Abs", "Add", "Div"]),
    "HardSigmoid": frozenset(["Add", "Clip", "Div", "Mul", "Min", "Max"]),
    "Sigmoid": frozenset(["Mul", "Neg", "Exp", "Add", "Div", "Reciprocal"]),
    "Tanh": frozenset(["Mul", "Neg", "Exp", "Add", "Sub", "Div"]),
    "LeakyRelu": frozenset(["Mul", "Max", "Min", "Neg", "Add", "Sub", "Where", "Greater", "GreaterOrEqual", "Less"]),
    "Elu": frozenset(["Mul", "Exp", "Add", "Sub", "Max", "Min", "Where", "Greater", "GreaterOrEqual", "Less"]),
    "Celu": frozenset(["Mul", "Div", "Exp", "Add", "Sub", "Max", "Min", "Where", "Greater"]),
    "Selu": frozenset(["Mul", "Exp", "Add", "Sub", "Max", "Min", "Where", "Greater"]),
}
"""What exporters write operators as, where they write several nodes."""


def _whole(edit: Edit) -> str | None:
    """The operator that an edit puts in as a whole, though it may be in several steps; ``None``: it is none of those."""
    ops = [step.op for step in edit.steps]
    if len(ops) == 1:
        return ops[0] if ops[0] in _PARTS else None
    return next((op for op, parts in _PARTS.items() if set(ops) <= parts), None)


def is_part(node: Node, edit: Edit, stage: Sequence[Node]) -> bool:
    """Whether a node is one of several that together are the operator that would take its place.

    In the place of the last of them the whole operator mends whatever is wrong in any.
    """
    parts = _PARTS.get(_whole(edit) or "", frozenset())
    return node.op in parts and sum(each.op in parts for each in stage) > 1


def other_parts(node: Node, calls: Sequence[Call], stage: Sequence[Node]) -> Iterator[Trial]:
    """A function that PyTorch's operation has none of, where one that it is made of is not among the stage's nodes."""
    if len(node.inputs) != 1 or not node.inputs[0]:
        return
    there = {each.op for each in stage}
    for call in calls:
        for op, parts in written_out(call).items():
            missing = [part for part in parts if part in _FUNCTIONS and part not in there]
            if node.op in parts or node.op not in _FUNCTIONS or len(missing) != 1:
                continue
            yield Trial(
                OPERATOR,
                node.name,
                f"{node.name} is {an(node.op)}, where PyTorch's {call.name}, written out, has {an(missing[0])}",
                f"the graph needs {an(missing[0])} there, or {an(op)} for all of it: export it again",
                Edit(node.output, (Step(missing[0], (node.inputs[0],), {}),)),
            )


_FUNCTIONS = frozenset(
    ["Erf", "Tanh", "Sigmoid", "Softplus", "Exp", "Log", "Sqrt", "Relu", "Softsign", "HardSigmoid", "Sin", "Cos", "Abs"]
)
"""Functions of one number that one may stand where another belongs."""


def in_doubt(trial: Trial) -> Trial:
    """The whole of an operator in the place of a part: a way to mend it that does not say what is wrong."""
    text = (
        f"not certain: {trial.text}, but it may be one of several nodes that compute it, and another of them be wrong"
    )
    return replace(trial, text=text, certain=False)


_PLAIN = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout"}

_SINCE = {"Gelu": 20, "HardSwish": 14, "Mish": 18, "Swish": 24, "Celu": 12, "LayerNormalization": 17}


def call_steps(
    op: str, inputs: tuple[str | Array | None, ...], attributes: Mapping[str, Any], opset: int
) -> tuple[Step, ...]:
    """One node, or several where the operator came later than the graph's opset."""
    if opset >= _SINCE.get(op, 0):
        return (Step(op, inputs, attributes),)
    x = inputs[0]
    if op == "Gelu":
        listed = gelu_steps(str(attributes["approximate"]))
    elif op == "Swish":
        listed = (("Sigmoid", ("x",)), ("Mul", ("x", "-1")))
    elif op == "HardSwish":
        listed = (("Add", ("x", 3.0)), ("Clip", ("-1", 0.0, 6.0)), ("Mul", ("x", "-1")), ("Div", ("-1", 6.0)))
    elif op == "Mish":
        listed = (("Softplus", ("x",)), ("Tanh", ("-1",)), ("Mul", ("x", "-1")))
    else:
        return (Step(op, inputs, attributes),)
    steps = []
    for number, (each, operands) in enumerate(listed):
        given = tuple(
            x if part == "x" else f"<step {number - 1}>" if part == "-1" else np.asarray(part, np.float32)
            for part in operands
        )
        steps.append(Step(each, given, {}, f"<step {number}>" if number < len(listed) - 1 else None))
    return tuple(steps)


def resolved_input(given: Operand | Array | None, node: Node) -> str | Array | None:
    """An operand as the graph has it: by its name, by its value among the node's inputs, or else as PyTorch's tensor."""
    if not isinstance(given, Operand):
        return given
    if given.name is not None:
        return given.name
    for name in node.inputs:
        value = node.values.get(name, node.others.get(name))
        if (
            value is not None
            and value.size == given.array.size
            and are_close(value.reshape(given.array.shape), given.array)
        ):
            return name
    return np.ascontiguousarray(given.array)


def _differs(node: Node, inputs: Sequence[str | Array | None], form: Form) -> bool:
    names = [name for name in inputs[: form.operands] if isinstance(name, str)]
    return bool(names) and not set(names) <= set(node.inputs)
