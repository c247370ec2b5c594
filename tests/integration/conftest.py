"""Runs that many tests look at, made once: the examples' data, and each example judged as it is."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("centerpoint", "attention", "mobile", "recurrent")


@dataclass(frozen=True)
class Outcome:
    """What one command left: exit code, stdout, stderr, and the report folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """What stdout holds with ``--format json``."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Healthy:
    """An example with the graph that an exporter makes of it, and the tool's outcome on the two."""

    example: str
    exporter: str
    onnx: Path
    outcome: Outcome


def command(*arguments: object, folder: Path) -> Outcome:
    """``bisect-divergence ARGUMENTS -o FOLDER -q`` in this process."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.run import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(run, "bisect-divergence", [*map(str, arguments), "-o", str(folder), "-q"])
    return Outcome(code, out.getvalue(), err.getvalue(), folder)


@pytest.fixture(scope="session")
def run_command() -> Callable[..., Outcome]:
    """The command line in this process: ``run_command(*arguments, folder=...)``."""
    return command


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def example_data(shared_folder: Path) -> None:
    """Makes the checkpoints and samples that are not there yet."""
    with FileLock(shared_folder / "data.lock"):
        for example in EXAMPLES:
            folder = ROOT / "examples" / example
            if not (list(folder.glob("ckpt.*")) and list(folder.glob("sample.*"))):
                subprocess.run([sys.executable, "make_data.py"], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def healthy(example_data: None, shared_folder: Path) -> Callable[[str, str], Healthy]:
    """``healthy(example, exporter)``: exported and judged as it is, once in the whole test run."""

    def get(example: str, exporter: str) -> Healthy:
        folder = shared_folder / f"{example}-{exporter}"
        onnx, kept = folder / "model.onnx", folder / "outcome.json"
        with FileLock(f"{folder}.lock"):
            if not kept.exists():
                folder.mkdir()
                arguments = ("--config", ROOT / "configs" / f"{example}.toml", "--exporter", exporter)
                made = command(*arguments, "--keep-onnx", onnx, "--format", "json", folder=folder / "report")
                kept.write_text(json.dumps([made.code, made.out, made.err]), encoding="utf-8")
        code, out, err = json.loads(kept.read_text(encoding="utf-8"))
        return Healthy(example, exporter, onnx, Outcome(code, out, err, folder / "report"))

    return get
