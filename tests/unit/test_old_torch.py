"""What a version of PyTorch lacks is found out by looking for it; here it is taken away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bisect_tool.backends import checkpoints, compiled, exporting, files, models, torch_switches, versions
from bisect_tool.backends.exporting import ExportSettings, default_exporter, export_onnx, exporter_note
from bisect_tool.backends.torch_switches import applied, snapshot
from bisect_tool.errors import EXIT_INCONCLUSIVE, BisectError, InconclusiveError
from bisect_tool.records import NumericConfig


@pytest.fixture
def old_export(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``torch.onnx.export`` as torch 2.0 has it; the files that it wrote."""
    real = torch.onnx.export
    written: list[str] = []

    def export(
        model: Any,
        args: Any,
        f: str,
        training: Any = None,
        input_names: Any = None,
        opset_version: int | None = None,
        do_constant_folding: bool = True,
        dynamic_axes: Any = None,
    ) -> None:
        written.append(f)
        given = {"training": training, "input_names": input_names, "opset_version": opset_version}
        real(model, args, f, dynamo=False, do_constant_folding=do_constant_folding, dynamic_axes=dynamic_axes, **given)

    monkeypatch.setattr(torch.onnx, "export", export)
    return written


def test_torchscript_is_the_exporter_where_there_is_no_other(old_export: list[str], tmp_path: Path) -> None:
    """By default, with a note; the other one asked for by name is refused with a way out."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    assert "torchscript" == default_exporter() == ExportSettings().exporter
    export_onnx(model, (torch.ones(1, 3),), {}, tmp_path / "m.onnx", ExportSettings())
    assert [str(tmp_path / "m.onnx")] == old_export
    assert ["Gemm", "Relu"] == [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "torchscript exporter" in exporter_note(model)[0]
    with pytest.raises(BisectError, match="has no dynamo exporter") as caught:
        export_onnx(model, (torch.ones(1, 3),), {}, tmp_path / "n.onnx", ExportSettings("dynamo"))
    assert "--exporter torchscript" in str(caught.value.hint)


def test_dynamo_is_the_exporter_where_it_is_there() -> None:
    """And nothing is said about it."""
    assert exporting.has_dynamo() and "dynamo" == ExportSettings().exporter
    assert () == exporter_note(nn.Identity())


def test_no_dynamo_without_onnxscript(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter cannot run without it."""
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    assert "torchscript" == default_exporter()


@pytest.fixture
def old_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches of torch 2.0: no fast path of attention to switch, three kernels of attention."""
    monkeypatch.delattr(torch.backends.mha, "get_fastpath_enabled")
    cuda = torch.backends.cuda
    for name in ("cudnn_sdp_enabled", "enable_cudnn_sdp", "preferred_blas_library"):
        monkeypatch.delattr(cuda, name)
    monkeypatch.delattr(cuda, "fp16_bf16_reduction_math_sdp_allowed")
    monkeypatch.delattr(cuda, "allow_fp16_bf16_reduction_math_sdp")
    monkeypatch.setattr(torch_switches, "_has_fp32_precision", lambda: False)


@pytest.mark.usefixtures("old_switches")
def test_switches_work_without_what_came_later() -> None:
    """What is there is set, read back and restored."""
    before = snapshot()
    switches: Mapping[str, Any] = {"deterministic_algorithms": True, "sdpa_kernel": "math"}
    with applied(NumericConfig("torch", switches=switches)) as effective:
        assert dict(switches) == {name: effective[name] for name in switches}
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cuda.flash_sdp_enabled()
    assert before == snapshot()
    assert before["mha_fastpath"] is None and "default" == before["sdpa_kernel"]


@pytest.mark.filterwarnings("ignore:torch.(get|is)_autocast:DeprecationWarning")
def test_autocast_is_read_by_the_older_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has its own there, and the plain one is of CUDA."""
    enabled = torch.is_autocast_enabled
    with torch.autocast("cpu", torch.bfloat16), monkeypatch.context() as patch:
        patch.delattr(torch, "get_autocast_dtype")
        patch.setattr(torch, "is_autocast_enabled", lambda: enabled("cuda"))
        assert (True, torch.bfloat16) == torch_switches._autocast_state("cpu")
        assert (False, torch.float16) == torch_switches._autocast_state("cuda")


@pytest.mark.usefixtures("old_switches")
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("mha_fastpath", False, "has no switch mha_fastpath"),
        ("mkldnn_conv_fp32_precision", "bf16", "has no switch mkldnn_conv_fp32_precision; it came with PyTorch 2.9"),
    ],
)
def test_a_switch_that_is_not_there_is_told(name: str, value: Any, text: str) -> None:
    """Inconclusive: nothing was run otherwise than asked for."""
    with (
        pytest.raises(InconclusiveError, match=text) as caught,
        applied(NumericConfig("torch", switches={name: value})),
    ):
        raise AssertionError("not reached")
    assert EXIT_INCONCLUSIVE == caught.value.exit_code


def test_checkpoints_without_a_list_of_safe_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tensors are read; what is more is refused, never unpickled."""
    monkeypatch.delattr(torch.serialization, "safe_globals")
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    assert torch.equal(torch.ones(2), files.read_torch(tmp_path / "a.pt", "checkpoint")["w"])
    torch.save({"w": np.ones(2)}, tmp_path / "b.pt")
    with pytest.raises(BisectError, match="cannot be read without running code"):
        files.read_torch(tmp_path / "b.pt", "checkpoint")


def test_weights_go_into_modules_that_cannot_replace_theirs() -> None:
    """``load_state_dict`` of older versions takes no ``assign``."""

    class Old(nn.Linear):
        def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:  # type: ignore[override]
            return super().load_state_dict(state_dict, strict)

    module = Old(2, 1)
    checkpoints.apply_checkpoint(module, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "c.pt")
    assert torch.equal(torch.ones(1, 2), module.weight)


def test_exported_programs_need_a_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its absence is told, and not as a damaged file."""
    torch.export.save(torch.export.export(nn.Linear(2, 1).eval(), (torch.ones(1, 2),)), tmp_path / "p.pt2")
    monkeypatch.delattr(torch.export, "load")
    with pytest.raises(BisectError, match="reads none"):
        models.load_model(str(tmp_path / "p.pt2"))


def test_models_run_without_a_compiler_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compiler`` came after ``torch.compile``."""
    monkeypatch.delattr(torch, "compiler")
    with compiled.eagerly():
        assert torch.compile(len) is len


def test_a_numpy_that_torch_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install."""
    versions.require_shared_memory()

    def fail(array: Any) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", fail)
    with pytest.raises(BisectError, match="does not work with numpy") as caught:
        versions.require_shared_memory()
    assert "numpy<2" in str(caught.value.hint)
