"""What differs between two environments, in which order it is told, and what is to be done."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from bisect_tool.environments.diff import EnvironmentDiff, diff, kinds_of_change, script_block
from bisect_tool.environments.files import DOMAINS, Facts, of_snapshot, read_facts
from bisect_tool.environments.rules import COUNTING, LEVELS, RULES, rule_for
from bisect_tool.reporters.environments import render_diff

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Other work may hold the processor."""


def facts(complete: bool = True, domains: frozenset[str] = frozenset(DOMAINS), **packages: str) -> Facts:
    """Facts with these packages; ``_`` in a name is ``-``."""
    values = {("package", name.replace("_", "-")): version for name, version in packages.items()}
    return Facts("x", "test", values, domains=domains, complete=complete, thorough=complete)


def with_value(base: Facts, domain: str, name: str, value: str) -> Facts:
    return dataclasses.replace(base, values={**base.values, (domain, name): value})


def levels(found: EnvironmentDiff) -> dict[str, str]:
    return {difference.name: difference.level for difference in found.differences}


@pytest.mark.parametrize(
    ("a", "b", "kinds"),
    [
        ("1.26.4", "2.1.0", ["major"]),
        ("2.3.0", "2.4.0", ["minor"]),
        ("2.3.0", "2.3.1", ["patch"]),
        ("2.3.0+cpu", "2.3.0+cu121", ["local"]),
        ("2.3.0", "2.3.0+cu121", ["local"]),
        ("2.6.0.dev20240901", "2.6.0.dev20240902", ["nightly", "patch"]),
        ("2.6.0.dev20240901+cpu", "2.5.0", ["nightly", "local", "minor"]),
        ("2.6.0rc1", "2.6.0", ["nightly", "patch"]),
        (None, "1", ["presence"]),
        ("@ git+https://x", "1", ["minor"]),
    ],
)
def test_kinds_of_change(a: str | None, b: str | None, kinds: list[str]) -> None:
    assert kinds == kinds_of_change(a, b)
    assert kinds == kinds_of_change(b, a)


@pytest.mark.parametrize(
    ("domain", "name", "a", "b", "level"),
    [
        ("package", "torch", "2.6.0.dev20241112", "2.5.1", "likely"),
        ("package", "torch", "2.5.1+cpu", "2.5.1+cu121", "likely"),
        ("package", "torch", "2.5.1", "2.5.0", "possible"),
        ("package", "numpy", "1.26.4", "2.0.0", "likely"),
        ("package", "numpy", "2.0.0", "2.1.0", "possible"),
        ("package", "pillow", "10.0", "11.0", "likely"),
        ("package", "opencv-python", "4.9.0.80", "4.10.0.84", "likely"),
        ("package", "onnxruntime", "1.18.0", "1.19.0", "likely"),
        ("package", "onnxscript", "0.3.0", "0.4.0", "possible"),
        ("package", "scipy", "1.12.0", "1.13.0", "possible"),
        ("package", "pandas", "1.5.3", "2.2.0", "possible"),
        ("package", "nvidia-cudnn-cu12", "8.9.2.26", "9.1.0.70", "likely"),
        ("package", "pip", "23.0", "24.0", "none"),
        ("package", "my-own-package", "1", "2", "unknown"),
        ("python", "version", "3.10.4", "3.11.7", "possible"),
        ("python", "version", "3.11.4", "3.11.7", "unlikely"),
        ("gpu", "device 0", "NVIDIA A100", "NVIDIA H100", "likely"),
        ("gpu", "driver", "535.1", "550.2", "possible"),
        ("cuda", "cuDNN of torch", "8902", "90100", "likely"),
        ("cuda", "runtime of torch", "11.8", "12.1", "likely"),
        ("cpu", "instruction sets", "avx2", "avx2 avx512f", "likely"),
        ("cpu", "model", "A", "B", "possible"),
        ("blas", "of numpy", "openblas 0.3", "mkl 2024", "possible"),
        ("variable", "NVIDIA_TF32_OVERRIDE", "0", "1", "likely"),
        ("variable", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "0", "1", "likely"),
        ("variable", "OMP_NUM_THREADS", "1", "8", "possible"),
        ("variable", "PYTHONHASHSEED", "0", "random", "possible"),
        ("variable", "CUBLAS_WORKSPACE_CONFIG", ":4096:8", ":16:8", "possible"),
        ("variable", "OMP_WAIT_POLICY", "active", "passive", "none"),
        ("torch flag", "torch.backends.cuda.matmul.allow_tf32", "True", "False", "likely"),
        ("torch flag", "torch.backends.cudnn.conv.fp32_precision", "tf32", "ieee", "likely"),
        ("torch flag", "torch.are_deterministic_algorithms_enabled()", "True", "False", "possible"),
        ("torch flag", "torch.get_num_threads()", "1", "2", "possible"),
        ("onnxruntime", "providers", "CPUExecutionProvider", "CUDAExecutionProvider CPUExecutionProvider", "likely"),
        ("binary", "ffmpeg", "ffmpeg version 4.4", "ffmpeg version 6.1", "possible"),
        ("system", "release", "5.1", "6.1", "none"),
    ],
)
def test_how_likely_numbers_change(domain: str, name: str, a: str, b: str, level: str) -> None:
    """Each of these alone has its level, and counts for the status unless it has no effect."""
    base = facts(torch="2.5.1") if name != "torch" else facts()
    found = diff(with_value(base, domain, name, a), with_value(base, domain, name, b))
    assert {name: level} == levels(found)
    assert ("different" if level in COUNTING else "same") == found.status
    assert 5 < len(found.differences[0].reason) and found.differences[0].source


