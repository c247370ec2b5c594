"""ONNX Runtime's blocked layout: values and weights in their plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram, type_of_array
from bisect_tool.backends.ort_runner import make_session
from bisect_tool.backends.plain_layout import DOMAIN, BlockedWeight, block_size, in_blocks, is_blocked, out_of_blocks
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import NumericConfig


class Mixed(nn.Module):
    """Channels that fill no block, a sum that ends in a convolution, a pool, a concatenation, a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.inner = nn.Conv2d(20, 20, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.wide = nn.Conv2d(20, 32, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(64, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 2 H, 2 W]`` to ``[N, 10, H, W]``."""
        x = torch.relu(self.stem(x))
        x = torch.relu(self.inner(x) + x)
        x = self.pool(torch.relu(self.wide(x)))
        return self.head(torch.cat([x, torch.relu(self.depthwise(x))], 1))


def optimised(module: nn.Module, x: Tensor, folder: Path, opset: int = 17) -> Path:
    """The export as ONNX Runtime's optimiser leaves it, in the layout of this processor."""
    export_onnx(module, (x,), {}, folder / "plain.onnx", ExportSettings("torchscript", opset=opset))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "blocked.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(folder / "plain.onnx"), options, providers=["CPUExecutionProvider"])
    if not any(node.domain == DOMAIN for node in onnx.load(folder / "blocked.onnx").graph.node):
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    return folder / "blocked.onnx"


def outputs_of(model: bytes, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    session = make_session(model, NumericConfig("onnxruntime", optimization="off"), str(folder))
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def test_what_is_put_in_changes_no_bit_and_shows_each_value_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Mixed().eval(), torch.randn(2, 3, 8, 8)
    program = OnnxProgram(load_onnx(optimised(module, x, tmp_path)), tmp_path / "blocked.onnx")
    assert is_blocked(program.take_model())
    (name,) = program.graph.inputs
    feeds = {name: x.numpy()}
    before = outputs_of(program.untouched(), feeds, tmp_path)
    (segment,) = program.segments(None)
    shown = sorted(program.exposable([segment]))
    kinds = {name: type_of_array(np.dtype(np.float32), tuple(x.shape))}
    built = program.build(segment, [*program.graph.outputs, *shown], kinds)
    made = dict(zip(built.outputs, outputs_of(built.model, feeds, tmp_path), strict=True))
    assert np.array_equal(before[0], made[program.graph.outputs[0]])
    # In the plain layout a pool, for one, is PyTorch's own.
    seen = {}
    hooks = [
        child.register_forward_hook(lambda _m, _i, output, key=key: seen.update({key: output.detach().numpy()}))
        for key, child in module.named_children()
    ]
    module(x)
    for hook in hooks:
        hook.remove()
    first = np.maximum(seen["stem"], 0)
    for wanted in (first, seen["pool"], np.maximum(seen["depthwise"], 0)):
        alike = [v for v in made.values() if v.shape == wanted.shape and np.allclose(v, wanted, atol=1e-5)]
        assert alike, wanted.shape


def test_the_graph_beside_pytorch_has_no_node_that_moves_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = optimised(Mixed().eval(), torch.randn(1, 3, 8, 8), tmp_path)
    program = OnnxProgram(load_onnx(path), path)
    given_names = {name for node in onnx.load(path).graph.node for name in node.output}
    assert not [node for node in program.plain.nodes if node.op_type.startswith("Reorder")]
    made = {name for node in program.plain.nodes for name in node.outputs}
    # What the user's file calls a value, it is called here.
    assert made <= given_names
    known = made | set(program.plain.inputs) | set(program.plain.initializers)
    assert {name for node in program.plain.nodes for name in node.inputs if name} <= known
    assert len(program.plain.nodes) < len(program.graph.nodes)


class Pruned(nn.Module):
    """Its last filters are zero throughout, and what is made of them is not."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(32, 18, 1)
        self.head = nn.Conv2d(18, 4, 1)
        with torch.no_grad():
            self.second.weight[-3:] = 0
            self.second.bias[-3:] = 0

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, 4]``."""
        x = torch.relu(self.first(x))
        y = torch.relu(self.second(x) + x) if self.residual else torch.sigmoid(self.second(x))
        return self.head(torch.relu(self.last(self.pool(y * x)))).mean((2, 3))


@pytest.mark.parametrize("opset", [10, 17])
@pytest.mark.parametrize("residual", [False, True], ids=["sigmoid", "sum"])
def test_filters_of_zeros_are_not_taken_for_what_fills_a_block(tmp_path: Path, residual: bool, opset: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    path = optimised(Pruned(residual).eval(), x, tmp_path, opset)
    program = OnnxProgram(load_onnx(path), path)
    (segment,), (name,) = program.segments(None), program.graph.inputs
    outputs, shown = list(program.graph.outputs), sorted(program.exposable([segment]))
    built = program.build(segment, [*outputs, *shown], {name: type_of_array(np.dtype(np.float32), tuple(x.shape))})
    made = dict(zip(built.outputs, outputs_of(built.model, {name: x.numpy()}, tmp_path), strict=True))
    (wanted,) = outputs_of(program.untouched(), {name: x.numpy()}, tmp_path)
    assert np.array_equal(wanted, made[outputs[0]])
    sizes = {array.shape for array in made.values()}
    assert (1, 32, 8, 8) in sizes and (1, 18, 4, 4) in sizes
    assert not {shape for shape in sizes if len(shape) == 4 and shape[1] not in (32, 18, 4)}


class Beside(nn.Module):
    """A value that one reader wants in blocks and the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.head = nn.Conv2d(3, 24, 3), nn.Upsample(scale_factor=2), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 3, H, W]`` to ``[N, 5, 2 H - 4, 2 W - 4]`` and ``[N, 24]``."""
        x = torch.relu(self.conv(x))
        return self.head(self.up(x)), x.mean((2, 3))


def test_a_value_that_the_file_turns_back_itself_is_there_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    path = optimised(Beside().eval(), x, tmp_path)
    program = OnnxProgram(load_onnx(path), path)
    assert not [node for node in program.plain.nodes if node.op_type.startswith("Reorder")]
    (segment,) = program.segments(None)
    shown, (name,) = sorted(program.exposable([segment])), program.graph.inputs
    built = program.build(segment, shown, {name: type_of_array(np.dtype(np.float32), tuple(x.shape))})
    made = outputs_of(built.model, {name: x.numpy()}, tmp_path)
    for place, array in enumerate(made):
        assert not [other for other in made[:place] if other.shape == array.shape and np.array_equal(other, array)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(3, 20, 1), (16, 20, 1), (20, 24, 1), (32, 32, 32), (32, 64, 2), (48, 16, 1)]
)
def test_weights_stand_as_onnx_runtime_writes_them(tmp_path: Path, inputs: int, outputs: int, groups: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(inputs, outputs, 3, groups=groups)).eval()
    program_path = optimised(module, torch.randn(1, inputs, 6, 6), tmp_path)
    program = OnnxProgram(load_onnx(program_path), program_path)
    weight = module[0].weight.detach().numpy()
    ((name, how),) = program.blocked_weights().items()
    have = np.asarray(program.weight(name))
    assert np.array_equal(weight, out_of_blocks(have, how, block_size()))
    assert any(form.shape == have.shape and np.array_equal(form, have) for form in in_blocks(weight, block_size()))


def test_a_runtime_without_the_layout_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("ReorderInput is not a registered function/op")

    path = optimised(nn.Sequential(nn.Conv2d(3, 20, 3)).eval(), torch.randn(1, 3, 6, 6), tmp_path)
    block_size.cache_clear()
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(InconclusiveError, match="blocked layout") as caught:
        OnnxProgram(load_onnx(path), path)
    assert "EXTENDED" in str(caught.value.hint)


@given(
    st.integers(1, 40), st.integers(2, 40), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.sampled_from([4, 8, 16])
)
def test_out_of_blocks_undoes_in_blocks(outputs: int, inputs: int, size: tuple[int, int], block: int) -> None:
    count = outputs * inputs * size[0] * size[1]
    weight = np.arange(1, count + 1, dtype=np.float32).reshape(outputs, inputs, *size)
    of_filters, twice = in_blocks(weight, block)
    assert np.array_equal(weight, out_of_blocks(of_filters, BlockedWeight(outputs, None), block))
    assert np.array_equal(weight, out_of_blocks(twice, BlockedWeight(outputs, inputs), block))
    assert twice.shape[0] % block == twice.shape[1] % block == 0
