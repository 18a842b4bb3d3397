"""Encoders and cross-encoders: what sentence-transformers computes, cached, with errors that say what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tests.tiny_encoders import make_tiny_cross_encoder, make_tiny_encoder, make_tiny_transformer
from tests.tiny_models import tiny_model_folder

from prefloop.backends.base import Embedding, EmbedRequest, Logits, PairScoreRequest, ScoreRequest
from prefloop.backends.cached import CachedBackend
from prefloop.backends.cross_encoder import CrossEncoderBackend, is_cross_encoder, relevance
from prefloop.backends.encoder import EncoderBackend
from prefloop.config import RetrieverSection
from prefloop.errors import UsageError
from prefloop.store.cache import Cache

TEXTS = ["the quick brown fox", "a lazy dog sleeps in the kind world", "one", "", "Paris is a large city"]
PROMPTS = {"query": "find: ", "document": "text: "}


def section(path, **settings):
    return RetrieverSection(path=str(path), device="cpu", batch_size=2, **settings)


def vectors(backend, texts, role):
    results = backend.answer([EmbedRequest(t, role) for t in texts])
    assert all(isinstance(r, Embedding) for r in results)
    return np.stack([r.values for r in results])


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    return make_tiny_encoder(tmp_path_factory.mktemp("prompted"), pooling="cls", prompts=PROMPTS, similarity="dot")


def test_vectors_are_those_of_sentence_transformers(prompted):
    backend = EncoderBackend.load(section(prompted))
    model = SentenceTransformer(str(prompted), device="cpu")
    assert backend.similarity == "dot"
    np.testing.assert_allclose(vectors(backend, TEXTS, "query"), model.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(vectors(backend, TEXTS, "passage"), model.encode_document(TEXTS), atol=1e-5)
    # Its prompts count, so the roles differ; and ours replace them.
    assert np.abs(vectors(backend, TEXTS, "query") - vectors(backend, TEXTS, "passage")).max() > 0.01
    ours = EncoderBackend.load(section(prompted, query_prompt="text: "))
    np.testing.assert_allclose(vectors(ours, TEXTS, "query"), model.encode_document(TEXTS), atol=1e-5)
    assert ours.identity != backend.identity


def test_pooling_of_a_plain_transformer(tmp_path):
    plain = make_tiny_transformer(tmp_path)
    hidden = SentenceTransformer(str(plain), device="cpu").encode(TEXTS[:2], output_value="token_embeddings")
    mean = vectors(EncoderBackend.load(section(plain)), TEXTS[:2], "passage")
    first = vectors(EncoderBackend.load(section(plain, pooling="cls")), TEXTS[:2], "passage")
    np.testing.assert_allclose(mean, [h.mean(0) for h in hidden], atol=1e-5)
    np.testing.assert_allclose(first, [h[0] for h in hidden], atol=1e-5)


def test_an_encoder_each_for_queries_and_passages(prompted, tmp_path):
    other = make_tiny_encoder(tmp_path, seed=1)
    both = EncoderBackend.load(section(prompted, passages=str(other)))
    np.testing.assert_array_equal(
        vectors(both, TEXTS, "query"), vectors(EncoderBackend.load(section(prompted)), TEXTS, "query")
    )
    np.testing.assert_array_equal(
        vectors(both, TEXTS, "passage"), vectors(EncoderBackend.load(section(other)), TEXTS, "passage")
    )
    assert len(both.identity["weights"]) == 2
    assert both.identity["dtype"] == "float32"
    settings = both.identity["settings"]
    half = EncoderBackend(both.models["query"].half(), both.models["passage"], weights=["a", "b"], settings=settings)
    assert half.identity["dtype"] == "float32+float16"


def test_plan_takes_the_longest_first_and_one_role_a_batch(prompted):
    backend = EncoderBackend.load(section(prompted))
    requests = [EmbedRequest(t, role) for t in TEXTS for role in ("query", "passage")]
    plan = backend.plan(requests)
    assert sorted(i for batch in plan for i in batch) == list(range(len(requests)))
    assert all(len({requests[i].role for i in batch}) == 1 and len(batch) <= 2 for batch in plan)
    lengths = [len(requests[i].text) for batch in plan for i in batch if requests[i].role == "query"]
    assert lengths == sorted(lengths, reverse=True)
    with pytest.raises(ValueError, match="does not answer score"):
        backend.plan([ScoreRequest((1,), (2,))])


def test_max_length_is_a_limit(prompted):
    short = EncoderBackend.load(section(prompted, max_length=8))
    long = "the quick brown fox jumps over " * 4
    np.testing.assert_allclose(*vectors(short, [long, long + "dog"], "query"), atol=1e-6)
    assert short.identity != EncoderBackend.load(section(prompted)).identity


def test_vectors_come_back_from_the_cache_bit_for_bit(prompted, tmp_path):
    with Cache(tmp_path / "cache.db") as cache:
        first = CachedBackend(EncoderBackend.load(section(prompted), cache), cache)
        computed = vectors(first, [*TEXTS, TEXTS[0]], "query")
        assert first.usage.computed == len(TEXTS)
        again = CachedBackend(first.inner, cache)
        np.testing.assert_array_equal(vectors(again, [*TEXTS, TEXTS[0]], "query"), computed)
        assert (again.usage.computed, again.usage.cached) == (0, len(TEXTS))
        assert computed.dtype == np.float32
        vectors(again, TEXTS[:1], "passage")  # the role is part of the key
        assert again.usage.computed == 1


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_cross_encoder_gives_its_logits(tmp_path, labels):
    folder = make_tiny_cross_encoder(tmp_path, labels)
    backend = CrossEncoderBackend.load(section(folder))
    pairs = [("fox", t) for t in TEXTS] + [("what is the capital", "Paris " * 100)]
    found = backend.answer([PairScoreRequest(pair) for pair in pairs])
    expected = CrossEncoder(str(folder), device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    assert all(isinstance(r, Logits) for r in found)
    np.testing.assert_allclose([r.values for r in found], expected.reshape(len(pairs), labels), atol=1e-5)
    assert [r.truncated for r in found] == [0] * len(TEXTS) + [1]
    with pytest.raises(ValueError, match="query, passage"):
        backend.answer([PairScoreRequest(("a", "b", "c"))])


def test_one_number_of_a_head():
    assert relevance([0.5]) == 0.5
    assert relevance([0.5, 2.0]) == 1.5
    with pytest.raises(UsageError, match="3 classes"):
        relevance([1.0, 2.0, 3.0])


def test_kinds_are_told_apart(prompted, tmp_path):
    assert is_cross_encoder(section(make_tiny_cross_encoder(tmp_path)))
    assert not is_cross_encoder(section(prompted))
    with pytest.raises(UsageError, match="no cross-encoder"):
        CrossEncoderBackend.load(section(tiny_model_folder("llama")))


def test_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="hf download some/encoder"):
        EncoderBackend.load(section("some/encoder"))
    with pytest.raises(UsageError, match="hf download some/ranker"):
        CrossEncoderBackend.load(section("some/ranker"))
    with pytest.raises(UsageError, match="cannot be loaded as an encoder"):
        EncoderBackend.load(section(tmp_path))
