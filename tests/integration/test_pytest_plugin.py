"""The plug-in for pytest: what a failing test shows, that it costs nothing unused, and that pytest finds it."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from verifying import make_project

from bisect_tool import pytest_plugin
from bisect_tool.cli.settings import tomllib

PLUGIN = "bisect_tool.pytest_plugin"

UNUSED = """
import sys


def test_light(pytestconfig):
    plugins = pytestconfig.pluginmanager.get_plugins()
    assert "bisect_tool.pytest_plugin" in [getattr(plugin, "__name__", "") for plugin in plugins]
    heavy = ["torch", "onnxruntime", "onnx", "numpy", "rich", "jinja2", "matplotlib", "click", "bisect_tool.api"]
    assert [] == [name for name in heavy if name in sys.modules]
"""

USED = """
import pytest


@pytest.fixture(scope="module")
def net():
    import torch
    from model import build_model

    net = build_model()
    net.load_state_dict(torch.load("ckpt.pth"))
    return net


@pytest.fixture
def sample():
    import torch

    return torch.load("samples/0.pt")


def test_right(assert_onnx_matches, net, sample):
    report = assert_onnx_matches(net, sample, "model.onnx", optimizations=["off"])
    assert "agrees" == report.verdict.status


def test_wrong(assert_onnx_matches, net, sample):
    assert_onnx_matches(net, sample, onnx="broken.onnx")


def test_by_path(assert_onnx_matches):
    assert_onnx_matches("model.py", "samples/0.pt", "broken.onnx", checkpoint="ckpt.pth", max_abs=1e-6, name="net")


def test_by_metric(assert_onnx_matches, net, sample):
    assert_onnx_matches(net, sample, "model.onnx", metric=lambda a, b: {"off": 1.0}, metric_limits={"off": 0.5})


def test_no_verdict(assert_onnx_matches, net, sample):
    import torch

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) + torch.rand(3)

    assert_onnx_matches(Noisy(), sample, "model.onnx", optimizations=["off"])


def test_usage(assert_onnx_matches, net, sample):
    assert_onnx_matches(net, sample, "nowhere.onnx")
"""


@pytest.fixture
def loaded() -> list[str]:
    """Options that load the plug-in where this environment's installation does not."""
    return [] if any(each.value == PLUGIN for each in entry_points(group="pytest11")) else ["-p", PLUGIN]


def test_in_a_project(pytester: pytest.Pytester, loaded: list[str]) -> None:
    """Unused it imports nothing heavy; a right graph passes, and a wrong one fails with the stage, in pytest's own style."""
    make_project(pytester.path)
    pytester.makepyfile(test_a_unused=UNUSED, test_export=USED)
    # One process of its own for all: torch can't be imported twice into this one.
    plain = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist", "-W", "ignore", "-q")
    result = pytester.runpytest_subprocess(*plain, *loaded)
    text = result.stdout.str()
    assert {"passed": 2, "failed": 5} == result.parseoutcomes(), text
    result.stdout.fnmatch_lines(
        [
            '>       assert_onnx_matches(net, sample, onnx="broken.onnx")',
            "E       *assert broken.onnx == Net, first differing stage first at *model.py:15 (Linear)",
            "E         own error * x noise floor)   (ort-cpu-off)",
            "E         *of 64 elements differ*",
            "E         error is made here: *ONNX Runtime is the side that is off against float64",
            "E         ONNX nodes: /first/Gemm",
            "E         2 later stages over their limits: act, last",
            "E         output 0 (ort-cpu-off): *same class at *",
            "E         BD202 *",
            "E         judged by: the noise floor, and relative L2 1.0e-04 (float32), the defaults",
            "test_export.py:*: AssertionError",
            "E       *assert broken.onnx == net, first differing stage first at *",
            "E         max abs *, limit 1.0e-06*",
            "E       *assert model.onnx == Net, off 1 is over its limit 0.5 (ort-cpu-off)",
            "E       *assert model.onnx == Noisy, no verdict: *differs from one run to the next*",
            "E       bisect_tool.errors.BisectError: *nowhere.onnx*",
            "E       help: *",
            "FAILED test_export.py::test_wrong - *",
        ]
    )
    # Nobody wants to read the tool's own frames.
    assert "bisect_tool/pipeline/" not in text and "pytest_plugin.py:" not in text


def test_pytest_finds_it() -> None:
    """The package names the plug-in for pytest."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert PLUGIN in project["entry-points"]["pytest11"].values()
    assert callable(pytest_plugin.check)
