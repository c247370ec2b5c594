"""What is found before a run, and what is said when forward raises."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bisect_tool.backends.before import look_before
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.preflight import Finding, errors_of, explain_forward_error, preflight

X = torch.ones(2, 3)


def found(module: nn.Module, *args: Any, **kwargs: Any) -> list[Finding]:
    return preflight(module.eval(), args, kwargs)


def only(findings: list[Finding]) -> tuple[str, str]:
    (finding,) = findings
    return finding.severity, finding.text


def test_sound_models_have_no_findings() -> None:
    """Common layers, also recurrent and weight-normalized ones, which keep tensors of their own, raise no alarm."""
    module = nn.Sequential(
        nn.Linear(3, 4),
        nn.BatchNorm1d(4),
        nn.Dropout(),
        nn.InstanceNorm1d(4),
        nn.LSTM(4, 2),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.utils.spectral_norm(nn.Linear(2, 2)),
        nn.MultiheadAttention(4, 2),
    )
    module.register_buffer("mask", torch.full((2, 2), float("-inf")))
    assert found(module, X, torch.ones(1, dtype=torch.int64)) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 2, 2, bidirectional=True, proj_size=1),
        lambda: nn.GRU(3, 2),
        lambda: nn.utils.weight_norm(nn.LSTM(3, 2), "weight_hh_l0"),
        lambda: nn.utils.parametrizations.weight_norm(nn.GRU(3, 2), "weight_ih_l0"),
        lambda: prune.l1_unstructured(nn.LSTM(3, 2), "weight_hh_l0", 0.5),
        lambda: nn.utils.weight_norm(nn.Linear(3, 2)),
        lambda: nn.utils.remove_weight_norm(nn.utils.weight_norm(nn.Linear(3, 2))),
        lambda: nn.utils.parametrize.remove_parametrizations(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "weight"
        ),
        lambda: nn.utils.spectral_norm(nn.Linear(3, 2)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)),
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3),
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 2),
        lambda: torch.compile(nn.LSTM(3, 2)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_itself_keeps_beside_the_parameters_is_no_finding(make: Callable[[], nn.Module]) -> None:
    """Lists of weights, and weights computed from others, are torch's doing; the user's own tensor still is one."""
    module = nn.Sequential(make())
    assert found(module, X) == []
    module.anchors = torch.ones(4)
    assert "buffers: anchors float32[4];" in only(found(module, X))[1]


def test_modules_that_stay_in_training_mode_are_named() -> None:
    """A train() that leaves a part out is noticed, and active dropout is told apart from the rest."""

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.drop = nn.Dropout()

        def train(self, mode: bool = True) -> Stubborn:
            self.training = mode
            return self

    texts = [finding.text for finding in found(Stubborn(), X)]
    assert any(text.startswith("dropout still active after eval(): drop;") for text in texts)
    assert any(text.startswith("still in training mode after eval(): norm;") for text in texts)


def test_batch_statistics_in_eval_mode_are_named() -> None:
    """Batch normalization without running statistics is a warning; instance normalization is none."""
    module = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3))
    severity, text = only(found(module, X))
    assert severity == "warning"
    assert "without running statistics: 0;" in text


def test_mixed_devices_are_an_error_that_names_each() -> None:
    """Parameters, plain attributes and inputs on other devices are listed under their device."""
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].scale = torch.ones(3, device="meta")
    findings = found(module, X)
    assert findings[0].severity == "error"
    assert "cpu: 0.weight, 0.bias, input 0" in findings[0].text
    assert "meta: 0.scale" in findings[0].text


def test_inputs_on_another_device_are_named_by_key() -> None:
    """An input inside a dictionary has its key in the message."""
    severity, text = only(found(nn.Linear(3, 3), batch={"points": X.to("meta")}))
    assert severity == "error"
    assert "meta: input batch.points" in text


def test_weights_without_data_are_an_error() -> None:
    """A model on the meta device, and one with lazy layers, cannot be run."""
    with torch.device("meta"):
        module = nn.Linear(3, 3)
    assert "no data (device meta): weight, bias" in only(found(module))[1]
    severity, text = only(found(nn.LazyLinear(3), X))
    assert severity == "error"
    assert "without a shape yet: weight, bias" in text


def test_plain_tensor_attributes_are_named_also_in_containers() -> None:
    """Tensors that are neither parameters nor buffers are a warning with register_buffer as the remedy."""
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].anchors = torch.ones(4)
    module[0].table = {"a": [torch.ones(1), torch.ones(2)]}
    module[0].alias = [module[0].weight]
    severity, text = only(found(module, X))
    assert severity == "warning"
    assert "0.anchors float32[4], 0.table['a'][0] float32[1], 0.table['a'][1] float32[2];" in text
    assert "register_buffer" in text


def test_modules_in_plain_lists_are_named() -> None:
    """Layers that torch does not know of are a warning with ModuleList as the remedy."""
    module = nn.Sequential(nn.Linear(3, 3))
    module.heads = [nn.Linear(3, 1)]
    severity, text = only(found(module, X))
    assert severity == "warning"
    assert "modules in plain containers: heads[0];" in text


def test_modules_of_an_exported_program_are_not_called_loose() -> None:
    """What torch keeps in them beside their weights is no fault of the model."""
    program = torch.export.export(nn.Sequential(nn.Linear(3, 3), nn.GELU()), (X,))
    assert [] == found(torch.export.unflatten(program), X)


def test_non_finite_weights_are_counted() -> None:
    """NaN and infinity in parameters, and in running statistics, are counted by tensor."""
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        module[0].weight[0] = float("nan")
        module[0].bias[1] = float("inf")
        module[1].running_var[0] = float("inf")
    severity, text = only(found(module, X))
    assert severity == "warning"
    assert text.endswith("0.weight (3), 0.bias (1), 1.running_var (1)")


def test_a_file_with_the_models_own_infinities_does_not_hide_them(tmp_path: Path) -> None:
    """Weights that are found equal are not read twice, unless they may hold one."""
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    with torch.no_grad():
        module[2].weight[2, 1] = float("inf")
    path = tmp_path / "model.onnx"
    export_onnx(module, (X,), {}, path, ExportSettings("dynamo", None, True))
    (finding,) = look_before(module, OnnxProgram(load_onnx(path), path))
    assert finding.severity == "suspicion"
    assert finding.text == "the model's weights hold NaN or infinities: 2.weight (1)"


def test_inputs_of_another_dtype_are_an_error_naming_both() -> None:
    """Half-precision weights do not take a float32 input; integers and a fitting model raise nothing."""
    severity, text = only(found(nn.Linear(3, 3).half(), X, torch.ones(1, dtype=torch.int64)))
    assert severity == "error"
    assert text.startswith("input 0 is float32, but the weights are float16 (such as weight)")
    assert found(nn.Linear(3, 3).half(), X.half()) == []


def test_one_input_of_another_dtype_beside_a_fitting_one_is_a_warning() -> None:
    """It may be meant, so the run is not stopped."""
    severity, text = only(found(nn.Linear(3, 3), X, times=X.double()))
    assert severity == "warning"
    assert "input times is float64" in text


def raised(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[BaseException, list[str], str]:
    with pytest.raises(Exception) as caught:
        module(*args, **kwargs)
    error = explain_forward_error(caught.value, module, args, kwargs)
    assert error.exit_code == 2
    return caught.value, error.message.splitlines(), str(error.hint)


def test_forward_errors_name_the_deepest_module_and_the_inputs() -> None:
    """Two lines: the module with torch's reason, and what it was given; the hint speaks of shapes."""
    module = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 6)))
    _, lines, hint = raised(module, X)
    assert len(lines) == 2
    assert lines[0].startswith("forward failed in 0.1 (Linear")
    assert "mat1 and mat2 shapes cannot be multiplied" in lines[0]
    assert lines[1] == "  given: float32[2, 3]"
    assert "shapes" in hint


