"""The self-reward benchmark at toy size: what it compares is equal, and what it prints has the promised shape."""

from __future__ import annotations

import pytest
from benchmarks import self_reward
from benchmarks.self_reward import Case, UnequalWork, Work

TOY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
CASE = Case(12, 5, batch=2, model=TOY)


def test_prompts_and_answers_have_the_sizes_of_the_case():
    work = Work(CASE)
    assert len(work.requests) == 4 * CASE.batch
    assert {len(r.token_ids) for r in work.requests} == {CASE.answer}
    prompt = self_reward.encode_prompt(work.tokenizer, self_reward.thaw(work.requests[0].messages))
    assert len(prompt) == CASE.prompt
    assert len(work.ours()) == len(work.requests)


def test_unequal_work_is_refused():
    work = Work(CASE)
    self_reward.check_equal(work)
    work.plain = lambda: [score + 1 for score in Work.plain(work)]
    with pytest.raises(UnequalWork, match="a score of plain differs by 1"):
        self_reward.check_equal(work)


def test_figures_have_the_promised_shape():
    found = self_reward.measure(CASE, repeats=1, warmup=0, with_memory=False)
    assert found["vs_plain"] == found["scorers"]["plain"]["seconds"] / found["scorers"]["ours"]["seconds"]
    assert set(found["scorers"]) == {"ours", "plain", "published"}
    assert self_reward.table({CASE.name: found}).row_count == 3
