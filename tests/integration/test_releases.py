"""``bisect-tool releases``, on packages made here: no index is asked, and what changed is known."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

PACKAGE = "bisectnumbers"
CHANGED_IN = 2
BROKEN = 1
VERSIONS = [f"1.{minor}.0" for minor in range(4)]

MODEL = f"""
import {PACKAGE}
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x) * {PACKAGE}.SCALE


def build_model():
    torch.manual_seed(0)
    return Model()
"""


def make_wheel(folder: Path, version: str, code: str) -> None:
    """A wheel of one module."""
    info = f"{PACKAGE}-{version}.dist-info"
    files = {
        f"{PACKAGE}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{PACKAGE}-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_a_version_that_is_here_too_is_installed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise pip finds it in this environment, and installs nothing."""
    from bisect_tool.backends import throwaway

    make_wheel(tmp_path, "1.0", "PLACE = 'own'\n")
    (tmp_path / "outer").mkdir()
    with zipfile.ZipFile(tmp_path / f"{PACKAGE}-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "outer")
    (tmp_path / "outer" / f"{PACKAGE}.py").write_text("PLACE = 'outer'\n")
    (tmp_path / "outer" / "other_module.py").write_text("")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(throwaway, "outer_folders", lambda: [str(tmp_path / "outer")])
    python = throwaway.make_environment(tmp_path / "env", f"{PACKAGE}==1.0")
    assert "1.0" == throwaway.installed_version(python, PACKAGE)
    code = f"import other_module, {PACKAGE}; print({PACKAGE}.PLACE)"
    assert "own" == subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that uses the package, and pip set up to find nothing but wheels made here."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in VERSIONS:
        minor = int(version.split(".")[1])
        scale = 1.0 if minor < CHANGED_IN else 1.001
        code = "raise ImportError('broken here')\n" if minor == BROKEN else f"SCALE = {scale + 1e-9 * minor}\n"
        make_wheel(wheels, version, code)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / f"{PACKAGE}.py").write_text("SCALE = 1.0\n")
    (tmp_path / "model.py").write_text(MODEL)
    np.save(tmp_path / "sample.npy", np.ones((1, 3), np.float32))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    return tmp_path


def releases(*arguments: object) -> tuple[int, str, str]:
    """``bisect-tool releases ARGUMENTS`` in this process: exit code, stdout, stderr."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.tool import tool

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(tool, "bisect-tool", ["releases", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def test_two_versions_are_told_apart(case: Path) -> None:
    rest = ["--cache", case / "cache", "--yes", "--", case / "model.py", "--input", case / "sample.npy"]
    code, out, err = releases(PACKAGE, "1.0.0,1.2.0", *rest)
    assert 1 == code, err
    assert "CHANGED  bisectnumbers 1.2.0 gives other numbers than 1.0.0" in out
    assert "0 have results" in err and "which are removed again" in err


@pytest.mark.slow
def test_the_release_that_changed_the_numbers_is_found_and_kept(case: Path) -> None:
    """Among four releases, one of them broken: found, told, and not installed a second time."""
    rest = ["--", case / "model.py", "--input", case / "sample.npy"]
    cache = case / "cache"
    code, out, err = releases(PACKAGE, "1.0..1.3", "--cache", cache, "--yes", "--format", "json", *rest)
    assert 1 == code, err
    found = json.loads(out)
    change = found["change"]
    assert ("changed", "1.0.0", "1.0.0", "1.2.0") == tuple(
        change[key] for key in ("status", "reference", "last_same", "first_changed")
    )
    states = {item["version"]: item["state"] for item in found["releases"]}
    assert {"1.0.0": "reference", "1.1.0": "failed", "1.2.0": "changed", "1.3.0": "changed"} == states
    assert ["1.1.0"] == change["between"]
    (failed,) = [item for item in found["releases"] if item["state"] == "failed"]
    assert "broken here" in failed["why"]
    assert "4 releases of bisectnumbers, 1.0.0 to 1.3.0; 0 have results" in err
    assert found["releases"][2]["rel_l2"] == pytest.approx(1e-3, rel=0.01)
    assert found["floor"] < found["limit"] < 1e-4
    code, out, err = releases(PACKAGE, "1.0..1.3", "--cache", cache, "--yes", *rest)
    assert 1 == code
    assert "installing bisectnumbers 1.1.0" in err  # failures are tried again
    assert "installing bisectnumbers 1.0.0" not in err
    assert "CHANGED  bisectnumbers 1.2.0 gives other numbers than 1.0.0" in out
    assert max(map(len, out.splitlines())) <= 80
    assert 0 == releases(PACKAGE, "1.2.0,1.3.0", "--cache", cache, "--yes", *rest)[0]
    assert 0 == releases(PACKAGE, "1.0.0,1.3.0", "--cache", cache, "--yes", "--limit", "0.1", *rest)[0]


def test_results_are_those_of_the_code_as_it_is(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that the model imports belongs to what was run: once it is edited, kept results do not count."""
    from bisect_tool.cli.loading import load
    from bisect_tool.cli.releases import _own_sources

    helper = case / "here" / "helper_of_model.py"
    helper.write_text("BIAS = 1\n")
    (case / "model.py").write_text("import helper_of_model\n" + MODEL)
    settings = dict.fromkeys(
        ("entry", "entry_args", "threads", "checkpoint", "preprocess", "onnx", "raw", "allow_pickle"), None
    )
    load({**settings, "model": str(case / "model.py"), "inputs": [str(case / "sample.npy")]})
    sources = _own_sources()
    assert str(helper.resolve()) in sources
    assert not [path for path in sources if "site-packages" in path or "/bisect_tool/" in path]


def test_nothing_is_installed_unasked(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    code, _, err = releases(
        PACKAGE, "1.0..1.3", "--cache", case / "cache", case / "model.py", "--input", case / "sample.npy"
    )
    assert 2 == code
    assert "installing was not agreed to" in err and "help: --yes agrees beforehand" in err
    assert "installing bisectnumbers" not in err
    assert [] == list((case / "cache").rglob("*.npz"))


@pytest.mark.parametrize(
    ("package", "spec", "says"),
    [
        ("no-such-package-here", "1..2", "pip does not list the releases of no-such-package-here"),
        (PACKAGE, "3..4", "'3..4' holds no release"),
        (PACKAGE, "x..4", "'x' is no version"),
    ],
)
def test_what_cannot_be_searched_is_named(package: str, spec: str, says: str, case: Path) -> None:
    code, out, err = releases(package, spec, "--yes", case / "model.py", "--input", case / "sample.npy")
    assert (2, "") == (code, out)
    assert says in err and "help: " in err


def test_one_sample_only(case: Path) -> None:
    sample = case / "sample.npy"
    code, _, err = releases(PACKAGE, "1.0..1.3", "--yes", case / "model.py", "--input", sample, "--input", sample)
    assert 2 == code
    assert "2 samples given: each release runs one" in err


def test_versions_that_cannot_be_installed_leave_no_answer(case: Path) -> None:
    rest = ["--cache", case / "cache", "--yes", case / "model.py", "--input", case / "sample.npy"]
    code, out, _ = releases(PACKAGE, "7.0,8.0", *rest)
    assert 3 == code
    assert "INCONCLUSIVE  fewer than two versions could be tried" in out
    assert "pip cannot install bisectnumbers==7.0" in " ".join(out.split())
