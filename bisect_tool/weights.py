"""Whether the graph's weights are those of the model: pairs by name, compared value by value, in blocks.

Exporters keep the names of weights that they leave alone, so a pair of one name should hold one tensor. What exporters
and converters do to weights on purpose is known here and is no difference: axes swapped for a product, axes of length 1,
a BatchNorm folded into the layer before it, a cast to a narrower type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bisect_tool.diagnose.causes import LAYOUT, UNKNOWN, WEIGHT
from bisect_tool.records import Diagnosis, Origin, Verdict

Array = NDArray[Any]

CODE = "BD201"

SAME = 1e-6
"""Relative L2 up to which two float32 weights are one; exporters copy bits."""

FOLDED = 1e-4
"""The same for what is computed anew: the factors of a folded BatchNorm."""

CONCENTRATED = 0.99
"""Share of the squared difference in one index of an axis, from which on that index is named."""

COARSE = 2e-2
"""Relative L2 below which a difference may come from storing weights in fewer bits."""

NAMED = 5
"""Weights that the evidence names."""

_NEAR_A_FOLDING = 0.5
"""Relative L2 between the factors that a weight's channels have and those of a BatchNorm that may be folded in."""

_BLOCK = 1 << 20
_CACHED = 1 << 16
"""Elements of a block that stays in a core's level-2 cache."""
_NARROW = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_WRAPPERS = ("module.", "model.", "_orig_mod.", "net.")


@dataclass(frozen=True, slots=True)
class Folding:
    """What a BatchNorm does to a channel: ``(x - mean) * scale + shift``; one number of each per channel."""

    scale: Array
    mean: Array
    shift: Array

    def weight(self, array: Array, axis: int) -> Array:
        """The weight of the layer before it with this folded in; ``axis``: of its output channels."""
        shape = [1] * array.ndim
        shape[axis] = -1
        return np.asarray(array.astype(np.float64) * self.scale.reshape(shape))

    def bias(self, array: Array | float = 0.0) -> Array:
        """The bias of the layer before it, or of none, with this folded in."""
        return np.asarray((np.asarray(array, np.float64) - self.mean) * self.scale + self.shift)


def folding(mean: Array, variance: Array, weight: Array | None, bias: Array | None, eps: float) -> Folding:
    """A BatchNorm's numbers, in float64; ``weight`` and ``bias`` are ``None`` where it has none."""
    mean, variance = mean.astype(np.float64), variance.astype(np.float64)
    scale = np.ones_like(mean) if weight is None else weight.astype(np.float64)
    shift = np.zeros_like(mean) if bias is None else bias.astype(np.float64)
    return Folding(scale / np.sqrt(variance + eps), mean, shift)


@dataclass(frozen=True, slots=True)
class WeightPair:
    """An initialiser of the graph and the parameter or buffer of the model that it should be.

    ``by_name``: they have one name; else the node that reads it belongs to the parameter's module.
    """

    onnx: str
    parameter: str
    by_name: bool = True


def relative(rel_l2: float, max_abs: float) -> str:
    """How far a weight is off, in words; a weight of zeros has nothing to be relative to."""
    if math.isinf(rel_l2):
        return f"at most {max_abs:.2g}, where all should be 0"
    return f"relative L2 {rel_l2:.1e}, at most {max_abs:.2g}"


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """A weight of the graph that is not the model's.

    Attributes:
        pair: the two.
        rel_l2: of the difference, relative to the model's weight.
        max_abs: largest absolute difference.
        axis, index: the one index of one axis, of the graph's weight, that holds it; ``None``: it is spread out.
        rounded: the narrower type whose rounding is all of the difference; ``None``: there is more to it.
        folded: the difference is to the model's weight with a BatchNorm folded in.
        moved: it holds the model's very numbers, in another order.
    """

    pair: WeightPair
    rel_l2: float
    max_abs: float
    axis: int | None = None
    index: int | None = None
    rounded: str | None = None
    folded: bool = False
    moved: bool = False

    def __str__(self) -> str:
        fold = " with a BatchNorm folded in" if self.folded else ""
        if self.rounded is not None:
            return (
                f"weight {self.pair.onnx} is the model's{fold} rounded to {self.rounded}: relative L2 {self.rel_l2:.1e}"
            )
        place = "" if self.axis is None else f", all of it at index {self.index} of axis {self.axis}"
        model = "" if self.pair.onnx == self.pair.parameter else f" ({self.pair.parameter})"
        return f"weight {self.pair.onnx} differs from the model's{model}{fold}: {relative(self.rel_l2, self.max_abs)}{place}"