def test_floating_indices_are_the_ones_named() -> None:
    """Beside them there are inputs of whole numbers, which are right."""

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.table(ids) * mask.unsqueeze(-1)

    _, _, hint = raised(Lookup(), torch.ones(2, 4), mask=torch.ones(2, 4, dtype=torch.int64))
    assert hint == "input 0 is float32, and indices are whole numbers (int64): convert the sample"


def test_forward_errors_of_the_users_own_code_name_the_line() -> None:
    """An exception in a user's forward shows the file and line, and keywords by their names."""

    class Broken(nn.Module):
        def forward(self, x: Any) -> Any:
            return {}[x.shape[0]]

    _, lines, _ = raised(nn.ModuleDict({"a": Broken()})["a"], x=X)
    assert f"forward failed in the model (Broken, {Path(__file__).name}:" in lines[0]
    assert "KeyError: 2" in lines[0]
    assert lines[1] == "  given: x=float32[2, 3]"


@pytest.mark.parametrize(
    ("make", "args", "hint"),
    [
        (nn.Module, (X,), "no forward()"),
        (lambda: nn.Linear(3, 3).half(), (X,), "input 0 is float32, but the weights are float16"),
        (lambda: nn.Linear(3, 3), (X, X), "by position"),
        (lambda: nn.Embedding(2, 2), (torch.tensor([5]),), "values"),
    ],
)
def test_hints_fit_the_reason(make: Callable[[], nn.Module], args: tuple[Any, ...], hint: str) -> None:
    """A missing forward, a wrong dtype, too many inputs and bad values each get their own remedy."""
    assert hint in raised(make(), *args)[2]


def test_long_reasons_are_trimmed_to_one_line() -> None:
    """Torch's paragraphs, and TorchScript's own traceback, become one line with the reason in it."""

    class Wordy(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("first " + "long " * 200 + "\nsecond")

    _, lines, _ = raised(Wordy(), X)
    assert len(lines) == 2
    assert len(lines[0]) < 400
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 2)))
    _, lines, _ = raised(scripted, X)
    assert "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x2)" in lines[0]


def test_a_model_that_converts_its_inputs_itself(tmp_path: Path) -> None:
    """What would not fit and runs all the same is a note, and no error."""

    class Converts(nn.Module):
        def __init__(self, converts: bool) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2).bfloat16()
            self.converts = converts

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x.bfloat16() if self.converts else x)
            return y

    for converts in (True, False):
        model, args = Converts(converts).eval(), (torch.ones(1, 2),)
        findings = preflight(model, args, {})
        assert ["error"] == [finding.severity for finding in findings]
        assert converts == (errors_of(findings, model, args, {}) == [])
