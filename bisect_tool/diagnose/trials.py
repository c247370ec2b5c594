"""One thing at a time is changed in an origin's nodes, towards what PyTorch's call had: what mends the stage is the cause.

Nothing here runs anything: trials are proposed as edits of nodes, in the order in which a mend by them is believed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.align.families import family
from bisect_tool.diagnose.attention import masks
from bisect_tool.diagnose.calls import BEFORE, Call, Edit, Node, Operand, Step
from bisect_tool.diagnose.causes import ATTRIBUTE, CONSTANT, EXTRA, MISSING, OPERANDS, OPERATOR, PRECISION, WEIGHT
from bisect_tool.diagnose.onnx_forms import Form, forms, gelu_steps, summand, written_out
from bisect_tool.diagnose.pieces import pieces
from bisect_tool.diagnose.recurrence import recurrence
from bisect_tool.diagnose.sisters import exponents, sisters
from bisect_tool.diagnose.trial import Fit, Trial
from bisect_tool.diagnose.weight_forms import GATES, Static, first_weight, nearest_weight, weight_forms

Array = NDArray[Any]

MAX_CHAIN = 4
"""Nodes in a row that are left out together."""

_MAX_ORDERS = 6
_NARROWING = {"Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "BitCast"}


_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64", 16: "bfloat16"}
"""Element types of ONNX by number, as ``Cast`` has them."""


def propose(
    nodes: Sequence[Node],
    calls: Sequence[Call],
    statics: Sequence[Static],
    opset: int,
    stage: Sequence[Node] = (),
    parameters: frozenset[str] = frozenset(),
) -> Iterator[Trial | Fit]:
    """Trials for an origin, the most convincing first.

    Args:
        nodes: of the origin, in topological order.
        stage: all nodes of the stage, if those are more: which of PyTorch's calls have theirs.
        calls: PyTorch's, of the stage.
        statics: PyTorch's tensors of the stage that do not depend on the inputs, weights among them.
        opset: of the graph.
        parameters: names of the model's parameters and buffers, all of them.
    """
    for node in nodes:
        yield from _weights(node, statics, parameters)
    for node in nodes:
        yield from _exchanged_weights(node)
    for node in nodes:
        yield from recurrence(node, statics)
    yield from _all_weights(nodes, statics)
    yield from _changed_nodes(nodes, calls, opset, stage or nodes)
    for node in nodes:
        yield from _in_front(node, calls, opset)
    for node in nodes:
        yield from _inserted(node, calls, opset)


def _changed_nodes(
    nodes: Sequence[Node], calls: Sequence[Call], opset: int, stage: Sequence[Node]
) -> Iterator[Trial | Fit]:
    """Nodes left out, exchanged or set otherwise; the arguments are those of :func:`propose`."""
    # An exchange of operands can come to the same as what follows: ``Less`` for ``Greater``, a ``Not`` before ``Where``.
    left_out = _left_out(nodes, calls, stage, opset)
    yield from (trial for surplus, trial in left_out if surplus)
    known = {form.op for call in calls for form in forms(call, opset)}
    for node in nodes:
        if node.op in _COMPARING and node.op not in known:
            yield from _replaced(node, calls, opset)
    for node in nodes:
        yield from _reordered(node)
    for node in nodes:
        yield from _towards_calls(node, calls, opset)
    for node in nodes:
        yield from pieces(node, calls, opset)
    yield from masks(nodes, stage, calls)
    yield from (trial for surplus, trial in left_out if not surplus)
    doubtful: list[Trial] = []
    for node in nodes:
        for trial in _replaced(node, calls, opset):
            if isinstance(trial.edit, Edit) and _is_part(node, trial.edit, stage):
                doubtful.append(_in_doubt(trial))
            else:
                yield trial
    yield from _other_numbers(nodes, calls, known, stage)
    yield from doubtful


def _other_numbers(
    nodes: Sequence[Node], calls: Sequence[Call], known: Set[str], stage: Sequence[Node]
) -> Iterator[Trial | Fit]:
    """Constants fitted, and settings that PyTorch's calls do not name. ``known``: operators that write them out."""
    parts = {part for call in calls for listed in written_out(call).values() for part in listed}
    for node in nodes:
        yield from _other_part(node, calls, stage)
    for node in nodes:
        yield from _fitted(node, calls)
    for node in nodes:
        yield from exponents(node)
        if node.op not in known | parts:
            yield from sisters(node, calls)
    for node in nodes:
        yield from _other_settings(node)
        yield from _other_windows(node)


