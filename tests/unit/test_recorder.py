"""``recorder``: what a run computed, seen without changing it."""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import pathlib
import sys
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from bisect_tool import recorder as recorder_file
from bisect_tool.backends.torch_runner import TorchRun, to_numpy
from bisect_tool.recorder import Recorder, Value, dtype_name, flatten_tensors, spare_compiler
from bisect_tool.records import Stage, StageRef, TorchTrace


class Run:
    """One recorded run: output, trace, and every stage's tensor as it was when it was complete."""

    def __init__(self, module: nn.Module, *args: Any, every_op: bool = False, **kwargs: Any):
        self.snapshots: dict[int, Tensor] = {}

        def on_value(value: Value, tensor: Tensor) -> None:
            self.snapshots[value.id] = tensor.detach().clone()
            self.run.recorder.hold(value.id, tensor)

        self.run = TorchRun(module, args, kwargs, on_value, every_op=every_op)
        self.output = self.run.start()
        self.raw = self.run.recorder.trace
        self.trace: TorchTrace = self.run.trace

    def stage(self, path: str, call: int = 0, output: int | str = 0) -> Stage:
        ref = StageRef(path, call, output)
        return next(s for s in self.trace.stages if s.ref == ref)

    def held(self, path: str, call: int = 0, output: int | str = 0) -> Tensor:
        tensor: Tensor = self.run.recorder.held(self.stage(path, call, output).value)
        return tensor

    def refs(self) -> list[str]:
        return [str(stage.ref) for stage in self.trace.stages]


