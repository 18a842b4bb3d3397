"""Measures by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.rerank.metrics import classification, measure, ranking


def row(labels):
    count = len(labels)
    return {
        "id": "r",
        "query_id": "q",
        "query": "q",
        "document_ids": [str(i) for i in range(count)],
        "documents": [f"d{i}" for i in range(count)],
        "labels": labels,
        "scores": [None] * count,
        "source": "test",
    }


def test_classification_by_hand():
    found = classification([1, 1, 1, 0, 0], [True, True, False, True, False])
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})


def test_no_hit_is_zero_and_no_division_by_it():
    assert classification([1, 0], [False, True]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert classification([0, 0], [False, False]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert classification([], []) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_f1_is_the_harmonic_mean(pairs):
    found = classification([int(a) for a, _ in pairs], [b for _, b in pairs])
    p, r = found["precision"], found["recall"]
    assert found["f1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


def test_ranking_by_hand():
    """One relevant document at place 1, another query's at places 2 and 4."""
    rows = [row([1, 0, None]), row([0, 1, 0, 1])]
    found = ranking(rows, [[3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    second = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert found["ndcg@10"] == pytest.approx((1 + second) / 2)
    assert found["mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["hit@1"] == pytest.approx(0.5)
    assert found["hit@3"] == pytest.approx(1.0)
    assert found["precision@3"] == pytest.approx(1 / 3)
    assert found["ranked_queries"] == 2


def test_queries_that_cannot_be_ranked_do_not_count():
    assert ranking([row([0, 0]), row([1]), row([None, None])], [[1.0, 2.0], [1.0], [1.0, 2.0]]) == {}


def test_ranking_by_the_second_logit():
    rows = [row([1, 0])]
    assert measure(rows, [[-1.0, 2.0]], [[5.0, 1.0]])["hit@1"] == 1
    assert measure(rows, [[-1.0, 2.0]])["hit@1"] == 0
    assert measure(rows, [[-1.0, 2.0]])["f1"] == 0


def test_documents_of_equal_score_stay_in_their_order():
    """As `rerank apply` writes them."""
    assert ranking([row([1, 0, 0])], [[1.0, 1.0, 1.0]])["mrr"] == 1
    assert ranking([row([0, 0, 1])], [[1.0, 1.0, 1.0]])["mrr"] == pytest.approx(1 / 3)


def test_without_labels_nothing_is_said_of_classes():
    assert measure([row([None, None])], [[1.0, -1.0]]) == {}
