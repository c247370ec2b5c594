"""Snapshots: what they hold, that they fit their schema, and that they are made without torch and onnxruntime too."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

import bisect_tool
from bisect_tool.backends import environment_facts
from bisect_tool.environments import snapshot as environment
from bisect_tool.environments.snapshot import _name_and_version, normalised
from bisect_tool.errors import BisectError

SCHEMA = json.loads((Path(bisect_tool.__file__).parent / "environment.schema.json").read_text("utf-8"))


def check(data: object) -> None:
    jsonschema.validate(data, SCHEMA, jsonschema.Draft202012Validator)


def test_snapshot_fits_its_schema_and_is_plain_json() -> None:
    data = environment_facts.snapshot()
    check(data)
    assert data == json.loads(json.dumps(data, allow_nan=False))


def test_snapshot_tells_this_process() -> None:
    data = environment_facts.snapshot()
    assert platform.python_version() == data["python"]
    assert torch.__version__ == data["torch"]["version"] == data["distributions"]["torch"] == data["versions"]["torch"]
    assert torch.get_num_threads() == data["torch"]["flags"]["torch.get_num_threads()"]
    assert 1 <= data["cpu"]["available"] <= data["cpus"]


def test_flags_follow_their_switches() -> None:
    """What a flag's name says is what it reads; reading changes none of them."""
    before = environment_facts.flags(torch)
    assert before == environment_facts.flags(torch)
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.mkldnn.enabled = False
    try:
        now = environment_facts.flags(torch)
    finally:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(False)
        torch.backends.mkldnn.enabled = True
    changed = {name for name in now if now[name] != before.get(name)}
    assert {
        "torch.backends.cudnn.benchmark",
        "torch.are_deterministic_algorithms_enabled()",
        "torch.is_deterministic_algorithms_warn_only_enabled()",
        "torch.backends.mkldnn.enabled",
    } <= changed
    assert before == environment_facts.flags(torch)


def test_every_flag_of_a_matrix_is_told() -> None:
    """Each global switch of docs/switches.md has a flag in the snapshot that moves with it."""
    from bisect_tool.backends import torch_switches

    moving = 0
    for name, flag in torch_switches._FLAGS.items():
        old = flag.read()
        if not isinstance(old, bool):
            continue
        before = environment_facts.flags(torch)
        try:
            flag.write(not old)
            moved = flag.read() != old
            after = environment_facts.flags(torch)
        finally:
            flag.write(old)
        assert not moved or before != after, name
        moving += moved
    assert moving


@pytest.mark.parametrize("missing", ["torch", "onnxruntime"])
def test_snapshot_without_a_library(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library is not installed the snapshot says so and is complete otherwise."""
    monkeypatch.setitem(sys.modules, missing, None)
    data = environment_facts.snapshot()
    check(data)
    assert {"absent"} == set(data[missing])


def test_snapshot_in_a_process_that_has_neither() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnxruntime'] = None\n"
        "from bisect_tool.backends.environment_facts import snapshot; d = snapshot()\n"
        "print(d['torch'], d['onnxruntime'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2 == done.stdout.count("absent")


def test_binaries_tell_their_version() -> None:
    data = environment.binary_versions([sys.executable])
    assert [f"Python {platform.python_version()}"] == list(data.values())


def test_a_binary_that_is_not_there() -> None:
    with pytest.raises(BisectError, match="--binary no-such-program: no such program"):
        environment.binary_versions(["no-such-program"])


def test_names_are_those_of_pep_503() -> None:
    assert "foo-bar-baz" == normalised("Foo.Bar__baz") == normalised("foo-bar.BAZ")


def test_secrets_of_this_process_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_AbCdEfGhIjKlMnOpQrStUvWx12"
    for name in ("TORCH_HUB_TOKEN", "CUDA_SECRET", "HF_TOKEN", "OMP_PLACES", "TORCH_EXTRA"):
        monkeypatch.setenv(name, secret)
    assert secret not in json.dumps(environment_facts.snapshot())


def test_devices_are_those_that_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nvidia-smi prints them; a program that fails tells of none."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA A100-SXM4-40GB, 550.54.15, 40960, 8.0'\necho 'NVIDIA T4, 550.54.15, [N/A], 7.5'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = environment._gpu.__wrapped__()
    assert "550.54.15" == found["driver"]
    assert found["devices"] == [
        {"name": "NVIDIA A100-SXM4-40GB", "memory_mib": 40960, "compute_capability": "8.0"},
        {"name": "NVIDIA T4", "memory_mib": None, "compute_capability": "7.5"},
    ]
    program.write_text("#!/bin/sh\necho broken; exit 9\n")
    assert {"devices": [], "driver": None} == environment._gpu.__wrapped__()


@pytest.mark.parametrize("file", ["METADATA", "PKG-INFO"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_distribution_is_told_by_the_head_of_its_metadata(tmp_path: Path, file: str, ending: str) -> None:
    """As importlib.metadata reads it; a description may hold lines that look like fields."""
    folder = tmp_path / ("foo_bar-1.0.dist-info" if file == "METADATA" else "foo_bar.egg-info")
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", "name: Foo.Bar ", "Version:  1.0+cpu", "", "Name: other", "Version: 2"]
    (folder / file).write_text(ending.join(lines), encoding="utf-8", newline="")
    distribution = importlib.metadata.PathDistribution(folder)
    assert ("Foo.Bar", "1.0+cpu") == _name_and_version(distribution)
    assert ("Foo.Bar", "1.0+cpu") == (distribution.metadata["Name"].strip(), distribution.version)


def test_every_distribution_is_told_as_the_library_tells_it() -> None:
    """Of those that are installed here."""
    for distribution in importlib.metadata.distributions():
        assert (distribution.metadata["Name"], distribution.version) == _name_and_version(distribution)
