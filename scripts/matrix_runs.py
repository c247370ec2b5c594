"""What scripts/gpu-check and scripts/matrix-table share: matrices run by the command line, and Markdown tables of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bisect_tool.records import ConfigRun, Report
from bisect_tool.store import read_report

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ("centerpoint", "attention", "mobile", "recurrent")

_COMMAND = "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()"


@dataclass(frozen=True)
class Judged:
    """What one command left: exit code, wall time in seconds, the report if there is one, and the last line of stderr."""

    code: int
    seconds: float
    report: Report | None
    error: str

    @property
    def pairs(self) -> list[ConfigRun]:
        """The pairs of the matrix; those that were only run to explain others are left out."""
        return [run for run in self.report.configs if "-try-" not in run.name] if self.report else []


def judge(arguments: Sequence[object], timeout: float, environment: Mapping[str, str] | None = None) -> Judged:
    """``bisect-divergence ARGUMENTS`` in a process of its own, with this interpreter and this checkout.

    Args:
        arguments: without the report folder.
        timeout: seconds; a command that takes longer is ended, and its exit code is that of ``timeout``, 124.
        environment: variables that are set besides.
    """
    with tempfile.TemporaryDirectory(prefix="bisect-matrix-") as folder:
        target = Path(folder) / "report"
        words = [sys.executable, "-c", _COMMAND, *map(str, arguments), "-o", str(target), "-q"]
        began = time.perf_counter()
        try:
            done = subprocess.run(
                words, cwd=ROOT, env=with_this_package(environment), capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return Judged(124, timeout, None, f"stopped after {timeout:.0f} s")
        seconds = time.perf_counter() - began
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("help: ")]
        report = read_report(target) if (target / "report.json").exists() else None
        return Judged(done.returncode, seconds, report, lines[-1] if lines else "")


def with_this_package(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment with some variables; of packages those in ``PYTHONPATH`` there come first, then ours."""
    found = {**os.environ, **(environment or {})}
    paths = [(environment or {}).get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH")]
    return {**found, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def example(name: str) -> list[str]:
    """The arguments that name one of the examples; its checkpoint and sample are made if they are not there."""
    folder = ROOT / "examples" / name
    if not (list(folder.glob("ckpt.*")) and list(folder.glob("sample.*"))):
        subprocess.run([sys.executable, str(folder / "make_data.py")], check=True, stdout=subprocess.DEVNULL)
    return ["--config", str(ROOT / "configs" / f"{name}.toml")]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
