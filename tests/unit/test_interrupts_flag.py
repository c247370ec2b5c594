"""Ctrl-C and SIGTERM are written down, and looked up at every boundary, since libraries may catch its exception."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from bisect_tool.cli import interrupts
from bisect_tool.cli.main import execute
from bisect_tool.cli.run import progress
from bisect_tool.errors import EXIT_INTERRUPTED, BisectError
from bisect_tool.temporary import claim, lasting_file


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without a Ctrl-C, in the middle of the work."""
    monkeypatch.setattr(interrupts, "_requests", 0)
    monkeypatch.setattr(interrupts, "_code", 130)
    monkeypatch.setattr(interrupts, "_first", -math.inf)
    monkeypatch.setattr(interrupts, "_importing", False)
    monkeypatch.setattr(interrupts, "_done", None)
    monkeypatch.setattr(interrupts, "_written", [])


def swallowed_ctrl_c() -> None:
    """What a library does that catches everything."""
    with contextlib.suppress(BaseException):
        interrupts.on_signal(signal.SIGINT, None)


def command_of(body: Callable[[], object]) -> click.Command:
    """A command that does nothing else."""
    return click.Command("test", callback=body)


def test_first_ctrl_c_unwinds() -> None:
    """As it always does in Python."""
    with pytest.raises(KeyboardInterrupt):
        interrupts.on_signal(signal.SIGINT, None)


def test_nothing_is_raised_without_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    """The boundaries let everything else pass."""
    interrupts.check()
    progress(quiet=False, verbose=True)("a step")
    assert "· a step\n" == capsys.readouterr().err


@pytest.mark.parametrize("quiet", [False, True])
def test_a_step_does_not_begin_after_a_swallowed_ctrl_c(quiet: bool) -> None:
    """Also where no progress is shown."""
    swallowed_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        progress(quiet)("a step")


@pytest.mark.parametrize("error", [BisectError("the exporter failed"), RecursionError(), click.UsageError("no")])
def test_what_a_ctrl_c_became_is_not_told(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that comes of a broken-off library is no error of the user's, nor of the tool's."""

    def body() -> None:
        swallowed_ctrl_c()
        raise error

    assert 130 == execute(command_of(body), "test", [])
    assert "interrupted; no report was written\n" == capsys.readouterr().err


def test_a_swallowed_ctrl_c_is_told_instead_of_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asked to stop gets no answer that looks like any other; a report that is complete is named."""

    def body() -> int:
        swallowed_ctrl_c()
        interrupts.wrote(tmp_path)
        return 0

    assert 130 == execute(command_of(body), "test", [])
    assert f"interrupted; written before: {tmp_path}\n" == capsys.readouterr().err


def test_sigterm_unwinds_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A Ctrl-C after it does not change who was first."""

    def body() -> None:
        with contextlib.suppress(BaseException):
            interrupts.on_signal(signal.SIGTERM, None)
        raise BisectError("the exporter failed")

    assert 143 == execute(command_of(body), "test", [])
    assert "terminated; no report was written\n" == capsys.readouterr().err


def in_a_process(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A process that installs the handler, then runs a script; temporary files go below the folder."""
    # Whoever starts the tests in the background of a shell passes SIGINT on as ignored.
    start = (
        "import os, signal, sys, tempfile, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bisect_tool.cli import interrupts\ninterrupts.install()\n"
        "def ctrl_c(number=signal.SIGINT):\n    os.kill(os.getpid(), number)\n    time.sleep(0.05)\n"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", start + script], capture_output=True, text=True, env=environment, check=False, timeout=60
    )


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process")
@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("try:\n    ctrl_c()\nexcept BaseException:\n    pass\ntime.sleep(60)", 130, True),
        ("interrupts.work_is_done(1)\nctrl_c()\ntime.sleep(60)", 1, False),
        ("interrupts.work_is_done(1)\nctrl_c(signal.SIGTERM)\ntime.sleep(60)", 1, False),
    ],
    ids=["while importing", "after the answer", "SIGTERM after the answer"],
)
def test_ctrl_c_ends_at_once(script: str, code: int, told: bool, tmp_path: Path) -> None:
    """Before there is anything to clean up, and when there is an answer already, which stands."""
    done = in_a_process(script, tmp_path)
    assert (code, "") == (done.returncode, done.stdout)
    assert ("interrupted; no report was written\n" if told else "") == done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process")
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    """Where a library goes on all the same, the second one ends the process, and removes temporary folders."""
    script = (
        "interrupts.work_begins()\n"
        "folder = tempfile.TemporaryDirectory(prefix='bisect-divergence-')\n"
        "for _ in range(2):\n    try:\n        ctrl_c()\n    except BaseException:\n        pass\n"
        "time.sleep(60)"
    )
    done = in_a_process(script, tmp_path)
    assert (130, "", "interrupted; no report was written\n") == (done.returncode, done.stdout, done.stderr)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process")
