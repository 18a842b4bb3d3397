"""The examples of one training, in one file on disk that is mapped into memory, not read into it.

The file is named by all that determines it, so a training that goes on, or one that differs in its learning rate,
tokenises nothing again; and a training of a million rows needs the memory of its micro-batch.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.engine.tokens import VERSION as TOKENS_VERSION
from prefloop.records import PreferenceRow, RejectRow, arrow_schema, canonical_json
from prefloop.store import atomic
from prefloop.store.fingerprint import digest
from prefloop.store.rows import to_table
from prefloop.train.encode import UNREAD, Encoder, Example

VERSION = 7
"""Goes into the file's name: raise it when the same rows and tokenizer would give other examples."""

PREFIX, REJECTS = "examples-", "rejects.parquet"
_CHUNK = 1024
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("judged_ids", pa.list_(pa.int32())),
        ("responses", pa.list_(pa.list_(pa.int32()))),
        ("weight", pa.float64()),
        ("margin", pa.float64()),
        ("label", pa.float64()),
        ("tokens", pa.int64()),
        ("judged", pa.bool_()),
        ("held", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Source:
    """Preference rows to train on.

    Attributes:
        rows: reads them from the start, in the same order at every call.
        digest: of their content.
        held: ids of the prompts whose rows are kept from training, for validation.
    """

    rows: Callable[[], Iterable[PreferenceRow]]
    digest: str
    held: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rows: Sequence[PreferenceRow], validation: Sequence[PreferenceRow] = ()) -> Source:
        """Rows that are in memory."""
        everything = [*rows, *validation]
        digest = hashlib.sha256("\n".join(map(canonical_json, everything)).encode("utf-8", "surrogatepass"))
        return cls(lambda: everything, digest.hexdigest(), frozenset(r["prompt_id"] for r in validation))


