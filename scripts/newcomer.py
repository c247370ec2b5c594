"""Times the way from a clone to the first verdict; called by ``scripts/newcomer``.

A clone of what is committed here goes into a temporary folder, and ``scripts/demo`` runs there as README says: it makes a
virtual environment, installs everything, makes the example's data and compares. Only pip's cache is warm.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- written by scripts/newcomer -->\n).*?(\n<!-- end -->)", re.DOTALL)


def timed(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints.

    Raises:
        SystemExit: it failed.
    """
    # An environment that is active here is none of the newcomer's.
    around = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "BISECT_VENV")
    }
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=around, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    return time.perf_counter() - began, done.stdout


def sentence(parts: Sequence[tuple[str, float]], cores: int) -> str:
    """What README says of it."""
    whole = sum(seconds for _, seconds in parts)
    split = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts if seconds >= 0.5)
    return (
        f"From `git clone` to the first verdict: **{whole:.0f} s**, with packages in pip's cache\n"
        f"({split}; {cores} cores, Python {platform.python_version()})."
    )


def main() -> None:
    parts = []
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "bisect-divergence"
        parts.append(("clone", timed(["git", "clone", "-q", str(ROOT), str(folder)], ROOT)[0]))
        parts.append(("environment", timed(["bash", "scripts/setup-env", "gpu"], folder)[0]))
        seconds, printed = timed(["bash", "scripts/demo", "-q"], folder)
        if not printed.startswith("agrees"):
            raise SystemExit(f"scripts/demo did not agree:\n{printed}")
        parts.append(("data and comparison", seconds))
    text = sentence(parts, os.cpu_count() or 1)
    print(text)
    if "--write" in sys.argv[1:]:
        page = ROOT / "README.md"
        page.write_text(
            MARKED.sub(lambda match: match[1] + text + match[2], page.read_text(encoding="utf-8")), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
