"""BM25 of single pairs: by hand, and as bm25s computes it for a passage of the corpus."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.backends.base import PairScoreRequest
from prefloop.backends.bm25 import Analyzer, Bm25Backend
from prefloop.config import RetrieverSection
from prefloop.retrieve.retriever import Bm25Retriever

SECTION = RetrieverSection(path="bm25")
CORPUS = ["the cats sat on the mat", "a dog sat", "the dog's bone, a big bone"]


def test_by_hand():
    # Without stop words: cat sat mat | dog sat | dog bone big bone; average length 3.
    backend = Bm25Backend(SECTION, CORPUS)
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 / (2 + 1.2 * (0.25 + 0.75 * 4 / 3))
    [found] = backend.answer([PairScoreRequest(("bones", CORPUS[2]))])
    assert found.values == [pytest.approx(expected)]
    # A word that the corpus lacks is the rarest of all.
    assert backend.idf("zebra") == pytest.approx(math.log(1 + 3.5 / 0.5))
    assert backend.score("zebra", "a zebra") > backend.score("bone", "a bone") > 0
    assert backend.score("zebra", "a dog") == 0


def test_analysis():
    english = Analyzer("english")
    assert english.words("The dog’s running; dogs' RUNS") == ["dog", "run", "dog", "run"]
    assert Analyzer(None).words("The dogs run") == ["the", "dogs", "run"]
    assert Analyzer("german").words("die Häuser") == Analyzer("german").words("der Haus")


words = st.lists(st.sampled_from(["cat", "dog", "bone", "mat", "sun", "big", "sat"]), min_size=1, max_size=8).map(
    " ".join
)


@given(st.lists(words, min_size=1, max_size=6), words)
def test_it_is_what_a_search_gives(corpus, query):
    backend = Bm25Backend(SECTION, corpus)
    index = Bm25Retriever(SECTION).index(corpus)
    [hits] = index.search([query], 10)
    assert index.pair_scores([(query, text) for text in corpus]) == [backend.score(query, text) for text in corpus]
    found = {hit.position: hit.score for hit in hits}
    for position, text in enumerate(corpus):
        assert found.get(position, 0.0) == pytest.approx(backend.score(query, text), rel=1e-5)


def test_the_corpus_is_part_of_the_identity():
    assert Bm25Backend(SECTION, CORPUS).identity != Bm25Backend(SECTION, CORPUS[:2]).identity
    assert Bm25Backend(SECTION, CORPUS).identity == Bm25Backend(SECTION, CORPUS[::-1]).identity
