"""``bisect-tool determinism``: which stage first differs from run to run, and which switch makes it stable."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from jsonschema import Draft202012Validator
from onnx import helper
from torch import nn
from torch.nn import functional as F

import bisect_tool
from bisect_tool.cli.main import execute
from bisect_tool.cli.tool import tool
from bisect_tool.determinism import Determinism, How, Series, examine, record_runs
from bisect_tool.errors import BisectError
from bisect_tool.pipeline import LoadedCase
from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.store import record_to_json


class Net(nn.Module):
    """``noise``: draws in its forward; ``dropout``: only in training; ``clock``: nothing helps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.calls = 0
        self.first = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 6) -> (n, 3)"""
        x = self.drop(self.first(x))
        if self.kind == "noise":
            x = F.dropout(x, 0.5, training=True)
        if self.kind == "clock":
            Net.calls = getattr(Net, "calls", 0) + 1  # type: ignore[assignment]
            x = x + Net.calls
        y: torch.Tensor = self.last(x)
        return y


def case(kind: str, build: Callable[[], None] = lambda: None) -> Callable[[], LoadedCase]:
    def load() -> LoadedCase:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        model = Net(kind).eval()
        torch.set_rng_state(state)
        return LoadedCase("net", model, (torch.ones(2, 6),), {})

    return load


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made in this process: starting others is what ``run_isolated`` has tests of its own for."""

    def run(function: Callable[..., Any], *arguments: Any, folder: Path, environment: Any = None) -> Any:
        threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        if environment:
            torch.seed()
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)

    monkeypatch.setattr(sys.modules["bisect_tool.determinism"], "run_isolated", run)


SCHEMA = json.loads((Path(bisect_tool.__file__).parent / "determinism.schema.json").read_text("utf-8"))


def found(kind: str, folder: Path, **how: Any) -> Determinism:
    """The answer; as JSON it is what the schema says."""
    result = examine(case(kind), folder, How(**how), 3, onnx=None, with_onnx=False, say=lambda _: None)
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(record_to_json(result), allow_nan=False)))
    return result


def test_a_model_that_repeats_itself(tmp_path: Path) -> None:
    """Nothing differs, nothing is tried."""
    result = found("plain", tmp_path)
    assert ("repeats", ()) == (result.status, result.tried)
    assert all(series.stable for series in result.series if series.counts)


@pytest.mark.slow
def test_noise_in_forward(tmp_path: Path) -> None:
    """The operation is named; of all switches a seed helps."""
    result = found("noise", tmp_path)
    assert "differs" == result.status
    assert {"/bernoulli#0"} == {series.first_stage for series in result.series if series.counts}
    assert {"a seed": True, "deterministic algorithms": False, "one thread": False} == {
        each.switch: each.series.stable for each in result.tried
    }
    assert any("what makes it stable: a seed" in line for line in result.summary)
    assert "random state" in str(result.series[0].cause)


def test_dropout_in_training(tmp_path: Path) -> None:
    """Eval mode helps, and so does a seed."""
    result = found("plain", tmp_path, mode="train")
    assert "drop" == result.series[0].first_stage
    assert {"eval mode", "a seed"} == {each.switch for each in result.tried if each.series.stable}


def test_what_no_switch_helps(tmp_path: Path) -> None:
    """All are tried alone and together, and that is said."""
    result = found("clock", tmp_path)
    assert "all of them" == result.tried[-1].switch and not result.tried[-1].series.stable
    assert any("nothing that was tried" in line for line in result.summary)
    assert "/add#0" == result.series[0].first_stage


def test_a_model_that_does_not_run(tmp_path: Path) -> None:
    """The reason is told, as an error and not as a difference."""

    def load() -> LoadedCase:
        return LoadedCase("net", Net("plain"), (torch.ones(2, 5),), {})

    with pytest.raises(BisectError, match="shapes"):
        examine(load, tmp_path, How(), 2, onnx=None, with_onnx=False, say=lambda _: None)


def _command(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(tool, "bisect-tool", list(map(str, arguments)))
    return code, out.getvalue(), err.getvalue()


def test_the_command(tmp_path: Path) -> None:
    """Exit code, table and JSON; ONNX Runtime too."""
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build_model():\n"
        "    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())\n"
    )
    torch.save(torch.ones(1, 4), tmp_path / "s.pt")
    arguments = [tmp_path / "model.py", "--input", tmp_path / "s.pt", "--runs", "2", "-q"]
    code, out, err = _command("determinism", *arguments)
    assert 0 == code, err
    assert "PyTorch, fresh processes" in out and "ONNX Runtime, one process" in out and "bit-identical" in out
    code, out, _ = _command("determinism", *arguments, "--no-onnx", "--format", "json")
    assert (0, "repeats") == (code, json.loads(out)["status"])
    Draft202012Validator(SCHEMA).validate(json.loads(out))
    code, _, err = _command("determinism", *arguments, "--input", tmp_path / "s.pt")
    assert 2 == code and "2 samples given" in err
    (tmp_path / "two").mkdir()
    for name in ("a.pt", "b.pt"):
        torch.save(torch.ones(1, 4), tmp_path / "two" / name)
    code, _, err = _command("determinism", tmp_path / "model.py", "--input", tmp_path / "two", "-q")
    assert 2 == code and "2 samples given" in err


