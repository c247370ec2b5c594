"""Processes of their own: results and errors come back, crashes are told apart, nothing leaks into the parent."""

from __future__ import annotations

import os
import signal
import subprocess
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


PARENT = """
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from test_isolation import wait_long
from bisect_tool.backends.isolation import run_isolated
try:
    run_isolated(wait_long, sys.argv[2], folder=Path(sys.argv[2]), environment=eval(sys.argv[3]), quiet=False)
except KeyboardInterrupt:
    sys.exit(130)
"""


def wait_long(folder: str) -> None:
    (Path(folder) / f"pid-{os.getpid()}").touch()
    time.sleep(60)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a group")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "parent killed"])
@pytest.mark.parametrize("environment", [{}, {"BISECT_TEST": "7"}], ids=["forked", "fresh"])
def test_processes_end_quietly_with_their_parent(tmp_path: Path, sent: signal.Signals, environment: object) -> None:
    """Ctrl-C goes to all processes of the terminal, also to those that still import; only the parent acts on it."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(Path(__file__).parent), str(tmp_path), repr(environment)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if list(tmp_path.glob("pid-*")):
            break
        time.sleep(0.1)
    assert 1 == len(list(tmp_path.glob("pid-*")))
    os.killpg(parent.pid, sent) if sent == signal.SIGINT else parent.kill()
    # The pipes stay open as long as any of the processes lives.
    assert ("", "") == parent.communicate(timeout=30)
    assert (130 if sent == signal.SIGINT else -signal.SIGKILL) == parent.returncode


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a group")
@pytest.mark.parametrize(
    "delay", [pytest.param(0.2, marks=pytest.mark.slow), 0.6, pytest.param(1.2, marks=pytest.mark.slow)]
)
def test_ctrl_c_while_processes_start_is_quiet(tmp_path: Path, delay: float) -> None:
    """Their imports are not broken off with a traceback."""
    script = PARENT.replace("try:", "(Path(sys.argv[2]) / 'ready').touch()\ntry:")
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path), "{}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if (tmp_path / "ready").exists():
            break
        time.sleep(0.1)
    time.sleep(delay)
    os.killpg(parent.pid, signal.SIGINT)
    assert ("", "") == parent.communicate(timeout=30)
    assert 130 == parent.returncode
