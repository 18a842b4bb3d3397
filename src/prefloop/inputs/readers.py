"""File formats: JSONL, JSON, CSV, Parquet and hub data sets as one stream of numbered records and problems.

A reader never stops at a bad row: it yields a `Problem` and goes on where the format lets it. All are read in bounded
memory. Behind broken JSON inside an array, or a bad byte in it or in CSV, there is no going on.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.inputs import hub, json_array
from prefloop.inputs.encoding import BOM, encoding_problem, guess_encoding, opened, suffix_of, utf16_problem
from prefloop.inputs.problems import Problem, raw_json

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Record:
    """One row: its 1-based number (`unit` says of what) and its columns."""

    row: int
    value: dict[str, Any]
    unit: str = "line"


@dataclass
class Stats:
    """What a reader saw besides rows."""

    blank_lines: int = 0


Stream = Iterator[Record | Problem]


def format_of(path: str, declared: str = "auto") -> str:
    """The container of a source: jsonl, json, csv, parquet, hub or sandbox.

    Raises:
        UsageError: the path says nothing about the format.
    """
    if path.startswith("hub:"):
        return "hub"
    if path.startswith("sandbox:"):
        return "sandbox"
    found = FORMATS.get(suffix_of(path))
    if declared in ("lima", "hh"):  # ways to write rows, not containers; published as JSON Lines named .json too
        return found if found in ("csv", "parquet") else "jsonl"
    if declared != "auto":
        return declared
    if found is None:
        _be_there(path)
        raise UsageError(
            f"the name does not say the format (known endings: {', '.join(FORMATS)})",
            where=path,
            fix="rename the file, or say the format: `format` in a recipe, `--format` of `prefloop validate`",
        )
    return found


def container_of(path: str) -> str:
    """The container of preference data, whose `format` says what the columns mean and not how the file is written.

    A `.json` file that does not begin with `[` is read as JSON Lines: many are published under that name.

    Raises:
        UsageError: the path says nothing about the format.
    """
    if not path.startswith(("hub:", "sandbox:")) and suffix_of(path) not in FORMATS:
        _be_there(path)
        known = ", ".join(FORMATS)
        raise UsageError(
            f"the name does not say what kind of file it is (known endings: {known})",
            where=path,
            fix="rename the file",
        )
    found = format_of(path)
    if found == "json" and Path(path).is_file():
        with opened(path) as f:
            head = f.read(4096).removeprefix(BOM).lstrip()
        return "json" if not head or head.startswith(b"[") or guess_encoding(head).startswith("UTF-16") else "jsonl"
    return found


def _be_there(path: str) -> None:
    """Where the name says nothing, it is first of all no name of a file."""
    if Path(path).is_dir():
        raise UsageError("is a folder, not a file", where=path, fix="name one file in it")
    if not Path(path).exists():
        raise UsageError("there is no such file", where=path, fix=f"check the path (looked from {Path.cwd()})")


def read_records(path: str, container: str, stats: Stats, split: str = "train") -> Stream:
    """Records and problems of a source, in order.

    Args:
        path: file, or data set behind `hub:`.
        container: as `format_of` gives it; not sandbox.
        stats: counts what is neither.
        split: of a hub data set.
    """
    if container == "hub":
        name, part = hub.name_of(path)
        if part is not None and suffix_of(part) in FORMATS:
            fetched = hub.fetch_file(path, name, part)
            yield from read_records(fetched, container_of(fetched), stats)
        else:
            yield from _read_hub(path, split)
        return
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "no such file"
        fix = "name one file in it" if file.is_dir() else f"check the path (looked from {Path.cwd()})"
        yield Problem("no_such_file", path, None, None, what, fix, level="fatal")
        return
    if file.stat().st_size == 0:
        yield Problem("empty_file", path, None, None, "the file is empty", "write rows to it first", level="fatal")
        return
    readers = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet}
    try:
        yield from readers[container](path, stats)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason, fix = f"is no whole gzip file: {error}", "fetch it again, or unpack it first"
        yield Problem("unreadable", path, None, None, reason, fix, level="fatal")


# ------------------------------------------------------------------------------------------------------------ JSON


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        again = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise _RepeatedKeyError(f"the key {again!r} stands twice in one object")
    return value


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {error.msg}"
    if isinstance(error, json_array.BrokenJsonError):
        return f"broken JSON at column {error.column}: {error}"
    if isinstance(error, RecursionError):
        return "broken JSON: nested too deeply"
    return f"broken JSON: {error}"


def _read_jsonl(path: str, stats: Stats) -> Stream:
    if (wide := utf16_problem(path)) is not None:
        yield wide
        return
    offset, rows = 0, 0
    with opened(path) as f:
        # Split at \n only: U+2028 and the like are ordinary characters inside JSON texts.
        for number, line in enumerate(f, start=1):
            start, offset = offset, offset + len(line)
            body = line.removeprefix(BOM) if number == 1 else line
            start += len(line) - len(body)
            if not body.strip():
                stats.blank_lines += 1
                continue
            rows += 1
            yield _jsonl_line(path, number, start, body)
    if rows == 0:
        yield Problem("empty_file", path, None, None, "nothing but blank lines", "write rows to it", level="fatal")


def _jsonl_line(path: str, number: int, start: int, body: bytes) -> Record | Problem:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return encoding_problem(path, number, start + error.start, body.rstrip(b"\r\n"), error.start)
    try:
        # Without the line's end: an error at the end would be told as column 1 of the line behind it.
        value = json.loads(text.rstrip("\r\n"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        fix = "write one complete JSON object on each line"
        if number == 1 and text.lstrip().startswith("["):
            fix += "; a file that is one JSON array is read with `format: json`"
        return Problem("broken_json", path, number, None, _json_reason(error), fix, raw=raw_json(text.rstrip("\n")))
    return _as_record(path, number, value, "line")


def _as_record(path: str, number: int, value: Any, unit: str) -> Record | Problem:
    if isinstance(value, dict):
        return Record(number, value, unit)
    reason = f"the row is a {json_type(value)}, not an object"
    fix = 'write it as an object, such as {"prompt": "…"}'
    return Problem("not_an_object", path, number, None, reason, fix, unit=unit, raw=raw_json(value))


def json_type(value: Any) -> str:
    """The name of a value's type as people who write JSON know it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "text"), ((int, float), "number"), (list, "list"), (dict, "object")):
        if isinstance(value, kind):  # type: ignore[arg-type]
            return name
    return type(value).__name__


