"""The whole tool in an old environment; called by ``scripts/test_oldest.py``, with that environment's interpreter.

usage: oldest_tool.py FOLDER     FOLDER/NAME holds model.py, ckpt.pth and sample.pt; prints rows of a table

Each model is judged as it is, with a fault planted in its exported file, and with one setting of a matrix; the commands are
the user's own, in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[1]
RUN = "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()"
TOOL = "from bisect_tool.cli.main import bisect_tool; bisect_tool()"
BIASES = {"convolutions": "block.0", "attention": "mlp.0", "recurrent": "out"}
"""The module whose bias is changed in the file: it is where the divergence must be placed."""

ELSEWHERE = {"attention"}
"""Models that PyTorch 2.0 itself does not export (aten::unflatten): their file is the newest one's."""


def main() -> int:
    folder = Path(sys.argv[1])
    failed = []
    for name, module in BIASES.items():
        place = folder / name
        given = ("--onnx", "model.onnx") if name in ELSEWHERE else ("--keep-onnx", "kept.onnx")
        report = _judge(place, "healthy", 0, *given)
        whose = "the newest exporter's file" if name in ELSEWHERE else "its own exporter's file"
        rows = [(whose, report, report["verdict"]["status"] == "agrees" and report["alignment"]["coverage"] == 1.0)]
        _plant(place / given[1], place / "fault.onnx", f"{module}.bias")
        report = _judge(place, "fault", 1, "--onnx", "fault.onnx")
        origins = [origin["stage"] for origin in report["verdict"]["origins"]]
        rows.append((f"bias of {module} changed in the file", report, origins == [module]))
        _pairs(place / "pairs.toml")
        more = given if name in ELSEWHERE else ()
        report = _judge(place, "matrix", 0, "--matrix", "pairs.toml", *more)
        rows.append(("two pairs of a matrix", report, {run["status"] for run in report["configs"]} == {"agrees"}))
        for what, report, right in rows:
            print(_row(name, what, report, right))
            failed += [] if right else [f"{name}, {what}: {report['verdict']['summary']}"]
        _tool(place, "record", "model.py", "ckpt.pth", "--input", "sample.pt", "-o", "tool.trace", "--threads", "1")
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed else 0


def _pairs(file: Path) -> None:
    file.write_text(
        '[[pair]]\nname = "one-thread"\n[pair.expected]\nthreads = 1\n[pair.actual]\noptimization = "off"\n'
        '[[pair]]\nname = "deterministic"\n[pair.expected]\ndeterministic_algorithms = true\n'
        '[pair.actual]\noptimization = "all"\n'
    )


def _judge(place: Path, name: str, code: int, *more: str) -> dict:
    if "--keep-onnx" in more:
        (place / "kept.onnx").unlink(missing_ok=True)
    done = _run(
        place,
        RUN,
        "model.py",
        "ckpt.pth",
        "--input",
        "sample.pt",
        "--format",
        "json",
        "-o",
        f"report-{name}",
        "--force",
        *more,
    )
    if done.returncode != code:
        raise SystemExit(
            f"{place.name}, {name}: exit {done.returncode}, not {code}\n{done.stdout[-2000:]}\n{done.stderr}"
        )
    return json.loads(done.stdout)


def _plant(source: Path, target: Path, name: str) -> None:
    model = onnx.load(source)
    found = [tensor for tensor in model.graph.initializer if tensor.name == name]
    if not found:
        raise SystemExit(f"{source}: no initialiser {name} among {[t.name for t in model.graph.initializer]}")
    values = numpy_helper.to_array(found[0])
    found[0].CopyFrom(numpy_helper.from_array(values + np.float32(0.05), name))
    onnx.save(model, target)


def _tool(place: Path, *arguments: str) -> None:
    done = _run(place, TOOL, *arguments, "-q", "--force")
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")


def _run(place: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    around = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=place, env=around, capture_output=True, text=True, check=False
    )


def _row(name: str, what: str, report: dict, right: bool) -> str:
    alignment, verdict = report["alignment"], report["verdict"]
    floors = [r["floor"] for row in report["stages"] for r in row["results"].values()]
    origins = ", ".join(origin["stage"] for origin in verdict["origins"]) or "-"
    aligned = f"{alignment['aligned']} of {alignment['stages']}"
    measured = sum(floor is not None for floor in floors)
    shown = "yes" if right else "**no**"
    return f"| {name} | {what} | {aligned} | {measured} | {verdict['status']} | {origins} | {shown} |"


if __name__ == "__main__":
    sys.exit(main())
