"""Quantised graphs as users make them, with ONNX Runtime's own quantiser, and faults planted in them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

Array = NDArray[Any]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[dict[str, Array]]):
        self._rest = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rest, None)


def quantised(
    source: Path,
    target: Path,
    samples: Sequence[Sequence[Array]],
    *,
    per_channel: bool = False,
    unsigned: bool = False,
    operators: bool = False,
) -> Path:
    """Static quantisation, calibrated on samples: each the graph's inputs in order.

    Args:
        source, target: files.
        samples: to calibrate with.
        per_channel: weights have a scale for each output channel.
        unsigned: activations are QUInt8, else QInt8; weights are QInt8.
        operators: QLinearConv and the like instead of pairs of QuantizeLinear and DequantizeLinear.
    """
    names = [value.name for value in onnx.load(str(source), load_external_data=False).graph.input]
    feeds = [dict(zip(names, sample, strict=True)) for sample in samples]
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(source),
            str(target),
            _Reader(feeds),
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    return target


def quantised_dynamically(source: Path, target: Path) -> Path:
    """Weights in int8, activations quantised at run time."""
    model = onnx.load(str(source))
    # It swaps the axes of weights and believes their old shapes.
    del model.graph.value_info[:]
    onnx.save(model, str(target))
    source = target
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    return target


def activation_pairs(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Of each quantised activation: its value, and the initialisers of its scale and its zero point."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        (node.input[0], node.input[1], node.input[2])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored and len(node.input) == 3
    ]


def scale_by(model: onnx.ModelProto, name: str, factor: float) -> None:
    """Multiplies an initialiser."""
    _change(model, name, lambda array: (array * factor).astype(array.dtype))


def shift_by(model: onnx.ModelProto, name: str, steps: int) -> None:
    """Adds to an initialiser of integers, within their range."""

    def shifted(array: Array) -> Array:
        limits = np.iinfo(array.dtype)
        moved = array.astype(np.int64) + steps
        if (moved > limits.max).any() or (moved < limits.min).any():
            moved = array.astype(np.int64) - steps
        return np.clip(moved, limits.min, limits.max).astype(array.dtype)

    _change(model, name, shifted)


def zero(model: onnx.ModelProto, name: str) -> None:
    """Sets an initialiser to nought."""
    _change(model, name, lambda array: np.zeros_like(array))


def _change(model: onnx.ModelProto, name: str, edit: Any) -> None:
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    array = edit(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), name))
