"""What every test may rely on: one terminal width, no colour, the same random numbers, two threads."""

from __future__ import annotations

import os
import sys

os.environ["COLUMNS"] = "80"
os.environ["NO_COLOR"] = "1"

import copy
import functools
import zlib
from typing import Any

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


def keep_operators_of_exporter() -> None:
    """Lets the dynamo exporter read its table of operators once, and not at every export: two thirds of its time here.

    From the first test on that finds it imported: importing it takes seconds, and many tests never export.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(registration, "ONNXRegistry", None)
    if registry is None or not hasattr(registry, "from_torchlib") or hasattr(registry, "read_once"):
        return
    read = functools.cache(registry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        # An export may add to its table.
        one = copy.copy(read(*args, **kwargs))
        one.functions = {target: list(found) for target, found in one.functions.items()}
        return one

    registry.from_torchlib, registry.read_once = staticmethod(from_torchlib), True


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins the terminal, the seed and the number of threads before each test."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    keep_operators_of_exporter()
