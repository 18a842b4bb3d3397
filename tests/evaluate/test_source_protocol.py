"""The protocol: known figures on made-up retrievers, published ones on NQ-UTD, what is equal for copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefloop.config import RetrieverSection
from prefloop.errors import UsageError
from prefloop.evaluate.source_protocol import compare_sources, measure_sources
from prefloop.evaluate.source_task import Settings, prepare
from prefloop.retrieve.corpus import Passage, Query, read_collection
from prefloop.retrieve.retriever import Hit, Retriever, open_retriever

NQ_UTD = Path(__file__).parents[3] / "shared" / "data" / "cocktail" / "nq-utd.zip"
LLM = "llama-2-7b-chat-tmp0.2"


class ByTable(Retriever):
    """Scores by (query, text); passages without a score are no hits."""

    def __init__(self, table):
        self.table, self.name, self.identity = table, "table", {}

    def index(self, passages):
        self.passages = list(passages)
        return self

    def search(self, queries, k):
        return [
            sorted(
                (Hit(i, self.table[q, p]) for i, p in enumerate(self.passages) if (q, p) in self.table),
                key=lambda hit: (-hit.score, hit.position),
            )
            for q in queries
        ]

    def pair_scores(self, pairs):
        return [self.table.get(pair, 0.0) for pair in pairs]


def passages(source, texts):
    return [Passage(f"d{i}", source, "", text) for i, text in enumerate(texts)]


QUERIES = [Query("q0", "A"), Query("q1", "B"), Query("q2", "C")]
QRELS = {"q0": {"d0": 1}, "q1": {"d1": 1}, "q2": {"d2": 1}}
CORPUS = {
    "human": passages("human", ["h zero", "h one", "h two"]),
    "m": passages("m", ["m zero", "m one", "m two longer still"]),
}
TABLE = {
    **{("A", "h zero"): 1.0, ("A", "m zero"): 2.0, ("A", "h one"): 0.5},
    **{("B", "h one"): 3.0, ("B", "m one"): 2.0},
}


def measure(table=TABLE, corpus=CORPUS, **settings):
    settings = {"resamples": 200} | settings
    return measure_sources(corpus, QUERIES, QRELS, {"table": ByTable(table)}, Settings(**settings))


def test_figures_by_hand():
    found = measure().retrievers["table"]
    # A finds its human passage second and the rewrite first, B the other way round; C finds nothing.
    assert (found["queries"], found["no_hit"]) == (2, 1)
    assert found["ndcg@1"] == {"human": 0.5, "m": 0.5, "all": 1.0}
    half = 0.5 * (1 + 1 / 1.584962500721156)
    assert found["ndcg@10"] == {"human": pytest.approx(half), "m": pytest.approx(half), "all": 1.0}
    assert found["relative_delta@10"]["m"]["value"] == pytest.approx(0)
    assert found["alone"]["human"]["ndcg@10"] == 1
    assert found["human_rate@1"] == 0.5
    # All three relevant pairs are scored, found or not: one win, one loss, one tie at 0.
    rate = found["win_rate"]["m"]
    assert (rate["value"], rate["pairs"], rate["ties"]) == (pytest.approx(0.5), 3, 1)
    assert rate["length_matched"]["pairs"] == 2


def test_queries_without_hits_count_as_zero_when_asked():
    found = measure(no_hit="zero").retrievers["table"]
    assert found["queries"] == 3
    assert found["ndcg@1"] == {"human": pytest.approx(1 / 3), "m": pytest.approx(1 / 3), "all": pytest.approx(2 / 3)}
    assert found["alone"]["m"]["queries"] == 3


def test_nothing_is_found_at_all():
    for no_hit in ("drop", "zero"):
        entry = measure({}, no_hit=no_hit).retrievers["table"]
        delta = entry["relative_delta@10"]["m"]
        assert (delta["value"], delta["ci_low"], delta["ci_high"]) == (None, None, None)
        assert delta["verdict"] == "no detectable difference"
        missing = None if no_hit == "drop" else 0.0
        assert entry["ndcg@10"] == {"human": missing, "m": missing, "all": missing}
        assert entry["alone"]["m"]["ndcg@10"] == missing
        json.dumps(entry, allow_nan=False)


def test_copies_are_biased_in_trec_eval_and_not_when_neutral():
    texts = ["a b", "c d", "e f"]
    corpus = {"human": passages("human", texts), "llama": passages("llama", texts)}
    table = {(q.text, t): 1.0 for q, t in zip(QUERIES, texts, strict=True)}
    found = measure(table, corpus).retrievers["table"]
    assert found["relative_delta@1"]["llama"]["value"] == -200
    assert found["relative_delta@10"]["llama"]["value"] < -40
    assert found["relative_delta@10"]["llama"]["neutral"]["value"] == pytest.approx(0)
    assert found["tied_places@10"] == 1
    neutral = measure(table, corpus, ties="neutral").retrievers["table"]["relative_delta@10"]["llama"]
    assert neutral["value"] == pytest.approx(0)
    assert neutral["trec"]["value"] < -40


def test_lengths_that_match_are_told_apart():
    # The rewrite wins only where it is longer.
    table = {("A", "h zero"): 2.0, ("A", "m zero"): 1.0, ("C", "h two"): 1.0, ("C", "m two longer still"): 2.0}
    delta = measure(table).retrievers["table"]["relative_delta@1"]["m"]
    headline = measure(table).retrievers["table"]["relative_delta@10"]["m"]
    assert delta["value"] == pytest.approx(0)
    assert headline["length_matched"]["value"] > 40
    assert (headline["length_matched"]["n"], headline["length_matched"]["passages"]) == (1, 2)


def test_passages_that_a_source_lacks_are_left_out_and_counted():
    corpus = CORPUS | {"m": CORPUS["m"][:2]}
    measured = measure(corpus=corpus)
    assert measured.left_out == {"human": 1}
    assert measured.texts["m"]["passages"] == 2
    assert {row["query"] for row in measured.queries} == {"q0", "q1"}


def test_rows_and_gaps():
    measured = measure()
    assert {row["target"] for row in measured.queries} == {"human", "m", "all", "human alone", "m alone"}
    assert measured.gaps["table"]["m"] == [-1.0, 1.0, 0.0]


def test_holm_over_retrievers():
    queries = [Query(f"q{i}", f"Q{i}") for i in range(12)]
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(12)}
    corpus = {s: passages(s, [f"{s} {i}" for i in range(12)]) for s in ("human", "m")}
    table = {(f"Q{i}", f"{s} {i}"): (1.0 if s == "human" else 2.0) for i in range(12) for s in ("human", "m")}
    one, two = (
        measure_sources(corpus, queries, qrels, {n: ByTable(table) for n in names}, Settings(resamples=2000))
        for names in (["a"], ["a", "b"])
    )
    single = one.retrievers["a"]["relative_delta@10"]["m"]
    double = two.retrievers["a"]["relative_delta@10"]["m"]
    assert single["verdict"] == "lower"  # the human text is favoured less
    assert double["p_holm"] == pytest.approx(min(1, 2 * single["p_value"]))


def test_a_comparison_of_sources():
    corpus = CORPUS | {"n": passages("n", ["n zero", "n one", "n two"])}
    base = {("A", "h zero"): 1.0, ("A", "m zero"): 2.0, ("B", "h one"): 1.0, ("B", "m one"): 2.0}
    fair = {("A", "n zero"): 2.0, ("B", "n one"): 0.5}
    found = compare_sources(corpus, QUERIES, QRELS, {"t": ByTable(base | fair)}, "m", ["n"], Settings(resamples=200))[
        "t"
    ]
    delta = found["m"]["relative_delta@10"]["value"]
    assert delta < -40
    assert found["n"]["relative_delta@10"]["value"] == pytest.approx(0)
    assert found["n"]["difference"]["value"] == pytest.approx(-delta)
    assert found["n"]["gap_closed"]["value"] == pytest.approx(1)
    assert found["n"]["difference"]["n"] == 2
    assert "difference" not in found["m"]
    same = compare_sources(
        corpus | {"n": passages("n", [p.text for p in CORPUS["m"]])},
        *(QUERIES, QRELS, {"t": ByTable(base)}, "m", ["n"], Settings(resamples=200)),
    )["t"]["n"]
    assert (same["difference"]["value"], same["gap_closed"]["value"]) == (0, 0)
    # Without a bias to begin with there is no share of it.
    even = {("A", "h zero"): 1.0, ("A", "m zero"): 2.0, ("B", "h one"): 2.0, ("B", "m one"): 1.0}
    none = compare_sources(corpus, QUERIES, QRELS, {"t": ByTable(even | fair)}, "m", ["n"], Settings(resamples=200))
    assert none["t"]["m"]["relative_delta@10"]["value"] == 0
    assert none["t"]["n"]["gap_closed"]["value"] is None


def test_mistakes():
    with pytest.raises(UsageError, match="no source people among human, m"):
        prepare(CORPUS, QUERIES, QRELS, Settings(human="people"))
    with pytest.raises(UsageError, match="only one source"):
        prepare({"human": CORPUS["human"]}, QUERIES, QRELS, Settings())
    with pytest.raises(UsageError, match="no passage id in common"):
        prepare(CORPUS | {"m": [Passage("x", "m", "", "t")]}, QUERIES, QRELS, Settings())
    with pytest.raises(UsageError, match="no query has a relevant passage"):
        prepare(CORPUS, QUERIES, {q: {"d9": 1} for q in QRELS}, Settings())


@pytest.mark.skipif(not NQ_UTD.is_file(), reason="needs ../shared/data/cocktail/nq-utd.zip")
class TestCocktail:
    @pytest.fixture(scope="class")
    def measured(self):
        found = read_collection(NQ_UTD, judged=True)
        retriever = open_retriever(RetrieverSection(path="bm25"))
        return measure_sources(found.passages, found.queries, found.qrels, {"bm25": retriever})

    def test_the_data_are_the_published_ones(self):
        found = read_collection(NQ_UTD, judged=True)
        assert {s: len(p) for s, p in found.passages.items()} == {"human": 800, LLM: 800}
        assert [p.id for p in found.passages["human"]] == [p.id for p in found.passages[LLM]]
        grades = [g for row in found.qrels.values() for g in row.values()]
        assert (len(found.queries), [grades.count(g) for g in (0, 1, 2)]) == (80, [503, 94, 203])

    def test_bm25_is_as_published(self, measured):
        found = measured.retrievers["bm25"]
        assert 100 * found["ndcg@10"]["all"] == pytest.approx(73.7, abs=1.5)
        delta = found["relative_delta@10"][LLM]
        assert delta["value"] == pytest.approx(5.4, abs=2.5)
        assert delta["ci_low"] < 0 < delta["ci_high"]  # 80 queries do not tell it from 0
        assert found["relative_delta@1"][LLM]["value"] == pytest.approx(34.7, abs=5)

    def test_the_texts_are_as_described(self, measured):
        texts = measured.texts[LLM]
        assert texts["length_ratio"]["median"] == pytest.approx(0.96, abs=0.01)
        assert texts["overlap"]["value"] == pytest.approx(0.60, abs=0.01)
        assert texts["copied"]["value"] < 0.01
