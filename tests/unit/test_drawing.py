"""``drawing``: plots that another process draws are those that this one would draw, and nothing depends on it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from report_samples import diverging

from bisect_tool.reporters import drawing, plot_files


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that draws; this one has matplotlib already, which else is a reason for none."""
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "matplotlib", raising=False)
        patch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        drawing.prepare()
    assert drawing._helper is not None
    yield
    drawing.end()


def test_files_are_the_same_wherever_they_are_drawn(helper: None) -> None:
    """To the byte, for one report after the other."""
    report = diverging()
    here = plot_files.plot_files(report, ("svg", "png"))
    for formats in (("svg", "png"), ("svg",)):
        found = drawing.begin(report, formats)()
        assert {name: here[name] for name in found} == found
        assert len(formats) == len([name for name in found if name.startswith("amplification")])
    assert drawing._helper is not None


@pytest.mark.parametrize("when", ["before", "after"])
def test_where_that_process_is_lost_this_one_draws(helper: None, when: str) -> None:
    """Whether it goes before it has the report, or with it."""
    report = diverging()
    process = drawing._helper
    assert process is not None
    if when == "after":
        os.kill(process.pid, signal.SIGSTOP)
        files = drawing.begin(report, ("svg",))
    process.kill()
    process.wait()
    if when == "before":
        files = drawing.begin(report, ("svg",))
    assert plot_files.plot_files(report, ("svg",)) == files()
    assert drawing._helper is None


def test_it_ends_with_the_pipe(helper: None) -> None:
    """Nobody has to tell it: it does not outlive a command that is killed."""
    process = drawing._helper
    assert process is not None and process.stdin is not None
    process.stdin.close()
    assert 0 == process.wait(20)


def test_no_process_for_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would only take turns with this one."""
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    drawing.prepare()
    assert drawing._helper is None


def test_no_formats_are_no_files() -> None:
    """And no process is asked."""
    assert {} == drawing.begin(diverging(), ())()
