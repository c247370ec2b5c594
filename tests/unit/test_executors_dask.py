"""Tasks on a Dask cluster of this machine: a worker that is killed in the middle of a task costs nothing but time."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bisect_tool import executors
from bisect_tool.errors import BisectError
from bisect_tool.executors import Task, run_tasks, task_key
from bisect_tool.hardware import this_hardware

distributed = pytest.importorskip("distributed")


def die_once(number: int, bad: int, folder: str) -> dict[str, Any]:
    """The worker is killed in the middle of one task, the first time that it is tried."""
    begun = Path(folder) / f"{number}-{time.monotonic_ns()}"
    begun.touch()
    if number == bad and 1 == len(list(Path(folder).glob(f"{number}-*"))):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number, "process": os.getpid()}


def raise_at(number: int, bad: int) -> int:
    if number == bad:
        raise ValueError("this one fails")
    return number


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two workers in processes of their own, with nannies that start another one for each that dies."""
    settings = {"distributed.admin.log-length": 0, "distributed.comm.timeouts.connect": "5s"}
    import dask

    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50, host="127.0.0.1"
        ) as cluster,
    ):
        yield cluster.scheduler_address.replace("tcp://", "dask://")


def of(numbers: range, *more: Any) -> list[Task]:
    return [Task(task_key("number", number), (number, *more)) for number in numbers]


def test_a_killed_worker(tmp_path: Path, address: str) -> None:
    """Its tasks run again, each result comes once, and the journal has each once; a second run does nothing."""
    runs, path = tmp_path / "runs", tmp_path / "journal"
    runs.mkdir()
    found = list(run_tasks(of(range(8), 3, str(runs)), die_once, address, journal=path))
    assert list(range(8)) == sorted(result.value["number"] for result in found)
    begun = Counter(name.name.partition("-")[0] for name in runs.iterdir())
    assert 2 <= begun["3"]
    assert os.getpid() not in {result.value["process"] for result in found}
    assert {this_hardware()} == {result.hardware for result in found}
    assert 9 == len(path.read_text().splitlines())
    again = list(run_tasks(of(range(8), 3, str(runs)), die_once, address, journal=path))
    assert 8 == len(again) and all(result.resumed for result in again)
    assert begun == Counter(name.name.partition("-")[0] for name in runs.iterdir())


def test_failures_say_why(address: str) -> None:
    """Their reason comes back from the worker, and the others go on."""
    found = {result.value: result.error for result in run_tasks(of(range(3), 1), raise_at, address)}
    assert {0: None, 2: None, None: "ValueError: this one fails"} == found


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port without a scheduler is said within the time for connecting."""
    monkeypatch.setattr(executors, "_SECONDS_TO_CONNECT", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BisectError, match=f"dask://127.0.0.1:{port}: no Dask scheduler answers there") as caught:
        list(run_tasks(of(range(1), 1), raise_at, f"dask://127.0.0.1:{port}"))
    assert caught.value.hint is not None and "dask scheduler" in caught.value.hint
