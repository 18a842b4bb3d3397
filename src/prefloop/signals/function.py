"""Scores from any Python function: rules, programs, somebody else's metric."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Generator
from numbers import Real
from pathlib import Path
from typing import Any

from prefloop.backends.base import Result
from prefloop.errors import UsageError
from prefloop.records import CandidatesRow, Message
from prefloop.signals.base import Call, Rating
from prefloop.store.fingerprint import file_digest

Scorer = Callable[[list[Message], str], Any]


def load(path: str) -> Scorer:
    """Import `module:name`, from the installed packages or the current directory.

    Raises:
        UsageError: there is no such module or name, the module fails to import, or the name is not callable.
    """
    module_name, _, name = path.partition(":")
    _make_here_importable()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise UsageError(
                f"there is no module {error.name!r}",
                where=path,
                fix=f"run from the folder that holds it ({os.getcwd()} was searched), or install it",
            ) from error
        raise UsageError(
            f"the module needs {error.name!r}, which is not installed", where=path, fix="install it"
        ) from error
    except Exception as error:
        raise UsageError(
            f"importing the module fails: {type(error).__name__}: {error}",
            where=path,
            fix=f'make `python -c "import {module_name}"` work',
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        what = f"has no {name!r}" if found is None else f"has {name!r}, but it cannot be called"
        raise UsageError(
            f"module {module_name} ({getattr(module, '__file__', None)}) {what}",
            where=path,
            fix="name a function of (prompt: list of messages, completion: str) -> float or None",
        )
    function: Scorer = found
    return function


def module_file(module: str) -> Path | None:
    """The source file of a module, found without importing it; None when there is no such module or file."""
    _make_here_importable()
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


def identity(path: str) -> dict[str, Any]:
    """A function by its name and the digest of its module's file, without importing it.

    A changed function is a changed signal: this goes into the fingerprint of what was rated with it. Modules that the
    file imports are not looked into.
    """
    file = module_file(path.partition(":")[0])
    return {"type": "function", "callable": path, "source_sha": None if file is None else file_digest(file)}


def number(value: Any, path: str) -> float | None:
    """What a scoring function returned, as a float; None stays None.

    Raises:
        UsageError: it is not a number, or not a finite one.
    """
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UsageError(
            f"{path} returned {value!r}", fix="return a finite number, or None where it can give no verdict"
        )
    return float(value)


class FunctionSignal:
    """Signal `function`: the score of an answer is f(prompt messages, completion text); None means no verdict."""

    pairwise = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.function = load(path)
        self.name = f"function-{path}"
        self.identity: dict[str, Any] = identity(path)

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score every completion by the function; asks no backend."""
        scores = [number(self.function(row["prompt"], c["text"]), self.path) for c in row["completions"]]
        return Rating(scores)
        yield []  # makes this a generator, as every signal is


def _make_here_importable() -> None:
    # At the end: a file of the user's called datasets.py must not hide an installed package.
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)