def test_the_likeliest_comes_first() -> None:
    a = facts(torch="2.3.1+cu121", numpy="1.26.4", scipy="1.12.0", requests="2.30", mylib="1")
    b = facts(torch="2.6.0.dev20241112+cpu", numpy="2.1.0", scipy="1.13.0", requests="2.31", mylib="2")
    assert ["torch", "numpy", "scipy", "mylib", "requests"] == [d.name for d in diff(a, b).differences]


def test_another_package_of_the_same_module_is_one_difference() -> None:
    found = diff(
        facts(onnxruntime_gpu="1.18.0", opencv_python="4.9.0.80"),
        facts(onnxruntime="1.18.0", opencv_python_headless="4.9.0.80"),
    )
    assert ["onnxruntime-gpu 1.18.0", "opencv-python 4.9.0.80"] == [d.expected for d in found.differences]
    assert ("onnxruntime-gpu==1.18.0", "opencv-python==4.9.0.80") == found.remedy.requirements
    assert "RUN pip uninstall -y onnxruntime opencv-python-headless" in found.remedy.dockerfile


def test_what_one_file_cannot_tell_is_no_difference() -> None:
    """A requirements file says nothing of variables, nor of packages that it does not name."""
    full = with_value(facts(numpy="2.0", scipy="1.13"), "variable", "OMP_NUM_THREADS", "1")
    partial = facts(complete=False, domains=frozenset({"package"}), numpy="2.0")
    found = diff(full, partial)
    assert "same" == found.status
    assert ("scipy 1.13 (first)",) == found.one_sided
    assert "variable" in found.not_told and "package" not in found.not_told


def test_a_package_on_one_side_only_counts_where_both_are_complete() -> None:
    found = diff(facts(numpy="2.0", scipy="1.13"), facts(numpy="2.0"))
    assert {"scipy": "possible"} == levels(found)
    assert ("scipy==1.13",) == found.remedy.requirements


@pytest.mark.parametrize(("asked", "level"), [(">=1.20", "unlikely"), ("<2", "likely"), ("any version", "unlikely")])
def test_a_range_against_a_version(asked: str, level: str) -> None:
    """What the range allows may be the same; what it excludes is not."""
    ranged = Facts("x", "requirements", {}, {"numpy": asked}, complete=False)
    found = diff(facts(numpy="2.1.0"), ranged)
    assert {"numpy": level} == levels(found)


def test_the_pin_of_a_range_is_the_range() -> None:
    ranged = Facts("x", "requirements", {}, {"numpy": "<2"}, complete=False)
    assert ("numpy<2",) == diff(ranged, facts(numpy="2.1.0")).remedy.requirements


def test_conda_against_a_snapshot(tmp_path: Path) -> None:
    """What conda tells otherwise, or not at all, is no difference."""
    listing = tmp_path / "conda.txt"
    listing.write_text(
        "# Name Version Build Channel\npython 3.10.14 h955ad1f_1\npytorch 2.3.1 py3.10_cuda12.1_cudnn8.9.2_0 pytorch\n"
        "pytorch-cuda 12.1 ha16c6d3_5\ncudnn 8.9.2.26 cuda12_0\n"
    )
    torch = {"version": "2.3.1+cu121", "cuda": "12.1", "cudnn": 8902, "flags": {"flush_denormal": False}}
    snapshot = {
        "environment_version": 1,
        "python": "3.10.14",
        "python_implementation": "CPython",
        "distributions": {"torch": "2.3.1+cu121"},
        "torch": torch,
    }
    found = diff(of_snapshot("s", "snapshot", snapshot), read_facts(listing))
    assert ("same", ()) == (found.status, found.differences)
    torch["cudnn"] = 90100
    found = diff(of_snapshot("s", "snapshot", snapshot), read_facts(listing))
    assert [("cuDNN of torch", "9.1.0", "8.9.2")] == [(d.name, d.expected, d.actual) for d in found.differences]


def test_an_older_report_lacks_what_it_did_not_write(tmp_path: Path) -> None:
    """The environments of reports used to hold less: that is no difference."""
    old = {"python": "3.11.7", "machine": "x86_64", "processor": "P", "cpus": 2, "versions": {"numpy": "2.0"}}
    new = {**old, "environment_version": 1, "python_implementation": "CPython", "os": {"libc": "glibc 2.36"}}
    new |= {"cpu": {"model": "P", "instruction_sets": ["avx"]}, "variables": {"OMP_NUM_THREADS": "1"}}
    new |= {"distributions": {"numpy": "2.0", "scipy": "1.0"}}
    assert "same" == diff(of_snapshot("a", "report", old), of_snapshot("b", "snapshot", new)).status


