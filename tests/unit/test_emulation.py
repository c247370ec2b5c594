"""``emulation``: rounding by hand, and that a recorded model only has other numbers, no other operations."""

from __future__ import annotations

import contextlib
import math
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from bisect_tool.backends import emulation
from bisect_tool.backends.emulation import Emulation, paused, round_bf16, round_fp16, round_tf32
from bisect_tool.recorder import Recorder

INF, NAN = math.inf, math.nan
MAX = (2 - 2.0**-23) * 2.0**127
ROUND: dict[str, Callable[[Tensor], Tensor]] = {"tf32": round_tf32, "bf16": round_bf16, "fp16": round_fp16}


def bits(number: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


BY_HAND = [
    # format, number, rounded. TF32 keeps 10 bits of mantissa: steps of 2**-10 between 1 and 2.
    ("tf32", 1.0, 1.0),
    ("tf32", 1 + 2.0**-10, 1 + 2.0**-10),
    ("tf32", 1 + 2.0**-11, 1.0),  # tie, down to even
    ("tf32", 1 + 3 * 2.0**-11, 1 + 2.0**-9),  # tie, up to even
    ("tf32", 1 + 2.0**-11 + 2.0**-23, 1 + 2.0**-10),  # one place above a tie
    ("tf32", 1 + 2.0**-11 - 2.0**-23, 1.0),  # one place below
    ("tf32", -(1 + 2.0**-11), -1.0),
    ("tf32", -(1 + 3 * 2.0**-11), -(1 + 2.0**-9)),
    ("tf32", 2 - 2.0**-23, 2.0),  # carries into the exponent
    ("tf32", 2 - 2.0**-11, 2.0),  # tie that carries
    ("tf32", 0.0, 0.0),
    ("tf32", -0.0, -0.0),
    ("tf32", 2.0**-149, 0.0),  # the smallest subnormal
    ("tf32", -(2.0**-149), -0.0),
    ("tf32", 2.0**-136, 2.0**-136),  # the smallest that is left
    ("tf32", 2.0**-137, 0.0),  # tie among subnormals
    ("tf32", 3 * 2.0**-137, 2.0**-135),
    ("tf32", 2.0**-126 - 2.0**-149, 2.0**-126),  # the largest subnormal becomes normal
    ("tf32", MAX, INF),
    ("tf32", -MAX, -INF),
    ("tf32", (2 - 2.0**-10) * 2.0**127, (2 - 2.0**-10) * 2.0**127),  # the largest TF32 number
    ("tf32", (2 - 2.0**-11) * 2.0**127, INF),  # tie with what would come next
    ("tf32", (2 - 2.0**-11 - 2.0**-23) * 2.0**127, (2 - 2.0**-10) * 2.0**127),
    ("tf32", INF, INF),
    ("tf32", -INF, -INF),
    ("tf32", NAN, NAN),
    # bfloat16: 7 bits.
    ("bf16", 1 + 2.0**-8, 1.0),
    ("bf16", 1 + 3 * 2.0**-8, 1 + 2.0**-6),
    ("bf16", 2 - 2.0**-23, 2.0),
    ("bf16", 2.0**-134, 0.0),
    ("bf16", MAX, INF),
    ("bf16", NAN, NAN),
    ("bf16", -INF, -INF),
    # float16: 10 bits, and a short range.
    ("fp16", 1 + 2.0**-11, 1.0),
    ("fp16", 1 + 3 * 2.0**-11, 1 + 2.0**-9),
    ("fp16", 65504.0, 65504.0),
    ("fp16", 65519.0, 65504.0),
    ("fp16", 65520.0, INF),
    ("fp16", -1e9, -INF),
    ("fp16", 2.0**-24, 2.0**-24),
    ("fp16", 2.0**-25, 0.0),
    ("fp16", 3 * 2.0**-25, 2.0**-23),
    ("fp16", NAN, NAN),
]


@pytest.mark.parametrize(("format", "number", "expected"), BY_HAND)
def test_rounding_by_hand(format: str, number: float, expected: float) -> None:
    """Numbers worked out on paper, the sign of zero included."""
    tensor = torch.tensor([number], dtype=torch.float32)
    assert math.isnan(number) or number == tensor.item(), "the example itself is a float32"
    found = ROUND[format](tensor)
    assert torch.float32 == found.dtype
    if math.isnan(expected):
        assert math.isnan(found.item())
    else:
        assert bits(expected) == bits(found.item())


@pytest.mark.parametrize("pattern", [0x7F800001, 0x7FFFFFFF, 0x7FC00000, 0xFF800001, 0xFFFFFFFF])
@pytest.mark.parametrize("format", ROUND)
def test_every_nan_stays_nan(format: str, pattern: int) -> None:
    """No payload is cut to an infinity, or carried into a number."""
    signed = pattern - (1 << 32) if pattern >> 31 else pattern
    nan = torch.tensor([signed], dtype=torch.int32).view(torch.float32)
    assert math.isnan(ROUND[format](nan).item())


def independent(format: str, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounding by scaling to whole numbers in float64, which holds all of these exactly."""
    places, smallest, limit = {
        "tf32": (11, 2.0**-136, 2.0**128),
        "bf16": (8, 2.0**-133, 2.0**128),
        "fp16": (11, 2.0**-24, 65520.0),
    }[format]
    wide = numbers.astype(np.float64)
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(wide)
        step = np.maximum(np.ldexp(1.0, exponent - places), smallest)
        rounded = np.where(np.isfinite(wide), np.rint(wide / step) * step, wide)
        rounded = np.where(np.abs(rounded) >= limit, np.copysign(np.inf, wide), rounded)
        return rounded.astype(np.float32)


floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
# Bit patterns reach ties and edges that numbers drawn as such seldom do.
patterns = st.integers(0, 2**32 - 1).map(lambda n: struct.unpack("<f", struct.pack("<I", n))[0])
ties = st.integers(0, 2**19 - 1).map(lambda n: struct.unpack("<f", struct.pack("<I", (n << 13) | 0x1000))[0])


@pytest.mark.parametrize("format", ROUND)
@settings(max_examples=150, deadline=None)
@given(numbers=st.lists(floats | patterns | ties, min_size=1, max_size=40))
def test_rounding_against_numpy(format: str, numbers: list[float]) -> None:
    """Every float32 is rounded as an independent computation does it."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        array = np.array(numbers, np.float32)
    found = ROUND[format](torch.from_numpy(array)).numpy()
    expected = independent(format, array)
    assert np.array_equal(np.isnan(array), np.isnan(found))
    numeric = ~np.isnan(array)
    assert np.array_equal(expected[numeric].view(np.int32), found[numeric].view(np.int32))


@pytest.mark.parametrize("format", ROUND)
def test_rounding_keeps_shape_and_the_original(format: str) -> None:
    """Strided, empty, scalar, expanded, conjugated and negated tensors are read as they are, and not written to."""
    base = torch.randn(4, 6, dtype=torch.complex64)
    for tensor in (base.real, base.real.t()[::2], torch.tensor(1.1), torch.empty(0, 3), torch.randn(1, 3).expand(4, 3)):
        copy = tensor.clone()
        found = ROUND[format](tensor)
        assert torch.equal(copy, tensor)
        assert torch.equal(ROUND[format](copy), found)
        assert tensor.shape == found.shape
        assert torch.equal(found, ROUND[format](found)), "rounding twice is rounding once"
    turned = base.conj()
    assert torch.equal(ROUND[format](turned), torch.complex(ROUND[format](base.real), ROUND[format](-base.imag)))
    assert torch.equal(ROUND[format](turned.imag), ROUND[format](-base.imag))


# Inside a model


class Mixed(nn.Module):
    """Convolution, attention and a linear layer, so that each can be done by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.conv(x)
        # Contiguous: only then does PyTorch take its fused kernel.
        tokens = a.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
        b = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return a, b, self.linear(b)


@pytest.mark.parametrize("format", ROUND)
def test_values_are_those_of_rounding_by_hand(format: Any) -> None:
    """Operands are rounded, what is added is not, and sums stay float32."""
    model, r = Mixed().eval(), ROUND[format]
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        with Emulation(format) as mode:
            a, b, c = model(x)
        assert torch.equal(F.conv2d(r(x), r(model.conv.weight), model.conv.bias, padding=1), a)
        q = r(a.flatten(2).transpose(1, 2).contiguous().unsqueeze(1))
        scores = q @ q.transpose(-2, -1) * 8**-0.5
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        assert torch.allclose(r(weights) @ q / weights.sum(-1, keepdim=True), b, rtol=1e-6, atol=1e-7)
        assert torch.equal(F.linear(r(b), r(model.linear.weight), model.linear.bias), c)
    names = {"convolution", "_scaled_dot_product_flash_attention_for_cpu", "addmm"}
    assert dict.fromkeys(names, 1) == dict(mode.rounded)
    assert not mode.unreached


class Call(nn.Module):
    """A function as a model, with the modules it needs."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None):
        super().__init__()
        self.function = function
        self.module = module if module is not None else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.module, x)


PAD = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


MODELS: dict[str, tuple[Callable[..., Any], nn.Module | None]] = {
    "linear": (lambda m, x: m(x), nn.Linear(8, 4)),
    "linear without bias": (lambda m, x: m(x), nn.Linear(8, 4, bias=False)),
    "convolution": (lambda m, x: m(x), nn.Conv1d(5, 3, 3)),
    "transposed convolution": (lambda m, x: m(x), nn.ConvTranspose1d(5, 3, 3)),
    "einsum": (lambda m, x: torch.einsum("bij,bkj->bik", x, x), None),
    "matrix times vector": (lambda m, x: x[0] @ x[0, 0], None),
    "dot": (lambda m, x: x[0, 0] @ x[0, 0], None),
    "in place": (lambda m, x: torch.zeros(2, 5, 5).baddbmm_(x, x.transpose(1, 2)), None),
    "cdist": (lambda m, x: torch.cdist(x.repeat(1, 9, 1), x.repeat(1, 9, 1)), None),
    "attention": (lambda m, x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x)), None),
    "causal": (lambda m, x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True), None),
    "masked": (lambda m, x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=~LATER), None),
    "added mask": (lambda m, x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), LATER * 0.5), None),
    "grouped": (
        lambda m, x: F.scaled_dot_product_attention(heads(x), heads(x)[:, :1], heads(x)[:, :1], enable_gqa=True),
        None,
    ),
    "attention in 3-D": (lambda m, x: F.scaled_dot_product_attention(x, x, x), None),
    "self-attention": (lambda m, x: m(x, x, x)[0], nn.MultiheadAttention(8, 2, batch_first=True)),
    "its weights": (lambda m, x: m(x, x, x)[1], nn.MultiheadAttention(8, 2, batch_first=True)),
    "weights of each head": (
        lambda m, x: m(x, x, x, average_attn_weights=False)[1],
        nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "self-attention, quiet": (
        lambda m, x: m(x, x, x, need_weights=False)[0],
        nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "padded": (lambda m, x: m(x, x, x, key_padding_mask=PAD)[0], nn.MultiheadAttention(8, 2, batch_first=True)),
    "causal self-attention": (
        lambda m, x: m(x, x, x, attn_mask=LATER)[0],
        nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "both masks": (
        lambda m, x: m(x, x, x, attn_mask=LATER, key_padding_mask=PAD)[0],
        nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "cross-attention": (
        lambda m, x: m(x, x[:, :3], x[:, :3], need_weights=False)[0],
        nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "encoder layer": (lambda m, x: m(x), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "encoder layer, norm first": (
        lambda m, x: m(x, src_mask=LATER, src_key_padding_mask=PAD),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu"),
    ),
    "lstm": (lambda m, x: m(x)[0], nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True)),
    "lstm without bias": (lambda m, x: m(x)[1][1], nn.LSTM(8, 4, bias=False)),
    "packed lstm": (
        lambda m, x: m(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True))[0].data,
        nn.LSTM(8, 4, batch_first=True),
    ),
    "gru": (lambda m, x: m(x)[0], nn.GRU(8, 4)),
    "rnn": (lambda m, x: m(x)[0], nn.RNN(8, 4)),
}


def recorded(model: nn.Module, x: Tensor, grad_mode: Any, mode: Any) -> tuple[Any, list[Any], list[Any]]:
    # Outermost: what the recorder calls comes to the emulation.
    with grad_mode(), mode, Recorder(model) as recorder:
        output = recorder.run(x)
    trace = recorder.trace
    operations = [(op.name, op.frame, op.inputs, op.outputs) for op in trace.ops]
    return output, operations, [(value.shape, value.dtype, value.view, value.kind) for value in trace.values]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that leaves every number alone, to check what is computed anew."""
    monkeypatch.setattr(emulation, "ROUNDINGS", {**emulation.ROUNDINGS, "exact": lambda tensor: tensor})


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", MODELS)
def test_recorder_sees_the_same_operations(name: str, grad_mode: Any) -> None:
    """Operations, data flow, shapes and layouts are those without emulation; only numbers change, and all of them do."""
    function, module = MODELS[name]
    model = Call(function, module).eval()
    x = torch.randn(2, 5, 8)
    plain, operations, values = recorded(model, x, grad_mode, contextlib.nullcontext())
    same, _, _ = recorded(model, x, grad_mode, Emulation("exact"))  # type: ignore[arg-type]
    mode = Emulation("bf16")
    rounded, operations_rounded, values_rounded = recorded(model, x, grad_mode, mode)
    assert operations == operations_rounded
    assert values == values_rounded
    assert not mode.unreached
    assert mode.rounded.total() > 0
    assert torch.allclose(plain, same, rtol=1e-5, atol=1e-6)
    assert 1e-5 < float((plain - rounded).norm() / plain.norm()) < 0.3


@pytest.mark.usefixtures("exact")
def test_long_attention_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are never held all at once, and the result does not depend on it."""
    q, k = torch.randn(2, 3, 37, 8), torch.randn(2, 3, 50, 8)
    mask = torch.rand(2, 1, 37, 50) > 0.3
    mask[0, 0, 4] = False
    expected = F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
    causal = F.scaled_dot_product_attention(q, k, k, is_causal=True)
    monkeypatch.setattr(emulation, "_SCORES", 1000)
    with torch.no_grad(), Emulation("exact"):  # type: ignore[arg-type]
        assert torch.allclose(expected, F.scaled_dot_product_attention(q, k, k, attn_mask=mask), atol=1e-6)
        assert torch.allclose(causal, F.scaled_dot_product_attention(q, k, k, is_causal=True), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_only_float32_is_rounded(dtype: torch.dtype) -> None:
    """Other precisions are what they are on a GPU too."""
    model = nn.Linear(8, 4).to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    with torch.no_grad(), Emulation("tf32") as mode:
        found = model(x)
    assert torch.equal(model(x), found)
    assert not mode.rounded
    assert not mode.unreached


def test_complex_products_are_rounded() -> None:
    """Real and imaginary parts go the same way, conjugated or not."""
    x = torch.randn(4, 4, dtype=torch.complex64)
    with Emulation("tf32"):
        found = x @ x.mH
    assert torch.equal(round_tf32(x) @ round_tf32(x).mH, found)


def test_scripted_model_is_rounded() -> None:
    """Operations of TorchScript come by as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what many people have
        model = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval())
    with torch.no_grad(), Emulation("tf32") as mode:
        model(torch.randn(2, 8))
    assert 2 == mode.rounded.total()


def test_nested_tensors_are_reported() -> None:
    """The fast path of a padded encoder works on nested tensors: it is left alone, and counted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
        with torch.no_grad(), Emulation("tf32") as mode:
            model(torch.randn(2, 5, 8), src_key_padding_mask=PAD)
    assert {"_transformer_encoder_layer_fwd": 2} == dict(mode.unreached)


def test_sparse_and_foreign_operators_are_reported() -> None:
    """What cannot be looked into is counted, never passed over."""

    @torch.library.custom_op("bisect_test::product", mutates_args=())
    def product(x: Tensor) -> Tensor:
        return x @ x

    x = torch.randn(4, 4)
    with torch.no_grad(), Emulation("tf32") as mode:
        product(x)
        torch.sparse.mm(x.to_sparse(), x)
    foreign, sparse = sorted(mode.unreached, reverse=True, key=lambda name: "::" in name)
    assert "bisect_test::product" == foreign
    assert sparse.startswith("_sparse_")
    assert not mode.rounded


def test_paused_rounds_nothing() -> None:
    """A reference computation inside sees its operands whole; afterwards rounding goes on."""
    x = torch.randn(8, 8)
    exact = x @ x
    with Emulation("bf16") as mode:
        with paused():
            assert torch.equal(exact, x @ x)
        assert not mode.rounded
        assert not torch.equal(exact, x @ x)
