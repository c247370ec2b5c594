"""The command line, run in this process, and what it leaves."""

from __future__ import annotations

import contextlib
import io
import json
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


def command(*arguments: object, folder: Path) -> Outcome:
    """``bisect-divergence ARGUMENTS -o FOLDER -q`` in this process."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.run import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(run, "bisect-divergence", [*map(str, arguments), "-o", str(folder), "-q"])
    return Outcome(code, out.getvalue(), err.getvalue(), folder)