def plain(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return module(*args, **kwargs)


class Lambda(nn.Module):
    """A function over named children."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


# -- values that are overwritten --------------------------------------------------------------------------------------


def test_an_in_place_relu_does_not_rewrite_the_norm_before_it() -> None:
    """The held value of BatchNorm is the one before the ReLU, the ReLU's the one after."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    run = Run(model, x)
    with torch.no_grad():
        norm = model[1](model[0](x))
    assert torch.equal(run.held("1"), norm)
    assert (run.held("1") < 0).any()
    assert torch.equal(run.held("2"), norm.relu())
    assert run.stage("2").inputs == (run.stage("1").value,)
    assert run.stage("3").inputs == (run.stage("2").value,)


def test_held_values_stay_as_they_were_when_complete() -> None:
    """Through a chain of in-place operations every held tensor equals a copy made on the spot."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.fc(x)
        y += 1
        y.mul_(2).clamp_(min=0)
        y[:, 0] = 5
        torch.exp(y, out=y)
        return y - x

    run = Run(Lambda(forward, fc=nn.Linear(3, 3)), torch.randn(2, 3))
    values = {stage.value for stage in run.trace.stages}
    assert len(values) >= 6
    for value in values:
        assert torch.equal(run.run.recorder.held(value), run.snapshots[value])


def test_a_write_through_another_view_makes_a_new_value() -> None:
    """What is read after it depends on the write; the value before it is kept."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.fc(x)
        y.view(-1)[:3].mul_(10)
        return self.last(y)

    model = Lambda(forward, fc=nn.Linear(4, 4), last=nn.ReLU())
    x = torch.randn(2, 4)
    run = Run(model, x)
    assert torch.equal(run.held("fc"), plain(model.fc, x))
    product = run.stage("/mul#0").value
    assert set(run.stage("last").inputs) == {run.stage("fc").value, product}
    assert torch.equal(run.held("last"), run.output)


def test_a_write_into_the_base_is_seen_by_its_views() -> None:
    """The view was made before the write and is read after it."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.fc(x)
        part = y[:, :2]
        y.neg_()
        return part + 1

    run = Run(Lambda(forward, fc=nn.Linear(4, 4)), torch.randn(2, 4))
    (entering,) = run.stage("/add#0").inputs
    assert run.stage("/neg#0").value in run.trace.parents[entering]


def test_a_write_into_the_run_s_input_leaves_the_input_value_alone() -> None:
    """The output does not claim to be the input."""
    run = Run(Lambda(lambda self, x: x.add_(1)), torch.zeros(3))
    assert run.trace.outputs[0][1] != run.trace.inputs[0][1]
    assert run.stage("/add#0").inputs == (run.trace.inputs[0][1],)


def test_released_tensors_are_freed() -> None:
    """Neither a held nor a copied tensor outlives its release and the run."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)).eval()
    run = Run(model, torch.randn(2, 3))
    held = [weakref.ref(run.run.recorder.held(i)) for i in run.run.recorder.held_ids()]
    assert len(held) == 2
    first, second = run.run.recorder.held_ids()
    run.run.recorder.release(first)
    assert run.run.recorder.held_ids() == [second]
    with pytest.raises(KeyError):
        run.run.recorder.held(first)
    run.run.recorder.release(first)
    run.run.recorder.release_all()
    run.output = None
    gc.collect()
    assert [ref() for ref in held] == [None, None]


# -- calls and names --------------------------------------------------------------------------------------------------


def test_a_module_called_several_times_has_numbered_calls() -> None:
    """Calls 0, 1 and 2, each with its own value and its own inputs."""
    fc = nn.Linear(3, 3)
    run = Run(Lambda(lambda self, x: self.fc(self.fc(self.fc(x))), fc=fc), torch.randn(1, 3))
    stages = [s for s in run.trace.stages if s.ref.stage == "fc"]
    assert [s.ref.call for s in stages] == [0, 1, 2]
    assert len({s.value for s in stages}) == 3
    assert [s.inputs for s in stages[1:]] == [(stages[0].value,), (stages[1].value,)]
    assert torch.equal(run.held("fc", 2), run.output)


def test_operations_in_a_repeated_container_have_its_call() -> None:
    """Functional stages of a block that runs twice are told apart by the call."""
    block = Lambda(lambda self, x: functional.gelu(self.fc(x)), fc=nn.Linear(3, 3))
    run = Run(Lambda(lambda self, x: self.block(self.block(x)), block=block), torch.randn(1, 3))
    assert [s.ref.call for s in run.trace.stages if s.ref.stage == "block/gelu#0"] == [0, 1]


def test_a_shared_module_has_one_path() -> None:
    """Registered at two places, it is one module with two calls; both names are known."""
    fc = nn.Linear(3, 3)
    model = nn.Sequential(fc, nn.ReLU(), fc)
    run = Run(model, torch.randn(1, 3))
    assert [(s.ref.stage, s.ref.call) for s in run.trace.stages if s.type == "Linear"] == [("0", 0), ("0", 1)]
    assert run.trace.modules["2"] == "0"
    assert run.trace.modules["1"] == "1"


def test_stages_of_one_operation_are_numbered() -> None:
    """``add#0`` and ``add#1``."""
    run = Run(Lambda(lambda self, x: (x + 1) + 2), torch.randn(3))
    assert run.refs() == ["/add#0", "/add#1", "(model)"]


def test_every_op_adds_the_operations_inside_leaf_modules() -> None:
    """They are stages of level ``op``, and only on request."""
    model = nn.Sequential(nn.Hardswish(), nn.Linear(3, 3)).eval()
    x = torch.randn(2, 3)
    assert not any(s.level == "op" for s in Run(model, x).trace.stages)
    inside = [s for s in Run(model, x, every_op=True).trace.stages if s.level == "op"]
    assert [s.ref.stage for s in inside] == ["0/hardswish#0", "1/addmm#0"]


def test_the_source_is_the_user_s_line() -> None:
    """File and line of the call in the model's own code, not in torch."""
    run = Run(Lambda(lambda self, x: torch.sigmoid(self.fc(x)), fc=nn.Linear(3, 3)), torch.randn(1, 3))
    for path in ("fc", "/sigmoid#0"):
        source = run.stage(path).source
        assert source is not None
        assert source.rpartition(":")[0] == __file__


# -- nothing is left behind -------------------------------------------------------------------------------------------


def assert_nothing_is_left() -> None:
    assert not torch_module._global_forward_hooks
    assert not torch_module._global_forward_pre_hooks
    assert _get_current_dispatch_mode() is None


def test_hooks_and_modes_are_gone_after_a_run() -> None:
    """A run after the recording is not recorded."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    run = Run(model, torch.randn(1, 3))
    assert_nothing_is_left()
    before = len(run.raw.ops)
    plain(model, torch.randn(1, 3))
    assert len(run.raw.ops) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_and_modes_are_gone_after_an_exception() -> None:
    """Also when it comes from deep inside the model."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(5, 5)))
    recorder = Recorder(model)
    with pytest.raises(RuntimeError, match="shapes"), recorder:
        recorder.run(torch.randn(1, 3))
    assert_nothing_is_left()
    before = len(recorder.trace.ops)
    plain(model[0], torch.randn(1, 3))
    assert len(recorder.trace.ops) == before


def test_an_exception_of_the_callback_ends_the_run() -> None:
    """It reaches the caller, and nothing is left."""

    def fail(value: Value, tensor: Tensor) -> None:
        raise ValueError("stop here")

    recorder = Recorder(nn.Sequential(nn.ReLU()), fail)
    with pytest.raises(ValueError, match="stop here"), recorder:
        recorder.run(torch.randn(1, 3))
    assert_nothing_is_left()


def test_other_models_are_not_recorded() -> None:
    """A module that is no part of the recorded one may run meanwhile; it becomes no stage."""
    other = nn.Linear(3, 3)
    model = Lambda(lambda self, x: self.fc(x) + self.outside[0](x), fc=nn.Linear(3, 3))
    model.outside = (other,)
    run = Run(model, torch.randn(1, 3))
    assert {frame.path for frame in run.raw.frames} == {"", "fc"}
    assert "/addmm#0" in run.refs()


# -- the run is not changed -------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Convolution, norm, in-place, attention, recurrence and reshaping together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        attended, weights = self.attention(tokens, tokens, tokens)
        tokens = functional.layer_norm(tokens + attended, (8,))
        states, (last, _) = self.lstm(tokens)
        return {"scores": self.head(states), "last": last, "weights": weights}


def test_recording_changes_no_bit_of_the_output() -> None:
    """With and without the recorder, with and without holding values."""
    model = Mixed().eval()
    x = torch.randn(2, 3, 16, 16)
    wanted = plain(model, x)
    run = Run(model, x)
    for key, tensor in wanted.items():
        assert torch.equal(run.output[key], tensor)
    recorder = Recorder(model)
    with torch.no_grad(), recorder:
        again = recorder.run(x)
    assert all(torch.equal(again[key], tensor) for key, tensor in wanted.items())


def test_held_outputs_are_the_returned_ones() -> None:
    """Every output of the run has a value whose tensor is the returned one."""
    model = Mixed().eval()
    run = Run(model, torch.randn(2, 3, 16, 16))
    assert [key for key, _ in run.trace.outputs] == ["scores", "last", "weights"]
    for key, value in run.trace.outputs:
        assert torch.equal(run.run.recorder.held(value), run.output[key])


def test_gradients_still_flow_through_a_recorded_run() -> None:
    """Recording needs no ``no_grad``."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    recorder = Recorder(model)
    with recorder:
        recorder.run(torch.randn(2, 3)).sum().backward()
    assert model[0].weight.grad is not None


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, **options).eval()


def test_a_transformer_encoder_keeps_its_fast_path() -> None:
    """The fused kernel runs, and gives its own numbers."""
    model, x = encoder(), torch.randn(2, 5, 8)
    run = Run(model, x)
    assert any(op.name == "_transformer_encoder_layer_fwd" for op in run.raw.ops)
    assert torch.equal(run.output, plain(model, x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [True, False])
def test_a_transformer_encoder_with_a_padding_mask(nested: bool) -> None:
    """With the mask its fast path goes through nested tensors, which have no sizes: the output stays the same."""
    model, x = encoder(enable_nested_tensor=nested), torch.randn(2, 5, 8)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    run = Run(model, x, src_key_padding_mask=mask)
    wanted = plain(model, x, src_key_padding_mask=mask)
    assert torch.equal(run.output, wanted)
    assert torch.equal(run.run.recorder.held(run.trace.outputs[0][1]), wanted)


# -- shapes of outputs ------------------------------------------------------------------------------------------------


def keys_of(run: Run, path: str) -> list[int | str]:
    return [s.ref.output for s in run.trace.stages if s.ref.stage == path]


def test_attention_has_two_outputs() -> None:
    """The attended values and the weights; without weights only the first."""
    x = torch.randn(2, 5, 8)
    for need, keys in ((True, [0, 1]), (False, [0])):
        model = Lambda(
            lambda self, x, need=need: self.attention(x, x, x, need_weights=need),
            attention=nn.MultiheadAttention(8, 2, batch_first=True),
        ).eval()
        run = Run(model, x)
        assert keys_of(run, "attention") == keys
        wanted = plain(model, x)
        assert torch.equal(run.held("attention"), wanted[0])


def test_lstm_outputs_have_nested_keys() -> None:
    """``(output, (h, c))`` → 0, "1.0", "1.1"."""
    lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    run = Run(Lambda(lambda self, x: self.lstm(x), lstm=lstm), torch.randn(2, 5, 3))
    assert keys_of(run, "lstm") == [0, "1.0", "1.1"]
    assert [key for key, _ in run.trace.outputs] == [0, "1.0", "1.1"]
    output, (h, c) = run.output
    for key, tensor in ((0, output), ("1.0", h), ("1.1", c)):
        assert torch.equal(run.held("lstm", 0, key), tensor)


@dataclass
class Boxes:
    centres: Tensor
    scores: Tensor | None
    count: int = 3


def test_dictionaries_dataclasses_and_none() -> None:
    """Keys are those of the container; what is no tensor is left out."""
    model = Lambda(
        lambda self, x: {"box": self.box(x), "none": None, "name": "n"},
        box=Lambda(lambda self, x: Boxes(x + 1, None)),
    )
    run = Run(model, torch.randn(3))
    assert keys_of(run, "box") == ["centres"]
    assert [key for key, _ in run.trace.outputs] == ["box.centres"]


def test_a_module_without_outputs_is_no_stage() -> None:
    """None, numbers and empty containers give no stage and no error."""
    for nothing in (None, 3, "text", (), {}):
        model = Lambda(lambda self, x: (self.side(x), x * 2)[1], side=Lambda(lambda self, x, value=nothing: value))
        assert Run(model, torch.randn(3)).refs() == ["/mul#0", "(model)"]


def test_flatten_tensors_names_what_it_finds() -> None:
    """Bare, flat, nested, repeated, and cyclic containers."""
    a, b = torch.zeros(1), torch.ones(1)
    assert flatten_tensors(a) == [(0, a)]
    assert [key for key, _ in flatten_tensors((a, None, [b, {"x": a}]))] == [0, "2.0", "2.1.x"]
    assert [key for key, _ in flatten_tensors({"p": a, 5: b})] == ["p", 5]
    assert flatten_tensors([3, "s", None, {1, 2}]) == []
    cyclic: list[Any] = [a]
    cyclic.append(cyclic)
    assert flatten_tensors(cyclic) == [(0, a)]


# -- control flow -----------------------------------------------------------------------------------------------------


def fallback(self: nn.Module, x: Tensor) -> Tensor:
    try:
        x = self.broken(x)
    except RuntimeError:
        x = x * 2
    return self.after(x) + 1


def test_stages_after_a_caught_exception_are_kept() -> None:
    """A child's failure, handled by its parent, swallows neither the operations nor the modules that follow."""
    model = Lambda(fallback, broken=nn.Linear(9, 3), after=nn.Linear(3, 3))
    run = Run(model, torch.randn(2, 3))
    assert run.refs() == ["/mul#0", "after", "/add#0", "(model)"]
    assert run.stage("after").inputs == (run.stage("/mul#0").value,)
    assert torch.equal(run.output, plain(model, run_input(run)))


def run_input(run: Run) -> Tensor:
    tensor: Tensor = run.run.args[0]
    return tensor


def test_a_caught_exception_deep_inside_a_child() -> None:
    """All that the child left open is closed; the same child may run again."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):
            self.outer(torch.randn(2, 7))
        return self.outer(x)

    model = Lambda(forward, outer=nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.ReLU()))
    run = Run(model, torch.randn(2, 3))
    assert [(s.ref.stage, s.level) for s in run.trace.stages] == [
        ("outer.0.0", "leaf"),
        ("outer.0", "container"),
        ("outer.1", "leaf"),
        ("outer", "container"),
        ("", "container"),
    ]
    assert torch.equal(run.output, plain(model.outer, run_input(run)))


def test_branches_that_depend_on_data() -> None:
    """``item()`` and comparisons work as ever; only what ran is recorded."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.up(x) if x.sum().item() > 0 else self.down(x)

    model = Lambda(forward, up=nn.ReLU(), down=nn.Sigmoid())
    assert "up" in Run(model, torch.ones(3)).refs()
    assert "down" in Run(model, -torch.ones(3)).refs()
    assert {"", "up", "down"} <= set(Run(model, torch.ones(3)).trace.modules)


# -- scripted, traced, custom -----------------------------------------------------------------------------------------


class Scriptable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(x)) + 1


