"""Search: exact, with all ties, and pair scores that agree with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_encoders import make_tiny_cross_encoder, make_tiny_encoder

from prefloop.backends.base import Backend, Embedding
from prefloop.config import RetrieverSection
from prefloop.errors import UsageError
from prefloop.retrieve import retriever as module
from prefloop.retrieve import vectors
from prefloop.retrieve.retriever import (
    Bm25Retriever,
    EncoderRetriever,
    kind_of,
    open_model,
    open_retriever,
    retriever_identity,
)
from prefloop.signals.build import open_backend
from prefloop.store.cache import Cache

PASSAGES = ["the quick brown fox", "a lazy dog", "the quick brown fox", "Paris is a city", "the fox and the dog"]


class Vectors(Backend):
    """An encoder by a table: a text is the name of its vector."""

    def __init__(self, table):
        self.identity = {"backend": "table"}
        self.table, self.asked = table, []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        self.asked += [r.text for r in requests]
        return [Embedding(np.array(self.table[r.text], dtype=np.float32)) for r in requests]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_cosine_and_dot():
    table = {"q": [1, 0], "long": [3, 4], "near": [1, 0.1], "nothing": [0, 0]}
    passages = ["long", "near", "nothing"]
    [dot] = EncoderRetriever(Vectors(table), "dot").index(passages).search(["q"], 3)
    assert [(h.position, h.score) for h in dot] == [(0, 3.0), (1, 1.0), (2, 0.0)]
    [cosine] = EncoderRetriever(Vectors(table), "cosine").index(passages).search(["q"], 3)
    assert [h.position for h in cosine] == [1, 0, 2]
    assert cosine[1].score == pytest.approx(0.6)
    assert cosine[2].score == 0  # no direction, no similarity, and no NaN
    with pytest.raises(UsageError, match="euclidean"):
        EncoderRetriever(Vectors(table), "euclidean")


def test_what_ties_with_the_last_hit_is_found_too():
    table = {"q": [1, 0], "a": [2, 0], "b": [1, 3], "c": [1, -3], "d": [0, 1]}
    [hits] = EncoderRetriever(Vectors(table), "dot").index(["d", "c", "a", "b"]).search(["q"], 2)
    assert [h.position for h in hits] == [2, 1, 3]
    [hits] = Bm25Retriever(RetrieverSection(path="bm25")).index(["fox", "dog", "fox", "fox"]).search(["fox"], 1)
    assert [h.position for h in hits] == [0, 2, 3]


def test_equal_texts_are_embedded_once_and_tie_to_the_last_bit(encoder):
    retriever = open_retriever(RetrieverSection(path=str(encoder), device="cpu"))
    for query, hits in zip(PASSAGES, retriever.index(PASSAGES).search(PASSAGES, 5), strict=True):
        scores = {h.position: h.score for h in hits}
        assert scores[0] == scores[2], query
    table = Vectors({"a": [1.0], "b": [2.0]})
    EncoderRetriever(table, "dot").pair_scores([("a", "b"), ("a", "a"), ("b", "b")])
    assert sorted(table.asked) == ["a", "a", "b", "b"]  # each as query and as passage


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_blocks_change_nothing(passages, queries, k):
    names = {f"p{i}": list(v) for i, v in enumerate(passages)}
    asked = {f"q{i}": list(v) for i, v in enumerate(queries)}
    index = EncoderRetriever(Vectors(names | asked), "dot").index(list(names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", 3)
        patch.setattr(module, "_QUERIES", 2)
        found = index.search(list(asked), k)
    for vector, hits in zip(queries, found, strict=True):
        scores = [float(np.dot(vector, p)) for p in passages]
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        expected = [i for i in best if scores[i] >= scores[best[min(k, len(best)) - 1]]]
        assert [h.position for h in hits] == expected


def test_pair_scores_are_those_of_the_search(encoder, tmp_path):
    sections = [str(encoder), "bm25", str(make_tiny_cross_encoder(tmp_path, 2))]
    for section in [
        RetrieverSection(path=p, device="cpu") if p != "bm25" else RetrieverSection(path=p) for p in sections
    ]:
        index = open_retriever(section).index(PASSAGES)
        query = "the quick fox in Paris"
        [hits] = index.search([query], 10)
        assert hits
        direct = index.pair_scores([(query, PASSAGES[h.position]) for h in hits])
        assert direct == pytest.approx([h.score for h in hits], abs=1e-5)


def test_a_cross_encoder_scores_what_bm25_finds(tmp_path):
    section = RetrieverSection(path=str(make_tiny_cross_encoder(tmp_path)), candidates=1)
    [hits] = open_retriever(section).index(PASSAGES).search(["Paris"], 10)
    assert [h.position for h in hits] == [3]
    [hits] = open_retriever(section).index(PASSAGES).search(["zebra"], 10)
    assert hits == []


def test_vectors_are_cached(encoder, tmp_path):
    section = RetrieverSection(path=str(encoder))
    with Cache(tmp_path / "cache.db") as cache:
        first = open_retriever(section, cache).index(PASSAGES).search(["fox"], 3)
        retriever = open_retriever(section, cache)
        assert retriever.index(PASSAGES).search(["fox"], 3) == first
        assert retriever.backend.usage.computed == 0


def test_kinds(encoder, tmp_path):
    assert kind_of(RetrieverSection(path="bm25")) == "bm25"
    assert kind_of(RetrieverSection(path=str(encoder))) == "encoder"
    assert kind_of(RetrieverSection(path=str(make_tiny_cross_encoder(tmp_path)))) == "cross_encoder"
    backend = open_backend(RetrieverSection(path=str(encoder)), "retriever", None)
    assert backend.identity["backend"] == "encoder"
    with pytest.raises(UsageError, match="words of a corpus"):
        open_model(RetrieverSection(path="bm25"), "retriever", None)
    with pytest.raises(UsageError, match="words of a corpus"):
        open_retriever(RetrieverSection(path="bm25")).pair_scores([("a", "b")])


def test_bm25_scores_pairs_by_the_words_of_its_corpus(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"_id": "1", "text": "a fox"}\n{"_id": "2", "text": "a dog"}\n')
    by_file = open_retriever(RetrieverSection(path="bm25", corpus=str(tmp_path / "p.jsonl")))
    by_texts = open_retriever(RetrieverSection(path="bm25"), corpus=["a fox", "a dog"])
    assert by_file.pair_scores([("fox", "the fox")]) == by_texts.pair_scores([("fox", "the fox")])
    assert by_file.identity == by_texts.identity != open_retriever(RetrieverSection(path="bm25")).identity


def test_the_identity_says_what_changes_scores(encoder, tmp_path):
    section = RetrieverSection(path=str(encoder))
    same = RetrieverSection(path=str(encoder), batch_size=3, device="cpu")
    other = RetrieverSection(path=str(make_tiny_encoder(tmp_path, seed=1)))
    assert retriever_identity(section) == retriever_identity(same)
    assert retriever_identity(section) != retriever_identity(other)
    assert retriever_identity(RetrieverSection(path="bm25")) != retriever_identity(RetrieverSection(path="bm25", k1=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "bm25", "similarity": "dot"}, "similarity: of no use to bm25"),
        ({"path": "bm25", "kind": "encoder"}, "is no encoder"),
        ({"path": "some/model", "kind": "bm25"}, "write path bm25"),
        ({"path": "some/model", "corpus": "x"}, "corpus: of no use to a model"),
        ({"path": "some/model", "kind": "cross_encoder", "passages": "x"}, "reads query and passage together"),
        ({"path": "bm25", "language": "klingon"}, "no stemmer for klingon"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RetrieverSection(**settings)


def test_a_text_is_a_path():
    assert RetrieverSection.model_validate("bm25") == RetrieverSection(path="bm25")