NAMES = st.sampled_from(["numpy", "torch", "pip", "mylib", "pillow", "onnxruntime", "onnxruntime-gpu", "opencv-python"])
VERSIONS = st.sampled_from(["1.0", "1.0.1", "1.1", "2.0", "2.0+cpu", "2.1.dev1", "x y"])
SIDES = st.dictionaries(NAMES, VERSIONS, max_size=6)


@UNHURRIED
@given(SIDES)
def test_an_environment_equals_itself(packages: dict[str, str]) -> None:
    side = Facts("x", "test", {("package", name): version for name, version in packages.items()})
    found = diff(side, side)
    assert ("same", ()) == (found.status, found.differences)
    assert len(packages) == sum(item.count for item in found.equal)


@UNHURRIED
@given(SIDES, SIDES)
def test_both_directions_tell_the_same(one: dict[str, str], other: dict[str, str]) -> None:
    """Exchanging the sides exchanges the values, and changes neither levels nor their order's level."""
    a, b = (Facts("x", "test", {("package", n): v for n, v in side.items()}) for side in (one, other))
    there, back = diff(a, b), diff(b, a)
    assert there.status == back.status
    assert sorted(d.level for d in there.differences) == sorted(d.level for d in back.differences)
    ranks = [LEVELS.index(difference.level) for difference in there.differences]
    assert ranks == sorted(ranks)


def test_the_table_is_sound() -> None:
    """Each rule has a domain and a level that there are, a reason and a source, and is reached by what it names."""
    for place, rule in enumerate(RULES):
        assert rule.domain in DOMAINS and rule.level in LEVELS and rule.source
        assert rule.reason and not rule.reason.endswith(".")
        names = [name.replace("*", "") for name in rule.names if name != "*"] or ["something"]
        changes = rule.changes or ("value", "major", "minor", "patch", "presence", "local", "nightly", "variant")
        reached = {rule_for(rule.domain, name, frozenset((change,)))[0] for name in names for change in changes}
        assert place in reached, rule
    assert all(rule.source != "-" for rule in RULES if rule.level in ("likely", "possible"))


def test_the_script_runs() -> None:
    """The block is Python that runs, and sets what differs to the first side's values."""
    first, second = facts(), facts()
    for name, ours, theirs in (
        ("torch.get_float32_matmul_precision()", "high", "highest"),
        ("torch.get_num_threads()", "1", "2"),
        ("torch.backends.cudnn.benchmark", "False", "True"),
        ("torch.backends.mha.get_fastpath_enabled()", "False", "True"),
        ("torch.backends.cuda.math_sdp_enabled()", "True", "False"),
        ("torch.get_default_dtype()", "float32", "float64"),
    ):
        first, second = with_value(first, "torch flag", name, ours), with_value(second, "torch flag", name, theirs)
    block = diff(first, second).remedy.script
    check = (
        "assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ('high', 1)\n"
        "assert torch.are_deterministic_algorithms_enabled() and not torch.backends.mha.get_fastpath_enabled()\n"
        "assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'\n"
    )
    done = subprocess.run([sys.executable, "-c", block + check], capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr


def test_the_script_without_differences_sets_seeds_only() -> None:
    assert "As on the first side" not in script_block(())
    assert "torch.manual_seed(SEED)" in script_block(())


def test_dockerfile_lines() -> None:
    first = with_value(
        with_value(facts(numpy="1.26.4"), "python", "version", "3.10.4"), "variable", "OMP_PLACES", "a b"
    )
    second = with_value(
        with_value(facts(numpy="2.0.0"), "python", "version", "3.11.4"), "variable", "PYTHONHASHSEED", "0"
    )
    assert diff(first, second).remedy.dockerfile == (
        "FROM python:3.10",
        "# the reference does not set PYTHONHASHSEED: remove it",
        'ENV OMP_PLACES="a b"',
        "RUN pip install \\",
        "    numpy==1.26.4",
    )


def test_the_text_at_80_columns_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = facts(torch="2.3.1", numpy="1.26.4", pip="23.0"), facts(torch="2.3.1", numpy="2.1.0", pip="24.0")
    out = io.StringIO()
    render_diff(diff(a, b), Console(file=out, width=80, no_color=True))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80 or "PYTHONHASHSEED=0 python" in text
    for line in (
        "DIFFERENT  differences that can change numbers: 1 likely",
        "  - numpy 1.26.4 -> 2.1.0 (major)",
        "  pip 23.0 -> 24.0 (major)",
        "  [x] packages, 1: torch 2.3.1",
        "    numpy==1.26.4",
    ):
        assert line in text.splitlines()


def test_texts_of_others_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    hostile = facts(evil="1.0\x1b[31m[bold]")
    render_diff(diff(hostile, facts(evil="2")), Console(file=out, width=80, no_color=True))
    assert "\x1b" not in out.getvalue() and "[bold]" in out.getvalue()


def test_rules_name_documents_that_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    assert all(
        (root / rule.source).is_file() for rule in RULES if rule.source.startswith("docs/") and " " not in rule.source
    )
