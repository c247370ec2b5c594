"""``scripts/gpu-check`` and ``scripts/matrix-table``, as far as they go without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "tests" / "unit"))

import gpu_check
import matrix_runs
import matrix_table
from report_samples import metrics

from bisect_tool.matrix import read_matrix
from bisect_tool.numerics import check_pair
from bisect_tool.records import Alignment, ConfigRun, Diagnosis, NumericConfig, OutputResult, Report, Tolerance, Verdict

TORCH, ORT = NumericConfig("torch"), NumericConfig("onnxruntime", optimization="all")


def pair(name: str, status: str, reason: str | None = None, error: float | None = None) -> ConfigRun:
    outputs = () if error is None else (OutputResult("y", "y", metrics(error), "fail"),)
    return ConfigRun(name, TORCH, ORT, {}, False, status, None, outputs, 1.0, 100.0, reason)  # type: ignore[arg-type]


def judged(*runs: ConfigRun, code: int = 0, diagnoses: tuple[Diagnosis, ...] = ()) -> matrix_runs.Judged:
    verdict = Verdict("agrees", (), None, (), diagnoses=diagnoses)
    report = Report({}, verdict, Tolerance("default"), Alignment((), (), (), 1, 1, 1.0), runs, (), {}, {})
    return matrix_runs.Judged(code, 12.3, report, "")


def cells(lines: list[str], start: str) -> list[list[str]]:
    """Cells of the table's lines that begin with a word."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith(f"| {start}")]


# scripts/gpu-check


@pytest.mark.skipif(torch.cuda.is_available(), reason="what it says without a GPU")
def test_gpu_check_without_a_gpu(tmp_path: Path) -> None:
    """It ends with 0 after one line that says what is missing, and every part is in the table as skipped."""
    file = tmp_path / "gpu.md"
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu-check"), "--output", str(file)],
        env={**os.environ, "BISECT_PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert file.read_text(encoding="utf-8").strip() == done.stdout.strip()
    lines = done.stdout.splitlines()
    (missing,) = [line for line in lines if line.startswith("No CUDA run: ")]
    assert "PyTorch" in missing and ("ONNX Runtime" in missing or "onnxruntime" in missing)
    assert torch.__version__ in next(line for line in lines if line.startswith("| torch |"))
    rows = lines[lines.index(next(line for line in lines if line.startswith("| part |"))) + 2 :]
    parts = [row.split(" | ")[0].strip("| ") for row in rows if row.startswith("|")]
    assert [
        "matrix full",
        "TF32",
        "algorithm search",
        "placement",
        "hidden provider library",
        "tests marked gpu",
    ] == parts
    assert all("| skipped: " in row for row in rows if row.startswith("|"))


def test_gpu_check_asks_for_what_there_is(tmp_path: Path) -> None:
    """Its own matrices are valid, each pair on CUDA with one thing set, and the plain pair on the CPU comes first."""
    for number, text in enumerate(
        [gpu_check._toml({"cpu": ({}, {"optimization": "off"}), **gpu_check.SWITCHES}), gpu_check.ON_CUDA]
    ):
        file = tmp_path / f"{number}.toml"
        file.write_text(text, encoding="utf-8")
        pairs = read_matrix(str(file)).pairs
        for each in pairs:
            check_pair(each)
        assert ("cpu", "cpu", "cpu") == (pairs[0].name, pairs[0].expected.device, pairs[0].actual.device)
        assert [True, *[False] * (len(pairs) - 1)] == [each.gating for each in pairs]
        assert all("cuda" in (each.expected.device, each.actual.device) for each in pairs[1:])
    kinds = {re.sub(r"^(torch|ort|both)-|-\w+$", "", name) for name in gpu_check.SWITCHES}
    assert {"tf32", "search"} == kinds, "every pair belongs to one of the parts"


def test_provider_library_is_hidden(tmp_path: Path) -> None:
    """The copy is the one that is imported; it lacks the library, and the tool says so in place of a run."""
    try:
        gpu_check.hide_provider(tmp_path)
    except RuntimeError as error:
        pytest.skip(str(error))
    code = (
        "import onnxruntime; print(onnxruntime.__path__[0])\n"
        "from bisect_tool.backends.ort_options import CUDA, require_provider\n"
        "require_provider('CPUExecutionProvider')\n"
        "require_provider(CUDA)\n"
    )
    environment = matrix_runs.with_this_package({"PYTHONPATH": str(tmp_path)})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert str(tmp_path / "onnxruntime") == done.stdout.strip()
    assert re.search(r"InconclusiveError: .*libonnxruntime_providers_cuda\.so is missing", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (pair("a", "diverges", error=1e-2), False),
        (pair("a", "crashed", "the process was killed by SIGSEGV"), True),
        (replace(pair("a", "agrees", error=1e-7), actual=replace(ORT, device="cuda")), False),
        (
            replace(
                pair("a", "agrees", error=1e-7),
                actual=replace(ORT, device="cuda"),
                effective={"actual": {"providers": ["CPUExecutionProvider"]}},
            ),
            True,
        ),
        (
            replace(
                pair("a", "agrees", error=1e-7),
                expected=replace(TORCH, device="cuda"),
                effective={"expected": {"device": "cpu"}},
            ),
            True,
        ),
    ],
)
def test_gpu_check_tells_findings_from_faults(run: ConfigRun, wrong: bool) -> None:
    """That TF32 diverges is a result; a crash, or a CUDA run on the CPU that passes, is a fault."""
    (row,) = gpu_check._pairs("part", "example", judged(run), [run])
    assert wrong == row.wrong
    assert run.status in row.verdict


