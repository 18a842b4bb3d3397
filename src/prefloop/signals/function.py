"""Scores from any Python function: rules, programs, somebody else's metric."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from numbers import Real
from pathlib import Path
from typing import Any

from prefloop.backends.base import Result
from prefloop.errors import UsageError
from prefloop.records import CandidatesRow, Message
from prefloop.signals.base import Call, Rating
from prefloop.store.fingerprint import code_digest, file_digest

Scorer = Callable[[list[Message], str], Any]


def load(path: str, returns: str = "float or None") -> Scorer:
    """Import `module:name`, from the installed packages or the current directory.

    Args:
        path: `module:name`.
        returns: what the function is to return, for the messages.

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
    except (Exception, SystemExit) as error:
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
            fix=f"name a function of (prompt: list of messages, completion: str) -> {returns}",
        )
    try:
        inspect.signature(found).bind([], "")
    except TypeError as error:
        raise UsageError(
            f"cannot be called with a prompt and a completion: {error}",
            where=f"{getattr(module, '__file__', None)}, {name}",
            fix=f"name a function of (prompt: list of messages, completion: str) -> {returns}",
        ) from None
    except ValueError:  # some functions that are not written in Python do not tell
        pass
    function: Scorer = found
    return function


def module_file(module: str) -> Path | None:
    """The source file of a module, found without importing it or a package around it.

    Where a package makes its modules in a way that only its own code knows, the package's file. None when there is
    no such module, or none with a file: built into the interpreter, or a namespace.
    """
    _make_here_importable()
    try:
        specs = _specs(module.split("."))
    except Exception:
        # Finders are other packages' code. What they cannot find here, `load` cannot either, and says why.
        return None
    if not specs:
        return None
    origin = specs[-1 if len(specs) == module.count(".") + 1 else 0].origin
    return Path(origin) if origin is not None and Path(origin).is_file() else None


def _specs(names: list[str]) -> list[ModuleSpec]:
    """Specs of a package, its subpackage, … down to the module, as far as they are found on disk."""
    specs: list[ModuleSpec] = []
    places: Sequence[str] | None = None
    for depth, name in enumerate(names):
        spec = None
        for finder in sys.meta_path:
            # Under its whole name, the path finder would look for a namespace's parent among the loaded modules; the
            # last name and the parent's folders say the same. Others, such as those of editable installs, map names.
            wanted = name if finder is PathFinder else ".".join(names[: depth + 1])
            spec = finder.find_spec(wanted, places)
            if spec is not None:
                break
        if spec is None:
            break
        specs.append(spec)
        if spec.submodule_search_locations is None:
            break
        places = list(spec.submodule_search_locations)
    return specs


def identity(path: str) -> dict[str, Any]:
    """A function by its name and the digest of its module's file, without importing it.

    A changed function is a changed signal: this goes into the fingerprint of what was rated with it. Modules that a
    user's file imports are not looked into; a function of prefloop's own is known by the whole box that it lies in.
    """
    module = path.partition(":")[0]
    return {"type": "function", "callable": path, "source_sha": _source_sha(module)}


def _source_sha(module: str) -> str | None:
    file = module_file(module)
    if file is None:
        return None
    package = Path(__file__).parents[1]
    if module.startswith("prefloop.") and file.is_relative_to(package):
        return code_digest(file.relative_to(package).parts[0])
    return file_digest(file)


def ask(function: Scorer, path: str, prompt: Sequence[Message], completion: str) -> float | None:
    """What a scoring function of the user's says of one answer; see `call`.

    Raises:
        UsageError: as `call`, or it returned what is no finite number.
    """
    return number(call(function, path, prompt, completion), path)


def call(function: Scorer, path: str, prompt: Sequence[Message], completion: str) -> Any:
    """What a function of the user's returns for one answer.

    Args:
        function: as `load` gives it.
        path: its `module:name`.
        prompt, completion: given to it; the messages as copies, so that it cannot change the rows.

    Raises:
        UsageError: it raised something; names the line of its file.
    """
    messages: list[Message] = [{"role": m["role"], "content": m["content"]} for m in prompt]
    try:
        return function(messages, completion)
    except Exception as error:
        raise UsageError(
            f"{path} failed: {type(error).__name__}: {error}",
            where=_place(error, path),
            fix="correct the function, or let it return None where it can give no verdict",
        ) from error


def _place(error: Exception, path: str) -> str:
    """File and line of the user's that an error came from: the last line in the function's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(path.partition(":")[0]), "__file__", None)
    frame = next((f for f in reversed(frames) if f.filename == own), frames[-1])
    return f"{frame.filename}, line {frame.lineno}"


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
        scores = [ask(self.function, self.path, row["prompt"], c["text"]) for c in row["completions"]]
        return Rating(scores)
        yield []  # makes this a generator, as every signal is


def _make_here_importable() -> None:
    # At the end: a file of the user's called datasets.py must not hide an installed package.
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)
