"""The commands as functions: doctests, objects and paths alike, what is left as it was, and what is refused."""

from __future__ import annotations

import doctest
import importlib
import inspect as stdlib_inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn
from verifying import Project, make_project, without_plots

import bisect_tool
from bisect_tool import BisectError, LoadedCase, Options, api, make_tolerance

FUNCTIONS = (
    "bisect", "calibrate", "compare", "determinism", "env_diff", "environment", "inspect", "record", "verify",
)  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A model in files, with its ONNX graph and a broken one."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    without_plots(monkeypatch)


def net() -> nn.Module:
    """The project's model as an object, its dropout left in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3))


@pytest.mark.filterwarnings("ignore")
def test_doctests() -> None:
    """Every example in the docstrings gives what it shows, and most functions have one."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(api, globs={}) if test.examples]
    assert {f"bisect_tool.api.{name}" for name in FUNCTIONS} - {test.name for test in tests} <= {
        "bisect_tool.api.calibrate",
        "bisect_tool.api.determinism",
    }, "they take minutes, or processes of their own"
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert 0 == runner.failures


def test_functions_are_documented_and_typed() -> None:
    """Each function says what its arguments are and what it raises; nothing is left without a type."""
    for name in FUNCTIONS:
        function = getattr(bisect_tool, name)
        text = function.__doc__ or ""
        signature = stdlib_inspect.signature(function)
        if name != "bisect":
            assert all(p.annotation is not p.empty for p in signature.parameters.values()), name
            assert all(parameter in text for parameter in signature.parameters), name
        assert "Raises:" in text and "Args:" in text, name


def test_names_survive_the_files_of_the_same_name() -> None:
    """``compare.py`` and its like do not take the place of the functions once somebody imports them."""
    for name in ("compare", "determinism", "calibrate"):
        module = importlib.import_module(f"bisect_tool.{name}")
        assert isinstance(module, types.ModuleType) and stdlib_inspect.isfunction(getattr(bisect_tool, name))
    from bisect_tool import compare
    from bisect_tool.compare import Ledger

    assert compare is api.compare and "bisect_tool.compare" == Ledger.__module__


def test_light_until_used() -> None:
    """The functions are there without torch, onnxruntime or numpy being loaded."""
    script = (
        "import bisect_tool, sys; [getattr(bisect_tool, n) for n in sys.argv[1:]]; "
        "print([m for m in ('torch', 'onnxruntime', 'numpy', 'rich', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *FUNCTIONS], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


def test_objects_and_paths_give_the_same(project: Project) -> None:
    """A model in memory and the same one in a file have the same numbers."""
    module = bisect_tool.api._load_one("model.py", "samples/0.pt", _case("ckpt.pth")).module
    sample = torch.load("samples/0.pt")
    by_path = bisect_tool.bisect("model.py", "samples/0.pt", "broken.onnx", checkpoint="ckpt.pth")
    for inputs in (sample, (sample,), {"x": sample}, {"args": (sample,)}, sample.numpy()):
        by_object = bisect_tool.bisect(module, inputs, "broken.onnx", optimizations=["off"])
        numbers = [row.results["ort-cpu-off"].total.rel_l2 for row in by_object.stages]
        assert numbers == [row.results["ort-cpu-off"].total.rel_l2 for row in by_path.stages]
    assert "diverges" == by_path.verdict.status == by_object.verdict.status
    assert ("first", "Net") == (by_object.verdict.origins[0].stage, by_object.case["model"])


def _case(checkpoint: str | None = None) -> Any:
    from bisect_tool.cases import Case

    return Case(checkpoint=checkpoint)


def test_model_keeps_its_modes() -> None:
    """The model runs in eval mode, and every module of it gets its own mode back; also where it fails."""
    model = net()
    model[0].eval()
    report = bisect_tool.verify(model, torch.ones(2, 8), exporter="torchscript", optimizations=["off"])
    assert "agrees" == report.verdict.status, "dropout was off"
    assert [True, False, True, True] == [child.training for child in model.modules()]
    with pytest.raises(BisectError):
        bisect_tool.verify(model, torch.ones(2, 9), exporter="torchscript")
    assert [True, False, True, True] == [child.training for child in model.modules()]


def test_older_form() -> None:
    """A loaded case with options is still taken."""
    case = LoadedCase("net", net().eval(), (torch.ones(2, 8),), {})
    told: list[str] = []
    options = Options(make_tolerance(None, None, None), optimizations=("off",))
    options = Options(options.tolerance, onnx=None, export=api._export(case.module, "torchscript", None))
    assert "agrees" == bisect_tool.bisect(case, options, told.append).verdict.status
    assert told


def test_several_samples_and_files(tmp_path: Path) -> None:
    """A folder of samples gives the worst one's report with a line on each; folder and JUnit file are written."""
    junit = tmp_path / "verify.xml"
    report = bisect_tool.verify(
        "model.py", "samples", "broken.onnx", checkpoint="ckpt.pth", report=tmp_path / "r", junit=junit
    )
    assert 2 == len(report.samples) and "diverges" == report.verdict.status
    assert {"000-0", "001-1"} == {sample.folder for sample in report.samples}
    assert all((tmp_path / "r" / name / "report.json").is_file() for name in ("", "000-0", "001-1"))
    worst = report.samples[report.case["sample_index"]].folder
    assert (tmp_path / "r" / str(report.verdict.origins[0].replay) / "run.py").is_file()
    assert (tmp_path / "r" / worst / "index.html").is_file()
    assert 2 == junit.read_text(encoding="utf-8").count("<testsuite ")
    with pytest.raises(BisectError, match="already holds a report"):
        bisect_tool.verify("model.py", "samples", "model.onnx", checkpoint="ckpt.pth", report=tmp_path / "r")


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (net, torch.ones(1, 8), {}, "neither a torch.nn.Module nor a path"),
        (net(), torch.ones(1, 8), {"checkpoint": "ckpt.pth"}, "is one already"),
        (net(), "nowhere.pt", {}, "nowhere.pt"),
        (net(), {}, {}, "holds no tensor"),
        (net(), torch.ones(1, 8), {"atol": 1.0}, "--rtol is missing"),
        (net(), torch.ones(1, 8), {"tolerances": "none.toml"}, "none.toml"),
        (net(), torch.ones(1, 8), {"memory_budget": "much"}, "memory budget"),
    ],
)
def test_what_is_refused(model: Any, inputs: Any, options: dict[str, Any], message: str) -> None:
    """Wrong arguments are errors that say what is wrong, with a remedy."""
    with pytest.raises(BisectError, match=message) as caught:
        bisect_tool.verify(model, inputs, **options)
    assert caught.value.hint