def _read_json(path: str, stats: Stats) -> Stream:
    if (wide := utf16_problem(path)) is not None:
        yield wide
        return
    with opened(path) as f:
        head = f.read(4096)
        mark = len(BOM) if head.startswith(BOM) else 0
        f.seek(mark)
        number = 0
        try:
            if head[mark:].lstrip()[:1] != b"[":
                yield _no_array(path, f.read())
                return
            for number, value in enumerate(json_array.items(f, _unique), start=1):
                yield _as_record(path, number, value, "record")
        except json_array.BadBytesError as error:
            yield encoding_problem(path, None, error.offset + mark, error.data, error.bad)
            return
        except (json_array.BrokenJsonError, RecursionError) as error:
            line = error.line if isinstance(error, json_array.BrokenJsonError) else None
            fix = "write one JSON array of objects"
            yield Problem("broken_json", path, line, None, _json_reason(error), fix, level="fatal")
            return
    if number == 0:
        yield Problem("empty_file", path, None, None, "the array is empty", "write rows to it", level="fatal")


def _no_array(path: str, body: bytes) -> Problem:
    """What is wrong with a file of which the first character is not that of an array."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        near = body[max(0, error.start - 2000) : error.start + 2000]
        return encoding_problem(path, None, error.start, near, min(error.start, 2000))
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        fix = "write one JSON array of objects"
        fix += "; one object on each line is read with `format: jsonl`" if lines else ""
        return Problem("broken_json", path, line, None, _json_reason(error), fix, level="fatal")
    fix = "put the rows into one JSON array: [{…}, {…}]"
    reason = f"the file holds one {json_type(value)}, not an array of rows"
    return Problem("not_an_object", path, None, None, reason, fix, level="fatal")


# ------------------------------------------------------------------------------------------------------------- CSV


class _BadEncodingError(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def _decoded_lines(path: str) -> Iterator[str]:
    offset = 0
    with opened(path) as f:
        for number, line in enumerate(f, start=1):
            body = line.removeprefix(BOM) if number == 1 else line
            try:
                yield body.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(line) - len(body) + error.start
                raise _BadEncodingError(encoding_problem(path, None, at, body, error.start)) from None
            offset += len(line)


def _read_csv(path: str, stats: Stats) -> Stream:
    """The first record names the columns. Cells are texts; a list of messages does not fit into one.

    Where the header has no comma, semicolons or tabs separate: spreadsheets of many countries write those.
    """
    if (wide := utf16_problem(path)) is not None:
        yield wide
        return
    # Python's limit of 128 KiB for a cell is below a long document; it is per process, so it is put back.
    limit = csv.field_size_limit(2**31 - 1)
    header: list[str] | None = None
    first_line, rows = 1, 0
    try:
        lines = _decoded_lines(path)
        head = list(_up_to_text(lines))
        reader = csv.reader(itertools.chain(head, lines), delimiter=_separator("".join(head)), strict=True)
        for cells in reader:
            line, first_line = first_line, reader.line_num + 1
            if not cells:
                stats.blank_lines += 1
            elif header is None:
                header = [name.strip() for name in cells]
                if (wrong := _header_problem(path, header)) is not None:
                    yield wrong
                    return
            elif len(cells) != len(header):
                rows += 1
                reason = f"{len(cells)} cells under {len(header)} columns"
                fix = 'put texts with commas, quotes or newlines into "…", and double the quotes inside'
                yield Problem("csv_cells", path, line, None, reason, fix, raw=raw_json(cells))
            else:
                rows += 1
                yield Record(line, dict(zip(header, cells)))
    except _BadEncodingError as error:
        yield error.problem
        return
    except csv.Error as error:
        fix = "close every quote, double quotes inside a quoted cell, end lines with \\n or \\r\\n"
        yield Problem("unreadable", path, first_line, None, f"not CSV: {error}", fix, level="fatal")
        return
    finally:
        csv.field_size_limit(limit)
    if rows == 0:
        reason = "nothing but blank lines" if header is None else "no rows below the header"
        yield Problem("empty_file", path, None, None, reason, "write rows to it", level="fatal")


def _up_to_text(lines: Iterator[str]) -> Iterator[str]:
    """Lines up to the first that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _separator(head: str) -> str:
    return "," if "," in head or not {";", "\t"} & set(head) else max(";\t", key=head.count)


