"""A stage in half precision made one in float32, and products in lower precision told by their result."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bisect_tool.backends.emulation import round_bf16, round_tf32
from bisect_tool.backends.lower_precision import reduced
from bisect_tool.backends.torch_runner import TorchRun, to_numpy
from bisect_tool.backends.widening import widened
from bisect_tool.recorder import Value


def half_product(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["h", "w"], ["p"]),
            helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(weight.astype(np.float16), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("known", [True, False])
def test_what_was_float16_is_float32_with_the_weights_that_were_rounded(known: bool) -> None:
    order = np.random.default_rng(0)
    weight, x = order.standard_normal((4, 3), np.float32), order.standard_normal((2, 4), np.float32)
    model = half_product(weight)
    stored = numpy_helper.to_array(model.graph.initializer[0])
    wide = widened(model, "float16", lambda name: stored, [weight.T] if known else [])
    (made,) = ort.InferenceSession(wide.SerializeToString()).run(None, {"x": x})
    assert np.allclose(x @ (weight if known else stored.astype(np.float32)), made, rtol=1e-6, atol=1e-6)
    assert bool(np.abs(x @ weight - made).max() < 1e-6) is known
    # The model that was given is as it was.
    assert TensorProto.FLOAT16 == model.graph.initializer[0].data_type


def test_bfloat16_weights() -> None:
    weight = np.asarray([[1.1, 2.2], [3.3, 4.4]], np.float32)
    tensor = helper.make_tensor(
        "w", TensorProto.BFLOAT16, [2, 2], weight.astype(ml_dtypes.bfloat16).tobytes(), raw=True
    )
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [], [tensor])
    stored = weight.astype(ml_dtypes.bfloat16)
    wide = widened(helper.make_model(graph), "bfloat16", lambda name: stored, [weight])
    assert np.array_equal(weight, numpy_helper.to_array(wide.graph.initializer[0]))


@pytest.mark.parametrize("rounding, name", [(round_tf32, "TF32"), (round_bf16, "bfloat16"), (None, None)])
def test_side_that_multiplies_in_lower_precision_is_told_by_its_result(rounding: object, name: str | None) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 64), torch.randn(8, 64)
    kept: dict[int, torch.Tensor] = {}

    def keep(value: Value, tensor: torch.Tensor) -> None:
        kept[value.id] = tensor.clone()

    run = TorchRun(layer, (x,), {}, keep, tape=True)
    run.start()
    (stage,) = [each for each in run.trace.stages if each.level == "container" or each.type == "Linear"][:1]
    with torch.no_grad():
        if rounding is None:
            off = layer(x)
        else:
            assert callable(rounding)
            off = torch.nn.functional.linear(rounding(x), rounding(layer.weight), layer.bias)
    known = {value for _, value in run.trace.inputs}

    def fetch(value: int) -> torch.Tensor:
        found = kept.get(value)
        return run.recorder.held(value) if found is None else found

    clue = reduced(run.recorder.trace, stage.value, known, fetch, to_numpy(off), "expected")
    if name is None:
        assert clue is None
    else:
        assert clue is not None and "BD108" == clue.code
        assert f"operands rounded to {name}" in clue.text[0] and "PyTorch's side" in clue.text[0]
