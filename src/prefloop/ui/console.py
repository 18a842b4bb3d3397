"""Where people's text goes: results to stdout, all that is said on the way to stderr."""

from __future__ import annotations

from rich.console import Console


def results(*, as_json: bool) -> Console:
    """For a command's results: stdout, so that they can be piped; with --json stdout is the machine's, and it is
    stderr. Progress, warnings and errors go to stderr in any case."""
    return Console(stderr=as_json, highlight=False)
