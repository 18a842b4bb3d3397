"""JSON lines as other benchmarks write them: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.store import atomic


def read_jsonl(path: str | Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file, as `numbered` reads them, without their lines."""
    return [row for _, row in numbered(path, needed)]


def numbered(path: str | Path, needed: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """(line, row) of the rows of a file; lines count from 1, and blank ones are passed over.

    Args:
        path: the file.
        needed: keys that every row has.

    Raises:
        UsageError: it cannot be read, a line is no object or lacks a key, or there is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), fix=f"check the path (looked from {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a text file in UTF-8, one JSON object a line"
        raise UsageError(f"cannot be read: {error}", where=str(path), fix=fix) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"is no JSON: {error}", where=where, fix="give one object a line") from error
        if not isinstance(row, dict):
            raise UsageError("is no object", where=where, fix="give one JSON object a line")
        missing = [key for key in needed if key not in row]
        if missing:
            raise UsageError(f"has no {missing[0]!r}", where=where, fix=f"every row needs {', '.join(needed)}")
        rows.append((number, row))
    if not rows:
        raise UsageError("has no rows", where=str(path), fix="write rows to it, one JSON object a line")
    return rows


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one object a line."""
    atomic.write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
