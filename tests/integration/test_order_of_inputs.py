"""Orders of inputs are no cause where the outputs hardly tell any inputs apart."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.reporters.next_steps import next_step


class Dull(nn.Module):
    """Its output is nearly the same for every input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.Softplus(1.0, 0.1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 + 1e-5 * self.head(self.act(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_another_order_must_be_clearly_better(tmp_path: Path) -> None:
    """An error of 1e-6 in the outputs passes under any order of channels; a dropped threshold is the cause."""
    x, file = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), tmp_path / "model.onnx"
    dull = Dull().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(dull, (x,), str(file), dynamo=False)
    report = bisect(LoadedCase("dull", dull, (x,), {}), Options(make_tolerance(None, None, None), onnx=file))
    assert "diverges" == report.verdict.status
    assert "BD404" not in [told.code for told in report.verdict.diagnoses]


class Tokens(nn.Module):
    """Three inputs of one shape and type; ids are beyond the end of the table of types."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.types, self.out = nn.Embedding(50, 8), nn.Embedding(2, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each ``[N, T]``, to scores ``[N, 3]`` and the mean state ``[N, 8]``."""
        x = (self.words(ids) + self.types(types)) * mask.unsqueeze(-1)
        return {"scores": self.out(torch.tanh(x).sum(1)), "state": x.mean(1)}


class Turned(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.model(b, c, a)["scores"]  # type: ignore[no-any-return]


def test_an_order_in_which_the_graph_does_not_run_is_not_the_one(tmp_path: Path) -> None:
    """And an output that the file lacks is said to be that."""
    module, file = Tokens().eval(), tmp_path / "model.onnx"
    ids = torch.randint(2, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    given = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    names = ["a", "b", "c"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Turned(module), (given[2], *given[:2]), str(file), dynamo=False, input_names=names, output_names=["o"]
        )
    report = bisect(LoadedCase("tokens", module, given, {}), Options(make_tolerance(None, None, None), onnx=file))
    assert "inconclusive" == report.verdict.status
    assert any("fit equally" in note for note in report.notes)
    (run, *_) = report.configs
    assert {"scores": "pass", "state": "not compared"} == {str(out.output): out.judgement for out in run.outputs}
    assert "export again with every output" in (next_step(report) or "")
    rows = {row.stage: row for row in report.stages}
    assert rows["words"].results[run.name].judgement == rows["types"].results[run.name].judgement == "pass"


class Unnamed(nn.Module):
    """Takes what it is given, without names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, *given: Tensor) -> Tensor:
        """Two tensors ``[N, 4, T]``."""
        return self.second(self.first(given[0]) + 2 * given[1])  # type: ignore[no-any-return]


def test_torchscripts_own_names_are_no_numbers_of_the_sample(tmp_path: Path) -> None:
    """``input.1`` is the first of the inputs there; it was given the second tensor, ``input_1``."""
    module, inputs = Unnamed().eval(), (torch.randn(2, 4, 8), torch.randn(2, 4, 8))
    torch.onnx.export(module, inputs, tmp_path / "model.onnx", dynamo=False)
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].name == "input.1"
    assert bisect(module, inputs, tmp_path / "model.onnx").verdict.status == "agrees"
