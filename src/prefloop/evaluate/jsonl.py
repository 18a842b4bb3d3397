"""JSON lines as other benchmarks write them: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.store import atomic


def read_jsonl(path: str | Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file; blank lines are passed over.

    Args:
        path: the file.
        needed: keys that every row has.

    Raises:
        UsageError: it cannot be read, a line is no object or lacks a key, or there is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"is no JSON: {error}", where=where, fix="give one object a line") from error
        missing = [key for key in needed if not isinstance(row, dict) or key not in row]
        if missing:
            raise UsageError(f"has no {missing[0]!r}", where=where, fix=f"every row needs {', '.join(needed)}")
        rows.append(row)
    if not rows:
        raise UsageError("has no rows", where=str(path))
    return rows


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one object a line."""
    atomic.write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
