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


class Divided(nn.Module):
    """Divided by a number that the graph multiplies with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8]`` to ``[N, 4]``."""
        return self.b(self.a(x) / 6**0.5)  # type: ignore[no-any-return]


def between(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 4)).eval()


def layer_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(8, eps=1e-6)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias)
    return norm


WRITTEN_OUT: dict[str, tuple[nn.Module, str, float, float]] = {
    "a factor for a divisor": (Divided(), "c = Mul(b, k)", 6**-0.5, 0.5),
    "SiLU": (between(nn.SiLU()), "e = Mul(b, k)  f = Exp(e)  h = Add(f, one)  c = Div(b, h)", -1.0, -1.702),
    "LeakyReLU": (between(nn.LeakyReLU(0.1)), "e = Mul(b, k)  c = Max(b, e)", 0.1, 0.3),
    "epsilon": (
        between(layer_norm()),
        "m = ReduceMean<axes=[-1]>(b)  e = Sub(b, m)  f = Mul(e, e)  h = ReduceMean<axes=[-1]>(f)  i = Add(h, k)"
        "  j = Sqrt(i)  n = Div(e, j)  o = Mul(n, scale)  c = Add(o, shift)",
        1e-6,
        1e-1,
    ),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_number_of_what_is_written_out(name: str, tmp_path: Path) -> None:
    """The number is wrong, not the operator beside it, and no node is too much."""
    net, body, right, wrong = WRITTEN_OUT[name]
    state = net.state_dict()
    first, last = ("a", "b") if isinstance(net, Divided) else ("0", "2")
    weights = {f"w{n}": state[f"{path}.weight"].T for n, path in enumerate((first, last))}
    weights |= {f"b{n}": state[f"{path}.bias"] for n, path in enumerate((first, last))}
    weights |= {"one": torch.tensor(1.0)} if "one" in body else {}
    weights |= {"scale": state["1.weight"], "shift": state["1.bias"]} if "scale" in body else {}
    text = (
        "g (float[3,8] x) => (float[3,4] y) { a = MatMul(x, w0)  b = Add(a, b0)  "
        f"{body}  d = MatMul(c, w1)  y = Add(d, b1) }}"
    )
    for number, expected in ((right, []), (wrong, ["BD106"])):
        report = judged(net, sample(3, 8), graph(text, {**weights, "k": torch.tensor(number)}), tmp_path)
        assert expected == found(report)[1]
    (cause,) = report.verdict.diagnoses
    assert cause.remedy_verified and cause.remedy.startswith("set k to ")
    assert abs(float(cause.remedy.removeprefix("set k to ")) - right) <= 1e-5 * max(abs(right), 1e-1)


class Standardised(nn.Module):
    """Two buffers in one module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("std", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 8]``, as given."""
        return (x - self.mean) / self.std  # type: ignore[operator, no-any-return]


def test_one_of_two_buffers_of_a_module(tmp_path: Path) -> None:
    net = nn.Sequential(Standardised(), nn.Linear(8, 4)).eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["0.std"][3] += 0.2
    weights = {"mean": state["0.mean"], "std": state["0.std"], "w": state["1.weight"].T, "h": state["1.bias"]}
    text = "g (float[3,8] x) => (float[3,4] y) { a = Sub(x, mean)  b = Div(a, std)  c = MatMul(b, w)  y = Add(c, h) }"
    assert (["0"], ["BD202"]) == found(judged(net, sample(3, 8), graph(text, weights), tmp_path))


class Recurrent(nn.Module):
    """As many weights in the recurrent layer as elsewhere and more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.r, self.o = nn.LSTM(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, 6]`` to ``[T, N, 3]``."""
        return self.o(torch.relu(self.r(x)[0]))  # type: ignore[no-any-return]


def test_gates_as_pytorch_orders_them_are_no_other_checkpoint(tmp_path: Path) -> None:
    """Most of the file's weights differ then, and all by their order alone."""
    net = Recurrent().eval()
    state = net.state_dict()
    weights = {"W": state["r.weight_ih_l0"][None], "R": state["r.weight_hh_l0"][None], "ax": torch.tensor([1])}
    weights |= {"B": torch.cat([state["r.bias_ih_l0"], state["r.bias_hh_l0"]])[None]}
    weights |= {"w": state["o.weight"].T, "h": state["o.bias"]}
    text = """g (float[5,2,6] x) => (float[5,2,3] y) {
      a, a1, a2 = LSTM<hidden_size=7>(x, W, R, B)
      b = Squeeze(a, ax)
      c = Relu(b)
      d = MatMul(c, w)
      y = Add(d, h)
    }"""
    report = judged(net, sample(5, 2, 6), graph(text, weights), tmp_path)
    assert (["r"], ["BD203"]) == found(report)
    assert all("checkpoint" not in finding.text for finding in report.preflight)
