"""Processes of their own: results and errors come back, crashes are told apart, nothing leaks into the parent."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bisect_tool.backends.isolation import CrashedError, run_isolated
from bisect_tool.errors import BisectError, InconclusiveError


def environment_of(name: str) -> tuple[str | None, int]:
    print("not for the parent's stdout")
    return os.environ.get(name), os.getpid()


def fail(kind: str) -> None:
    if kind == "usage":
        raise BisectError("a message", hint="a remedy")
    if kind == "inconclusive":
        raise InconclusiveError("no CUDA")
    if kind == "exit":
        os._exit(5)
    if kind == "python exit":
        sys.exit(3)
    if kind in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[kind])
    raise ZeroDivisionError("inside")


def test_result_and_environment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Variables are set there and not here."""
    value, pid = run_isolated(environment_of, "BISECT_TEST", folder=tmp_path, environment={"BISECT_TEST": "7"})
    assert value == "7" and pid != os.getpid()
    assert "BISECT_TEST" not in os.environ
    assert run_isolated(environment_of, "BISECT_TEST", folder=tmp_path)[0] is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "type_"), [("usage", BisectError), ("inconclusive", InconclusiveError)])
def test_errors_come_back_whole(tmp_path: Path, kind: str, type_: type[BisectError]) -> None:
    """With message, remedy and exit code."""
    with pytest.raises(type_) as caught:
        run_isolated(fail, kind, folder=tmp_path)
    assert not isinstance(caught.value, CrashedError)
    if kind == "usage":
        assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("a message", "a remedy", 2)


def test_other_exceptions_come_with_their_traceback(tmp_path: Path) -> None:
    """They are faults of the program."""
    with pytest.raises(RuntimeError, match=r"(?s)fail.*ZeroDivisionError: inside"):
        run_isolated(fail, "other", folder=tmp_path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("SIGSEGV", "killed by SIGSEGV$"),
        ("SIGKILL", "killed by SIGKILL, as the system does when memory runs out"),
        ("SIGABRT", "killed by SIGABRT$"),
        ("exit", r"exit code 5"),
        ("python exit", r"exit code 3"),
    ],
)
def test_crashes_are_told_apart(tmp_path: Path, kind: str, text: str) -> None:
    """Within seconds, however it ended."""
    began = time.monotonic()
    with pytest.raises(CrashedError, match=text):
        run_isolated(fail, kind, folder=tmp_path)
    assert time.monotonic() - began < 20


def leave_a_file() -> None:
    tempfile.mkdtemp()
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_leaves_lies_in_the_folder(tmp_path: Path) -> None:
    """So that whoever made the folder removes it too."""
    with pytest.raises(CrashedError):
        run_isolated(leave_a_file, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