def test_recording_a_script(tmp_path: Path) -> None:
    """By the command, with the script's own arguments; a script without a step is an error that leaves nothing."""
    (tmp_path / "train.py").write_text(
        "import sys, torch\nnet = torch.nn.Linear(2, 1)\nopt = torch.optim.Adam(net.parameters(), lr=float(sys.argv[1]))\n"
        "for _ in range(9):\n    net(torch.ones(1, 2)).sum().backward()\n    opt.step()\n    print('a step')\n"
    )
    target = tmp_path / "t.trace"
    code, out, err = _command(
        "record", "--script", tmp_path / "train.py", "--steps", "2", "--seed", "1", "-o", target, "-q", "--", "0.01"
    )
    assert 0 == code, err
    assert f"recorded {target}\n" == out and 1 == err.count("a step")
    from bisect_tool.recordings.bundles import open_bundle

    with open_bundle(target) as bundle:
        stages = [entry["stage"] for entry in bundle.manifest["stages"]]
        assert "script" == bundle.manifest["kind"]
    assert ["step0.forward", "step0.loss", "step0.gradient.weight", "step0.gradient.bias"] == stages[:4]
    assert ["step1.optimizer.weight", "step1.optimizer.bias"] == stages[-2:]
    (tmp_path / "train.py").write_text("print('nothing')")
    code, _, err = _command("record", "--script", tmp_path / "train.py", "-o", tmp_path / "u.trace", "-q")
    assert 2 == code and "without an optimiser step" in err and not (tmp_path / "u.trace").exists()
    (tmp_path / "train.py").write_text("1 / 0")
    code, _, err = _command("record", "--script", tmp_path / "train.py", "-o", tmp_path / "u.trace", "-q")
    assert 2 == code and "ZeroDivisionError" in err


def test_wrong_input_is_an_error_before_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 with the reason and its help, as of the other commands."""
    (tmp_path / "model.py").write_text("from torch import nn\n\ndef build_model():\n    return nn.Linear(4, 3)\n")
    torch.save(torch.ones(1, 4), tmp_path / "s.pt")
    torch.save({"other": torch.ones(1)}, tmp_path / "ckpt.pth")
    model, sample = tmp_path / "model.py", ("--input", tmp_path / "s.pt")

    def no_run(*_: Any) -> None:
        raise AssertionError("a run was made")

    monkeypatch.setattr(sys.modules["bisect_tool.determinism"], "record_runs", no_run)
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none.py", *sample), "none.py"),
        ((model, "--input", tmp_path / "none.pt"), "none.pt"),
        ((model, tmp_path / "ckpt.pth", *sample), "does not fit"),
        ((model, *sample, "--onnx", tmp_path / "none.onnx"), "none.onnx: no such file"),
    ]
    for arguments, reason in cases:
        code, out, err = _command("determinism", *arguments, "-q")
        assert (2, "") == (code, out), err
        assert reason in err and "help:" in err, err


def test_help_names_the_command_that_was_called() -> None:
    """Not the main one."""
    code, _, err = _command("determinism")
    assert 2 == code and "help: bisect-tool determinism model.py ckpt.pth" in err
    code, _, err = _command("releases", "onnxruntime", "1.2,1.3")
    assert 2 == code and "help: bisect-tool releases onnxruntime 1.2,1.3 -- model.py" in err


def test_lines_are_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the terminal's width; nothing is cut off."""
    from bisect_tool.cli.determinism import _print

    monkeypatch.setenv("COLUMNS", "80")
    series = Series("ONNX Runtime, fresh processes", 5, True, False, 4, "a.stage." * 4, 0.1, 0.2, "word " * 40)
    _print(Determinism("differs", ("long " * 40,), (series,), ()))
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert 40 == out.count("word") == out.count("long") and "outputs 2.0e-01" in " ".join(out.split())


def test_runs_of_one_session_are_compared(tmp_path: Path) -> None:
    """A generator of ONNX Runtime's goes on from run to run, and begins again where a session is made."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], seed=7.0),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, [2, 6]) for name in "xy")
    graph = helper.make_graph(nodes, "noise", [x], [y])
    path = tmp_path / "noise.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    first, second = record_runs(case("dropout"), tmp_path, "run", 2, How("onnxruntime"), path)
    links = {link.link: link.status for link in compare_recordings(first, second).chain}
    assert ("same", "differs") == (links["data"], links["outputs"])
