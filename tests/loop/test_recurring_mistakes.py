"""Mistakes that tools of this kind make again and again, looked for in a whole run."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from tests.loop.conftest import make_project, write_prompts

from prefloop.pairs.splits import overlap


def rows(project, stage):
    (folder,) = (project.run_dir / "stages").glob(f"*-{stage}")
    return [row for part in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def test_no_prompt_text_inside_a_response(finished):
    """A completion is what the model added: neither the prompt nor the template's marks come with it."""
    sampled = rows(finished, "sample")
    assert sampled
    for row in sampled:
        asked = row["prompt"][-1]["content"]
        for completion in row["completions"]:
            assert asked not in completion["text"]
            # The sampler's own ids, so no more of them than were to be made; a prompt in front would be longer.
            assert len(completion["token_ids"]) <= 8
    for pair in rows(finished, "pair"):
        for side in ("chosen", "rejected"):
            (message,) = pair[side]
            assert message["role"] == "assistant"
            assert pair["prompt"][-1]["content"] not in message["content"]


def test_best_and_worst_are_those_of_the_aggregated_scores(finished):
    """Of an answer's several verdicts one score is made first; the pair is then of the highest and the lowest."""
    scored = {row["id"]: row for row in rows(finished, "rate")}
    pairs = rows(finished, "pair")
    assert pairs
    for pair in pairs:
        row = scored[pair["prompt_id"]]
        score = {c["id"]: s for c, s in zip(row["completions"], row["scores"], strict=True)}
        assert pair["score_chosen"] == score[pair["chosen_id"]] == max(score.values())
        assert pair["score_rejected"] == score[pair["rejected_id"]] == min(score.values())


def test_evaluation_prompts_are_never_among_the_training_prompts(finished, tmp_path):
    trained, measured = rows(finished, "prompts"), rows(finished, "heldout")
    assert trained
    assert measured
    assert not {row["id"] for row in trained} & {row["id"] for row in measured}
    assert not overlap(trained, measured)
    # Given by the user, they are refused.
    project = make_project(tmp_path / "p", evaluate={"prompts": {"path": "heldout.jsonl"}, "bootstrap": 200})
    write_prompts(project.root / "heldout.jsonl", range(20, 30))
    assert "training prompt" in project.prefloop("run", "recipe.yaml", "--out", "out", expect=2).stderr


@pytest.mark.parametrize("seat", ["chosen", "rejected"])
def test_both_sides_of_a_pair_answer_the_same_prompt(finished, seat):
    scored = {row["id"]: {c["id"]: c["text"] for c in row["completions"]} for row in rows(finished, "rate")}
    for pair in rows(finished, "pair"):
        assert scored[pair["prompt_id"]][pair[f"{seat}_id"]] == pair[seat][0]["content"]
