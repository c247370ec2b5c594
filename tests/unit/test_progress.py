"""What stderr shows while a command works, on a terminal and elsewhere, and how errors are folded there."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import pytest

from bisect_tool.cli import main, progress
from bisect_tool.cli.progress import Progress, State, clock, memory_used, status_line
from bisect_tool.errors import BisectError
from bisect_tool.ticks import Labelled, tell_count

needs_terminal = pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> Iterator[list[str]]:
    """stderr is a terminal while it lasts; what arrived there is in the list afterwards."""
    import pty

    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    seen: list[str] = []
    with os.fdopen(follower, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        try:
            yield seen
            stream.flush()
            os.set_blocking(leader, False)
            arrived = b""
            with contextlib.suppress(BlockingIOError):
                while True:
                    arrived += os.read(leader, 1 << 20)
            seen.append(arrived.decode())
        finally:
            monkeypatch.setattr(sys, "stderr", sys.__stderr__)
            os.close(leader)


def last_screen_line(text: str) -> str:
    """What stands on the line that is rewritten, once everything was written."""
    return text.rsplit("\x1b[2K", 1)[-1]


@pytest.mark.parametrize(
    ("state", "now", "memory", "line"),
    [
        (State("loading the model"), 0.5, None, "· loading the model"),
        (State("exporting"), 12.4, 800_000_000, "· exporting  0:12  800 MB"),
        (State("comparing", 0.0, 20, 80), 10.0, 1_440_000_000, "· comparing  20/80 stages  0:30 left  1.4 GB"),
        (State("comparing", 0.0, 1, 80), 0.1, None, "· comparing  1/80 stages"),
        (State("running PyTorch", 0.0, 312, 0), 1.0, None, "· running PyTorch  312 tensors"),
        (State("comparing", 0.0, 80, 80, "[2/8]"), 4.0, None, "· [2/8] comparing  80/80 stages  0:00 left"),
    ],
)
def test_the_line_has_stages_time_left_and_memory(state: State, now: float, memory: int | None, line: str) -> None:
    """Time left is said only after a while; where no total is known it is the time spent."""
    assert line == status_line(state, now, memory, 80)


@pytest.mark.parametrize("width", [10, 20, 40, 80])
def test_the_line_fits(width: int) -> None:
    """A line that wraps could not be rewritten."""
    state = State("preflight: " + "a very long finding " * 9, 0.0, 7, 500)
    assert len(status_line(state, 30.0, 5_000_000_000, width)) < width
    assert len(status_line(State("x" * 300), 0.0, None, width)) < width


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (12, "0:12"), (185, "3:05"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    """Minutes and seconds, hours only where there are some."""
    assert text == clock(seconds)


def test_memory_is_that_of_this_process() -> None:
    """More than Python's own, less than the machine's."""
    used = memory_used()
    assert used is None or 5_000_000 < used < 1 << 40


def test_quiet_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing, unless it is asked for; what has to be known is told all the same."""
    say = Progress(quiet=False)
    say("a step")
    say.count(1, 2)
    say.note("kept at x.onnx")
    say.close()
    assert "· kept at x.onnx\n" == capsys.readouterr().err
    say = Progress(quiet=False, verbose=True)
    say("a step")
    say.close()
    assert "· a step\n" == capsys.readouterr().err
    say = Progress(quiet=True)
    say("a step")
    say.note("a note")
    assert "" == capsys.readouterr().err


@needs_terminal
def test_one_line_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal each step takes the place of the one before; the last thing is an empty line."""
    with terminal(monkeypatch) as seen:
        say = Progress(quiet=False)
        say("a step")
        say("another step")
        say.count(3, 12)
        time.sleep(2.5 * progress.REFRESH)
        say.close()
    [text] = seen
    assert "\n" not in text
    assert "· a step" in text and "· another step  3/12 stages" in text
    assert "" == last_screen_line(text)


@needs_terminal
@pytest.mark.parametrize("term", ["dumb", ""])
def test_no_line_on_terminals_that_cannot_rewrite_it(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    """Control sequences would be printed as they are."""
    with terminal(monkeypatch) as seen:
        monkeypatch.setenv("TERM", term) if term else monkeypatch.delenv("TERM")
        say = Progress(quiet=False)
        say("a step")
        say.close()
    assert [""] == seen


@needs_terminal
def test_a_failing_command_takes_its_line_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error begins on an empty line."""
    import click

    def fails() -> None:
        progress.progress(quiet=False)("working")
        raise BisectError("no good", hint="do better")

    with terminal(monkeypatch) as seen:
        assert 2 == main.execute(click.Command("test", callback=fails), "test", [])
    shown = last_screen_line(seen[0]).replace("\x1b[0m", "")
    assert "error" in shown and "no good" in shown and "working" not in shown


@needs_terminal
@pytest.mark.parametrize("columns", [40, 80])
def test_errors_fold_at_the_terminals_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Between words; a path is never broken."""
    path = "/a/path/that/must/stay/as/it/is/" + "x" * 60
    with terminal(monkeypatch, columns) as seen:
        main.print_error(
            BisectError("something is wrong with the words " * 6 + path + "\nsecond line", hint="a remedy " * 20)
        )
    lines = seen[0].replace("\r\n", "\n").splitlines()
    plain = [
        line.replace("\x1b[31m\x1b[1m", "").replace("\x1b[36m\x1b[1m", "").replace("\x1b[0m", "") for line in lines
    ]
    assert all(len(line) <= columns or path in line for line in plain)
    assert any(path in line for line in plain)
    assert plain[0].startswith("error: something is wrong")
    assert any(line.strip() == "second line" for line in plain)


def test_errors_are_one_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever searches a log finds the whole message in a line."""
    main.print_error(BisectError("word " * 60 + "end", hint="remedy " * 30 + "end"))
    assert 2 == len(capsys.readouterr().err.splitlines())


@needs_terminal
def test_usage_errors_fold_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """click's own words are folded as ours are."""
    from bisect_tool.cli.tool import tool

    with terminal(monkeypatch, 60) as seen:
        assert 2 == main.execute(tool, "bisect-tool", ["compare", "--" + "no-such-option-at-all", "a", "b"])
    lines = seen[0].splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert any(line.startswith("Error: No such option") for line in lines)


def test_counts_reach_those_who_listen() -> None:
    """A plain function is a progress callback as well."""
    told: list[object] = []

    class Listens:
        def __call__(self, text: str) -> None:
            told.append(text)

        def count(self, done: int, total: int) -> None:
            told.append((done, total))

    tell_count(told.append, 1, 2)
    tell_count(Labelled(told.append, "part"), 1, 2)
    assert [] == told
    labelled = Labelled(Listens(), "head")
    labelled("comparing")
    labelled.count(3, 4)
    assert ["head: comparing", (3, 4)] == told
