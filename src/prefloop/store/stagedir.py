"""The folder of one stage: parts that are published one by one, and the mark that says that it is done.

    _STARTED.json       fingerprint of the work that the parts here belong to
    part-00000.parquet  rows, zstd; its metadata holds the part's counts
    NAME-00000.parquet  side tables of the same part, such as the calls of a signal
    rejects.parquet     what was dropped, with reasons; until the end one `rejects-00000.parquet` per part
    _SUCCESS.json       fingerprint, row counts, digest of the content

A stage that makes files instead keeps them under names of its own, not of the form NAME-00000.parquet.

A part's side tables and rejects are published first and the part itself last: its rename is the commit point of all of
them, and side tables without their part are removed by `begin`. kill -9 loses at most the part in flight;
tests/store/test_kill.py kills at every publish and compares the result with an undisturbed run.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefloop import __version__
from prefloop.errors import PrefloopError
from prefloop.records import arrow_schema
from prefloop.store import atomic
from prefloop.store import rows as row_files
from prefloop.store.fingerprint import digest, file_digest, folder_files

_STARTED, _SUCCESS, _REJECTS = "_STARTED.json", "_SUCCESS.json", "rejects.parquet"
_METADATA = b"prefloop"
_NAME = re.compile(r"\d+-[A-Za-z0-9][\w.-]*")
_TABLE = r"[a-z][a-z0-9_]*"
_PART = re.compile(rf"(?P<table>{_TABLE})-(?P<index>\d{{5,}})\.parquet")

Rows = Sequence[Mapping[str, Any]]


class StageDir:
    """One stage of a run. Get it from `RunDir.stage`."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        if not _NAME.fullmatch(path.name):
            raise ValueError(f"not the name of a stage: {path.name}")
        self.path = path
        self._writable = writable
        self._clock = time.monotonic()

    @property
    def name(self) -> str:
        """The name without its number."""
        return self.path.name.partition("-")[2]

    def success(self) -> dict[str, Any] | None:
        """The contents of `_SUCCESS.json`, or None while the stage is not done."""
        path = self.path / _SUCCESS
        return atomic.read_json(path) if path.exists() else None

    def is_done(self, fingerprint: str) -> bool:
        """Whether the stage ended with this fingerprint and its files are still there with their sizes."""
        success = self.success()
        return (
            success is not None
            and success["fingerprint"] == fingerprint
            and all(_size(self.path / name) == size for name, size in success["files"].items())
        )

    def has_work(self, fingerprint: str) -> bool:
        """Whether an interrupted run of this fingerprint left something that `begin` will keep."""
        if self.success() is not None or self._started() != fingerprint:
            return False
        return any(not p.name.startswith((_STARTED, atomic.TEMPORARY)) for p in self.path.iterdir())

    def begin(self, fingerprint: str) -> set[int]:
        """Get ready to work: keep what an interrupted run of the same fingerprint left, remove everything else.

        A stage that is done is started over, whatever its fingerprint; ask `is_done` first.

        Returns:
            Indices of the parts that are there and need not be made again.
        """
        self._check_writable()
        self.path.mkdir(parents=True, exist_ok=True)
        if self.success() is not None or self._started() != fingerprint:
            # The marks go first: without them, whatever a kill leaves of the rest counts as foreign.
            for mark in (_SUCCESS, _STARTED):
                (self.path / mark).unlink(missing_ok=True)
            atomic.fsync_dir(self.path)
            for path in self.path.iterdir():
                atomic.remove(path)
            started = {"fingerprint": fingerprint, "version": __version__, "started": datetime.now(UTC).isoformat()}
            atomic.write_json(self.path / _STARTED, started)
        self.sweep()
        self._remove_orphans()
        self._clock = time.monotonic()
        return self._parts()

    def write_part(
        self,
        index: int,
        rows: Rows,
        kind: str,
        rejects: Rows = (),
        tables: Mapping[str, tuple[str, Rows]] | None = None,
        counts: Mapping[str, int | float] | None = None,
    ) -> None:
        """Publish one part, all of it or nothing; in place of the part of that index if there is one.

        Args:
            index: place of the part among the parts; rows keep the order of the indices.
            rows: the rows kept, of `kind` (see `records.arrow_schema`).
            rejects: the rows dropped, as RejectRow.
            tables: side tables, name -> (kind, rows).
            counts: numbers that `finish` adds up over the parts.

        Raises:
            PrefloopError: a row does not have the shape of its kind.
        """
        self._check_writable()
        if self._started() is None or self.success() is not None:
            raise RuntimeError(f"{self.path}: begin was not called")
        main = self.path / f"part-{index:05d}.parquet"
        side = {
            name: row_files.to_table(k, r, where=f"{main.name}, {name}") for name, (k, r) in (tables or {}).items()
        }
        if not all(re.fullmatch(_TABLE, name) and name not in ("part", "rejects") for name in side):
            raise ValueError(f"not all of these are names of side tables: {', '.join(side)}")
        if rejects:
            side["rejects"] = row_files.to_table("rejects", rejects, where=f"{main.name}, rejects")
        table = row_files.to_table(kind, rows, where=main.name)
        if main.exists():
            # Withdrawn first, as a new side table beside an old part would pass for whole.
            main.unlink()
            self._remove_orphans()
        now = time.monotonic()
        metadata = {
            "rejected": len(rejects),
            "reasons": Counter(str(r["reason"]) for r in rejects),
            "counts": dict(counts or {}),
            "seconds": now - self._clock,
        }
        for name, side_table in side.items():
            atomic.write_parquet(self.path / f"{name}-{index:05d}.parquet", side_table)
        atomic.write_parquet(main, table.replace_schema_metadata({_METADATA: json.dumps(metadata)}))
        self._clock = now

    def counts(self) -> dict[str, float]:
        """The parts' counts so far, added up."""
        total: Counter[str] = Counter()
        for part in self._tables("part"):
            total.update(_read_metadata(part)[1]["counts"])
        return dict(sorted(total.items()))

    def finish(self, fingerprint: str, rows_in: int, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Reconcile, merge the rejects and mark the stage as done.

        Args:
            fingerprint: the one that `begin` was given.
            rows_in: rows that the stage was to work on.
            extra: anything else to keep.

        Returns:
            What `_SUCCESS.json` now holds. `content` is the digest of the kept rows in order: it does not depend on
            where parts begin, nor on the Parquet library. `seconds` is working time, over all interrupted runs.

        Raises:
            PrefloopError: rows_in is not the kept plus the rejected.
        """
        self._check_started(fingerprint)
        parts = [self.path / f"part-{index:05d}.parquet" for index in sorted(self._parts())]
        kept, rejected, seconds = 0, 0, time.monotonic() - self._clock
        reasons: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for part in parts:
            rows, metadata = _read_metadata(part)
            kept += rows
            rejected += metadata["rejected"]
            reasons.update(metadata["reasons"])
            counts.update(metadata["counts"])
            seconds += metadata["seconds"]
        if rows_in != kept + rejected:
            raise PrefloopError(
                f"{rows_in} rows came in, but {kept} were kept and {rejected} rejected, {kept + rejected} in all",
                where=str(self.path),
                fix="a stage may not lose or invent rows: please report this with the run directory",
            )
        self._merge_rejects()
        success = self._succeed(
            fingerprint,
            {
                "rows": {"in": rows_in, "kept": kept, "rejected": rejected},
                "reject_reasons": dict(sorted(reasons.items())),
                "counts": dict(sorted(counts.items())),
                "content": row_files.rows_digest(row_files.read_rows(parts)),
                "seconds": round(seconds, 3),
            },
            [*self._tables("*"), self.path / _REJECTS],
            extra,
        )
        self.sweep()
        return success

    def finish_files(
        self, fingerprint: str, folder: str | Path | None = None, extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Mark a stage that makes files, not rows, as done.

        Args:
            fingerprint: the one that `begin` was given.
            folder: folder (or single file) that is the result, anywhere in the run; the stage's own unless given.
                Hidden files and training checkpoints do not count.
            extra: anything else to keep.

        Returns:
            What `_SUCCESS.json` now holds. `content` is the digest of the files' names and contents.

        Raises:
            PrefloopError: there is no such file.
        """
        self._check_started(fingerprint)
        result = self.path if folder is None else Path(folder)
        files = [result] if result.is_file() else folder_files(result)
        files = [f for f in files if f.parent != self.path or f.name not in (_STARTED, _SUCCESS)]
        if not files:
            raise PrefloopError("the stage was to make files here, and did not", where=str(result))
        names = {os.path.relpath(f, self.path): file_digest(f) for f in files}
        facts = {"content": digest(names), "seconds": round(time.monotonic() - self._clock, 3)}
        return self._succeed(fingerprint, facts, files, extra)

    def rows(self, table: str = "part") -> Iterator[dict[str, Any]]:
        """Stream the rows of a table, part by part: "part", the name of a side table, or (once done) "rejects".

        Raises:
            PrefloopError: no part has such a table.
        """
        paths = [self.path / _REJECTS] if table == "rejects" else self._tables(table)
        if not all(p.exists() for p in paths) or (not paths and self._parts()):
            raise PrefloopError(f"there is no table {table!r} here", where=str(self.path))
        return row_files.read_rows(paths)

    def count(self, table: str = "part") -> int:
        """Rows of a table so far, read from the files' ends."""
        return sum(_read_metadata(path)[0] for path in self._tables(table))

    def sweep(self) -> None:
        """Remove what a killed process left: temporary files, and the rejects of parts once they are merged."""
        self._check_writable()
        atomic.sweep(self.path)
        success = self.success()
        if success is not None and "rows" in success:
            for path in self._tables("rejects"):
                path.unlink()

    def _remove_orphans(self) -> None:
        """Remove side tables whose part was never published."""
        parts = self._parts()
        for path in self.path.iterdir():
            match = _PART.fullmatch(path.name)
            if match and int(match["index"]) not in parts:
                path.unlink()

    def _started(self) -> str | None:
        path = self.path / _STARTED
        return atomic.read_json(path)["fingerprint"] if path.exists() else None

    def _tables(self, table: str) -> list[Path]:
        """Paths of a table's parts in order, `*` for all but the rejects."""
        found = []
        for path in self.path.glob("*.parquet"):
            match = _PART.fullmatch(path.name)
            if match and (match["table"] == table or (table == "*" and match["table"] != "rejects")):
                found.append((match["table"], int(match["index"]), path))
        return [path for _, _, path in sorted(found)]

    def _parts(self) -> set[int]:
        return {int(path.stem.rpartition("-")[2]) for path in self._tables("part")}

    def _merge_rejects(self) -> None:
        import pyarrow.parquet as pq

        with (
            atomic.file(self.path / _REJECTS) as stream,
            pq.ParquetWriter(stream, arrow_schema("rejects"), compression="zstd") as writer,
        ):
            for path in self._tables("rejects"):
                writer.write_table(pq.read_table(path))

    def _succeed(
        self, fingerprint: str, facts: dict[str, Any], files: Iterable[Path], extra: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        sizes = {os.path.relpath(f, self.path): f.stat().st_size for f in files}
        success = {
            "fingerprint": fingerprint,
            **facts,
            "files": dict(sorted(sizes.items())),
            "version": __version__,
            "extra": dict(extra or {}),
        }
        atomic.write_json(self.path / _SUCCESS, success)
        return success

    def _check_started(self, fingerprint: str) -> None:
        self._check_writable()
        if self._started() != fingerprint:
            raise RuntimeError(f"{self.path}: begin was not called with this fingerprint")

    def _check_writable(self) -> None:
        if not self._writable:
            raise RuntimeError(f"{self.path} is open for reading only")


def _read_metadata(path: Path) -> tuple[int, dict[str, Any]]:
    """Row count and our own metadata of a part, from its last bytes."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    own = (metadata.metadata or {}).get(_METADATA)
    return metadata.num_rows, json.loads(own) if own else {}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
