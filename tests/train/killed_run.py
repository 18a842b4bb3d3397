"""A training in its own process that kills itself with SIGKILL. Arguments: folder, model, where, which.

where: `step` (after optimiser step number `which`), `save` (within the writing of checkpoint number `which`, half a
file of optimiser state on the disk), `seal` (checkpoint number `which` written, its mark not), `final` (the weights
saved, `trained.json`, the JSON file number `which`, not).
"""

import os
import signal
import sys
from pathlib import Path

import torch
import training_runs

from prefloop.store import atomic
from prefloop.train import checkpoints, rhythm


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(which, original, instead):
    """A function that calls `original` until call number `which`, and then `instead`."""
    left = which

    def call(*args, **kwargs):
        nonlocal left
        left -= 1
        return (instead if left == 0 else original)(*args, **kwargs)

    return call


def half_save(state, path):
    torch_save(state, path)
    with open(path, "r+b") as stream:
        stream.truncate(os.path.getsize(path) // 2)
    die()


folder, model, where, which = sys.argv[1:]
torch.set_num_threads(1)
torch_save = torch.save
if where == "step":
    rhythm.Rhythm.on_step_begin = at_call(int(which) + 1, rhythm.Rhythm.on_step_begin, die)
elif where == "save":
    # Each checkpoint saves optimiser, schedule and random state.
    torch.save = at_call(3 * int(which) - 2, torch.save, half_save)
elif where == "seal":
    checkpoints.seal = at_call(int(which), checkpoints.seal, die)
elif where == "final":
    atomic.write_json = at_call(int(which), atomic.write_json, die)
training_runs.run(Path(folder), model, **training_runs.RESUME)
