"""The verdict never depends on verbosity, report format or the terminal's width."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from bisect_tool.cli.main import execute
from bisect_tool.cli.run import run

MODEL = """
from torch import nn


def build_model():
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))
"""

FORMS = (["--quiet"], ["--verbose", "--all-stages"], ["--format", "json"])


def outcome(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = execute(run, "bisect-divergence", list(arguments))
    return code, out.getvalue()


def findings(folder: Path) -> dict[str, Any]:
    """What was found, without times and without the command line."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = [{key: row[key] for key in ("stage", "onnx_value", "onnx_nodes", "results")} for row in report["stages"]]
    configs = [(config["name"], config["status"], config["observer_effect"]) for config in report["configs"]]
    return {"verdict": report["verdict"], "rows": rows, "configs": configs, "alignment": report["alignment"]}


@pytest.mark.parametrize("fault", [None, 1.0001])
def test_every_way_to_say_it_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: float | None
) -> None:
    """Healthy, and with a fault that the noise floor alone tells from rounding."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL, encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    module = namespace["build_model"]().eval()
    sample = torch.randn(4, 16)
    torch.save(module.state_dict(), "model.pth")
    torch.save(sample, "sample.pt")
    torch.onnx.export(module, (sample,), "model.onnx", dynamo=False)
    if fault is not None:
        graph = onnx.load("model.onnx")
        weights = [w for w in graph.graph.initializer if numpy_helper.to_array(w).shape in ((4, 32), (32, 4))]
        weights[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[0]) * fault, weights[0].name))
        onnx.save(graph, "model.onnx")
    found = []
    for number, form in enumerate(FORMS):
        monkeypatch.setenv("COLUMNS", str(60 + 40 * number))
        arguments = ["model.py", "model.pth", "--input", "sample.pt", "--onnx", "model.onnx", "-o", f"r{number}", *form]
        code, printed = outcome(*arguments)
        found.append((code, findings(tmp_path / f"r{number}")))
        # What is printed says it too, in every form.
        if "json" in form:
            assert json.loads(printed)["verdict"] == found[-1][1]["verdict"]
        else:
            words = " ".join(printed.split())
            assert all(line in words for line in found[-1][1]["verdict"]["summary"])
            assert ("DIVERGES" in printed) == (fault is not None)
    assert all(each == found[0] for each in found[1:])
    assert found[0][0] == (0 if fault is None else 1)
