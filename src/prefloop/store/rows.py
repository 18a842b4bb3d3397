"""Rows to Arrow tables and back, with nothing lost on the way.

Arrow fills a missing key with null, drops an unknown one and stops at broken Unicode; here the first two are errors,
and so is a number that is not finite (a missing verdict is null, never NaN). A lone surrogate, which no UTF-8 file can
hold, is written as its escape, the six visible characters `\\ud800`: the sampler's own bytes are still in `token_ids`,
and ids were made from the text before.

Where a message has something of tools, messages have all their keys in that file, calls and schemas as JSON text; rows
have only those that are not null.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.errors import PrefloopError
from prefloop.records import AS_JSON, ASKED, EXTRAS, OPTIONAL, arrow_schema, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 256
_CONVERSATIONS = ("prompt", "chosen", "rejected", "completion")
"""Columns that hold messages."""


def to_table(kind: str, rows: Iterable[Mapping[str, Any]], *, where: str) -> pa.Table:
    """A table of one row kind.

    Args:
        kind: of `records.arrow_schema`.
        rows: one mapping each, with exactly the columns of the kind; `records.OPTIONAL` may be missing.
        where: named in errors.

    Raises:
        PrefloopError: a row does not have the shape of its kind; names the row, the column and what is wrong.
    """
    import pyarrow as pa

    rows = list(rows)
    asked = {
        name
        for row in rows
        for completion in row.get("completions") or ()
        for name in ASKED.keys() & completion.keys()
    }
    schema = arrow_schema(kind, tools=any(map(_has_tools, rows)), asked=asked)
    row_type = pa.struct(list(schema))
    checked = []
    for index, row in enumerate(rows):
        label = f"{where}, row {index} ({row.get('id', 'no id')})"
        checked.append(_conform({**dict.fromkeys(OPTIONAL.get(kind, ())), **row}, row_type, label))
    try:
        return pa.Table.from_pylist(checked, schema=schema)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise PrefloopError(f"rows are not of the kind {kind}: {error}", where=where) from error


def _conform(value: Any, kind: pa.DataType, where: str) -> Any:
    """A value that Arrow stores unchanged as `kind`."""
    import pyarrow.types as types

    if value is None:
        return None
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        if not isinstance(value, Mapping):
            raise PrefloopError(f"must be an object, is {type(value).__name__}", where=where)
        if _is_message(kind):
            value = _filled(value)
        else:
            value = {**{f.name: None for f in fields if f.name in ASKED}, **value}
        _check_keys(value, [f.name for f in fields], where)
        return {f.name: _conform(value[f.name], f.type, f"{where}, {f.name}") for f in fields}
    if types.is_list(kind):
        # Token ids are by far the most values, and Arrow itself refuses what is no integer.
        if types.is_integer(kind.value_type):
            return list(value)
        return [_conform(item, kind.value_type, f"{where}[{i}]") for i, item in enumerate(value)]
    if types.is_string(kind):
        if not isinstance(value, str):
            raise PrefloopError(f"must be text, is {type(value).__name__}", where=where)
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if types.is_floating(kind):
        number = float(value)
        if not math.isfinite(number):
            raise PrefloopError(f"is {number}", where=where, fix="a value that is not there is null")
        return number
    return value


def _has_tools(row: Mapping[str, Any]) -> bool:
    """Whether a message has more than role and content."""
    return any(len(message) > 2 for name in _CONVERSATIONS for message in row.get(name) or ())


def _is_message(kind: pa.DataType) -> bool:
    return [kind.field(i).name for i in range(kind.num_fields)] == ["role", "content", *EXTRAS]


def _filled(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with all its keys, as Parquet holds it."""
    filled = {**dict.fromkeys(EXTRAS), **message}
    for name in AS_JSON:
        if filled[name] is not None:
            filled[name] = canonical_json(filled[name])
    return filled


def _thinned(message: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_filled`."""
    for name in EXTRAS:
        value = message.pop(name)
        if value is not None:
            message[name] = json.loads(value) if name in AS_JSON else value
    return message


def _check_keys(value: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise PrefloopError(f"unknown column {key!r}; {hint}", where=where)
    for key in known:
        if key not in value:
            raise PrefloopError(f"column {key!r} is missing", where=where)


def read_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Stream rows of Parquet files; memory holds one batch of one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    optional = {column for columns in OPTIONAL.values() for column in columns}
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                conversations = [
                    field.name
                    for field in file.schema_arrow
                    if pa.types.is_list(field.type)
                    and pa.types.is_struct(field.type.value_type)
                    and _is_message(field.type.value_type)
                ]
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    for row in batch.to_pylist():
                        for column in conversations:
                            for message in row[column] or ():
                                _thinned(message)
                        for completion in row.get("completions") or ():
                            for name in ASKED.keys() & completion.keys():
                                if completion[name] is None:
                                    del completion[name]
                        for column in optional & row.keys():
                            if row[column] is None:
                                del row[column]
                        yield row
        except (pa.ArrowException, OSError) as error:
            raise PrefloopError(f"not readable: {error}", where=str(path)) from error


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of rows in order, whatever files and row groups they lie in."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(canonical_json(row).encode("utf-8") + b"\n")
    return sha.hexdigest()
