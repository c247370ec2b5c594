"""Runs a function in a process of its own, so that nothing it sets or breaks touches anybody else.

Environment variables that a library reads once, switches that a created session freezes, a provider that crashes: such
runs end with their process. Processes are forked from a helper that has imported the libraries and done nothing else
(``multiprocessing``'s fork server), so that each starts fresh and still does not pay for the imports again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from bisect_tool.errors import BisectError, InconclusiveError

T = TypeVar("T")

_PRELOADED = ["bisect_tool.pipeline"]


class CrashedError(InconclusiveError):
    """The process ended without a result: killed by a signal, out of memory, or an exit deep inside a library."""


class InternalError(RuntimeError):
    """What no part of the tool expects was raised in the process; the message ends with the traceback from there."""

    @property
    def reason(self) -> str:
        """The exception in one line."""
        return str(self).strip().splitlines()[-1]


def run_isolated(
    function: Callable[..., T],
    *arguments: Any,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    quiet: bool = True,
) -> T:
    """``function(*arguments)`` in a process of its own.

    Args:
        function: of a module, so that it can be pickled, as its arguments and its result must be.
        arguments: for it.
        folder: where the process keeps its temporary files; a process that is killed leaves them there.
        environment: variables that the process starts with.
        quiet: what libraries print there goes nowhere.

    Raises:
        CrashedError: the process died.
        BisectError: whatever of this kind the function raised; other exceptions come as an
            :class:`InternalError` with their traceback.
    """
    # What a library reads as it is loaded has to be there before that: then nothing may be imported beforehand.
    context = _context(fresh=bool(environment))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(sender, str(folder), quiet, pickle.dumps((function, arguments))), daemon=True
    )
    with _variables(environment or {}):
        _start(context, process)
    sender.close()
    try:
        kind, payload = _receive(receiver, process)
    except BaseException:
        # Ctrl-C, for example: nobody waits for the answer any more.
        process.terminate()
        raise
    finally:
        receiver.close()
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()
    result: T = _unpacked(kind, payload, process.exitcode)
    return result


class Worker:
    """A process of its own that stays, and does one job after the other, so that what a job loads serves the next.

    Args:
        folder: where the process keeps its temporary files.
    """

    def __init__(self, folder: Path):
        context = _context(fresh=False)
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work_on, args=(theirs, str(folder)), daemon=True)
        _start(context, self._process)
        theirs.close()

    def give(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Has it begin ``function(*arguments)``; both must be possible to pickle."""
        job = pickle.dumps((function, arguments))
        # A process that has died is found out when its answer is asked for.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(job)

    def answer(self) -> Any:
        """The job's result; it waits for it. ``connection`` can be read when there is one.

        Raises:
            CrashedError, BisectError, InternalError: as from :func:`run_isolated`.
        """
        kind, payload = _receive(self.connection, self._process)
        if kind == "crash":
            self._process.join(timeout=10)
        return _unpacked(kind, payload, self._process.exitcode)

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.connection.close()
        self._process.terminate()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def answered(workers: Iterable[Worker]) -> list[Worker]:
    """Waits until at least one of them has an answer, or has died; gives those."""
    by_connection: dict[Any, Worker] = {}
    for worker in workers:
        by_connection[worker.connection] = worker
        by_connection[worker._process.sentinel] = worker
    return list(dict.fromkeys(by_connection[ready] for ready in wait(list(by_connection))))


def _receive(receiver: Connection, process: Any) -> tuple[str, Any]:
    while True:
        try:
            if receiver.poll(0.2):
                return receiver.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):  # also in the middle of an answer
            return "crash", None
        if not process.is_alive() and not receiver.poll(0):
            return "crash", None


def _unpacked(kind: str, payload: Any, code: int | None) -> Any:
    if kind == "result":
        return payload
    if kind == "error":
        raise payload
    if kind == "traceback":
        raise InternalError(f"in a process of its own:\n{payload}")
    raise CrashedError(_ending(code))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            return f"the process was killed by {name}{memory}"
    return f"the process ended without a result (exit code {code})"


@contextlib.contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    """A process starts with its parent's variables."""
    saved = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(context: Any, process: Any) -> None:
    """Starts a process that never sees the terminal's Ctrl-C, which goes to all processes, not even while it imports."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        process.start()
        return
    _start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if context.get_start_method() == "forkserver":
            # It is enough if the server is protected: what it forks has its mask. Its imports take long.
            forkserver.ensure_running()
        else:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if context.get_start_method() == "forkserver":
        process.start()


def _context(*, fresh: bool) -> Any:
    if fresh or "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _work(sender: Connection, folder: str, quiet: bool, job: bytes) -> None:
    _settle(folder, quiet)
    sender.send(_answer(job))
    sender.close()


def _work_on(connection: Connection, folder: str) -> None:
    _settle(folder, quiet=True)
    with contextlib.suppress(EOFError, OSError):  # the parent wants no more
        while True:
            connection.send(_answer(connection.recv_bytes()))


def _settle(folder: str, quiet: bool) -> None:
    # The terminal sends Ctrl-C to the whole group; the parent ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tempfile.tempdir = folder
    if quiet:
        _silence()


def _answer(job: bytes) -> tuple[str, Any]:
    try:
        function, arguments = pickle.loads(job)
        return "result", function(*arguments)
    except BisectError as error:
        # Its cause may hold what can't be pickled.
        error.__cause__ = error.__context__ = error.__traceback__ = None
        return "error", error
    except Exception:  # anything may come out of a library
        return "traceback", traceback.format_exc()


def _start_tracker() -> None:
    """multiprocessing's helper, which protects itself and would end the protection of others that start with it."""
    # It removes what processes leave that are ended from outside, and would tell the user about it.
    option = "ignore:resource_tracker"
    sys.warnoptions.append(option)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(option)


def _end_with_parent() -> None:
    """Where the parent could not end this process any more: it was killed, or Ctrl-C came while this one started."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _silence() -> None:
    """Below Python too: native code prints by itself, and stdout is the parent's."""
    sys.stdout.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)