@dataclass(frozen=True, slots=True)
class WeightReport:
    """All pairs that were compared.

    Attributes:
        compared: how many pairs.
        differing: the pairs that differ, in the graph's order.
        telling: pairs that hold more than one number; fresh norms and biases are the same in every checkpoint.
        rounded: the pairs that differ by rounding to a narrower type alone.
        without_nan: the graph's weights in which the comparison would have met a NaN, and has not.
        finite: the model's weights in which it would have met a NaN or an infinity, and has not.
    """

    compared: int
    differing: tuple[WeightDifference, ...]
    telling: int
    rounded: tuple[WeightDifference, ...] = ()
    without_nan: frozenset[str] = frozenset()
    finite: frozenset[str] = frozenset()

    @property
    def is_another_checkpoint(self) -> bool:
        """Whether most weights that could differ do, and not for the order of their numbers."""
        other = sum(not each.moved for each in self.differing)
        return other > 1 and 2 * other > self.telling


def pair_weights(
    initializers: Mapping[str, Sequence[int]],
    parameters: Mapping[str, Sequence[int]],
    products: Mapping[str, Iterable[str]],
) -> list[WeightPair]:
    """Initialisers and parameters that should be one tensor.

    Args:
        initializers: shapes of the floating ones, by name, in the graph's order.
        parameters: shapes of floating parameters and buffers, by dotted name.
        products: matrices that a matrix product reads, with the paths of the modules that the product belongs to:
            exporters swap the axes of a linear layer's weight and call it something else.
    """
    known = _renamed(initializers, parameters)
    pairs = [WeightPair(name, known[name]) for name in initializers if name in known]
    taken = {pair.parameter for pair in pairs}
    named = {pair.onnx for pair in pairs}
    for name, paths in products.items():
        free = [f"{path}.weight" for path in dict.fromkeys(paths) if f"{path}.weight" not in taken]
        found = [other for other in free if other in parameters]
        if name in initializers and name not in named and len(found) == 1:
            (parameter,) = found
            if tuple(initializers[name]) == tuple(reversed(parameters[parameter])):
                pairs.append(WeightPair(name, parameter, by_name=False))
                taken.add(parameter)
    return pairs


