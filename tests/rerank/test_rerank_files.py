"""Rankings from files: our rows, and the published format field by field."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from prefloop.config import RerankSection
from prefloop.errors import UsageError
from prefloop.records import arrow_schema
from prefloop.rerank.files import from_published, read, to_published, write_published
from prefloop.rerank.groups import Group, group_of, ranking_of
from prefloop.store.rows import read_rows, to_table

PUBLISHED = {
    "query": "who wrote it",
    "classification": {"text": "p1", "label": 1},
    "rank_list": ["r1", "p1", "r3", "r1"],
    "positive": ["p1", "p2"],
    "negative": ["n1", "n2"],
}
MEASURED = {
    "question": "who wrote it",
    "reference": ["her"],
    "ctx": "a page",
    "before": {"answer": "him", "em": 0, "f1": 0.0},
    "after": {"answer": "her", "em": 1, "f1": 1.0},
    "category": 1,
}


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_published_row_field_by_field():
    group = from_published(PUBLISHED)
    assert group.query == "who wrote it"
    assert group.documents == ("p1", "r1", "r3", "p2", "n1", "n2")
    assert group.classified == ((0, 1),)
    assert [group.documents[i] for i, _ in group.ranked] == PUBLISHED["rank_list"]
    assert [target for _, target in group.ranked] == [0, -1, -2, -3]
    assert [group.documents[i] for i in group.positives] == ["p1", "p2"]
    assert [group.documents[i] for i in group.negatives] == ["n1", "n2"]
    assert from_published({**PUBLISHED, "classification": {"text": "n1", "label": 2}}).classified[0][1] == 0


def test_published_rows_come_back_as_they_were(tmp_path):
    path = write(tmp_path / "a.jsonl", PUBLISHED, {**PUBLISHED, "query": "and who read it"})
    groups = read(path)
    assert write_published(tmp_path / "b.jsonl", groups) == 2
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [
        PUBLISHED,
        {**PUBLISHED, "query": "and who read it"},
    ]
    assert read(str(tmp_path / "b.jsonl")) == groups


def test_our_rows_can_be_published():
    row = {
        "id": "1",
        "query_id": "1",
        "query": "q",
        "document_ids": list("abcde"),
        "documents": ["a", "b", "c", "d", "e"],
        "labels": [1, 0, 1, 0, None],
        "scores": [0.9, 0.1, 0.8, 0.2, 0.5],
        "source": "x",
    }
    section = RerankSection(model="m", classify="one", list_length=4, positives=2, negatives=2)
    value = to_published(group_of(row, section))
    assert value["rank_list"] == ["a", "c", "e", "b"]
    assert sorted(value["positive"]) == ["a", "c"]
    side = value["positive"] if value["classification"]["label"] == 1 else value["negative"]
    assert value["classification"]["text"] == side[0]
    assert from_published(value).ranked[0][1] == 0


def test_what_the_published_format_cannot_say():
    group = Group("g", "g", "q", ("a", "b"), ((0, 1), (1, 0)))
    with pytest.raises(UsageError, match="one classified document"):
        to_published(group)
    with pytest.raises(UsageError, match="no ties"):
        to_published(Group("g", "g", "q", ("a", "b"), ((0, 1),), ((0, 1.0), (1, 1.0))))


def test_a_document_on_both_sides_has_no_label_to_measure_by():
    group = from_published({**PUBLISHED, "negative": ["p2", "n2"]})
    row = ranking_of(group)
    assert row["labels"][row["documents"].index("p2")] is None
    assert row["labels"][row["documents"].index("p1")] == 1


def test_rows_to_measure_on_are_joined_by_their_question(tmp_path):
    rows = read(
        write(
            tmp_path / "m.jsonl",
            MEASURED,
            {**MEASURED, "ctx": "other", "category": 2},
            {**MEASURED, "question": "where"},
        )
    )
    assert [len(row["documents"]) for row in rows] == [2, 1]
    assert rows[0]["labels"] == [1, 0]


def test_our_rows_from_any_container(tmp_path):
    value = {"query": "q", "documents": ["a", "b"], "labels": [1, None], "scores": [0.5, None]}
    (row,) = read(write(tmp_path / "r.jsonl", value))
    assert (row["labels"], row["scores"]) == ([1, None], [0.5, None])
    assert len(set(row["document_ids"])) == 2
    import pyarrow.parquet as pq

    pq.write_table(to_table("ranking", [row], where="test"), tmp_path / "r.parquet")
    assert read(str(tmp_path / "r.parquet")) == [row]
    assert list(read_rows([tmp_path / "r.parquet"])) == [row]
    assert arrow_schema("ranking").names == list(row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "q", "documents": ["a"], "label": [1]}, "did you mean labels"),
        ({"query": "q", "documents": []}, "is empty"),
        ({"query": "", "documents": ["a"]}, "field query"),
        ({"query": "q", "documents": ["a", "b"], "labels": [1]}, "1 entries for 2 documents"),
        ({"query": "q", "documents": ["a"], "labels": [2]}, "1 is aligned, 0 is unaligned"),
        ({"query": "q", "documents": ["a"], "scores": [True]}, "finite numbers"),
        ({"query": "q", "documents": ["a"], "document_ids": ["x", "y"]}, "2 entries for 1 documents"),
        ({**PUBLISHED, "classification": {"text": "a", "label": 0}}, "1 is aligned, 2 is unaligned"),
        ({**PUBLISHED, "positive": "p1"}, "no list of texts"),
        ({**MEASURED, "category": 3}, "1 is aligned, 2 is unaligned"),
    ],
)
def test_wrong_rows_are_named(row, said, tmp_path):
    path = write(tmp_path / "bad.jsonl", {"query": "fine", "documents": ["a"]}, row)
    with pytest.raises(UsageError) as error:
        read(path)
    assert said in str(error.value)
    assert "line 2" in str(error.value)


def test_a_repeated_id_is_an_error(tmp_path):
    row = {"id": "1", "query": "q", "documents": ["a"]}
    with pytest.raises(UsageError, match="repeats that of line 1"):
        read(write(tmp_path / "d.jsonl", row, {**row, "query": "r"}))


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read(str(tmp_path / "none.jsonl"))


def test_either_of_two_boxes_that_need_each_other_may_come_first():
    """`inputs` tells layouts apart by these columns, and files are read by `inputs`' readers."""
    for first in ("prefloop.rerank.files", "prefloop.inputs"):
        subprocess.run([sys.executable, "-c", f"import {first}"], check=True)


def test_our_rows_of_a_published_source_are_not_joined(tmp_path):
    """As `rerank apply` writes published rows."""
    rows = [{"id": i, "query": "q", "documents": [f"d{i}"], "source": "published"} for i in "ab"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["id"] for row in read(str(tmp_path / "rows.jsonl"))] == ["a", "b"]
