"""Whole numbers that leave their type, and divisions that round the other way (``BD111``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from bisect_tool.diagnose.calls import Edit, Node, Step
from bisect_tool.diagnose.causes import INTEGERS
from bisect_tool.diagnose.rules.facts import Array, Clue, Facts, place_text, result_of, value_of
from bisect_tool.diagnose.trial import Trial

_INT64 = 7
_NARROW = {np.dtype(kind) for kind in ("int8", "int16", "int32", "uint8", "uint16", "uint32")}
_EXACT: Mapping[str, Callable[[Array, Array], Array]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def look(facts: Facts) -> Iterator[Trial | Clue]:
    made = {name: node for node in facts.stage for name in node.outputs if name}
    for node in facts.nodes:
        yield from _division(node)
        yield from _wrapped(node, made)
        yield from _cast(node)


def _division(node: Node) -> Iterator[Trial | Clue]:
    one, other = value_of(node, 0), value_of(node, 1)
    if node.op != "Div" or one is None or other is None or one.dtype.kind != "i":
        return
    with np.errstate(all="ignore"):
        quotient = one.astype(np.float64) / other
        differs = np.isfinite(quotient) & (np.floor(quotient) != np.trunc(quotient))
    if not differs.any():
        return
    place = np.argwhere(differs)[0]
    a, b = (int(np.broadcast_to(each, differs.shape)[tuple(place)]) for each in (one, other))
    down, cut = a // b, int(quotient[tuple(place)])
    told = f"{a} / {b}{place_text(place)} is {cut} in ONNX, which cuts off, and {down} rounded down"
    yield Clue(
        INTEGERS,
        (f"Div {node.name} divides whole numbers of both signs: {told}",),
        "divide in float and round as PyTorch does, or torch.div(..., rounding_mode='trunc') if that is meant",
        node=node.name,
        strong=False,
    )
    names = tuple(name or None for name in node.inputs)
    steps = (
        Step("Mod", names, {}, "<rest>"),
        Step("Sub", (node.inputs[0], "<rest>"), {}, "<even>"),
        Step("Div", ("<even>", node.inputs[1]), {}),
    )
    yield Trial(
        INTEGERS,
        node.name,
        f"Div {node.name} cuts off what PyTorch rounds down: {told}",
        "write it as torch.floor(a / b) in float, or give the exporter torch.div(..., rounding_mode='floor')",
        Edit(node.output, steps),
    )


def _wrapped(node: Node, made: Mapping[str, Node]) -> Iterator[Trial | Clue]:
    """A sum or a product that does not fit into its type."""
    one, other, result = value_of(node, 0), value_of(node, 1), result_of(node)
    if node.op not in _EXACT or one is None or other is None or result is None or result.dtype not in _NARROW:
        return
    exact = _EXACT[node.op](one.astype(np.int64), other.astype(np.int64))
    off = exact != result
    if not off.any():
        return
    place = tuple(np.argwhere(off)[0])
    told = (
        f"{int(off.sum())} of {off.size} results of {node.op} {node.name} do not fit into {result.dtype}: "
        f"{int(exact[place])}{place_text(place)} became {int(result[place])}"
    )
    remedy = "keep whole numbers in int64"
    yield Clue(INTEGERS, (told,), remedy, node=node.name)
    # In front of casts that cut down, where there are some; what reads the result has to take 64 bits.
    wide = [_before_casts(name, made) for name in node.inputs]
    steps = [Step("Cast", (name,), {"to": _INT64}, f"<wide {i}>") for i, name in enumerate(wide)]
    steps.append(Step(node.op, ("<wide 0>", "<wide 1>"), node.attributes))
    yield Trial(INTEGERS, node.name, told, remedy, Edit(node.output, tuple(steps)))


def _before_casts(name: str, made: Mapping[str, Node]) -> str:
    while name in made and made[name].op == "Cast":
        given = value_of(made[name], 0)
        if given is None or given.dtype.kind not in "iu":
            break
        name = made[name].inputs[0]
    return name


def _cast(node: Node) -> Iterator[Trial | Clue]:
    """A cast to fewer bits, or of numbers that the type cannot hold."""
    given, result = value_of(node, 0), result_of(node)
    if node.op != "Cast" or given is None or result is None or result.dtype.kind not in "iu":
        return
    if given.dtype.kind in "iu":
        off = given.astype(np.int64) != result.astype(np.int64)
    elif given.dtype.kind == "f":
        limits = np.iinfo(result.dtype)
        with np.errstate(all="ignore"):
            off = ~((given >= float(limits.min)) & (given <= float(limits.max)))
    else:
        return
    if not off.any():
        return
    place = tuple(np.argwhere(off)[0])
    told = (
        f"{int(off.sum())} of {off.size} numbers that Cast {node.name} turns into {result.dtype} do not fit: "
        f"{given[place]}{place_text(place)} became {int(result[place])}"
    )
    # What becomes of a float that does not fit is open; whether anything reads it, nobody knows here.
    strong = given.dtype.kind in "iu"
    yield Clue(INTEGERS, (told,), "keep whole numbers in int64", node=node.name, strong=strong)
    if given.dtype.kind in "iu":
        step = Step("Identity", (node.inputs[0],), {})
        yield Trial(INTEGERS, node.name, told, "keep whole numbers in int64", Edit(node.output, (step,)))
