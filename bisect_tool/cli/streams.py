"""The process's own streams, where somebody has closed them or nothing can be written to them."""

from __future__ import annotations

import errno
import io
import os
import sys

_STREAM_ERRORS = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF])


def make_usable() -> None:
    """Gives closed streams a place to write to, and has stderr lose what nobody can take.

    A descriptor that is closed would be the next file's that is opened, and a log on a full disk would end the command
    with a code that reads as a verdict.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free, and the ones below are not.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    encoding, errors = (sys.stderr.encoding, sys.stderr.errors) if sys.stderr is not None else ("utf-8", None)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Lossy()), encoding=encoding, errors=errors or "backslashreplace", line_buffering=True
    )


class _Lossy(io.RawIOBase):
    """stderr's descriptor; what cannot be written is gone."""

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return os.isatty(2)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        """All of the bytes, or nothing of them; the number is that of all."""
        content = memoryview(data)  # type: ignore[arg-type]
        size = content.nbytes
        try:
            while content:
                content = content[os.write(2, content) :]
        except OSError:
            pass
        return size


def is_of_stdout(error: OSError) -> bool:
    """Whether an error is about writing an answer, and not about a file."""
    return error.filename is None and error.errno in _STREAM_ERRORS


def give_up_stdout() -> None:
    """Python flushes it once more when it ends, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
