"""Replay folders in a bare environment; see scripts/replay-check."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "zoo"))

AGREE = 1e-3
"""Relative difference of two numbers that are the same: sums may go in another order."""


@dataclass(frozen=True)
class Checked:
    """One folder: what its report says, and what it printed (``nan``: it did not run)."""

    family: str
    exporter: str
    kind: str
    reported: float
    printed: float
    problem: str = ""

    @property
    def same(self) -> bool:
        if math.isinf(self.reported) or math.isinf(self.printed):
            return self.reported == self.printed
        return math.isclose(self.reported, self.printed, rel_tol=AGREE, abs_tol=1e-12)


def bare_python(folder: Path) -> Path:
    """An interpreter with onnxruntime and numpy, and what these need, alone."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "onnxruntime", "numpy"], check=True)
    for name in ("torch", "onnx", "onnx_ir", "bisect_tool"):
        found = subprocess.run([python, "-c", f"import {name}"], capture_output=True, cwd=folder, env=_environment())
        if found.returncode == 0:
            raise SystemExit(f"{python} has {name}: that is no bare environment")
    return python


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def printed_by(python: Path, folder: Path) -> tuple[float, str]:
    done = subprocess.run(
        [python, "-I", "run.py"], capture_output=True, text=True, cwd=folder, env=_environment(), timeout=120
    )
    found = re.search(r"relative L2: (\S+)", done.stdout)
    if done.returncode or not found:
        return math.nan, (done.stderr.strip().splitlines() or ["printed nothing"])[-1]
    return float(found[1]), ""


def checked(python: Path, families: list[str], per_base: int) -> Iterator[Checked]:
    import faults
    import judging
    import onnx
    from families import EXPORTERS, FAMILIES, built

    from bisect_tool import LoadedCase, Options, bisect, make_tolerance

    kinds = list(faults.KINDS)
    turn = 0
    for family in families or list(FAMILIES):
        for exporter in EXPORTERS:
            base = judging.base_of(family, exporter)
            left, misses = per_base, 0
            while left and misses < len(kinds):
                kind = kinds[turn % len(kinds)]
                turn += 1
                fault = next(iter(faults.faults(base, kind, "replay", 1)), None)
                if fault is None:
                    misses += 1
                    continue
                left -= 1
                with tempfile.TemporaryDirectory(prefix="replay-check-") as place:
                    file = Path(place) / "model.onnx"
                    onnx.save(fault.model, file)

                    def keep(name: str, files: Mapping[str, bytes | str], place: str = place) -> None:
                        folder = Path(place) / name
                        folder.mkdir(parents=True)
                        for inner, content in files.items():
                            raw = content.encode() if isinstance(content, str) else content
                            (folder / inner).write_bytes(raw)

                    case = LoadedCase(family, built(family), FAMILIES[family].inputs(0), {})
                    options = Options(make_tolerance(None, None, None), onnx=file, keep_replay=keep)
                    for origin in bisect(case, options).verdict.origins:
                        if origin.replay is not None:
                            number, problem = printed_by(python, Path(place) / origin.replay)
                            yield Checked(family, exporter, kind, origin.local_rel_l2, number, problem)


def page(found: list[Checked], python: Path, seconds: float) -> str:
    versions = subprocess.run(
        [python, "-c", "import numpy, onnxruntime as o; print(o.__version__, numpy.__version__)"],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    ).stdout.split()
    lines = [
        "# Replay folders in a bare environment",
        "",
        "Written by this command; do not edit by hand.",
        "",
        "```console",
        "$ scripts/replay-check",
        "```",
        "",
        "Faults are planted into the zoo's graphs, a few kinds in turn for each family and exporter, and each origin's",
        "replay folder runs in a virtual environment made for this: onnxruntime, numpy and what these need, no PyTorch, no",
        f"onnx, not this tool. *Same*: it prints the report's `local_rel_l2`, to a part in {1 / AGREE:.0f}, or both are inf.",
        "",
        f"onnxruntime {versions[0]}, numpy {versions[1]}; {seconds:.0f} s.",
        "",
        "| family | exporter | folders | ran | same number |",
        "|---|---|---:|---:|---:|",
    ]
    for key in dict.fromkeys((each.family, each.exporter) for each in found):
        lines.append(_row(*key, [each for each in found if (each.family, each.exporter) == key]))
    lines.append(_row("all", "", found))
    others = [each for each in found if not each.same]
    if others:
        lines += ["", "Others:", ""]
        for each in others:
            what = each.problem or f"reported {each.reported:.6e}, printed {each.printed:.6e}"
            lines.append(f"- {each.family}, {each.exporter}, {each.kind}: {what}")
    return "\n".join(lines) + "\n"


def _row(family: str, exporter: str, found: list[Checked]) -> str:
    ran, same = sum(not each.problem for each in found), sum(each.same for each in found)
    return f"| {family} | {exporter} | {len(found)} | {ran} | {same} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default="", help="comma-separated; default: all")
    parser.add_argument(
        "--per-base", type=int, default=6, help="folders for each family and exporter; default: %(default)s"
    )
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs" / "replay.md", help="Markdown file; default: %(default)s"
    )
    parser.add_argument(
        "--venv", type=Path, help="where the bare environment is, or is to be; else one that goes again"
    )
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="replay-check-venv-") as folder:
        python = bare_python(chosen.venv or Path(folder))
        found = []
        for each in checked(python, [name for name in chosen.families.split(",") if name], chosen.per_base):
            found.append(each)
            mark = "same" if each.same else f"OTHER {each.problem}"
            print(
                f"{each.family} {each.exporter} {each.kind}: {each.reported:.3e} {each.printed:.3e} {mark}", flush=True
            )
        chosen.docs.write_text(page(found, python, time.perf_counter() - began), encoding="utf-8")
    return 0 if found and all(each.same for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
