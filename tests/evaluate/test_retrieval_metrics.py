"""Metrics of rankings: published values, ir-measures on plain runs, expected values against all orders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, P, R, nDCG

from prefloop.evaluate.retrieval_metrics import Found, groups, metrics, source_rate, tied_share
from prefloop.evaluate.source_bias import relative_delta

PARITY = Path(__file__).parents[3] / "shared" / "data" / "parity" / "sbm.json"
LLM = "llama-2-7b-chat-tmp0.2"
KS = (1, 3, 5, 10)


def found(scores: dict[tuple[str, str], float]) -> list[Found]:
    return [Found(document, score) for document, score in scores.items()]


def mean(values, name):
    return sum(v[name] for v in values.values()) / len(values)


@pytest.fixture(scope="module")
def cocktail():
    if not PARITY.is_file():
        pytest.skip("needs ../shared/data/parity/sbm.json")
    data = json.loads(PARITY.read_text())["cocktail"]
    run = {}
    for query, scores in data["run"].items():
        versions = {(k.partition("-")[0], k.partition("-")[2]): s for k, s in scores.items()}
        run[query] = found(versions)
    return data, run


def judged(qrels, *sources):
    return {q: {(d, s): g for d, g in rows.items() for s in sources} for q, rows in qrels.items()}


@pytest.mark.parametrize(("target", "sources"), [("human", ["human"]), ("llm", [LLM]), ("both", ["human", LLM])])
def test_metrics_are_the_published_ones(cocktail, target, sources):
    data, run = cocktail
    values = metrics(run, judged(data["qrels"], *sources), KS)
    names = {"ndcg_cut": "ndcg", "map_cut": "map", "recall": "recall", "P": "p"}
    for key, expected in data["metrics"][target].items():
        name, k = key.rsplit("_", 1)
        if f"{names[name]}@{k}" in values["q0"]:
            assert round(mean(values, f"{names[name]}@{k}"), 5) == expected, key


def test_relative_delta_and_rates_are_the_published_ones(cocktail):
    data, run = cocktail
    human, llm = (metrics(run, judged(data["qrels"], s), KS) for s in ("human", LLM))
    for key, expected in data["relative_delta_pct"].items():
        name = key.replace("_cut_", "@")
        # Published means are rounded to five places before the formula.
        delta = relative_delta(round(mean(human, name), 5), round(mean(llm, name), 5))
        assert delta == pytest.approx(expected, abs=1e-9)
    rates = source_rate(run, "human", KS)
    for key, expected in data["human_rate"].items():
        assert round(mean(rates, key), 5) == expected


def test_equal_scores_in_trec_eval_favour_the_later_name_and_neither_when_neutral():
    run = {"q": found({("d", "human"): 1.0, ("d", LLM): 1.0 + 1e-9})}  # the same as float32
    values = {
        ties: [metrics(run, judged({"q": {"d": 1}}, s), [1], ties)["q"]["ndcg@1"] for s in ("human", LLM)]
        for ties in ("trec", "neutral")
    }
    assert values == {"trec": [0, 1], "neutral": [0.5, 0.5]}
    assert tied_share(run, 10) == 1
    assert source_rate(run, "human", [1, 2], "trec")["q"] == {"rate@1": 0, "rate@2": 0.5}  # by float64
    assert source_rate(run, "human", [1, 2], "neutral")["q"] == {"rate@1": 0.5, "rate@2": 0.5}


def test_a_source_is_no_suffix():
    # Both would be "a-b-c"; they are two documents all the same.
    run = {"q": found({("a-b", "c"): 2.0, ("a", "b-c"): 1.0})}
    assert metrics(run, {"q": {("a", "b-c"): 1}}, [1, 2])["q"]["p@1"] == 0
    assert metrics(run, {"q": {("a", "b-c"): 1}}, [1, 2])["q"]["p@2"] == 0.5


def test_queries_without_hits_or_without_relevant_documents():
    run = {"q": found({("d", "human"): 1.0}), "unjudged": found({("d", "human"): 1.0})}
    rows = {"q": {("d", "human"): 0}, "no hit": {("d", "human"): 1}}
    for ties in ("trec", "neutral"):
        values = metrics(run, rows, [1], ties)
        assert values == {"q": {"ndcg@1": 0, "map@1": 0, "recall@1": 0, "p@1": 0}}


documents = st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(["human", "x"]))
runs = st.dictionaries(documents, st.integers(0, 2).map(float), min_size=1, max_size=6)
grades = st.dictionaries(documents, st.integers(-1, 3), min_size=1, max_size=6)


@given(runs, grades)
def test_the_expected_value_is_the_mean_over_all_orders(scores, judged):
    tied = groups(found(scores))
    orders = [[d for group in order for d in group] for order in itertools.product(*map(itertools.permutations, tied))]
    one_by_one = [
        metrics({"q": [Found(d, -i) for i, d in enumerate(order)]}, {"q": judged}, [1, 2, 4])["q"]
        for order in orders[:: max(1, len(orders) // 800)]
    ]
    if len(orders) > 800:
        return
    expected = metrics({"q": found(scores)}, {"q": judged}, [1, 2, 4], "neutral")["q"]
    for name, value in expected.items():
        assert value == pytest.approx(sum(v[name] for v in one_by_one) / len(one_by_one)), name


@given(runs, grades)
def test_it_is_ir_measures_on_the_suffixed_ids(scores, judged):
    """Also for ties: the explicit order is the one that trec_eval makes of the published ids."""
    ours = metrics({"q": found(scores)}, {"q": judged}, [1, 3])["q"]
    qrels = {"q": {"-".join(d): g for d, g in judged.items()}}
    run = {"q": {"-".join(d): s for d, s in scores.items()}}
    theirs = ir_measures.calc_aggregate([m @ k for m in (nDCG, AP, R, P) for k in (1, 3)], qrels, run)
    for measure, value in theirs.items():
        name = {"nDCG": "ndcg", "AP": "map", "R": "recall", "P": "p"}[measure.NAME]
        assert ours[f"{name}@{measure.params['cutoff']}"] == pytest.approx(value, abs=1e-12)
