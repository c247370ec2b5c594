"""The command line, run in this process, and what it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("centerpoint", "attention", "mobile", "recurrent")


@dataclass(frozen=True)
class Outcome:
    """What one command left: exit code, stdout, stderr, and the report folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """What stdout holds with ``--format json``."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Healthy:
    """An example with the graph that an exporter makes of it, and the tool's outcome on the two."""

    example: str
    exporter: str
    onnx: Path
    outcome: Outcome
    root: Path = ROOT
    """Where ``configs`` and ``examples`` lie."""

    @property
    def config(self) -> Path:
        """The example's case file."""
        return self.root / "configs" / f"{self.example}.toml"


def small_centerpoint(root: Path) -> None:
    """The CenterPoint example on a quarter of the canvas, under ``root``: the same network, four times faster."""
    source, folder = ROOT / "examples" / "centerpoint", root / "examples" / "centerpoint"
    folder.mkdir(parents=True)
    (root / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "centerpoint.toml", root / "configs")
    for name in ("make_data.py", "export_parts.py"):
        shutil.copy(source / name, folder)
    text = (source / "model.py").read_text(encoding="utf-8")
    for have, wanted in (("PILLAR_SIZE = (0.32, 0.32", "PILLAR_SIZE = (0.64, 0.64"), ("(128, 128)", "(64, 64)")):
        assert text.count(have) == 1, have
        text = text.replace(have, wanted)
    (folder / "model.py").write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "make_data.py"], cwd=folder, check=True, capture_output=True)


def command(*arguments: object, folder: Path) -> Outcome:
    """``bisect-divergence ARGUMENTS -o FOLDER -q`` in this process."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.run import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(run, "bisect-divergence", [*map(str, arguments), "-o", str(folder), "-q"])
    return Outcome(code, out.getvalue(), err.getvalue(), folder)
