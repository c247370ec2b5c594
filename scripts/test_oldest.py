"""Records models in two environments and compares the recordings; called by ``scripts/test-oldest``.

usage: test_oldest.py FOLDER OLD_PYTHON NEW_PYTHON OLD_ONNXRUNTIME_FOLDER TOOL_PYTHON
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.records import Report

ROOT = Path(__file__).resolve().parents[1]

MODELS = {
    "convolutions": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.GroupNorm(4, 16), nn.SiLU())
        self.head = nn.Linear(16, 5)
    def forward(self, x):
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(x.mean((2, 3)))

def build_model():
    torch.manual_seed(0)
    return Net()

SAMPLE = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).sin()
""",
    "attention": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(x + self.attend(x, x, x)[0])
        return x + self.mlp(x)

def build_model():
    torch.manual_seed(0)
    return Net()

SAMPLE = (torch.arange(24) * 7 % 50).reshape(2, 12)
""",
    "recurrent": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 3)
    def forward(self, x):
        y, (h, c) = self.rnn(x)
        return self.out(y), h

def build_model():
    torch.manual_seed(0)
    return Net()

SAMPLE = torch.linspace(-2, 2, 2 * 10 * 8).reshape(2, 10, 8).cos()
""",
}

CLASH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4).half()
    def forward(self, x):
        return self.b(self.a(x))

def build_model():
    return Net()

