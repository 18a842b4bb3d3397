"""What is wrong with a file of rankings: rows to train a reranker on, or to measure one on.

Three layouts are known, by their columns:

    ours                query, documents, and any of labels, scores, id, query_id, document_ids, source
    published, train    query, classification {text, label}, rank_list, positive, negative
    published, measure  question, reference, ctx, before, after {answer, em, f1}, category

Published files are sliced by fixed sizes (4 ranked, 2 positive, 2 negative), and a list of another size mixes up the
queries behind it without a word; documents of one query have been found in the lists of another. So sizes are held,
and with `candidates`, the rows of a retrieval, each document must be one that was retrieved for its query.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.errors import UsageError
from prefloop.inputs.messages import Fault, text_fault
from prefloop.inputs.problems import Problem, nearest, raw_json
from prefloop.inputs.readers import Record, Stats, Stream, container_of, json_type, read_records
from prefloop.rerank.layouts import MEASURE, OURS, TRAIN
from prefloop.signals.qa import judge

LAYOUTS = {"rankings": OURS, "published_train": TRAIN, "published_measure": MEASURE}
SIZES = {"rank_list": 4, "positive": 2, "negative": 2}


def layout_of(row: Mapping[str, Any]) -> str | None:
    """Which of `LAYOUTS` a row is written in, by its columns; None for none of them."""
    if "rank_list" in row or "classification" in row:
        return "published_train"
    if "ctx" in row and "category" in row:
        return "published_measure"
    return "rankings" if "query" in row and "documents" in row else None


@dataclass
class Candidates:
    """What was retrieved for each query: by the query's id and by its text, document ids with texts."""

    path: str
    by_id: dict[str, dict[str, str]] = field(default_factory=dict)
    by_text: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str) -> Candidates:
        """Rows with `query`, `documents` and, where there are any, `id` and `document_ids`.

        Raises:
            UsageError: a row has no such columns, or the file cannot be read.
        """
        found = cls(path)
        for item in read_records(path, container_of(path), Stats()):
            if isinstance(item, Problem):
                raise UsageError(item.reason, where=item.where, fix=item.fix)
            query, documents = item.value.get("query"), item.value.get("documents")
            ids: list[Any] = item.value.get("document_ids") or documents or []
            if (
                not isinstance(query, str)
                or not isinstance(documents, list)
                or not isinstance(ids, list)
                or len(ids) != len(documents)
                or not all(isinstance(text, str) for text in (*ids, *documents))
            ):
                raise UsageError(
                    "candidates need `query` and `documents`, and as many `document_ids` where there are any",
                    where=f"{path}, {item.unit} {item.row}",
                    fix="give the rows of a run's stage retrieve, or a file of this form",
                )
            pairs = dict(zip(ids, documents, strict=True))
            found.by_text.setdefault(query.strip(), {}).update(pairs)
            if isinstance(name := item.value.get("id"), str):
                found.by_id.setdefault(name, {}).update(pairs)
        return found


