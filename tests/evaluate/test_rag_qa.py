"""Systems of retrieval-augmented answering, measured on questions whose figures are known by hand."""

from __future__ import annotations

import math

import pytest

from prefloop.evaluate.qa import MEASURES, summarise
from prefloop.evaluate.rag_qa import Asked, System, by_score, measure
from prefloop.signals.qa import judge

ASKED = [
    Asked(
        f"q{i}",
        "Where?",
        ["Oslo"],
        ["it is Lima", "it is Oslo", "no word of it", "Oslo it is"],
        {0: "unaligned", 1: "aligned", 2: "both_incorrect"},
    )
    for i in range(40)
]
PLAIN = [[0, 1, 2, 3]] * 40
RERANKED = [[1, 3, 0, 2]] * 40


def systems():
    return {
        "plain": System(["Lima"] * 30 + ["in Oslo"] * 10, PLAIN),
        "aligned": System(["Oslo"] * 30 + ["Unknown"] * 10, RERANKED),
        "without_reranker": System(["Oslo"] * 30 + ["Unknown"] * 10, PLAIN),
    }


def test_accuracy_is_paired_by_question():
    found = measure(ASKED, systems(), top_k=2, accuracy="containment", resamples=2000)
    accuracy = found["accuracy"]
    assert (accuracy["plain"], accuracy["aligned"], accuracy["n"]) == (0.25, 0.75, 40)
    assert accuracy["difference"]["value"] == pytest.approx(0.5)
    # 30 questions gained and 10 lost: the standard error of the mean of ±1.
    assert accuracy["difference"]["ci_low"] == pytest.approx(0.5 - 2.0 * math.sqrt(0.75 / 39), abs=0.05)
    assert measure(ASKED, systems(), top_k=2, accuracy="exact_match", resamples=200)["accuracy"]["plain"] == 0


def test_orders_and_shares():
    found = measure(ASKED, systems(), top_k=2, accuracy="containment", resamples=200)
    plain, aligned = (found["systems"][name]["retrieval"] for name in ("plain", "aligned"))
    assert {k: v["value"] for k, v in plain.items()} == pytest.approx(
        {
            "hit@2": 1.0,
            "hit@1": 0.0,
            "mrr": 0.5,
            "ndcg@10": (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)),
            "aligned_share": 0.5,
            "misleading_share": 0.5,
        }
    )
    assert aligned["ndcg@10"]["value"] == aligned["mrr"]["value"] == 1.0
    # Of the first two one is known, and it is aligned.
    assert (found["aligned_share"]["plain"], found["aligned_share"]["aligned"]) == (0.5, 1.0)
    assert found["misleading_share"]["difference"]["value"] == -0.5


def test_each_system_is_tested_against_the_whole():
    found = measure(ASKED, systems(), top_k=2, accuracy="containment", resamples=2000)
    by_name = {c["a"]: c for c in found["ablations"]}
    assert by_name["plain"]["verdict"] == "higher"
    assert by_name["without_reranker"]["verdict"] == "no detectable difference"
    assert by_name["plain"]["p_holm"] >= by_name["plain"]["p_value"]
    answers = found["systems"]["aligned"]["answers"]
    assert answers["abstained"]["value"] == 0.25
    assert answers["f1"]["value"] == 0.75


def test_summaries_of_answers():
    said = summarise([judge(text, ["Oslo"]) for text in ("Oslo", "in Oslo", "Lima", "unknown")], resamples=200)
    assert {name: said[name]["value"] for name in MEASURES} == pytest.approx(
        {"exact_match": 0.25, "containment": 0.5, "f1": (1 + 2 / 3) / 4, "abstained": 0.25}
    )
    assert said["n"] == 4


def test_equal_scores_keep_their_order():
    assert by_score([1.0, 2.0, 1.0, 2.0]) == [1, 3, 0, 2]
