"""Trials with operands in another order, fitted numbers, and settings that no call names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.calls import Call, Edit, Node, Operand, Step
from bisect_tool.diagnose.causes import ATTRIBUTE, CONSTANT, OPERANDS
from bisect_tool.diagnose.trial import Fit, Trial
from bisect_tool.diagnose.trials.editing import are_equal, value_text, with_changes

Array = NDArray[Any]

_MOST_ORDERS = 48
"""Orders of one node's inputs that are tried: two exchanged of ten, for one."""

_MOST_ELSEWHERE = 24
"""Values from elsewhere in the graph that are tried at the stage's nodes."""

_PERMUTED = 4
"""Inputs whose orders are all tried."""

_ORDERED = {"Sub", "Div", "Pow", "Concat", "MatMul", "Where", "Mod", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"}


def reordered_inputs(node: Node) -> Iterator[Trial]:
    if node.op not in _ORDERED or len(node.inputs) < 2:
        return
    first = 1 if node.op == "Where" else 0
    seen = {node.inputs}
    for order in itertools.islice(_orders(range(first, len(node.inputs))), _MOST_ORDERS):
        inputs = list(node.inputs)
        for place, taken in order.items():
            inputs[place] = node.inputs[taken]
        if tuple(inputs) in seen:
            continue
        seen.add(tuple(inputs))
        text = f"{node.op} {node.name} reads its inputs in the wrong order, not as {', '.join(inputs[first:])}"
        step = Step(node.op, tuple(name or None for name in inputs), node.attributes)
        yield Trial(OPERANDS, node.name, text, "put its inputs into that order", Edit(node.output, (step,)))


def _orders(places: Sequence[int]) -> Iterator[dict[int, int]]:
    """Other orders of some places: two exchanged first, which is the likeliest, then all orders of the first ones."""
    for one, other in itertools.combinations(places, 2):
        yield {one: other, other: one}
    few = places[:_PERMUTED]
    for order in itertools.permutations(few):
        yield dict(zip(few, order, strict=True))


def read_elsewhere(
    nodes: Sequence[Node], calls: Sequence[Call], holding: Callable[[Array], str | None]
) -> Iterator[Trial]:
    """A node that reads another value than PyTorch's call, which the graph has too, but not among the stage's nodes.

    ``holding``: the graph's value that holds a tensor, anywhere; ``None``: there is none.
    """
    there = {name for node in nodes for name in (*node.inputs, *node.outputs)}
    names: dict[int, str | None] = {}
    tried: set[tuple[str, int, str]] = set()
    for node, call in itertools.product(nodes, calls):
        given = [each for each in call.arguments.values() if isinstance(each, Operand)]
        given += [
            e for each in call.arguments.values() if isinstance(each, list) for e in each if isinstance(e, Operand)
        ]
        for operand in given:
            array = operand.array
            if operand.static or operand.name is not None or array.dtype.kind != "f" or array.size < 2:
                continue
            places = [place for place, name in enumerate(node.inputs) if node.shapes.get(name) == array.shape]
            if not places:
                continue
            if id(array) not in names:
                names[id(array)] = holding(array)
            name = names[id(array)]
            for place in places if name is not None and name not in there else ():
                if (node.name, place, name) not in tried and len(tried) < _MOST_ELSEWHERE:
                    tried.add((node.name, place, str(name)))
                    text = (
                        f"{node.op} {node.name} reads {node.inputs[place]}, and PyTorch's {call.name} what {name} holds"
                    )
                    edit = with_changes(node, inputs={place: array})
                    yield Trial(OPERANDS, node.name, text, f"let it read {name}", edit)


def fitted_numbers(node: Node, calls: Sequence[Call]) -> Iterator[Fit]:
    hints = _hints(calls)
    for place, array in node.constants.items():
        if array.size == 1 and array.dtype.kind == "f":
            yield Fit(float(array.reshape(())), _constant_trial(node, place, array), hints)
    for name, value in node.attributes.items():
        if isinstance(value, float):
            yield Fit(value, _attribute_trial(node, name, value), hints)


_LEAST, _MOST = ("min", "min_val"), ("max", "max_val")
_BOUNDS = {
    ("Min", 0): _MOST,
    ("Min", 1): _MOST,
    ("Max", 0): _LEAST,
    ("Max", 1): _LEAST,
    ("Clip", 1): _LEAST,
    ("Clip", 2): _MOST,
}
"""Arguments of PyTorch's calls that an operator's constant may be, by its place."""

_ROOTS = {"Sqrt", "Pow", "Reciprocal", "Rsqrt"}


def named_numbers(nodes: Sequence[Node], calls: Sequence[Call], stage: Sequence[Node]) -> Iterator[Trial]:
    """Constants that PyTorch's calls name: what is added before a root, bounds, and factors that stand for divisors.

    Leaving the node out may come to the same on a sample, and so may another operator.
    """
    rooted = {name for node in stage if node.op in _ROOTS for name in node.inputs}
    for node in nodes:
        scalars = [(p, a) for p, a in node.constants.items() if a.size == 1 and a.dtype.kind == "f"]
        for place, array in scalars:
            have = float(array.reshape(()))
            for call in calls:
                for text, number in _meant(node, place, call, rooted):
                    if number != have and number != 0:
                        yield _constant_trial(node, place, array)(number, text)


def _meant(node: Node, place: int, call: Call, rooted: Set[str]) -> Iterator[tuple[str, float]]:
    """Numbers of a call that a constant may have to be, and what they are."""
    numbers = call.numbers()
    names = _BOUNDS.get((node.op, place), ())
    if node.op == "Add" and node.output in rooted:
        names = ("eps", "epsilon")
    yield from ((f"{call.name} has {name} {numbers[name]:.7g}", numbers[name]) for name in names if name in numbers)
    other = _scalar(call.arguments.get("other"))
    if other and (node.op, call.name) in _INVERSE and (place == 1 or node.op == "Mul"):
        number = -other if node.op in ("Add", "Sub") else 1 / other
        # The very number that PyTorch has, with the other operator: that is what is wrong.
        if not np.isclose(float(node.constants[place].reshape(())), other, rtol=1e-6):
            yield f"{call.name} by {other:.7g} is {node.op} by {number:.7g}", number


_INVERSE = {("Mul", "div"), ("Div", "mul"), ("Add", "sub"), ("Sub", "add")}


def _scalar(given: Any) -> float | None:
    if isinstance(given, Operand):
        return float(given.array.reshape(())) if given.static and given.array.size == 1 else None
    return float(given) if isinstance(given, (int, float)) and not isinstance(given, bool) else None


def _constant_trial(node: Node, place: int, array: Array) -> Callable[[float, str | None], Trial]:
    def trial(value: float, hint: str | None) -> Trial:
        made = np.full(array.shape, value, array.dtype)
        text = f"{node.op} {node.name}: the constant {node.inputs[place]} is {value_text(array)}, not {value:.7g}"
        return Trial(
            CONSTANT,
            node.name,
            text + (f"; PyTorch's {hint}" if hint else ""),
            f"set {node.inputs[place]} to {value:.7g}",
            with_changes(node, inputs={place: made}),
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
            with_changes(node, {name: other}),
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


def other_settings(node: Node) -> Iterator[Trial]:
    """The other values of attributes that have few; axes and permutations of the same shape."""
    for name, value in node.attributes.items():
        for other in _choices(node, name, value):
            text = f"{node.op} {node.name}: {name} is {value_text(value)}, not {value_text(other)}"
            remedy = f"set {name} to {value_text(other)}"
            yield Trial(
                ATTRIBUTE, node.name, text, remedy, with_changes(node, {name: other}), thing=f"{node.name} {[name]}"
            )


MAX_WINDOWS = 16
"""Other places that a slice or an index is moved to, the nearest first."""


def other_windows(node: Node) -> Iterator[Trial]:
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
            yield Trial(CONSTANT, node.name, text, f"let it begin at {other}", with_changes(node, inputs=constants))
    elif node.op == "Gather" and 1 in node.constants and node.constants[1].size == 1:
        size = shape[int(node.attributes.get("axis", 0))]
        index = int(node.constants[1].item()) % size
        for other in _nearest_places(index, size):
            text = f"Gather {node.name} takes index {index}, not {other}"
            constants = {1: np.full_like(node.constants[1], other)}
            yield Trial(CONSTANT, node.name, text, f"take index {other}", with_changes(node, inputs=constants))


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
    elif name == "perm":
        options = _other_axes(value, node.shapes.get(node.inputs[0], ()))
    elif name == "equation":
        options = _other_equations(str(value), _shapes_read(node))
    elif name == "pads" and value:
        half = len(value) // 2
        ends = [(value[i], value[i + half]) for i in range(half)]
        swaps = itertools.product(*[{(a, b), (b, a), ((a + b) // 2, (a + b) - (a + b) // 2)} for a, b in ends])
        options = [[*(a for a, _ in each), *(b for _, b in each)] for each in itertools.islice(swaps, 24)]
    return [other for other in options if not are_equal(other, value)]


_MAX_AXES = 24


def _other_axes(perm: Sequence[int], shape: Sequence[int]) -> list[list[int]]:
    """Orders of axes that give the same shape, those first in which the fewest axes have another place."""
    if len(shape) != len(perm) or len(perm) < 2:
        return []
    orders: Iterable[list[int]] = map(list, itertools.permutations(range(len(perm))))
    if len(perm) > _ALL_ORDERS:
        orders = (_exchanged(perm, one, other) for one, other in itertools.combinations(range(len(perm)), 2))
    wanted = [shape[axis] for axis in perm]
    found = [order for order in orders if order != list(perm) and [shape[axis] for axis in order] == wanted]
    return sorted(found, key=lambda order: sum(a != b for a, b in zip(order, perm, strict=True)))[:_MAX_AXES]


_ALL_ORDERS = 6
"""Axes up to which all orders are looked at; of more, two are exchanged."""


def _shapes_read(node: Node) -> list[tuple[int, ...] | None]:
    """Of each input, constants included."""
    return [
        node.constants[place].shape if place in node.constants else node.shapes.get(name)
        for place, name in enumerate(node.inputs)
    ]


def _exchanged(values: Sequence[Any], one: int, other: int) -> list[Any]:
    found = list(values)
    found[one], found[other] = found[other], found[one]
    return found


def _other_equations(equation: str, shapes: Sequence[tuple[int, ...] | None]) -> list[str]:
    """The same sum of products with two axes of one length, of one operand or of the result, in each other's place."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = [*left.split(","), result]
    if not arrow or "." in equation or len(terms) != 1 + len(shapes):
        return []
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=False):
        sizes.update(zip(term, shape or (), strict=False))
    found = []
    for place, term in enumerate(terms):
        for one, other in itertools.combinations(range(len(term)), 2):
            if term[one] != term[other] and sizes.get(term[one]) == sizes.get(term[other], -1):
                turned = [*terms[:place], "".join(_exchanged(term, one, other)), *terms[place + 1 :]]
                found.append(f"{','.join(turned[:-1])}->{turned[-1]}")
    return found[:_MAX_AXES]
