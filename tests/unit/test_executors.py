"""Tasks count once each: through processes that die, runs that are interrupted, and journals that are torn."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bisect_tool import journal, tasks
from bisect_tool.backends import isolation
from bisect_tool.errors import BisectError
from bisect_tool.executors import Result, Task, run_tasks, task_key
from bisect_tool.hardware import hardware_facts, hardware_of, this_hardware

ROOT = Path(__file__).resolve().parents[2]


def square(number: int, folder: str = "") -> dict[str, Any]:
    """Tells what it did in a file for each time that it was done."""
    if folder:
        (Path(folder) / f"{number}-{time.monotonic_ns()}").touch()
    return {"square": number * number, "process": os.getpid(), "pair": (1, float("inf"))}


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise ZeroDivisionError("no such number\nand more")
    return number


def refuse(number: int) -> int:
    raise BisectError(f"number {number} is not served", hint="take another")


def die_at(number: int, bad: int, folder: str, times: int) -> int:
    """The process is killed in the middle of the task, as often as asked for."""
    (Path(folder) / f"{number}-{time.monotonic_ns()}").touch()
    if number == bad and len(list(Path(folder).glob(f"{number}-*"))) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@functools.cache
def loaded() -> int:
    return time.monotonic_ns()


def load(number: int) -> list[int]:
    return [os.getpid(), loaded()]


def slow(number: int, folder: str) -> int:
    """Says that it began, and is interrupted there once the second one has begun."""
    (Path(folder) / f"{number}-{time.monotonic_ns()}").touch()
    if number >= 2:
        time.sleep(30)
    return number


def unjson(number: int) -> object:
    return object()


def of(numbers: Iterator[int] | range | list[int], *more: Any) -> list[Task]:
    return [Task(task_key("number", number), (number, *more)) for number in numbers]


def times(folder: Path) -> dict[str, int]:
    """How often each task was begun."""
    return dict(Counter(path.name.partition("-")[0] for path in folder.iterdir()))


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that import nothing beforehand; a server that is there already is as quick."""
    monkeypatch.setattr(isolation, "_PRELOADED", [])


def values(results: list[Result]) -> list[Any]:
    return sorted(result.value for result in results if result.error is None)


def test_in_this_process() -> None:
    """In order, each once, as JSON gives values back, and with the kind of hardware."""
    told: list[Result] = []
    found = list(run_tasks([*of(range(3)), *of([1])], square, on_done=told.append))
    assert [0, 1, 4] == [result.value["square"] for result in found]
    assert {os.getpid()} == {result.value["process"] for result in found}
    assert [1, float("inf")] == found[0].value["pair"]
    assert told == found
    assert {this_hardware()} == {result.hardware for result in found}


def test_keys_are_of_what_is_done() -> None:
    """The same on every day and for every order of keys; what JSON does not hold has none."""
    assert task_key("sample", {"a": 1, "b": [2.5]}) == task_key("sample", {"b": [2.5], "a": 1})
    assert "cf033962ec3247d27d798ebf51cf22e5" == task_key("sample", {"a": 1, "b": [2.5]})
    assert task_key("sample", 1) != task_key("sample", 2)
    with pytest.raises(TypeError):
        task_key(object())


def test_failures_say_why_and_others_go_on() -> None:
    """One line of reason and the traceback; of the tool's own errors the message."""
    found = list(run_tasks(of(range(3), 1), fail_at))
    assert [0, 2] == values(found)
    (failed,) = [result for result in found if result.error is not None]
    assert "ZeroDivisionError: no such number" == failed.error
    assert failed.trace is not None and "fail_at" in failed.trace
    (refused,) = run_tasks(of([7]), refuse)
    assert ("number 7 is not served", None) == (refused.error, refused.trace)
    (odd,) = run_tasks(of([7]), unjson)
    assert odd.error is not None and "not JSON serializable" in odd.error


def test_another_version_fails_the_task() -> None:
    """A worker of a cluster may have another one installed."""
    found = tasks.result_of("k", tasks.perform(square, (2,), "0.0.0"))
    assert found.value is None
    assert found.error is not None and found.error.endswith("and not 0.0.0")


@pytest.mark.usefixtures("light")
def test_local_processes(tmp_path: Path) -> None:
    """They stay from task to task, and are as many as asked for at most."""
    found = list(run_tasks(of(range(8)), load, jobs=2))
    assert 8 == len(found)
    processes = {tuple(result.value) for result in found}
    assert 1 <= len(processes) <= 2
    assert os.getpid() not in {process for process, _ in processes}


@pytest.mark.usefixtures("light")
def test_a_killed_process_costs_nothing_but_time(tmp_path: Path) -> None:
    """Its task runs again in another; nothing is counted twice."""
    found = list(run_tasks(of(range(6), 2, str(tmp_path), 1), die_at, jobs=2))
    assert list(range(6)) == values(found)
    assert 6 == len({result.key for result in found}) == len(found)
    assert {"0": 1, "1": 1, "2": 2, "3": 1, "4": 1, "5": 1} == times(tmp_path)


