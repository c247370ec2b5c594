"""Runs that many tests look at, made once: the examples' data, and each example judged as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import EXAMPLES, ROOT, Healthy, Outcome, command, small_centerpoint
from filelock import FileLock


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
def small_root(shared_folder: Path) -> Path:
    """A folder like the project's own, with the CenterPoint example on a small canvas."""
    root = shared_folder / "small"
    with FileLock(shared_folder / "small.lock"):
        if not root.exists():
            small_centerpoint(root)
    return root


@pytest.fixture(scope="session")
def healthy(example_data: None, shared_folder: Path) -> Callable[..., Healthy]:
    """``healthy(example, exporter, root)``: exported and judged as it is, once in the whole test run."""

    def get(example: str, exporter: str, root: Path = ROOT) -> Healthy:
        folder = shared_folder / f"{example}-{exporter}-{root.name}"
        onnx, kept = folder / "model.onnx", folder / "outcome.json"
        with FileLock(f"{folder}.lock"):
            if not kept.exists():
                folder.mkdir()
                arguments = ("--config", root / "configs" / f"{example}.toml", "--exporter", exporter)
                made = command(*arguments, "--keep-onnx", onnx, "--format", "json", folder=folder / "report")
                kept.write_text(json.dumps([made.code, made.out, made.err]), encoding="utf-8")
        code, out, err = json.loads(kept.read_text(encoding="utf-8"))
        return Healthy(example, exporter, onnx, Outcome(code, out, err, folder / "report"), root)

    return get
