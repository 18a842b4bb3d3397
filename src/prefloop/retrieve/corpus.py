"""Passages, queries and relevance judgements: BEIR's layout, with a corpus file for each source of the same passages.

    corpus/<source>.jsonl   or one corpus.jsonl   {"_id", "title", "text"[, "source"]}
    queries.jsonl                                 {"_id", "text"}
    qrels/<split>.tsv                             query-id  corpus-id  score

in a folder, or in a zip of one; `.parquet` in place of `.jsonl` too. Versions of a passage share its id; their source
is the file's name, or the field `source`. One file of passages alone is a collection without queries; it
may be DPR's (`psgs_w100.tsv`, packed or not: id, text, title). Lone surrogates, which no tokenizer takes, become
U+FFFD.
"""

from __future__ import annotations

import csv
import gzip
import importlib.resources
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from prefloop.errors import UsageError

HUMAN = "human"
"""The source of a corpus that names none."""

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> grade; above 0 is relevant."""

_SUFFIXES = (".jsonl", ".parquet")


EMBEDDED = "sandbox:passages/"
"""Names of the sandbox's collections begin like this: `sandbox:passages/train` and `sandbox:passages/heldout`."""


def located(path: str | Path) -> Path:
    """Where a collection lies: the embedded ones by their names, any other path as it is.

    Raises:
        UsageError: there is no such embedded collection.
    """
    name = str(path)
    if not name.startswith("sandbox:"):
        return Path(path)
    # Package data by its place: importing the sandbox box from here would turn the import direction round.
    folder = Path(str(importlib.resources.files("prefloop").joinpath("sandbox", "collections", "v1")))
    known = sorted(EMBEDDED + found.name for found in folder.iterdir()) if folder.is_dir() else []
    if name not in known:
        raise UsageError("there is no such embedded collection", where=name, fix=f"take {' or '.join(known)}")
    return folder / name.removeprefix(EMBEDDED)


class Passage(NamedTuple):
    """One version of a passage. Versions of the same passage have the same id and different sources."""

    id: str
    source: str
    title: str
    text: str

    def shown(self, with_title: bool) -> str:
        """What a retriever reads."""
        return f"{self.title} {self.text}" if with_title and self.title else self.text


class Query(NamedTuple):
    id: str
    text: str


@dataclass(frozen=True)
class Collection:
    """What `read_collection` found.

    Attributes:
        path: where.
        passages: by source, in the order of the files.
        queries: those with judgements in the split, in the order of their file; all where there are no judgements.
        qrels: judgements of the split; empty where there are none. Documents may be judged that the corpus lacks.
    """

    path: str
    passages: dict[str, list[Passage]]
    queries: list[Query] = field(default_factory=list)
    qrels: Qrels = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        return list(self.passages)


class _Files(Protocol):
    """A folder or a zip, by names relative to the collection."""

    where: str
    names: list[str]

    def open(self, name: str) -> Any: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path
        self.names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())

    def open(self, name: str) -> Any:
        return (self._path / name).open("rb")


