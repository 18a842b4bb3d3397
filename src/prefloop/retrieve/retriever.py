"""What finds passages for queries and scores pairs: BM25, an encoder, a cross-encoder behind BM25.

Texts are embedded once, equal ones together, and through the cache. Search is exact (`vectors`); memory holds the
vectors, 4 bytes a dimension and distinct passage, and one block of scores. Equal texts get equal scores to the last
bit, and what ties with the k-th hit is found too, so that whoever breaks ties has them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from prefloop.backends.base import Backend, Embedding, EmbedRequest, Logits, PairScoreRequest, Refusal
from prefloop.backends.bm25 import Analyzer, Bm25Backend, WordCounts
from prefloop.backends.bm25 import settings as bm25_settings
from prefloop.backends.cached import CachedBackend
from prefloop.config import RetrieverSection
from prefloop.errors import UsageError
from prefloop.retrieve.vectors import hold, require_faiss, top
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import Memo, model_digest

_QUERIES = 1024
"""Queries searched at once."""

Array = Any


class Hit(NamedTuple):
    """A passage that was found: its place in the index, and its score, higher is better."""

    position: int
    score: float


class Index(Protocol):
    """Passages that can be searched."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query its k best passages, best first, and all that tie with the k-th; equal scores by position."""
        ...

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Scores of (query, passage) as this index would give them; the passage need not be in it."""
        ...


class Retriever(ABC):
    """Makes indexes and scores pairs.

    Attributes:
        name: what people call it.
        identity: everything that changes a score; JSON-able.
        on_progress: told how many of how many texts or pairs of the present call are done.
    """

    name: str
    identity: dict[str, Any]
    on_progress: Callable[[int, int], None] | None = None
    _asked: int = 0

    @abstractmethod
    def index(self, passages: Sequence[str]) -> Index: ...

    @abstractmethod
    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Scores of (query, passage), each distinct text read once."""

    def report(self, done: int) -> None:
        """For the backend, which says what is done of the call that it answers."""
        if self.on_progress is not None:
            self.on_progress(done, self._asked)

    def close(self) -> None:  # noqa: B027 - BM25 holds nothing
        """Release memory."""


class EncoderRetriever(Retriever):
    """An encoder's: cosine or dot product of vectors.

    Args:
        backend: answers `embed`, usually cached.
        similarity: cosine or dot.
        search: by numpy or faiss, see `vectors`; scores of pairs are computed without either.
    """

    def __init__(self, backend: Backend, similarity: str, name: str = "encoder", search: str = "numpy") -> None:
        if similarity not in ("cosine", "dot"):
            raise UsageError(
                f"compares vectors by {similarity}, which is not supported", where=name, fix="set similarity"
            )
        self.backend, self.similarity, self.name, self.search = backend, similarity, name, search
        self.identity = backend.identity | {"similarity": similarity}

    def embed(self, texts: Sequence[str], role: str = "passage") -> Array:
        """Vectors [n, d] float32, of length 1 where similarity is the cosine; equal texts are computed once."""
        import numpy as np

        requests = [EmbedRequest(text, role) for text in texts]  # type: ignore[arg-type]
        self._asked = len(requests)
        results = self.backend.answer(requests)
        vectors = [r.values for r in results if isinstance(r, Embedding)]
        if len(vectors) != len(results):
            raise UsageError("refuses to embed a text", where=self.name)
        vectors_ND = np.stack(vectors) if vectors else np.zeros((0, 1), dtype=np.float32)
        if self.similarity == "cosine":
            # A vector of nothing but zeros is like no other: its cosines are 0.
            norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
            vectors_ND = vectors_ND / np.where(norms_N1 == 0, 1, norms_N1)
        return vectors_ND.astype(np.float32, copy=False)

    def index(self, passages: Sequence[str]) -> Index:
        return _EncoderIndex(self, passages)

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import numpy as np

        if not pairs:
            return []
        sides_ND = []
        for side, role in ((0, "query"), (1, "passage")):
            places = {text: i for i, text in enumerate(dict.fromkeys(pair[side] for pair in pairs))}
            sides_ND.append(self.embed(list(places), role)[[places[pair[side]] for pair in pairs]])
        scores: list[float] = np.einsum("nd,nd->n", *sides_ND, dtype=np.float64).tolist()
        return scores

    def close(self) -> None:
        self.backend.close()


class _EncoderIndex:
    def __init__(self, retriever: EncoderRetriever, passages: Sequence[str]) -> None:
        self._retriever = retriever
        self._places: dict[str, list[int]] = {}
        for position, text in enumerate(passages):
            self._places.setdefault(text, []).append(position)
        self._positions = list(self._places.values())
        self._vectors = hold(retriever.embed(list(self._places), "passage"), retriever.search)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        unique = list(dict.fromkeys(queries))
        found: dict[str, list[Hit]] = {}
        for start in range(0, len(unique), _QUERIES):
            some = unique[start : start + _QUERIES]
            best = self._vectors.search(self._retriever.embed(some, "query"), k)
            for query, (rows, scores) in zip(some, best, strict=True):
                spread = [(p, s) for r, s in zip(rows, scores, strict=True) for p in self._positions[r]]
                found[query] = _cut([Hit(p, float(s)) for p, s in spread], k)
        return [found[query] for query in queries]

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return self._retriever.pair_scores(pairs)