@pytest.mark.parametrize("make", ["script", "trace"])
def test_scripted_and_traced_modules_are_recorded(make: str) -> None:
    """Nothing raises, the numbers stay, and their operations are seen."""
    x = torch.randn(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(Scriptable()) if make == "script" else torch.jit.trace(Scriptable(), x)
    model = Lambda(lambda self, x: self.inner(self.pre(x)) * 2, pre=nn.ReLU(), inner=module).eval()
    run = Run(model, x)
    assert torch.equal(run.output, plain(model, x))
    assert {"addmm", "sigmoid", "add"} <= {op.name for op in run.raw.ops}
    assert run.stage("inner").inputs == (run.stage("pre").value,)
    assert run.stage("/mul#0").inputs == (run.stage("inner").value,)


def test_a_scripted_model_can_be_the_root() -> None:
    """There too its operations are seen and its output has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(Scriptable()).eval()
    run = Run(model, torch.randn(2, 3))
    assert len(run.trace.outputs) == 1
    assert {"addmm", "sigmoid"} <= {op.name for op in run.raw.ops}


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 2


@pytest.mark.parametrize("gradients", [False, True])
def test_custom_autograd_functions_are_seen(gradients: bool) -> None:
    """Their operations are recorded, and the data flow through them is not lost."""
    model = Lambda(lambda self, x: self.last(Double.apply(self.fc(x))), fc=nn.Linear(3, 3), last=nn.ReLU())
    x = torch.randn(2, 3)
    recorder = Recorder(model)
    with torch.set_grad_enabled(gradients), recorder:
        output = recorder.run(x)
    trace = recorder.trace
    assert "mul" in [op.name for op in trace.ops]
    assert torch.equal(output, model(x))
    assert trace.values[trace.outputs[0][1]].dynamic


def test_custom_functions_are_edges() -> None:
    """The module behind one reads what it made."""
    model = Lambda(lambda self, x: self.last(Double.apply(self.fc(x))), fc=nn.Linear(3, 3), last=nn.ReLU())
    run = Run(model, torch.randn(2, 3))
    assert run.stage("/mul#0").inputs == (run.stage("fc").value,)
    assert run.stage("last").inputs == (run.stage("/mul#0").value,)


def test_sparse_tensors_inside_a_model() -> None:
    """They have no storage to look at; nothing raises and the edges stay."""
    model = Lambda(lambda self, x: self.fc(torch.sparse.mm(x.relu().to_sparse(), x)), fc=nn.Linear(4, 4))
    x = torch.randn(4, 4)
    run = Run(model, x)
    assert torch.equal(run.output, plain(model, x))
    assert run.raw.values[run.stage("fc").value].dynamic
    assert run.stage("fc").inputs


# -- data flow --------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.side = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.second(self.first(x))
        side = self.side(x)
        return (x + branch) * side


def test_a_residual_add_reads_its_two_producers() -> None:
    """Not the stage that happened to run just before it."""
    run = Run(Residual(), torch.randn(2, 4))
    assert run.stage("/add#0").inputs == (run.stage("stem").value, run.stage("second").value)
    assert run.stage("/mul#0").inputs == (run.stage("/add#0").value, run.stage("side").value)
    assert run.stage("").inputs == (run.trace.inputs[0][1],)


def test_stages_are_in_a_topological_order() -> None:
    """No stage comes before one that it reads from."""
    run = Run(Mixed().eval(), torch.randn(1, 3, 16, 16))
    place: dict[int, int] = {}
    for number, stage in enumerate(run.trace.stages):
        place.setdefault(stage.value, number)
    assert any(i in place for stage in run.trace.stages for i in stage.inputs)
    for number, stage in enumerate(run.trace.stages):
        assert all(place[i] <= number for i in stage.inputs if i in place)


def test_weights_and_constants_are_no_inputs() -> None:
    """Only what depends on the run's inputs is an edge."""

    fixed = torch.ones(3)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.fc(x) + torch.arange(3) * fixed

    run = Run(Lambda(forward, fc=nn.Linear(3, 3)), torch.randn(2, 3))
    assert run.stage("/add#0").inputs == (run.stage("fc").value,)
    assert "/mul#0" not in run.refs()
    kinds = {value.kind for value in run.raw.values}
    assert kinds == {"input", "weight", "constant", "op"}


def test_reshaping_makes_no_stage_and_keeps_the_flow() -> None:
    """Views between two modules are walked through by ``parents``."""
    model = Lambda(lambda self, x: self.b(self.a(x).view(2, 2, 3).transpose(0, 1)), a=nn.Linear(3, 3), b=nn.ReLU())
    run = Run(model, torch.randn(4, 3))
    assert run.refs() == ["a", "b", "(model)"]
    (value,) = run.stage("b").inputs
    while value != run.stage("a").value:
        (value,) = run.trace.parents[value]


@pytest.mark.parametrize("idle", [nn.Dropout(), nn.Identity()], ids=["dropout", "identity"])
def test_a_module_that_hands_its_input_on_is_an_alias(idle: nn.Module) -> None:
    """It is listed after the stage that made the value, and names it; that stage is nobody's alias."""
    run = Run(nn.Sequential(nn.Linear(3, 3), idle, nn.ReLU()).eval(), torch.randn(2, 3))
    assert run.refs() == ["0", "1", "2", "(model)"]
    assert run.stage("1").value == run.stage("0").value
    assert run.stage("0").alias_of is None
    assert run.stage("1").alias_of == StageRef("0", 0, 0)


def test_handing_on_the_model_s_input_is_an_alias_of_the_input() -> None:
    """An Identity in front has no producer to name."""
    run = Run(nn.Sequential(nn.Identity(), nn.ReLU()), torch.randn(3))
    assert run.stage("0").alias_of == StageRef("(input)", 0, 0)


def test_a_container_is_an_alias_of_its_last_child() -> None:
    """The same value, but inputs of its own."""
    run = Run(nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())), torch.randn(2, 3))
    block = run.stage("1")
    assert (block.level, block.alias_of) == ("container", StageRef("1.1", 0, 0))
    assert block.inputs == (run.stage("0").value,)
    assert run.stage("1.1").inputs == (run.stage("1.0").value,)


