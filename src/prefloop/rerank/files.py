"""Files of rankings: our own rows, and DPA-RAG's published examples field by field.

    ours                query, documents, and any of labels, scores, id, query_id, document_ids, source
    published, train    query, classification {text, label}, rank_list, positive, negative
    published, measure  question, reference, ctx, before, after, category; one document a row

Published labels are 1 for aligned and 2 for unaligned; ours are 1 and 0. The rows to measure on come one document at a
time and are joined here by their question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.inputs.problems import Problem, ProblemLog, nearest, raw_json, stop
from prefloop.inputs.readers import Record, Stats, container_of, json_type, read_records
from prefloop.records import RankingRow, content_id
from prefloop.rerank.groups import Group, document_id
from prefloop.rerank.layouts import MEASURE, OURS, TRAIN
from prefloop.store import atomic


class _Wrong(Exception):
    """Field, what is wrong with it, what to do."""


def read(path: str, split: str = "train") -> list[RankingRow | Group]:
    """All rows of a JSONL, JSON or Parquet file or of a hub data set, in any of the three layouts.

    Raises:
        UsageError: nothing is there, or rows are wrong; file, row, field and reason of the first ten.
    """
    log = ProblemLog(keep=50)
    rows: list[RankingRow | Group] = []
    seen: dict[str, int] = {}
    measured: dict[str, RankingRow] = {}
    for item in read_records(path, container_of(path), Stats(), split):
        if isinstance(item, Problem):
            log.add(item)
            continue
        try:
            row = _row(item.value, path)
        except _Wrong as wrong:
            log.add(_problem(path, item, *wrong.args))
            continue
        own = row.id if isinstance(row, Group) else row["id"]
        if item.value.get("id") is not None and own in seen:
            log.add(_problem(path, item, "id", f"repeats that of {item.unit} {seen[own]}", "give each row its own"))
        seen.setdefault(own, item.row)
        if "ctx" in item.value and not isinstance(row, Group):
            first = measured.setdefault(row["query_id"], row)
            if first is not row:
                _join(first, row)
                continue
        rows.append(row)
    if log.by_level["fatal"] + log.by_level["error"]:
        raise stop(log, path, kind="rankings", can_reject=False)
    if not rows:
        raise UsageError("no row is in it", where=path)
    return rows


def _row(value: Mapping[str, Any], path: str) -> RankingRow | Group:
    if "classification" in value or "rank_list" in value:
        _known(value, TRAIN)
        return _from_published(value)
    if "ctx" in value:
        _known(value, MEASURE)
        return _from_measured(value)
    _known(value, OURS)
    return _from_ours(value, path)


def _from_ours(value: Mapping[str, Any], path: str) -> RankingRow:
    query, documents = _text(value, "query"), _texts(value, "documents")
    if not documents:
        raise _Wrong("documents", "is empty", "give at least one document")
    return {
        "id": _optional(value, "id") or content_id("ranking", query, documents),
        "query_id": _optional(value, "query_id") or content_id("query", query),
        "query": query,
        "document_ids": _texts(value, "document_ids", len(documents))
        if value.get("document_ids") is not None
        else [document_id(text) for text in documents],
        "documents": documents,
        "labels": [None if x is None else int(x) for x in _numbers(value, "labels", len(documents), only=(0, 1))],
        "scores": _numbers(value, "scores", len(documents)),
        "source": _optional(value, "source") or path,
    }


def from_published(value: Mapping[str, Any]) -> Group:
    """The group of a published training row.

    Raises:
        UsageError: a field is missing or has another form.
    """
    try:
        return _from_published(value)
    except _Wrong as wrong:
        field, reason, fix = wrong.args
        raise UsageError(reason, where=field, fix=fix) from None


def _from_published(value: Mapping[str, Any]) -> Group:
    query, classified = _text(value, "query"), value.get("classification")
    if not isinstance(classified, Mapping):
        raise _Wrong("classification", f"is {json_type(classified)}", 'must be {"text": …, "label": 1 or 2}')
    text, label = _text(classified, "text", "classification.text"), classified.get("label")
    if label not in (1, 2) or isinstance(label, bool):
        raise _Wrong("classification.label", f"is {label!r}", "1 is aligned, 2 is unaligned")
    lists = {name: _texts(value, name) for name in ("rank_list", "positive", "negative")}
    named = _optional(value, "id")
    places = {text: i for i, text in enumerate(dict.fromkeys([text, *(t for some in lists.values() for t in some)]))}
    return Group(
        id=named or content_id("published", dict(value)),
        query_id=content_id("query", query),
        query=query,
        documents=tuple(places),
        classified=((places[text], 2 - label),),
        ranked=tuple((places[t], float(-i)) for i, t in enumerate(lists["rank_list"])),
        positives=tuple(places[t] for t in lists["positive"]),
        negatives=tuple(places[t] for t in lists["negative"]),
    )


def to_published(group: Group) -> dict[str, Any]:
    """A group as a published training row.

    Raises:
        UsageError: the format cannot say it: another number of classified documents than one, or equal targets.
    """
    if len(group.classified) != 1:
        raise UsageError(
            f"the published format has one classified document a row, and this has {len(group.classified)}",
            where=group.id,
            fix="set classify=one",
        )
    order = sorted(group.ranked, key=lambda pair: -pair[1])
    if len({target for _, target in order}) < len(order):
        raise UsageError(
            "the published format has no ties, and two documents have one score",
            where=group.id,
            fix="give scores that differ, or leave one of the two out",
        )
    place, label = group.classified[0]
    text = group.documents
    return {
        "query": group.query,
        "classification": {"text": text[place], "label": 2 - label},
        "rank_list": [text[i] for i, _ in order],
        "positive": [text[i] for i in group.positives],
        "negative": [text[i] for i in group.negatives],
    }


def write_published(path: Path, groups: Iterable[Group]) -> int:
    """Write groups as JSON Lines in the published format; returns how many."""
    lines = [json.dumps(to_published(group), ensure_ascii=False) + "\n" for group in groups]
    atomic.write_text(path, "".join(lines))
    return len(lines)


def _from_measured(value: Mapping[str, Any]) -> RankingRow:
    """A published row to measure on; which reader answered how before and after is not read."""
    query, document, category = _text(value, "question"), _text(value, "ctx"), value.get("category")
    if category not in (1, 2) or isinstance(category, bool):
        raise _Wrong("category", f"is {category!r}", "1 is aligned, 2 is unaligned")
    return {
        "id": content_id("ranking", query, [document]),
        "query_id": content_id("query", query),
        "query": query,
        "document_ids": [document_id(document)],
        "documents": [document],
        "labels": [2 - category],
        "scores": [None],
        "source": "published",
    }


def _join(first: RankingRow, other: RankingRow) -> None:
    """Put the document of a published row to measure on beside those of the same question."""
    first["document_ids"] += other["document_ids"]
    first["documents"] += other["documents"]
    first["labels"] += other["labels"]
    first["scores"] += other["scores"]


# ----------------------------------------------------------------------------------------------------------- fields


def _problem(path: str, item: Record, field: str, reason: str, fix: str) -> Problem:
    kind: Any = "unknown_column" if reason.startswith("is no column") else "wrong_value"
    return Problem(kind, path, item.row, field, reason, fix, item.unit, raw=raw_json(item.value))


def _known(value: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in value:
        if name not in names:
            near = nearest(str(name), names)
            hint = f"did you mean {near}?" if near else f"known here: {', '.join(names)}"
            raise _Wrong(str(name), "is no column of this layout", hint)


def _text(value: Mapping[str, Any], name: str, at: str | None = None) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise _Wrong(at or name, "is empty" if text == "" else f"is {json_type(text)}", "give a text")
    return text


def _optional(value: Mapping[str, Any], name: str) -> str | None:
    return None if value.get(name) is None else _text(value, name)


def _texts(value: Mapping[str, Any], name: str, count: int | None = None) -> list[str]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(t, str) and t.strip() for t in found):
        raise _Wrong(name, "is no list of texts", "give a list of texts, none of them empty")
    if count is not None and len(found) != count:
        raise _Wrong(name, f"has {len(found)} entries for {count} documents", "give one for each document")
    return found


def _numbers(
    value: Mapping[str, Any], name: str, count: int, only: tuple[float, ...] | None = None
) -> list[float | None]:
    found = value.get(name)
    if found is None:
        return [None] * count
    if not isinstance(found, list) or len(found) != count:
        had = f"has {len(found)} entries" if isinstance(found, list) else f"is {json_type(found)}"
        raise _Wrong(name, f"{had} for {count} documents", "give one for each document, null where there is none")
    for x in found:
        if x is None:
            continue
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x):
            raise _Wrong(name, f"holds {x!r}", "give finite numbers, null where there is none")
        if only is not None and x not in only:
            raise _Wrong(name, f"holds {x!r}", "1 is aligned, 0 is unaligned, null is neither")
    return [None if x is None else float(x) for x in found]
