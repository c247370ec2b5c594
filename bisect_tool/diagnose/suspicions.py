"""What a graph's nodes tell before anything runs: training mode, chance, and settings that are not the module's.

Settings are held against the module that the exporter's name says the node belongs to, and only where node and module are
of one kind: what was fused or rewritten is left alone. Sources: ONNX's operator documentation and PyTorch's modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bisect_tool.diagnose.causes import CHANCE, SUSPECT, TRAINING
from bisect_tool.diagnose.rules.randomness import RANDOM
from bisect_tool.records import Finding, Severity

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Described:
    """A node of the graph, before it ran.

    Attributes:
        name, op: as in the file.
        attributes: with the defaults of the graph's opset.
        constants: what is known of its inputs, by place.
        module: path of the module that its name says; ``None`` if it says none.
        kind: class of that module, of PyTorch's own; ``None`` otherwise.
        settings: plain attributes of that module.
        rank: of its first input; ``None`` if unknown.
    """

    name: str
    op: str
    attributes: Mapping[str, Any]
    constants: Mapping[int, Array]
    module: str | None = None
    kind: str | None = None
    settings: Mapping[str, Any] | None = None
    rank: int | None = None


def suspicions(nodes: Sequence[Described], opset: int, kinds: frozenset[str]) -> list[Finding]:
    """What is wrong or odd about nodes, those of one sort in one line.

    Args:
        nodes: of the graph.
        opset: of ONNX's own operators.
        kinds: classes of all modules of the model; ``BatchNorm without statistics`` where one has none.
    """
    found: dict[tuple[str, Severity, str], list[str]] = {}
    for node in nodes:
        # What differs from the module's needs no suspicion besides.
        settings = list(_settings(node)) or list(_known(node, opset))
        for code, severity, text in (*_training(node, kinds), *_random(node), *settings):
            found.setdefault((code, severity, text), []).append(node.name)
    return [
        Finding(code, severity, f"{_some(names)}: {text}", tuple(names))
        for (code, severity, text), names in found.items()
    ]


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:3])
    return f"{listed} and {len(names) - 3} more" if len(names) > 3 else listed


Said = tuple[str, Severity, str]


def _training(node: Described, kinds: frozenset[str]) -> Iterator[Said]:
    if node.op == "BatchNormalization" and node.attributes.get("training_mode"):
        # Which module a node is of is not always known; where one of the model's has no statistics, it may be that.
        kept = (node.settings or {}).get("track_running_stats")
        if kept is False or (kept is None and "BatchNorm without statistics" in kinds):
            return
        meant = node.kind is None
        yield (
            TRAINING,
            "suspicion" if meant else "fault",
            "BatchNormalization in training mode: it uses the batch's statistics, not those of the file",
        )
    elif node.op == "Dropout":
        mode, ratio = node.constants.get(2), node.constants.get(1)
        if mode is not None and mode.any() and (ratio is None or ratio.any()):
            yield TRAINING, "fault", "Dropout in training mode: it drops values by chance"


def _random(node: Described) -> Iterator[Said]:
    if node.op in RANDOM:
        yield CHANCE, "suspicion", f"{node.op}: random numbers, so that no two runs agree"


_NORMS = {
    "BatchNormalization": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"),
    "InstanceNormalization": ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    "LayerNormalization": ("LayerNorm",),
    "GroupNormalization": ("GroupNorm",),
}
_WINDOWS = ("Conv", "ConvTranspose")


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-30)


def _settings(node: Described) -> Iterator[Said]:
    """Attributes that the module has otherwise."""
    if node.settings is None or node.kind is None:
        return
    for name, should in _expected(node):
        have = node.attributes.get(name)
        if have is None or should is None:
            continue
        if name == "axis" and node.rank is not None:
            have = int(have) % node.rank
        if isinstance(have, float) or isinstance(should, float):
            differs = not _same(float(have), float(should))
        elif isinstance(have, (list, tuple)):
            differs = list(have) != list(should)
        else:
            differs = have != should
        if differs:
            yield (
                SUSPECT,
                "fault",
                f"{node.op} with {name} {_text(have)}, where {node.kind} {node.module} has {_text(should)}",
            )
    yield from _pads(node)


def _pads(node: Described) -> Iterator[Said]:
    """Pads that are no more than the module's in sum, and lie otherwise: more of them may be a Pad that was joined."""
    given, kind = node.settings or {}, node.kind or ""
    if not (node.op in _WINDOWS and kind.startswith("Conv")) and (node.op, kind[:7]) != ("MaxPool", "MaxPool"):
        return
    auto, mode = node.attributes.get("auto_pad", "NOTSET"), given.get("padding_mode", "zeros")
    padding = _numbers(given.get("padding"))
    if auto != "NOTSET" or mode != "zeros" or not padding or node.rank is None:
        return
    axes = node.rank - 2
    padding = padding * axes if len(padding) == 1 else padding
    pads = _numbers(node.attributes.get("pads") or [0] * (2 * axes))
    if len(padding) != axes or len(pads) != 2 * axes:
        return
    ends = list(zip(pads[:axes], pads[axes:], strict=True))
    moved = any(a + b == 2 * own and a != own for (a, b), own in zip(ends, padding, strict=True))
    fewer = node.op == "Conv" and any(a + b < 2 * own for (a, b), own in zip(ends, padding, strict=True))
    if moved or fewer:
        text = f"{node.op} with pads {pads}, where {kind} {node.module} has {2 * padding}"
        yield SUSPECT, "fault", text


