"""What a weight of the graph should be: PyTorch's tensors of the stage, in every layout that exporters write them in."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.causes import LAYOUT, WEIGHT
from bisect_tool.metrics import relative_error
from bisect_tool.precision import HALF, saturated

Array = NDArray[Any]

SAME = 1e-7
"""Relative L2 up to which two weights are one."""

MAX_FORMS = 8
"""Tensors that are tried for one weight, the nearest first, each in its two nearest layouts."""

_NARROW = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, slots=True)
class Static:
    """A tensor of PyTorch's that does not depend on the inputs; ``name``: of the parameter, or how it was made."""

    name: str
    array: Array


@dataclass(frozen=True, slots=True)
class WeightForm:
    """What a weight should hold instead: the cause's code, in words what differs, the array, and which tensor it is."""

    code: str
    text: str
    array: Array
    name: str = ""


def weight_forms(have: Array, statics: Sequence[Static], *, gates: int = 0) -> tuple[WeightForm, ...]:
    """Arrays that a weight may have to be, the nearest first; nothing if it is one of them already.

    Args:
        have: the graph's weight.
        statics: PyTorch's tensors of the stage.
        gates: of an LSTM (4), GRU (3) or RNN node (1), which have an order of their own; 0 for all others.
    """
    ranked: list[tuple[float, int, str, Array]] = []
    for static in () if gates else statics:
        layouts: list[tuple[float, int, str, Array]] = []
        for name, array in layouts_of(have.shape, static):
            layouts.append((_distance(have, array), len(ranked) + len(layouts), name, array))
        if layouts and layouts[0][2] == static.name and layouts[0][0] <= SAME and (len(layouts) == 1 or have.ndim > 2):
            return ()
        plain = [each for each in layouts if each[2] == static.name]
        turned = sorted((each for each in layouts if each[2] != static.name), key=lambda each: each[:2])
        nearest = [*plain, *turned[:1]]
        if any(each[0] <= SAME for each in layouts):
            # The very numbers, but turned: as the operator wants them, or the very fault.
            nearest = [(0.0, *each[1:]) for each in [*plain, *turned[:2]] if each[0] > SAME]
        ranked += nearest
    for name, array in _recurrent(have, statics, gates) if gates else ():
        apart = _distance(have, array)
        if apart <= SAME:
            # The right tensors; whether in the right places, the next one says.
            continue
        ranked.append((apart, len(ranked), name, array))
    ranked.sort(key=lambda each: each[:2])
    found = []
    # Exporters put neutral numbers where PyTorch has none.
    neutral = [("zeros", np.zeros_like(have)), ("ones", np.ones_like(have))]
    if have.ndim > 1 or gates or any((have == array).all() for _, array in neutral):
        neutral = []
    for name, array in [*[each[2:] for each in ranked[:MAX_FORMS]], *neutral]:
        # Converters write the largest number of a type for what is beyond it.
        array = saturated(array, have.dtype.name) if have.dtype.name in HALF else array
        made = np.ascontiguousarray(array).astype(have.dtype)
        moved = have.size > 1 and np.array_equal(np.sort(have, axis=None), np.sort(made, axis=None))
        whose = name if name.startswith(("PyTorch's", "the ", "zeros", "ones")) else f"the model's {name}"
        other = f"differs from {whose}: {difference(have, made)}"
        text = f"holds the numbers of {whose} in another order" if moved else other
        found.append(WeightForm(LAYOUT if moved else WEIGHT, text, made, name))
    return tuple(found)


def nearest_weight(have: Array, statics: Sequence[Static], *, gates: int = 0) -> tuple[Array, tuple[str, ...]] | None:
    """What a weight is nearest to, and the tensors that this is made of; ``None``: none has its shape."""
    return min(_all_forms(have, statics, gates), key=lambda each: _distance(have, each[0]), default=None)


