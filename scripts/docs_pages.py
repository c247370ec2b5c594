"""Renews what pages show of their commands' output; called by ``scripts/docs-pages``.

Each line that a page shows is looked for in what the command prints, numbers left open, and put there as it is printed now.
What is shown is the writer's choice; a line that is not printed any more stops the script, as it fails the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from pages import CUT, files_of, without_numbers  # noqa: E402

STARTS = {
    "bisect-divergence": "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()",
    "bisect-tool": "from bisect_tool.cli.main import bisect_tool; bisect_tool()",
}


def printed(line: str, folder: Path) -> list[str]:
    """What a command prints at 80 columns, in a process of its own."""
    program, _, rest = line.partition(" ")
    start = f"-c '{STARTS[program]}' {rest}" if program in STARTS else rest
    around = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        f"{sys.executable} {start}", shell=True, cwd=folder, env=around, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"{line}: exit {done.returncode}\n{done.stderr}")
    return done.stdout.splitlines()


def renewed(text: str, folder: Path) -> str:
    """A page with the numbers of today.

    Raises:
        SystemExit: it shows a line that is not printed.
    """
    for name, content in files_of(text).items():
        (folder / name).write_text(content, encoding="utf-8")
    lines, inside, out, command = [], False, iter(()), ""
    whole = text.split("\n")
    for number, line in enumerate(whole):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ ") and line != "$ echo $?":
            command, at = line[2:], number
            while command.endswith("\\"):
                at += 1
                command = command[:-1] + whole[at]
            print("$", command, file=sys.stderr)
            out = iter(printed(command, folder))
        elif inside and CUT not in line and not line.startswith("$ ") and not _belongs_above(whole[number - 1]):
            wanted = without_numbers(line, shapes=False)
            found = next((each for each in out if without_numbers(each, shapes=False) == wanted), None)
            if found is None:
                raise SystemExit(f"{command}\ndoes not print, or not there:\n{line}")
            line = found
        lines.append(line)
    return "\n".join(lines)


def _belongs_above(before: str) -> bool:
    """Whether a line is the rest of a command, or an exit code, by the line before it."""
    return before.endswith("\\") or before == "$ echo $?"


def main() -> None:
    docs = ROOT / "docs"
    usual = [docs / "tutorial.md", docs / "concepts.md", *sorted(docs.glob("how-to/*.md"))]
    for path in [Path(name) for name in sys.argv[1:]] or usual:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("configs", "examples"):
                shutil.copytree(ROOT / name, Path(folder) / name)
            text = renewed(path.read_text(encoding="utf-8"), Path(folder))
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT) if path.is_absolute() else path)


if __name__ == "__main__":
    main()
