"""Errors that a user can act on: what is wrong, where, and what to do.

The command line prints them as one message without a traceback and exits with their code. Anything else that
escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class PrefloopError(Exception):
    """A failure with a message for the user; exit code 1 (the work was asked for rightly but did not succeed)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what if where is None else f"{where}: {what}"]
        if fix is not None:
            parts.append(f"fix: {fix}")
        super().__init__("\n".join(parts))


class UsageError(PrefloopError):
    """Bad usage, configuration or data; exit code 2."""

    exit_code = 2


class Interrupted(PrefloopError):
    """Stopped on request (Ctrl-C, SIGTERM) at a point from which the same command goes on."""
