"""Signal retriever: differences to the human text, several retrievers on one scale, judgments, what is asked."""

from __future__ import annotations

import json
from statistics import pstdev

import pytest

from prefloop.backends.base import Backend, Logits, PairScoreRequest
from prefloop.config import RetrieverSignalSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.retrieve.corpus import Query
from prefloop.signals.build import build
from prefloop.signals.driver import rate
from prefloop.signals.retriever import Judged, RetrieverSignal, judged


class Scores(Backend):
    """A score of a pair, from a table; counts what it is asked."""

    identity: dict = {}  # noqa: RUF012

    def __init__(self, table, default=0.0):
        self.table, self.default, self.asked = table, default, []

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        assert all(isinstance(r, PairScoreRequest) for r in requests)
        self.asked += [r.texts for r in requests]
        return [Logits([self.table.get(r.texts, self.default)]) for r in requests]


def row(document, *texts):
    return {
        "id": f"row-{document}",
        "prompt": [{"role": "user", "content": f"human {document}"}],
        "completions": [
            {
                "id": f"{document}{i}",
                "text": text,
                "token_ids": None,
                "finish_reason": "stop",
                "sample_index": i,
                "rewrite": {"document": document, "variant": f"v{i}", "system": "", "request": "{passage}", "key": ""},
            }
            for i, text in enumerate(texts)
        ],
    }


def signal(tmp_path, queries, names=("bm25",), **settings):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "x"}\n')
    section = RetrieverSignalSection(
        type="retriever", retrievers=names, judgments=str(tmp_path), **{"similarity": None} | settings
    )
    return RetrieverSignal(section, Judged(queries))


def test_a_score_is_the_mean_over_queries_of_the_difference_to_the_human_text(tmp_path):
    one = signal(tmp_path, {"d": [Query("q1", "first"), Query("q2", "second")]})
    scores = Scores(
        {
            **{("first", "human d"): 0.5, ("first", "a"): 0.75, ("first", "b"): 0.25},
            **{("second", "human d"): 0.125, ("second", "a"): 0.125, ("second", "b"): 0.5},
        }
    )
    rated = rate(one, [row("d", "a", "b"), row("e", "c")], {"retriever1": scores})
    first, unjudged = rated.rows
    assert first["scores"] == [0.125, 0.0625]
    assert {p["name"]: p["scores"] for p in first["parts"]} == {"query/q1": [0.25, -0.25], "query/q2": [0.0, 0.375]}
    assert unjudged["scores"] == [None]
    assert "parts" not in unjudged
    assert rated.counts["judged"] == 1
    assert (rated.counts["queries"], rated.counts["compared"]) == (2, 4)
    assert (rated.counts["favoured"], rated.counts["straddled"], rated.counts["unscored"]) == (2, 1, 1)
    assert len(scores.asked) == 6


def test_cosines_to_the_human_text_stand_beside_the_scores(tmp_path):
    one = signal(tmp_path, {"d": [Query("q", "q")]}, similarity="some/encoder")
    near = Scores({("human d", "a"): 0.97, ("human d", "b"): 0.5})
    (rated,) = rate(one, [row("d", "a", "b")], {"retriever1": Scores({}), "similarity": near}).rows
    assert {p["name"]: p["scores"] for p in rated["parts"]}["similarity"] == [0.97, 0.5]


def test_several_retrievers_count_alike_whatever_their_scale(tmp_path):
    """Standard scores: a retriever that gives a hundred times the other's scores has no more to say."""
    queries = {"d": [Query("q1", "q1")], "e": [Query("q2", "q2")]}
    small = {("q1", "human d"): 0.2, ("q2", "human e"): 0.4, ("q1", "a"): 0.3, ("q2", "b"): 0.3}
    large = {key: 100 * value for key, value in small.items()}
    two = signal(tmp_path, queries, ("bm25", "some/encoder"))
    backends = {"retriever1": Scores(small), "retriever2": Scores(large)}
    rows = [row("d", "a"), row("e", "b")]
    two.prepare(rows, backends, lambda section: pytest.fail("nothing is searched"))
    scale = pstdev([0.2, 0.4])
    assert two.scales == pytest.approx({"retriever1": scale, "retriever2": 100 * scale})
    rated = rate(two, rows, backends).rows
    assert [r["scores"][0] for r in rated] == pytest.approx([0.1 / scale, -0.1 / scale])
    parts = {p["name"]: p["scores"] for p in rated[0]["parts"]}
    assert parts["retriever/retriever2"] == pytest.approx([10.0])
    with pytest.raises(PrefloopError, match="one and the same score"):
        two.prepare(rows, {"retriever1": Scores(small), "retriever2": Scores({})}, lambda section: None)


def test_ranks_come_from_a_run_of_the_human_texts_and_one_wordings_rewrites(tmp_path):
    class Index:
        def __init__(self, texts):
            self.texts = texts

        def search(self, queries, k):
            from prefloop.retrieve.retriever import Hit

            order = sorted(range(len(self.texts)), key=lambda i: len(self.texts[i]))
            return [[Hit(i, -float(len(self.texts[i]))) for i in order[:k]] for _ in queries]

    class Searcher:
        indexed: list = []  # noqa: RUF012

        def index(self, texts):
            self.indexed.append(list(texts))
            return Index(texts)

        def close(self):
            pass

    one = signal(tmp_path, {"d": [Query("q", "q")]}, by="rank", top_k=3)
    rows = [row("d", "short", "a text that is longer"), row("e", "tiny", "x" * 50)]
    one.prepare(rows, {}, lambda section: Searcher())
    assert Searcher.indexed == [
        ["human d", "human e", "short", "tiny"],
        ["human d", "human e", "a text that is longer", "x" * 50],
    ]
    (rated, _) = rate(one, rows, {}).rows
    # "short" is second and "human d" third; "a text that is longer" is third, two behind "human d".
    assert rated["scores"] == [1.0, -2.0]


def test_judgments_are_joined_by_document_and_grade(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "x"}\n')
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": f"text {q}"}) + "\n" for q in "ab"))
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\na\td\t1\nb\td\t0\nb\te\t2\n")
    section = RetrieverSignalSection(type="retriever", retrievers="bm25", judgments=str(tmp_path))
    ids = lambda found: {d: [q.id for q in qs] for d, qs in found.queries.items()}  # noqa: E731
    assert ids(judged(section)) == {"d": ["a"], "e": ["b"]}
    assert ids(judged(section.model_copy(update={"min_grade": 0}))) == {"d": ["a", "b"], "e": ["b"]}
    kept = judged(section, frozenset({"text b"}))
    assert (ids(kept), kept.left_out) == ({"d": ["a"]}, 1)
    # BM25 counts the words of the collection that the judgments belong to.
    _, needs = build(section)
    assert needs["retriever1"].model.corpus == str(tmp_path)


def test_other_answers_are_refused(tmp_path):
    plain = row("d", "a")
    del plain["completions"][0]["rewrite"]
    with pytest.raises(UsageError, match="no rewrites of passages"):
        rate(signal(tmp_path, {}), [plain], {})


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"by": "rank"}, "set top_k"), ({"similarity": "bm25"}, "name an encoder"), ({"retrievers": []}, "at least 1")],
)
def test_settings_that_do_not_fit(settings, said):
    with pytest.raises(ValueError, match=said):
        RetrieverSignalSection(**{"type": "retriever", "retrievers": "bm25", "judgments": "x"} | settings)
