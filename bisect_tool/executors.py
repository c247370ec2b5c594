"""Runs many tasks: one after the other in this process, in several processes, or on the workers of a Dask cluster.

Whatever runs them, each task counts once. Results are written to a journal as they come, so that a run that was
interrupted goes on where it was; a task whose process is lost runs again; one that fails says why, and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bisect_tool import __version__
from bisect_tool.backends.isolation import CrashedError, Worker, answered
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.journal import open_journal
from bisect_tool.tasks import Result, Task, lost, perform, result_of, task_key
from bisect_tool.temporary import temporary_folder

__all__ = ["LOCAL", "Result", "Task", "check_executor", "run_tasks", "task_key"]

LOCAL = "local"
"""This machine: in this process, or in several."""

DASK = "dask://"

MOST_TRIES = 3
"""How often a task is given to a process that dies under it. One that ends every process would go on for ever."""

_SECONDS_TO_CONNECT = 20.0
_SECONDS_FOR_WORKERS = 60.0

Function = Callable[..., Any]


def run_tasks(
    tasks: Sequence[Task],
    function: Function,
    executor: str = LOCAL,
    jobs: int = 1,
    journal: Path | None = None,
    on_done: Callable[[Result], object] | None = None,
    *,
    about: Mapping[str, Any] | None = None,
) -> Generator[Result, None, None]:
    """Runs ``function(*task.arguments)`` for each task.

    What a process loads it may keep for its next task (``functools.cache``): there are few processes, and each does
    many tasks, one at a time.

    Args:
        tasks: of those with equal keys one is done.
        function: of a module, so that other processes find it; it returns plain JSON values.
        executor: ``local``, or ``dask://HOST:PORT`` of a scheduler whose workers have this version of the tool, and see
            the same files by the same names.
        jobs: local processes; 1: this one.
        journal: a file that keeps the results, and those of earlier runs; tasks that failed there run again.
        on_done: called with each result before it is handed out, when it is in the journal already.
        about: whatever must be the same for the results of two runs to belong together, in plain JSON values. A journal
            of another command is refused by it; the function's name and the tool's version are added.

    Returns:
        The results: those of the journal in the order of ``tasks``, then the others as they come. Closing the iterator
        (or Ctrl-C while it works) ends what runs; what was handed out is in the journal.

    Raises:
        BisectError: an executor that there is not, or that can't be reached; a journal that can't be used.
        InconclusiveError: the cluster was lost; what was done is in the journal.
    """
    check_executor(executor, jobs)
    named = {"function": f"{function.__module__}:{function.__qualname__}", "version": __version__}
    return _results(tasks, function, executor, jobs, journal, on_done, {**named, **(about or {})})


def check_executor(executor: str, jobs: int) -> None:
    """Refuses what ``run_tasks`` would refuse; call it before anything is loaded.

    Raises:
        BisectError: no such executor, too few jobs, or a package that is missing.
    """
    if jobs < 1:
        raise BisectError(f"--jobs {jobs}: there has to be one", hint="give a number of processes, from 1")
    if executor == LOCAL:
        return
    if not executor.startswith(DASK) or not executor.removeprefix(DASK).strip("/"):
        raise BisectError(
            f"--executor {executor}: no such executor", hint=f"take {LOCAL}, or {DASK}HOST:PORT of a Dask scheduler"
        )
    if jobs != 1:
        raise BisectError(
            f"--jobs {jobs} counts processes of this machine, and --executor {executor} has its own workers",
            hint="leave one of the two out",
        )
    _distributed(executor)


def _results(
    tasks: Sequence[Task],
    function: Function,
    executor: str,
    jobs: int,
    path: Path | None,
    on_done: Callable[[Result], object] | None,
    about: Mapping[str, Any],
) -> Generator[Result, None, None]:
    with open_journal(path, about) as journal:
        waiting = {task.key: task for task in tasks}
        for key in [key for key in waiting if key in journal.done]:
            del waiting[key]
            result = journal.done[key]
            if on_done is not None:
                on_done(result)
            yield result
        with contextlib.closing(_run(list(waiting.values()), function, executor, jobs)) as fresh:
            for result in fresh:
                if waiting.pop(result.key, None) is None:
                    # A cluster may do a task twice, where it takes a worker for lost that only did not answer.
                    continue
                journal.add(result)
                if on_done is not None:
                    on_done(result)
                yield result


def _run(tasks: Sequence[Task], function: Function, executor: str, jobs: int) -> Generator[Result, None, None]:
    if not tasks:
        return
    if executor != LOCAL:
        yield from _on_cluster(tasks, function, executor)
    elif jobs == 1:
        for task in tasks:
            yield result_of(task.key, perform(function, task.arguments, __version__))
    else:
        yield from _in_processes(tasks, function, min(jobs, len(tasks)))


# -- processes of this machine ----------------------------------------------------------------------------------------


def _in_processes(tasks: Sequence[Task], function: Function, jobs: int) -> Generator[Result, None, None]:
    waiting = deque((task, 1) for task in tasks)
    busy: dict[Worker, tuple[Task, int]] = {}
    idle: list[Worker] = []
    with temporary_folder() as folder:
        try:
            while waiting or busy:
                while waiting and len(busy) < jobs:
                    worker = idle.pop() if idle else Worker(Path(folder))
                    busy[worker] = waiting.popleft()
                    worker.give(perform, function, busy[worker][0].arguments, __version__)
                for worker in answered(busy):
                    task, tries = busy[worker]
                    try:
                        text = worker.answer()
                    except CrashedError as error:
                        worker.stop()
                        del busy[worker]
                        if tries < MOST_TRIES:
                            # Last, so that one that ends every process does not hold up the others.
                            waiting.append((task, tries + 1))
                        else:
                            yield lost(task.key, f"{error.message}, {MOST_TRIES} times")
                        continue
                    del busy[worker]
                    idle.append(worker)
                    yield result_of(task.key, text)
        finally:
            for worker in (*busy, *idle):
                worker.stop()


# -- a cluster --------------------------------------------------------------------------------------------------------


def _on_cluster(tasks: Sequence[Task], function: Function, executor: str) -> Generator[Result, None, None]:
    distributed = _distributed(executor)
    with _connected(distributed, executor) as client:
        killed: list[Task] = []
        with contextlib.closing(_submitted(distributed, client, tasks, function, executor)) as done:
            for task, result in done:
                if result is None:
                    killed.append(task)
                else:
                    yield result
        # Dask counts a worker's end against all tasks that it had. Alone each one shows whether it was the cause.
        for task in killed:
            with contextlib.closing(_submitted(distributed, client, [task], function, executor)) as done:
                for _, result in done:
                    yield result or lost(task.key, "every worker that it was given to was lost")


@contextlib.contextmanager
def _connected(distributed: Any, executor: str) -> Iterator[Any]:
    address = f"tcp://{executor.removeprefix(DASK).strip('/')}"
    try:
        client = distributed.Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, TimeoutError, asyncio.TimeoutError, ValueError) as error:
        raise BisectError(
            f"--executor {executor}: no Dask scheduler answers there ({_first_line(error)})",
            hint=f"start one with `dask scheduler`, and workers with `dask worker {address}`",
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_SECONDS_FOR_WORKERS)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise BisectError(
                f"--executor {executor}: the scheduler has no workers", hint=f"start some: `dask worker {address}`"
            ) from error
        yield client


def _submitted(
    distributed: Any, client: Any, tasks: Sequence[Task], function: Function, executor: str
) -> Generator[tuple[Task, Result | None], None, None]:
    """Tasks with their results as they come; ``None`` where too many workers were lost with it."""
    # Nothing is taken over from another run: its workers may have loaded other files by the same names.
    run = secrets.token_hex(4)
    futures: dict[Any, Task] = {}
    try:
        for task in tasks:
            key = f"bisect-{run}-{task.key}"
            future = client.submit(perform, function, task.arguments, __version__, key=key, pure=False)
            futures[future] = task
        for future in distributed.as_completed(list(futures), loop=client.loop):
            task = futures.pop(future)
            if future.status == "finished":
                yield task, result_of(task.key, future.result())
            elif future.status == "error" and isinstance(future.exception(), distributed.KilledWorker):
                yield task, None
            elif future.status == "error":
                # The task's own exceptions are results: this one is of a worker without this package, for example.
                yield task, lost(task.key, f"{type(future.exception()).__name__}: {_first_line(future.exception())}")
            else:
                raise InconclusiveError(
                    f"--executor {executor}: the scheduler was lost with {len(futures) + 1} of {len(tasks)} tasks left",
                    hint="start the command again with the same journal; what was done is not done again",
                )
    finally:
        # Ctrl-C, for example: what waits on the cluster is of no use to anybody.
        with contextlib.suppress(Exception):
            client.cancel(list(futures), force=True)


def _distributed(executor: str) -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise BisectError(
            f"--executor {executor} needs dask.distributed: {_first_line(error)}",
            hint="pip install 'bisect-divergence[distributed]'",
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
