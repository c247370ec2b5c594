"""``torch_switches``: every switch is set, read back and restored, also when the run raises."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bisect_tool.backends import torch_switches
from bisect_tool.backends.preflight import require_one_device
from bisect_tool.backends.torch_switches import (
    applied,
    layout_in_effect,
    neutral,
    placed,
    require_device,
    snapshot,
    tf32_seen,
)
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.numerics import code_for
from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import ConfigPair, NumericConfig
from bisect_tool.switches import TORCH, Switch, Value
from bisect_tool.tolerances import make_tolerance

CPU = NumericConfig("torch")
SET_HERE = [switch for switch in TORCH if switch.home != "field"]
NOT_HERE = {
    # What this build of PyTorch, or any on the CPU, does not have.
    *(
        [
            ("preferred_blas_library", "cublaslt"),
            ("preferred_linalg_library", "cusolver"),
            ("preferred_linalg_library", "magma"),
        ]
        if torch.version.cuda is None
        else []
    ),
    ("sdpa_kernel", "efficient_attention"),
    ("sdpa_kernel", "cudnn_attention"),
}


class Failure(Exception):
    """What the run raises."""


def values_of(switch: Switch) -> tuple[Value, ...]:
    return (True, False) if switch.values.kind == "flag" else switch.values.choices


def settings() -> list[Any]:
    return [pytest.param(s, value, id=f"{s.name}={value}") for s in SET_HERE for value in values_of(s)]


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of CUDA can be set and read without a GPU; only the check for one stands in the way."""
    monkeypatch.setattr(torch_switches, "require_device", lambda device: None)
    monkeypatch.setattr(torch_switches, "_seen_tf32", dict)


def config_of(switch: Switch, value: Value) -> NumericConfig:
    return NumericConfig("torch", device=switch.devices[0], switches={switch.name: value})


