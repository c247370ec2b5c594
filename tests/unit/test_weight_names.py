"""``weight_names``: a file saved by ONNX Runtime has names that its optimiser makes a second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from bisect_tool import bisect
from bisect_tool.backends.ort_runner import make_session
from bisect_tool.backends.weight_names import is_clash, with_other_names
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import NumericConfig

ALL = NumericConfig("onnxruntime", optimization="all", threads=1)

# A product with a bias, whose fusion makes both shapes again.
GRAPH = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,3,8] x) => (float[2,3,8] y) {
  a = MatMul(x, w)
  b = Add(a, bias)
  c = Reshape(b, gemm_input_shape)
  d = Relu(c)
  y = Reshape(d, gemm_output_shape)
}"""

BODIES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, bool c) => (float[2] y) {
  y = If (c) <
    then_branch = g1 () => (float[2] t) { own = Identity(x) s = Add(own, w) t = Identity(s) },
    else_branch = g2 () => (float[2] u) { w2 = Mul(x, v) u = Identity(w2) }
  >
}"""


def graph(text: str, **weights: object) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, weight in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(weight), name))
    return model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


def saved(net: Net) -> onnx.ModelProto:
    weight, bias = net.linear.weight.detach().T.contiguous().numpy(), net.linear.bias.detach().numpy()
    return graph(GRAPH, w=weight, bias=bias, gemm_input_shape=[6, 8], gemm_output_shape=[2, 3, 8])


def test_onnxruntime_refuses_such_a_graph_and_not_with_other_names() -> None:
    model = saved(Net()).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="existing tensor") as caught:
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert is_clash(str(caught.value))
    session = ort.InferenceSession(with_other_names(model), options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["y"]


def test_a_file_that_onnxruntime_refuses_is_said_to_be_refused(tmp_path: Path) -> None:
    """It would be where it is deployed too; the unoptimised graph is compared all the same."""
    net = Net().eval()
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    onnx.save(saved(net), tmp_path / "model.onnx")
    report = bisect(net, x, tmp_path / "model.onnx")
    assert [run.status for run in report.configs] == ["agrees", "failed"]
    assert "existing tensor" in (report.configs[1].skipped_reason or "")


def test_a_graph_with_values_exposed_gets_other_names() -> None:
    model = saved(Net()).SerializeToString()
    with pytest.raises(InconclusiveError, match="existing tensor"):
        make_session(model, ALL, "")
    session = make_session(model, ALL, "", renaming=True)
    assert [value.name for value in session.get_outputs()] == ["y"]


def test_what_else_is_wrong_with_a_graph_is_told_as_ever() -> None:
    model = saved(Net())
    del model.graph.initializer[0]
    with pytest.raises(InconclusiveError, match="input 'w' is not"):
        make_session(model.SerializeToString(), ALL, "", renaming=True)


@pytest.mark.parametrize("taken", [True, False])
def test_bodies_read_the_same_weights(taken: bool) -> None:
    w, v = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    model = graph(BODIES, w=w, v=v)
    # A body may have the very names that are given.
    (branch,) = [attribute.g for attribute in model.graph.node[0].attribute if attribute.name == "then_branch"]
    for node in branch.node:
        for names in (node.input, node.output):
            names[:] = ["weight.0" if name == "own" else name for name in names]
    renamed = onnx.ModelProto.FromString(with_other_names(model.SerializeToString()))
    assert not {"w", "v"} & {tensor.name for tensor in renamed.graph.initializer}
    session = make_session(renamed.SerializeToString(), ALL, "")
    x = np.ones(2, np.float32)
    (found,) = session.run(None, {"x": x, "c": np.array(taken)})
    np.testing.assert_array_equal(found, x + w if taken else x * v)
