"""Streams that take nothing, names that no file system takes, damaged weights, models that return nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from commands import command
from torch import nn

TOOL = [sys.executable, "-c", "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()"]

MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return {result}

def build_model():
    return Net()
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.py").write_text(MODEL.format(result="self.fc(x)"))
    torch.save(torch.randn(2, 16), tmp_path / "x.pt")
    return tmp_path


def run(*arguments: str, redirected: str) -> subprocess.CompletedProcess[str]:
    """The command by a shell, with some of its streams led elsewhere."""
    given = " ".join(f"'{each}'" for each in [*TOOL, *arguments])
    return subprocess.run(["sh", "-c", f"{given} {redirected}"], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nowhere.py", "--input", "x.pt"), 2),
        pytest.param(("quick.py", "--input", "x.pt", "-v", "--plots", "none"), 0, marks=pytest.mark.slow),
    ],
    ids=["an error", "progress"],
)
def test_a_log_that_is_full_is_no_divergence(folder: Path, arguments: tuple[str, ...], code: int) -> None:
    done = run(*arguments, "-o", "new", redirected="2>/dev/full")
    assert done.returncode == code
    assert (folder / "new" / "report.json").exists() == (code == 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("form", [pytest.param("text", marks=pytest.mark.slow), "json"])
def test_an_answer_that_cannot_be_written_is_told(folder: Path, form: str) -> None:
    arguments = ("quick.py", "--input", "x.pt", "-q", "-o", "new", "--plots", "none", "--format", form)
    done = run(*arguments, redirected=">/dev/full")
    assert done.returncode == 2
    assert done.stderr == "error: the answer cannot be written to stdout: No space left on device\n"
    assert (folder / "new" / "report.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="no sh")
def test_a_closed_stdout_leaves_the_verdict(folder: Path) -> None:
    """Nothing that is opened meanwhile stands in its place."""
    done = run("quick.py", "--input", "x.pt", "-q", "-o", "new", "--plots", "none", redirected=">&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "new" / "report.json").exists()


@pytest.mark.parametrize("option", ["-o", "--onnx", "--keep-onnx"])
def test_a_name_that_is_too_long_is_told(folder: Path, option: str) -> None:
    given = (option, "x" * 300) if option == "-o" else (option, "x" * 300, "-o", "new")
    done = run("quick.py", "--input", "x.pt", "-q", *given, redirected="")
    assert done.returncode == 2, done.stderr
    assert "File name too long" in done.stderr and "help: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_told_before_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bisect_tool import pipeline, store

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(pipeline, "bisect", lambda *_: pytest.fail("it ran"))
    outcome = command("quick.py", "--input", "x.pt", folder=folder / "new")
    assert outcome.code == 2
    assert f"cannot write the report to {folder / 'new'}: Permission denied" in outcome.err


@pytest.mark.parametrize("kind", ["too short", "elsewhere"])
def test_a_weight_that_is_not_there_is_named(folder: Path, kind: str) -> None:
    torch.onnx.export(nn.Linear(16, 4).eval(), (torch.randn(2, 16),), folder / "model.onnx", dynamo=False)
    model = onnx.load(folder / "model.onnx")
    weight = model.graph.initializer[0]
    raw = weight.raw_data
    if kind == "too short":
        weight.raw_data = raw[:100]
    else:
        (folder / "w.bin").write_bytes(raw)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "../w.bin"), ("length", str(len(raw)))):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    (folder / "inner").mkdir()
    (folder / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    outcome = command("quick.py", "--input", "x.pt", "--onnx", "inner/model.onnx", folder=folder / "new")
    assert outcome.code == 2
    assert f"its weight {weight.name} cannot be read" in outcome.err
    assert "help: the file is damaged" in outcome.err


@pytest.mark.parametrize("result", ["None", "(each for each in [self.fc(x)])"])
def test_a_model_that_returns_no_tensor_is_told(folder: Path, result: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was made of it is nobody's."""
    (folder / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "temporary"))
    (folder / "empty.py").write_text(MODEL.format(result=result))
    outcome = command("empty.py", "--input", "x.pt", folder=folder / "new")
    assert outcome.code == 2
    assert "forward returned no tensor" in outcome.err and "return a tensor" in outcome.err
    assert ".onnx" not in outcome.err


def test_a_failing_forward_leaves_no_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter's log would be about the same, and nobody is told of it."""
    (folder / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "temporary"))
    torch.save(torch.randn(2, 5), folder / "narrow.pt")
    outcome = command("quick.py", "--input", "narrow.pt", folder=folder / "new")
    assert outcome.code == 2
    assert "forward failed in fc" in outcome.err
    assert not [path for path in (folder / "temporary").iterdir() if path.name.startswith("bisect-divergence")]


def test_a_dictionary_of_other_names_is_told(folder: Path) -> None:
    """It goes into forward whole, which a message about its first operation does not tell."""
    torch.save({"img": torch.randn(2, 16)}, folder / "named.pt")
    outcome = command("quick.py", "--input", "named.pt", folder=folder / "new")
    assert outcome.code == 2
    assert "forward takes x, not img: so the dictionary was passed whole" in outcome.err


def test_a_misspelt_argument_is_told_beside_the_missing_one(folder: Path) -> None:
    (folder / "sized.py").write_text(
        "from torch import nn\n\ndef build_model(width, depth):\n    return nn.Linear(width, depth)\n"
    )
    (folder / "args.json").write_text('{"width": 16, "depht": 3}')
    outcome = command("sized.py", "--entry-args", "args.json", "--input", "x.pt", folder=folder / "new")
    assert outcome.code == 2
    assert "not given: depth; it takes no depht" in outcome.err