@pytest.mark.usefixtures("any_device")
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize(("switch", "value"), settings())
def test_state_is_what_it_was(
    switch: Switch, value: Value, fails: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """After each switch of the table all global state equals the state before, on error too."""
    if switch.home == "environment" and switch.devices == ("cpu",):
        monkeypatch.setenv(switch.name, str(value))
    before = snapshot()
    if (switch.name, value) in NOT_HERE:
        with pytest.raises(InconclusiveError), applied(config_of(switch, value)):
            raise AssertionError("not reached")
    elif fails:
        with pytest.raises(Failure), applied(config_of(switch, value)):
            raise Failure
    else:
        with applied(config_of(switch, value)) as effective:
            inside = snapshot()
        if switch.home != "model":
            assert value == effective[switch.name]
        if switch.name in inside:
            assert value == inside[switch.name]
    assert before == snapshot()
    assert [] == [str(warning.message) for warning in recwarn.list]


@pytest.mark.usefixtures("any_device")
def test_all_at_once_are_restored() -> None:
    """Many switches together leave nothing behind, and each of them was in effect."""
    wanted: dict[str, Value] = {
        "matmul_tf32": True,
        "cudnn_conv_tf32": False,
        "cudnn_rnn_tf32": True,
        "deterministic_algorithms": "warn",
        "sdpa_kernel": "math",
        "fp16_accumulation": True,
        "mha_fastpath": False,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    before = snapshot()
    with applied(NumericConfig("torch", device="cuda", threads=1, switches=wanted)) as effective:
        assert wanted == {name: effective[name] for name in wanted}
        assert 1 == torch.get_num_threads()
    assert before == snapshot()


@pytest.mark.usefixtures("any_device")
def test_nested_runs_restore_in_turn() -> None:
    """An inner configuration gives back what the outer one had set."""
    outer = NumericConfig("torch", device="cuda", switches={"matmul_tf32": True, "cudnn_conv_tf32": False})
    inner = NumericConfig("torch", device="cuda", switches={"matmul_tf32": False, "cudnn_conv_tf32": True})
    start = snapshot()
    with applied(outer):
        between = snapshot()
        with applied(inner):
            assert not torch_switches._read_matmul_tf32()
        assert between == snapshot()
    assert start == snapshot()


@pytest.mark.usefixtures("any_device")
@pytest.mark.parametrize("value", [True, False])
def test_old_interface_can_be_read_meanwhile(value: bool) -> None:
    """A model that reads the old TF32 flags does not raise, and reads what is so."""
    switches: dict[str, Value] = {"matmul_tf32": value, "cudnn_conv_tf32": value, "cudnn_rnn_tf32": value}
    with applied(NumericConfig("torch", device="cuda", switches=switches)):
        assert value == torch.backends.cuda.matmul.allow_tf32
        assert value == torch.backends.cudnn.allow_tf32
        with torch.backends.cudnn.flags(enabled=False):
            pass


@pytest.fixture
def precision() -> Iterator[None]:
    """Puts all TF32 flags back to torch's own start."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    if torch_switches._has_fp32_precision():
        for backend, operation in (*torch_switches._PARENTS, *torch_switches._PRECISIONS):
            start = "tf32" if backend == "cuda" and operation in ("conv", "rnn") else "none"
            torch._C._set_fp32_precision_setter(backend, operation, start)


@pytest.mark.usefixtures("any_device", "precision")
@pytest.mark.skipif(not torch_switches._has_fp32_precision(), reason="needs torch 2.9")
@pytest.mark.parametrize("name", ["matmul_tf32", "cudnn_conv_tf32", "cudnn_rnn_tf32"])
@pytest.mark.parametrize("value", [True, False])
def test_user_who_took_the_new_interface(name: str, value: bool) -> None:
    """Where the new flags already contradict the old ones, the new ones are used and nothing raises."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    before = snapshot()
    with applied(NumericConfig("torch", device="cuda", switches={name: value})) as effective:
        assert value == effective[name]
    assert before == snapshot()


@pytest.mark.usefixtures("any_device", "precision")
@pytest.mark.skipif(not torch_switches._has_fp32_precision(), reason="needs torch 2.9")
def test_what_follows_its_parent_goes_on_following() -> None:
    """A precision that was inherited is inherited again afterwards."""
    torch.backends.fp32_precision = "ieee"
    with applied(NumericConfig("torch", device="cuda", switches={"matmul_tf32": True})):
        pass
    torch.backends.fp32_precision = "tf32"
    assert "tf32" == torch.backends.cuda.matmul.fp32_precision


@pytest.mark.usefixtures("any_device")
def test_torch_before_fp32_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older torch has the old flags only, and one of them for convolutions and recurrences."""
    monkeypatch.setattr(torch_switches, "_has_fp32_precision", lambda: False)
    before = snapshot()
    both: dict[str, Value] = {"cudnn_conv_tf32": False, "cudnn_rnn_tf32": False, "matmul_tf32": True}
    with applied(NumericConfig("torch", device="cuda", switches=both)) as effective:
        assert both == {name: effective[name] for name in both}
        assert torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert before == snapshot()
    apart = NumericConfig("torch", device="cuda", switches={**both, "cudnn_rnn_tf32": True})
    with pytest.raises(InconclusiveError, match="one flag for TF32"), applied(apart):
        raise AssertionError("not reached")
    assert before == snapshot()


def test_misspelt_switch_is_refused_before_anything_is_set() -> None:
    """The table is asked first."""
    before = snapshot()
    with pytest.raises(BisectError) as caught, applied(NumericConfig("torch", switches={"mkldn": False})):
        raise AssertionError("not reached")
    assert "did you mean mkldnn" in str(caught.value.hint)
    assert before == snapshot()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu() -> None:
    """What is missing is named: here the build, or the device."""
    with pytest.raises(InconclusiveError, match="build without CUDA|finds no usable GPU"):
        require_device("cuda")


def test_driver_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build without a device says what CUDA says."""

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check ...")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(InconclusiveError, match=r"CUDA 13\.0\) finds no usable GPU: Found no NVIDIA driver"):
        require_device("cuda")


def test_variable_that_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch read when it was loaded cannot be set any more."""
    monkeypatch.delenv("MKL_CBWR", raising=False)
    with (
        pytest.raises(InconclusiveError, match="MKL_CBWR=COMPATIBLE comes too late"),
        applied(replace(CPU, switches={"MKL_CBWR": "COMPATIBLE"})),
    ):
        raise AssertionError("not reached")


GLOBAL = [p for p in settings() if p.values[0].home == "global" and (p.values[0].name, p.values[1]) not in NOT_HERE]


@pytest.mark.parametrize(("switch", "value"), GLOBAL)
def test_line_of_code_does_the_same(switch: Switch, value: Value) -> None:
    """What a report tells users to write sets the switch."""
    line = code_for("torch", switch.name, value)
    saved, before = torch_switches._save(), snapshot()
    try:
        if line.endswith(":"):
            exec(f"{line} found = read()", scope := {"torch": torch, "read": torch_switches._FLAGS[switch.name].read})
            assert value == scope["found"]
        else:
            exec(line, {"torch": torch})
            assert value == torch_switches._FLAGS[switch.name].read()
    finally:
        torch_switches._restore(saved)
    assert before == snapshot()


# Effects, on the CPU


def run(config: NumericConfig, module: nn.Module, *inputs: torch.Tensor) -> Any:
    module, inputs, _ = placed(module.eval(), inputs, {}, config)
    with torch.no_grad(), applied(config):
        return module(*inputs)


def test_flush_denormal_reaches_the_calling_thread() -> None:
    """Denormals become zero; with one thread all of them, and afterwards they are kept again."""
    numbers = torch.full((1 << 17,), 1e-39)
    with applied(NumericConfig("torch", threads=1, switches={"flush_denormal": True})):
        flushed = numbers * 2
    assert 0 == torch.count_nonzero(flushed)
    assert numbers.numel() == torch.count_nonzero(numbers * 2)


@pytest.mark.parametrize(
    ("switches", "module", "shape"),
    [
        ({"mkldnn": False}, nn.Conv2d(32, 64, 3, padding=1), (4, 32, 20, 20)),
        ({"channels_last": True}, nn.Conv2d(32, 64, 3, padding=1), (4, 32, 20, 20)),
        ({"sdpa_kernel": "math"}, nn.TransformerEncoderLayer(64, 4, batch_first=True), (2, 33, 64)),
        ({"mha_fastpath": False}, nn.TransformerEncoderLayer(64, 4, batch_first=True), (2, 33, 64)),
    ],
    ids=["mkldnn", "channels_last", "sdpa_kernel", "mha_fastpath"],
)
def test_switch_runs_and_changes_little(switches: dict[str, Value], module: nn.Module, shape: tuple[int, ...]) -> None:
    """The model runs under the switch; results stay within rounding of each other."""
    x = torch.randn(shape)
    plain, switched = run(CPU, module, x), run(replace(CPU, switches=switches), module, x)
    assert plain.shape == switched.shape
    assert float((plain - switched).norm() / plain.norm()) < 1e-5


def test_autocast_runs_in_its_dtype() -> None:
    """Products run in the dtype that was asked for."""
    out = run(replace(CPU, switches={"autocast": "bfloat16"}), nn.Linear(8, 4), torch.randn(2, 8))
    assert torch.bfloat16 == out.dtype


def test_neutral_undoes_autocast_and_emulation() -> None:
    """A reference computation inside is as precise as outside."""
    x = torch.randn(8, 8)
    exact = x @ x
    for switches in ({"emulate": "bf16"}, {"autocast": "bfloat16"}):
        with applied(replace(CPU, switches=switches)):
            assert not torch.equal(exact, (x @ x).float())
            with neutral():
                assert torch.equal(exact, x @ x)


@pytest.mark.parametrize("kind", ["matmul", "conv"])
def test_tf32_is_seen_in_results(kind: str) -> None:
    """The probe tells rounded products from exact ones; emulation stands in for a GPU."""
    assert not tf32_seen(kind, "cpu")
    with applied(replace(CPU, switches={"emulate": "tf32"})):
        assert tf32_seen(kind, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(("name", "kind"), [("matmul_tf32", "matmul"), ("cudnn_conv_tf32", "conv")])
def test_tf32_on_a_gpu(name: str, kind: str, value: bool) -> None:
    """The flags reach the kernels, each its own; nothing stays behind."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no GPU with TF32")
    before = snapshot()
    with applied(NumericConfig("torch", device="cuda", switches={name: value})) as effective:
        assert value == effective[f"{kind}_tf32_seen"]
    assert before == snapshot()


