"""``replay``: stages computed again, in other arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bisect_tool.backends.floors import TapedRun, stage_noise
from bisect_tool.backends.inner import inner_values
from bisect_tool.backends.replay import (
    AS_RUN,
    EXACT,
    STRICT,
    Arithmetic,
    CannotReplayError,
    promote,
    replay,
    rounded,
)
from bisect_tool.backends.torch_runner import TorchRun, to_numpy
from bisect_tool.noise import assess
from bisect_tool.records import Stage


class Net(nn.Module):
    """Modules and a function around them."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.parts, *inputs)


class Taped:
    """A recorded run with its tape, and every stage's tensor."""

    def __init__(self, module: nn.Module, *inputs: Any):
        torch.manual_seed(0)
        self.tensors: dict[int, Tensor] = {}
        self.run = TorchRun(
            module.eval(), inputs, {}, lambda value, t: self.tensors.__setitem__(value.id, t.clone()), tape=True
        )
        self.run.start()
        self.tape = self.run.recorder.trace
        self.trace = self.run.trace

    def fetch(self, value: int) -> Tensor:
        if value in self.tensors:
            return self.tensors[value]
        held: Tensor = self.run.recorder.held(value)
        return held

    def known(self, stage: Stage) -> set[int]:
        return {*self.tensors, *(value for _, value in self.trace.inputs)} - {stage.value}

    def again(self, stage: Stage, arithmetic: Arithmetic) -> NDArray[Any]:
        return replay(self.tape, stage.value, self.known(stage), self.fetch, arithmetic)[stage.value]

    @property
    def last(self) -> Stage:
        return self.trace.stages[-1]


def made(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def through_view(_: nn.ModuleList, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] += 1
    y[:, 1].mul_(3)
    return y + 1


CASES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "conv, norm, in-place": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)),
        (made((2, 3, 8, 8)),),
    ),
    "writes through views": (Net(through_view), (made((3, 4)),)),
    "recurrences": (Net(lambda m, x: m[1](m[0](x)[0])[0], nn.LSTM(4, 6), nn.GRU(6, 5)), (made((7, 2, 4)),)),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (made((2, 5, 8)),)),
    "causal attention": (
        Net(lambda m, x: functional.scaled_dot_product_attention(m[0](x), x, x, is_causal=True), nn.Linear(8, 8)),
        (made((2, 2, 5, 8)),),
    ),
    "own casts": (Net(lambda m, x: m[0](x).half().float().pow(2).mean(-1).rsqrt(), nn.Linear(8, 8)), (made((4, 8)),)),
    "half": (nn.Sequential(nn.Linear(8, 8), nn.GELU()).half(), (made((4, 8)).half(),)),
    "embedding": (nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4)), (torch.tensor([[1, 2, 8]]),)),
    "masks": (
        Net(lambda m, x, b: m[0](x).masked_fill(b, float("-inf")).softmax(-1), nn.Linear(6, 6)),
        (made((3, 6)), made((3, 6), 1) > 1),
    ),
    "complex": (Net(lambda m, x: torch.fft.rfft(m[0](x)).abs(), nn.Linear(8, 8)), (made((3, 8)),)),
    "factories": (Net(lambda m, x: x + torch.arange(4) / 3 + torch.zeros_like(x) + x.new_ones(4)), (made((2, 4)),)),
    "channels last": (nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (made((2, 3, 8, 8)),)),
}


@pytest.mark.parametrize("name", CASES)
def test_computed_as_it_ran_a_stage_is_the_same_to_the_bit(name: str) -> None:
    """Every stage, from its own inputs and from the model's."""
    module, inputs = CASES[name]
    taped = Taped(module, *inputs)
    assert taped.trace.stages
    for stage in taped.trace.stages:
        ran = to_numpy(taped.fetch(stage.value))
        np.testing.assert_array_equal(taped.again(stage, AS_RUN), ran)
        from_inputs = replay(
            taped.tape, stage.value, {value for _, value in taped.trace.inputs}, taped.run.recorder.held, AS_RUN
        )
        np.testing.assert_array_equal(from_inputs[stage.value], ran)


@pytest.mark.parametrize("name", CASES)
def test_float64_is_what_float32_rounds(name: str) -> None:
    """In float64 throughout, and next to the run as far as its dtypes go."""
    module, inputs = CASES[name]
    taped = Taped(module, *inputs)
    for stage in taped.trace.stages:
        exact, strict = taped.again(stage, EXACT), taped.again(stage, STRICT)
        assert exact.dtype in (np.float64, np.complex128, np.int64)
        ran = to_numpy(taped.fetch(stage.value))
        draws = [taped.again(stage, rounded(seed)) for seed in range(3)]
        noise = assess(exact, ran, strict, stage.dtype, strict, draws)
        assert noise.ratio is not None
        assert noise.ratio <= 3, stage.ref


