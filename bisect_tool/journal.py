"""The journal of a long run: one line for each task that is done, so that an interrupted run goes on where it was.

The first line says which command the journal belongs to. Each line ends in a digest of the rest of it. Lines are only
ever appended; the last one may be torn, by a full disk or a machine that went down, and is dropped then. Whatever is
lost so costs nothing but running its task again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bisect_tool.errors import BisectError
from bisect_tool.hardware import hardware_facts, hardware_of
from bisect_tool.tasks import Result, canonical, digest_of

JOURNAL_VERSION = 1

_SHOWN = 3
"""Differences to another command that are named."""


@dataclass(frozen=True, slots=True)
class Journal:
    """An open journal.

    Attributes:
        done: results of earlier runs by key; those of failed tasks are left out, since they run again.
        path: the file; ``None``: nothing is written.
        handle: its descriptor, at which lines are appended.
    """

    done: Mapping[str, Result]
    path: Path | None = None
    handle: int = -1

    def add(self, result: Result) -> None:
        """Appends a result.

        Raises:
            BisectError: the disk is full, or gone.
        """
        if self.path is None:
            return
        entry = {
            "key": result.key,
            "value": result.value,
            "error": result.error,
            "hardware": None if result.hardware is None else hardware_facts(result.hardware),
            "seconds": result.seconds,
        }
        _append(self.path, self.handle, entry)


@contextlib.contextmanager
def open_journal(path: Path | None, about: Mapping[str, Any]) -> Iterator[Journal]:
    """Opens a journal, or begins it.

    Args:
        path: the file; made if it is not there, with its folder. ``None``: a journal that keeps nothing.
        about: what the command does, in plain JSON values: whatever must be the same for results to belong together.

    Raises:
        BisectError: it cannot be read or written, is no journal, is damaged, is in use by another run, or belongs to
            another command; the message says what differs.
    """
    if path is None:
        yield Journal({})
        return
    header = {"journal_version": JOURNAL_VERSION, "about": json.loads(canonical(about))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise _unusable(path, "open", error) from error
    try:
        _lock(path, handle)
        done = _read(path, handle, header)
        yield Journal(done, path, handle)
    finally:
        os.close(handle)  # and with it the lock


def _lock(path: Path, handle: int) -> None:
    """For as long as the file is open; two runs would do the same tasks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BisectError(
                f"{path} is in use by another run", hint="wait for it to end, or name another journal"
            ) from error
        # Some network file systems have no locks.


def _read(path: Path, handle: int, header: Mapping[str, Any]) -> dict[str, Result]:
    try:
        with open(os.dup(handle), "rb") as stream:
            stream.seek(0)
            content = stream.read()
    except OSError as error:
        raise _unusable(path, "read", error) from error
    first = f"{_protected(header)}\n".encode()
    if first.startswith(content):
        # New, or torn within the very first line of this same command.
        _cut(path, handle, 0)
        _append(path, handle, header)
        return {}
    lines = content.splitlines(keepends=True)
    _check_header(path, lines[0], header)
    done: dict[str, Result] = {}
    size = len(lines[0])
    for number, line in enumerate(lines[1:], 2):
        entry = _entry(line)
        if entry is None:
            if number < len(lines):
                raise BisectError(
                    f"{path}, line {number}: damaged, its digest does not fit",
                    hint="remove that line, and its task runs again; or remove the file, and all of them do",
                )
            break
        size += len(line)
        result = _result(path, number, entry)
        if result.error is None:
            # Of several, from tasks that ran twice for some reason, the first counts and no other.
            done.setdefault(result.key, result)
    if size < len(content):
        # Before anything is appended to it.
        _cut(path, handle, size)
    return done


def _check_header(path: Path, line: bytes, header: Mapping[str, Any]) -> None:
    found = _entry(line)
    if found is None or "journal_version" not in found:
        raise BisectError(f"{path} is no journal of this tool", hint="name a file that is not there yet")
    if found["journal_version"] != JOURNAL_VERSION:
        raise BisectError(
            f"{path}: journal_version is {found['journal_version']!r}; this version of the tool goes on with "
            f"{JOURNAL_VERSION}",
            hint="name another journal",
        )
    there, here = _flat(found["about"]), _flat(header["about"])
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if differing:
        told = [f"{name} was {_shown(there.get(name))} and is {_shown(here.get(name))}" for name in differing[:_SHOWN]]
        more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise BisectError(
            f"{path} belongs to another command: {'; '.join(told)}{more}",
            hint="repeat the command that it belongs to, or name another journal",
        )


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line's content; ``None`` if it is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.pop("digest", None) != digest_of(entry):
        return None
    return entry


def _result(path: Path, number: int, entry: Mapping[str, Any]) -> Result:
    try:
        facts = entry["hardware"]
        return Result(
            key=entry["key"],
            value=entry["value"],
            error=entry["error"],
            trace=None,
            hardware=None if facts is None else hardware_of(facts),
            seconds=entry["seconds"],
            resumed=True,
        )
    except (KeyError, TypeError) as error:
        raise BisectError(f"{path}, line {number}: not a result of a task", hint="name another journal") from error


def _cut(path: Path, handle: int, size: int) -> None:
    try:
        os.ftruncate(handle, size)
    except OSError as error:
        raise _unusable(path, "write", error) from error


def _append(path: Path, handle: int, entry: Mapping[str, Any]) -> None:
    rest = memoryview(f"{_protected(entry)}\n".encode())
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError as error:
        raise _unusable(path, "write", error) from error


def _protected(entry: Mapping[str, Any]) -> str:
    return canonical({**entry, "digest": digest_of(entry)})


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by the path that leads to them."""
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(_flat(item, f"{name}.{key}" if name else str(key)))
        return found
    return {name: value}


def _shown(value: Any) -> str:
    if value is None:
        return "not there"
    text = canonical(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unusable(path: Path, verb: str, error: OSError) -> BisectError:
    return BisectError(f"cannot {verb} the journal {path}: {error.strerror or error}", hint="name another file")
