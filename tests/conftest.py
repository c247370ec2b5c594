"""What every test may rely on: one terminal width, no colour, the same random numbers, two threads."""

from __future__ import annotations

import os

os.environ["COLUMNS"] = "80"
os.environ["NO_COLOR"] = "1"

import zlib

import pytest
import torch

pytest_plugins = ["pytester"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the zoo's tests that run with both exporters each runs with one of them, as its name has it; the other is slow."""
    for item in items:
        given = getattr(item, "callspec", None)
        exporter = None if given is None else given.params.get("exporter")
        if item.path.name not in ("test_zoo.py", "test_preflight.py") or exporter not in ("dynamo", "torchscript"):
            continue
        others = item.nodeid.replace("dynamo", "").replace("torchscript", "")
        if zlib.crc32(others.encode()) % 2 == (exporter == "dynamo"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins the terminal, the seed and the number of threads before each test."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    torch.manual_seed(0)
    torch.set_num_threads(2)