# Model and inputs


def test_placed_copies_only_what_changes() -> None:
    """What fits already comes back itself; else the original keeps its dtype."""
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    same, _, _ = placed(module, (), {}, replace(CPU, dtype="float32"))
    assert same is module
    x, index = torch.ones(2, 3), torch.tensor([1])
    half, args, kwargs = placed(module, ([x, index],), {"x": x}, replace(CPU, dtype="float16"))
    assert {torch.float16, torch.int64} == {t.dtype for t in (*half.parameters(), *half.buffers())}
    assert torch.float32 == module[0].weight.dtype
    assert [torch.float16, torch.int64] == [t.dtype for t in args[0]]
    assert torch.float16 == kwargs["x"].dtype
    assert torch.float32 == x.dtype


def test_placed_in_channels_last() -> None:
    """Weights and inputs of four dimensions change their strides, and nothing else."""
    module = nn.Conv2d(3, 4, 3)
    x = torch.randn(1, 3, 8, 8)
    moved, (y, z), _ = placed(module, (x, torch.randn(2, 3)), {}, replace(CPU, switches={"channels_last": True}))
    weight: Any = moved.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, y)
    assert (2, 3) == z.shape
    assert module.weight.is_contiguous()


def test_layout_is_read_back_from_what_runs() -> None:
    """Weights and inputs tell; what has one channel or one pixel, or no four dimensions, does not."""
    last, plain = (replace(CPU, switches={"channels_last": value}) for value in (True, False))
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    assert {"channels_last": True} == layout_in_effect(*placed(conv, (x,), {}, last), last)
    assert {"channels_last": False} == layout_in_effect(*placed(conv, (x,), {}, plain), plain)
    assert {} == layout_in_effect(conv, (x,), {}, CPU)
    assert {} == layout_in_effect(*placed(nn.Linear(3, 4), (x[0],), {}, last), last)
    assert {} == layout_in_effect(*placed(nn.Conv2d(1, 1, 3), (x[:, :1],), {}, last), last)


