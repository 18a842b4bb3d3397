"""The run directory: everything about one run in one folder that can be copied, read and continued.

    manifest.json   what runs: resolved recipe, versions, input digests, seeds
    events.jsonl    what happened when        metrics.jsonl   numbers over time        run.log   the same for people
    stages/NN-name/ one folder per stage, see `stagedir`
    summary.json    the results

One process at a time writes; an exclusive lock on `.lock` holds that, and the kernel drops it when the process dies.
Logs are appended without fsync: a killed process loses nothing of what it wrote, and after a power loss no stage
depends on them. tests/store/test_rundir.py guards the lock and the healing of torn lines.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from prefloop.errors import PrefloopError, UsageError
from prefloop.store import atomic
from prefloop.store.stagedir import StageDir

_JSONL = ("events.jsonl", "metrics.jsonl")
_LOCK = ".lock"
_LOCK_ATTEMPTS, _LOCK_PAUSE_SECONDS = 5, 0.1


class RunDir:
    """A run directory, open for writing (`open`) or only for reading (`peek`)."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Make or continue a run directory as its only writer. Close it, or use it in a `with` block.

        What a killed writer left half done is removed, and a line that it left torn is cut off.

        Raises:
            UsageError: another process has it open (names its pid), or the folder holds something else.
        """
        folder = Path(path)
        _check_run(folder)
        try:
            (folder / "stages").mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        if not _take(lock):
            holder = _pid(lock)
            os.close(lock)
            raise UsageError(
                f"in use by process {holder if holder is not None else 'unknown'}",
                where=str(folder),
                fix="wait for it or stop it; `prefloop status` shows what it does",
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        run = cls(folder, lock)
        run._mend()
        return run

    @classmethod
    def peek(cls, path: str | Path) -> Self:
        """Read a run directory, also while another process writes it; one that is not there yet has nothing in it.

        Raises:
            UsageError: the folder holds something else.
        """
        folder = Path(path)
        _check_run(folder)
        return cls(folder, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the next writer in. Closing twice is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def holder(self) -> int | None:
        """The pid of the process that has this run open for writing, or None."""
        if self._lock is not None:
            return os.getpid()
        lock_file = self.path / _LOCK
        if not lock_file.exists():
            return None
        descriptor = os.open(lock_file, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid(descriptor)
        finally:
            os.close(descriptor)
        return None

    # The manifest and the summary.

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace `manifest.json`."""
        self._check_writable()
        atomic.write_json(self.path / "manifest.json", manifest)

    def read_manifest(self) -> dict[str, Any] | None:
        """`manifest.json`, or None before it was written."""
        return _read(self.path / "manifest.json")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace `summary.json`."""
        self._check_writable()
        atomic.write_json(self.path / "summary.json", summary)

    def read_summary(self) -> dict[str, Any] | None:
        """`summary.json`, or None before it was written."""
        return _read(self.path / "summary.json")

    # The logs.

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`: time (ISO 8601, UTC), kind, fields."""
        self._append("events.jsonl", {"time": _now(), "kind": kind, **fields})

    def metric(self, **fields: Any) -> None:
        """Append one line to `metrics.jsonl`: time and fields. A number that is not finite is written as its name."""
        self._append("metrics.jsonl", {"time": _now(), **fields})

    def log(self, line: str) -> None:
        """Append to `run.log`, with the time."""
        self._check_writable()
        self._write("run.log", f"{_now()} {line}\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """The events so far; a last line that is still being written is left out."""
        return _read_lines(self.path / "events.jsonl")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The metrics so far; a last line that is still being written is left out."""
        return _read_lines(self.path / "metrics.jsonl")

    # The stages.

    def stage(self, number: int, name: str) -> StageDir:
        """The folder of a stage, made by its `begin`."""
        return StageDir(self.path / "stages" / f"{number:02d}-{name}", writable=self._lock is not None)

    def stages(self) -> list[StageDir]:
        """The stages that have a folder, in order."""
        folders = [p for p in (self.path / "stages").glob("[0-9]*-*") if p.is_dir()]
        return [
            StageDir(p, writable=self._lock is not None)
            for p in sorted(folders, key=lambda p: (int(p.name.partition("-")[0]), p.name))
        ]

    def _mend(self) -> None:
        """Remove what a killed writer left. The lock is ours, so no temporary file here has a living owner."""
        atomic.sweep(self.path)
        atomic.sweep(self.path / "stages")
        for stage in self.stages():
            stage.sweep()
        for name in _JSONL:
            torn = _cut_torn_line(self.path / name)
            if torn:
                self.event("healed", file=name, torn=torn.decode("utf-8", "replace")[:200])

    def _append(self, name: str, fields: dict[str, Any]) -> None:
        self._check_writable()
        self._write(name, json.dumps(_finite(fields), ensure_ascii=False, allow_nan=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        # One unbuffered write for the line: a kill cannot come between its bytes and the buffer's flush.
        with (self.path / name).open("ab", buffering=0) as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.path} is open for reading only")


def _check_run(folder: Path) -> None:
    """Refuse a folder of something else: `--out ~/Documents` must not put a run there."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file; a run needs a folder", where=str(folder))
    ours = any((folder / name).exists() for name in (_LOCK, "manifest.json", "stages"))
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            "the folder holds something that is not a run", where=str(folder), fix="give a new or an empty folder"
        )


def _take(descriptor: int) -> bool:
    # `holder` of a reader takes the lock for a moment, so one refusal does not mean that there is a writer.
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt < _LOCK_ATTEMPTS - 1:
                time.sleep(_LOCK_PAUSE_SECONDS)
    return False


def _pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace")
    return int(text) if text.isdigit() else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _read(path: Path) -> dict[str, Any] | None:
    return atomic.read_json(path) if path.exists() else None


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise PrefloopError(f"not JSON: {error}", where=f"{path}, line {number}") from error


def _cut_torn_line(path: Path) -> bytes:
    """Cut what stands behind the last newline, and return it."""
    if not path.exists():
        return b""
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        tail = b""
        # Lines are short: the last newline is hardly ever further back than one step.
        start = end
        while start > 0 and b"\n" not in tail:
            start = max(0, start - 4096)
            stream.seek(start)
            tail = stream.read(end - start)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn:
            stream.truncate(end - len(torn))
        return torn


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as texts: JSON has no such numbers, and a lost NaN would hide a failure."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