def test_unknown_options_are_type_errors() -> None:
    """A misspelt keyword is no option that is left out."""
    with pytest.raises(TypeError, match="maxabs"):
        bisect_tool.bisect(net(), torch.ones(1, 8), maxabs=1.0)  # type: ignore[call-overload]


def test_record_and_compare(tmp_path: Path) -> None:
    """Recordings of a model in a file and of objects; two of them compared."""
    one = bisect_tool.record("model.py", "samples/0.pt", output=tmp_path / "a.trace", checkpoint="ckpt.pth")
    other = bisect_tool.record("model.py", "samples/1.pt", output=tmp_path / "b.trace", checkpoint="ckpt.pth")
    found = bisect_tool.compare(one, other)
    assert "diverges" == found.verdict.status  # type: ignore[union-attr]
    with pytest.raises(BisectError, match="a.trace"):
        bisect_tool.record(net().eval(), torch.ones(1, 8), output=tmp_path / "a.trace")
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(BisectError, match="is a recording"):
        bisect_tool.compare(one, tmp_path / "x.npy")


def test_checkpoints_in_wrappers_are_compared_as_on_the_command_line(tmp_path: Path) -> None:
    """What stands before the names of one file's weights is left out."""
    state = net().state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "b.pt")
    assert "equal" == bisect_tool.compare(tmp_path / "a.pt", tmp_path / "b.pt").status  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"level": "leafs"}, "level 'leafs' is none"), ({"max_abs": "a"}, "--max-abs a: a tolerance is a finite number")],
)
def test_wrong_options_are_errors(options: dict[str, Any], told: str) -> None:
    with pytest.raises(BisectError, match=told) as raised:
        bisect_tool.bisect(net().eval(), torch.ones(1, 8), exporter="torchscript", **options)
    assert raised.value.exit_code == 2


def test_calibrate_and_verify(tmp_path: Path) -> None:
    """A table from PyTorch's runs alone, as an object and as a file: the right graph passes by it, the broken one fails."""
    place = tmp_path / "tolerances.toml"
    table = bisect_tool.calibrate("model.py", "samples", place, checkpoint="ckpt.pth", with_onnx=False, copies=0)
    assert ["first", "act", "last"] == [stage.stage for stage in table.stages]
    found = [
        bisect_tool.verify("model.py", "samples/0.pt", file, checkpoint="ckpt.pth", tolerances=tolerances)
        for file, tolerances in (("model.onnx", table), ("broken.onnx", place))
    ]
    assert ["agrees", "diverges"] == [report.verdict.status for report in found]
    assert all(report.tolerance.table is not None for report in found)
    with pytest.raises(BisectError, match="made for another model"):
        bisect_tool.verify(net(), torch.ones(1, 8), exporter="torchscript", tolerances=table)
    with pytest.raises(BisectError, match="not overwritten"):
        bisect_tool.calibrate("model.py", "samples", place, checkpoint="ckpt.pth")


def test_determinism_takes_what_can_be_pickled() -> None:
    """Fresh processes need the model's file, or an object that can be given to them."""

    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(BisectError, match="can't be given to another process") as caught:
        bisect_tool.determinism(Local(), torch.ones(1))
    assert "file" in str(caught.value.hint)
    with pytest.raises(BisectError, match="two at least"):
        bisect_tool.determinism(net(), torch.ones(1, 8), runs=1)


def test_hints_resolve() -> None:
    """Annotations that are needed at run time can be looked up."""
    assert "return" in get_type_hints(api.environment)
