"""The CUT benchmark at toy size: what it compares is equal, and what it prints has the promised shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks import cut
from benchmarks.cut import Case, UnequalWork

TOY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
CASE = Case(10, 6, 12, model=TOY)


def test_the_claim_is_about_a_fifth_of_satisfactory_rows_and_a_large_vocabulary() -> None:
    for case in cut.CASES:
        examples = case.examples()
        assert sum(not e.judged_ids for e in examples) / len(examples) == 0.2
        assert case.model["vocab_size"] == 32_000
        assert len(examples[-1].judged_ids) == case.prompt + case.judgment


@pytest.mark.parametrize("lora", [True, False])
def test_both_ways_compute_the_same(lora: bool) -> None:
    case = replace(CASE, lora=lora)
    base = case.base()
    ours, stacked = cut.build("ours", case, base), cut.build("stacked", case, base)
    assert 0 < cut.check_equal(ours, stacked) < 1
    for _ in range(3):
        assert float(ours.step()) == pytest.approx(float(stacked.step()), rel=1e-5)


def test_unequal_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = CASE.base()
    ours = cut.build("ours", CASE, base)
    monkeypatch.setattr(cut, "OBJECTIVE", cut.OBJECTIVE.model_copy(update={"threshold": 3.0}))
    with pytest.raises(UnequalWork, match="ours flags"):
        cut.check_equal(ours, cut.build("stacked", CASE, base))


def test_figures_have_the_promised_shape() -> None:
    found = cut.measure(CASE, repeats=1, warmup=0, with_memory=False)
    steps = found["steps"]
    assert found["vs_stacked"] == steps["stacked"]["seconds"] / steps["ours"]["seconds"]
    assert set(steps) == {"ours", "stacked"}
    assert cut.table({CASE.name: found}).row_count == 2