@dataclass
class RankingReader:
    """Iterates over the rows of a file with all that is wrong with each.

    Attributes:
        rows: read so far, good or bad.
        layout: of `LAYOUTS`, by the first row.
    """

    path: str
    candidates: Candidates | None = None
    rows: int = 0
    layout: str | None = None
    _ids: dict[str, int] = field(default_factory=dict)

    def read(self, stream: Stream) -> Iterator[tuple[Record | None, list[Problem]]]:
        for item in stream:
            self.rows += isinstance(item, Record) or item.level != "fatal"
            if isinstance(item, Problem):
                yield None, [item]
                continue
            problems = self._problems(item)
            yield (None if problems else item), problems

    def _problems(self, record: Record) -> list[Problem]:
        value = record.value
        layout = layout_of(value)
        self.layout = self.layout or layout
        if layout is None:
            known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in LAYOUTS.items())
            faults = [Fault("unknown_format", "", "is no row of a ranking", f"write one of: {known}")]
        else:
            faults = [_unknown(name, LAYOUTS[layout]) for name in value if name not in LAYOUTS[layout]]
            checks = {"rankings": self._ours, "published_train": self._train, "published_measure": self._measure}
            faults += checks[layout](value)
        name = value.get("id")
        faults += [
            Fault(
                "wrong_type", column, f"is a {json_type(value[column])}, not a text", "write a text, or leave it out"
            )
            for column in ("id", "query_id", "source")
            if value.get(column) is not None and not isinstance(value[column], str)
        ]
        if isinstance(name, str) and (before := self._ids.setdefault(name, record.row)) != record.row:
            reason = f"the id {name!r} is that of {record.unit} {before} too"
            faults.append(Fault("duplicate_id", "id", reason, "give every row its own"))
        place, raw = (self.path, record.row), raw_json(value)
        return [Problem(f.kind, *place, f.field or None, f.reason, f.fix, record.unit, raw=raw) for f in faults]

    # -------------------------------------------------------------------------------------------------- layouts

    def _ours(self, row: Mapping[str, Any]) -> list[Fault]:
        faults = [*filter(None, [text_fault(row["query"], "query")]), *_texts(row["documents"], "documents")]
        if faults:
            return faults
        documents = row["documents"]
        for name, allowed in (("labels", (0, 1, None)), ("scores", None), ("document_ids", None)):
            values = row.get(name)
            if values is None:
                continue
            if not isinstance(values, list) or len(values) != len(documents):
                count = len(values) if isinstance(values, list) else 0
                reason = f"has {count} entries for {len(documents)} documents"
                faults.append(Fault("group_size", name, reason, "give one for each document"))
            elif name == "document_ids":
                faults += _texts(values, name)
            elif name == "scores":
                faults += [
                    Fault("wrong_value", f"{name}[{i}]", f"is {v!r}", "give a finite number, or null for none")
                    for i, v in enumerate(values)
                    if v is not None
                    and (isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v))
                ]
            elif allowed is not None:
                faults += [
                    Fault("wrong_value", f"{name}[{i}]", f"is {v!r}", "1 is aligned, 0 is unaligned, null is neither")
                    for i, v in enumerate(values)
                    if isinstance(v, bool) or v not in allowed
                ]
        if faults:
            return faults
        ids = row.get("document_ids")
        faults += _duplicates(documents, "documents")
        faults += [] if ids is None else _duplicates(ids, "document_ids")
        labels = row.get("labels") or [None] * len(documents)
        sides = {side: {d for d, label in zip(documents, labels, strict=True) if label == side} for side in (0, 1)}
        faults += _both_sides(sides[1] & sides[0], "labels")
        return faults + self._foreign(row, {"documents": documents}, ids)

    def _train(self, row: Mapping[str, Any]) -> list[Fault]:
        faults = [*filter(None, [text_fault(row.get("query"), "query")])]
        for name, size in SIZES.items():
            found = _texts(row.get(name), name)
            if not found and len(row[name]) != size:
                reason = f"has {len(row[name])} documents; published files have {size} in every row"
                found = [Fault("group_size", name, reason, "write the rows in our own layout, which takes any number")]
            faults += found
        one = row.get("classification")
        if not isinstance(one, Mapping) or set(one) != {"text", "label"}:
            fix = 'write {"text": "…", "label": 1}'
            faults.append(Fault("wrong_type", "classification", "is not an object of text and label", fix))
        elif one["label"] not in (1, 2) or isinstance(one["label"], bool):
            fix = "1 is aligned, 2 is unaligned"
            faults.append(Fault("wrong_value", "classification.label", f"is {one['label']!r}", fix))
        else:
            faults += [*filter(None, [text_fault(one["text"], "classification.text")])]
        if any(f.kind != "group_size" for f in faults):
            return faults
        assert isinstance(one, Mapping)
        lists = {name: row[name] for name in SIZES}
        for name, documents in lists.items():
            faults += _duplicates(documents, name)
        faults += _both_sides(set(row["positive"]) & set(row["negative"]), "positive")
        side = "positive" if one["label"] == 1 else "negative"
        if one["text"] not in row[side]:
            reason = f"is not among the {side} documents, and its label is {one['label']}"
            faults.append(Fault("label_mismatch", "classification.text", reason, "correct the label or the lists"))
        return faults + self._foreign(row, {"classification.text": [one["text"]], **lists}, None)

    def _measure(self, row: Mapping[str, Any]) -> list[Fault]:
        faults = [*filter(None, [text_fault(row.get("question"), "question"), text_fault(row["ctx"], "ctx")])]
        faults += _texts(row.get("reference"), "reference")
        if row["category"] not in (1, 2) or isinstance(row["category"], bool):
            faults.append(Fault("wrong_value", "category", f"is {row['category']!r}", "1 is aligned, 2 is unaligned"))
        for name in ("before", "after"):
            said = row.get(name)
            if not isinstance(said, Mapping) or not isinstance(said.get("answer"), str):
                fix = 'write {"answer": "…", "em": 0, "f1": 0.0}'
                faults.append(Fault("wrong_type", name, "is not an object with an answer", fix))
        if faults:
            return faults
        f1: list[float] = []
        for name in ("before", "after"):
            said, judged = row[name], judge(row[name]["answer"], row["reference"])
            f1.append(judged.f1)
            # What published rows call em is containment.
            for key, value in (("em", judged.containment), ("f1", judged.f1)):
                if key in said and (not isinstance(said[key], int | float) or abs(said[key] - value) > 1e-6):
                    reason = f"is {said[key]!r}; the answer and the references give {value:.4g}"
                    faults.append(Fault("label_mismatch", f"{name}.{key}", reason, "correct the value or the answer"))
        if (row["category"] == 1) != (f1[1] > f1[0]) or f1[0] == f1[1]:
            reason = f"is {row['category']}, and F1 goes from {f1[0]:.4g} to {f1[1]:.4g}"
            faults.append(Fault("label_mismatch", "category", reason, "1 where the answer gets better, 2 where worse"))
        return faults + self._foreign({"query": row["question"], **row}, {"ctx": [row["ctx"]]}, None)

    def _foreign(
        self, row: Mapping[str, Any], lists: Mapping[str, Sequence[str]], ids: Sequence[str] | None
    ) -> list[Fault]:
        """Documents that were not retrieved for the row's query; nothing where there are no candidates."""
        if self.candidates is None:
            return []
        named = [row[name] for name in ("query_id", "id") if isinstance(row.get(name), str)]
        known = next((self.candidates.by_id[name] for name in named if name in self.candidates.by_id), None)
        known = self.candidates.by_text.get(row["query"].strip()) if known is None else known
        if known is None:
            reason = f"no candidates are of this query (in {self.candidates.path})"
            return [Fault("no_such_id", "query", reason, "give the retrieval that the rows were made from")]
        faults: list[Fault] = []
        texts = {text.strip() for text in known.values()}
        for name, documents in lists.items():
            for i, document in enumerate(documents):
                place = f"{name}[{i}]" if len(documents) > 1 else name
                own = None if ids is None else ids[i]
                if own is not None and own not in known:
                    reason = f"the document {own!r} was not retrieved for this query"
                    faults.append(Fault("foreign_document", place, reason, "join by ids, not by the order of rows"))
                elif own is not None and known[own].strip() != document.strip():
                    reason = f"the document {own!r} has another text among the candidates"
                    faults.append(Fault("no_such_id", place, reason, "take text and id from the same row"))
                elif own is None and document.strip() not in texts:
                    reason = f"was not retrieved for this query: {document.strip()[:60]!r}"
                    faults.append(Fault("foreign_document", place, reason, "join by ids, not by the order of rows"))
        return faults


