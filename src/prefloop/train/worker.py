"""One process of a group: `accelerate launch … -m prefloop.train.worker SPEC`; see `launch`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from prefloop.config import ModelSection, TrainSection
from prefloop.engine.load import quiet
from prefloop.errors import PrefloopError
from prefloop.store import atomic
from prefloop.store.cache import Cache
from prefloop.train.check import in_group
from prefloop.train.examples import Source
from prefloop.train.launch import described, emit
from prefloop.train.run import train


def main(path: Path) -> int:
    """Train as the specification says; the first process reports. Returns the exit code."""
    spec: dict[str, Any] = atomic.read_json(path)
    quiet()
    rank, _ = in_group()
    say = emit if rank == 0 else _mute
    say("first", os.getpid())
    _relay(say)
    with ExitStack() as stack:
        cache = stack.enter_context(Cache(spec["cache"])) if rank == 0 else None
        try:
            result = train(
                ModelSection(**spec["model"]),
                Source(_gone, spec["source"]["digest"], frozenset(spec["source"]["held"])),
                TrainSection(**spec["train"]),
                seed=spec["seed"],
                out=Path(spec["out"]),
                cache=cache,
                held_to=None if spec["held_to"] is None else ModelSection(**spec["held_to"]),
                on_log=partial(say, "log"),
                on_step=partial(say, "step"),
                on_reference=partial(say, "reference"),
            )
        except PrefloopError as error:
            # Every process may be the one that finds out.
            emit("error", described(error))
            return error.exit_code
    say("result", result)
    return 0


def _mute(event: str, *values: Any) -> None:
    """What the other processes say."""


def _relay(say: Callable[..., None]) -> None:
    """Let the listening process log what this one logs: its log is the one that people see."""

    class Relay(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say("message", record.name, record.levelno, record.getMessage())

    own = logging.getLogger("prefloop")
    own.setLevel(logging.INFO)
    own.addHandler(Relay())
    own.propagate = False


def _gone() -> NoReturn:
    raise PrefloopError(
        "the tokenised rows are gone from the training's folder",
        fix="start the training by `prefloop`, which writes them, and not by its worker",
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