# -- weights ----------------------------------------------------------------------------------------------------------


def _weights(node: Node, statics: Sequence[Static], parameters: frozenset[str] = frozenset()) -> Iterator[Trial]:
    """Each weight as PyTorch has it, and then all of the node together."""
    nearest: dict[int, Trial] = {}
    for trial in _each_weight(node, statics, parameters):
        assert isinstance(trial.edit, Edit)
        (place,) = (i for i, given in enumerate(trial.edit.steps[0].inputs) if isinstance(given, np.ndarray))
        nearest.setdefault(place, trial)
        yield trial
    if len(nearest) > 1:
        edits = {place: trial.edit for place, trial in nearest.items() if isinstance(trial.edit, Edit)}
        arrays = {place: edit.steps[0].inputs[place] for place, edit in edits.items()}
        texts = [trial.text.replace(f", which {node.name} reads,", "") for trial in nearest.values()]
        yield Trial(
            next(iter(nearest.values())).code,
            node.name,
            f"weights that {node.name} reads: {'; '.join(texts)}",
            "export the file again from this checkpoint",
            _with(node, inputs={place: array for place, array in arrays.items() if isinstance(array, np.ndarray)}),
            thing="; ".join(trial.thing for trial in nearest.values()),
        )


_NO_WEIGHTS = {"Resize", "Upsample"}
"""Their constants are sizes and scales."""


MAX_EXCHANGES = 10
"""Pairs of a node's weights that are exchanged."""


def _exchanged_weights(node: Node) -> Iterator[Trial]:
    """Two weights of one shape in each other's place: each is one of PyTorch's, and yet both are wrong."""
    places = _weight_places(node)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(sorted(places), 2)
        if node.constants[one].shape == node.constants[other].shape
        and not np.array_equal(node.constants[one], node.constants[other])
    ]
    for one, other in pairs[:MAX_EXCHANGES]:
        inputs = list(node.inputs)
        inputs[one], inputs[other] = inputs[other], inputs[one]
        yield Trial(
            OPERANDS,
            node.name,
            f"{node.op} {node.name} reads {node.inputs[one]} and {node.inputs[other]} in each other's place",
            "exchange them",
            Edit(node.output, (Step(node.op, tuple(name or None for name in inputs), node.attributes),)),
        )


def _all_weights(nodes: Sequence[Node], statics: Sequence[Static]) -> Iterator[Trial]:
    """The weights of all nodes at once: each as the tensor of PyTorch's that it is nearest to, and in PyTorch's order."""
    readers = [node for node in nodes if node.op not in _NO_WEIGHTS and _weight_places(node)]
    if len(readers) < 2:
        return
    for nearest in (True, False):
        # Each tensor is one node's only, and so the next best is left for the next node.
        left = list(statics)
        edits: list[Edit] = []
        names: list[str] = []
        for node in readers:
            inputs: dict[int, Array] = {}
            for place in _weight_places(node):
                have = node.constants[place]
                gates = GATES.get(node.op, 0)
                found = nearest_weight(have, left, gates=gates) if nearest else first_weight(have, left, gates=gates)
                if found is None:
                    continue
                array, used = found
                left = [each for each in left if each.name not in used]
                if not _equal_arrays(have.astype(np.float64), array.astype(np.float64)):
                    inputs[place] = array
                    names.append(node.inputs[place])
            if inputs:
                edits.append(_with(node, inputs=inputs))
        if len(edits) > 1:
            listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            yield Trial(
                WEIGHT,
                readers[0].name,
                f"{len(names)} weights of the stage's nodes are not PyTorch's: {listed}",
                "export the file again from this checkpoint",
                replace(edits[0], more=tuple(edits[1:])),
            )


