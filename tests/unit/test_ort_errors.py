"""``ort_errors``: ONNX Runtime's own errors, from graphs that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bisect_tool.backends.ort_errors import MOST, hint_for, reason_of


def graph(node: NodeProto, *, kind: int = TensorProto.FLOAT, opset: int = 17, ir: int = 8) -> ModelProto:
    """One node on ``x`` (1, 4), with a weight ``w`` (5, 3)."""
    weight = numpy_helper.from_array(np.ones((5, 3), np.float32), "w")
    made = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 4])],
        [helper.make_tensor_value_info("y", kind, None)],
        [weight],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def refusal(model: ModelProto) -> Exception:
    """What ONNX Runtime says to a graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception) as caught:  # its exceptions share no base class
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return caught.value


def node(op: str, *inputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs or ["x"]), ["y"], **attributes)


@pytest.mark.parametrize(
    ("model", "why", "advice"),
    [
        (graph(node("Nope")), "No Op registered for Nope", "newer onnxruntime"),
        (graph(node("Relu"), opset=99), "Opset 99", "newer onnxruntime"),
        (graph(node("Relu"), ir=99), "max supported IR version", "newer onnxruntime"),
        (graph(node("Relu"), kind=TensorProto.BOOL), "Type 'tensor(bool)'", "the file is at fault"),
        (graph(node("Relu", foo=1)), "Unrecognized attribute: foo", "the file is at fault"),
        (graph(node("Relu", "z")), "Node input 'z'", "the file is at fault"),
        (graph(node("MatMul", "x", "w")), "Incompatible dimensions", "the file is at fault"),
        (graph(node("Gelu"), kind=TensorProto.BFLOAT16, opset=20), "an implementation for", "no kernel"),
    ],
    ids=["operator", "opset", "ir", "type", "attribute", "input", "shapes", "kernel"],
)
def test_advice_fits_the_cause(model: ModelProto, why: str, advice: str) -> None:
    """And only what a newer version would know is said to be its business."""
    reason = reason_of(refusal(model))
    assert why in reason
    assert advice in hint_for(reason)
    assert ("newer" in hint_for(reason)) == (advice == "newer onnxruntime")


def test_places_in_its_source_are_left_out() -> None:
    reason = reason_of(refusal(graph(node("Relu"), opset=99)))
    assert "onnxruntime_src" not in reason
    assert "std::" not in reason
    text = "FAIL : /src/a.cc:12 void onnxruntime::(anonymous namespace)::F<int>(int (*)(int)) const x was false. Why"
    assert reason_of(RuntimeError(text)) == "FAIL : x was false. Why"
    assert reason_of(RuntimeError("FAIL : /src/a.cc:12 no signature")) == "FAIL : no signature"


def test_a_long_reason_keeps_both_ends() -> None:
    """The end is where the cause is."""
    reason = reason_of(RuntimeError("begins " + "x" * 2000 + " and ends"))
    assert reason.startswith("begins")
    assert reason.endswith("and ends")
    assert len(reason) <= MOST + 5