class Bm25Retriever(Retriever):
    """BM25 by bm25s. An index counts the words of its own passages; `pair_scores` those of `corpus`."""

    def __init__(self, section: RetrieverSection, corpus: Sequence[str] | None = None) -> None:
        self.section, self.name = section, "bm25"
        self.identity = bm25_settings(section)
        self._backend = None if corpus is None else Bm25Backend(section, corpus)
        if self._backend is not None:
            self.identity = self._backend.identity
        self.analyzer = Analyzer(section.language)
        self._ids: dict[str, Array] = {}
        self.vocabulary: dict[str, int] = {}

    def index(self, passages: Sequence[str]) -> Index:
        return _Bm25Index(self, passages)

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        if self._backend is None:
            raise UsageError(
                "BM25 scores pairs by the words of a corpus, and none is given", where="bm25", fix="set its corpus"
            )
        return [self._backend.score(query, passage) for query, passage in pairs]

    def word_ids(self, text: str) -> Array:
        """The words of a text as numbers, which stay the same over all indexes of this retriever; remembered."""
        import numpy as np

        found = self._ids.get(text)
        if found is None:
            known = self.vocabulary
            found = np.fromiter((known.setdefault(w, len(known)) for w in self.analyzer.words(text)), dtype=np.int32)
            self._ids[text] = found
        return found