def test_layout_that_is_not_what_was_asked_for() -> None:
    """Weights that stayed as they were, an input that came so: no such run."""
    last, plain = (replace(CPU, switches={"channels_last": value}) for value in (True, False))
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    moved = x.to(memory_format=torch.channels_last)
    with pytest.raises(InconclusiveError, match="channels_last was set to True, and weights and inputs say False"):
        layout_in_effect(conv, (moved,), {}, last)
    with pytest.raises(InconclusiveError, match="channels_last was set to False, and weights and inputs say True"):
        layout_in_effect(nn.Linear(3, 4), (), {"x": moved}, plain)


def test_placed_model_that_cannot_be_copied() -> None:
    """A model that refuses to be copied is inconclusive, not a crash."""

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: object) -> Any:
            raise TypeError("cannot pickle a socket")

    with pytest.raises(InconclusiveError, match="cannot be copied.*cannot pickle a socket"):
        placed(Stubborn(2, 2), (), {}, replace(CPU, dtype="float16"))


def test_every_switch_of_the_table_is_handled() -> None:
    """No row of the table is without code, and no code without a row."""
    flags = {switch.name for switch in TORCH if switch.home == "global"}
    assert flags == set(torch_switches._FLAGS)
    assert {"autocast", "emulate"} == {switch.name for switch in TORCH if switch.home == "context"}
    assert {"channels_last"} == {switch.name for switch in TORCH if switch.home == "model"}


