"""The scripts that write docs/corpus.md and docs/noise-floor.md: what they measure, and how they count it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import corpus_nets
import corpus_run
import noise_floor_page
import noise_floor_run
from noise_floor_page import REPLAYED, Constants, cleared_by, ratio
from noise_floor_run import Stage

from bisect_tool.noise import BEYOND, epsilon

EPS = epsilon("float32")


def _stage(**values: float | tuple[float, ...] | bool | str) -> Stage:
    return Stage("zoo", "m", "dynamo", "sum", "float32", 64, **{"norm": 1.0, **values})  # type: ignore[arg-type]


def _small() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return nn.Sequential(nn.Linear(16, 16), nn.Sigmoid(), nn.LayerNorm(16)).eval(), (torch.randn(4, 16),)


def test_a_healthy_network_agrees() -> None:
    """A result says what the report says."""
    result = corpus_run.judge("small", "torchscript", *_small())
    assert ("agrees", "agrees", "agrees") == (result.status, result.off, result.all)
    assert (3, 3, 3) == (result.aligned, result.stages, result.settled + result.measured)


def test_a_network_that_is_not_exported_says_why() -> None:
    """An exporter's refusal is no answer of the tool's."""

    class Refused(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.expm1(x)

    result = corpus_run.judge("refused", "torchscript", Refused(), (torch.randn(3),))
    assert "no export" == result.status
    assert "expm1" in result.why


def test_stubs_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else takes a stub for a package."""
    monkeypatch.setattr(corpus_nets, "_STUBS", ("no_such_package",))
    with corpus_nets.stubs():
        assert 3 == importlib.import_module("no_such_package.part").anything(3)
    with pytest.raises(ImportError):
        importlib.import_module("no_such_package")


def test_inputs_are_realistic_and_frozen() -> None:
    """The photograph has contrast, the sound has no silence, and the spectrogram is one."""
    assert corpus_nets.photograph(24, 24).std() > 20
    assert abs(corpus_nets.sound(4000)).max() > 0.05
    spectrogram = corpus_nets.mel_spectrogram(corpus_nets.sound(16000))
    assert (1, 98, 40) == tuple(spectrogram.shape)
    assert bool((spectrogram >= 0).all()) and bool(spectrogram.isfinite().all())


def test_every_stage_is_measured() -> None:
    """Nothing is settled by the cheap bound, and the tool is as it was afterwards."""
    from bisect_tool.backends import floors

    before = floors.is_settled, floors.stage_noise
    stages, run = noise_floor_run.measure("zoo", "small", "torchscript", lambda: (*_small(), {}))
    assert before == (floors.is_settled, floors.stage_noise)
    assert "agrees" == run.status
    assert 3 == len(stages)
    assert all(stage.same or (stage.norm > 0 and stage.strict > 0) for stage in stages)


@pytest.mark.parametrize(
    ("stage", "by"),
    [
        (_stage(same=True), "same bits"),
        (_stage(unknown="dropout draws random numbers"), "unknown"),
        (_stage(local=10 * EPS, actual=10 * EPS), "cheap bound"),
        (_stage(local=20 * EPS, actual=20 * EPS, strict=10 * EPS), "strict float32"),
        (_stage(local=20 * EPS, actual=2 * EPS), "eps"),
        (_stage(local=20 * EPS, actual=20 * EPS, draws=(1 * EPS, 9 * EPS)), "made-up rounding"),
        (_stage(local=20 * EPS, actual=20 * EPS, draws=(1 * EPS, 1 * EPS, 1 * EPS, 9 * EPS)), "blamed"),
    ],
)
def test_what_clears_a_stage(stage: Stage, by: str) -> None:
    """The terms in the tool's order; draws beyond the tool's number do not count."""
    assert by == cleared_by(stage, Constants())


def test_the_larger_side_counts() -> None:
    """A side that is far off is not hidden by one that is right."""
    stage = _stage(local=1.0, expected=8 * EPS, actual=2 * EPS)
    assert 8 == pytest.approx(ratio(stage))
    assert 2 == pytest.approx(ratio(stage, side="actual"))
    assert ratio(stage) > BEYOND and "blamed" == cleared_by(stage, REPLAYED)


def test_pages_are_made_of_little(tmp_path: Path) -> None:
    """A few stages make a page and a plot."""
    stages = [_stage(local=2 * EPS, actual=n * EPS / 8, expected=EPS / 3, strict=EPS / 3) for n in range(1, 30)]
    runs = [noise_floor_run.Run("zoo", "m", "dynamo", "agrees", (1.0, 1.2))]
    assert "| BEYOND |" in noise_floor_page.page(stages, runs)
    noise_floor_page.plot(stages, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size < 200_000
    results = [
        corpus_run.Result("bert", "dynamo", "agrees", 3, 3, 1.0, 1e-7, "agrees", "agrees", 2, 1, 0, 1.5, (), 2.0)
    ]
    assert "| bert | transformers | dynamo | 3/3 | 100% |" in corpus_run.page(results)


def test_the_page_of_shipped_files_tells_the_file_from_the_weights() -> None:
    shipped = [net for net in corpus_nets.NETS.values() if net.file is not None]
    results = [
        corpus_run.Result(net.name, corpus_run.SHIPPED, net.expected, expected=net.expected, held="13/13")
        for net in shipped
    ]
    page = corpus_run.page(results)
    assert "| silero_vad.onnx | jit |  | 13/13 | agrees | agrees |" in page
    assert page.count(".onnx | safetensors |") == 6
    assert "of these with the right verdict | 12 |" in page


def test_what_a_shipped_file_holds_is_found_without_the_tool(tmp_path: Path) -> None:
    """The right verdict rests on plain runs and on the weights themselves, those inside of bodies included."""
    torch.manual_seed(0)
    module = nn.Linear(4, 4).eval()
    weight, bias = (numpy_helper.from_array(p.detach().numpy(), name) for name, p in module.named_parameters())
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in (weight, bias)]
    inside = helper.make_node("Gemm", ["input", "weight", "bias"], ["inner"], transB=1)
    body = helper.make_graph([*constants, inside], "body", [], [helper.make_tensor_value_info("inner", 1, [2, 4])])
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body)
    given, made = (helper.make_tensor_value_info(name, 1, [2, 4]) for name in ("input", "y"))
    model = helper.make_model(
        helper.make_graph([yes, choice], "g", [given], [made]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "m.onnx")
    apart, held = corpus_run.outside(module, (torch.randn(2, 4),), tmp_path / "m.onnx")
    assert apart < 1e-6 and "2/2" == held
    apart, held = corpus_run.outside(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), tmp_path / "m.onnx")
    assert apart > corpus_run.SAME and "0/2" == held