def test_keyword_inputs_have_their_names() -> None:
    """Positional ones go by number."""
    run = Run(Lambda(lambda self, x, *, scale: x * scale), torch.ones(3), scale=torch.ones(3))
    assert [key for key, _ in run.trace.inputs] == [0, "scale"]
    assert run.stage("/mul#0").inputs == tuple(value for _, value in run.trace.inputs)


# -- to numpy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "bool", "int64"])
def test_tensors_become_arrays_of_the_same_dtype(dtype: str) -> None:
    """Value for value, scalars and views of any layout included."""
    tensor = (torch.randn(4, 6) * 3).to(getattr(torch, dtype))
    for view in (tensor, tensor.t(), tensor[1:, ::2], tensor[0, 0]):
        array = to_numpy(view)
        assert array.dtype.name == dtype_name(tensor.dtype) == dtype
        assert array.shape == tuple(view.shape)
        assert np.array_equal(array.astype(np.float64), view.to(torch.float64).numpy())


def test_conjugated_and_quantized_tensors_become_arrays() -> None:
    """Lazy conjugates are worked out, and complex numbers are pairs; quantised values are their numbers."""
    z = torch.randn(3, dtype=torch.complex64)
    assert np.array_equal(to_numpy(z.conj()), np.stack([z.numpy().real, -z.numpy().imag], axis=-1))


