"""`cache.db`: what models answered, by content, in one SQLite file that several processes may use at once.

A key is the hash of everything that changes an answer, so an entry is never wrong, only unused, and is never
overwritten: of two processes that computed the same answer the first to commit wins and both go on.

WAL with synchronous=NORMAL: a killed process loses nothing that it committed; a power loss may lose the last
transactions (they are computed again) and cannot damage the file. WAL keeps its index in shared memory, which does
not work across the machines of a network file system; such a place is refused instead of being damaged slowly.
tests/store/test_cache.py has concurrent writers, test_kill.py kills them.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypedDict

from prefloop.errors import PrefloopError, UsageError
from prefloop.store import atomic

SCHEMA_VERSION = 2
# What makes a file of each older version one of the next.
_UPGRADES = {1: "ALTER TABLE entries ADD COLUMN call BLOB"}
# Written into the file's header, so that somebody else's SQLite file is not taken for ours ("prfl").
APPLICATION_ID = 0x7072666C
_BUSY_SECONDS = 60.0
_KEYS_PER_QUERY = 500
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs"}
_NETWORK_FUSE = ("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys", "fuse.glusterfs")

# Value and call come last: SQLite reads a row from its start, and listing must not read the values.
_TABLES = (
    """CREATE TABLE entries (
        key TEXT PRIMARY KEY, kind TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT NULL, bytes INTEGER NOT NULL,
        value BLOB NOT NULL, call BLOB)""",
    "CREATE TABLE digests (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL)",
)


# What to do where no cache can be; the variable is the command line's.
ELSEWHERE = "put the cache on a local disk that you may write to: PREFLOOP_CACHE=/local/path/cache.db"


class Group(TypedDict):
    """Entries of one kind and model. `bytes` as stored; `oldest` and `newest` in UTC, ISO 8601."""

    kind: str
    model: str
    count: int
    bytes: int
    oldest: str
    newest: str


class Entry(TypedDict):
    """One entry as people look at it.

    `call` is what was sent to a server and what came back (`backends.base.Arrival`); None where none was asked.
    """

    key: str
    kind: str
    model: str
    created: str
    value: Any
    call: Any


class Cache:
    """One open cache file. Made, with its folder, when it is not there; close it, or use it in a `with` block.

    Raises:
        UsageError: the place cannot hold a cache, or the file is not a cache that this version reads.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        refuse_place(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"its folder cannot be made: {error.strerror}", where=str(self.path), fix=ELSEWHERE
            ) from error
        with self._explained():
            self._db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # Somebody else's file is looked at before anything in it is changed, its journal mode included.
        self._is_ours()
        if self._share() != "wal":
            raise UsageError("SQLite cannot share a file between processes here", where=str(self.path), fix=ELSEWHERE)
        self._db.execute("PRAGMA synchronous=NORMAL")
        # Two processes may make the file at once: look again and make in one transaction.
        with self._transaction():
            if self._is_ours():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                statements = [_UPGRADES[older] for older in range(version, SCHEMA_VERSION)]
            else:
                statements = [*_TABLES, f"PRAGMA application_id={APPLICATION_ID}"]
            for statement in [*statements, f"PRAGMA user_version={SCHEMA_VERSION}"]:
                self._db.execute(statement)

    def _is_ours(self) -> bool:
        """Whether the tables are there; False for a new file, an error for anything else."""
        # One statement, one snapshot: between two, another process may have made the tables.
        version, application, tables = self._db.execute(
            "SELECT (SELECT user_version FROM pragma_user_version),"
            " (SELECT application_id FROM pragma_application_id), (SELECT count(*) FROM sqlite_master)"
        ).fetchone()
        if not (tables or version or application):
            return False
        if application != APPLICATION_ID:
            raise UsageError(
                "is a SQLite file of another program", where=str(self.path), fix="name another file for the cache"
            )
        if not 1 <= version <= SCHEMA_VERSION:
            raise UsageError(
                f"has cache format {version}, this version of prefloop reads formats up to {SCHEMA_VERSION}",
                where=str(self.path),
                fix="use the prefloop that made it, or move the file away (answers are computed again)",
            )
        return True

    def _share(self) -> str:
        """Switch to WAL and return the mode that the file is in then.

        SQLite's own time-out does not cover this switch: of several processes that make one file, all but one are
        told "locked" at once. test_four_processes_store_the_same_keys_exactly_once fails without the loop.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return str(self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._db.close()

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that are there."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Any] = {}
        with self._explained():
            for start in range(0, len(wanted), _KEYS_PER_QUERY):
                some = wanted[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                for key, blob in self._db.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", some):
                    found[key] = self._unpack(key, blob)
        return found

    def put_many(self, kind: str, items: Mapping[str, Any], model: str, calls: Mapping[str, Any] | None = None) -> int:
        """Store JSON-able values, all in one transaction; keys that are there keep their value.

        Args:
            kind: what the values are, such as generate or score.
            items: key -> value. Never an error: what is stored is believed for ever.
            model: name for people; `ls` and `prune` go by it.
            calls: by key, the texts of the calls that gave the values, where there were any; see `Entry`.

        Returns:
            How many were new.

        Raises:
            PrefloopError: a value holds NaN or an infinity.
        """
        now = time.time()
        rows = []
        for key, value in items.items():
            blob = _pack(key, value)
            call = _pack(key, calls[key]) if calls and key in calls else None
            rows.append((key, kind, model, now, len(blob) + len(call or b""), blob, call))
        with self._explained(), self._transaction():
            before = self._db.total_changes
            self._db.executemany("INSERT INTO entries VALUES (?,?,?,?,?,?,?) ON CONFLICT (key) DO NOTHING", rows)
            stored = self._db.total_changes - before
            atomic.crash_point("cache:before")
        atomic.crash_point("cache:after")
        return stored

    def ls(self) -> list[Group]:
        """What is stored, by kind and model."""
        with self._explained():
            rows = self._db.execute(
                "SELECT kind, model, count(*), sum(bytes), min(created), max(created) FROM entries "
                "GROUP BY kind, model ORDER BY kind, model"
            ).fetchall()
        return [
            Group(kind=kind, model=model, count=count, bytes=size, oldest=_iso(oldest), newest=_iso(newest))
            for kind, model, count, size, oldest, newest in rows
        ]

    def show(self, key: str = "", kind: str | None = None, model: str | None = None, limit: int = 1) -> list[Entry]:
        """The newest entries whose key begins so, whole.

        Args:
            key: the first hex digits; none stand for any key.
            kind, model: only entries of these.
            limit: how many at most.
        """
        with self._explained():
            # A key is hex digits, so its beginnings lie between it and it followed by something above any digit.
            rows = self._db.execute(
                "SELECT key, kind, model, created, value, call FROM entries WHERE key BETWEEN ?1 AND ?1 || 'g'"
                " AND kind = coalesce(?2, kind) AND model = coalesce(?3, model) ORDER BY created DESC LIMIT ?4",
                (key, kind, model, limit),
            ).fetchall()
        return [
            Entry(
                key=found,
                kind=its_kind,
                model=its_model,
                created=_iso(created),
                value=self._unpack(found, value),
                call=None if call is None else self._unpack(found, call),
            )
            for found, its_kind, its_model, created, value, call in rows
        ]

    def prune(
        self, kind: str | None = None, model: str | None = None, older_than_days: float | None = None
    ) -> tuple[int, int]:
        """Remove the entries that meet all the given conditions, without any all entries, and give their space back.

        Returns:
            How many were removed, and the bytes that they took.
        """
        cutoff = None if older_than_days is None else time.time() - older_than_days * 86_400
        given: dict[str, str | float | None] = {"kind = ?": kind, "model = ?": model, "created < ?": cutoff}
        conditions = {text: value for text, value in given.items() if value is not None}
        where, values = " AND ".join(conditions) or "1", list(conditions.values())
        with self._explained():
            with self._transaction():
                count, size = self._db.execute(
                    f"SELECT count(*), coalesce(sum(bytes), 0) FROM entries WHERE {where}", values
                ).fetchone()
                self._db.execute(f"DELETE FROM entries WHERE {where}", values)
            self._db.execute("VACUUM")
            # The log holds the whole vacuumed file until it is folded back.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count, size

    def digest_get(self, path: str, stamp: str) -> str | None:
        """See `store.fingerprint.Memo`."""
        with self._explained():
            row = self._db.execute("SELECT digest FROM digests WHERE path = ? AND stamp = ?", (path, stamp)).fetchone()
        return None if row is None else str(row[0])

    def digest_put(self, path: str, stamp: str, digest: str) -> None:
        """See `store.fingerprint.Memo`."""
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO digests VALUES (?,?,?)", (path, stamp, digest))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE takes the write lock at once: a transaction that starts by reading cannot wait for it later.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as messages that say what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UsageError(f"cannot be used: {error}", where=str(self.path), fix=_fix(str(error))) from error
        except OSError as error:
            raise UsageError(f"cannot be used: {error.strerror}", where=str(self.path), fix=ELSEWHERE) from error
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"is damaged or not a cache: {error}",
                where=str(self.path),
                fix="move the file and its -wal and -shm away; the answers in it are computed again",
            ) from error

    def _unpack(self, key: str, blob: bytes) -> Any:
        try:
            return json.loads(zlib.decompress(blob).decode("utf-8", "surrogatepass"))
        except (zlib.error, ValueError) as error:
            raise UsageError(
                f"the entry {key} is damaged: {error}",
                where=str(self.path),
                fix="move the file and its -wal and -shm away; the answers in it are computed again",
            ) from error


def _pack(key: str, value: Any) -> bytes:
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise PrefloopError(f"an answer cannot be cached: {error}", where=key) from error
    # surrogatepass: the cache gives back exactly what it was given, broken Unicode of a model included.
    return zlib.compress(text.encode("utf-8", "surrogatepass"))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _fix(error: str) -> str:
    if "locked" in error or "busy" in error:
        return "another process holds the file; try again when it is done"
    if "full" in error:
        return "make room on the disk"
    return ELSEWHERE


def refuse_place(path: str | Path) -> None:
    """Check where a cache is to be, without making anything.

    Raises:
        UsageError: it lies on a network file system.
    """
    system = network_filesystem(Path(path).parent)
    if system is not None:
        raise UsageError(
            f"lies on a network file system ({system}), where SQLite loses data",
            where=str(path),
            fix=f"{ELSEWHERE}; run directories may stay where they are",
        )


def network_filesystem(folder: str | Path, mounts: str | Path = "/proc/self/mounts") -> str | None:
    """The type of the network file system that a folder lies on; None for a local one, and where it cannot be told."""
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    resolved = Path(folder).resolve()
    best, system = -1, ""
    for line in lines:
        _, point, kind = line.split(" ")[:3]
        # The kernel writes a space in a mount point as \040. Of equal mount points the last one is on top.
        mount = Path(point.replace("\\040", " "))
        if resolved.is_relative_to(mount) and len(mount.parts) >= best:
            best, system = len(mount.parts), kind
    return system if system in _NETWORK or system.startswith(_NETWORK_FUSE) else None
