"""Repetition and length of answers: numbers by hand, and BLEU against sacrebleu."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.evaluate.diversity import bleu, distinct, diversity, lengths, self_bleu, words
from prefloop.records import prompt_id

text = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=9)


def row(question, *texts, tokens=True):
    prompt = [{"role": "user", "content": question}]
    completions = [
        {
            "id": str(i),
            "text": t,
            "token_ids": list(range(len(t.split()))) if tokens else None,
            "finish_reason": "length" if t.endswith("…") else "stop",
            "sample_index": i,
        }
        for i, t in enumerate(texts)
    ]
    return {"id": prompt_id(prompt), "prompt": prompt, "completions": completions}


def test_words():
    assert words("It's A-1, naïve!") == ["it", "'", "s", "a", "-", "1", ",", "naïve", "!"]
    assert words("猫はcat") == ["猫", "は", "cat"]
    assert words("") == []


def test_distinct_by_hand():
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 5
    assert distinct(texts, 2) == 2 / 3  # ab, ba, ab
    assert distinct(texts, 4) == 1.0


@given(text, st.lists(text, min_size=1, max_size=3))
def test_bleu_is_sacrebleus(hypothesis, references):
    sacrebleu = pytest.importorskip("sacrebleu", reason="comes with lm-eval, which the test extra has")
    theirs = sacrebleu.sentence_bleu(
        " ".join(hypothesis), [" ".join(r) for r in references], tokenize="none", use_effective_order=True
    )
    assert bleu(hypothesis, references) == pytest.approx(theirs.score / 100, abs=1e-9)


def test_bleu_of_empty_texts():
    assert bleu([], [["a"]]) == 0.0
    assert bleu([], [[], ["a"]]) == 1.0
    assert bleu(["a"], [[]]) == 0.0


def test_self_bleu_of_equal_and_of_unlike_texts():
    same = ["a", "b", "c", "d", "e"]
    assert self_bleu([same, same, same]) == pytest.approx(1.0)
    assert self_bleu([["a", "b"], ["c", "d"]]) == 0.0


def test_diversity_is_of_prompts_with_several_answers():
    rows = [row("p", "one two", "one two"), row("q", "red", "blue green"), row("r", "alone")]
    found = diversity(rows, 200)
    assert (found["n"], found["answers"]) == (2, 2.0)
    assert found["distinct_1"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert found["identical"]["value"] == 0.5
    assert found["self_bleu"]["value"] == pytest.approx(0.5)
    assert found["self_bleu"]["ci_low"] <= 0.5 <= found["self_bleu"]["ci_high"]
    assert diversity([row("r", "alone")]) == {"n": 0}


def test_rows_of_one_prompt_are_one_group():
    apart = [row("p", "one two"), row("p", "one two")]
    assert diversity(apart, 200) == diversity([row("p", "one two", "one two")], 200)


def test_lengths():
    found = lengths([row("p", "abc", "a b c d"), row("q", "e…")], 200)
    assert found["chars"]["value"] == pytest.approx((5 + 2) / 2)
    assert found["tokens"]["value"] == pytest.approx((2.5 + 1) / 2)
    assert found["truncated"]["value"] == 0.5
    assert "tokens" not in lengths([row("p", "abc", tokens=False)], 200)