def _renamed(initializers: Mapping[str, Sequence[int]], parameters: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Parameters by names of the graph; of a model that was wrapped on one side, with the wrapper's name put on or off."""

    def found(change: Callable[[str], str]) -> dict[str, str]:
        return {
            name: change(name)
            for name, shape in initializers.items()
            if change(name) in parameters and _alike(shape, parameters[change(name)])
        }

    best = found(lambda name: name)
    for wrapper in () if best else _WRAPPERS:
        off = found(lambda name, wrapper=wrapper: name.removeprefix(wrapper))  # type: ignore[misc]
        on = found(lambda name, wrapper=wrapper: wrapper + name)  # type: ignore[misc]
        best = max(best, off, on, key=len)
    return best


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _alike(first: Sequence[int], second: Sequence[int]) -> bool:
    one, other = _squeezed(first), _squeezed(second)
    return one == other or (len(one) == 2 and one == other[::-1])


def compare_weights(
    pairs: Sequence[WeightPair],
    onnx_weight: Callable[[str], Array],
    parameter: Callable[[str], Array],
    foldings: Sequence[Folding] = (),
) -> WeightReport:
    """Compares pairs, one at a time and in blocks, so that weights mapped from a file are never in memory as a whole.

    Args:
        pairs: from :func:`pair_weights`.
        onnx_weight: an initialiser by name.
        parameter: a parameter or buffer by name.
        foldings: of the model's BatchNorms.
    """
    differing: list[WeightDifference] = []
    rounded: list[WeightDifference] = []
    telling = 0
    without_nan, finite = set(), set()
    for pair in pairs:
        weight = onnx_weight(pair.onnx)
        actual, options = _beside(weight, parameter(pair.parameter))
        fitting = _fitting(actual, options, foldings)
        if fitting is not None:
            without_nan.add(pair.onnx)
            if fitting.finite:
                finite.add(pair.parameter)
            telling += not _is_constant(fitting.form)
            continue
        difference, constant = _compare(pair, actual, options, foldings)
        telling += not constant or difference is not None
        if difference is not None and difference.rounded is None:
            difference = replace(difference, moved=is_moved(actual, options[0]))
        if difference is not None:
            (differing if difference.rounded is None else rounded).append(_unsqueezed(difference, weight.shape))
    return WeightReport(
        len(pairs), tuple(differing), telling, tuple(rounded), frozenset(without_nan), frozenset(finite)
    )


MOST_SORTED = 1 << 24
"""Numbers of a weight up to which it is sorted, to see whether they are only in another order."""


def is_moved(actual: Array, expected: Array) -> bool:
    """Whether a weight holds another's very numbers, wherever they stand; big ones are not looked at."""
    if actual.size != expected.size or actual.size > MOST_SORTED:
        return False
    with np.errstate(all="ignore"):
        there = expected.astype(actual.dtype)
    return np.array_equal(np.sort(actual, axis=None), np.sort(there, axis=None))


def _unsqueezed(difference: WeightDifference, shape: tuple[int, ...]) -> WeightDifference:
    """The axis as the graph counts it: axes of length 1 were left out."""
    if difference.axis is None:
        return difference
    kept = [axis for axis, size in enumerate(shape) if size != 1]
    return replace(difference, axis=kept[difference.axis])


def _beside(actual: Array, expected: Array) -> tuple[Array, list[Array]]:
    """A graph's weight and the forms that the model's may have there, axes of length 1 left out."""
    actual = actual.reshape(_squeezed(actual.shape))
    expected = expected.reshape(_squeezed(expected.shape))
    options = [expected] if actual.shape == expected.shape else []
    if expected.ndim == 2 and actual.shape == expected.T.shape:
        options.append(expected.T)
    return actual, options


class _Fitting(NamedTuple):
    """The form of the model's weight that the graph's is, and whether all of it is known to be finite."""

    form: Array
    finite: bool


def _fitting(actual: Array, options: Sequence[Array], foldings: Sequence[Folding]) -> _Fitting | None:
    """The form of the model's weight that the graph's is, to the bit or but for a BatchNorm's factors.

    Where there is one, no number on either side is NaN: nothing is equal to that.
    """
    for option in options:
        # Nearly all weights are the same to the bit, and that is seen at a glance; that they are not, at a shorter one.
        if (actual[:1] == option[:1]).all() if actual.ndim else True:
            finite = _equal(actual, option)
            if finite is not None:
                return _Fitting(option, finite)
    for option in options:
        if _is_scaled_by(foldings, actual, option):
            return _Fitting(option, finite=True)
    return None


def _equal(actual: Array, expected: Array) -> bool | None:
    """Whether two weights that are the same to the bit are known to be finite; ``None``: they are not the same."""
    finite = actual.dtype in (np.float32, np.float64) and actual.flags.c_contiguous
    for one, other in _rows(actual, expected, _CACHED):
        if not (one == other).all():
            return None
        if finite:
            flat = one.reshape(-1)
            finite = math.isfinite(flat.dot(flat))
    return finite


def _compare(
    pair: WeightPair, actual: Array, options: Sequence[Array], foldings: Sequence[Folding]
) -> tuple[WeightDifference | None, bool]:
    """The difference if there is one, and whether the model's weight is one number all over."""
    best, sums = options[0], _sums(actual, options[0])
    for option in options[1:]:
        other = _sums(actual, option)
        if other.rel_l2 < sums.rel_l2:
            best, sums = option, other
    if sums.rel_l2 <= SAME:
        return None, sums.constant
    narrow = _rounded_to(actual, best, sums)
    if narrow is not None:
        return WeightDifference(pair, sums.rel_l2, sums.max_abs, rounded=narrow), sums.constant
    # A weight that goes by another name need not be the parameter itself: models scale all of a weight beforehand.
    whole = sums.place() == (None, None)
    scaled = not pair.by_name and whole and any(sums.is_scaled(axis) for axis in range(actual.ndim))
    if scaled or _is_folded(actual, best, sums, foldings):
        return None, sums.constant
    constant = sums.constant
    folded = _nearest_folded(actual, best, sums, foldings)
    if folded is not None:
        best, sums = folded
        narrow = _rounded_to(actual, best, sums, computed=True)
        place = (None, None) if narrow is not None else sums.place()
        return WeightDifference(pair, sums.rel_l2, sums.max_abs, *place, rounded=narrow, folded=True), constant
    return WeightDifference(pair, sums.rel_l2, sums.max_abs, *sums.place()), constant


def _nearest_folded(
    actual: Array, expected: Array, sums: _Sums, foldings: Sequence[Folding]
) -> tuple[Array, _Sums] | None:
    """The model's weight with the BatchNorm folded in that it is nearest to, if that is far nearer than without any."""
    if actual.ndim < 2 or actual.shape != expected.shape:
        return None
    near = [
        (
            float(np.linalg.norm(sums.factors(axis) - each.scale) / max(float(np.linalg.norm(each.scale)), 1e-30)),
            each,
            axis,
        )
        for each in foldings
        for axis in (0, 1)
        if actual.shape[axis] == each.scale.size
    ]
    apart, folding, axis = min(near, key=lambda each: each[0], default=(math.inf, None, 0))
    # Of a weight that is not the model's at all its factors are those of no BatchNorm.
    if folding is None or not apart < _NEAR_A_FOLDING:
        return None
    form = folding.weight(expected, axis)
    found = _sums(actual, form)
    return (form, found) if 2 * found.rel_l2 < sums.rel_l2 else None


def _is_constant(weight: Array) -> bool:
    first = weight[(0,) * weight.ndim] if weight.size else None
    return all((other == first).all() for _, other in _rows(weight, weight, _CACHED))


def _is_scaled_by(foldings: Sequence[Folding], actual: Array, expected: Array) -> bool:
    """Whether the weight is the model's, each row times a BatchNorm's factor.

    Nearly all weights that are not the model's to the bit are this, and one pass tells; :func:`_sums` takes forty times
    as long.
    """
    if actual.ndim < 2 or actual.dtype != np.float32 or expected.dtype != np.float32:
        return False
    scales = [each.scale.astype(np.float32) for each in foldings if each.scale.size == len(actual)]
    return any(
        _holds(scale, actual[:1], expected[:1]) and _holds(scale, actual, expected) for scale in scales if len(scale)
    )


def _holds(scale: Array, actual: Array, expected: Array) -> bool:
    apart, norm, start = 0.0, 0.0, 0
    space: Array = np.empty(0, np.float32)
    with np.errstate(all="ignore"):
        for one, other in _rows(actual, expected, _CACHED):
            factors = scale[start : start + len(one)].reshape((-1,) + (1,) * (one.ndim - 1))
            if one.size > space.size:
                space = np.empty(one.size, np.float32)
            # Fresh memory for each block would take longer than the numbers do.
            left = np.multiply(other, factors, out=space[: one.size].reshape(one.shape))
            left = np.subtract(one, left, out=left).reshape(-1)
            one = one.reshape(-1)
            apart += float(left.dot(left))
            norm += float(one.dot(one))
            start += len(factors)
    # An infinity, which is infinitely far from what it should be, makes both sums infinite.
    return apart <= FOLDED**2 * norm < math.inf


def _near(one: Array, other: Array, limit: float) -> bool:
    return bool(np.linalg.norm(one - other) <= limit * max(float(np.linalg.norm(other)), 1e-30))


@dataclass(slots=True)
class _Sums:
    """Sums of squares and products over all elements, by index of each axis."""

    differences: list[NDArray[np.float64]]
    actual: list[NDArray[np.float64]]
    expected: list[NDArray[np.float64]]
    products: list[NDArray[np.float64]]
    max_abs: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    @property
    def constant(self) -> bool:
        return self.least == self.greatest

    @property
    def rel_l2(self) -> float:
        error, norm = float(self.differences[0].sum()), float(self.expected[0].sum())
        if error == 0:
            return 0.0
        return math.sqrt(error / norm) if norm > 0 and math.isfinite(error) else math.inf

    def factors(self, axis: int) -> NDArray[np.float64]:
        """What each index of an axis was multiplied by, by least squares; 1 where there is nothing to tell from."""
        norm = self.expected[axis]
        return np.divide(self.products[axis], norm, out=np.ones_like(norm), where=norm > 0)

    def is_scaled(self, axis: int, limit: float = FOLDED) -> bool:
        """Whether each index of an axis was multiplied by a number of its own."""
        with np.errstate(invalid="ignore"):  # an infinite weight
            left = self.actual[axis] - self.factors(axis) * self.products[axis]
        return bool(np.abs(left).sum() <= limit**2 * self.actual[axis].sum())

    def place(self) -> tuple[int | None, int | None]:
        found = [
            (squares.size, axis, int(squares.argmax()))
            for axis, squares in enumerate(self.differences)
            if squares.size > 1 and squares.max() >= CONCENTRATED * squares.sum()
        ]
        return max(found)[1:] if found else (None, None)


def _rows(actual: Array, expected: Array, elements: int) -> Iterator[tuple[Array, Array]]:
    """Both weights in blocks."""
    rows = max(1, elements // max(1, math.prod(actual.shape[1:])))
    for start in range(0, len(actual) if actual.ndim else 1, rows):
        place = slice(start, start + rows) if actual.ndim else ()
        yield np.asarray(actual[place]), np.asarray(expected[place])


def _blocks(actual: Array, expected: Array) -> Iterator[tuple[int, list[Array]]]:
    """The same rows of both, in float64, and the number of the first of them."""
    arrays = (actual, expected)
    first = arrays[0]
    if first.ndim == 0:
        yield 0, [array.reshape(1).astype(np.float64) for array in arrays]
        return
    rows = max(1, _BLOCK // max(1, math.prod(first.shape[1:])))
    for start in range(0, first.shape[0], rows):
        yield start, [np.asarray(array[start : start + rows]).astype(np.float64) for array in arrays]


def _sums(actual: Array, expected: Array) -> _Sums:
    shape = actual.shape or (1,)
    made = [[np.zeros(size) for size in shape] for _ in range(4)]
    sums = _Sums(made[0], made[1], made[2], made[3])
    for start, (one, other) in _blocks(actual, expected):
        with np.errstate(all="ignore"):
            apart = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, one - other)
            terms = (apart * apart, one * one, other * other, one * other)
        for total, term in zip(made, terms, strict=True):
            for axis in range(term.ndim):
                part = term.sum(axis=tuple(a for a in range(term.ndim) if a != axis))
                if axis == 0:
                    total[0][start : start + len(part)] += part
                else:
                    total[axis] += part
        if apart.size:
            sums.max_abs = max(sums.max_abs, float(np.abs(apart).max()))
            sums.least, sums.greatest = min(sums.least, float(other.min())), max(sums.greatest, float(other.max()))
    return sums


def _rounded_to(actual: Array, expected: Array, sums: _Sums, *, computed: bool = False) -> str | None:
    """The narrower type that the model's weight was rounded to, whatever type that is stored in.

    ``computed``: the last bit of what was rounded is not known, so that any number of the type next to it will do.
    """
    if sums.rel_l2 > COARSE or expected.dtype.name in _NARROW:
        return None
    for name, dtype in _NARROW.items():
        eps = float(ml_dtypes.finfo(dtype).eps)
        worst = 0.0
        for start, (one, _) in _blocks(actual, actual):
            with np.errstate(all="ignore"):
                is_of_type = not computed or np.array_equal(one.astype(dtype).astype(np.float64), one)
            if not is_of_type:
                worst = math.inf
                break
            part = expected if expected.ndim == 0 else expected[start : start + len(one)]
            with np.errstate(all="ignore"):
                there = np.asarray(part).astype(dtype).astype(np.float64).reshape(one.shape)
                # Converters lift what would become zero to the smallest number they like.
                apart = np.abs(one - there) - 1.01 * eps * np.abs(there) * (computed or actual.dtype == dtype) - 1e-7
            worst = max(worst, float(apart.max(initial=0.0)))
        if worst <= 0:
            return name
    return None


def _is_folded(actual: Array, expected: Array, sums: _Sums, foldings: Sequence[Folding]) -> bool:
    """Whether the graph's weight is the model's with a BatchNorm folded in."""

    narrow = _NARROW.get(actual.dtype.name)
    limit = FOLDED if narrow is None else max(FOLDED, float(ml_dtypes.finfo(narrow).eps))
    for folding in foldings:
        for axis, size in enumerate(actual.shape[:2]):
            if (
                size == folding.scale.size
                and sums.is_scaled(axis, limit)
                and _near(sums.factors(axis), folding.scale, limit)
            ):
                return True
        if actual.shape == folding.scale.shape and _near(actual.astype(np.float64), folding.bias(expected), limit):
            return True
    return False


def with_weights(verdict: Verdict, weights: WeightReport) -> Verdict:
    """The verdict that says what the weights have to do with it.

    Most weights differ: a line of the summary and a diagnosis. Few do: a line at each origin that reads one of them, and
    the others in one line of the summary.
    """
    if weights.is_another_checkpoint:
        diagnosis = _other_checkpoint(weights)
        summary = (*verdict.summary, checkpoint_line(diagnosis))
        # What single stages lack is this.
        others = [each for each in verdict.diagnoses if each.code not in (UNKNOWN, WEIGHT, LAYOUT)]
        return replace(verdict, summary=summary, diagnoses=(*others, diagnosis))
    told: set[str] = set()
    # A trial says more: what the weight should be, with a BatchNorm folded in for one.
    explained = {each.origin for each in verdict.diagnoses if each.code in (WEIGHT, LAYOUT)}

    def told_at(origin: Origin) -> Origin:
        both = (*weights.differing, *weights.rounded)
        own = [each for each in both if each.pair.onnx in origin.onnx_weights]
        told.update(each.pair.onnx for each in own)
        if origin.ref in explained:
            return origin
        return replace(origin, evidence=(*origin.evidence, *map(str, own)))

    origins = tuple(told_at(origin) for origin in verdict.origins)
    rest = [each for each in weights.differing if each.pair.onnx not in told]
    lines: list[str] = []
    if rest:
        lines.append(f"{rest[0]}" + (f", and {len(rest) - 1} more" if len(rest) > 1 else ""))
    if len(weights.rounded) > 1 or any(each.pair.onnx not in told for each in weights.rounded):
        types = " and ".join(dict.fromkeys(str(each.rounded) for each in weights.rounded))
        lines.append(
            f"{len(weights.rounded)} of {weights.compared} weights in the ONNX file are the model's rounded to {types}"
        )
    return replace(verdict, summary=(*verdict.summary, *lines), origins=origins)


def checkpoint_line(diagnosis: Diagnosis) -> str:
    """The verdict's line about weights of another checkpoint."""
    return f"{diagnosis.evidence[0]}: another checkpoint?"


def _other_checkpoint(weights: WeightReport) -> Diagnosis:
    differing = weights.differing
    first, largest = differing[0], max(differing, key=lambda each: each.max_abs)
    head = (
        f"{len(differing)} of {weights.compared} weights in the ONNX file differ from the model's "
        f"(first: {first.pair.onnx}; largest difference {largest.max_abs:.2g}, in {largest.pair.onnx})"
    )
    coarse = all(each.rel_l2 <= COARSE for each in differing)
    return Diagnosis(
        code=CODE,
        title="the ONNX file holds other weights than the model",
        evidence=(head, *map(str, differing[:NAMED])),
        remedy="give the checkpoint that the ONNX file was exported from, or export the file again"
        + ("; differences this small may also come from weights stored in fewer bits" if coarse else ""),
        remedy_verified=None,
        cost=None,
    )