@pytest.mark.usefixtures("light")
def test_a_task_that_ends_every_process_is_given_up(tmp_path: Path) -> None:
    """After three; the others are done."""
    found = list(run_tasks(of(range(3), 1, str(tmp_path), 99), die_at, jobs=2))
    assert [0, 2] == values(found)
    (failed,) = [result for result in found if result.error is not None]
    assert "the process was killed by SIGKILL, as the system does when memory runs out, 3 times" == failed.error
    assert 3 == times(tmp_path)["1"]


def test_a_closed_iterator_resumes(tmp_path: Path) -> None:
    """What was handed out is in the journal, and is not done again; failed tasks are."""
    path, runs = tmp_path / "deep" / "journal", tmp_path / "runs"
    runs.mkdir()
    work = run_tasks(of(range(5), str(runs)), square, journal=path)
    first = [next(work), next(work)]
    work.close()
    again = list(run_tasks(of(range(5), str(runs)), square, journal=path))
    assert [True, True, False, False, False] == [result.resumed for result in again]
    assert [result.value for result in first] == [result.value for result in again[:2]]
    assert {str(number): 1 for number in range(5)} == times(runs)
    assert [result.hardware for result in first] == [result.hardware for result in again[:2]]
    # More tasks may come, and fewer: only those that are asked for are handed out.
    assert [0, 1, 4, 25] == sorted(
        r.value["square"] for r in run_tasks(of([0, 1, 2, 5], str(runs)), square, journal=path)
    )


def test_failed_tasks_run_again(tmp_path: Path) -> None:
    """Their reason is in the journal for who reads it."""
    path = tmp_path / "journal"
    list(run_tasks(of(range(2), 1), fail_at, journal=path))
    assert "ZeroDivisionError: no such number" in path.read_text()
    found = list(run_tasks(of(range(2), 9), fail_at, journal=path))
    assert [(0, True), (1, False)] == [(result.value, result.resumed) for result in found]
    assert 4 == len(path.read_text().splitlines())


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_and_resume(tmp_path: Path, jobs: int) -> None:
    """The whole process group gets the signal, as from a terminal; the command started again does the rest."""
    path, runs = tmp_path / "journal", tmp_path / "runs"
    runs.mkdir()
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
from bisect_tool.backends import isolation
isolation._PRELOADED = []
from bisect_tool.executors import run_tasks
import test_executors as t
if __name__ == "__main__":
    for result in run_tasks(t.of(range(4), {str(runs)!r}), t.slow, jobs={jobs}, journal=Path({str(path)!r})):
        pass
"""
    main = tmp_path / "main.py"
    main.write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(main)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # What a shell runs in the background ignores Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(runs.glob("[23]-*"))) < jobs and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, text = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert text.rstrip().endswith("KeyboardInterrupt"), text
    assert 3 == len(path.read_text().splitlines())
    for name in runs.iterdir():
        name.unlink()
    # Done now as another function of the same name would be: only what was left is begun.
    found = list(run_tasks(of(range(4), str(runs)), _quick, journal=path))
    assert [0, 1, 2, 3] == values(found)
    assert {"2": 1, "3": 1} == times(runs)


def _quick(number: int, folder: str) -> int:
    (Path(folder) / f"{number}-{time.monotonic_ns()}").touch()
    return number


# The journal is asked whether it belongs to the same command, which the function's name is part of.
_quick.__module__, _quick.__qualname__ = "test_executors", "slow"


def _journal(path: Path) -> list[str]:
    list(run_tasks(of(range(3)), square, journal=path, about={"model": {"digest": "aa", "file": "m.py"}, "rate": 0.01}))
    return path.read_text().splitlines(keepends=True)


def _resumed(path: Path) -> list[bool]:
    about = {"rate": 0.01, "model": {"digest": "aa", "file": "m.py"}}
    return [result.resumed for result in run_tasks(of(range(3)), square, journal=path, about=about)]


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_dropped(tmp_path: Path, kept: int) -> None:
    """Its task runs again, and the line that is appended then is whole."""
    path = tmp_path / "journal"
    lines = _journal(path)
    path.write_text("".join(lines[:-1]) + lines[-1][:kept])
    assert [True, True, False] == _resumed(path)
    assert [True, True, True] == _resumed(path)
    assert 4 == len(path.read_text().splitlines())


def test_a_torn_first_line_begins_anew(tmp_path: Path) -> None:
    """As an empty file does: nothing was done yet."""
    path = tmp_path / "journal"
    lines = _journal(path)
    for content in ("", lines[0][:30], lines[0][:-1]):
        path.write_text(content)
        assert [False, False, False] == _resumed(path)
        assert [True, True, True] == _resumed(path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """It would count as a result that nobody measured."""
    path = tmp_path / "journal"
    lines = _journal(path)
    path.write_text("".join([lines[0], lines[1].replace('"square":0', '"square":8'), *lines[2:]]))
    with pytest.raises(BisectError, match=r"journal, line 2: damaged, its digest does not fit$"):
        _resumed(path)


def test_the_same_key_twice_counts_once(tmp_path: Path) -> None:
    """Two lines for one task, from whatever happened: the first one counts."""
    path = tmp_path / "journal"
    lines = _journal(path)
    path.write_text("".join([*lines, lines[1]]))
    assert [True, True, True] == _resumed(path)


def test_another_commands_journal_is_refused(tmp_path: Path) -> None:
    """With what differs; nothing is written to it."""
    path = tmp_path / "journal"
    before = _journal(path)
    with pytest.raises(BisectError) as caught:
        list(run_tasks(of(range(3)), square, journal=path, about={"model": {"digest": "bb", "file": "m.py"}}))
    assert caught.value.message == (
        f'{path} belongs to another command: model.digest was "aa" and is "bb"; rate was 0.01 and is not there'
    )
    assert caught.value.hint == "repeat the command that it belongs to, or name another journal"
    with pytest.raises(BisectError, match=r"function was .*square.* and is .*fail_at"):
        list(run_tasks(of(range(3), 1), fail_at, journal=path))
    assert before == path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize("content", [b"weights\x00\xff", b'{"journal_version": 1}\n', b"\n\n"])
def test_other_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    """A model named as the journal by mistake, for example."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(BisectError, match=r"model\.pt is no journal of this tool"):
        _resumed(path)
    assert content == path.read_bytes()


