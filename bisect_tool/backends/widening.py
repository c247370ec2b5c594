"""A graph without half precision: what was float16 or bfloat16 in it is float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

_KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def widened(
    model: onnx.ModelProto, narrow: str, weight: Callable[[str], Array], originals: Sequence[Array]
) -> onnx.ModelProto:
    """A copy of a model that computes in float32 what it computed in a half precision.

    Args:
        model: small; its weights may lie elsewhere.
        narrow: ``float16`` or ``bfloat16``.
        weight: data of an initialiser by name.
        originals: tensors that weights may have been rounded from; where one rounds to a weight, it stands for it.
    """
    kind, dtype = _KINDS[narrow], _DTYPES[narrow]
    made = onnx.ModelProto()
    made.CopyFrom(model)

    def wide(array: Array) -> Array:
        for original in originals:
            if original.dtype != np.float32 or original.size != array.size:
                continue
            for turned in (original, original.T) if original.ndim == 2 else (original,):
                with np.errstate(all="ignore"):
                    fits = turned.shape == array.shape and np.array_equal(turned.astype(dtype), array)
                if fits:
                    return np.ascontiguousarray(turned)
        return array.astype(np.float32)

    for tensor in made.graph.initializer:
        if tensor.data_type == kind:
            tensor.CopyFrom(numpy_helper.from_array(wide(weight(tensor.name)), tensor.name))
    for node in made.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == kind:
                attribute.i = TensorProto.FLOAT
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == kind:
                array = np.asarray(numpy_helper.to_array(attribute.t)).astype(np.float32)
                attribute.CopyFrom(helper.make_attribute(attribute.name, numpy_helper.from_array(array)))
    for value in [*made.graph.input, *made.graph.output]:
        if value.type.tensor_type.elem_type == kind:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del made.graph.value_info[:]
    return made
