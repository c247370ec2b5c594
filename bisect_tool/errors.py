"""Errors that a user can act on. The exit code rides on the exception and is read once, in the command line."""

from __future__ import annotations

EXIT_AGREES = 0
EXIT_DIVERGES = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


class BisectError(Exception):
    """Something the user can mend.

    Args:
        message: what is wrong, with the thing and the place named.
        hint: the remedy, one line; printed under the message as ``help: ...``.
        exit_code: the process' exit code if nobody handles the error.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = EXIT_USAGE):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class InconclusiveError(BisectError):
    """The inputs were readable, but no verdict could be reached (exit code 3)."""

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message, hint=hint, exit_code=EXIT_INCONCLUSIVE)
