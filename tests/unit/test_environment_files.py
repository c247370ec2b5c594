"""Whatever an environment is written down in, the same packages come out of it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from bisect_tool.environments.files import Facts, read_facts
from bisect_tool.errors import BisectError

FREEZE = """\
# comment
numpy==1.26.4
Torch==2.3.1+cu121 \\
    --hash=sha256:aa --hash=sha256:bb
opencv_python==4.9.0.80 ; python_version >= "3.8"
mine @ git+https://me:pw@host.org/mine.git@1234
wheel-name @ file:///x/wheel_name-1.5-py3-none-any.whl
-e git+https://host.org/other.git#egg=other
"""

POETRY = """\
[[package]]
name = "numpy"
version = "1.26.4"
[[package]]
name = "Torch"
version = "2.3.1+cu121"
[metadata]
lock-version = "2.0"
"""

UV = """\
version = 1
[[package]]
name = "app"
version = "0.1"
source = { virtual = "." }
[[package]]
name = "numpy"
version = "1.26.4"
source = { registry = "x" }
[[package]]
name = "torch"
version = "2.3.1+cu121"
"""

PYLOCK = """\
lock-version = "1.0"
[[packages]]
name = "numpy"
version = "1.26.4"
[[packages]]
name = "torch"
version = "2.3.1+cu121"
"""

PIPFILE = json.dumps(
    {"_meta": {}, "default": {"numpy": {"version": "==1.26.4"}, "torch": {"version": "==2.3.1+cu121"}}, "develop": {}}
)

CONDA_YAML = """\
name: x
channels:
  - conda-forge
dependencies:
  - python=3.10.14
  - conda-forge::numpy=1.26.4=py310h_0
  - scipy>=1.11   # any
  - pip
  - pip:
      - torch==2.3.1+cu121
