"""What PyTorch would have had to compute to get ONNX's value: its own calls, changed in one thing at a time.

Where no change of the graph mends an origin, the graph may lack what would have to be changed: an exporter that drops an
argument leaves no attribute behind. Then it is asked the other way round. PyTorch's calls are run again with one argument
at its default, by a sister function, without a write, in a narrower type; what gives ONNX's value says what the graph
left out of account. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bisect_tool.diagnose.causes import ATTRIBUTE, MISSING, OPERATOR, PRECISION

Kind = Literal["argument", "sister", "without", "through"]

MAX_CHANGES = 60


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of a call, tensors left out.

    Attributes:
        name: in the operator's schema.
        type: there, without ``?``.
        optional: it may be ``None``.
        value: that the call had.
        default: of the schema; the value itself where it has none.
    """

    name: str
    type: str
    optional: bool
    value: Any
    default: Any


@dataclass(frozen=True, slots=True)
class Calling:
    """One of PyTorch's calls, as far as it can be changed.

    Attributes:
        name: of the operator, without namespace and overload; a write in place ends with ``_``.
        parameters: all arguments but tensors.
        passes: its result has shape and type of its first operand, so that it can be left out.
        whole: it computes whole numbers from whole numbers.
        source: ``file:line``; ``None`` if unknown.
        module: path of the module that ran it; empty for the model itself.
    """

    name: str
    parameters: tuple[Parameter, ...]
    passes: bool
    whole: bool
    source: str | None
    module: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A call of PyTorch's changed in one thing.

    Attributes:
        call: its number among the calls.
        kind: ``argument``: one has another value; ``sister``: another function; ``without``: it is left out;
            ``through``: its operands pass through another type.
        name: of the sister or of the type; else empty.
        values: of arguments, by name.
        code: of the cause, should this give ONNX's value.
        text: what PyTorch computes then, to go on from "ONNX's value is what PyTorch gives".
        remedy: what to do then.
    """

    call: int
    kind: Kind
    name: str
    values: Mapping[str, Any]
    code: str
    text: str
    remedy: str


SISTERS: Mapping[str, tuple[str, ...]] = {
    "remainder": ("fmod",),
    "fmod": ("remainder",),
    "floor": ("trunc", "round"),
    "ceil": ("trunc", "floor", "round"),
    "trunc": ("floor", "round"),
    "round": ("trunc", "floor"),
    "amax": ("amin",),
    "amin": ("amax",),
    "maximum": ("fmax",),
    "minimum": ("fmin",),
    "fmax": ("maximum",),
    "fmin": ("minimum",),
    "elu": ("celu",),
    "celu": ("elu",),
    "gt": ("ge",),
    "ge": ("gt",),
    "lt": ("le",),
    "le": ("lt",),
    "_softmax": ("_log_softmax",),
    "_log_softmax": ("_softmax",),
    "_upsample_nearest_exact1d": ("upsample_nearest1d",),
    "_upsample_nearest_exact2d": ("upsample_nearest2d",),
    "_upsample_nearest_exact3d": ("upsample_nearest3d",),
    "upsample_nearest1d": ("_upsample_nearest_exact1d",),
    "upsample_nearest2d": ("_upsample_nearest_exact2d",),
    "upsample_nearest3d": ("_upsample_nearest_exact3d",),
    "_upsample_bilinear2d_aa": ("upsample_bilinear2d",),
    "_upsample_bicubic2d_aa": ("upsample_bicubic2d",),
    "upsample_bilinear2d": ("_upsample_bilinear2d_aa",),
    "upsample_bicubic2d": ("_upsample_bicubic2d_aa",),
}
"""Functions with the same arguments that are taken for each other."""

_WORDS: Mapping[str, tuple[Any, ...]] = {
    "rounding_mode": (None, "floor", "trunc"),
    "approximate": ("none", "tanh"),
    "reduce": ("sum", "prod", "mean", "amax", "amin", "add", "multiply"),
    "interpolation_mode": (0, 1, 2),
    "padding_mode": (0, 1, 2),
    "side": ("left", "right"),
}
"""Arguments that have few values."""

_SAFE = frozenset(
    [
        *(
            "accumulate",
            "align_corners",
            "alpha",
            "approximate",
            "beta",
            "ceil_mode",
            "correction",
            "count_include_pad",
        ),
        *("decimals", "delta", "descending", "diagonal", "divisor_override", "dtype", "eps", "epsilon", "include_self"),
        *("interpolation_mode", "label_smoothing", "lambd", "largest", "lower", "margin", "max", "max_val", "min"),
        *("min_val", "nan", "neginf", "negative_slope", "ord", "p", "padding_mode", "posinf", "reduce", "right"),
        *("rounding_mode", "scale", "scale_factors", "scales", "scales_d", "scales_h", "scales_w", "shifts", "side"),
        *("stable", "swap", "threshold", "unbiased", "upper", "value"),
    ]
)
"""Arguments that are changed. A kernel that is told another size may write beyond its memory: nothing of that here."""

_CLOSED = (
    "rnn",
    "lstm",
    "gru",
    "cudnn",
    "mkldnn",
    "miopen",
    "onednn",
    "mps",
    "flash",
    "efficient",
    "sparse",
    "quantize",
)
"""Parts of names of operators that trust what they are given, and are left alone."""

_WHOLE_TYPES = ("float32", "float64", "int32")
_ARITHMETIC = frozenset(
    [
        *("add", "sub", "rsub", "mul", "div", "floor_divide", "remainder", "fmod", "pow", "square", "abs", "neg"),
        *("sum", "prod", "cumsum", "cumprod", "mm", "bmm", "matmul", "addmm", "dot", "mv"),
    ]
)
_MAX_LIST = 6


def changes(calls: Sequence[Calling]) -> Iterator[Change]:
    """Changes of single calls, the most telling first: arguments, sisters, writes and calls left out, types."""
    for number, call in enumerate(calls):
        if not any(part in call.name for part in _CLOSED):
            yield from _arguments(number, call)
    for number, call in enumerate(calls):
        for other in SISTERS.get(call.name, ()):
            yield Change(
                number,
                "sister",
                other,
                {},
                OPERATOR,
                f"with {other} in the place of {_named(call)}",
                f"the graph computes {other} there: export it again, or with another exporter or opset",
            )
    for number, call in enumerate(calls):
        if call.passes:
            write = call.name.endswith("_") and not call.name.endswith("__")
            yield Change(
                number,
                "without",
                "",
                {},
                MISSING,
                f"without {_named(call)}" + (", which writes in place" if write else ""),
                "write into a new tensor, y = f(x) or torch.where, and not into a view of another one"
                if write
                else f"{call.name} has no nodes in the graph: export it again, or with another exporter or opset",
            )
    for number, call in enumerate(calls):
        for type_ in _WHOLE_TYPES if call.whole and call.name in _ARITHMETIC else ():
            yield Change(
                number,
                "through",
                type_,
                {},
                PRECISION,
                f"with {_named(call)} computed in {type_}",
                f"compute it in floating numbers that hold these whole ones, or keep them small: {type_} does not hold them",
            )


def _arguments(number: int, call: Calling) -> Iterator[Change]:
    parameters = [each for each in call.parameters if each.name in _SAFE]
    for parameter in parameters:
        seen: list[Any] = [parameter.value]
        for value in _values(parameter):
            if any(type(value) is type(other) and value == other for other in seen):
                continue
            seen.append(value)
            yield _argument(number, call, [parameter], [value])
    # What belongs together is left out together, such as a scale for each axis.
    given = [each for each in parameters if each.value != each.default]
    if len(given) > 1:
        yield _argument(number, call, given, [each.default for each in given])


def _argument(number: int, call: Calling, parameters: Sequence[Parameter], values: Sequence[Any]) -> Change:
    names = _and(each.name for each in parameters)
    new, old = _and(_text(value) for value in values), _and(_text(each.value) for each in parameters)
    code = PRECISION if all(each.type == "ScalarType" for each in parameters) else ATTRIBUTE
    return Change(
        number,
        "argument",
        "",
        {each.name: value for each, value in zip(parameters, values, strict=True)},
        code,
        f"with {names} {new} in {_named(call)}, and not {old}",
        f"the graph has nothing for {names}: write {call.name} out in operations that need no such argument, or take "
        "another exporter or opset",
    )


def _and(texts: Iterable[str]) -> str:
    *first, last = dict.fromkeys(texts)
    return f"{', '.join(first)} and {last}" if first else last


def _values(parameter: Parameter) -> Iterator[Any]:
    """Other values of an argument: its default, nothing, the other ones of few, each number of a list left neutral."""
    value = parameter.value
    yield parameter.default
    if parameter.optional:
        yield None
    if parameter.type == "bool":
        yield not value
    yield from _WORDS.get(parameter.name, ())
    if isinstance(value, (list, tuple)) and len(value) <= _MAX_LIST and all(type(each) is int for each in value):
        for neutral in (0, 1):
            for place, each in enumerate(value):
                if each != neutral:
                    yield [neutral if i == place else other for i, other in enumerate(value)]
    if parameter.type == "ScalarType":
        # Narrower sums: the type of what is summed.
        yield from ("int32", "float32")


def _named(call: Calling) -> str:
    where = f" of {call.module}" if call.module else ""
    return f"{call.name}{where}" + (f" at {call.source}" if call.source else "")


def _text(value: Any) -> str:
    if value is None:
        return "left out"
    return f"{value:.7g}" if isinstance(value, float) else str(value)
