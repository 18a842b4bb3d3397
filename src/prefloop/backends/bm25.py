"""BM25 behind the seam of backends: `pair_score` of (query, passage) by the word counts of a given corpus.

Robertson and Zaragoza (2009) in Lucene's form, as bm25s computes it: idf = ln(1 + (N - df + 0.5) / (df + 0.5)), and a
word of frequency f in a passage of l words counts idf f / (f + k1 (1 - b + b l / average l)). A word that the corpus
lacks has df 0 (a rewrite may use words of its own). `tests/backends/test_bm25.py` holds that both agree.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefloop.backends.base import Backend, Logits, PairScoreRequest, Request, Result
from prefloop.config import RetrieverSection
from prefloop.store.fingerprint import digest

VERSION = 1
"""Part of the identity: raise it when the same texts would give other scores."""

_WORD = re.compile(r"\w+(?:'\w+)*")


class Analyzer:
    """Text to stems, after Elasticsearch's `english` analyser: lower case, no possessive 's, stop words out, stemmed.

    Args:
        language: of stemmer and stop words; None for neither.
    """

    def __init__(self, language: str | None) -> None:
        self.language = language
        self._stems: dict[str, str | None] = {}
        self._stemmer: Any = None
        self._stopped: frozenset[str] = frozenset()
        if language is not None:
            import Stemmer
            from bm25s import stopwords

            # Lucene stems English by Porter's first rules.
            self._stemmer = Stemmer.Stemmer("porter" if language == "english" else language)
            self._stopped = frozenset(
                getattr(stopwords, "STOPWORDS_" + ("EN" if language == "english" else language.upper()))
            )

    def words(self, text: str) -> list[str]:
        """The stems of a text, in order."""
        found = (self._stem(word) for word in _WORD.findall(text.lower().replace("\u2019", "'")))
        return [stem for stem in found if stem is not None]

    def _stem(self, word: str) -> str | None:
        """The word's stem, None of a stop word; remembered, since a corpus has few different words."""
        try:
            return self._stems[word]
        except KeyError:
            bare = word.removesuffix("'s") if self.language == "english" else word
            stem = None if bare in self._stopped else self._stemmer.stemWord(bare) if self._stemmer else bare
            self._stems[word] = stem
            return stem


class WordCounts(NamedTuple):
    """Words of a corpus in all, and in how many of its passages each stem occurs."""

    words: int
    frequencies: Mapping[str, int]


def count_words(analyzer: Analyzer, corpus: Sequence[str]) -> WordCounts:
    """The counts that BM25 needs."""
    frequencies: Counter[str] = Counter()
    words = 0
    for text in corpus:
        stems = analyzer.words(text)
        words += len(stems)
        frequencies.update(set(stems))
    return WordCounts(words, frequencies)


class Bm25Backend(Backend):
    """Answers `pair_score` with one value, in closed form; nothing is loaded.

    Args:
        section: k1, b and the language.
        corpus: passages whose words are counted, at least one.
        analyzer: of the section's language, where there is one already.
        counts: of the corpus' words, where they are known already.
    """

    name = "bm25"

    def __init__(
        self,
        section: RetrieverSection,
        corpus: Sequence[str],
        analyzer: Analyzer | None = None,
        counts: WordCounts | None = None,
    ) -> None:
        if not corpus:
            raise ValueError("BM25 counts the words of a corpus; got none")
        self.k1, self.b = section.k1, section.b
        self.analyzer = analyzer or Analyzer(section.language)
        self._passages = len(corpus)
        words, self._frequencies = counts or count_words(self.analyzer, corpus)
        self._average = max(words / len(corpus), 1e-9)
        self.identity = settings(section) | {
            "corpus": digest([self._passages, words, sorted(self._frequencies.items())]),
        }

    def idf(self, word: str) -> float:
        """Inverse document frequency of a stem, natural logarithm."""
        frequency = self._frequencies.get(word, 0)
        return math.log1p((self._passages - frequency + 0.5) / (frequency + 0.5))

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        return [list(range(i, min(i + 1024, len(requests)))) for i in range(0, len(requests), 1024)]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        results: list[Result] = []
        for request in requests:
            if not isinstance(request, PairScoreRequest) or len(request.texts) != 2:
                raise ValueError("BM25 answers pair_score of (query, passage) and nothing else")
            results.append(Logits([self.score(*request.texts)]))
        return results

    def score(self, query: str, passage: str) -> float:
        """A passage's BM25 score; a word that stands twice in the query counts twice."""
        counts = Counter(self.analyzer.words(passage))
        norm = self.k1 * (1 - self.b + self.b * counts.total() / self._average)
        return sum(
            self.idf(word) * counts[word] / (counts[word] + norm)
            for word in self.analyzer.words(query)
            if word in counts
        )


def settings(section: RetrieverSection) -> dict[str, Any]:
    """What of a section changes a score, besides the corpus."""
    return {"backend": "bm25", "version": VERSION, **section.model_dump(include={"k1", "b", "language"})}
