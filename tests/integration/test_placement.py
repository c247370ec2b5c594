"""A session that was to run on another device, and whose nodes sit on the CPU, never passes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import nn

from bisect_tool.backends import ort_options, ort_runner
from bisect_tool.backends.ort_options import CPU, CUDA, PlacedNode
from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import ConfigPair, ConfigRun, NumericConfig
from bisect_tool.tolerances import make_tolerance

ASK = "get_provider_graph_assignment_info"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary ones are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for CUDA gets the CPU, and no word of it: what ONNX Runtime does with nodes without a kernel."""
    monkeypatch.setattr(ort_options, "providers", lambda config: [(CPU, {})])


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions like those before 1.24, which cannot be asked where their nodes are."""
    for owner in ort.InferenceSession.__mro__:
        if ASK in vars(owner):
            monkeypatch.delattr(owner, ASK)
    assert not hasattr(ort.InferenceSession, ASK)


def cuda_run(optimization: str = "all", *, scale: float = 1.0) -> ConfigRun:
    """What becomes of a pair whose ONNX side is asked to run on CUDA; with ``scale`` it diverges."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval()
    pairs = (
        ConfigPair("cpu", NumericConfig("torch"), NumericConfig("onnxruntime", optimization="off")),
        ConfigPair(
            "cuda", NumericConfig("torch"), NumericConfig("onnxruntime", device="cuda", optimization=optimization)
        ),
    )
    options = Options(
        make_tolerance(None, None, None) if scale == 1 else make_tolerance(1e-12, None, None), pairs=pairs
    )
    report = bisect(LoadedCase("one", module, (torch.randn(5, 6),), {}), options)
    assert ("inconclusive" if scale == 1 else "diverges") == report.verdict.status
    return report.configs[1]


@pytest.mark.skipif(not hasattr(ort.InferenceSession, ASK), reason="needs 1.24")
def test_session_tells() -> None:
    """Whether or not one looks at what is in effect, the session is asked where its nodes are."""
    run = cuda_run()
    assert ("failed", True) == (run.status, "nodes ran on the CPU: " in str(run.skipped_reason))


@pytest.mark.parametrize("optimization", ["off", "all"])
def test_profile_tells(optimization: str, temporary: Path, silent: None) -> None:
    """Older sessions do not tell: a real profile does, and leaves nothing behind."""
    run = cuda_run(optimization)
    assert "failed" == run.status
    assert "nodes ran on the CPU: " in str(run.skipped_reason) and "Gemm" in str(run.skipped_reason)
    assert {CPU} == run.effective["actual"]["placement"].keys()
    assert [] == [path.name for path in temporary.rglob("*")]


def test_nothing_tells(temporary: Path, silent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that agrees on nobody knows which device is no pass; its outputs are there all the same."""
    monkeypatch.setattr(ort_runner, "placed_nodes_of_profile", lambda path: None)
    run = cuda_run()
    assert "failed" == run.status
    assert str(run.skipped_reason).startswith("node placement unknown")
    assert "placement" not in run.effective["actual"]
    assert ["pass"] == [output.judgement for output in run.outputs]
    assert [] == [path.name for path in temporary.rglob("*")]


def test_divergence_is_one_wherever_it_ran(silent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs is not made inconclusive by not knowing where."""
    monkeypatch.setattr(ort_runner, "placed_nodes_of_profile", lambda path: None)
    assert "diverges" == cuda_run(scale=2.0).status


@pytest.mark.parametrize(
    ("on_cpu", "status"),
    [
        ((), "agrees"),
        ((PlacedNode("shape", "Shape", CPU), PlacedNode("gather", "Gather", CPU)), "agrees"),
        ((PlacedNode("gather", "Gather", CPU, floating=True),), "failed"),
        ((PlacedNode("atan", "Atan", CPU),), "failed"),
    ],
)
def test_what_may_stay_on_the_cpu(
    on_cpu: tuple[PlacedNode, ...], status: str, silent: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computations of shapes, which ONNX Runtime puts there on purpose, and nothing else."""
    nodes = (PlacedNode("gemm", "Gemm", CUDA), *on_cpu)
    monkeypatch.setattr(ort_runner, "placed_nodes_of_profile", lambda path: nodes)
    torch.manual_seed(0)
    module = nn.Linear(6, 6).eval()
    pair = ConfigPair("cuda", NumericConfig("torch"), NumericConfig("onnxruntime", device="cuda", optimization="off"))
    options = Options(make_tolerance(None, None, None), pairs=(pair,))
    report = bisect(LoadedCase("one", module, (torch.randn(5, 6),), {}), options)
    assert status == report.configs[0].status
    assert ("agrees" if status == "agrees" else "inconclusive") == report.verdict.status