def _texts(value: Any, field: str) -> list[Fault]:
    fix = "write a list of texts"
    if value is None:
        return [Fault("missing_field", field, "is missing", fix)]
    if not isinstance(value, list):
        return [Fault("wrong_type", field, "is not a list of texts", fix)]
    if not value:
        return [Fault("empty_field", field, "is an empty list", fix)]
    return [fault for i, text in enumerate(value) if (fault := text_fault(text, f"{field}[{i}]")) is not None]


def _duplicates(documents: Sequence[Any], field: str) -> list[Fault]:
    first: dict[Any, int] = {}
    return [
        Fault("duplicate_document", f"{field}[{i}]", f"is {field}[{first[d]}] again", "name each document once")
        for i, d in enumerate(documents)
        if first.setdefault(d, i) != i
    ]


def _both_sides(shared: set[str], field: str) -> list[Fault]:
    return [
        Fault("both_sides", field, f"is positive and negative: {document.strip()[:60]!r}", "take it out of one side")
        for document in sorted(shared)
    ]


def _unknown(name: str, known: Sequence[str]) -> Fault:
    meant = nearest(name, known)
    fix = f"did you mean {meant!r}?" if meant else "take it out"
    return Fault("unknown_column", name, f"unknown column (known: {', '.join(known)})", fix)