class _Bm25Index:
    def __init__(self, retriever: Bm25Retriever, passages: Sequence[str]) -> None:
        import bm25s

        self._retriever, self._passages = retriever, passages
        self._pairs: Bm25Backend | None = None
        section = retriever.section
        ids = [retriever.word_ids(text) for text in passages]
        here: dict[int, int] = {}
        for row in ids:
            for word in row.tolist():
                here.setdefault(word, len(here))
        self._here = here
        self._model: Any = None
        if here:
            self._model = bm25s.BM25(k1=section.k1, b=section.b, method="lucene", backend="numpy")
            vocabulary = {str(word): i for word, i in here.items()}
            numbered = [[here[word] for word in row.tolist()] for row in ids]
            self._model.index((numbered, vocabulary), show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        import numpy as np

        results: list[list[Hit]] = []
        for query in queries:
            words = [self._here[w] for w in self._retriever.word_ids(query).tolist() if w in self._here]
            if not words:
                results.append([])
                continue
            scores_N = self._model.get_scores_from_ids(words)
            hits_H = np.flatnonzero(scores_N > 0)  # a passage without any of the words is no hit
            kept = hits_H[top(scores_N[hits_H], k)]
            results.append(_cut([Hit(int(p), float(scores_N[p])) for p in kept], k))
        return results

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        if self._pairs is None:
            retriever = self._retriever
            self._pairs = Bm25Backend(retriever.section, self._passages, retriever.analyzer, self._counts())
        return [self._pairs.score(query, passage) for query, passage in pairs]

    def _counts(self) -> WordCounts:
        """From the words' numbers, which are there: to read the passages again would take as long as to index them."""
        import numpy as np

        rows = [self._retriever.word_ids(text) for text in self._passages]
        stems = list(self._retriever.vocabulary)
        counted = np.zeros(len(stems), dtype=np.int64)
        for row in rows:
            counted[np.unique(row)] += 1
        frequencies = {stems[i]: int(counted[i]) for i in np.flatnonzero(counted)}
        return WordCounts(sum(map(len, rows)), frequencies)


class CrossEncoderRetriever(Retriever):
    """A cross-encoder's: pairs by the model; a search scores what BM25 finds, `candidates` passages a query.

    Args:
        backend: answers `pair_score`, usually cached.
        section: `candidates`, and the first stage's k1, b and language.
    """

    def __init__(self, backend: Backend, section: RetrieverSection) -> None:
        self.backend, self.section, self.name = backend, section, section.name
        self.first = Bm25Retriever(section)
        self.identity = backend.identity | {"first": self.first.identity, "candidates": section.candidates}

    def index(self, passages: Sequence[str]) -> Index:
        return _CrossEncoderIndex(self, passages)

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        from prefloop.backends.cross_encoder import relevance

        scores: list[float] = []
        self._asked = len(pairs)
        for result in self.backend.answer([PairScoreRequest(pair) for pair in pairs]):
            if not isinstance(result, Logits):
                reason = result.reason if isinstance(result, Refusal) else "gives no logits"
                raise UsageError(f"refuses a pair: {reason}", where=self.name)
            scores.append(relevance(result.values))
        return scores

    def close(self) -> None:
        self.backend.close()


class _CrossEncoderIndex:
    def __init__(self, retriever: CrossEncoderRetriever, passages: Sequence[str]) -> None:
        self._retriever, self._passages = retriever, passages
        self._first = retriever.first.index(passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = self._first.search(queries, self._retriever.section.candidates)
        pairs = [(q, self._passages[hit.position]) for q, hits in zip(queries, found, strict=True) for hit in hits]
        scores = iter(self.pair_scores(pairs))
        return [_cut([Hit(hit.position, next(scores)) for hit in hits], k) for hits in found]

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return self._retriever.pair_scores(pairs)


def open_retriever(
    section: RetrieverSection, cache: Cache | None = None, corpus: Sequence[str] | None = None
) -> Retriever:
    """The section's retriever, its model loaded.

    Args:
        cache: remembers vectors and scores by content, and file digests.
        corpus: texts whose words BM25 counts when it scores pairs; the section's `corpus` without it.

    Raises:
        UsageError: there is no such model, the section's corpus cannot be read, or faiss is asked for and not there.
    """
    kind = kind_of(section)
    if kind == "bm25":
        return Bm25Retriever(section, _counted(section) if corpus is None else corpus)
    if section.search == "faiss":
        if kind != "encoder":
            raise UsageError(
                "is a cross-encoder, and faiss searches vectors", where=section.path, fix="leave search out"
            )
        require_faiss()
    backend = CachedBackend(open_model(section, kind, cache), cache)
    retriever: Retriever
    if kind == "encoder":
        own = backend.inner.similarity if section.similarity == "auto" else section.similarity  # type: ignore[attr-defined]
        retriever = EncoderRetriever(backend, own, section.name, section.search)
    else:
        retriever = CrossEncoderRetriever(backend, section)
    backend.on_batch = retriever.report
    return retriever


def kind_of(section: RetrieverSection) -> str:
    """bm25, encoder or cross_encoder. For `auto` a model's configuration is read, which may be fetched for it."""
    if section.path == "bm25":
        return "bm25"
    if section.kind != "auto":
        return section.kind
    if section.passages is not None:
        return "encoder"
    from prefloop.backends.cross_encoder import is_cross_encoder

    try:
        return "cross_encoder" if is_cross_encoder(section) else "encoder"
    except UsageError:  # encoders need no configuration of transformers; loading says what is wrong with others
        return "encoder"


def open_model(section: RetrieverSection, kind: str, cache: Cache | None) -> Backend:
    """The backend of a retriever's model, uncached.

    Args:
        kind: encoder, cross_encoder, bm25, or `retriever` for what the section says.

    Raises:
        UsageError: as for `open_retriever`; BM25 has no corpus.
    """
    from prefloop.engine.load import quiet

    kind = kind_of(section) if kind == "retriever" else kind
    if kind == "bm25":
        counted = _counted(section)
        if counted is None:
            raise UsageError(
                "BM25 scores pairs by the words of a corpus, and none is given", where="bm25", fix="set its corpus"
            )
        return Bm25Backend(section, counted)
    quiet()
    if kind == "encoder":
        from prefloop.backends.encoder import EncoderBackend

        return EncoderBackend.load(section, cache)
    from prefloop.backends.cross_encoder import CrossEncoderBackend

    return CrossEncoderBackend.load(section, cache)


def retriever_identity(section: RetrieverSection, memo: Memo | None = None) -> dict[str, Any]:
    """What of a retriever changes scores, for a stage's fingerprint: settings and digests; loads nothing, no torch."""
    from prefloop.engine.load import resolve_encoder_path
    from prefloop.store.fingerprint import file_digest, folder_digest

    # Revisions are told by the commits in the digests.
    without = {"device", "batch_size", "path", "passages", "corpus", "revision", "passages_revision"}
    said = section.model_dump(exclude=without)
    for name in ("path", "passages"):
        path, revision = getattr(section, name), section.revision if name == "path" else section.passages_revision
        if path is not None and path != "bm25":
            path = model_digest(resolve_encoder_path(path), revision, memo)
        said[name] = path
    if section.corpus is not None:
        from prefloop.retrieve.corpus import located

        place = located(section.corpus)
        said["corpus"] = (folder_digest if place.is_dir() else file_digest)(place, memo)
    return said


def _counted(section: RetrieverSection) -> list[str] | None:
    if section.corpus is None:
        return None
    from prefloop.retrieve.corpus import read_collection

    return [p.text for passages in read_collection(section.corpus).passages.values() for p in passages]


def _cut(hits: list[Hit], k: int) -> list[Hit]:
    """Best first, equal scores by position; the k best and what ties with the k-th."""
    hits.sort(key=lambda hit: (-hit.score, hit.position))
    if len(hits) > k:
        least = hits[k - 1].score
        return [hit for hit in hits if hit.score >= least]
    return hits