def _header_problem(path: str, header: list[str]) -> Problem | None:
    fix = "make the first line the names of the columns, such as: id,prompt"
    if "" in header:
        reason = f"column {header.index('') + 1} has no name"
    elif len(set(header)) < len(header):
        reason = f"the column {next(h for h in header if header.count(h) > 1)!r} stands twice in the header"
    elif any(len(name) > 64 or name.count(" ") > 3 for name in header):
        reason = f"no header: the first line looks like data ({header[0][:40]!r})"
    else:
        return None
    return Problem("csv_header", path, 1, None, reason, fix, level="fatal")


# ---------------------------------------------------------------------------------------------------------- Parquet


def _read_parquet(path: str, stats: Stats) -> Stream:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            if parquet.metadata.num_rows == 0:
                yield Problem("empty_file", path, None, None, "no rows", "write rows to it", level="fatal")
            number = 0
            for batch in parquet.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(number, value, "record")
    except (pa.ArrowInvalid, OSError) as error:
        reason = f"not a readable Parquet file: {str(error).splitlines()[0]}"
        yield Problem("unreadable", path, None, None, reason, "write the file again", level="fatal")


def _read_hub(path: str, split: str) -> Stream:
    rows = hub.load(path, split)
    if len(rows) == 0:
        yield Problem("empty_file", path, None, None, f"split {split!r} has no rows", "take another", level="fatal")
    for number, value in enumerate(rows, start=1):
        yield Record(number, dict(value), "record")
