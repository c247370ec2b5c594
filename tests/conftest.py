"""What every test may rely on: one terminal width, no colour, the same random numbers, two threads."""

from __future__ import annotations

import os

os.environ["COLUMNS"] = "80"
os.environ["NO_COLOR"] = "1"

import pytest
import torch

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins the terminal, the seed and the number of threads before each test."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    torch.manual_seed(0)
    torch.set_num_threads(2)
