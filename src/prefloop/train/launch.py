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
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefloop.config import LaunchSection, ModelSection, TrainSection
from prefloop.errors import Interrupted, PrefloopError, UsageError
from prefloop.store import atomic

logger = logging.getLogger(__name__)

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
        return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(section.processes or 2)]
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


def launch(
    model: ModelSection,
    section: TrainSection,
    settings: LaunchSection,
    *,
    source: dict[str, Any],
    seed: int,
    out: Path,
    cache: Path,
    handlers: dict[str, Callable[..., None]],
) -> dict[str, Any]:
    """Train in the processes of an accelerate configuration.

    Args:
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
        "source": source,
        "seed": seed,
        "out": str(out.resolve()),
        "cache": str(cache.resolve()),
    }
    atomic.write_json(out / SPEC, spec)
    command = [*launcher(settings), "-m", "prefloop.train.worker", str(out / SPEC)]
    result: dict[str, Any] | None = None
    failure: PrefloopError | None = None
    # Tracebacks and warnings of all processes go to the log; events come on standard output.
    with (
        (out / LOG).open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8") as group,
    ):
        assert group.stdout is not None
        try:
            for line in group.stdout:
                event = _event(line)
                if event is None:
                    log.write(line)
                elif event["event"] == "result":
                    result = event["values"][0]
                elif event["event"] == "error":
                    failure = failure or _error(event["values"][0])
                else:
                    handlers[event["event"]](*event["values"])
        except BaseException:
            group.terminate()
            raise
    if failure is not None:
        raise failure
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
