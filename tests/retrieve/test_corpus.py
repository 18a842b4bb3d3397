"""Readers of collections: what is written comes back, whatever it holds; what is broken is named."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_collection import write

from prefloop.errors import UsageError
from prefloop.retrieve.corpus import Passage, Query, read_collection

SOURCES = {"human": [("d1", "T", "one"), ("d2", "", "two")], "m-x_tmp0.2": [("d1", "T", "uno"), ("d2", "", "due")]}


def small(folder: Path, **changes) -> Path:
    given = {"sources": SOURCES, "queries": [("q1", "what"), ("q2", "who"), ("q3", "why")]}
    return write(folder, **(given | {"qrels": [("q1", "d1", 2), ("q2", "d2", 0)]} | changes))


ids = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8)
texts = st.text(st.characters(), max_size=20)  # lone surrogates and line separators included


@settings(max_examples=60)
@given(
    st.lists(st.tuples(ids, texts, texts), min_size=1, max_size=5, unique_by=lambda row: row[0]),
    st.lists(st.tuples(ids, texts), min_size=1, max_size=5, unique_by=lambda row: row[0]),
    st.integers(-1, 3),
    st.booleans(),
)
def test_what_is_written_comes_back(rows, queries, grade, header):
    def clean(text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    with tempfile.TemporaryDirectory() as name:
        folder = write(
            Path(name), {"human": rows, "b-human": rows}, queries, [(q, rows[0][0], grade) for q, _ in queries], header
        )
        found = read_collection(folder, judged=True)
    assert found.sources == ["human", "b-human"]
    assert found.passages["human"] == [Passage(i, "human", clean(t), clean(x)) for i, t, x in rows]
    assert found.queries == [Query(i, clean(t)) for i, t in queries]
    assert found.qrels == {q: {rows[0][0]: grade} for q, _ in queries}


@settings(max_examples=60)
@given(st.binary(max_size=200), st.sampled_from(["corpus/human.jsonl", "queries.jsonl", "qrels/test.tsv"]))
def test_any_bytes_are_read_or_refused(content, name):
    with tempfile.TemporaryDirectory() as place:
        folder = small(Path(place))
        (folder / name).write_bytes(content)
        with contextlib.suppress(UsageError):
            read_collection(folder, judged=True)


def test_a_zip_is_read_as_it_lies(tmp_path):
    folder = small(tmp_path / "c")
    expected = read_collection(folder)
    for around in ("", "nq/"):
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as packed:
            for file in folder.rglob("*.*"):
                if file.is_file():
                    packed.write(file, around + file.relative_to(folder).as_posix())
        found = read_collection(tmp_path / "c.zip")
        assert (found.passages, found.queries, found.qrels) == (expected.passages, expected.queries, expected.qrels)
    (tmp_path / "broken.zip").write_bytes(b"PK no")
    with pytest.raises(UsageError, match="cannot be read as a zip"):
        read_collection(tmp_path / "broken.zip")


def test_one_corpus_file_names_sources_by_field(tmp_path):
    rows = [{"_id": 1, "text": "a"}, {"_id": 1, "text": "b", "source": "m"}, {"id": "2", "text": "c"}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_collection(tmp_path)
    assert found.passages == {
        "human": [Passage("1", "human", "", "a"), Passage("2", "human", "", "c")],
        "m": [Passage("1", "m", "", "b")],
    }
    assert (found.queries, found.qrels) == ([], {})
    assert read_collection(tmp_path / "corpus.jsonl").passages == found.passages
    pq.write_table(pa.Table.from_pylist([{"_id": "1", "text": "a", "other": 3}]), tmp_path / "p.parquet")
    assert read_collection(tmp_path / "p.parquet").passages == {"human": [Passage("1", "human", "", "a")]}
    with pytest.raises(UsageError, match="queries and judgements are needed"):
        read_collection(tmp_path / "p.parquet", judged=True)


def test_only_judged_queries_and_asked_sources(tmp_path):
    found = read_collection(small(tmp_path), sources=["m-x_tmp0.2"])
    assert found.sources == ["m-x_tmp0.2"]
    assert [q.id for q in found.queries] == ["q1", "q2"]
    with pytest.raises(UsageError, match=r"no source x; there are human, m-x_tmp0\.2"):
        read_collection(tmp_path, sources=["x"])


def test_titles_only_where_asked():
    passage = Passage("d", "human", "Title", "text")
    assert (passage.shown(False), passage.shown(True)) == ("text", "Title text")
    assert Passage("d", "human", "", "text").shown(True) == "text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus/human.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}', "line 2: the id d1"),
        ("corpus/human.jsonl", '{"_id": "d1"}', "line 1: has no text"),
        ("corpus/human.jsonl", '{"text": "a"}', "line 1: has no _id"),
        ("corpus/human.jsonl", "\n[1]", "line 2: is no JSON object"),
        ("corpus/human.jsonl", "", "has no passages"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}', "no text of 1 judged queries, q2 first"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tmany", "line 2: is no judgement"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\t2", "judges document d1 twice"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "has no judgements"),
    ],
)
def test_what_is_broken_is_named(tmp_path, name, content, message):
    small(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_collection(tmp_path, judged=True)


def test_what_is_missing_is_named(tmp_path):
    small(tmp_path)
    with pytest.raises(UsageError, match=r"has no qrels/dev.tsv; there are judgements of test"):
        read_collection(tmp_path, "dev", judged=True)
    with pytest.raises(UsageError, match="no such collection"):
        read_collection(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no corpus"):
        read_collection(tmp_path / "empty")


def test_a_zip_that_is_damaged_inside(tmp_path):
    folder = small(tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:  # stored, so that bytes are found again
        for file in sorted(folder.rglob("*.*")):
            packed.write(file, file.relative_to(folder))
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b'"uno"', b'"uni"'))
    with pytest.raises(UsageError, match=r"a\.zip:corpus/m-x_tmp0\.2\.jsonl: cannot be read: Bad CRC-32"):
        read_collection(tmp_path / "a.zip")


def test_two_texts_of_one_query_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"queries\.jsonl, line 3: the id q1 is there twice, with two texts"):
        read_collection(small(tmp_path / "a", queries=[("q1", "what"), ("q2", "who"), ("q1", "why")]))
    twice = small(tmp_path / "b", queries=[("q1", "what"), ("q2", "who"), ("q1", "what")])
    assert read_collection(twice).queries == [Query("q1", "what"), Query("q2", "who")]


def test_one_corpus_file_beside_a_folder_of_them_is_refused(tmp_path):
    folder = small(tmp_path)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "one"}')
    with pytest.raises(UsageError, match=r"has both corpus\.jsonl and corpus/human\.jsonl"):
        read_collection(folder)