class Examples(Sequence[Example]):
    """Some of a file's examples: those to train on, or those held out.

    Attributes:
        tokens: [examples], int64; `Example.tokens` of each.
        judged: [examples], bool; whether a judgment criticises the answer.
        weights: [examples], float64, as the rows have them; 1 where a row has none.
        weight_power: the power that they are raised to.
        weight_scale: what they are multiplied by, after that.
        margins, margin_scale: the same of the margins; 0 where a row has none.
        reference: the summed log-probabilities of each example's responses, one behind the other, once computed.
        starts: [examples + 1], where each example's responses begin in `reference`.
        flags: the flags of each example's tokens, one behind the other, once found by a frozen model.
        flag_starts: [examples + 1], where each example's begin in `flags`.
    """

    def __init__(self, path: Path, table: pa.Table, indices: np.ndarray[Any, Any]) -> None:
        self.path, self._indices = path, indices
        columns = (table[name].to_numpy()[indices] for name in ("tokens", "judged", "weight", "margin"))
        self.tokens, self.judged, self.weights, self.margins = columns
        self.weight_power = self.weight_scale = self.margin_scale = 1.0
        self.reference: np.ndarray[Any, Any] | None = None
        self.starts = np.zeros(1, dtype=np.int64)
        self.flags: np.ndarray[Any, Any] | None = None
        self.flag_starts = np.zeros(1, dtype=np.int64)
        self._reader: Any = None
        self._chunks: dict[int, _Chunk] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def only(self, places: np.ndarray[Any, Any]) -> Examples:
        """Some of these, in that order; before anything was computed of them."""
        fewer = copy.copy(self)
        fewer._indices, fewer._chunks = self._indices[places], {}
        for name in ("tokens", "judged", "weights", "margins"):
            setattr(fewer, name, getattr(self, name)[places])
        return fewer

    def __getitem__(self, index: Any) -> Any:
        place = int(self._indices[index])
        example = self._chunk(place // _CHUNK).example(place % _CHUNK)
        if self.weight_power != 1.0 or self.weight_scale != 1.0:
            example = replace(example, weight=example.weight**self.weight_power * self.weight_scale)
        if self.margin_scale != 1.0:
            example = replace(example, margin=example.margin * self.margin_scale)
        if self.flags is not None:
            found = self.flags[self.flag_starts[index] : self.flag_starts[index + 1]]
            example = replace(example, flags=tuple(found.tolist()))
        if self.reference is None:
            return example
        own = self.reference[self.starts[index] : self.starts[index + 1]]
        return replace(example, reference=tuple(own.tolist()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_chunks": {}}

    def _chunk(self, number: int) -> _Chunk:
        if number not in self._chunks:
            if self._reader is None:
                self._reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            self._chunks[number] = _Chunk(self._reader.get_batch(number))
        return self._chunks[number]


class _Chunk:
    """One record batch, its lists as numpy views of the mapped file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._ids = batch["id"]
        self._weight, self._margin, self._label = (batch[n].to_numpy() for n in ("weight", "margin", "label"))
        self._prompts, self._judged, self._responses = (batch[n] for n in ("prompt_ids", "judged_ids", "responses"))
        inner = self._responses.values
        self._prompt_starts, self._prompt_ids = self._prompts.offsets.to_numpy(), self._prompts.values.to_numpy()
        self._judged_starts, self._judged_ids = self._judged.offsets.to_numpy(), self._judged.values.to_numpy()
        self._response_starts = self._responses.offsets.to_numpy()
        self._inner_starts, self._response_ids = inner.offsets.to_numpy(), inner.values.to_numpy()

    def example(self, i: int) -> Example:
        first, last = self._response_starts[i : i + 2]
        edges = self._inner_starts[first : last + 1]
        return Example(
            id=self._ids[i].as_py(),
            prompt_ids=tuple(self._prompt_ids[slice(*self._prompt_starts[i : i + 2])].tolist()),
            responses=tuple(tuple(self._response_ids[a:b].tolist()) for a, b in pairwise(edges)),
            weight=float(self._weight[i]),
            margin=float(self._margin[i]),
            label=float(self._label[i]),
            judged_ids=tuple(self._judged_ids[slice(*self._judged_starts[i : i + 2])].tolist()),
        )


def prepare(source: Source, encoder: Encoder, out: Path) -> tuple[Examples, Examples, dict[str, Any]]:
    """Tokenise the rows, or find them tokenised in `out` from before.

    Writes `examples-….arrow` and `rejects.parquet` into `out`; files of other rows or settings are removed.

    Returns:
        (examples to train on, examples held out, {"digest", "rows": read in all, "rejected": reason -> rows of them,
        "responses", "cut_off": of them, "unread": column -> rows that have one which the objective does not read,
        "without_margin" and "without_weight": rows that have none}).
    """
    key = digest([VERSION, TOKENS_VERSION, source.digest, sorted(source.held), encoder.identity])
    path, facts_path = (out / f"{PREFIX}{key[:16]}{suffix}" for suffix in (".arrow", ".json"))
    for old in out.glob(f"{PREFIX}*"):
        if old not in (path, facts_path):
            old.unlink()
    # The facts are written last: with them, the other two files are whole.
    if not facts_path.exists():
        atomic.write_json(facts_path, _write(source, encoder, path, out / REJECTS))
    with pa.memory_map(str(path)) as mapped:
        table = pa.ipc.open_file(mapped).read_all().select(["tokens", "judged", "weight", "margin", "held"])
        held = table["held"].to_numpy()
        trained, validation = (Examples(path, table, np.flatnonzero(part)) for part in (~held, held))
    return trained, validation, atomic.read_json(facts_path)


def _write(source: Source, encoder: Encoder, path: Path, rejects_path: Path) -> dict[str, Any]:
    content, reasons, unread = hashlib.sha256(), Counter[str](), Counter[str]()
    read = responses = cut_off = without_margin = without_weight = 0
    rows: list[dict[str, Any]] = []
    rejects: list[RejectRow] = []
    with (
        atomic.file(path) as stream,
        atomic.file(rejects_path) as reject_stream,
        pq.ParquetWriter(reject_stream, arrow_schema("rejects"), compression="zstd") as reject_writer,
        pa.ipc.new_file(stream, _SCHEMA) as writer,
    ):

        def flush(least: int) -> None:
            if len(rows) >= least:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
                rows.clear()
            if len(rejects) >= least:
                reject_writer.write_table(to_table("rejects", rejects, where="train"))
                rejects.clear()

        def looked_at() -> Iterator[PreferenceRow]:
            nonlocal read, without_margin, without_weight
            for row in source.rows():
                read += 1
                without_margin += row.get("margin") is None
                without_weight += row.get("weight") is None
                unread.update(c for c, plain in UNREAD[encoder.takes].items() if row.get(c) not in (None, plain))
                yield row

        for prompt, found in encoder(looked_at()):
            if not isinstance(found, list):
                reasons[found["reason"]] += 1
                rejects.append(found)
                found = []
            for example in found:
                responses += len(example.responses)
                cut_off += sum(response[-1] != encoder.end_of_turn for response in example.responses)
                row = {**vars(example), "tokens": example.tokens, "judged": bool(example.judged_ids)}
                row["held"] = prompt in source.held
                del row["reference"], row["flags"]
                content.update(canonical_json(row).encode("utf-8", "surrogatepass"))
                rows.append(row)
                flush(_CHUNK)
            flush(_CHUNK)
        flush(1)
    return {
        "digest": content.hexdigest(),
        "rows": read,
        "rejected": dict(sorted(reasons.items())),
        "responses": responses,
        "cut_off": cut_off,
        "unread": dict(sorted(unread.items())),
        "without_margin": without_margin,
        "without_weight": without_weight,
    }
