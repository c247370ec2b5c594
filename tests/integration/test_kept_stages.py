"""A diverging export is made once more with all stages kept apart, and what that shows is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from commands import Outcome, command

MODEL = """
import torch
from torch import nn

class Scaled(nn.Module):
    def forward(self, x):
        return x * 1.01 if torch.onnx.is_in_onnx_export() else x * 1.0

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.norm1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.scaled = Scaled()
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        for norm in (self.norm1, self.norm2):
            # Fresh statistics make a normalisation an identity, and then nothing shows that it was folded.
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x):
        x = self.scaled(self.relu1(self.norm1(self.conv1(x))))
        return self.relu2(self.norm2(self.conv2(x)))

def build_model():
    return Net()
"""

KEPT = "stages kept apart"


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The verdict on a net that computes something else while it is exported."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "model.py").write_text(MODEL)
    torch.manual_seed(0)
    torch.save(torch.randn(1, 3, 16, 16), folder / "x.pt")
    given = (folder / "model.py", "--input", folder / "x.pt", "--exporter", request.param, "--format", "json")
    return command(*given, folder=folder / "report")


def _row(outcome: Outcome, stage: str) -> dict[str, Any]:
    (row,) = [row for row in outcome.report["stages"] if row["stage"] == stage]
    return row


def test_export_time_branch_diverges(outcome: Outcome) -> None:
    """A branch that only the exporter takes exits 1, and the stage with the branch is the origin."""
    assert 1 == outcome.code, outcome.err
    verdict = outcome.report["verdict"]
    assert "diverges" == verdict["status"]
    assert ["scaled"] == [origin["stage"].partition("/")[0] for origin in verdict["origins"]]


def test_summary_tells_of_the_second_export(outcome: Outcome) -> None:
    """One line of the verdict says where the export with stages kept apart makes the error."""
    (line,) = [line for line in outcome.report["verdict"]["summary"] if KEPT in line]
    assert "scaled" in line


def test_folded_stages_get_results(outcome: Outcome) -> None:
    """Convolutions that the judged export folded are compared in the second export, and are healthy there."""
    for stage in ("conv1", "conv2"):
        row = _row(outcome, stage)
        assert "ort-cpu-off" not in row["results"], "not folded: the test needs another model"
        assert row["results"][KEPT]["local"]["rel_l2"] < 1e-5
    assert _row(outcome, "conv1")["results"][KEPT]["total"]["rel_l2"] < 1e-5
    assert _row(outcome, "conv2")["results"][KEPT]["total"]["rel_l2"] > 1e-3


def test_second_export_does_not_decide(outcome: Outcome) -> None:
    """The second export is no gating configuration: the default export is what is judged."""
    configs = {config["name"]: config["gating"] for config in outcome.report["configs"]}
    assert configs[KEPT] is False
    assert configs["ort-cpu-off"] is True
