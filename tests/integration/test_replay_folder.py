"""The folder that shows an origin's error runs where nothing of this tool is, and prints the report's number."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commands import ROOT, Outcome, command
from onnx import numpy_helper

MODEL = """
import torch
from torch import nn


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
"""

ALONE = """
import runpy, sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "bisect_tool", "pandas", "ml_dtypes"):
    sys.modules[name] = None
sys.argv = ["run.py"]
runpy.run_path({!r}, run_name="__main__")
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a model, its sample, its export ``good.onnx``, and ``bad.onnx`` with two weights that are off."""
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    torch.save(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), tmp_path / "sample.pt")
    scope: dict[str, object] = {}
    exec(MODEL, scope)
    model = scope["build_model"]().eval()  # type: ignore[operator]
    with pytest.warns(DeprecationWarning):
        torch.onnx.export(model, (torch.zeros(4, 6),), str(tmp_path / "good.onnx"), dynamo=False)
    graph = onnx.load(tmp_path / "good.onnx")
    for name in ("0.weight", "4.weight"):
        tensor = next(each for each in graph.graph.initializer if each.name == name)
        array = np.array(numpy_helper.to_array(tensor))
        array[1] *= 1.1
        tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(graph, tmp_path / "bad.onnx")
    return tmp_path


def judged(files: Path, graph: str, *more: str) -> Outcome:
    sample, onnx_file = files / "sample.pt", files / graph
    return command(
        files / "model.py", "--input", sample, "--onnx", onnx_file, "--format", "json", *more, folder=files / "out"
    )


def printed(folder: Path) -> float:
    """What ``run.py`` prints without PyTorch, onnx and this package."""
    code = ALONE.format(str(folder / "run.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parent)
    assert 0 == done.returncode, done.stderr
    found = re.search(r"relative L2: (\S+)", done.stdout)
    assert found
    return float(found[1])


def test_every_origin_has_a_folder_that_prints_its_error(files: Path) -> None:
    outcome = judged(files, "bad.onnx")
    assert 1 == outcome.code
    origins = outcome.report["verdict"]["origins"]
    assert ["0", "4"] == [origin["stage"] for origin in origins]
    assert ["replay/01-0", "replay/02-4"] == [origin["replay"] for origin in origins]
    for origin in origins:
        folder = outcome.folder / origin["replay"]
        assert origin["local_rel_l2"] == pytest.approx(printed(folder), rel=1e-5)
        readme = (folder / "README.md").read_text(encoding="utf-8")
        assert (
            "python run.py" in readme and origin["onnx_nodes"][0] in readme and f"torch: {torch.__version__}" in readme
        )


def test_every_file_of_a_report_folder_is_in_the_reference(files: Path) -> None:
    """docs/reference/files.md names what a real run that diverges leaves, overlays and replay folders among it."""
    outcome = judged(files, "bad.onnx", "--overlays", "--plots", "png,svg,pdf")
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    left = [path.relative_to(outcome.folder) for path in outcome.folder.rglob("*") if path.is_file()]
    assert {"report.json", "replay", "overlay"} <= {path.parts[0] for path in left}
    for path in left:
        *folders, name = path.parts
        assert folders[:1] in ([], ["replay"], ["overlay"]), path
        known = re.sub(r"^ort-[\w-]+(?=\.(total|local)\.json$)", "CONFIG", name.replace("bad.", "NAME."))
        (section,) = re.findall(rf"^##+ {(folders or ['Report folder'])[0]}\n(.*?)^##", page, re.DOTALL | re.MULTILINE)
        assert f"`{known}`" in section, path


def test_a_new_report_leaves_no_old_replay(files: Path) -> None:
    """Beside a report that agrees they would mislead; what somebody else put there stays."""
    folder = judged(files, "bad.onnx").folder
    (folder / "replay" / "01-0" / "mine.txt").write_text("kept", encoding="utf-8")
    outcome = judged(files, "good.onnx", "--force")
    assert 0 == outcome.code
    assert [folder / "replay" / "01-0" / "mine.txt"] == [p for p in (folder / "replay").rglob("*") if p.is_file()]


def test_agreeing_runs_have_none(files: Path) -> None:
    assert not (judged(files, "good.onnx").folder / "replay").exists()


def test_bug_report_has_the_numbers_the_cause_and_a_script_that_runs(files: Path) -> None:
    outcome = judged(files, "bad.onnx")
    origin = outcome.report["verdict"]["origins"][0]
    folder = outcome.folder / origin["replay"]
    text = (folder / "bug-report.md").read_text(encoding="utf-8")
    assert text.startswith("# Gemm: the result differs from PyTorch's by ")
    assert f"torch {torch.__version__}" in text and "opset " in text
    assert "(BD202). With that changed the difference falls to " in text
    assert f"| relative L2 of the difference | {origin['local_rel_l2']:.6e} |" in text
    (largest,) = re.findall(r"largest absolute difference \| (\S+) \|", text)
    (script,) = re.findall(r"```python\n(.*?)```", text, re.S)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder)
    assert 0 == done.returncode, done.stderr
    assert float(largest) == pytest.approx(float(done.stdout.split()[-1]), rel=1e-4)