def test_a_norm_that_casts_to_float32_inside_is_promoted() -> None:
    """``.double()`` would leave float32's error in a float64 tensor."""
    taped = Taped(Net(lambda m, x: x.to(torch.float32).pow(2).mean(-1, keepdim=True).rsqrt() * x), made((4, 64)))
    x = taped.run.recorder.held(taped.trace.inputs[0][1]).double()
    wanted = (x.pow(2).mean(-1, keepdim=True).rsqrt() * x).numpy()
    inputs = {value for _, value in taped.trace.inputs}
    exact = replay(taped.tape, taped.last.value, inputs, taped.fetch, EXACT)[taped.last.value]
    assert np.abs(exact - wanted).max() < 1e-14


def test_every_draw_is_another_one_and_each_can_be_had_again() -> None:
    taped = Taped(nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32)), made((4, 32)))
    first, again, second = (taped.again(taped.last, rounded(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    exact = taped.again(taped.last, EXACT)
    assert 1e-9 < np.linalg.norm(first - exact) / np.linalg.norm(exact) < 1e-5


def test_made_up_rounding_to_half_precision() -> None:
    """What is given is rounded too, so that a stage that rounds nothing itself is off by it; a mask's filling is capped."""
    taped = Taped(nn.Sequential(nn.Linear(32, 32), nn.ReLU()), made((4, 32)))
    for stage in taped.trace.stages:
        exact, draw = taped.again(stage, EXACT), taped.again(stage, rounded(1, "float16"))
        assert 1e-5 < np.linalg.norm(draw - exact) / np.linalg.norm(exact) < 1e-2
    filled = Taped(Net(lambda m, x: x.clamp(min=-2e9) * 1), torch.full((4,), -1e9))
    assert filled.again(filled.trace.stages[0], rounded(1, "float16")).min() == -65504.0


def test_made_up_rounding_leaves_exact_operations_alone() -> None:
    """Picking and placing numbers rounds nothing."""
    taped = Taped(nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()), made((2, 3, 8)))
    for stage in taped.trace.stages:
        np.testing.assert_array_equal(taped.again(stage, rounded(1)), taped.again(stage, EXACT))


def test_made_up_rounding_leaves_whole_numbers_alone() -> None:
    """Windows are numbered, and where the numbers of two places differ a mask is filled: nothing is rounded there."""

    def mask(m: nn.Module, x: Tensor) -> Tensor:
        numbers = torch.arange(6).repeat_interleave(2).to(x.dtype) * 1.0 + 0 * x[0]
        apart = numbers[:, None] - numbers[None, :]
        return x + apart.masked_fill(apart != 0, -100.0)

    taped = Taped(Net(mask), torch.ones(12, 12))
    exact, draw = taped.again(taped.last, EXACT), taped.again(taped.last, rounded(1))
    np.testing.assert_array_equal(draw, exact)
    uneven = Taped(Net(lambda m, x: x + 0.1), torch.ones(4))
    assert (uneven.again(uneven.last, rounded(1)) != uneven.again(uneven.last, EXACT)).any()


def test_made_up_rounding_leaves_infinite_masks_as_they_are() -> None:
    """NaN in every draw would clear every fault of a masked attention."""
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    attend = Net(lambda m, x, b: functional.scaled_dot_product_attention(m[0](x), x, x, attn_mask=b), nn.Linear(8, 8))
    taped = Taped(attend, made((1, 2, 5, 8)), mask)
    stage = next(s for s in taped.trace.stages if "attention" in s.type)
    exact, draw = taped.again(stage, EXACT), taped.again(stage, rounded(1))
    assert 0 < np.linalg.norm(draw - exact) / np.linalg.norm(exact) < 1e-6


def test_made_up_rounding_breaks_ties() -> None:
    """The order of equal numbers is nobody's fault."""
    taped = Taped(Net(lambda m, x: x.topk(6)[1]), torch.zeros(1, 12))
    stage = next(s for s in taped.trace.stages if s.dtype == "int64" and "#" in s.ref.stage)
    orders = {taped.again(stage, rounded(seed)).tobytes() for seed in range(4)}
    assert len(orders) > 1


@pytest.mark.parametrize(
    ("module", "shape", "terms"),
    [
        (lambda: nn.Linear(640, 3), (2, 640), 640),
        (lambda: Net(lambda m, x: x @ x.transpose(1, 2)), (2, 3, 480), 480),
        (lambda: nn.Conv2d(64, 2, 3), (1, 64, 5, 5), 576),
        (lambda: nn.Conv2d(64, 64, 3, groups=64), (1, 64, 5, 5), 9),
        (lambda: nn.ConvTranspose2d(64, 2, 3), (1, 64, 5, 5), 576),
        (lambda: Net(lambda m, x: x.sum(1)), (2, 800), 800),
        (lambda: Net(lambda m, x: x * 2), (2, 800), 1),
    ],
)
def test_long_sums_round_more(module: Callable[[], nn.Module], shape: tuple[int, ...], terms: int) -> None:
    """Sums, products of matrices and convolutions are disturbed by the root of how many numbers are added for one."""
    torch.manual_seed(0)
    taped = Taped(module(), made(shape).abs())
    value, inputs = taped.last.value, {value for _, value in taped.trace.inputs}
    exact, *drawn = (
        replay(taped.tape, value, inputs, taped.fetch, how)[value] for how in [EXACT, *map(rounded, range(30))]
    )
    apart = [draw - exact for draw in drawn]
    error = np.sqrt(np.mean(np.square(apart)) / np.mean(np.square(exact))) / torch.finfo(torch.float32).eps
    assert 0.3 < error / max(1.0, (terms / 16) ** 0.5) < 1.5


def test_random_numbers_cannot_be_replayed() -> None:
    taped = Taped(Net(lambda m, x: x + torch.rand_like(x)), made((2, 3)))
    inputs = {value for _, value in taped.trace.inputs}
    with pytest.raises(CannotReplayError, match="rand"):
        replay(taped.tape, taped.last.value, inputs, taped.fetch, EXACT)


def test_an_operator_without_float64_is_named() -> None:
    library = torch.library.Library("bisect_test", "DEF")
    library.define("single(Tensor x) -> Tensor")

    def single(x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise RuntimeError("float32 only")
        return x + 1

    library.impl("single", single, "CPU")
    taped = Taped(Net(lambda m, x: torch.ops.bisect_test.single(x)), made((2, 3)))
    noise = stage_noise(
        TapedRun(taped.tape, taped.fetch, 1 << 30, same_run=True),
        taped.last.value,
        taped.known(taped.last),
        np.zeros((2, 3), np.float32),
        np.ones((2, 3), np.float32),
    )
    assert noise.unknown is not None
    assert "bisect_test::single" in noise.unknown
    assert "float32 only" in noise.unknown
    assert noise.ratio is None


def test_more_than_the_budget_is_unknown_and_not_taken() -> None:
    taped = Taped(nn.Linear(64, 64), made((64, 64)))
    ran = to_numpy(taped.fetch(taped.last.value))
    run = TapedRun(taped.tape, taped.fetch, 1000, same_run=True)
    noise = stage_noise(run, taped.last.value, taped.known(taped.last), ran, ran)
    assert noise.unknown is not None
    assert "memory budget" in noise.unknown


def test_a_replay_that_does_not_reproduce_the_run_blames_nobody() -> None:
    """Another tensor than the tape says: not PyTorch's fault."""
    taped = Taped(nn.Linear(8, 8), made((4, 8)))
    ran = to_numpy(taped.fetch(taped.last.value)) * 1.01
    arguments = (taped.last.value, taped.known(taped.last), ran, ran * 1.5)
    assert stage_noise(TapedRun(taped.tape, taped.fetch, 1 << 30, same_run=True), *arguments).unknown
    # Of another run, such as one on a GPU, it may well be.
    assert stage_noise(TapedRun(taped.tape, taped.fetch, 1 << 30, same_run=False), *arguments).ratio is not None


def test_promoting_refuses_what_has_no_float64() -> None:
    with pytest.raises(CannotReplayError, match="float8"):
        promote(torch.zeros(3).to(torch.float8_e4m3fn), torch.float64)
    with pytest.raises(CannotReplayError, match="quantized"):
        promote(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), torch.float64)
    assert promote(torch.ones(2, dtype=torch.int32), torch.float64).dtype is torch.int32
    assert promote(torch.ones(2, dtype=torch.float64), torch.float32).dtype is torch.float64


def test_inner_values_are_those_of_the_parts() -> None:
    """GELU as exporters write it: a division, erf, a sum, two products."""
    taped = Taped(nn.Sequential(nn.Linear(8, 8), nn.GELU()), made((4, 8)))
    stage = next(s for s in taped.trace.stages if s.type == "GELU")
    inner = inner_values(taped.tape, stage.value, taped.known(stage), taped.fetch, 1 << 30)
    x = taped.fetch(stage.inputs[0])
    assert any(np.allclose(part.array, torch.erf(x / 2**0.5).numpy(), atol=1e-6) for part in inner)
    assert {"erf", "mul", "add"} <= {part.name for part in inner}


def test_inner_values_know_their_lines() -> None:
    taped = Taped(Net(lambda m, x: ((x * 2) + 1).sin()), made((4, 8)))
    inputs = {value for _, value in taped.trace.inputs}
    inner = inner_values(taped.tape, taped.last.value, inputs, taped.fetch, 1 << 30)
    assert [part.name for part in inner] == ["mul", "add"]
    assert all(part.source is not None and "test_replay.py" in part.source for part in inner)


def test_made_up_rounding_to_half_precision_of_the_smallest_numbers() -> None:
    """Under 6e-5 float16 rounds to a fixed spacing, and no longer to a share of the number; zeros stay."""
    x = torch.cat([made((64,)) * 1e-3, torch.zeros(4)])
    taped = Taped(Net(lambda m, x: x**2), x)
    exact, draw = taped.again(taped.last, EXACT), taped.again(taped.last, rounded(1, "float16"))
    assert 1e-8 < np.abs(draw - exact)[:64].mean() and np.abs(draw - exact).max() <= 2**-23
    assert not draw[64:].any()