"""

CONDA_LIST = """\
# packages in environment at /opt/conda:
#
# Name                    Version                   Build  Channel
numpy                     1.26.4          py310hb13e2d6_0    conda-forge
python                    3.10.14         h955ad1f_1
pytorch                   2.3.1           py3.10_cuda12.1_cudnn8.9.2_0    pytorch
pytorch-cuda              12.1            ha16c6d3_5    pytorch
"""

CONDA_EXPLICIT = """\
@EXPLICIT
https://host.org/linux-64/numpy-1.26.4-py310hb13e2d6_0.conda#0123
https://host.org/linux-64/pytorch-2.3.1-py3.10_cuda12.1_cudnn8.9.2_0.tar.bz2
https://host.org/linux-64/python-3.10.14-h955ad1f_1.conda
"""

PIP_LIST = "Package Version\n------- -----------\nnumpy   1.26.4\ntorch   2.3.1+cu121\n"

PIP_JSON = json.dumps([{"name": "numpy", "version": "1.26.4"}, {"name": "Torch", "version": "2.3.1+cu121"}])

CONDA_JSON = json.dumps(
    [
        {"name": "numpy", "version": "1.26.4", "build_string": "py310hb13e2d6_0", "channel": "conda-forge"},
        {"name": "pytorch", "version": "2.3.1", "build_string": "py3.10_cuda12.1_cudnn8.9.2_0", "channel": "pytorch"},
    ]
)

FILES = {
    "conda.json": CONDA_JSON,
    "freeze.txt": FREEZE,
    "poetry.lock": POETRY,
    "uv.lock": UV,
    "pylock.toml": PYLOCK,
    "Pipfile.lock": PIPFILE,
    "environment.yml": CONDA_YAML,
    "conda.txt": CONDA_LIST,
    "explicit.txt": CONDA_EXPLICIT,
    "list.txt": PIP_LIST,
    "list.json": PIP_JSON,
}


def read(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Facts:
    file = folder / name
    file.write_text(text, encoding=encoding)
    return read_facts(file)


def packages(facts: Facts) -> dict[str, str]:
    return {name: value for (domain, name), value in facts.values.items() if domain == "package"}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_tells_the_same_packages(name: str, tmp_path: Path) -> None:
    found = packages(read(tmp_path, name, FILES[name]))
    assert ("1.26.4", "2.3.1+cu121") == (found["numpy"], found["torch"])
    assert "app" not in found


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_output_of_other_shells(encoding: str, tmp_path: Path) -> None:
    assert "1.26.4" == packages(read(tmp_path, "f.txt", FREEZE, encoding))["numpy"]


def test_pip_freeze(tmp_path: Path) -> None:
    facts = read(tmp_path, "f.txt", FREEZE)
    assert packages(facts) == {
        "numpy": "1.26.4",
        "torch": "2.3.1+cu121",
        "opencv-python": "4.9.0.80",
        "mine": "@ git+https://host.org/mine.git@1234",
        "wheel-name": "1.5",
        "other": "@ git+https://host.org/other.git",
    }
    assert "pw" not in repr(facts)


def test_conda_tells_python_and_cuda(tmp_path: Path) -> None:
    values = read(tmp_path, "c.txt", CONDA_LIST).values
    assert ("3.10.14", "12.1") == (values["python", "version"], values["cuda", "runtime of torch"])
    assert "3.10.14" == read(tmp_path, "environment.yml", CONDA_YAML).values["python", "version"]


def test_requirements_with_ranges_markers_and_includes(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("scipy==1.13.0\n-r main.txt\n")  # a circle
    (tmp_path / "pins.txt").write_text("pandas==2.2.2\n")
    text = (
        "-r base.txt\n-c pins.txt\n--extra-index-url https://x\nnumpy>=1.20,<3\npandas\n"
        'torch==1.0 ; python_version < "3.0"\ntorch==2.0 ; python_version >= "3.0"\nrequests\n'
    )
    facts = read(tmp_path, "main.txt", text)
    assert {"scipy": "1.13.0", "pandas": "2.2.2", "torch": "2.0"} == packages(facts)
    assert {"numpy": "<3,>=1.20", "requests": "any version"} == facts.ranges
    assert not facts.complete


def test_reports_recordings_and_snapshots(tmp_path: Path) -> None:
    snapshot = {"environment_version": 1, "python": "3.11.7", "distributions": {"numpy": "2.0"}, "versions": {}}
    for name, data in {
        "report.json": {"verdict": {}, "environment": snapshot},
        "manifest.json": {"environment": snapshot},
        "s.json": snapshot,
    }.items():
        (tmp_path / name).write_text(json.dumps(data))
        assert {"numpy": "2.0"} == packages(read_facts(tmp_path / name))
    assert {"numpy": "2.0"} == packages(read_facts(tmp_path))  # the folder
    with zipfile.ZipFile(tmp_path / "one.trace", "w") as archive:
        archive.write(tmp_path / "manifest.json", "manifest.json")
    assert "3.11.7" == read_facts(tmp_path / "one.trace").values["python", "version"]


def test_a_snapshot_of_a_newer_form_is_refused(tmp_path: Path) -> None:
    """What a newer version writes may mean something else; reports hold such a snapshot too."""
    with pytest.raises(BisectError, match="snapshot of form 2, this version of the tool knows 1"):
        read(tmp_path, "s.json", json.dumps({"environment_version": 2, "python": "3.20"}))


def test_secrets_in_a_foreign_snapshot_are_not_repeated(tmp_path: Path) -> None:
    variables = {
        "HF_TOKEN": "hf_abcdefghijklmnop1234",
        "OMP_PLACES": "ghp_abcdefghijklmnop1234",
        "OMP_NUM_THREADS": "2",
    }
    facts = read(tmp_path, "s.json", json.dumps({"environment_version": 1, "python": "3.1", "variables": variables}))
    assert "abcdefghijklmnop1234" not in repr(facts)
    assert "2" == facts.values["variable", "OMP_NUM_THREADS"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "hello world\n", "line 1: 'hello world' is no requirement"),
        ("a.txt", "", "tells nothing of an environment"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"x": 1}', "tells nothing of an environment"),
        ("uv.lock", "[[package]]\nname = \n", "cannot be read"),
        ("environment.yml", "name: x\n", "no list of dependencies"),
        ("a.txt", "-r gone.txt\n", "gone.txt: no such file"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BisectError) as caught:
        read(tmp_path, name, text)
    assert message in caught.value.message
    assert caught.value.hint and 2 == caught.value.exit_code


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BisectError, match="no such file"):
        read_facts(tmp_path / "x.txt")
    with pytest.raises(BisectError, match="folder without"):
        read_facts(tmp_path)
    (tmp_path / "b.bin").write_bytes(b"\x80\x81\xff")
    with pytest.raises(BisectError, match="is no text"):
        read_facts(tmp_path / "b.bin")
