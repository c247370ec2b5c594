"""Ctrl-C, a closed pipe and a crash: their own exit codes, and nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import command

COMMAND = [sys.executable, "-c", "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()"]

SLOW = """
import time
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        Path("running").touch()
        for _ in range(6000):
            time.sleep(0.01)
        return y

def build_model():
    return Net()
"""

QUICK = """
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
"""

FAILS = """
from torch import nn

class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("not today")

MODEL = nn.Sequential(nn.Linear(4, 4), Fails())

def build_model():
    return MODEL
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models and a sample, in which the command runs; temporary files go beneath it."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "quick.py").write_text(QUICK)
    (tmp_path / "fails.py").write_text(FAILS)
    (tmp_path / "temporary").mkdir()
    torch.save(torch.randn(2, 4), tmp_path / "x.pt")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="no signals to another process")
@pytest.mark.parametrize(
    ("number", "code", "told"),
    [("SIGINT", 130, b"interrupted"), ("SIGTERM", 143, b"terminated")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_leaves_nothing(folder: Path, number: str, code: int, told: bytes) -> None:
    """While the model runs: an exit code of its own, and no report, temporary folder or traceback."""
    arguments = ["slow.py", "--input", "x.pt", "-o", "reports/new", "-q"]
    # Whoever starts the tests in the background of a shell passes SIGINT on as ignored.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + COMMAND[2]
    process = subprocess.Popen([*COMMAND[:2], script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            if (folder / "running").exists() or process.poll() is not None:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        process.send_signal(getattr(signal, number))
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert code == process.returncode, err.decode()
    assert b"" == out
    assert told + b"; no report was written" in err
    assert b"Traceback" not in err
    assert not (folder / "reports").exists() or [] == list((folder / "reports").iterdir())
    assert [] == [path.name for path in (folder / "temporary").iterdir() if path.name.startswith("bisect-divergence")]


@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE")
@pytest.mark.parametrize("form", ["text", pytest.param("json", marks=pytest.mark.slow)])
def test_closed_pipe_is_no_divergence(folder: Path, form: str) -> None:
    """A reader that goes away makes the command exit 141, and neither 1 nor with a traceback; the report is there."""
    arguments = ["quick.py", "--input", "x.pt", "-o", "new", "-q", "--format", form]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert 141 == process.wait(60), err.decode()
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert {"report.json", "index.html", "stages.csv"} <= {path.name for path in (folder / "new").iterdir()}


def test_the_verdict_does_not_wait_for_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on the terminal before plots, page and report are made, and stands there where these cannot be written."""
    from bisect_tool import store

    def no_room(_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "report_text", no_room)
    outcome = command("quick.py", "--input", "x.pt", folder=folder / "new")
    assert 2 == outcome.code
    assert outcome.out.startswith("agrees")
    assert "index.html" not in outcome.out
    assert "No space left on device" in outcome.err
    assert not (folder / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no sh")
def test_head_gets_its_line(folder: Path) -> None:
    """Behind `| head -1` the command exits 141, or 0 where all was taken; head gets its line."""
    tool = f"{sys.executable} -c '{COMMAND[2]}' quick.py --input x.pt -o new -q --all-stages"
    script = f"{{ {tool}; echo $? > code; }} | head -1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    assert (folder / "code").read_text().strip() in ("0", "141"), done.stderr.decode()
    assert 1 == done.stdout.count(b"\n")
    assert b"Traceback" not in done.stderr


def test_crash_is_no_divergence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw exits 70, says that the tool is at fault, and leaves no report."""
    from bisect_tool import pipeline

    def crash(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(pipeline, "bisect", crash)
    outcome = command("quick.py", "--input", "x.pt", folder=folder / "new")
    assert 70 == outcome.code
    assert "RuntimeError: unforeseen" in outcome.err
    assert "internal error" in outcome.err
    assert not (folder / "new").exists()


def test_crash_while_writing_leaves_no_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing breaks off in the middle, neither a report nor a temporary folder is there."""
    from bisect_tool import store

    def crash(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "report_text", crash)
    before = {path.name for path in folder.iterdir()}
    outcome = command("quick.py", "--input", "x.pt", folder=folder / "new")
    assert 130 == outcome.code
    assert before == {path.name for path in folder.iterdir()} - {"__pycache__"}


def test_hooks_are_gone_after_a_failing_forward(folder: Path) -> None:
    """An error in forward leaves no global hook, no dispatch mode and no changed forward behind."""
    from torch.nn.modules import module as torch_module
    from torch.utils import _python_dispatch

    def state() -> tuple[object, ...]:
        hooks = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
        return (*(list(table) for table in hooks), _python_dispatch._get_current_dispatch_mode())

    before, place = state(), str((folder / "fails.py").resolve())
    outcome = command("fails.py", "--input", "x.pt", folder=folder / "new")
    assert 2 == outcome.code
    assert "ValueError: not today" in outcome.err
    assert before == state()
    (model,) = [vars(m)["MODEL"] for m in list(sys.modules.values()) if getattr(m, "__file__", None) == place]
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert all(parameter.requires_grad for parameter in model.parameters())
