"""Programs that start others: none goes on when nobody waits any more."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bisect_tool.backends.throwaway import run_with_its_children

STARTS = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
COUNTS = "import sys, time\nfor n in range(2000):\n    open(sys.argv[1], 'w').write(str(n)); time.sleep(0.02)"


def test_what_a_program_has_started_ends_with_it(tmp_path: Path) -> None:
    """After a time-out, as after Ctrl-C, nothing writes any more."""
    file = tmp_path / "count"
    seconds = 0.5
    while not file.exists():
        with pytest.raises(subprocess.TimeoutExpired):
            run_with_its_children([sys.executable, "-c", STARTS, COUNTS, str(file)], seconds)
        seconds *= 2
    before = file.read_text()
    time.sleep(0.3)
    assert before == file.read_text()


def test_a_program_that_ends_by_itself() -> None:
    """Exit code and both streams."""
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = run_with_its_children([sys.executable, "-c", code], 60)
    assert (3, "out\n", "err\n") == (done.returncode, done.stdout, done.stderr)