def _weight_places(node: Node) -> list[int]:
    return [place for place, have in node.constants.items() if have.size > 1 and have.dtype.kind in "fV"]


def _each_weight(node: Node, statics: Sequence[Static], parameters: frozenset[str]) -> Iterator[Trial]:
    if node.op in _NO_WEIGHTS:
        return
    for place, have in node.constants.items():
        if have.size > 1 and have.dtype.kind in "fV":
            for form in weight_forms(have, statics, gates=GATES.get(node.op, 0)):
                name = node.inputs[place]
                another = name != form.name and {name, form.name} <= parameters
                yield Trial(
                    form.code,
                    node.name,
                    f"{node.name} reads {name} where PyTorch reads {form.name}"
                    if another
                    else f"{name}, which {node.name} reads, {form.text}",
                    "export the file again from this checkpoint",
                    _with(node, inputs={place: form.array}),
                    thing=f"{name} as {form.name}",
                )


# -- what the call says -----------------------------------------------------------------------------------------------


def _towards_calls(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """The node's own operator with the attributes and constants of PyTorch's call."""
    for call in calls:
        for form in forms(call, opset):
            if form.op != node.op:
                continue
            if _rank_differs(node, form):
                continue
            attributes = {
                name: value
                for name, value in form.attributes.items()
                if (have := _counted(node, name, value)) is not None and not _equal(have, value)
            }
            constants = {
                place: _like(given, node.constants[place])
                for place, given in ((place, _constant(each)) for place, each in enumerate(form.inputs))
                if given is not None
                and place in node.constants
                and (node.constants[place].size == given.size or _is_list(node.constants[place], given))
                and not _equal_arrays(node.constants[place], given)
            }
            if "pads" in attributes and node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
                attributes["auto_pad"] = "NOTSET"
            if attributes:
                text = ", ".join(f"{name} is {_text(_counted(node, name, each))}" for name, each in attributes.items())
                right = ", ".join(f"{name} {_text(value)}" for name, value in attributes.items())
                code, text = ATTRIBUTE, f"{node.op} {node.name}: {text}; PyTorch's {call.name} has {right}"
            elif constants:
                parts = [
                    f"{node.inputs[place] or f'input {place}'} is {_text(node.constants[place])}" for place in constants
                ]
                right = ", ".join(_text(value) for value in constants.values())
                code, text = CONSTANT, f"{node.op} {node.name}: {', '.join(parts)}; PyTorch's {call.name} has {right}"
            else:
                continue
            thing = f"{node.name} {sorted(attributes)}" if attributes and not constants else ""
            remedy = f"set it as PyTorch's {call.name} has it"
            yield Trial(code, node.name, text, remedy, _with(node, attributes, constants), thing=thing)


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


def _replaced(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """PyTorch's operation in the node's place: first on the node's own inputs, then on PyTorch's operands."""
    size = _size(node, node.output)
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
            if node.op in _PLAIN and any(_holds(node.values.get(name), call.result) for name in node.inputs):
                continue
            inputs = tuple(_resolved(each, node) for each in form.inputs)
            reads = [name for name in inputs[: form.operands] if isinstance(name, str)]
            if same and not _differs(node, inputs, form):
                continue
            # A tensor of PyTorch's in place of one that the graph computes would mend any fault before it.
            given = zip(form.inputs[: form.operands], inputs, strict=False)
            foreign = any(isinstance(one, Operand) and not one.static and not isinstance(to, str) for one, to in given)
            if foreign and not (reads and node.op in _PLAIN):
                continue
            found = own if reads and set(reads) <= set(node.inputs) else others
            found.append(_replacement(node, call, form, inputs, opset))
    yield from own
    yield from _without_bias(node, calls)
    yield from others


def _without_bias(node: Node, calls: Sequence[Call]) -> Iterator[Trial]:
    """The bias of a product, where the graph has nothing in the place of its sum."""
    product = node.op in ("MatMul", "Conv", "ConvTranspose", "Gemm")
    if not node.inputs or not (product or node.op in _PLAIN):
        return
    shape = node.shapes.get(node.output, ())
    for call in calls:
        bias = summand(call)
        if bias is None or not bias.static or bias.array.ndim != 1 or call.result is None:
            continue
        # Channels come last in products and second in convolutions.
        for axis in {len(shape) - 1, 1} if len(shape) > 1 else ():
            if shape[axis] == bias.array.size:
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
        text = f"{node.name} is {_article(node.op)}, where PyTorch computes {call.name}{_numbers(call)}"
    attributes = dict(form.attributes)
    remedy = f"the graph needs {_article(form.op)} there: export it again, or with another exporter or opset"
    edit = Edit(node.output, _steps(form.op, inputs, attributes, opset))
    return Trial(code, node.name, text, remedy, edit, call.key if code == MISSING else None)


_COMPARING = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor"}
_COMPARING |= {"BitwiseAnd", "BitwiseOr", "BitwiseXor"}

_PARTS: Mapping[str, frozenset[str]] = {
    "Gelu": frozenset(["Pow", "Mul", "Add", "Sum", "Tanh", "Erf", "Div", "Sqrt"]),
    "Mish": frozenset(["Softplus", "Exp", "Log", "Add", "Tanh", "Mul"]),
    "Swish": frozenset(["Sigmoid", "Mul"]),
    "HardSwish": frozenset(["HardSigmoid", "Add", "Clip", "Mul", "Div"]),
    "Softmax": frozenset(["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]),
    "LogSoftmax": frozenset(["ReduceMax", "ReduceLogSumExp", "Sub", "Exp", "ReduceSum", "Log"]),
    "Softplus": frozenset(["Exp", "Add", "Log"]),
    "Softsign": frozenset(["Abs", "Add", "Div"]),
    "HardSigmoid": frozenset(["Add", "Clip", "Div", "Mul"]),
}
"""What exporters write operators as, where they write several nodes."""


def _whole(edit: Edit) -> str | None:
    """The operator that an edit puts in as a whole, though it may be in several steps; ``None``: it is none of those."""
    ops = [step.op for step in edit.steps]
    if len(ops) == 1:
        return ops[0] if ops[0] in _PARTS else None
    return next((op for op, parts in _PARTS.items() if set(ops) <= parts), None)


def _is_part(node: Node, edit: Edit, stage: Sequence[Node]) -> bool:
    """Whether a node is one of several that together are the operator that would take its place.

    In the place of the last of them the whole operator mends whatever is wrong in any.
    """
    parts = _PARTS.get(_whole(edit) or "", frozenset())
    return node.op in parts and sum(each.op in parts for each in stage) > 1


def _other_part(node: Node, calls: Sequence[Call], stage: Sequence[Node]) -> Iterator[Trial]:
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
                f"{node.name} is {_article(node.op)}, where PyTorch's {call.name}, written out, has {_article(missing[0])}",
                f"the graph needs {_article(missing[0])} there, or {_article(op)} for all of it: export it again",
                Edit(node.output, (Step(missing[0], (node.inputs[0],), {}),)),
            )


_FUNCTIONS = frozenset(
    ["Erf", "Tanh", "Sigmoid", "Softplus", "Exp", "Log", "Sqrt", "Relu", "Softsign", "HardSigmoid", "Sin", "Cos", "Abs"]
)
"""Functions of one number that one may stand where another belongs."""


def _in_doubt(trial: Trial) -> Trial:
    """The whole of an operator in the place of a part: a way to mend it that does not say what is wrong."""
    text = (
        f"not certain: {trial.text}, but it may be one of several nodes that compute it, and another of them be wrong"
    )
    return replace(trial, text=text, certain=False)


_PLAIN = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout"}
_SINCE = {"Gelu": 20, "HardSwish": 14, "Mish": 18, "Swish": 24, "Celu": 12, "LayerNormalization": 17}


def _steps(
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


def _resolved(given: Operand | Array | None, node: Node) -> str | Array | None:
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
            and _close(value.reshape(given.array.shape), given.array)
        ):
            return name
    return np.ascontiguousarray(given.array)


def _differs(node: Node, inputs: Sequence[str | Array | None], form: Form) -> bool:
    names = [name for name in inputs[: form.operands] if isinstance(name, str)]
    return bool(names) and not set(names) <= set(node.inputs)


# -- what is too much, what is missing --------------------------------------------------------------------------------


def _left_out(
    nodes: Sequence[Node], calls: Sequence[Call], stage: Sequence[Node], opset: int
) -> list[tuple[bool, Trial]]:
    """Nodes without which the stage may be right, and whether PyTorch has none of these operations, or not as many."""
    counted: dict[str, int] = {}
    for call in calls:
        for kind in {family(call.name), *(family(form.op) for form in forms(call, opset))}:
            counted[kind] = counted.get(kind, 0) + 1
    surplus = {
        node.name
        for node in nodes
        if sum(family(other.op) == family(node.op) for other in stage) > counted.get(family(node.op), 0)
    }
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found: list[tuple[int, int, int, Trial]] = []
    for number, first in enumerate(nodes):
        chain: list[Node] = []
        following = [first]
        while len(following) == 1 and len(chain) < MAX_CHAIN:
            last = following[0]
            chain.append(last)
            for place, source in enumerate(first.inputs):
                passes = all(each.op == "Identity" for each in chain)
                # A constant stands for a value only where the node computes with nothing else.
                given = place in first.constants and len(first.constants) < len(first.inputs)
                if source and not passes and not given and not _is_call(last, calls) and _fits(first, source, last):
                    rank = sum(each.name not in surplus for each in chain)
                    found.append((rank, len(chain), number, _without(chain, source)))
            following = readers.get(last.output, [])
    return [(rank == 0, trial) for rank, *_, trial in sorted(found, key=lambda each: each[:3])]


def _is_call(node: Node, calls: Sequence[Call]) -> bool:
    """Whether what the node makes is what PyTorch made by the same operation: then it is not too much."""
    made = node.values.get(node.output)
    if made is None or made.dtype.kind != "f":
        return False
    own = (call.result for call in calls if family(call.name) == family(node.op))
    # To a few units in the last place: a factor of 1.0005 may be the very thing.
    return any(
        result is not None
        and result.shape == made.shape
        and np.allclose(made, result, rtol=1e-6, atol=1e-7 * _largest(result), equal_nan=True)
        for result in own
    )


def _fits(first: Node, source: str, last: Node) -> bool:
    """Whether what the first node reads can stand for what the last one makes."""
    one, other = first.shapes.get(source), last.shapes.get(last.output)
    same_kind = (source in first.values) == (last.output in last.values)
    return one is not None and one == other and same_kind


def _without(chain: Sequence[Node], source: str) -> Trial:
    ops = " → ".join(node.op for node in chain)
    names = ", ".join(node.name for node in chain)
    narrow = [node for node in chain if node.op in _NARROWING]
    if narrow:
        types = [_TYPES.get(node.attributes["to"], "") for node in narrow if "to" in node.attributes]
        through = f" ({types[0]})" if types and types[0] else ""
        code, text = PRECISION, f"the value passes through a narrower type{through}: {ops} ({names})"
        remedy = "keep the type as it is in PyTorch: leave these nodes out"
    else:
        numbers = [
            f"{_text(array)}"
            for node in chain
            for array in node.constants.values()
            if array.size == 1 and len(chain) == 1
        ]
        by = f" by {numbers[0]}" if numbers else ""
        code, text = EXTRA, f"PyTorch has no {ops}{by} there ({names})"
        remedy = "leave these nodes out" if len(chain) > 1 else "leave this node out"
    return Trial(code, chain[0].name, text, remedy, Edit(chain[-1].output, (Step("Identity", (source,), {}),)))


def _in_front(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """PyTorch's operation between the node and a value that it reads, where that is one of the operation's operands."""
    for place, name in enumerate(node.inputs):
        size = _size(node, name) if name and place not in node.constants else None
        for call in calls if size is not None else ():
            if call.result is None or call.result.size != size or call.result.size <= 1:
                continue
            for form in forms(call, opset):
                if not form.inputs or form.op in ("Transpose", "Concat", node.op):
                    continue
                inputs = tuple(_resolved(each, node) for each in form.inputs)
                # A tensor that the graph has nowhere would mend what is wrong before it.
                given = zip(form.inputs[: form.operands], inputs, strict=False)
                foreign = any(isinstance(o, Operand) and not o.static and not isinstance(to, str) for o, to in given)
                if foreign or name not in [each for each in inputs if isinstance(each, str)]:
                    continue
                steps = _steps(form.op, inputs, form.attributes, opset)
                steps = (*steps[:-1], replace(steps[-1], output=_INSERTED))
                read = tuple(_INSERTED if i == place else other or None for i, other in enumerate(node.inputs))
                yield Trial(
                    MISSING,
                    node.name,
                    f"PyTorch's {call.name}{_numbers(call)} is missing in front of {node.name}, which reads {name} itself",
                    f"the graph needs {_article(form.op)} there: export it again, or with another exporter or opset",
                    Edit(node.output, (*steps, Step(node.op, read, node.attributes))),
                    call.key,
                )


_INSERTED = "<inserted>"


def _inserted(node: Node, calls: Sequence[Call], opset: int) -> Iterator[Trial]:
    """PyTorch's operation behind the node."""
    size = _size(node, node.output)
    for call in calls:
        first = call.operand("self", "input")
        if call.result is None or first is None or size not in (None, first.array.size) or call.result.size != size:
            continue
        for form in forms(call, opset):
            if not form.inputs or form.op in ("Transpose", "Concat"):
                continue
            inputs = tuple(BEFORE if each is first else _resolved(each, node) for each in form.inputs)
            if BEFORE not in [each for each in inputs if isinstance(each, str)]:
                continue
            yield Trial(
                MISSING,
                node.name,
                f"PyTorch's {call.name}{_numbers(call)} is missing behind {node.name}, or where it comes to the same",
                f"the graph needs {_article(form.op)} there: export it again, or with another exporter or opset",
                Edit(node.output, _steps(form.op, inputs, form.attributes, opset), keep=True),
                call.key,
            )


# -- order, numbers, settings -----------------------------------------------------------------------------------------

_ORDERED = {"Sub", "Div", "Pow", "Concat", "MatMul", "Where", "Mod", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"}
_ORDERED |= {"PRelu", "BitShift", "Gemm"}


def _reordered(node: Node) -> Iterator[Trial]:
    if node.op not in _ORDERED or len(node.inputs) < 2:
        return
    first = 1 if node.op == "Where" else 0
    places = list(range(first, min(len(node.inputs), 2 if node.op in ("Gemm", "PRelu") else 5)))
    for order in itertools.islice(itertools.permutations(places), 1, 1 + 4 * _MAX_ORDERS):
        inputs = list(node.inputs)
        for place, taken in zip(places, order, strict=True):
            inputs[place] = node.inputs[taken]
        text = f"{node.op} {node.name} reads its inputs in the wrong order, not as {', '.join(inputs[first:])}"
        step = Step(node.op, tuple(name or None for name in inputs), node.attributes)
        yield Trial(OPERANDS, node.name, text, "put its inputs into that order", Edit(node.output, (step,)))


def _fitted(node: Node, calls: Sequence[Call]) -> Iterator[Fit]:
    hints = _hints(calls)
    for place, array in node.constants.items():
        if array.size == 1 and array.dtype.kind == "f":
            yield Fit(float(array.reshape(())), _constant_trial(node, place, array), hints)
    for name, value in node.attributes.items():
        if isinstance(value, float):
            yield Fit(value, _attribute_trial(node, name, value), hints)


def _constant_trial(node: Node, place: int, array: Array) -> Callable[[float, str | None], Trial]:
    def trial(value: float, hint: str | None) -> Trial:
        made = np.full(array.shape, value, array.dtype)
        text = f"{node.op} {node.name}: the constant {node.inputs[place]} is {_text(array)}, not {value:.7g}"
        return Trial(
            CONSTANT,
            node.name,
            text + (f"; PyTorch's {hint}" if hint else ""),
            f"set {node.inputs[place]} to {value:.7g}",
            _with(node, inputs={place: made}),
        )

    return trial


def _attribute_trial(node: Node, name: str, value: float) -> Callable[[float, str | None], Trial]:
    def trial(other: float, hint: str | None) -> Trial:
        text = f"{node.op} {node.name}: {name} is {value:.7g}, not {other:.7g}"
        return Trial(
            ATTRIBUTE,
            node.name,
            text + (f"; PyTorch's {hint}" if hint else ""),
            f"set {name} to {other:.7g}",
            _with(node, {name: other}),
            thing=f"{node.name} {[name]}",
        )

    return trial


def _hints(calls: Sequence[Call]) -> tuple[tuple[str, float], ...]:
    found: dict[float, str] = {}
    for call in calls:
        for name, number in call.numbers().items():
            found.setdefault(number, f"{call.name} has {name} {number:.7g}")
    for call in calls:
        for value in call.arguments.values():
            if isinstance(value, Operand) and value.array.size == 1 and value.array.dtype.kind == "f":
                number = float(value.array.reshape(()))
                found.setdefault(number, f"{call.name} has {number:.7g}")
    return tuple((text, number) for number, text in found.items())


_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "approximate": ("none", "tanh"),
    "coordinate_transformation_mode": (
        *("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"),
    ),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "padding_mode": ("zeros", "border", "reflection"),
    "reduction": ("none", "add", "mul", "max", "min"),
    "auto_pad": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
    "direction": ("forward", "reverse", "bidirectional"),
}
_MODES: Mapping[str, tuple[str, ...]] = {
    "Pad": ("constant", "reflect", "edge", "wrap"),
    "Resize": ("nearest", "linear", "cubic"),
    "GridSample": ("linear", "nearest", "cubic", "bilinear", "bicubic"),
    "DepthToSpace": ("DCR", "CRD"),
}
_FLAGS = {
    *("align_corners", "ceil_mode", "count_include_pad", "exclude_outside", "exclusive", "keepdims", "largest"),
    *("linear_before_reset", "reverse", "sorted", "transA", "transB", "transBatchA", "unidirectional", "upper"),
    *("antialias", "is_causal", "select_last_index", "fmod", "training_mode"),
}


def _other_settings(node: Node) -> Iterator[Trial]:
    """The other values of attributes that have few; axes and permutations of the same shape."""
    for name, value in node.attributes.items():
        for other in _choices(node, name, value):
            text = f"{node.op} {node.name}: {name} is {_text(value)}, not {_text(other)}"
            remedy = f"set {name} to {_text(other)}"
            yield Trial(ATTRIBUTE, node.name, text, remedy, _with(node, {name: other}), thing=f"{node.name} {[name]}")


MAX_WINDOWS = 16
"""Other places that a slice or an index is moved to, the nearest first."""


def _other_windows(node: Node) -> Iterator[Trial]:
    """A slice of the same length, or an index, at another place of its axis."""
    shape = node.shapes.get(node.inputs[0]) if node.inputs else None
    if shape is None:
        return
    if node.op == "Slice" and {1, 2, 3} <= node.constants.keys() and node.constants[1].size == 1:
        size = shape[int(node.constants[3].item())]
        start, end = (min(max(int(node.constants[i].item()), -size), size) for i in (1, 2))
        start, end = start % size if start < 0 else start, end % size if end < 0 else end
        length = end - start
        for other in _nearest_places(start, size - length + 1):
            constants = {
                1: np.full_like(node.constants[1], other),
                2: np.full_like(node.constants[2], other + length),
            }
            text = f"Slice {node.name} begins at {start}, not at {other}"
            yield Trial(CONSTANT, node.name, text, f"let it begin at {other}", _with(node, inputs=constants))
    elif node.op == "Gather" and 1 in node.constants and node.constants[1].size == 1:
        size = shape[int(node.attributes.get("axis", 0))]
        index = int(node.constants[1].item()) % size
        for other in _nearest_places(index, size):
            text = f"Gather {node.name} takes index {index}, not {other}"
            constants = {1: np.full_like(node.constants[1], other)}
            yield Trial(CONSTANT, node.name, text, f"take index {other}", _with(node, inputs=constants))


def _nearest_places(start: int, count: int) -> list[int]:
    return sorted((n for n in range(count) if n != start), key=lambda n: abs(n - start))[:MAX_WINDOWS]


def _choices(node: Node, name: str, value: Any) -> Sequence[Any]:
    rank = next((len(node.shapes[each]) for each in node.inputs if each in node.shapes), 0)
    options: Sequence[Any] = ()
    if name in _CHOICES:
        options = _CHOICES[name]
    elif name == "mode":
        options = _MODES.get(node.op, ())
    elif name in _FLAGS and value in (0, 1):
        options = (1 - value,)
    elif name == "axis" and rank:
        options = [axis for axis in range(rank) if axis != int(value) % rank]
    elif name == "perm" and 1 < len(value) <= 5:
        shape = node.shapes.get(node.inputs[0], ())
        wanted = [shape[axis] for axis in value] if len(shape) == len(value) else []
        orders = itertools.permutations(range(len(value)))
        options = [list(order) for order in orders if wanted and [shape[axis] for axis in order] == wanted][:24]
    elif name == "pads" and value:
        half = len(value) // 2
        ends = [(value[i], value[i + half]) for i in range(half)]
        swaps = itertools.product(*[{(a, b), (b, a), ((a + b) // 2, (a + b) - (a + b) // 2)} for a, b in ends])
        options = [[*(a for a, _ in each), *(b for _, b in each)] for each in itertools.islice(swaps, 24)]
    return [other for other in options if not _equal(other, value)]


# -- small things -----------------------------------------------------------------------------------------------------


def _with(node: Node, attributes: Mapping[str, Any] | None = None, inputs: Mapping[int, Array] | None = None) -> Edit:
    """The node with other attributes or constants."""
    given: list[str | Array | None] = [name or None for name in node.inputs]
    for place, array in (inputs or {}).items():
        given[place] = array
    return Edit(node.output, (Step(node.op, tuple(given), {**node.attributes, **(attributes or {})}),))


_LEFT_OUT = {"pads": 0, "output_padding": 0, "strides": 1, "dilations": 1}
"""What lists are full of that a window leaves out."""


def _counted(node: Node, name: str, like: Any) -> Any:
    """An attribute; an axis as counted from the first, and a list that was left out as it is then. ``None``: unknown."""
    value = node.attributes.get(name)
    if value is None and name in _LEFT_OUT and isinstance(like, list):
        return [_LEFT_OUT[name]] * len(like)
    rank = next((len(node.shapes[each]) for each in node.inputs if each in node.shapes), 0)
    return int(value) % rank if value is not None and name == "axis" and rank else value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return abs(float(one) - float(other)) <= 1e-6 * max(abs(float(one)), abs(float(other)))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) == list(other)
    return bool(one == other)


def _equal_arrays(one: Array, other: Array) -> bool:
    if one.size != other.size:
        return False
    flat, wanted = one.reshape(-1), other.reshape(-1)
    if one.dtype.kind in "iu":
        # A slice to the very end is written in many ways.
        far = 1 << 30
        return bool((np.clip(flat, -far, far) == np.clip(wanted, -far, far)).all())
    return bool(np.allclose(flat, wanted, rtol=1e-6, atol=0))


def _holds(value: Array | None, result: Array) -> bool:
    return value is not None and value.shape == result.shape and _close(value, result)


def _close(one: Array, other: Array) -> bool:
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return one.dtype.kind == other.dtype.kind and bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-5 * _largest(other), equal_nan=True))


def _largest(array: Array) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _size(node: Node, name: str) -> int | None:
    shape = node.shapes.get(name)
    return None if shape is None else int(np.prod(shape, dtype=np.int64))


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.reshape(()).item():.7g}" if value.size == 1 else str(value.reshape(-1)[:8].tolist())
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(list(value)) if isinstance(value, (list, tuple)) else str(value)


def _numbers(call: Call) -> str:
    numbers = ", ".join(f"{name} {number:.6g}" for name, number in list(call.numbers().items())[:3])
    return f" ({numbers})" if numbers else ""


def _article(op: str) -> str:
    return f"{'an' if op[:1] in 'AEIOU' else 'a'} {op}"
