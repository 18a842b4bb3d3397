"""Files and folders that are either wholly there or not there at all, whatever kills the process.

Every publish takes the same road: write under a temporary name in the same folder, flush, fsync, rename, fsync the
folder. The two fsyncs are for power loss, not for a killed process (the kernel keeps what a dead process wrote):
without the first, a file system may store the rename before the data and leave an empty file under the final name;
without the second, it may forget the rename although later files were kept. A rename within one folder is atomic by
POSIX, so a reader sees the old content or the new, never a mixture.

What a killed process leaves behind carries a prefix and is removed by `sweep`, which only the owner of a folder may
call. tests/store/test_atomic.py and test_kill.py kill a process at every `crash_point`.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from prefloop.errors import PrefloopError

if TYPE_CHECKING:
    import pyarrow as pa

TEMPORARY = ".tmp-"
# The folder that `replace_dir` has moved aside; its old name follows, so that `sweep` can put it back.
ASIDE = ".old-"


def crash_point(name: str) -> None:
    """Does nothing. Called as `NAME:before` and `NAME:after` around each publish; tests kill the process here."""


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")


@contextmanager
def file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file for writing that takes the place of `path` when the block ends without an exception."""
    final = Path(path)
    temporary = _temporary(final)
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        crash_point(f"{final.name}:before")
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(final.parent)
    crash_point(f"{final.name}:after")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file."""
    with file(path) as stream:
        stream.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file as UTF-8; a lone surrogate is written as its escape, such as `\\ud800`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON.

    Raises:
        PrefloopError: a number is not finite, which JSON cannot say.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise PrefloopError(f"cannot be written as JSON: {error}", where=str(path)) from error
    # Inside a JSON string the escape that write_text makes is JSON's own, so reading gives the surrogate back.
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        PrefloopError: the file is not JSON; our writes are atomic, so something else changed it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise PrefloopError(f"not readable as JSON: {error}", where=str(path)) from error


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Write a table as zstd Parquet."""
    import pyarrow.parquet as pq

    with file(path) as stream:
        pq.write_table(table, stream, compression="zstd")


@contextmanager
def directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends without an exception."""
    final = Path(path)
    temporary = _temporary(final)
    temporary.mkdir()
    try:
        yield temporary
        replace_dir(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_dir(temporary: str | Path, final: str | Path) -> None:
    """Put a finished folder in the place of another, or where there was none. Both are in the same parent.

    POSIX cannot swap full folders in one step, so the old one is moved aside first; a kill between the two renames is
    mended by `sweep`, which puts it back.
    """
    temporary, final = Path(temporary), Path(final)
    for folder, _, names in os.walk(temporary):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_dir(Path(folder))
    aside = final.with_name(f"{ASIDE}{final.name}")
    crash_point(f"{final.name}:before")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
        crash_point(f"{final.name}:between")
    os.rename(temporary, final)
    fsync_dir(final.parent)
    crash_point(f"{final.name}:after")
    shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: str | Path) -> list[str]:
    """Remove what killed processes left in a folder (not below it) and say what it was. Only for its owner."""
    swept = []
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith(TEMPORARY):
            remove(path)
            swept.append(path.name)
        elif path.name.startswith(ASIDE):
            final = path.with_name(path.name.removeprefix(ASIDE))
            if final.exists():
                remove(path)
            else:
                os.rename(path, final)
            swept.append(path.name)
    return swept