def _expected(node: Described) -> Iterator[tuple[str, Any]]:
    given, kind = node.settings or {}, node.kind or ""
    if kind in _NORMS.get(node.op, ()):
        yield "epsilon", float(given["eps"])
    elif (node.op, kind) == ("LeakyRelu", "LeakyReLU"):
        yield "alpha", float(given["negative_slope"])
    elif (node.op, kind) in (("Elu", "ELU"), ("Celu", "CELU")):
        yield "alpha", float(given["alpha"])
    elif (node.op, kind) == ("Gelu", "GELU"):
        yield "approximate", given["approximate"]
    elif (node.op, kind[:7]) in (("AveragePool", "AvgPool"), ("MaxPool", "MaxPool")):
        yield from _pool(node, given)
    elif node.op in _WINDOWS and kind.startswith(("Conv", "ConvTranspose")):
        yield from _steps(node, given)
    elif (node.op, kind) == ("DepthToSpace", "PixelShuffle"):
        yield "blocksize", int(given["upscale_factor"])
        yield "mode", "CRD"
    elif node.op in ("Softmax", "LogSoftmax") and kind == node.op and isinstance(given["dim"], int):
        if node.rank is not None and "axis" in node.attributes:
            yield "axis", given["dim"] % node.rank
    elif (node.op, kind) == ("Resize", "Upsample"):
        yield from _upsample(node, given)
    elif (node.op, kind) == ("GRU", "GRU"):
        yield "linear_before_reset", 1