# scripts/matrix-table


def test_matrix_table_counts_pairs() -> None:
    """Attempts at explanation are no pairs of the matrix; failed and crashed ones are counted together."""
    done = judged(
        pair("a", "agrees", error=1e-7),
        pair("b", "diverges", error=1e-2),
        pair("b-try-1", "agrees", error=1e-7),
        pair("c", "skipped", "no CUDA"),
        pair("d", "failed", "no"),
        pair("e", "crashed", "killed"),
        code=3,
    )
    page = matrix_table._page({("mobile", "dynamo"): done})
    assert [["mobile", "dynamo", "5", "1", "1", "1", "2", "3", "12 s"]] == cells(page, "mobile")[:1]


def test_matrix_table_says_what_diverges_and_why() -> None:
    """Each diverging pair with its worst error and the title of its own diagnosis; one that counts says so."""
    why = Diagnosis("BD301", "GELU by tanh", ("b: diverges, relative L2 1.0e-02", "more"), "leave it", True, None)
    done = judged(
        pair("b", "diverges", error=1e-2), replace(pair("bb", "diverges", error=1e-3), gating=True), diagnoses=(why,)
    )
    rows = matrix_table._diverging("mobile", "dynamo", done)
    assert [
        ("mobile", "dynamo", "b", "1.0e-02", "0.08", "GELU by tanh"),
        ("mobile", "dynamo", "bb (counts)", "1.0e-03", "0.008", "not looked for"),
    ] == rows


def test_matrix_table_gathers_reasons() -> None:
    """One line for each reason, the most frequent first; a command without a report is among them."""
    one = judged(
        pair("a", "skipped", "no CUDA\nand more"), pair("b", "skipped", "no CUDA"), pair("c", "crashed", "killed")
    )
    nothing = matrix_runs.Judged(70, 1.0, None, "Traceback")
    rows = matrix_table._not_run({("mobile", "dynamo"): one, ("mobile", "torchscript"): nothing})
    assert [
        ("no CUDA", "a, b", "mobile dynamo"),
        ("crashed: killed", "c", "mobile dynamo"),
        ("Traceback", "all", "mobile torchscript"),
    ] == rows
    assert "all of them" == matrix_table._not_run({("mobile", "dynamo"): one})[0][2]


def test_table_survives_bars() -> None:
    """A bar in a cell would end it."""
    assert ["| a |", "| --- |", r"| b \| c |"] == matrix_runs.table(["a"], [["b | c"]])


def test_command_that_takes_too_long() -> None:
    """It is ended and said to be so."""
    done = matrix_runs.judge(["--help"], timeout=0.001)
    assert (124, None, "stopped after 0 s") == (done.code, done.report, done.error)
    assert [] == done.pairs
