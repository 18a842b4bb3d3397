"""A training in several processes: this process stays where it is and listens to a group that accelerate starts.

    train(...) ─► accelerate launch ─► N × python -m prefloop.train.worker SPEC
         ▲                                         │
         └────────── one JSON event a line ◄───────┘  the first process's standard output

The loop therefore never runs twice, and the memory of the group is free again when the training is done. On several
machines start `accelerate launch … -m prefloop.train.worker SPEC` by hand on each; SPEC is in the training's folder.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from prefloop.config import LaunchSection, ModelSection, TrainSection
from prefloop.errors import Interrupted, PrefloopError, UsageError
from prefloop.store import atomic
from prefloop.train.stopping import on_first_signal

LAUNCHERS = Path(__file__).parent / "launchers"
CPU = "cpu"
"""The name of a group of processes on the CPU, joined by gloo: to try a recipe for many GPUs without any."""
SPEC, LOG = "launch.json", "launch.log"
_TAIL = 40  # lines of the group's other output that an error shows


def launcher(section: LaunchSection) -> list[str]:
    """The command that starts the processes of a section, without what they are to run.

    Raises:
        UsageError: there is no such configuration.
    """
    name = section.config
    if name == CPU:
        # accelerate would leave it to mpirun; torch's own launcher needs nothing installed.
        # Standalone takes a free port: two trainings on a machine are not to meet.
        group = ["--standalone", "--nproc_per_node", str(section.processes or 2)]
        return [sys.executable, "-m", "torch.distributed.run", *group]
    shipped = LAUNCHERS / f"{name}.yaml"
    file = shipped if shipped.is_file() else Path(name)
    if file.is_file():
        number = [] if section.processes is None else ["--num_processes", str(section.processes)]
        return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *number]
    names = ", ".join(sorted([CPU, *(p.stem for p in LAUNCHERS.glob("*.yaml"))]))
    raise UsageError(
        f"no accelerate configuration {name!r}",
        where="train.launch.config",
        fix=f"give the file that `accelerate config` wrote, or one of: {names}",
    )


def configuration(section: LaunchSection) -> dict[str, Any]:
    """What accelerate's configuration of a section says; empty for a group on the CPU."""
    if section.config == CPU:
        return {}
    shipped = LAUNCHERS / f"{section.config}.yaml"
    with (shipped if shipped.is_file() else Path(section.config)).open(encoding="utf-8") as stream:
        return yaml.safe_load(stream) or {}


def processes(section: LaunchSection) -> int:
    """How many a section starts."""
    return section.processes or int(configuration(section).get("num_processes", 2))


def shares_weights(section: LaunchSection) -> bool:
    """Whether each of its processes holds a part of the weights."""
    return configuration(section).get("distributed_type") in ("FSDP", "DEEPSPEED")


def launch(
    model: ModelSection,
    section: TrainSection,
    settings: LaunchSection,
    *,
    held_to: ModelSection | None,
    source: dict[str, Any],
    seed: int,
    out: Path,
    cache: Path,
    handlers: dict[str, Callable[..., None]],
) -> dict[str, Any]:
    """Train in the processes of an accelerate configuration.

    Args:
        held_to: the reference, where it is not the model.
        source: digest and held-out prompts of the rows, which lie tokenised in `out`.
        cache: the file of the cache.
        handlers: event -> what to call with its values.

    Returns:
        The content of `trained.json`.

    Raises:
        PrefloopError: the group failed; UsageError or Interrupted where a process said so.
    """
    spec = {
        "model": model.model_dump(),
        "train": section.model_dump(),
        "held_to": None if held_to is None else held_to.model_dump(),
        "source": source,
        "seed": seed,
        "out": str(out.resolve()),
        "cache": str(cache.resolve()),
    }
    atomic.write_json(out / SPEC, spec)
    command = [*launcher(settings), "-m", "prefloop.train.worker", str(out / SPEC)]
    result: dict[str, Any] | None = None
    failure: PrefloopError | None = None
    first: list[int] = []  # the first process's id, once it has said so
    stopped = False

    def stop() -> None:
        # One of the group is asked, and the others stop with it. Its launcher would give them 30 seconds for the step.
        nonlocal stopped
        stopped = True
        if first:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(first[0], signal.SIGTERM)
        else:
            group.terminate()

    # Tracebacks of all processes go to the log; events come on standard output. The group has a session of its own, or
    # the terminal would send Ctrl-C to the launcher as well.
    with (
        (out / LOG).open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8", start_new_session=True
        ) as group,
        on_first_signal(stop),
    ):
        assert group.stdout is not None
        try:
            for line in group.stdout:
                event = _event(line)
                if event is None:
                    log.write(line)
                elif event["event"] == "first":
                    first = event["values"]
                elif event["event"] == "result":
                    result = event["values"][0]
                elif event["event"] == "error":
                    failure = failure or _error(event["values"][0])
                elif event["event"] == "message":
                    name, level, text = event["values"]
                    logging.getLogger(name).log(level, "%s", text)
                else:
                    handlers[event["event"]](*event["values"])
        except BaseException:
            group.terminate()
            group.wait()  # until its processes are gone, too
            raise
    if failure is not None:
        raise failure
    if stopped and result is None:
        raise Interrupted("training stopped", fix="start the same command again to go on")
    if group.returncode or result is None:
        tail = (out / LOG).read_text("utf-8", "replace").splitlines()[-_TAIL:]
        raise PrefloopError(
            f"the training processes ended with exit code {group.returncode}:\n" + "\n".join(tail),
            where=str(out / LOG),
            fix="start the same command again to go on from the last checkpoint",
        )
    return result


def emit(event: str, *values: Any) -> None:
    """Tell the listening process; called by the first process of the group."""
    sys.stdout.write(json.dumps({"event": event, "values": values}) + "\n")
    sys.stdout.flush()


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


_KINDS: dict[str, type[PrefloopError]] = {k.__name__: k for k in (PrefloopError, UsageError, Interrupted)}


def described(error: PrefloopError) -> dict[str, Any]:
    """An error as an event's value."""
    return {"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}


def _error(value: dict[str, Any]) -> PrefloopError:
    return _KINDS.get(value["kind"], PrefloopError)(value["what"], where=value["where"], fix=value["fix"])
