"""What a process of its own decides: garbage is collected as ever where it matters, and the end is an orderly one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bisect_tool.cli.process import let_idle_threads_sleep, load_libraries, no_collection

ENDS = """
import atexit, sys
from pathlib import Path
from bisect_tool.cli.main import bisect_divergence

class Cycle:
    def __init__(self):
        self.me = self

cycle = Cycle()
log = open("log.txt", "w")
log.write("buffered")
atexit.register(Path("handler.txt").touch)
sys.argv = ["bisect-divergence", *sys.argv[1:]]
bisect_divergence()
"""


def test_collection_pauses_and_goes_on() -> None:
    """Collection is off inside, and on again afterwards, also after an exception."""
    assert gc.isenabled()
    with pytest.raises(KeyError), no_collection():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_collection_stays_off() -> None:
    """Who switched collection off himself finds it off."""
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_libraries_are_loaded_and_left_alone() -> None:
    """After loading, collection is on and passes over what the libraries made."""
    script = (
        "import gc, sys; from bisect_tool.cli.process import load_libraries; load_libraries(); "
        "print('torch' in sys.modules, gc.isenabled(), gc.get_freeze_count() > 100_000, len(gc.get_objects()) < 10_000)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "True True True True" == done.stdout.strip()


def test_a_process_in_use_is_not_touched() -> None:
    """Where the libraries are loaded already, nothing is taken out of collection."""
    import bisect_tool.pipeline  # noqa: F401

    before = gc.get_freeze_count()
    load_libraries()
    assert before == gc.get_freeze_count()


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_user_decides_how_threads_wait(monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str) -> None:
    """Threads sleep while they wait, unless the environment says otherwise."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    let_idle_threads_sleep()
    assert kept == os.environ["OMP_WAIT_POLICY"]


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--no-such-option", 2)])
def test_the_end_is_orderly(tmp_path: Path, argument: str, code: int) -> None:
    """Handlers run, files are written, and the exit code stands, though nothing is collected at the end."""
    done = subprocess.run([sys.executable, "-c", ENDS, argument], cwd=tmp_path, capture_output=True, check=False)
    assert code == done.returncode
    assert (tmp_path / "handler.txt").exists()
    assert "buffered" == (tmp_path / "log.txt").read_text()


def test_errors_are_folded_at_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Between words, later lines set in; elsewhere a line stays a line, for whoever searches in it."""
    from bisect_tool.cli.main import print_error
    from bisect_tool.errors import BisectError

    error = BisectError(f"model {'m' * 20} {'does not fit ' * 8}\n  whole log: {'l' * 90}", hint="try " + "this " * 30)
    print_error(error)
    assert 3 == len(capsys.readouterr().err.splitlines())
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    print_error(error)
    lines = click.unstyle(capsys.readouterr().err).splitlines()
    assert all(len(line) <= 60 or "l" * 90 in line for line in lines)
    assert lines[0].startswith("error: model m") and lines[1].startswith("  ")
    assert [line for line in lines if line.startswith("help: try")]
    assert "".join(line.strip() for line in lines).count("this") == 30
