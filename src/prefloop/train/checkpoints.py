"""Which checkpoints count, and which are kept.

The trainer writes a checkpoint file by file, so a process killed at the wrong moment leaves a folder that looks like
one. Here a checkpoint counts only with its mark, `complete.json`, which is written last, after everything else has
reached the disk, and which lists the files and their sizes. tests/train/test_resume.py kills within a save.

Nothing is unpickled: weights are safetensors, and the trainer reads optimiser, schedule and random state with
`weights_only=True` (tests/train/test_resume.py::test_a_malicious_checkpoint_runs_nothing).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from prefloop.store import atomic

MARK = "complete.json"
KEPT = 2
_FOLDER = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, fingerprint: str) -> None:
    """Make a fully written checkpoint count, then drop the oldest beyond `KEPT`."""
    sizes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    atomic.fsync_dir(folder.parent)
    atomic.write_json(folder / MARK, {"fingerprint": fingerprint, "files": sizes})
    for old in _folders(folder.parent)[:-KEPT]:
        _remove(old)


def latest(out: Path, fingerprint: str) -> Path | None:
    """The newest checkpoint of this very training that is complete; all others that are not are removed.

    Args:
        fingerprint: of the data and settings. Checkpoints of others are removed: continuing from them would mix two
            trainings.
    """
    good = []
    for folder in _folders(out):
        if _is_complete(folder, fingerprint):
            good.append(folder)
        else:
            _remove(folder)
    return good[-1] if good else None


def clear(out: Path) -> None:
    """Remove all checkpoints; the training they belong to is done."""
    for folder in _folders(out):
        _remove(folder)


def step_of(folder: Path) -> int:
    """Optimiser steps done when the checkpoint was taken."""
    match = _FOLDER.fullmatch(folder.name)
    assert match is not None, folder
    return int(match[1])


def _folders(out: Path) -> list[Path]:
    return sorted((p for p in out.glob("checkpoint-*") if _FOLDER.fullmatch(p.name)), key=step_of)


def _is_complete(folder: Path, fingerprint: str) -> bool:
    if not (folder / MARK).is_file():
        return False
    mark: dict[str, Any] = atomic.read_json(folder / MARK)
    return mark["fingerprint"] == fingerprint and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in mark["files"].items()
    )


def _remove(folder: Path) -> None:
    # The mark goes first: a removal that is cut short must not leave something that counts.
    (folder / MARK).unlink(missing_ok=True)
    shutil.rmtree(folder)