def first_weight(have: Array, statics: Sequence[Static], *, gates: int = 0) -> tuple[Array, tuple[str, ...]] | None:
    """The first in PyTorch's order that a weight may be, and the tensors that this is made of, as they are if they fit."""
    if not gates:
        return next(_all_forms(have, statics, gates), None)
    halves = 2 if have.ndim == 2 else 1
    wanted = have.shape[0] * halves
    shape = (have.shape[1] // halves, *have.shape[2:])
    fitting = [static for static in statics if static.array.shape == shape][:wanted]
    if len(fitting) < wanted or shape[0] % gates:
        return None
    parts = [in_gate_order(static.array, gates) for static in fitting]
    return np.concatenate(parts).reshape(have.shape).astype(have.dtype), tuple(static.name for static in fitting)


def _all_forms(have: Array, statics: Sequence[Static], gates: int) -> Iterator[tuple[Array, tuple[str, ...]]]:
    if gates:
        for name, array in _recurrent(have, statics, gates):
            yield np.ascontiguousarray(array).astype(have.dtype), tuple(name.split(" and "))
        return
    for static in statics:
        for _, array in layouts_of(have.shape, static):
            yield np.ascontiguousarray(array).astype(have.dtype), (static.name,)


def _distance(have: Array, other: Array) -> float:
    odd = ~np.isfinite(have.astype(np.float64))
    if not odd.any():
        return relative_error(other, have)
    # Numbers that are none say nothing; the rest tells which tensor it is.
    return max(relative_error(other, np.where(odd, other, have)), 2 * SAME)


def layouts_of(shape: tuple[int, ...], static: Static) -> Iterator[tuple[str, Array]]:
    """A tensor in the shape of a weight: as it is, if it has that shape, and with its axes in other orders."""
    array = static.array
    squeezed = tuple(n for n in shape if n != 1)
    own = tuple(n for n in array.shape if n != 1)
    if own == squeezed:
        yield static.name, array.reshape(shape)
    if 1 < len(own) <= 4 and sorted(own) == sorted(squeezed):
        bare = array.reshape(own)
        for order in itertools.permutations(range(len(own))):
            turned = bare.transpose(order)
            if order != tuple(range(len(own))) and turned.shape == squeezed:
                yield f"{static.name} with its axes as {list(order)}", turned.reshape(shape)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Gates of recurrent nodes."""

GATE_ORDER = {4: (0, 3, 1, 2), 3: (1, 0, 2), 1: (0,)}
"""ONNX's order of gates by their number: PyTorch's LSTM has i f g o and ONNX i o f c; a GRU r z n and z r h."""


def _recurrent(have: Array, statics: Sequence[Static], gates: int) -> Iterator[tuple[str, Array]]:
    """Weights of LSTM, GRU and RNN nodes: directions first, gates in ONNX's order, both biases in one."""
    halves = 1 if have.ndim == 3 else 2 if have.ndim == 2 and have.shape[1] % 2 == 0 else 0
    if not halves:
        return
    wanted = [part for direction in have for part in np.split(direction, halves)]
    # Each part by what it is nearest to, the same in PyTorch's order of directions, and all that there are in order: of
    # several layers the stage has all tensors.
    fitting = [static for static in statics if static.array.shape == wanted[0].shape]
    if len(wanted[0]) % gates:
        return
    chosen: list[tuple[str, Array]] = []
    for part in wanted:
        found = _nearest(part, fitting, gates, [name for name, _ in chosen])
        chosen += [found] if found is not None else []
    ranks = {static.name: rank for rank, static in enumerate(fitting)}
    arranged = sorted(chosen, key=lambda each: ranks[each[0]])
    in_order = [(static.name, in_gate_order(static.array, gates)) for static in fitting]
    told: list[list[str]] = []
    for parts in (chosen, arranged, *_layers(in_order, len(wanted))):
        names = [name for name, _ in parts]
        if len(parts) == len(wanted) and names not in told:
            told.append(names)
            stacked = np.concatenate([array for _, array in parts]).reshape(have.shape)
            yield " and ".join(names), stacked


def _layers(parts: Sequence[tuple[str, Array]], wanted: int) -> Iterator[Sequence[tuple[str, Array]]]:
    """The tensors of each layer: so many that follow each other, of all that fit, and of those of one kind."""
    kinds: dict[str, list[tuple[str, Array]]] = defaultdict(list)
    for name, array in parts:
        kinds[name.rpartition("_l")[0]].append((name, array))
    for listed in (parts, *(kinds.values() if len(kinds) > 1 else ())):
        for start in range(0, len(listed) - wanted + 1, wanted):
            yield listed[start : start + wanted]


def in_gate_order(array: Array, gates: int) -> Array:
    """A tensor of PyTorch's with its gates, blocks of the first axis, in ONNX's order."""
    pieces = np.split(array, gates)
    return np.concatenate([pieces[i] for i in GATE_ORDER[gates]])


def _nearest(part: Array, statics: Sequence[Static], gates: int, taken: Sequence[str]) -> tuple[str, Array] | None:
    """The tensor of a weight's shape that it is nearest to, its gates in ONNX's order."""
    found: list[tuple[float, str, Array]] = []
    for static in statics:
        if static.name not in taken:
            turned = in_gate_order(static.array, gates)
            found.append((_distance(part, turned), static.name, turned))
    return min(found, key=lambda each: each[0])[1:] if found else None


def difference(have: Array, should: Array) -> str:
    """In words how one weight differs from another of its shape."""
    odd = int(np.size(have) - np.isfinite(have.astype(np.float64)).sum())
    if odd:
        return f"{odd} of {have.size} numbers are NaN or infinite"
    one, two = have.astype(np.float64), should.astype(np.float64)
    norm = float(np.linalg.norm(two))
    apart = one - two
    rel = float(np.linalg.norm(apart)) / norm if norm else math.inf
    head = (
        f"relative L2 {rel:.1e}"
        if norm
        else f"at most {float(np.abs(apart).max(initial=0.0)):.2g}, where all should be 0"
    )
    for name, dtype in _NARROW.items():
        if np.array_equal(should.astype(dtype).astype(have.dtype), have):
            return f"rounded to {name}, {head}"
    factor = float((one * two).sum() / (norm * norm)) if norm else 1.0
    if abs(factor - 1) > SAME and float(np.linalg.norm(one - factor * two)) < 0.02 * float(np.linalg.norm(apart)):
        return f"all of it times {factor:.6g}"
    squares = apart * apart
    total = float(squares.sum())
    for axis in range(squares.ndim):
        sums = squares.sum(axis=tuple(a for a in range(squares.ndim) if a != axis))
        if sums.size > 1 and total and float(sums.max()) >= 0.99 * total:
            return f"{head}, all of it at index {int(sums.argmax())} of axis {axis}"
    return head
