"""Listwise judges: all answers in one reply, in several orders."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_script import judged, only, shown

from prefloop.signals.bias import rates
from prefloop.signals.judge import JudgeSignal
from prefloop.signals.judge.modes import shuffles


def listwise(**options):
    return JudgeSignal("listwise", None, 0.0, verdict="text", **options)


def ranking(**options):
    return JudgeSignal("ranking", None, 0.0, verdict="text", **options)


def mark(numbers):
    return f"Reasons. [[{', '.join(map(str, numbers))}]]"


def test_each_answer_gets_its_rating_whatever_the_order():
    worth = {"a": 4, "bb": 2, "ccc": 5}
    scores, counts, backend, _ = judged(listwise(), list(worth), lambda r, p: mark(worth[t] for t in shown(p)))
    assert scores == [4.0, 2.0, 5.0]
    orders = [tuple(shown(p)) for p in backend.prompts]
    assert orders[0] == orders[1][::-1]
    assert rates(counts) == pytest.approx(
        # longer beats shorter in bb < a (no), a < ccc and bb < ccc (yes)
        {"null_rate": 0, "consistency": 1, "first_seat": 0.5, "tie_rate": 0, "longer_wins": 2 / 3}
    )


def test_a_judge_that_prefers_the_front_sees_ties():
    """By place: 5, 3, 1; over an order and the same backwards everybody has 3."""
    scores, counts, _, _ = judged(listwise(), ["x", "y", "z"], lambda r, p: mark([5, 3, 1]))
    assert scores == [3.0, 3.0, 3.0]
    found = rates(counts)
    assert (found["first_seat"], found["consistency"], found["tie_rate"]) == (1.0, 0.0, 1.0)


def test_an_order_becomes_win_rates():
    worth = {"a": 1, "b": 3, "c": 2}

    def say(request, prompt):
        texts = shown(prompt)
        return mark(1 + texts.index(t) for t in sorted(texts, key=worth.get, reverse=True))

    signal = ranking()
    scores, counts, _, _ = judged(signal, ["a", "b", "c", "b "], say)
    # Against the three others: a loses all; b beats a and c, and ties with its twin; c beats a alone.
    assert scores == pytest.approx([0.0, 2.5 / 3, 1 / 3, 2.5 / 3])
    assert signal.pairwise
    assert rates(counts)["consistency"] == 1


def test_two_answers_give_the_probability():
    # In one of the two orders the first of the list is best, in the other as well: a seat, not a preference.
    assert judged(ranking(), ["x", "y"], lambda r, p: mark([1, 2]))[0] == [0.5, 0.5]


def test_an_order_without_a_verdict_is_no_verdict_at_all():
    replies = iter(["[[5, 1]]", "no", "no"])
    scores, counts, _, _ = judged(listwise(), ["x", "y"], lambda r, p: next(replies))
    assert scores == [None, None]
    assert (counts["verdicts"], counts["nulls"], counts["null_pairs"]) == (2, 1, 1)
    assert judged(ranking(), ["x", "y", "z"], lambda r, p: "no")[0] == [None] * 3


def test_alone():
    scores, _, backend, _ = judged(listwise(), ["x", "x"], lambda r, p: mark([4]))
    assert (scores, len(backend.requests)) == ([4.0, 4.0], 1)
    assert judged(ranking(), ["x"], lambda r, p: pytest.fail("asked"))[0] == [None]
    assert judged(ranking(), ["x", " x"], lambda r, p: pytest.fail("asked"))[0] == [0.5, 0.5]


def test_json_lists():
    refusal = only("json")

    def say(request, prompt):
        return refusal(request) or json.dumps({"reasoning": "", "verdict": [len(t) for t in shown(prompt)]})

    signal = JudgeSignal("listwise", None, 0.0)
    scores, _, backend, _ = judged(signal, ["x", "xxx", "xx"], say)
    assert scores == [1.0, 3.0, 2.0]
    assert {r.verb for r in backend.requests} == {"generate"}  # a list is never chosen
    schema = json.loads(backend.requests[0].schema)["properties"]["verdict"]
    assert (schema["minItems"], schema["maxItems"], schema["items"]["enum"]) == (3, 3, [1, 2, 3, 4, 5])


@given(st.lists(st.text(max_size=3), min_size=1, max_size=6, unique=True), st.integers(2, 7))
def test_orders_are_different_balanced_and_seeded(texts, orders):
    found = shuffles(texts, orders)
    assert len({tuple(order) for order in found}) == len(found)
    assert all(sorted(order) == list(range(len(texts))) for order in found)
    assert len(found) == min(orders, len(list(permutations(texts))))
    # By the texts, not by their order: the same texts are shown in the same orders.
    turned = texts[::-1]
    assert [[turned[i] for i in order] for order in shuffles(turned, orders)] == [
        [texts[i] for i in order] for order in found
    ]
    if orders % 2 == 0 and len(found) == orders:
        for place in range(len(texts)):
            assert sum(order.index(place) for order in found) == orders * (len(texts) - 1) / 2


@given(st.lists(st.sampled_from(["a", "b", "cc", "ddd"]), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_win_rates_balance(texts, random):
    def say(request, prompt):
        n = len(shown(prompt))
        return mark(random.sample(range(1, n + 1), n))

    scores = judged(ranking(), texts, say)[0]
    assert sum(scores) / len(scores) == pytest.approx(0.5)
