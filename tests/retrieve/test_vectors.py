"""Exact search by numpy and by faiss: the same hits, ties with the last one included."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_encoders import make_tiny_cross_encoder, make_tiny_encoder

from prefloop.config import RetrieverSection
from prefloop.errors import UsageError
from prefloop.retrieve.retriever import open_retriever
from prefloop.retrieve.vectors import hold

WORDS = ["fox", "dog", "city", "river", "garden", "engine", "market", "winter", "letter", "bridge"]
PASSAGES = [f"the {a} and the {b}" for a in WORDS for b in WORDS]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), max_size=30),
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=5),
    st.integers(1, 8),
)
def test_both_find_the_same_with_all_ties(passages, queries, k):
    pytest.importorskip("faiss")
    # Small whole numbers are exact in any order of adding up, and make many ties.
    vectors_ND, queries_QD = (np.array(v, dtype=np.float32).reshape(-1, 2) for v in (passages, queries))
    found = [hold(vectors_ND, name).search(queries_QD, k) for name in ("numpy", "faiss")]
    one, other = ([sorted(zip(r.tolist(), s.tolist(), strict=True)) for r, s in some] for some in found)
    assert one == other
    for query, hits in zip(queries, one, strict=True):
        scores = sorted((float(np.dot(query, p)) for p in passages), reverse=True)
        assert len(hits) == sum(s >= scores[min(k, len(scores)) - 1] for s in scores)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_an_encoder_with_either(tmp_path, similarity):
    pytest.importorskip("faiss")
    path = str(make_tiny_encoder(tmp_path))
    hits = []
    for search in ("numpy", "faiss"):
        section = RetrieverSection(path=path, device="cpu", similarity=similarity, search=search)
        hits.append(open_retriever(section).index([*PASSAGES, PASSAGES[7]]).search(PASSAGES[:30], 10))
    for one, other in zip(*hits, strict=True):
        assert [h.position for h in one] == [h.position for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], rel=1e-5)
    copies = [{7, len(PASSAGES)} & {h.position for h in found} for found in hits[1]]
    assert all(len(found) != 1 for found in copies)  # a text and its copy are found together, or neither
    assert similarity == "dot" or {7, len(PASSAGES)} in copies


def test_without_the_package_it_is_said_before_anything_is_embedded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"needs the package faiss[\s\S]*pip install 'prefloop\[faiss\]'"):
        open_retriever(RetrieverSection(path=str(tmp_path), kind="encoder", search="faiss"))


def test_only_encoders_have_vectors(tmp_path):
    with pytest.raises(ValueError, match="search: of no use to bm25"):
        RetrieverSection(path="bm25", search="faiss")
    with pytest.raises(ValueError, match="no vectors to search"):
        RetrieverSection(path="a/b", kind="cross_encoder", search="faiss")
    with pytest.raises(UsageError, match="is a cross-encoder"):
        open_retriever(RetrieverSection(path=str(make_tiny_cross_encoder(tmp_path)), search="faiss"))