def _pool(node: Described, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if given.get("return_indices") and set(_numbers(node.attributes.get("kernel_shape"))) == {1}:
        # A second one beside it that counts places: ONNX counts through all channels, PyTorch through one.
        return
    yield "ceil_mode", int(given["ceil_mode"])
    # Without padding there is nothing to count, and a maximum counts nothing.
    if node.op == "AveragePool" and any(_numbers(given["padding"])):
        yield "count_include_pad", int(given["count_include_pad"])
    yield from _window(node, given)


def _window(node: Described, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Size and step of a pool."""
    size = _numbers(given.get("kernel_size"))
    for name, own in (("kernel_shape", size), ("strides", _numbers(given.get("stride")) or size)):
        have = _numbers(node.attributes.get(name))
        if have and own:
            yield name, own * len(have) if len(own) == 1 else own


def _steps(node: Described, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Groups, strides and dilations of a convolution."""
    yield "group", int(given["groups"])
    for name, own in (("strides", "stride"), ("dilations", "dilation")):
        if name in node.attributes and len(_numbers(node.attributes[name])) == len(_numbers(given[own])):
            yield name, _numbers(given[own])


def _upsample(node: Described, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    mode = str(given["mode"])
    yield "mode", "nearest" if "nearest" in mode else "cubic" if mode == "bicubic" else "linear"
    place = str(node.attributes.get("coordinate_transformation_mode", ""))
    if mode == "nearest":
        yield "coordinate_transformation_mode", "asymmetric"
    elif "linear" in mode or mode == "bicubic":
        corners = bool(given["align_corners"])
        halves = place if place in ("half_pixel", "pytorch_half_pixel") else "half_pixel"
        yield "coordinate_transformation_mode", "align_corners" if corners else halves


def _numbers(value: Any) -> list[int]:
    return (
        [int(each) for each in value] if isinstance(value, (list, tuple)) else [value] if isinstance(value, int) else []
    )


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _known(node: Described, opset: int) -> Iterator[Said]:
    """What is known to mean something else than in PyTorch, by itself."""
    check = _KNOWN.get(node.op)
    if check is not None:
        yield from check(node, opset)


def _softmax(node: Described, opset: int) -> Iterator[Said]:
    axis = int(node.attributes.get("axis", 1 if opset < 13 else -1))
    if opset < 13 and node.rank is not None and axis % node.rank != node.rank - 1:
        yield (
            SUSPECT,
            "suspicion",
            f"{node.op} of opset {opset} sums over all axes from {axis} on, PyTorch's over one; it does so from opset 13 on",
        )


def _resize(node: Described, opset: int) -> Iterator[Said]:
    mode = str(node.attributes.get("mode", "nearest"))
    if opset < 11:
        if "linear" in mode:
            yield (
                SUSPECT,
                "suspicion",
                f"{node.op} of opset {opset} knows no coordinate modes: its pixels lie as in none of PyTorch's linear modes",
            )
        return
    place = str(node.attributes.get("coordinate_transformation_mode", "half_pixel"))
    rounding = str(node.attributes.get("nearest_mode", "round_prefer_floor"))
    fits = {
        "nearest": (place == "asymmetric" and rounding == "floor")
        or (place in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_prefer")),
        "linear": place in ("half_pixel", "pytorch_half_pixel", "align_corners"),
        "cubic": place in ("half_pixel", "pytorch_half_pixel", "align_corners"),
    }
    if not fits.get(mode, True):
        what = f"{place} and {rounding}" if mode == "nearest" else place
        yield SUSPECT, "suspicion", f"Resize {mode} with {what}: none of PyTorch's modes has that"
    coefficient = float(node.attributes.get("cubic_coeff_a", -0.75))
    # PyTorch's antialiased bicubic has -0.5.
    usual = (-0.75, -0.5) if node.attributes.get("antialias") else (-0.75,)
    if mode == "cubic" and not any(_same(coefficient, each) for each in usual):
        yield SUSPECT, "suspicion", f"Resize cubic with coefficient {coefficient:g}, PyTorch has -0.75"


def _padded(node: Described, opset: int) -> Iterator[Said]:
    auto = str(node.attributes.get("auto_pad", "NOTSET"))
    if auto == "SAME_LOWER":
        yield (
            SUSPECT,
            "suspicion",
            f"{node.op} with auto_pad {auto}: PyTorch puts an odd place at the end, this at the beginning",
        )


def _recurrent(node: Described, opset: int) -> Iterator[Said]:
    usual = {
        "LSTM": ["Sigmoid", "Tanh", "Tanh"],
        "GRU": ["Sigmoid", "Tanh"],
        "RNN": ["Tanh"],
    }[node.op]
    given = [str(each) for each in node.attributes.get("activations", usual)]
    plain = {tuple(usual), tuple(usual * 2)} | ({("Relu",), ("Relu", "Relu")} if node.op == "RNN" else set())
    if tuple(given) not in plain:
        yield SUSPECT, "suspicion", f"{node.op} with activations {', '.join(given)}, PyTorch has {', '.join(usual)}"
    if node.op == "GRU" and not node.attributes.get("linear_before_reset") and node.kind != "GRU":
        yield SUSPECT, "suspicion", "GRU with linear_before_reset 0, PyTorch's own GRU computes as with 1"
    if node.attributes.get("clip"):
        yield SUSPECT, "suspicion", f"{node.op} clips its cells at {node.attributes['clip']:g}, PyTorch never does"
    if node.attributes.get("input_forget"):
        yield SUSPECT, "suspicion", f"{node.op} couples input and forget gates, PyTorch never does"


_KNOWN: Mapping[str, Callable[[Described, int], Iterator[Said]]] = {
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "Resize": _resize,
    "Upsample": _resize,
    **dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"), _padded),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