class _Zip:
    """Read where it lies; nothing is unpacked on disk. A single folder around everything is looked through."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UsageError(f"cannot be read as a zip: {error}", where=str(path), fix="fetch it again") from error
        inside = [PurePosixPath(n) for n in self._zip.namelist() if not n.endswith("/")]
        inside = [n for n in inside if "__MACOSX" not in n.parts]
        tops = {n.parts[0] for n in inside}
        self._around = ""
        if len(tops) == 1 and all(len(n.parts) > 1 for n in inside) and not tops & {"corpus", "qrels"}:
            self._around = f"{tops.pop()}/"
        self.names = sorted(str(n).removeprefix(self._around) for n in inside)

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        try:
            with self._zip.open(self._around + name) as stream:
                yield stream
        # While it is read, too: its checksum is known at its end.
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UsageError(f"cannot be read: {error}", where=f"{self.where}:{name}", fix="fetch it again") from error


def read_collection(
    path: str | Path,
    split: str = "test",
    sources: Sequence[str] | None = None,
    *,
    judged: bool = False,
) -> Collection:
    """Read a collection.

    Args:
        path: a folder or zip of BEIR's layout, one file of passages, or `sandbox:passages/train` and the like.
        split: which judgements: `qrels/<split>.tsv`.
        sources: only these, in this order; all without it, `human` first.
        judged: queries and judgements must be there.

    Raises:
        UsageError: something is missing or broken; the message names file and line.
    """
    place = located(path)
    if place.is_dir():
        files: _Files = _Folder(place)
    elif place.is_file() and place.suffix == ".zip":
        files = _Zip(place)
    elif place.is_file() and (place.suffix in _SUFFIXES or _is_tsv(place.name)):
        if judged:
            what = "is one file of passages, and queries and judgements are needed too"
            raise UsageError(what, where=str(place), fix="give a folder or zip of BEIR's layout")
        with gzip.open(place, "rb") if place.suffix == ".gz" else place.open("rb") as stream:
            return Collection(str(place), _chosen(_passages(stream, str(place), None), sources, str(place)))
    else:
        raise UsageError(
            "there is no such collection",
            where=str(place),
            fix="give a folder or a zip with corpus/<source>.jsonl, queries.jsonl and qrels/test.tsv",
        )
    passages = _chosen(_corpus(files, sources), sources, files.where)
    qrels_name = f"qrels/{split}.tsv"
    queries_name = next((n for n in ("queries.jsonl", "queries.parquet") if n in files.names), None)
    if qrels_name not in files.names or queries_name is None:
        splits = sorted(PurePosixPath(n).stem for n in files.names if n.startswith("qrels/") and n.endswith(".tsv"))
        if judged:
            missing = "queries.jsonl" if queries_name is None else qrels_name
            there = f"; there are judgements of {', '.join(splits)}" if splits and queries_name else ""
            fix = (
                'add the file: a line {"_id": …, "text": …} a query'
                if queries_name is None
                else "name one that is there (split in a recipe, --split), or add the file"
            )
            raise UsageError(f"has no {missing}{there}", where=files.where, fix=fix)
        return Collection(files.where, passages, [] if queries_name is None else _queries(files, queries_name))
    qrels = _qrels(files, qrels_name)
    queries = [q for q in _queries(files, queries_name) if q.id in qrels]
    lost = sorted(set(qrels) - {q.id for q in queries})
    if lost:
        raise UsageError(
            f"has no text of {len(lost)} judged queries, {lost[0]} first",
            where=f"{files.where}/{queries_name}",
            fix=f"add them, or remove their lines from {qrels_name}",
        )
    return Collection(files.where, passages, queries, qrels)


def _corpus(files: _Files, sources: Sequence[str] | None) -> dict[str, list[Passage]]:
    single = next((n for n in ("corpus.jsonl", "corpus.parquet") if n in files.names), None)
    several = [n for n in map(PurePosixPath, files.names) if n.parts[0] == "corpus" and n.suffix in _SUFFIXES]
    if single is not None and several:
        raise UsageError(
            f"has both {single} and {several[0]}",
            where=files.where,
            fix=f"move the passages of {single} into corpus/<source>.jsonl, or remove one of the two",
        )
    if single is not None:
        with files.open(single) as stream:
            return _passages(stream, f"{files.where}/{single}", None)
    found: dict[str, list[Passage]] = {}
    for name in files.names:
        parts = PurePosixPath(name)
        if len(parts.parts) != 2 or parts.parts[0] != "corpus" or parts.suffix not in _SUFFIXES:
            continue
        source = parts.name.removesuffix(parts.suffix)
        if sources is not None and source not in sources:
            found.setdefault(source, [])  # not read, but named where a source is asked for that is not there
            continue
        if found.get(source):
            raise UsageError(f"has two files of source {source}", where=f"{files.where}/corpus", fix="remove one")
        with files.open(name) as stream:
            found[source] = _passages(stream, f"{files.where}/{name}", source)[source]
    if not found:
        raise UsageError(
            "has no corpus", where=files.where, fix="passages belong into corpus/<source>.jsonl or corpus.jsonl"
        )
    return found


def _chosen(found: dict[str, list[Passage]], sources: Sequence[str] | None, where: str) -> dict[str, list[Passage]]:
    if sources is None:
        return dict(sorted(found.items(), key=lambda item: (item[0] != HUMAN, item[0])))
    for source in sources:
        if source not in found:
            there = ", ".join(sorted(found)) or "none"
            raise UsageError(f"has no source {source}; there are {there}", where=where, fix="name one of them")
    return {source: found[source] for source in dict.fromkeys(sources)}


def _passages(stream: Any, where: str, source: str | None) -> dict[str, list[Passage]]:
    """Passages of a file by source: the given one, or the field of each row, or `human`."""
    found: dict[str, list[Passage]] = {} if source is None else {source: []}
    seen: set[tuple[str, str]] = set()
    for place, row in _rows(stream, where):
        own = source if source is not None else _text(row, "source", place, default=HUMAN)
        passage = Passage(_id(row, place), own, _text(row, "title", place, default=""), _text(row, "text", place))
        if (passage.id, own) in seen:
            raise UsageError(f"the id {passage.id} of source {own} is there twice", where=place, fix="remove one")
        seen.add((passage.id, own))
        found.setdefault(own, []).append(passage)
    if not any(found.values()):
        raise UsageError("has no passages", where=where, fix='write lines such as {"_id": "d1", "text": "…"}')
    return found


def _queries(files: _Files, name: str) -> list[Query]:
    where = f"{files.where}/{name}"
    found: dict[str, Query] = {}
    with files.open(name) as stream:
        for place, row in _rows(stream, where):
            query = Query(_id(row, place), _text(row, "text", place))
            if found.setdefault(query.id, query) != query:
                raise UsageError(f"the id {query.id} is there twice, with two texts", where=place, fix="remove one")
    return list(found.values())


def _qrels(files: _Files, name: str) -> Qrels:
    """Judgements; a first line that has no number in its third column is the header."""
    qrels: Qrels = {}
    with files.open(name) as raw:
        for number, line in enumerate(io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline=None), 1):
            cells = line.rstrip("\r\n").split("\t")
            where = f"{files.where}/{name}, line {number}"
            if cells == [""]:
                continue
            try:
                query, document, grade = cells[0], cells[1], int(cells[2])
                if len(cells) > 3:
                    raise ValueError
            except (ValueError, IndexError):
                if number == 1 and len(cells) == 3:
                    continue
                raise UsageError(
                    "is no judgement", where=where, fix="write query-id, corpus-id and a whole grade, tab between"
                ) from None
            if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
                what = f"query {query} judges document {document} twice, differently"
                raise UsageError(what, where=where, fix="remove one")
    if not qrels:
        raise UsageError("has no judgements", where=f"{files.where}/{name}", fix="see docs/source_bias.md")
    return qrels


def _rows(stream: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if where.endswith(".parquet"):
        yield from _parquet(stream, where)
        return
    if _is_tsv(where):
        yield from _tsv(stream, where)
        return
    for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="\n"), 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"is no JSON: {error}", where=place, fix="one JSON object a line") from error
        if not isinstance(row, dict):
            raise UsageError("is no JSON object", where=place, fix='write {"_id": …, "text": …}')
        yield place, row


def _is_tsv(name: str) -> bool:
    return name.endswith((".tsv", ".tsv.gz"))


def _tsv(stream: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """DPR's passages: columns id, text and title between tabs, named by the first line, texts in quotes or not."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        rows = csv.reader(text, delimiter="\t")
        header = next(rows, [])
        if "text" not in header or not {"id", "_id"} & set(header):
            fix = "make the first line `id`, `text` and `title` with tabs between"
            raise UsageError("its first line names no columns `id` and `text`", where=where, fix=fix)
        for cells in rows:
            place = f"{where}, line {rows.line_num}"
            if len(cells) != len(header):
                fix = "put texts with tabs or newlines into quotes"
                raise UsageError(f"{len(cells)} cells under {len(header)} columns", where=place, fix=fix)
            yield place, dict(zip(header, cells, strict=True))
    except (csv.Error, OSError, EOFError) as error:
        raise UsageError(f"cannot be read: {error}", where=where, fix="fetch it again") from error
    finally:
        csv.field_size_limit(limit)


def _parquet(stream: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A member of a zip cannot be sought in by pyarrow.
        table = pq.ParquetFile(pa.BufferReader(stream.read()))
        for batch in table.iter_batches(columns=[c for c in table.schema_arrow.names if c in _COLUMNS]):
            for number, row in enumerate(batch.to_pylist(), 1):
                yield f"{where}, row {number}", row
    except pa.ArrowException as error:
        raise UsageError(f"cannot be read as Parquet: {error}", where=where, fix="write it again") from error


_COLUMNS = ("_id", "id", "title", "text", "source")


def _id(row: dict[str, Any], where: str) -> str:
    value = row.get("_id", row.get("id"))
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UsageError("has no _id", where=where, fix='give it one: {"_id": "d1", …}')
    return _clean(str(value))


def _text(row: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise UsageError(f"has no {name}, or one that is no text", where=where, fix=f'write "{name}": "…"')
    return _clean(value)


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
