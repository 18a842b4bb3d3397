"""A retriever behind the seam of backends: `pair_score` of two texts, whatever the retriever computes it from.

A signal asks about pairs; that an encoder embeds each text once, and through the cache, is decided here. So what is
kept as evidence is a number a pair, and no vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.backends.base import Backend, Logits, PairScoreRequest, Request, Result
from prefloop.config import RetrieverSection
from prefloop.errors import UsageError
from prefloop.retrieve.retriever import EncoderRetriever, Retriever, open_retriever
from prefloop.store.cache import Cache


class PairBackend(Backend):
    """Answers `pair_score` with one value.

    Args:
        retriever: who scores.
        likeness: the texts are two passages, and the score is the cosine of their vectors; else (query, passage).
    """

    def __init__(self, retriever: Retriever, *, likeness: bool = False) -> None:
        self.retriever, self.likeness, self.name = retriever, likeness, retriever.name
        self.identity = retriever.identity | {"pairs": "likeness" if likeness else "query, passage"}
        self.place = "this process"

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """All at once: the retriever cuts distinct texts into batches, not pairs."""
        return [list(range(len(requests)))] if requests else []

    def run(self, requests: Sequence[Request]) -> list[Result]:
        pairs = []
        for request in requests:
            if not isinstance(request, PairScoreRequest) or len(request.texts) != 2:
                raise ValueError("a retriever answers pair_score of two texts and nothing else")
            pairs.append((request.texts[0], request.texts[1]))
        return [Logits([score]) for score in self.scores(pairs)]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """A score of each pair; each distinct text is read once."""
        if not self.likeness:
            return self.retriever.pair_scores(pairs)
        import numpy as np

        assert isinstance(self.retriever, EncoderRetriever)
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        places = {text: i for i, text in enumerate(texts)}
        vectors_ND = self.retriever.embed(texts)
        a_PD, b_PD = (vectors_ND[[places[pair[side]] for pair in pairs]] for side in (0, 1))
        scores: list[float] = np.einsum("nd,nd->n", a_PD, b_PD, dtype=np.float64).tolist()
        return scores

    def close(self) -> None:
        self.retriever.close()


def open_pairs(section: RetrieverSection, cache: Cache | None, *, likeness: bool = False) -> PairBackend:
    """The section's retriever as a scorer of pairs.

    Args:
        likeness: as for `PairBackend`; the section's similarity is then the cosine.

    Raises:
        UsageError: as for `retriever.open_retriever`, or only an encoder can tell what is asked.
    """
    if likeness:
        section = section.model_copy(update={"similarity": "cosine"})
    retriever = open_retriever(section, cache)
    if likeness and not isinstance(retriever, EncoderRetriever):
        retriever.close()
        raise UsageError("is no encoder, and two passages are compared by one", where=section.path, fix="name another")
    return PairBackend(retriever, likeness=likeness)