@pytest.mark.parametrize("moment", ["mkdtemp", "_rmtree"], ids=["while it is made", "while it is removed"])
def test_ctrl_c_in_the_moment_of_a_folder_leaves_none(moment: str, tmp_path: Path) -> None:
    place = "tempfile" if moment == "mkdtemp" else "tempfile.TemporaryDirectory"
    script = (
        "from bisect_tool.temporary import temporary_folder\ninterrupts.work_begins()\n"
        f"plain = {place}.{moment}\n"
        "def interrupted(*given, **more):\n    found = plain(*given, **more) if 'mkdtemp' in str(plain) else None\n"
        f"    {place}.{moment} = plain\n    ctrl_c()\n    return found\n"
        f"{place}.{moment} = interrupted\n"
        "try:\n    with temporary_folder() as folder:\n        open(folder + '/x', 'w').close()\n"
        "except KeyboardInterrupt:\n    print(len(os.listdir(tempfile.gettempdir())))\n"
    )
    done = in_a_process(script, tmp_path)
    # It was there when the exception came.
    assert (0, "1\n") == (done.returncode, done.stdout), done.stderr
    assert [] == list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_copy_of_the_process_leaves_the_folders(tmp_path: Path) -> None:
    """As a model's own code may make, and end by sys.exit."""
    script = (
        "from bisect_tool.temporary import temporary_folder\n"
        "child = os.fork()\n"
        "if not child:\n    time.sleep(1)\n    sys.exit(0)\n"
        "with temporary_folder() as folder:\n"
        "    os.waitpid(child, 0)\n"
        "    print(os.path.isdir(folder))"
    )
    done = in_a_process(script, tmp_path)
    assert done.stdout.splitlines()[-1] == "True", done.stderr
    assert [] == list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM to a process")
def test_sigterm_does_not_wait_for_a_library_that_does_not_return(tmp_path: Path) -> None:
    """Python's handler would run when it does; temporary folders are removed all the same."""
    script = (
        "from bisect_tool.temporary import temporary_folder\nimport hashlib, threading\n"
        "interrupts.GRACE = 0.3\ninterrupts.work_begins()\nfolder = temporary_folder()\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)"
    )
    done = in_a_process(script, tmp_path)
    assert (143, "", "terminated; no report was written\n") == (done.returncode, done.stdout, done.stderr)
    assert [] == list(tmp_path.iterdir())


def test_sigterm_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``timeout`` sends it; later on it is a second one, which does not wait."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(interrupts.atexit, "_run_exitfuncs", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.on_signal(signal.SIGTERM, None)
    interrupts.on_signal(signal.SIGTERM, None)
    assert [] == ended
    monkeypatch.setattr(interrupts, "_first", -math.inf)
    interrupts.on_signal(signal.SIGTERM, None)
    assert [143] == ended


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_copy_of_the_process_ends_by_sigterm_as_ever(tmp_path: Path) -> None:
    """As workers of a data loader are ended."""
    script = (
        "interrupts.work_begins()\n"
        "reading, writing = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n    os.write(writing, b'x')\n    time.sleep(60)\n"
        "os.read(reading, 1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.WTERMSIG(os.waitpid(child, 0)[1]))"
    )
    done = in_a_process(script, tmp_path)
    assert (0, f"{int(signal.SIGTERM)}\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process")
def test_an_ignored_ctrl_c_stays_ignored(tmp_path: Path) -> None:
    """As for a process in the background of a shell script."""
    script = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\ninterrupts.install()\n"
        "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    )
    assert "True\n" == in_a_process(script, tmp_path).stdout


def test_only_what_is_there_is_told_as_written(tmp_path: Path) -> None:
    """A journal is named before it is begun."""
    interrupts.wrote(tmp_path / "journal")
    assert "interrupted; no report was written" == interrupts.text()
    (tmp_path / "journal").touch()
    assert f"interrupted; written before: {tmp_path / 'journal'}" == interrupts.text()


def test_logs_of_what_was_broken_off_are_removed() -> None:
    """An exporter raises something of its own on Ctrl-C, and the log of that is nobody's."""
    logs = []

    def body() -> None:
        logs.append(lasting_file("bisect-divergence-test.log", "text"))
        assert "text" == logs[0].read_text()
        swallowed_ctrl_c()
        raise BisectError("the exporter failed")

    assert EXIT_INTERRUPTED == execute(command_of(body), "test", [])
    assert not logs[0].exists()


def test_a_name_is_one_processs_own(tmp_path: Path) -> None:
    """Two runs may begin in the same second."""
    name = f"{tmp_path.name}-{secrets.token_hex(4)}"
    assert claim(name)
    script = f"from bisect_tool.temporary import claim; print(claim({name!r}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "False" == run.stdout.strip()
    other = subprocess.run([sys.executable, "-c", script.replace(name, f"{name}-2")], capture_output=True, text=True)
    assert "True" == other.stdout.strip()
    assert claim(f"{name}-2"), "it is free again when its process has ended"