def test_journals_of_another_format_and_places_that_are_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is said to be what it is."""
    path = tmp_path / "journal"
    monkeypatch.setattr(journal, "JOURNAL_VERSION", 7)
    _journal(path)
    monkeypatch.undo()
    with pytest.raises(BisectError, match="journal_version is 7; this version of the tool goes on with 1"):
        _resumed(path)
    with pytest.raises(BisectError, match="cannot open the journal .*: Is a directory"):
        _resumed(tmp_path)


def test_a_journal_in_use_is_refused(tmp_path: Path) -> None:
    """Two runs at once would do everything twice."""
    pytest.importorskip("fcntl")
    path = tmp_path / "journal"
    work = run_tasks(of(range(3)), square, journal=path)
    next(work)
    with pytest.raises(BisectError, match="is in use by another run"):
        list(run_tasks(of(range(3)), square, journal=path))
    work.close()
    assert 3 == len(list(run_tasks(of(range(3)), square, journal=path)))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what could not be written is not counted as done."""

    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "journal"
    work = run_tasks(of(range(3)), square, journal=path)
    next(work)
    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(BisectError, match="cannot write the journal .*: No space left on device"):
        next(work)
    monkeypatch.undo()
    assert [True, False, False] == [r.resumed for r in run_tasks(of(range(3)), square, journal=path)]


@pytest.mark.parametrize(
    ("executor", "jobs", "text"),
    [
        ("local", 0, "--jobs 0: there has to be one"),
        ("ray://here", 1, "--executor ray://here: no such executor"),
        ("dask://", 1, "--executor dask://: no such executor"),
        ("dask://here:8786", 2, "--jobs 2 counts processes of this machine"),
    ],
)
def test_executors_that_there_are_not(executor: str, jobs: int, text: str) -> None:
    """Refused at once, before anything runs."""
    with pytest.raises(BisectError) as caught:
        run_tasks([], square, executor, jobs)
    assert caught.value.message.startswith(text) and caught.value.hint


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BisectError, match="needs dask.distributed") as caught:
        run_tasks([], square, "dask://127.0.0.1:1")
    assert caught.value.hint == "pip install 'bisect-divergence[distributed]'"


def test_kinds_of_hardware() -> None:
    """One instruction set more is another kind; the order of what the system lists is not."""
    here = this_hardware()
    facts = {"machine": "x86_64", "processor": "Some CPU @ 2.0", "instruction_sets": ["fma", "avx2"], "gpus": []}
    one = hardware_of(facts)
    assert one == hardware_of({**facts, "instruction_sets": ["avx2", "fma"]})
    assert one.name.startswith("some-cpu-2-0-") and one.name.replace("-", "").isalnum()
    others = [{"instruction_sets": ["avx2"]}, {"gpus": ["A GPU (8.0)"]}, {"machine": "aarch64"}, {"processor": ""}]
    assert 5 == len({one.name, *(hardware_of({**facts, **other}).name for other in others)})
    assert here == hardware_of(json.loads(json.dumps(hardware_facts(here))))