def test_defaults_of_the_table_are_those_of_torch() -> None:
    """What the table calls the default is what a fresh torch reads back."""
    state = snapshot()
    words = {"true": True, "false": False, "unset": None}
    for switch in TORCH:
        if switch.home == "global":
            assert words.get(switch.default, switch.default) == state[switch.name], switch.name


def test_entering_is_quiet() -> None:
    """Nothing warns, with the old interface neither."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with applied(CPU), neutral():
            pass


class Loose(nn.Linear):
    """Keeps a tensor that does not move with it."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.scales = [torch.ones(3)]
        self.factor = torch.tensor(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scales[0] * self.factor  # type: ignore[no-any-return]


def test_tensors_that_stay_behind_are_named_before_the_run() -> None:
    """A plain attribute does not move with the model; bare numbers on the CPU may take part anywhere."""
    config = replace(CPU, device="meta")
    moved = placed(Loose().eval(), (torch.ones(2, 3),), {}, config)
    with pytest.raises(
        InconclusiveError, match=r"moved to meta, and tensors stay behind \(on cpu: scales\[0\]\)$"
    ) as found:
        require_one_device(*moved, "meta")
    assert "register_buffer" in str(found.value.hint)
    require_one_device(*placed(nn.Linear(3, 3), (torch.ones(2, 3),), {}, config), "meta")


def test_pipeline_asks_where_moved_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair whose model does not move as a whole fails with the names, and the other one has its answer."""
    monkeypatch.setattr("bisect_tool.backends.torch_switches.require_device", lambda device: None)
    monkeypatch.setattr("bisect_tool.pipeline.bisection.require_device", lambda device: None)
    pairs = tuple(
        ConfigPair(device, replace(CPU, device=device), NumericConfig("onnxruntime", optimization="off"))
        for device in ("cpu", "meta")
    )
    case = LoadedCase("loose", Loose().eval(), (torch.ones(2, 3),), {})
    runs = bisect(case, Options(make_tolerance(None, None, None), pairs=pairs)).configs
    assert ["agrees", "failed"] == [run.status for run in runs]
    assert "on cpu: scales[0]" in str(runs[1].skipped_reason)


@pytest.fixture
def as_if_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of CUDA can be set without a GPU."""
    monkeypatch.setattr(torch_switches, "require_device", lambda device: None)
    monkeypatch.setattr(torch_switches, "_seen_tf32", dict)


@pytest.mark.parametrize("wanted", [{"cudnn_conv_tf32": False}, {"cudnn_conv_tf32": False, "cudnn_rnn_tf32": False}])
def test_old_flag_of_cudnn_can_be_read_inside(as_if_cuda: None, wanted: dict[str, Value]) -> None:
    """Models that read it, or use ``cudnn.flags``, go on working."""
    before = snapshot()
    with applied(replace(CPU, device="cuda", switches=wanted)) as effective, torch.backends.cudnn.flags(enabled=True):
        assert wanted.items() <= effective.items()
    with applied(replace(CPU, device="cuda", switches=wanted)):
        assert torch.backends.cudnn.allow_tf32 is False
    assert before == snapshot()


@pytest.mark.skipif(not torch_switches._has_fp32_precision(), reason="torch before 2.9")
def test_old_interface_after_the_new_one_is_explained() -> None:
    """Who set fp32_precision before cannot set float32_matmul_precision; the message says so, and what to set."""
    saved = torch_switches._save()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with (
            pytest.raises(InconclusiveError, match="fp32_precision was set in this process before") as found,
            applied(replace(CPU, switches={"float32_matmul_precision": "high"})),
        ):
            pass
    finally:
        torch_switches._restore(saved)
    assert "mkldnn_matmul_fp32_precision" in str(found.value.hint)
