"""Graphs that somebody wrote by hand, without names, in layouts of their own: a fault is at its stage, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from by_hand import judged
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bisect_tool.records import Report


def graph(text: str, weights: Mapping[str, Tensor]) -> ModelProto:
    """From ONNX's text form, with weights by name."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    for name, weight in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(weight.detach().contiguous().numpy(), name))
    return model


def sample(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(7)),)


def found(report: Report) -> tuple[list[str], list[str]]:
    """Stages of the origins, and the codes of their causes."""
    return [each.ref.stage for each in report.verdict.origins], [each.code for each in report.verdict.diagnoses]


CHANNELS_LAST = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
  a = Conv<pads=[%s]>(x, w0, b0)
  b = Relu(a)
  c = Conv<pads=[1,1,1,1]>(b, w2)
  d = Transpose<perm=[0,2,3,1]>(c)
  e = Mul(d, scale)
  f = Add(e, shift)
  h = Relu(f)
  i = Transpose<perm=[0,3,1,2]>(h)
  y = Conv(i, w5, b5)
}"""


@pytest.mark.parametrize("pads, expected", [("1,1,1,1", ([], [])), ("0,0,2,2", (["0"], ["BD101"]))])
def test_a_norm_written_out_with_channels_last(
    pads: str, expected: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    """As many channels as rows and columns: the order of axes does not show in the shape."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False))
    norm = nn.BatchNorm2d(8)
    for statistic in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(statistic, 0.5, 2)  # type: ignore[arg-type]
    net.extend([norm, nn.ReLU(), nn.Conv2d(8, 4, 1)]).eval()
    state = net.state_dict()
    scale = state["3.weight"] / (state["3.running_var"] + norm.eps).sqrt()
    weights = {f"w{n}": state[f"{n}.weight"] for n in "025"} | {f"b{n}": state[f"{n}.bias"] for n in "05"}
    weights |= {"scale": scale, "shift": state["3.bias"] - state["3.running_mean"] * scale}
    report = judged(net, sample(1, 3, 8, 8), graph(CHANNELS_LAST % pads, weights), tmp_path)
    assert expected == found(report)


IMAGE_LAST = """g (float[1,6,7,3] x) => (float[1,6,7,4] y) {
  t = Transpose<perm=[0,3,1,2]>(x)
  a = Conv<pads=[1,1,1,1]>(t, w0, b0)
  b = %s(a)
  c = Conv(b, w2, b2)
  d = Relu(c)
  e = Conv(d, w4, b4)
  y = Transpose<perm=[0,2,3,1]>(e)
}"""


@pytest.mark.parametrize("op, expected", [("Relu", ([], [])), ("Abs", (["1"], ["BD102"]))])
def test_inputs_and_outputs_with_channels_last(op: str, expected: tuple[list[str], list[str]], tmp_path: Path) -> None:
    """An output that is off has no pair there, and all the more must be found otherwise."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    state = net.eval().state_dict()
    weights = {f"w{n}": state[f"{n}.weight"] for n in "024"} | {f"b{n}": state[f"{n}.bias"] for n in "024"}
    assert expected == found(judged(net, sample(1, 3, 6, 7), graph(IMAGE_LAST % op, weights), tmp_path))


class Chosen(nn.Module):
    """As many rows as have a number over a threshold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 6]`` to ``[K, 5]``."""
        y = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return y[y.max(-1).values > 0.2]  # type: ignore[no-any-return]


CHOSEN = """g (float[20,6] x) => (float[k,5] y) {
  a = MatMul(x, wa)
  b = Add(a, ba)
  c = Relu(b)
  d = MatMul(c, wb)
  e = Add(d, bb)
  f = Relu(e)
  h = MatMul(f, wc)
  i = Add(h, bc)
  j = ReduceMax<axes=[-1], keepdims=0>(i)
  m = Greater(j, thr)
  y = Compress<axis=0>(i, m)
}"""


@pytest.mark.parametrize("factor, expected", [(1.0, ([], [])), (3.0, (["b"], ["BD202"]))])
def test_an_output_whose_length_a_fault_changes(
    factor: float, expected: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    """Nothing can be compared there; the stages before it can."""
    net = Chosen().eval()
    state = net.state_dict()
    weights = {f"w{n}": state[f"{n}.weight"].T for n in "abc"}
    weights |= {"ba": net.a.bias, "bb": net.b.bias * factor, "bc": net.c.bias, "thr": torch.tensor(0.2)}
    report = judged(net, sample(20, 6), graph(CHOSEN, weights), tmp_path)
    assert expected == found(report)