# -- one file, old interpreters ---------------------------------------------------------------------------------------


def source() -> ast.Module:
    return ast.parse(pathlib.Path(recorder_file.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_file_is_python_3_8() -> None:
    """It is carried to machines with old interpreters."""
    assert source().body


def test_the_file_stands_alone() -> None:
    """It imports the standard library, torch and numpy; nothing of this package, not even inside functions."""
    found = set()
    for node in ast.walk(source()):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").partition(".")[0])
    assert {"torch", "numpy"} == found - set(sys.stdlib_module_names)


class Bodies(nn.Module):
    """Control flow given as functions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        """(3, 4) -> by kind."""
        if self.kind == "cond":
            return torch.cond(x.sum() > 100, torch.sin, lambda t: self.inner(t).relu(), (x,))
        if self.kind == "nested":
            once = lambda t: torch.cond(t.sum() > 100, torch.sin, self.inner, (t,))  # noqa: E731
            return torch.cond(x.sum() > 100, torch.sin, once, (x,))
        start = torch.zeros((), dtype=torch.int64)
        if self.kind == "while_loop":
            return torch.while_loop(lambda i, _: i < 2, lambda i, t: (i + 1, self.inner(t)), (start, x))[1]
        if self.kind == "map":
            return importlib.import_module("torch._higher_order_ops.map").map(self.inner, x)
        scan = importlib.import_module("torch._higher_order_ops.scan").scan
        return scan(lambda carry, row: (carry + row, carry * row), x[0], x)[1] + self.inner(x)


@pytest.mark.parametrize(
    ("kind", "body", "calls"),
    [
        ("cond", "cond", 1),
        ("nested", "cond", 1),
        ("while_loop", "while_loop", 2),
        ("map", "map_impl", 3),
        ("scan", "scan", 1),
    ],
)
def test_bodies_of_higher_order_operators(kind: str, body: str, calls: int) -> None:
    """Modules called in a body are seen, operations come as they do elsewhere, and know the body that they ran in."""
    module, x = Bodies(kind).eval(), torch.randn(3, 4)
    expected = plain(module, x)
    run = Run(module, x)
    assert torch.equal(expected, run.output)
    frames = [frame for frame in run.raw.frames if frame.path == "inner"]
    assert calls == len(frames)
    linear = [op for op in run.raw.ops if op.frame == frames[0].index]
    assert "addmm" in [op.name for op in linear]
    assert {body} == {op.body for op in run.raw.ops} - {None}
    assert (None if kind == "scan" else body) == linear[0].body


def test_bodies_are_compiled_again_afterwards() -> None:
    """What the recorder replaces in torch is back after the run, also after an error."""
    utils = importlib.import_module("torch._higher_order_ops.utils")
    own = utils._hop_compile_and_call
    with contextlib.suppress(ZeroDivisionError), Recorder(nn.Identity()):
        assert utils._hop_compile_and_call is not own
        raise ZeroDivisionError
    assert utils._hop_compile_and_call is own


def test_bodies_that_torch_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch compiles the bodies all the same, their operations are recorded, and the modules inside are not."""
    monkeypatch.setattr(recorder_file, "_plain_bodies", contextlib.nullcontext)
    module, x = Bodies("cond").eval(), torch.randn(3, 4)
    expected = plain(module, x)
    run = Run(module, x)
    assert torch.equal(expected, run.output)
    assert ["addmm", "relu"] == [op.name for op in run.raw.ops if op.body and op.name in ("addmm", "relu")]


def test_a_root_of_torchs_own_has_no_line() -> None:
    """What calls the model is not a line of the model."""
    recorder: Recorder = Recorder(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with recorder:
        recorder.run(torch.ones(1, 2))
    assert [None, None] == [frame.source for frame in recorder.trace.frames if frame.path]


def test_recording_does_not_import_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch would, at the first operation that a mode sees; where it is there already, handlers stay away from it."""

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        @spare_compiler
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch._dynamo", None)  # importing it raises
        with Seen() as without:
            torch.ones(2) + 1
    importlib.import_module("torch._dynamo")

    with Seen() as beside:
        torch.ones(2) + 1
    assert ["ones.default", "add.Tensor"] == without.names == beside.names
    assert Seen.__torch_dispatch__.__wrapped__.__dynamo_disable.__module__.startswith("torch._dynamo")  # type: ignore[attr-defined]