SAMPLE = torch.ones(1, 4)
"""


def main() -> int:
    folder, old, new, runtime = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3], Path(sys.argv[4]).resolve()
    # Not resolved: an interpreter of a virtual environment is a link.
    old, new, tool = (os.path.abspath(python) for python in (old, new, sys.argv[5]))
    for what, python in (("bisect_recorder.py", old), ("the whole tool", tool), ("newest", new)):
        print(f"{what}: {_versions(python)}")
    print()
    recorder = folder / "bisect_recorder.py"
    recorder.write_text((ROOT / "bisect_tool" / "recorder.py").read_text(encoding="utf-8"), encoding="utf-8")
    failed = []
    rows = []
    for name, code in MODELS.items():
        place = _project(folder / name, code)
        for python, bundle in ((old, "old.trace"), (new, "new.trace")):
            _run(python, recorder, place, bundle, clean=True)
        report = compare_recordings(place / "old.trace", place / "new.trace")
        rows.append((name, "torch", report))
        failed += _problems(name, report, "package torch")
        exchanged = _onnx(place, code, new, runtime)
        rows.append((name, "onnxruntime", exchanged))
        failed += _problems(name, exchanged, "runtime")
    _table(rows)
    clash = _project(folder / "clash", CLASH)
    for python in (old, new):
        text = _run(python, recorder, clash, "clash.trace", clean=True, code=2).stderr
        if "clash in dtype" not in text or " b (Linear)" not in text:
            failed.append(f"the clash of dtypes is not named: {text}")
    print(f"\na clash of dtypes, on both: {text.splitlines()[1].strip()}")
    failed += _whole_tool(folder, tool)
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed else 0


def _whole_tool(folder: Path, python: str) -> list[str]:
    """The main job in the old environment, its recordings against the newest one's, and the clash of dtypes in it."""
    print("\n| model | what | stages aligned | floors measured | verdict | error made in | as it must be |")
    print("|---|---|---|---|---|---|---|", flush=True)
    program = ROOT / "scripts" / "oldest_tool.py"
    around = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, str(program), str(folder)], env={**around, "PYTHONPATH": str(ROOT)}, check=False)
    failed = [] if done.returncode == 0 else ["the whole tool in the old environment"]
    rows = []
    for name in MODELS:
        place = folder / name
        if (place / "tool.trace").is_file():
            rows.append((name, "torch, the tool", compare_recordings(place / "tool.trace", place / "new.trace")))
            failed += _problems(name, rows[-1][2], "package torch")
    print()
    _table(rows)
    clash = folder / "clash"
    command = [python, "-c", "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()"]
    done = subprocess.run(
        [*command, "model.py", "ckpt.pth", "--input", "sample.pt", "-o", "report", "--force"],
        cwd=clash,
        env={**around, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"\nthe same clash, by the whole tool: exit {done.returncode}")
    print(done.stderr)
    if done.returncode != 2 or "operation addmm in b (Linear)" not in done.stderr:
        failed.append("the clash of dtypes is not named by the whole tool")
    return failed


def _versions(python: str) -> str:
    shown = "'Python', sys.version.split()[0], '· torch', torch.__version__, '· numpy', numpy.__version__"
    command = [python, "-W", "ignore", "-c", f"import sys, torch, numpy; print({shown})"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _project(place: Path, code: str) -> Path:
    """A model with a checkpoint and a sample that every version reads."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.py").write_text(code)
    space: dict[str, object] = {"__name__": "model"}
    exec(compile(code, "model.py", "exec"), space)
    torch.save(space["build_model"]().state_dict(), place / "ckpt.pth")  # type: ignore[operator]
    torch.save(space["SAMPLE"], place / "sample.pt")
    return place


def _run(
    python: str, program: Path, place: Path, bundle: str, *, clean: bool, code: int = 0
) -> subprocess.CompletedProcess[str]:
    arguments: Sequence[str] = [
        "model.py",
        "ckpt.pth",
        "--input",
        "sample.pt",
        "-o",
        bundle,
        "--force",
        "--threads",
        "1",
    ]
    surroundings = {key: value for key, value in os.environ.items() if not (clean and key.startswith("PYTHON"))}
    done = subprocess.run(
        [python, "-W", "ignore", str(program), *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        env=surroundings,
        check=False,
    )
    if done.returncode != code:
        raise SystemExit(f"{python} {bundle}: exit {done.returncode}\n{done.stderr}")
    return done


def _onnx(place: Path, code: str, python: str, runtime: Path) -> Report:
    """One file in two versions of ONNX Runtime, by the tool itself."""
    space: dict[str, object] = {"__name__": "model"}
    exec(compile(code, "model.py", "exec"), space)
    model = space["build_model"]().eval()  # type: ignore[operator]
    file = place / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (space["SAMPLE"],), file, dynamo=False, opset_version=17)
    tool = "from bisect_tool.cli.main import bisect_tool; bisect_tool()"
    for bundle, path in (("ort-old.trace", f"{runtime}{os.pathsep}{ROOT}"), ("ort-new.trace", str(ROOT))):
        done = subprocess.run(
            [python, "-c", tool, "record", "--onnx", str(file), "--input", "sample.pt", "-o", bundle, "--force", "-q"],
            cwd=place,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{bundle}: exit {done.returncode}\n{done.stderr}")
    return compare_recordings(place / "ort-old.trace", place / "ort-new.trace")


def _problems(name: str, report: Report, cause: str) -> list[str]:
    found = []
    if report.alignment.aligned < report.alignment.stages:
        found.append(f"{name}: {report.alignment.stages - report.alignment.aligned} stages are not on both sides")
    differing = [d.what for link in report.chain for d in link.differences]
    if cause not in differing:
        found.append(f"{name}: {cause} is not among the differences")
    return found


def _table(rows: Sequence[tuple[str, str, Report]]) -> None:
    print("| model | exchanged | stages on both sides | bit-identical | worst relative L2 | verdict | first cause |")
    print("|---|---|---|---|---|---|---|")
    for name, what, report in rows:
        errors = [result.total for row in report.stages for result in row.results.values()]
        worst = max((metrics.rel_l2 for metrics in errors), default=0.0)
        same = sum(metrics.rel_l2 == 0 for metrics in errors)
        cause = report.verdict.first_cause
        text = "-" if cause is None else f"{cause.link}: {cause.difference.what}"
        aligned = f"{report.alignment.aligned} of {report.alignment.stages}"
        print(f"| {name} | {what} | {aligned} | {same} | {worst:.1e} | {report.verdict.status} | {text} |")


if __name__ == "__main__":
    sys.exit(main())
